"""Generated cells in the UMAP of the real ones."""

from __future__ import annotations

import os
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.lines import Line2D

from sclatent.data import check_obs, random_stream
from sclatent.metrics import Projection, log_normalize

from ._figures import grid, indexable, levels, save_figure

COLORS = {"real": "#8c8c8c", "generated": "#d62728"}
OTHERS = "0.92"
KIND, SHOWN = "real or generated cells", "shown of real or generated cells"  # columns that no user has


def umap(
    real: AnnData,
    generated: AnnData,
    color: str | None = None,
    groupby: str | None = None,
    n_pcs: int = 30,
    n_neighbors: int = 15,
    seed: int = 0,
    save: str | os.PathLike | None = None,
    **kwargs: Any,
) -> np.ndarray:
    """Draw real and generated cells in one UMAP.

    The principal components are those of the real cells (log1p of counts per 10,000), so that generated cells cannot
    bend them; neighbours and UMAP are of all cells together. Points are drawn in random order, so that neither kind
    of cells hides the other.

    Parameters
    ----------
    real, generated
        Cells with raw counts in X; the genes of ``generated`` are looked up by name in ``real``.
    color
        Column of obs, in both, for a further panel, the last one.
    groupby
        Column of obs, in both, with the conditions: a panel for each instead of one for all, with the cells of the
        other conditions in light grey. The UMAP is the same in all panels.
    n_pcs, n_neighbors
        Principal components, and neighbours of a cell.
    seed
        Seed of the UMAP.
    save
        File to write the picture to; a new figure is closed then.
    kwargs
        Further arguments of :func:`scanpy.pl.umap`.

    Returns
    -------
    np.ndarray
        The axes: real and generated cells, or these by condition, and ``color``.

    Examples
    --------
    >>> import sclatent
    >>> cells = sclatent.datasets.simulate(100, 50, cell_types=["B", "T"], library_size=500)
    >>> real, generated = cells[::2].copy(), cells[1::2].copy()  # give cells of your model in place of the latter
    >>> axes = sclatent.pl.umap(real, generated, color="cell_type")
    >>> [ax.get_title() for ax in axes]
    ['real and generated', 'cell_type']
    """
    for argument, key in (("color", color), ("groupby", groupby)):
        for name, adata in (("real", real), ("generated", generated)):
            check_obs(adata, name)
            if key is not None and key not in adata.obs:
                raise KeyError(
                    f"{argument}={key!r} is not a column of {name}.obs, which has {list(adata.obs.columns)}."
                )
    both = {"real": indexable(real)[:, generated.var_names], "generated": generated}
    values = np.concatenate([log_normalize(adata) for adata in both.values()])
    cells = ad.concat({name: AnnData(obs=adata.obs) for name, adata in both.items()}, label=KIND, index_unique="-")
    cells.obsm["X_pca"] = Projection(values[: real.n_obs], n_pcs, seed).transform(values)
    sc.pp.neighbors(cells, n_neighbors=min(n_neighbors, cells.n_obs - 1), use_rep="X_pca", random_state=seed)
    sc.tl.umap(cells, random_state=seed)
    cells = cells[random_stream(seed, "order of points").permutation(cells.n_obs)].copy()

    if groupby is None:
        panels = {"real and generated": np.ones(cells.n_obs, dtype=bool)}
    else:
        label = cells.obs[groupby].astype(str).to_numpy()
        panels = {level: label == level for level in dict.fromkeys(levels(real, groupby) + levels(generated, groupby))}
    figure, axes = grid(len(panels) + (color is not None), size=(3.2, 3.0) if groupby else (5, 4))
    look = {"frameon": False, "na_color": OTHERS, "na_in_legend": False, **kwargs}
    for ax, (title, shown) in zip(axes, panels.items(), strict=False):
        kind = cells.obs[KIND].where(shown).astype(object)  # scanpy draws what has none first, beneath the others
        cells.obs[SHOWN] = pd.Categorical(kind, categories=list(COLORS))
        sc.pl.umap(cells, color=SHOWN, palette=COLORS, legend_loc=None, title=title, ax=ax, show=False, **look)
    if color is not None:
        sc.pl.umap(cells, color=color, ax=axes[-1], show=False, **look)
    handles = [Line2D([], [], color=c, marker="o", lw=0, label=name) for name, c in COLORS.items()]
    legend = {"handles": handles, "ncols": len(handles), "frameon": False}
    if groupby is None:
        axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, 0), **legend)
    else:
        figure.legend(loc="outside lower center", **legend)
    save_figure(figure, save)
    return axes
