"""PCAFlow: flow matching of principal components."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from sklearn.decomposition import PCA
from torch import Tensor

from sclatent.data import FeatureRows
from sclatent.diffusion import LinearFlow
from sclatent.model.base import FeatureModel
from sclatent.module import DiT, FeatureAutoencoder


class PrincipalComponents(FeatureAutoencoder):
    """Principal components as tokens: a linear autoencoder, which is fitted and not trained."""

    def __init__(self, shape: tuple[int, ...], n_tokens: int, token_dim: int, n_batches: int = 1) -> None:
        super().__init__(shape, n_tokens, token_dim, n_batches)
        self.register_buffer("center", torch.zeros(math.prod(shape)))
        self.register_buffer("components", torch.zeros(n_tokens * token_dim, math.prod(shape)))

    def fit(self, x: Tensor) -> None:
        """Take the components from standardised features (cells, *shape); those that the cells do not have stay 0."""
        pca = PCA(min(len(self.components), len(x), len(self.center)), random_state=0).fit(x.flatten(1))
        self.center.copy_(torch.from_numpy(pca.mean_))
        self.components[: len(pca.components_)] = torch.from_numpy(pca.components_)

    def to_tokens(self, x: Tensor) -> Tensor:
        z = (x.flatten(1) - self.center) @ self.components.T  # (cells, n_components)
        return z.view(-1, self.n_tokens, self.token_dim)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        x = tokens.flatten(1) @ self.components + self.center
        return x.view(-1, *self.shape)


class PCAFlow(FeatureModel):
    """Flow matching of the principal components of embeddings or images, told the label of the cell.

    Parameters
    ----------
    adata
        AnnData that was set up by :meth:`setup_anndata`.
    n_tokens, token_dim
        How the principal components, ``n_tokens * token_dim`` of them, are laid out.
    width, n_blocks, n_heads
        Of the Diffusion Transformer.
    seed
        Seed of the initial weights.
    registry
        Registry of a saved model, in place of ``adata``; used by :meth:`load`.
    """

    STAGES = ("diffusion",)
    process = LinearFlow()

    def __init__(
        self,
        adata: AnnData | None = None,
        n_tokens: int = 8,
        token_dim: int = 8,
        width: int = 128,
        n_blocks: int = 3,
        n_heads: int = 4,
        seed: int = 0,
        registry: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            adata, registry, n_tokens=n_tokens, token_dim=token_dim,
            width=width, n_blocks=n_blocks, n_heads=n_heads, seed=seed,
        )  # fmt: skip

    def _new_autoencoder(self) -> PrincipalComponents:
        p = self.init_params_
        return PrincipalComponents(self.shape, p["n_tokens"], p["token_dim"], len(self.batches.levels))

    def _new_denoiser(self) -> DiT:
        p = self.init_params_
        return DiT(p["n_tokens"], p["token_dim"], self.conditions.n_levels, p["width"], p["n_blocks"], p["n_heads"])

    def _look_at_features(self, rows: FeatureRows) -> None:
        super()._look_at_features(rows)  # mean and scale of the features
        cells = rows[np.arange(len(rows))]
        autoencoder = self.module.autoencoder
        autoencoder.fit(autoencoder.scale(cells.x, cells.batch))
