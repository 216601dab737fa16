"""How well the answer of cells to a perturbation is predicted."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from tqdm.auto import tqdm

from sclatent.data import TARGET_SUM, check_keys, check_seed, check_whole, random_stream, short_repr
from sclatent.data._warnings import warn_user

from ._arms import MIN_CELLS, Controls, Source, kept
from ._cells import CellGroups, LogNormalizedCells, check_anndata, check_flags, take_turns
from ._groups import name_of, warn_of_alike
from ._perturbation_comparison import CEILING, Comparison
from ._perturbation_floors import FLOORS
from ._projection import Projection
from ._table import finish, named_sources

LARGEST = np.log1p(TARGET_SUM) + 1e-3  # what a log-normalised value can be
NOISE_SHARE = 0.05  # by convention, as of the false discovery rate

Prediction: TypeAlias = AnnData | np.ndarray


def evaluate_perturbation(
    real: AnnData,
    predicted: Prediction | Mapping[str, Prediction],
    control: AnnData,
    groupby: str | Sequence[str] | None = None,
    seen: AnnData | None = None,
    n_top: Sequence[int] = (20, 50, 100),
    n_components: int = 50,
    max_cells: int = 2_000,
    floors: bool = True,
    seed: int = 0,
    progress_bar: bool = True,
    layer: str | None = None,
    disjoint_controls: bool = False,
) -> pd.DataFrame:
    """Compare predicted with real perturbed cells, by what changes over control, between floors and a ceiling.

    Cells are log-normalised (log1p of counts per 10,000 of the genes of ``real``). The change of a gene is the mean of
    perturbed cells less the mean of control cells, over all cells there are.

    Principal components are not fitted on ``real``, since they fit the cells they were fitted on better than any
    others (see :func:`evaluate_generation`), and a perfect prediction would seem farther away than the ceiling. They
    are fitted on one half of the control cells and of ``seen``, and the cells of the floors are of the other. Give
    ``seen``: control cells alone do not tell the components of a response along which they do not vary. Predictions
    that are control cells moved (counterfactuals) have cells of the components among them, and seem a little farther
    away than they are.

    Parameters
    ----------
    real
        Perturbed cells that the predictions were made without; raw counts. Its genes are the ones that are compared.
    predicted
        Predicted cells with raw counts; their genes are looked up by name. Or several predictions, by name; an empty
        dictionary has floors and ceiling alone compared. Where there is one group, a prediction may also be an array:
        log-normalised cells (cells, genes), or just the change over control (genes,), such as of :func:`mean_shift`.
    control
        Control cells with raw counts. Where ``control.obs[groupby]`` has groups of ``real`` or ``seen``, every group
        is compared with its own control cells (a drug in several patients or cell types); where not, with all of them
        (several drugs, or genes knocked out), and a warning says so where the column has several levels or one that is
        only written in another way.
    groupby
        Column of obs with the groups: cell types or patients under one perturbation, or perturbations. By default all
        cells are one group, ``"all"``. Or several columns, whose combinations are the groups, called
        ``"cell_type=B, donor=101"``. Each of them is looked up in ``control.obs`` as one alone is: those of which
        control cells have levels (cell type, donor) are the context of a group, which is compared with the control
        cells of the same context; those of the others (a drug, a gene knocked out) are its treatment.
    seen
        Perturbed cells that were there to learn from, for the floors and the components, with their groups in
        ``groupby``; a group that is predicted enters neither its own floors nor the components. By default the floors
        are made from the other groups of ``real``, which is right where these were held out one at a time, and the
        components from ``control`` alone.
    n_top
        Numbers of genes for the metrics of few genes. A number above the number of genes is left out.
    n_components
        Principal components at most, for the distances. They are fitted on ``max_cells`` of the control and as many
        of the ``seen`` cells at most, in which groups take turns.
    max_cells
        Cells of a group at most, in the distances and in the tests for differential expression.
    floors
        Whether to compute the floors.
    seed
        Seed of all choices of cells.
    progress_bar
        Whether to show progress over the groups.
    layer
        Layer of ``real``, ``control`` and ``seen`` that has the counts; X by default. Predicted cells have them in X.
    disjoint_controls
        Whether the change of real cells and that of predicted ones, of the floors and of the ceiling are taken over
        control cells of which none is in both: halves at random, of which each is once that of the real cells. Values
        are means over the two assignments. Else both changes are over all control cells and share their sampling
        noise, by which weak effects correlate for no reason. Halves have twice the noise, which brings correlations
        down. Predicted cells that all have names of control cells of the group, as counterfactuals have, are compared
        with those that they were made from; give others that were made from ``control`` as a change.

    Returns
    -------
    pd.DataFrame
        A row for every condition (group, and "mean" over the groups), source and metric; the columns are
        those of :func:`evaluate_generation`. Metrics:

        - ``pearson``, ``spearman``: correlation, over genes, of the predicted with the real change; 0 where one of them
          is constant. ``pearson_top20`` ...: over the genes with the largest absolute real change; where these all
          change in one direction and by as much, little is left to correlate, as the ceiling shows. The real change and
          that of predicted cells share their control cells, whose sampling noise correlates: with few control cells or
          weak effects these correlations are too high, also those of "cell mean", the ceiling, and "mean shift" among
          treatments of one context. Predictions that are a change, and floors of other contexts, do not share it, and
          are compared with them at a disadvantage. A warning names the groups in which this noise is more than 5 % of
          the mean square of the real change, and the correlation by chance, which is the root of this share;
          ``disjoint_controls`` is without it.
        - ``slope``: of the predicted on the real change, as of :func:`slope_of_change`: at 1 responses are as large as
          the real ones, below 1 they are attenuated, above 1 too large, which is no better. Noisy with weak effects.
        - ``mse``: mean squared error of the change, over genes. ``mse_unbiased``: the same without sampling noise, less
          the analytic variances of the means (of each gene over cells, divided by their number) of real and predicted
          cells, and of control cells where the two changes do not share them: 0 in expectation where these are of one
          distribution, however few they are. The noise of "linear shift" and of a change that is given is not known,
          and is left in.
        - ``energy``, ``mmd2``: distance of predicted from real cells, :func:`energy_distance` and :func:`mmd2` in
          principal components. A prediction that is only a change moves control cells by it.
        - ``direction``: share of the differentially expressed genes that are predicted to change in the right
          direction. Differentially expressed: Wilcoxon rank-sum test of scanpy against control cells,
          Benjamini-Hochberg, false discovery rate 0.05; by one half of the real cells, so that the ceiling is found by
          as many.
        - ``de_overlap_50`` ...: overlap, and ``de_precision_50`` ...: precision at N of the differentially expressed
          genes, ranked by absolute change. Predicted cells have a test of their own against the same control cells; for
          a prediction that is only a change all genes count as predicted. Guessing reaches the share of differentially
          expressed genes among all genes in the precision.
        - ``de_jaccard``: genes that are differentially expressed in real and in predicted cells, over those that are in
          either (``sig_jaccard`` of cell-eval2). With as many predicted as real cells the tests are as strong.
        - ``lfc_nmae``: mean absolute error of the change of the differentially expressed genes, over their mean
          absolute real change: 0 is best, 1 is that of no change.
        - ``discrimination``: share of the other groups of ``real`` and ``seen`` whose real change is farther from the
          predicted one than that of the right group, by the L1 distance over genes (ties count half): 1 is best, 0.5 is
          chance. The others are those of the same context, or all where it has no other. The Virtual Cell Challenge
          (Roohani et al. 2025) divides the rank by the number of groups and not by that of the others, and leaves out
          the gene that is perturbed. Where all groups have control cells of their own, these are in the predicted and
          in the right change, and favour it: see what "cell mean" reaches. ``discrimination_cosine``: the same by
          cosine similarity (``pds_cosine``), which does not see how large the change is.

        Floors, of which the other groups are those of the same treatment in other contexts; where there are none, the
        other treatments of the same context; and where there are none of these, all:

        - ``control as it is``: nothing changes.
        - ``cell mean``: the perturbed cells of the other groups, every group with the same weight.
        - ``mean shift``: the mean over the other groups of their changes, as of :func:`mean_shift`.

        And where the treatment was seen in other contexts:

        - ``linear shift``: as of :func:`linear_shift`.
        - ``nearest group``: the perturbed cells of the group of the same treatment whose mean control profile is
          nearest (squared distance, over genes, to that of the group that is predicted), as they are.
        - ``nearest shift``: the change of that group. Its mean is that of these perturbed cells, moved by the
          difference of the two groups' control cells.
        - ``context mean``: the perturbed cells of the other treatments of the same context, every one with the same
          weight, where ``groupby`` tells both.

        Ceiling: ``real half``, one half of the real cells as a prediction of the other. It has the noise of half as
        many cells as the real cells that predictions are compared with: the fewer the cells and the weaker the effect,
        the more can a good prediction be above it. Where floors are above it, the effect is too weak for so few cells.

    Raises
    ------
    ValueError
        If predictions and real cells have no group in common or none with enough cells (20 real, 10 predicted and 10
        control cells, or 20 that are halved), if genes are missing, or if values are no counts.

    Warns
    -----
    UserWarning
        If groups are left out: those that some prediction lacks, or that have too few cells or no control cells.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.metrics import evaluate_perturbation, summarize
    >>> adata = sclatent.datasets.simulate(240, 50, cell_types=3, library_size=500)
    >>> held_out = (adata.obs["cell_type"] == "type_0") & (adata.obs["condition"] == "stimulated")
    >>> train = adata[~held_out].copy()
    >>> control, seen = (train[train.obs["condition"] == c].copy() for c in ("control", "stimulated"))

    A prediction is cells, such as from ``model.sample``, or a change; here, control cells as they are:

    >>> predicted = control[control.obs["cell_type"] == "type_0"].copy()
    >>> table = evaluate_perturbation(adata[held_out], predicted, control, groupby="cell_type", seen=seen)
    >>> figures = summarize(table)
    >>> list(figures.columns)[:3]
    ['generated', 'control as it is', 'cell mean']
    >>> bool(figures.loc["pearson", "generated"] < 0.3 < figures.loc["pearson", "real half"])  # nothing of the change
    True

    Several treatments in several types: each is predicted from the same type and from the same treatment.

    >>> real = adata[adata.obs["condition"] != "control"].copy()
    >>> table = evaluate_perturbation(real, real, control, groupby=["cell_type", "condition"])
    >>> table["condition"].unique()[0]
    'cell_type=type_0, condition=stimulated'
    """
    keys = check_keys(groupby, "groupby")
    check_flags(floors=floors, disjoint_controls=disjoint_controls)
    if seen is not None and not keys:
        raise ValueError("seen needs groupby, the column of obs that tells its groups from the one that is predicted.")
    check_whole("max_cells", max_cells, MIN_CELLS)
    check_whole("n_components", n_components)
    check_seed(seed)
    if np.ndim(n_top) != 1:
        raise ValueError(f"n_top={short_repr(n_top)} must be a list of numbers of genes, such as [20, 50].")
    for n in n_top:
        check_whole("n_top", n)
    check_anndata(real, "real")
    genes = real.var_names
    truth = CellGroups(real, genes, keys, "real", layer).shuffled(seed)
    seen_cells = truth
    if seen is not None:
        seen_cells = CellGroups(seen, genes, keys, "seen", layer).shuffled(seed)
        warn_of_alike("seen", seen_cells.rows, truth.rows, keys)
    all_groups = {**truth.rows, **seen_cells.rows}
    controls = Controls(control, genes, keys, layer, all_groups, seed)
    warn_of_alike("control", controls.cells.rows, map(controls.context, all_groups), controls.keys)
    sources = _sources(predicted, genes, keys, list(truth.rows))
    groups = _groups_to_compare(truth, controls, sources, MIN_CELLS * (2 if disjoint_controls else 1))
    n_top = [n for n in n_top if n <= len(genes)]

    space = _space(controls, None if seen is None else seen_cells, groups, n_components, max_cells, seed)
    comparison = Comparison(
        truth, seen_cells, controls, sources, groups, space, n_top, max_cells, seed, disjoint_controls
    )
    if not disjoint_controls:
        _warn_of_control_noise({g: comparison.share_of_control_noise(g) for g in groups}, controls, keys)
    records = [
        {"condition": name_of(group, keys), **row}
        for group in tqdm(groups, desc="perturbation", unit=" groups", disable=not progress_bar)
        for row in comparison.rows(group, floors)
    ]
    return finish(records)


def _warn_of_control_noise(shares: Mapping[Hashable, float], controls: Controls, keys: Sequence[str]) -> None:
    """Warn of groups of which the noise of shared control cells is more than 5 % of the real change."""
    noisy = sorted((g for g, share in shares.items() if share > NOISE_SHARE), key=lambda g: -shares[g])
    if noisy:
        named = [
            f"{name_of(g, keys)!r} ({len(controls.rows(g))} control cells): {min(shares[g], 1) ** 0.5:.2f}"
            for g in noisy[:5]
        ]
        more = [f"and {len(noisy) - 5} more"] if len(noisy) > 5 else []
        warn_user(
            f"More than {NOISE_SHARE:.0%} of the real change is sampling noise of the control cells, which the change "
            "of predicted cells has, too. Cells that do not respond at all are expected to correlate with it, by "
            f"chance: {', '.join([*named, *more])}. Give disjoint_controls=True, or more control cells."
        )


def _space(
    controls: Controls,
    seen: CellGroups | None,
    compared: Sequence[Hashable],
    n_components: int,
    max_cells: int,
    seed: int,
) -> Projection:
    """One space for all groups, so that their distances can be compared, fitted on no cells that are compared."""
    origins = [(controls.cells, controls.cells.rows)]
    if seen is not None:
        origins.append((seen, {g: rows for g, rows in seen.rows.items() if g not in compared}))
    values, rng = [], random_stream(seed, "cells of the components")
    for cells, rows in origins:
        others = {g: r[len(kept(r)) :] for g, r in rows.items()}
        if others:
            values.append(cells.values(take_turns(others, rng)[:max_cells]))
    return Projection(np.concatenate(values), n_components, seed)


def _sources(
    predicted: Prediction | Mapping[str, Prediction], genes: pd.Index, keys: Sequence[str], groups: Sequence[Hashable]
) -> dict[str, Source]:
    """Predictions by name, checked."""
    named = named_sources(predicted, "predicted", [*FLOORS, CEILING])
    sources: dict[str, Source] = {}
    for name, (argument, prediction) in named.items():
        if not isinstance(prediction, np.ndarray):
            sources[name] = CellGroups(prediction, genes, keys, argument)
            continue
        if len(groups) > 1:
            raise ValueError(
                f"{argument} is an array, which cannot say of which of the groups {groups[:5]} it is: give an AnnData "
                "with groupby in its obs, or real cells of one group only and those of the others as seen."
            )
        if prediction.ndim not in (1, 2) or prediction.shape[-1] != len(genes):
            raise ValueError(
                f"{argument} has the shape {prediction.shape}: (cells, {len(genes)}) or ({len(genes)},) were expected, "
                f"the {len(genes)} genes of real in their order."
            )
        if not np.isfinite(prediction).all() or prediction.max() > LARGEST:
            raise ValueError(
                f"{argument} has values that are NaN, infinite or above {LARGEST:.2f}, the largest there are after "
                "log1p of counts per 10,000: give log-normalised cells, or the change of their mean."
            )
        sources[name] = prediction if prediction.ndim == 1 else LogNormalizedCells(prediction, groups[0])
    return sources


def _groups_to_compare(
    truth: CellGroups, controls: Controls, sources: dict[str, Source], n_control: int
) -> list[Hashable]:
    """Groups of real cells that all predictions have, with enough cells everywhere."""
    cells = {name: source for name, source in sources.items() if not isinstance(source, np.ndarray)}
    shared = [g for g in truth.rows if all(g in source.rows for source in cells.values())]
    if not shared:
        levels = {name: list(source.rows)[:5] for name, source in cells.items()}
        raise ValueError(
            f"real and predicted have no group in common: real has {list(truth.rows)[:5]}, predicted {levels}."
        )
    lost = {g for source in (truth, *cells.values()) for g in source.rows} - set(shared)
    if lost:
        warn_user(f"Not in real and in every prediction, and left out: {sorted(lost, key=str)}.")
    enough = [
        g
        for g in shared
        if len(truth.rows[g]) >= 2 * MIN_CELLS
        and len(controls.rows(g)) >= n_control
        and all(len(source.rows[g]) >= MIN_CELLS for source in cells.values())
    ]
    few = [g for g in shared if g not in enough]
    message = f"{few} have too few cells: {2 * MIN_CELLS} real, {MIN_CELLS} predicted and {n_control} control cells"
    message += " are needed."
    if without := [g for g in few if not len(controls.rows(g))]:
        message += (
            f" control has cells of some groups but not of {without[:5]}: add their control cells, or remove the "
            "column groupby from control.obs so that all groups share all control cells."
        )
    if not enough:
        raise ValueError(message)
    if few:
        warn_user(f"Left out: {message}")
    return enough
