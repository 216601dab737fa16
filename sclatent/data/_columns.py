"""Checks of columns of obs that a user names, before any work and before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from ._levels import factorize, short_repr
from ._warnings import warn_user


def _only_column(obs: pd.DataFrame, key: str, argument: str) -> pd.Series:
    """The column of a name; raises unless there is one, and one alone."""
    names = list(obs.columns)
    if key not in names:
        raise KeyError(f"{argument}: {key!r} is not a column of adata.obs, which has {names}.")
    if names.count(key) > 1:
        raise ValueError(
            f"{argument}: adata.obs has {names.count(key)} columns with the name {key!r}. Keep the first of each by "
            "adata.obs = adata.obs.loc[:, ~adata.obs.columns.duplicated()]."
        )
    return obs[key]


def check_categorical(
    obs: pd.DataFrame,
    key: str,
    argument: str,
    min_levels: int = 1,
    cure: str = "fill it in or remove those cells",
) -> None:
    """Raise unless a column of obs is complete and has enough levels to condition on.

    Parameters
    ----------
    obs
        Table of cells.
    key
        The column.
    argument
        What a message calls the argument that it was given by.
    min_levels
        How many different levels there must be.
    cure
        What to do where values are missing.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If there are two such columns, values are missing, or levels too few.

    Examples
    --------
    >>> import pandas as pd
    >>> from sclatent.data import check_categorical
    >>> obs = pd.DataFrame({"condition": ["control", "control"]})
    >>> check_categorical(obs, "condition", "condition_keys", min_levels=2)
    Traceback (most recent call last):
        ...
    ValueError: condition_keys: adata.obs['condition'] has only the level 'control'; ...
    """
    column = _only_column(obs, key, argument)
    if not len(column):
        raise ValueError(f"{argument}: adata.obs[{key!r}] has no cells.")
    if column.isna().any():
        raise ValueError(f"{argument}: adata.obs[{key!r}] is missing for {int(column.isna().sum())} cells: {cure}.")
    if isinstance(column.dtype, np.dtype) and not column.dtype.isnative:
        native = column.dtype.newbyteorder("=")
        raise ValueError(
            f"{argument}: adata.obs[{key!r}] is of type {column.dtype.str}, whose order of bytes pandas cannot use: "
            f'adata.obs[{key!r}] = adata.obs[{key!r}].astype("{native}") brings them into that of this machine.'
        )
    try:
        levels = factorize(column)[1]
    except TypeError as error:
        raise ValueError(
            f"{argument}: adata.obs[{key!r}] has values that cannot be levels, such as "
            f"{short_repr(column.iloc[0])} of type {type(column.iloc[0]).__name__}. Text was expected: "
            f"adata.obs[{key!r}] = adata.obs[{key!r}].astype(str) makes text of them."
        ) from error
    if len(levels) < min_levels:
        raise ValueError(
            f"{argument}: adata.obs[{key!r}] has only the level {levels[0]!r}; a condition needs at least {min_levels} "
            "levels."
        )


def check_no_empty_level(obs: pd.DataFrame, key: str, argument: str) -> None:
    """Raise a ``ValueError`` if a categorical column has a level without a cell, of which nothing can be learned.

    Parameters
    ----------
    obs
        Table of cells.
    key
        The column.
    argument
        What a message calls the argument that it was given by.

    Examples
    --------
    >>> import pandas as pd
    >>> from sclatent.data import check_no_empty_level
    >>> obs = pd.DataFrame({"donor": pd.Categorical(["A", "B"], categories=["A", "B", "C"])})
    >>> check_no_empty_level(obs, "donor", "condition_keys")
    Traceback (most recent call last):
        ...
    ValueError: condition_keys: adata.obs['donor'] has levels without a cell (such as 'C'): ...
    """
    if isinstance(obs[key].dtype, pd.CategoricalDtype):
        empty = obs[key].cat.categories.difference(obs[key].unique(), sort=False)
        if len(empty):
            raise ValueError(
                f"{argument}: adata.obs[{key!r}] has levels without a cell (such as {empty[0]!r}): remove them by "
                f"adata.obs[{key!r}] = adata.obs[{key!r}].cat.remove_unused_categories()."
            )


def check_size_factors(obs: pd.DataFrame, key: str) -> None:
    """Raise unless a column of obs holds positive finite numbers.

    Parameters
    ----------
    obs
        Table of cells.
    key
        The column.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If a value is not a positive finite number.

    Examples
    --------
    >>> import pandas as pd
    >>> from sclatent.data import check_size_factors
    >>> check_size_factors(pd.DataFrame({"size_factor": [0.5, 2.0]}), "size_factor")
    >>> check_size_factors(pd.DataFrame({"size_factor": [0.5, 0.0]}), "size_factor")
    Traceback (most recent call last):
        ...
    ValueError: size_factor_key: adata.obs['size_factor'] must be a positive finite number for every cell.
    """
    column = _only_column(obs, key, "size_factor_key")
    is_time = column.dtype.kind in "mM"
    values = pd.to_numeric(column, errors="coerce").to_numpy(float)
    if is_time or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"size_factor_key: adata.obs[{key!r}] must be a positive finite number for every cell.")


def check_keys(condition_keys: Sequence[str] | str | None, argument: str = "condition_keys") -> list[str]:
    """Return condition keys as a list of different names.

    Parameters
    ----------
    condition_keys
        One name or several (a list, tuple, array or Index), or None.
    argument
        What a message calls the argument that they were given by.

    Raises
    ------
    ValueError
        If a name is there twice or is no string, or if names are in no order.

    Examples
    --------
    >>> import pandas as pd
    >>> from sclatent.data import check_keys
    >>> check_keys("cell_type"), check_keys(pd.Index(["cell_type", "condition"])), check_keys(None)
    (['cell_type'], ['cell_type', 'condition'], [])
    """
    if condition_keys is None:
        return []
    if isinstance(condition_keys, Set | Mapping | pd.DataFrame):
        raise ValueError(
            f"{argument}={short_repr(condition_keys)} is of type {type(condition_keys).__name__}: a list of names "
            'was expected, whose order is that of the codes, such as ["cell_type", "condition"].'
        )
    several = isinstance(condition_keys, Sequence | np.ndarray | pd.Index | pd.Series)
    keys = list(condition_keys) if several and not isinstance(condition_keys, str | bytes) else [condition_keys]
    for key in keys:
        check_column_name(key, argument)
    if len(set(keys)) < len(keys):
        raise ValueError(f"{argument}={short_repr(keys)} names a column twice.")
    return [str(key) for key in keys]


def check_place(**names: str | None) -> None:
    """Raise a ``ValueError`` unless names of a layer or an entry of obsm, by their arguments, are strings or None.

    Parameters
    ----------
    **names
        Names by argument.

    Examples
    --------
    >>> from sclatent.data import check_place
    >>> check_place(layer=["counts"])
    Traceback (most recent call last):
        ...
    ValueError: layer=['counts'] must be a string, or None for X.
    """
    for argument, name in names.items():
        if name is not None and not isinstance(name, str):
            raise ValueError(f"{argument}={short_repr(name)} must be a string, or None for X.")


def check_column_name(name: Any, argument: str) -> None:
    """Raise a ``ValueError`` unless this may be the name of a column of obs: a string that is not taken.

    Parameters
    ----------
    name
        The name.
    argument
        What a message calls the argument that it was given by.
    """
    if not isinstance(name, str):
        raise ValueError(
            f"{argument}: {short_repr(name)} must be a string, the name of a column of adata.obs. Columns that are "
            "named by numbers get strings by adata.obs.columns = adata.obs.columns.astype(str)."
        )
    if name.startswith("_scvi"):
        raise ValueError(
            f"{argument}: columns with names such as {name!r} are written by scvi-tools, and generated cells lack "
            "them: give the column that it was made from, or rename it."
        )


def check_roles(written: Sequence[str] = (), **roles: Sequence[str] | str | None) -> None:
    """Raise a ``ValueError`` if a column of obs has two roles, or the name of one that is written.

    Parameters
    ----------
    written
        Columns that generated cells have besides.
    **roles
        Name or names of columns, by the argument that they were given by.

    Examples
    --------
    >>> from sclatent.data import check_roles
    >>> check_roles(condition_keys=["depth", "treatment"], size_factor_key="depth")
    Traceback (most recent call last):
        ...
    ValueError: size_factor_key: 'depth' was given by condition_keys, too: a column can be one of the two alone. ...
    """
    taken: dict[str, str] = {}
    for argument, names in roles.items():
        given: list[Any] = names if isinstance(names, list) else [] if names is None else [names]
        for name in given:
            check_column_name(name, argument)
            if name in written:
                raise ValueError(
                    f"{argument}: {name!r} is a column that is written for generated cells. Rename yours by "
                    f'adata.obs = adata.obs.rename(columns={{"{name}": "my_{name}"}}).'
                )
            if name in taken:
                raise ValueError(
                    f"{argument}: {name!r} was given by {taken[name]}, too: a column can be one of the two alone. "
                    f"Leave it out of {taken[name]} or of {argument}."
                )
            taken[name] = argument


def warn_of_copies(obs: pd.DataFrame, keys: Sequence[str]) -> None:
    """Warn of columns that say the same of every cell, so that their effects cannot be told apart.

    Parameters
    ----------
    obs
        Table of cells.
    keys
        Columns that the model is conditioned on.

    Examples
    --------
    >>> import pandas as pd
    >>> from sclatent.data import warn_of_copies
    >>> warn_of_copies(pd.DataFrame({"donor": ["A", "A", "B"], "dose": [0, 1, 1]}), ["donor", "dose"])
    """
    codes = {key: factorize(obs[key])[0].astype(np.int64) for key in keys}
    for one, other in combinations(keys, 2):
        n_pairs = len(np.unique(codes[one] * len(obs) + codes[other]))
        if n_pairs == len(np.unique(codes[one])) == len(np.unique(codes[other])) > 1:
            warn_user(
                f"adata.obs[{one!r}] and adata.obs[{other!r}] say the same of every cell, so that their effects cannot "
                "be told apart: leave one of them out."
            )
