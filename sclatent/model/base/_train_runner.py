"""One call of ``train``: what was asked for, checked before any work, and then done."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.callbacks import Callback, Checkpoint

from sclatent.data import check_number, check_seed, check_whole, make_loader, random_stream

from ._checkpoints import StageDirectory, fingerprint, plan_arguments
from ._stages import StageFit
from ._trainer import check_callbacks, check_trainer_arguments, of_stage, one_device

if TYPE_CHECKING:
    from ._staged_model import StagedModel

logger = logging.getLogger(__name__)


class TrainRunner:
    """Train stages of a model, one after the other.

    Parameters
    ----------
    model
        The model.
    max_epochs, stage, accelerator, devices, train_size, batch_size, early_stopping, early_stopping_patience, \
    plan_kwargs, callbacks, checkpoint_dir, seed, progress_bar, trainer_kwargs
        As of :meth:`StagedModel.train`.
    """

    def __init__(
        self,
        model: StagedModel,
        *,
        max_epochs: int | Mapping[str, int] | None,
        stage: str,
        accelerator: str,
        devices: int | str | list[int],
        train_size: float,
        batch_size: int,
        early_stopping: bool,
        early_stopping_patience: int | None,
        plan_kwargs: Mapping[str, Mapping[str, Any]],
        callbacks: Sequence[Callback],
        checkpoint_dir: str | os.PathLike | None,
        seed: int,
        progress_bar: bool,
        trainer_kwargs: dict[str, Any],
    ) -> None:
        self.model, self.stage = model, stage
        self.stages = self._stages_to_train(stage, max_epochs, plan_kwargs)
        check_seed(seed)
        self.seed = seed
        self.batch_size = check_whole("batch_size", batch_size)
        self.train_size = check_number("train_size", train_size, high=1, above=True)
        if early_stopping_patience is not None:
            early_stopping_patience = check_whole("early_stopping_patience", early_stopping_patience)
        for argument, value in (("early_stopping", early_stopping), ("progress_bar", progress_bar)):
            if not isinstance(value, bool | np.bool_):
                raise ValueError(f"{argument}={value!r} must be True or False.")
        self.accelerator, self.devices = one_device(accelerator, devices)
        callbacks = check_callbacks(callbacks)
        makes_checkpoints = checkpoint_dir is not None or any(isinstance(c, Checkpoint) for c in callbacks)
        self.trainer_kwargs = check_trainer_arguments(trainer_kwargs, makes_checkpoints)
        self.progress_bar = self.trainer_kwargs.pop("enable_progress_bar", progress_bar)
        self.early_stopping, self.patience = early_stopping, early_stopping_patience
        self.given = {name: dict(plan_kwargs.get(name, {})) for name in model.STAGES}
        self.plans = {name: model._plan(name, self._arguments(name)) for name in model.STAGES}
        self.rows = model._training_rows()
        self.epochs = {name: self._n_epochs(max_epochs, name) for name in model.STAGES}
        order = random_stream(seed, "split").permutation(len(self.rows))
        n_train = max(1, round(self.train_size * len(self.rows)))
        self.train, self.validation = np.sort(order[:n_train]), np.sort(order[n_train:])
        self.directory = None if checkpoint_dir is None else StageDirectory(checkpoint_dir, model.STAGES)
        self.fits = {name: self._fit(name, callbacks) for name in self.stages}

    def __call__(self) -> None:
        """Train; what the model has learned is given up only when an epoch of the new training is done."""
        model = self.model
        model._check_values(self.rows)
        cells = fingerprint(model._contents(self.rows))
        before = model._copy_of_what_training_changes()
        began = self._begin(cells)
        # only now, when nothing was refused, is anything of the model changed
        if cells != model._tokens_are_of:
            model._tokens, model._tokens_are_of = None, cells
        if began is not None:
            model._go_back_to(began, is_own=self.directory is not None and self.directory.id == model._unfinished)
        model._unfinished, model._unfinished_history = None if self.directory is None else self.directory.id, {}
        model.train_indices_, model.validation_indices_ = self.train, self.validation
        model._progress_bar, step = self.progress_bar, 0
        for name in self.stages:
            step = self._train_stage(name, step, before)
            before = model._copy_of_what_training_changes()
        if self.directory is not None:
            self.directory.clear()
            model._unfinished, model._unfinished_history = None, {}

    def _train_stage(self, name: str, step: int, before: dict[str, Any]) -> int:
        """Train one stage from a step on; return the step after it. ``before`` is the model without it."""
        model, plan = self.model, None
        try:
            if name == self.stages[0]:
                seen = self.rows.subset(self.train)  # the cells that the loss is watched on teach nothing
                if not model.trained_stages:
                    model._look_at_features(seen)
                model._learn_from(seen)
            if name in model._needs("diffusion") and "diffusion" in model.trained_stages:
                logger.warning(f"The {name} is trained further: its tokens change, so the denoiser starts anew.")
            data = model._stage_rows(name, self.rows)
            plan = model._plan(name, self._arguments(name))
            plan.look_at(data)
            loader = make_loader(data.subset(self.train), self.batch_size, self.seed, shuffle=True)
            watched = make_loader(data.subset(self.validation), self.batch_size) if len(self.validation) else None
            self.fits[name].run(plan, loader, watched, step)
            if not plan.n_good_epochs:
                raise RuntimeError(f"The {name} was not trained: training ended before the first epoch did.")
            return step + len(loader) * len(plan.history[f"{name}_loss_train"])
        finally:  # also after an interruption: what was learned so far stays
            if plan is not None and plan.n_good_epochs:
                model._stage_is_trained(name, plan, unfinished=self.directory is not None)
            else:  # and what was there before, if nothing was
                model.__dict__ = before

    def _begin(self, cells: str) -> Mapping[str, Any] | None:
        """Make the folder of checkpoints ready; return where an interrupted training in it began, if there is one."""
        if self.directory is None:
            return None
        model = self.model
        settings = {
            "model": {"class": type(model).__name__, **model.init_params_},
            "data": cells,
            "stage": self.stage,
            "epochs": self.epochs,
            "train_size": self.train_size,
            "batch_size": self.batch_size,
            "early_stopping": self.early_stopping,
            "early_stopping_patience": self.patience,
            "plan_kwargs": {name: {**self.given[name], **plan_arguments(self.plans[name])} for name in self.stages},
            "seed": self.seed,
            **self.trainer_kwargs,
        }
        weights = {key: value.detach().cpu().clone() for key, value in model.module.state_dict().items()}
        start = {"weights": weights, "trained_stages": sorted(model.trained_stages)}
        return self.directory.prepare(settings, start, self.accelerator, model._unfinished)

    def _fit(self, name: str, callbacks: list[Callback]) -> StageFit:
        fit = StageFit(
            name,
            self.plans[name].keeps_best,
            n_cells=len(self.train),
            max_epochs=self.epochs[name],
            early_stopping=self.early_stopping,
            early_stopping_patience=self.patience or max(15, self.epochs[name] // 3),
            callbacks=of_stage(callbacks, name, self.model.STAGES),
            directory=self.directory,
            progress_bar=self.progress_bar,
            accelerator=self.accelerator,
            devices=self.devices,
            **self.trainer_kwargs,
        )
        if "logger" in self.trainer_kwargs:  # one for all stages, where Lightning makes it
            self.trainer_kwargs["logger"] = fit.trainer.loggers
        return fit

    def _arguments(self, name: str) -> dict[str, Any]:
        return {"seed": self.seed, **self.given[name]}

    def _stages_to_train(self, stage: str, max_epochs: Any, plan_kwargs: Any) -> list[str]:
        """Names of the stages that are asked for; raises if one is no stage, or cannot be trained yet."""
        model = self.model
        stages = list(model.STAGES) if stage == "all" else [stage]
        by_stage = f'plan_kwargs={plan_kwargs!r} must go by stage, such as {{"diffusion": {{"lr": 1e-4}}}}.'
        if not isinstance(plan_kwargs, Mapping):
            raise ValueError(by_stage)
        for name in (*stages, *plan_kwargs, *(max_epochs if isinstance(max_epochs, Mapping) else ())):
            if name not in model.STAGES:
                raise ValueError(f"{name!r} is no stage of training: use {' or '.join(map(repr, model.STAGES))}.")
        if not all(isinstance(arguments, Mapping) for arguments in plan_kwargs.values()):
            raise ValueError(by_stage)
        for before in model._needs(stages[0]):
            if before not in model.trained_stages:
                raise RuntimeError(
                    f"stage={stage!r} needs a trained {before}: call train() or train(stage={before!r}) first."
                )
        return stages

    def _n_epochs(self, max_epochs: int | Mapping[str, int] | None, stage: str) -> int:
        asked = max_epochs.get(stage) if isinstance(max_epochs, Mapping) else max_epochs
        if asked is None:
            return int(np.clip(round(self.model._default_epochs(len(self.rows))), 10, 400))
        return check_whole("max_epochs" if asked is max_epochs else f"max_epochs[{stage!r}]", asked)
