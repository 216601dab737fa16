"""Metrics, beside the floors and the ceiling without which a figure says nothing."""

from ._change import mean_change, pearson_of_change, top_responding
from ._perturbation import evaluate_perturbation, perturbation_table
from ._projection import log_normalize
from ._reconstruction import evaluate_reconstruction
from ._shift import linear_shift, mean_shift
from ._table import summarize

__all__ = [
    "evaluate_perturbation",
    "evaluate_reconstruction",
    "linear_shift",
    "log_normalize",
    "mean_change",
    "mean_shift",
    "pearson_of_change",
    "perturbation_table",
    "summarize",
    "top_responding",
]
