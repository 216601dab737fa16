"""A denoiser around the mean of the label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sclatent.diffusion import Process
from sclatent.nn import OPEN, ConditionEmbedding, ConditionMean

from ._dit import DiT
from ._unet import UNet


class CentredDenoiser(nn.Module):
    r"""A denoiser of images or embeddings that works around the mean of the label, as :class:`CellDenoiser` does.

    .. math:: v(x_t, t, y) = \dot a_t \, m(y) + f(x_t - a_t \, m(y), t, y), \qquad m(\varnothing) = 0.

    What a label is on average need not be learned, and guidance knows it from the first step on.

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
    >>> denoiser.fit_means(tokens, labels, shrinkage=5.0)
    >>> denoiser(tokens, torch.rand(10), labels[:, None]).shape
    torch.Size([10, 16, 4])
    """

    def __init__(self, trunk: DiT | UNet, shape: tuple[int, int], process: Process) -> None:
        super().__init__()
        self.trunk = trunk
        self.process = process
        self.mean = ConditionMean([len(table) - 1 for table in trunk.conditions.tables], *shape)

    @property
    def conditions(self) -> ConditionEmbedding:
        """What the denoiser is told."""
        return self.trunk.conditions

    def fit_means(self, tokens: Tensor, labels: Tensor, shrinkage: float) -> None:
        """Take the means of the labels from tokens (cells, n_tokens, token_dim) of mean 0.

        Parameters
        ----------
        tokens
            Of all cells.
        labels
            Label codes, (cells,), -1 for none.
        shrinkage
            As if each label had so many cells more, at 0: the more cells, the more their mean is believed.
        """
        member = F.one_hot(labels[labels != OPEN], self.mean.n_levels[0]).float()
        total = torch.einsum("nk,n...->k...", member, tokens[labels != OPEN])
        self.mean.fit_means(total / (member.sum(dim=0) + shrinkage)[:, None, None])

    def activations(self, x: Tensor, t: Tensor) -> Tensor:
        """Activations of each block of the trunk without any label, (cells, n_activations, width)."""
        return self.trunk.activations(x, t)

    def evaluate(self, x: Tensor, t: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity, and the activations of each block of the trunk (cells, n_activations, width).

        Parameters
        ----------
        x
            Noisy tokens, (cells, n_tokens, token_dim).
        t
            Times in [0, 1], (cells,); 0 is noise, 1 is data.
        codes
            Label codes, (cells, 1), -1 for none; (cells, 0) if the denoiser is not told the label.
        """
        signal, _, slope, _ = (coefficient[:, None, None] for coefficient in self.process.coefficients(t))
        m = self.mean(codes, torch.zeros_like(t))
        v, seen = self.trunk.evaluate(x - signal * m, self.trunk.context(t, codes))
        return slope * m + v, seen

    def forward(self, x: Tensor, t: Tensor, codes: Tensor) -> Tensor:
        """Predict the velocity; arguments as in :meth:`evaluate`."""
        return self.evaluate(x, t, codes)[0]
