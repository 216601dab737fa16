"""The columns of obs that a model is conditioned on, as they are set up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from sclatent.data import (
    check_categorical,
    check_keys,
    check_labels,
    check_levels,
    check_no_empty_level,
    check_roles,
    warn_of_copies,
)


def check_columns(
    obs: pd.DataFrame,
    condition_keys: Sequence[str] | str | None,
    batch_key: str | None,
    labels_key: str | None = None,
    unlabeled_category: Any = None,
    size_factor_key: str | None = None,
    written: Sequence[str] = (),
    is_query: bool = False,
) -> tuple[list[str], list[Any] | None]:
    """Return the condition keys and the labels; raise unless columns can be what they are set up as.

    Parameters
    ----------
    obs
        Table of cells.
    condition_keys, batch_key, labels_key, unlabeled_category, size_factor_key
        As of ``setup_anndata``. The batch may be a condition or the label, too.
    written
        Columns that generated cells have besides.
    is_query
        Whether these are cells to use a model on, which may be of one level alone.
    """
    keys = check_keys(condition_keys)
    check_roles(written, condition_keys=keys, labels_key=labels_key, size_factor_key=size_factor_key)
    check_roles(written, batch_key=batch_key, size_factor_key=size_factor_key)
    labels = None if labels_key is None else check_labels(obs, labels_key, unlabeled_category)
    named = [(key, "condition_keys") for key in keys]
    if batch_key is not None:
        named.append((batch_key, "batch_key"))
    for key, argument in named:
        least = 1 if is_query or key == batch_key else 2
        check_categorical(obs, key, argument, min_levels=least)
        check_no_empty_level(obs, key, argument)
        check_levels(obs, key, argument)
    if not is_query:
        columns = dict.fromkeys([*keys, labels_key, batch_key])
        warn_of_copies(obs, [key for key in columns if key is not None])
    return keys, labels
