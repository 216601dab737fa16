"""Embedding of the time of a diffusion process."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Sinusoidal features of t in [0, 1], then a two-layer perceptron (Peebles & Xie 2023).

    Parameters
    ----------
    width
        Width of the embedding.

    Examples
    --------
    >>> import torch
    >>> from sclatent.nn import TimeEmbedding
    >>> TimeEmbedding(width=32)(torch.linspace(0, 1, 5)).shape
    torch.Size([5, 32])
    """

    n_frequencies = 64
    max_period = 10_000.0
    time_scale = 1000.0  # t in [0, 1] spans the thousand steps for which the frequencies were made

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        exponent = torch.arange(self.n_frequencies) / self.n_frequencies
        self.register_buffer("frequencies", torch.exp(-math.log(self.max_period) * exponent), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * self.n_frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed times (cells,) as (cells, width)."""
        phase = self.time_scale * t[:, None] * self.frequencies
        return self.mlp(torch.cat([phase.cos(), phase.sin()], dim=-1))
