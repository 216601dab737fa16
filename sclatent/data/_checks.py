"""Checks of what a user hands over, before any work and before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ._reading import by_rows, place_of, row_blocks, totals

WHOLE = 1e-3, 1e-5  # how far a whole number may be off by rounding, and times the number, more


def get_matrix(adata: AnnData, layer: str | None) -> Any:
    """Return X or a layer, as it is stored.

    Parameters
    ----------
    adata
        Cells.
    layer
        The layer; None is X.

    Raises
    ------
    KeyError
        If there is no such layer.
    ValueError
        If X is empty.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.data import get_matrix
    >>> adata = sclatent.datasets.simulate(10, 20, store_mean=True)
    >>> get_matrix(adata, None) is adata.X, get_matrix(adata, "mean").shape
    (True, (10, 20))
    """
    if layer is None:
        if adata.X is None:
            raise ValueError("adata.X is empty: give layer=, the name of the layer that holds the counts.")
        return adata.X
    if layer not in adata.layers:
        names = [name for name in adata.layers if name is not None]  # None is X, from anndata 0.13 on
        raise KeyError(f"layer={layer!r} is not in adata.layers, which has {names}.")
    return adata.layers[layer]


def check_obs(adata: AnnData, argument: str = "adata") -> None:
    """Raise a ``TypeError`` if obs is not in memory, as it is not of an AnnData that was read lazily.

    Parameters
    ----------
    adata
        Cells.
    argument
        What to call them in a message.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.data import check_obs
    >>> check_obs(sclatent.datasets.simulate(10, 3))
    """
    if not isinstance(adata.obs, pd.DataFrame):
        raise TypeError(
            f"{argument}.obs is a {type(adata.obs).__name__}, which is not in memory: read it by {argument}.obs = "
            f"{argument}.obs.to_memory(), which leaves X where it is, or all by {argument} = {argument}.to_memory()."
        )


def check_counts(matrix: Any, where: str, *, is_count_data: bool = True, columns: np.ndarray | None = None) -> None:
    """Raise a ``ValueError`` unless a matrix holds what a model can be trained on.

    Parameters
    ----------
    matrix
        Cells x genes, in memory or not, as of :func:`by_rows`.
    where
        What to call the matrix in a message.
    is_count_data
        Whether values must be whole numbers.
    columns
        The genes of which every cell must have some count; all by default.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import check_counts
    >>> check_counts(np.array([[1.0, 0.0], [0.0, 3.0]]), "adata.X")
    >>> check_counts(np.array([[0.5, 0.0]]), "adata.X")
    Traceback (most recent call last):
        ...
    ValueError: adata.X has values that are not whole numbers (such as 0.5); raw counts were expected. ...
    """
    if 0 in matrix.shape:
        raise ValueError(
            f"{where} has {matrix.shape[0]} cells and {matrix.shape[1]} genes: there must be some of both."
        )
    matrix = by_rows(matrix, where)
    for rows, block in row_blocks(matrix):
        values = block.data if sparse.issparse(block) else block
        if not np.isfinite(values).all():
            raise ValueError(f"{where} has values that are NaN or infinite: remove or replace them.")
        if (values < 0).any():
            raise ValueError(
                f"{where} has negative values (smallest: {values.min():g}); raw counts were expected. Scaled data "
                "cannot be used: give layer=, the layer that holds the raw counts."
            )
        if is_count_data and (values != np.floor(values)).any():
            cure = (
                "Give layer=, the layer that holds the counts, or use is_count_data=False with "
                'gene_likelihood="normal" for log-normalised values. Counts with fractions, such as after removal of '
                "ambient RNA, can be rounded: adata.X.rint()."
            )
            raise ValueError(not_whole(where, place_of(where), (block for _, block in row_blocks(matrix)), cure))
        counted = block if columns is None else block[:, columns]
        empty = np.flatnonzero(totals(counted, axis=1) == 0)
        if len(empty):
            raise ValueError(
                f"{where} has cells without any counts{'' if columns is None else ' in the genes of the model'} "
                f"(the first is row {rows.start + empty[0]}): "
                "remove them, for instance by sc.pp.filter_cells(adata, min_counts=1)."
            )


def not_whole(where: str, place: str, blocks: Iterable[np.ndarray | sparse.csr_matrix], cure: str) -> str:
    """Say of counts some of which are not whole what is wrong with them, and what to do.

    Parameters
    ----------
    where, place
        What to call the counts, in words and in code.
    blocks
        They, in parts.
    cure
        What to do, unless all are whole but for rounding.

    Returns
    -------
    str
        The message.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import not_whole
    >>> print(not_whole("adata.X", "adata.X", [np.array([[2.000001, 0.0]])], "Give layer=."))
    adata.X has values that are not whole numbers (such as 2.000001); raw counts were expected. All are whole but for
    rounding, ... adata.X = adata.X.round().
    """
    example, rounded = None, "round"
    for block in blocks:
        values, rounded = (block.data, "rint") if sparse.issparse(block) else (block, "round")
        off = np.abs(values - np.rint(values))
        far = off > WHOLE[0] + WHOLE[1] * values
        if far.any():
            example = values[far][0]
            break
        if example is None and off.any():
            example = values[off > 0][0]
    else:
        cure = (
            "All are whole but for rounding, as counts are that were made from log-normalised values. Round them, "
            f"{place} = {place}.{rounded}()."
        )
    return f"{where} has values that are not whole numbers (such as {example!s}); raw counts were expected. {cure}"


def positions_of(indices: Sequence[int] | slice | None, n: int) -> np.ndarray:
    """Rows of n cells that indices name: numbers, a mask or a slice; all by default. Raises if there are none."""
    try:
        cells = np.atleast_1d(np.arange(n)[slice(None) if indices is None else indices])
    except IndexError as error:
        raise IndexError(
            f"indices={indices!r} must be rows of {n} cells: numbers from 0 to {n - 1}, or a mask."
        ) from error
    if not len(cells):
        raise ValueError(f"indices={indices!r} names no cell.")
    return cells


def check_var_names(adata: AnnData) -> None:
    """Raise a ``ValueError`` if gene names are not unique.

    Parameters
    ----------
    adata
        Cells x genes.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.data import check_var_names
    >>> adata = sclatent.datasets.simulate(10, 3)
    >>> check_var_names(adata)
    >>> adata.var_names = ["CD3D", "CD3D", "ACTB"]
    >>> check_var_names(adata)
    Traceback (most recent call last):
        ...
    ValueError: adata.var_names has duplicates (such as 'CD3D'): call adata.var_names_make_unique() first.
    """
    if not adata.var_names.is_unique:
        twice = adata.var_names[adata.var_names.duplicated()][0]
        raise ValueError(
            f"adata.var_names has duplicates (such as {twice!r}): call adata.var_names_make_unique() first."
        )


def check_categorical(obs: pd.DataFrame, key: str, argument: str, min_levels: int = 1) -> None:
    """Raise unless a column of obs is complete and has enough levels to condition on.

    Parameters
    ----------
    obs
        Table of cells.
    key
        The column.
    argument
        What a message calls the argument that it was given by.
    min_levels
        How many different levels there must be.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If values are missing, or levels too few.

    Examples
    --------
    >>> import pandas as pd
    >>> from sclatent.data import check_categorical
    >>> obs = pd.DataFrame({"condition": ["control", "control"]})
    >>> check_categorical(obs, "condition", "condition_keys", min_levels=2)
    Traceback (most recent call last):
        ...
    ValueError: condition_keys: adata.obs['condition'] has only the level 'control'; ...
    """
    if key not in obs:
        raise KeyError(f"{argument}: {key!r} is not a column of adata.obs, which has {list(obs.columns)}.")
    column = obs[key]
    if column.isna().any():
        raise ValueError(
            f"{argument}: adata.obs[{key!r}] is missing for {int(column.isna().sum())} cells: fill it in or remove "
            "those cells."
        )
    levels = column.unique()
    if len(levels) < min_levels:
        raise ValueError(
            f"{argument}: adata.obs[{key!r}] has only the level {levels[0]!r}; a condition needs at least {min_levels} "
            "levels."
        )


def check_no_empty_level(obs: pd.DataFrame, key: str, argument: str) -> None:
    """Raise a ``ValueError`` if a categorical column has a level without a cell, of which nothing can be learned.

    Parameters
    ----------
    obs
        Table of cells.
    key
        The column.
    argument
        What a message calls the argument that it was given by.

    Examples
    --------
    >>> import pandas as pd
    >>> from sclatent.data import check_no_empty_level
    >>> obs = pd.DataFrame({"donor": pd.Categorical(["A", "B"], categories=["A", "B", "C"])})
    >>> check_no_empty_level(obs, "donor", "condition_keys")
    Traceback (most recent call last):
        ...
    ValueError: condition_keys: adata.obs['donor'] has levels without a cell (such as 'C'): ...
    """
    if isinstance(obs[key].dtype, pd.CategoricalDtype):
        empty = obs[key].cat.categories.difference(obs[key].unique(), sort=False)
        if len(empty):
            raise ValueError(
                f"{argument}: adata.obs[{key!r}] has levels without a cell (such as {empty[0]!r}): remove them by "
                f"adata.obs[{key!r}] = adata.obs[{key!r}].cat.remove_unused_categories()."
            )


def check_size_factors(obs: pd.DataFrame, key: str) -> None:
    """Raise unless a column of obs holds positive finite numbers.

    Parameters
    ----------
    obs
        Table of cells.
    key
        The column.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If a value is not a positive finite number.

    Examples
    --------
    >>> import pandas as pd
    >>> from sclatent.data import check_size_factors
    >>> check_size_factors(pd.DataFrame({"size_factor": [0.5, 2.0]}), "size_factor")
    >>> check_size_factors(pd.DataFrame({"size_factor": [0.5, 0.0]}), "size_factor")
    Traceback (most recent call last):
        ...
    ValueError: size_factor_key: adata.obs['size_factor'] must be a positive finite number for every cell.
    """
    if key not in obs:
        raise KeyError(f"size_factor_key: {key!r} is not a column of adata.obs, which has {list(obs.columns)}.")
    values = pd.to_numeric(obs[key], errors="coerce").to_numpy(float)
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"size_factor_key: adata.obs[{key!r}] must be a positive finite number for every cell.")


def check_keys(condition_keys: Sequence[str] | str | None) -> list[str]:
    """Return condition keys as a list of different names.

    Parameters
    ----------
    condition_keys
        One name or several, or None.

    Raises
    ------
    ValueError
        If a name is there twice.

    Examples
    --------
    >>> from sclatent.data import check_keys
    >>> check_keys("cell_type"), check_keys(["cell_type", "condition"]), check_keys(None)
    (['cell_type'], ['cell_type', 'condition'], [])
    """
    keys = [condition_keys] if isinstance(condition_keys, str) else list(condition_keys or [])
    if len(set(keys)) < len(keys):
        raise ValueError(f"condition_keys={keys} names a column twice.")
    return keys
