"""Interactions of conditions: what combinations have in addition to main effects; unseen ones are predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from scipy import sparse
from sklearn.linear_model import RidgeCV

from sclatent.nn import OPEN

from ._additive import effects_of_levels
from ._pools import CellPools

SHRINKAGE = 10  # a combination of so many cells is shrunk by half; one of fewer teaches no other combination
MIN_PAIRS = 3  # contexts from which a change is learned
MAX_CONTEXTS = 200  # of more contexts so many are learned from, evenly chosen: a regression knows enough by then
MAX_COMBINATIONS = 100_000  # of the same keys; of more, only those that were seen are listed
MAX_UNSEEN = 1_000  # profiles that are predicted: each is as long as there are genes


def interaction_effects(
    codes: np.ndarray,
    values: np.ndarray,
    n_levels: Sequence[int],
    effects: Sequence[np.ndarray],
    profiles: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Fit what the mean of a combination has beyond an additive model, for all combinations of two keys or more.

    A combination of n cells that was seen has the distance of its mean from the sum of the effects, times
    :math:`n / (n + 10)`. One that was not seen is predicted from its neighbour, the combination that differs from it in
    one key only: how far the one lies from the other is learned by ridge regression on the profile of the neighbour,
    over all contexts (levels of the other keys) in which both were seen. So types of cells that are alike answer a
    treatment alike. A context counts by the square root of its cells, as in the additive model, and the penalty is
    chosen by leaving out one context after another. Of all neighbours the one that shares most contexts is taken. This
    takes three contexts, and that those that are left out are predicted better than by the mean change of the others,
    by a standard error at least: else being alike tells nothing.

    Where that is so, a combination of three keys or more has the sum of what its pairs of levels have beyond their
    effects, fitted together to all combinations that were seen: what a type of one donor answers is known from the same
    type in others. And for one of two keys the additive model stands.

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
        Combinations (n_combinations, n_keys), -1 where a key is open, and what each has in addition,
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
    predicted_pairs = {}
    for size in range(2, n_keys + 1):
        for keys in combinations(range(n_keys), size):
            levels = [n_levels[k] for k in keys]
            seen, part_of = np.unique(full_combinations[:, keys], axis=0, return_inverse=True)
            counts = np.bincount(part_of.ravel(), n_cells)
            means = _means(part_of.ravel(), full_means, n_cells)
            alike = means if profiles is None else profiles
            if profiles is not None and size < n_keys:
                alike = _means(part_of.ravel(), profiles, n_cells)
            unseen, _, predicted = _predict(seen, means, alike, counts, levels)
            additive = [sum(effects[k][c[:, j]] for j, k in enumerate(keys)) for c in (seen, unseen)]
            own, predicted = means - additive[0], predicted - additive[1]
            found, entries = [seen, unseen], [(counts / (counts + SHRINKAGE))[:, None] * own, predicted]
            if size == 2:
                predicted_pairs[keys] = unseen, predicted
            else:
                pairs = {(i, j): predicted_pairs[keys[i], keys[j]] for i, j in combinations(range(size), 2)}
                found.append(_not_among(np.concatenate(found), levels))
                entries.append(_sum_of_pairs(found[-1], seen, own, counts, levels, pairs))
            full = np.full((sum(map(len, found)), n_keys), OPEN, dtype=np.int64)
            full[:, keys] = np.concatenate(found)
            rows.append(full)
            beyond.extend(entries)
    return np.concatenate(rows), np.concatenate(beyond)


def _sum_of_pairs(
    codes: np.ndarray,
    seen: np.ndarray,
    beyond: np.ndarray,
    counts: np.ndarray,
    levels: Sequence[int],
    predicted: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """What pairs of levels have beyond their effects, added up for combinations (n, n_keys) that were not seen.

    All pairs are fitted together to what the combinations ``seen`` have ``beyond`` (n_seen, dim) the effects. A pair of
    n cells is shrunk by n / (n + 10), as a combination is; one that was not seen has what was ``predicted`` of it.
    """
    numbers, places = [], []
    for i, j in predicted:
        number, of_seen = np.unique(seen[:, i] * levels[j] + seen[:, j], return_inverse=True)
        pairs = predicted[i, j][0]
        place = np.full(levels[i] * levels[j], -1)
        place[number] = np.arange(len(number))
        place[pairs[:, 0] * levels[j] + pairs[:, 1]] = len(number) + np.arange(len(pairs))
        numbers.append(of_seen)
        places.append(place[codes[:, i] * levels[j] + codes[:, j]])
    n_pairs = [number.max() + 1 for number in numbers]
    total = counts.sum()
    constant, effects = effects_of_levels(np.stack(numbers, axis=1), beyond, counts / total, n_pairs, SHRINKAGE / total)
    result = np.tile(constant, (len(codes), 1))
    for effect, place, (_, of_predicted) in zip(effects, places, predicted.values(), strict=True):
        result += np.concatenate([effect, of_predicted, np.zeros_like(effect[:1])])[place]
    return result


def _means(group: np.ndarray, values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted mean of the values (n, dim) of each group, (n_groups, dim); groups are numbered."""
    member = sparse.csr_matrix((weight, (group, np.arange(len(group)))))
    return (member @ values) / np.bincount(group, weight)[:, None]


def unseen_profiles(
    codes: np.ndarray, n_cells: np.ndarray, profiles: np.ndarray, n_levels: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Predict the mean expression of combinations that were not seen, gene by gene.

    The rule is that of :func:`interaction_effects`: types that are alike answer alike, where that was seen to be so. Of
    more than 1,000 combinations none is predicted.

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
    tuple[np.ndarray, np.ndarray, np.ndarray, bool]
        Codes (n_unseen, n_keys); for each the row of ``codes`` with its neighbour, which differs from it in one key
        only, (n_unseen,); the profiles, (n_unseen, n_genes); and whether there are none of these because there would be
        more than 1,000.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import unseen_profiles
    >>> codes = np.array([(cell_type, condition) for cell_type in range(6) for condition in range(2)])[:-1]
    >>> profiles = np.array([[cell_type * (1.0 + condition)] for cell_type, condition in codes])  # treatment doubles it
    >>> unseen, neighbour, predicted, too_many = unseen_profiles(codes, np.full(11, 50), profiles, [6, 2])
    >>> unseen.tolist(), codes[neighbour].tolist(), predicted.round(1).tolist()
    ([[5, 1]], [[5, 0]], [[10.0]])
    """
    unseen, neighbours, predicted = _predict(codes, profiles, profiles, n_cells, n_levels, MAX_UNSEEN)
    too_many = len(unseen) > MAX_UNSEEN
    n = 0 if too_many else len(unseen)
    return unseen[:n], neighbours[:n], predicted[:n], too_many


def _predict(
    seen: np.ndarray,
    means: np.ndarray,
    profiles: np.ndarray,
    counts: np.ndarray,
    levels: Sequence[int],
    enough: float = np.inf,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Combinations that were not seen and have a neighbour to learn from: codes, row of the neighbour, mean.

    It stops where more than ``enough`` of them are found.
    """
    found, neighbours, predicted = [], [], [np.empty((0, means.shape[1]))]
    learn = np.flatnonzero(counts >= SHRINKAGE)
    for rows, near, at, to in _by_neighbour(seen, learn, _not_among(seen, levels), levels):
        model = ChangeRidge(profiles[at], means[to] - means[at], np.sqrt(1 / (1 / counts[at] + 1 / counts[to])))
        if model.is_better_than_mean:
            found.append(rows)
            neighbours.append(near)
            predicted.append(np.stack([means[i] + model(profiles[i]) for i in near]))
            if sum(map(len, found)) > enough:
                break
    codes = np.concatenate([np.empty((0, seen.shape[1]), dtype=np.int64), *found])
    neighbour = np.concatenate([np.empty(0, dtype=np.int64), *neighbours])
    order = np.argsort(_number(codes, levels))
    return codes[order], neighbour[order], np.concatenate(predicted)[order]


def _by_neighbour(
    seen: np.ndarray, learn: np.ndarray, unseen: np.ndarray, levels: Sequence[int]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Group combinations that were not seen by the step that leads to them from a neighbour, which was.

    A step goes from one level of one key to another; of all that lead to a combination the one is taken that was seen
    in most contexts (levels of the other keys), and in three at least. What is learned from are the rows ``learn`` of
    ``seen`` (n_seen, n_keys).

    Yields
    ------
    tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
        Combinations (n, n_keys), the rows of their neighbours among ``seen`` (n,), and rows of the contexts in which
        the step was seen, at its start and at its end, both (n_contexts,).
    """
    steps = np.full((len(unseen), 2), -1)  # key, and level of the neighbour
    most = np.full(len(unseen), MIN_PAIRS - 1)
    row_of: list[sparse.csr_matrix] = []  # for each key, levels x contexts: 1 + the row among ``seen``
    contexts = []
    for k, n in enumerate(levels):
        other_levels = np.delete(levels, k)
        context, asked = (_number(np.delete(codes, k, axis=1), other_levels) for codes in (seen[learn], unseen))
        shape = n, int(np.prod(other_levels))
        row_of.append(sparse.csr_matrix((1 + learn, (seen[learn, k], context)), shape=shape))
        contexts.append(asked)
        is_seen, has_context = row_of[k].astype(bool).astype(np.int64), sparse.csc_matrix(row_of[k])
        has_context.sort_indices()
        for level in np.unique(unseen[:, k]):
            shared = is_seen @ is_seen[[level]].toarray().ravel()  # contexts that each other level shares with it
            if shared.max() < MIN_PAIRS:
                continue
            for i in np.flatnonzero(unseen[:, k] == level):
                others = has_context.indices[has_context.indptr[asked[i]] : has_context.indptr[asked[i] + 1]]
                if len(others) and shared[others].max() > most[i]:
                    steps[i], most[i] = (k, others[shared[others].argmax()]), shared[others].max()
    possible = np.flatnonzero(steps[:, 0] >= 0)
    step_to = np.column_stack([steps, unseen[np.arange(len(unseen)), steps[:, 0]]])[possible]
    for (k, other, level), index in CellPools(step_to):
        rows = possible[index]
        near = row_of[k][other].toarray().ravel()[contexts[k][rows]] - 1
        at, to = (row_of[k][there].toarray().ravel() for there in (other, level))
        both = np.flatnonzero((at > 0) & (to > 0))
        if len(both) > MAX_CONTEXTS:
            both = both[np.linspace(0, len(both) - 1, MAX_CONTEXTS).astype(int)]
        yield unseen[rows], near, at[both] - 1, to[both] - 1


def _number(codes: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """Number of each combination (n, n_keys), (n,): its codes as digits."""
    number = np.zeros(len(codes), dtype=np.int64)
    for n, code in zip(levels, codes.T, strict=True):
        number = number * n + code
    return number


def _not_among(codes: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """All combinations of the levels but those given (n, n_keys); none, where there are too many."""
    n = np.prod(levels, dtype=float)
    if n > MAX_COMBINATIONS or n == len(codes):
        return codes[:0]
    others = np.setdiff1d(np.arange(int(n)), _number(codes, levels))
    return np.stack(np.unravel_index(others, levels), axis=1)


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
        Whether contexts that are left out are predicted better than by the mean change of the others, by a standard
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
