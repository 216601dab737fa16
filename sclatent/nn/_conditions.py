"""What categorical conditions, each of which may be left open, contribute to a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

OPEN = -1  # the code of a condition that is left open


class ConditionEmbedding(nn.Module):
    """One table a condition key, with a null entry; what a cell gets is the sum over its keys.

    Parameters
    ----------
    n_levels
        Number of levels of each key.
    shape
        Shape of an entry.
    """

    def __init__(self, n_levels: Sequence[int], *shape: int) -> None:
        super().__init__()
        self.tables = nn.ParameterList(nn.Parameter(0.02 * torch.randn(n + 1, *shape)) for n in n_levels)
        self.shape = shape

    def forward(self, codes: Tensor) -> Tensor:
        """Sum the entries of codes (cells, n_keys); a key with code -1 is open and takes the null entry."""
        total = torch.zeros(len(codes), *self.shape, device=codes.device)
        for table, code in zip(self.tables, codes.unbind(1), strict=True):
            total = total + table[code]  # code -1 is the last row, the null entry
        return total


class ConditionMean(nn.Module):
    r"""Additive mean of the tokens under their conditions and library size, fitted by least squares and then fixed.

    .. math:: m(c, s) = \sum_k \delta_k(c_k) + s \, \beta, \qquad \delta_k(\text{open}) = 0,

    on standardised tokens, with s the standardised log library size. It carries an effect that was seen in some
    combinations to combinations that were not: the network that is added to it has to learn only in what combinations
    differ from a sum.

    Parameters
    ----------
    n_levels
        Number of levels of each key.
    shape
        Shape of the tokens of one cell.
    """

    def __init__(self, n_levels: Sequence[int], *shape: int) -> None:
        super().__init__()
        self.n_levels = tuple(n_levels)
        self.shape = shape
        for k, n in enumerate(n_levels):
            self.register_buffer(f"effect{k}", torch.zeros(n + 1, *shape))
        self.register_buffer("slope", torch.zeros(shape))

    def fit(self, effects: Sequence[Tensor], slope: Tensor) -> None:
        """Take over the effects of all levels of each key, (n_levels, *shape), and the slope, (*shape)."""
        self.slope.copy_(slope.view(self.shape))
        for k, effect in enumerate(effects):
            self.get_buffer(f"effect{k}")[:-1] = effect.view(-1, *self.shape)

    def forward(self, codes: Tensor, size: Tensor) -> Tensor:
        """Mean tokens (cells, *shape) under codes (cells, n_keys), -1 where a key is open, and sizes s (cells,)."""
        total = size.view(-1, *[1] * len(self.shape)) * self.slope
        for k, code in enumerate(codes.unbind(1)):
            total = total + self.get_buffer(f"effect{k}")[code]
        return total
