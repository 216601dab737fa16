"""Checks of what a user hands over, before any work and before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ._levels import short_repr
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
