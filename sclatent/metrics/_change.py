"""The change of mean expression over control: what a perturbation does, gene by gene."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scipy import sparse
from scipy.stats import rankdata

from sclatent.data import get_matrix

from ._cells import mean_log_normalized

Cells = AnnData | np.ndarray
"""Cells x genes: an AnnData of counts, or an array that is log-normalised already."""


def mean_change(cells: Cells, control: Cells) -> np.ndarray:
    """Mean of the log-normalised expression of cells, less that of the control cells.

    Parameters
    ----------
    cells, control
        AnnData of counts, or arrays (cells, genes) that are log-normalised already; the same genes in the same order.

    Returns
    -------
    Change of every gene, (genes,).
    """
    if isinstance(cells, AnnData) and isinstance(control, AnnData) and not cells.var_names.equals(control.var_names):
        raise ValueError("cells and control differ in their genes or in the order of them: use adata[:, genes] on one.")
    return _mean(cells) - _mean(control)


def pearson_of_change(real: Cells, predicted: Cells, control: Cells) -> float:
    """Pearson correlation, over genes, of the predicted with the real change over control.

    Parameters
    ----------
    real, control
        Treated and control cells, as in :func:`mean_change`.
    predicted
        Predicted treated cells, or the predicted change itself, (genes,).

    Returns
    -------
    The correlation; 0 where one of the changes is the same for all genes, as of control cells left as they are, since
    such a prediction says nothing of which genes respond.
    """
    is_change = isinstance(predicted, np.ndarray) and predicted.ndim == 1
    return pearson(mean_change(real, control), predicted if is_change else mean_change(predicted, control))


def top_responding(change: np.ndarray, n_genes: int) -> np.ndarray:
    """Positions of the genes with the largest absolute change, largest first; ties in the order of the genes."""
    return np.argsort(-np.abs(change), kind="stable")[:n_genes]


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation, (genes,) each; 0 where one of them is constant."""
    # rounding in the mean of equal numbers must not pass for variation, hence ptp and not the standard deviation
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman correlation, (genes,) each; 0 where one of them is constant."""
    return pearson(rankdata(a), rankdata(b))


def _mean(cells: Cells) -> np.ndarray:
    values = get_matrix(cells, None) if isinstance(cells, AnnData) else np.asarray(cells)
    if values.ndim != 2 or not values.shape[0]:
        raise ValueError(f"Cells x genes with at least one cell were expected, not an array of shape {values.shape}.")
    if not isinstance(cells, AnnData):
        return values.mean(axis=0, dtype=np.float64)
    return mean_log_normalized(values if isinstance(values, np.ndarray) else sparse.csr_matrix(values))
