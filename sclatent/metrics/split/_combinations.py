"""Perturbations in contexts in which they were not seen, such as a cell type."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from anndata import AnnData

from .._groups import name_of
from ._experiment import Experiment, Group, deal
from ._fold import Fold, stream_of_folds


def unseen_combinations(
    adata: AnnData,
    perturbation_key: str,
    control: Hashable,
    context_keys: str | Sequence[str],
    n_folds: int | None = None,
    min_cells: int = 20,
    seed: int = 0,
) -> list[Fold]:
    """Hold out the perturbed cells of a context, one perturbation at a time.

    Every combination of a context (such as a cell type, or a type of a donor) with a perturbation is held out once. The
    control cells of the context stay, and so does the perturbation in other contexts. PerturBench calls it covariate
    transfer.

    Parameters
    ----------
    adata
        The cells.
    perturbation_key
        Column of obs with the perturbations.
    control
        Level of the control cells in it.
    context_keys
        Column of obs with the contexts, or several, whose combinations are the contexts.
    n_folds
        Number of folds: perturbations are held out in turn in different contexts, as in a Latin square, so that each of
        them stays in some context in every fold. By default each combination is a fold of its own.
    min_cells
        Cells at least of a combination that is held out. Those with fewer, or with fewer than 10 control cells in
        their context, stay in training.
    seed
        Seed of which combinations are held out together.

    Returns
    -------
    list[Fold]
        The folds, one for every combination, called as in a table (``"cell_type=B, condition=stimulated"``), or
        ``n_folds``.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If levels are missing, ``control`` is none of them, or no combination has enough cells in two contexts.

    Warns
    -----
    UserWarning
        If combinations are never held out: those with too few cells, and perturbations of one context.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.metrics import split
    >>> adata = sclatent.datasets.simulate(360, 50, cell_types=["B", "T"], conditions=["control", "x", "y"])
    >>> arguments = {"perturbation_key": "condition", "control": "control", "context_keys": ["cell_type"]}
    >>> [fold.name for fold in split.unseen_combinations(adata, **arguments)][:2]
    ['cell_type=B, condition=x', 'cell_type=B, condition=y']
    >>> first, second = split.unseen_combinations(adata, **arguments, n_folds=2)
    >>> sorted(first.asked["condition"].unique())  # one in B, the other in T
    ['x', 'y']
    """
    experiment = Experiment(adata, perturbation_key, control, context_keys, min_cells)
    groups = _of_several_contexts(experiment)
    if n_folds is None:
        return [experiment.fold(experiment.name(group), [group]) for group in groups]
    rng = stream_of_folds(seed)
    contexts, of_perturbation = dict.fromkeys(group[:-1] for group in groups), defaultdict(list)
    place = dict(zip(contexts, rng.permutation(len(contexts)), strict=True))
    for group in sorted(groups, key=lambda group: place[group[:-1]]):
        of_perturbation[group[-1]].append(group)
    perturbations, turned = list(of_perturbation.values()), []
    for turn, i in enumerate(rng.permutation(len(perturbations))):
        start = turn % len(perturbations[i])
        turned += perturbations[i][start:] + perturbations[i][:start]
    return [experiment.fold(f"fold {k}", asked) for k, asked in enumerate(deal(turned, n_folds, "combinations"))]


def unseen_contexts(
    adata: AnnData,
    perturbation_key: str,
    control: Hashable,
    context_keys: str | Sequence[str],
    min_cells: int = 20,
) -> list[Fold]:
    """Hold out all perturbed cells of a context, such as a cell type or a donor; its control cells stay.

    With one perturbation these are the folds of :func:`unseen_combinations`. cell-load calls it zero-shot.

    Parameters
    ----------
    adata, perturbation_key, control, context_keys
        As of :func:`unseen_combinations`.
    min_cells
        Cells at least of a perturbation that is asked for in a context that is held out. Those with fewer, or that no
        other context has, are neither asked for nor in training.

    Returns
    -------
    list[Fold]
        The folds, one for every context with 10 control cells or more, called by its name.

    Raises
    ------
    KeyError, ValueError
        As of :func:`unseen_combinations`.

    Warns
    -----
    UserWarning
        As of :func:`unseen_combinations`.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.metrics import split
    >>> adata = sclatent.datasets.simulate(360, 50, cell_types=["B", "T"], conditions=["control", "x", "y"])
    >>> folds = split.unseen_contexts(adata, "condition", control="control", context_keys="cell_type")
    >>> {fold.name: sorted(fold.asked["condition"].unique()) for fold in folds}
    {'B': ['x', 'y'], 'T': ['x', 'y']}
    """
    experiment = Experiment(adata, perturbation_key, control, context_keys, min_cells)
    groups = _of_several_contexts(experiment)
    folds = []
    for context in dict.fromkeys(group[:-1] for group in groups):
        name = name_of(context if len(context) > 1 else context[0], experiment.keys[:-1])
        asked, of_context = ([g for g in some if g[:-1] == context] for some in (groups, experiment.rows))
        folds.append(experiment.fold(str(name), asked, of_context))
    return folds


def _of_several_contexts(experiment: Experiment) -> list[Group]:
    """Groups with enough cells whose perturbation has enough in another context, too."""
    n_contexts = Counter(group[-1] for group in experiment.enough)
    groups = [group for group in experiment.enough if n_contexts[group[-1]] > 1]
    if not groups:
        contexts = experiment.keys[:-1]
        raise ValueError(
            f"context_keys={contexts}: no perturbation has enough cells in two contexts, so that none can be predicted "
            "in one from another. Hold perturbations out everywhere: unseen_perturbations."
        )
    experiment.warn(set(experiment.enough) - set(groups), "of perturbations that no other context has")
    return groups
