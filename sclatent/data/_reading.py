"""Rows of a matrix, read into memory from wherever they are, and their sums."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from anndata.abc import CSCDataset
from scipy import sparse

from ._warnings import warn_user

VALUES = 2**23  # of a block that is looked at together, zeros included: memory does not grow with the cells


def by_rows(matrix: Any, where: str = "adata.X") -> Any:
    """Check that the rows of a matrix can be read, and return it so that :func:`read_rows` is quick.

    Parameters
    ----------
    matrix
        Cells x genes, or (cells, ...): a numpy array or scipy sparse matrix, an array in a file (h5ad or zarr, dense or
        sparse), or a dask array of dense or sparse chunks.
    where
        What to call it in a message.

    Returns
    -------
    Any
        The matrix; a sparse one in memory as CSR. A CSC matrix in a file is read whole.

    Raises
    ------
    ValueError
        If the values are no numbers of at most 64 bits (of a sparse matrix, of a type that scipy can compute with), or
        some are masked.

    Warns
    -----
    UserWarning
        If a CSC matrix in a file is read.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from sclatent.data import by_rows
    >>> by_rows(sparse.csc_matrix([[1.0, 0.0], [0.0, 3.0]])).format
    'csr'
    >>> by_rows(np.array([["1", "0"]]))
    Traceback (most recent call last):
        ...
    ValueError: adata.X is of type <U1: numbers were expected, ...
    """
    place = place_of(where)
    given = getattr(matrix, "dtype", type(matrix).__name__)
    dtype = None if isinstance(given, str) else _dtype_in_memory(given)
    if dtype is None:
        raise ValueError(
            f"{where} is of type {given}: numbers were expected, of at most 64 bits. Convert it, {place} = "
            f'{place}.astype("float32").'
        )
    if sparse.issparse(matrix) and given not in (dtype, np.bool_):
        raise ValueError(
            f"{where} is sparse and of type {given}, with which scipy cannot compute. Convert it, {place} = "
            f'{place}.astype("float32").'
        )
    if np.ma.is_masked(matrix):
        raise ValueError(f"{where} is a masked array: fill it, {place} = {place}.filled(0), or remove what is masked.")
    if isinstance(matrix, CSCDataset):
        warn_user(
            f"{where} lies in its file column by column (CSC), where no cell can be read without all others: it is "
            "read whole. Read the file by adata = adata.to_memory(), or write it again with adata.X.tocsr()."
        )
        matrix = matrix.to_memory()
    return matrix.tocsr() if sparse.issparse(matrix) else matrix


def read_rows(matrix: Any, rows: Sequence[int] | np.ndarray | slice) -> np.ndarray | sparse.csr_matrix:
    """Read rows of a matrix into memory.

    Parameters
    ----------
    matrix
        As of :func:`by_rows`.
    rows
        Their positions, in any order, some perhaps several times; or a slice.

    Returns
    -------
    np.ndarray | sparse.csr_matrix
        The rows, dense or CSR, of the type of the matrix in the order of bytes of this machine; float32 of booleans and
        float16, with which one cannot compute.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import read_rows
    >>> read_rows(np.array([[1, 0], [0, 3], [5, 0]], dtype=">i2"), [2, 0])
    array([[5, 0],
           [1, 0]], dtype=int16)
    """
    if isinstance(rows, slice) or isinstance(matrix, np.ndarray) or sparse.issparse(matrix):
        return _in_memory(matrix[rows])
    # files want increasing rows, each once, and are quickest without gaps
    unique, inverse = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
    start, stop = (int(unique[0]), int(unique[-1]) + 1) if len(unique) else (0, 0)
    return _in_memory(matrix[slice(start, stop) if stop - start == len(unique) else unique])[inverse]


def _in_memory(block: Any) -> np.ndarray | sparse.csr_matrix:
    """Bring rows of a matrix into memory, in a type to compute with."""
    name = type(block).__name__
    if hasattr(block, "compute"):  # of dask
        block = block.compute()
    if not sparse.issparse(block):
        block = np.asarray(block)
    dtype = _dtype_in_memory(block.dtype)
    if dtype is None:
        raise ValueError(
            f"The rows of a {name} come as {block.dtype} and not as numbers: read it into memory, adata = "
            "adata.to_memory()."
        )
    block = block.astype(dtype, copy=False)
    return sparse.csr_matrix(block) if sparse.issparse(block) else block


def dense(rows: np.ndarray | sparse.csr_matrix) -> np.ndarray:
    """Rows of a matrix, as :func:`read_rows` gives them, as an array."""
    return rows if isinstance(rows, np.ndarray) else rows.toarray()


def row_blocks(matrix: Any) -> Iterator[tuple[slice, np.ndarray | sparse.csr_matrix]]:
    """Iterate over a matrix, a block of rows in memory at a time.

    Parameters
    ----------
    matrix
        As of :func:`by_rows`.

    Yields
    ------
    tuple[slice, np.ndarray | sparse.csr_matrix]
        Which rows, and the rows as :func:`read_rows` gives them.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.data import row_blocks
    >>> adata = sclatent.datasets.simulate(100, 50, library_size=200)
    >>> [block.shape for _, block in row_blocks(adata.X)]  # one would do for 167,772 cells
    [(100, 50)]
    """
    step = max(1, VALUES // max(1, math.prod(matrix.shape[1:])))
    for start in range(0, matrix.shape[0], step):
        rows = slice(start, min(start + step, matrix.shape[0]))
        yield rows, read_rows(matrix, rows)


def totals(values: np.ndarray | sparse.spmatrix | sparse.sparray, axis: int) -> np.ndarray:
    """Sum a matrix over an axis in double precision, whatever its type.

    Parameters
    ----------
    values
        Cells x genes.
    axis
        0 for the total of every gene, 1 for that of every cell.

    Returns
    -------
    np.ndarray
        The totals, float64.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import totals
    >>> cell = np.full((1, 100), 1000, dtype=np.float16)  # the largest number of this type is 65,504
    >>> totals(cell, axis=1)
    array([100000.])
    """
    if not sparse.issparse(values):
        return values.sum(axis=axis, dtype=np.float64)
    ones = np.ones(values.shape[axis])  # sums of scipy are of the type of the values
    return values @ ones if axis == 1 else ones @ values


def place_of(where: str) -> str:
    """Code for a matrix that a message calls so: itself, or X where it is called by words."""
    return "adata.X" if " " in where else where


def _dtype_in_memory(dtype: Any) -> np.dtype | None:
    """The type that values are read as; None if one cannot compute with them."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        return None
    dtype = dtype.newbyteorder("=")
    return np.dtype(np.float32) if dtype in (np.bool_, np.float16) else dtype
