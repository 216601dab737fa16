"""Checkpoints of a training: to which training they belong, whether they are whole, and what to do if not."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import pickle
import secrets
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from sclatent.data._warnings import warn_user
from sclatent.train import StagePlan

from ._files import read_checked, with_checksum, write_atomically

# arguments of the trainer that change nothing of what is trained
WITHOUT_EFFECT = {
    "logger", "log_every_n_steps", "log_save_dir", "default_root_dir", "profiler", "detect_anomaly",
    "enable_checkpointing", "enable_model_summary", "enable_progress_bar", "progress_bar_refresh_rate",
}  # fmt: skip
# share of the largest weight by which random numbers and decompositions may differ between processors
START_TOLERANCE = 1e-4


def fingerprint(parts: Iterable[Any]) -> str:
    """Hash of arrays, to the last value, and of whatever JSON can say, to tell whether two trainings are the same."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}\n".encode())
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        else:
            digest.update(json.dumps(part, default=_value_of).encode() + b"\n")
    return digest.hexdigest()


def plan_arguments(plan: StagePlan) -> dict[str, Any]:
    """Arguments of a plan, those that were not given by their defaults; not what it trains, nor the seed."""
    classes = [cls for cls in type(plan).__mro__ if issubclass(cls, StagePlan)]
    names = {name for cls in classes for name in inspect.signature(cls).parameters} - {"seed"}
    values = {name: getattr(plan, name, None) for name in sorted(names)}
    return {name: value for name, value in values.items() if isinstance(value, int | float | str | tuple | list)}


class StageDirectory:
    """Where an interrupted training finds what it needs to go on.

    ``settings.json`` says which training it is, and ``start.pt`` what it began with. A stage in progress has its two
    last checkpoints, a stage that is done its outcome. All have checksums; of a stage, the newest whole file is used.

    Parameters
    ----------
    path
        The folder; made when it is first written to.
    stages
        Names of the stages.
    """

    def __init__(self, path: str | os.PathLike, stages: Sequence[str]) -> None:
        self.path, self.stages = Path(path), stages
        self.id: str | None = None  # of the training
        self._settings_file, self._start_file = self.path / "settings.json", self.path / "start.pt"

    def checkpoint(self, stage: str) -> Path:
        """File of the last checkpoint of a stage."""
        return self.path / f"{stage}.ckpt"

    def checkpoint_before(self, stage: str) -> Path:
        """File of the checkpoint before the last one."""
        return self.path / f"{stage}.before.ckpt"

    def outcome(self, stage: str) -> Path:
        """File of the outcome of a stage that is done."""
        return self.path / f"{stage}.done.pt"

    def newest(self, stage: str) -> Path | None:
        """File to go on from, if there is one."""
        return next(iter(self._present(stage)), None)

    def prepare(
        self, settings: Mapping[str, Any], start: Mapping[str, Any], accelerator: Any, unfinished: str | None
    ) -> dict[str, Any] | None:
        """Make the folder, or check that what is in it belongs to this training and is whole.

        Parameters
        ----------
        settings
            Everything that determines the result, but for the start. A checkpoint made under others is refused.
        start
            ``"weights"`` and ``"trained_stages"`` of the model as it is.
        accelerator
            What it is trained on. That may be another one when training is resumed, as may versions and the number of
            threads; then a warning says that the result is not the same to the bit.
        unfinished
            The training that has left the model so, if it was interrupted: it is resumed, whatever the weights are.

        Returns
        -------
        dict[str, Any] | None
            What the training began with, of one that is resumed.
        """
        settings = _as_json({key: value for key, value in settings.items() if key not in WITHOUT_EFFECT})
        environment = _as_json(_environment(accelerator))
        described = self._read_settings()
        if described is None:
            self._begin(settings, start, environment)
            return None
        found = described["settings"]
        differing = sorted(key for key in settings | found if settings.get(key) != found.get(key))
        if not differing:
            began = self.load(self._start_file)
            if described["id"] != unfinished and not _is_same_start(start, began):
                differing = ["starting weights"]
        if differing:
            raise ValueError(
                f"{self._name} holds an interrupted training with other settings ({', '.join(differing)}): use the "
                "same settings to resume it, or another folder."
            )
        self._drop_damaged()
        self._warn_of_another_environment(described["environment"], environment)
        self.id = described["id"]
        return began

    def load(self, file: Path) -> dict[str, Any]:
        """Read a file of this folder; raises if it is damaged."""
        content = read_checked(file)
        if content is None:
            raise self._damaged(file)
        return _from_bytes(content)

    def write_checkpoint(self, stage: str, checkpoint: Mapping[str, Any]) -> None:
        """Write the checkpoint of a stage, and keep the one before."""
        content = _to_bytes(checkpoint)
        if not self._present(stage):  # else it has been seen that such a checkpoint can be read
            try:
                _from_bytes(content)
            except pickle.UnpicklingError as error:
                raise ValueError(
                    f"{self._name}: a checkpoint could not be read again, as code might run. The state_dict of each of "
                    f"callbacks={list(checkpoint['callbacks'])} must hold tensors, numbers, strings, lists and dicts "
                    "alone."
                ) from error
        self._write(self.checkpoint(stage), content, self.checkpoint_before(stage))

    def write_outcome(self, stage: str, outcome: Mapping[str, Any]) -> None:
        """Write the outcome of a stage."""
        self._write(self.outcome(stage), _to_bytes(outcome))

    def clear(self) -> None:
        """Remove the files: the training is complete and the model in memory has it all."""
        of_stages = [file for stage in self.stages for file in self._files(stage)]
        for file in (*of_stages, self._settings_file, self._start_file):  # without settings, a start is not looked at
            file.unlink(missing_ok=True)
        self._remove_litter()
        if not any(self.path.iterdir()):
            self.path.rmdir()

    # ---- parts of these

    @property
    def _name(self) -> str:
        return f"checkpoint_dir={str(self.path)!r}"

    def _files(self, stage: str) -> tuple[Path, ...]:
        """All files of a stage, the newest first."""
        return self.outcome(stage), self.checkpoint(stage), self.checkpoint_before(stage)

    def _present(self, stage: str) -> list[Path]:
        return [file for file in self._files(stage) if file.exists()]

    def _begin(self, settings: Mapping[str, Any], start: Mapping[str, Any], environment: dict[str, Any]) -> None:
        if others := [file.name for stage in self.stages for file in self._present(stage)]:
            raise ValueError(
                f"{self._name} holds {', '.join(others)}, but no settings.json that would say of which training they "
                "are: use another folder, or delete them."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._remove_litter()
        self.id = secrets.token_hex(8)
        described = {"id": self.id, "environment": environment, "settings": settings}
        self._write(self._start_file, _to_bytes(start))
        content = json.dumps({"checksum": fingerprint([described]), **described}, indent=1)
        self._write(self._settings_file, content.encode())

    def _read_settings(self) -> dict[str, Any] | None:
        if not self._settings_file.exists():
            return None
        try:
            described = json.loads(self._settings_file.read_bytes())
            checksum = described.pop("checksum")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise self._damaged(self._settings_file) from error
        if checksum != fingerprint([described]):
            raise self._damaged(self._settings_file)
        return described

    def _drop_damaged(self) -> None:
        """Remove what is damaged where there is something whole to go on from."""
        dropped = []
        for stage in self.stages:
            damaged = []
            for file in self._present(stage):
                if read_checked(file) is not None:
                    break
                damaged.append(file)
            else:
                if damaged:
                    raise self._damaged(damaged[0], ", and there is no whole checkpoint before it")
            dropped += damaged
        for file in dropped:
            warn_user(
                f"{self._name}: {file.name} is damaged and was removed; training goes on from the checkpoint before "
                "it, to the same result."
            )
            file.unlink()

    def _damaged(self, file: Path, more: str = "") -> ValueError:
        return ValueError(
            f"{self._name}: {file.name} is {'damaged' if file.exists() else 'missing'}{more}. Delete the folder to "
            "train anew, or restore it from a copy."
        )

    def _warn_of_another_environment(self, found: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        differing = [key for key, value in environment.items() if found.get(key) != value]
        if differing:
            then, now = (", ".join(f"{key}={of.get(key)}" for key in differing) for of in (found, environment))
            warn_user(
                f"{self._name} was begun with {then}, and there is now {now}: training goes on, but the result is not "
                "to the bit that of a training without an interruption."
            )

    def _write(self, file: Path, content: bytes, before: Path | None = None) -> None:
        content = content if file == self._settings_file else with_checksum(content)
        try:
            write_atomically(file, content, before)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self._name}: {file.name} could not be written ({error.strerror or error}). What was written before "
                "is whole: mend that, and call train again with the same arguments to go on from there.",
            ) from error

    def _remove_litter(self) -> None:
        """Remove what writers left behind that were killed."""
        names = [file.name for stage in self.stages for file in self._files(stage)]
        for name in (*names, self._settings_file.name, self._start_file.name):
            for file in self.path.glob(f".{name}.*"):
                file.unlink(missing_ok=True)


class StageCheckpoints(Checkpoint):
    """Writes a checkpoint after every epoch of a stage but the last, after which there is the outcome."""

    def __init__(self, directory: StageDirectory, stage: str) -> None:
        self.directory, self.stage = directory, stage

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = _CheckpointFiles(self.directory, self.stage)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        n_epochs = trainer.current_epoch + 1
        stops = trainer.should_stop and n_epochs >= (trainer.min_epochs or 0)
        # Lightning would find nothing to do in a checkpoint of the end, and go on where training had stopped early
        if not stops and n_epochs != trainer.max_epochs and trainer.global_step != trainer.max_steps:
            trainer.save_checkpoint(self.directory.checkpoint(self.stage), weights_only=False)


class _CheckpointFiles(TorchCheckpointIO):
    """How Lightning writes and reads the checkpoints of a stage; others, of callbacks of the user, as always."""

    def __init__(self, directory: StageDirectory, stage: str) -> None:
        self.directory, self.stage = directory, stage

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if Path(path) == self.directory.checkpoint(self.stage):
            self.directory.write_checkpoint(self.stage, checkpoint)
        else:
            super().save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return self.directory.load(Path(path))


def _to_bytes(content: Mapping[str, Any]) -> bytes:
    torch.save(content, buffer := io.BytesIO())
    return buffer.getvalue()


def _from_bytes(content: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _as_json(value: Any) -> Any:
    """Value as JSON gives it back; objects by their class, as nothing else of them is sure to be there again."""
    return json.loads(json.dumps(value, default=lambda other: _value_of(other, type(other).__qualname__)))


def _value_of(value: Any, otherwise: str | None = None) -> Any:
    """What JSON can say of a value that it does not know."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else otherwise or repr(value)


def _environment(accelerator: Any) -> dict[str, Any]:
    """What a result depends on to the bit, beside the settings."""
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        **{package: version(package) for package in ("sclatent", "torch", "lightning", "numpy")},
        "accelerator": {"auto": automatic, "gpu": automatic}.get(accelerator, accelerator),
        "threads": torch.get_num_threads(),
    }


def _is_same_start(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether training begins with the same weights, as far as another processor makes them again."""

    def is_same(a: Tensor, b: Tensor) -> bool:
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.equal(b) or not a.is_floating_point():
            return a.equal(b)
        return float((a - b).abs().max()) <= START_TOLERANCE * float(b.abs().max())

    a, b = one["weights"], other["weights"]
    if one["trained_stages"] != other["trained_stages"] or a.keys() != b.keys():
        return False
    return all(is_same(a[key], b[key]) for key in a)
