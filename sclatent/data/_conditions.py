"""From the names of conditions to codes and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_scalar

from sclatent.nn import NULL, Values

from ._kinds import Category, FeatureTable, Kind, Number
from ._levels import factorize, level_key, plain_level, short_repr
from ._values import ValueSpace
from ._warnings import warn_user

ONE = " Give one level per key, or a DataFrame with one row per cell."  # in place of several levels


class Conditions:
    """The condition keys of a model and the levels of each.

    Parameters
    ----------
    levels
        Levels of each key, in the order of their codes.
    argument
        What a message calls the argument that they are given by.
    unlabeled
        What the column of a key says of cells without a level, by key.
    kinds
        Kind of each key; categories by default.
    features
        Features of the levels or members of keys that have any.

    Examples
    --------
    >>> import pandas as pd
    >>> from sclatent.data import Conditions
    >>> conditions = Conditions({"cell_type": ["B", "T"], "condition": ["control", "stimulated"]})
    >>> conditions.encode({"cell_type": "T"}, n_cells=1).tolist()  # the condition is null
    [[1, -1]]
    >>> codes = conditions.encode(pd.DataFrame({"cell_type": ["B", "T"], "condition": ["control", "stimulated"]}))
    >>> codes.tolist()
    [[0, 0], [1, 1]]
    >>> conditions.decode(codes, pd.Index(["cell_0", "cell_1"]))
           cell_type   condition
    cell_0         B     control
    cell_1         T  stimulated
    """

    def __init__(
        self,
        levels: Mapping[str, list[Any]],
        argument: str = "conditions",
        unlabeled: Mapping[str, Any] | None = None,
        kinds: Mapping[str, Kind] | None = None,
        features: Mapping[str, FeatureTable] | None = None,
    ) -> None:
        self.argument, self.unlabeled = argument, dict(unlabeled or {})
        self.levels = {key: [plain_level(level) for level in values] for key, values in levels.items()}
        self.kinds: dict[str, Kind] = {key: (kinds or {}).get(key, Category()) for key in self.levels}
        self.spaces = {
            key: ValueSpace(key, kind, self.levels[key], (features or {}).get(key)) for key, kind in self.kinds.items()
        }

    @property
    def keys(self) -> list[str]:
        """Names of the condition keys."""
        return list(self.levels)

    @property
    def n_levels(self) -> list[int]:
        """Number of levels of each key."""
        return [len(values) for values in self.levels.values()]

    def n_rows(self, conditions: Any) -> int | None:
        """For how many cells conditions are given, if they say it: a DataFrame, or several levels of one key."""
        if isinstance(conditions, pd.DataFrame):
            return len(conditions)
        several = len(self.keys) == 1 and _are_several(conditions) and not self._is_row(conditions)
        return len(conditions) if several and getattr(conditions, "ndim", 1) == 1 else None

    def _is_row(self, conditions: Any) -> bool:
        """Whether these are levels by key, as a row of a DataFrame has them."""
        return isinstance(conditions, pd.Series) and not conditions.index.intersection(self.keys).empty

    def encode(
        self,
        conditions: Any,
        n_cells: int | None = None,
        argument: str | None = None,
    ) -> np.ndarray:
        """Turn conditions into codes.

        Parameters
        ----------
        conditions
            One level per key for all cells, as a dict or a row of a DataFrame; or a DataFrame with one row per cell.
            With one key alone, also its level, or a list of one level per cell. Keys that are not given, or None, and
            missing values of a table or a list are null. What else a DataFrame or a row has is ignored.
        n_cells
            Number of cells; may be left out with a DataFrame.
        argument
            What a message calls these conditions, where they come from elsewhere than usual.

        Returns
        -------
        np.ndarray
            Codes (cells, n_keys), -1 where a condition is null.
        """
        argument = self.argument if argument is None else argument
        if self._is_row(conditions):
            row = {key: level for key, level in conditions.items() if key in self.levels}
            conditions = {key: None if is_scalar(level) and pd.isna(level) else level for key, level in row.items()}
        if isinstance(conditions, pd.DataFrame):
            if n_cells is not None and len(conditions) != n_cells:
                raise ValueError(
                    f"{argument} has {len(conditions)} rows, but {n_cells} cells are asked for: give one row per cell."
                )
            if self.keys and conditions.columns.intersection(self.keys).empty:
                raise KeyError(
                    f"{argument} has columns {list(conditions.columns)}, none of which is one of {self.keys}."
                )
            return self.encode_rows(conditions, argument)
        if conditions is not None and not isinstance(conditions, Mapping):
            if len(self.keys) == 1:
                return self._encode_one(self.keys[0], conditions, n_cells, argument)
            if not self.keys:
                raise ValueError(
                    f"{argument}={short_repr(conditions)}: this model was trained without conditions. Set up the data "
                    "with condition_keys, or labels_key, to have them."
                )
            raise ValueError(
                f"{argument}={short_repr(conditions)} must be a dict of one level per key, or a DataFrame with one row "
                f"per cell; the keys are {self.keys}."
            )
        conditions = conditions or {}
        unknown = [key for key in conditions if key not in self.levels]
        if unknown:
            raise KeyError(f"{argument}: {unknown[0]!r} is no condition of this model, which has {self.keys}.")
        given = {key: level for key, level in conditions.items() if level is not None}
        code = [self._code(key, given[key], argument) if key in given else NULL for key in self.keys]
        return np.tile(np.array(code, dtype=np.int64), (n_cells or 1, 1))

    def _encode_one(self, key: str, given: Any, n_cells: int | None, argument: str) -> np.ndarray:
        """Codes (cells, 1) of the only key, of one level for all cells or of one per cell."""
        if not _are_several(given):
            return np.full((n_cells or 1, 1), self._code(key, given, argument))
        if getattr(given, "ndim", 1) > 1:
            raise ValueError(f"{argument}={short_repr(given)} has {given.ndim} dimensions: give one level per cell.")
        if n_cells is not None and len(given) != n_cells:
            raise ValueError(
                f"{argument} has {len(given)} entries, but {n_cells} cells are asked for: give one per cell."
            )
        column = given if isinstance(given, pd.Series) else pd.Series(given, dtype=getattr(given, "dtype", object))
        return self.codes_of(key, column, argument)[:, None]

    def encode_rows(self, table: pd.DataFrame, argument: str, is_measured: bool = False) -> np.ndarray:
        """Turn the columns of a table that are condition keys into codes; keys that it lacks are null.

        Parameters
        ----------
        table
            One row per cell, such as ``adata.obs``.
        argument
            What a message calls the table.
        is_measured
            Whether the table says what cells are, and not what is asked for: cells without a label, or with one that
            the model does not know, have none then.

        Returns
        -------
        np.ndarray
            Codes (cells, n_keys), -1 where a condition is null.
        """
        names = list(table.columns)
        others = {str(name).casefold(): name for name in names if name not in self.levels}
        codes = np.full((len(table), len(self.keys)), NULL)
        for k, key in enumerate(self.keys):
            if names.count(key) > 1:
                raise ValueError(f"{argument} has {names.count(key)} columns with the name {key!r}: keep one of them.")
            may_be_missing = is_measured and key in self.unlabeled
            if key in names:
                codes[:, k] = self.codes_of(key, table[key], argument, is_obs=True, unknown_is_null=may_be_missing)
            elif may_be_missing:
                continue
            elif like := get_close_matches(key.casefold(), others, n=1, cutoff=0.8):
                warn_user(
                    f"{argument} has no column {key!r}, so that this condition is null, but {others[like[0]]!r}: "
                    "rename it if it is the same."
                )
        return codes

    def codes_of(
        self, key: str, column: pd.Series, argument: str, is_obs: bool = False, unknown_is_null: bool = False
    ) -> np.ndarray:
        """Turn levels of one key into codes.

        Parameters
        ----------
        key
            The key.
        column
            One level per cell; missing ones are null.
        argument
            What a message calls the table that the column is from.
        is_obs
            Whether it may say of a cell that it has no level, as obs does.
        unknown_is_null
            Whether levels that the model does not know are null, too, and not refused.

        Returns
        -------
        np.ndarray
            Codes (cells,), -1 where the level is null.
        """
        try:
            codes, levels = factorize(column)
        except TypeError as error:
            raise ValueError(f"{argument}: {key!r} has values that cannot be levels, such as lists.") from error
        none = level_key(self.unlabeled[key]) if is_obs and key in self.unlabeled else None
        if unknown_is_null:
            of_level = [self.spaces[key].find(level, NULL) for level in levels]
        else:
            of_level = [
                NULL if none is not None and level_key(level) == none else self._code(key, level, argument)
                for level in levels
            ]
        return np.array([*of_level, NULL], dtype=np.int64)[codes]

    def _code(self, key: str, level: Any, argument: str) -> int:
        hint = "" if is_scalar(level) or self.argument != "conditions" else ONE
        if key in self.unlabeled and level_key(level) == level_key(self.unlabeled[key]):
            hint = " It is the unlabeled_category, which means no label: give None, or a missing value, for none."
        return self.spaces[key].code(level, argument, hint)

    def add_features(self, features: Mapping[str, pd.DataFrame] | None) -> None:
        """Take features of further levels or members, by key."""
        if features is None:
            return
        if not isinstance(features, Mapping):
            raise ValueError(
                f"features is of type {type(features).__name__}: a dict of a DataFrame by condition key was expected, "
                f"such as {{{(self.keys or ['drug'])[0]!r}: features}}."
            )
        for key, table in features.items():
            if key not in self.spaces:
                raise KeyError(f"features: {key!r} is no condition of this model, which has {self.keys}.")
            self.spaces[key].add_features(table, f"features[{key!r}]")

    @property
    def is_of_names(self) -> bool:
        """Whether all keys are categories without features."""
        return all(space.is_of_names for space in self.spaces.values())

    def values(self) -> tuple[Values, ...] | None:
        """What is known of the values of each key; None where all are names alone."""
        return None if self.is_of_names else tuple(space.values() for space in self.spaces.values())

    def of_training(self, codes: np.ndarray) -> np.ndarray:
        """Codes (cells, n_keys) in which values that training has not are the nearest number that it has, or null."""
        columns = [space.of_training(codes[:, k]) for k, space in enumerate(self.spaces.values())]
        return np.stack(columns, axis=1) if columns else codes

    def without_member(self, codes: np.ndarray, key: int, member: str) -> np.ndarray:
        """Codes (cells, n_keys) of which the sets of a key lack a member."""
        changed = codes.copy()
        changed[:, key] = self.spaces[self.keys[key]].without_member(codes[:, key], member)
        return changed

    def are_unseen_names(self, codes: np.ndarray) -> np.ndarray:
        """Which codes (cells, n_keys) are levels or sets, not numbers, that training has not."""
        names = np.array([not isinstance(kind, Number) for kind in self.kinds.values()], dtype=bool)
        return (codes >= np.array(self.n_levels, dtype=np.int64)) & names

    def levels_like(self, combination: np.ndarray) -> np.ndarray:
        """Combinations (n, n_keys) of training levels in place of values of one (n_keys,) that training has not.

        Of a set, levels of as many members: none where training has no such set. Numbers are as they are.
        """
        found = combination[None]
        for k, space in enumerate(self.spaces.values()):
            if combination[k] >= space.n_levels and not isinstance(space.kind, Number):
                levels = space.levels_like(int(combination[k]))
                n, found = len(found), np.repeat(found, len(levels), axis=0)
                found[:, k] = np.tile(levels, n)
        return found

    @property
    def of(self) -> list[int | None]:
        """For each key the one that it is a dose of."""
        owners = [kind.of if isinstance(kind, Number) else None for kind in self.kinds.values()]
        return [None if owner is None else self.keys.index(owner) for owner in owners]

    def without_dose(self, codes: np.ndarray) -> np.ndarray:
        """Codes in which a level that is given at a dose of 0 is null, as it has no effect."""
        if not any(owner is not None for owner in self.of):
            return codes
        codes = codes.copy()
        for number, key in enumerate(self.of):
            if key is not None:
                zero = self.spaces[self.keys[number]].is_zero(codes[:, number])
                codes[zero, key] = NULL
        return codes

    def decode(self, codes: np.ndarray, index: pd.Index) -> pd.DataFrame:
        """Turn codes into names, as categoricals with the levels of training; a null condition is missing.

        Parameters
        ----------
        codes
            Condition codes, (cells, n_keys), -1 where a condition is null.
        index
            Names of the cells.

        Returns
        -------
        pd.DataFrame
            One column per key.
        """
        return pd.DataFrame(
            {key: space.names_of(codes[:, k]) for k, (key, space) in enumerate(self.spaces.items())}, index=index
        )


def _are_several(given: Any) -> bool:
    """Whether these are several levels, and not one."""
    several = isinstance(given, Sequence | pd.Series | pd.Index | pd.Categorical | np.ndarray)
    return several and not isinstance(given, str | bytes) and getattr(given, "ndim", 1) > 0
