"""Mean expression of the combinations of conditions: what tells which of them are alike."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from tqdm.auto import tqdm

from ._loader import CellRows
from ._normalize import log_normalize_counts


def mean_profiles(
    rows: CellRows, is_count_data: bool = True, block: int = 4096, progress_bar: bool = False
) -> np.ndarray:
    """Mean of log1p of counts per 10,000 over the cells of each combination of conditions that has any.

    Parameters
    ----------
    rows
        Cells with their conditions.
    is_count_data
        Whether the values are counts, and not log-normalised already.
    block
        Number of cells that are read together.
    progress_bar
        Whether to show progress, if it takes a while.

    Returns
    -------
    np.ndarray
        (n_combinations, n_measured), float32, in the order of ``np.unique(rows.conditions, axis=0)``.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from sclatent.data import CellRows, mean_profiles
    >>> counts = sparse.csr_matrix([[1.0, 3.0], [3.0, 1.0], [0.0, 2.0]])
    >>> codes = np.array([[1], [1], [0]])  # two cells of the second level
    >>> rows = CellRows(counts, np.arange(2), None, codes, np.zeros(3, dtype=int))
    >>> mean_profiles(rows).round(2)
    array([[0.  , 9.21],
           [8.37, 8.37]], dtype=float32)
    """
    of_cell, n_cells = np.unique(rows.conditions[rows.cells], axis=0, return_inverse=True, return_counts=True)[1:]
    total = np.zeros((len(n_cells), len(rows.panel)))
    with tqdm(total=len(rows), desc="Mean expression", unit=" cells", delay=2, disable=not progress_bar) as bar:
        for start in range(0, len(rows), block):
            positions = np.arange(start, min(start + block, len(rows)))
            cells = rows.rows(positions)
            values = log_normalize_counts(cells) if is_count_data else cells
            place = (of_cell.ravel()[positions], np.arange(len(positions)))
            member = sparse.csr_matrix((np.ones(len(positions)), place), shape=(len(n_cells), len(positions)))
            sums = sparse.coo_matrix(member @ values)
            total[sums.row, sums.col] += sums.data  # each place is there once
            bar.update(len(positions))
    return (total / n_cells[:, None]).astype(np.float32)
