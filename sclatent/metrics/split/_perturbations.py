"""Perturbations that were never seen, in no context, and pairs of which only the members were."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from anndata import AnnData

from sclatent.data._kinds import Set

from ._experiment import Experiment, Group, deal
from ._fold import Fold, stream_of_folds

Members = tuple[Hashable, ...]


def unseen_perturbations(
    adata: AnnData,
    perturbation_key: str,
    control: Hashable,
    n_folds: int = 5,
    context_keys: str | Sequence[str] | None = None,
    delimiter: str | None = None,
    min_cells: int = 20,
    seed: int = 0,
) -> list[Fold]:
    """Hold perturbations out everywhere, each of them once.

    No training cell has a perturbation that is held out, in any context.

    Parameters
    ----------
    adata
        The cells.
    perturbation_key
        Column of obs with the perturbations.
    control
        Level of the control cells in it.
    n_folds
        Number of folds, to which perturbations are dealt at random. As many as there are perturbations leave one out at
        a time.
    context_keys
        Columns of obs with contexts, such as cell types, in which a perturbation is asked for one by one.
    delimiter
        What stands between perturbations that a cell has together (``"+"`` in ``"KLF1+MAP2K6"``), with or without
        blanks around. One alone is held out then, and cells that have it together with others are left out of training.
        By default a level is one perturbation, whatever it is called.
    min_cells
        Cells at least of a perturbation, in a context, that is asked for. Those with fewer, or with fewer than 10
        control cells in their context, are not asked for.
    seed
        Seed of which perturbations are held out together.

    Returns
    -------
    list[Fold]
        The folds. One with one perturbation is called by its name, others ``"fold 0"`` and so on.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If levels are missing, ``control`` is none of them, no perturbation has enough cells, or there are more folds
        than perturbations.

    Warns
    -----
    UserWarning
        If perturbations have too few cells to be asked for.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.metrics import split
    >>> adata = sclatent.datasets.simulate(300, 50, cell_types=1, conditions=["control", "x", "y", "z", "w"])
    >>> folds = split.unseen_perturbations(adata, "condition", control="control", n_folds=2)
    >>> [fold.asked["condition"].nunique() for fold in folds]
    [2, 2]
    """
    experiment = Experiment(adata, perturbation_key, control, context_keys, min_cells)
    members = {g: (g[-1],) if delimiter is None else _members(g, delimiter, control) for g in experiment.rows}
    single = dict.fromkeys(members[g] for g in experiment.enough if len(members[g]) == 1)
    folds = []
    for k, held_out in enumerate(map(set, deal(_shuffled([*single], seed), n_folds, "perturbations"))):
        asked = [g for g in experiment.enough if members[g] in held_out]
        out = [g for g, of_group in members.items() if any((member,) in held_out for member in of_group)]
        folds.append(experiment.fold(_name(asked, k), asked, out))
    return folds


def unseen_pairs(
    adata: AnnData,
    perturbation_key: str,
    control: Hashable,
    delimiter: str = "+",
    n_folds: int = 5,
    context_keys: str | Sequence[str] | None = None,
    min_cells: int = 20,
    seed: int = 0,
) -> list[Fold]:
    """Hold out perturbations that were made together, each of them once; those made alone stay in training.

    No training cell has all members of a pair that is held out, with or without others: where ``"A+B"`` is,
    ``"A+B+C"`` is left out. GEARS calls it ``combo_seen2``.

    Parameters
    ----------
    adata, perturbation_key, control, n_folds, context_keys, min_cells, seed
        As of :func:`unseen_perturbations`.
    delimiter
        What stands between perturbations that were made together: ``"KLF1+MAP2K6"`` and ``"MAP2K6 + KLF1"`` are the
        same pair, ``"KLF1+ctrl"`` is KLF1 alone with the control ``"ctrl"``. Three together are asked for as well.

    Returns
    -------
    list[Fold]
        The folds. One with one pair is called by its name, others ``"fold 0"`` and so on.

    Raises
    ------
    KeyError, ValueError
        As of :func:`unseen_perturbations`.

    Warns
    -----
    UserWarning
        If pairs are not asked for, and stay in training: with too few cells, or a member that was not measured alone.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.metrics import split
    >>> names = ["ctrl", "A", "B", "C", "A+B", "A+C"]
    >>> adata = sclatent.datasets.simulate(300, 50, cell_types=1, conditions=names)
    >>> folds = split.unseen_pairs(adata, "condition", control="ctrl", n_folds=2)
    >>> sorted(fold.name for fold in folds)
    ['A+B', 'A+C']
    """
    experiment = Experiment(adata, perturbation_key, control, context_keys, min_cells)
    members = {g: _members(g, delimiter, control) for g in experiment.rows}
    alone = {of_group[0] for of_group in members.values() if len(of_group) == 1}
    pairs = [g for g in experiment.enough if len(members[g]) > 1]
    known = dict.fromkeys(members[g] for g in pairs if alone.issuperset(members[g]))
    if not known:
        raise ValueError(
            f"adata.obs[{perturbation_key!r}] has no pairs with enough cells whose members were measured alone: names "
            f"joined by delimiter={delimiter!r} were expected, such as 'KLF1{delimiter}MAP2K6'."
        )
    experiment.warn({g for g in pairs if members[g] not in known}, "since a member was not measured alone")
    folds = []
    for k, held_out in enumerate(map(set, deal(_shuffled([*known], seed), n_folds, "pairs"))):
        asked = [g for g in experiment.enough if members[g] in held_out]
        out = [g for g, of_group in members.items() if any(set(pair).issubset(of_group) for pair in held_out)]
        folds.append(experiment.fold(_name(asked, k), asked, out))
    return folds


def _members(group: Group, delimiter: str, control: Hashable) -> Members:
    """Perturbations that the cells of a group have together, sorted."""
    try:
        return Set(delimiter.strip() or delimiter, str(control)).members_of(str(group[-1]))
    except ValueError as error:
        raise ValueError(f"delimiter={delimiter!r}: {error}.") from error


def _shuffled(things: Sequence[Members], seed: int) -> list[Members]:
    return [things[i] for i in stream_of_folds(seed).permutation(len(things))]


def _name(asked: Sequence[Group], number: int) -> str:
    """Name of a fold: its perturbation, where it has one alone."""
    names = {group[-1] for group in asked}
    return str(*names) if len(names) == 1 else f"fold {number}"
