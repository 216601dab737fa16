"""The same cells under more and more guidance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import anndata as ad
import numpy as np
from anndata import AnnData
from tqdm import tqdm

from sclatent.model.base import LatentDiffusionModel

from ._noise import check_model, check_n_cells, check_numbers

WRITTEN = ("guidance_weight", "noise")  # columns of obs


def guidance(
    model: LatentDiffusionModel,
    conditions: Any = None,
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
        Trained model with conditions.
    conditions
        What to guide to: a dict of levels by key, or several; of a model with one key also its level, or several. By
        default all levels of the label, or of the only key.
    weights
        Weights of guidance; 0 is unconditional.
    n
        Cells for each of the conditions and weights. The i-th of them starts from the same noise under all.
    seed
        Seed of the noise.
    progress_bar
        Whether to show progress.
    kwargs
        Further arguments of ``model.sample``, such as ``guidance="both"``.

    Returns
    -------
    AnnData
        ``len(conditions) * len(weights) * n`` cells, where those of training were. ``obs``: the conditions, the
        ``guidance_weight`` and ``noise``, which of the n starting points a cell has; ``uns["guidance"]`` has the
        ``key`` whose levels differ.

    Raises
    ------
    ValueError
        If the model was trained without conditions, does not know one, or has several keys and none is asked for.

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
    if not model.conditions.keys:
        raise ValueError(
            "model was trained without conditions, so nothing guides it: set up the data with condition_keys, or "
            "labels_key."
        )
    taken = [name for name in (*model.conditions.keys, model.batches.key) if name in WRITTEN]
    if taken:
        raise ValueError(
            f"model was set up with the column {taken[0]!r}, which is written here for cells: rename it in its AnnData "
            "and train the model anew."
        )
    to, key = _wanted(model, conditions)
    weights = check_numbers("weights", weights)
    if not to or not weights:
        raise ValueError(f"conditions={to!r} and weights={weights!r} must each have an entry.")
    wanted = [(each, weight) for each in to for weight in weights]
    parts: list[AnnData] = []
    for each, weight in tqdm(wanted, desc="Guidance", disable=not progress_bar):
        part = model.sample(n, each, weight, seed=seed, progress_bar=False, **kwargs)
        part.obs["guidance_weight"], part.obs["noise"] = weight, np.arange(n)
        part.obs_names = [f"generated_{len(parts) * n + i}" for i in range(n)]
        parts.append(part)
    cells = ad.concat(parts, uns_merge="first")
    cells.uns["sclatent"]["guidance_weight"] = weights
    cells.uns["guidance"] = {"key": key}
    return cells


def _wanted(model: LatentDiffusionModel, conditions: Any) -> tuple[list[dict[str, Any]], str]:
    """Conditions to guide to, each a dict of levels, and the key whose levels differ."""
    keys = model.conditions.keys
    only = model.labels_key or (keys[0] if len(keys) == 1 else None)
    if conditions is None:
        if only is None:
            raise ValueError(f"conditions is missing: give levels of some of {keys}, in a dict or several.")
        conditions = model.conditions.levels[only]
    several = isinstance(conditions, Iterable) and not isinstance(conditions, str | Mapping)
    each = list(conditions) if several else [conditions]
    to = [dict(c) if isinstance(c, Mapping) else {only or keys[0]: c} for c in each]
    differ = [key for key in keys if len({str(c.get(key)) for c in to}) > 1]
    return to, differ[0] if differ else next(iter(to[0]), keys[0]) if to else keys[0]
