"""Training cells by their conditions: what generated cells take over from cells like them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sclatent.nn import NULL


class CellPools:
    """Cells by combination of conditions, sorted once.

    Parameters
    ----------
    codes
        Condition codes of the cells, (cells, n_keys), -1 where one has none.
    """

    def __init__(self, codes: np.ndarray) -> None:
        self.combinations, index, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
        self._cells = np.argsort(index.ravel(), kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(sizes)])

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each combination (n_keys,) and its cells."""
        for combination, start, end in zip(self.combinations, self._starts[:-1], self._starts[1:], strict=True):
            yield combination, self._cells[start:end]

    def of(self, combination: np.ndarray) -> np.ndarray:
        """Cells that agree with a combination (n_keys,) in all keys that are not null, in their own order."""
        agree = ((self.combinations == combination) | (combination == NULL)).all(axis=1)
        pools = [self._cells[self._starts[i] : self._starts[i + 1]] for i in np.flatnonzero(agree)]
        return np.sort(np.concatenate([self._cells[:0], *pools]))

    def draw(self, codes: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Draw for each of some condition codes (n, n_keys) a cell that agrees with them; -1 where there is none.

        ``uniforms`` (n,) are the random numbers; the same ones draw the same cells.
        """
        drawn = np.full(len(codes), -1)
        for combination, asked in CellPools(codes):
            pool = self.of(combination)
            if len(pool):
                drawn[asked] = pool[(uniforms[asked] * len(pool)).astype(int)]
        return drawn
