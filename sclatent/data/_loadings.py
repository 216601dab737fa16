"""Gene embeddings to start from: which genes vary together."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA

from ._loader import CellRows
from ._normalize import log_normalize_counts


def gene_loadings(
    rows: CellRows, n_genes: int, dim: int, is_count_data: bool = True, max_cells: int = 20_000, seed: int = 0
) -> np.ndarray:
    r"""Principal loadings of the genes, times the standard deviation of their component.

    Genes that vary together start close to each other, and genes that do not vary close to 0, so a few hundred cells
    are enough to learn what thousands of genes do.

    Parameters
    ----------
    rows
        Cells; log1p of counts per 10,000 is taken of counts.
    n_genes
        Number of genes of the model.
    dim
        Number of components. Those that the data cannot give are 0.
    is_count_data
        Whether the values are counts, and not log-normalised already.
    max_cells
        Of more cells, so many are drawn.
    seed
        Seed of the draw and of the solver.

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
    positions = np.arange(len(rows))
    if len(rows) > max_cells:
        positions = np.sort(np.random.default_rng(seed).choice(len(rows), max_cells, replace=False))
    blocks = []
    for block in np.array_split(positions, -(-len(positions) // 4096)):
        cells = rows.rows(block)
        blocks.append(log_normalize_counts(cells) if is_count_data else cells)
    cells = sparse.vstack(blocks, format="csr", dtype=np.float64)
    loadings = np.zeros((n_genes, dim), dtype=np.float32)
    k = min(dim, min(cells.shape) - 1)
    if k > 0:
        pca = PCA(k, svd_solver="arpack", random_state=seed).fit(cells)
        loadings[rows.panel.numpy(), :k] = (pca.components_ * np.sqrt(pca.explained_variance_)[:, None]).T
    return loadings / max(np.sqrt(np.mean(loadings**2)), 1e-12)
