"""What a denoiser is conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

NULL = -1  # the code of the null condition


@dataclass(frozen=True)
class Context:
    """What a denoiser is conditioned on: the conditions of cells, and their library sizes where they have any.

    Attributes
    ----------
    codes
        Condition codes, (cells, n_keys), -1 where the condition is null.
    size
        Standardised log library sizes, (cells,).
    pushed_to
        Condition codes that guidance pushes the cells to, (cells, n_keys), where it makes these null.

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
    pushed_to: Tensor | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def without(self, key: int | None = None, is_pushed: bool = False) -> Context:
        """Make a condition null, or all; ``is_pushed`` remembers what they were."""
        codes = self.codes.clone()
        codes[:, slice(None) if key is None else key] = NULL
        return replace(self, codes=codes, pushed_to=self.codes if is_pushed else None)

    @staticmethod
    def stack(contexts: Sequence[Context]) -> Context:
        """Join contexts, one after the other."""
        codes = torch.cat([c.codes for c in contexts])
        sizes = [c.size for c in contexts if c.size is not None]
        pushed_to = None
        if any(c.pushed_to is not None for c in contexts):
            pushed_to = torch.cat([c.codes if c.pushed_to is None else c.pushed_to for c in contexts])
        return Context(codes, torch.cat(sizes) if sizes else None, pushed_to)
