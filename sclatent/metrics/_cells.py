"""Cells of an AnnData by group: genes matched by name, counts checked, and dense only where and as far as needed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from copy import copy

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from sclatent.data import check_categorical, get_matrix, random_stream

from ._projection import log_normalize_dense
from ._table import ALL

BLOCK = 2**22  # dense values that are made together: memory does not grow with the cells


class CellGroups:
    """Log-normalised cells by the levels of a column of obs, computed from the counts when they are asked for.

    Parameters
    ----------
    adata
        Cells with raw counts.
    genes
        Genes to compare, in their order; ``adata`` may have more, in any order.
    groupby
        Column of obs with the groups; None for one group, ``"all"``.
    argument
        What to call ``adata`` in a message.
    layer
        Layer with the counts; X by default.
    whole
        Whether counts must be whole numbers.

    Attributes
    ----------
    rows
        Rows of every group, by level.
    """

    def __init__(
        self,
        adata: AnnData,
        genes: pd.Index,
        groupby: str | None,
        argument: str,
        layer: str | None = None,
        whole: bool = True,
    ) -> None:
        check_anndata(adata, argument)
        self._argument = argument
        self._counts = _counts(adata, genes, argument, layer, whole)
        if groupby is None:
            self.rows: dict[Hashable, np.ndarray] = {ALL: np.arange(adata.n_obs)}
        else:
            check_categorical(adata.obs, groupby, f"groupby, {argument}")
            codes, levels = pd.factorize(adata.obs[groupby], sort=True)
            order = np.argsort(codes, kind="stable")
            self.rows = dict(zip(levels, np.split(order, np.cumsum(np.bincount(codes))[:-1]), strict=True))

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
        return self._counts[rows]

    def values(self, rows: np.ndarray) -> np.ndarray:
        """Log-normalised cells of some rows, dense (rows, genes), float32."""
        return log_normalize_dense(self._counts[rows])

    def mean(self, rows: np.ndarray) -> np.ndarray:
        """Mean log-normalised profile of some rows, (genes,)."""
        return mean_log_normalized(self._counts, rows)


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

    def values(self, rows: np.ndarray) -> np.ndarray:
        """Log-normalised cells of some rows, (rows, genes)."""
        return self._values[rows]

    def mean(self, rows: np.ndarray) -> np.ndarray:
        """Mean log-normalised profile of some rows, (genes,)."""
        return self._values[rows].mean(axis=0, dtype=np.float64)


def take_turns(rows: Mapping[Hashable, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Rows of several groups in a random order in which groups take turns, so that the first are of all groups."""
    shuffled = [rng.permutation(r) for r in rows.values()]
    turn = np.concatenate([np.arange(len(r)) for r in shuffled])
    return np.concatenate(shuffled)[np.argsort(turn, kind="stable")]


def mean_log_normalized(counts: np.ndarray | sparse.csr_matrix, rows: np.ndarray | None = None) -> np.ndarray:
    """Mean over some rows (all by default) of log-normalised counts, (genes,), a block of rows at a time."""
    rows = np.arange(counts.shape[0]) if rows is None else rows
    block = max(1, BLOCK // counts.shape[1])
    total = np.zeros(counts.shape[1])
    for start in range(0, len(rows), block):
        total += log_normalize_dense(counts[rows[start : start + block]]).sum(axis=0, dtype=np.float64)
    return total / len(rows)


def check_anndata(adata: AnnData, argument: str) -> None:
    """Raise a ``TypeError`` unless cells are an AnnData."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"{argument} must be an AnnData with raw counts, not {type(adata).__name__}.")


def _counts(
    adata: AnnData, genes: pd.Index, argument: str, layer: str | None, whole: bool
) -> np.ndarray | sparse.csr_matrix:
    """Counts of cells x genes, checked, rows quick to take out."""
    if not adata.var_names.is_unique:
        twice = adata.var_names[adata.var_names.duplicated()][0]
        raise ValueError(f"{argument} has genes twice (such as {twice!r}): call {argument}.var_names_make_unique().")
    missing = genes.difference(adata.var_names, sort=False)
    if len(missing):
        raise ValueError(
            f"{argument} lacks {len(missing)} of the {len(genes)} genes of real, such as {list(missing[:5])}: genes "
            "are matched by var_names; take those that both have, real[:, genes]."
        )
    counts = get_matrix(adata if adata.var_names.equals(genes) else adata[:, genes], layer)
    if not isinstance(counts, np.ndarray):
        counts = sparse.csr_matrix(counts)
    values = counts.data if sparse.issparse(counts) else counts
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"{argument} has values that are negative, NaN or infinite; raw counts were expected.")
    if whole and (values != np.floor(values)).any():
        raise ValueError(
            f"{argument} has values that are not whole numbers; raw counts were expected, not log-normalised or "
            "expected ones: give the layer or the AnnData that has the counts."
        )
    return counts
