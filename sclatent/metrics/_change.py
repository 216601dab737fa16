"""The change of mean expression over control: what a perturbation does, gene by gene."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from anndata import AnnData
from scipy.stats import rankdata

from sclatent.data import by_rows, get_matrix, row_blocks

from ._cells import Profile, check_values, profile_of, profile_of_values

Cells: TypeAlias = AnnData | np.ndarray
"""Cells x genes: an AnnData of counts, or an array that is log-normalised already."""


def mean_change(cells: Cells, control: Cells) -> np.ndarray:
    """Mean of the log-normalised expression of cells, less that of the control cells.

    Parameters
    ----------
    cells, control
        AnnData of counts, or arrays (cells, genes) that are log-normalised already; the same genes in the same order.

    Returns
    -------
    np.ndarray
        Change of every gene, (genes,).

    Raises
    ------
    ValueError
        If the genes of two AnnData differ, there is no cell, or values of an AnnData are no counts.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.metrics import mean_change, top_responding
    >>> adata = sclatent.datasets.simulate(200, 50, library_size=500)
    >>> is_control = adata.obs["condition"] == "control"
    >>> change = mean_change(adata[~is_control], adata[is_control])
    >>> change.shape
    (50,)
    >>> list(adata.var_names[top_responding(change, 3)])  # the genes that respond the most
    ['gene_29', 'gene_2', 'gene_37']
    """
    return change_of(cells, control, "cells")


def change_of(cells: Cells, control: Cells, argument: str) -> np.ndarray:
    """Return :func:`mean_change`, with what to call the cells in a message."""
    of_cells, of_control = _profiles(cells, control, argument)
    return of_cells.mean - of_control.mean


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
    float
        The correlation; 0 where one of the changes is the same for all genes, as of control cells left as they are,
        since such a prediction says nothing of which genes respond.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.metrics import pearson_of_change
    >>> adata = sclatent.datasets.simulate(400, 50, library_size=500)
    >>> is_control = adata.obs["condition"] == "control"
    >>> real, predicted = adata[~is_control][::2], adata[~is_control][1::2]  # two halves of the same cells
    >>> pearson_of_change(real, predicted, adata[is_control]) > 0.8
    True
    >>> pearson_of_change(real, adata[is_control], adata[is_control])  # nothing changes
    0.0
    """
    is_change = isinstance(predicted, np.ndarray) and predicted.ndim == 1
    return pearson(
        change_of(real, control, "real"), predicted if is_change else change_of(predicted, control, "predicted")
    )


def slope_of_change(real: Cells, predicted: Cells, control: Cells) -> float:
    r"""Slope of the predicted on the real change over control: how much a response is attenuated.

    Least squares through the origin, with the sampling noise of the real change taken out of its sum of squares
    (errors in variables, by the method of moments):

    .. math:: \hat\beta = \frac{\sum_g (\Delta_g \hat\Delta_g - \tau_g^2)}{\sum_g (\Delta_g^2 - \sigma_g^2 - \tau_g^2)}

    with the real change :math:`\Delta_g` of gene g and the sampling variances :math:`\sigma_g^2` of the mean of the
    real cells and :math:`\tau_g^2` of that of the control cells. Without the latter in the numerator, the noise that
    both changes share would hide attenuation; without those in the denominator, a perfect prediction would seem
    attenuated. A change that is given as such does not share the noise of the control cells, and nothing is taken out
    of the numerator. Give cells that were made from the control cells, counterfactuals, as their change.

    Parameters
    ----------
    real, control
        Treated and control cells, as in :func:`mean_change`.
    predicted
        Predicted treated cells, or the predicted change itself, (genes,).

    Returns
    -------
    float
        1 where responses are as large as the real ones, below 1 where they are attenuated, 0 where nothing is
        predicted. NaN where the real change is no larger than its noise. It says nothing of genes that are predicted to
        change and do not.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.metrics import mean_change, slope_of_change
    >>> adata = sclatent.datasets.simulate(400, 50, library_size=500)
    >>> is_control = adata.obs["condition"] == "control"
    >>> real, control = adata[~is_control], adata[is_control]
    >>> whole = slope_of_change(real[::2], real[1::2], control)  # two halves of the same cells
    >>> 0.9 < whole < 1.1
    True
    >>> attenuated = slope_of_change(real[::2], 0.5 * mean_change(real[1::2], control), control)
    >>> 0.4 < attenuated < 0.6
    True
    """
    of_real, of_control = _profiles(real, control, "real")
    change, noise = of_real.mean - of_control.mean, of_real.noise + of_control.noise
    if isinstance(predicted, np.ndarray) and predicted.ndim == 1:
        return slope(change, predicted, noise)
    return slope(change, change_of(predicted, control, "predicted"), noise, of_control.noise)


def top_responding(change: np.ndarray, n_genes: int) -> np.ndarray:
    """Find the genes that respond the most.

    Parameters
    ----------
    change
        Change over control, (genes,).
    n_genes
        How many.

    Returns
    -------
    np.ndarray
        Positions of the genes with the largest absolute change, largest first; ties in the order of the genes.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.metrics import top_responding
    >>> top_responding(np.array([0.1, -2.0, 0.0, 1.0]), n_genes=2).tolist()
    [1, 3]
    """
    return np.argsort(-np.abs(change), kind="stable")[:n_genes]


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation, (genes,) each; 0 where one of them is constant."""
    # rounding in the mean of equal numbers must not pass for variation, hence ptp and not the standard deviation
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def slope(change: np.ndarray, predicted: np.ndarray, noise: np.ndarray, shared: np.ndarray | None = None) -> float:
    """Slope of the predicted on the real change, as of :func:`slope_of_change`.

    Parameters
    ----------
    change, predicted
        Real and predicted change, (genes,).
    noise
        Sampling variance of the real change, that of the control cells with it, (genes,).
    shared
        The part of it that the predicted change shares; by default none.

    Returns
    -------
    float
        The slope; NaN where there is no more than noise.
    """
    signal = change @ change - noise.sum()
    return float((change @ predicted - (0.0 if shared is None else shared.sum())) / signal) if signal > 0 else np.nan


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman correlation, (genes,) each; 0 where one of them is constant."""
    return pearson(rankdata(a), rankdata(b))


def _profiles(cells: Cells, control: Cells, argument: str) -> tuple[Profile, Profile]:
    """Mean profiles of cells and of control cells, of which the genes are the same."""
    if isinstance(cells, AnnData) and isinstance(control, AnnData) and not cells.var_names.equals(control.var_names):
        raise ValueError(
            f"{argument} and control differ in their genes or in the order of them: use adata[:, genes] on one."
        )
    return _profile(cells, argument), _profile(control, "control")


def _profile(cells: Cells, argument: str) -> Profile:
    values = get_matrix(cells, None) if isinstance(cells, AnnData) else np.asarray(cells)
    if len(values.shape) != 2 or not values.shape[0]:
        raise ValueError(f"Cells x genes with at least one cell were expected, not an array of shape {values.shape}.")
    if not isinstance(cells, AnnData):
        return profile_of_values(values)
    matrix = by_rows(values, f"{argument}.X")
    check_values(matrix, None, argument, f"{argument}.X")
    return profile_of((counts for _, counts in row_blocks(matrix)), values.shape[0])
