"""Cells as features: embeddings or images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data.fields import AnnDataField
from torch import Tensor
from tqdm.auto import tqdm

from sclatent.data import (
    Conditions,
    FeatureBatch,
    FeatureRows,
    align_features,
    check_finite,
    check_whole,
    feature_shape,
    get_features,
)
from sclatent.data._schema import COUNT, DTYPE, NAME, NUMBER, list_of, optional
from sclatent.module import LatentDiffusion

from ._domain import CHANGED, Domain
from ._fields import KnownLayerField, KnownObsmField

DIFFERENCE = "difference"  # entry of obsm with what a counterfactual changes of images
MAX_VALUES = 4_000_000  # of the cells that are computed together, where no one asks for gradients


class FeatureDomain(Domain):
    """Cells as embeddings (cells, dim) or images (cells, height, width, channels).

    Attributes
    ----------
    shape
        Shape of the features of a cell: (dim,), or (height, width, channels).
    value_range
        Extremes of the training cells.
    """

    STATE: ClassVar = {"value_range": list_of(NUMBER, 2)}
    SETUP: ClassVar = {
        "obsm_key": optional(NAME),
        "layer": optional(NAME),
        "shape": list_of(COUNT, 1, 3),
        "stored_shape": list_of(COUNT),
        "dtype": DTYPE,
    }
    encodes_batch = True
    common_scale = True

    def __init__(self, registry: Mapping[str, Any]) -> None:
        super().__init__(registry)
        self.shape = tuple(self.setup["shape"])
        self.value_range = (0.0, 1.0)

    @property
    def is_image(self) -> bool:
        """Whether the features are pixels."""
        return len(self.shape) == 3

    @property
    def summary(self) -> str:
        """What the cells are, in words."""
        return f"images of {' x '.join(map(str, self.shape))}" if self.is_image else f"{self.shape[0]} features"

    # ---- the AnnData

    @staticmethod
    def fields(setup: Mapping[str, Any]) -> list[AnnDataField]:
        """Return the field of scvi-tools of the features."""
        how = {"is_count_data": False, "correct_data_format": False}
        if setup["obsm_key"] is None:
            return [KnownLayerField(REGISTRY_KEYS.X_KEY, setup["layer"], **how)]
        return [KnownObsmField(REGISTRY_KEYS.X_KEY, setup["obsm_key"], **how)]

    def rows(
        self,
        adata: AnnData,
        codes: np.ndarray,
        batch: np.ndarray,
        indices: Sequence[int] | None,
        is_training: bool,
    ) -> FeatureRows:
        """Read cells by position, with features aligned by name."""
        obsm_key = self.setup["obsm_key"]
        values, where = get_features(adata, obsm_key, self.setup["layer"])
        shape = self._query_shape(values, where)
        if shape != self.shape:
            raise ValueError(f"{where} has features of shape {shape}: this model was trained on {self.shape}.")
        columns = align_features(adata, obsm_key, self.names, where)
        if not is_training:
            check_finite(values, where)
        return FeatureRows(values, self.shape, codes, batch, indices, columns, CHANGED if is_training else None)

    def _query_shape(self, values: Any, where: str) -> tuple[int, ...]:
        """Shape of the features of other cells; those that are flat are read by the shape of training."""
        is_flat = len(values.shape) == 2
        if is_flat and values.dtype != object and values.shape[1] != np.prod(self.shape):
            return tuple(values.shape[1:])
        return feature_shape(values, where, self.shape if is_flat and self.is_image else None)

    def check_values(self, rows: FeatureRows) -> None:
        """Raise unless all values are finite."""
        check_finite(rows.values, CHANGED)

    def contents(self, rows: FeatureRows) -> Iterator[Any]:
        """Shape and values."""
        yield self.shape
        for cells in self._blocks(len(rows)):
            yield rows[cells].x.numpy()

    def values(self, rows: FeatureRows) -> np.ndarray:
        """Features, not standardised, ``(cells, *shape)``."""
        return rows[np.arange(len(rows))].x.numpy()

    def at_most(self, batch_size: int) -> int:
        """Cells to compute together: fewer than asked for where they are so large that memory would not do."""
        return min(check_whole("batch_size", batch_size), max(1, MAX_VALUES // math.prod(self.shape)))

    def _blocks(self, n: int) -> list[np.ndarray]:
        size = self.at_most(1024)
        return [np.arange(start, min(start + size, n)) for start in range(0, n, size)]

    # ---- networks

    def look_at(self, module: LatentDiffusion, rows: FeatureRows, seed: int, progress_bar: bool) -> None:
        """Fit how features are standardised, and the range of images."""
        scale = module.autoencoder.scale
        n_batches, *size = scale.mean.shape
        n, total, square = np.zeros(n_batches), np.zeros((n_batches, *size)), np.zeros((n_batches, *size))
        low, high = np.inf, -np.inf
        for cells in tqdm(self._blocks(len(rows)), desc="Features", unit=" blocks", delay=2, disable=not progress_bar):
            block = rows[cells]
            x, batch = block.x.numpy().astype(np.float64), block.batch.numpy()
            low, high = min(low, float(x.min())), max(high, float(x.max()))
            n += np.bincount(batch, minlength=n_batches)
            for moment, value in ((total, x), (square, x**2)):
                np.add.at(moment, batch, value.mean(axis=(1, 2), keepdims=True) if self.is_image else value)
        count = n.reshape(-1, *[1] * len(size))
        mean = np.where(count > 0, total / np.maximum(count, 1), total.sum(axis=0) / n.sum())  # a batch without cells
        variance = np.maximum((square - count * mean**2).sum(axis=0) / n.sum(), 0)
        sd = np.sqrt(variance if self.is_image else variance.mean(keepdims=True))
        scale.mean.copy_(torch.from_numpy(mean))
        scale.sd.copy_(torch.from_numpy(np.where(sd > 0, sd, 1.0)))
        self.value_range = (float(low), float(high))

    @torch.no_grad()
    def encode(self, module: LatentDiffusion, batch: FeatureBatch) -> Tensor:
        """Tokens of a minibatch, not standardised."""
        device = next(module.parameters()).device
        return module.autoencoder.encode(batch.x.to(device), batch.batch.to(device))

    @torch.no_grad()
    def decode(
        self, module: LatentDiffusion, tokens: Tensor, batches: np.ndarray, library: np.ndarray | None = None
    ) -> np.ndarray:
        """Features ``(cells, *shape)`` of standardised tokens."""
        batch = torch.from_numpy(batches).to(tokens.device)
        return module.autoencoder.decode(module.standardize.inverse(tokens), batch).cpu().numpy()

    # ---- cells that were made

    def draw(self, module: LatentDiffusion, expected: np.ndarray, seed: int, cells: np.ndarray) -> np.ndarray:
        """Features as they are expected: nothing is drawn around them."""
        return self.in_range(expected)

    def transport(
        self, module: LatentDiffusion, rows: FeatureRows, cells: np.ndarray, old: np.ndarray, new: np.ndarray, seed: int
    ) -> np.ndarray:
        """Add to measured cells what has changed of their expected features."""
        x = rows[cells].x.numpy()
        return self.in_range(x + (new - old), x)

    def in_range(self, values: np.ndarray, old: np.ndarray | None = None) -> np.ndarray:
        """Clip images and whole numbers to the extremes of training, or of the cell that they were made from."""
        least, most = _range_of(np.dtype(self.setup["dtype"]))
        is_whole = np.isfinite(most)
        if not self.is_image and not is_whole:
            return values
        low: Any
        high: Any
        low, high = self.value_range
        if old is not None:
            places = tuple(range(1, old.ndim))
            low = np.minimum(low, old.min(axis=places, keepdims=True))
            high = np.maximum(high, old.max(axis=places, keepdims=True))
        values = np.clip(values, np.maximum(low, least), np.minimum(high, most))
        return np.rint(values) if is_whole else values

    def collect(self, blocks: list[np.ndarray], obs: pd.DataFrame, library: np.ndarray | None = None) -> AnnData:
        """Put cells that were made where those of training were: X, a layer, or an entry of obsm."""
        setup, dtype = self.setup, np.dtype(self.setup["dtype"])
        values = np.concatenate(blocks).astype(dtype if np.isfinite(_range_of(dtype)[1]) else np.float32)
        flat = values.reshape(len(values), -1)
        if setup["obsm_key"] is None:
            var = pd.DataFrame(index=pd.Index(self.names).astype(str))
            result = AnnData(flat if setup["layer"] is None else None, obs=obs, var=var)
            if setup["layer"] is not None:
                result.layers[setup["layer"]] = flat
        else:
            result = AnnData(obs=obs, obsm={setup["obsm_key"]: values.reshape(len(values), *setup["stored_shape"])})
        if self.is_image:
            result.uns["image_shape"] = list(self.shape)
        return result

    def add_difference(self, result: AnnData, rows: FeatureRows) -> None:
        """Put the new images less the old ones into obsm, float32."""
        if self.is_image:
            made, _ = get_features(result, self.setup["obsm_key"], self.setup["layer"])
            difference = np.array(made, dtype=np.float32).reshape(len(rows), *self.shape)  # a copy
            for cells in self._blocks(len(rows)):
                difference[cells] -= rows[cells].x.numpy()
            result.obsm[DIFFERENCE] = difference

    # ---- saved models

    def describe(self) -> dict[str, Any]:
        """Return the extremes of the training cells."""
        return {"value_range": self.value_range}

    def restore(
        self,
        description: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        codes: np.ndarray | None,
        conditions: Conditions,
    ) -> None:
        """Take back the extremes of the training cells."""
        low, high = map(float, description["value_range"])
        self.value_range = (low, high)

    @classmethod
    def check_description(cls, description: Mapping[str, Any]) -> None:
        """Raise unless features have a shape that fits how they are stored, and names."""
        setup = description["registry"]["setup_args"]
        shape, stored = setup["shape"], setup["stored_shape"]
        if math.prod(shape) != math.prod(stored) or (len(shape) == 3 and shape[0] != shape[1]):
            raise ValueError(f"model.json: features of shape {shape}, stored as {stored}")
        names = description["registry"]["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]["column_names"]
        whole = len(names) == math.prod(shape) and all(isinstance(name, str) for name in names)
        if not isinstance(names, list | np.ndarray) or (setup["obsm_key"] is None and not whole):
            raise ValueError(f"model.json: names of {len(names)} features, of shape {shape}")
        if not description["value_range"][0] <= description["value_range"][1]:
            raise ValueError(f"model.json: value_range={description['value_range']}")


def _range_of(dtype: np.dtype) -> tuple[np.float32, np.float32]:
    """Extremes of a type of whole numbers or booleans, as float32 that do not exceed them; else infinite ones."""
    if dtype.kind == "b":
        return np.float32(0), np.float32(1)
    if not np.issubdtype(dtype, np.integer):
        return np.float32(-np.inf), np.float32(np.inf)
    least, most = np.float32(np.iinfo(dtype).min), np.float32(np.iinfo(dtype).max)
    return least, most if int(most) <= np.iinfo(dtype).max else np.nextafter(most, np.float32(0))
