"""Models of any tool on cells that were held out, in one table beside floors and ceiling."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from tqdm.auto import tqdm

from sclatent.data import short_repr
from sclatent.data._levels import factorize

from ._cells import CellGroups, check_flags
from ._generation import FLOORS as GENERATION_FLOORS
from ._generation import HALF, evaluate_generation
from ._perturbation import Prediction, evaluate_perturbation
from ._perturbation_comparison import CEILING
from ._perturbation_floors import FLOORS
from ._table import named_sources
from .split import Fold

Model: TypeAlias = Callable[[AnnData, Fold], Prediction | Mapping[str, Prediction]]
"""Trains on cells, and predicts those that a fold asks for; or predicts them in several ways, by name."""
OF_FOLD = {"real", "predicted", "generated", "control", "groupby", "seen", "train", "seed", "progress_bar"}


def benchmark(
    models: Mapping[str, Model],
    adata: AnnData,
    folds: Fold | Sequence[Fold],
    seed: int = 0,
    progress_bar: bool = True,
    save: str | os.PathLike | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Train models on folds, and compare what they predict with the cells that were held out.

    A fold of perturbations is evaluated by :func:`evaluate_perturbation`, over the control cells that are in training
    and with floors from the perturbed cells that are; others by :func:`evaluate_generation`. Before any model is
    trained, the ceilings of all folds are evaluated, so that arguments and folds that cannot be evaluated are said.

    Parameters
    ----------
    models
        Models of any tool by name: functions that train on an AnnData and return the cells that a fold asks for,
        ``model(train, fold)``, of copies. ``train`` are the cells to train on, with all that ``adata`` has of them, and
        :attr:`Fold.asked <sclatent.metrics.split.Fold>` a table of the levels of the cells that are held out. Predicted
        cells are an AnnData of raw counts that has the columns ``fold.groupby`` in obs. Several predictions of one
        model may be returned by name. Without a model (``{}``) the table has floors and ceiling: whether these cells
        can tell a good model from a bad one at all.
    adata
        Cells with raw counts.
    folds
        What is held out, as of :mod:`sclatent.metrics.split`.
    seed
        Seed of the evaluations. Models have their own.
    progress_bar
        Whether to show progress over the folds.
    save
        CSV file to write the table to after every fold, so that a long run that is cut short, or that a model stops by
        an error, leaves what it has. It is written over.
    options
        Further arguments of the evaluation, such as ``layer``, ``n_top``, ``max_cells``, ``floors`` or
        ``disjoint_controls``.

    Returns
    -------
    pd.DataFrame
        The rows of every fold, as of its evaluation, below one another, with the name of the fold in the column
        ``fold``. :func:`summarize` and :func:`sclatent.pl.metrics_heatmap` show means over folds.

    Raises
    ------
    TypeError
        If models are no functions by name, options are no arguments of the evaluation, or a model returns no cells.
    ValueError
        If cells of a fold are not in ``adata`` or too few, two folds have the same name, a model has that of a floor or
        of another, values are no counts, or ``save`` is in no folder. What a model or an evaluation raises is raised
        with a note that says of which fold.

    Examples
    --------
    Without a model, whether treated cells can be predicted at all:

    >>> import sclatent
    >>> from sclatent.metrics import benchmark, split, summarize
    >>> adata = sclatent.datasets.simulate(240, 50, cell_types=2, library_size=500)
    >>> folds = split.unseen_combinations(adata, "condition", control="control", context_keys="cell_type")
    >>> options = {"n_top": [20], "n_components": 10}
    >>> list(summarize(benchmark({}, adata, folds, **options)).columns)[:3]
    ['control as it is', 'cell mean', 'mean shift']

    A model of any tool is a function. This one returns the treated cells of another type:

    >>> def other_type(train, fold):
    ...     treated = train[train.obs["condition"] == "stimulated"].copy()
    ...     treated.obs["cell_type"] = fold.asked["cell_type"].iloc[0]
    ...     return treated
    >>> table = benchmark({"other type": other_type}, adata, folds, **options)
    >>> bool(summarize(table).loc["pearson", "other type"] < summarize(table).loc["pearson", "real half"])
    True
    """
    folds = [folds] if isinstance(folds, Fold) else list(folds)
    _check(models, adata, folds, save, options)
    options = {**options, "seed": seed, "progress_bar": False}
    for fold in folds if models else ():  # what is wrong is to be known before hours of training
        _evaluate(fold, *fold.split(adata), {}, **{**options, "floors": False})
    tables: list[pd.DataFrame] = []
    for fold in tqdm(folds, desc="benchmark", unit=" folds", disable=not progress_bar):
        train, held_out = fold.split(adata)
        predictions: dict[str, Prediction] = {}
        for name, model in models.items():
            with _noted(f"models[{name!r}]", fold):
                found = _predictions(name, model(train.copy(), replace(fold, asked=fold.asked.copy())))
                _check_predictions(found, predictions, adata.var_names, fold)
            predictions |= found
        table = _evaluate(fold, train, held_out, predictions, **options)
        table.insert(0, "fold", fold.name)
        tables.append(table)
        if save is not None:
            pd.concat(tables).to_csv(save, index=False)
    return pd.concat(tables, ignore_index=True)


@contextmanager
def _noted(what: str, fold: Fold) -> Iterator[None]:
    """Say in a note of an error what raised it, in which fold."""
    try:
        yield
    except Exception as error:
        error.add_note(f"This was raised by {what} in the fold {fold.name!r}.")
        raise


def _predictions(name: str, found: Prediction | Mapping[str, Prediction]) -> dict[str, Prediction]:
    """What a model returned, by name in the table."""
    if not isinstance(found, Mapping):
        return {name: found}
    if not found:
        raise ValueError("It returned no predictions, but {}: cells were expected, or several of them by name.")
    return {f"{name}, {way}": prediction for way, prediction in found.items()}


def _check_predictions(
    found: Mapping[str, Prediction], others: Mapping[str, Prediction], genes: pd.Index, fold: Fold
) -> None:
    """Raise, before the next model is trained, unless predictions of a model can be evaluated beside the others."""
    if twice := sorted(found.keys() & others.keys()):
        raise ValueError(f"Another model has the names {twice} in the table, too: different ones were expected.")
    for name, prediction in found.items():
        if fold.perturbation_key is None or not isinstance(prediction, np.ndarray):
            CellGroups(prediction, genes, fold.groupby, f"predicted[{name!r}]")


def _evaluate(
    fold: Fold, train: AnnData, held_out: AnnData, predictions: Mapping[str, Prediction], **options: Any
) -> pd.DataFrame:
    """Table of one fold."""
    with _noted("the evaluation", fold):
        if fold.perturbation_key is None:
            return evaluate_generation(held_out, predictions, fold.groupby, train=train, **options)
        codes, levels = factorize(train.obs[fold.perturbation_key])
        if fold.control not in levels:
            raise ValueError(
                f"adata.obs[{fold.perturbation_key!r}] of the training cells has no control={fold.control!r}, but "
                f"{short_repr(levels)}: make the folds of these cells again."
            )
        is_control = codes == levels.index(fold.control)
        control, seen = train[is_control].copy(), train[~is_control].copy()
        return evaluate_perturbation(held_out, predictions, control, fold.groupby, seen, **options)


def _check(
    models: Mapping[str, Any],
    adata: AnnData,
    folds: Sequence[Fold],
    save: str | os.PathLike | None,
    options: Mapping[str, Any],
) -> None:
    """Raise where arguments are wrong."""
    is_named = isinstance(models, Mapping) and all(isinstance(name, str) for name in models)
    if not is_named or not all(map(callable, models.values())):
        raise TypeError("models must be functions by name, such as {'SCLDM': predict}, each called with (train, fold).")
    if not folds or not all(isinstance(fold, Fold) for fold in folds):
        raise TypeError("folds must be one or more of sclatent.metrics.split, such as of unseen_combinations.")
    if save is not None and (Path(save).is_dir() or not Path(save).parent.is_dir()):
        raise ValueError(f"save={str(save)!r} must be a file, in a folder that exists: make the folder first.")
    check_flags(floors=options.get("floors", True))
    names = [fold.name for fold in folds]
    if len(set(names)) < len(names):
        raise ValueError(f"folds have the names {names}: different ones were expected.")
    for fold in folds:
        is_perturbation = fold.perturbation_key is not None
        evaluate = evaluate_perturbation if is_perturbation else evaluate_generation
        reserved = [*FLOORS, CEILING] if is_perturbation else [*GENERATION_FLOORS, HALF]
        named_sources(models, "models", reserved)
        possible = inspect.signature(evaluate).parameters.keys() - OF_FOLD
        if unknown := sorted(options.keys() - possible):
            raise TypeError(f"options {unknown} are no arguments of {evaluate.__name__}, which has {sorted(possible)}.")
        fold.rows(adata)
    keys = dict.fromkeys(key for fold in folds for key in fold.groupby)
    CellGroups(adata, adata.var_names, [*keys], "adata", options.get("layer"))
