"""All metrics of two samples of cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from sclatent.data import totals

from ._classifiers import random_forest_auc, transfer_accuracy
from ._distances import (
    SCALES,
    SINKHORN_REG,
    energy_distance,
    frechet_distance,
    median_squared_distance,
    mmd2,
    sinkhorn_divergence,
    wasserstein,
)
from ._marginals import correlation_agreement, gene_agreement, library_size_distance, most_variable
from ._neighbors import density_coverage, nearest_neighbor_accuracy, precision_recall
from ._projection import Projection, log_normalize_dense

LOWER_IS_BETTER = {"w1", "w2", "sinkhorn", "mmd2", "frechet", "energy", "nn_accuracy", "rf_auc", "library_size"}


@dataclass(frozen=True)
class Sample:
    """Cells that are compared.

    Attributes
    ----------
    values
        Log-normalised, (cells, genes), float32.
    points
        Principal components, (cells, n_components).
    sizes
        Counts of every cell, (cells,).
    labels
        Position of the condition of every cell, (cells,).
    """

    values: np.ndarray
    points: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray

    @classmethod
    def of_counts(cls, counts: np.ndarray | sparse.csr_matrix, labels: np.ndarray, projection: Projection) -> Sample:
        """Cells of which counts (cells, genes) are known."""
        values = log_normalize_dense(counts)
        return cls(values, projection.transform(values), totals(counts, axis=1), labels)

    def head(self, n: int) -> Sample:
        """The first n cells."""
        return Sample(self.values[:n], self.points[:n], self.sizes[:n], self.labels[:n])


class Comparison:
    """Metrics with one real sample or another, by one measure: its scales and genes are those of both real halves.

    Parameters
    ----------
    halves
        Two samples of real cells.
    projection
        The principal components.
    seed
        Seed of the classifiers.
    """

    def __init__(self, halves: tuple[Sample, Sample], projection: Projection, seed: int) -> None:
        self._seed = seed
        scale = median_squared_distance(*(half.points for half in halves))
        self._bandwidths = [s * scale for s in SCALES]
        self._reg = SINKHORN_REG * scale
        self._genes = most_variable(np.concatenate([half.values for half in halves]))
        self._components = projection.name, projection.n_components
        n_genes = halves[0].values.shape[1]
        self._spaces = {
            "library_size": "log10 counts of a cell",
            "gene_correlation": f"log1p CP10k, {len(self._genes)} most variable genes",
            **dict.fromkeys(["gene_zeros", "gene_zeros_pearson"], f"counts, {n_genes} genes"),
            **dict.fromkeys(
                ["gene_mean", "gene_mean_pearson", "gene_variance", "gene_variance_pearson"],
                f"log1p CP10k, {n_genes} genes",
            ),
        }

    def describe(self, metric: str) -> dict[str, str | int | None]:
        """Which way a metric is better, its space, and the components of that."""
        space, n_components = (self._spaces[metric], None) if metric in self._spaces else self._components
        better = "lower" if metric in LOWER_IS_BETTER else "higher"
        return {"better": better, "space": space, "n_components": n_components}

    def metrics(self, real: Sample, other: Sample) -> dict[str, float]:
        """All metrics of a sample as compared with real cells, by name."""
        x, y = real.points, other.points
        precision, recall = precision_recall(x, y)
        density, coverage = density_coverage(x, y)
        result = {
            "w1": wasserstein(x, y, p=1),
            "w2": wasserstein(x, y, p=2),
            "sinkhorn": sinkhorn_divergence(x, y, self._reg),
            "mmd2": mmd2(x, y, self._bandwidths),
            "frechet": frechet_distance(x, y),
            "energy": energy_distance(x, y),
            "nn_accuracy": nearest_neighbor_accuracy(x, y),
            "rf_auc": random_forest_auc(x, y, self._seed),
            "precision": precision,
            "recall": recall,
            "density": density,
            "coverage": coverage,
            **gene_agreement(real.values, other.values),
            "gene_correlation": correlation_agreement(real.values[:, self._genes], other.values[:, self._genes]),
            "library_size": library_size_distance(real.sizes, other.sizes),
        }
        if np.ptp(real.labels) > 0:
            result["real_to_generated"] = transfer_accuracy(x, real.labels, y, other.labels, self._seed)
            result["generated_to_real"] = transfer_accuracy(y, other.labels, x, real.labels, self._seed)
        return result
