"""Two samples of cells compared by who is next to whom.

Every function takes two arrays (cells, dimensions) with the same dimensions. Distances are Euclidean, and no more than
``CHUNK`` rows of their matrix stand in memory together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.spatial.distance import cdist

from ._distances import CHUNK, check_samples


def nearest_neighbor_accuracy(x: np.ndarray, y: np.ndarray) -> float:
    """How often the nearest other cell comes from the same sample (Lopez-Paz and Oquab 2017, section 2).

    Parameters
    ----------
    x, y
        Cells, (n, d) each: as many in one as in the other.

    Returns
    -------
    float
        Leave-one-out accuracy of a 1-nearest-neighbour classifier of the two samples: 0.5 for samples of one
        distribution, 1 where they can be told apart, and below 0.5 where one is a copy of the other.

    Raises
    ------
    ValueError
        If one sample has more cells than the other.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.metrics import nearest_neighbor_accuracy
    >>> x, y = np.random.default_rng(0).standard_normal((2, 200, 4))  # two samples of one distribution
    >>> 0.4 < nearest_neighbor_accuracy(x, y) < 0.6
    True
    >>> nearest_neighbor_accuracy(x, y + 10), nearest_neighbor_accuracy(x, x)  # far away; copies
    (1.0, 0.0)
    """
    x, y = check_samples(x, y)
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} cells and y {len(y)}: as many were expected, or 0.5 would not mean the same.")
    both = np.concatenate([x, y])
    from_y = np.arange(len(both)) >= len(x)
    nearest = np.concatenate([squared.argmin(axis=1) for squared in _to_others(both)])
    return float((from_y[nearest] == from_y).mean())


def precision_recall(real: np.ndarray, generated: np.ndarray, k: int = 5) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, equations 1 and 2).

    The ball of a cell reaches to its k-th nearest other cell of the same sample.

    Parameters
    ----------
    real, generated
        Cells, (n, d) and (m, d).
    k
        Neighbours; less where there are not so many other cells.

    Returns
    -------
    tuple[float, float]
        Share of the generated cells that lie in the ball of a real cell, and share of the real cells that lie in the
        ball of a generated one.

    Examples
    --------
    Generated cells that keep to the middle are all like real ones, and most real ones are missing among them:

    >>> import numpy as np
    >>> from sclatent.metrics import precision_recall
    >>> real = np.random.default_rng(0).standard_normal((200, 4))
    >>> precision, recall = precision_recall(real, 0.2 * real)
    >>> precision, recall < 0.3
    (1.0, True)
    """
    real, generated = check_samples(real, generated)
    of_real, of_generated = _squared_radii(real, k), _squared_radii(generated, k)
    precision = np.concatenate([(d <= of_real).any(axis=1) for d in _between(generated, real)])
    recall = np.concatenate([(d <= of_generated).any(axis=1) for d in _between(real, generated)])
    return float(precision.mean()), float(recall.mean())


def density_coverage(real: np.ndarray, generated: np.ndarray, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, equations 4 and 5).

    Only real cells have balls, so outliers do less harm.

    Parameters
    ----------
    real, generated, k
        As of :func:`precision_recall`.

    Returns
    -------
    tuple[float, float]
        In how many balls of real cells a generated cell lies, over k (around 1 for samples of one distribution; more
        where generated cells keep to where real ones are dense), and share of the real cells with a generated one in
        their ball.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.metrics import density_coverage
    >>> real, generated = np.random.default_rng(0).standard_normal((2, 200, 4))  # of one distribution
    >>> density, coverage = density_coverage(real, generated)
    >>> 0.8 < density < 1.2, coverage > 0.9
    (True, True)
    >>> density_coverage(real, generated + 100)
    (0.0, 0.0)
    """
    real, generated = check_samples(real, generated)
    radii = _squared_radii(real, k)
    inside, covered = 0, np.zeros(len(real), dtype=bool)
    for squared in _between(generated, real):
        is_inside = squared <= radii
        inside += int(is_inside.sum())
        covered |= is_inside.any(axis=0)
    return inside / (min(k, len(real) - 1) * len(generated)), float(covered.mean())


def _between(x: np.ndarray, y: np.ndarray) -> Iterator[np.ndarray]:
    """Squared distances, some rows of x at a time."""
    for start in range(0, len(x), CHUNK):
        yield cdist(x[start : start + CHUNK], y, "sqeuclidean")


def _to_others(x: np.ndarray) -> Iterator[np.ndarray]:
    """Squared distances within a sample, some rows at a time; infinite from a cell to itself."""
    start = 0
    for squared in _between(x, x):
        rows = np.arange(len(squared))
        squared[rows, start + rows] = np.inf
        start += len(squared)
        yield squared


def _squared_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of every cell to its k-th nearest other cell, (cells,)."""
    if k < 1:
        raise ValueError(f"k={k} is not possible: at least 1 neighbour is needed.")
    k = min(k, len(x) - 1)
    return np.concatenate([np.partition(squared, k - 1, axis=1)[:, k - 1] for squared in _to_others(x)])
