"""All orientations of images of cells."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import product

import anndata
import numpy as np
from anndata import AnnData

from sclatent.data import check_adata, feature_shape, get_features, read_rows
from sclatent.data._reading import dense

WRITTEN = ("quarter_turns", "mirrored")  # columns of obs


def turn_images(adata: AnnData, obsm_key: str | None, image_shape: Sequence[int] | None = None) -> AnnData:
    """Put the image of every cell in all eight orientations: four quarter turns, each of them also mirrored.

    A cell on a slide has no up and no left, and a model that was trained on all orientations need not learn so from
    cells. Train on the result and use the model on images as they are. Hold cells out before, so that no orientation of
    a cell stands in for it; ``train`` would hold out rows, so give it ``train_size=1``. Leave :func:`embed_images` for
    afterwards: embeddings do not turn.

    Parameters
    ----------
    adata
        Cells with square images.
    obsm_key
        Entry of obsm with the images, (cells, height, width[, channels]) or flat; None for X.
    image_shape
        (height, width) or (height, width, channels) of images that are stored flat; pixels of type uint8 also take it
        from ``adata.uns["image_shape"]``.

    Returns
    -------
    AnnData
        Eight rows a cell: first all cells as they are, then all of them in the next orientation. The images are where
        they were, of the same shape and type, dense. ``obs`` is that of the cell, with ``"quarter_turns"`` (0 to 3,
        counter-clockwise) and ``"mirrored"`` (left and right exchanged after turning); names end in ``"-0"`` to
        ``"-7"``; ``uns`` is copied. All other values belong to images as they were and are left out.

    Raises
    ------
    KeyError
        If there is no such entry.
    ValueError
        If the features are no square images, or ``obs`` has columns of these names.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.model import JointLDM
    >>> adata = sclatent.datasets.mitocheck()[:100].copy()
    >>> turned = sclatent.pp.turn_images(adata, "image")
    >>> turned.n_obs
    800
    >>> JointLDM.setup_anndata(turned, obsm_key="image", labels_key="phenotype")
    """
    check_adata(adata)
    taken = [name for name in WRITTEN if name in adata.obs]
    if taken:
        raise ValueError(
            f"adata.obs has the column {taken[0]!r}, which is written here: rename it, or leave these cells as they "
            "are if they were turned before."
        )
    values, where = get_features(adata, obsm_key, None)
    shape = feature_shape(values, where, image_shape, adata.uns)
    if len(shape) != 3:
        raise ValueError(
            f"{where} has {shape[0]} features a cell and no image_shape: images were expected. If these are flat "
            "images, give image_shape=(height, width) or (height, width, channels)."
        )
    images = dense(read_rows(values, slice(None))).astype(values.dtype, copy=False).reshape(-1, *shape)
    turned = []
    for i, (mirrored, quarter_turns) in enumerate(product((False, True), range(4))):
        seen = np.rot90(images, quarter_turns, axes=(1, 2))
        seen = (seen[:, :, ::-1] if mirrored else seen).reshape(values.shape)
        obs = adata.obs.assign(quarter_turns=quarter_turns, mirrored=mirrored)
        obs.index = obs.index + f"-{i}"
        part = AnnData(seen, obs=obs, var=adata.var) if obsm_key is None else AnnData(obs=obs, obsm={obsm_key: seen})
        turned.append(part)
    result = anndata.concat(turned, merge="same")
    result.uns.update(deepcopy(dict(adata.uns)))
    result.uns["image_shape"] = list(shape)
    return result
