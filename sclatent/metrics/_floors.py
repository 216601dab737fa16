"""Floors of generation: cells made by the simplest means, which a model has to beat."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from sclatent.data import random_stream, totals

from ._cells import BLOCK, CellGroups


def independent_genes(
    adata: AnnData, groupby: str | None = None, n: int | None = None, seed: int = 0, layer: str | None = None
) -> AnnData:
    r"""Generate cells whose genes know nothing of each other: a negative binomial per gene and condition.

    .. math:: x_{ng} \sim \mathrm{NegativeBinomial}(\mu_{ng} = \ell_n \rho_g,\ \theta_g),
              \qquad \mathrm{Var}\, x = \mu + \mu^2 / \theta

    with library sizes :math:`\ell_n` drawn from those of the cells of the condition, and :math:`\rho_g` and
    :math:`\theta_g` fitted to these cells by the method of moments (Poisson where the variance is not above that of
    a Poisson variable).

    Parameters
    ----------
    adata
        Cells with raw counts.
    groupby
        Column of obs with the conditions; None for one.
    n
        Cells to generate for every condition; by default as many as it has.
    seed
        Seed.
    layer
        Layer with the counts; X by default.

    Returns
    -------
    AnnData
        Counts (CSR, float32), the same genes, and the condition in ``obs[groupby]``.

    Examples
    --------
    >>> import sclatent
    >>> adata = sclatent.datasets.simulate(100, 50, cell_types=["B", "T"], library_size=500)
    >>> floor = sclatent.metrics.independent_genes(adata, groupby="cell_type", n=20)
    >>> floor.shape, floor.obs["cell_type"].value_counts().to_dict()
    ((40, 50), {'B': 20, 'T': 20})
    """
    if n is not None and n < 1:
        raise ValueError(f"n={n} is not possible: at least 1 cell must be generated for every condition.")
    cells = CellGroups(adata, adata.var_names, [] if groupby is None else [groupby], "adata", layer)
    rng = random_stream(seed, "independent genes")
    sizes = {level: len(rows) if n is None else n for level, rows in cells.rows.items()}
    counts = [draw_independent_genes(cells, cells.rows[level], size, rng) for level, size in sizes.items()]
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(sum(sizes.values()))])
    if groupby is not None:
        obs[groupby] = pd.Categorical(np.repeat(list(sizes), list(sizes.values())))
    return ad.AnnData(sparse.vstack(counts, format="csr"), obs=obs, var=pd.DataFrame(index=adata.var_names))


def cell_mean(adata: AnnData, groupby: str | None = None, layer: str | None = None) -> pd.DataFrame:
    """Mean log-normalised profile of every condition: a floor whose cells are all the same one.

    Parameters
    ----------
    adata
        Cells with raw counts.
    groupby
        Column of obs with the conditions; None for one, ``"all"``.
    layer
        Layer with the counts; X by default.

    Returns
    -------
    pd.DataFrame
        Conditions x genes.

    Examples
    --------
    >>> import sclatent
    >>> adata = sclatent.datasets.simulate(100, 50, cell_types=["B", "T"], library_size=500)
    >>> profiles = sclatent.metrics.cell_mean(adata, groupby="cell_type")
    >>> profiles.shape, list(profiles.index)
    ((2, 50), ['B', 'T'])
    """
    cells = CellGroups(adata, adata.var_names, [] if groupby is None else [groupby], "adata", layer)
    means = {level: cells.mean(rows) for level, rows in cells.rows.items()}
    return pd.DataFrame.from_dict(means, orient="index", columns=adata.var_names)


def draw_independent_genes(cells: CellGroups, rows: np.ndarray, n: int, rng: np.random.Generator) -> sparse.csr_matrix:
    """Fit rows of one condition, and draw (n, genes); see :func:`independent_genes`."""
    n_cells, n_genes = len(rows), cells.n_genes
    sizes, (total_of_gene, squared, products) = np.empty(n_cells), np.zeros((3, n_genes))
    for some, block in cells.blocks(rows):
        counts = sparse.csr_matrix(block, dtype=np.float64)
        sizes[some] = totals(counts, axis=1)
        total_of_gene += totals(counts, axis=0)
        squared += totals(counts.multiply(counts), axis=0)
        products += sizes[some] @ counts
    total, squares = max(sizes.sum(), 1.0), max((sizes**2).sum(), 1.0)
    fraction = total_of_gene / total  # rho
    # the sum over cells of (x - l rho)^2 is that of l rho + (l rho)^2 / theta
    residual = squared + fraction**2 * squares - 2 * fraction * products
    excess = residual * n_cells / max(n_cells - 1, 1) - fraction * total
    varies = (excess > 0) & (fraction > 0)
    theta = fraction[varies] ** 2 * squares / excess[varies]

    library = rng.choice(sizes, n)
    blocks = [sparse.csr_matrix((0, n_genes), dtype=np.float32)]  # what remains where n is 0
    for start in range(0, n, step := max(1, BLOCK // n_genes)):
        rate = library[start : start + step, None] * fraction
        rate[:, varies] *= rng.standard_gamma(theta, (len(rate), len(theta))) / theta
        blocks.append(sparse.csr_matrix(rng.poisson(rate), dtype=np.float32))
    return sparse.vstack(blocks, format="csr")
