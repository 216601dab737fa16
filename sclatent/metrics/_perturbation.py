"""How well the answer of cells to a perturbation is predicted: the change of mean expression over control."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import pandas as pd
from anndata import AnnData

from ._projection import log_normalize

Cells = AnnData | np.ndarray
"""Cells x genes: an AnnData of counts, or an array that is log-normalised already."""


def _mean(cells: Cells) -> np.ndarray:
    values = log_normalize(cells) if isinstance(cells, AnnData) else np.asarray(cells)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"Cells x genes with at least one cell were expected, not an array of shape {values.shape}.")
    return values.mean(axis=0, dtype=np.float64)


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


def _change(prediction: Cells, control: Cells) -> np.ndarray:
    """Change that is predicted, from predicted cells or as it was given, (genes,)."""
    if isinstance(prediction, np.ndarray) and prediction.ndim == 1:
        return prediction
    return mean_change(prediction, control)


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    # rounding in the mean of equal numbers must not pass for variation, hence ptp and not the standard deviation
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


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
    return _pearson(mean_change(real, control), _change(predicted, control))


def top_responding(change: np.ndarray, n_genes: int) -> np.ndarray:
    """Positions of the genes with the largest absolute change, largest first; ties in the order of the genes."""
    return np.argsort(-np.abs(change), kind="stable")[:n_genes]


def mean_shift(
    adata: AnnData,
    condition_key: str,
    control: Hashable,
    treated: Hashable,
    group_key: str,
    held_out: Hashable,
    layer: str | None = None,
    pooled: bool = False,
) -> np.ndarray:
    """Change over control in the groups that were seen: the floor for a group whose treated cells were not.

    Parameters
    ----------
    adata
        Cells with raw counts. Cells of the held-out group are not looked at.
    condition_key, control, treated
        Column of obs with the conditions, and the two that are compared.
    group_key, held_out
        Column of obs with the groups (cell types, patients), and the group that is predicted.
    layer
        Layer with the counts; X by default.
    pooled
        Whether to put the cells of the other groups together, which lets large groups decide and mixes in how much of
        each group there is; by default every group counts the same.

    Returns
    -------
    Mean over the other groups of (mean of treated cells - mean of control cells), (genes,). Groups that do not have
    both are left out.
    """
    for key in (condition_key, group_key):
        if key not in adata.obs:
            raise KeyError(f"{key!r} is not a column of adata.obs, which has {list(adata.obs.columns)}.")
    others = adata[(adata.obs[group_key] != held_out).to_numpy()]
    condition = others.obs[condition_key].to_numpy()
    group = np.zeros(others.n_obs) if pooled else pd.factorize(others.obs[group_key])[0]
    values = log_normalize(others, layer)
    changes = []
    for g in np.unique(group):
        is_treated, is_control = ((group == g) & (condition == c) for c in (treated, control))
        if is_treated.any() and is_control.any():
            changes.append(mean_change(values[is_treated], values[is_control]))
    if not changes:
        raise ValueError(
            f"No group of adata.obs[{group_key!r}] but {held_out!r} has cells of both {control!r} and {treated!r} in "
            f"adata.obs[{condition_key!r}]."
        )
    return np.mean(changes, axis=0)


def perturbation_table(
    real: Cells, control: Cells, predictions: Mapping[str, Cells], n_top: int = 50, seed: int = 0
) -> pd.DataFrame:
    """Compare predictions of treated cells with the real ones, between a floor and a ceiling.

    Parameters
    ----------
    real, control
        Treated cells that the predictions were made without, and control cells of the same group.
    predictions
        By name: predicted cells, or a predicted change (genes,), such as of :func:`mean_shift`.
    n_top
        How many of the genes with the largest real change the second correlation looks at.
    seed
        Seed of the split of the real cells in two halves.

    Returns
    -------
    A row for ``"control as it is"`` (the floor), for every prediction, and for the ceiling: one half of the real
    treated cells as a prediction of the other. Columns:

    - ``pearson``: :func:`pearson_of_change` over all genes
    - ``pearson_top``: the same over the top genes
    - ``rmse``: root mean square error of the change, over all genes
    """
    real, control = (log_normalize(c) if isinstance(c, AnnData) else np.asarray(c) for c in (real, control))
    if len(real) < 2:
        raise ValueError(f"real has {len(real)} cells: at least 2 are needed, to tell one half from the other.")
    change = mean_change(real, control)
    top = top_responding(change, n_top)

    def row(predicted: np.ndarray, real: np.ndarray) -> dict[str, float]:
        return {
            "pearson": _pearson(predicted, real),
            "pearson_top": _pearson(predicted[top], real[top]),
            "rmse": float(np.sqrt(np.mean((predicted - real) ** 2))),
        }

    rows = {"control as it is": row(np.zeros_like(change), change)}
    for name, prediction in predictions.items():
        rows[name] = row(_change(prediction, control), change)
    order = np.random.default_rng(seed).permutation(len(real))
    one, other = (mean_change(real[half], control) for half in np.array_split(order, 2))
    rows["ceiling: real half to real half"] = row(one, other)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("prediction")
