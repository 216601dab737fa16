"""Images and embeddings of cells: checks, and minibatches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor
from torch.utils.data import Dataset

from ._checks import check_block_is_finite, get_matrix, positions_of
from ._levels import short_repr
from ._numbers import is_whole
from ._reading import by_rows, dense, read_rows, row_blocks
from ._warnings import warn_user


class FeatureBatch(NamedTuple):
    """A minibatch of cells with features.

    Parameters
    ----------
    x
        Features, ``(cells, *shape)``.
    conditions
        Condition codes, (cells, n_keys), -1 for none.
    batch
        Batch codes, (cells,).

    Examples
    --------
    >>> import torch
    >>> from sclatent.data import FeatureBatch
    >>> batch = FeatureBatch(torch.randn(4, 64), torch.full((4, 1), -1), batch=torch.zeros(4, dtype=torch.int64))
    >>> x, conditions, _ = batch
    >>> x.shape, conditions.shape
    (torch.Size([4, 64]), torch.Size([4, 1]))
    """

    x: Tensor
    conditions: Tensor
    batch: Tensor

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.x)


class FeatureRows(Dataset):
    """Features of cells by position, as they are stored.

    Parameters
    ----------
    values
        (cells, ...), in memory or not, as of :func:`by_rows`.
    shape
        Shape of the features of a cell: (dim,), or (height, width, channels).
    conditions, batch
        Condition codes (cells, n_keys) and batch codes (cells,).
    cells
        The rows that the data set consists of; all of them by default.
    columns
        Order in which the features of a cell are read, as of :func:`align_features`; as they are stored by default.
    where
        What to call the cells in a message: all that is read is checked then, to be finite. By default nothing is.

    Examples
    --------
    >>> import numpy as np
    >>> import sclatent
    >>> from sclatent.data import FeatureRows
    >>> adata = sclatent.datasets.mitocheck()
    >>> no_condition, batch = np.full((adata.n_obs, 1), -1), np.zeros(adata.n_obs, dtype=int)
    >>> rows = FeatureRows(adata.obsm["image"], (32, 32, 1), no_condition, batch)
    >>> rows[[5, 7, 9]].x.shape  # a minibatch
    torch.Size([3, 32, 32, 1])
    """

    def __init__(
        self,
        values: Any,
        shape: tuple[int, ...],
        conditions: np.ndarray,
        batch: np.ndarray,
        cells: Sequence[int] | slice | None = None,
        columns: np.ndarray | None = None,
        where: str | None = None,
    ) -> None:
        self.columns, self.where = columns, where
        self.values, self.shape, self.conditions, self.batch = by_rows(values), shape, conditions, batch
        self.cells = positions_of(cells, values.shape[0])

    def subset(self, positions: np.ndarray) -> FeatureRows:
        """Return some of the cells, by position among ``cells``; nothing is copied."""
        return FeatureRows(
            self.values, self.shape, self.conditions, self.batch, self.cells[positions], self.columns, self.where
        )

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, positions: Sequence[int] | np.ndarray) -> FeatureBatch:
        """Read a minibatch by the positions of its cells."""
        cells = self.cells[np.asarray(positions)]
        x = read_features(self.values, cells, self.shape, self.columns)
        if self.where is not None:
            check_block_is_finite(x, self.where, cells)
        return FeatureBatch(
            torch.from_numpy(x),
            torch.from_numpy(self.conditions[cells]),
            torch.from_numpy(self.batch[cells]),
        )


def read_features(
    values: Any, cells: np.ndarray, shape: tuple[int, ...], columns: np.ndarray | None = None
) -> np.ndarray:
    """Read the features of cells, ``(cells, *shape)``, float32.

    Parameters
    ----------
    values
        (all cells, ...), in memory or not, as of :func:`by_rows`.
    cells
        Rows to read, in any order.
    shape
        Shape of the features of a cell.
    columns
        Order in which features are read, (features,); as they are stored by default.

    Returns
    -------
    np.ndarray
        Features, ``(cells, *shape)``, float32.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import read_features
    >>> flat = np.arange(12, dtype=np.uint8).reshape(3, 4)  # three images of 2 x 2 pixels
    >>> read_features(flat, np.array([2, 0]), (2, 2))[0]
    array([[ 8.,  9.],
           [10., 11.]], dtype=float32)
    """
    block = dense(read_rows(values, cells)).astype(np.float32)
    return (block if columns is None else block[:, columns]).reshape(len(cells), *shape)


def get_features(adata: AnnData, obsm_key: str | None, layer: str | None) -> tuple[Any, str]:
    """Return X, a layer or an entry of obsm, as it is stored, and what to call it in a message.

    Parameters
    ----------
    adata
        Cells.
    obsm_key, layer
        Entry of obsm, or layer, with the features; X by default.

    Returns
    -------
    tuple[Any, str]
        The features, (cells, ...), and their place in words.

    Raises
    ------
    KeyError
        If there is no such entry.
    ValueError
        If both were given, or X is empty.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.data import get_features
    >>> adata = sclatent.datasets.mitocheck()
    >>> values, where = get_features(adata, "image", None)
    >>> values.shape, where
    ((3277, 1024), "adata.obsm['image']")
    """
    if obsm_key is None:
        if layer is None and adata.X is None:
            raise ValueError("adata.X is empty: give obsm_key= or layer=, where the features are.")
        return get_matrix(adata, layer), "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    if layer is not None:
        raise ValueError(f"obsm_key={obsm_key!r} and layer={layer!r}: give one of them, the one with the features.")
    if obsm_key not in adata.obsm:
        raise KeyError(f"obsm_key={obsm_key!r} is not in adata.obsm, which has {list(adata.obsm)}.")
    values = adata.obsm[obsm_key]
    return (values.to_numpy() if hasattr(values, "to_numpy") else values), f"adata.obsm[{obsm_key!r}]"


def align_features(adata: AnnData, obsm_key: str | None, known: Sequence[Any], where: str) -> np.ndarray | None:
    """Find the features of a model among those of other cells, by name.

    Parameters
    ----------
    adata
        Cells.
    obsm_key
        Entry of obsm with the features; X or a layer by default.
    known
        Names of the features of the model.
    where
        What to call the features in a message.

    Returns
    -------
    np.ndarray | None
        For each feature of the model its position among those of the cells. None where they go by position: names are
        the same, or one of the two has none, as arrays in obsm, or has their numbers in place of names.

    Raises
    ------
    ValueError
        If names are others.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.data import align_features
    >>> adata = sclatent.datasets.mitocheck()[:5, :3].copy()
    >>> align_features(adata[:, ::-1], None, adata.var_names, "adata.X").tolist()
    [2, 1, 0]
    """
    names = adata.var_names if obsm_key is None else getattr(adata.obsm[obsm_key], "columns", None)
    if names is None or len(names) != len(known):
        return None
    names, wanted = (pd.Index([str(name) for name in index]) for index in (names, known))
    numbers = pd.Index([str(i) for i in range(len(wanted))])
    if names.equals(wanted):
        return None
    if wanted.is_unique and names.is_unique and names.isin(wanted).all():
        return names.get_indexer(wanted)
    if names.equals(numbers) or wanted.equals(numbers):
        return None
    missing = wanted.difference(names, sort=False)
    lacks = f"lacks {len(missing)} of them, such as {list(missing[:3])}" if len(missing) else "has some names twice"
    raise ValueError(
        f"{where} has features of other names than the {len(wanted)} of this model: it {lacks}, and starts with "
        f"{list(names[:3])}. Features are matched by name: if they are the same, rename them: "
        f"{'adata.var_names' if obsm_key is None else f'{where}.columns'} = {short_repr(list(wanted[:3]))[:-1]}, ...]."
    )


def feature_shape(
    values: Any, where: str, image_shape: Sequence[int] | None, uns: Mapping[str, Any] | None = None
) -> tuple[int, ...]:
    """Find the shape of the features of a cell.

    Parameters
    ----------
    values
        Features, (cells, ...).
    where
        What to call them in a message.
    image_shape
        Height and width, and channels if there are any; for images that are stored flat.
    uns
        Where ``"image_shape"`` is looked for if flat pixels come without one.

    Returns
    -------
    tuple[int, ...]
        (dim,) for embeddings, (height, width, channels) for images.

    Raises
    ------
    ValueError
        If images are not square, not all of one size, or flat without a shape.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import feature_shape
    >>> feature_shape(np.zeros((5, 1280)), "adata.X", None)  # an embedding
    (1280,)
    >>> feature_shape(np.zeros((5, 1024)), "adata.X", (32, 32))  # an image that is stored flat
    (32, 32, 1)
    """
    if not hasattr(values, "dtype") or values.dtype == object:  # awkward arrays have none
        raise ValueError(
            f"{where} holds objects, not numbers: images must all have one size; resize them and stack them as (cells, "
            "height, width) or (cells, height, width, channels). Numbers that are stored as objects can be converted, "
            'by .astype("float32").'
        )
    if len(values.shape) not in (2, 3, 4):
        raise ValueError(
            f"{where} has shape {values.shape}: embeddings (cells, dim) or images (cells, height, width[, channels]) "
            "were expected."
        )
    if 0 in values.shape:
        raise ValueError(f"{where} has shape {values.shape}: there must be some cells and some features.")
    shape = tuple(int(n) for n in values.shape[1:])
    if len(shape) == 1 and image_shape is None and values.dtype == np.uint8:
        image_shape = (uns or {}).get("image_shape")
        if image_shape is None:
            raise ValueError(
                f"{where} looks like flat images ({shape[0]} values of type uint8 a cell): give image_shape=(height, "
                "width) or (height, width, channels)."
            )
    if image_shape is not None:
        sides: Any = [image_shape] if isinstance(image_shape, str) or np.ndim(image_shape) == 0 else image_shape
        given = tuple(int(n) if is_whole(n) else n for n in sides)
        if len(given) not in (2, 3) or not all(map(is_whole, given)) or np.prod(given) != np.prod(shape):
            raise ValueError(
                f"image_shape={short_repr(given)} does not fit {where}, which has {int(np.prod(shape))} values per "
                "cell: (height, width) or (height, width, channels) was expected."
            )
        shape = given
    if len(shape) == 1:
        return shape
    if shape[0] != shape[1]:
        if len(shape) == 3 and shape[1] == shape[2]:
            raise ValueError(
                f"{where} has images of shape {shape}, which looks like channels first: (height, width, channels) was "
                "expected; np.moveaxis(images, 1, -1) of all images puts the channels last."
            )
        raise ValueError(
            f"{where} has images of {shape[0]} x {shape[1]} pixels: square ones were expected; crop or pad them."
        )
    return shape if len(shape) == 3 else (*shape, 1)


def check_finite(values: Any, where: str) -> None:
    """Raise a ``ValueError`` if a value is not a finite number.

    Parameters
    ----------
    values
        (cells, ...), in memory or not, as of :func:`by_rows`.
    where
        What to call them in a message.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import check_finite
    >>> check_finite(np.array([[0.0, np.nan]]), "adata.X")
    Traceback (most recent call last):
        ...
    ValueError: adata.X has values that are NaN (the first in row 0): remove or replace them.
    """
    for rows, block in row_blocks(by_rows(values, where)):
        check_block_is_finite(block, where, range(rows.start, rows.stop))


def check_varies(values: Any, where: str, shape: tuple[int, ...], batches: np.ndarray) -> None:
    """Raise a ``ValueError`` if all cells have the same features, and warn if some features are the same in all cells.

    Parameters
    ----------
    values
        Features of two cells or more, (cells, ...), in memory or not, as of :func:`by_rows`.
    where
        What to call them in a message.
    shape
        Shape of the features of a cell; of an image it is channels that are looked at, and not pixels.
    batches
        Batch of every cell, (cells,): models take the mean of every batch away.

    Warns
    -----
    UserWarning
        If some features, or channels, are the same in all cells of every batch.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.data import check_varies
    >>> check_varies(np.ones((5, 3)), "adata.X", (3,), np.zeros(5, dtype=int))
    Traceback (most recent call last):
        ...
    ValueError: adata.X has the same values in all 5 cells: ...
    """
    _, first, codes = np.unique(batches, return_index=True, return_inverse=True)
    values = by_rows(values, where)
    like = read_features(values, first, shape)
    varies = np.zeros(shape, dtype=bool)
    for rows, block in row_blocks(values):
        block = dense(block).astype(np.float32).reshape(-1, *shape)
        varies |= (block != like[codes[rows]]).any(axis=0)
    cells = f"all {len(codes)} cells" if len(first) == 1 else "all cells of every batch"
    if not varies.any():
        raise ValueError(
            f"{where} has the same values in {cells}: there is nothing to learn from. Was it filled with a placeholder?"
        )
    same = np.flatnonzero(~varies.reshape(-1, shape[-1]).any(axis=0))
    if len(same):
        what = "features" if len(shape) == 1 else "channels"
        warn_user(
            f"{where} has the same values in {cells} for {len(same)} of its {shape[-1]} {what}, such as "
            f"{same[:5].tolist()}: nothing can be learned of them. Leave them out if they should vary."
        )
