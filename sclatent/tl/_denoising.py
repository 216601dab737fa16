"""What models make of noisy cells, of their own data set and of others."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from anndata import AnnData

from sclatent.data import check_adata, check_seed
from sclatent.model.base import LatentDiffusionModel

from ._noise import (
    check_key_added,
    check_model,
    check_n_cells,
    check_noise_level,
    clean_cells,
    denoised,
    draw_noise,
    error_of,
    noisy,
)

NOISY = "noisy cells"


def denoising(
    models: Mapping[str, LatentDiffusionModel],
    adatas: Mapping[str, AnnData],
    noise_level: float = 0.1,
    n_cells: int = 500,
    seed: int = 0,
    key_added: str = "denoising",
) -> pd.DataFrame:
    r"""Compare what models make of noisy cells of several data sets in one step (arXiv 2206.00070, section 5).

    All models get the same noisy cells: standardised features :math:`x_0` of a data set, plus noise of :math:`\beta /
    (1 - \beta)` times their variance. Every data set is standardised by itself, as those of training were,
    with a mean for every combination of the batches of all models.

    Parameters
    ----------
    models
        Trained models by name, each a :class:`~sclatent.model.JointDiffusion` or a :class:`~sclatent.model.DAED`; they
        need not have been trained on the same data set.
    adatas
        Data sets by name, with features of the same shape where the models expect them.
    noise_level
        :math:`\beta`, the share of noise in the variance; that of every DAED.
    n_cells
        Cells to draw of each data set.
    seed
        Seed of the draw and of the noise.
    key_added
        Key of ``uns`` for the result, in each data set.

    Returns
    -------
    pd.DataFrame
        One row per model and data set, also in ``uns[key_added]`` of every data set, the noisy cells as they are first:
        ``model``, ``data_set``, ``noise_level``, ``error`` (mean absolute error over features and cells, in standard
        deviations of the features of the data set), ``se`` (standard error over cells), ``n_cells``.

    Raises
    ------
    TypeError
        If a model is of another class, or takes noise off its tokens and not off features, as JointLDM and SCLDM do.
    RuntimeError
        If a model is not trained.
    ValueError
        If features have another shape, or a DAED another noise level.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.model import DAED
    >>> adata, others = sclatent.datasets.mitocheck()[::10].copy(), sclatent.datasets.blood_cells()
    >>> DAED.setup_anndata(adata)
    >>> model = DAED(adata, width=32, n_blocks=1)
    >>> model.train(max_epochs=1, stage="denoiser")  # only to show how it is done: leave max_epochs out
    >>> table = sclatent.tl.denoising({"DAED": model}, {"nuclei": adata, "blood cells": others})
    >>> table[["model", "data_set", "n_cells"]]
             model     data_set  n_cells
    0  noisy cells       nuclei      328
    1         DAED       nuclei      328
    2  noisy cells  blood cells      500
    3         DAED  blood cells      500
    >>> ax = sclatent.pl.denoising(adata)
    """
    for what, argument in (("models", models), ("adatas", adatas)):
        if not isinstance(argument, Mapping) or not argument:
            raise TypeError(f"{what} is of type {type(argument).__name__}: a dict of some by name was expected.")
    for name, model in models.items():
        where = f"models[{name!r}]"
        check_model(model, where)
        if model.is_latent:
            raise TypeError(
                f"{where} is a {type(model).__name__}, which takes noise off its tokens and not off "
                "cells: use DAED and JointDiffusion, of images or embeddings."
            )
        check_noise_level(model, f"{where}: noise_level", noise_level)
    if NOISY in models:
        raise ValueError(f"models has the name {NOISY!r}, which is that of the cells as they are: choose another.")
    check_n_cells(n_cells)
    check_seed(seed)
    check_key_added(key_added)
    for data_set, adata in adatas.items():
        check_adata(adata, f"adatas[{data_set!r}]")
    batch_keys = {model.registry["setup_args"]["batch_key"] for model in models.values()}
    rows = []
    for data_set, adata in adatas.items():
        estimates = {}
        for name, model in models.items():
            where = f"adatas[{data_set!r}] for models[{name!r}]"
            cells = clean_cells(model, adata, where, n_cells, seed, batch_keys)
            noise = draw_noise(cells, seed)
            estimates[NOISY] = error_of(noisy(cells, noise, noise_level), cells)
            estimates[name] = error_of(denoised(model, cells, noise, noise_level), cells)
        rows += [
            {"model": name, "data_set": data_set, "noise_level": noise_level, **error}
            for name, error in estimates.items()
        ]
    table = pd.DataFrame(rows, columns=["model", "data_set", "noise_level", "error", "se", "n_cells"])
    for adata in adatas.values():
        adata.uns[key_added] = table.copy()
    return table
