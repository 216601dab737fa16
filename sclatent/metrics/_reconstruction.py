"""How much of a cell is left after encoding and decoding."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from tqdm.auto import tqdm

from sclatent.data import check_keys, totals

from ._cells import BLOCK, CellGroups, check_anndata, check_flags
from ._change import pearson
from ._groups import name_of
from ._marginals import concordance
from ._projection import log_normalize_dense
from ._table import ALL, finish, named_sources

FLOOR = "condition mean"
LOWER_IS_BETTER = {"mse", "library_size_error"}
SPACES = {  # of the metrics that are not of log-normalised cells
    "library_size_error": "log10 counts of a cell",
    **dict.fromkeys(("gene_zeros", "gene_zeros_pearson"), "counts, {} genes"),
}


def evaluate_reconstruction(
    real: AnnData,
    reconstructed: AnnData | Mapping[str, AnnData],
    groupby: str | Sequence[str] | None = None,
    floors: bool = True,
    progress_bar: bool = True,
    layer: str | None = None,
) -> pd.DataFrame:
    """Compare cells with their own reconstructions, all of them, a block at a time.

    Parameters
    ----------
    real
        Cells with raw counts, best such as the model was not trained on. Its genes are the ones that are compared.
    reconstructed
        The same cells, reconstructed, or several such by name: counts, or expected counts (which need not be whole).
        Cells are paired by obs_names, or by row if the two share no names and have as many cells; genes by name.
    groupby
        Column of ``real.obs`` with conditions; or several columns, whose combinations are the conditions, called
        ``"cell_type=B, donor=101"``. By default all cells are one, ``"all"``.
    floors
        Whether to compute the floor.
    progress_bar
        Whether to show progress.
    layer
        Layer of ``real`` with the counts; X by default. Reconstructed cells have them in X.

    Returns
    -------
    pd.DataFrame
        A row for every condition (group, "mean" over the groups, and "all" cells), source and metric; the
        columns are those of :func:`evaluate_generation`. There is no choice of cells, hence no seed, and no ceiling: a
        cell cannot be measured twice, and how much of its counts is noise is not known. Metrics, of log-normalised
        cells (log1p of counts per 10,000):

        - ``pearson``: Pearson correlation of a cell with its reconstruction over genes, mean over cells; 0 for a cell
          without counts
        - ``mse``: mean squared error, over cells and genes
        - ``gene_mean``, ``gene_zeros``: Lin's concordance, over genes, of the mean and of the fraction of zeros;
          ``gene_mean_pearson``, ``gene_zeros_pearson``: Pearson correlation of the same. Expected counts are never 0:
          their fractions of zeros say nothing.
        - ``library_size_error``: mean over cells of the absolute difference of log10 counts of the cell, in tenfolds

        Floor, for the first two: ``condition mean``, every cell predicted as the mean profile of its condition, that of
        these very cells, which is the more in its favour the fewer there are.

    Raises
    ------
    ValueError
        If cells cannot be paired, if genes are missing, or if values are no counts.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.metrics import evaluate_reconstruction, summarize
    >>> real = sclatent.datasets.simulate(100, 50, library_size=500, store_mean=True)
    >>> smooth = real.copy()
    >>> smooth.X = real.layers["mean"]  # in place of what a model makes of them
    >>> table = evaluate_reconstruction(real, {"as they are": real, "smooth": smooth})
    >>> summarize(table).loc["pearson", ["as they are", "smooth"]].astype(float).round(1).tolist()
    [1.0, 0.8]
    """
    keys = check_keys(groupby, "groupby")
    check_flags(floors=floors)
    check_anndata(real, "real")
    cells = CellGroups(real, real.var_names, keys, "real", layer)
    sources = {}
    named = named_sources(reconstructed, "reconstructed", [FLOOR], name="reconstructed")
    for name, (argument, adata) in named.items():
        source = CellGroups(adata, real.var_names, [], argument, whole=False)
        sources[name] = source, _partners(real.obs_names, adata.obs_names, argument)

    conditions = {**cells.rows, ALL: np.arange(real.n_obs)}
    records = []
    with tqdm(total=len(sources) * real.n_obs, unit=" cells", desc="reconstruction", disable=not progress_bar) as bar:
        for name, (source, partners) in sources.items():
            per_cell = {metric: np.empty(real.n_obs) for metric in ("pearson", "mse", "library_size_error")}
            sums = {}  # over the cells of a condition: of values, real and reconstructed, and of zeros
            for g, rows in cells.rows.items():
                sums[g] = np.zeros((4, real.n_vars))
                for block in _blocks(rows, real.n_vars):
                    counts, others = cells.counts(block), source.counts(partners[block])
                    x, y = log_normalize_dense(counts), log_normalize_dense(others)
                    per_cell["pearson"][block], per_cell["mse"][block] = _pearson_and_mse(x, y)
                    per_cell["library_size_error"][block] = np.abs(
                        _log_library_size(counts) - _log_library_size(others)
                    )
                    sums[g] += [totals(v, axis=0) for v in (x, y, x == 0, y == 0)]
                    bar.update(len(block))
            sums[ALL] = sum((sums[g] for g in cells.rows), start=np.zeros((4, real.n_vars)))
            for g, rows in conditions.items():
                values = {metric: v[rows].mean() for metric, v in per_cell.items()}
                for metric, (a, b) in zip(("gene_mean", "gene_zeros"), np.split(sums[g] / len(rows), 2), strict=True):
                    values |= {metric: concordance(a, b), f"{metric}_pearson": pearson(a, b)}
                records += _records(name_of(g, keys), name, "generated", values, len(rows), real.n_vars)
    if floors:
        per_cell = {metric: np.empty(real.n_obs) for metric in ("pearson", "mse")}
        for rows in cells.rows.values():
            profile = cells.mean(rows)
            for block in _blocks(rows, real.n_vars):
                x = cells.values(block)
                per_cell["pearson"][block], per_cell["mse"][block] = _pearson_and_mse(x, np.tile(profile, (len(x), 1)))
        for g, rows in conditions.items():
            values = {metric: v[rows].mean() for metric, v in per_cell.items()}
            records += _records(name_of(g, keys), FLOOR, "floor", values, len(rows), real.n_vars)
    return finish(records)


def _records(
    condition: Hashable, source: str, kind: str, values: Mapping[str, float], n_cells: int, n_genes: int
) -> list[dict[str, object]]:
    about = {"condition": condition, "source": source, "kind": kind, "n_components": None, "seed": None}
    cells = dict.fromkeys(("n_real", "n_generated", "n_available"), n_cells)
    return [
        {
            **about,
            **cells,
            "metric": metric,
            "value": float(value),
            "better": "lower" if metric in LOWER_IS_BETTER else "higher",
            "space": SPACES.get(metric, "log1p CP10k, {} genes").format(n_genes),
        }
        for metric, value in values.items()
    ]


def _blocks(rows: np.ndarray, n_genes: int) -> list[np.ndarray]:
    """Rows in parts that can stand in memory as dense cells."""
    step = max(1, BLOCK // n_genes)
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def _pearson_and_mse(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pearson correlation and mean squared error of each row of x with that of y, (cells,) each."""
    mse = ((x - y) ** 2).mean(axis=1, dtype=np.float64)
    varies = (np.ptp(x, axis=1) > 0) & (np.ptp(y, axis=1) > 0)
    x, y = (v - v.mean(axis=1, dtype=np.float64, keepdims=True) for v in (x, y))
    norm = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.where(varies, (x * y).sum(axis=1) / np.where(varies, norm, 1.0), 0.0), mse


def _log_library_size(counts: np.ndarray | sparse.csr_matrix) -> np.ndarray:
    """Log10 of the counts of a cell, (cells,); less than one count is taken for one."""
    return np.log10(np.maximum(totals(counts, axis=1), 1.0))


def _partners(names: pd.Index, others: pd.Index, argument: str) -> np.ndarray:
    """Row of each cell in the other AnnData."""
    if names.equals(others):
        return np.arange(len(names))
    if names.is_unique and others.is_unique and names.isin(others).all():
        return others.get_indexer(names)
    if len(names) != len(others) or names.isin(others).any():
        raise ValueError(
            f"The {len(names)} cells of real cannot be paired with the {len(others)} of {argument}: they share "
            f"{int(names.isin(others).sum())} obs_names. Give reconstructions of the same cells under the same "
            "names, or in the same order under other names."
        )
    return np.arange(len(names))
