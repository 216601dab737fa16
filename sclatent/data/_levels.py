"""Levels of conditions, labels and batches: what they may be, and what they are called before and after saving."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from reprlib import Repr
from typing import Any

import numpy as np
import pandas as pd

from ._warnings import warn_user

_short = Repr()
_short.maxlist = _short.maxtuple = _short.maxother = _short.maxstring = 80
# known by their text, as JSON has nothing for them
AS_TEXT = pd.Interval, pd.Period, datetime.date, datetime.timedelta, np.datetime64, np.timedelta64, tuple
MISSING_WORDS = ("", "nan", "None", "<NA>", "NaT")  # what missing values become as text


def short_repr(value: Any) -> str:
    """How a message says a value: on one line, and not all of a table.

    Parameters
    ----------
    value
        Anything.

    Returns
    -------
    str
        What ``repr`` says, shortened.

    Examples
    --------
    >>> from sclatent.data import short_repr
    >>> len(short_repr(list(range(10_000)))) < 400
    True
    """
    return " ".join(_short.repr(value).split())


def plain_level(level: Any) -> Any:
    """Return a level as Python says it: ``0.1`` and not ``np.float32(0.1)``, before a model is saved as after.

    Parameters
    ----------
    level
        A level, as a column holds it.

    Returns
    -------
    Any
        A string, boolean, integer or float if it is one, a float by the shortest number that its precision tells from
        others. The text of an interval, date, period, duration or tuple, of which a time of midnight is left out, as
        by ``astype(str)`` of pandas. Anything else as it is.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from sclatent.data import plain_level
    >>> plain_level(np.float32(0.1)), plain_level(np.int64(3)), plain_level(np.str_("B"))
    (0.1, 3, 'B')
    >>> plain_level(pd.Timestamp("2024-01-31")), plain_level(pd.Interval(20, 40))
    ('2024-01-31', '(20, 40]')
    """
    if isinstance(level, str):
        return str.__str__(level)
    if isinstance(level, bool | np.bool_):
        return bool(level)
    if isinstance(level, AS_TEXT):
        return _text(level)
    if isinstance(level, int | np.integer):
        return int(level)
    if isinstance(level, np.floating):
        return float(str(level))
    return level


def _text(level: Any) -> str:
    if isinstance(level, tuple):
        return str(tuple(map(plain_level, level)))
    if isinstance(level, np.datetime64 | datetime.datetime):
        level = pd.Timestamp(level)
    if isinstance(level, np.timedelta64 | datetime.timedelta):
        level = pd.Timedelta(level)
    return str(level).removesuffix(" 00:00:00")


def level_key(level: Any) -> tuple[str, Any] | None:
    """Return what two levels have in common if they are the same, None if it cannot be a level.

    Strings, booleans and numbers are never the same: neither ``"1"`` nor ``True`` is ``1``, but ``1.0`` is.
    """
    level = plain_level(level)
    if isinstance(level, str):
        return "text", level
    if isinstance(level, bool):
        return "booleans", level
    if isinstance(level, int) or (isinstance(level, float) and math.isfinite(level)):
        return "numbers", level
    return None


def code_of(level: Any, codes: Mapping[Any, int], default: int | None = None) -> int | None:
    """Return the code of a level among codes by :func:`level_key`; a float32 is found, too, as the float of Python."""
    code = codes.get(level_key(level))
    if code is None and isinstance(level, float):
        with np.errstate(over="ignore"):
            single = np.float32(level)
        code = codes.get(level_key(single)) if float(single) == level else None
    return default if code is None else code


def factorize(column: pd.Series) -> tuple[np.ndarray, list[Any]]:
    """Return the code of every value, -1 where it is missing, and the plain levels in the order of their codes.

    The order is that of the categories, of which those without a value are left out, or else that of appearance.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.cat.remove_unused_categories()
        codes, levels = column.cat.codes.to_numpy(), column.cat.categories
    else:
        is_numpy = isinstance(column.dtype, np.dtype)  # pandas sorts none that are in another order of bytes
        codes, levels = pd.factorize(
            column.to_numpy(column.dtype.newbyteorder("="), copy=False) if is_numpy else column.array
        )
    return codes, [plain_level(level) for level in np.asarray(levels)]


def combination_name(levels: Mapping[str, Any]) -> str:
    """Return what a combination of levels, by key, is called: ``"cell_type=B, donor=101"``."""
    return ", ".join(f"{key}={level}" for key, level in levels.items())


def check_levels(obs: pd.DataFrame, key: str, argument: str, unlabeled: Any = None) -> list[Any]:
    """Return the levels of a column in the order of their codes; raise unless a saved model can hold them exactly.

    Parameters
    ----------
    obs
        Table of cells.
    key
        The column, which is complete.
    argument
        What a message calls the argument that it was given by.
    unlabeled
        A level that is none.

    Returns
    -------
    list[Any]
        Levels that some cell has, sorted, or in the order of the categories.

    Raises
    ------
    ValueError
        If levels are neither text nor booleans nor finite numbers, or several of these.

    Warns
    -----
    UserWarning
        If levels are known by their text (:func:`plain_level`).

    Examples
    --------
    >>> import pandas as pd
    >>> from sclatent.data import check_levels
    >>> check_levels(pd.DataFrame({"dose": pd.Series([1.0, 0.1, 0.1], dtype="float32")}), "dose", "condition_keys")
    [0.1, 1.0]
    >>> check_levels(pd.DataFrame({"age": pd.cut([25, 61], [0, 50, 100])}), "age", "condition_keys")
    ['(0, 50]', '(50, 100]']
    >>> check_levels(pd.DataFrame({"age": [b"young", b"old"]}), "age", "condition_keys")
    Traceback (most recent call last):
        ...
    ValueError: condition_keys: adata.obs['age'] has levels of type bytes, such as b'young': ...
    """
    column = obs[key]
    where, as_text = f"{argument}: adata.obs[{key!r}]", f"adata.obs[{key!r}] = adata.obs[{key!r}].astype(str)"
    is_categorical = isinstance(column.dtype, pd.CategoricalDtype)
    values = np.asarray(column.cat.remove_unused_categories().cat.categories if is_categorical else column)
    examples = {type(level): level for level in (values[::-1] if values.dtype == object else values[:1])}
    for level in examples.values():
        if level_key(level) is None and not isinstance(level, float | np.floating):
            cure = f'adata.obs[{key!r}] = adata.obs[{key!r}].str.decode("utf-8")' if type(level) is bytes else as_text
            raise ValueError(
                f"{where} has levels of type {type(level).__name__}, such as {level!r}: text, whole numbers, floats or "
                f"booleans were expected. {cure} makes text of them."
            )
    try:
        levels = factorize(column.astype("category"))[1]
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} is of type {column.dtype}, of which pandas makes no categories: {as_text} makes text of its "
            "values, and .astype(float) after it numbers again."
        ) from error
    if not all(map(level_key, levels)):
        raise ValueError(f"{where} has infinite levels: replace them by finite numbers.")
    known = [(level_key(level), plain_level(level)) for level in [*levels, *examples.values()]]
    kinds = {kind[0]: level for kind, level in known if kind}
    if len(kinds) > 1:
        some = " and ".join(f"{kind} ({level!r})" for kind, level in kinds.items())
        raise ValueError(f"{where} has both {some}: levels of one kind were expected. {as_text} makes text of all.")
    if len({*map(level_key, levels)}) < len(levels):
        raise ValueError(f"{where} has numbers of several precisions, of which some are written alike: round them.")
    levels = [level for level in levels if unlabeled is None or level_key(level) != level_key(unlabeled)]
    kind = next((kind.__name__ for kind in examples if issubclass(kind, AS_TEXT)), None)
    if kind is not None:
        warn_user(
            f"{where} has levels of type {kind}, which are known by their text, such as {levels[0]!r}, also in obs of "
            f"the cells that are made: {as_text} makes both alike."
        )
    _warn_of_odd_levels(levels, key, argument)
    return levels


def _warn_of_odd_levels(levels: Sequence[Any], key: str, argument: str) -> None:
    """Warn of text that stands for a missing value, or differs from another level by blanks around it alone."""
    by_content: dict[str, list[str]] = {}
    for level in levels:
        if isinstance(level, str):
            by_content.setdefault(level.strip(), []).append(level)
    missing = next((by_content[word][0] for word in MISSING_WORDS if word in by_content), None)
    alike = next((several for several in by_content.values() if len(several) > 1), None)
    if missing is not None:
        warn_user(
            f"{argument}: adata.obs[{key!r}] has the level {missing!r}, which is what a missing value becomes as text, "
            "and is learned as any other level: remove those cells, or give the level a name."
        )
    if alike:
        warn_user(
            f"{argument}: adata.obs[{key!r}] has the levels {alike}, which differ by blanks alone: "
            f"adata.obs[{key!r}].str.strip() makes one of them."
        )
