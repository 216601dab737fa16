"""The table that every evaluation returns: a row a number, with what it was computed from, floor and ceiling."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from pandas.api.typing import SeriesGroupBy

from sclatent.data._warnings import warn_user

COLUMNS = [
    "condition", "source", "kind", "metric", "value", "floor", "ceiling", "better",
    "space", "n_components", "n_real", "n_generated", "n_available", "seed",
]  # fmt: skip
COUNTS = ["n_components", "n_real", "n_generated", "n_available"]
ALL, MEAN = "all", "mean"  # conditions that are not levels of groupby
KINDS = ["generated", "floor", "ceiling"]
TO_ONE = "closer to 1"  # what is better, beside "lower" and "higher"

T = TypeVar("T")


def named_sources(
    given: T | Mapping[str, T], argument: str, reserved: Collection[str], name: str = "generated"
) -> dict[str, tuple[str, T]]:
    """Name what is to be evaluated.

    Parameters
    ----------
    given
        One source, or several by name, or none.
    argument
        The argument that has them.
    reserved
        Names of floors and ceiling.
    name
        Name of a single source.

    Returns
    -------
    dict[str, tuple[str, T]]
        By name in the table: what to call a source in a message, and the source.
    """
    several = isinstance(given, Mapping)
    named: dict[str, T] = dict(given) if isinstance(given, Mapping) else {name: given}
    if not set(named).isdisjoint(reserved):
        raise ValueError(
            f"{argument} has the names {list(named)}: none of {sorted(reserved)} was expected, which floors and "
            "ceiling have."
        )
    return {n: (f"{argument}[{n!r}]" if several else argument, source) for n, source in named.items()}


def goodness(values: pd.Series, better: pd.Series) -> pd.Series:
    """How good values are, the higher the better.

    Parameters
    ----------
    values, better
        Values, and which way each is better: "lower", "higher" or "closer to 1".
    """
    signed = values.where(better == "higher", -values)
    return signed.where(better != TO_ONE, -(values - 1).abs())


def finish(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Make the table of an evaluation.

    Parameters
    ----------
    records
        A dictionary a number, with all of :data:`COLUMNS` but floor and ceiling. ``kind`` is "generated", "floor" or
        "ceiling"; ``better`` is "lower", "higher" or "closer to 1"; ``condition`` may be "all".

    Returns
    -------
    pd.DataFrame
        The columns are :data:`COLUMNS`. To the rows of the records it adds, where there are conditions
        other than "all", those of the condition "mean": the unweighted mean over these conditions, NaN values left out
        with a warning, and the sums of their cells. A source that lacks one of them has no mean, which could not be
        compared with that of others. ``floor`` is the best value of the floors for the condition and metric,
        ``ceiling`` that of the ceiling; NaN where there is none. The best floor of a mean is the one that is better in
        the mean: 0.9 and 0.9 is closer to 1 than 0.2 and 1.8.
    """
    if not records:
        raise ValueError("There is nothing to put into the table: no condition could be compared.")
    table = pd.DataFrame.from_records(records)
    table = table.astype(dict.fromkeys(COUNTS, "Int64"))  # with a place for what is not there
    table["goodness"] = goodness(table["value"], table["better"])
    single = table[table["condition"] != ALL]
    if len(single):
        sums = dict.fromkeys(COUNTS[1:], "sum")
        same = dict.fromkeys(["kind", "better", "space", "n_components", "seed"], "first")
        of_source = single.groupby(["source", "metric"], sort=False)
        n_conditions = single.groupby("metric")["condition"].nunique()
        mean = of_source.agg({"value": "mean", "goodness": "mean", "condition": "size", **sums, **same}).reset_index()
        mean = mean[mean["condition"] == mean["metric"].map(n_conditions)]
        _warn_of_nan(of_source["value"], "conditions")
        table = pd.concat([table, mean.assign(condition=MEAN)], ignore_index=True)
    return _with_bounds(table)[COLUMNS]


def _with_bounds(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the best value of the floors by goodness, and of the ceiling, for every condition and metric."""
    key = ["condition", "metric"]
    order = table["goodness"].sort_values(kind="stable").index
    best = table.loc[order].groupby([*key, "kind"])["value"].last().unstack()
    rows = pd.MultiIndex.from_frame(table[key])
    bounds = {kind: best[kind].reindex(rows).to_numpy() if kind in best else np.nan for kind in ("floor", "ceiling")}
    return table.assign(**bounds)


def _warn_of_nan(values: SeriesGroupBy, units: str) -> None:
    """Warn of metrics that are NaN in some of the units that a mean is taken over, by source and metric."""
    n, counted = values.size(), values.count()
    some = counted[(counted < n) & (counted > 0)].groupby(level="metric", sort=False).min()
    if len(some):
        of = n.groupby(level="metric").max()
        named = ", ".join(f"{metric} over {k} of {of[metric]} {units}" for metric, k in some.items())
        warn_user(f"Values that are NaN are left out of means: {named}.")


def over_folds(table: pd.DataFrame) -> pd.DataFrame:
    """Take means over the folds and seeds of a table, where it has several; else return it as it is.

    Parameters
    ----------
    table
        Tables of an evaluation below one another, or what :func:`benchmark` returned. The columns ``fold`` and
        ``seed``, where it has them, tell what is of the same fold: floors that several tables of it have count once.

    Returns
    -------
    pd.DataFrame
        One row for every condition, source and metric, without what it was computed from. A source that lacks one of
        the folds has no mean, which could not be compared with that of others; a warning says so.
    """
    key, units = ["condition", "source", "metric"], [column for column in ("fold", "seed") if column in table]
    unit = table.groupby(units, dropna=False).ngroup() if units else pd.Series(0, table.index)
    if unit.nunique() < 2 and not table.duplicated(key).any():
        return table
    table = table.assign(unit=unit.to_numpy(), goodness=goodness(table["value"], table["better"]))
    of_unit = table.groupby([*key, "unit"], sort=False)
    least, most = of_unit["value"].min(), of_unit["value"].max()
    if not np.allclose(least, most, equal_nan=True):  # other processors round otherwise
        warn_user(
            "The table has different values of a source for the same metric, fold and seed, of which the mean is "
            "taken: say by a column fold what each table is of, or evaluate all sources together."
        )
    averaged = {"kind": "first", "better": "first", "value": "mean", "goodness": "mean"}
    table = of_unit.agg(averaged).reset_index()
    n = table.groupby(key)["unit"].transform("size")
    n_units = table.groupby(["condition", "metric"])["unit"].transform("nunique")
    lacks = n < n_units
    if lacks.any():
        some = table[lacks].assign(n=n, n_units=n_units).drop_duplicates("source")
        named = ", ".join(
            f"{s!r} ({k} of {of})" for s, k, of in zip(some["source"], some["n"], some["n_units"], strict=True)
        )
        warn_user(f"Without a mean, since they lack folds or seeds that others have: {named}.")
    of_source = table[~lacks].groupby(key, sort=False)
    _warn_of_nan(of_source["value"], "folds or seeds")
    return _with_bounds(of_source.agg(averaged).reset_index()).drop(columns="goodness")


def summarize(table: pd.DataFrame, conditions: Sequence[str] = (MEAN, ALL)) -> pd.DataFrame:
    """Lay a table of an evaluation out for reading: metrics down, sources across.

    Parameters
    ----------
    table
        What :func:`evaluate_generation`, or another evaluation, returned. Of several folds or seeds, as of
        :func:`benchmark` or of tables below one another (``pd.concat``), the means are shown. The columns ``fold`` and
        ``seed`` tell them apart: floors that several tables have of the same count once.
    conditions
        The conditions to show; those that the table does not have are passed over.

    Returns
    -------
    pd.DataFrame
        Values with the index (condition, metric), or metric where there is one condition, and a column a
        source: what was generated first, then the floors, and last the ceiling, "real half"; and the column ``better``.

    Raises
    ------
    ValueError
        If the table has none of the conditions.

    Warns
    -----
    UserWarning
        If sources have no mean, since they lack a fold or seed that others have, or values that are NaN are left out.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.metrics import evaluate_reconstruction, summarize
    >>> real = sclatent.datasets.simulate(100, 50, cell_types=["B", "T"], library_size=500)
    >>> table = evaluate_reconstruction(real, real, groupby="cell_type")
    >>> figures = summarize(table, ["B", "T"])
    >>> round(float(figures.loc[("B", "pearson"), "reconstructed"]), 6)
    1.0
    >>> list(figures.columns)
    ['reconstructed', 'condition mean', 'better']
    """
    shown = over_folds(table[table["condition"].isin(conditions)])
    if not len(shown):
        raise ValueError(
            f"conditions={list(conditions)} are not in the table, which has {list(table['condition'].unique())}."
        )
    sources = [s for kind in KINDS for s in shown.loc[shown["kind"] == kind, "source"].unique()]
    metrics = shown["metric"].unique()
    wide = shown.pivot(index=["condition", "metric"], columns="source", values="value")[sources]
    wide["better"] = shown.drop_duplicates(["condition", "metric"]).set_index(["condition", "metric"])["better"]
    present = [c for c in dict.fromkeys(conditions) if c in set(shown["condition"])]
    order = [(c, m) for c in present for m in metrics if (c, m) in wide.index]
    wide = wide.loc[order].rename_axis(columns=None)
    return wide.droplevel("condition") if len(present) == 1 else wide
