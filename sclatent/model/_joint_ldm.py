"""JointLDM: latent diffusion and a classifier in one, for images and embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from sklearn.decomposition import PCA
from torch import nn

from sclatent.baseline import Baseline
from sclatent.data import FeatureRows, random_stream
from sclatent.diffusion import LinearFlow
from sclatent.module import DiT, ImageAutoencoder, JointDenoiser, ResidualDenoiser, VectorAutoencoder
from sclatent.train import JointPlan, ReconstructionPlan, StagePlan

from .base import FeatureModel, JointMixin, check_baseline, check_sizes


class JointLDM(JointMixin, FeatureModel):
    r"""Latent diffusion with a classifier, trained on a few labels and many cells (Joint LDM, arXiv 2411.09434).

    An autoencoder turns an embedding or an image into tokens; on its frozen tokens one denoiser learns how cells are
    distributed, from all of them, and its activations what the labelled ones are. The denoiser is conditioned on the
    label, too, so that it can be guided by the classifier, without it, or both ways.

    Parameters
    ----------
    adata
        AnnData that was set up by :meth:`setup_anndata`.
    n_tokens
        Number of tokens of an embedding, by default 8 or what it takes to hold all of it; of an image it follows from
        its size (9 or 16).
    token_dim
        Width of a token: by default 32, 64 for embeddings of more than 256 numbers, and no more than an embedding has.
    width
        Width of the autoencoder: of its perceptrons (embeddings; 256 by default) or its convolutions (images; 64).
    denoiser_width, denoiser_blocks
        Width and number of blocks of the Diffusion Transformer.
    n_heads
        Heads of every attention.
    baseline
        The closed form that the denoiser is added to: ``"mixed"`` or ``"additive"``, a Gaussian a label, or ``"none"``,
        the network of the paper alone.
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
    >>> from sclatent.model import JointLDM
    >>> adata = sclatent.datasets.mitocheck()[::10].copy()  # embeddings of nuclei in X
    >>> known = adata.obs["phenotype"].astype(str).iloc[::4]  # one label in four
    >>> adata.obs["phenotype"] = known.reindex(adata.obs_names, fill_value="unknown")
    >>> JointLDM.setup_anndata(adata, labels_key="phenotype", unlabeled_category="unknown")
    >>> model = JointLDM(adata)
    >>> model.train(max_epochs=1)  # only to show how it is done: leave max_epochs out for a good model

    It says what the others are, generates cells of a label, and shows what measured ones would look like under another:

    >>> adata.obs["predicted"] = model.predict()
    >>> cells = model.sample(8, "Metaphase", guidance_weight=2.0, seed=0)
    >>> cells.shape  # X, as it went in
    (8, 64)
    >>> moved = model.counterfactual(adata[:8], "Interphase", seed=0)
    """

    STAGES = ("autoencoder", "diffusion")
    process = LinearFlow()

    def __init__(
        self,
        adata: AnnData | None = None,
        n_tokens: int | None = None,
        token_dim: int | None = None,
        width: int | None = None,
        denoiser_width: int = 128,
        denoiser_blocks: int = 3,
        n_heads: int = 4,
        baseline: Baseline = "mixed",
        seed: int = 0,
        registry: dict[str, Any] | None = None,
    ) -> None:
        check_sizes(optional=True, n_tokens=n_tokens, token_dim=token_dim, width=width)
        check_sizes(denoiser_width=denoiser_width, denoiser_blocks=denoiser_blocks, n_heads=n_heads)
        check_baseline(baseline)
        super().__init__(
            adata, registry, n_tokens=n_tokens, token_dim=token_dim, width=width, denoiser_width=denoiser_width,
            denoiser_blocks=denoiser_blocks, n_heads=n_heads, baseline=baseline, seed=seed,
        )  # fmt: skip

    def _new_autoencoder(self) -> ImageAutoencoder | VectorAutoencoder:
        p, n_batches = self.init_params_, len(self.batches.levels)
        if self.domain.is_image:
            return ImageAutoencoder(self.shape, p["token_dim"] or 32, p["width"] or 64, n_batches)
        (dim,) = self.shape
        # what tells labels apart is not in the largest components alone
        token_dim = p["token_dim"] or min(dim, 32 if dim <= 256 else 64)
        n_tokens = p["n_tokens"] or min(8, math.ceil(dim / token_dim))
        return VectorAutoencoder(dim, n_tokens, token_dim, p["width"] or 256, n_batches)

    def _new_denoiser(self) -> nn.Module:
        p, autoencoder = self.init_params_, self.module.autoencoder
        shape = autoencoder.n_tokens, autoencoder.token_dim
        size = p["denoiser_width"], p["denoiser_blocks"], p["n_heads"]
        values, of = self.conditions.values(), self.conditions.of
        trunk = DiT(*shape, self.conditions.n_levels, *size, values=values)
        if self.labels_key is None:
            return ResidualDenoiser(trunk, shape, self.process, p["baseline"], values=values, of=of)
        n_labels = self.conditions.n_levels[-1]
        return JointDenoiser(trunk, shape, n_labels, self.process, p["baseline"], values=values, of=of)

    def _look_at_features(self, rows: FeatureRows) -> None:
        super()._look_at_features(rows)
        autoencoder = self.module.autoencoder
        if isinstance(autoencoder, VectorAutoencoder):  # it starts from the principal components
            seed = self.init_params_["seed"]
            some = random_stream(seed, "cells of the components").permutation(len(rows))[:20_000]
            batch = rows[np.sort(some)]
            x = autoencoder.scale(batch.x, batch.batch).numpy()
            k = min(autoencoder.n_tokens * autoencoder.token_dim, *x.shape)
            pca = PCA(k, random_state=seed % 2**32).fit(x)
            autoencoder.start_from(torch.from_numpy(pca.components_), float(np.sqrt(pca.explained_variance_.mean())))

    def _plan(self, stage: str, arguments: Mapping[str, Any]) -> StagePlan:
        if stage == "autoencoder":
            # the tokens of an image are normalised, those of an embedding keep the proportions of its components
            defaults = {"token_noise": 0.1 if self.domain.is_image else 0.0}
            return ReconstructionPlan(self.module.autoencoder, **{**defaults, **arguments})
        if self.labels_key is None:
            return super()._plan(stage, arguments)
        return JointPlan(self.module.denoiser, self.process, **arguments)
