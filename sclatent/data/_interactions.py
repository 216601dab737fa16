"""What combinations of conditions have beyond the sum of their effects, and how an unseen one is foretold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, islice, product

import numpy as np
from scipy import sparse
from sklearn.linear_model import RidgeCV

from sclatent.nn import OPEN

SHRINKAGE = 10  # a combination of so many cells is believed half; with fewer it teaches no other combination
MIN_PAIRS = 3  # contexts from which a change is learned
MAX_COMBINATIONS = 100_000
MAX_UNSEEN = 1_000  # profiles that are foretold: each is as long as there are genes


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
            unseen = list(_foretell(seen, means, alike, counts, levels))
            found = np.array([*map(tuple, seen), *(row for row, _, _ in unseen)])
            additive = sum(effects[k][found[:, j]] for j, k in enumerate(keys))
            trust = np.concatenate([counts / (counts + SHRINKAGE), np.ones(len(unseen))])
            beyond.append(trust[:, None] * (np.stack([*means, *(mean for _, _, mean in unseen)]) - additive))
            full = np.full((len(found), n_keys), OPEN, dtype=np.int64)
            full[:, keys] = found
            rows.append(full)
    return np.concatenate(rows), np.concatenate(beyond)


def _means(group: np.ndarray, values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted mean of the values (n, dim) of each group, (n_groups, dim); groups are numbered."""
    member = sparse.csr_matrix((weight, (group, np.arange(len(group)))))
    return (member @ values) / np.bincount(group, weight)[:, None]


def unseen_profiles(
    codes: np.ndarray, n_cells: np.ndarray, profiles: np.ndarray, n_levels: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Foretell the mean expression of combinations that were not seen, gene by gene.

    The rule is that of :func:`interaction_effects`: types that are alike answer alike, where that was seen to be so. Of
    more than 1,000 combinations none is foretold.

    Parameters
    ----------
    codes
        Condition codes of the combinations that were seen, (n_seen, n_keys).
    n_cells
        Number of cells of each, (n_seen,).
    profiles
        Mean expression of each, (n_seen, n_genes) (:func:`mean_profiles`).
    n_levels
        Number of levels of each key.

    Returns
    -------
    tuple[np.ndarray, np.ndarray, np.ndarray]
        Codes (n_unseen, n_keys); for each the row of ``codes`` with its neighbour, which differs from it in one key
        only, (n_unseen,); and the profiles, (n_unseen, n_genes).

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import unseen_profiles
    >>> codes = np.array([(cell_type, condition) for cell_type in range(6) for condition in range(2)])[:-1]
    >>> profiles = np.array([[cell_type * (1.0 + condition)] for cell_type, condition in codes])  # treatment doubles it
    >>> unseen, neighbour, foretold = unseen_profiles(codes, np.full(11, 50), profiles, [6, 2])
    >>> unseen.tolist(), codes[neighbour].tolist(), foretold.round(1).tolist()
    ([[5, 1]], [[5, 0]], [[10.0]])
    """
    found = list(islice(_foretell(codes, profiles, profiles, n_cells, n_levels), MAX_UNSEEN + 1))
    if len(found) > MAX_UNSEEN:
        found = []
    unseen = np.array([row for row, _, _ in found], dtype=np.int64).reshape(len(found), codes.shape[1])
    neighbours = np.array([neighbour for _, neighbour, _ in found], dtype=np.int64)
    return unseen, neighbours, np.array([profile for _, _, profile in found]).reshape(len(found), profiles.shape[1])


def _foretell(
    seen: np.ndarray, means: np.ndarray, profiles: np.ndarray, counts: np.ndarray, levels: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], int, np.ndarray]]:
    """Yield combinations that were not seen and have a neighbour to learn from: codes, row of the neighbour, mean."""
    if np.prod(levels, dtype=float) > MAX_COMBINATIONS:
        return
    place = {tuple(row): i for i, row in enumerate(seen.tolist())}
    # for each key, the contexts of every level that have cells enough
    contexts: list[list[set[tuple[int, ...]]]] = [[set() for _ in range(n)] for n in levels]
    for row in seen[counts >= SHRINKAGE].tolist():
        for k, level in enumerate(row):
            contexts[k][level].add((*row[:k], *row[k + 1 :]))

    models: dict[tuple[int, int, int], ChangeRidge] = {}
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
            models[best] = ChangeRidge(profiles[at], means[to] - means[at], weight)
        if not models[best].is_better_than_mean:
            continue
        neighbour = place[(*row[:k], other, *row[k + 1 :])]
        yield row, neighbour, means[neighbour] + models[best](profiles[neighbour])


class ChangeRidge:
    """Ridge regression of changes from one level to another on profiles at the one, over contexts.

    The penalty is chosen by leaving out one context after another.

    Parameters
    ----------
    profiles
        Where each context is, (contexts, n).
    changes
        How it changes, (contexts, dim).
    weight
        How much each context counts, (contexts,); by default all the same.

    Attributes
    ----------
    is_better_than_mean
        Whether contexts that are left out are foretold better than by the mean change of the others, by a standard
        error.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import ChangeRidge
    >>> profiles = np.arange(5.0)[:, None]
    >>> change = ChangeRidge(profiles, 2 * profiles)
    >>> change(np.array([6.0])).round(1).tolist(), bool(change.is_better_than_mean)
    ([12.0], True)
    """

    def __init__(self, profiles: np.ndarray, changes: np.ndarray, weight: np.ndarray | None = None) -> None:
        weight = np.ones(len(profiles)) if weight is None else weight
        weight = weight / weight.mean()
        self.centre = np.average(profiles, axis=0, weights=weight)
        distance = np.square(profiles - self.centre).sum(axis=1)
        self.scale = np.sqrt(np.average(distance, weights=weight)) or 1.0  # contexts may all be the same
        # contexts span few directions, however many genes there are, and the regression knows no others
        _, _, self.directions = np.linalg.svd(profiles - self.centre, full_matrices=False)
        _, _, self.answers = np.linalg.svd(changes, full_matrices=False)
        changes = changes @ self.answers.T
        alphas = np.logspace(-3, 3, 13)
        self.ridge = RidgeCV(alphas=alphas, store_cv_results=True)
        self.ridge.fit(self._features(profiles), changes, sample_weight=weight)
        # squared errors of each context when it is left out, weighted; those of the mean change by the same rule
        errors = self.ridge.cv_results_[..., alphas == self.ridge.alpha_].sum(axis=(1, 2))
        mean_of_others = (weight @ changes - weight[:, None] * changes) / (weight.sum() - weight)[:, None]
        gain = weight * np.square(changes - mean_of_others).sum(axis=1) - errors
        self.is_better_than_mean = gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain))

    def _features(self, profiles: np.ndarray) -> np.ndarray:
        """Where profiles (contexts, n) lie along the directions, (contexts, n_directions)."""
        return (profiles - self.centre) @ self.directions.T / self.scale

    def __call__(self, profile: np.ndarray) -> np.ndarray:
        """Change of a context with this profile, (dim,)."""
        return self.ridge.predict(self._features(profile[None])).ravel() @ self.answers
