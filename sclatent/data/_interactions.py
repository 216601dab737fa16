"""What combinations of conditions have beyond the sum of their effects, and how an unseen one is foretold."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
from sklearn.linear_model import RidgeCV

from sclatent.nn import OPEN

SHRINKAGE = 10  # a combination of so many cells is believed half; with fewer it teaches no other combination
MIN_PAIRS = 3  # contexts from which a change is learned
MAX_COMBINATIONS = 100_000


def interaction_effects(
    codes: np.ndarray, values: np.ndarray, n_levels: Sequence[int], effects: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    r"""Fit what the mean of a combination has beyond an additive model, for all combinations of two keys or more.

    A combination of n cells that was seen has the distance of its mean from the sum of the effects, times
    :math:`n / (n + 10)`. One that was not seen is foretold from its neighbour, the combination that differs from it in
    one key only: how far the one lies from the other is learned by ridge regression on the mean of the neighbour, over
    all contexts (levels of the other keys) in which both were seen. So types of cells that are alike answer a treatment
    alike. A context counts by the square root of its cells, as in the additive model, and the penalty is chosen by
    leaving out one context after another. Of all neighbours the one that shares most contexts is taken; below three the
    additive model stands.

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
    rows, beyond = [np.empty((0, n_keys), dtype=np.int64)], [np.empty((0, dim))]
    for size in range(2, n_keys + 1):
        for keys in combinations(range(n_keys), size):
            seen, index, counts = np.unique(codes[:, keys], axis=0, return_inverse=True, return_counts=True)
            means = np.zeros((len(seen), dim))
            np.add.at(means, index.ravel(), values)
            means /= counts[:, None]
            levels = [n_levels[k] for k in keys]
            foretold, predicted = _foretell(seen, means, counts, levels)
            found = np.concatenate([seen, foretold])
            additive = sum(effects[k][found[:, j]] for j, k in enumerate(keys))
            trust = np.concatenate([counts / (counts + SHRINKAGE), np.ones(len(foretold))])
            beyond.append(trust[:, None] * (np.concatenate([means, predicted]) - additive))
            full = np.full((len(found), n_keys), OPEN, dtype=np.int64)
            full[:, keys] = found
            rows.append(full)
    return np.concatenate(rows), np.concatenate(beyond)


def _foretell(
    seen: np.ndarray, means: np.ndarray, counts: np.ndarray, levels: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Predict the means of the combinations (n, n_keys) that were not seen and have a neighbour to learn from."""
    n_keys = seen.shape[1]
    nothing = np.empty((0, n_keys), dtype=np.int64), np.empty((0, means.shape[1]))
    if np.prod(levels, dtype=float) > MAX_COMBINATIONS:
        return nothing
    mean_of, size_of = ({tuple(row): v for row, v in zip(seen.tolist(), of, strict=True)} for of in (means, counts))
    # for each key, the contexts of every level that have cells enough
    contexts: list[list[set[tuple[int, ...]]]] = [[set() for _ in range(n)] for n in levels]
    for row in seen[counts >= SHRINKAGE].tolist():
        for k, level in enumerate(row):
            contexts[k][level].add((*row[:k], *row[k + 1 :]))

    models: dict[tuple[int, int, int], _Change] = {}
    foretold, predicted = [], []
    for row in product(*map(range, levels)):
        if row in mean_of:
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
            pairs = [
                [(*context[:k], at, *context[k:]) for context in sorted(contexts[k][level] & contexts[k][other])]
                for at in (other, level)
            ]
            at, to = (np.stack([mean_of[row] for row in rows]) for rows in pairs)
            n_at, n_to = (np.array([size_of[row] for row in rows]) for rows in pairs)
            models[best] = _Change(at, to, np.sqrt(1 / (1 / n_at + 1 / n_to)))
        foretold.append(row)
        predicted.append(models[best](mean_of[(*row[:k], other, *row[k + 1 :])]))
    return (np.array(foretold), np.stack(predicted)) if foretold else nothing


class _Change:
    """Ridge regression of the change from one level to another on the mean at the one, both (contexts, dim)."""

    def __init__(self, at: np.ndarray, to: np.ndarray, weight: np.ndarray) -> None:
        weight = weight / weight.mean()
        self.centre = np.average(at, axis=0, weights=weight)
        # contexts may all be the same
        self.scale = np.sqrt(np.average(np.square(at - self.centre).sum(axis=1), weights=weight)) or 1.0
        self.ridge = RidgeCV(alphas=np.logspace(-3, 3, 13))
        self.ridge.fit((at - self.centre) / self.scale, to - at, sample_weight=weight)

    def __call__(self, mean: np.ndarray) -> np.ndarray:
        """Mean at the other level, (dim,)."""
        return mean + self.ridge.predict((mean - self.centre)[None] / self.scale)[0]
