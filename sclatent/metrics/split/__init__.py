"""Which cells are held out, and what is asked of a model that was trained on the others."""

from ._cells import random, window, windows
from ._combinations import unseen_combinations, unseen_contexts
from ._fold import Fold, read_folds, write_folds
from ._perturbations import unseen_pairs, unseen_perturbations

__all__ = [
    "Fold",
    "random",
    "read_folds",
    "unseen_combinations",
    "unseen_contexts",
    "unseen_pairs",
    "unseen_perturbations",
    "window",
    "windows",
    "write_folds",
]
