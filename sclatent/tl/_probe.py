"""What the activations of a denoiser say about cells, step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sclatent.data import cell_rng, check_adata, check_seed
from sclatent.model.base import LatentDiffusionModel

from ._noise import check_key_added, check_model, check_n_cells, check_numbers

NOISE_LEVELS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)
HELD_OUT = 0.3  # share of the cells


def probe(
    model: LatentDiffusionModel,
    adata: AnnData,
    label_key: str,
    noise_levels: Sequence[float] = NOISE_LEVELS,
    n_cells: int = 1000,
    seed: int = 0,
    key_added: str = "probe",
) -> pd.DataFrame:
    """Measure what a linear classifier reads off the activations of the denoiser (arXiv 2301.13622, section 3).

    A logistic regression on standardised activations (of all blocks, averaged over the tokens, from
    ``model.get_activations``) is trained on 70 % of the cells and tested on the others; the split, stratified, is
    the same at all levels, and a cell has the same noise.

    Parameters
    ----------
    model
        Trained :class:`~sclatent.model.SCLDM`, :class:`~sclatent.model.JointDiffusion`,
        :class:`~sclatent.model.JointLDM` or :class:`~sclatent.model.DAED` (its diffusion model, whose data, x1, has
        some noise already).
    adata
        Cells. A model that was trained with labels has seen those of its training cells: to learn what it says of
        new ones, give cells that it was not trained on.
    label_key
        Column of obs with the labels; cells without one, or with the ``unlabeled_category`` of the model, are left
        out.
    noise_levels
        Shares of noise in the variance of what the denoiser sees, from 0 to 1.
    n_cells
        Cells to draw.
    seed
        Seed of the draw, the noise and the split.
    key_added
        Key of ``adata.uns`` for the result.

    Returns
    -------
    pd.DataFrame
        One row per level, also in ``adata.uns[key_added]``: ``label_key``, ``noise_level``, ``accuracy`` on held-out
        cells, ``se`` (its standard error, binomial), ``features`` (accuracy of the same probe on the clean features
        themselves, of counts the logarithm of 1 + counts per 10,000), ``majority`` (accuracy of always naming the most
        frequent label) and ``n_cells`` (held out).

    Raises
    ------
    KeyError
        If there is no such column.
    RuntimeError
        If the model is not trained.
    ValueError
        If there are too few cells of some label.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.model import JointLDM
    >>> adata = sclatent.datasets.mitocheck()[::10].copy()
    >>> JointLDM.setup_anndata(adata)  # without labels: what does it know of phenotypes all the same?
    >>> model = JointLDM(adata, denoiser_width=32, denoiser_blocks=1)
    >>> model.train(max_epochs=1)  # only to show how it is done: leave max_epochs out for a good model
    >>> table = sclatent.tl.probe(model, adata, "phenotype", noise_levels=[0.0, 0.5])
    >>> list(table.columns)
    ['label_key', 'noise_level', 'accuracy', 'se', 'features', 'majority', 'n_cells']
    >>> ax = sclatent.pl.probe(adata)
    """
    check_model(model, "model", "diffusion")
    check_n_cells(n_cells, least=10)
    check_adata(adata)
    check_seed(seed)
    check_key_added(key_added)
    levels = sorted(set(check_numbers("noise_levels", noise_levels)))
    if not levels or levels[0] < 0 or levels[-1] > 1:
        raise ValueError(f"noise_levels={noise_levels!r} must be shares of noise in the variance, from 0 to 1.")
    if not isinstance(label_key, str) or label_key not in adata.obs:
        raise KeyError(f"label_key={label_key!r} is not a column of adata.obs, which has {list(adata.obs.columns)}.")
    setup = model.registry["setup_args"]
    labels = adata.obs[label_key].astype(object)
    known = labels.notna()
    if label_key == setup.get("labels_key"):
        known &= labels != setup["unlabeled_category"]
    cells = cell_rng(seed, "cells").permutation(np.flatnonzero(known))[:n_cells].tolist()
    y = labels.iloc[cells].astype(str).to_numpy()
    train, test = _split(y, label_key, seed)

    def accuracy(x: np.ndarray) -> float:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x[train], y[train])
        return float(classifier.score(x[test], y[test]))

    features = model.get_features(adata, cells).reshape(len(cells), -1)
    names, counts = np.unique(y[train], return_counts=True)
    beside = {"features": accuracy(features), "majority": float((y[test] == names[counts.argmax()]).mean())}
    rows = []
    for level in levels:
        found = accuracy(model.get_activations(adata, cells, level, seed=seed).reshape(len(cells), -1))
        se = math.sqrt(found * (1 - found) / len(test))
        rows.append({"label_key": label_key, "noise_level": level, "accuracy": found, "se": se, **beside})
    table = pd.DataFrame(rows).assign(n_cells=len(test))
    adata.uns[key_added] = table
    return table


def _split(y: np.ndarray, label_key: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the cells to train and to test on."""
    names, counts = np.unique(y, return_counts=True)
    if len(names) < 2:
        raise ValueError(
            f"label_key={label_key!r} has the labels {list(names)} among {len(y)} labelled cells: 2 are needed."
        )
    few = {str(name): int(n) for name, n in zip(names, counts, strict=True) if n < 2}
    if few or HELD_OUT * len(y) < len(names):
        raise ValueError(
            f"label_key={label_key!r} has {len(names)} labels among {len(y)} cells, {few or 'too many'}: every label "
            "needs a cell to train and one to test on. Raise n_cells, or leave rare labels out of adata."
        )
    return train_test_split(np.arange(len(y)), test_size=HELD_OUT, random_state=seed % 2**32, stratify=y)
