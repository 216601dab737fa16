"""Additive models over conditions: what carries an effect to combinations that were never seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse


def common_slope(codes: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Slope of y on x within the combinations of conditions, one for all of them (analysis of covariance).

    Parameters
    ----------
    codes
        Condition codes, (cells, n_keys).
    x
        Covariate, (cells,).
    y
        What is explained, (cells, dim).

    Returns
    -------
    np.ndarray
        The slope (dim,); 0 if the covariate does not vary within any combination.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import common_slope
    >>> codes = np.array([[0], [0], [1], [1]])  # two groups of two cells
    >>> x, y = np.array([0.0, 1.0, 0.0, 1.0]), np.array([[0.0], [2.0], [10.0], [12.0]])
    >>> common_slope(codes, x, y).tolist()  # within both of them
    [2.0]
    """
    _, index, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    index = index.ravel()
    x = x - (np.bincount(index, x) / sizes)[index]
    square = x @ x
    return (x @ y) / square if square > 1e-6 * len(x) else np.zeros(y.shape[1])


def additive_effects(
    codes: np.ndarray, values: np.ndarray, n_levels: Sequence[int], ridge: float = 1e-3
) -> tuple[np.ndarray, list[np.ndarray]]:
    r"""Fit :math:`y = \mu + \sum_k \delta_k(c_k)` to the means of the combinations that were seen.

    Every combination counts by the square root of its number of cells: a middle way between cells, where one large
    group decides, and combinations, where a handful of cells weighs as much as a thousand.

    Parameters
    ----------
    codes
        Condition codes, (cells, n_keys).
    values
        What is explained, (cells, dim).
    n_levels
        Number of levels of each key.
    ridge
        Penalty on the effects, relative to the total weight: small, to settle what the data leave open.

    Returns
    -------
    tuple[np.ndarray, list[np.ndarray]]
        The constant (dim,) and the effects of each key, (n_levels, dim), whose mean over the training cells is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import additive_effects
    >>> codes = np.array([[0, 0], [0, 1], [1, 0]])  # cell types and conditions: (1, 1) was not seen
    >>> values = np.array([[0.0], [2.0], [5.0]])
    >>> constant, (of_type, of_condition) = additive_effects(codes, values, [2, 2], ridge=1e-9)
    >>> round(float((constant + of_type[1] + of_condition[1]).item()), 3)  # 5 + 2, as in the other type
    7.0
    """
    combinations, index, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    index = index.ravel()
    member = sparse.csr_matrix((np.ones(len(codes)), (index, np.arange(len(codes)))))
    means = (member @ values) / sizes[:, None]

    starts = np.concatenate([[0], np.cumsum(n_levels)]).astype(int)
    design = np.zeros((len(combinations), starts[-1] + 1))
    design[:, -1] = 1
    for k in range(codes.shape[1]):
        design[np.arange(len(combinations)), starts[k] + combinations[:, k]] = 1
    weight = np.sqrt(sizes)
    weight = weight / weight.sum()
    penalty = np.full(design.shape[1], ridge)
    penalty[-1] = 0
    normal = design.T @ (weight[:, None] * design) + np.diag(penalty)
    solution = np.linalg.solve(normal, design.T @ (weight[:, None] * means))

    constant, effects = solution[-1], []
    for k, n in enumerate(n_levels):
        effect = solution[starts[k] : starts[k] + n]
        centre = np.bincount(codes[:, k], minlength=n) @ effect / len(codes)
        constant = constant + centre
        effects.append(effect - centre)
    return constant, effects
