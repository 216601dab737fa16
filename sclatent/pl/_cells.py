"""Generated cells beside real ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes

from sclatent.metrics import log_normalize, mean_change, pearson_of_change, top_responding

from ._save import save_figure

GREY, BLUE = "0.75", "tab:blue"


def umap(
    real: AnnData,
    generated: AnnData,
    color: str | None = None,
    n_pcs: int = 30,
    n_neighbors: int = 15,
    seed: int = 0,
    save: str | os.PathLike | None = None,
    **kwargs: Any,
) -> np.ndarray:
    """Draw real and generated cells in one UMAP.

    The principal components are those of the real cells (log1p of counts per 10,000), so that generated cells cannot
    bend them; neighbours and UMAP are of all cells together.

    Parameters
    ----------
    real, generated
        Cells with raw counts in X; the genes of ``generated`` are looked up by name in ``real``.
    color
        Column of obs, in both, for a second panel.
    n_pcs, n_neighbors
        Principal components, and neighbours of a cell.
    seed
        Seed of the UMAP.
    save
        File to write the picture to.
    kwargs
        Further arguments of :func:`scanpy.pl.umap`.

    Returns
    -------
    Array of the axes: real and generated cells, and ``color``.
    """
    for name, adata in (("real", real), ("generated", generated)):
        if color is not None and color not in adata.obs:
            raise KeyError(f"color={color!r} is not a column of {name}.obs, which has {list(adata.obs.columns)}.")
    # scanpy draws the last category on top
    cells = ad.concat({"real": real[:, generated.var_names], "generated": generated}, label="cells", index_unique="-")
    cells.obs["cells"] = pd.Categorical(cells.obs["cells"], categories=["real", "generated"])
    values = log_normalize(cells)
    n_pcs = min(n_pcs, real.n_obs - 1, real.n_vars - 1)
    centre = values[: real.n_obs].mean(axis=0)
    components = sc.pp.pca(values[: real.n_obs], n_comps=n_pcs, return_info=True, random_state=seed)[1]
    cells.obsm["X_pca"] = (values - centre) @ components.T
    sc.pp.neighbors(cells, n_neighbors=min(n_neighbors, cells.n_obs - 1), use_rep="X_pca", random_state=seed)
    sc.tl.umap(cells, random_state=seed)

    colors = ["cells"] if color is None else ["cells", color]
    figure, axes = plt.subplots(1, len(colors), figsize=(5 * len(colors), 4), squeeze=False, layout="constrained")
    cells.uns["cells_colors"] = ["#bbbbbb", "#d62728"]
    order = np.random.default_rng(seed).permutation(cells.n_obs)  # so that no condition hides another
    for ax, key in zip(axes[0], colors, strict=True):
        shown = cells if key == "cells" else cells[order].copy()
        sc.pl.umap(shown, color=key, ax=ax, show=False, **{"frameon": False, **kwargs})
    axes[0, 0].set_title("real and generated")
    save_figure(figure, save)
    return axes[0]


def mean_expression(
    real: AnnData, generated: AnnData, ax: Axes | None = None, save: str | os.PathLike | None = None
) -> Axes:
    """Draw the mean expression (log1p of counts per 10,000) of every gene in generated against real cells.

    Parameters
    ----------
    real, generated
        Cells with raw counts in X; genes are matched by name.
    ax
        Where to draw; a new figure by default.
    save
        File to write the picture to.

    Returns
    -------
    The axes.
    """
    x, y = (log_normalize(c).mean(axis=0) for c in (real[:, generated.var_names], generated))
    ax = _axes(ax)
    _scatter(ax, x, y)
    ax.set(xlabel="real", ylabel="generated", title="mean expression")
    ax.annotate(f"r = {np.corrcoef(x, y)[0, 1]:.3f}", (0.04, 0.96), xycoords="axes fraction", va="top")
    save_figure(ax.figure, save)
    return ax


def response(
    real: AnnData,
    predicted: Mapping[str, AnnData | np.ndarray],
    control: AnnData,
    n_names: int = 8,
    save: str | os.PathLike | None = None,
) -> np.ndarray:
    """Draw the predicted change over control against the real one, a panel a prediction, and name the top genes.

    Parameters
    ----------
    real, control
        Treated and control cells, with raw counts in X.
    predicted
        By name: predicted cells, or a predicted change (genes,), such as of :func:`sclatent.metrics.mean_shift`. Genes
        are those of ``real``, in the same order.
    n_names
        How many of the genes that respond the most to name.
    save
        File to write the picture to.

    Returns
    -------
    Array of the axes.
    """
    x = mean_change(real, control)
    named = top_responding(x, n_names)
    figure, axes = plt.subplots(
        1, len(predicted), figsize=(4 * len(predicted), 4), squeeze=False, sharey=True, layout="constrained"
    )
    for ax, (name, prediction) in zip(axes[0], predicted.items(), strict=True):
        y = _change(prediction, control)
        _scatter(ax, x, y)
        for g in named:
            outwards = "left" if x[g] < 0 else "right"
            ax.annotate(
                real.var_names[g], (x[g], y[g]), xytext=(3 if outwards == "left" else -3, 3),
                textcoords="offset points", fontsize=7, ha=outwards,
            )  # fmt: skip
        r = pearson_of_change(real, y, control)
        ax.annotate(f"r = {r:.3f}", (0.04, 0.96), xycoords="axes fraction", va="top")
        ax.set(title=name, xlabel="real change over control")
    axes[0, 0].set_ylabel("predicted change")
    save_figure(figure, save)
    return axes[0]


def top_genes(
    real: AnnData,
    predicted: Mapping[str, AnnData | np.ndarray],
    control: AnnData,
    n_genes: int = 20,
    ax: Axes | None = None,
    save: str | os.PathLike | None = None,
) -> Axes:
    """Draw the genes that respond the most: how much they do in the real cells, and in each prediction.

    Parameters
    ----------
    real, predicted, control
        As in :func:`response`.
    n_genes
        Number of genes.
    ax
        Where to draw; a new figure by default.
    save
        File to write the picture to.

    Returns
    -------
    The axes.
    """
    x = mean_change(real, control)
    genes = top_responding(x, n_genes)
    genes = genes[np.argsort(x[genes])]
    place = np.arange(len(genes))
    ax = _axes(ax, (5.5, 0.8 + 0.22 * len(genes)))
    ax.barh(place, x[genes], color="0.85", label="real", zorder=1)
    for i, (name, prediction) in enumerate(predicted.items()):
        change = _change(prediction, control)[genes]
        marker = "osD^v"[i % 5]
        ax.scatter(change, place, s=18, marker=marker, label=name, zorder=2)
    ax.axvline(0, color="0.3", lw=0.8)
    ax.set_yticks(place, real.var_names[genes])
    ax.set(xlabel="change over control (mean log1p of counts per 10,000)", title="top responding genes")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.margins(y=0.02)
    ax.legend(frameon=False, loc="lower right")
    save_figure(ax.figure, save)
    return ax


def _axes(ax: Axes | None, size: tuple[float, float] = (4, 4)) -> Axes:
    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def _change(prediction: AnnData | np.ndarray, control: AnnData) -> np.ndarray:
    return mean_change(prediction, control) if isinstance(prediction, AnnData) else prediction


def _scatter(ax: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Dots, the diagonal, and the same scale on both axes."""
    ax.axline((0, 0), slope=1, color=GREY, lw=0.8, zorder=0)
    ax.scatter(x, y, s=8, alpha=0.7, color=BLUE, linewidths=0)
    ax.set_aspect("equal", adjustable="datalim")
    ax.spines[["top", "right"]].set_visible(False)
