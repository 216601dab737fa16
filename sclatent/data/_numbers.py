"""Checks of numbers that a user gives as arguments."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np


def check_whole(value: Any, name: str, least: int = 0) -> int:
    """Return a whole number as an int; numpy's are whole numbers, too.

    Parameters
    ----------
    value
        What was given.
    name
        The argument that it was given by.
    least
        The smallest that there may be.

    Raises
    ------
    ValueError
        If it is no whole number, or too small.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import check_whole
    >>> check_whole(np.int64(3), "seed")
    3
    >>> check_whole(2.5, "batch_size", least=1)
    Traceback (most recent call last):
        ...
    ValueError: batch_size=2.5 must be a whole number of at least 1.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}.")
    return int(value)


def check_number(value: Any, name: str, low: float = 0.0, high: float = math.inf, *, above: bool = False) -> float:
    """Return a finite number in a range as a float; numpy's are numbers, too.

    Parameters
    ----------
    value
        What was given.
    name
        The argument that it was given by.
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
    >>> check_number(np.float32(0.5), "thinning", high=1, above=True)
    0.5
    >>> check_number(float("nan"), "lr")
    Traceback (most recent call last):
        ...
    ValueError: lr=nan must be a finite number, at least 0.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool | np.bool_) and math.isfinite(value)
    if is_number and low <= value <= high and not (above and value == low):
        return float(value)
    if math.isinf(high):
        what = f"above {low:g}" if above else f"at least {low:g}"
    else:
        what = f"above {low:g} and at most {high:g}" if above else f"between {low:g} and {high:g}"
    raise ValueError(f"{name}={value!r} must be {'' if is_number else 'a finite number, '}{what}.")
