"""Training of one stage: checkpoints, resumption, early stopping, the best weights."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import signal
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from sclatent.train import BestWeights, History, ProgressBar, StagePlan

from ._files import write_atomically
from ._trainer import make_trainer

logger = logging.getLogger(__name__)


class StageDirectory:
    """Where an interrupted training finds what it needs to go on, one checkpoint a stage.

    Parameters
    ----------
    path
        The folder; made when it is first written to.
    settings
        Everything that determines the result. A checkpoint made under other settings is refused.
    stages
        Names of the stages.
    """

    def __init__(self, path: str | os.PathLike, settings: Mapping[str, Any], stages: Sequence[str]) -> None:
        self.stages = stages
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings, default=str))
        self._settings_file = self.path / "settings.json"

    def prepare(self) -> None:
        """Make the folder, or check that what is in it belongs to this training."""
        if self._settings_file.exists():
            found = json.loads(self._settings_file.read_text())
            differing = sorted(k for k in self.settings | found if self.settings.get(k) != found.get(k))
            if differing:
                raise ValueError(
                    f"checkpoint_dir={str(self.path)!r} holds an interrupted training with other settings "
                    f"({', '.join(differing)}): use the same settings to resume it, or another folder."
                )
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self._settings_file, json.dumps(self.settings, indent=1).encode())

    def checkpoint(self, stage: str) -> Path:
        """File of the checkpoint of a stage in progress."""
        return self.path / f"{stage}.ckpt"

    def finished(self, stage: str) -> Path:
        """File of the outcome of a stage that is done."""
        return self.path / f"{stage}.done.pt"

    def clear(self) -> None:
        """Remove the files: the training is complete and the model in memory has it all."""
        files = [file for stage in self.stages for file in (self.checkpoint(stage), self.finished(stage))]
        for file in (*files, self._settings_file):
            file.unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()


def fingerprint(*parts: Any) -> str:
    """Short hash of what is given, to tell whether two trainings are the same."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode() if not isinstance(part, bytes) else part)
    return digest.hexdigest()[:16]


class StageFit:
    """The training of one stage, made ready: what a trainer refuses is refused before any work.

    Parameters
    ----------
    name
        Name of the stage.
    keeps_best
        Whether the weights of the best epoch are kept, and training may stop early.
    n_cells
        Number of cells to train on.
    max_epochs
        Number of epochs.
    early_stopping, early_stopping_patience
        Whether to stop when the validation loss has not improved for so many epochs.
    callbacks
        Further callbacks.
    directory
        Where checkpoints go; ``None`` for none.
    progress_bar
        Whether to show progress.
    arguments
        Of :func:`make_trainer`.
    """

    def __init__(
        self,
        name: str,
        keeps_best: bool,
        n_cells: int,
        max_epochs: int,
        early_stopping: bool,
        early_stopping_patience: int,
        callbacks: Sequence[Callback],
        directory: StageDirectory | None,
        progress_bar: bool,
        **arguments: Any,
    ) -> None:
        self.name, self.directory = name, directory
        self.history, self.best = History(), BestWeights()
        watchers: list[Callback] = [self.history, self.best, *callbacks]
        if progress_bar and not any(isinstance(callback, LightningProgressBar) for callback in callbacks):
            watchers.append(ProgressBar(name.capitalize(), n_cells))
        watched = f"{name}_loss_validation"
        theirs = any(isinstance(callback, EarlyStopping) and callback.monitor == watched for callback in callbacks)
        if early_stopping and keeps_best and not theirs:
            patience = math.ceil(early_stopping_patience / arguments.get("check_val_every_n_epoch", 1))
            watchers.append(EarlyStopping(watched, patience=patience, check_on_train_epoch_end=False))
        if directory is not None:
            watchers.append(
                ModelCheckpoint(directory.path, name, save_on_train_epoch_end=True, enable_version_counter=False)
            )
        self.trainer = make_trainer(watchers, max_epochs=max_epochs, progress_bar=progress_bar, **arguments)

    def run(self, plan: StagePlan, train_loader: DataLoader, validation_loader: DataLoader | None, step: int) -> None:
        """Train.

        However training ends, the plan is left with the weights of its best epoch (or of its last, as it wants), with
        ``plan.history`` (a table a metric) and with ``plan.n_good_epochs``, the number of epochs after which those
        weights were kept. A logger counts on from ``step``, so that no stage writes over another.
        """
        trainer, directory = self.trainer, self.directory
        if directory is not None and directory.finished(self.name).exists():
            logger.info("%s: already trained, taken from %s.", self.name, directory.path)
            outcome = torch.load(directory.finished(self.name), weights_only=True)
            self.history.load_state_dict(outcome["history"])
            self.best.load_state_dict(outcome["best"])
            self._finish(plan)
            return

        resume_from = None
        if directory is not None and directory.checkpoint(self.name).exists():
            resume_from = str(directory.checkpoint(self.name))
            logger.info("%s: resumed from %s.", self.name, resume_from)

        plan.train()
        trainer.fit_loop.epoch_loop._batches_that_stepped = step
        handlers = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*does not have many workers")
                warnings.filterwarnings("ignore", message=".*exists and is not empty")
                warnings.filterwarnings("ignore", message=".*have no `val_dataloader`")  # train_size=1
                warnings.filterwarnings("ignore", message=".*LeafSpec")  # Lightning's own, of torch
                warnings.filterwarnings("ignore", message=".*smaller than the logging interval")  # losses are of epochs
                # whatever is in a checkpoint, no code is run
                trainer.fit(plan, train_loader, validation_loader, ckpt_path=resume_from, weights_only=True)
        except SIGTERMException as stop:
            raise _terminated() from stop
        except SystemExit as stop:  # what Lightning makes of Ctrl-C would end the kernel of a notebook
            if not isinstance(stop.__context__, KeyboardInterrupt):
                raise
            raise KeyboardInterrupt("Training was interrupted; the best weights so far are kept.") from stop
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in handlers.items():
                    signal.signal(number, handler)
            self._finish(plan)
            plan.to(trainer.strategy.root_device)
        if directory is not None:
            outcome = {"history": self.history.state_dict(), "best": self.best.state_dict()}
            torch.save(outcome, buffer := io.BytesIO())
            write_atomically(directory.finished(self.name), buffer.getvalue())
        if trainer.received_sigterm:  # too late for Lightning to notice
            raise _terminated()

    def _finish(self, plan: StagePlan) -> None:
        if self.best.weights:
            self.best.restore(plan)
        plan.use_trained_weights()
        plan.history, plan.n_good_epochs = self.history.to_frames(), self.best.epoch + 1


def _terminated() -> SystemExit:
    """What SIGTERM ends a script with: the exit status says that it was not done."""
    logger.warning("Training was ended by SIGTERM; the best weights so far are kept.")
    return SystemExit(128 + signal.SIGTERM)
