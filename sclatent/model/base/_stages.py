"""Training of one stage: checkpoints, resumption, early stopping, the best weights."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, LambdaCallback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from scvi.train import Trainer
from torch.utils.data import DataLoader

from sclatent.train import BestWeights, History, ProgressBar, StagePlan

from ._files import write_atomically

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


def fit_stage(
    plan: StagePlan,
    train_loader: DataLoader,
    validation_loader: DataLoader | None,
    *,
    n_cells: int,
    max_epochs: int,
    accelerator: str,
    devices: int | str | list[int],
    early_stopping: bool,
    early_stopping_patience: int,
    callbacks: Sequence[Callback],
    directory: StageDirectory | None,
    progress_bar: bool,
    on_start: Callable[[], None] | None,
    **trainer_kwargs: Any,
) -> None:
    """Train one stage.

    However training ends, the plan is left with the weights of its best epoch (or of its last, as it wants), with
    ``plan.history`` (a table a metric) and with ``plan.n_good_epochs``, the number of epochs after which those weights
    were kept. ``on_start`` is called when nothing can be refused any more.
    """
    history, best = History(), BestWeights()
    if directory is not None and directory.finished(plan.name).exists():
        logger.info("%s: already trained, taken from %s.", plan.name, directory.path)
        if on_start is not None:
            on_start()
        outcome = torch.load(directory.finished(plan.name), weights_only=True)
        history.load_state_dict(outcome["history"])
        best.load_state_dict(outcome["best"])
        _finish(plan, history, best)
        return

    watchers: list[Callback] = [history, best, *callbacks]
    if progress_bar:
        watchers.append(ProgressBar(plan.name.capitalize(), n_cells))
    if early_stopping and plan.keeps_best and validation_loader is not None:
        watchers.append(EarlyStopping(f"{plan.name}_loss_validation", patience=early_stopping_patience))
    if on_start is not None:
        watchers.append(LambdaCallback(on_train_start=lambda *_: on_start()))
    resume_from = None
    if directory is not None:
        watchers.append(
            ModelCheckpoint(directory.path, plan.name, save_on_train_epoch_end=True, enable_version_counter=False)
        )
        if directory.checkpoint(plan.name).exists():
            resume_from = str(directory.checkpoint(plan.name))
            logger.info("%s: resumed from %s.", plan.name, resume_from)

    trainer = Trainer(
        accelerator=accelerator,
        devices=devices,
        max_epochs=max_epochs,
        callbacks=watchers,
        logger=False,
        check_val_every_n_epoch=1,
        enable_checkpointing=None if directory is not None else False,
        enable_progress_bar=progress_bar,
        simple_progress_bar=False,  # ours counts cells
        gradient_clip_val=1.0,
        **trainer_kwargs,
    )
    plan.train()
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            warnings.filterwarnings("ignore", message=".*exists and is not empty")
            warnings.filterwarnings("ignore", message=".*have no `val_dataloader`")  # train_size=1
            warnings.filterwarnings("ignore", message=".*LeafSpec")  # Lightning's own, of torch
            trainer.fit(plan, train_loader, validation_loader, ckpt_path=resume_from)
    except SIGTERMException:  # a job that is being ended, and no Ctrl-C
        raise
    except SystemExit as stop:  # what Lightning makes of Ctrl-C would end the kernel of a notebook
        raise KeyboardInterrupt("Training was interrupted; the best weights so far are kept.") from stop
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_interrupt)
        _finish(plan, history, best)
        plan.to(trainer.strategy.root_device)
    if directory is not None:
        outcome = {"history": history.state_dict(), "best": best.state_dict()}
        torch.save(outcome, buffer := io.BytesIO())
        write_atomically(directory.finished(plan.name), buffer.getvalue())


def _finish(plan: StagePlan, history: History, best: BestWeights) -> None:
    if best.weights:
        best.restore(plan)
    plan.use_trained_weights()
    plan.history, plan.n_good_epochs = history.to_frames(), best.epoch + 1


def quiet_lightning() -> None:
    """Keep Lightning from printing which devices it found, at every stage."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
