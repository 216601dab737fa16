"""The table that every evaluation returns: a row a number, with what it was computed from, floor and ceiling."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

COLUMNS = [
    "condition", "source", "kind", "metric", "value", "floor", "ceiling", "better",
    "space", "n_components", "n_real", "n_generated", "n_available", "seed",
]  # fmt: skip
COUNTS = ["n_components", "n_real", "n_generated", "n_available"]
ALL, MEAN = "all", "mean"  # conditions that are not levels of groupby
KINDS = ["generated", "floor", "ceiling"]

T = TypeVar("T")


def named_sources(
    given: T | Mapping[str, T], argument: str, reserved: Collection[str], name: str = "generated"
) -> dict[str, tuple[str, T]]:
    """Name what is to be evaluated.

    Parameters
    ----------
    given
        One source, or several by name.
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
    if not named or not set(named).isdisjoint(reserved):
        raise ValueError(
            f"{argument} has the names {list(named)}: at least one was expected, and none of {sorted(reserved)}, which "
            "floors and ceiling have."
        )
    return {n: (f"{argument}[{n!r}]" if several else argument, source) for n, source in named.items()}


def finish(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Make the table of an evaluation.

    Parameters
    ----------
    records
        A dictionary a number, with all of :data:`COLUMNS` but floor and ceiling. ``kind`` is "generated", "floor" or
        "ceiling"; ``better`` is "lower" or "higher"; ``condition`` may be "all".

    Returns
    -------
    pd.DataFrame
        The columns are :data:`COLUMNS`. To the rows of the records it adds, where there are conditions
        other than "all", those of the condition "mean": the unweighted mean over these conditions, NaN values left out,
        with the sums of their cells. A source that lacks one of them has no mean, which could not be compared with that
        of others. ``floor`` is the best value of the floors for the condition and metric, ``ceiling`` that of the
        ceiling; NaN where there is none.
    """
    if not records:
        raise ValueError("There is nothing to put into the table: no condition could be compared.")
    table = pd.DataFrame.from_records(records)
    table = table.astype(dict.fromkeys(COUNTS, "Int64"))  # with a place for what is not there
    single = table[table["condition"] != ALL]
    if len(single):
        sums = dict.fromkeys(COUNTS[1:], "sum")
        same = dict.fromkeys(["kind", "better", "space", "n_components", "seed"], "first")
        of_source = single.groupby(["source", "metric"], sort=False)
        n_conditions = single.groupby("metric")["condition"].nunique()
        mean = of_source.agg({"value": "mean", "condition": "size", **sums, **same}).reset_index()
        mean = mean[mean["condition"] == mean["metric"].map(n_conditions)]
        table = pd.concat([table, mean.assign(condition=MEAN)], ignore_index=True)

    key = ["condition", "metric"]
    sign = np.where(table["better"] == "higher", 1.0, -1.0)
    best = table.assign(value=table["value"] * sign).groupby([*key, "kind"])["value"].max().unstack()
    rows = pd.MultiIndex.from_frame(table[key])
    for kind in ("floor", "ceiling"):
        table[kind] = best[kind].reindex(rows).to_numpy() * sign if kind in best else np.nan
    return table[COLUMNS]


def summarize(table: pd.DataFrame, conditions: Sequence[str] = (MEAN, ALL)) -> pd.DataFrame:
    """Lay a table of an evaluation out for reading: metrics down, sources across.

    Parameters
    ----------
    table
        What :func:`evaluate_generation`, or another evaluation, returned.
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
    shown = table[table["condition"].isin(conditions)]
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
