"""Models of which one part is trained after the other."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sclatent.train import StagePlan

from ._checks import check_default_dtype
from ._saved_model import SavedModel
from ._train_runner import TrainRunner
from ._training_rows import TrainingRows


class StagedModel(SavedModel):
    """A model of which one part is trained after the other.

    It says in the methods below that have no body what each stage trains, and on what.
    """

    train_indices_ = TrainingRows()
    validation_indices_ = TrainingRows()

    def _start(self) -> None:
        """Set what an untrained model has; called at the end of ``__init__``."""
        check_default_dtype()
        self.module.eval()
        self.trained_stages = set()
        self.history_ = {}
        self._tokens: Tensor | None = None  # of the training cells, all of them
        self._tokens_are_of: str | None = None  # fingerprint of these cells, as they were
        self._unfinished: str | None = None  # an interrupted training, which has left the model as it is
        self._unfinished_history: dict[str, pd.DataFrame | None] = {}
        self._progress_bar = True  # of the training in progress

    # ---- what a model says of itself

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
    def _tokens_changed(self) -> None:
        """Let go of what was made from the tokens of an autoencoder that has changed."""

    @abstractmethod
    def _copy_of_what_training_changes(self) -> dict[str, Any]:
        """All attributes, those that training changes in place as copies."""

    @staticmethod
    @abstractmethod
    def _default_epochs(n_cells: int) -> float:
        """Return for how many epochs so many cells are trained on by default, before limits."""

    def _needs(self, stage: str) -> tuple[str, ...]:
        """Stages that one stage builds on: all before it."""
        return self.STAGES[: self.STAGES.index(stage)]

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
        TrainRunner(
            self,
            max_epochs=max_epochs,
            stage=stage,
            accelerator=accelerator,
            devices=devices,
            train_size=train_size,
            batch_size=batch_size,
            early_stopping=early_stopping,
            early_stopping_patience=early_stopping_patience,
            plan_kwargs=plan_kwargs or {},
            callbacks=callbacks,
            checkpoint_dir=checkpoint_dir,
            seed=seed,
            progress_bar=progress_bar,
            trainer_kwargs=trainer_kwargs,
        )()

    def _stage_is_trained(self, stage: str, plan: StagePlan, unfinished: bool) -> None:
        """Take over what a stage has learned."""
        if stage in self._needs("diffusion"):
            self._tokens_changed()
        self.module.to(plan.device).eval()
        self.trained_stages.add(stage)
        self._extend_history(stage, plan.history, unfinished)
        self.is_trained_ = self.trained_stages == set(self.STAGES)

    def _check_stage(self, stage: str, method: str) -> None:
        check_default_dtype()
        if stage not in self.trained_stages:
            raise RuntimeError(f"{method} needs a trained {stage}: call train() first.")

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
