"""Floors of a perturbation: the change over control in other groups, carried over to the one that is predicted."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from anndata import AnnData
from sklearn.linear_model import RidgeCV

from sclatent.data import check_categorical, plain_level, short_repr

from ._cells import CellGroups
from ._groups import alike
from ._table import ALL


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
        Cells with raw counts. Cells of the held-out group do not enter.
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
    np.ndarray
        Mean over the other groups of (mean of treated cells - mean of control cells), (genes,). Groups that do not have
        both are left out.

    Raises
    ------
    ValueError
        If no other group has cells of both conditions, or ``held_out`` is no group.

    Examples
    --------
    The treated cells of one type are predicted from the other types:

    >>> import sclatent
    >>> from sclatent.metrics import mean_shift, pearson_of_change
    >>> adata = sclatent.datasets.simulate(400, 50, library_size=500)
    >>> change = mean_shift(adata, "condition", "control", "stimulated", group_key="cell_type", held_out="type_0")
    >>> change.shape
    (50,)
    >>> of_type, is_control = adata.obs["cell_type"] == "type_0", adata.obs["condition"] == "control"
    >>> pearson_of_change(adata[of_type & ~is_control], change, adata[of_type & is_control]) > 0.4
    True
    """
    cells, arms = _arms(adata, condition_key, control, treated, group_key, held_out, layer)
    del arms[plain_level(held_out)]
    if pooled and arms:
        arms = {ALL: [np.concatenate(rows) for rows in zip(*arms.values(), strict=True)]}
    controls, treatments = _means(cells, arms, condition_key, control, treated, group_key, held_out)
    return (treatments - controls).mean(axis=0)


def linear_shift(
    adata: AnnData,
    condition_key: str,
    control: Hashable,
    treated: Hashable,
    group_key: str,
    held_out: Hashable,
    layer: str | None = None,
) -> np.ndarray:
    """Change over control as a linear function of the control cells: a floor that knows that groups differ.

    A ridge regression, over the groups that were seen, from the mean of a group's control cells to the change of every
    gene. It is the same in genes as in all principal components of these means, of which the penalty leaves the large
    ones; how large it is, is chosen by leaving each group out in turn.

    Parameters
    ----------
    adata, condition_key, control, treated, group_key, held_out, layer
        As of :func:`mean_shift`, but that the control cells of the held-out group enter.

    Returns
    -------
    np.ndarray
        Predicted change, (genes,); with fewer than three other groups that of :func:`mean_shift`, since leaving one out
        would then leave no slope.

    Raises
    ------
    ValueError
        If no other group has cells of both conditions, or the held-out one no control cells.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.metrics import linear_shift, pearson_of_change
    >>> adata = sclatent.datasets.simulate(400, 50, library_size=500)
    >>> change = linear_shift(adata, "condition", "control", "stimulated", group_key="cell_type", held_out="type_0")
    >>> of_type, is_control = adata.obs["cell_type"] == "type_0", adata.obs["condition"] == "control"
    >>> pearson_of_change(adata[of_type & ~is_control], change, adata[of_type & is_control]) > 0.4
    True
    """
    cells, arms = _arms(adata, condition_key, control, treated, group_key, held_out, layer)
    start, _ = arms.pop(plain_level(held_out))
    if not len(start):
        raise ValueError(
            f"held_out={held_out!r} has no cells of {control!r} in adata.obs[{condition_key!r}]: they are what the "
            "linear shift starts from."
        )
    controls, treatments = _means(cells, arms, condition_key, control, treated, group_key, held_out)
    return ridge_shift(controls, treatments - controls, cells.mean(start))


def ridge_shift(controls: np.ndarray, changes: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Change at a control mean, by ridge regression from the control means and changes of other groups.

    Parameters
    ----------
    controls, changes
        Control means and changes, (groups, genes) each.
    target
        Control mean, (genes,).

    Returns
    -------
    np.ndarray
        Change, (genes,).
    """
    if len(controls) < 3 or (controls == controls[0]).all():  # no slope
        return changes.mean(axis=0)
    centre = controls.mean(axis=0)
    scale = np.sqrt(np.square(controls - centre).sum(axis=1).mean())
    # groups span few directions, however many genes there are, and the regression knows no others
    directions = np.linalg.svd(controls - centre, full_matrices=False)[2]
    components = np.linalg.svd(changes, full_matrices=False)[2]
    points, at = ((x - centre) @ directions.T / scale for x in (controls, target))
    ridge = RidgeCV(alphas=np.logspace(-3, 3, 13)).fit(points, changes @ components.T)
    return ridge.predict(at[None])[0] @ components


def _arms(
    adata: AnnData,
    condition_key: str,
    control: Hashable,
    treated: Hashable,
    group_key: str,
    held_out: Hashable,
    layer: str | None,
) -> tuple[CellGroups, dict[Hashable, list[np.ndarray]]]:
    """Cells, and for every group the rows of its control and of its treated cells."""
    cells = CellGroups(adata, adata.var_names, [group_key], "adata", layer)
    check_categorical(adata.obs, condition_key, "condition_key")
    if plain_level(held_out) not in cells.rows:
        written = alike([held_out], cells.rows)
        others = f"but {written[held_out]!r} is: give that" if written else f"which has {short_repr(list(cells.rows))}"
        raise ValueError(f"held_out={held_out!r} is no level of adata.obs[{group_key!r}], {others}.")
    condition = adata.obs[condition_key].to_numpy()
    return cells, {g: [rows[condition[rows] == c] for c in (control, treated)] for g, rows in cells.rows.items()}


def _means(
    cells: CellGroups,
    arms: dict[Hashable, list[np.ndarray]],
    condition_key: str,
    control: Hashable,
    treated: Hashable,
    group_key: str,
    held_out: Hashable,
) -> tuple[np.ndarray, np.ndarray]:
    """Means of control and of treated cells, (groups, genes) each, of the groups that have both."""
    both = [arm for arm in arms.values() if all(len(rows) for rows in arm)]
    if not both:
        raise ValueError(
            f"No group of adata.obs[{group_key!r}] but {held_out!r} has cells of both {control!r} and {treated!r} in "
            f"adata.obs[{condition_key!r}]."
        )
    means = np.stack([[cells.mean(rows) for rows in arm] for arm in both])
    return means[:, 0], means[:, 1]
