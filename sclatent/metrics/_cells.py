"""Cells of an AnnData by group: genes matched by name, counts checked, and read only where and as far as needed."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from sclatent.data import (
    by_rows,
    check_categorical,
    check_obs,
    get_matrix,
    log_normalize_counts,
    not_whole,
    random_stream,
    read_rows,
    row_blocks,
    short_repr,
    totals,
)
from sclatent.data._levels import factorize

from ._projection import log_normalize_dense
from ._table import ALL, MEAN

BLOCK = 2**22  # dense values that are made together: memory does not grow with the cells


class Profile(NamedTuple):
    """Mean log-normalised profile of cells."""

    mean: np.ndarray
    """Mean over cells, (genes,)."""
    noise: np.ndarray
    """Sampling variance of the mean: the unbiased variance over cells, divided by their number, (genes,)."""
    n: int
    """How many cells."""


class CellGroups:
    """Log-normalised cells by the levels of columns of obs, computed from the counts when they are asked for.

    Parameters
    ----------
    adata
        Cells with raw counts.
    genes
        Genes to compare, in their order; ``adata`` may have more, in any order.
    keys
        Column of obs with the groups, or several, whose combinations are the groups; none for one group, ``"all"``.
    argument
        What to call ``adata`` in a message.
    layer
        Layer with the counts; X by default.
    whole
        Whether counts must be whole numbers.

    Attributes
    ----------
    rows
        Rows of every group, by level, or by the tuple of levels of several columns.
    n_genes
        Number of genes.
    names
        Names of the cells.
    """

    def __init__(
        self,
        adata: AnnData,
        genes: pd.Index,
        keys: Sequence[str],
        argument: str,
        layer: str | None = None,
        whole: bool = True,
    ) -> None:
        check_anndata(adata, argument)
        if not len(genes):
            raise ValueError(f"{argument} has no genes: cells with counts of some were expected.")
        self._matrix, self._columns = _counts(adata, genes, argument, layer, whole)
        self.n_genes = len(genes)
        self.names: pd.Index = adata.obs_names
        self._argument = argument
        self.rows: dict[Hashable, np.ndarray]
        self.rows = rows_of_groups(adata.obs, keys, argument) if keys else {ALL: np.arange(adata.n_obs)}

    def take(self, rows: Mapping[Hashable, np.ndarray]) -> CellGroups:
        """The same cells, but only some rows of every group."""
        some = copy(self)
        some.rows = dict(rows)
        return some

    def shuffled(self, seed: int) -> CellGroups:
        """The same cells, rows of every group in random order."""
        rng = random_stream(seed, f"order of {self._argument}")
        return self.take({group: rng.permutation(rows) for group, rows in self.rows.items()})

    def counts(self, rows: np.ndarray) -> np.ndarray | sparse.csr_matrix:
        """Counts of some rows, (rows, genes), dense or CSR as they were given."""
        return _of_genes(read_rows(self._matrix, rows), self._columns)

    def blocks(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray | sparse.csr_matrix]]:
        """Counts of many rows, a block at a time: which of the rows, in the order of the matrix, and their counts."""
        order = np.argsort(rows, kind="stable")
        for start in range(0, len(rows), step := max(1, BLOCK // self.n_genes)):
            some = order[start : start + step]
            yield some, self.counts(rows[some])

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """Total count of some rows, (rows,)."""
        sizes = np.empty(len(rows))
        for some, counts in self.blocks(rows):
            sizes[some] = totals(counts, axis=1)
        return sizes

    def values(self, rows: np.ndarray) -> np.ndarray:
        """Log-normalised cells of some rows, dense (rows, genes), float32."""
        return log_normalize_dense(self.counts(rows))

    def profile(self, rows: np.ndarray) -> Profile:
        """Mean log-normalised profile of some rows."""
        return profile_of((counts for _, counts in self.blocks(rows)), len(rows))

    def mean(self, rows: np.ndarray) -> np.ndarray:
        """The mean of that profile alone, (genes,)."""
        return self.profile(rows).mean


class LogNormalizedCells:
    """The same of cells that are log-normalised already, all of one group.

    Parameters
    ----------
    values
        Log-normalised cells, (cells, genes).
    group
        The group.
    """

    def __init__(self, values: np.ndarray, group: Hashable) -> None:
        self._values = values
        self.rows = {group: np.arange(len(values))}
        self.names = pd.Index([None] * len(values))

    def values(self, rows: np.ndarray) -> np.ndarray:
        """Log-normalised cells of some rows, (rows, genes)."""
        return self._values[rows]

    def profile(self, rows: np.ndarray) -> Profile:
        """Mean log-normalised profile of some rows."""
        return profile_of_values(self._values[rows])


def take_turns(rows: Mapping[Hashable, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Rows of several groups in a random order in which groups take turns, so that the first are of all groups."""
    shuffled = [rng.permutation(r) for r in rows.values()]
    turn = np.concatenate([np.arange(len(r)) for r in shuffled])
    return np.concatenate(shuffled)[np.argsort(turn, kind="stable")]


def profile_of(blocks: Iterable[np.ndarray | sparse.csr_matrix], n_cells: int) -> Profile:
    """Mean log-normalised profile of cells whose counts come in blocks."""
    total = squares = np.zeros(())
    for counts in blocks:
        values = log_normalize_counts(counts)
        total = total + totals(values, axis=0)
        squares = squares + totals(values**2 if isinstance(values, np.ndarray) else values.power(2), axis=0)
    mean = total / n_cells
    return Profile(mean, _noise(np.maximum(squares / n_cells - mean**2, 0), n_cells), n_cells)


def profile_of_values(values: np.ndarray) -> Profile:
    """Mean profile of cells that are log-normalised already, (cells, genes)."""
    variance = values.var(axis=0, dtype=np.float64)
    return Profile(values.mean(axis=0, dtype=np.float64), _noise(variance, len(values)), len(values))


def _noise(variance: np.ndarray, n_cells: int) -> np.ndarray:
    """Sampling variance of a mean, from the variance of cells around it; not known of one cell."""
    return variance / (n_cells - 1) if n_cells > 1 else np.full_like(variance, np.nan)


def rows_of_groups(obs: pd.DataFrame, keys: Sequence[str], argument: str) -> dict[Hashable, np.ndarray]:
    """Rows by level of one column of obs, or by the tuple of levels of several."""
    codes, levels = zip(*(_codes_and_levels(obs, key, argument) for key in keys), strict=True)
    shape = tuple(map(len, levels))
    found, code = np.unique(np.ravel_multi_index(codes, shape), return_inverse=True)
    rows = np.split(np.argsort(code, kind="stable"), np.cumsum(np.bincount(code))[:-1])
    places = zip(*np.unravel_index(found, shape), strict=True)
    combinations = [tuple(of_key[k] for of_key, k in zip(levels, place, strict=True)) for place in places]
    if len(keys) > 1:
        return dict(zip(combinations, rows, strict=True))
    by_level = {level: r for (level,), r in zip(combinations, rows, strict=True)}
    if reserved := {ALL, MEAN}.intersection(by_level):
        raise ValueError(
            f"groupby={keys[0]!r}: {argument} has the levels {sorted(reserved)}, which in the table are all cells and "
            "the mean over the groups: rename them."
        )
    return by_level


def _codes_and_levels(obs: pd.DataFrame, key: str, argument: str) -> tuple[np.ndarray, list[Hashable]]:
    """Code of every cell, and the levels in the order of the codes, each of them once."""
    check_categorical(obs, key, f"groupby, {argument}")
    codes, found = factorize(obs[key].astype("category"))
    levels = list(dict.fromkeys(found))
    return np.array([levels.index(level) for level in found])[codes], levels


def check_anndata(adata: AnnData, argument: str) -> None:
    """Raise a ``TypeError`` unless cells are an AnnData, with obs in memory."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"{argument} must be an AnnData with raw counts, not {type(adata).__name__}.")
    check_obs(adata, argument)


def check_flags(**flags: bool) -> None:
    """Raise a ``ValueError`` unless arguments, by their names, are True or False."""
    for argument, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{argument}={short_repr(value)} must be True or False.")


def _counts(
    adata: AnnData, genes: pd.Index, argument: str, layer: str | None, whole: bool
) -> tuple[Any, np.ndarray | None]:
    """Matrix of counts, checked, as its rows can be read; and which of its columns are the genes, None for all."""
    if not adata.var_names.is_unique:
        twice = adata.var_names[adata.var_names.duplicated()][0]
        raise ValueError(f"{argument} has genes twice (such as {twice!r}): call {argument}.var_names_make_unique().")
    missing = genes.difference(adata.var_names, sort=False)
    if len(missing):
        raise ValueError(
            f"{argument} lacks {len(missing)} of the {len(genes)} genes of real, such as {list(missing[:5])}: genes "
            "are matched by var_names; take those that both have, real[:, genes]."
        )
    columns = None
    if not adata.var_names.equals(genes):
        if adata.is_view and not adata.isbacked:  # its X is a copy in any case; a view of a file cannot be indexed
            adata = adata[:, genes]
        else:
            columns = adata.var_names.get_indexer(genes)
    place = f"{argument}.X" if layer is None else f"{argument}.layers[{layer!r}]"
    matrix = by_rows(get_matrix(adata, layer), place)
    check_values(matrix, columns, argument, place, whole)
    return matrix, columns


def check_values(matrix: Any, columns: np.ndarray | None, argument: str, place: str, whole: bool = True) -> None:
    """Raise a ``ValueError`` unless some columns of a matrix, None for all, hold counts, whole ones if so asked for."""
    for counts in _blocks(matrix, columns):
        values = counts if isinstance(counts, np.ndarray) else counts.data
        if not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(f"{argument} has values that are negative, NaN or infinite; raw counts were expected.")
        if whole and (values != np.floor(values)).any():
            cure = (
                "Log-normalised or expected ones cannot be compared: give the layer or the AnnData that has the counts."
            )
            raise ValueError(not_whole(argument, place, _blocks(matrix, columns), cure))


def _blocks(matrix: Any, columns: np.ndarray | None) -> Iterator[np.ndarray | sparse.csr_matrix]:
    return (_of_genes(block, columns) for _, block in row_blocks(matrix))


def _of_genes(counts: np.ndarray | sparse.csr_matrix, columns: np.ndarray | None) -> np.ndarray | sparse.csr_matrix:
    return counts if columns is None else counts[:, columns]
