"""A denoiser around what a label is on average."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sclatent.diffusion import Process
from sclatent.nn import OPEN, ConditionEmbedding, ConditionMean

from ._dit import DiT
from ._gaussian_velocity import GaussianVelocity
from ._unet import UNet


class CentredDenoiser(nn.Module):
    r"""A denoiser of images or embeddings that works around the mean of the label, as :class:`CellDenoiser` does.

    .. math:: v(x_t, t, y) = \dot a_t \, m(y) + g(u, t, y) + f(u, t, y), \qquad u = x_t - a_t \, m(y), \quad
              m(\varnothing) = 0.

    What a label is on average need not be learned, and guidance knows it from the first step on. Nor need its
    covariance: g is the velocity of Gaussian cells (:class:`GaussianVelocity`), and f learns what is not Gaussian about
    them. A denoiser that is not told the label has neither.

    Parameters
    ----------
    trunk
        The denoiser f; whether it is told the label is for it to say.
    shape
        Number of tokens and their width.
    process
        Whose :math:`x_t` the denoiser sees.

    Examples
    --------
    >>> import torch
    >>> from sclatent.diffusion import VariancePreserving
    >>> from sclatent.module import CentredDenoiser, UNet
    >>> denoiser = CentredDenoiser(UNet(16, 4, n_levels=[2], width=16, n_resolutions=2), (16, 4), VariancePreserving())
    >>> tokens, labels = torch.randn(10, 16, 4), torch.tensor([0, 1]).repeat(5)
    >>> denoiser.fit(tokens, labels, shrinkage=5.0)
    >>> denoiser(tokens, torch.rand(10), labels[:, None]).shape
    torch.Size([10, 16, 4])
    """

    def __init__(self, trunk: DiT | UNet, shape: tuple[int, int], process: Process) -> None:
        super().__init__()
        self.trunk = trunk
        self.process = process
        n_levels = [len(table) - 1 for table in trunk.conditions.tables]
        self.mean = ConditionMean(n_levels, *shape)
        self.gaussian = GaussianVelocity(*n_levels, shape, process) if n_levels else None

    @property
    def conditions(self) -> ConditionEmbedding:
        """What the denoiser is told."""
        return self.trunk.conditions

    def fit(self, tokens: Tensor, labels: Tensor, shrinkage: float, noise_level: float = 0.0) -> None:
        """Take the means of the labels, and their covariances, from tokens (cells, n_tokens, token_dim) of mean 0.

        Parameters
        ----------
        tokens
            Of all cells.
        labels
            Label codes, (cells,), -1 for none.
        shrinkage
            As if each label had so many cells more, at 0 and with the covariance that all labels share: the more cells,
            the less they are shrunk.
        noise_level
            Variance of noise that comes on top of these tokens in training.
        """
        member = F.one_hot(labels[labels != OPEN], self.mean.n_levels[0]).float()
        total = torch.einsum("nk,n...->k...", member, tokens[labels != OPEN])
        means = total / (member.sum(dim=0) + shrinkage)[:, None, None]
        self.mean.fit_means(means)
        if self.gaussian is not None:
            self.gaussian.fit(tokens, labels, means, shrinkage, noise_level)

    def activations(self, x: Tensor, t: Tensor) -> Tensor:
        """Activations of each block of the trunk without any label, (cells, n_activations, width)."""
        return self.trunk.activations(x, t)

    def evaluate(self, x: Tensor, t: Tensor, codes: Tensor, guided_to: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Velocity, and the activations of each block of the trunk (cells, n_activations, width).

        Parameters
        ----------
        x
            Noisy tokens, (cells, n_tokens, token_dim).
        t
            Times in [0, 1], (cells,); 0 is noise, 1 is data.
        codes
            Label codes, (cells, 1), -1 for none; (cells, 0) if the denoiser is not told the label.
        guided_to
            As in :class:`GaussianVelocity`.
        """
        signal, _, slope, _ = (coefficient[:, None, None] for coefficient in self.process.coefficients(t))
        m = self.mean(codes, torch.zeros_like(t))
        u = x - signal * m
        v, seen = self.trunk.evaluate(u, self.trunk.context(t, codes))
        if self.gaussian is not None:
            v = v + self.gaussian(u, t, codes, guided_to)
        return slope * m + v, seen

    def forward(self, x: Tensor, t: Tensor, codes: Tensor) -> Tensor:
        """Predict the velocity; arguments as in :meth:`evaluate`."""
        return self.evaluate(x, t, codes)[0]

    def guided_to(self, labels: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Return the denoiser for :func:`~sclatent.diffusion.classifier_free` guidance above 1 to labels (cells, 1)."""

        def denoiser(x: Tensor, t: Tensor, codes: Tensor) -> Tensor:
            return self.evaluate(x, t, codes, labels.repeat(len(codes) // len(labels), 1))[0]

        return denoiser
