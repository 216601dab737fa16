"""A Gaussian copula of few factors, which joins the negative binomials of genes."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.special import betainc, ndtr, ndtri
from scipy.stats import nbinom
from sklearn.utils.extmath import randomized_svd

from sclatent.data._reading import dense

RANK = 32  # factors at most, as of PopPert
N_ITERATIONS = 10  # of factor analysis
SMALLEST = 1e-10  # probability that is told from 0
MOST_KNOWN = 0.999  # variance of expected scores, 1 at most, where counts are so many that they tell the variable
LEAST_UNIQUE = 0.01  # variance of a score that factors leave, which must not come to 0 (Heywood cases)


def normal_scores(counts: np.ndarray | sparse.csr_matrix, mean: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    r"""Expected standard normal variables behind counts: of those that the quantile function takes to the same count.

    With :math:`a = \Phi^{-1}(F(x - 1))` and :math:`b = \Phi^{-1}(F(x))` that is
    :math:`(\varphi(a) - \varphi(b)) / (F(x) - F(x - 1))`. A draw between a and b (the distributional transform) has
    the same correlations in expectation, and the noise of the draw besides, which drowns those of sparse genes.

    Parameters
    ----------
    counts, mean
        Counts and their means, (cells, genes).
    dispersion
        Inverse dispersion of the negative binomials, (genes,).

    Returns
    -------
    np.ndarray
        (cells, genes), float32.
    """
    x = dense(counts)
    below, upto = np.zeros(mean.shape), _probability_of_zero(mean, dispersion)
    cell, gene = np.nonzero(x)  # few, and the distribution function is slow
    theta = dispersion[gene]
    success = theta / (theta + mean[cell, gene])
    below[cell, gene] = betainc(theta, x[cell, gene], success)
    upto[cell, gene] = betainc(theta, x[cell, gene] + 1.0, success)
    a, b = ndtri(below), ndtri(upto)
    probability = upto - below
    expected = (np.exp(-(a**2) / 2) - np.exp(-(b**2) / 2)) / np.maximum(probability, SMALLEST) / np.sqrt(2 * np.pi)
    tail = ndtri(SMALLEST)  # where probabilities cannot be told apart
    return np.where(probability > SMALLEST, expected, np.clip(a, tail, -tail)).astype(np.float32)


def factor_loadings(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    r"""Loadings of the standard normal variables of genes on common factors.

    Factor analysis of standardised scores: alternately the leading components of scores over the standard deviation
    that is unique to the gene, and these deviations. Eigenvalues are shrunk as is optimal where cells are few for so
    many genes: those that noise alone would reach are left out (Donoho, Gavish and Johnstone 2018, Frobenius loss).

    Expected scores are less correlated than the variables behind them, the more the sparser genes are: to third order
    :math:`v r + (1 - v) r^3` for two genes of the same distribution, with the variance :math:`v` of their scores and
    the correlation :math:`r` of the variables (the expansion in Hermite polynomials, exact at 0 and 1). This is solved
    for the communality of every gene, and its loadings are enlarged to that. No matrix of genes x genes is made.

    Parameters
    ----------
    scores
        (cells, genes).
    rng
        Random numbers of the decomposition.

    Returns
    -------
    np.ndarray
        (factors, genes); the squares of a gene add up to 1 at most. No factors where none is above the noise.
    """
    n_cells, n_genes = scores.shape
    deviation = scores.std(axis=0, ddof=1) if n_cells > 1 else np.zeros(n_genes)
    varies = deviation > 1e-6  # a gene that is constant has no correlation
    n_varying = int(varies.sum())
    rank = min(RANK, n_cells - 1, n_varying)
    if rank < 1:
        return np.zeros((0, n_genes))
    standard = (scores[:, varies] - scores[:, varies].mean(axis=0)) / deviation[varies]
    unique = np.ones(n_varying, dtype=np.float32)
    seed = int(rng.integers(2**31))
    for _ in range(N_ITERATIONS):
        _, singular, components = randomized_svd(standard / np.sqrt(unique), rank, random_state=seed)
        strength = _shrunk_above_noise(singular.astype(np.float64) ** 2 / (n_cells - 1), n_varying / (n_cells - 1))
        found = np.sqrt(strength)[:, None] * components[: len(strength)] * np.sqrt(unique)
        unique = np.maximum(1 - np.square(found).sum(axis=0), LEAST_UNIQUE).astype(np.float32)  # as the scores
    seen = np.maximum(np.square(found).sum(axis=0), SMALLEST)
    loadings = np.zeros((len(found), n_genes))
    loadings[:, varies] = found * np.sqrt(
        _latent_communality(seen, np.minimum(deviation[varies] ** 2, MOST_KNOWN)) / seen
    )
    return loadings


def draw_counts(
    mean: np.ndarray, dispersion: np.ndarray, loadings: np.ndarray, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Draw negative binomials of these means (cells, genes) that are joined by common factors."""
    unique = np.sqrt(np.maximum(1 - np.square(loadings).sum(axis=0), 0))
    normal = rng.standard_normal((len(mean), len(loadings))) @ loadings + rng.standard_normal(mean.shape) * unique
    uniform = ndtr(normal)
    cell, gene = np.nonzero(uniform > _probability_of_zero(mean, dispersion))  # few, and the quantile function is slow
    theta = dispersion[gene]
    counts = nbinom.ppf(uniform[cell, gene], theta, theta / (theta + mean[cell, gene]))
    return sparse.csr_matrix((counts.astype(np.float32), (cell, gene)), shape=mean.shape)


def _probability_of_zero(mean: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """Probability of no count."""
    return np.exp(-dispersion * np.log1p(mean / dispersion))


def _latent_communality(communality: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Communality of the variables behind scores that have this one and this variance: the real root of a cubic."""
    p, q = variance / (1 - variance), communality / (1 - variance)  # x^3 + p x = q
    return 2 * np.sqrt(p / 3) * np.sinh(np.arcsinh(1.5 * q / p * np.sqrt(3 / p)) / 3)


def _shrunk_above_noise(eigenvalues: np.ndarray, ratio: float) -> np.ndarray:
    """By how much the eigenvalues of a covariance are above the noise of variance 1, of those that are.

    Parameters
    ----------
    eigenvalues
        Of the covariance of a sample, descending.
    ratio
        Number of variables over degrees of freedom.
    """
    seen = eigenvalues[eigenvalues > (1 + np.sqrt(ratio)) ** 2]
    middle = (seen + 1 - ratio) / 2
    spike = middle + np.sqrt(middle**2 - seen) - 1  # of the covariance itself
    cosine_squared = (1 - ratio / spike**2) / (1 + ratio / spike)  # between its eigenvector and that of the sample
    return spike * cosine_squared
