"""Cells of an experiment by context and perturbation, and folds of some of them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from anndata import AnnData

from sclatent.data import check_categorical, check_keys, check_whole, plain_level, short_repr
from sclatent.data._warnings import warn_user

from .._arms import MIN_CELLS
from .._cells import rows_of_groups
from .._groups import alike, levels_of, name_of
from ._fold import Fold, check_names, fold_of

Thing = TypeVar("Thing")
Group = tuple[Hashable, ...]
"""Levels of the context keys, and the perturbation."""


class Experiment:
    """Perturbed and control cells by context, checked.

    Parameters
    ----------
    adata
        The cells.
    perturbation_key, control
        Column of obs with the perturbations, and the level of the control cells.
    context_keys
        Columns of obs with the contexts; none for one.
    min_cells
        Cells at least of a group that is asked for.

    Attributes
    ----------
    rows
        Rows of the perturbed cells of every group.
    enough
        Groups with enough perturbed and control cells.
    """

    def __init__(
        self,
        adata: AnnData,
        perturbation_key: str,
        control: Hashable,
        context_keys: str | Sequence[str] | None,
        min_cells: int,
    ) -> None:
        contexts = check_keys(context_keys, "context_keys")
        if perturbation_key in contexts:
            raise ValueError(f"context_keys={contexts} has {perturbation_key!r}, which is the perturbation_key.")
        check_whole("min_cells", min_cells)
        if not isinstance(control, Hashable):
            raise ValueError(f"control={short_repr(control)} must be one level of adata.obs[{perturbation_key!r}].")
        check_names(adata)
        for argument, keys in {"context_keys": contexts, "perturbation_key": [perturbation_key]}.items():
            for key in keys:
                check_categorical(adata.obs, key, argument)
        self.keys = [*contexts, perturbation_key]
        self.control = plain_level(control)
        self._adata = adata
        rows = {levels_of(g): r for g, r in rows_of_groups(adata.obs, self.keys, "adata").items()}
        levels = dict.fromkeys(g[-1] for g in rows)
        if self.control not in levels:
            written = alike([self.control], levels)
            others = f"but {written[self.control]!r} is: give that" if written else f"which has {short_repr([*levels])}"
            raise ValueError(f"control={control!r} is no level of adata.obs[{perturbation_key!r}], {others}.")
        if len(levels) == 1:
            raise ValueError(f"adata.obs[{perturbation_key!r}] has no perturbed cells, only control={control!r}.")
        n_control = {g[:-1]: len(r) for g, r in rows.items() if g[-1] == self.control}
        self.rows = {g: r for g, r in rows.items() if g[-1] != self.control}
        self.enough = [g for g, r in self.rows.items() if len(r) >= min_cells and n_control.get(g[:-1], 0) >= MIN_CELLS]
        what = f"at least {min_cells} perturbed and {MIN_CELLS} control cells"
        if not self.enough:
            raise ValueError(f"No group of {self.keys} has {what}: give a lower min_cells, or fewer context_keys.")
        self.warn(self.rows.keys() - set(self.enough), f"without {what}")

    def name(self, group: Group) -> str:
        """What a group is called in a table."""
        return str(name_of(group if len(group) > 1 else group[0], self.keys))

    def warn(self, groups: Collection[Group], why: str) -> None:
        """Warn that groups are not asked for."""
        if groups:
            named = sorted(map(self.name, groups))
            more = f" and {len(named) - 5} more" if len(named) > 5 else ""
            warn_user(f"Not asked for, {why}: {'; '.join(named[:5])}{more}.")

    def fold(self, name: str, asked: Iterable[Group], left_out: Iterable[Group] = ()) -> Fold:
        """Hold groups out, and leave others out of the training cells, too."""
        held_out, train = np.zeros(self._adata.n_obs, dtype=bool), np.ones(self._adata.n_obs, dtype=bool)
        for group in asked:
            held_out[self.rows[group]] = True
        for group in left_out:
            train[self.rows[group]] = False
        return fold_of(
            self._adata, name, held_out, train & ~held_out, self.keys, self.keys, self.keys[-1], self.control
        )


def deal(things: Sequence[Thing], n_folds: int, what: str) -> list[list[Thing]]:
    """Deal things, in their order, to a number of folds, at least two."""
    check_whole("n_folds", n_folds, 2)
    if n_folds > len(things):
        raise ValueError(f"n_folds={n_folds} is more than the {len(things)} {what} that can be held out.")
    return [list(things[k::n_folds]) for k in range(n_folds)]
