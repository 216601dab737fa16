"""Diffusion Transformer over the tokens of a cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sclatent.nn import AdaLNBlock, ConditionEmbedding, ConditionMean, TimeEmbedding


class DiT(nn.Module):
    r"""Diffusion Transformer with adaLN-zero (Peebles & Xie 2023) around an additive mean of the conditions.

    The velocity of tokens x at time t under conditions c and library size s (its standardised logarithm) is

    .. math:: v(x, t, c, s) = m(c, s) + f(x - t \, m(c, s), t, c, s),

    with :math:`m` the :class:`~sclatent.nn.ConditionMean` and :math:`f` the transformer. As :math:`x_t = (1 - t)
    \varepsilon + t z`, the transformer sees :math:`z - m(c, s)`: cells of all conditions around one centre. A
    combination that was never trained on is therefore no foreign place to it. The library size is told because tokens
    know it: drawn without regard to it, they would not agree with the size that the counts are decoded at.

    Parameters
    ----------
    n_tokens, token_dim
        Shape of the latent of a cell.
    n_levels
        Number of levels of each condition key.
    width, n_blocks, n_heads
        Width, number of blocks and heads of the transformer.
    """

    def __init__(
        self,
        n_tokens: int,
        token_dim: int,
        n_levels: Sequence[int] = (),
        width: int = 128,
        n_blocks: int = 4,
        n_heads: int = 4,
    ) -> None:
        super().__init__()
        self.mean = ConditionMean(n_levels, n_tokens, token_dim)
        self.embed = nn.Linear(token_dim, width)
        self.position = nn.Parameter(0.02 * torch.randn(n_tokens, width))
        self.time = TimeEmbedding(width)
        self.conditions = ConditionEmbedding(n_levels, width)
        self.size = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(AdaLNBlock(width, n_heads) for _ in range(n_blocks))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, token_dim)
        for layer in (self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, codes: Tensor, size: Tensor) -> Tensor:
        """Predict the velocity.

        Parameters
        ----------
        x
            Noisy tokens, (cells, n_tokens, token_dim).
        t
            Times in [0, 1], (cells,); 0 is noise, 1 is data.
        codes
            Condition codes, (cells, n_keys); -1 leaves a key open.
        size
            Standardised log library sizes, (cells,).

        Returns
        -------
        Tensor of the shape of ``x``.
        """
        m = self.mean(codes, size)
        c = self.time(t) + self.conditions(codes) + self.size(size[:, None])
        h = self.embed(x - t[:, None, None] * m) + self.position
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.modulation(c).unsqueeze(1).chunk(2, dim=-1)
        return m + self.out(torch.addcmul(shift, self.norm(h), 1 + scale))
