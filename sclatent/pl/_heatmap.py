"""Metrics by condition, between floor and ceiling."""

from __future__ import annotations

import os
from collections.abc import Sequence
from textwrap import fill

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sclatent.metrics._table import TO_ONE, goodness, over_folds

from ._figures import save_figure

NEEDED = ["condition", "source", "kind", "metric", "value", "floor", "ceiling", "better"]
SUMMARIES = ["mean", "all"]  # conditions that are not levels of groupby: they come last
CELL, MIN_WIDTH = (0.42, 0.21), 0.9  # of a cell, and of a panel, in inches
ARROWS = {"lower": "↓", "higher": "↑", TO_ONE: "→1"}
COLORMAP = mpl.colormaps["GnBu"].with_extremes(under="#fdd0b5", bad="white")


def metrics_heatmap(
    table: pd.DataFrame,
    metrics: Sequence[str] | None = None,
    conditions: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
    floor: str | None = None,
    save: str | os.PathLike | None = None,
) -> np.ndarray:
    """Draw the metrics of an evaluation by condition: a panel of numbers with a colour for each source.

    The colour says where the number lies between the floor and the ceiling of its condition and metric, (value - floor)
    / (ceiling - floor), of their distances from 1 where closer to 1 is better; there is none where one of the two is
    missing, or the ceiling no better than the floor. Floors and ceilings stand to the left and right. The arrow behind
    the name of a metric says which way is better.

    Parameters
    ----------
    table
        What :func:`~sclatent.metrics.evaluate_generation`, or another evaluation, returned. Of several folds or seeds
        the means are drawn, as of :func:`~sclatent.metrics.summarize`.
    metrics, conditions
        What to draw, in this order; by default all there is, in the order of the table, with the conditions ``"mean"``
        and ``"all"`` last.
    sources
        What to compare: by default everything that was generated. The floors of the table can be had by their names.
    floor
        Name of the floor to measure by, such as ``"independent genes"``; by default the best one for each condition
        and metric. Some metrics have a floor that beats the ceiling: repeating the mean cell has a perfect precision.
    save
        File to write the picture to; a new figure is closed then.

    Returns
    -------
    np.ndarray
        The axes: floor, sources, ceiling.

    Examples
    --------
    >>> import sclatent
    >>> adata = sclatent.datasets.simulate(240, 50, cell_types=["B", "T"], library_size=500)
    >>> is_control = adata.obs["condition"] == "control"
    >>> control, treated = adata[is_control].copy(), adata[~is_control].copy()
    >>> real, predicted = treated[::2].copy(), treated[1::2].copy()  # give predictions of your model for the latter
    >>> table = sclatent.metrics.evaluate_perturbation(real, predicted, control, groupby="cell_type")
    >>> axes = sclatent.pl.metrics_heatmap(table, metrics=["pearson", "energy", "direction"], floor="mean shift")
    >>> [ax.get_title() for ax in axes]
    ['mean shift', 'generated', 'ceiling']
    """
    if missing := [column for column in NEEDED if column not in table]:
        raise KeyError(
            f"table has no columns {missing}: it must be what an evaluation of sclatent.metrics returns, and have the "
            f"columns {NEEDED}."
        )
    present = table["condition"].unique()
    in_order = [c for c in present if c not in SUMMARIES] + [c for c in SUMMARIES if c in present]
    metrics = _chosen(table, "metric", metrics, list(table["metric"].unique()))
    conditions = _chosen(table, "condition", conditions, in_order)
    sources = _chosen(table, "source", sources, list(table.loc[table["kind"] == "generated", "source"].unique()))
    floor = None if floor is None else _chosen(table, "source", [floor], [])[0]
    if not sources:
        raise ValueError('table has no rows of the kind "generated": say by sources= what to draw.')

    rows = over_folds(table[table["condition"].isin(conditions) & table["metric"].isin(metrics)])
    of_source = rows.pivot(index=["metric", "condition"], columns="source", values="value")
    of_source = of_source.reindex(columns=table["source"].unique())  # also those that some folds lack
    both = rows.drop_duplicates(["metric", "condition"]).set_index(["metric", "condition"])
    cells = pd.MultiIndex.from_product([metrics, conditions])
    best_floor, ceiling, better = (both[column].reindex(cells) for column in ("floor", "ceiling", "better"))
    low = best_floor if floor is None else of_source[floor].reindex(cells)
    grade_of_low = goodness(low, better)
    span = goodness(ceiling, better) - grade_of_low
    span = span.where(span > 0)
    values = {source: of_source[source].reindex(cells) for source in sources}
    panels = [(floor or "best floor", low, low * np.nan)]
    panels += [
        (name, value, ((goodness(value, better) - grade_of_low) / span).round(6)) for name, value in values.items()
    ]
    panels += [("ceiling", ceiling, ceiling * np.nan)]

    shape = len(metrics), len(conditions)
    width, height = max(CELL[0] * shape[1], MIN_WIDTH), CELL[1] * shape[0]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(width * len(panels) + 2.5, height + 1.6), sharey=True, layout="constrained"
    )
    for ax, (title, value, position) in zip(axes, panels, strict=True):
        position = np.ma.masked_invalid(position.to_numpy(float).reshape(shape))
        image = ax.imshow(position, cmap=COLORMAP, vmin=0, vmax=1, aspect="auto")
        _write(ax, value.to_numpy(float).reshape(shape), position.filled(0))
        ax.set_xticks(range(shape[1]), conditions, rotation=90, fontsize=8)
        ax.set_title(fill(title, int(12 * width), break_long_words=False), fontsize=9)
        ax.tick_params(length=0)
        ax.grid(False)  # scanpy's settings draw one, through the numbers
        ax.spines[:].set_visible(False)
    arrows = both["better"].groupby(level="metric").first().map(ARROWS)
    axes[0].set_yticks(range(shape[0]), [f"{m} {arrows[m]}" for m in metrics], fontsize=8)
    bar = figure.colorbar(image, ax=axes, extend="min", shrink=0.6, aspect=15, pad=0.01)
    bar.set_ticks([0, 1], labels=["floor", "ceiling"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
    save_figure(figure, save)
    return axes


def _chosen(table: pd.DataFrame, column: str, wanted: Sequence[str] | None, default: list[str]) -> list[str]:
    if wanted is None:
        return default
    if isinstance(wanted, str):
        wanted = [wanted]
    if unknown := [name for name in wanted if name not in set(table[column])]:
        raise ValueError(f"table has no {column} {unknown}, but {list(table[column].unique())}.")
    return list(wanted)


def _write(ax: Axes, values: np.ndarray, position: np.ndarray) -> None:
    """Write the numbers, in white where it is dark."""
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if position[i, j] > 0.6 else "black"
            ax.text(j, i, _number(value), ha="center", va="center", fontsize=6.5, color=color)


def _number(value: float) -> str:
    """Three digits, fewer where they are far behind the point."""
    size = abs(value)
    if 0 < size < 0.00095:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    digits = 0 if size >= 99.5 or size == 0 else 1 if size >= 9.95 else 2 if size >= 0.0995 else 3
    return f"{value:.{digits}f}"
