"""A saved model: a folder of safetensors and JSON, in which nothing can run code.

``model.json`` names the file of the tensors by its hash. To save into an existing folder, the new tensors are written
beside the old ones and then ``model.json`` is replaced in one step, so that at every moment the folder holds one
whole model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from ._files import write_atomically

FORMAT = 1
_JSON = "model.json"


def _to_json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"__array__": value.tolist()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): _to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(v) for v in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"__array__"}:
            return np.array(value["__array__"], dtype=object)
        return {k: _from_json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_from_json(v) for v in value]
    return value


def _digest(description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def write_model(
    path: str | os.PathLike, description: Mapping[str, Any], tensors: Mapping[str, Tensor], overwrite: bool
) -> None:
    """Write a model folder.

    Parameters
    ----------
    path
        The folder.
    description
        What is not a tensor; anything that JSON can say, and numpy arrays.
    tensors
        Tensors by name.
    overwrite
        Whether a model that is there may be replaced.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"dir_path={str(path)!r} is a file: give the name of a folder.")
    if path.is_dir() and any(path.iterdir()):
        ours = [*path.glob("tensors-*.safetensors"), *path.glob(".tensors-*"), *path.glob(f".{_JSON}.*")]
        if not (path / _JSON).exists() and len(ours) < sum(1 for _ in path.iterdir()):  # else a save that was cut short
            raise FileExistsError(f"dir_path={str(path)!r} is not empty and holds no saved model: give another folder.")
        if (path / _JSON).exists() and not overwrite:
            raise FileExistsError(f"dir_path={str(path)!r} holds a saved model: use overwrite=True to replace it.")
    path.mkdir(parents=True, exist_ok=True)
    content = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    digest = hashlib.sha256(content).hexdigest()
    file = path / f"tensors-{digest[:16]}.safetensors"
    write_atomically(file, content)
    described = _to_json({"format": FORMAT, **description, "tensors": {"file": file.name, "sha256": digest}})
    described["sha256"] = _digest(described)
    write_atomically(path / _JSON, json.dumps(described, indent=1).encode())
    for other in (*path.glob("tensors-*.safetensors"), *path.glob(".tensors-*"), *path.glob(f".{_JSON}.*")):
        if other != file:
            other.unlink()  # of the model that was replaced, or of a save that was cut short


def read_model(path: str | os.PathLike, class_name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a model folder: the description and the tensors.

    Raises
    ------
    FileNotFoundError
        If there is no model.
    ValueError
        If it is of another class, or not what was saved.
    """
    path = Path(path)
    if not (path / _JSON).is_file():
        raise FileNotFoundError(f"dir_path={str(path)!r} holds no saved model: {_JSON} was expected in it.")
    damaged = f"dir_path={str(path)!r} is damaged or was changed after it was saved"
    try:
        described = json.loads((path / _JSON).read_text())
        digest = described.pop("sha256")
        entry = described["tensors"]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{damaged}: {_JSON} cannot be read. Restore it from a copy.") from error
    if digest != _digest(described):
        raise ValueError(f"{damaged}: {_JSON} does not agree with its checksum. Restore it from a copy.")
    if described["format"] > FORMAT:
        raise ValueError(
            f"dir_path={str(path)!r} was saved by a newer sclatent ({described['versions']}): update sclatent."
        )
    if described["class"] != class_name:
        raise ValueError(
            f"dir_path={str(path)!r} holds a {described['class']}, not a {class_name}: use {described['class']}.load."
        )
    file = path / Path(entry["file"]).name
    content = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise ValueError(f"{damaged}: {file.name} is missing, truncated or changed. Restore it from a copy.")
    return _from_json(described), safetensors.torch.load(content)
