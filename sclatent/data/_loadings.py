"""Gene embeddings to start from: which genes vary together."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from tqdm.auto import tqdm

from ._loader import CellRows
from ._normalize import log_normalize_counts
from ._random import random_stream

MAX_SPLITS = 5  # times that the molecules of a cell are split,
MAX_VALUES = 20_000_000  # as long as there are not more values above zero than these
N_PRODUCTS = 6  # of the covariance with a block of vectors: embeddings only start here


def gene_loadings(
    rows: CellRows,
    n_genes: int,
    dim: int,
    is_count_data: bool = True,
    max_cells: int = 20_000,
    seed: int = 0,
    progress_bar: bool = False,
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
        Of more cells, so many are drawn. Fewer cells are split several times, up to five and up to this number (less
        often where they express very many genes).
    seed
        Seed of the draw, the splits and the solver.
    progress_bar
        Whether to show progress, if it takes a while.

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
    blocks = [rows.rows(block) for block in np.array_split(positions, -(-len(positions) // 4096))]
    n_splits = 1
    if is_count_data:
        most = min(max_cells // len(positions), MAX_VALUES // max(1, sum(block.nnz for block in blocks)))
        n_splits = int(np.clip(most, 1, MAX_SPLITS))
    halves: tuple[list[sparse.csr_matrix], list[sparse.csr_matrix]] = ([], [])
    total = len(blocks) * n_splits + N_PRODUCTS
    with tqdm(total=total, desc="Gene embeddings", delay=2, disable=not progress_bar) as bar:
        for cells in blocks:
            for _ in range(n_splits):
                pair = map(log_normalize_counts, _split(cells, rng)) if is_count_data else (cells, cells)
                for half, values in zip(halves, pair, strict=True):
                    half.append(values)
                bar.update()
        one, other = (sparse.vstack(half, format="csr", dtype=np.float32) for half in halves)

        loadings = np.zeros((n_genes, dim), dtype=np.float32)
        k = min(dim, len(rows) - 1, len(rows.panel) - 1)
        if k > 0:
            variance, components = _leading(one, other, k, rng, bar)
            loadings[rows.panel.numpy(), :k] = components * np.sqrt(variance.clip(min=0))
    return loadings / max(np.sqrt(np.mean(loadings**2)), 1e-12)


def _split(counts: sparse.csr_matrix, rng: np.random.Generator) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Deal the molecules of every cell out to two halves, each molecule by the toss of a coin."""
    one = counts.copy()
    one.data = rng.binomial(counts.data.astype(np.int64), 0.5).astype(counts.dtype)
    other = counts - one
    one.eliminate_zeros()
    other.eliminate_zeros()
    return one, other


def _leading(
    one: sparse.csr_matrix, other: sparse.csr_matrix, k: int, rng: np.random.Generator, bar: tqdm
) -> tuple[np.ndarray, np.ndarray]:
    """Largest eigenvalues (k,), and eigenvectors (genes, k), of the covariance between two halves (cells, genes).

    By a block Krylov method (Musco & Musco 2015, arXiv 1504.05477): to multiply a sparse matrix by a block of vectors
    costs little more than by one of them.
    """
    n, n_genes = one.shape
    means = [np.asarray(half.mean(axis=0), dtype=np.float64).ravel() for half in (one, other)]

    def covariance(block: np.ndarray) -> np.ndarray:
        """Product with a block (genes, m); halves less their means, without making zeros of them into numbers."""
        result = np.zeros(block.shape)
        for half, left, mean, right in zip((one, other), (other, one), means, means[::-1], strict=True):
            scores = half @ block.astype(np.float32) - (mean @ block).astype(np.float32)
            result += left.T @ scores - np.outer(right, scores.sum(axis=0))
        bar.update()
        return result / (2 * n)

    width = min(k + 8, n_genes)
    if n_genes <= N_PRODUCTS * width:  # all directions
        basis = np.eye(n_genes)
        products = covariance(basis)
    else:
        blocks, images = [np.linalg.qr(rng.normal(size=(n_genes, width)))[0]], []
        for _ in range(N_PRODUCTS):
            images.append(covariance(blocks[-1]))
            new = images[-1]
            for _ in range(2):  # twice is enough to be orthogonal
                new = np.linalg.qr(new - sum(block @ (block.T @ new) for block in blocks))[0]
            blocks.append(new)
        basis, products = np.concatenate(blocks[:-1], axis=1), np.concatenate(images, axis=1)
    projected = basis.T @ products
    variance, vectors = np.linalg.eigh((projected + projected.T) / 2)
    return variance[: -k - 1 : -1], basis @ vectors[:, : -k - 1 : -1]
