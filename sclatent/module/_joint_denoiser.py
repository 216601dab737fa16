"""A denoiser that also says what it sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sclatent.diffusion import Process
from sclatent.nn import OPEN, ConditionMean

from ._dit import DiT


class JointDenoiser(DiT):
    r"""Diffusion Transformer with a classification head (Joint Diffusion, arXiv 2301.13622, section 4).

    The activations of all blocks, averaged over the tokens, are joined with the embedding of the time and go through a
    perceptron of two layers. To its logits are added those of a linear classifier and of a perceptron that see the
    tokens themselves, :math:`x_t / a_t`: with few labels the former is all there is to learn, and what the denoiser
    has found comes on top. What is classified is seen without its label, so that the denoiser may be told the label,
    too, and be guided either way. Then it works around the mean :math:`m(y)` of the label, as
    :class:`CellDenoiser` does: :math:`v = \dot a_t m(y) + f(x_t - a_t m(y), t, y)`.

    Parameters
    ----------
    n_tokens, token_dim
        Shape of the tokens of a cell.
    n_labels
        Number of labels.
    process
        Whose :math:`x_t` the denoiser sees.
    n_levels, width, n_blocks, n_heads
        As in :class:`DiT`; ``n_levels`` is empty if the denoiser is not told the label.
    head_width
        Width of the perceptron that sees the tokens.
    dropout
        Dropout before the last layer of either perceptron.
    """

    least_signal = 0.2  # tokens with less signal than that are not scaled up any further

    def __init__(
        self,
        n_tokens: int,
        token_dim: int,
        n_labels: int,
        process: Process,
        n_levels: Sequence[int] = (),
        width: int = 128,
        n_blocks: int = 4,
        n_heads: int = 4,
        head_width: int = 512,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(n_tokens, token_dim, n_levels, width, n_blocks, n_heads)
        self.process = process
        self.mean = ConditionMean(n_levels, n_tokens, token_dim)
        pooled, latent = (n_blocks + 1) * width, n_tokens * token_dim
        self.linear = nn.Linear(latent, n_labels)
        self.perceptron = nn.Sequential(
            nn.Linear(latent, head_width), nn.GELU(), nn.Dropout(dropout), nn.Linear(head_width, n_labels)
        )
        self.head = nn.Sequential(
            nn.LayerNorm(pooled), nn.Linear(pooled, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, n_labels)
        )
        for layer in (self.linear, self.perceptron[-1], self.head[-1]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def joint(self, x: Tensor, t: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity and logits of the labels (cells, n_labels) in one evaluation.

        The logits of a cell that was told its label are of no use.

        Parameters
        ----------
        x, t, codes
            As in :meth:`forward`.
        """
        signal, _, slope, _ = (coefficient[:, None, None] for coefficient in self.process.coefficients(t))
        m = self.mean(codes, torch.zeros_like(t))
        c = self.context(t, codes)
        hidden = list(self.hidden(x - signal * m, c))
        pooled = torch.cat([*(h.mean(dim=1) for h in hidden), self.time(t)], dim=1)
        z = (x / signal.clamp(min=self.least_signal)).flatten(1)
        return slope * m + self.read(hidden[-1], c), self.linear(z) + self.perceptron(z) + self.head(pooled)

    def forward(self, x: Tensor, t: Tensor, codes: Tensor) -> Tensor:
        """Predict the velocity; as in :class:`DiT`."""
        return self.joint(x, t, codes)[0]

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits of the labels (cells, n_labels) of noisy tokens x at times t."""
        no_label = torch.full((len(t), len(self.conditions.tables)), OPEN, device=t.device)
        return self.joint(x, t, no_label)[1]
