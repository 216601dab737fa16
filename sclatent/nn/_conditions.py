"""What categorical conditions, each of which may be null, contribute to a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._context import NULL, Values

FREQUENCIES = 4  # of the waves that a number is embedded by


class ConditionEmbedding(nn.Module):
    """What a cell gets for its conditions: the sum over its keys of an embedding of the value.

    That of a level is an entry of a table, that of a set the sum of those of its members; features and numbers go
    through a perceptron that is added. A null condition has an entry of its own.

    Parameters
    ----------
    n_levels
        Number of levels of each key.
    width
        Width of an embedding.
    values
        What is known of the values of each key; by default which they are alone.

    Examples
    --------
    >>> import torch
    >>> from sclatent.nn import ConditionEmbedding
    >>> embedding = ConditionEmbedding([8, 2], 32)  # 8 cell types and 2 conditions
    >>> codes = torch.tensor([[3, 1], [3, -1]])  # of the second cell the condition is null
    >>> embedding(codes).shape
    torch.Size([2, 32])
    """

    def __init__(self, n_levels: Sequence[int], width: int, values: Sequence[Values] | None = None) -> None:
        super().__init__()
        known = [Values.of_levels(n) for n in n_levels] if values is None else values
        self.n_levels, self.width = tuple(n_levels), width
        n_entries = [
            int(v.members[:n].any(dim=0).sum()) if v.is_set else 0 if v.is_number else n
            for n, v in zip(n_levels, known, strict=True)
        ]
        self.tables = nn.ParameterList(nn.Parameter(0.02 * torch.randn(n + 1, width)) for n in n_entries)
        n_inputs = [v.features.shape[1] + (2 * FREQUENCIES + 1) * v.number.shape[1] for v in known]
        self.perceptrons = nn.ModuleList(
            nn.Sequential(nn.Linear(n, width), nn.SiLU(), nn.Linear(width, width)) if n else nn.Identity()
            for n in n_inputs
        )

    def forward(self, codes: Tensor, values: Sequence[Values] | None = None) -> Tensor:
        """Sum the embeddings (cells, width) of codes (cells, n_keys); code -1 is the null condition.

        Without any table, codes are not looked at.
        """
        total = torch.zeros(len(codes), self.width, device=codes.device)
        for k, (table, code) in enumerate(zip(self.tables, codes.unbind(1) if len(self.tables) else (), strict=True)):
            # without values, code -1 is the last row, the null entry
            total = total + (table[code] if values is None else self._embed(k, table, code, values[k]))
        return total

    def _embed(self, k: int, table: Tensor, code: Tensor, values: Values) -> Tensor:
        place, is_null = code.clamp(min=0), (code == NULL)[:, None]
        if values.is_set:
            known = values.members[place, : len(table) - 1] @ table[:-1]  # of their number, and of members of training
        elif values.is_number:
            known = table.new_zeros(len(code), self.width)
        else:  # a value that training has not is no level
            known = torch.where((code < self.n_levels[k])[:, None], table[:-1][place.clamp(max=len(table) - 2)], 0.0)
        if not isinstance(self.perceptrons[k], nn.Identity):
            x = values.number[place]
            waves = [f(math.pi * (i + 1) * x) for i in range(FREQUENCIES) for f in (torch.sin, torch.cos)]
            known = known + self.perceptrons[k](torch.cat([values.features[place], x, *waves], dim=1))
        return torch.where(is_null, table[-1], known)


class CombinationTable(nn.Module):
    """An entry for each of some combinations of conditions, and 0 for all others; not trained.

    Parameters
    ----------
    n_levels
        Number of levels of each key.
    shape
        Shape of an entry.

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
