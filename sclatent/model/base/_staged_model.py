"""What every model does alike: training in stages, resumption, history, saving and loading."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback, Checkpoint
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager, AnnDataManagerValidationCheck
from scvi.data.fields import AnnDataField
from torch import Tensor, nn
from tqdm.auto import tqdm

from sclatent.baseline import BASELINES
from sclatent.data import (
    Conditions,
    TrainingBatches,
    check_adata,
    check_categorical,
    check_number,
    check_whole,
    is_number,
    make_loader,
    random_stream,
    short_repr,
)
from sclatent.diffusion import Process
from sclatent.module import ResidualDenoiser
from sclatent.nn import OPEN
from sclatent.train import StagePlan

from ._checkpoints import StageDirectory, fingerprint, plan_arguments
from ._folder import read_model, refuse_damaged, write_model
from ._random import Purpose, cell_rng, check_seed, initial_weights
from ._registry import RegistryMixin
from ._schema import FIELD, LEVELS, LOSSES, NAME, TEXT, check, dict_of, list_of, one_of, optional, parameters
from ._stages import StageFit
from ._trainer import check_callbacks, check_trainer_arguments, of_stage, one_device
from ._training_rows import TrainingRows

logger = logging.getLogger(__name__)
CHANGED = "The AnnData of training was changed: it"
FAR = 1e6  # standard deviations of tokens, or times as far as they were: no cell is there


def check_n_samples(n_samples: Any) -> int:
    """Return how many cells are asked for; raises unless that is a number of cells."""
    if isinstance(n_samples, bool) or not isinstance(n_samples, int | np.integer) or n_samples < 1:
        raise ValueError(
            f"n_samples={n_samples!r} must be a whole number of at least 1: how many cells to make, the first argument."
        )
    return int(n_samples)


def check_steps(n_steps: int | None) -> None:
    """Raise a ``ValueError`` unless this is a number of steps of a solver, or None for its own."""
    if n_steps is not None:
        check_whole("n_steps", n_steps)


def check_sizes(*, optional: bool = False, **sizes: int | None) -> None:
    """Raise a ``ValueError`` unless all sizes of a network are whole numbers of at least 1, or None if optional."""
    for argument, size in sizes.items():
        if size is not None or not optional:
            check_whole(argument, size, instead=", or None for the default" if optional else "")


def check_baseline(baseline: Any) -> None:
    """Raise a ``ValueError`` unless there is such a baseline."""
    if not isinstance(baseline, str) or baseline not in BASELINES:
        raise ValueError(f"baseline={short_repr(baseline)} is not known: use one of {list(BASELINES)}.")


def check_order(given: Any, names: pd.Index, argument: str, of: str = "adata", index: str = "adata.obs_names") -> None:
    """Raise a ``ValueError`` if a table or column has the names of the cells in another order: it goes by position."""
    if not isinstance(given, pd.DataFrame | pd.Series) or len(given) != len(names) or given.index.equals(names):
        return
    if given.index.is_unique and given.index.isin(names).all():
        raise ValueError(
            f"{argument} has the names of the cells in another order than {of} has, and goes by position: give "
            f"{argument}.loc[{index}], or {argument}.reset_index(drop=True) if the order is meant."
        )


def check_default_dtype() -> None:
    """Raise unless torch makes single-precision tensors: weights, cells and noise are all of them."""
    if torch.get_default_dtype() != torch.float32:
        raise RuntimeError(
            f"torch.get_default_dtype() is {torch.get_default_dtype()}: models are made, trained and used in single "
            "precision; call torch.set_default_dtype(torch.float32) first."
        )


class StagedModel(RegistryMixin):
    """A model of which one part is trained after the other.

    A model names its ``STAGES``, the last of which is ``"diffusion"``, and says in the methods below that have no body
    what each stage trains, and on what.
    """

    STAGES: ClassVar[tuple[str, ...]]

    process: Process
    module: nn.Module
    batches: Conditions  # levels of batch_key
    training_batches: TrainingBatches
    init_params_: dict[str, Any]
    history_: dict[str, pd.DataFrame]
    train_indices_ = TrainingRows()
    validation_indices_ = TrainingRows()

    def _start(self) -> None:
        """Set what an untrained model has; called at the end of ``__init__``."""
        check_default_dtype()
        self.module.eval()
        self.trained_stages: set[str] = set()
        self.history_ = {}
        self._tokens: Tensor | None = None  # of the training cells, all of them
        self._tokens_are_of: str | None = None  # fingerprint of these cells, as they were
        self._unfinished: str | None = None  # an interrupted training, which has left the model as it is
        self._unfinished_history: dict[str, pd.DataFrame | None] = {}
        self._progress_bar = True  # of the training in progress

    @classmethod
    def _register(cls, adata: AnnData, setup_method_args: dict[str, Any], **kwargs: Any) -> AnnDataManager:
        """Write the fields of an AnnData into the registry of scvi-tools; a view becomes an AnnData of its own."""
        if adata.is_view and adata.isbacked:
            raise ValueError(
                "adata is a view of a file, which cannot be set up: read it into memory, adata = adata.to_memory(), or "
                'write its cells to a file of their own, adata = adata.copy(filename="cells.h5ad").'
            )
        manager = AnnDataManager(
            fields=cls._fields(setup_method_args["setup_args"]),
            setup_method_args=setup_method_args,
            validation_checks=AnnDataManagerValidationCheck(check_if_view=False),
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*view.*")
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)
        return manager

    def _transfer_setup(self, adata: AnnData) -> AnnDataManager:
        setup = self._get_setup_method_args(cls=type(self), adata=adata, **self.registry["setup_args"])
        manager = self._register(adata, setup, source_registry=self.registry)
        self._tokens = None  # of the cells before
        return manager

    # ---- what a model says of itself

    @classmethod
    @abstractmethod
    def _fields(cls, setup: Mapping[str, Any]) -> list[AnnDataField]:
        """Return the fields of scvi-tools for what the arguments of ``setup_anndata`` name."""

    @abstractmethod
    def _training_rows(self) -> Any:
        """Cells to train on; raises if they cannot be."""

    @abstractmethod
    def _check_values(self, rows: Any) -> None:
        """Raise if a value of the cells to train on is none that can be; looks at all of them."""

    @abstractmethod
    def _contents(self, rows: Any) -> Iterator[Any]:
        """All that training sees of these cells: arrays, in blocks, and names."""

    @abstractmethod
    def _look_at_features(self, rows: Any) -> None:
        """Fit what follows from the training cells alone, before anything is trained."""

    @abstractmethod
    def _learn_from(self, rows: Any) -> None:
        """Remember what sampling needs to know of the training cells."""

    @abstractmethod
    def _plan(self, stage: str, arguments: Mapping[str, Any]) -> StagePlan:
        """Return the plan of a stage."""

    @abstractmethod
    def _stage_rows(self, stage: str, rows: Any) -> Any:
        """Return what a stage trains on: a data set with ``subset(positions)``."""

    @abstractmethod
    def _new_denoiser(self) -> nn.Module:
        """Return an untrained denoiser, or a network that is one without a baseline.

        Called when there is an autoencoder, and where the seed is set.
        """

    @abstractmethod
    def _description(self) -> dict[str, Any]:
        """Return what is saved beside the weights, as JSON can say it."""

    @classmethod
    def _schema(cls) -> dict[str, Any]:
        """Return what a description has to have at least; what a model saves itself comes on top."""
        levels = {"state_registry": {"categorical_mapping": LEVELS, "original_key": NAME}}
        return {
            "versions": {"sclatent": TEXT},
            "init_params": parameters(cls.__init__),
            "registry": {
                "scvi_version": TEXT,
                "model_name": one_of(cls.__name__),
                "setup_args": {"batch_key": optional(NAME)},
                "field_registries": {REGISTRY_KEYS.X_KEY: {}, REGISTRY_KEYS.BATCH_KEY: levels},
            },
            "trained_stages": list_of(one_of(*cls.STAGES)),
            "history": dict_of(LOSSES),
        }

    @classmethod
    def _check_description(cls, description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Raise if a description is not one of this model, or asks for larger networks than there are weights."""
        check(description, cls._schema(), "model.json")
        for name, field in description["registry"]["field_registries"].items():
            check(field, FIELD, f"model.json.registry.field_registries.{name}")
        n_numbers = sum(weight.numel() for weight in weights.values())
        for name, value in description["init_params"].items():
            most = len(weights) if name.endswith("blocks") else n_numbers
            if isinstance(value, int) and name != "seed" and value > most:
                raise ValueError(f"model.json.init_params.{name}={value} is more than the tensors hold")

    @abstractmethod
    def _arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that are saved beside the weights."""

    @abstractmethod
    def _restore(self, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Take back what was saved beside the weights."""

    # ---- training

    def train(
        self,
        max_epochs: int | Mapping[str, int] | None = None,
        stage: str = "all",
        accelerator: str = "auto",
        devices: int | str | list[int] = "auto",
        train_size: float = 0.9,
        batch_size: int = 128,
        early_stopping: bool = True,
        early_stopping_patience: int | None = None,
        plan_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        callbacks: Sequence[Callback] = (),
        checkpoint_dir: str | os.PathLike | None = None,
        seed: int = 0,
        progress_bar: bool = True,
        **trainer_kwargs: Any,
    ) -> None:
        r"""Train the stages of the model, one after the other.

        A stage that was trained before is trained further. When that changes the tokens that the denoiser was trained
        on, the denoiser starts anew. Arguments and values of the cells are checked first, and what the model has
        learned is given up only when an epoch of the new training is done: until then a training that is refused, fails
        or is interrupted leaves the model as it was.

        Parameters
        ----------
        max_epochs
            Epochs of each stage: a number for all, or a dict such as ``{"diffusion": 100}``. By default
            :math:`4000 / \sqrt{n}` for n cells, of images and embeddings at most 150,000 / n; between 10 and 400.
        stage
            ``"all"``, or one stage alone: ``"diffusion"``, or what comes before it, by the name in ``STAGES``.
        accelerator, devices
            As in Lightning, but one device alone: ``"auto"`` is a GPU of NVIDIA (or AMD) if there is one, else the CPU;
            ``devices=[1]`` is the second GPU.
        train_size
            Share of the cells to train on; on the others the loss is watched for early stopping.
        batch_size
            Cells in a minibatch.
        early_stopping, early_stopping_patience
            Whether to stop when the validation loss has not improved for so many epochs (default: a third of
            ``max_epochs``, at least 15). The weights of the best epoch are kept in any case, but by the stage that
            trains a classifier: it runs to its end and keeps the last, as what is watched knows nothing of labels.
        plan_kwargs
            Arguments of the plans (:mod:`sclatent.train`) by stage, such as ``{"diffusion": {"lr": 1e-3}}``.
        callbacks
            Further callbacks of ``lightning.pytorch``, for all stages; one that monitors a metric of a stage, such as
            ``"diffusion_loss_validation"``, is for that stage.
        checkpoint_dir
            Folder for a checkpoint after every epoch. Call ``train`` again with the same arguments on the same data to
            go on after an interruption: the result is that of a training without one. A folder of another training
            is refused; ``callbacks`` and the accelerator may differ. Checkpoints carry checksums, and the one before
            the last is kept, should the last one be damaged. The folder is removed at the end.
        seed
            Seed of the split, the order of cells and the noise.
        progress_bar
            Whether to show progress.
        trainer_kwargs
            Further arguments of :class:`scvi.train.Trainer`, such as ``precision="bf16-mixed"``, or ``logger``, which
            gets the losses of all stages by name. Each stage has a trainer of its own: ``max_steps`` and ``max_time``
            are those of a stage.

        Raises
        ------
        ValueError
            If an argument is not what was expected or cannot be honoured, if cells have values that are no data, or if
            ``checkpoint_dir`` holds another training or is damaged.
        TypeError
            If there is no such argument.
        RuntimeError
            If ``stage`` needs one that was not trained, or if no epoch was done.
        SystemExit
            If SIGTERM ends the training, with the status 143; the best weights so far are kept.
        KeyboardInterrupt
            If Ctrl-C does; the best weights so far are kept.
        TrainingDivergedError
            If a loss is no longer finite; the last good weights are kept.

        Examples
        --------
        ``model.train()`` trains all stages, for as many epochs as suit the number of cells. What was trained before is
        trained further, here one stage alone, with a learning rate of its own:

        >>> model.train(max_epochs=1, stage="diffusion", plan_kwargs={"diffusion": {"lr": 1e-4}})

        Every epoch is in the history, as in scvi-tools:

        >>> len(model.history["diffusion_loss_train"])
        2
        >>> axes = sclatent.pl.history(model.history)
        """
        check_default_dtype()
        plan_kwargs = plan_kwargs or {}
        stages = self._stages_to_train(stage, max_epochs, plan_kwargs)
        check_seed(seed)
        batch_size = check_whole("batch_size", batch_size)
        train_size = check_number("train_size", train_size, high=1, above=True)
        if early_stopping_patience is not None:
            early_stopping_patience = check_whole("early_stopping_patience", early_stopping_patience)
        for argument, value in (("early_stopping", early_stopping), ("progress_bar", progress_bar)):
            if not isinstance(value, bool | np.bool_):
                raise ValueError(f"{argument}={value!r} must be True or False.")
        accelerator, devices = one_device(accelerator, devices)
        callbacks = check_callbacks(callbacks)
        makes_checkpoints = checkpoint_dir is not None or any(isinstance(c, Checkpoint) for c in callbacks)
        trainer_kwargs = check_trainer_arguments(trainer_kwargs, makes_checkpoints)
        progress_bar = trainer_kwargs.pop("enable_progress_bar", progress_bar)
        arguments = {name: {"seed": seed, **plan_kwargs.get(name, {})} for name in self.STAGES}
        plans = {name: self._plan(name, arguments[name]) for name in self.STAGES}
        rows = self._training_rows()
        epochs = {name: self._n_epochs(max_epochs, name, len(rows)) for name in self.STAGES}
        order = random_stream(seed, "split").permutation(len(rows))
        n_train = max(1, round(train_size * len(rows)))
        train, validation = np.sort(order[:n_train]), np.sort(order[n_train:])
        directory, began = None, None
        if checkpoint_dir is not None:
            directory = StageDirectory(checkpoint_dir, self.STAGES)
        fits = {}
        for name in stages:
            fits[name] = StageFit(
                name,
                plans[name].keeps_best,
                n_cells=n_train,
                max_epochs=epochs[name],
                early_stopping=early_stopping,
                early_stopping_patience=early_stopping_patience or max(15, epochs[name] // 3),
                callbacks=of_stage(callbacks, name, self.STAGES),
                directory=directory,
                progress_bar=progress_bar,
                accelerator=accelerator,
                devices=devices,
                **trainer_kwargs,
            )
            if "logger" in trainer_kwargs:  # one for all stages, where Lightning makes it
                trainer_kwargs["logger"] = fits[name].trainer.loggers
        self._check_values(rows)
        cells = fingerprint(self._contents(rows))
        before = self._copy_of_what_training_changes()
        if directory is not None:
            settings = {
                "model": {"class": type(self).__name__, **self.init_params_},
                "data": cells,
                "stage": stage,
                "epochs": epochs,
                "train_size": train_size,
                "batch_size": batch_size,
                "early_stopping": early_stopping,
                "early_stopping_patience": early_stopping_patience,
                "plan_kwargs": {name: {**plan_kwargs.get(name, {}), **plan_arguments(plans[name])} for name in stages},
                "seed": seed,
                **trainer_kwargs,
            }
            weights = {key: value.detach().cpu().clone() for key, value in self.module.state_dict().items()}
            start = {"weights": weights, "trained_stages": sorted(self.trained_stages)}
            began = directory.prepare(settings, start, accelerator, self._unfinished)
        # only now, when nothing was refused, is anything of the model changed
        if cells != self._tokens_are_of:
            self._tokens, self._tokens_are_of = None, cells
        if began is not None:
            self._go_back_to(began, is_own=directory.id == self._unfinished)
        self._unfinished, self._unfinished_history = directory and directory.id, {}
        self.train_indices_, self.validation_indices_ = train, validation
        self._progress_bar, step = progress_bar, 0
        for name in stages:
            plan = None
            try:
                if name == stages[0]:
                    seen = rows.subset(train)  # the cells that the loss is watched on teach nothing
                    if not self.trained_stages:
                        self._look_at_features(seen)
                    self._learn_from(seen)
                if name in self._needs("diffusion") and "diffusion" in self.trained_stages:
                    logger.warning(f"The {name} is trained further: its tokens change, so the denoiser starts anew.")
                data = self._stage_rows(name, rows)
                plan = self._plan(name, arguments[name])
                plan.look_at(data)
                loader = make_loader(data.subset(train), batch_size, seed, shuffle=True)
                watched = make_loader(data.subset(validation), batch_size) if len(validation) else None
                fits[name].run(plan, loader, watched, step)
                if not plan.n_good_epochs:
                    raise RuntimeError(f"The {name} was not trained: training ended before the first epoch did.")
                step += len(loader) * len(plan.history[f"{name}_loss_train"])
            finally:  # also after an interruption: what was learned so far stays
                if plan is not None and plan.n_good_epochs:
                    if name in self._needs("diffusion"):
                        self._tokens_changed()
                    self.module.to(plan.device).eval()
                    self.trained_stages.add(name)
                    self._extend_history(name, plan.history, unfinished=directory is not None)
                    self.is_trained_ = self.trained_stages == set(self.STAGES)
                else:  # and what was there before, if nothing was
                    self.__dict__ = before
            before = self._copy_of_what_training_changes()
        if directory is not None:
            directory.clear()
            self._unfinished, self._unfinished_history = None, {}

    def _stages_to_train(self, stage: str, max_epochs: Any, plan_kwargs: Any) -> list[str]:
        """Names of the stages that are asked for; raises if one is no stage, or cannot be trained yet."""
        stages = list(self.STAGES) if stage == "all" else [stage]
        by_stage = 'plan_kwargs={plan_kwargs!r} must go by stage, such as {{"diffusion": {{"lr": 1e-4}}}}.'
        if not isinstance(plan_kwargs, Mapping):
            raise ValueError(by_stage.format(plan_kwargs=plan_kwargs))
        for name in (*stages, *plan_kwargs, *(max_epochs if isinstance(max_epochs, Mapping) else ())):
            if name not in self.STAGES:
                raise ValueError(f"{name!r} is no stage of training: use {' or '.join(map(repr, self.STAGES))}.")
        if not all(isinstance(arguments, Mapping) for arguments in plan_kwargs.values()):
            raise ValueError(by_stage.format(plan_kwargs=plan_kwargs))
        for before in self._needs(stages[0]):
            if before not in self.trained_stages:
                raise RuntimeError(
                    f"stage={stage!r} needs a trained {before}: call train() or train(stage={before!r}) first."
                )
        return stages

    def _needs(self, stage: str) -> tuple[str, ...]:
        """Stages that one stage builds on: all before it."""
        return self.STAGES[: self.STAGES.index(stage)]

    @staticmethod
    def _default_epochs(n_cells: int) -> float:
        return 4000 / n_cells**0.5

    def _n_epochs(self, max_epochs: int | Mapping[str, int] | None, stage: str, n_cells: int) -> int:
        asked = max_epochs.get(stage) if isinstance(max_epochs, Mapping) else max_epochs
        if asked is None:
            return int(np.clip(round(self._default_epochs(n_cells)), 10, 400))
        return check_whole("max_epochs" if asked is max_epochs else f"max_epochs[{stage!r}]", asked)

    def _copy_of_what_training_changes(self) -> dict[str, Any]:
        """All attributes, the networks and collections among them as copies."""
        kept = {key: copy.copy(value) if isinstance(value, dict | set) else value for key, value in vars(self).items()}
        return {**kept, "module": copy.deepcopy(self.module)}

    def _tokens_changed(self) -> None:
        """Let go of what was made from the tokens of an autoencoder that has changed."""
        self._tokens = None
        if "diffusion" in self.trained_stages:
            self.trained_stages.discard("diffusion")
            self.module.denoiser = self._seeded_denoiser()

    def _extend_history(self, stage: str, frames: dict[str, pd.DataFrame], unfinished: bool) -> None:
        n_epochs = {key: int(frame.index.max()) + 1 for key, frame in self.history_.items()}
        for key, frame in frames.items():
            before = self.history_.get(key)
            if unfinished:
                self._unfinished_history[key] = before
            # not every metric of a stage has a value in every epoch
            n_before = n_epochs.get(f"{stage}_loss_train" if key.startswith(f"{stage}_") else key, 0)
            frame = frame.set_index(frame.index + n_before)
            if before is not None:
                frame = pd.concat([before, frame])
            self.history_[key] = frame.rename_axis("epoch")

    def _go_back_to(self, began: Mapping[str, Any], is_own: bool) -> None:
        """Be as at the beginning of a training that is resumed: its checkpoints have what came of it since."""
        self.module.load_state_dict(began["weights"])
        self.trained_stages, self._tokens = set(began["trained_stages"]), None
        for key, before in self._unfinished_history.items() if is_own else ():
            if before is None:
                del self.history_[key]
            else:
                self.history_[key] = before

    # ---- what the methods of every model need

    def _check_stage(self, stage: str, method: str) -> None:
        check_default_dtype()
        if stage not in self.trained_stages:
            raise RuntimeError(f"{method} needs a trained {stage}: call train() first.")

    def _check_baseline_only(self, baseline_only: bool) -> None:
        if not isinstance(baseline_only, bool | np.bool_):
            raise ValueError(f"baseline_only={baseline_only!r} must be True or False.")
        if baseline_only and not self.module.denoiser.has_baseline:
            raise ValueError(
                "baseline_only=True needs a baseline, and this model has none: make it with baseline='mixed'."
            )

    def _given(self, adata: AnnData | None) -> AnnData:
        """The AnnData that was given to a method, by default that of training."""
        adata = self.adata if adata is None else adata
        if adata is None:
            raise ValueError(
                "adata is missing: this model was loaded without data, so there are no training cells to fall back on."
            )
        check_adata(adata)
        return adata

    def _batch_codes(self, obs: pd.DataFrame) -> np.ndarray:
        """Codes of the batches of measured cells, (cells,)."""
        key = self.registry["setup_args"]["batch_key"]
        if key is None:
            return np.zeros(len(obs), dtype=np.int64)
        if key not in obs:
            raise KeyError(f"adata.obs has no column {key!r}, the batch_key of this model.")
        check_categorical(obs, key, "batch_key")
        return self.batches.codes_of("batch", obs[key], f"adata.obs[{key!r}]")

    def _state(self, key: str) -> dict[str, Any]:
        return self.registry["field_registries"][key]["state_registry"]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.module.parameters()).device

    def _seeded_denoiser(self) -> ResidualDenoiser:
        """An untrained denoiser, always the same."""
        with initial_weights(self.init_params_["seed"], "denoiser"):
            denoiser = self._new_denoiser()
        if isinstance(denoiser, ResidualDenoiser):
            return denoiser
        autoencoder = self.module.autoencoder
        return ResidualDenoiser(denoiser, (autoencoder.n_tokens, autoencoder.token_dim), self.process, "none")

    def _blocks(
        self, n: int, batch_size: int, description: str, progress_bar: bool, unit: str = " cells", delay: float = 0.0
    ) -> Iterator[np.ndarray]:
        """Positions of n cells, block by block, with a progress bar if they take more than ``delay`` seconds."""
        check_whole("batch_size", batch_size)
        with tqdm(total=n, desc=description, unit=unit, delay=delay, disable=not progress_bar) as bar:
            for start in range(0, n, batch_size):
                cells = np.arange(start, min(start + batch_size, n))
                yield cells
                bar.update(len(cells))

    @torch.no_grad()
    def get_activations(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        noise_level: float = 0.0,
        batch_size: int = 256,
        seed: int = 0,
    ) -> np.ndarray:
        """Activations of the denoiser without any condition, averaged over the tokens (arXiv 2301.13622, section 3).

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
        if not (is_number(noise_level) and 0 <= noise_level <= 1):
            raise ValueError(f"noise_level={noise_level!r} must be between 0 (no noise) and 1 (noise alone).")
        rows = self._rows(adata, indices)
        blocks = []
        for cells in self._blocks(len(rows), batch_size, "Activations", progress_bar=False):
            batch = rows[cells]
            x, t = self._add_noise(self._latent(batch, seed, cells), noise_level, seed, cells)
            blocks.append(self.module.denoiser.activations(x, t, self._size_of(batch)).cpu())
        return torch.cat(blocks).numpy()

    def _latent(self, batch: Any, seed: int, cells: np.ndarray) -> Tensor:
        """Standardised tokens of measured cells."""
        return self.module.standardize(self._encode_batch(batch))

    def _size_of(self, batch: Any) -> Tensor | None:
        """Standardised log library sizes of measured cells, (cells,); None if they have no library size."""
        return None

    def _add_noise(self, z: Tensor, noise_level: float, seed: int, cells: np.ndarray) -> tuple[Tensor, Tensor]:
        """Noisy tokens of the process, and their times (cells,)."""
        t = z.new_full((len(z),), self.process.time(noise_level))
        return self.process.interpolate(z, self._noise(seed, cells), t), t

    # ---- what the cells need that a model generates

    def _noise(self, seed: int, cells: np.ndarray, purpose: Purpose = "noise") -> Tensor:
        """Noise of the shape of the tokens of cells; a cell has always the same."""
        shape = self.module.autoencoder.n_tokens, self.module.autoencoder.token_dim
        noise = np.stack([cell_rng(seed, purpose, i).standard_normal(shape) for i in cells]).astype(np.float32)
        return torch.from_numpy(noise).to(self.device)

    def _batches_of(
        self, batch: Any, conditions: Conditions, codes: np.ndarray, uniforms: np.ndarray
    ) -> tuple[np.ndarray, dict[str, str]]:
        """Batches to decode cells under, given or drawn by uniform numbers (cells, 2), and what uns says of them."""
        batch_key = self.registry["setup_args"]["batch_key"]
        if batch is None:
            batches, rules = self.training_batches.draw(codes, uniforms)
            batches = self._asked_batches(conditions, codes, batches)
        elif batch_key in conditions.keys:
            raise ValueError(
                f"batch={short_repr(batch)}: {batch_key!r} is a condition of this model: ask for it as such."
            )
        elif batch_key is None:
            raise ValueError(
                f"batch={short_repr(batch)}: this model was trained without batches. Set up the data with batch_key to "
                "have them."
            )
        else:
            batches, rules = self.batches.encode({"batch": batch}, len(uniforms))[:, 0], ["given"]
        return batches, {} if batch_key is None else {"batch": ", ".join(rules)}

    def _asked_batches(self, conditions: Conditions, codes: np.ndarray, batches: np.ndarray) -> np.ndarray:
        """Batches to decode under, (cells,): these, unless the batch is a condition that is asked for."""
        batch_key = self.registry["setup_args"]["batch_key"]
        if batch_key not in conditions.keys:
            return batches
        asked, known = codes[:, conditions.keys.index(batch_key)], self.batches.levels["batch"]
        of_level = np.array([known.index(level) for level in conditions.levels[batch_key]])
        return np.where(asked == OPEN, batches, of_level[asked])

    def _warn_of_levels(
        self, conditions: Conditions, codes: np.ndarray | None = None, batches: np.ndarray | None = None
    ) -> None:
        """Say which levels no training cell has, of all or of those that are asked for, by codes (cells, n_keys)."""
        seen, asked, levels = self.training_batches.codes, codes, dict(conditions.levels)
        batch_key = self.registry["setup_args"]["batch_key"]
        if batch_key not in (None, *levels):
            levels[batch_key] = self.batches.levels["batch"]
            seen = np.column_stack([seen, self.training_batches.batch])
            asked = None if codes is None else np.column_stack([codes, batches])
        for k, (key, names) in enumerate(levels.items()):
            empty = np.setdiff1d(np.arange(len(names)) if asked is None else asked[:, k], np.append(seen[:, k], OPEN))
            if len(empty):
                warnings.warn(
                    f"No training cell has a level of {key!r} that is one of {short_repr([names[i] for i in empty])}: "
                    "nothing is learned of it, and cells that are made under it say nothing. Its cells were removed "
                    "after setup_anndata, or are all among those that the loss is watched on: set the data up again "
                    "without it, or train with train_size=1.",
                    stacklevel=4,
                )

    def _warn_of_batches(self, conditions: Conditions, codes: np.ndarray, batches: np.ndarray) -> None:
        """Say it where a level was never seen, or a condition is decoded under a batch in which it was never seen."""
        self._warn_of_levels(conditions, codes, batches)
        cells, keys = self.training_batches.apart(codes, batches).nonzero()
        if len(cells):
            key, batch_key = conditions.keys[keys[0]], self.registry["setup_args"]["batch_key"]
            level = conditions.levels[key][codes[cells[0], keys[0]]]
            batch = self.batches.levels["batch"][batches[cells[0]]]
            warnings.warn(
                f"No training cell of {key}={level!r} has {batch_key}={batch!r}, under which it is decoded here "
                f"({len(np.unique(cells))} of {len(codes)} cells have such a pair). Condition and batch cannot be told "
                "apart then: what of the effect the decoder has put down to the batch is missing in these cells.",
                stacklevel=3,
            )

    @staticmethod
    def _check_generated(start: Tensor, tokens: Tensor, values: np.ndarray, guidance_weight: Any) -> None:
        """Raise a ``ValueError`` if cells have gone where none can be, as guidance that is too strong takes them.

        Parameters
        ----------
        start, tokens
            Standardised tokens, before and after.
        values
            What they were decoded to.
        guidance_weight
            The weight, for the message.
        """
        farthest = FAR * max(1.0, float(start.abs().max()))
        if not (bool((tokens.abs() < farthest).all()) and np.isfinite(values).all()):
            raise ValueError(
                f"guidance_weight={guidance_weight!r} took cells beyond all bounds: use a smaller weight. If it is an "
                "ordinary one, the model has learned nothing: train it anew with a lower learning rate."
            )

    def _obs(self, conditions: Conditions, codes: np.ndarray, batches: np.ndarray, index: pd.Index) -> pd.DataFrame:
        """The obs of generated cells: the conditions they were given, and their batches."""
        obs = conditions.decode(codes, index)
        batch_key = self.registry["setup_args"]["batch_key"]
        if batch_key is not None and batch_key not in conditions.keys:
            obs[batch_key] = pd.Categorical.from_codes(batches, categories=self.batches.levels["batch"])
        return obs

    @staticmethod
    def _obs_of(adata: AnnData, cells: np.ndarray) -> pd.DataFrame:
        """The obs of measured cells, without what setting up has added."""
        kept = [not str(name).startswith("_scvi") for name in adata.obs.columns]
        return adata.obs.loc[:, kept].iloc[cells].copy()

    def _provenance(self, method: str, **how: Any) -> dict[str, Any]:
        how = {key: dict(value) if isinstance(value, Mapping) else value for key, value in how.items()}
        return {"model": type(self).__name__, "version": version("sclatent"), "method": method, **how}

    # ---- saved models

    def save(self, dir_path: str | os.PathLike, overwrite: bool = False) -> None:
        """Save the model as a folder of safetensors and JSON, with all it needs to sample; not the cells.

        Parameters
        ----------
        dir_path
            The folder.
        overwrite
            Whether to replace a model that is there. The old one stands until the new one is whole.

        Examples
        --------
        >>> model.save("my_model")
        >>> model.save("my_model", overwrite=True)
        """
        description = {
            "class": type(self).__name__,
            "versions": {p: version(p) for p in ("sclatent", "torch", "scvi-tools", "anndata")},
            "init_params": self.init_params_,
            "registry": self.registry,
            "trained_stages": sorted(self.trained_stages),
            "history": {key: list(frame.iloc[:, 0].items()) for key, frame in self.history_.items()},
            **self._description(),
        }
        tensors = {f"module.{key}": value for key, value in self.module.state_dict().items()}
        arrays = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in self._arrays().items()}
        write_model(dir_path, description, tensors | arrays, overwrite)

    @classmethod
    def load(
        cls, dir_path: str | os.PathLike, adata: AnnData | None = None, device: str | torch.device = "auto"
    ) -> Self:
        """Load a saved model; no code is run.

        Parameters
        ----------
        dir_path
            The folder.
        adata
            AnnData to use where none is given to a method, and to train further on; it must have the features that
            the model was trained on. Not needed to sample.
        device
            Where to put the model; ``"auto"`` takes a GPU if there is one.

        Returns
        -------
        Self
            The model, as it was when it was saved.

        Raises
        ------
        FileNotFoundError
            If there is no model.
        ValueError
            If the folder holds a model of another class or of other networks, or was damaged or changed.

        Examples
        --------
        Call it on the class of the model, such as ``SCLDM.load``; of a model at hand that is ``type(model)``:

        >>> model.save("my_model")
        >>> loaded = type(model).load("my_model", adata)
        >>> loaded.trained_stages == model.trained_stages
        True

        To sample takes no data:

        >>> type(model).load("my_model").sample(2).n_obs
        2
        """
        description, tensors = read_model(dir_path, cls.__name__)
        prefix = "module."
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        with refuse_damaged(dir_path):
            cls._check_description(description, weights)
            with torch.device("meta"):  # the shapes alone, which cost nothing
                outline = cls(registry=description["registry"], **description["init_params"]).module
        try:
            outline.load_state_dict({key: value.to("meta") for key, value in weights.items()})
        except RuntimeError as error:
            raise ValueError(
                f"dir_path={str(dir_path)!r} was saved by sclatent {description['versions']['sclatent']}, whose "
                f"{cls.__name__} had other networks than that of this version: train it again."
            ) from error
        model = cls(registry=description["registry"], **description["init_params"])
        with refuse_damaged(dir_path):
            model.module.load_state_dict(weights)
            for key, weight in model.module.state_dict().items():
                saved = weights.get(key, weight)
                if saved.is_floating_point() != weight.is_floating_point():
                    raise ValueError(f"{key} is {saved.dtype}, not {weight.dtype}")
                if not weight.isfinite().all():
                    raise ValueError(f"{key} has numbers that are not finite")
            model.trained_stages = set(description["trained_stages"])
            model.is_trained_ = model.trained_stages == set(cls.STAGES)
            model.history_ = {
                key: pd.DataFrame({key: dict(items)}).rename_axis("epoch")
                for key, items in description["history"].items()
            }
            model._restore(description, {k: v.numpy() for k, v in tensors.items() if not k.startswith(prefix)})
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model.module.to(device)
        if adata is not None:
            model.adata = adata
        return model
