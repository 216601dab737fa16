"""What a model has learned, by the level of noise: curves and bars with their errors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ._figures import axes_or_new, save_figure

ERROR = "mean absolute error\n(s.d. of the features)"
BAND = 1.96  # standard errors: 95 %
DOTTED = (0, (1, 1.5))
REFERENCE: dict[str, Any] = {"color": "0.45", "lw": 1.1, "zorder": 1}
SHARES = np.array([0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 1])  # of the variance, to write at the axis


def reconstruction_error(
    data: AnnData | pd.DataFrame,
    key: str = "reconstruction_error",
    ax: Axes | None = None,
    save: str | os.PathLike | None = None,
) -> Axes:
    """Draw the error of cells that come back from noise in one step, by the level of noise: a curve a data set.

    Bands, mostly narrower than the line, are 95 % confidence intervals over cells. The axis of noise is one of steps:
    levels are where the cosine schedule of diffusion reaches them, in steps of equal length.

    Parameters
    ----------
    data
        What :func:`sclatent.tl.reconstruction_error` returned, or the AnnData that it has stored it in. Tables of
        several models may be put together by :func:`pandas.concat`, told apart by their column ``model``; one with a
        single level, as of a DAED, is a point.
    key
        Key of ``data.uns``.
    ax
        Where to draw; a new figure by default.
    save
        File to write the picture to; a new figure is closed then.

    Returns
    -------
    Axes
        The axes.

    Raises
    ------
    KeyError
        If there is no such result, or the table lacks columns.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.model import JointLDM
    >>> adata = sclatent.datasets.mitocheck()[::10].copy()
    >>> JointLDM.setup_anndata(adata)
    >>> model = JointLDM(adata, denoiser_width=32, denoiser_blocks=1)
    >>> model.train(max_epochs=1)  # only to show how it is done: leave max_epochs out for a good model
    >>> table = sclatent.tl.reconstruction_error(model, adata, {"blood cells": sclatent.datasets.blood_cells()})
    >>> ax = sclatent.pl.reconstruction_error(adata)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['training data', 'blood cells', 'noisy cells as they are']
    """
    table = _table(data, key, "reconstruction_error", ["model", "data_set", "noise_level", "error", "se", "noise"])
    data_sets, models = list(table["data_set"].unique()), list(table["model"].unique())
    given, ax = ax, axes_or_new(ax, (4.8 if len(models) == 1 else 6.6, 3.4))
    looks = zip(["-", "--", ":", "-."], "oDs^", strict=True)
    styles: list[dict[str, Any]] = [{"ls": ls, "marker": marker} for ls, marker in looks]
    for (model, data_set), rows in table.groupby(["model", "data_set"], sort=False):
        style = styles[models.index(model) % len(styles)]
        _curve(ax, rows, "error", color=f"C{data_sets.index(data_set)}", **style)
    handles = [Line2D([], [], color=f"C{i}", label=name, lw=1.6) for i, name in enumerate(data_sets)]
    if len(models) > 1:
        n_levels = table.groupby("model")["noise_level"].nunique()
        handles += [
            Line2D([], [], color="0.2", label=name, ms=3.5, lw=1.2 * (n_levels[name] > 1), **styles[i % len(styles)])
            for i, name in enumerate(models)
        ]
    noise = table.groupby("noise_level")["noise"].mean()
    if len(noise) > 1:
        handles += ax.plot(_step(noise.index), noise, ls=DOTTED, label="noisy cells as they are", **REFERENCE)
    top = (table["error"] + BAND * table["se"].fillna(0)).max()
    ax.set_ylim(0, 1.15 * top)  # noise alone goes through the roof
    _noise_axis(ax, table["noise_level"])
    ax.set_ylabel(ERROR)
    beside: dict[str, Any] = {} if len(models) == 1 else {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    ax.legend(handles=handles, frameon=False, fontsize=8, **beside)
    save_figure(ax.figure, save, given)
    return ax


def probe(
    data: AnnData | pd.DataFrame, key: str = "probe", ax: Axes | None = None, save: str | os.PathLike | None = None
) -> Axes:
    """Draw the accuracy of a linear probe on the activations of the denoiser, by the level of noise.

    Bands are 95 % confidence intervals (binomial, over held-out cells). Beside it stand the same probe on the clean
    features themselves, and the most frequent label.

    Parameters
    ----------
    data
        What :func:`sclatent.tl.probe` returned, or the AnnData that it has stored it in. Tables of several labels may
        be put together by :func:`pandas.concat`.
    key
        Key of ``data.uns``.
    ax
        Where to draw; a new figure by default.
    save
        File to write the picture to; a new figure is closed then.

    Returns
    -------
    Axes
        The axes.

    Raises
    ------
    KeyError
        If there is no such result, or the table lacks columns.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.model import JointLDM
    >>> adata = sclatent.datasets.mitocheck()[::10].copy()
    >>> JointLDM.setup_anndata(adata)
    >>> model = JointLDM(adata, denoiser_width=32, denoiser_blocks=1)
    >>> model.train(max_epochs=1)  # only to show how it is done: leave max_epochs out for a good model
    >>> table = sclatent.tl.probe(model, adata, "phenotype", noise_levels=[0.0, 0.5])
    >>> ax = sclatent.pl.probe(adata)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['activations of the denoiser', 'clean features', 'most frequent label']
    """
    needed = ["label_key", "noise_level", "accuracy", "se", "features", "majority"]
    table = _table(data, key, "probe", needed)
    given, ax = ax, axes_or_new(ax, (4.8, 3.4))
    n_labels = table["label_key"].nunique()
    for i, (label, rows) in enumerate(table.groupby("label_key", sort=False)):
        reference = REFERENCE if n_labels == 1 else {**REFERENCE, "color": f"C{i}"}
        of = "" if n_labels == 1 else f"{label}: "
        _curve(ax, rows, "accuracy", label=f"{of}activations of the denoiser", color=f"C{i}", marker="o")
        ax.axhline(rows["features"].iloc[0], ls="--", label=f"{of}clean features", **reference)
        ax.axhline(rows["majority"].iloc[0], ls=DOTTED, label=f"{of}most frequent label", **reference)
    ax.set_ylim(0, 1)
    _noise_axis(ax, table["noise_level"])
    what = f" of {table['label_key'].iloc[0]}" if n_labels == 1 else ""
    ax.set_ylabel(f"accuracy{what}\non held-out cells")
    ax.legend(frameon=False, fontsize=8)
    save_figure(ax.figure, save, given)
    return ax


def denoising(
    data: AnnData | pd.DataFrame, key: str = "denoising", ax: Axes | None = None, save: str | os.PathLike | None = None
) -> Axes:
    """Draw the error of what models make of noisy cells: a group of bars a data set, the noisy cells themselves first.

    Whiskers are 95 % confidence intervals over cells.

    Parameters
    ----------
    data
        What :func:`sclatent.tl.denoising` returned, or an AnnData that it has stored it in.
    key
        Key of ``data.uns``.
    ax
        Where to draw; a new figure by default.
    save
        File to write the picture to; a new figure is closed then.

    Returns
    -------
    Axes
        The axes.

    Raises
    ------
    KeyError
        If there is no such result, or the table lacks columns.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.model import DAED
    >>> adata, others = sclatent.datasets.mitocheck()[::10].copy(), sclatent.datasets.blood_cells()
    >>> DAED.setup_anndata(adata)
    >>> model = DAED(adata, width=32, n_blocks=1)
    >>> model.train(max_epochs=1, stage="denoiser")  # only to show how it is done: leave max_epochs out
    >>> table = sclatent.tl.denoising({"DAED": model}, {"nuclei": adata, "blood cells": others})
    >>> ax = sclatent.pl.denoising(table)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['noisy cells', 'DAED']
    """
    table = _table(data, key, "denoising", ["model", "data_set", "noise_level", "error", "se"])
    models, data_sets = table["model"].unique(), table["data_set"].unique()
    width = 0.8 / len(models)
    group = max(1.0, 0.36 * len(models))  # in inches
    beside = 0.5 + 0.075 * max(map(len, models))
    given, ax = ax, axes_or_new(ax, (0.9 + group * len(data_sets) + beside, 3.2))
    for i, model in enumerate(models):
        rows = table[table["model"] == model].set_index("data_set").reindex(data_sets)
        place = np.arange(len(data_sets)) + (i - (len(models) - 1) / 2) * width
        color = "0.8" if i == 0 else f"C{i - 1}"
        ax.bar(place, rows["error"], 0.9 * width, color=color, label=model)
        ax.errorbar(place, rows["error"], BAND * rows["se"], fmt="none", ecolor="0.2", elinewidth=0.8, capsize=2)
        for x, value, se in zip(place, rows["error"], rows["se"].fillna(0), strict=True):
            ax.annotate(
                f"{value:.2f}", (x, value + BAND * se), (0, 2), textcoords="offset points", ha="center", fontsize=7
            )
    names = [fill(name, int(11 * group), break_long_words=False) for name in data_sets]
    ax.set_xticks(range(len(data_sets)), names, fontsize=9)
    ax.tick_params(axis="x", length=0)
    ax.set_ylim(0, 1.15 * table["error"].max())
    ax.set_ylabel(ERROR)
    shares = ", ".join(f"{100 * level:g}%" for level in table["noise_level"].unique())
    ax.set_title(f"noise: {shares} of the variance", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(ax.figure, save, given)
    return ax


def _table(data: AnnData | pd.DataFrame, key: str, function: str, columns: Sequence[str]) -> pd.DataFrame:
    """Result of a function of ``tl``, given as it is or in an AnnData."""
    if isinstance(data, AnnData):
        if key not in data.uns:
            raise KeyError(
                f"key={key!r} is not in data.uns, which has {list(data.uns)}: call sclatent.tl.{function} first, or "
                "give the table that it returned."
            )
        data = data.uns[key]
    if missing := [column for column in columns if column not in data]:
        raise KeyError(
            f"data has no columns {missing}: it must be what sclatent.tl.{function} returns, and have the columns "
            f"{list(columns)}."
        )
    return data


def _curve(ax: Axes, rows: pd.DataFrame, column: str, **style: Any) -> None:
    rows = rows.sort_values("noise_level")
    x, y, half = _step(rows["noise_level"]), rows[column].to_numpy(), BAND * rows["se"].to_numpy()
    ax.plot(x, y, ms=3.5, lw=1.4, zorder=3, **style)
    if len(rows) > 1:
        ax.fill_between(x, y - half, y + half, color=style["color"], alpha=0.2, lw=0, zorder=2)
    else:
        ax.errorbar(x, y, half, color=style["color"], elinewidth=0.8, capsize=2, zorder=3)


def _step(noise_level: Sequence[float]) -> np.ndarray:
    """Share of the steps of diffusion after which noise has a share of the variance, for a cosine schedule."""
    return 2 / np.pi * np.arcsin(np.sqrt(np.asarray(noise_level, dtype=float)))


def _noise_axis(ax: Axes, noise_levels: pd.Series) -> None:
    ticks = SHARES[max(noise_levels.max(), 0.01) >= SHARES]
    ax.set_xticks(_step(ticks), [f"{share:.0%}" for share in ticks])
    ax.set_xlim(left=-0.01)
    ax.set_xlabel("noise (share of the variance)")
    ax.spines[["top", "right"]].set_visible(False)
