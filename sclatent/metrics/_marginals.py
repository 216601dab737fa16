"""Two samples of cells compared gene by gene, by pairs of genes, and by library size."""

from __future__ import annotations

import numpy as np
from scipy.stats import wasserstein_distance

from ._change import pearson

MOST_VARIABLE = 200  # genes whose correlations are compared at most


def concordance(x: np.ndarray, y: np.ndarray) -> float:
    r"""Lin's concordance correlation coefficient (Lin 1989, equation 2): how close points (x, y) are to the diagonal.

    .. math:: \frac{2\,\mathrm{cov}(x, y)}{\mathrm{var}\,x + \mathrm{var}\,y + (\bar x - \bar y)^2}

    Unlike Pearson's coefficient it falls where y is x shifted or scaled.

    Parameters
    ----------
    x, y
        Values, (n,) each.

    Returns
    -------
    float
        From -1 to 1; 1 only where x and y are the same, 0 where one of them is constant and the other not the same.

    Examples
    --------
    Unlike Pearson's coefficient, which is 1 here, it sees that y is x and 1:

    >>> import numpy as np
    >>> from sclatent.metrics import concordance
    >>> x = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    >>> concordance(x, x), concordance(x, x + 1)
    (1.0, 0.8)
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    spread = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    if spread == 0:
        return 1.0
    return float(2 * ((x - x.mean()) * (y - y.mean())).mean() / spread)


def gene_agreement(real: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    """Agreement, over genes, of means, variances and fractions of zeros.

    Parameters
    ----------
    real, generated
        Log-normalised cells, (n, genes) and (m, genes).

    Returns
    -------
    dict[str, float]
        :func:`concordance` as ``gene_mean``, ``gene_variance`` and ``gene_zeros``, and the Pearson correlation of the
        same as ``gene_mean_pearson`` and so on.
    """
    statistics = {
        "gene_mean": lambda v: v.mean(axis=0, dtype=np.float64),
        "gene_variance": lambda v: v.var(axis=0, dtype=np.float64, ddof=1),
        "gene_zeros": lambda v: (v == 0).mean(axis=0),
    }
    result = {}
    for name, statistic in statistics.items():
        x, y = statistic(real), statistic(generated)
        result[name] = concordance(x, y)
        result[f"{name}_pearson"] = pearson(x, y)
    return result


def most_variable(values: np.ndarray, n_genes: int = MOST_VARIABLE) -> np.ndarray:
    """Positions of the genes with the largest variance in log-normalised cells (cells, genes), in their order."""
    variances = values.var(axis=0, dtype=np.float64)
    return np.sort(np.argsort(-variances, kind="stable")[:n_genes])


def correlation_agreement(real: np.ndarray, generated: np.ndarray) -> float:
    """Pearson correlation, over pairs of genes, of the correlation of the two genes in one and in the other sample.

    Parameters
    ----------
    real, generated
        Log-normalised cells, (n, genes) and (m, genes), of few genes such as :func:`most_variable` ones.

    Returns
    -------
    float
        From -1 to 1. A gene that does not vary is taken for correlated with none.
    """
    if real.shape[1] < 3:
        return float("nan")  # correlations of one pair only
    pairs = np.triu_indices(real.shape[1], k=1)
    return pearson(_correlations(real)[pairs], _correlations(generated)[pairs])


def library_size_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Wasserstein distance (order 1) between log10 library sizes, in tenfolds; a cell without counts has size 1.

    Parameters
    ----------
    real, generated
        Counts of every cell, (n,) and (m,).
    """
    return float(wasserstein_distance(*(np.log10(np.maximum(sizes, 1)) for sizes in (real, generated))))


def _correlations(values: np.ndarray) -> np.ndarray:
    """Correlation of all genes with all, (genes, genes)."""
    centred = values - values.mean(axis=0, dtype=np.float64)
    centred[:, np.ptp(values, axis=0) == 0] = 0.0
    norm = np.sqrt((centred**2).sum(axis=0))
    norm[norm == 0] = 1.0
    return (centred / norm).T @ (centred / norm)
