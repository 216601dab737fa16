"""Folds: cells to train on, cells that are held out, and files of both by name."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from sclatent.data import check_obs, check_seed, random_stream, short_repr


@dataclass(frozen=True, eq=False)
class Fold:
    """Cells to train on, and cells that are held out, by name.

    The functions of :mod:`sclatent.metrics.split` make them. Cells that are in neither are left out, such as pairs with
    a perturbation that is held out.

    Parameters
    ----------
    name
        What is held out.
    train
        Names of the cells to train on.
    asked
        What is asked of a model: a row for every cell that is held out, by its name, with its levels of the columns
        that matter. ``SCLDM.sample(conditions=fold.asked)`` takes it as it is.
    groupby
        Columns whose combinations are compared.
    perturbation_key
        Column of the perturbations, one of ``groupby``; None where cells are compared as such, without control.
    control
        Level of the control cells in it.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.metrics import split
    >>> adata = sclatent.datasets.simulate(240, 50, cell_types=["B", "T"])
    >>> fold, other = split.unseen_contexts(adata, "condition", control="control", context_keys="cell_type")
    >>> fold.name
    'B'
    >>> fold.asked.value_counts().to_dict()
    {('B', 'stimulated'): 60}
    """

    name: str
    train: pd.Index
    asked: pd.DataFrame
    groupby: tuple[str, ...] = ()
    perturbation_key: str | None = None
    control: Hashable = None

    def split(self, adata: AnnData) -> tuple[AnnData, AnnData]:
        """Take the cells of an AnnData.

        Parameters
        ----------
        adata
            The cells that the fold was made of, or more.

        Returns
        -------
        tuple[AnnData, AnnData]
            Copies of the cells to train on, and of those that are held out.

        Raises
        ------
        ValueError
            If some of the cells are not there, names are there twice, cells are both held out and trained on, or held
            out with other levels than the fold asks for.

        Examples
        --------
        >>> train, held_out = fold.split(adata)
        >>> train.n_obs, held_out.n_obs
        (180, 60)
        """
        train, held_out = (adata[some].to_memory() for some in self.rows(adata))
        return train, held_out

    def rows(self, adata: AnnData) -> tuple[np.ndarray, np.ndarray]:
        """Rows of an AnnData.

        Parameters
        ----------
        adata
            As of :meth:`split`.

        Returns
        -------
        tuple[np.ndarray, np.ndarray]
            Rows of the cells to train on, and of those that are held out.

        Raises
        ------
        ValueError
            As of :meth:`split`.

        Examples
        --------
        >>> train, held_out = fold.rows(adata)
        >>> len(train), len(held_out)
        (180, 60)
        """
        check_names(adata)
        train, held_out = (adata.obs_names.get_indexer(names) for names in (self.train, self.asked.index))
        if n := int((train < 0).sum() + (held_out < 0).sum()):
            raise ValueError(
                f"The fold {self.name!r} has {n} cells that are not in adata, by obs_names: give the cells that it was "
                "made of."
            )
        if len(twice := self.asked.index.intersection(self.train)):
            raise ValueError(
                f"The fold {self.name!r} has {len(twice)} cells that are both held out and trained on, such as "
                f"{twice[0]!r}: none was expected."
            )
        for key, column in self.asked.items():
            if key not in adata.obs:
                raise ValueError(f"The fold {self.name!r} asks for the column {key!r}, which adata.obs lacks.")
            asked, present = column.astype(str).to_numpy(), adata.obs[key].iloc[held_out].astype(str).to_numpy()
            if len(differ := np.flatnonzero(asked != present)):
                k = differ[0]
                raise ValueError(
                    f"The fold {self.name!r} asks for {key}={asked[k]!r} of the cell {self.asked.index[k]!r}, which "
                    f"has {present[k]!r} in adata ({len(differ)} differ): make the folds of these cells again."
                )
        return train, held_out


def stream_of_folds(seed: int) -> np.random.Generator:
    """Random numbers that say which cells are held out together."""
    check_seed(seed)
    return random_stream(seed, "folds")


def check_names(adata: AnnData) -> None:
    """Raise unless cells are an AnnData, with obs in memory and names that tell them apart."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, not {type(adata).__name__}.")
    check_obs(adata)
    if not adata.obs_names.is_unique:
        twice = adata.obs_names[adata.obs_names.duplicated()][0]
        raise ValueError(f"adata has cells of the same name (such as {twice!r}): call adata.obs_names_make_unique().")


def fold_of(
    adata: AnnData,
    name: object,
    held_out: np.ndarray,
    train: np.ndarray,
    keys: Iterable[str],
    groupby: Sequence[str],
    perturbation_key: str | None = None,
    control: Hashable = None,
) -> Fold:
    """Fold of cells by whether they are held out or trained on, boolean (cells,) each; ``keys`` are asked for."""
    asked = adata.obs.loc[held_out, list(keys)].copy()
    return Fold(str(name), adata.obs_names[train], asked, tuple(groupby), perturbation_key, control)


def write_folds(folds: Fold | Sequence[Fold], path: str | os.PathLike) -> None:
    """Write folds to a JSON file, with the names of all their cells.

    Parameters
    ----------
    folds
        The folds, or one.
    path
        The file.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.metrics import split
    >>> adata = sclatent.datasets.simulate(240, 50, cell_types=["B", "T"])
    >>> folds = split.unseen_contexts(adata, "condition", control="control", context_keys="cell_type")
    >>> split.write_folds(folds, "folds.json")
    """
    folds = [folds] if isinstance(folds, Fold) else folds
    cells = pd.Index([])
    for fold in folds:
        cells = cells.append([fold.train, fold.asked.index]).unique()
    saved = [
        {
            "name": fold.name,
            "keys": list(fold.asked.columns),
            "groupby": list(fold.groupby),
            "perturbation_key": fold.perturbation_key,
            "control": fold.control,
            "held_out": list(fold.asked.index),
            "left_out": list(cells.difference(fold.train.append(fold.asked.index), sort=False)),
        }
        for fold in folds
    ]
    Path(path).write_text(json.dumps({"cells": list(cells), "folds": saved}, indent=1))


def read_folds(path: str | os.PathLike, adata: AnnData) -> list[Fold]:
    """Read folds from a file of :func:`write_folds`.

    Parameters
    ----------
    path
        The file.
    adata
        The cells that the folds were made of, in any order, or more: those that the file does not name are in no fold.

    Returns
    -------
    list[Fold]
        The folds. What is asked for is read from ``adata.obs``; cells to train on are in its order.

    Raises
    ------
    ValueError
        If cells or columns are missing, or the file is another one.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.metrics import split
    >>> adata = sclatent.datasets.simulate(240, 50, cell_types=["B", "T"])
    >>> folds = split.unseen_contexts(adata, "condition", control="control", context_keys="cell_type")
    >>> split.write_folds(folds, "folds.json")
    >>> [fold.name for fold in split.read_folds("folds.json", adata)]
    ['B', 'T']
    """
    check_names(adata)
    try:
        saved = json.loads(Path(path).read_text())
        names, saved = pd.Index(saved["cells"]), saved["folds"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of folds, which write_folds makes: {short_repr(error)}.") from error
    missing = names.difference(adata.obs_names, sort=False)
    if len(missing):
        raise ValueError(
            f"{path} has {len(missing)} cells that adata lacks, such as {missing[0]!r}: give the cells that the folds "
            "were made of."
        )
    cells = adata.obs_names[adata.obs_names.isin(names)]
    folds = []
    for of_fold in saved:
        if lacking := [key for key in of_fold["keys"] if key not in adata.obs]:
            raise ValueError(f"{path} asks for the columns {lacking}, which adata.obs lacks.")
        held_out, left_out = pd.Index(of_fold["held_out"]), of_fold["left_out"]
        train = cells.drop(held_out.append(pd.Index(left_out)))
        asked = adata.obs.loc[held_out, of_fold["keys"]].copy()
        about = {name: of_fold[name] for name in ("perturbation_key", "control")}
        folds.append(Fold(of_fold["name"], train, asked, tuple(of_fold["groupby"]), **about))
    return folds
