"""Distances between two samples of cells in a space of few dimensions, such as principal components.

Every function takes two arrays (cells, dimensions) with the same dimensions and returns a number that is 0 in
expectation, or (the optimal-transport distances, the Frechet distance) goes to 0 with the number of cells, where the
two come from one distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import ot
from scipy.spatial.distance import cdist, pdist

CHUNK = 1024  # rows of a distance matrix that stand in memory together
MEDIAN_CELLS = 2000  # the median of the distances between more cells than these is estimated from these many
SINKHORN_REG = 0.5  # times the median squared distance
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # bandwidths of MMD, times the median squared distance


def wasserstein(x: np.ndarray, y: np.ndarray, p: float = 2) -> float:
    r"""Wasserstein distance, by exact optimal transport.

    .. math:: W_p(x, y) = \Big(\min_\pi \sum_{ij} \pi_{ij} \lVert x_i - y_j \rVert^p\Big)^{1/p}

    with the transport plan :math:`\pi` of POT's network simplex, every cell having the same weight. It is biased
    upwards, the more the fewer the cells: compare only what has the same numbers of cells. The matrix of all
    distances stands in memory.

    Parameters
    ----------
    x, y
        Cells, (n, d) and (m, d).
    p
        Order; 1 or 2 as a rule.

    Returns
    -------
    float
        The distance, in the units of the space.

    Examples
    --------
    Cells that are moved have as far to go as they were moved, here by 1 in each of four dimensions:

    >>> import numpy as np
    >>> from sclatent.metrics import wasserstein
    >>> x = np.random.default_rng(0).standard_normal((100, 4))
    >>> round(wasserstein(x, x + 1), 6)
    2.0
    >>> other = np.random.default_rng(1).standard_normal((100, 4))  # of the same distribution: not 0
    >>> 0.5 < wasserstein(x, other) < 2
    True
    """
    x, y = check_samples(x, y)
    cost = cdist(x, y) if p == 1 else cdist(x, y) ** p
    cost = ot.emd2([], [], cost, numItermax=10_000_000)
    return float(max(cost, 0.0) ** (1 / p))


def sinkhorn_divergence(x: np.ndarray, y: np.ndarray, reg: float | None = None) -> float:
    r"""Debiased entropic optimal transport (Genevay et al. 2018, equation 4; Feydy et al. 2019, equation 3).

    .. math:: S_\epsilon(x, y) = \mathrm{OT}_\epsilon(x, y)
              - \tfrac12 \mathrm{OT}_\epsilon(x, x) - \tfrac12 \mathrm{OT}_\epsilon(y, y)

    with the squared Euclidean distance as the cost and :math:`\mathrm{OT}_\epsilon` the minimum of cost
    :math:`+\ \epsilon` times the Kullback-Leibler divergence of the plan from the product of the weights.

    Parameters
    ----------
    x, y
        Cells, (n, d) and (m, d).
    reg
        :math:`\epsilon`, in squared units of the space; by default 1/2 of :func:`median_squared_distance`. The smaller,
        the nearer to :math:`W_2^2`, and the more it shares the bias of that. To compare several samples with one, give
        the same to all.

    Returns
    -------
    float
        The divergence, in squared units of the space.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.metrics import sinkhorn_divergence
    >>> x = np.random.default_rng(0).standard_normal((100, 4))
    >>> round(sinkhorn_divergence(x, x), 3), round(sinkhorn_divergence(x, x + 1), 3)
    (0.0, 4.0)
    """
    x, y = check_samples(x, y)
    reg = SINKHORN_REG * median_squared_distance(x, y) if reg is None else reg
    if reg <= 0:
        return 0.0  # all cells are the same one
    return max(_entropic_cost(x, y, reg) - (_entropic_cost(x, x, reg) + _entropic_cost(y, y, reg)) / 2, 0.0)


def _entropic_cost(x: np.ndarray, y: np.ndarray, reg: float) -> float:
    """Value of the dual problem, whose error is quadratic in that of the potentials: a loose stop is enough."""
    cost = cdist(x, y, "sqeuclidean")
    # exp(-cost / reg) must not vanish; iterations on logarithms take several times as long
    method = "sinkhorn" if cost.max() < 500 * reg else "sinkhorn_log"
    weights = [np.full(len(cells), 1 / len(cells)) for cells in (x, y)]
    with np.errstate(over="ignore"):  # POT exponentiates potentials that are not looked at
        log = ot.sinkhorn(*weights, cost, reg, method=method, stopThr=1e-3 / len(y) ** 0.5, log=True, warn=False)[1]
    u, v = (log["log_u"], log["log_v"]) if method == "sinkhorn_log" else (np.log(log["u"]), np.log(log["v"]))
    return float(reg * ((u + np.log(len(x))).mean() + (v + np.log(len(y))).mean()))


def median_squared_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Median squared Euclidean distance between different cells of both samples: the scale of kernels and of ``reg``.

    Above 2,000 cells, evenly spaced ones of each sample stand for all. Where most cells are the same one, so that the
    median is 0, it is the mean.

    Parameters
    ----------
    x, y
        Cells, (n, d) and (m, d).

    Returns
    -------
    float
        The median, in squared units of the space.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.metrics import median_squared_distance
    >>> median_squared_distance(np.array([[0.0], [1.0]]), np.array([[3.0], [3.0]]))  # of 0, 1, 4, 4, 9 and 9
    4.0
    """
    x, y = check_samples(x, y)
    step = -(-(len(x) + len(y)) // MEDIAN_CELLS)
    squared = pdist(np.concatenate([x[::step], y[::step]]), "sqeuclidean")
    return float(np.median(squared) or squared.mean())


def mmd2(x: np.ndarray, y: np.ndarray, bandwidths: Sequence[float] | None = None) -> float:
    r"""Squared maximum mean discrepancy, unbiased (Gretton et al. 2012, equation 3).

    .. math:: \frac{1}{n(n-1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{m(m-1)} \sum_{i \ne j} k(y_i, y_j)
              - \frac{2}{nm} \sum_{ij} k(x_i, y_j)

    where :math:`k(a, b)` is the mean over bandwidths of :math:`\exp(-\lVert a - b \rVert^2 / 2\sigma^2)`.

    Parameters
    ----------
    x, y
        Cells, (n, d) and (m, d).
    bandwidths
        :math:`\sigma^2` of each kernel, in squared units of the space; by default 1/4, 1/2, 1, 2 and 4 times
        :func:`median_squared_distance`. To compare several samples with one, give the same to all.

    Returns
    -------
    float
        The discrepancy, without units, at most 2; around 0 and as often below it for samples of one distribution.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.metrics import median_squared_distance, mmd2
    >>> x, y = np.random.default_rng(0).standard_normal((2, 200, 4))  # two samples of one distribution
    >>> bandwidths = [median_squared_distance(x, y)]
    >>> round(abs(mmd2(x, y, bandwidths)), 1), round(mmd2(x, y + 1, bandwidths), 1)
    (0.0, 0.3)
    """
    x, y = check_samples(x, y)
    if bandwidths is None:
        bandwidths = [scale * median_squared_distance(x, y) for scale in SCALES]
    if min(bandwidths) <= 0:
        return 0.0  # all cells are the same one

    def kernel(squared: np.ndarray) -> np.ndarray:
        return sum((np.exp(squared / (-2 * b)) for b in bandwidths), start=np.zeros_like(squared)) / len(bandwidths)

    within = _mean_of_pairs(x, x, kernel) + _mean_of_pairs(y, y, kernel)
    return within - 2 * _mean_of_pairs(x, y, kernel)


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    r"""Energy distance, unbiased (Szekely and Rizzo 2013, equation 2.1, with U-statistics).

    .. math:: 2\,\mathrm{E}\lVert X - Y \rVert - \mathrm{E}\lVert X - X' \rVert - \mathrm{E}\lVert Y - Y' \rVert

    The means within a sample leave out the distance of a cell from itself. Others take the square root of this,
    include the cells themselves, or square the Euclidean distances: those are other numbers.

    Parameters
    ----------
    x, y
        Cells, (n, d) and (m, d).

    Returns
    -------
    float
        The distance, in units of the space; around 0 and as often below it for samples of one distribution.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.metrics import energy_distance
    >>> x, y = np.random.default_rng(0).standard_normal((2, 200, 4))  # two samples of one distribution
    >>> round(abs(energy_distance(x, y)), 1), round(energy_distance(x, y + 1), 1)
    (0.0, 1.3)
    """
    x, y = check_samples(x, y)
    between = _mean_of_pairs(x, y, np.sqrt)
    return 2 * between - _mean_of_pairs(x, x, np.sqrt) - _mean_of_pairs(y, y, np.sqrt)


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    r"""Squared Frechet distance of Gaussians with the moments of the samples (Heusel et al. 2017, equation 6).

    .. math:: \lVert \mu - \mu' \rVert^2 + \mathrm{tr}\big(\Sigma + \Sigma' - 2 (\Sigma \Sigma')^{1/2}\big)

    The trace of the root is the sum of the singular values of :math:`\Sigma^{1/2} \Sigma'^{1/2}`, which needs no root
    of a matrix that is not symmetric and holds for singular covariances (fewer cells than dimensions). It is biased
    upwards, the more the fewer the cells: compare only what has the same numbers of cells.

    Parameters
    ----------
    x, y
        Cells, (n, d) and (m, d).

    Returns
    -------
    float
        The distance, in squared units of the space.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.metrics import frechet_distance
    >>> x = np.random.default_rng(0).standard_normal((100, 4))
    >>> round(frechet_distance(x, x + 1), 6)  # the squared distance of the means
    4.0
    """
    x, y = check_samples(x, y)

    def root(cells: np.ndarray) -> tuple[np.ndarray, float]:
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(cells, rowvar=False)))
        values = values.clip(min=0)  # rounding
        return (vectors * np.sqrt(values)).T, values.sum()

    (root_x, trace_x), (root_y, trace_y) = root(x), root(y)
    shared = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
    shift = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum()
    return float(shift + max(trace_x + trace_y - 2 * shared, 0.0))


def check_samples(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells as float64, or a ``ValueError``."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"x and y have shapes {x.shape} and {y.shape}: (cells, dimensions) with at least 2 cells in each and the "
            "same dimensions were expected."
        )
    for name, cells in (("x", x), ("y", y)):
        if not np.isfinite(cells).all():
            raise ValueError(f"{name} has values that are NaN or infinite: remove those cells or replace them.")
    return x, y


def _mean_of_pairs(x: np.ndarray, y: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> float:
    """Mean of a function of the squared distance over all pairs, or over pairs of different cells if x is y."""
    total = 0.0
    for start in range(0, len(x), CHUNK):
        values = function(cdist(x[start : start + CHUNK], y, "sqeuclidean"))
        if x is y:
            rows = np.arange(len(values))
            values[rows, start + rows] = 0.0
        total += float(values.sum())
    return total / (len(x) * (len(y) - (x is y)))
