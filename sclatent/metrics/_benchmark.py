"""Models of any tool on cells that were held out, in one table beside floors and ceiling."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import pandas as pd
from anndata import AnnData
from tqdm.auto import tqdm

from sclatent.data._levels import factorize

from ._cells import CellGroups
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
    and with floors from the perturbed cells that are; others by :func:`evaluate_generation`.

    Parameters
    ----------
    models
        Models of any tool by name: functions that train on an AnnData and return the cells that a fold asks for,
        ``model(train, fold)``. ``train`` is a copy of the cells to train on, with all that ``adata`` has of them, and
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
        If models are no functions by name, or options are no arguments of the evaluation.
    ValueError
        If cells of a fold are not in ``adata``, two folds have the same name, a model has that of a floor, or values
        are no counts. What a model raises is raised with a note that says of which fold.

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
    _check(models, adata, folds, options)
    tables: list[pd.DataFrame] = []
    for fold in tqdm(folds, desc="benchmark", unit=" folds", disable=not progress_bar):
        train, held_out = fold.split(adata)
        predictions: dict[str, Prediction] = {}
        for name, model in models.items():
            try:
                found = model(train.copy(), fold)
            except Exception as error:
                error.add_note(f"This was raised by models[{name!r}] in the fold {fold.name!r}.")
                raise
            if isinstance(found, Mapping):
                predictions |= {f"{name}, {way}": prediction for way, prediction in found.items()}
            else:
                predictions[name] = found
        table = _evaluate(fold, train, held_out, predictions, seed=seed, progress_bar=False, **options)
        table.insert(0, "fold", fold.name)
        tables.append(table)
        if save is not None:
            pd.concat(tables).to_csv(save, index=False)
    return pd.concat(tables, ignore_index=True)


def _evaluate(
    fold: Fold, train: AnnData, held_out: AnnData, predictions: Mapping[str, Prediction], **options: Any
) -> pd.DataFrame:
    """Table of one fold."""
    if fold.perturbation_key is None:
        return evaluate_generation(held_out, predictions, fold.groupby, train=train, **options)
    codes, levels = factorize(train.obs[fold.perturbation_key])
    is_control = codes == levels.index(fold.control)
    control, seen = train[is_control].copy(), train[~is_control].copy()
    return evaluate_perturbation(held_out, predictions, control, fold.groupby, seen, **options)


def _check(models: Mapping[str, Any], adata: AnnData, folds: Sequence[Fold], options: Mapping[str, Any]) -> None:
    """Raise before the first model is trained."""
    if not isinstance(models, Mapping) or not all(map(callable, models.values())):
        raise TypeError("models must be functions by name, such as {'SCLDM': predict}, each called with (train, fold).")
    if not folds or not all(isinstance(fold, Fold) for fold in folds):
        raise TypeError("folds must be one or more of sclatent.metrics.split, such as of unseen_combinations.")
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
