"""Training of one stage: resumption, early stopping, the best weights."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch.callbacks import Callback, EarlyStopping, LambdaCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from scvi.train import Trainer
from torch.utils.data import DataLoader

from sclatent.train import BestWeights, History, ProgressBar, StagePlan

from ._checkpoints import StageCheckpoints, StageDirectory

logger = logging.getLogger(__name__)


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
    newest = None if directory is None else directory.newest(plan.name)
    if newest is not None and newest == directory.outcome(plan.name):
        logger.info("%s: already trained, taken from %s.", plan.name, directory.path)
        if on_start is not None:
            on_start()
        outcome = directory.load(newest)
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
    if directory is not None:
        watchers.append(StageCheckpoints(directory, plan.name))
    if newest is not None:
        logger.info("%s: resumed from %s.", plan.name, newest)

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
            trainer.fit(plan, train_loader, validation_loader, ckpt_path=newest)
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
        directory.write_outcome(plan.name, {"history": history.state_dict(), "best": best.state_dict()})


def _finish(plan: StagePlan, history: History, best: BestWeights) -> None:
    if best.weights:
        best.restore(plan)
    plan.use_trained_weights()
    plan.history, plan.n_good_epochs = history.to_frames(), best.epoch + 1


def quiet_lightning() -> None:
    """Keep Lightning from printing which devices it found, at every stage."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
