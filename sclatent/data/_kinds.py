"""Kinds of conditions: categories, sets and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import pandas as pd

from ._levels import plain_level, short_repr
from ._numbers import is_number
from ._schema import LEVELS, POSITIVE, TEXT, check, list_of

Features: TypeAlias = pd.DataFrame | str | None


@dataclass(frozen=True, eq=False)
class Category:
    """A condition of names, such as a cell type.

    Parameters
    ----------
    features
        What is known of levels: a DataFrame with one row per level, or a key of ``adata.uns`` with one. Levels that
        were never measured can be asked for, if they have a row. A row of NaN alone says that nothing is known.

    Examples
    --------
    >>> import pandas as pd
    >>> import sclatent
    >>> structure = pd.DataFrame({"weight": [180.2, 151.2], "rings": [1, 1]}, index=["aspirin", "paracetamol"])
    >>> drug = sclatent.conditions.Category(features=structure)
    """

    features: Features = None
    name: ClassVar[str] = "category"


@dataclass(frozen=True, eq=False)
class Set:
    """A condition of sets of members, such as genes that are perturbed together.

    Sets of members that were measured can be asked for, whether they were measured together or not. The order of the
    members does not matter.

    Parameters
    ----------
    delimiter
        What stands between members.
    control
        What stands for the empty set.
    features
        What is known of members, as in :class:`Category`. Members that were never measured can be asked for then. A
        row of zeros alone, which adds nothing to a set, says as little as one of NaN.

    Examples
    --------
    ``"KLF1+MAP2K6"`` is a set of two:

    >>> import sclatent
    >>> perturbation = sclatent.conditions.Set("+", control="control")
    >>> perturbation.members_of("MAP2K6+KLF1")
    ('KLF1', 'MAP2K6')
    >>> perturbation.members_of("control")
    ()
    """

    delimiter: str = "+"
    control: str | None = None
    features: Features = None
    name: ClassVar[str] = "set"

    def __post_init__(self) -> None:
        if not isinstance(self.delimiter, str) or not self.delimiter:
            raise ValueError(f"delimiter={self.delimiter!r} must be text that stands between members, such as '+'.")
        if self.control is not None and not isinstance(self.control, str):
            raise ValueError(f"control={self.control!r} must be text, the level of the empty set.")

    def members_of(self, level: Any) -> tuple[str, ...]:
        """Members of a level, sorted; raises unless it is text with different members.

        Examples
        --------
        >>> perturbation.members_of("TP53+CDK1+ATM")
        ('ATM', 'CDK1', 'TP53')
        """
        if not isinstance(level, str):
            raise ValueError(f"{short_repr(level)} is no text: names of members and {self.delimiter!r} were expected")
        if level == self.control:
            return ()
        members = [member.strip() for member in level.split(self.delimiter)]
        if not all(members):
            raise ValueError(f"{level!r} has an empty member between delimiters {self.delimiter!r}")
        twice = [member for member in members if members.count(member) > 1]
        if twice:
            raise ValueError(f"{level!r} has the member {twice[0]!r} twice")
        return tuple(sorted(member for member in members if member != self.control))  # "KLF1+ctrl" is KLF1 alone


@dataclass(frozen=True)
class Number:
    """A condition that is a number, such as a dose or a time.

    Any value in the measured range can be asked for. One outside of it is extrapolated, with a warning.

    Parameters
    ----------
    scale
        ``"linear"``, or ``"log1p"`` where values go over several orders of magnitude: the logarithm of 1 + values in
        units of the smallest positive one of training, so that nM and µM are the same.
    of
        Key that the number is a dose of: at 0 its effect vanishes, whatever the level. So between 0, if cells of the
        control were measured there, and the lowest dose nothing is extrapolated.

    Examples
    --------
    >>> import sclatent
    >>> dose = sclatent.conditions.Number(scale="log1p", of="drug")
    """

    scale: Literal["linear", "log1p"] = "linear"
    of: str | None = None
    name: ClassVar[str] = "number"

    def __post_init__(self) -> None:
        if self.scale not in ("linear", "log1p"):
            raise ValueError(f"scale={short_repr(self.scale)} must be 'linear' or 'log1p'.")
        if self.of is not None and not isinstance(self.of, str):
            raise ValueError(f"of={short_repr(self.of)} must be the name of another condition key, or None.")

    def value_of(self, level: Any) -> float:
        """Return a level as a number of Python; raises unless it is one, and finite, and can be scaled.

        Examples
        --------
        >>> dose.value_of(10)
        10.0
        """
        level = plain_level(level)
        if not is_number(level):
            raise ValueError(f"{short_repr(level)} is no finite number")
        if level < 0 and (self.scale == "log1p" or self.of is not None):
            raise ValueError(f"{short_repr(level)} is below 0, where {self} has no values")
        return float(level)

    def scaled(self, values: np.ndarray, unit: float = 1.0) -> np.ndarray:
        """Values on the scale of the kind; ``unit`` is that of ``"log1p"``.

        Examples
        --------
        >>> import numpy as np
        >>> dose.scaled(np.array([0.0, 1.0, 10.0])).round(2).tolist()
        [0.0, 0.69, 2.4]
        """
        return np.log1p(values / unit) if self.scale == "log1p" else values


Kind = Category | Set | Number
KINDS: Mapping[str, type] = {kind.name: kind for kind in (Category, Set, Number)}


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of levels or members by name, standardised by those of training.

    Parameters
    ----------
    names
        Names of the rows.
    values
        (rows, n_features), float32.
    scale
        What features as they were given are divided by.
    columns
        Names of the features.
    """

    names: tuple[str, ...]
    values: np.ndarray
    scale: float = 1.0
    columns: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"features of {len(self.names)} names, {self.values.shape[1]} each"

    @staticmethod
    def of(features: pd.DataFrame, argument: str, needed: list[str]) -> FeatureTable:
        """Check a DataFrame of features and take it; ``needed`` are the names that must have a row."""
        if not isinstance(features, pd.DataFrame):
            raise ValueError(
                f"{argument}: features={short_repr(features)} must be a DataFrame with one row per level, or a key of "
                "adata.uns with one."
            )
        names = [plain_level(name) for name in features.index]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{argument}: features has {twice!r} twice: keep one row of each name.")
        numbers = [dtype.kind in "biuf" for dtype in features.dtypes]
        if not all(numbers):
            column = features.columns[numbers.index(False)]
            raise ValueError(
                f"{argument}: features must be numbers alone, and {column!r} has the type {features[column].dtype}: "
                "encode text and dates first."
            )
        values = features.to_numpy(dtype=np.float64, na_value=np.nan)
        is_wrong = ~np.isfinite(values).all(axis=1) & ~np.isnan(values).all(axis=1)
        if not values.size or is_wrong.any():
            row = names[int(np.flatnonzero(is_wrong)[0])] if values.size else "no row at all"
            raise ValueError(
                f"{argument}: features must be finite numbers, which those of {row!r} are not; or NaN in all columns, "
                "where nothing is known."
            )
        place = {name: i for i, name in enumerate(names)}
        missing = [name for name in needed if name not in place]
        if missing:
            raise ValueError(
                f"{argument}: features has no row for {short_repr(missing[:5])}, {len(missing)} of {len(needed)} "
                "names: give all of them, or leave features out."
            )
        columns = tuple(map(str, features.columns))
        if not needed:
            return FeatureTable(tuple(names), values, 1.0, columns)
        seen = values[[place[name] for name in needed]]
        seen = seen[np.isfinite(seen).all(axis=1)]
        sd = seen.std(axis=0) if len(seen) else np.zeros(seen.shape[1])
        if not (sd > 1e-12 * np.abs(seen).max(initial=1e-300)).any():
            raise ValueError(f"{argument}: features are the same for all {len(needed)} names: they tell nothing apart.")
        # one scale for all, as of an embedding: columns keep their proportions
        scale = math.sqrt(float(np.square(sd).mean()))
        return FeatureTable(tuple(names), (values / scale).astype(np.float32), scale, columns)

    def with_more(self, features: pd.DataFrame, argument: str) -> FeatureTable:
        """The same table with further rows; raises if one has a name that exists and other values."""
        more = FeatureTable.of(features, argument, [])
        if sorted(more.columns) != sorted(self.columns) or len(set(more.columns)) < len(more.columns):
            raise ValueError(
                f"{argument}: features has the columns {short_repr(list(more.columns))}; those of training are "
                f"{short_repr(list(self.columns))}."
            )
        order = [more.columns.index(column) for column in self.columns]  # by name, whatever order they come in
        values = (more.values[:, order] / self.scale).astype(np.float32)
        place = self.place
        new = [i for i, name in enumerate(more.names) if name not in place]
        for i, name in enumerate(more.names):
            if name in place and not np.allclose(
                values[i], self.values[place[name]], rtol=1e-4, atol=1e-5, equal_nan=True
            ):
                raise ValueError(
                    f"{argument}: features has a row for {name!r}, which has other values already: leave it out, "
                    "or give it another name."
                )
        names = (*self.names, *(more.names[i] for i in new))
        return FeatureTable(names, np.vstack([self.values, values[new]]), self.scale, self.columns)

    def as_json(self) -> dict[str, Any]:
        """Return what a saved model says of the table beside its values."""
        return {"names": list(self.names), "scale": self.scale, "columns": list(self.columns)}

    @staticmethod
    def from_json(saved: Mapping[str, Any], values: np.ndarray) -> FeatureTable:
        """Take back what :meth:`as_json` has returned, and the values; raises unless they hold together."""
        check(saved, {"names": LEVELS, "scale": POSITIVE, "columns": list_of(TEXT)}, "model.json: features")
        shape = len(saved["names"]), len(saved["columns"])
        is_row = np.isfinite(values).all(axis=-1) | np.isnan(values).all(axis=-1)
        if values.dtype != np.float32 or values.shape != shape or not is_row.all():
            raise ValueError(f"features must be float32 of the shape {shape}, finite, or NaN in all of a row")
        return FeatureTable(tuple(saved["names"]), values, float(saved["scale"]), tuple(saved["columns"]))

    def rows(self, names: list[str]) -> np.ndarray:
        """Features of names, (n, n_features)."""
        return self.values[[self.place[name] for name in names]]

    @cached_property
    def place(self) -> dict[Any, int]:
        """Row of each name."""
        return {name: i for i, name in enumerate(self.names)}
