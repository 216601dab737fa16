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
from scvi.data.fields import AnnDataField
from torch import Tensor, nn

from sclatent.data import (
    UNLABELED,
    Conditions,
    FeatureBatch,
    FeatureRows,
    TokenRows,
    TrainingBatches,
    align_features,
    check_adata,
    check_categorical,
    check_finite,
    check_labels,
    check_levels,
    check_no_empty_level,
    check_place,
    check_roles,
    check_varies,
    check_whole,
    feature_shape,
    get_features,
    label_codes,
    plain_level,
    warn_of_copies,
)
from sclatent.diffusion import Process
from sclatent.module import FeatureAutoencoder, LatentDiffusion, Patches, Standardize
from sclatent.nn import OPEN
from sclatent.train import DiffusionPlan, StagePlan

from ._feature_generation import DIFFERENCE, FeatureGenerationMixin
from ._fields import KnownLayerField, KnownLevelsField, KnownObsmField
from ._random import check_seed, initial_weights
from ._schema import COUNT, DTYPE, LEVELS, NAME, NUMBER, check_codes, list_of, optional
from ._staged_model import CHANGED, StagedModel

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
        check_seed(seed)
        if adata is not None:
            check_adata(adata)
        super().__init__(adata, registry)
        self.init_params_ = {**params, "seed": seed}
        setup = self.registry["setup_args"]
        self.shape = tuple(setup["shape"])
        self.labels = Conditions({}, "labels")
        if setup["labels_key"] is not None:
            self.labels = Conditions({setup["labels_key"]: setup["labels"]}, "labels", setup["unlabeled_category"])
        self.batches = Conditions({"batch": list(self._state(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"])}, "batch")
        with initial_weights(seed, "autoencoder"):
            autoencoder = self._new_autoencoder()
        shape = autoencoder.n_tokens, autoencoder.token_dim
        self.module = LatentDiffusion(autoencoder, Standardize(*shape), nn.Identity())
        self.module.denoiser = self._seeded_denoiser()  # which may look at the autoencoder
        self._start()
        what = f"images of {' x '.join(map(str, self.shape))}" if self._is_image else f"{self.shape[0]} features"
        labels = f"{self.labels.n_levels[0]} labels" if self.labels.keys else "no labels"
        self._model_summary_string = f"{type(self).__name__} of {what}, {labels}, {shape[0]} tokens of {shape[1]}"
        self.value_range = (0.0, 1.0)

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
        unlabeled_category: str | float = UNLABELED,
        batch_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell the model where things are in an AnnData; the features are checked, and stay where they are.

        Parameters
        ----------
        adata
            Cells, with embeddings (cells, dim) or square images (cells, height, width[, channels]), of uint8, float or
            bool, in memory, in a file or as a dask array. Features that are the same in all cells give a warning.
            Embeddings keep the proportions of their coordinates: bring features of different units, such as areas and
            intensities, to one scale first (``sc.pp.scale``).
        obsm_key, layer
            Entry of obsm, or layer, with the features; X by default.
        image_shape
            (height, width) or (height, width, channels) of images that are stored flat. Flat pixels of type uint8 also
            take it from ``adata.uns["image_shape"]``.
        labels_key
            Categorical column of obs with the labels: text, numbers or booleans.
        unlabeled_category
            What the column says of cells without a label, such as -1 where labels are numbers.
        batch_key
            Categorical column of obs; every batch is centred on a mean of its own, so that the latent need not carry
            it. Batches should hold labels in like proportions. If it is ``labels_key``, too, cells are decoded under
            the batch of the label that is asked for.
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
        check_adata(adata)
        check_place(obsm_key=obsm_key, layer=layer)
        check_roles(labels_key=labels_key)
        check_roles(batch_key=batch_key)
        values, where = get_features(adata, obsm_key, layer)
        shape = feature_shape(values, where, image_shape, adata.uns)
        if obsm_key == DIFFERENCE and len(shape) == 3:
            raise ValueError(
                f"obsm_key={obsm_key!r}: this is where counterfactual puts differences of images. Rename yours by "
                f'adata.obsm["image"] = adata.obsm.pop({obsm_key!r}).'
            )
        check_finite(values, where)
        labels = None if labels_key is None else check_labels(adata.obs, labels_key, unlabeled_category)
        if batch_key is not None:
            check_categorical(adata.obs, batch_key, "batch_key")
            check_no_empty_level(adata.obs, batch_key, "batch_key")
            check_levels(adata.obs, batch_key, "batch_key")
        warn_of_copies(adata.obs, [key for key in dict.fromkeys((labels_key, batch_key)) if key is not None])
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
            unlabeled_category=UNLABELED if labels_key is None else plain_level(unlabeled_category),
            batch_key=batch_key,
            shape=list(shape),
            labels=labels,
            dtype=str(values.dtype),
            stored_shape=[int(n) for n in values.shape[1:]],
        )
        # scvi-tools tells of the names that it makes up for pixels
        logging.getLogger("scvi.data.fields._arraylike_field").setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fewer than 3 cells")  # labels may be few
            cls._register(adata, setup_method_args, **kwargs)

    @classmethod
    def _fields(cls, setup: Mapping[str, Any]) -> list[AnnDataField]:
        how = {"is_count_data": False, "correct_data_format": False}
        if setup["obsm_key"] is None:
            features = KnownLayerField(REGISTRY_KEYS.X_KEY, setup["layer"], **how)
        else:
            features = KnownObsmField(REGISTRY_KEYS.X_KEY, setup["obsm_key"], **how)
        return [
            features,
            KnownLevelsField(LABELS_KEY, setup["labels_key"]),
            KnownLevelsField(REGISTRY_KEYS.BATCH_KEY, setup["batch_key"]),
        ]

    # ---- reading cells

    def _rows(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        *,
        batch: bool = True,
        labels: bool = False,
    ) -> FeatureRows:
        """Cells of an AnnData, the training data by default. Labels are looked up only where they are learned."""
        training = adata is None or adata is self.adata
        adata = self._given(adata)
        setup = self.registry["setup_args"]
        values, where = get_features(adata, setup["obsm_key"], setup["layer"])
        shape = self._query_shape(values, where)
        if shape != self.shape:
            raise ValueError(f"{where} has features of shape {shape}: this model was trained on {self.shape}.")
        columns = align_features(adata, setup["obsm_key"], self._state(REGISTRY_KEYS.X_KEY)["column_names"], where)
        if not training:
            check_finite(values, where)
        codes = np.full((adata.n_obs, len(self.labels.keys)), OPEN)
        if labels:
            codes = label_codes(adata.obs, self.labels, setup["unlabeled_category"])
        batches = self._batch_codes(adata.obs) if batch else np.zeros(adata.n_obs, dtype=np.int64)
        return FeatureRows(values, self.shape, codes, batches, indices, columns, CHANGED if training else None)

    def _query_shape(self, values: Any, where: str) -> tuple[int, ...]:
        """Shape of the features of other cells; those that are flat are read by the shape of training."""
        is_flat = len(values.shape) == 2
        if is_flat and values.dtype != object and values.shape[1] != np.prod(self.shape):
            return tuple(values.shape[1:])
        return feature_shape(values, where, self.shape if is_flat and self._is_image else None)

    def _look_at_features(self, rows: FeatureRows) -> None:
        """Fit what follows from the training cells alone: how features are standardised, and the range of images.

        It is called once, before anything is trained; the cells that the loss is watched on are not among them.
        """
        scale = self.module.autoencoder.scale
        n_batches, *size = scale.mean.shape
        n, total, square = np.zeros(n_batches), np.zeros((n_batches, *size)), np.zeros((n_batches, *size))
        low, high = np.inf, -np.inf
        for cells in self._blocks(len(rows), 1024, "Features", self._progress_bar, delay=2):
            x, _, batch = rows[cells]
            x, batch = x.numpy().astype(np.float64), batch.numpy()
            low, high = min(low, x.min()), max(high, x.max())
            n += np.bincount(batch, minlength=n_batches)
            for moment, value in ((total, x), (square, x**2)):
                np.add.at(moment, batch, value.mean(axis=(1, 2), keepdims=True) if self._is_image else value)
        count = n.reshape(-1, *[1] * len(size))
        mean = np.where(count > 0, total / np.maximum(count, 1), total.sum(axis=0) / n.sum())  # a batch without cells
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
        return self._rows(labels=True)

    def _check_values(self, rows: FeatureRows) -> None:
        check_finite(rows.values, CHANGED)

    def _contents(self, rows: FeatureRows) -> Iterator[Any]:
        yield from (self.shape, self.labels.levels, self.batches.levels, rows.labels, rows.batch)
        n = self._at_most(1024)
        for start in range(0, len(rows), n):
            yield rows[np.arange(start, min(start + n, len(rows)))].x.numpy()

    def _learn_from(self, rows: FeatureRows) -> None:
        codes, batch = rows.labels[rows.cells], rows.batch[rows.cells]
        self.training_batches = TrainingBatches(codes, batch, self.labels.n_levels, self.batches.n_levels[0])
        self._warn_of_levels(self.labels)

    def _plan(self, stage: str, arguments: Mapping[str, Any]) -> StagePlan:
        return DiffusionPlan(self.module.denoiser, self.process, **arguments)

    def _stage_rows(self, stage: str, rows: FeatureRows) -> FeatureRows | TokenRows:
        if stage == "autoencoder":
            return rows
        # patches of standardised features are as they should be; a trained denoiser keeps the frame it has
        has_frame = not self.is_latent or "diffusion" in self.trained_stages
        if self._tokens is None or not has_frame:
            tokens = self._encode(rows, 1024, self._progress_bar)
            if not has_frame:
                self.module.standardize.cpu().fit(tokens[self.train_indices_], common=True)
            self._tokens = self.module.standardize.cpu()(tokens)
        if stage == "diffusion" and "diffusion" not in self.trained_stages:
            self._fit_baseline(rows)
        return TokenRows(self._tokens, torch.from_numpy(rows.labels))

    def _fit_baseline(self, rows: FeatureRows) -> None:
        """Fit the closed form that the denoiser is added to, on the tokens of the training cells."""
        seen = self.train_indices_
        self.module.denoiser.cpu().fit(self._tokens[seen], torch.from_numpy(rows.labels[seen]))

    # ---- saving

    @classmethod
    def _schema(cls) -> dict[str, Any]:
        schema = super()._schema()
        schema["registry"]["setup_args"] |= {
            "obsm_key": optional(NAME),
            "layer": optional(NAME),
            "labels_key": optional(NAME),
            "unlabeled_category": NAME,
            "labels": optional(LEVELS),
            "shape": list_of(COUNT, 1, 3),
            "stored_shape": list_of(COUNT),
            "dtype": DTYPE,
        }
        fields = schema["registry"]["field_registries"]
        fields[LABELS_KEY] = fields[REGISTRY_KEYS.BATCH_KEY]
        return schema | {"value_range": list_of(NUMBER, 2)}

    @classmethod
    def _check_description(cls, description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        super()._check_description(description, weights)
        setup = description["registry"]["setup_args"]
        shape, stored = setup["shape"], setup["stored_shape"]
        if math.prod(shape) != math.prod(stored) or (len(shape) == 3 and shape[0] != shape[1]):
            raise ValueError(f"model.json: features of shape {shape}, stored as {stored}")
        if (setup["labels"] is None) != (setup["labels_key"] is None):
            raise ValueError(f"model.json: labels_key={setup['labels_key']!r}, but labels={setup['labels']!r}")
        names = description["registry"]["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]["column_names"]
        whole = len(names) == math.prod(shape) and all(isinstance(name, str) for name in names)
        if not isinstance(names, list | np.ndarray) or (setup["obsm_key"] is None and not whole):
            raise ValueError(f"model.json: names of {len(names)} features, of shape {shape}")
        if not description["value_range"][0] <= description["value_range"][1]:
            raise ValueError(f"model.json: value_range={description['value_range']}")

    def _description(self) -> dict[str, Any]:
        return {"value_range": self.value_range}

    def _arrays(self) -> dict[str, np.ndarray]:
        if not self.trained_stages:
            return {}
        return {"label_codes": self.training_batches.codes, "batch_codes": self.training_batches.batch}

    def _restore(self, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self.value_range = tuple(map(float, description["value_range"]))
        if not arrays:  # not trained yet
            return
        codes, batch, n_levels = arrays["label_codes"], arrays["batch_codes"], self.labels.n_levels
        check_codes(codes, n_levels, "label_codes", least=OPEN)
        check_codes(batch[:, None], self.batches.n_levels, "batch_codes")
        if len(batch) != len(codes):
            raise ValueError("batch_codes must be one for each row of label_codes")
        self.training_batches = TrainingBatches(codes, batch, n_levels, self.batches.n_levels[0])

    def _check_query(self, adata: AnnData) -> None:
        self._rows(adata)
        try:
            label_codes(adata.obs, self.labels, self.registry["setup_args"]["unlabeled_category"])
        except KeyError:
            pass  # no label is needed to generate or predict
        except ValueError as error:
            warnings.warn(f"{error} The model cannot be trained further on these cells.", stacklevel=3)

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

    def _encode(self, rows: FeatureRows, batch_size: int, progress_bar: bool = False) -> Tensor:
        blocks = self._blocks(len(rows), batch_size, "Tokens", progress_bar, delay=2)
        return torch.cat([self._encode_batch(rows[cells]).cpu() for cells in blocks])

    def _at_most(self, batch_size: int) -> int:
        """Cells to compute together: fewer than asked for where they are so large that memory would not do."""
        return min(check_whole("batch_size", batch_size), max(1, MAX_VALUES // math.prod(self.shape)))

    def _blocks(
        self, n: int, batch_size: int, description: str, progress_bar: bool, **kwargs: Any
    ) -> Iterator[np.ndarray]:
        return super()._blocks(n, self._at_most(batch_size), description, progress_bar, **kwargs)

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
        for stage in self._needs("diffusion") or ("diffusion",):
            self._check_stage(stage, "get_latent_representation")
        return self._encode(self._rows(adata, indices), batch_size).flatten(1).numpy()

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
        is_text = isinstance(levels[0], str)  # a file holds objects that are text, but none that are numbers
        return np.array(levels, dtype=object if is_text else None)[probabilities.argmax(axis=1)]
