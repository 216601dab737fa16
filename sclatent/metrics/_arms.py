"""Arms of an experiment: perturbed cells of a group, real or predicted, beside its control cells."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from sclatent.data._levels import factorize

from ._cells import CellGroups, LogNormalizedCells, check_anndata
from ._differential import differentially_expressed
from ._groups import share_controls
from ._projection import Projection
from ._table import ALL

MIN_CELLS = 10  # of control cells, of predicted ones, and of each half of the real ones

Source: TypeAlias = CellGroups | LogNormalizedCells | np.ndarray
"""Predicted cells, or a predicted change over control, (genes,)."""


class Controls:
    """Control cells of every group: its own, or the same for all.

    Parameters
    ----------
    control, genes, groupby, layer
        As of :class:`CellGroups`.
    groups
        Groups of perturbed cells. Where the control cells have none of these, all groups share them.
    seed
        Seed of the order of their rows.
    """

    def __init__(
        self,
        control: AnnData,
        genes: pd.Index,
        groupby: str | None,
        layer: str | None,
        groups: Iterable[Hashable],
        seed: int,
    ) -> None:
        check_anndata(control, "control")
        self.shared = True
        if groupby is not None and groupby in control.obs:
            self.shared = share_controls(factorize(control.obs[groupby])[1], groups, groupby)
        self.cells = CellGroups(control, genes, None if self.shared else groupby, "control", layer).shuffled(seed)
        self._means: dict[Hashable, np.ndarray] = {}

    def rows(self, group: Hashable) -> np.ndarray:
        """Rows of a group in random order; none where it has no control cells."""
        return self.cells.rows.get(ALL if self.shared else group, np.empty(0, dtype=int))

    def mean(self, group: Hashable) -> np.ndarray:
        """Mean profile of a group, (genes,)."""
        key = ALL if self.shared else group
        if key not in self._means:
            self._means[key] = self.cells.mean(self.rows(group))
        return self._means[key]


class Means:
    """Mean profiles of the perturbed cells of every group, and their changes over control.

    Groups with fewer than 10 perturbed or control cells are left out.

    Parameters
    ----------
    cells, controls
        Perturbed and control cells.
    """

    def __init__(self, cells: CellGroups, controls: Controls) -> None:
        self.cells = cells
        enough = [g for g, rows in cells.rows.items() if min(len(rows), len(controls.rows(g))) >= MIN_CELLS]
        self.means = {g: cells.mean(cells.rows[g]) for g in enough}
        self.changes = {g: mean - controls.mean(g) for g, mean in self.means.items()}


@dataclass(frozen=True)
class Arm:
    """Perturbed cells of a group, real or predicted, as they are compared."""

    change: np.ndarray
    """Change over control of the mean of all cells, (genes,)."""
    n: int
    """How many cells that mean is of; 0 for a change that is no mean of cells."""
    cells: np.ndarray
    """The cells in principal components, or some of them, (cells, components)."""
    de: np.ndarray
    """Whether a gene is differentially expressed in these cells, boolean, (genes,)."""


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
    """

    def __init__(self, controls: Controls, group: Hashable, space: Projection, n_control: int, n_cells: int) -> None:
        self.space, self.n_cells = space, n_cells
        self.control_mean = controls.mean(group)  # of all there are
        self._control = controls.cells.values(controls.rows(group)[:n_control])
        self._to_move = self._control[: len(kept(controls.rows(group)))]

    def of_cells(self, cells: CellGroups | LogNormalizedCells, rows: np.ndarray, mean: np.ndarray | None = None) -> Arm:
        """Arm of rows in random order; their mean is computed unless it is given."""
        values = cells.values(rows[: self.n_cells])
        change = (cells.mean(rows) if mean is None else mean) - self.control_mean
        return Arm(change, len(rows), self.space.transform(values), differentially_expressed(values, self._control))

    def of_change(self, change: np.ndarray) -> Arm:
        """Arm of control cells moved by a change; all genes count as differentially expressed, or none without any."""
        points = self.space.transform(self._to_move + change)
        return Arm(change, 0, points, np.full(len(change), change.any()))

    def of_prediction(self, prediction: Source, group: Hashable, rng: np.random.Generator) -> Arm:
        """Arm of predicted cells, the same ones whichever predictions stand beside them, or of a predicted change."""
        if isinstance(prediction, np.ndarray):
            return self.of_change(prediction)
        return self.of_cells(prediction, rng.permutation(prediction.rows[group]))


def kept(rows: np.ndarray) -> np.ndarray:
    """The half of a group's rows, in random order, that is kept from the components, for floors to be made of."""
    return rows[: len(rows) // 2]
