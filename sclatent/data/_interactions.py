"""What combinations of conditions have beyond the sum of their effects, and how an unseen one is foretold."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
from scipy import sparse
from sklearn.linear_model import RidgeCV

from sclatent.nn import OPEN

SHRINKAGE = 10  # a combination of so many cells is believed half; with fewer it teaches no other combination
MIN_PAIRS = 3  # contexts from which a change is learned
MAX_COMBINATIONS = 100_000


def interaction_effects(
    codes: np.ndarray,
    values: np.ndarray,
    n_levels: Sequence[int],
    effects: Sequence[np.ndarray],
    profiles: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Fit what the mean of a combination has beyond an additive model, for all combinations of two keys or more.

    A combination of n cells that was seen has the distance of its mean from the sum of the effects, times
    :math:`n / (n + 10)`. One that was not seen is foretold from its neighbour, the combination that differs from it in
    one key only: how far the one lies from the other is learned by ridge regression on the profile of the neighbour,
    over all contexts (levels of the other keys) in which both were seen. So types of cells that are alike answer a
    treatment alike. A context counts by the square root of its cells, as in the additive model, and the penalty is
    chosen by leaving out one context after another. Of all neighbours the one that shares most contexts is taken. The
    additive model stands where there are fewer than three, and where the contexts that are left out are not foretold
    better than by the mean change of the others, by a standard error at least: then being alike tells nothing.

    Parameters
    ----------
    codes
        Condition codes, (cells, n_keys).
    values
        What is explained, (cells, dim).
    n_levels
        Number of levels of each key.
    effects
        Effects of the additive model, (n_levels, dim) a key (:func:`additive_effects`).
    profiles
        In what combinations are alike: the mean expression of each that was seen, (n_seen, n_genes), in the order of
        ``np.unique(codes, axis=0)`` (:func:`mean_profiles`). By default the mean of ``values``.

    Returns
    -------
    tuple[np.ndarray, np.ndarray]
        Combinations (n_combinations, n_keys), -1 where a key is open, and what each has beyond the sum,
        (n_combinations, dim). Combinations that are not listed have nothing. Beyond 100,000 combinations of the same
        keys, only those that were seen are listed.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import additive_effects, interaction_effects
    >>> codes = np.repeat([[0, 0], [0, 1], [1, 0], [1, 1]], 90, axis=0)  # two types, two conditions, 90 cells of each
    >>> values = np.repeat([[-1.0], [1.0], [1.0], [-1.0]], 90, axis=0)  # which the types answer in opposite ways
    >>> constant, effects = additive_effects(codes, values, [2, 2])  # all of them 0
    >>> combinations, beyond = interaction_effects(codes, values - constant, [2, 2], effects)
    >>> combinations.tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    >>> beyond.round(3).ravel().tolist()  # times 90 / (90 + 10)
    [-0.9, 0.9, 0.9, -0.9]
    """
    n_keys, dim = codes.shape[1], values.shape[1]
    full_combinations, of_cell, n_cells = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    full_means = _means(of_cell.ravel(), values, np.ones(len(values)))
    rows, beyond = [np.empty((0, n_keys), dtype=np.int64)], [np.empty((0, dim))]
    for size in range(2, n_keys + 1):
        for keys in combinations(range(n_keys), size):
            seen, part_of = np.unique(full_combinations[:, keys], axis=0, return_inverse=True)
            counts = np.bincount(part_of.ravel(), n_cells)
            means = _means(part_of.ravel(), full_means, n_cells)
            alike = means if profiles is None else _means(part_of.ravel(), profiles, n_cells)
            levels = [n_levels[k] for k in keys]
            foretold, predicted = _foretell(seen, means, alike, counts, levels)
            found = np.concatenate([seen, foretold])
            additive = sum(effects[k][found[:, j]] for j, k in enumerate(keys))
            trust = np.concatenate([counts / (counts + SHRINKAGE), np.ones(len(foretold))])
            beyond.append(trust[:, None] * (np.concatenate([means, predicted]) - additive))
            full = np.full((len(found), n_keys), OPEN, dtype=np.int64)
            full[:, keys] = found
            rows.append(full)
    return np.concatenate(rows), np.concatenate(beyond)


def _means(group: np.ndarray, values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted mean of the values (n, dim) of each group, (n_groups, dim); groups are numbered."""
    member = sparse.csr_matrix((weight, (group, np.arange(len(group)))))
    return (member @ values) / np.bincount(group, weight)[:, None]


def _foretell(
    seen: np.ndarray, means: np.ndarray, profiles: np.ndarray, counts: np.ndarray, levels: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Predict the means of the combinations (n, n_keys) that were not seen and have a neighbour to learn from."""
    n_keys = seen.shape[1]
    nothing = np.empty((0, n_keys), dtype=np.int64), np.empty((0, means.shape[1]))
    if np.prod(levels, dtype=float) > MAX_COMBINATIONS:
        return nothing
    place = {tuple(row): i for i, row in enumerate(seen.tolist())}
    # for each key, the contexts of every level that have cells enough
    contexts: list[list[set[tuple[int, ...]]]] = [[set() for _ in range(n)] for n in levels]
    for row in seen[counts >= SHRINKAGE].tolist():
        for k, level in enumerate(row):
            contexts[k][level].add((*row[:k], *row[k + 1 :]))

    models: dict[tuple[int, int, int], _Change] = {}
    foretold, predicted = [], []
    for row in product(*map(range, levels)):
        if row in place:
            continue
        best, most = None, MIN_PAIRS - 1
        for k, level in enumerate(row):
            context = (*row[:k], *row[k + 1 :])
            for other in range(levels[k]):
                if context in contexts[k][other] and (n := len(contexts[k][level] & contexts[k][other])) > most:
                    best, most = (k, other, level), n
        if best is None:
            continue
        k, other, level = best
        if best not in models:
            shared = sorted(contexts[k][level] & contexts[k][other])
            at, to = ([place[(*context[:k], there, *context[k:])] for context in shared] for there in (other, level))
            weight = np.sqrt(1 / (1 / counts[at] + 1 / counts[to]))
            models[best] = _Change(profiles[at], means[to] - means[at], weight)
        if not models[best].is_better_than_mean:
            continue
        neighbour = place[(*row[:k], other, *row[k + 1 :])]
        foretold.append(row)
        predicted.append(means[neighbour] + models[best](profiles[neighbour]))
    return (np.array(foretold), np.stack(predicted)) if foretold else nothing


class _Change:
    """Ridge regression of changes from one level to another (contexts, dim) on profiles at the one (contexts, n)."""

    def __init__(self, profiles: np.ndarray, changes: np.ndarray, weight: np.ndarray) -> None:
        weight = weight / weight.mean()
        self.centre = np.average(profiles, axis=0, weights=weight)
        distance = np.square(profiles - self.centre).sum(axis=1)
        self.scale = np.sqrt(np.average(distance, weights=weight)) or 1.0  # contexts may all be the same
        alphas = np.logspace(-3, 3, 13)
        self.ridge = RidgeCV(alphas=alphas, store_cv_results=True)
        self.ridge.fit((profiles - self.centre) / self.scale, changes, sample_weight=weight)
        # squared errors of each context when it is left out, weighted; those of the mean change by the same rule
        errors = self.ridge.cv_results_[..., alphas == self.ridge.alpha_].sum(axis=(1, 2))
        mean_of_others = (weight @ changes - weight[:, None] * changes) / (weight.sum() - weight)[:, None]
        gain = weight * np.square(changes - mean_of_others).sum(axis=1) - errors
        self.is_better_than_mean = gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain))

    def __call__(self, profile: np.ndarray) -> np.ndarray:
        """Change of a context with this profile, (dim,)."""
        return self.ridge.predict((profile - self.centre)[None] / self.scale)[0]
