"""Library sizes of cells that are generated."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from sclatent.baseline import MixedModel
from sclatent.data import Conditions
from sclatent.data._pools import CellPools

BEYOND = 2  # times as large as the largest library size of training, or as small as the smallest


class LibrarySizes:
    r"""What the training cells say of the library size under a combination of conditions.

    For a combination that was seen in training the library sizes of its cells are drawn from (of all cells that agree
    with the keys that are given, if some are null). For one that was not,

    .. math:: \ln \ell = m(c) + r

    with the prediction m of a linear mixed model (:class:`~sclatent.baseline.MixedModel`) of the means of the
    combinations, and a residual r drawn from the training cells; at most twice the largest of training and at least
    half the smallest, which extrapolation would leave far behind.

    Parameters
    ----------
    conditions
        The conditions of the cells.
    codes
        Condition codes of the training cells, (cells, n_keys).
    sizes
        Their library sizes, (cells,).
    """

    def __init__(self, conditions: Conditions, codes: np.ndarray, sizes: np.ndarray) -> None:
        self.conditions, self.codes = conditions, np.asarray(codes)
        self.sizes = np.asarray(sizes, dtype=np.float64)
        self._pools = CellPools(self.codes)

    @cached_property
    def _model(self) -> MixedModel:
        """The mixed model of log library sizes; fitted when it is first needed."""
        log_sizes, codes = np.log(self.sizes), self.conditions.without_dose(self.codes)
        seen, place, n_cells = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
        means = np.bincount(place.ravel(), log_sizes) / n_cells
        noise = float(np.square(log_sizes - means[place.ravel()]).mean())
        model = MixedModel(self.conditions.n_levels, 1, of=self.conditions.of)
        return model.fit(seen, n_cells, means[:, None], noise, self.conditions.values())

    def draw(self, codes: np.ndarray, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draw a library size for every cell.

        Parameters
        ----------
        codes
            Condition codes, (cells, n_keys), -1 where a condition is null.
        uniforms
            One uniform random number per cell, (cells,).

        Returns
        -------
        tuple[np.ndarray, np.ndarray]
            Library sizes (cells,), and whether the combination of each was seen in training (cells,).
        """
        codes = self.conditions.without_dose(codes)
        cells = self._pools.draw(codes, uniforms)
        seen = cells >= 0
        sizes = self.sizes[cells]
        if not seen.all():
            residual_of = (uniforms[~seen] * len(self.sizes)).astype(int)
            of_residual = self._log_mean(self.conditions.without_dose(self.codes[residual_of]))
            residuals = np.log(self.sizes[residual_of]) - of_residual
            low, high = np.log([self.sizes.min() / BEYOND, self.sizes.max() * BEYOND])
            sizes[~seen] = np.exp(np.clip(self._log_mean(codes[~seen]) + residuals, low, high))
        return sizes, seen

    def _log_mean(self, codes: np.ndarray) -> np.ndarray:
        return self._model.predict(codes, self.conditions.values())[:, 0].astype(np.float64)
