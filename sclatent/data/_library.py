"""Library sizes of cells that are generated."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ._additive import additive_effects
from ._levels import short_repr
from ._numbers import is_number
from ._pools import CellPools

LARGEST = 1e12  # counts of a cell: more than any has, and few enough to be drawn and held exactly


class LibrarySizes:
    r"""What the training cells say of the library size under a combination of conditions.

    For a combination that was seen in training the library sizes of its cells are drawn from (of all cells that agree
    with the keys that are given, if some are null). For one that was not,

    .. math:: \ln \ell = \mu + \sum_k \delta_k(c_k) + r

    with the additive model fitted on the training cells and a residual r drawn from theirs.

    Parameters
    ----------
    codes
        Condition codes of the training cells, (cells, n_keys).
    sizes
        Their library sizes, (cells,).
    n_levels
        Number of levels of each key.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import LibrarySizes
    >>> codes = np.array([[0, 0], [0, 1], [1, 0]])  # cell types and conditions: (1, 1) was not seen
    >>> library_sizes = LibrarySizes(codes, sizes=np.array([100.0, 200.0, 1000.0]), n_levels=[2, 2])
    >>> sizes, seen = library_sizes.draw(np.array([[0, 1], [1, 1]]), uniforms=np.array([0.5, 0.5]))
    >>> sizes[0].item(), seen.tolist()  # that of the cell; of the additive model
    (200.0, [True, False])
    >>> bool(1500 < sizes[1] < 2500)
    True
    """

    def __init__(self, codes: np.ndarray, sizes: np.ndarray, n_levels: Sequence[int]) -> None:
        self.codes = np.asarray(codes)
        self.sizes = np.asarray(sizes, dtype=np.float64)
        self.n_levels = n_levels
        self._pools = CellPools(self.codes)

    @cached_property
    def _additive(self) -> tuple[float, list[np.ndarray]]:
        """Constant and effects of the additive model; fitted when it is first needed."""
        constant, effects = additive_effects(self.codes, np.log(self.sizes)[:, None], self.n_levels)
        return float(constant[0]), [np.append(effect[:, 0], 0.0) for effect in effects]  # code -1 (null) has no effect

    def _log_mean(self, codes: np.ndarray) -> np.ndarray:
        constant, effects = self._additive
        return constant + sum((e[codes[:, k]] for k, e in enumerate(effects)), np.zeros(len(codes)))

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
        cells = self._pools.draw(codes, uniforms)
        seen = cells >= 0
        sizes = self.sizes[cells]
        if not seen.all():
            residual_of = (uniforms[~seen] * len(self.sizes)).astype(int)
            residuals = np.log(self.sizes[residual_of]) - self._log_mean(self.codes[residual_of])
            sizes[~seen] = np.exp(self._log_mean(codes[~seen]) + residuals)
        return sizes, seen


def check_library_size(library_size: Any, n_cells: int | None = None, instead: str = "") -> np.ndarray:
    """Return library sizes that were given; raise a ``ValueError`` unless they are positive numbers up to 1e12.

    Parameters
    ----------
    library_size
        A number, or one per cell.
    n_cells
        How many cells there are; None if one number for all of them is expected.
    instead
        What else may be given, for the message.

    Returns
    -------
    np.ndarray
        A number, or one per cell (n_cells,), float64.

    Examples
    --------
    >>> from sclatent.data import check_library_size
    >>> check_library_size([100, 2e3], n_cells=2)
    array([ 100., 2000.])
    >>> check_library_size(-5)
    Traceback (most recent call last):
        ...
    ValueError: library_size=-5 must be a positive number of at most 1e+12.
    """
    sizes = np.asarray(library_size, dtype=object)
    shapes = [()] if n_cells is None else [(), (n_cells,)]
    if sizes.shape not in shapes or not all(is_number(s) and 1e-30 < s <= LARGEST for s in sizes.ravel()):
        one_per_cell = "" if n_cells is None else f", or one for each of {n_cells} cells"
        raise ValueError(
            f"library_size={short_repr(library_size)} must be a positive number of at most {LARGEST:g}{one_per_cell}"
            f"{instead}."
        )
    return sizes.astype(np.float64)
