"""Images of cells: by group, under guidance, and beside their counterfactuals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from sclatent.data import feature_shape, get_features, read_features

from ._figures import axes_or_new, levels, save_figure

SIDE = 0.62  # of an image, in inches
COLUMNS = 8  # images a row, where there are no groups
GRAY = mpl.colormaps["gray"].with_extremes(bad="white")
DIVERGING = mpl.colormaps["RdBu_r"].with_extremes(bad="white")


def images(
    adata: AnnData,
    obsm_key: str | None = None,
    groupby: str | None = None,
    n: int = 8,
    image_shape: Sequence[int] | None = None,
    ax: Axes | None = None,
    save: str | os.PathLike | None = None,
) -> Axes:
    """Draw images of cells, a row a group.

    The cells that are drawn are spread evenly over those of the group, in their order: nobody has picked them.

    Parameters
    ----------
    adata
        Cells, measured or generated.
    obsm_key
        Entry of obsm with the images, grey or RGB, of uint8 or float; X by default. Floats are scaled to the range of
        all images that are drawn.
    groupby
        Column of obs with the groups; by default all cells are one, in rows of eight.
    n
        Images a group.
    image_shape
        (height, width) or (height, width, channels) of images that are stored flat; by default
        ``adata.uns["image_shape"]``.
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
        If an entry or a column is missing.
    ValueError
        If what is there is no image, or has other than 1 or 3 channels.

    Examples
    --------
    >>> import sclatent
    >>> adata = sclatent.datasets.blood_cells()
    >>> ax = sclatent.pl.images(adata, "image", groupby="cell_type", n=6)
    >>> len(ax.get_yticks())  # a row a type
    8
    """
    _check_n(n)
    if groupby is None:
        names, cells = None, _spread(np.arange(adata.n_obs), n)
        rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    else:
        _check_column(adata, groupby, "groupby", "adata")
        label, names = adata.obs[groupby].astype(str).to_numpy(), levels(adata, groupby)
        rows = [_spread(np.flatnonzero(label == level), n) for level in names]
    pixels = _pixels(adata, np.concatenate(rows), obsm_key, image_shape, "adata")
    pictures = np.full((len(rows), max(map(len, rows)), *pixels.shape[1:]), np.nan, dtype=np.float32)
    pictures[[i for i, row in enumerate(rows) for _ in row], [j for row in rows for j in range(len(row))]] = pixels
    given, ax = ax, _axes(ax, pictures, names or [""])
    _mosaic(ax, pictures, _limits(pixels, adata, obsm_key), names)
    save_figure(ax.figure, save, given)
    return ax


def guidance(
    adata: AnnData,
    obsm_key: str | None = "image",
    groupby: str | None = None,
    n: int = 1,
    image_shape: Sequence[int] | None = None,
    ax: Axes | None = None,
    save: str | os.PathLike | None = None,
) -> Axes:
    """Draw what increasing guidance makes of the same noise: a row a label, a column a weight.

    Parameters
    ----------
    adata
        What :func:`sclatent.tl.guidance` returned, of a model of images.
    obsm_key
        Entry of obsm with the images; None is X.
    groupby
        Column of obs to draw a row for each level of; by default ``adata.uns["guidance"]["key"]``.
    n
        Rows a label: from how many different starting points.
    image_shape
        As in :func:`images`.
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
        If an entry or a column is missing.
    ValueError
        If what is there is no image.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.model import JointLDM
    >>> adata = sclatent.datasets.mitocheck()[::40].copy()
    >>> JointLDM.setup_anndata(adata, obsm_key="image", labels_key="phenotype")
    >>> model = JointLDM(adata, width=16, denoiser_width=32, denoiser_blocks=1)
    >>> model.train(max_epochs=1)  # only to show how it is done: leave max_epochs out for a good model
    >>> cells = sclatent.tl.guidance(model, ["Metaphase", "Interphase"], weights=[0, 2, 8])
    >>> ax = sclatent.pl.guidance(cells, n=2)
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['0', '2', '8']
    """
    _check_n(n)
    if groupby is None:
        if "guidance" not in adata.uns:
            raise KeyError(
                "adata.uns has no 'guidance': give what sclatent.tl.guidance returned, or groupby=, the column with "
                "the labels."
            )
        groupby = adata.uns["guidance"]["key"]
    for key in (groupby, "guidance_weight", "noise"):
        _check_column(adata, key, "groupby" if key == groupby else "column", "adata")
    label, noise = adata.obs[groupby].astype(str).to_numpy(), adata.obs["noise"].to_numpy()
    weight = adata.obs["guidance_weight"].to_numpy(dtype=float)
    weights, starts = np.unique(weight), np.unique(noise)[:n]
    rows = [(level, start) for level in levels(adata, groupby) for start in starts]
    cells = [np.flatnonzero((label == level) & (noise == start)) for level, start in rows]
    grid = np.full((len(rows), len(weights)), -1)
    for i, found in enumerate(cells):
        grid[i, np.searchsorted(weights, weight[found])] = found
    if (grid < 0).any():
        raise ValueError(
            "adata lacks cells of some labels and weights from some starting points: give all of what "
            "sclatent.tl.guidance returned."
        )
    pixels = _pixels(adata, grid.ravel(), obsm_key, image_shape, "adata")
    pictures = pixels.reshape(*grid.shape, *pixels.shape[1:])
    names = levels(adata, groupby)
    given, ax = ax, _axes(ax, pictures, names, header=True)
    _mosaic(ax, pictures, _limits(pixels, adata, obsm_key), names, [f"{w:g}" for w in weights])
    ax.set_title("guidance weight", fontsize=9)
    save_figure(ax.figure, save, given)
    return ax


def counterfactuals(
    original: AnnData,
    counterfactual: AnnData,
    obsm_key: str | None = "image",
    n: int = 6,
    labels_key: str | None = None,
    image_shape: Sequence[int] | None = None,
    save: str | os.PathLike | None = None,
) -> np.ndarray:
    """Draw cells, what they would look like under another label, and the difference.

    The difference is the counterfactual less the original, in the units of the images, averaged over the channels: red
    is what was added, blue what was taken away. Few pixels (1 in 500) lie outside the colour bar.

    Parameters
    ----------
    original
        Measured cells.
    counterfactual
        What ``model.counterfactual`` made of them, or of some of them; cells are matched by name.
    obsm_key
        Entry of obsm with the images, in both; None is X.
    n
        Number of cells, spread evenly over those of ``counterfactual``.
    labels_key
        Column of obs, in both, with the labels to write above the images.
    image_shape
        As in :func:`images`.
    save
        File to write the picture to; a new figure is closed then.

    Returns
    -------
    np.ndarray
        The three axes: original, counterfactual, difference.

    Raises
    ------
    KeyError
        If an entry, a column or a cell is missing.
    ValueError
        If names of cells are not unique, or the images have other shapes.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.model import JointLDM
    >>> adata = sclatent.datasets.mitocheck()[::40].copy()
    >>> JointLDM.setup_anndata(adata, obsm_key="image", labels_key="phenotype")
    >>> model = JointLDM(adata, width=16, denoiser_width=32, denoiser_blocks=1)
    >>> model.train(max_epochs=1)  # only to show how it is done: leave max_epochs out for a good model
    >>> moved = model.counterfactual(adata[:6], "Metaphase", noise_level=0.4)
    >>> axes = sclatent.pl.counterfactuals(adata, moved, labels_key="phenotype")
    >>> [ax.get_title() for ax in axes]
    ['original', 'counterfactual', 'difference']
    """
    _check_n(n)
    if not original.obs_names.is_unique:
        raise ValueError("original.obs_names are not unique, so cells cannot be matched: use obs_names_make_unique().")
    chosen = _spread(np.arange(counterfactual.n_obs), n)
    names = counterfactual.obs_names[chosen]
    before = original.obs_names.get_indexer(names)
    if (before < 0).any():
        raise KeyError(f"original has no cells {list(names[before < 0])}, which counterfactual has.")
    pairs = [("original", original, before), ("counterfactual", counterfactual, chosen)]
    if labels_key is not None:
        for name, adata, _ in pairs:
            _check_column(adata, labels_key, "labels_key", name)
    old, new = (_pixels(adata, cells, obsm_key, image_shape, name) for name, adata, cells in pairs)
    if old.shape != new.shape:
        raise ValueError(f"original has images of shape {old.shape[1:]}, counterfactual of {new.shape[1:]}.")
    change = (new - old).mean(axis=3, keepdims=True)
    largest = float(np.quantile(np.abs(change), 0.998)) or 1.0

    height = SIDE * 1.5 * len(chosen) * (1.22 if labels_key else 1.04)
    figure, axes = plt.subplots(1, 3, figsize=(4.2 * SIDE * 1.5, height + 0.4), layout="constrained")
    limits = _limits(np.concatenate([old, new]), original, obsm_key)
    for ax, (title, adata, cells), pixels in zip(axes, pairs, (old, new), strict=False):
        captions = adata.obs[labels_key].iloc[cells].astype(str) if labels_key else None
        _mosaic(ax, pixels[:, None], limits, captions=captions)
        ax.set_title(title, fontsize=9)
    captions = [""] * len(chosen) if labels_key else None  # the room that they take
    drawn = _mosaic(axes[2], change[:, None], (-largest, largest), captions=captions, cmap=DIVERGING)
    axes[2].set_title("difference", fontsize=9)
    figure.set_layout_engine("constrained", wspace=0.02)
    bar = figure.colorbar(drawn, ax=axes[2], extend="both", shrink=min(1.0, 2.5 / height), aspect=12, pad=0.06)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=2)
    bar.set_label("counterfactual − original", fontsize=7)
    save_figure(figure, save)
    return axes


# ---- reading images


def _pixels(
    adata: AnnData, cells: np.ndarray, obsm_key: str | None, image_shape: Sequence[int] | None, name: str
) -> np.ndarray:
    """Images of cells, (cells, height, width, channels), float32."""
    try:
        values, where = get_features(adata, obsm_key, None)
    except KeyError as error:
        raise KeyError(f"{name}: {error.args[0]}") from error
    if image_shape is None and values.ndim == 2:
        image_shape = adata.uns.get("image_shape")
    where = where.replace("adata", name, 1)
    shape = feature_shape(values, where, image_shape)
    if len(shape) == 1:
        raise ValueError(
            f"{where} has {shape[0]} values a cell, which are no image: give image_shape=(height, width) or (height, "
            "width, channels), or another obsm_key."
        )
    if shape[2] not in (1, 3):
        raise ValueError(
            f"{where} has images of {shape[2]} channels: 1 (grey) or 3 (RGB) can be drawn. Put some of them into an "
            f"entry of their own, such as {name}.obsm['one'] = images[..., 0]."
        )
    return read_features(values, cells, shape)


def _limits(pixels: np.ndarray, adata: AnnData, obsm_key: str | None) -> tuple[float, float]:
    """The values that are black and white: those of bytes, or the range of what is drawn."""
    if get_features(adata, obsm_key, None)[0].dtype == np.uint8:
        return 0.0, 255.0
    low, high = float(pixels.min()), float(pixels.max())
    return low, high if high > low else low + 1


def _check_n(n: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"n={n!r} must be a whole number of at least 1.")


def _check_column(adata: AnnData, key: str, argument: str, name: str) -> None:
    if key not in adata.obs:
        raise KeyError(f"{argument}={key!r} is not a column of {name}.obs, which has {list(adata.obs.columns)}.")


def _spread(cells: np.ndarray, n: int) -> np.ndarray:
    """At most n of some cells, evenly spread over them."""
    return cells[np.linspace(0, len(cells) - 1, min(n, len(cells))).round().astype(int)]


# ---- drawing them


def _axes(ax: Axes | None, pictures: np.ndarray, names: Sequence[str], header: bool = False) -> Axes:
    room = 0.075 * max(map(len, names)) + 0.15  # for the names of the rows
    size = SIDE * pictures.shape[1] + room, SIDE * pictures.shape[0] + (0.55 if header else 0.15)
    return axes_or_new(ax, size)


def _mosaic(
    ax: Axes,
    pictures: np.ndarray,
    limits: tuple[float, float],
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    cmap: mpl.colors.Colormap = GRAY,
) -> AxesImage:
    """Draw images (rows, columns, height, width, channels) side by side as one; NaN is white.

    ``rows`` and ``columns`` are names at the edges, those of rows in the middle of as many as they share;
    ``captions`` are one for each row, above it.
    """
    n_rows, n_columns, height, width, channels = pictures.shape
    gap = max(1, round(height / 16))
    above = round(0.2 * height) if captions is not None else 0
    step = height + gap + above, width + gap
    canvas = np.full((n_rows * step[0] - gap, n_columns * step[1] - gap, channels), np.nan, dtype=np.float32)
    for i, j in np.ndindex(n_rows, n_columns):
        top, left = i * step[0] + above, j * step[1]
        canvas[top : top + height, left : left + width] = pictures[i, j]
        if cmap is DIVERGING:  # no change is as good as white: without a frame, the image would have no edge
            ax.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, ec="0.8", lw=0.6, zorder=3))
    style: dict[str, Any] = {"interpolation": "nearest", "rasterized": True}
    if channels == 1:
        drawn = ax.imshow(np.ma.masked_invalid(canvas[..., 0]), cmap=cmap, vmin=limits[0], vmax=limits[1], **style)
    else:
        drawn = ax.imshow(np.nan_to_num(((canvas - limits[0]) / (limits[1] - limits[0])).clip(0, 1), nan=1.0), **style)
    ax.set(xticks=[], yticks=[])
    if rows is not None:
        middle = above + height / 2 - 0.5 + np.arange(n_rows) * step[0]
        ax.set_yticks(middle.reshape(len(rows), -1).mean(axis=1), rows, fontsize=8)
    if columns is not None:
        ax.set_xticks(width / 2 - 0.5 + np.arange(n_columns) * step[1], columns, fontsize=8)
        ax.xaxis.tick_top()
    for i, caption in enumerate([] if captions is None else captions):
        y = i * step[0] + above - 0.5 - 0.03 * height
        ax.text(width / 2 - 0.5, y, caption, ha="center", va="bottom", fontsize=7)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return drawn
