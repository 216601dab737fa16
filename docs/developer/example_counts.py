"""PerceptronFlow: counts, by the set autoencoder of SCLDM, another process and a denoiser of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from anndata import AnnData
from torch import Tensor, nn

from sclatent.diffusion import VariancePreserving
from sclatent.model.base import CountModel
from sclatent.module import ResidualDenoiser, SetAutoencoder
from sclatent.nn import ConditionEmbedding, Context, TimeEmbedding
from sclatent.train import AutoencoderPlan, StagePlan


class Perceptron(nn.Module):
    """A denoiser that sees all tokens of a cell as one vector."""

    def __init__(self, shape: tuple[int, int], n_levels: Sequence[int], width: int, n_blocks: int) -> None:
        super().__init__()
        self.n_levels, self.width, self.n_activations = tuple(n_levels), width, n_blocks
        self.embed = nn.Linear(shape[0] * shape[1], width)
        self.time, self.conditions = TimeEmbedding(width), ConditionEmbedding(n_levels, width)
        self.size = nn.Linear(1, width)  # of the library size
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(n_blocks)
        )
        self.out = nn.Linear(width, shape[0] * shape[1])

    def evaluate(self, x: Tensor, t: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Velocity of the shape of ``x``, and the activations of each block (cells, n_blocks, width)."""
        c = self.time(t) + self.conditions(context.codes) + self.size(context.size[:, None])
        h, seen = self.embed(x.flatten(1)), []
        for block in self.blocks:
            h = h + block(h + c)
            seen.append(h)
        return self.out(h).view_as(x), torch.stack(seen, dim=1)


class PerceptronFlow(CountModel):
    """Latent diffusion of counts with a perceptron for a denoiser.

    Parameters
    ----------
    adata
        AnnData that was set up by :meth:`setup_anndata`.
    n_tokens, token_dim
        Shape of the latent of a cell.
    width, n_blocks
        Of the perceptron.
    seed
        Seed of the initial weights.
    registry
        Registry of a saved model, in place of ``adata``; used by :meth:`load`.
    """

    STAGES = ("autoencoder", "diffusion")
    process = VariancePreserving()

    def __init__(
        self,
        adata: AnnData | None = None,
        n_tokens: int = 8,
        token_dim: int = 16,
        width: int = 256,
        n_blocks: int = 3,
        seed: int = 0,
        registry: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            adata, registry, n_tokens=n_tokens, token_dim=token_dim, width=width, n_blocks=n_blocks, seed=seed
        )

    def _new_autoencoder(self) -> SetAutoencoder:
        p = self.init_params_
        return SetAutoencoder(len(self.genes), len(self.batches.levels), p["n_tokens"], p["token_dim"])

    def _new_denoiser(self) -> ResidualDenoiser:
        p = self.init_params_
        shape = p["n_tokens"], p["token_dim"]
        perceptron = Perceptron(shape, self.conditions.n_levels, p["width"], p["n_blocks"])
        return ResidualDenoiser(perceptron, shape, self.process, "mixed")

    def _plan(self, stage: str, arguments: Mapping[str, Any]) -> StagePlan:
        if stage == "autoencoder":
            return AutoencoderPlan(self.module.autoencoder, **arguments)
        return super()._plan(stage, arguments)
