"""A denoiser that also says what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sclatent.baseline import Baseline, Residuals
from sclatent.diffusion import Process
from sclatent.nn import NULL, Context, Dropout, Values

from ._dit import DiT
from ._residual_denoiser import ResidualDenoiser
from ._unet import UNet


class JointDenoiser(ResidualDenoiser):
    r"""A denoiser with a classification head (Joint Diffusion, arXiv 2301.13622, section 4).

    The activations of all blocks, averaged over the tokens, are joined with the embedding of the time and go through a
    perceptron of two layers. To its logits are added those of a linear classifier and of a perceptron that see the
    tokens themselves: with few labels the former is all there is to learn, and what the denoiser has found comes on
    top. They see a linear estimate of the clean tokens (Wiener 1949), coordinate by coordinate,

    .. math:: \hat z_i = \frac{a_t \sigma_i^2}{a_t^2 \sigma_i^2 + s_t^2} \, x_{t,i}, \qquad
              \sigma_i^2 = \sum_j C_{ij}^2 / C_{ii} ,

    with C the covariance of the tokens. Of coordinates that vary by themselves, such as principal components,
    :math:`\sigma_i^2` is the variance; of those that vary together, such as pixels, it is that of the directions that
    they vary in.

    Small coordinates are gone as soon as there is noise, and large ones are left: one classifier does for all times.
    What is classified is seen without its label, so that the denoiser may be conditioned on it, too, and guided either
    way.

    Parameters
    ----------
    trunk, shape, process, baseline, residuals, values, of
        As in :class:`ResidualDenoiser`.
    n_labels
        Number of labels.
    head_width
        Width of the perceptron that sees the tokens.
    dropout
        Dropout before the last layer of either perceptron.
    label_gradient
        Share of the gradient of labels that reaches the trunk, which could memorise a few
        (`docs/benchmarks/history.md`, "Few labels").

    Examples
    --------
    >>> import torch
    >>> from sclatent.diffusion import LinearFlow
    >>> from sclatent.module import DiT, JointDenoiser
    >>> from sclatent.nn import Context
    >>> trunk = DiT(n_tokens=8, token_dim=16, n_levels=[3], width=32, n_blocks=2)
    >>> denoiser = JointDenoiser(trunk, (8, 16), n_labels=3, process=LinearFlow())
    >>> x, t = torch.randn(4, 8, 16), torch.rand(4)
    >>> velocity, logits = denoiser.joint(x, t, Context(torch.full((4, 1), -1)))
    >>> velocity.shape, logits.shape
    (torch.Size([4, 8, 16]), torch.Size([4, 3]))
    """

    variance: Tensor

    def __init__(
        self,
        trunk: DiT | UNet,
        shape: tuple[int, int],
        n_labels: int,
        process: Process,
        baseline: Baseline = "mixed",
        residuals: Residuals = "gaussian",
        head_width: int = 512,
        dropout: float = 0.5,
        label_gradient: float = 0.01,
        values: Sequence[Values] | None = None,
        of: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__(trunk, shape, process, baseline, residuals, values, of)
        self.label_gradient = label_gradient
        self.register_buffer("variance", torch.ones(shape))
        latent, width = shape[0] * shape[1], trunk.width
        pooled = (trunk.n_activations + 1) * width
        self.linear = nn.Linear(latent, n_labels)
        self.perceptron = nn.Sequential(
            nn.Linear(latent, head_width), nn.GELU(), Dropout(dropout), nn.Linear(head_width, n_labels)
        )
        self.head = nn.Sequential(
            nn.LayerNorm(pooled), nn.Linear(pooled, width), nn.GELU(), Dropout(dropout), nn.Linear(width, n_labels)
        )
        for layer in (self.linear, self.perceptron[-1], self.head[-1]):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def fit(self, tokens: Tensor, *args: Any, **kwargs: Any) -> None:
        """Fit the baseline, and the variances of the linear estimate, to tokens (cells, n_tokens, token_dim)."""
        super().fit(tokens, *args, **kwargs)
        self._fit_variance(tokens)

    def _fit_variance(self, tokens: Tensor) -> None:
        r"""Take :math:`\sigma^2` from tokens."""
        z = tokens[:: -(-len(tokens) // 8192)].flatten(1)
        variance = z.square().mean(dim=0).clamp(min=1e-6)
        if 2 * len(z) < z.shape[1]:  # cells with cells: the same sums, without a matrix of all coordinates
            together = (z @ z.T @ z * z).sum(dim=0) / len(z) ** 2
        else:
            together = torch.cat([(block.T @ z / len(z)).square().sum(dim=1) for block in z.split(1024, dim=1)])
        # in n cells, coordinates that have nothing to do with each other seem to, by one n-th of the variance of all
        of_directions = together / variance - variance.sum() / len(z)
        self.variance.copy_(of_directions.maximum(variance).view_as(self.variance))

    def joint(self, x: Tensor, t: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Velocity and logits of the labels (cells, n_labels) in one evaluation.

        The logits of a cell that is conditioned on its label are of no use. Arguments are those of :meth:`evaluate`.
        """
        v, seen = self.evaluate(x, t, context)
        if self.training:
            seen = self.label_gradient * seen + (1 - self.label_gradient) * seen.detach()
        pooled = torch.cat([seen.flatten(1), self.trunk.time(t)], dim=1)
        at = self.process.coefficients(t)
        signal, noise = at.data[:, None, None], at.noise[:, None, None]
        explained = signal * self.variance
        z = (explained / (signal * explained + noise.square()) * x).flatten(1)
        logits = self.linear(z) + self.perceptron(z) + self.head(pooled)
        return v, logits.float()  # also where precision is mixed: what is made of them has small differences

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits of the labels (cells, n_labels) of noisy tokens x at times t."""
        null = torch.full((len(t), len(self.n_levels)), NULL, device=t.device)
        return self.joint(x, t, Context(null))[1]
