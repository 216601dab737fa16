"""Checks of numbers that a user gives as arguments."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def check_whole(argument: str, value: Any, least: int = 1) -> int:
    """Return a whole number, of Python or numpy, as Python's.

    Parameters
    ----------
    argument
        The argument that it was given by.
    value
        What was given.
    least
        The smallest that it may be.

    Raises
    ------
    ValueError
        If it is no whole number, or too small.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import check_whole
    >>> check_whole("batch_size", np.int64(128))
    128
    >>> check_whole("batch_size", 2.5)
    Traceback (most recent call last):
        ...
    ValueError: batch_size=2.5 must be a whole number of at least 1.
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < least:
        raise ValueError(f"{argument}={value!r} must be {'' if is_whole else 'a whole number of '}at least {least}.")
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
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if is_number and low <= value <= high and not (above and value == low):
        return float(value)
    if math.isinf(high):
        what = f"above {low:g}" if above else f"at least {low:g}"
    else:
        what = f"above {low:g} and at most {high:g}" if above else f"between {low:g} and {high:g}"
    raise ValueError(f"{argument}={value!r} must be {'' if is_number else 'a finite number, '}{what}.")
