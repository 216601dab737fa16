"""From the names of conditions to codes and back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from sclatent.nn import OPEN


class Conditions:
    """The condition keys of a model and the levels of each.

    Parameters
    ----------
    levels
        Levels of each key, in the order of their codes.
    argument
        What a message calls the argument that they are given by.

    Examples
    --------
    >>> import pandas as pd
    >>> from sclatent.data import Conditions
    >>> conditions = Conditions({"cell_type": ["B", "T"], "condition": ["control", "stimulated"]})
    >>> conditions.encode({"cell_type": "T"}, n_cells=1).tolist()  # the condition is left open
    [[1, -1]]
    >>> codes = conditions.encode(pd.DataFrame({"cell_type": ["B", "T"], "condition": ["control", "stimulated"]}))
    >>> codes.tolist()
    [[0, 0], [1, 1]]
    >>> conditions.decode(codes, pd.Index(["cell_0", "cell_1"]))
           cell_type   condition
    cell_0         B     control
    cell_1         T  stimulated
    """

    def __init__(self, levels: Mapping[str, list[Any]], argument: str = "conditions") -> None:
        self.argument = argument
        self.levels = {key: [_plain(level) for level in values] for key, values in levels.items()}
        self._codes = {key: {level: i for i, level in enumerate(values)} for key, values in self.levels.items()}

    @property
    def keys(self) -> list[str]:
        """Names of the condition keys."""
        return list(self.levels)

    @property
    def n_levels(self) -> list[int]:
        """Number of levels of each key."""
        return [len(values) for values in self.levels.values()]

    def encode(
        self,
        conditions: Mapping[str, Any] | pd.DataFrame | None,
        n_cells: int | None = None,
        argument: str | None = None,
    ) -> np.ndarray:
        """Turn conditions into codes.

        Parameters
        ----------
        conditions
            One level a key for all cells, or a DataFrame with a row a cell. Keys that are not given, and missing values
            in a DataFrame, are left open. Columns of a DataFrame that are no condition are ignored.
        n_cells
            Number of cells; may be left out with a DataFrame.
        argument
            What a message calls these conditions, where they come from elsewhere than usual.

        Returns
        -------
        np.ndarray
            Codes (cells, n_keys), -1 where a key is open.
        """
        argument = self.argument if argument is None else argument
        if isinstance(conditions, pd.DataFrame):
            if n_cells is not None and len(conditions) != n_cells:
                raise ValueError(
                    f"{argument} has {len(conditions)} rows, but {n_cells} cells are asked for: give a row a cell."
                )
            given = {key: conditions[key] for key in self.keys if key in conditions}
            if not given and self.keys:
                raise KeyError(
                    f"{argument} has columns {list(conditions.columns)}, none of which is one of {self.keys}."
                )
            codes = np.full((len(conditions), len(self.keys)), OPEN)
            for key, column in given.items():
                codes[:, self.keys.index(key)] = [OPEN if pd.isna(v) else self._code(key, v, argument) for v in column]
            return codes
        conditions = dict(conditions or {})
        unknown = [key for key in conditions if key not in self.levels]
        if unknown:
            raise KeyError(f"{argument}: {unknown[0]!r} is no condition of this model, which has {self.keys}.")
        code = [
            self._code(key, conditions[key], argument) if conditions.get(key) is not None else OPEN for key in self.keys
        ]
        return np.tile(np.array(code, dtype=np.int64), (n_cells or 1, 1))

    def _code(self, key: str, level: Any, argument: str) -> int:
        code = self._codes[key].get(level) if isinstance(level, Hashable) else None
        if code is None:
            raise ValueError(f"{argument}: {_plain(level)!r} is no level of {key!r}, which has {self.levels[key]}.")
        return code

    def decode(self, codes: np.ndarray, index: pd.Index) -> pd.DataFrame:
        """Turn codes into names, as categoricals with the levels of training; an open key is missing.

        Parameters
        ----------
        codes
            Condition codes, (cells, n_keys), -1 where a key is open.
        index
            Names of the cells.

        Returns
        -------
        pd.DataFrame
            A column a key.
        """
        return pd.DataFrame(
            {
                key: pd.Categorical.from_codes(codes[:, k], categories=values)
                for k, (key, values) in enumerate(self.levels.items())
            },
            index=index,
        )


def _plain(level: Any) -> Any:
    """A level as Python says it: ``1.0`` and not ``np.float64(1.0)``, before a model is saved as after."""
    return level.item() if isinstance(level, np.generic) else level
