"""What a denoiser is conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

NULL = -1  # the code of the null condition


class Values(NamedTuple):
    """What is known of the values of a condition key, by their codes; parts that it has not have a width of 0.

    The first rows are those of the levels of training. Values that only sampling asks for come after them.

    Parameters
    ----------
    members
        How many members a set has, and which, those of training first, (n_values, 1 + n_members).
    features
        Features of a level, or the sum of those of the members of a set, (n_values, n_features); where they are not
        known, the mean of those that are.
    number
        A number, scaled so that those of training go from 0 to 1, (n_values, 1).
    unknown
        How far features may be from that mean, with a column for each level or member of which they are not known,
        those of training first, (n_values, n_unknown).

    Examples
    --------
    >>> from sclatent.nn import Values
    >>> values = Values.of_levels(3)  # names alone: nothing is known of a level but which it is
    >>> [part.shape[1] for part in values]
    [0, 0, 0, 0]
    """

    members: Tensor
    features: Tensor
    number: Tensor
    unknown: Tensor

    @staticmethod
    def of_levels(n: int) -> Values:
        """Values of which nothing is known but which they are."""
        return Values(*(torch.zeros(n, 0) for _ in range(4)))

    @property
    def is_number(self) -> bool:
        """Whether these are numbers."""
        return self.number.shape[1] > 0

    @property
    def is_set(self) -> bool:
        """Whether these are sets."""
        return self.members.shape[1] > 0

    def to(self, device: torch.device) -> Values:
        """Copy to a device."""
        return Values(*(part.to(device) for part in self))


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
    values
        What is known of the values that codes stand for, one for each key; None where that is which they are alone.

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
    values: tuple[Values, ...] | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def without(self, key: int | None = None, is_pushed: bool = False) -> Context:
        """Make a condition null, or all; ``is_pushed`` remembers what they were."""
        codes = self.codes.clone()
        codes[:, slice(None) if key is None else key] = NULL
        return replace(self, codes=codes, pushed_to=self.codes if is_pushed else None)

    @staticmethod
    def stack(contexts: Sequence[Context]) -> Context:
        """Join contexts of the same values, one after the other."""
        codes = torch.cat([c.codes for c in contexts])
        sizes = [c.size for c in contexts if c.size is not None]
        pushed_to = None
        if any(c.pushed_to is not None for c in contexts):
            pushed_to = torch.cat([c.codes if c.pushed_to is None else c.pushed_to for c in contexts])
        return Context(codes, torch.cat(sizes) if sizes else None, pushed_to, contexts[0].values)
