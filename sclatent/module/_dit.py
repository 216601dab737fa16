"""Diffusion Transformer over the tokens of a cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sclatent.nn import NULL, AdaLNBlock, ConditionEmbedding, Context, TimeEmbedding, Values


class DiT(nn.Module):
    """Diffusion Transformer with adaLN-zero (Peebles & Xie 2023), conditioned on the time and the context of the cells.

    Parameters
    ----------
    n_tokens, token_dim
        Shape of the tokens of a cell.
    n_levels
        Number of levels of each condition key.
    width, n_blocks, n_heads
        Width, number of blocks and heads of the transformer.
    has_size
        Whether it is conditioned on the library size, too.
    values
        What is known of the values of each key, as in :class:`~sclatent.nn.ConditionEmbedding`.

    Examples
    --------
    >>> import torch
    >>> from sclatent.module import DiT
    >>> from sclatent.nn import Context
    >>> denoiser = DiT(n_tokens=8, token_dim=16, n_levels=[5, 2], width=32, n_blocks=3)
    >>> x, t, codes = torch.randn(4, 8, 16), torch.rand(4), torch.full((4, 2), -1)
    >>> denoiser(x, t, Context(codes)).shape
    torch.Size([4, 8, 16])
    >>> denoiser.activations(x, t).shape  # of 3 blocks
    torch.Size([4, 3, 32])
    """

    def __init__(
        self,
        n_tokens: int,
        token_dim: int,
        n_levels: Sequence[int] = (),
        width: int = 128,
        n_blocks: int = 4,
        n_heads: int = 4,
        has_size: bool = False,
        values: Sequence[Values] | None = None,
    ) -> None:
        super().__init__()
        self.n_levels, self.width, self.n_activations = tuple(n_levels), width, n_blocks
        self.embed = nn.Linear(token_dim, width)
        self.position = nn.Parameter(0.02 * torch.randn(n_tokens, width))
        self.time = TimeEmbedding(width)
        self.conditions = ConditionEmbedding(n_levels, width, values)
        self.size = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width)) if has_size else None
        self.blocks = nn.ModuleList(AdaLNBlock(width, n_heads) for _ in range(n_blocks))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, token_dim)
        for layer in (self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def evaluate(self, x: Tensor, t: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Prediction of the shape of ``x``, and the activations of each block averaged over the tokens.

        Parameters
        ----------
        x
            Noisy tokens, (cells, n_tokens, token_dim).
        t
            Times in [0, 1], (cells,); 0 is noise, 1 is data.
        context
            What the cells are conditioned on.

        Returns
        -------
        tuple[Tensor, Tensor]
            Prediction (cells, n_tokens, token_dim) and activations (cells, n_blocks, width).
        """
        c = self.time(t) + self.conditions(context.codes, context.values)
        if self.size is not None:
            if context.size is None:
                raise ValueError("context.size is None: a denoiser with has_size=True needs library sizes, (cells,).")
            c = c + self.size(context.size[:, None])
        h = self.embed(x) + self.position
        seen = []
        for block in self.blocks:
            h = block(h, c)
            seen.append(h.mean(dim=1))
        shift, scale = self.modulation(c).unsqueeze(1).chunk(2, dim=-1)
        return self.out(torch.addcmul(shift, self.norm(h), 1 + scale)), torch.stack(seen, dim=1)

    def activations(self, x: Tensor, t: Tensor) -> Tensor:
        """Activations of each block without any condition, averaged over the tokens, (cells, n_blocks, width)."""
        return self.evaluate(x, t, Context(torch.full((len(t), len(self.n_levels)), NULL, device=t.device)))[1]

    def forward(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """Predict the velocity, of the shape of ``x``; arguments as in :meth:`evaluate`."""
        return self.evaluate(x, t, context)[0]
