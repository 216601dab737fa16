"""From AnnData to minibatches of sparse rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sclatent.nn import CellSets

from ._checks import check_block, positions_of
from ._features import FeatureRows
from ._numbers import check_whole
from ._random import random_stream
from ._reading import by_rows, read_rows, totals


@dataclass(frozen=True)
class CellBatch:
    """A minibatch: cells as sets, with library sizes, condition codes and batch codes.

    Attributes
    ----------
    sets
        The cells, each a set of (gene, count).
    library
        Library sizes, (cells,).
    conditions
        Condition codes, (cells, n_keys).
    batch
        Batch codes, (cells,).
    is_whole
        Whether library sizes are those of whole cells, and not totals over the genes that were measured.

    Examples
    --------
    >>> import torch
    >>> from sclatent.data import CellBatch
    >>> from sclatent.nn import CellSets
    >>> one = torch.zeros(1, dtype=torch.int64)
    >>> sets = CellSets(panel=torch.arange(3), cell=one, column=one, count=torch.ones(1), n_cells=1)
    >>> batch = CellBatch(sets, library=torch.ones(1), conditions=one[:, None], batch=one)
    >>> len(batch)
    1
    """

    sets: CellSets
    library: Tensor  # (cells,)
    conditions: Tensor  # (cells, n_keys)
    batch: Tensor  # (cells,)
    is_whole: bool = False

    def __len__(self) -> int:
        return self.sets.n_cells

    def to(self, device: torch.device | str, **kwargs: Any) -> CellBatch:
        """Copy to a device."""
        library, conditions, batch = (t.to(device, **kwargs) for t in (self.library, self.conditions, self.batch))
        return CellBatch(self.sets.to(device, **kwargs), library, conditions, batch, self.is_whole)


class CellRows(Dataset):
    """Cells by position, read as sparse rows from memory or from disk.

    Parameters
    ----------
    matrix
        Cells x genes, in memory or not, as of :func:`by_rows`.
    panel
        For each column of the matrix the gene of the model, -1 for a gene that the model does not know.
    library
        Library sizes, (cells,); by default the total of each cell over the genes of the model.
    conditions, batch
        Condition codes (cells, n_keys) and batch codes (cells,).
    cells
        The rows that the data set consists of; all of them by default.
    where, is_count_data
        What to call the cells in a message, and whether values must be whole: all that is read is checked then, as by
        :func:`check_counts`. By default nothing is.

    Examples
    --------
    >>> import numpy as np
    >>> import sclatent
    >>> from sclatent.data import CellRows
    >>> adata = sclatent.datasets.simulate(100, 50, library_size=200)
    >>> panel = np.arange(50)  # the model has these genes, in this order
    >>> rows = CellRows(adata.X, panel, None, np.zeros((100, 1), dtype=int), np.zeros(100, dtype=int))
    >>> batch = rows[[3, 1, 4]]
    >>> batch.sets.dense().shape, batch.library.tolist() == adata.X[[3, 1, 4]].sum(axis=1).A1.tolist()
    (torch.Size([3, 50]), True)
    """

    def __init__(
        self,
        matrix: Any,
        panel: np.ndarray,
        library: np.ndarray | None,
        conditions: np.ndarray,
        batch: np.ndarray,
        cells: Sequence[int] | slice | None = None,
        where: str | None = None,
        is_count_data: bool = True,
    ) -> None:
        self.where, self.is_count_data = where, is_count_data
        self.matrix = by_rows(matrix)
        self.known = np.flatnonzero(panel >= 0)
        self.panel = torch.from_numpy(panel[self.known].astype(np.int64))
        self.library, self.conditions, self.batch = library, conditions, batch
        self.cells = positions_of(cells, matrix.shape[0])

    def subset(self, positions: np.ndarray) -> CellRows:
        """Return some of the cells, by position among ``cells``; nothing is copied."""
        other = object.__new__(CellRows)
        other.__dict__.update(self.__dict__, cells=self.cells[positions])
        return other

    def __len__(self) -> int:
        return len(self.cells)

    def rows(self, positions: Sequence[int] | np.ndarray) -> sparse.csr_matrix:
        """Read cells as sparse rows over the genes that the model knows, with sorted columns."""
        cells = self.cells[np.asarray(positions)]
        block = sparse.csr_matrix(read_rows(self.matrix, cells))
        if self.where is not None:
            check_block(block, self.where, cells, [block], is_count_data=self.is_count_data)
        if len(self.known) < block.shape[1]:
            block = block[:, self.known]
        block.sum_duplicates()
        block.eliminate_zeros()
        return block

    def totals(self) -> np.ndarray:
        """Total of each cell over the genes that the model knows, (cells,)."""
        blocks = (np.arange(i, min(i + 4096, len(self))) for i in range(0, len(self), 4096))
        return np.concatenate([totals(self.rows(block), axis=1) for block in blocks])

    def library_sizes(self) -> np.ndarray:
        """Library size of each cell, (cells,): as given, or the total."""
        return self.totals() if self.library is None else self.library[self.cells]

    def __getitem__(self, positions: Sequence[int] | np.ndarray) -> CellBatch:
        """Read a minibatch by the positions of its cells."""
        block = self.rows(positions)
        cells = self.cells[np.asarray(positions)]
        library = totals(block, axis=1) if self.library is None else self.library[cells]
        sets = CellSets(
            panel=self.panel,
            cell=torch.from_numpy(np.repeat(np.arange(len(cells)), np.diff(block.indptr))),
            column=torch.from_numpy(block.indices.astype(np.int64)),
            count=torch.from_numpy(block.data.astype(np.float32)),
            n_cells=len(cells),
        )
        return CellBatch(
            sets,
            library=torch.from_numpy(library.astype(np.float32)),
            conditions=torch.from_numpy(self.conditions[cells]),
            batch=torch.from_numpy(self.batch[cells]),
            is_whole=self.library is not None,
        )


class EpochSampler(Sampler[list[int]]):
    """Minibatches of positions in an order that depends on seed and epoch alone, so that training can be resumed.

    Lightning calls :meth:`set_epoch` before each epoch.

    Parameters
    ----------
    n
        Number of cells.
    batch_size
        Cells in a minibatch; the last one may have fewer.
    seed
        Seed of the order.
    shuffle
        Whether cells come in random order, and not in their own.

    Examples
    --------
    >>> from sclatent.data import EpochSampler
    >>> sampler = EpochSampler(10, batch_size=4, seed=0)
    >>> [len(positions) for positions in sampler]
    [4, 4, 2]
    >>> first = list(sampler)
    >>> sampler.set_epoch(1)
    >>> list(sampler) == first
    False
    """

    def __init__(self, n: int, batch_size: int, seed: int, shuffle: bool = True) -> None:
        self.n, self.batch_size, self.seed, self.shuffle = n, batch_size, seed, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.n)
        if self.shuffle:
            order = random_stream(self.seed, "order of cells", self.epoch).permutation(self.n)
        for start in range(0, self.n, self.batch_size):
            yield order[start : start + self.batch_size].tolist()


def _as_is(batch: Any) -> Any:
    return batch


def make_loader(
    data: CellRows | FeatureRows | TokenRows, batch_size: int, seed: int = 0, shuffle: bool = False
) -> DataLoader:
    """Make a loader of a data set that reads a whole minibatch at once, by a list of positions.

    Parameters
    ----------
    data
        :class:`CellRows`, :class:`FeatureRows` or :class:`TokenRows`.
    batch_size
        Cells in a minibatch.
    seed
        Seed of the order.
    shuffle
        Whether cells come in another order in every epoch.

    Returns
    -------
    DataLoader
        Minibatches, as ``data[positions]`` gives them.

    Examples
    --------
    >>> import torch
    >>> from sclatent.data import TokenRows, make_loader
    >>> rows = TokenRows(torch.randn(100, 8, 16), torch.zeros(100, 2, dtype=torch.int64))
    >>> [len(tokens) for tokens, codes in make_loader(rows, batch_size=64, shuffle=True)]
    [64, 36]
    """
    sampler = EpochSampler(len(data), check_whole("batch_size", batch_size), seed, shuffle)
    own = torch.Generator().manual_seed(0)  # DataLoader would draw from the global random numbers
    return DataLoader(data, sampler=sampler, batch_size=None, collate_fn=_as_is, generator=own)


class TokenRows(Dataset):
    """Tokens of cells and what belongs to them (condition codes first), by position: what the denoiser trains on.

    Parameters
    ----------
    tokens
        Standardised tokens, (cells, n_tokens, token_dim).
    others
        What belongs to them, (cells, ...) each: condition codes, and whatever else the denoiser is conditioned on.
    cells
        The rows that the data set consists of; all of them by default.

    Examples
    --------
    >>> import torch
    >>> from sclatent.data import TokenRows
    >>> rows = TokenRows(torch.randn(100, 8, 16), torch.zeros(100, 2, dtype=torch.int64))
    >>> tokens, codes = rows[[3, 1, 4]]
    >>> tokens.shape, codes.shape
    (torch.Size([3, 8, 16]), torch.Size([3, 2]))
    """

    def __init__(self, tokens: Tensor, *others: Tensor, cells: np.ndarray | None = None) -> None:
        self.tokens, self.others = tokens, others
        self.cells = np.arange(len(tokens)) if cells is None else cells

    def subset(self, positions: np.ndarray) -> TokenRows:
        """Return some of the cells, by position among ``cells``; nothing is copied."""
        return TokenRows(self.tokens, *self.others, cells=self.cells[positions])

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, positions: Sequence[int] | np.ndarray) -> tuple[Tensor, ...]:
        """Read a minibatch by the positions of its cells."""
        cells = torch.from_numpy(self.cells[np.asarray(positions)])
        return self.tokens[cells], *(other[cells] for other in self.others)
