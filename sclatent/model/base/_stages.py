"""Training of one stage: resumption, early stopping, the best weights."""

from __future__ import annotations

import logging
import math
import signal
import threading
import warnings
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from sclatent.train import BestWeights, History, ProgressBar, StagePlan

from ._checkpoints import StageCheckpoints, StageDirectory
from ._trainer import make_trainer

logger = logging.getLogger(__name__)


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
            watchers.append(StageCheckpoints(directory, name))
        self.trainer = make_trainer(watchers, max_epochs=max_epochs, progress_bar=progress_bar, **arguments)

    def run(self, plan: StagePlan, train_loader: DataLoader, validation_loader: DataLoader | None, step: int) -> None:
        """Train.

        However training ends, the plan is left with the weights of its best epoch (or of its last, as it wants), with
        ``plan.history`` (a table a metric) and with ``plan.n_good_epochs``, the number of epochs after which those
        weights were kept. A logger counts on from ``step``, so that no stage writes over another.
        """
        trainer, directory = self.trainer, self.directory
        newest = None if directory is None else directory.newest(self.name)
        if directory is not None and newest is not None and newest == directory.outcome(self.name):
            logger.info("%s: already trained, taken from %s.", self.name, directory.path)
            outcome = directory.load(newest)
            self.history.load_state_dict(outcome["history"])
            self.best.load_state_dict(outcome["best"])
            self._finish(plan)
            return

        if newest is not None:
            logger.info("%s: resumed from %s.", self.name, newest)

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
                trainer.fit(plan, train_loader, validation_loader, ckpt_path=newest)
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
            directory.write_outcome(self.name, outcome)
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
