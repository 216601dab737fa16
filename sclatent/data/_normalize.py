"""Log-normalisation, one for all that compares or starts from expression."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from ._reading import totals

TARGET_SUM = 1e4


def log_normalize_counts(
    counts: np.ndarray | sparse.spmatrix | sparse.sparray,
) -> np.ndarray | sparse.csr_matrix:
    """Natural logarithm of 1 + counts per 10,000 of the cell.

    Parameters
    ----------
    counts
        Counts (cells, genes); they stay as they are.

    Returns
    -------
    np.ndarray | sparse.csr_matrix
        Float32 of the same shape: CSR of sparse counts, else dense. A cell without counts is all zeros.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import log_normalize_counts
    >>> values = log_normalize_counts(np.array([[1.0, 3.0], [0.0, 0.0]]))
    >>> np.expm1(values).round().tolist()
    [[2500.0, 7500.0], [0.0, 0.0]]
    """
    total = totals(counts, axis=1)
    scale = TARGET_SUM / np.where(total > 0, total, 1.0)
    if isinstance(counts, np.ndarray):
        return np.log1p(counts * scale[:, None]).astype(np.float32)
    return sparse.csr_matrix(sparse.diags(scale) @ sparse.csr_matrix(counts)).log1p().astype(np.float32)
