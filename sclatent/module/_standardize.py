"""Standardisation of tokens, fitted once and kept with the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """Shift and scale every coordinate of the tokens to mean 0 and variance 1 over the training cells.

    Parameters
    ----------
    shape
        Shape of the tokens of a cell.

    Examples
    --------
    >>> import torch
    >>> from sclatent.module import Standardize
    >>> standardize = Standardize(8, 16)
    >>> tokens = 3 * torch.randn(1000, 8, 16) + 2
    >>> standardize.fit(tokens)
    >>> z = standardize(tokens)
    >>> round(abs(z.mean().item()), 3), round(z.std().item(), 3)
    (0.0, 1.0)
    >>> torch.allclose(standardize.inverse(z), tokens, atol=1e-4)
    True
    """

    eps = 1e-3  # a coordinate that is constant over the cells must not be blown up

    mean: Tensor
    sd: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("sd", torch.ones(shape))

    def fit(self, tokens: Tensor, common: bool = False) -> None:
        """Take mean and standard deviation from tokens ``(cells, *shape)``.

        With ``common`` all coordinates share one scale: small ones stay small, and a mean variance of 1 is reached.
        """
        self.mean.copy_(tokens.mean(dim=0))
        sd = tokens.std(dim=0, correction=0)
        self.sd.copy_((sd.square().mean().sqrt().expand_as(sd) if common else sd).clamp(min=self.eps))

    def forward(self, tokens: Tensor) -> Tensor:
        """Standardise tokens ``(cells, *shape)``."""
        return (tokens - self.mean) / self.sd

    def inverse(self, standardised: Tensor) -> Tensor:
        """Undo :meth:`forward`."""
        return standardised * self.sd + self.mean
