"""How well cells come back from noise, step by step, on the data set of training and on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from anndata import AnnData

from sclatent.data import check_adata, check_seed
from sclatent.model.base import LatentDiffusionModel

from ._noise import (
    check_key_added,
    check_levels,
    check_model,
    check_n_cells,
    clean_cells,
    denoised,
    draw_noise,
    error_of,
    noisy,
)

NOISE_LEVELS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.25, 0.4, 0.6, 0.9)


def reconstruction_error(
    model: LatentDiffusionModel,
    adata: AnnData,
    others: Mapping[str, AnnData] | None = None,
    noise_levels: Sequence[float] | None = None,
    n_cells: int = 500,
    name: str = "training data",
    seed: int = 0,
    key_added: str = "reconstruction_error",
) -> pd.DataFrame:
    r"""Measure how well cells of several data sets come back from noise in one step (arXiv 2206.00070, section 3).

    The paper found the first steps of diffusion to denoise whatever they are given: with little noise, the error was
    the same on data that the model had never seen. Some data are harder than others, though, whatever the model: to
    see what is lost by training elsewhere, put a model that was trained on the other data set beside this one.

    Noise of a level :math:`\beta` is put on standardised features, :math:`x_t = \sqrt{1 - \beta} \, x_0 + \sqrt{\beta}
    \, \varepsilon`, and the model predicts :math:`x_0` in one evaluation, without a label. Cells with the same position
    in the draw have the same :math:`\varepsilon` in all data sets and at all levels.
    :class:`~sclatent.model.JointLDM` and :class:`~sclatent.model.SCLDM` do all this in their latent space, the latter
    at the mean library size.

    Parameters
    ----------
    model
        Trained :class:`~sclatent.model.SCLDM`, :class:`~sclatent.model.JointDiffusion` or
        :class:`~sclatent.model.JointLDM`; or a :class:`~sclatent.model.DAED`, whose denoiser has one level, its own.
    adata
        Cells of the data set of training; best those held out, ``adata[model.validation_indices_].copy()``.
    others
        Other data sets by name, with features of the same shape where the model expects them. Every data set is
        standardised by itself, as that of training was.
    noise_levels
        Shares of noise in the variance, above 0 and below 1; by default 12 from 0.005 to 0.9, half of them in the first
        tenth.
    n_cells
        Cells to draw of each data set.
    name
        What to call the data set of training.
    seed
        Seed of the draw and of the noise.
    key_added
        Key of ``adata.uns`` for the result.

    Returns
    -------
    pd.DataFrame
        One row per data set and level, also in ``adata.uns[key_added]``: ``model`` (its class), ``data_set``,
        ``noise_level``, ``error`` (mean absolute error over features and cells, in standard deviations of the features
        of the data set), ``se`` (standard error over cells), ``noise`` (the error of the noisy cells as they are,
        divided by :math:`\sqrt{1 - \beta}`) and ``n_cells``.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    ValueError
        If features have another shape, or a level is not one that the model denoises.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.model import JointLDM
    >>> adata, others = sclatent.datasets.mitocheck()[::10].copy(), sclatent.datasets.blood_cells()
    >>> JointLDM.setup_anndata(adata)
    >>> model = JointLDM(adata, denoiser_width=32, denoiser_blocks=1)
    >>> model.train(max_epochs=1)  # only to show how it is done: leave max_epochs out for a good model
    >>> held_out = adata[model.validation_indices_].copy()
    >>> levels = [0.01, 0.1]
    >>> table = sclatent.tl.reconstruction_error(model, held_out, {"blood cells": others}, noise_levels=levels)
    >>> table[["data_set", "noise_level", "n_cells"]]
            data_set  noise_level  n_cells
    0  training data         0.01       33
    1  training data         0.10       33
    2    blood cells         0.01      500
    3    blood cells         0.10      500
    >>> ax = sclatent.pl.reconstruction_error(table)
    """
    check_model(model, "model")
    levels = check_levels(model, noise_levels, NOISE_LEVELS)
    check_n_cells(n_cells)
    check_seed(seed)
    check_key_added(key_added)
    if others is not None and not isinstance(others, Mapping):
        raise TypeError(f"others is of type {type(others).__name__}: a dict of AnnData by name was expected.")
    for where, cells in {
        "adata": adata,
        **{f"others[{key!r}]": cells for key, cells in (others or {}).items()},
    }.items():
        check_adata(cells, where)
    if not isinstance(name, str):
        raise ValueError(f"name={name!r} must be a string.")
    if name in (others or {}):
        raise ValueError(f"name={name!r} is the name of one of others, too: call one of them something else.")
    data_sets = {name: clean_cells(model, adata, "adata", n_cells, seed)}
    for other, cells in (others or {}).items():
        data_sets[other] = clean_cells(model, cells, f"others[{other!r}]", n_cells, seed)
    rows = []
    for data_set, cells in data_sets.items():
        noise = draw_noise(cells, seed)
        for level in levels:
            rows.append(
                {
                    "model": type(model).__name__,
                    "data_set": data_set,
                    "noise_level": level,
                    "noise": error_of(noisy(cells, noise, level), cells)["error"],
                    **error_of(denoised(model, cells, noise, level), cells),
                }
            )
    table = pd.DataFrame(rows, columns=["model", "data_set", "noise_level", "error", "se", "noise", "n_cells"])
    adata.uns[key_added] = table
    return table
