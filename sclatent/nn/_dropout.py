"""Dropout whose random numbers are those of whoever trains it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) that can draw from a generator and not from the global random numbers.

    Parameters
    ----------
    p
        Probability of a number to become 0 in training; the others are scaled up.

    Examples
    --------
    >>> import torch
    >>> from sclatent.nn import Dropout
    >>> layer, x = Dropout(0.5), torch.ones(1000)
    >>> with Dropout.drawing_from(torch.Generator().manual_seed(0), layer):
    ...     one = layer(x)
    >>> with Dropout.drawing_from(torch.Generator().manual_seed(0), layer):
    ...     same = layer(x)
    >>> torch.equal(one, same), sorted(set(one.tolist()))
    (True, [0.0, 2.0])
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    @staticmethod
    @contextmanager
    def drawing_from(generator: torch.Generator, module: nn.Module) -> Iterator[None]:
        """Let all dropout layers of a module draw from a generator."""
        layers = [layer for layer in module.modules() if isinstance(layer, Dropout)]
        for layer in layers:
            layer.generator = generator
        try:
            yield
        finally:  # generators cannot be copied, but modules are
            for layer in layers:
                layer.generator = None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` to the same shape."""
        if not self.training:
            return x
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator)
        return x * kept / (1 - self.p)
