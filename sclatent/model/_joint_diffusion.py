"""JointDiffusion: diffusion in data space and a classifier in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from torch import nn

from sclatent.baseline import Baseline
from sclatent.data import is_number, short_repr
from sclatent.diffusion import VariancePreserving
from sclatent.module import JointDenoiser, Patches, ResidualDenoiser, new_denoiser
from sclatent.train import JointPlan, StagePlan

from .base import DenoisingMixin, FeatureModel, JointMixin, check_baseline, check_sizes


class JointDiffusion(JointMixin, DenoisingMixin, FeatureModel):
    r"""Diffusion of images or embeddings with a classifier on what the denoiser sees (arXiv 2301.13622).

    One denoiser learns from all cells how they are distributed, and its activations from the labelled ones what they
    are. It is not conditioned on the label: the gradient of :math:`\ln p(y | x_t)` guides it. Set up without labels,
    this is plain diffusion.

    Parameters
    ----------
    adata
        AnnData that was set up by :meth:`setup_anndata`.
    patch
        Side of a patch of an image, by default 2 pixels, or length of a stretch of an embedding, by default a
        sixteenth, which the denoiser takes as one place.
    denoiser_width, denoiser_blocks, n_heads
        Of images, width and number of resolutions of a U-Net (48 and 3 by default); of embeddings, width, number of
        blocks (128 and 4) and heads of a Diffusion Transformer.
    baseline
        The closed form that the denoiser is added to: ``"none"``, the network of the paper alone; or ``"mixed"`` or
        ``"additive"``, means of ``condition_keys`` with covariances around them. The label is none of these.
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
        Rows on which the loss was watched; none with ``train_size=1``. Their labels were learned.
    trained_stages
        Names of the stages of training that are done.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.model import JointDiffusion
    >>> adata = sclatent.datasets.mitocheck()[::40].copy()  # nuclei, with images of 32 x 32 pixels in obsm
    >>> JointDiffusion.setup_anndata(adata, obsm_key="image", labels_key="phenotype")
    >>> model = JointDiffusion(adata)
    >>> model.train(max_epochs=1)  # only to show how it is done: leave max_epochs out for a good model

    It generates, guided by what it has learned of the labels, and it says what cells are:

    >>> images = model.sample(4, "Metaphase", guidance_weight=2.0, seed=0)
    >>> adata.obs["predicted"] = model.predict()

    What would these nuclei look like in metaphase, and where do they differ?

    >>> moved = model.counterfactual(adata[:4], "Metaphase", seed=0)
    >>> moved.obsm["difference"].shape
    (4, 32, 32, 1)
    >>> axes = sclatent.pl.counterfactuals(adata, moved)
    """

    STAGES = ("diffusion",)
    GUIDED_BY = "classifier"  # which alone knows the label
    process = VariancePreserving()

    def __init__(
        self,
        adata: AnnData | None = None,
        patch: int | None = None,
        denoiser_width: int | None = None,
        denoiser_blocks: int | None = None,
        n_heads: int = 4,
        baseline: Baseline = "none",
        seed: int = 0,
        registry: dict[str, Any] | None = None,
    ) -> None:
        check_sizes(optional=True, patch=patch, denoiser_width=denoiser_width, denoiser_blocks=denoiser_blocks)
        check_sizes(n_heads=n_heads)
        check_baseline(baseline)
        super().__init__(
            adata, registry, patch=patch, denoiser_width=denoiser_width, denoiser_blocks=denoiser_blocks,
            n_heads=n_heads, baseline=baseline, seed=seed,
        )  # fmt: skip

    def _new_autoencoder(self) -> Patches:
        return Patches(self.shape, self.init_params_["patch"], len(self.batches.levels))

    def _new_denoiser(self) -> nn.Module:
        p, patches = self.init_params_, self.module.autoencoder
        shape, n_levels = (patches.n_tokens, patches.token_dim), self.conditions.n_levels
        size = p["denoiser_width"], p["denoiser_blocks"], p["n_heads"]
        n_keys = len(n_levels) - (self.labels_key is not None)  # the denoiser is not conditioned on the label
        every = self.conditions.values()
        values, of = None if every is None else every[:n_keys], self.conditions.of[:n_keys]
        trunk = new_denoiser(self.domain.is_image, *shape, n_levels[:n_keys], *size, values=values)
        if self.labels_key is None:
            return ResidualDenoiser(trunk, shape, self.process, p["baseline"], values=values, of=of)
        return JointDenoiser(trunk, shape, n_levels[-1], self.process, p["baseline"], values=values, of=of)

    def _plan(self, stage: str, arguments: Mapping[str, Any]) -> StagePlan:
        if self.labels_key is None:
            return super()._plan(stage, arguments)
        return JointPlan(self.module.denoiser, self.process, **arguments)

    def denoise(
        self,
        adata: AnnData | None = None,
        noise_level: float = 0.1,
        indices: Sequence[int] | None = None,
        batch_size: int = 256,
        progress_bar: bool = True,
    ) -> AnnData:
        r"""Denoise cells in one step, by what the denoiser predicts of the clean cell.

        Parameters
        ----------
        adata
            Noisy cells; the training data by default.
        noise_level
            Share of noise in the variance of the cells, :math:`\beta`, at least 0 and below 1: they are taken as clean
            ones plus noise of :math:`\beta / (1 - \beta)` times the variance of the features in training. Scaled by
            :math:`\sqrt{1 - \beta}`, they are :math:`x_t` of the process at the time of that noise.
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
        >>> clean = model.denoise(adata[:10], noise_level=0.2)
        >>> clean.obsm["image"].shape
        (10, 1024)
        """
        self._check_stage("diffusion", "denoise")
        if not (is_number(noise_level) and 0 <= noise_level < 1):
            raise ValueError(
                f"noise_level={short_repr(noise_level)} must be at least 0 (clean cells) and below 1 (noise alone), "
                "such as 0.1."
            )
        return self._denoise(adata, noise_level, indices, batch_size, progress_bar)

    def get_latent_representation(
        self, adata: AnnData | None = None, indices: Sequence[int] | None = None, batch_size: int = 256
    ) -> np.ndarray:
        """Represent cells by the activations of the denoiser, averaged over the tokens.

        Parameters
        ----------
        adata
            Cells; the training data by default.
        indices
            Rows; all by default.
        batch_size
            Cells computed together.

        Returns
        -------
        np.ndarray
            Activations of all blocks side by side, (cells, n_blocks * width).

        Examples
        --------
        >>> adata.obsm["X_joint"] = model.get_latent_representation()
        >>> adata.obsm["X_joint"].shape  # 6 blocks of 48
        (82, 288)
        """
        activations = self.get_activations(adata, indices, batch_size=batch_size)
        return activations.reshape(len(activations), -1)
