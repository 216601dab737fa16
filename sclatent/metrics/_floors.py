"""Floors of generation: cells made by the simplest means, which a model has to beat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from sclatent.data import check_seed, check_whole, random_stream, totals

from ._cells import BLOCK, CellGroups, check_anndata
from ._copula import draw_counts, factor_loadings, normal_scores

POISSON = 1e6  # inverse dispersion of a negative binomial that is a Poisson variable in all but name
COPULA_VALUES = 2**23  # of cells x genes, which the factors are found in

Draw: TypeAlias = Callable[[CellGroups, np.ndarray, int, np.random.Generator], sparse.csr_matrix]
"""Fits rows of one condition, and draws n cells."""


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
    return _draw_conditions(draw_independent_genes, "independent genes", adata, groupby, n, seed, layer)


def gene_copula(
    adata: AnnData, groupby: str | None = None, n: int | None = None, seed: int = 0, layer: str | None = None
) -> AnnData:
    r"""Generate cells whose genes are correlated: negative binomials joined by a Gaussian copula of up to 32 factors.

    .. math:: x_{ng} = F^{-1}_{ng}(\Phi(z_{ng})), \qquad z_n \sim N(0,\ W^T W + D)

    with the distribution functions :math:`F_{ng}` of :func:`independent_genes`, so that the two floors differ in the
    correlations alone, and :math:`D` diagonal, so that all :math:`z_{ng}` have variance 1. Counts of UMIs need no
    inflation of zeros beside the negative binomial (Svensson 2020). Library sizes are given, and are not among the
    factors. The loadings :math:`W` come from factor analysis of the expected normal variables behind the counts, its
    eigenvalues shrunk: few cells, or genes that are independent, leave no factors, and the cells are those of
    independent genes. Of many cells 8 million counts are used for it, such as 4,000 cells of 2,000 genes, drawn at
    random; the negative binomials are fitted to all.

    The idea is that of scDesign2 (Sun et al. 2021) and, with few factors, of PopPert (arXiv:2609.01357).

    Parameters
    ----------
    adata, groupby, n, seed, layer
        As of :func:`independent_genes`.

    Returns
    -------
    AnnData
        Counts (CSR, float32), the same genes, and the condition in ``obs[groupby]``.

    Examples
    --------
    >>> import sclatent
    >>> adata = sclatent.datasets.simulate(100, 50, cell_types=["B", "T"], library_size=500)
    >>> floor = sclatent.metrics.gene_copula(adata, groupby="cell_type", n=20)
    >>> floor.shape, floor.obs["cell_type"].value_counts().to_dict()
    ((40, 50), {'B': 20, 'T': 20})
    """
    return _draw_conditions(draw_gene_copula, "gene copula", adata, groupby, n, seed, layer)


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


@dataclass(frozen=True)
class NegativeBinomials:
    """A negative binomial of every gene, given the library size."""

    sizes: np.ndarray
    """Library sizes of the cells, (cells,)."""
    fraction: np.ndarray
    """Mean over the library size, (genes,)."""
    dispersion: np.ndarray
    """Inverse dispersion, (genes,); infinite where counts are Poisson."""


def fit_negative_binomials(cells: CellGroups, rows: np.ndarray) -> NegativeBinomials:
    """Fit rows of one condition by the method of moments; see :func:`independent_genes`."""
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
    dispersion = np.full(n_genes, np.inf)
    dispersion[varies] = fraction[varies] ** 2 * squares / excess[varies]
    return NegativeBinomials(sizes, fraction, dispersion)


def draw_independent_genes(cells: CellGroups, rows: np.ndarray, n: int, rng: np.random.Generator) -> sparse.csr_matrix:
    """Fit rows of one condition, and draw (n, genes); see :func:`independent_genes`."""
    fit = fit_negative_binomials(cells, rows)
    varies = np.isfinite(fit.dispersion)
    theta = fit.dispersion[varies]
    blocks = [sparse.csr_matrix((0, cells.n_genes), dtype=np.float32)]  # what remains where n is 0
    for library in _in_blocks(rng.choice(fit.sizes, n), cells.n_genes):
        rate = library[:, None] * fit.fraction
        rate[:, varies] *= rng.standard_gamma(theta, (len(rate), len(theta))) / theta
        blocks.append(sparse.csr_matrix(rng.poisson(rate), dtype=np.float32))
    return sparse.vstack(blocks, format="csr")


def draw_gene_copula(
    cells: CellGroups, rows: np.ndarray, n: int, rng: np.random.Generator, most: int | None = None
) -> sparse.csr_matrix:
    """Fit rows of one condition, for the factors ``most`` of them, and draw (n, genes); see :func:`gene_copula`."""
    fit = fit_negative_binomials(cells, rows)
    dispersion = np.minimum(fit.dispersion, POISSON)
    some = rng.permutation(len(rows))[: max(2, COPULA_VALUES // cells.n_genes)][:most]
    scores = np.concatenate(
        [
            normal_scores(counts, fit.sizes[some][of, None] * fit.fraction, dispersion)
            for of, counts in cells.blocks(rows[some])
        ]
    )
    loadings = factor_loadings(scores, rng)
    blocks = [sparse.csr_matrix((0, cells.n_genes), dtype=np.float32)]  # what remains where n is 0
    for library in _in_blocks(rng.choice(fit.sizes, n), cells.n_genes):
        blocks.append(draw_counts(library[:, None] * fit.fraction, dispersion, loadings, rng))
    return sparse.vstack(blocks, format="csr")


def _in_blocks(values: np.ndarray, n_genes: int) -> Iterator[np.ndarray]:
    """Values of cells, as many at a time as may be dense together."""
    for start in range(0, len(values), step := max(1, BLOCK // n_genes)):
        yield values[start : start + step]


def _draw_conditions(
    draw: Draw, purpose: str, adata: AnnData, groupby: str | None, n: int | None, seed: int, layer: str | None
) -> AnnData:
    """Cells of every condition, drawn by what is fitted to it."""
    if n is not None:
        check_whole("n", n)
    check_seed(seed)
    check_anndata(adata, "adata")
    if not adata.n_obs:
        raise ValueError("adata has no cells: some were expected, which others are made like.")
    cells = CellGroups(adata, adata.var_names, [] if groupby is None else [groupby], "adata", layer)
    rng = random_stream(seed, purpose)
    sizes = {level: len(rows) if n is None else n for level, rows in cells.rows.items()}
    counts = [draw(cells, cells.rows[level], size, rng) for level, size in sizes.items()]
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(sum(sizes.values()))])
    if groupby is not None:
        obs[groupby] = pd.Categorical(np.repeat(list(sizes), list(sizes.values())))
    return ad.AnnData(sparse.vstack(counts, format="csr"), obs=obs, var=pd.DataFrame(index=adata.var_names))
