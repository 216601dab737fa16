"""What the description of a saved model has to be; nothing is built from one that is not."""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np


class Kind(NamedTuple):
    """What a value has to be, in words, and whether one is."""

    what: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, float)


def _are_different(values: Any) -> bool:
    """Whether these are different names or levels, none of which is missing."""
    if not isinstance(values, list) and not (isinstance(values, np.ndarray) and values.ndim == 1):
        return False
    return all(_is_name(v) for v in values) and len(set(values)) == len(values)


def _is_name(value: Any) -> bool:
    return value is not None and not isinstance(value, Mapping | list | np.ndarray) and value == value


def one_of(*values: Any) -> Kind:
    """One of some values."""
    return Kind(f"one of {list(values)}", lambda v: any(v == value and type(v) is type(value) for value in values))


def optional(kind: Kind) -> Kind:
    """A value of a kind, or nothing."""
    return Kind(f"{kind.what}, or null", lambda v: v is None or kind.holds(v))


def list_of(kind: Kind, *lengths: int) -> Kind:
    """A list of values of a kind; of one of some lengths, if any are given."""
    length = f" of {' or '.join(map(str, lengths))}" if lengths else ""
    return Kind(
        f"a list{length}, each {kind.what}",
        lambda v: isinstance(v, list) and (not lengths or len(v) in lengths) and all(map(kind.holds, v)),
    )


def dict_of(kind: Kind) -> Kind:
    """A dict of values of a kind."""
    return Kind(
        f"a dict, each value {kind.what}", lambda v: isinstance(v, Mapping) and all(map(kind.holds, v.values()))
    )


TEXT = Kind("a string", lambda v: isinstance(v, str))
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
INDEX = Kind("a whole number of at least 0", lambda v: _is_whole(v) and v >= 0)
COUNT = Kind("a whole number of at least 1", lambda v: _is_whole(v) and v >= 1)
NUMBER = Kind("a finite number", lambda v: _is_number(v) and math.isfinite(v))
POSITIVE = Kind("a finite number above 0", lambda v: NUMBER.holds(v) and v > 0)
NAME = Kind("a name", _is_name)
NAMES = Kind("a list of different strings", lambda v: _are_different(v) and all(isinstance(name, str) for name in v))
LEVELS = Kind("a list of different levels", _are_different)
DTYPE = Kind("a dtype of numbers", lambda v: isinstance(v, str) and np.dtype(v).kind in "biuf")
LOSSES = list_of(Kind("an epoch and a loss", lambda v: isinstance(v, list) and list(map(_is_number, v)) == [True] * 2))

FIELD = {  # of the registry of scvi-tools
    "data_registry": Kind(
        "a dict of a place", lambda v: isinstance(v, Mapping) and (not v or TEXT.holds(v["attr_name"]))
    ),
    "state_registry": {},
    "summary_stats": dict_of(NUMBER),
}


def parameters(constructor: Callable[..., None]) -> dict[str, Kind]:
    """Kinds of the arguments of a model that are saved with it, by their annotations."""
    with suppress(NameError):  # of a type that is imported for type checkers only
        hints = get_type_hints(constructor)
        names = [name for name in inspect.signature(constructor).parameters if name in hints]
        kinds = {name: INDEX if name == "seed" else _kind_of(hints[name]) for name in names}
        return {name: kind for name, kind in kinds.items() if kind is not None and name not in ("adata", "registry")}
    return {}


def _kind_of(hint: Any) -> Kind | None:
    """What arguments of this type have to be; None if that is for the model to say."""
    if get_origin(hint) is Literal:
        return one_of(*get_args(hint))
    if NoneType in get_args(hint):
        inner = [h for h in get_args(hint) if h is not NoneType]
        kind = _kind_of(inner[0]) if len(inner) == 1 else None
        return kind and optional(kind)
    return {int: COUNT, float: NUMBER, bool: FLAG, str: TEXT}.get(hint)


def check(value: Any, schema: Kind | Mapping[str, Any], where: str) -> None:
    """Raise unless a value is of a kind, or has at least the entries that a schema names, each as it says."""
    if isinstance(schema, Kind):
        if not schema.holds(value):
            raise ValueError(f"{where}={reprlib.repr(value)} must be {schema.what}")
        return
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}={reprlib.repr(value)} must be a dict")
    for key, inner in schema.items():
        if key not in value:
            raise ValueError(f"{where} has no {key!r}")
        check(value[key], inner, f"{where}.{key}")


def check_codes(codes: np.ndarray, n_levels: Sequence[int], name: str, least: int = 0) -> None:
    """Raise unless these are codes (cells, n_keys) of so many levels of at least one cell."""
    whole = codes.dtype.kind == "i" and codes.ndim == 2 and codes.shape[1] == len(n_levels) and len(codes)
    if not whole or (codes < least).any() or (codes >= np.array(n_levels, dtype=np.int64)).any():
        raise ValueError(f"{name} must be codes from {least} on of {list(n_levels)} levels, one row per cell")
