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
from scvi.data import AnnDataManager, AnnDataManagerValidationCheck
from scvi.data.fields import AnnDataField
from scvi.model.base import BaseModelClass
from torch import Tensor, nn
from tqdm.auto import tqdm

from sclatent.data import Conditions, check_number, check_whole, make_loader
from sclatent.train import StagePlan

from ._folder import read_model, write_model
from ._random import Purpose, cell_rng, torch_seed
from ._stages import StageDirectory, StageFit, fingerprint
from ._trainer import check_callbacks, check_trainer_arguments, of_stage, one_device

logger = logging.getLogger(__name__)


def check_n_samples(n_samples: Any) -> int:
    """Return how many cells are asked for; raises unless that is a number of cells."""
    if isinstance(n_samples, bool) or not isinstance(n_samples, int | np.integer) or n_samples < 1:
        raise ValueError(
            f"n_samples={n_samples!r} must be a whole number of at least 1: how many cells to make, the first argument."
        )
    return int(n_samples)


def check_default_dtype() -> None:
    """Raise unless torch makes single-precision tensors: weights, cells and noise are all of them."""
    if torch.get_default_dtype() != torch.float32:
        raise RuntimeError(
            f"torch.get_default_dtype() is {torch.get_default_dtype()}: models are made, trained and used in single "
            "precision; call torch.set_default_dtype(torch.float32) first."
        )


class StagedModel(BaseModelClass):
    """A model of which one part is trained after the other.

    A model names its ``STAGES``, the last of which is ``"diffusion"``, and says in the methods below that have no body
    what each stage trains, and on what.
    """

    STAGES: ClassVar[tuple[str, ...]]

    module: nn.Module
    batches: Conditions  # levels of batch_key
    batch_codes: np.ndarray  # of the training cells
    init_params_: dict[str, Any]
    history_: dict[str, pd.DataFrame]

    def _start(self) -> None:
        """Set what an untrained model has; called at the end of ``__init__``."""
        check_default_dtype()
        self.module.eval()
        self.trained_stages: set[str] = set()
        self.history_ = {}
        self._tokens: Tensor | None = None
        self._unfinished_history: dict[str, pd.DataFrame | None] = {}

    @classmethod
    def _register(
        cls, adata: AnnData, fields: Sequence[AnnDataField], setup_method_args: dict[str, Any], **kwargs: Any
    ) -> None:
        """Write the fields of an AnnData into the registry of scvi-tools; a view becomes an AnnData of its own."""
        manager = AnnDataManager(
            fields=list(fields),
            setup_method_args=setup_method_args,
            validation_checks=AnnDataManagerValidationCheck(check_if_view=False),
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*view.*")
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    # ---- what a model says of itself

    @abstractmethod
    def _training_rows(self) -> Any:
        """Cells to train on; raises if they cannot be."""

    @abstractmethod
    def _check_values(self, rows: Any) -> None:
        """Raise if a value of the cells to train on is none that can be; looks at all of them."""

    @abstractmethod
    def _contents(self, rows: Any) -> list[Any]:
        """What tells these training cells from others."""

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
        """Return an untrained denoiser; called when there is an autoencoder, and where the seed is set."""

    @abstractmethod
    def _description(self) -> dict[str, Any]:
        """Return what is saved beside the weights, as JSON can say it."""

    @abstractmethod
    def _arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that are saved beside the weights."""

    @abstractmethod
    def _restore(self, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Take back what was saved beside the weights."""

    @abstractmethod
    def _check_query(self, adata: AnnData) -> None:
        """Raise if an AnnData does not fit the model."""

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
            Folder for checkpoints, one an epoch. Call ``train`` again with the same arguments on the same data to go
            on after an interruption: the result is that of a training without one. The checkpoints are removed at the
            end.
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
            If an argument is not what was expected or cannot be honoured, or if cells have values that are no data.
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
        seed = check_whole("seed", seed, least=0)
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
        keeps_best = {name: self._plan(name, arguments[name]).keeps_best for name in self.STAGES}
        rows = self._training_rows()
        epochs = {name: self._n_epochs(max_epochs, name, len(rows)) for name in self.STAGES}
        order = np.random.default_rng(seed).permutation(len(rows))
        n_train = max(1, round(train_size * len(rows)))
        train, validation = np.sort(order[:n_train]), np.sort(order[n_train:])
        directory = None
        if checkpoint_dir is not None:
            settings = {
                "model": self.init_params_,
                "data": fingerprint(*self._contents(rows)),
                "stage": stage,
                "epochs": epochs,
                "train_size": train_size,
                "batch_size": batch_size,
                "early_stopping": early_stopping,
                "early_stopping_patience": early_stopping_patience,
                "plan_kwargs": plan_kwargs,
                "seed": seed,
            }
            directory = StageDirectory(checkpoint_dir, settings, self.STAGES)
        fits = {}
        for name in stages:
            fits[name] = StageFit(
                name,
                keeps_best[name],
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
        before = self._copy_of_what_training_changes()
        if directory is not None:
            directory.prepare()
            self._forget_unfinished_history()
        # only now, when nothing was refused, is anything of the model changed
        self._unfinished_history = {}
        step = 0
        for name in stages:
            plan = None
            try:
                if name == stages[0]:
                    self.train_indices_, self.validation_indices_ = train, validation
                    self._learn_from(rows)
                if name in self._needs("diffusion") and "diffusion" in self.trained_stages:
                    logger.warning(f"The {name} is trained further: its tokens change, so the denoiser starts anew.")
                data = self._stage_rows(name, rows)
                plan = self._plan(name, arguments[name])
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
            self._unfinished_history = {}

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

    def _forget_unfinished_history(self) -> None:
        """Go back to the history before an interrupted training that is resumed: its checkpoint has those epochs."""
        for key, before in self._unfinished_history.items():
            if before is None:
                del self.history_[key]
            else:
                self.history_[key] = before

    # ---- what the methods of every model need

    def _check_stage(self, stage: str, method: str) -> None:
        check_default_dtype()
        if stage not in self.trained_stages:
            raise RuntimeError(f"{method} needs a trained {stage}: call train() first.")

    def _state(self, key: str) -> dict[str, Any]:
        return self.registry["field_registries"][key]["state_registry"]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.module.parameters()).device

    def _seeded_denoiser(self) -> nn.Module:
        """An untrained denoiser, always the same."""
        with torch_seed(self.init_params_["seed"] + 1):
            return self._new_denoiser()

    def _blocks(self, n: int, batch_size: int, description: str, progress_bar: bool) -> Iterator[np.ndarray]:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be at least 1.")
        with tqdm(total=n, desc=description, unit=" cells", disable=not progress_bar) as bar:
            for start in range(0, n, batch_size):
                cells = np.arange(start, min(start + batch_size, n))
                yield cells
                bar.update(len(cells))

    # ---- what the cells need that a model generates

    def _noise(self, seed: int, cells: np.ndarray, purpose: Purpose = "noise") -> Tensor:
        """Noise of the shape of the tokens of cells; a cell has always the same."""
        shape = self.module.autoencoder.n_tokens, self.module.autoencoder.token_dim
        noise = np.stack([cell_rng(seed, purpose, i).standard_normal(shape) for i in cells]).astype(np.float32)
        return torch.from_numpy(noise).to(self.device)

    def _batches_of(self, batch: str | None, uniforms: np.ndarray) -> np.ndarray:
        """Codes of the batches to decode cells under: a given one, or drawn as in training by uniform numbers."""
        if batch is None:
            return self.batch_codes[(uniforms * len(self.batch_codes)).astype(int)]
        return self.batches.encode({"batch": batch}, len(uniforms))[:, 0]

    def _obs(self, conditions: Conditions, codes: np.ndarray, batches: np.ndarray, index: pd.Index) -> pd.DataFrame:
        """The obs of generated cells: the conditions they were given, and their batches."""
        obs = conditions.decode(codes, index)
        batch_key = self.registry["setup_args"]["batch_key"]
        if batch_key is not None:
            obs[batch_key] = pd.Categorical.from_codes(batches, categories=self.batches.levels["batch"])
        return obs

    @staticmethod
    def _obs_of(adata: AnnData, cells: np.ndarray) -> pd.DataFrame:
        """The obs of measured cells, without what setting up has added."""
        obs = adata.obs.iloc[cells]
        return obs.loc[:, ~obs.columns.str.startswith("_scvi")].copy()

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
        model = cls(registry=description["registry"], **description["init_params"])
        prefix = "module."
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            model.module.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"dir_path={str(dir_path)!r} was saved by sclatent {description['versions']['sclatent']}, whose "
                f"{cls.__name__} had other networks than that of this version: train it again."
            ) from error
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model.module.to(device)
        model.trained_stages = set(description["trained_stages"])
        model.is_trained_ = model.trained_stages == set(cls.STAGES)
        model.history_ = {
            key: pd.DataFrame({key: dict(items)}).rename_axis("epoch") for key, items in description["history"].items()
        }
        model._restore(description, {k: v.numpy() for k, v in tensors.items() if not k.startswith(prefix)})
        if adata is not None:
            model._check_query(adata)
            model._adata = adata
        return model
