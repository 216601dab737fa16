"""What watches over training: progress, history, the best weights."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from tqdm.auto import tqdm

from ._plans import TrainingDivergedError


class ProgressBar(LightningProgressBar):
    """One bar a stage: epoch, loss, cells/s and the time that is left.

    Parameters
    ----------
    description
        What stands before the bar.
    n_cells
        Cells of an epoch.

    Examples
    --------
    >>> from scvi.train import Trainer
    >>> from sclatent.train import ProgressBar
    >>> bar = ProgressBar("Autoencoder", n_cells=1_000)
    >>> trainer = Trainer(max_epochs=1, accelerator="cpu", devices=1, callbacks=[bar], simple_progress_bar=False)
    >>> bar in trainer.callbacks
    True
    """

    def __init__(self, description: str, n_cells: int) -> None:
        super().__init__()
        self.description, self.n_cells = description, n_cells
        self._bar = tqdm(disable=True)  # until training starts
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._bar = tqdm(
            total=None if trainer.max_epochs is None else trainer.max_epochs * self.n_cells,
            initial=trainer.current_epoch * self.n_cells,
            disable=not self._enabled,
            desc=self.description,
            unit=" cells",
            unit_scale=True,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {rate_fmt} [{elapsed}<{remaining}{postfix}]",
        )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._bar.set_description(
            f"{self.description}, epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", refresh=False
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._bar.update(len(batch[0]) if isinstance(batch, tuple) else len(batch))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {
            label: f"{float(trainer.callback_metrics[key]):.4g}"
            for label, key in (
                ("loss", f"{pl_module.name}_loss_train"),
                ("validation", f"{pl_module.name}_loss_validation"),
            )
            if key in trainer.callback_metrics
        }
        self._bar.set_postfix(metrics)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        self._bar.close()


class _EpochWatcher(Callback):
    """Knows whether the validation loss at the end of an epoch is of this epoch, and not of one before it."""

    validated = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated = True


class History(_EpochWatcher):
    """The metrics of every epoch; part of the checkpoint, so that a resumed training has its past.

    Examples
    --------
    What ``model.history`` is made of:

    >>> from sclatent.train import History
    >>> history = History()
    >>> history.load_state_dict({"metrics": {"diffusion_loss_train": {0: 1.5, 1: 1.25}}})
    >>> history.to_frames()["diffusion_loss_train"]
           diffusion_loss_train
    epoch
    0                      1.50
    1                      1.25
    """

    def __init__(self) -> None:
        self.metrics: dict[str, dict[int, float]] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for key, value in trainer.callback_metrics.items():
            if key.endswith("_validation") and not self.validated:
                continue
            self.metrics.setdefault(key, {})[trainer.current_epoch] = float(value)

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.metrics = state_dict["metrics"]

    def to_frames(self) -> dict[str, pd.DataFrame]:
        """One table a metric with a row an epoch, as in scvi-tools."""
        return {key: pd.DataFrame({key: values}).rename_axis("epoch") for key, values in self.metrics.items()}


class BestWeights(_EpochWatcher):
    """Keeps the weights of the best epoch, and puts them back at the end.

    Of the last one without validation, and where the plan says so (:attr:`StagePlan.keeps_best`). Epochs that were not
    validated do not count, if others were.

    ``weights`` starts with what training starts from, so that there is always something good to go back to.

    Examples
    --------
    Lightning calls it after every epoch; what it has kept is put back at the end:

    >>> from sclatent.module import DiT
    >>> from sclatent.train import BestWeights, DiffusionPlan
    >>> plan, best = DiffusionPlan(DiT(4, 8, width=32, n_blocks=1)), BestWeights()
    >>> best.on_fit_start(None, plan)  # before the first epoch, the weights that training starts from
    >>> _ = plan.trained.embed.weight.data.zero_()
    >>> best.restore(plan)
    >>> bool(plan.trained.embed.weight.any())
    True
    """

    def __init__(self) -> None:
        self.best = float("inf")
        self.epoch = -1
        self.weights: dict[str, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.weights:
            self._keep(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not all(torch.isfinite(weight).all() for weight in pl_module.get_submodule("trained").parameters()):
            raise TrainingDivergedError(
                f"The weights of the {pl_module.name} are no longer finite after epoch {trainer.current_epoch + 1}. "
                "The last good weights are kept. Train with a lower learning rate."
            )
        value = float("inf")
        if pl_module.keeps_best and self.validated:
            value = float(trainer.callback_metrics[f"{pl_module.name}_loss_validation"])
        if value <= self.best:
            self.best, self.epoch = value, trainer.current_epoch
            self._keep(pl_module)

    def _keep(self, pl_module: pl.LightningModule) -> None:
        self.weights = {key: value.detach().cpu().clone() for key, value in pl_module.state_dict().items()}

    def restore(self, pl_module: pl.LightningModule) -> None:
        """Put the kept weights back."""
        pl_module.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.epoch, self.weights = (state_dict[k] for k in ("best", "epoch", "weights"))
