"""Gene embeddings to start from: which genes vary together."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, eigsh

from ._loader import CellRows
from ._normalize import log_normalize_counts
from ._random import random_stream

MAX_SPLITS = 5  # times that the molecules of a cell are split
TOLERANCE = 1e-3  # of the eigenvalues: embeddings only start here


def gene_loadings(
    rows: CellRows, n_genes: int, dim: int, is_count_data: bool = True, max_cells: int = 20_000, seed: int = 0
) -> np.ndarray:
    r"""Principal loadings of the genes, times the standard deviation of their component, without sampling noise.

    Genes that vary together start close to each other, and genes that do not vary close to 0, so a few hundred cells
    are enough to learn what thousands of genes do.

    Principal components of shallow counts are mostly noise of sampling, and a model that starts from them remembers it.
    Therefore the molecules of each cell are dealt out to two halves (count splitting, Neufeld et al. 2024,
    Biostatistics 25, 270-287): what these have in common is the cell. The loadings are eigenvectors of the covariance
    *between* the halves, whose expectation has no sampling noise, and eigenvalues that noise makes negative count as 0.

    Parameters
    ----------
    rows
        Cells; log1p of counts per 10,000 is taken of counts.
    n_genes
        Number of genes of the model.
    dim
        Number of components. Those that the data cannot give are 0.
    is_count_data
        Whether the values are counts, and not log-normalised already; these are not split.
    max_cells
        Of more cells, so many are drawn. Fewer cells are split several times, up to five and up to this number.
    seed
        Seed of the draw, the splits and the solver.

    Returns
    -------
    np.ndarray
        (n_genes, dim), float32, of mean square 1.

    Examples
    --------
    >>> import numpy as np
    >>> import sclatent
    >>> from sclatent.data import CellRows, gene_loadings
    >>> adata = sclatent.datasets.simulate(100, 50, library_size=200)
    >>> rows = CellRows(adata.X, np.arange(50), None, np.zeros((100, 1), dtype=int), np.zeros(100, dtype=int))
    >>> gene_loadings(rows, n_genes=50, dim=8).shape
    (50, 8)
    """
    rng = random_stream(seed, "loadings of genes")
    positions = np.arange(len(rows))
    if len(rows) > max_cells:
        positions = np.sort(rng.choice(len(rows), max_cells, replace=False))
    n_splits = min(MAX_SPLITS, max(1, max_cells // len(positions))) if is_count_data else 1
    halves: tuple[list[sparse.csr_matrix], list[sparse.csr_matrix]] = ([], [])
    for block in np.array_split(positions, -(-len(positions) // 4096)):
        cells = rows.rows(block)
        for _ in range(n_splits):
            pair = map(log_normalize_counts, _split(cells, rng)) if is_count_data else (cells, cells)
            for half, values in zip(halves, pair, strict=True):
                half.append(values)
    one, other = (_centred(sparse.vstack(half, format="csr", dtype=np.float64)) for half in halves)

    loadings = np.zeros((n_genes, dim), dtype=np.float32)
    n, n_measured = one.shape
    k = min(dim, n // n_splits - 1, n_measured - 1)
    if k > 0:
        covariance = (one.T @ other + other.T @ one) / (2 * n)
        variance, components = eigsh(covariance, k, which="LA", v0=rng.normal(size=n_measured), tol=TOLERANCE)
        order = np.argsort(-variance)
        loadings[rows.panel.numpy(), :k] = components[:, order] * np.sqrt(variance[order].clip(min=0))
    return loadings / max(np.sqrt(np.mean(loadings**2)), 1e-12)


def _split(counts: sparse.csr_matrix, rng: np.random.Generator) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Deal the molecules of every cell out to two halves, each molecule by the toss of a coin."""
    one = counts.copy()
    one.data = rng.binomial(counts.data.astype(np.int64), 0.5).astype(counts.dtype)
    other = counts - one
    one.eliminate_zeros()
    other.eliminate_zeros()
    return one, other


def _centred(cells: sparse.csr_matrix) -> LinearOperator:
    """Cells less their mean, without making zeros of the matrix into numbers."""
    mean = np.asarray(cells.mean(axis=0)).ravel()
    transposed = cells.T.tocsr()
    return LinearOperator(
        cells.shape,
        matvec=lambda v: cells @ v - mean @ v,
        rmatvec=lambda u: transposed @ u - mean * u.sum(),
        dtype=np.float64,
    )
