"""What categorical conditions, each of which may be left open, contribute to a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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

    Examples
    --------
    >>> import torch
    >>> from sclatent.nn import ConditionEmbedding
    >>> embedding = ConditionEmbedding([8, 2], 32)  # 8 cell types and 2 conditions
    >>> codes = torch.tensor([[3, 1], [3, -1]])  # the second cell leaves the condition open
    >>> embedding(codes).shape
    torch.Size([2, 32])
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
    >>> table.of(torch.tensor([[5, 1], [5, -1]])).tolist()  # in the second the other key is left open
    [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """

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
            Condition codes, (n_combinations, n_keys), -1 where a key is open.
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
        """Entries ``(cells, *shape)`` of codes (cells, n_keys), -1 where a key is open."""
        number = self._number(codes)
        place = torch.searchsorted(self.combinations, number)
        return self.interactions[place.where(self.combinations[place] == number, -1)]

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


class ConditionMean(CombinationTable):
    r"""Mean of the tokens under their conditions and library size, fitted by least squares and then fixed.

    .. math:: m(c, s) = \sum_k \delta_k(c_k) + \gamma(c) + s \, \beta, \qquad \delta_k(\text{open}) = 0,

    on standardised tokens, with s the standardised log library size and :math:`\gamma` what a combination of conditions
    has beyond the sum (:func:`sclatent.data.interaction_effects`). It carries an effect that was seen in some
    combinations to combinations that were not: the network that is added to it has to learn only how cells lie around
    their mean.

    Parameters
    ----------
    n_levels
        Number of levels of each key.
    shape
        Shape of the tokens of one cell.

    Examples
    --------
    >>> import torch
    >>> from sclatent.nn import ConditionMean
    >>> mean = ConditionMean([2], 1)  # one key of two levels, and a single number to explain
    >>> mean.fit_means(torch.tensor([[-1.0], [4.0]]))
    >>> mean(torch.tensor([[0], [1], [-1]]), torch.zeros(3)).tolist()  # an open key has no effect
    [[-1.0], [4.0], [0.0]]
    """

    def __init__(self, n_levels: Sequence[int], *shape: int) -> None:
        super().__init__(n_levels, *shape)
        for k, n in enumerate(n_levels):
            self.register_buffer(f"effect{k}", torch.zeros(n + 1, *shape))
        self.register_buffer("slope", torch.zeros(shape))

    def fit(self, effects: Sequence[Tensor], slope: Tensor, combinations: Tensor, interactions: Tensor) -> None:
        """Take over the effects of all levels, what combinations have beyond the sum, and the slope.

        Parameters
        ----------
        effects
            ``(n_levels, *shape)`` for each key.
        slope
            ``(*shape)``.
        combinations
            Condition codes, (n_combinations, n_keys), -1 where a key is open.
        interactions
            ``(n_combinations, *shape)``.
        """
        self.slope.copy_(slope.view(self.shape))
        for k, effect in enumerate(effects):
            self.get_buffer(f"effect{k}")[:-1] = effect.view(-1, *self.shape)
        self.fit_combinations(combinations, interactions)

    def fit_means(self, means: Tensor) -> None:
        """Take over the means ``(n_levels, *shape)`` of the levels of the only key."""
        none = torch.empty(0, 1, dtype=torch.int64)
        self.fit([means], torch.zeros(self.shape), none, means.new_empty(0, *self.shape))

    def forward(self, codes: Tensor, size: Tensor) -> Tensor:
        """Mean tokens ``(cells, *shape)`` under codes (cells, n_keys), -1 where a key is open, and sizes s (cells,)."""
        total = size.view(-1, *[1] * len(self.shape)) * self.slope + self.of(codes)
        for k, code in enumerate(codes.unbind(1)):
            total = total + self.get_buffer(f"effect{k}")[code]
        return total
