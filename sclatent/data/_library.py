"""Library sizes that are given."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._levels import short_repr
from ._numbers import is_number

LARGEST = 1e12  # counts of a cell: more than any has, and few enough to be drawn and held exactly


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
