"""Variances of a mixed model: its components by restricted maximum likelihood, and those of single outcomes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import brentq, minimize
from scipy.special import digamma, polygamma

LEAST, MOST = np.exp(-12), np.exp(6)  # of a component, as multiples of the variance that there is to explain
STARTS = 1e-3, 0.03, 1.0  # as such multiples, too: the likelihood may have several maxima


def orthonormal(design: np.ndarray) -> np.ndarray:
    """Orthonormal columns (n, rank) that span those of a design (n, p)."""
    u, s, _ = np.linalg.svd(design, full_matrices=False)
    return u[:, s > 1e-9 * s[0]]


def reml(kernels: Sequence[np.ndarray], design: np.ndarray, values: np.ndarray, noise: np.ndarray) -> np.ndarray:
    r"""Estimate the variances of random effects by restricted maximum likelihood (Patterson and Thompson 1971).

    .. math:: y_d = X \beta_d + \sum_r u_{rd} + e_d, \qquad u_{rd} \sim N(0, \sigma_r^2 K_r), \quad e_d \sim N(0, R),

    for outcomes d that share the variances. The likelihood is maximised by L-BFGS in the logarithms of the variances.

    Parameters
    ----------
    kernels
        :math:`K_r`, (n, n) each.
    design
        X, (n, p).
    values
        y, (n, n_outcomes).
    noise
        Variances on the diagonal of R, (n,).

    Returns
    -------
    np.ndarray
        :math:`\sigma_r^2`, one for each kernel; 0 for one of zeros, of which the values say nothing.

    Examples
    --------
    A hundred groups of five, whose means vary with variance 4 around 0:

    >>> import numpy as np
    >>> from sclatent.baseline import reml
    >>> rng = np.random.default_rng(0)
    >>> group = np.repeat(np.arange(100), 5)
    >>> y = rng.normal(0, 2, (100, 20))[group] + rng.normal(0, 1, (500, 20))
    >>> same = (group[:, None] == group).astype(float)
    >>> bool(abs(reml([same], np.ones((500, 1)), y, np.ones(500))[0] - 4) < 0.5)
    True
    """
    return restricted_fit(kernels, design, values, noise)[0]


def restricted_fit(
    kernels: Sequence[np.ndarray], design: np.ndarray, values: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, float]:
    """Variances as of :func:`reml`, and the negative logarithm of their restricted likelihood, of an outcome."""
    moments = values @ values.T / values.shape[1]  # the likelihood sees the outcomes through their products alone
    basis = orthonormal(design)
    is_at_work = [bool(kernel.any()) for kernel in kernels]
    found, kernels = np.zeros(len(kernels)), [kernel for kernel in kernels if kernel.any()]
    scale = np.trace(moments - basis @ (basis.T @ moments)) / len(values)
    if not kernels or scale <= 1e-12 * np.trace(moments):  # the fixed effects explain all of it
        return found, 0.0

    def objective(log_variances: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative logarithm of the restricted likelihood of an outcome, and its gradient."""
        variances = np.exp(log_variances)
        covariance = np.diag(noise + 1e-9 * scale)
        for variance, kernel in zip(variances, kernels, strict=True):
            covariance += variance * kernel
        factor = cho_factor(covariance, lower=True)
        inverse = cho_solve(factor, np.eye(len(noise)))
        weighted = inverse @ basis
        information = basis.T @ weighted
        projection = inverse - weighted @ np.linalg.solve(information, weighted.T)
        explained = projection @ moments
        value = np.log(np.diag(factor[0])).sum() + (np.linalg.slogdet(information)[1] + np.trace(explained)) / 2
        slope = (projection - explained @ projection) / 2
        return value, np.array([v * np.sum(slope * k) for v, k in zip(variances, kernels, strict=True)])

    log_scale = np.log(scale)
    bounds = [(log_scale + np.log(LEAST), log_scale + np.log(MOST))] * len(kernels)
    starts = (np.full(len(kernels), log_scale + np.log(start)) for start in STARTS)
    fits = [minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds) for start in starts]
    best = min(fits, key=lambda fit: fit.fun)
    found[is_at_work] = np.exp(best.x)
    return found, float(best.fun)


def moderated_variances(variances: np.ndarray, freedom: float) -> np.ndarray:
    """Shrink variances (n,) of so many degrees of freedom to their common scale, by empirical Bayes (Smyth 2004)."""
    positive = variances[variances > 0]
    if len(positive) < 2:
        return np.ones_like(variances)
    z = np.log(positive)
    spread = z.var(ddof=1) - polygamma(1, freedom / 2)
    e = z.mean() - digamma(freedom / 2) + np.log(freedom / 2)
    if spread <= 0:  # no more than chance
        return np.full_like(variances, np.exp(e))
    prior = 2 * brentq(lambda x: polygamma(1, x) - spread, 1e-6, 1e8)
    common = np.exp(e + digamma(prior / 2) - np.log(prior / 2))
    return (prior * common + freedom * variances) / (prior + freedom)


def few_levels(codes: np.ndarray, most: int) -> np.ndarray:
    """Rows (n,) of combinations (codes, (n, n_keys)), at most so many where it can be: some levels of each key.

    Levels of the key that has the most of them left are dropped first, up to half of them, so that all keys keep some;
    the others are evenly spaced.
    """
    rows = np.arange(len(codes))
    while len(rows) > most:
        levels = [np.unique(column) for column in codes[rows].T]
        k = int(np.argmax([len(of_key) for of_key in levels]))
        n_kept = max(2, int(len(levels[k]) * max(0.5, most / len(rows))))
        if n_kept == len(levels[k]):
            break
        kept = levels[k][np.linspace(0, len(levels[k]) - 1, n_kept).round().astype(int)]
        rows = rows[np.isin(codes[rows, k], kept)]
    return rows
