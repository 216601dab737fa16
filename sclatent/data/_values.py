"""The values of a condition key: those of training, and those that sampling asks for."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import torch

from sclatent.nn import NULL, Values

from ._kinds import FeatureTable, Kind, Number, Set
from ._levels import code_of, level_key, plain_level, short_repr
from ._warnings import warn_user

LOCK = threading.Lock()  # of all values: a model can be copied
ROUNDING = 1e-6  # of the range of the numbers of training, by which one that is asked for may be rounded


class ValueSpace:
    """Codes of the values of a key, and what is known of them.

    The first codes are those of the levels of training. Where there are features, the next as many are the same levels
    without their identity, of which the features alone are known. Values that only sampling asks for come after.

    Parameters
    ----------
    key
        The key.
    kind
        Its kind.
    levels
        Levels of training.
    features
        Features of levels, or of members.
    """

    def __init__(self, key: str, kind: Kind, levels: list[Any], features: FeatureTable | None = None) -> None:
        self.key, self.kind, self.levels, self.features = key, kind, levels, features
        self.n_levels = len(levels)
        self.asked: list[Any] = []
        self._codes: dict[Any, int] = {}
        for i, level in enumerate(levels):
            self._codes.setdefault(self._identity(level), i)
        members = {m for level in levels for m in kind.members_of(level)} if isinstance(kind, Set) else set()
        self.members = sorted(members)
        self.low, self.high, self._unit, self._lowest = 0.0, 1.0, 1.0, 0.0
        if isinstance(kind, Number):
            numbers = np.array([kind.value_of(level) for level in levels])
            self._unit = float(min(numbers[numbers > 0], default=1.0))
            scaled = kind.scaled(numbers, self._unit)
            self._lowest, self.high = float(scaled.min()), float(scaled.max())
            self.low = 0.0 if kind.of else self._lowest  # where there is no effect, measured or not
        self._values: Values | None = None

    @property
    def is_of_names(self) -> bool:
        """Whether nothing is known of a value but which it is."""
        return not isinstance(self.kind, Set | Number) and self.features is None

    @property
    def n_fixed(self) -> int:
        """Number of codes before those that only sampling asks for."""
        return self.n_levels * (1 if self.features is None else 2)

    def _level_of(self, code: int) -> Any:
        return [*self.levels, *self.levels[: self.n_fixed - self.n_levels], *self.asked][code]

    def _identity(self, level: Any) -> Hashable:
        if isinstance(self.kind, Set):
            return self.kind.members_of(level)
        return self.kind.value_of(level) if isinstance(self.kind, Number) else level_key(level)

    def find(self, level: Any, default: int | None = None) -> int | None:
        """Code of a level of training."""
        try:
            code = self._code_of(level)
        except ValueError:
            code = None
        return default if code is None or code >= self.n_levels else code

    def _code_of(self, level: Any) -> int | None:
        if isinstance(self.kind, Set | Number):
            return self._codes.get(self._identity(level))
        return code_of(level, self._codes)

    def code(self, level: Any, argument: str, hint: str = "") -> int:
        """Code of a value, also of one that training has not; raises unless something is known of it."""
        where = f"{argument}: {short_repr(plain_level(level))} is no level of {self.key!r}"
        try:
            identity, code = self._identity(level), self._code_of(level)
        except ValueError as error:
            raise ValueError(f"{where}: {error}.") from error
        if code is None or code >= self.n_fixed:  # also where it was asked for before: a warning is for every call
            self._check_known(level, where, hint)
        if code is not None:
            return code
        with LOCK:
            self.asked.append(plain_level(level))
            self._codes[identity] = self.n_fixed + len(self.asked) - 1
            self._values = None
            return self._codes[identity]

    def _check_known(self, level: Any, where: str, hint: str) -> None:
        if isinstance(self.kind, Number):
            scaled = float(self.kind.scaled(np.array(float(level)), self._unit))
            beyond = max(self._lowest - scaled, scaled - self.high) / max(self.high - self._lowest, 1e-300)
            if beyond > ROUNDING:
                known = [self.kind.value_of(level) for level in self.levels]
                warn_user(
                    f"{self.key}={short_repr(plain_level(level))} is beyond the numbers of training, which go from "
                    f"{min(known):g} to {max(known):g}: what is made of it is extrapolated, by {beyond:.2%} of their "
                    "range."
                )
            return
        known_names = self.features.place if self.features is not None else {}
        if isinstance(self.kind, Set):
            missing = [m for m in self.kind.members_of(level) if m not in known_names and m not in self.members]
            if missing:
                raise ValueError(
                    f"{where}: its member {missing[0]!r} was not measured, and has no features. Members are "
                    f"{short_repr(self.members)}."
                )
        elif not known_names or plain_level(level) not in known_names:
            more = ", nor has it features" if self.features is not None else ""
            raise ValueError(f"{where}, which has {short_repr(self.levels)}{more}.{hint}")

    def add_features(self, features: pd.DataFrame, argument: str) -> None:
        """Take features of further levels or members, which can be asked for then."""
        if self.features is None:
            raise ValueError(f"{argument}: this model was trained without features of {self.key!r}.")
        with LOCK:
            self.features = self.features.with_more(features, argument)

    def values(self) -> Values:
        """What is known of all values, by their codes."""
        if self._values is None:
            self._values = self._make_values()
        return self._values

    def _make_values(self) -> Values:
        every = [*self.levels, *self.asked]
        n, n_twins = len(every), self.n_fixed - self.n_levels
        twin = np.r_[0 : self.n_levels, [*range(n_twins)], self.n_levels : n].astype(int)  # where each code is in every
        members, features, number, unknown = (np.zeros((n, 0)) for _ in range(4))
        if isinstance(self.kind, Set):
            sets = [self.kind.members_of(level) for level in every]
            every_member = dict.fromkeys([*self.members, *(m for of_set in sets for m in of_set)])
            which = np.array([[m in of_set for m in every_member] for of_set in map(set, sets)], dtype=float)
            size = np.array([[len(of_set)] for of_set in sets], dtype=float)
            members = np.hstack([size, which.reshape(n, len(every_member))])
        if self.features is not None:
            features, unknown = self._features_of([self._names_in(level) for level in every])
        if isinstance(self.kind, Number):
            scaled = self.kind.scaled(np.array([self.kind.value_of(level) for level in every]), self._unit)
            number = ((scaled - self.low) / max(self.high - self.low, 1e-300))[:, None]
        of_codes = members[twin]
        of_codes[self.n_levels : self.n_fixed, 1:] = 0.0  # but for the number of members
        parts = (of_codes, features[twin], number[twin], unknown[twin])
        return Values(*(torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32)) for part in parts))

    def _names_in(self, level: Any) -> tuple[Any, ...]:
        """Names that have features: the members of a set, or the level itself."""
        return self.kind.members_of(level) if isinstance(self.kind, Set) else (level,)

    def _features_of(self, sets: list[tuple[Any, ...]]) -> tuple[np.ndarray, np.ndarray]:
        """Sums of the features of names (n, n_features), and how far they may be from what is not known of one.

        A name without features has the mean of those of training, and a column of its own, as long as these are from
        their mean. So it is as far from all others as they are from each other, and members of sets share it.
        """
        assert self.features is not None
        names = list(dict.fromkeys(name for of_set in sets for name in of_set))
        place = {name: i for i, name in enumerate(names)}
        of_name = self.features.rows(names).astype(float)
        is_known = np.isfinite(of_name).all(axis=1)
        if isinstance(self.kind, Set):
            is_known &= of_name.any(axis=1)  # a member that adds nothing says nothing
        n_training = len({name for of_set in sets[: self.n_levels] for name in of_set})
        of_training = of_name[:n_training][is_known[:n_training]]
        of_name[~is_known] = center = of_training.mean(axis=0)
        column = {names[i]: k for k, i in enumerate(np.flatnonzero(~is_known))}
        unknown = np.zeros((len(sets), len(column)))
        for i, of_set in enumerate(sets):
            unknown[i, [column[name] for name in of_set if name in column]] = 1.0
        length = np.sqrt(np.square(of_training - center).sum(axis=1).mean())
        return np.array([of_name[[place[name] for name in s]].sum(axis=0) for s in sets]), length * unknown

    def check_member(self, member: Any, argument: str) -> None:
        """Raise unless sets can have a member."""
        if not isinstance(self.kind, Set):
            raise ValueError(f"{argument}: {self.key!r} is no set, so that it has no member {short_repr(member)}.")
        if member not in self.members and (self.features is None or member not in self.features.place):
            raise ValueError(
                f"{argument}: {short_repr(member)} is no member of {self.key!r}, which has {short_repr(self.members)}."
            )

    def without_member(self, codes: np.ndarray, member: str) -> np.ndarray:
        """Codes (cells,) of the same sets without a member; null where nothing stands for a set without any."""
        assert isinstance(self.kind, Set)
        changed = codes.copy()
        for code in np.unique(codes[codes != NULL]):
            members = self.kind.members_of(self._level_of(int(code)))
            if member in members:
                rest = self.kind.delimiter.join(m for m in members if m != member) or self.kind.control
                changed[codes == code] = NULL if rest is None else self.code(rest, "guidance_weight")
        return changed

    def levels_like(self, code: int) -> np.ndarray:
        """Codes of the levels of training that a value can be compared with: sets of as many members, or all."""
        if not isinstance(self.kind, Set):
            return np.arange(self.n_levels)
        size = len(self.kind.members_of(self._level_of(code)))
        return np.array(
            [i for i, level in enumerate(self.levels) if len(self.kind.members_of(level)) == size], dtype=int
        )

    def of_training(self, codes: np.ndarray) -> np.ndarray:
        """Codes in which a value that training has not is the nearest number that it has, or else null."""
        unseen = codes >= self.n_levels
        if not isinstance(self.kind, Number) or not unseen.any():
            return np.where(unseen, NULL, codes)
        numbers = self.values().number.numpy()[:, 0]
        nearest = np.abs(numbers[:, None] - numbers[: self.n_levels]).argmin(axis=1)
        return np.where(unseen, nearest[codes], codes)

    @property
    def distinct(self) -> np.ndarray:
        """Codes of the levels of training, without those that say the same as another."""
        return np.unique([self.find(level) for level in self.levels])

    def is_zero(self, codes: np.ndarray) -> np.ndarray:
        """Which codes are the number 0, (cells,)."""
        numbers = np.array([float(level) for level in [*self.levels, *self.asked]])
        return (codes != NULL) & (numbers[codes] == 0)

    def names_of(self, codes: np.ndarray) -> pd.Categorical | np.ndarray:
        """Values of codes (cells,) as they were given: numbers, or a categorical with the levels of training first."""
        every = [*self.levels, *self.levels[: self.n_fixed - self.n_levels], *self.asked]
        if isinstance(self.kind, Number):
            return np.array([*(float(level) for level in every), np.nan])[codes]
        asked = [self.asked[code - self.n_fixed] for code in np.unique(codes) if code >= self.n_fixed]
        categories = [*self.levels, *asked]
        place = {level_key(level): i for i, level in enumerate(categories)}
        of_code = np.array([*(place.get(level_key(level), NULL) for level in every), NULL])
        return pd.Categorical.from_codes(of_code[codes], categories=categories)
