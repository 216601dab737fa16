"""Figures: their panels, and writing them to a file."""

from __future__ import annotations

import os

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from sclatent.data import check_obs

MAX_COLUMNS = 4


def grid(n_panels: int, size: tuple[float, float], columns: int | None = None) -> tuple[Figure, np.ndarray]:
    """Make a figure with panels of a size in inches, at most four in a row by default, and give their axes, flat."""
    rows = -(-n_panels // (columns or MAX_COLUMNS))
    columns = columns or -(-n_panels // rows)
    figsize = size[0] * columns, size[1] * rows
    figure, axes = plt.subplots(rows, columns, figsize=figsize, squeeze=False, layout="constrained")
    axes = axes.ravel()
    for ax in axes[n_panels:]:
        ax.remove()
    return figure, axes[:n_panels]


def axes_or_new(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return the axes that were given, or those of a new figure of a size in inches."""
    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def levels(adata: AnnData, key: str) -> list[str]:
    """Levels of a column of obs that have cells, as text, in the order of its categories."""
    check_obs(adata)
    return list(adata.obs[key].astype("category").cat.remove_unused_categories().cat.categories.astype(str))


def indexable(adata: AnnData) -> AnnData:
    """Return cells of which some can be taken, or some genes: a view of a file is read into memory."""
    return adata.to_memory() if adata.isbacked and adata.is_view else adata


def save_figure(figure: Figure | SubFigure, save: str | os.PathLike | None, given: Axes | None = None) -> None:
    """Write a figure to a file, if one was given, and close it; the ending says in which format.

    A figure that is not written stays open, to be shown, and so does that of axes that a user has given.
    """
    if save is None:
        return
    whole = figure.figure  # the figure that a subfigure is a part of
    try:
        whole.savefig(save, dpi=150, bbox_inches="tight")
    finally:
        if given is None:
            plt.close(whole)
