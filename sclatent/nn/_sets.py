"""Cells as sets of (gene, count)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class CellSets:
    """A minibatch of cells, each a set of (gene, count); genes that were not measured are not in it.

    The genes that were measured as zero are implied: they are in ``panel`` and have no element.

    Attributes
    ----------
    panel
        The genes that were measured, as indices into the genes of the model, (n_measured,).
    cell
        Cell of each element, (n_elements,); an element is a count above zero.
    column
        Position in ``panel`` of each element, (n_elements,).
    count
        Count of each element, (n_elements,).
    n_cells
        Number of cells.

    Examples
    --------
    Two cells, of which genes 0, 4 and 7 were measured; the second has no count of gene 4:

    >>> import torch
    >>> from sclatent.nn import CellSets
    >>> sets = CellSets(
    ...     panel=torch.tensor([0, 4, 7]),
    ...     cell=torch.tensor([0, 0, 0, 1, 1]),
    ...     column=torch.tensor([0, 1, 2, 0, 2]),
    ...     count=torch.tensor([1.0, 2.0, 3.0, 5.0, 6.0]),
    ...     n_cells=2,
    ... )
    >>> sets.dense().tolist()
    [[1.0, 2.0, 3.0], [5.0, 0.0, 6.0]]
    """

    panel: Tensor
    cell: Tensor
    column: Tensor
    count: Tensor
    n_cells: int

    def dense(self) -> Tensor:
        """Counts as a matrix (n_cells, n_measured)."""
        counts = self.count.new_zeros(self.n_cells, len(self.panel))
        return counts.index_put_((self.cell, self.column), self.count)

    def at(self, values: Tensor) -> Tensor:
        """Pick from values (n_cells, n_measured) those of the elements, (n_elements,)."""
        # index_select, whose gradient is far cheaper than that of indexing by two tensors
        return values.flatten().index_select(0, self.cell * len(self.panel) + self.column)

    def thinned(self, share: Tensor, generator: torch.Generator) -> CellSets:
        """Keep each molecule of a cell with the probability ``share`` (n_cells,), as shallower sequencing would."""
        count = torch.binomial(self.count, share.index_select(0, self.cell), generator=generator)
        return replace(self, count=count)

    def to(self, device: torch.device | str, **kwargs: Any) -> CellSets:
        """Copy to a device."""
        fields = (self.panel, self.cell, self.column, self.count)
        panel, cell, column, count = (t.to(device, **kwargs) for t in fields)
        return CellSets(panel, cell, column, count, self.n_cells)
