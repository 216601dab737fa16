"""The trainer of a stage: on which device, and what a user may ask of it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger
from scvi.train import SaveCheckpoint, Trainer

from sclatent.data import check_number, check_whole

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
KNOWN = {name for cls in (pl.Trainer, Trainer) for name in inspect.signature(cls).parameters} - {"kwargs"}
ONE_DEVICE = "this version trains on one device"
OWN_STOPPING = (
    "what is watched is the validation loss of the stage; for another rule put an EarlyStopping of lightning.pytorch "
    "into callbacks"
)
OWN_CHECKPOINTS = "use checkpoint_dir, or a ModelCheckpoint of lightning.pytorch in callbacks"
OWN_PROGRESS = "use progress_bar, or a progress bar of lightning.pytorch in callbacks"
# what cannot be honoured, but for the value that asks for nothing, and why
REFUSED = {
    "strategy": ("auto", ONE_DEVICE),
    "num_nodes": (1, ONE_DEVICE),
    "sync_batchnorm": (False, ONE_DEVICE),
    "barebones": (False, "early stopping and the history need the losses that it would not log"),
    "overfit_batches": (0, "minibatches come in an order of their own; use limit_train_batches"),
    "val_check_interval": (1.0, "the validation loss is that at the end of an epoch; use check_val_every_n_epoch"),
    "limit_test_batches": (None, "train does not test"),
    "limit_predict_batches": (None, "train does not predict"),
    "early_stopping_monitor": (None, OWN_STOPPING),
    "early_stopping_mode": ("min", OWN_STOPPING),
    "early_stopping_min_delta": (0, OWN_STOPPING),
    "early_stopping_warmup_epochs": (0, OWN_STOPPING),
    "checkpointing_monitor": (None, OWN_CHECKPOINTS),
    "simple_progress_bar": (None, OWN_PROGRESS),
    "progress_bar_refresh_rate": (None, OWN_PROGRESS),
    "log_save_dir": (None, "give a logger, such as logger=lightning.pytorch.loggers.CSVLogger(path)"),
    "model_registry": (None, "use save"),
}


def one_device(accelerator: Any, devices: Any) -> tuple[Any, Any]:
    """Return accelerator and device, as Lightning takes them.

    ``"auto"`` is one GPU of NVIDIA (or AMD) if there is one, else the CPU; a GPU of Apple has to be asked for.
    """
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    if isinstance(devices, str) and devices == "auto":
        return accelerator, 1
    is_one = isinstance(devices, Integral) and devices == 1 and not isinstance(devices, bool)
    is_index = isinstance(devices, list | tuple) and len(devices) == 1
    if isinstance(devices, str):  # "1" is a number of devices, "1," an index
        is_one, is_index = devices == "1", devices.endswith(",") and devices[:-1].isdigit()
    if not (is_one or is_index):
        raise ValueError(
            f"devices={devices!r}: {ONE_DEVICE}; use devices='auto', or the index of a GPU in a list, such as [0]."
        )
    return accelerator, 1 if is_one else list(devices) if isinstance(devices, tuple) else devices


def check_callbacks(callbacks: Any) -> list[Callback]:
    """Return the callbacks of a user as a list."""
    callbacks = [] if callbacks is None else [callbacks] if isinstance(callbacks, Callback) else callbacks
    if not isinstance(callbacks, list | tuple) or not all(isinstance(callback, Callback) for callback in callbacks):
        raise ValueError(f"callbacks={callbacks!r} must be a list of callbacks of lightning.pytorch.")
    if any(isinstance(callback, SaveCheckpoint) for callback in callbacks):
        raise ValueError(f"callbacks: SaveCheckpoint is for models of scvi-tools; {OWN_CHECKPOINTS}.")
    return list(callbacks)


def of_stage(callbacks: Sequence[Callback], name: str, stages: Sequence[str]) -> list[Callback]:
    """Return the callbacks for one stage: all, but those that monitor a metric of another."""
    others = tuple(f"{stage}_" for stage in stages if stage != name)
    return [callback for callback in callbacks if not str(getattr(callback, "monitor", None)).startswith(others)]


def check_trainer_arguments(given: Mapping[str, Any], makes_checkpoints: bool) -> dict[str, Any]:
    """Return the arguments for the trainer that differ from its defaults.

    Raises a ``TypeError`` if the trainer has no such argument, and a ``ValueError`` if it cannot be honoured.
    """
    arguments = {}
    for name, value in given.items():
        if name not in KNOWN:
            raise TypeError(
                f"train() has no argument {name!r}. Arguments of a plan, such as lr, are given by stage, "
                'plan_kwargs={"diffusion": {"lr": 1e-4}}; other arguments are those of scvi.train.Trainer.'
            )
        if value is None and name != "gradient_clip_val":  # which is not to clip
            continue
        if name not in REFUSED:
            arguments[name] = value
        elif value != REFUSED[name][0]:
            raise ValueError(f"{name}={value!r} cannot be honoured: {REFUSED[name][1]}.")
    for name, least in (
        ("check_val_every_n_epoch", 1),
        ("accumulate_grad_batches", 1),
        ("log_every_n_steps", 0),
        ("num_sanity_val_steps", -1),
        ("reload_dataloaders_every_n_epochs", 0),
        ("min_epochs", 0),
        ("min_steps", 0),
    ):
        if name in arguments:
            arguments[name] = check_whole(name, arguments[name], least)
    if arguments.get("max_steps", -1) != -1:
        arguments["max_steps"] = check_whole("max_steps", arguments["max_steps"])
    for name, least in (("limit_train_batches", 1), ("limit_val_batches", 0)):
        value = arguments.get(name)
        if isinstance(value, float | np.floating):  # a share; the loader has the last word on whether it is enough
            arguments[name] = check_number(name, value, high=1, above=least > 0)
        elif value is not None:
            arguments[name] = check_whole(name, value, least)
    if arguments.get("gradient_clip_val") is not None:
        arguments["gradient_clip_val"] = check_number("gradient_clip_val", arguments["gradient_clip_val"])
    if arguments.pop("enable_checkpointing", makes_checkpoints) != makes_checkpoints:
        raise ValueError(
            f"enable_checkpointing={not makes_checkpoints} cannot be honoured: "
            + ("checkpoint_dir or callbacks ask for checkpoints." if makes_checkpoints else f"{OWN_CHECKPOINTS}.")
        )
    logger = arguments.get("logger", False)
    if not isinstance(logger, bool | Logger | list | tuple) or (
        isinstance(logger, list | tuple) and not all(isinstance(one, Logger) for one in logger)
    ):
        raise ValueError(f"logger={logger!r} must be a logger of lightning.pytorch, a list of them, or True or False.")
    if arguments.get("learning_rate_monitor") and not arguments.get("logger"):
        raise ValueError("learning_rate_monitor=True needs a logger, such as logger=True.")
    return arguments


def make_trainer(
    callbacks: Sequence[Callback],
    *,
    accelerator: Any,
    devices: Any,
    max_epochs: int,
    progress_bar: bool,
    **arguments: Any,
) -> Trainer:
    """Make the trainer of a stage; what Lightning refuses is a ``ValueError`` that says what it was given."""
    _quiet_lightning()
    has_checkpoint = any(isinstance(callback, Checkpoint) for callback in callbacks)
    try:
        trainer = Trainer(
            accelerator=accelerator,
            devices=devices,
            max_epochs=max_epochs,
            callbacks=list(callbacks),
            simple_progress_bar=False,  # ours counts cells
            enable_progress_bar=progress_bar,
            enable_checkpointing=None if has_checkpoint else False,  # True would add one of scvi-tools
            **{"logger": False, "check_val_every_n_epoch": 1, "gradient_clip_val": 1.0, **arguments},
        )
    except Exception as error:  # Lightning's are of many kinds
        every = {"accelerator": accelerator, "devices": devices, **arguments}
        given = ", ".join(f"{name}={value!r}" for name, value in every.items())
        raise ValueError(f"Lightning makes no trainer of these arguments ({given}): {error}") from error
    if str(trainer.precision) not in PRECISIONS:
        raise ValueError(
            f"precision={arguments.get('precision')!r} cannot be honoured: weights and counts are kept in single "
            f"precision; use {' or '.join(map(repr, PRECISIONS))}."
        )
    return trainer


def _quiet_lightning() -> None:
    """Keep Lightning from printing which devices it found, at every stage."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
