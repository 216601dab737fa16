"""What categorical conditions, each of which may be null, contribute to a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class ConditionEmbedding(nn.Module):
    """One table a condition key, with a null entry; what a cell gets is the sum over its keys.

    Parameters
    ----------
    n_levels
        Number of levels of each key.
    shape
        Shape of an entry.

    Examples
    --------
    >>> import torch
    >>> from sclatent.nn import ConditionEmbedding
    >>> embedding = ConditionEmbedding([8, 2], 32)  # 8 cell types and 2 conditions
    >>> codes = torch.tensor([[3, 1], [3, -1]])  # of the second cell the condition is null
    >>> embedding(codes).shape
    torch.Size([2, 32])
    """

    def __init__(self, n_levels: Sequence[int], *shape: int) -> None:
        super().__init__()
        self.tables = nn.ParameterList(nn.Parameter(0.02 * torch.randn(n + 1, *shape)) for n in n_levels)
        self.shape = shape

    def forward(self, codes: Tensor) -> Tensor:
        """Sum the entries of codes (cells, n_keys); code -1, the null condition, has an entry of its own.

        Without any table, codes are not looked at.
        """
        total = torch.zeros(len(codes), *self.shape, device=codes.device)
        for table, code in zip(self.tables, codes.unbind(1) if len(self.tables) else (), strict=True):
            total = total + table[code]  # code -1 is the last row, the null entry
        return total


class CombinationTable(nn.Module):
    """An entry for each of some combinations of conditions, and 0 for all others; not trained.

    Parameters
    ----------
    n_levels, shape
        As in :class:`ConditionEmbedding`.

    Examples
    --------
    >>> import torch
    >>> from sclatent.nn import CombinationTable
    >>> table = CombinationTable([8, 2], 3)
    >>> table.fit_combinations(torch.tensor([[5, 1]]), torch.ones(1, 3))
    >>> table.of(torch.tensor([[5, 1], [5, -1]])).tolist()  # in the second the other key is null
    [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """

    combinations: Tensor
    interactions: Tensor

    def __init__(self, n_levels: Sequence[int], *shape: int) -> None:
        super().__init__()
        self.n_levels = tuple(n_levels)
        self.shape = shape
        # sorted numbers of the combinations that have an entry; the last one is that of none
        self.register_buffer("combinations", torch.full((1,), torch.iinfo(torch.int64).max))
        self.register_buffer("interactions", torch.zeros(1, *shape))

    def fit_combinations(self, combinations: Tensor, entries: Tensor) -> None:
        """Take over the entries of some combinations, in place of those that there are.

        Parameters
        ----------
        combinations
            Condition codes, (n_combinations, n_keys), -1 where a condition is null.
        entries
            ``(n_combinations, *shape)``.
        """
        number, order = self._number(combinations).sort()
        self.combinations = torch.cat([number.to(self.combinations), self.combinations[-1:]])
        entries = entries.to(self.interactions).view(-1, *self.shape)[order]
        self.interactions = torch.cat([entries, self.interactions[-1:]])

    def forget(self, combinations: Tensor) -> None:
        """Leave combinations (n_combinations, n_keys) without an entry."""
        kept = ~torch.isin(self.combinations, self._number(combinations).to(self.combinations))
        self.combinations, self.interactions = self.combinations[kept], self.interactions[kept]

    def of(self, codes: Tensor) -> Tensor:
        """Entries ``(cells, *shape)`` of codes (cells, n_keys), -1 where a condition is null."""
        number = self._number(codes)
        place = torch.searchsorted(self.combinations, number)
        known = (codes < torch.tensor(self.n_levels, device=codes.device)).all(dim=1)  # values of training
        return self.interactions[place.where((self.combinations[place] == number) & known, -1)]

    def _number(self, codes: Tensor) -> Tensor:
        """Number of each combination, (cells,): its codes as digits."""
        number = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
        for n, code in zip(self.n_levels, codes.unbind(1), strict=True):
            number = number * (n + 1) + code + 1
        return number

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}combinations")
        if saved is not None:  # how many there are is known from the data alone
            self.combinations = self.combinations.new_empty(len(saved))
            self.interactions = self.interactions.new_empty(len(saved), *self.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
        numbers = self.combinations
        if not numbers.is_meta and not ((numbers.diff() > 0).all() and numbers[-1] == torch.iinfo(torch.int64).max):
            args[-1].append(f"{prefix}combinations must rise up to the number of none.")  # errors
