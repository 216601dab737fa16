"""Two samples of cells compared by what a random forest can tell of them."""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_score

FOLDS = 5


def random_forest_auc(x: np.ndarray, y: np.ndarray, seed: int = 0) -> float:
    """Area under the ROC curve of a random forest that tells two samples apart (Lopez-Paz and Oquab 2017, section 2).

    Parameters
    ----------
    x, y
        Cells, (n, d) and (m, d), at least 5 of each.
    seed
        Seed of the folds and of the forest.

    Returns
    -------
    float
        Mean over 5 stratified folds: 0.5 for samples of one distribution, 1 where they can be told apart. The forest is
        scikit-learn's with its defaults.

    Raises
    ------
    ValueError
        If there are fewer cells.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.metrics import random_forest_auc
    >>> x, y = np.random.default_rng(0).standard_normal((2, 50, 4))
    >>> random_forest_auc(x, y + 10)
    1.0
    """
    if min(len(x), len(y)) < FOLDS:
        raise ValueError(f"x has {len(x)} cells and y {len(y)}: at least {FOLDS} of each are needed.")
    from_y = np.repeat([0, 1], [len(x), len(y)])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    scores = cross_val_score(_forest(seed), np.concatenate([x, y]), from_y, cv=folds, scoring="roc_auc")
    return float(scores.mean())


def transfer_accuracy(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, seed: int = 0
) -> float:
    """Share of the cells of one sample that a random forest trained on another labels correctly.

    Parameters
    ----------
    train, test
        Cells, (n, d) and (m, d).
    train_labels, test_labels
        Their labels, (n,) and (m,).
    seed
        Seed of the forest, which is scikit-learn's with its defaults.

    Returns
    -------
    float
        Accuracy from 0 to 1.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.metrics import transfer_accuracy
    >>> real, generated = np.random.default_rng(0).standard_normal((2, 60, 4))
    >>> cell_type = np.repeat(["B", "T"], 30)
    >>> real[30:] += 5
    >>> generated[30:] += 5
    >>> transfer_accuracy(generated, cell_type, real, cell_type)  # train on generated, test on real cells
    1.0
    """
    return float(_forest(seed).fit(train, train_labels).score(test, test_labels))


def _forest(seed: int) -> RandomForestClassifier:
    return RandomForestClassifier(random_state=seed, n_jobs=1)
