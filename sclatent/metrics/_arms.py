"""Arms of an experiment: perturbed cells of a group, real or predicted, beside its control cells."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from sclatent.data._levels import factorize

from ._cells import CellGroups, LogNormalizedCells, Profile, check_anndata
from ._differential import differentially_expressed
from ._groups import levels_of, share_controls
from ._projection import Projection
from ._table import ALL

MIN_CELLS = 10  # of control cells, of predicted ones, and of each half of the real ones

Source: TypeAlias = CellGroups | LogNormalizedCells | np.ndarray
"""Predicted cells, or a predicted change over control, (genes,)."""


class Controls:
    """Control cells of every group: those of its context, or the same for all.

    The context of a group is its levels of those keys of which control cells have levels of perturbed ones (cell type,
    donor). Its levels of the other keys are its treatment.

    Parameters
    ----------
    control, genes, layer
        As of :class:`CellGroups`.
    keys
        Columns of obs with the groups.
    groups
        Groups of perturbed cells. Where the control cells have levels of none of the keys, all groups share them.
    seed
        Seed of the order of their rows.
    """

    def __init__(
        self,
        control: AnnData,
        genes: pd.Index,
        keys: Sequence[str],
        layer: str | None,
        groups: Collection[Hashable],
        seed: int,
    ) -> None:
        check_anndata(control, "control")
        is_own = [False] * len(keys)
        for k, key in enumerate(keys):
            if key in control.obs:
                levels = {levels_of(g)[k]: None for g in groups}
                is_own[k] = not share_controls(factorize(control.obs[key])[1], levels, key)
        self._own = np.flatnonzero(is_own).tolist()
        self._others = np.flatnonzero(np.logical_not(is_own)).tolist()
        self.keys = [keys[k] for k in self._own]
        self.cells = CellGroups(control, genes, self.keys, "control", layer).shuffled(seed)
        self._profiles: dict[Hashable, Profile] = {}
        self._halves: dict[Hashable, tuple[Controls, Controls]] = {}

    def halves(self, group: Hashable) -> tuple[Controls, Controls]:
        """The same twice, each with one half of the control cells of a group."""
        context, rows = self.context(group), self.rows(group)
        if context not in self._halves:
            first, second = copy(self), copy(self)
            for half, some in ((first, rows[::2]), (second, rows[1::2])):
                half.cells = self.cells.take(self.cells.rows | {context: some})
                half._profiles = {c: profile for c, profile in self._profiles.items() if c != context}
            self._halves[context] = first, second
        return self._halves[context]

    def context(self, group: Hashable) -> Hashable:
        """Group of control cells that a group is compared with; "all" where they are shared."""
        own = tuple(levels_of(group)[k] for k in self._own)
        return own if len(own) > 1 else own[0] if own else ALL

    def treatment(self, group: Hashable) -> tuple[Hashable, ...]:
        """Levels of a group of the keys that control cells do not have; none where these are contexts alone."""
        return tuple(levels_of(group)[k] for k in self._others)

    def rows(self, group: Hashable) -> np.ndarray:
        """Rows of a group in random order; none where it has no control cells."""
        return self.cells.rows.get(self.context(group), np.empty(0, dtype=int))

    def names(self, group: Hashable) -> pd.Index:
        """Names of the control cells of a group."""
        return self.cells.names[self.rows(group)]

    def profile(self, group: Hashable) -> Profile:
        """Mean profile of a group."""
        context = self.context(group)
        if context not in self._profiles:
            self._profiles[context] = self.cells.profile(self.rows(group))
        return self._profiles[context]


def profiles_of_groups(cells: CellGroups, controls: Controls, n_control: int) -> dict[Hashable, Profile]:
    """Mean profiles of the groups with at least 10 perturbed and ``n_control`` control cells."""
    return {
        g: cells.profile(rows)
        for g, rows in cells.rows.items()
        if len(rows) >= MIN_CELLS and len(controls.rows(g)) >= n_control
    }


@dataclass(frozen=True)
class Arm:
    """Perturbed cells of a group, real or predicted, as they are compared."""

    change: np.ndarray
    """Change over control of the mean of all cells, (genes,)."""
    noise: np.ndarray
    """Sampling variance of that mean, without that of ``control``, (genes,); 0 for a change that is none of cells."""
    n: int
    """How many cells that mean is of; 0 for a change that is none of cells."""
    cells: np.ndarray
    """The cells in principal components, or some of them, (cells, components)."""
    de: np.ndarray
    """Whether a gene is differentially expressed in these cells, boolean, (genes,)."""
    control: Profile | None
    """The control cells of which the noise is in the change; None where it is in none of it."""


class Arms:
    """Make arms of one group.

    Parameters
    ----------
    controls, group
        Control cells, and the group.
    space
        Where distances are taken.
    n_control, n_cells
        Control cells, and perturbed cells of an arm, at most.
    others
        The other half of the control cells, where the real change is over them.
    """

    def __init__(
        self,
        controls: Controls,
        group: Hashable,
        space: Projection,
        n_control: int,
        n_cells: int,
        others: Controls | None = None,
    ) -> None:
        self.space, self.n_cells = space, n_cells
        self._controls, self._others = controls, others
        self.control = controls.profile(group)  # of all there are
        self._control = controls.cells.values(controls.rows(group)[:n_control])
        self._to_move = self._control[: len(kept(controls.rows(group)))]

    def of_cells(self, cells: CellGroups | LogNormalizedCells, rows: np.ndarray, profile: Profile | None = None) -> Arm:
        """Arm of rows in random order; their mean profile is computed unless it is given."""
        values = cells.values(rows[: self.n_cells])
        mean, noise, n = profile or cells.profile(rows)
        de = differentially_expressed(values, self._control)
        return Arm(mean - self.control.mean, noise, n, self.space.transform(values), de, self.control)

    def of_change(self, change: np.ndarray, noise: np.ndarray | None = None, is_over_control: bool = False) -> Arm:
        """Arm of control cells moved by a change; all genes count as differentially expressed, or none without any.

        The noise of the control cells of the group is in the change if it ``is_over_control``.
        """
        points = self.space.transform(self._to_move + change)
        noise = np.zeros(len(change)) if noise is None else noise
        is_de = np.full(len(change), change.any())
        return Arm(change, noise, 0, points, is_de, self.control if is_over_control else None)

    def of_prediction(self, prediction: Source, group: Hashable, rng: np.random.Generator) -> Arm:
        """Arm of predicted cells, the same ones whichever predictions stand beside them, or of a predicted change."""
        if isinstance(prediction, np.ndarray):
            return self.of_change(prediction)
        rows = rng.permutation(prediction.rows[group])
        if self._others is not None:
            own, names = self._controls.names(group), prediction.names[rows]
            is_own = names.isin(own)
            if is_own.sum() > 1 and (is_own | names.isin(self._others.names(group))).all():
                first = ~own.duplicated()
                origins = self._controls.rows(group)[first][own[first].get_indexer(names[is_own])]
                return self._of_moved(prediction, rows[is_own], origins)
        return self.of_cells(prediction, rows)

    def _of_moved(self, cells: CellGroups | LogNormalizedCells, rows: np.ndarray, origins: np.ndarray) -> Arm:
        """Arm of cells that were made from control cells, over these: their noise is in both, and in no change."""
        arm = self.of_cells(cells, rows)
        change = arm.change + self.control.mean - self._controls.cells.profile(origins).mean
        moves = cells.values(rows[: self.n_cells]) - self._controls.cells.values(origins[: self.n_cells])
        return replace(arm, change=change, noise=moves.var(axis=0, ddof=1) / len(rows), control=None)


def kept(rows: np.ndarray) -> np.ndarray:
    """The half of a group's rows, in random order, that is kept from the components, for floors to be made of."""
    return rows[: len(rows) // 2]
