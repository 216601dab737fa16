"""The same cells under more and more guidance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import anndata as ad
import numpy as np
from anndata import AnnData
from tqdm import tqdm

from sclatent.model.base import FeatureModel

from ._noise import check_model, check_n_cells, check_numbers

WRITTEN = ("guidance_weight", "noise")  # columns of obs


def guidance(
    model: FeatureModel,
    labels: str | Sequence[str] | None = None,
    weights: Sequence[float] = (0, 1, 2, 4, 8),
    n: int = 8,
    seed: int = 0,
    progress_bar: bool = True,
    **kwargs: Any,
) -> AnnData:
    """Sample cells at increasing weights of guidance (Joint LDM, arXiv 2411.09434).

    Parameters
    ----------
    model
        Trained :class:`~sclatent.model.JointDiffusion`, :class:`~sclatent.model.JointLDM` or
        :class:`~sclatent.model.DAED`.
    labels
        Label, or labels, to guide to; by default all of the model.
    weights
        Weights of guidance; 0 is unconditional.
    n
        Cells a label and weight. The i-th of them starts from the same noise under all labels and weights.
    seed
        Seed of the noise.
    progress_bar
        Whether to show progress.
    kwargs
        Further arguments of ``model.sample``, such as ``guidance="both"``.

    Returns
    -------
    AnnData
        ``len(labels) * len(weights) * n`` cells, features where they were in training. ``obs``: the label,
        the ``guidance_weight`` and ``noise``, which of the n starting points a cell has; ``uns["guidance"]`` has the
        ``labels_key``.

    Raises
    ------
    ValueError
        If the model was trained without labels, or does not know one.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.model import JointLDM
    >>> adata = sclatent.datasets.mitocheck()[::10].copy()
    >>> JointLDM.setup_anndata(adata, labels_key="phenotype")
    >>> model = JointLDM(adata, denoiser_width=32, denoiser_blocks=1)
    >>> model.train(max_epochs=1)  # only to show how it is done: leave max_epochs out for a good model
    >>> cells = sclatent.tl.guidance(model, ["Metaphase", "Interphase"], weights=[0, 1, 4], n=5)
    >>> cells.n_obs  # 2 labels, 3 weights, 5 starting points
    30
    >>> cells.obs["guidance_weight"].unique().tolist()
    [0.0, 1.0, 4.0]
    """
    check_model(model, "model", "diffusion")
    check_n_cells(n, 1, "n")
    key = model.labels_key
    if key is None:
        raise ValueError("model was trained without labels, so nothing guides it: set up the data with labels_key.")
    taken = [name for name in (*model.conditions.keys, model.batches.key) if name in WRITTEN]
    if taken:
        raise ValueError(
            f"model was set up with the column {taken[0]!r}, which is written here for cells: rename it in its AnnData "
            "and train the model anew."
        )
    several = isinstance(labels, Iterable) and not isinstance(labels, str)
    to = model.conditions.levels[key] if labels is None else list(labels) if several else [labels]
    weights = check_numbers("weights", weights)
    if not to or not weights:
        raise ValueError(f"labels={to!r} and weights={weights!r} must each have an entry.")
    for label in to:
        model.conditions.encode({key: label}, argument="labels")  # raises if it is not known
    wanted = [(label, weight) for label in to for weight in weights]
    parts: list[AnnData] = []
    for label, weight in tqdm(wanted, desc="Guidance", disable=not progress_bar):
        part = model.sample(n, {key: label}, weight, seed=seed, progress_bar=False, **kwargs)
        part.obs["guidance_weight"], part.obs["noise"] = weight, np.arange(n)
        part.obs_names = [f"generated_{len(parts) * n + i}" for i in range(n)]
        parts.append(part)
    cells = ad.concat(parts, uns_merge="first")
    cells.uns["sclatent"]["guidance_weight"] = weights
    cells.uns["guidance"] = {"labels_key": key}
    return cells
