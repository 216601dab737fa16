"""Where cells are compared: log-normalised expression, and its principal components."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scipy import sparse
from sklearn.decomposition import PCA

from sclatent.data import by_rows, get_matrix, log_normalize_counts, row_blocks
from sclatent.data._reading import dense

EXACT_GENES = 2_000  # up to here the exact decomposition takes at most a second or two


def log_normalize(adata: AnnData, layer: str | None = None) -> np.ndarray:
    """Natural logarithm of 1 + counts per 10,000 of the cell.

    Parameters
    ----------
    adata
        Cells with raw counts, in memory or not; they stay as they are.
    layer
        Layer with the counts; X by default.

    Returns
    -------
    np.ndarray
        Dense (cells, genes), float32. A cell without counts is all zeros.

    Examples
    --------
    >>> import numpy as np
    >>> import sclatent
    >>> adata = sclatent.datasets.simulate(100, 50, library_size=500)
    >>> values = sclatent.metrics.log_normalize(adata)
    >>> np.expm1(values[:3]).sum(axis=1).round().tolist()
    [10000.0, 10000.0, 10000.0]
    """
    matrix = by_rows(get_matrix(adata, layer), "adata.X" if layer is None else f"adata.layers[{layer!r}]")
    values = np.empty(matrix.shape, dtype=np.float32)
    for rows, counts in row_blocks(matrix):
        values[rows] = log_normalize_dense(counts)
    return values


def log_normalize_dense(counts: np.ndarray | sparse.csr_matrix) -> np.ndarray:
    """Log-normalise a matrix of counts (cells, genes) as :func:`log_normalize` does; dense, float32."""
    return dense(log_normalize_counts(counts))


class Projection:
    """Principal components of log-normalised cells: centred, not scaled.

    Parameters
    ----------
    values
        Log-normalised cells that the components are fitted on, (cells, genes).
    n_components
        Components at most; there are never more than cells - 1 or genes.
    seed
        Seed of the randomised decomposition, which scikit-learn uses above 2,000 genes; below that it is exact.

    Attributes
    ----------
    n_components
        How many components there are.
    name
        The space in words, such as ``"50 PCs of log1p CP10k"``.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.metrics import Projection, log_normalize
    >>> adata = sclatent.datasets.simulate(100, 50, library_size=500)
    >>> projection = Projection(log_normalize(adata), n_components=10)
    >>> projection.name
    '10 PCs of log1p CP10k'
    """

    def __init__(self, values: np.ndarray, n_components: int = 50, seed: int = 0) -> None:
        if n_components < 1:
            raise ValueError(f"n_components={n_components} is not possible: at least 1 component is needed.")
        if len(values) < 2:
            raise ValueError(f"Principal components need at least 2 cells, not {len(values)}.")
        self.n_components = min(n_components, len(values) - 1, values.shape[1])
        solver = "covariance_eigh" if values.shape[1] <= EXACT_GENES else "auto"
        self._pca = PCA(self.n_components, svd_solver=solver, random_state=seed).fit(values)
        self.name = f"{self.n_components} PCs of log1p CP10k"

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Project cells.

        Parameters
        ----------
        values
            Log-normalised cells, (cells, genes).

        Returns
        -------
        np.ndarray
            Principal components, (cells, n_components), float64.

        Examples
        --------
        Other cells, in the space of those that the components were fitted on:

        >>> others = sclatent.datasets.simulate(20, 50, library_size=500, seed=1)
        >>> projection.transform(log_normalize(others)).shape
        (20, 10)
        """
        return self._pca.transform(values).astype(np.float64)
