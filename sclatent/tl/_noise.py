"""Clean cells, their noise, and what a model makes of the two in one step."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from sclatent.data import cell_rng
from sclatent.model import DAED
from sclatent.model.base import CountModel, LatentDiffusionModel
from sclatent.module import Standardize

MOMENTS_CELLS = 2000  # cells that mean and standard deviation are taken from
BATCH_SIZE = 256
KEPT = ("sclatent", "image_shape", "guidance", "sclatent_embed_images")  # entries of uns that are no results of tl


def check_model(model: Any, where: str, stage: str | None = None) -> None:
    """Raise an error unless this is a model whose stage, by default what denoises, is trained.

    Parameters
    ----------
    model
        The model.
    where
        What to call it in a message.
    stage
        Stage of training that is needed.

    Raises
    ------
    TypeError
        If it is another kind of model.
    RuntimeError
        If it is not trained.
    """
    if not isinstance(model, LatentDiffusionModel):
        raise TypeError(
            f"{where} is of type {type(model).__name__}: a model was expected (SCLDM, DAED, JointDiffusion, JointLDM)."
        )
    stage = stage or ("denoiser" if isinstance(model, DAED) else "diffusion")
    if stage not in model.trained_stages:
        raise RuntimeError(f"{where} has no trained {stage}: call its train() first.")


def check_noise_level(model: LatentDiffusionModel, where: str, noise_level: float) -> None:
    """Raise a ``ValueError`` unless a model can denoise cells of this level."""
    if len(check_numbers(where, noise_level)) != 1 or not 0 < noise_level < 1:
        raise ValueError(f"{where}={noise_level!r} must be above 0 and below 1: a share of noise in the variance.")
    if isinstance(model, DAED) and not math.isclose(noise_level, own := model.module.autoencoder.noise_level):
        raise ValueError(f"{where}={noise_level!r}: a DAED denoises cells of its own level alone, here {own}.")


def check_n_cells(n_cells: int, least: int = 2, argument: str = "n_cells") -> None:
    """Raise a ``ValueError`` unless this is a number of cells."""
    if isinstance(n_cells, bool) or not isinstance(n_cells, int | np.integer) or n_cells < least:
        raise ValueError(f"{argument}={n_cells!r} must be a whole number of at least {least}.")


def check_numbers(argument: str, values: float | Sequence[float]) -> list[float]:
    """Return a number or several as a list of Python's; raise a ``ValueError`` unless all are finite."""
    try:
        numbers = [math.nan if isinstance(v, bool | np.bool_) else float(v) for v in np.atleast_1d(values)]
    except (TypeError, ValueError, OverflowError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{argument}={values!r} must be a finite number, or several.")
    return numbers


def check_key_added(key_added: str) -> None:
    """Raise a ``ValueError`` unless this can be a key of uns."""
    if not isinstance(key_added, str) or key_added in KEPT:
        raise ValueError(f"key_added={key_added!r} must be a string, and none of {list(KEPT)}, which say other things.")


def clean_cells(
    model: LatentDiffusionModel, adata: AnnData, where: str, n_cells: int, seed: int, batch_keys: Collection[str] = ()
) -> Tensor:
    """Draw cells and standardise what the model diffuses of them.

    A data set is standardised by its own mean and standard deviation, embeddings by one number and images by channel,
    as in training: the same noise then has the same share of the variance in every data set. Batches have a mean each.
    Of counts it is the tokens that are standardised.

    Parameters
    ----------
    model
        The model.
    adata
        Data set, with features of the shape of the model's.
    where
        What to call it in a message.
    n_cells
        How many cells to draw; all if there are fewer.
    seed
        Seed of the draw.
    batch_keys
        Batches of other models that get the same cells: every combination of batches has a mean of its own.

    Returns
    -------
    Tensor
        Features ``(cells, *shape)`` in units of their standard deviation; for a latent model tokens (cells, n_tokens,
        token_dim) in units of theirs.
    """
    order = cell_rng(seed, "cells").permutation(adata.n_obs)[: max(n_cells, MOMENTS_CELLS)]
    try:
        if isinstance(model, CountModel):
            return _standard_tokens(
                model, torch.from_numpy(model.get_latent_representation(adata, order.tolist())), n_cells
            )
        x = torch.from_numpy(model.get_features(adata, order.tolist()))
    except (KeyError, ValueError) as error:
        raise type(error)(f"{where}: {error.args[0]}") from error
    keys = {model.registry["setup_args"]["batch_key"], *batch_keys}
    x = _standardise(x, _batches(keys, adata)[order])
    if not model.is_latent:
        return x[:n_cells]
    with torch.no_grad():
        tokens = torch.cat([model.module.autoencoder.to_tokens(b.to(model.device)).cpu() for b in x.split(BATCH_SIZE)])
    return _standard_tokens(model, tokens, n_cells)


def _standard_tokens(model: LatentDiffusionModel, tokens: Tensor, n_cells: int) -> Tensor:
    """Tokens of some cells, standardised by those of all."""
    autoencoder = model.module.autoencoder
    tokens = tokens.view(-1, autoencoder.n_tokens, autoencoder.token_dim)
    scale = Standardize(*tokens.shape[1:])
    scale.fit(tokens, common=model.domain.common_scale)
    return scale(tokens[:n_cells])


def _batches(keys: Collection[str | None], adata: AnnData) -> np.ndarray:
    """Codes of the batches of a data set, of whatever name, joined; all 0 if it has none."""
    codes = [pd.factorize(adata.obs[key])[0] for key in keys if key in adata.obs]
    return np.unique(np.stack([*codes, np.zeros(adata.n_obs)], axis=1), axis=0, return_inverse=True)[1].ravel()


def _standardise(x: Tensor, batches: np.ndarray) -> Tensor:
    over = (0, 1, 2) if x.ndim == 4 else (0,)
    for batch in np.unique(batches):
        of_batch = torch.from_numpy(batches == batch)
        x[of_batch] -= x[of_batch].mean(dim=over)
    sd = x.square().mean(dim=over).sqrt() if x.ndim == 4 else x.square().mean().sqrt()
    return x / torch.where(sd > 0, sd, 1.0)


def draw_noise(cells: Tensor, seed: int) -> Tensor:
    """Noise of the shape of cells; that of a cell depends on its position alone."""
    noise = [cell_rng(seed, "noise", i).standard_normal(cells.shape[1:]) for i in range(len(cells))]
    return torch.from_numpy(np.stack(noise)).float()


@torch.no_grad()
def denoised(model: LatentDiffusionModel, cells: Tensor, noise: Tensor, noise_level: float) -> Tensor:
    """Put noise on clean cells and take it off again, in one step of the model; all of the shape of ``cells``."""
    autoencoder, results = model.module.autoencoder, []
    for z, e in zip(cells.split(BATCH_SIZE), noise.split(BATCH_SIZE), strict=True):
        x = model.process.interpolate(z, e, z.new_full((len(z),), model.process.time(noise_level))).to(model.device)
        if model.is_latent:
            result = model.denoise_tokens(x, noise_level)
        else:
            result = autoencoder.from_tokens(model.denoise_tokens(autoencoder.to_tokens(x), noise_level))
        results.append(result.cpu())
    return torch.cat(results)


def error_of(estimate: Tensor, cells: Tensor) -> dict[str, float]:
    """Mean absolute error over cells and features, and its standard error over cells."""
    errors = (estimate - cells).abs().flatten(1).mean(dim=1).double()
    return {"error": float(errors.mean()), "se": float(errors.std() / math.sqrt(len(errors))), "n_cells": len(errors)}


def noisy(cells: Tensor, noise: Tensor, noise_level: float) -> Tensor:
    """Noisy cells as they are, on the scale of clean ones."""
    return cells + math.sqrt(noise_level / (1 - noise_level)) * noise


def check_levels(
    model: LatentDiffusionModel, noise_levels: Sequence[float] | None, default: Sequence[float]
) -> list[float]:
    """Noise levels in order; by default all that a model can denoise."""
    if noise_levels is None:
        return [model.module.autoencoder.noise_level] if isinstance(model, DAED) else list(default)
    levels = sorted(set(check_numbers("noise_levels", noise_levels)))
    if not levels:
        raise ValueError("noise_levels is empty: give shares of noise in the variance, such as [0.01, 0.1, 0.5].")
    for level in levels:
        check_noise_level(model, "noise_levels", level)
    return levels
