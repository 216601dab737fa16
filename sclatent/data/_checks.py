"""Checks of what a user hands over, before any work and before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ._levels import factorize, short_repr
from ._reading import by_rows, place_of, row_blocks, totals
from ._warnings import warn_user

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
        blocks = (block for _, block in row_blocks(matrix))
        check_block(block, where, range(rows.start, rows.stop), blocks, is_count_data=is_count_data, columns=columns)


def check_block(
    block: np.ndarray | sparse.csr_matrix,
    where: str,
    rows: Sequence[int],
    blocks: Iterable[np.ndarray | sparse.csr_matrix],
    *,
    is_count_data: bool = True,
    columns: np.ndarray | None = None,
) -> None:
    """Raise a ``ValueError`` unless some rows of a matrix hold what a model can be trained on.

    Parameters
    ----------
    block, rows
        The values, and which rows they are.
    where, is_count_data, columns
        As of :func:`check_counts`.
    blocks
        All that is known of the matrix, to tell whether values are whole but for rounding.
    """
    values = block if isinstance(block, np.ndarray) else block.data
    check_block_is_finite(block, where, rows)
    if (values < 0).any():
        raise ValueError(
            f"{where} has negative values (smallest: {values.min():g}; the first in row "
            f"{rows[first_row(block, values < 0)]}); raw counts were expected. Scaled data cannot be used: "
            "give layer=, the layer that holds the raw counts."
        )
    if is_count_data and (values != np.floor(values)).any():
        cure = (
            "Give layer=, the layer that holds the counts, or use is_count_data=False with "
            'gene_likelihood="normal" for log-normalised values. Counts with fractions, such as after removal of '
            "ambient RNA, can be rounded: adata.X.rint()."
        )
        raise ValueError(not_whole(where, place_of(where), blocks, cure))
    counted = block if columns is None else block[:, columns]
    empty = np.flatnonzero(totals(counted, axis=1) == 0)
    if len(empty):
        raise ValueError(
            f"{where} has cells without any counts{'' if columns is None else ' in the genes of the model'} "
            f"(the first is row {rows[empty[0]]}): "
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
        values, rounded = (block, "round") if isinstance(block, np.ndarray) else (block.data, "rint")
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


def check_block_is_finite(block: Any, where: str, rows: Sequence[int]) -> None:
    """Raise a ``ValueError`` if a block has a value that is no number; ``rows`` says which rows of the data it is."""
    values = np.asarray(block.data if sparse.issparse(block) else block)
    if values.dtype.kind in "biu":
        return
    good = np.isfinite(values)
    if values.dtype.itemsize > 4:
        good &= np.abs(values) <= np.finfo(np.float32).max  # of which type all is computed
    if not good.all():
        value = values[~good].flat[0]
        what = "NaN" if np.isnan(value) else "infinite" if np.isinf(value) else "too large for single precision"
        raise ValueError(
            f"{where} has values that are {what} (the first in row {rows[first_row(block, ~good)]}): remove or "
            "replace them."
        )


def first_row(block: Any, wanted: np.ndarray) -> int:
    """Return the first row of a block with a value, of those that are stored, that is wanted."""
    if sparse.issparse(block):
        return int(block.tocoo().row[wanted].min())
    return int(np.argwhere(wanted)[0, 0])


def raw_counts_hint(adata: AnnData) -> str:
    """Where counts are that were not found elsewhere: a sentence if ``adata.raw`` holds some, else nothing.

    Parameters
    ----------
    adata
        Cells.

    Returns
    -------
    str
        What to add to a message.

    Examples
    --------
    >>> import numpy as np
    >>> import sclatent
    >>> from sclatent.data import raw_counts_hint
    >>> adata = sclatent.datasets.simulate(10, 20)
    >>> adata.raw = adata.copy()
    >>> raw_counts_hint(adata)
    ' adata.raw, which is not looked at, holds counts: adata = adata.raw.to_adata() has them in X.'
    """
    if adata.raw is None:
        return ""
    try:
        check_counts(adata.raw.X[:1024], "adata.raw.X")
    except ValueError:
        return ""
    return " adata.raw, which is not looked at, holds counts: adata = adata.raw.to_adata() has them in X."


def positions_of(indices: Sequence[int] | slice | None, n: int) -> np.ndarray:
    """Rows of n cells that indices name: numbers, a mask or a slice; all by default. Raises if there are none."""
    which = slice(None) if indices is None else list(indices) if isinstance(indices, tuple) else indices
    try:
        cells = np.atleast_1d(np.arange(n)[which])
        if isinstance(which, bool | np.bool_) or cells.ndim > 1:
            raise IndexError
    except IndexError as error:
        raise IndexError(
            f"indices={short_repr(indices)} must be rows of {n} cells: numbers from 0 to {n - 1}, or a mask."
        ) from error
    if not len(cells):
        raise ValueError(f"indices={short_repr(indices)} names no cell.")
    return cells


def check_adata(adata: Any, argument: str = "adata") -> None:
    """Raise a ``TypeError`` unless this is an AnnData whose obs is in memory.

    Parameters
    ----------
    adata
        What was given.
    argument
        The argument that it was given by.

    Examples
    --------
    >>> import pandas as pd
    >>> from sclatent.data import check_adata
    >>> check_adata(pd.DataFrame({"gene": [1.0]}))
    Traceback (most recent call last):
        ...
    TypeError: adata is of type DataFrame: an AnnData was expected.
    """
    if isinstance(adata, AnnData):
        check_obs(adata, argument)
        return
    modalities = getattr(adata, "mod", None)
    if isinstance(modalities, Mapping) and modalities:
        one = "rna" if "rna" in modalities else next(iter(modalities))
        raise TypeError(
            f"{argument} is of type {type(adata).__name__}, with the modalities {list(modalities)}: a model takes one "
            f'of them, such as mdata["{one}"].'
        )
    raise TypeError(f"{argument} is of type {type(adata).__name__}: an AnnData was expected.")


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


def _only_column(obs: pd.DataFrame, key: str, argument: str) -> pd.Series:
    """The column of a name; raises unless there is one, and one alone."""
    names = list(obs.columns)
    if key not in names:
        raise KeyError(f"{argument}: {key!r} is not a column of adata.obs, which has {names}.")
    if names.count(key) > 1:
        raise ValueError(
            f"{argument}: adata.obs has {names.count(key)} columns with the name {key!r}. Keep the first of each by "
            "adata.obs = adata.obs.loc[:, ~adata.obs.columns.duplicated()]."
        )
    return obs[key]


def check_categorical(
    obs: pd.DataFrame,
    key: str,
    argument: str,
    min_levels: int = 1,
    cure: str = "fill it in or remove those cells",
) -> None:
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
    cure
        What to do where values are missing.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If there are two such columns, values are missing, or levels too few.

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
    column = _only_column(obs, key, argument)
    if not len(column):
        raise ValueError(f"{argument}: adata.obs[{key!r}] has no cells.")
    if column.isna().any():
        raise ValueError(f"{argument}: adata.obs[{key!r}] is missing for {int(column.isna().sum())} cells: {cure}.")
    if isinstance(column.dtype, np.dtype) and not column.dtype.isnative:
        native = column.dtype.newbyteorder("=")
        raise ValueError(
            f"{argument}: adata.obs[{key!r}] is of type {column.dtype.str}, whose order of bytes pandas cannot use: "
            f'adata.obs[{key!r}] = adata.obs[{key!r}].astype("{native}") brings them into that of this machine.'
        )
    try:
        levels = factorize(column)[1]
    except TypeError as error:
        raise ValueError(
            f"{argument}: adata.obs[{key!r}] has values that cannot be levels, such as "
            f"{short_repr(column.iloc[0])} of type {type(column.iloc[0]).__name__}. Text was expected: "
            f"adata.obs[{key!r}] = adata.obs[{key!r}].astype(str) makes text of them."
        ) from error
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
    column = _only_column(obs, key, "size_factor_key")
    is_time = column.dtype.kind in "mM"
    values = pd.to_numeric(column, errors="coerce").to_numpy(float)
    if is_time or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"size_factor_key: adata.obs[{key!r}] must be a positive finite number for every cell.")


def check_keys(condition_keys: Sequence[str] | str | None) -> list[str]:
    """Return condition keys as a list of different names.

    Parameters
    ----------
    condition_keys
        One name or several (a list, tuple, array or Index), or None.

    Raises
    ------
    ValueError
        If a name is there twice or is no string, or if names are in no order.

    Examples
    --------
    >>> import pandas as pd
    >>> from sclatent.data import check_keys
    >>> check_keys("cell_type"), check_keys(pd.Index(["cell_type", "condition"])), check_keys(None)
    (['cell_type'], ['cell_type', 'condition'], [])
    """
    if condition_keys is None:
        return []
    if isinstance(condition_keys, Set | Mapping | pd.DataFrame):
        raise ValueError(
            f"condition_keys={short_repr(condition_keys)} is of type {type(condition_keys).__name__}: a list of names "
            'was expected, whose order is that of the codes, such as ["cell_type", "condition"].'
        )
    several = isinstance(condition_keys, Sequence | np.ndarray | pd.Index | pd.Series)
    keys = list(condition_keys) if several and not isinstance(condition_keys, str | bytes) else [condition_keys]
    for key in keys:
        check_column_name(key, "condition_keys")
    if len(set(keys)) < len(keys):
        raise ValueError(f"condition_keys={short_repr(keys)} names a column twice.")
    return [str(key) for key in keys]


def check_place(**names: str | None) -> None:
    """Raise a ``ValueError`` unless names of a layer or an entry of obsm, by their arguments, are strings or None.

    Parameters
    ----------
    **names
        Names by argument.

    Examples
    --------
    >>> from sclatent.data import check_place
    >>> check_place(layer=["counts"])
    Traceback (most recent call last):
        ...
    ValueError: layer=['counts'] must be a string, or None for X.
    """
    for argument, name in names.items():
        if name is not None and not isinstance(name, str):
            raise ValueError(f"{argument}={short_repr(name)} must be a string, or None for X.")


def check_column_name(name: Any, argument: str) -> None:
    """Raise a ``ValueError`` unless this may be the name of a column of obs: a string that is not taken.

    Parameters
    ----------
    name
        The name.
    argument
        What a message calls the argument that it was given by.
    """
    if not isinstance(name, str):
        raise ValueError(
            f"{argument}: {short_repr(name)} must be a string, the name of a column of adata.obs. Columns that are "
            "named by numbers get strings by adata.obs.columns = adata.obs.columns.astype(str)."
        )
    if name.startswith("_scvi"):
        raise ValueError(
            f"{argument}: columns with names such as {name!r} are written by scvi-tools, and generated cells lack "
            "them: give the column that it was made from, or rename it."
        )


def check_roles(written: Sequence[str] = (), **roles: Sequence[str] | str | None) -> None:
    """Raise a ``ValueError`` if a column of obs has two roles, or the name of one that is written.

    Parameters
    ----------
    written
        Columns that generated cells have besides.
    **roles
        Name or names of columns, by the argument that they were given by.

    Examples
    --------
    >>> from sclatent.data import check_roles
    >>> check_roles(condition_keys=["depth", "treatment"], size_factor_key="depth")
    Traceback (most recent call last):
        ...
    ValueError: size_factor_key: 'depth' was given by condition_keys, too: a column can be one of the two alone. ...
    """
    taken: dict[str, str] = {}
    for argument, names in roles.items():
        given: list[Any] = names if isinstance(names, list) else [] if names is None else [names]
        for name in given:
            check_column_name(name, argument)
            if name in written:
                raise ValueError(
                    f"{argument}: {name!r} is a column that is written for generated cells. Rename yours by "
                    f'adata.obs = adata.obs.rename(columns={{"{name}": "my_{name}"}}).'
                )
            if name in taken:
                raise ValueError(
                    f"{argument}: {name!r} was given by {taken[name]}, too: a column can be one of the two alone. "
                    f"Leave it out of {taken[name]} or of {argument}."
                )
            taken[name] = argument


def warn_of_copies(obs: pd.DataFrame, keys: Sequence[str]) -> None:
    """Warn of columns that say the same of every cell, so that their effects cannot be told apart.

    Parameters
    ----------
    obs
        Table of cells.
    keys
        Columns that the model is told.

    Examples
    --------
    >>> import pandas as pd
    >>> from sclatent.data import warn_of_copies
    >>> warn_of_copies(pd.DataFrame({"donor": ["A", "A", "B"], "dose": [0, 1, 1]}), ["donor", "dose"])
    """
    codes = {key: factorize(obs[key])[0].astype(np.int64) for key in keys}
    for one, other in combinations(keys, 2):
        n_pairs = len(np.unique(codes[one] * len(obs) + codes[other]))
        if n_pairs == len(np.unique(codes[one])) == len(np.unique(codes[other])) > 1:
            warn_user(
                f"adata.obs[{one!r}] and adata.obs[{other!r}] say the same of every cell, so that their effects cannot "
                "be told apart: leave one of them out."
            )
