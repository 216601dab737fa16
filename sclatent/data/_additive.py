"""Additive models over conditions: what carries an effect to combinations that were never seen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu


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
    member = sparse.csr_matrix((np.ones(len(codes)), (index.ravel(), np.arange(len(codes)))))
    means = (member @ values) / sizes[:, None]
    weight = np.sqrt(sizes)
    constant, effects = effects_of_levels(combinations, means, weight / weight.sum(), n_levels, ridge)
    for k, n in enumerate(n_levels):
        centre = np.bincount(codes[:, k], minlength=n) @ effects[k] / len(codes)
        constant, effects[k] = constant + centre, effects[k] - centre
    return constant, effects


def effects_of_levels(
    codes: np.ndarray, values: np.ndarray, weight: np.ndarray, n_levels: Sequence[int], ridge: float
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Constant (dim,) and effects of the levels of each key, (n_levels, dim), by weighted ridge regression.

    The normal equations are sparse: each combination (codes, (n, n_keys)) has one level of each key.
    """
    starts = np.concatenate([[0], np.cumsum(n_levels)]).astype(int)
    n, n_keys = codes.shape
    columns = np.concatenate([codes + starts[:-1], np.full((n, 1), starts[-1])], axis=1)  # the constant comes last
    row_ends = np.arange(n + 1) * (n_keys + 1)
    design = sparse.csr_matrix((np.ones(columns.size), columns.ravel(), row_ends), shape=(n, starts[-1] + 1))
    weighted = sparse.diags(weight) @ design
    penalty = np.append(np.full(starts[-1], ridge), 0.0)
    normal = sparse.csc_matrix(design.T @ weighted + sparse.diags(penalty))
    # symmetric and positive definite: no pivoting
    factors = splu(normal, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    solution = factors.solve(weighted.T @ values)
    return solution[-1], [solution[start:end] for start, end in pairwise(starts)]
