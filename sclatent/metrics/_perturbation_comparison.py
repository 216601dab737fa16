"""Real perturbed cells of a group beside predictions of them, floors and ceiling."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from sclatent.data import random_stream

from ._arms import MIN_CELLS, Arms, Controls, Source, profiles_of_groups
from ._cells import CellGroups
from ._distances import SCALES, median_squared_distance
from ._perturbation_floors import floors_of
from ._perturbation_metrics import metrics_of, rivals_of, rows_of
from ._projection import Projection

CEILING = "real half"


class Comparison:
    """What is compared, group by group.

    Parameters
    ----------
    truth, seen, controls, sources
        Real cells, those that floors are made from, control cells, and predictions by name.
    groups
        Groups that are compared.
    space
        Where distances are taken.
    n_top, max_cells, seed
        As of :func:`evaluate_perturbation`.
    disjoint_controls
        Whether the change of real cells is taken over one half of the control cells, and that of all else over the
        other.
    """

    def __init__(
        self,
        truth: CellGroups,
        seen: CellGroups,
        controls: Controls,
        sources: Mapping[str, Source],
        groups: Sequence[Hashable],
        space: Projection,
        n_top: Sequence[int],
        max_cells: int,
        seed: int,
        disjoint_controls: bool,
    ) -> None:
        self._truth, self._seen, self._controls, self._sources = truth, seen, controls, sources
        self._space, self._n_top, self._max_cells, self._seed = space, n_top, max_cells, seed
        self._disjoint = disjoint_controls
        n_control = MIN_CELLS * (2 if disjoint_controls else 1)
        of_real = profiles_of_groups(truth, controls, n_control)
        self._seen_profiles = of_real if seen is truth else profiles_of_groups(seen, controls, n_control)
        self._profiles = {**self._seen_profiles, **of_real}
        self._halves = {g: np.array_split(truth.rows[g], 2) for g in groups}
        # the ceiling is told from changes that are as noisy as its own, that is of halves
        self._half_profiles = self._profiles | {g: truth.profile(self._halves[g][0]) for g in groups}
        self._place = {g: i for i, g in enumerate(groups)}

    def share_of_control_noise(self, group: Hashable) -> float:
        """Share of the mean square of the real change, over genes, that is sampling noise of shared control cells.

        Its root is the correlation by chance of many cells that do not respond at all, whose change is this noise.
        """
        control = self._controls.profile(group)
        square = np.square(self._profiles[group].mean - control.mean).mean()
        return float(control.noise.mean() / max(square, np.finfo(float).tiny))

    def rows(self, group: Hashable, floors: bool) -> list[dict[str, object]]:
        """Rows of the table, without the name of the condition."""
        if not self._disjoint:
            return self._rows(group, self._controls, self._controls, floors)
        first, second = self._controls.halves(group)
        assignments = [self._rows(group, *of, floors) for of in ((first, second), (second, first))]
        return [
            one | {"value": pd.Series([one["value"], other["value"]]).mean()}
            for one, other in zip(*assignments, strict=True)
        ]

    def _rows(
        self, group: Hashable, real_controls: Controls, controls: Controls, floors: bool
    ) -> list[dict[str, object]]:
        """Rows, with the control cells of the real and those of the predicted change."""
        space, halves, place = self._space, self._halves[group], self._place[group]
        sizes = self._max_cells, min(len(halves[1]), self._max_cells)
        real_arms = arms = Arms(real_controls, group, space, *sizes)
        if controls is not real_controls:
            arms = Arms(controls, group, space, *sizes, others=real_controls)
        half = real_arms.of_cells(self._truth, halves[0], self._half_profiles[group])
        other_half = arms.of_cells(self._truth, halves[1])
        mean, noise, n = self._profiles[group]
        whole = replace(half, change=mean - real_arms.control.mean, noise=noise, n=n)
        predictions = {
            ("generated", name): arms.of_prediction(p, group, random_stream(self._seed, "predicted cells", place))
            for name, p in self._sources.items()
        }
        if floors:
            rng = random_stream(self._seed, "cells of the floors", place)
            found = floors_of(group, arms, self._seen, self._seen_profiles, controls, rng)
            predictions |= {("floor", name): arm for name, arm in found.items()}
        predictions["ceiling", CEILING] = other_half

        rivals = rivals_of(group, self._profiles, real_controls)
        half_rivals = rivals_of(group, self._half_profiles, real_controls)
        bandwidths = [scale * median_squared_distance(half.cells, other_half.cells) for scale in SCALES]
        records: list[dict[str, object]] = []
        for (kind, name), arm in predictions.items():
            real, others = (half, half_rivals) if kind == "ceiling" else (whole, rivals)
            values = metrics_of(real, arm, others, self._n_top, bandwidths)
            records += rows_of(values, real, arm, space, source=name, kind=kind, seed=self._seed)
        return records
