"""Metrics, beside the floors and the ceiling without which a figure says nothing."""

from ._perturbation import (
    mean_change,
    mean_shift,
    pearson_of_change,
    perturbation_table,
    top_responding,
)
from ._projection import log_normalize

__all__ = [
    "log_normalize",
    "mean_change",
    "mean_shift",
    "pearson_of_change",
    "perturbation_table",
    "top_responding",
]
