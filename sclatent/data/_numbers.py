"""Checks of numbers that a user gives as arguments."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np

from ._levels import short_repr


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, of Python or numpy; a boolean is none.

    Parameters
    ----------
    value
        Anything.

    Returns
    -------
    bool
        Whether it is one.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import is_number
    >>> [is_number(value) for value in (2, np.float32(0.5), "2", True, float("nan"))]
    [True, True, False, False, False]
    """
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def is_whole(value: Any, least: float = 1) -> bool:
    """Whether a value is a whole number, of Python or numpy, of at least so much; a boolean is none.

    Parameters
    ----------
    value
        Anything.
    least
        The smallest that it may be.

    Returns
    -------
    bool
        Whether it is one.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import is_whole
    >>> [is_whole(value) for value in (2, np.int8(2), 2.0, True, 0)]
    [True, True, False, False, False]
    """
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


def check_whole(argument: str, value: Any, least: int = 1, instead: str = "") -> int:
    """Return a whole number as Python's; raise a ``ValueError`` unless it is one.

    Parameters
    ----------
    argument
        The argument that it was given by.
    value
        The number, of Python or numpy.
    least
        The smallest that it may be.
    instead
        What else may be given, for the message.

    Returns
    -------
    int
        The number.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import check_whole
    >>> check_whole("n_tokens", np.int64(8))
    8
    >>> check_whole("n_tokens", 2.5)
    Traceback (most recent call last):
        ...
    ValueError: n_tokens=2.5 must be a whole number of at least 1.
    """
    if not is_whole(value, least):
        a = "" if is_whole(value, -np.inf) else "a whole number of "
        raise ValueError(f"{argument}={short_repr(value)} must be {a}at least {least}{instead}.")
    return int(value)


def check_number(argument: str, value: Any, low: float = 0.0, high: float = math.inf, *, above: bool = False) -> float:
    """Return a finite number in a range, of Python or numpy, as Python's.

    Parameters
    ----------
    argument
        The argument that it was given by.
    value
        What was given.
    low, high
        The range, with both ends.
    above
        Whether the range is without its lower end.

    Raises
    ------
    ValueError
        If it is no finite number, or outside of the range.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import check_number
    >>> check_number("thinning", np.float32(0.5), high=1, above=True)
    0.5
    >>> check_number("lr", float("nan"))
    Traceback (most recent call last):
        ...
    ValueError: lr=nan must be a finite number, at least 0.
    """
    if is_number(value) and low <= value <= high and not (above and value == low):
        return float(value)
    if math.isinf(high):
        what = f"above {low:g}" if above else f"at least {low:g}"
    else:
        what = f"above {low:g} and at most {high:g}" if above else f"between {low:g} and {high:g}"
    raise ValueError(f"{argument}={short_repr(value)} must be {'' if is_number(value) else 'a finite number, '}{what}.")
