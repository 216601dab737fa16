"""Whether generated cells can pass for real ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from tqdm.auto import tqdm

from sclatent.data import check_keys, check_seed, check_whole, random_stream
from sclatent.data._warnings import warn_user

from ._cells import CellGroups, check_anndata, check_flags
from ._floors import Draw, draw_gene_copula, draw_independent_genes
from ._groups import alike, name_of, warn_of_alike
from ._projection import Projection
from ._samples import Comparison, Sample
from ._table import ALL, finish, named_sources

MIN_CELLS = 10  # in a half
FIT_CELLS = 5  # times max_cells: components, and the factors of a copula, are fitted on no more
FLOORS = OTHERS, CELL_MEAN, INDEPENDENT, COPULA = "other conditions", "cell mean", "independent genes", "gene copula"
HALF = "real half"

Sizes = dict[Hashable, int]
"""Cells of every condition in a half."""
Rows = Mapping[Hashable, np.ndarray]
"""Rows of an AnnData by condition."""
Task = tuple[str, str, Callable[[], list[dict]]]
"""Name and kind of a source, and what makes its records."""


def evaluate_generation(
    real: AnnData,
    generated: AnnData | Mapping[str, AnnData],
    groupby: str | Sequence[str] | None = None,
    train: AnnData | None = None,
    n_components: int = 50,
    max_cells: int = 2000,
    floors: bool = True,
    seed: int = 0,
    progress_bar: bool = True,
    layer: str | None = None,
) -> pd.DataFrame:
    """Compare generated cells with real ones, between floors and a ceiling.

    The real cells of a condition are split into two halves of m cells. The generator gives m cells for each half, and
    its value is the mean of the two; the floors give m cells for one half; the ceiling is the value of one half for the
    other. So all values of a condition and metric are of the same numbers of cells, without which most of them could
    not be compared.

    Principal components fit the cells they were fitted on better than any others, by so much that a random forest
    tells real cells from real cells (PBMC3k: AUC 0.91 in place of 0.5). So they are fitted on neither half: on
    ``train``, or on a third of the real cells that is set aside.

    Parameters
    ----------
    real
        Cells with raw counts, best such as the generator was not trained on.
    generated
        Generated cells with raw counts, or several such by name; genes are matched by name. An empty dictionary has
        floors and ceiling alone compared.
    groupby
        Column of obs, in all of them, with the conditions; or several columns, whose combinations are the conditions,
        called ``"cell_type=B, donor=101"``. None compares all cells with all.
    train
        Cells to fit the principal components and the last three floors on: those that the generator was trained on, if
        ``real`` has none of them. By default a third of the cells of every condition of ``real``, chosen at random,
        which is then not compared.
    n_components
        Principal components at most.
    max_cells
        Most cells of a half: m is the least of this, half the real cells (that were not set aside) and half the
        generated cells of the condition. The components, and the factors of a gene copula, are fitted on 5 times as
        many at most. More are subsampled; memory does not grow with the rest.
    floors
        Whether to compute the floors.
    seed
        Seed of the splits, the subsampling, the floors, the components and the classifiers.
    progress_bar
        Whether to show progress.
    layer
        Layer with the counts of ``real`` and ``train``; X by default. Generated cells have theirs in X.

    Returns
    -------
    pd.DataFrame
        A row for every condition, source and metric; columns ``condition``, ``source``, ``kind`` ("generated", "floor"
        or "ceiling"), ``metric``, ``value``, ``floor`` (the best one's value for the condition and metric),
        ``ceiling``, ``better`` ("lower", "higher" or "closer to 1"), ``space``, ``n_components``, ``n_real``,
        ``n_generated``, ``n_available``, ``seed``. :func:`summarize` lays it out for reading.

        Conditions are those with at least 20 real cells (30 without ``train``), ``"mean"`` (over them) and ``"all"``
        (their cells together, in the proportions of the real ones). Sources are what was generated, ``"real half"``
        (the ceiling), and the floors: ``"other conditions"`` (real cells of all the others; not in ``"all"``),
        ``"cell mean"`` (the mean profile of the condition in place of every cell), ``"independent genes"``
        (:func:`independent_genes`) and ``"gene copula"`` (:func:`gene_copula`). ``n_real`` and ``n_generated`` are the
        cells of a half and what was compared with it, ``n_available`` the cells that the source was drawn from or
        fitted on.

        Distances in many dimensions are shorter the less cells vary, and all is next to what lies in the middle: W1,
        W2, precision, density, coverage and ``real_to_generated`` of cells that vary too little can be better than the
        ceiling's, and 1-nearest-neighbour accuracy misses them. Look at ``mmd2``, ``energy``, ``rf_auc`` and ``recall``
        beside these.

        Metrics on principal components:

        - ``w1``, ``w2``: :func:`wasserstein`; ``sinkhorn``: :func:`sinkhorn_divergence`; ``mmd2``: :func:`mmd2`;
          ``energy``: :func:`energy_distance`; ``frechet``: :func:`frechet_distance`
        - ``nn_accuracy``: :func:`nearest_neighbor_accuracy`, ``rf_auc``: :func:`random_forest_auc`; 0.5 is perfect
        - ``precision``, ``recall``: :func:`precision_recall`; ``density``, ``coverage``: :func:`density_coverage` (k=5)
        - ``real_to_generated``, ``generated_to_real``: accuracy of a random forest of the conditions, trained on one
          and tested on the other; only in ``"all"``

        Metrics on genes:

        - ``gene_mean``, ``gene_variance`` (log-normalised), ``gene_zeros`` (fraction of zeros): Lin's concordance over
          genes, and ``gene_mean_pearson`` and so on: Pearson correlation, which a shift of all genes leaves at 1
        - ``gene_correlation``: Pearson correlation over the pairs of the 200 most variable genes of the real cells, of
          their correlations
        - ``library_size``: Wasserstein distance of log10 counts of a cell

    Raises
    ------
    TypeError
        If cells are no AnnData.
    ValueError
        If there are too few cells of all conditions, or too few generated ones of some, if genes are missing, or if
        values are no counts.

    Warns
    -----
    UserWarning
        If conditions are left out.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.metrics import evaluate_generation, summarize
    >>> cells = sclatent.datasets.simulate(300, 50, library_size=500)
    >>> real, generated = cells[::2].copy(), cells[1::2].copy()  # give cells of your generator in place of the latter
    >>> table = evaluate_generation(real, generated, n_components=10, floors=False)
    >>> table.shape  # a row for every source and metric
    (40, 14)
    >>> figures = summarize(table)
    >>> list(figures.columns)
    ['generated', 'real half', 'better']

    These are real cells themselves, so they are about level with the ceiling, ``"real half"``:

    >>> bool(figures.loc["recall", "generated"] > 0.8), bool(figures.loc["gene_mean", "generated"] > 0.9)
    (True, True)

    By condition, and several generators in one table:
    ``evaluate_generation(real, {"SCLDM": a, "scVI": b}, groupby="cell_type", train=train)``.
    """
    keys = check_keys(groupby, "groupby")
    check_flags(floors=floors)
    check_whole("max_cells", max_cells, MIN_CELLS)
    check_whole("n_components", n_components)
    check_seed(seed)
    check_anndata(real, "real")
    real_cells = CellGroups(real, real.var_names, keys, "real", layer)
    if train is None:
        real_cells, train_cells = _set_aside(real_cells, seed)
    else:
        train_cells = CellGroups(train, real.var_names, keys, "train", layer)
        warn_of_alike("train", train_cells.rows, real_cells.rows, keys)
    named = named_sources(generated, "generated", [*FLOORS, HALF])
    sources = {name: CellGroups(adata, real.var_names, keys, a) for name, (a, adata) in named.items()}
    levels = _levels(real_cells, sources, keys)
    if floors and (without := [name_of(level, keys) for level in levels if level not in train_cells.rows]):
        warn_user(
            f"train has no cells of {without[:5]}: the floors {CELL_MEAN!r}, {INDEPENDENT!r} and {COPULA!r} are left "
            f"out of these conditions and of {ALL!r}."
        )

    some = random_stream(seed, "cells of the components").permutation(np.concatenate(list(train_cells.rows.values())))
    projection = Projection(train_cells.values(some[: FIT_CELLS * max_cells]), n_components, seed)

    groups = [real_cells, *sources.values()]
    sizes = {level: _sizes([level], groups, max_cells) for level in levels} if keys else {}
    sizes[ALL] = _sizes(levels, groups, max_cells)
    records = []
    total = sum(sum(size.values()) for size in sizes.values()) * (1 + 2 * len(sources) + len(FLOORS) * floors)
    with tqdm(total=total, unit=" cells", disable=not progress_bar) as bar:
        for number, (level, size) in enumerate(sizes.items()):
            condition = name_of(level, keys)
            bar.set_description(f"evaluate {condition}")
            trial = _Trial(real_cells, train_cells, size, projection, seed, number, FIT_CELLS * max_cells)
            tasks: list[Task] = [(name, "generated", partial(trial.source, cells)) for name, cells in sources.items()]
            tasks += [(name, "floor", partial(trial.floor, name)) for name in FLOORS if floors]
            tasks += [(HALF, "ceiling", trial.ceiling)]
            for name, kind, compare in tasks:
                about = {"condition": condition, "source": name, "kind": kind, "seed": seed}
                records += [{**about, **record} for record in compare()]
                bar.update(sum(size.values()) * (2 if kind == "generated" else 1))
    return finish(records)


def _set_aside(cells: CellGroups, seed: int) -> tuple[CellGroups, CellGroups]:
    """Two thirds and one third of the cells of every condition."""
    rows = cells.shuffled(seed).rows
    return (
        cells.take({c: r[len(r) // 3 :] for c, r in rows.items()}),
        cells.take({c: r[: len(r) // 3] for c, r in rows.items()}),
    )


def _levels(real: CellGroups, sources: Mapping[str, CellGroups], keys: Sequence[str]) -> list[Hashable]:
    """Conditions with enough real cells; an error where there are not enough generated ones for them."""
    few = [level for level, rows in real.rows.items() if len(rows) < 2 * MIN_CELLS]
    levels = [level for level in real.rows if level not in few]
    if not levels:
        raise ValueError(
            f"real has fewer than {2 * MIN_CELLS} cells to compare in every condition (without train a third is set "
            "aside): two halves need as many."
        )
    if few:
        names = "; ".join(str(name_of(level, keys)) for level in few)
        warn_user(f"Left out, with fewer than {2 * MIN_CELLS} real cells to compare: {names}.")
    for name, cells in sources.items():
        for level in levels:
            if (n := len(cells.rows.get(level, ()))) < 2 * MIN_CELLS:
                where = (
                    f" with {name_of(level, keys)}" if len(keys) > 1 else f" with {keys[0]}={level!r}" if keys else ""
                )
                written = alike([level], cells.rows)
                raise ValueError(
                    f"{name} has {n} cells{where}: at least {2 * MIN_CELLS} were expected. Generate more"
                    + (", or leave this condition out of real." if keys else ".")
                    + (f" Is it {written[level]!r} in {name}? Then write both alike." if written else "")
                )
    return levels


def _sizes(levels: list[Hashable], groups: list[CellGroups], max_cells: int) -> Sizes:
    """Cells of every condition in a half: in the proportions of the first group, twice as many in all groups."""
    n = {level: len(groups[0].rows[level]) for level in levels}
    share = {level: n[level] / sum(n.values()) for level in levels}
    m = min(len(group.rows[level]) / share[level] for group in groups for level in levels) / 2
    return {level: max(1, int(min(m, max_cells) * share[level] + 1e-6)) for level in levels}


class _Trial:
    """The comparisons of one condition, or of several together, with two halves of its real cells.

    Parameters
    ----------
    real
        Real cells.
    train
        Other cells, that the floors are made from.
    size
        Cells of every condition in a half.
    projection
        The principal components.
    seed, number
        Seed, also that of the classifiers, and number of the trial.
    most
        Most cells of a condition that the factors of a copula are fitted on.
    """

    def __init__(
        self,
        real: CellGroups,
        train: CellGroups,
        size: Sizes,
        projection: Projection,
        seed: int,
        number: int,
        most: int,
    ) -> None:
        self._real, self._train, self._size, self._projection = real, train, size, projection
        self._seed, self._number, self._most = seed, number, most
        halves = self._split(real)
        one, other = (self._sample(real, rows) for rows in halves)
        self._halves = one, other
        # what is compared with one half has the conditions of the other, as the ceiling has
        self._mixes = [{c: len(rows) for c, rows in half.items()} for half in reversed(halves)]
        self._comparison = Comparison(self._halves, projection, seed)

    def _stream(self, purpose: str) -> np.random.Generator:
        return random_stream(self._seed, purpose, self._number)

    def ceiling(self) -> list[dict]:
        """Records of one half as compared with the other."""
        return self._records([self._halves], self._n_available(self._real))

    def source(self, cells: CellGroups) -> list[dict]:
        """Records of cells as compared with both halves."""
        samples = (self._sample(cells, rows) for rows in self._draw(cells))
        return self._records(zip(self._halves, samples, strict=True), self._n_available(cells))

    def floor(self, name: str) -> list[dict]:
        """Records of a floor as compared with one half; none where there are no cells to make it from."""
        rng = self._stream(f"floor: {name}")
        if name == OTHERS:  # not of the training cells, which the components know
            origin = {c: rows for c, rows in self._real.rows.items() if c not in self._size}
            enough = sum(map(len, origin.values())) >= MIN_CELLS and len(self._size) == 1
        else:
            origin = {c: rows for c, rows in self._train.rows.items() if c in self._size}
            enough = len(origin) == len(self._size)
        if not enough:
            return []
        make: dict[str, Callable[[Rows, np.random.Generator], Sample]] = {
            OTHERS: self._others,
            CELL_MEAN: self._cell_mean,
            INDEPENDENT: partial(self._drawn, draw_independent_genes),
            COPULA: partial(self._drawn, partial(draw_gene_copula, most=self._most)),
        }
        sample = make[name](origin, rng)
        pair = self._halves[0].head(len(sample.sizes)), sample
        return self._records([pair], sum(map(len, origin.values())))

    def _others(self, origin: Rows, rng: np.random.Generator) -> Sample:
        rows = np.concatenate(list(origin.values()))
        n = min(len(rows), sum(self._size.values()))  # where there are fewer, the half is cut to them
        return self._sample(self._real, {OTHERS: rng.choice(rows, n, replace=False)})

    def _cell_mean(self, origin: Rows, rng: np.random.Generator) -> Sample:
        sizes = list(self._mixes[0].values())
        values = np.stack([self._train.mean(origin[c]) for c in self._size]).repeat(sizes, axis=0)
        library = np.repeat([self._train.sizes(origin[c]).mean() for c in self._size], sizes)
        return Sample(values, self._projection.transform(values), library, self._labels(sizes))

    def _drawn(self, draw: Draw, origin: Rows, rng: np.random.Generator) -> Sample:
        mix = self._mixes[0]
        counts = [draw(self._train, origin[c], n, rng) for c, n in mix.items()]
        labels = self._labels(list(mix.values()))
        return Sample.of_counts(sparse.vstack(counts, format="csr"), labels, self._projection)

    def _split(self, cells: CellGroups) -> list[Rows]:
        """Rows of two random halves: of the same size, but not of exactly the same mix of conditions.

        Halves of the same mix would be more alike than samples of one distribution, and unbiased estimates below 0.
        """
        rng = self._stream("halves")
        rows = np.concatenate([rng.choice(cells.rows[c], 2 * n, replace=False) for c, n in self._size.items()])
        labels = self._labels([2 * n for n in self._size.values()])
        halves = np.split(rng.permutation(len(rows)), 2)
        return [{c: rows[half[labels[half] == i]] for i, c in enumerate(self._size)} for half in halves]

    def _draw(self, cells: CellGroups) -> list[Rows]:
        """Rows for both halves, of which none is in both."""
        rng = self._stream("generated cells")
        rows = {c: rng.choice(cells.rows[c], 2 * n, replace=False) for c, n in self._size.items()}
        first = {c: r[: self._mixes[0][c]] for c, r in rows.items()}
        return [first, {c: r[len(first[c]) :] for c, r in rows.items()}]

    def _sample(self, cells: CellGroups, rows: Rows) -> Sample:
        labels = self._labels([len(r) for r in rows.values()])
        return Sample.of_counts(cells.counts(np.concatenate(list(rows.values()))), labels, self._projection)

    def _n_available(self, cells: CellGroups) -> int:
        return sum(len(cells.rows[c]) for c in self._size)

    @staticmethod
    def _labels(sizes: list[int]) -> np.ndarray:
        return np.repeat(np.arange(len(sizes)), sizes)

    def _records(self, pairs: Iterable[tuple[Sample, Sample]], n_available: int) -> list[dict]:
        """The mean of every metric over pairs of real and other cells."""
        values = []
        for real, other in pairs:
            values.append(self._comparison.metrics(real, other))
        about = {"n_real": len(real.sizes), "n_generated": len(other.sizes), "n_available": n_available}
        return [
            {"metric": m, "value": np.mean([v[m] for v in values]), **about, **self._comparison.describe(m)}
            for m in values[0]
        ]
