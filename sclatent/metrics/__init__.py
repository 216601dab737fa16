"""Metrics, beside the floors and the ceiling without which a figure says nothing."""

from . import split as split
from ._benchmark import benchmark
from ._change import mean_change, pearson_of_change, slope_of_change, top_responding
from ._classifiers import random_forest_auc, transfer_accuracy
from ._distances import (
    energy_distance,
    frechet_distance,
    median_squared_distance,
    mmd2,
    sinkhorn_divergence,
    wasserstein,
)
from ._floor_table import floors
from ._floors import cell_mean, gene_copula, independent_genes
from ._generation import evaluate_generation
from ._marginals import concordance
from ._neighbors import density_coverage, nearest_neighbor_accuracy, precision_recall
from ._perturbation import evaluate_perturbation
from ._projection import Projection, log_normalize
from ._reconstruction import evaluate_reconstruction
from ._shift import linear_shift, mean_shift
from ._table import summarize

__all__ = [
    "Projection",
    "benchmark",
    "cell_mean",
    "concordance",
    "density_coverage",
    "energy_distance",
    "evaluate_generation",
    "evaluate_perturbation",
    "evaluate_reconstruction",
    "floors",
    "frechet_distance",
    "gene_copula",
    "independent_genes",
    "linear_shift",
    "log_normalize",
    "mean_change",
    "mean_shift",
    "median_squared_distance",
    "mmd2",
    "nearest_neighbor_accuracy",
    "pearson_of_change",
    "precision_recall",
    "random_forest_auc",
    "sinkhorn_divergence",
    "slope_of_change",
    "summarize",
    "top_responding",
    "transfer_accuracy",
    "wasserstein",
]
