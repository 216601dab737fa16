"""Rows of the training data that a model remembers."""

from __future__ import annotations

from typing import Any

import numpy as np


class TrainingRows:
    """Attribute of a model with rows of its training data, which is refused when other cells are in these rows.

    Cells may have been removed from the AnnData in place (``sc.pp.filter_cells`` does), or ``model.adata`` set anew.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __set__(self, model: Any, rows: np.ndarray | None) -> None:
        model.__dict__[self.name] = rows, None if rows is None else model.adata.obs_names, model.n_adatas

    def __get__(self, model: Any, owner: type) -> Any:
        if model is None:
            return self
        rows, names, n_adatas = model.__dict__[self.name]
        is_other = model.adata is None or n_adatas != model.n_adatas
        if rows is not None and (is_other or not names.equals(model.adata.obs_names)):
            raise RuntimeError(
                f"{self.name}: the cells of model.adata are no longer those that train was called with (another "
                "AnnData may have others under the same names), so its rows would name others. Take the names of "
                f"cells before you change the AnnData: names = model.adata.obs_names[model.{self.name}]."
            )
        return rows
