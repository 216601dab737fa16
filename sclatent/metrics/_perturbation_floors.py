"""Floors of a perturbation: what is there without a model, from what was seen of the other groups."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from ._arms import Arm, Arms, Controls, kept
from ._cells import CellGroups, Profile, take_turns
from ._shift import ridge_shift

CONTROL, CELL_MEAN, MEAN_SHIFT, LINEAR_SHIFT = "control as it is", "cell mean", "mean shift", "linear shift"
NEAREST_GROUP, NEAREST_SHIFT, CONTEXT_MEAN = "nearest group", "nearest shift", "context mean"
FLOORS = [CONTROL, CELL_MEAN, MEAN_SHIFT, LINEAR_SHIFT, NEAREST_GROUP, NEAREST_SHIFT, CONTEXT_MEAN]


def floors_of(
    group: Hashable,
    arms: Arms,
    seen: CellGroups,
    profiles: Mapping[Hashable, Profile],
    controls: Controls,
    rng: np.random.Generator,
) -> dict[str, Arm]:
    """Floors of a group, by name.

    Parameters
    ----------
    group, arms
        The group, and what makes its arms.
    seen, profiles
        Perturbed cells, and the mean profiles of the groups that floors are made from.
    controls
        Control cells.
    rng
        Random numbers of the choice of cells.
    """
    floors = {CONTROL: arms.of_change(np.zeros_like(arms.control.mean))}
    others = [g for g in profiles if g != group]
    of_treatment = [g for g in others if controls.treatment(g) == controls.treatment(group)]
    of_context = [g for g in others if controls.context(g) == controls.context(group)]
    others = of_treatment or of_context or others
    if not others:
        return floors

    def cell_mean(groups: Sequence[Hashable]) -> Arm:
        """Cells of groups as they are, every group with the same weight."""
        some = take_turns({g: kept(seen.rows[g]) for g in groups}, rng)
        means, noise, n = zip(*(profiles[g] for g in groups), strict=True)
        profile = Profile(np.mean(means, axis=0), np.mean(noise, axis=0) / len(groups), sum(n))
        return arms.of_cells(seen, some, profile)

    floors[CELL_MEAN] = cell_mean(others)
    changes = np.array([profiles[g].mean - controls.profile(g).mean for g in others])
    # of one context, all changes are over the control cells of the group
    is_shared = not of_treatment and bool(of_context)
    noise = np.array([profiles[g].noise + (0.0 if is_shared else controls.profile(g).noise) for g in others])
    floors[MEAN_SHIFT] = arms.of_change(changes.mean(axis=0), noise.mean(axis=0) / len(others), is_shared)
    if of_treatment:  # in other contexts
        control_means = np.array([controls.profile(g).mean for g in of_treatment])
        floors[LINEAR_SHIFT] = arms.of_change(ridge_shift(control_means, changes, arms.control.mean))
        nearest = np.square(control_means - arms.control.mean).sum(axis=1).argmin()
        floors[NEAREST_GROUP] = cell_mean([of_treatment[nearest]])
        floors[NEAREST_SHIFT] = arms.of_change(changes[nearest], noise[nearest])
        if of_context:
            floors[CONTEXT_MEAN] = cell_mean(of_context)
    return floors
