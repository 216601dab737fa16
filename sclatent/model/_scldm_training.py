"""Training of SCLDM: the autoencoder, then the denoiser on its tokens."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback

from sclatent.data import CellRows, TokenRows, additive_effects, common_slope, interaction_effects, make_loader
from sclatent.train import AutoencoderPlan, DiffusionPlan, StagePlan

from .base import StageDirectory, fingerprint, fit_stage, quiet_lightning

logger = logging.getLogger(__name__)

STAGES = ("autoencoder", "diffusion")


class TrainingMixin:
    """Training in two stages."""

    def train(
        self,
        max_epochs: int | Mapping[str, int] | None = None,
        stage: Literal["both", "autoencoder", "diffusion"] = "both",
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
        r"""Train the autoencoder, then the denoiser on the tokens of all cells.

        A stage that was trained before is trained further. When the autoencoder is, its tokens change, and the denoiser
        starts anew.

        Parameters
        ----------
        max_epochs
            Epochs of each stage: a number for both, or ``{"autoencoder": ..., "diffusion": ...}``. By default
            :math:`4000 / \sqrt{n}` for n cells, between 10 and 400.
        stage
            ``"both"``, or one stage alone.
        accelerator, devices
            As in Lightning.
        train_size
            Share of the cells to train on; on the others the loss is watched for early stopping.
        batch_size
            Cells in a minibatch.
        early_stopping, early_stopping_patience
            Whether to stop when the validation loss has not improved for so many epochs (default: a third of
            ``max_epochs``, at least 15). The weights of the best epoch are kept in any case.
        plan_kwargs
            Arguments of :class:`~sclatent.train.AutoencoderPlan` and :class:`~sclatent.train.DiffusionPlan`, such as
            ``{"autoencoder": {"lr": 1e-3}}``.
        callbacks
            Further Lightning callbacks, for both stages.
        checkpoint_dir
            Folder for checkpoints, one an epoch. Call ``train`` again with the same arguments on the same data to go
            on after an interruption: the result is that of a training without one. The checkpoints are removed at the
            end.
        seed
            Seed of the split, the order of cells and the noise.
        progress_bar
            Whether to show progress.
        trainer_kwargs
            Further arguments of :class:`scvi.train.Trainer`.

        Raises
        ------
        TrainingDivergedError
            If a loss is no longer finite; the last good weights are kept.
        """
        stages = list(STAGES) if stage == "both" else [stage]
        plan_kwargs = dict(plan_kwargs or {})
        for name in (*stages, *plan_kwargs, *(max_epochs if isinstance(max_epochs, Mapping) else ())):
            if name not in STAGES:
                raise ValueError(f"{name!r} is no stage of training: use 'autoencoder' or 'diffusion'.")
        if stages == ["diffusion"] and "autoencoder" not in self.trained_stages:
            raise RuntimeError(
                "stage='diffusion' needs a trained autoencoder: call train() or train(stage='autoencoder') first."
            )
        if not 0 < train_size <= 1:
            raise ValueError(f"train_size={train_size!r} must be above 0 and at most 1.")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be at least 1.")
        rows = self._rows(conditions=True)
        if (rows.conditions < 0).any():
            raise ValueError(
                f"To train, every cell needs a level of every condition: {self.conditions.keys} in adata.obs."
            )
        epochs = {name: self._n_epochs(max_epochs, name, len(rows)) for name in STAGES}
        for name in stages:
            self._plan(name, seed, plan_kwargs)  # arguments that do not fit are refused before any work
        order = np.random.default_rng(seed).permutation(len(rows))
        n_train = max(1, round(train_size * len(rows)))
        directory = None
        if checkpoint_dir is not None:
            contents = (rows.conditions, rows.batch, rows.library_sizes())
            data = fingerprint(list(self.genes), *(array.tobytes() for array in contents))
            settings = {
                "model": self.init_params_,
                "data": data,
                "stage": stage,
                "epochs": epochs,
                "train_size": train_size,
                "batch_size": batch_size,
                "early_stopping": early_stopping,
                "early_stopping_patience": early_stopping_patience,
                "plan_kwargs": plan_kwargs,
                "seed": seed,
            }
            directory = StageDirectory(checkpoint_dir, settings, STAGES)
            directory.prepare()
            self._forget_unfinished_history()
        # only now, when a checkpoint of another training has been refused, is anything of the model changed
        self.train_indices_, self.validation_indices_ = np.sort(order[:n_train]), np.sort(order[n_train:])
        self._learn_library_sizes(rows)
        self._unfinished_history = {}
        quiet_lightning()
        for name in stages:
            if name == "diffusion":
                self._prepare_tokens(rows)
            plan = self._plan(name, seed, plan_kwargs)
            cells = rows.subset if name == "autoencoder" else self._token_rows(rows).subset
            try:
                fit_stage(
                    plan,
                    make_loader(cells(self.train_indices_), batch_size, seed, shuffle=True),
                    make_loader(cells(self.validation_indices_), batch_size) if n_train < len(rows) else None,
                    n_cells=n_train,
                    max_epochs=epochs[name],
                    accelerator=accelerator,
                    devices=devices,
                    early_stopping=early_stopping,
                    early_stopping_patience=(
                        max(15, epochs[name] // 3) if early_stopping_patience is None else early_stopping_patience
                    ),
                    callbacks=callbacks,
                    directory=directory,
                    progress_bar=progress_bar,
                    on_start=self._tokens_change if name == "autoencoder" else None,
                    **trainer_kwargs,
                )
            finally:  # also after an interruption: what was learned so far stays
                self.module.to(plan.device).eval()
                if plan.n_good_epochs:
                    self.trained_stages.add(name)
                    self._extend_history(plan.history, unfinished=directory is not None)
                self.is_trained_ = self.trained_stages == set(STAGES)
        if directory is not None:
            directory.clear()
            self._unfinished_history = {}

    @staticmethod
    def _n_epochs(max_epochs: int | Mapping[str, int] | None, stage: str, n_cells: int) -> int:
        asked = max_epochs.get(stage) if isinstance(max_epochs, Mapping) else max_epochs
        if asked is None:
            return int(np.clip(round(4000 / n_cells**0.5), 10, 400))
        if asked < 1:
            raise ValueError(f"max_epochs={max_epochs!r} must be at least 1.")
        return int(asked)

    def _plan(self, stage: str, seed: int, plan_kwargs: Mapping[str, Mapping[str, Any]]) -> StagePlan:
        arguments = {"seed": seed, **plan_kwargs.get(stage, {})}
        if stage == "autoencoder":
            return AutoencoderPlan(self.module.autoencoder, kl_weight=self.init_params_["kl_weight"], **arguments)
        return DiffusionPlan(self.module.denoiser, **arguments)

    def _tokens_change(self) -> None:
        """Let go of what was made from the tokens of an autoencoder that is about to change."""
        self._tokens = None
        if "diffusion" in self.trained_stages:
            logger.warning("The autoencoder is trained further: its tokens change, so the denoiser starts anew.")
            self.trained_stages.discard("diffusion")
            self.module.denoiser = self._new_denoiser()

    def _prepare_tokens(self, rows: CellRows) -> None:
        """Compute the tokens of all cells, once: training of the denoiser never touches the autoencoder again."""
        if self._tokens is not None:
            return
        tokens = self._encode(rows, 1024)
        first = "diffusion" not in self.trained_stages  # a trained denoiser keeps the frame it was trained in
        if first:
            self.module.standardize.cpu().fit(tokens)
            self.module.standardize_size.cpu().fit(torch.from_numpy(rows.library_sizes()).log())
        self._tokens = self.module.standardize.cpu()(tokens)
        if first:
            size, values = self._token_rows(rows).sizes.numpy(), self._tokens.flatten(1).numpy()
            slope = common_slope(rows.conditions, size, values)
            values = values - size[:, None] * slope
            n_levels = self.conditions.n_levels
            effects = additive_effects(rows.conditions, values, n_levels)[1]
            combinations, interactions = interaction_effects(rows.conditions, values, n_levels, effects)
            self.module.denoiser.mean.cpu().fit(
                [torch.from_numpy(effect) for effect in effects],
                torch.from_numpy(slope),
                torch.from_numpy(combinations),
                torch.from_numpy(interactions),
            )

    def _token_rows(self, rows: CellRows) -> TokenRows:
        self.module.standardize_size.cpu()
        sizes = self.module.size(torch.from_numpy(rows.library_sizes()).float())
        return TokenRows(self._tokens, rows.conditions, sizes)

    def _extend_history(self, frames: dict[str, pd.DataFrame], unfinished: bool) -> None:
        for key, frame in frames.items():
            before = self.history_.get(key)
            if unfinished:
                self._unfinished_history[key] = before
            if before is not None:
                frame = pd.concat([before, frame.set_index(frame.index + before.index.max() + 1)])
            self.history_[key] = frame.rename_axis("epoch")

    def _forget_unfinished_history(self) -> None:
        """Go back to the history before an interrupted training that is resumed: its checkpoint has those epochs."""
        for key, before in self._unfinished_history.items():
            if before is None:
                del self.history_[key]
            else:
                self.history_[key] = before

    def _check_stage(self, stage: str, method: str) -> None:
        if stage not in self.trained_stages:
            raise RuntimeError(f"{method} needs a trained {stage}: call train() first.")
