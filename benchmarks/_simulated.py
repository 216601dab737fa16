"""Simulated cells on a ring and on branches, which one Gaussian a condition cannot be."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scipy import sparse

N_GENES, LIBRARY_SIZE, LIBRARY_SD, EFFECT_SD, BASELINE_SD, DISPERSION = 300, 500, 0.3, 1.0, 1.5, 2.0
BLOCK = 10_000  # cells drawn at once


def ring(n_cells: int, seed: int = 0) -> AnnData:
    """Cells around a cycle: log abundances of genes are a cosine of the position, each with its own phase."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, n_cells)
    return _counts(np.stack([np.cos(angle), np.sin(angle)], axis=1), rng)


def branches(n_cells: int, n_branches: int = 3, seed: int = 0) -> AnnData:
    """Cells on branches of equal length that part at one point, each along a direction of its own."""
    rng = np.random.default_rng(seed)
    position = np.zeros((n_cells, n_branches))
    position[np.arange(n_cells), rng.integers(n_branches, size=n_cells)] = rng.uniform(0, 2, n_cells)
    return _counts(position, rng)


def _counts(position: np.ndarray, rng: np.random.Generator) -> AnnData:
    """Draw negative binomial counts of cells whose log abundances are linear in their position (cells, dim)."""
    effects = rng.normal(0, EFFECT_SD, (position.shape[1], N_GENES))
    baseline = rng.normal(0, BASELINE_SD, N_GENES)
    blocks = []
    for start in range(0, len(position), BLOCK):
        log_abundance = baseline + position[start : start + BLOCK] @ effects
        share = np.exp(log_abundance - log_abundance.max(axis=1, keepdims=True))
        library = LIBRARY_SIZE * np.exp(rng.normal(0, LIBRARY_SD, len(share)))
        mean = library[:, None] * share / share.sum(axis=1, keepdims=True)
        counts = rng.poisson(mean * rng.gamma(DISPERSION, 1 / DISPERSION, mean.shape))
        blocks.append(sparse.csr_matrix(counts.astype(np.float32)))
    adata = AnnData(sparse.vstack(blocks, format="csr"))
    adata.obs_names = [f"cell_{i}" for i in range(adata.n_obs)]
    adata.var_names = [f"gene_{i}" for i in range(N_GENES)]
    return adata
