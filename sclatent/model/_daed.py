"""DAED: a denoising autoencoder with a diffusion prior."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor, nn

from sclatent.baseline import Baseline
from sclatent.data import FeatureBatch, cell_rng, is_number, is_whole, short_repr
from sclatent.diffusion import VariancePreserving, lower_bound
from sclatent.module import DenoisingAutoencoder, ResidualDenoiser, new_denoiser
from sclatent.train import DenoisingPlan, PriorPlan, StagePlan

from .base import DenoisingMixin, FeatureModel, PredictionMixin, check_baseline, check_sizes


class DAED(PredictionMixin, DenoisingMixin, FeatureModel):
    r"""Denoising autoencoder with a diffusion prior (arXiv 2206.00070).

    A little noise is put on a cell, :math:`q(x_1 | x_0) = N(\sqrt{1 - \beta_1} \, x_0, \beta_1 I)`. One network goes
    from x1 to x0 in a single step; another one, with weights of its own, is a diffusion model of x1. To generate takes
    many steps, to denoise takes one, and the first steps of diffusion are much the same for any data: the denoiser
    works on data sets that it was not trained on.

    Parameters
    ----------
    adata
        AnnData that was set up by :meth:`setup_anndata`.
    noise_level
        :math:`\beta_1`, the share of noise in the variance of x1.
    patch
        Side of a patch of an image, by default 2 pixels, or length of a stretch of an embedding, by default a
        sixteenth, which the networks take as one place.
    width, n_blocks
        Of the denoising autoencoder. For images it is a U-Net, with as many resolutions (48 and 3 by default), for
        embeddings a transformer with as many blocks (128 and 4).
    denoiser_width, denoiser_blocks
        The same of the prior.
    n_heads
        Heads of every attention of a transformer.
    baseline
        The closed form that the denoiser of the prior is added to: ``"mixed"`` or ``"additive"``, a Gaussian a label,
        or ``"none"``, the network of the paper alone.
    seed
        Seed of the initial weights.
    registry
        Registry of a saved model, in place of ``adata``; used by :meth:`load`.

    Attributes
    ----------
    shape
        Shape of the features of a cell: (dim,), or (height, width, channels).
    conditions
        Condition keys and their levels, the label last, ``conditions.levels["phenotype"]``
        (:class:`~sclatent.data.Conditions`).
    module
        The networks (:class:`~sclatent.module.LatentDiffusion`).
    history
        Losses of every epoch, a table a metric, such as ``history["diffusion_loss_validation"]``.
    train_indices_
        Rows of the training data that the model was trained on; not saved with the model, and an error once there are
        other cells in the AnnData.
    validation_indices_
        Rows on which the loss was watched; none with ``train_size=1``.
    trained_stages
        Names of the stages of training that are done.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.model import DAED
    >>> adata = sclatent.datasets.mitocheck()[::40].copy()  # nuclei, with images of 32 x 32 pixels in obsm
    >>> DAED.setup_anndata(adata, obsm_key="image", labels_key="phenotype")
    >>> model = DAED(adata, noise_level=0.1)
    >>> model.train(max_epochs=1)  # only to show how it is done: leave max_epochs out for a good model

    Denoise in one step, images of this data set or of another:

    >>> clean = model.denoise(adata[:10])
    >>> clean.obsm["image"].shape
    (10, 1024)

    Generate in many:

    >>> images = model.sample(4, "Metaphase", seed=0)
    >>> ax = sclatent.pl.images(images, "image")
    """

    STAGES = ("denoiser", "diffusion")
    process = VariancePreserving()

    def __init__(
        self,
        adata: AnnData | None = None,
        noise_level: float = 0.1,
        patch: int | None = None,
        width: int | None = None,
        n_blocks: int | None = None,
        denoiser_width: int | None = None,
        denoiser_blocks: int | None = None,
        n_heads: int = 4,
        baseline: Baseline = "mixed",
        seed: int = 0,
        registry: dict[str, Any] | None = None,
    ) -> None:
        if not (is_number(noise_level) and 0 < noise_level < 1):
            raise ValueError(
                f"noise_level={short_repr(noise_level)} must be above 0 and below 1, such as 0.1 or 0.001."
            )
        check_sizes(optional=True, patch=patch, width=width, n_blocks=n_blocks)
        check_sizes(optional=True, denoiser_width=denoiser_width, denoiser_blocks=denoiser_blocks)
        check_sizes(n_heads=n_heads)
        check_baseline(baseline)
        super().__init__(
            adata, registry, noise_level=noise_level, patch=patch, width=width, n_blocks=n_blocks,
            denoiser_width=denoiser_width, denoiser_blocks=denoiser_blocks, n_heads=n_heads,
            baseline=baseline, seed=seed,
        )  # fmt: skip

    def _new_autoencoder(self) -> DenoisingAutoencoder:
        p = self.init_params_
        return DenoisingAutoencoder(
            self.shape, p["noise_level"], p["patch"], p["width"], p["n_blocks"], p["n_heads"], len(self.batches.levels)
        )

    def _new_denoiser(self) -> nn.Module:
        p, patches = self.init_params_, self.module.autoencoder
        shape, n_levels = (patches.n_tokens, patches.token_dim), self.conditions.n_levels
        size = p["denoiser_width"], p["denoiser_blocks"], p["n_heads"]
        values, of = self.conditions.values(), self.conditions.of
        trunk = new_denoiser(self.domain.is_image, *shape, n_levels, *size, values=values)
        return ResidualDenoiser(trunk, shape, self.process, p["baseline"], values=values, of=of)

    def _needs(self, stage: str) -> tuple[str, ...]:
        return ()  # the two networks share no weights, and neither needs the other to be trained

    def _fit_baseline(self, tokens: Tensor, codes: Tensor, size: Tensor | None, noise_level: float = 0.0) -> None:
        level = self.module.autoencoder.noise_level
        super()._fit_baseline(math.sqrt(1 - level) * tokens, codes, size, level)  # x1, but for its noise

    def _plan(self, stage: str, arguments: Mapping[str, Any]) -> StagePlan:
        if stage == "denoiser":
            return DenoisingPlan(self.module.autoencoder, **arguments)
        return PriorPlan(self.module.denoiser, self.module.autoencoder, self.process, **arguments)

    def _latent(self, batch: FeatureBatch, seed: int, cells: np.ndarray) -> Tensor:
        """x1 of measured cells."""
        x0 = self.domain.encode(self.module, batch)
        return self.module.autoencoder.add_noise(x0, self._noise(seed, cells, "latent"))

    def denoise(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int = 256,
        progress_bar: bool = True,
    ) -> AnnData:
        r"""Denoise cells in one step.

        What is best removed is noise of :math:`\beta_1 / (1 - \beta_1)` times the variance of the features, which makes
        a cell that was scaled by :math:`\sqrt{1 - \beta_1}` an x1.

        Parameters
        ----------
        adata
            Noisy cells, also of a data set that the model was not trained on; the training data by default.
        indices
            Rows; all by default.
        batch_size
            Cells computed together.
        progress_bar
            Whether to show progress.

        Returns
        -------
        AnnData
            One row per cell of the input, with its index and obs.

        Examples
        --------
        >>> noisy = adata[:10].copy()
        >>> clean = model.denoise(noisy)
        >>> clean.obsm["image"].shape, clean.obsm["image"].dtype  # as they came
        ((10, 1024), dtype('uint8'))
        """
        self._check_stage("denoiser", "denoise")
        return self._denoise(adata, self.module.autoencoder.noise_level, indices, batch_size, progress_bar)

    def denoise_tokens(self, x: Tensor, noise_level: float, size: Tensor | None = None) -> Tensor:
        return x  # x1 is the latent: decoding is what denoises

    def get_elbo(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_draws: int = 8,
        n_steps: int = 1000,
        batch_size: int = 256,
        seed: int = 0,
    ) -> dict[str, float]:
        r"""Estimate the evidence lower bound of the features, mean over the cells, in nats a cell.

        .. math:: \ln p(x_0) \ge E_{q(x_1 | x_0)} \bigl[ \ln p(x_0 | f_\varphi(x_1)) + \ln p_\theta(x_1)
                  - \ln q(x_1 | x_0) \bigr],

        the second term of which is bounded by the diffusion model (arXiv 2206.00070, equation 9;
        :func:`sclatent.diffusion.lower_bound`).

        Parameters
        ----------
        adata
            Cells; the training data by default. Labels are not looked at.
        indices
            Rows; all by default.
        n_draws
            Draws of noise a cell.
        n_steps
            Number of diffusion steps.
        batch_size
            Cells computed together.
        seed
            Seed of the noise.

        Returns
        -------
        dict[str, float]
            ``"elbo"`` and its three parts, ``"reconstruction"``, ``"prior"`` and ``"entropy"``; all for features in
            their own units.

        Examples
        --------
        >>> bound = model.get_elbo(adata[:10], n_draws=2)
        >>> round(bound["reconstruction"] + bound["prior"] + bound["entropy"] - bound["elbo"], 6)
        0.0
        """
        for stage in self.STAGES:
            self._check_stage(stage, "get_elbo")
        autoencoder = self.module.autoencoder
        rows = self._rows(adata, indices)
        sums = np.zeros(2)
        for cells in self._blocks(len(rows), batch_size, "ELBO", progress_bar=False):
            batch = rows[cells]
            x0, x1 = self.domain.encode(self.module, batch), self._latent(batch, seed, cells)
            with torch.no_grad():
                reconstruction = autoencoder.log_prob(x0, x1)
            null = self.conditions.encode(None, len(cells))
            prior = self._prior_bound(x1, null, n_draws, n_steps, seed, cells)
            sums += [float(reconstruction.double().sum()), float(prior.double().sum())]
        n_latent = autoencoder.n_tokens * autoencoder.token_dim
        log_sd = autoencoder.scale.sd.log().mean() * math.prod(self.shape)
        parts = {
            "reconstruction": float(sums[0]) / len(rows) - float(log_sd),
            "prior": float(sums[1]) / len(rows),
            "entropy": 0.5 * n_latent * (1 + math.log(2 * math.pi * autoencoder.noise_level)),
        }
        return {"elbo": sum(parts.values()), **parts}

    @torch.no_grad()
    def _prior_bound(
        self, x1: Tensor, codes: np.ndarray, n_draws: int, n_steps: int, seed: int, cells: np.ndarray
    ) -> Tensor:
        """Lower bound of ln p(x1 | labels), (cells,)."""
        if not (is_whole(n_draws) and is_whole(n_steps, least=2)):
            raise ValueError(
                f"n_draws={short_repr(n_draws)} must be at least 1, and n_steps={short_repr(n_steps)} at least 2, both "
                "whole numbers."
            )
        context = self._context(codes, None)
        draws = [cell_rng(seed, "steps", i) for i in cells]
        uniforms = np.stack([(rng.random() + np.arange(n_draws)) / n_draws % 1 for rng in draws], axis=1)
        normals = np.stack([rng.standard_normal((n_draws, *x1.shape[1:])) for rng in draws], axis=1)
        noise, u = (torch.from_numpy(a).float().to(self.device) for a in (normals, uniforms))
        return lower_bound(lambda x, t: self.module.denoiser(x, t, context), self.process, x1, noise, u, n_steps)

    def predict(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        soft: bool = False,
        n_draws: int = 32,
        batch_size: int = 256,
        seed: int = 0,
    ) -> np.ndarray | pd.DataFrame:
        r"""Predict the label under which a cell is most likely (Li et al. 2023).

        DAED has no classifier; by Bayes' theorem :math:`p(y | x_1) \propto p(x_1 | y)`, and the prior bounds the latter
        for every label, all of them with the same noise. A draw takes two evaluations a label.

        Parameters
        ----------
        adata
            Cells, labelled or not; the training data by default.
        indices
            Rows; all by default.
        soft
            Whether to return the probability of every label.
        n_draws
            Draws of noise a cell.
        batch_size
            Cells computed together.
        seed
            Seed of the noise.

        Returns
        -------
        np.ndarray | pd.DataFrame
            The most probable label of each cell, (cells,), or a DataFrame of probabilities (cells, labels).

        Examples
        --------
        >>> model.predict(adata[:3], n_draws=2).shape
        (3,)
        >>> probability = model.predict(adata[:3], n_draws=2, soft=True)  # a column a label
        >>> probability.shape
        (3, 16)
        """
        self._check_predict()
        rows = self._rows(adata, indices, conditions=True)
        blocks = []
        for cells in self._blocks(len(rows), batch_size, "Predicting", progress_bar=False):
            x1, codes, bounds = self._latent(rows[cells], seed, cells), rows.conditions[rows.cells[cells]], []
            for codes[:, -1] in range(self.conditions.n_levels[-1]):
                bounds.append(self._prior_bound(x1, codes, n_draws, 100, seed, cells))
            blocks.append(torch.stack(bounds, dim=1).softmax(dim=1).cpu().numpy())
        return self._labels_of(np.concatenate(blocks), rows, adata, soft)

    def get_latent_representation(
        self, adata: AnnData | None = None, indices: Sequence[int] | None = None, batch_size: int = 256, seed: int = 0
    ) -> np.ndarray:
        """Represent cells by the activations of the prior's denoiser at x1, averaged over the tokens.

        Parameters
        ----------
        adata
            Cells; the training data by default.
        indices
            Rows; all by default.
        batch_size
            Cells computed together.
        seed
            Seed of the noise of x1.

        Returns
        -------
        np.ndarray
            Activations of all blocks side by side, (cells, n_blocks * width).

        Examples
        --------
        >>> adata.obsm["X_daed"] = model.get_latent_representation()
        >>> adata.obsm["X_daed"].shape  # 6 blocks of 48
        (82, 288)
        """
        activations = self.get_activations(adata, indices, batch_size=batch_size, seed=seed)
        return activations.reshape(len(activations), -1)
