"""What a denoiser is conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

OPEN = -1  # the code of the null condition


@dataclass(frozen=True)
class Context:
    """What a denoiser is conditioned on: the conditions of cells, and their library sizes where they have any.

    Attributes
    ----------
    codes
        Condition codes, (cells, n_keys), -1 where the condition is null.
    size
        Standardised log library sizes, (cells,).
    spread
        Condition codes by which the covariance of the cells goes, (cells, n_keys); by default ``codes``.

    Examples
    --------
    >>> import torch
    >>> from sclatent.nn import Context
    >>> context = Context(torch.tensor([[3, 1], [2, 0]]))  # two cells, two condition keys
    >>> context.without(1).codes.tolist()
    [[3, -1], [2, -1]]
    >>> len(Context.stack([context, context.without()]))
    4
    """

    codes: Tensor
    size: Tensor | None = None
    spread: Tensor | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def without(self, key: int | None = None, keep_spread: bool = False) -> Context:
        """Make a condition null, or all; ``keep_spread`` leaves the covariance that of the conditions as they are."""
        codes = self.codes.clone()
        codes[:, slice(None) if key is None else key] = OPEN
        spread = self.spread
        if keep_spread and spread is None:
            spread = self.codes
        return replace(self, codes=codes, spread=spread if keep_spread else None)

    @staticmethod
    def stack(contexts: Sequence[Context]) -> Context:
        """Join contexts, one after the other."""
        codes = torch.cat([c.codes for c in contexts])
        sizes = [c.size for c in contexts if c.size is not None]
        spread = None
        if any(c.spread is not None for c in contexts):
            spread = torch.cat([c.codes if c.spread is None else c.spread for c in contexts])
        return Context(codes, torch.cat(sizes) if sizes else None, spread)
