"""What the models of images and embeddings share: setting up, reading and describing cells."""

from __future__ import annotations

import logging
import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data.fields import CategoricalObsField, LayerField, ObsmField
from torch import Tensor, nn

from sclatent.data import (
    Conditions,
    FeatureBatch,
    FeatureRows,
    TokenRows,
    check_categorical,
    check_finite,
    check_no_empty_level,
    check_obs,
    check_varies,
    feature_shape,
    get_features,
    make_loader,
)
from sclatent.diffusion import Process
from sclatent.module import FeatureAutoencoder, LatentDiffusion, Patches, Standardize
from sclatent.nn import OPEN
from sclatent.train import DiffusionPlan, StagePlan

from ._feature_generation import FeatureGenerationMixin
from ._random import torch_seed
from ._staged_model import StagedModel

LABELS_KEY = "labels"
MAX_VALUES = 4_000_000  # of the cells that are computed together, where no one asks for gradients


class FeatureModel(FeatureGenerationMixin, StagedModel):
    """A model of images or embeddings: an autoencoder, a process and a denoiser, put together.

    A subclass picks the three (``_new_autoencoder``, ``process`` and ``_new_denoiser``), names its ``STAGES`` of
    training and what it can be steered by (``GUIDANCE``), and plans what it trains before ``"diffusion"`` (``_plan``).
    The rest is here.

    Parameters
    ----------
    adata
        AnnData that was set up by :meth:`setup_anndata`.
    registry
        Registry of a saved model, in place of ``adata``.
    seed
        Seed of the initial weights.
    params
        All other arguments of the subclass. They are kept in ``init_params_``, saved with the model, and given to the
        class again by :meth:`load`.
    """

    process: ClassVar[Process]
    module: LatentDiffusion

    def __init__(self, adata: AnnData | None, registry: dict[str, Any] | None, *, seed: int, **params: Any) -> None:
        name = type(self).__name__
        if adata is None and registry is None:
            raise ValueError(
                f"adata is missing: give an AnnData that was set up by {name}.setup_anndata, or use {name}.load."
            )
        super().__init__(adata, registry)
        self.init_params_ = {**params, "seed": seed}
        setup = self.registry["setup_args"]
        self.shape = tuple(setup["shape"])
        self.labels = Conditions({}, "labels")
        if setup["labels_key"] is not None:
            self.labels = Conditions({setup["labels_key"]: setup["labels"]}, "labels")
        self.batches = Conditions({"batch": list(self._state(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"])}, "batch")
        with torch_seed(seed):
            autoencoder = self._new_autoencoder()
        shape = autoencoder.n_tokens, autoencoder.token_dim
        self.module = LatentDiffusion(autoencoder, Standardize(*shape), nn.Identity())
        self.module.denoiser = self._seeded_denoiser()  # which may look at the autoencoder
        self._start()
        what = f"images of {' x '.join(map(str, self.shape))}" if self._is_image else f"{self.shape[0]} features"
        labels = f"{self.labels.n_levels[0]} labels" if self.labels.keys else "no labels"
        self._model_summary_string = f"{type(self).__name__} of {what}, {labels}, {shape[0]} tokens of {shape[1]}"
        if adata is not None:
            rows = self._rows()
            self._learn_from(rows)
            self._look_at_features(rows)

    @abstractmethod
    def _new_autoencoder(self) -> FeatureAutoencoder:
        """Return an untrained autoencoder of features of ``self.shape``; called where the seed is set."""

    @property
    def is_latent(self) -> bool:
        """Whether noise comes to the tokens of an autoencoder, and not to the features themselves."""
        return not isinstance(self.module.autoencoder, Patches)

    @property
    def _is_image(self) -> bool:
        return len(self.shape) == 3

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        obsm_key: str | None = None,
        layer: str | None = None,
        image_shape: Sequence[int] | None = None,
        labels_key: str | None = None,
        unlabeled_category: str = "unknown",
        batch_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell the model where things are in an AnnData; the features are checked, and stay where they are.

        Parameters
        ----------
        adata
            Cells, with embeddings (cells, dim) or square images (cells, height, width[, channels]), of uint8 or float,
            in memory, in a file or as a dask array. Features that are the same in all cells give a warning. Embeddings
            keep the proportions of their coordinates: bring features of different units, such as areas and
            intensities, to one scale first (``sc.pp.scale``).
        obsm_key, layer
            Entry of obsm, or layer, with the features; X by default.
        image_shape
            (height, width) or (height, width, channels) of images that are stored flat. Flat pixels of type uint8 also
            take it from ``adata.uns["image_shape"]``.
        labels_key
            Categorical column of obs with the labels.
        unlabeled_category
            What the column says of cells without a label.
        batch_key
            Categorical column of obs; every batch is centred on a mean of its own, so that the latent need not carry
            it. Batches should hold labels in like proportions.
        kwargs
            Further arguments of ``scvi.data.AnnDataManager.register_fields``, which scvi-tools gives.

        Raises
        ------
        KeyError
            If an entry or a column is missing.
        ValueError
            If the data are not what was expected. Nothing has been changed then.

        Examples
        --------
        It is the same for DAED, JointDiffusion and JointLDM. Embeddings in X, with labels for a quarter of the cells:

        >>> from sclatent.model import JointLDM
        >>> adata = sclatent.datasets.mitocheck()
        >>> known = adata.obs["phenotype"].astype(str).iloc[::4]
        >>> adata.obs["label"] = known.reindex(adata.obs_names, fill_value="unknown")
        >>> JointLDM.setup_anndata(adata, labels_key="label", unlabeled_category="unknown")

        Images in obsm, without labels:

        >>> JointLDM.setup_anndata(adata, obsm_key="image")
        >>> JointLDM(adata).shape
        (32, 32, 1)
        """
        check_obs(adata)
        values, where = get_features(adata, obsm_key, layer)
        shape = feature_shape(values, where, image_shape, adata.uns)
        check_finite(values, where)
        labels = None
        if labels_key is not None:
            if labels_key in adata.obs and (n_missing := int(adata.obs[labels_key].isna().sum())):
                raise ValueError(
                    f"labels_key: adata.obs[{labels_key!r}] is missing for {n_missing} cells: set it to "
                    f"{unlabeled_category!r}, the unlabeled_category, to train on them without a label, or remove them."
                )
            check_categorical(adata.obs, labels_key, "labels_key")
            used = adata.obs[labels_key].astype("category").cat.remove_unused_categories().cat.categories
            labels = [label for label in used if label != unlabeled_category]
            if not labels:
                raise ValueError(
                    f"labels_key: every cell of adata.obs[{labels_key!r}] is {unlabeled_category!r}: label some of "
                    "them, or leave labels_key out to train without labels."
                )
            if len(labels) == 1:
                raise ValueError(
                    f"labels_key: adata.obs[{labels_key!r}] has only the label {labels[0]!r}; at least 2 are "
                    "needed. Leave labels_key out to train without labels."
                )
            like = [label for label in labels if str(label).casefold() == unlabeled_category.casefold()]
            if like and unlabeled_category not in used:
                warnings.warn(
                    f"adata.obs[{labels_key!r}] has the label {like[0]!r}, and no cell is {unlabeled_category!r}, the "
                    f"unlabeled_category: if these cells have no label, give unlabeled_category={like[0]!r}.",
                    stacklevel=2,
                )
        if batch_key is not None:
            check_categorical(adata.obs, batch_key, "batch_key")
            check_no_empty_level(adata.obs, batch_key, "batch_key")
        if adata.n_obs > 1 and "source_registry" not in kwargs:
            codes = np.zeros(adata.n_obs) if batch_key is None else pd.factorize(adata.obs[batch_key])[0]
            check_varies(values, where, shape, codes)
        setup_method_args = cls._get_setup_method_args(
            cls=cls,
            adata=adata,
            obsm_key=obsm_key,
            layer=layer,
            image_shape=None if image_shape is None else list(map(int, image_shape)),
            labels_key=labels_key,
            unlabeled_category=unlabeled_category,
            batch_key=batch_key,
            shape=list(shape),
            labels=labels,
            dtype=str(values.dtype),
            stored_shape=[int(n) for n in values.shape[1:]],
        )
        features = (
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False, correct_data_format=False)
            if obsm_key is None
            else ObsmField(REGISTRY_KEYS.X_KEY, obsm_key, is_count_data=False, correct_data_format=False)
        )
        fields = [
            features,
            CategoricalObsField(LABELS_KEY, labels_key),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
        ]
        # scvi-tools tells of the names that it makes up for pixels
        logging.getLogger("scvi.data.fields._arraylike_field").setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fewer than 3 cells")  # labels may be few
            cls._register(adata, fields, setup_method_args, **kwargs)

    # ---- reading cells

    def _rows(
        self, adata: AnnData | None = None, indices: Sequence[int] | None = None, *, batch: bool = True
    ) -> FeatureRows:
        """Cells of an AnnData, the training data by default."""
        training = adata is None or adata is self.adata
        adata = self._given(adata)
        check_obs(adata)
        setup = self.registry["setup_args"]
        values, where = get_features(adata, setup["obsm_key"], setup["layer"])
        if not training:
            shape = self._query_shape(values, where)
            if shape != self.shape:
                raise ValueError(f"{where} has features of shape {shape}: this model was trained on {self.shape}.")
            check_finite(values, where)
        obs = adata.obs
        codes = np.full((adata.n_obs, len(self.labels.keys)), OPEN)
        for key in self.labels.keys:
            if key in obs:  # labels that the model does not know are no labels to it
                code = {level: i for i, level in enumerate(self.labels.levels[key])}
                codes[:, 0] = [code.get(level, OPEN) for level in obs[key]]
        batches = np.zeros(adata.n_obs, dtype=np.int64)
        if batch and (batch_key := setup["batch_key"]) is not None:
            if batch_key not in obs:
                raise KeyError(f"adata.obs has no column {batch_key!r}, the batch_key of this model.")
            batches = self.batches.encode(
                pd.DataFrame({"batch": obs[batch_key]}), argument=f"adata.obs[{batch_key!r}]"
            )[:, 0]
        return FeatureRows(values, self.shape, codes, batches, indices)

    def _query_shape(self, values: Any, where: str) -> tuple[int, ...]:
        """Shape of the features of other cells; those that are flat are read by the shape of training."""
        is_flat = len(values.shape) == 2
        if is_flat and values.dtype != object and values.shape[1] != np.prod(self.shape):
            return tuple(values.shape[1:])
        return feature_shape(values, where, self.shape if is_flat and self._is_image else None)

    def _given(self, adata: AnnData | None) -> AnnData:
        adata = self.adata if adata is None else adata
        if adata is None:
            raise ValueError(
                "adata is missing: this model was loaded without data, so there are no training cells to fall back on."
            )
        return adata

    def _look_at_features(self, rows: FeatureRows) -> None:
        """Set what follows from the data alone: how features are standardised, and the range of images."""
        scale = self.module.autoencoder.scale
        n_batches, *size = scale.mean.shape
        n, total, square = np.zeros(n_batches), np.zeros((n_batches, *size)), np.zeros((n_batches, *size))
        low, high = np.inf, -np.inf
        for x, _, batch in make_loader(rows, self._at_most(1024)):
            x, batch = x.numpy().astype(np.float64), batch.numpy()
            low, high = min(low, x.min()), max(high, x.max())
            n += np.bincount(batch, minlength=n_batches)
            for moment, value in ((total, x), (square, x**2)):
                np.add.at(moment, batch, value.mean(axis=(1, 2), keepdims=True) if self._is_image else value)
        count = np.maximum(n, 1).reshape(-1, *[1] * len(size))
        mean = total / count
        variance = np.maximum((square - count * mean**2).sum(axis=0) / n.sum(), 0)
        sd = np.sqrt(variance if self._is_image else variance.mean(keepdims=True))
        scale.mean.copy_(torch.from_numpy(mean))
        scale.sd.copy_(torch.from_numpy(np.where(sd > 0, sd, 1.0)))
        self.value_range = (float(low), float(high))

    # ---- training

    @staticmethod
    def _default_epochs(n_cells: int) -> float:
        return min(4000 / n_cells**0.5, 150_000 / n_cells)

    def _training_rows(self) -> FeatureRows:
        return self._rows()

    def _contents(self, rows: FeatureRows) -> list[Any]:
        some = np.linspace(0, len(rows) - 1, min(len(rows), 64)).astype(int)
        return [self.shape, len(rows), rows.labels.tobytes(), rows.batch.tobytes(), rows[some].x.numpy().tobytes()]

    def _learn_from(self, rows: FeatureRows) -> None:
        self.batch_codes = rows.batch

    def _plan(self, stage: str, arguments: Mapping[str, Any]) -> StagePlan:
        return DiffusionPlan(self.module.denoiser, self.process, **arguments)

    def _stage_rows(self, stage: str, rows: FeatureRows) -> FeatureRows | TokenRows:
        if stage == "autoencoder":
            return rows
        if self._tokens is None:
            tokens = self._encode(rows, 1024)
            # patches of standardised features are as they should be; a trained denoiser keeps the frame it has
            if self.is_latent and "diffusion" not in self.trained_stages:
                self.module.standardize.cpu().fit(tokens, common=True)
            self._tokens = self.module.standardize.cpu()(tokens)
        return TokenRows(self._tokens, torch.from_numpy(rows.labels))

    # ---- saving

    def _description(self) -> dict[str, Any]:
        return {"value_range": self.value_range}

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"batch_codes": self.batch_codes}

    def _restore(self, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self.value_range = tuple(description["value_range"])
        self.batch_codes = arrays["batch_codes"]

    def _check_query(self, adata: AnnData) -> None:
        self._rows(adata)

    # ---- describing cells

    def get_features(self, adata: AnnData | None = None, indices: Sequence[int] | None = None) -> np.ndarray:
        """Read the features of cells from where they are, as the model takes them.

        Parameters
        ----------
        adata
            Cells; the training data by default.
        indices
            Rows; all by default.

        Returns
        -------
        np.ndarray
            Features, not standardised, (cells, dim) or (cells, height, width, channels), float32.

        Examples
        --------
        >>> model.get_features(adata[:3]).shape == (3, *model.shape)
        True
        """
        rows = self._rows(adata, indices, batch=False)
        return rows[np.arange(len(rows))].x.numpy()

    @torch.no_grad()
    def _encode_batch(self, batch: FeatureBatch) -> Tensor:
        """Tokens of a minibatch, not standardised."""
        return self.module.autoencoder.encode(batch.x.to(self.device), batch.batch.to(self.device))

    def _encode(self, rows: FeatureRows, batch_size: int) -> Tensor:
        loader = make_loader(rows, self._at_most(batch_size))
        return torch.cat([self._encode_batch(batch).cpu() for batch in loader])

    def _at_most(self, batch_size: int) -> int:
        """Cells to compute together: fewer than asked for where they are so large that memory would not do."""
        return min(batch_size, max(1, MAX_VALUES // math.prod(self.shape)))

    def _blocks(self, n: int, batch_size: int, description: str, progress_bar: bool) -> Iterator[np.ndarray]:
        return super()._blocks(n, self._at_most(batch_size), description, progress_bar)

    def get_latent_representation(
        self, adata: AnnData | None = None, indices: Sequence[int] | None = None, batch_size: int = 1024
    ) -> np.ndarray:
        """Encode cells by the autoencoder.

        Parameters
        ----------
        adata
            Cells; the training data by default.
        indices
            Rows to encode; all by default.
        batch_size
            Cells computed together.

        Returns
        -------
        np.ndarray
            Tokens of each cell side by side, (cells, n_tokens * token_dim).

        Examples
        --------
        >>> adata.obsm["X_latent"] = model.get_latent_representation()
        >>> adata.obsm["X_latent"].shape  # 2 tokens of 32
        (328, 64)
        """
        for stage in self._needs("diffusion"):
            self._check_stage(stage, "get_latent_representation")
        return self._encode(self._rows(adata, indices), batch_size).flatten(1).numpy()

    @torch.no_grad()
    def get_activations(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        noise_level: float = 0.0,
        batch_size: int = 256,
        seed: int = 0,
    ) -> np.ndarray:
        """Activations of the denoiser, averaged over the tokens (Joint Diffusion, arXiv 2301.13622, section 3).

        Parameters
        ----------
        adata
            Cells; the training data by default.
        indices
            Rows; all by default.
        noise_level
            Share of noise in the variance of what the denoiser sees, from 0 to 1.
        batch_size
            Cells computed together.
        seed
            Seed of the noise.

        Returns
        -------
        np.ndarray
            Activations (cells, n_blocks, width).

        Examples
        --------
        >>> activations = model.get_activations(adata[:5], noise_level=0.1)
        >>> n_cells, n_blocks, width = activations.shape
        >>> n_cells
        5
        """
        self._check_stage("diffusion", "get_activations")
        if not 0 <= noise_level <= 1:
            raise ValueError(f"noise_level={noise_level!r} must be between 0 (no noise) and 1 (noise alone).")
        rows = self._rows(adata, indices)
        blocks = []
        for cells in self._blocks(len(rows), batch_size, "Activations", progress_bar=False):
            z = self._latent(rows[cells], seed, cells)
            x, t = self._add_noise(z, noise_level, seed, cells)
            blocks.append(self.module.denoiser.activations(x, t).cpu())
        return torch.cat(blocks).numpy()

    def _rows_to_predict(self, adata: AnnData | None, indices: Sequence[int] | None) -> FeatureRows:
        if not self.labels.keys:
            raise RuntimeError(
                "predict needs labels, and this model was trained without: set up the data with labels_key."
            )
        self._check_stage("diffusion", "predict")
        return self._rows(adata, indices)

    def _labels_of(
        self, probabilities: np.ndarray, rows: FeatureRows, adata: AnnData | None, soft: bool
    ) -> np.ndarray | pd.DataFrame:
        (levels,) = self.labels.levels.values()
        if soft:
            return pd.DataFrame(probabilities, index=self._given(adata).obs_names[rows.cells], columns=levels)
        return np.array(levels, dtype=object)[probabilities.argmax(axis=1)]
