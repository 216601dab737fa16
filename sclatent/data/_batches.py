"""Batches that generated cells are decoded under."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sclatent.nn import NULL

from ._pools import CellPools


class TrainingBatches:
    r"""What the training cells say of the batch under a combination of conditions.

    For a combination that was seen in training the batches of its cells are drawn from (of all cells that agree with
    the keys that are given, if some are null): where a condition was measured in one batch alone, no cell is made of it
    in another. For one that was not seen,

    .. math:: p(b \mid c) \propto p(b) \prod_k \frac{p(b \mid c_k)}{p(b)},

    the batches in which all of its levels were seen, each level by itself (naive Bayes); and the batches of all
    training cells, where there is no such batch.

    Parameters
    ----------
    codes
        Condition codes of the training cells, (cells, n_keys), -1 where one has none.
    batch
        Their batch codes, (cells,).
    n_levels
        Number of levels of each key.
    n_batches
        Number of batches.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import TrainingBatches
    >>> codes = np.array([[0, 0], [0, 1], [1, 0], [1, 0]])  # cell types and conditions: (1, 1) was not seen
    >>> batches = TrainingBatches(codes, np.array([0, 1, 0, 1]), n_levels=[2, 2], n_batches=2)
    >>> drawn, rules = batches.draw(np.array([[0, 0], [1, 1]]), uniforms=np.array([[0.7, 0.7], [0.1, 0.1]]))
    >>> drawn.tolist(), rules  # the second condition was seen in the second batch alone
    ([0, 1], ['training cells of the combination', 'batches of each level'])
    """

    RULES = ("training cells of the combination", "batches of each level", "all training cells")

    def __init__(self, codes: np.ndarray, batch: np.ndarray, n_levels: Sequence[int], n_batches: int) -> None:
        self.codes, self.batch = np.asarray(codes), np.asarray(batch)
        self._pools = CellPools(self.codes)
        self._share = np.bincount(self.batch, minlength=n_batches) / len(self.batch)
        # for each key the cells of each level in each batch, (n_levels + 1, n_batches); the last row is that of none
        self._together = [
            np.bincount(code % (n + 1) * n_batches + self.batch, minlength=(n + 1) * n_batches).reshape(
                n + 1, n_batches
            )
            for n, code in zip(n_levels, self.codes.T, strict=True)
        ]

    def is_seen(self, codes: np.ndarray) -> np.ndarray:
        """Whether any training cell agrees with each of some condition codes (cells, n_keys), -1 for null: (cells,)."""
        return self._pools.draw(codes, np.zeros(len(codes))) >= 0

    def draw(self, codes: np.ndarray, uniforms: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Draw a batch for every cell.

        Parameters
        ----------
        codes
            Condition codes, (cells, n_keys), -1 where a condition is null.
        uniforms
            Two uniform random numbers per cell, (cells, 2). The first picks a cell of the combination, as it does where
            library sizes are drawn: batch and library size of a generated cell are those of one training cell. The
            second picks a batch where the combination was not seen.

        Returns
        -------
        tuple[np.ndarray, list[str]]
            Batch codes (cells,), and the rules that were used, of :attr:`RULES`.
        """
        cells = self._pools.draw(codes, uniforms[:, 0])
        batches = self.batch[cells]
        used = {self.RULES[0]} if (cells >= 0).any() else set()
        unseen = np.flatnonzero(cells < 0)
        for combination, asked in CellPools(codes[unseen]):
            probability, rule = self._of_levels(combination)
            used.add(rule)
            cumulative = np.cumsum(probability)
            cumulative = cumulative / cumulative[-1]  # exactly 1 at the end, above every uniform number
            batches[unseen[asked]] = np.searchsorted(cumulative, uniforms[unseen[asked], 1], side="right")
        return batches, [rule for rule in self.RULES if rule in used]

    def _of_levels(self, combination: np.ndarray) -> tuple[np.ndarray, str]:
        """Probabilities (n_batches,), not normalised, under a combination (n_keys,) that was not seen; and the rule."""
        probability = self._share.copy()
        for code, together in zip(combination, self._together, strict=True):
            if code != NULL and together[code].any():  # a level without training cells tells nothing
                ratio = together[code] / together[code].sum()
                probability *= np.divide(ratio, self._share, out=np.zeros_like(ratio), where=self._share > 0)
        return (probability, self.RULES[1]) if probability.any() else (self._share, self.RULES[2])

    def apart(self, codes: np.ndarray, batches: np.ndarray) -> np.ndarray:
        """Which levels were seen in training, but never in the batch.

        Parameters
        ----------
        codes
            Condition codes, (cells, n_keys), -1 where a condition is null.
        batches
            Batch codes, (cells,).

        Returns
        -------
        np.ndarray
            (cells, n_keys).
        """
        columns = [
            (code != NULL) & together[code].any(axis=1) & (together[code, batches] == 0)
            for code, together in zip(codes.T, self._together, strict=True)
        ]
        return np.stack(columns, axis=1) if columns else np.zeros(codes.shape, dtype=bool)
