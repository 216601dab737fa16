"""Models of tokens of cells: domain, conditions and autoencoder, put together."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import AnnDataField
from torch import Tensor, nn
from tqdm.auto import tqdm

from sclatent.data import Conditions, TokenRows, check_adata, check_seed, label_codes
from sclatent.data._schema import NAME, check_codes, list_of
from sclatent.data._warnings import warn_user
from sclatent.diffusion import PROCESSES, Process
from sclatent.domain import Domain, KnownConditionsField, KnownLevelsField
from sclatent.module import LatentDiffusion, Patches, ResidualDenoiser, Standardize
from sclatent.nn import NULL, Values
from sclatent.train import DiffusionPlan, StagePlan

from ._batches import Batches
from ._columns import check_saved_columns, kinds_of
from ._random import initial_weights
from ._staged_model import StagedModel

CONDITIONS_KEY, LABELS_KEY = "conditions", "labels"


class LatentModel(StagedModel):
    """A domain, conditions, an autoencoder and a denoiser, trained in stages; how cells are encoded.

    A subclass names its ``DOMAIN`` and its ``STAGES``, has a ``process``, and makes the networks in
    :meth:`_new_autoencoder` and :meth:`_new_denoiser`.

    Parameters
    ----------
    adata
        AnnData that was set up by ``setup_anndata``.
    registry
        Registry of a saved model, in place of ``adata``.
    seed
        Seed of the initial weights.
    params
        All other arguments of the subclass. They are kept in ``init_params_``, saved with the model, and given to the
        class again by :meth:`load`. ``process`` is the name of one, in place of that of the class.
    """

    DOMAIN: ClassVar[type[Domain]]

    process: Process
    module: LatentDiffusion[Any, Any]

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
        if "process" in params:
            self.process = PROCESSES[params["process"]]()
        setup = self.registry["setup_args"]
        self.domain = self.DOMAIN(self.registry)
        self.labels_key: str | None = setup.get("labels_key")
        levels = dict(self._state(CONDITIONS_KEY).get("mappings", {}))
        unlabeled, kinds, features = {}, *kinds_of(setup)
        if self.labels_key is not None:  # the label is the last of the conditions, and the only one that may be missing
            levels[self.labels_key] = setup["labels"]
            unlabeled[self.labels_key] = setup["unlabeled_category"]
        self.conditions = Conditions(levels, unlabeled=unlabeled, kinds=kinds, features=features)
        batch_levels = list(self._state(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"])
        self.batches = Batches(setup["batch_key"], batch_levels, self.conditions)
        with initial_weights(seed, "autoencoder"):
            autoencoder = self._new_autoencoder()
        shape = autoencoder.n_tokens, autoencoder.token_dim
        self.module = self.domain.new_module(autoencoder, Standardize(*shape))
        self.module.denoiser = self._seeded_denoiser()  # which may look at the autoencoder
        self._start()
        self._model_summary_string = (
            f"{name} of {self.domain.summary}, conditions {self.conditions.keys}, {shape[0]} tokens of {shape[1]}"
        )

    # ---- what a model says of itself

    @abstractmethod
    def _new_autoencoder(self) -> Any:
        """Return an untrained autoencoder, with ``n_tokens`` and ``token_dim``; called where the seed is set."""

    @abstractmethod
    def _new_denoiser(self) -> nn.Module:
        """Return an untrained denoiser, or a network that is one without a baseline.

        Called when there is an autoencoder, and where the seed is set.
        """

    def _plan(self, stage: str, arguments: Mapping[str, Any]) -> StagePlan:
        return DiffusionPlan(self.module.denoiser, self.process, **arguments)

    def _values(self) -> tuple[Values, ...] | None:
        """What is known of all values of the keys of the denoiser, where the model is; None where they are names."""
        values = self.conditions.values()
        return None if values is None else tuple(v.to(self.device) for v in values[: self._n_keys])

    @property
    def is_latent(self) -> bool:
        """Whether noise comes to the tokens of an autoencoder, and not to the features themselves."""
        return not isinstance(self.module.autoencoder, Patches)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.module.parameters()).device

    def _seeded_denoiser(self) -> ResidualDenoiser:
        """An untrained denoiser, always the same."""
        with initial_weights(self.init_params_["seed"], "denoiser"):
            denoiser: Any = self._new_denoiser()
        if isinstance(denoiser, ResidualDenoiser):
            return denoiser
        autoencoder = self.module.autoencoder
        return ResidualDenoiser(denoiser, (autoencoder.n_tokens, autoencoder.token_dim), self.process, "none")

    # ---- the AnnData

    @classmethod
    def _fields(cls, setup: Mapping[str, Any]) -> list[AnnDataField]:
        fields = [
            *cls.DOMAIN.fields(setup),
            KnownConditionsField(CONDITIONS_KEY, setup["condition_keys"]),
            KnownLevelsField(REGISTRY_KEYS.BATCH_KEY, setup["batch_key"]),
        ]
        return [*fields, KnownLevelsField(LABELS_KEY, setup["labels_key"])] if "labels_key" in setup else fields

    def _transfer_setup(self, adata: AnnData) -> AnnDataManager:
        manager = self._register(adata, dict(self.registry["setup_args"]), source_registry=self.registry)
        self._tokens = None  # of the cells before
        return manager

    def _check_query(self, adata: AnnData) -> None:
        self._rows(adata, conditions=True)  # checks features and levels
        try:
            self._label_codes(adata)
        except KeyError:
            pass  # no label is needed to generate or predict
        except ValueError as error:
            warn_user(f"{error} The model cannot be trained further on these cells.")

    def _state(self, key: str) -> dict[str, Any]:
        return self.registry["field_registries"][key]["state_registry"]

    def _rows(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        *,
        conditions: bool = False,
        batch: bool = True,
    ) -> Any:
        """Cells of an AnnData (the training data by default), with features and levels aligned by name.

        Conditions and batch are looked up only where they are needed: to encode a cell takes no conditions.
        """
        is_training = adata is None or adata is self.adata
        adata = self._given(adata)
        table = adata.obs if conditions else adata.obs[[]]
        codes = self.conditions.encode_rows(table, "adata.obs", is_measured=True)
        batches = self.batches.of(adata.obs) if batch else np.zeros(adata.n_obs, dtype=np.int64)
        return self.domain.rows(adata, codes, batches, indices, is_training)

    def _label_codes(self, adata: AnnData) -> None:
        """Raise if a label of cells to train on is missing or not known."""
        if self.labels_key is not None:
            label_codes(adata.obs, self.conditions, self.labels_key)

    # ---- training

    @staticmethod
    def _default_epochs(n_cells: int) -> float:
        return 4000 / n_cells**0.5

    def _training_rows(self) -> Any:
        self._label_codes(self._given(None))
        rows = self._rows(conditions=True)
        n_keys = len(self.registry["setup_args"]["condition_keys"])
        if (rows.conditions[:, :n_keys] == NULL).any():
            raise ValueError(
                f"To train, every cell needs a level of every condition: {self.conditions.keys[:n_keys]} in adata.obs."
            )
        unseen = rows.conditions >= np.array(self.conditions.n_levels, dtype=np.int64)
        if unseen.any():
            cell, k = np.argwhere(unseen)[0]
            key = self.conditions.keys[k]
            value = self.conditions.decode(rows.conditions[cell][None], pd.Index(["0"]))[key].iloc[0]
            raise ValueError(
                f"adata.obs[{key!r}] has values that this model was not made for, such as {value}: it can be asked for "
                f"them, but not be trained on them. Make a new {type(self).__name__} of these cells."
            )
        return rows

    def _add_features(self, features: Mapping[str, pd.DataFrame] | None) -> None:
        """Take features of further levels or members, by key; they are saved with the model."""
        self.conditions.add_features(features)
        for key in features or ():
            self.registry["setup_args"]["condition_kinds"][key]["features"] = self.conditions.spaces[key].features

    def _check_values(self, rows: Any) -> None:
        self.domain.check_values(rows)

    def _contents(self, rows: Any) -> Iterator[Any]:
        yield from (self.conditions.levels, self.batches.levels, rows.conditions, rows.batch)
        yield from (part.numpy() for of_key in self.conditions.values() or () for part in of_key)
        yield from self.domain.contents(rows)

    def _look_at_features(self, rows: Any) -> None:
        self.domain.look_at(self.module, rows, self.init_params_["seed"], self._progress_bar)

    def _learn_from(self, rows: Any) -> None:
        self.batches.learn_from(rows.conditions[rows.cells], rows.batch[rows.cells])
        self.domain.learn_from(self.module, rows, self.conditions)
        self.batches.warn_of_levels()

    def _stage_rows(self, stage: str, rows: Any) -> Any:
        """Cells for the autoencoder; for the denoiser their tokens, which are computed once."""
        if stage == "autoencoder":
            return rows
        # a trained denoiser keeps the scales and the baseline that it was trained with
        is_trained, seen = "diffusion" in self.trained_stages, self.train_indices_
        has_scale = is_trained or not self.is_latent  # patches of standardised features are as they should be
        if self._tokens is None or not has_scale:
            tokens = self._encode(rows, 1024, self._progress_bar)
            if not has_scale:
                self.module.standardize.cpu().fit(tokens[seen], common=self.domain.common_scale)
            self._tokens = self.module.standardize.cpu()(tokens)
            self.module.standardize.to(self.device)  # library sizes of a part of the genes take all of the module
        if not is_trained:
            self.domain.fit_size(self.module, rows.subset(seen))
        codes = torch.from_numpy(self.conditions.without_dose(rows.conditions))
        sizes = self.domain.sizes(self.module, rows)
        if stage == "diffusion" and not is_trained:
            self._fit_baseline(self._tokens[seen], codes[seen], None if sizes is None else sizes[seen])
            self.domain.fit_means(self.module, rows.subset(seen), codes[seen].numpy(), self.conditions.values())
        return TokenRows(self._tokens, codes, *([] if sizes is None else [sizes]))

    def _fit_baseline(self, tokens: Tensor, codes: Tensor, size: Tensor | None, noise_level: float = 0.0) -> None:
        """Fit the closed form that the denoiser is added to, on the tokens of the training cells."""
        self.module.denoiser.cpu().fit(tokens, codes[:, : self._n_keys], size, noise_level=noise_level)

    @property
    def _n_keys(self) -> int:
        """Number of conditions that the denoiser is conditioned on; the label may not be among them."""
        return len(self.module.denoiser.n_levels)

    def _tokens_changed(self) -> None:
        self._tokens = None
        if "diffusion" in self.trained_stages:
            self.trained_stages.discard("diffusion")
            self.module.denoiser = self._seeded_denoiser()

    def _copy_of_what_training_changes(self) -> dict[str, Any]:
        kept = {key: copy.copy(value) if isinstance(value, dict | set) else value for key, value in vars(self).items()}
        parts = {"domain": copy.copy(self.domain), "batches": copy.copy(self.batches)}
        return {**kept, **parts, "module": copy.deepcopy(self.module)}

    # ---- encoding

    def _blocks(
        self, n: int, batch_size: int, description: str, progress_bar: bool, delay: float = 0.0
    ) -> Iterator[np.ndarray]:
        """Positions of n cells, block by block, with a progress bar if they take more than ``delay`` seconds."""
        size = self.domain.at_most(batch_size)
        with tqdm(total=n, desc=description, unit=" cells", delay=delay, disable=not progress_bar) as bar:
            for start in range(0, n, size):
                cells = np.arange(start, min(start + size, n))
                yield cells
                bar.update(len(cells))

    def _encode(self, rows: Any, batch_size: int, progress_bar: bool = False) -> Tensor:
        """Tokens of cells, not standardised."""
        blocks = self._blocks(len(rows), batch_size, "Tokens", progress_bar, delay=2)
        return torch.cat([self.domain.encode(self.module, rows[cells]).cpu() for cells in blocks])

    def get_latent_representation(
        self, adata: AnnData | None = None, indices: Sequence[int] | None = None, batch_size: int = 1024
    ) -> np.ndarray:
        """Encode cells by the autoencoder.

        Parameters
        ----------
        adata
            Cells; the training data by default. Of counts, genes are aligned by name, and those that are missing count
            as not measured.
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
        >>> n_cells, n_dimensions = adata.obsm["X_latent"].shape
        >>> n_cells == adata.n_obs
        True
        """
        for stage in self._needs("diffusion") or ("diffusion",):
            self._check_stage(stage, "get_latent_representation")
        rows = self._rows(adata, indices, batch=self.domain.encodes_batch)
        return self._encode(rows, batch_size).flatten(1).numpy()

    def get_features(self, adata: AnnData | None = None, indices: Sequence[int] | None = None) -> np.ndarray:
        """Read cells as other methods compare them, not standardised.

        Parameters
        ----------
        adata, indices
            As in :meth:`get_latent_representation`.

        Returns
        -------
        np.ndarray
            float32. Of counts the logarithm of 1 + counts per 10,000, (cells, n_measured); embeddings (cells, dim) and
            images (cells, height, width, channels) as they are.

        Examples
        --------
        >>> len(model.get_features(adata[:3]))
        3
        """
        return self.domain.values(self._rows(adata, indices, batch=False))

    # ---- saving

    @classmethod
    def _schema(cls) -> dict[str, Any]:
        schema = super()._schema()
        schema["registry"]["setup_args"] |= {"condition_keys": list_of(NAME), **cls.DOMAIN.SETUP}
        schema["registry"]["field_registries"] |= {CONDITIONS_KEY: {}}
        return {**schema, **cls.DOMAIN.STATE}

    @classmethod
    def _check_description(cls, description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        super()._check_description(description, weights)
        registry = description["registry"]
        levels = registry["field_registries"][CONDITIONS_KEY]["state_registry"].get("mappings", {})
        check_saved_columns(registry["setup_args"], levels)
        cls.DOMAIN.check_description(description)

    def _description(self) -> dict[str, Any]:
        return self.domain.describe()

    def _arrays(self) -> dict[str, np.ndarray]:
        training = self.batches.training
        if training is None:  # not trained yet
            return {}
        return {"condition_codes": training.codes, "batch_codes": training.batch, **self.domain.arrays()}

    def _restore(self, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        n_levels = self.conditions.n_levels
        codes = arrays["condition_codes"] if self.trained_stages else None
        if codes is not None:
            batch = arrays["batch_codes"]
            check_codes(codes, n_levels, "condition_codes", least=NULL)
            check_codes(batch[:, None], [len(self.batches.levels)], "batch_codes")
            if len(batch) != len(codes):
                raise ValueError("batch_codes must be one for each row of condition_codes")
            self.batches.learn_from(codes, batch)
        self.domain.restore(description, arrays, codes, self.conditions)
