"""A denoiser that also says what it sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._dit import DiT


class JointDenoiser(DiT):
    """Diffusion Transformer with a classification head (Joint Diffusion, arXiv 2301.13622, section 4).

    The activations of all blocks, averaged over the tokens, are joined with the embedding of the time and go through a
    perceptron of two layers; a linear classifier of the tokens themselves is added to it. What is classified is
    always seen without its label, so that the denoiser may be told the label, too, and be guided either way.

    Parameters
    ----------
    n_tokens, token_dim, n_levels, width, n_blocks, n_heads
        As in :class:`DiT`; ``n_levels`` is empty if the denoiser is not told the label.
    n_labels
        Number of labels.
    dropout
        Dropout in the head.
    """

    def __init__(
        self,
        n_tokens: int,
        token_dim: int,
        n_labels: int,
        n_levels: Sequence[int] = (),
        width: int = 128,
        n_blocks: int = 4,
        n_heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(n_tokens, token_dim, n_levels, width, n_blocks, n_heads)
        self.head = nn.Sequential(
            nn.LayerNorm((n_blocks + 1) * width),
            nn.Linear((n_blocks + 1) * width, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, n_labels),
        )
        self.linear = nn.Linear(n_tokens * token_dim, n_labels)
        nn.init.zeros_(self.linear.weight)

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits of the labels (cells, n_labels) of noisy tokens x at times t."""
        pooled = torch.cat([self.activations(x, t).flatten(1), self.time(t)], dim=1)
        return self.head(pooled) + self.linear(x.flatten(1))
