"""Warnings about what a model is asked for."""

from __future__ import annotations

import numpy as np

from sclatent.data import short_repr
from sclatent.data._warnings import warn_user
from sclatent.nn import NULL

from ._diffusion_model import DiffusionModel
from ._guidance import GuidanceWeights


class AskedMixin(DiffusionModel):
    """Warnings where conditions or guidance that are asked for do not do what one would expect."""

    def _warn_of_asked(self, codes: np.ndarray, weights: GuidanceWeights) -> None:
        """Warn of condition codes (cells, n_keys) that cells are to have, and of guidance."""
        self._warn_of_new_dose(codes)
        for key, member, _ in weights.members:
            if (self.conditions.without_member(codes, key, member) == codes).all():
                warn_user(
                    f"guidance_weight pushes {member!r}, which none of the sets of {self.conditions.keys[key]!r} that "
                    "are asked for has: it does nothing."
                )

    def _warn_of_no_dose(self, known: np.ndarray, asked: np.ndarray, target: np.ndarray) -> None:
        """Say it where cells are to be moved to a level that is not theirs, but their dose stays 0."""
        for number, key in enumerate(self.conditions.of):
            if key is None:
                continue
            dose, name = self.conditions.keys[number], self.conditions.keys[key]
            moved = (asked[:, key] != NULL) & (asked[:, key] != known[:, key]) & (asked[:, number] == NULL)
            stay = moved & self.conditions.spaces[dose].is_zero(target[:, number])
            if stay.any():
                warn_user(
                    f"{dose!r} of {stay.sum()} of these cells is 0, where no level of {name!r} has an effect: they "
                    f"stay as they are. Ask for a dose, too, such as {{{name!r}: ..., {dose!r}: 1.0}}."
                )

    def _warn_of_new_dose(self, codes: np.ndarray) -> None:
        """Say it where a dose is asked for of a level that training has at a dose of 0 alone, such as a vehicle."""
        assert self.batches.training is not None
        given = self.conditions.without_dose(self.batches.training.codes)
        for number, key in enumerate(self.conditions.of):
            if key is None:
                continue
            asked = np.unique(self.conditions.without_dose(codes)[:, key])
            never = asked[(asked != NULL) & (asked < self.conditions.n_levels[key]) & ~np.isin(asked, given[:, key])]
            if len(never):
                levels = [self.conditions.levels[self.conditions.keys[key]][code] for code in never]
                dose = self.conditions.keys[number]
                warn_user(
                    f"{short_repr(levels)} has no {dose!r} above 0 in training: nothing is known of what it does, and "
                    f"what is predicted is the mean of the others. Ask for it at {{{dose!r}: 0.0}}."
                )
