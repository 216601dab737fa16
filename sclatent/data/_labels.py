"""Labels, of all cells or of a part of them."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd

from sclatent.nn import NULL

from ._columns import check_categorical
from ._conditions import Conditions
from ._levels import check_levels, code_of, factorize, level_key, short_repr
from ._warnings import warn_user

UNLABELED = "unknown"  # unlabeled_category by default


def _check_column(obs: pd.DataFrame, key: str, unlabeled: Any) -> None:
    cure = f"set it to {unlabeled!r}, the unlabeled_category, to train on them without a label, or remove them"
    if isinstance(unlabeled, str) and key in obs and obs[key].ndim == 1 and pd.api.types.is_numeric_dtype(obs[key]):
        cure = "set it to a number that is no label, such as -1, and give this as unlabeled_category, or remove them"
    check_categorical(obs, key, "labels_key", cure=cure)


def check_labels(obs: pd.DataFrame, key: str, unlabeled: Any) -> list[Any]:
    """Return the labels in a column of obs; raise unless there are two or more to learn.

    Parameters
    ----------
    obs
        Table of cells.
    key
        The column.
    unlabeled
        What it says of cells without a label.

    Returns
    -------
    list[Any]
        Labels, sorted, or in the order of the categories.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If values are missing, cannot be labels, or are too few.

    Examples
    --------
    >>> import pandas as pd
    >>> from sclatent.data import check_labels
    >>> check_labels(pd.DataFrame({"cluster": [2, -1, 0, -1]}), "cluster", unlabeled=-1)
    [0, 2]
    """
    if level_key(unlabeled) is None:
        raise ValueError(
            f"unlabeled_category={short_repr(unlabeled)} must be text, a number or a boolean: what adata.obs[{key!r}] "
            "says of cells without a label."
        )
    _check_column(obs, key, unlabeled)
    labels = check_levels(obs, key, "labels_key", unlabeled)
    if not labels:
        raise ValueError(
            f"labels_key: every cell of adata.obs[{key!r}] is {unlabeled!r}: label some of them, or leave labels_key "
            "out to train without labels."
        )
    if len(labels) == 1:
        raise ValueError(
            f"labels_key: adata.obs[{key!r}] has only the label {labels[0]!r}; at least 2 are needed. Leave labels_key "
            "out to train without labels."
        )
    if len(labels) == len(factorize(obs[key])[1]):  # no cell is without one
        names = {str(label).casefold(): label for label in labels}
        like = get_close_matches(str(unlabeled).casefold(), names, n=1, cutoff=0.8)
        if like:
            warn_user(
                f"adata.obs[{key!r}] has the label {names[like[0]]!r}, and no cell is {unlabeled!r}, the "
                f"unlabeled_category: if these cells have no label, give unlabeled_category={names[like[0]]!r}."
            )
        elif unlabeled != UNLABELED:
            warn_user(
                f"No cell of adata.obs[{key!r}] is {unlabeled!r}, the unlabeled_category: all cells count as labelled, "
                f"with the labels {short_repr(labels)}."
            )
    return labels


def label_codes(obs: pd.DataFrame, conditions: Conditions, key: str) -> np.ndarray:
    """Turn the labels of cells to train on into codes; raise if one is missing, or not known.

    Parameters
    ----------
    obs
        Table of cells.
    conditions
        The keys of the model and their levels.
    key
        The key of the labels.

    Returns
    -------
    np.ndarray
        Codes (cells,), -1 where there is no label.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If a label is missing, or none of the model's.

    Examples
    --------
    >>> import pandas as pd
    >>> from sclatent.data import Conditions, label_codes
    >>> obs = pd.DataFrame({"type": ["T", "unknown", "B"]})
    >>> label_codes(obs, Conditions({"type": ["B", "T"]}, unlabeled={"type": "unknown"}), "type").tolist()
    [1, -1, 0]
    """
    unlabeled, labels = conditions.unlabeled[key], conditions.levels[key]
    _check_column(obs, key, unlabeled)
    codes, found = factorize(obs[key])
    code = {level_key(label): i for i, label in enumerate(labels)} | {level_key(unlabeled): NULL}
    unknown = [label for label in found if code_of(label, code) is None]
    if unknown:
        raise ValueError(
            f"labels_key: adata.obs[{key!r}] has labels that this model does not know, {short_repr(unknown)}. It knows "
            f"{short_repr(labels)}; cells without a label are {unlabeled!r}, the unlabeled_category."
        )
    return np.array([code_of(label, code) for label in found])[codes]
