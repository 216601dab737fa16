"""A saved model: a folder of safetensors and JSON, in which nothing can run code.

``model.json`` names the file of the tensors by its hash. To save into an existing folder, the new tensors are written
beside the old ones, then ``model.json`` is replaced in one step, and then the old tensors are removed. One saves at a
time. So at every moment the folder holds one whole model; who reads it while it is being replaced reads again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from sclatent.data import plain_level
from sclatent.data._kinds import FeatureTable
from sclatent.data._schema import COUNT, TEXT, check

from ._files import only_writer, write_atomically

FORMAT = 1
_JSON = "model.json"
_LOCK = f".{_JSON}.lock"
_WHOLE = r"(model\.json|tensors-[0-9a-f]{16}\.safetensors)"
_OURS = re.compile(rf"{_WHOLE}|\.{_WHOLE}\.\d+-[0-9a-f]{{8}}")  # as write_atomically names what is not whole yet
# what reading, and building from, contents that nobody has checked may raise
CONTENT_ERRORS = (
    ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeError, SafetensorError, TypeError, ValueError,
)  # fmt: skip


def _to_json(value: Any, tables: dict[str, Tensor]) -> Any:
    """Value as JSON can say it; the numbers of tables of features become tensors."""
    if isinstance(value, np.ndarray):
        return {"__array__": [_to_json(v, tables) if isinstance(v, np.ndarray) else plain_level(v) for v in value]}
    if isinstance(value, FeatureTable):
        name = f"features.{len(tables)}"
        tables[name] = torch.from_numpy(value.values)
        return {"__features__": name, **value.as_json()}
    if isinstance(value, np.generic):
        return plain_level(value)  # a float by the shortest number of its precision
    if isinstance(value, Mapping):
        return {str(k): _to_json(v, tables) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(v, tables) for v in value]
    return value


def _from_json(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Take back what :func:`_to_json` has returned, and its tables out of the tensors."""
    if isinstance(value, dict):
        if value.keys() == {"__array__"}:
            return np.array(value["__array__"], dtype=object)
        if "__features__" in value:
            return FeatureTable.from_json(value, tensors.pop(value["__features__"]).numpy())
        return {k: _from_json(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_from_json(v, tensors) for v in value]
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
        What is not a tensor; anything that JSON can say, numpy arrays, and tables of features.
    tensors
        Tensors by name.
    overwrite
        Whether a model that is there may be replaced.
    """
    path = Path(path)
    _check_free(path, overwrite)
    tables: dict[str, Tensor] = {}
    described = _to_json({"format": FORMAT, **description}, tables)
    content = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in {**tensors, **tables}.items()})
    digest = hashlib.sha256(content).hexdigest()
    file = path / f"tensors-{digest[:16]}.safetensors"
    described["tensors"] = {"file": file.name, "sha256": digest}
    described["sha256"] = _digest(described)
    path.mkdir(parents=True, exist_ok=True)
    with only_writer(path / _LOCK):
        _check_free(path, overwrite)
        write_atomically(file, content)
        write_atomically(path / _JSON, json.dumps(described, indent=1).encode())
        for other in path.iterdir():
            if _is_ours(other.name) and other.name not in (_JSON, _LOCK, file.name):
                other.unlink(missing_ok=True)  # of the model that was replaced, or of a save that was cut short


def _is_ours(name: str) -> bool:
    """Whether a file is of a saved model, or of one that is being saved: no one else names files so."""
    return name == _LOCK or _OURS.fullmatch(name) is not None


def _check_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"dir_path={str(path)!r} is a file: give the name of a folder.")
    names = os.listdir(path) if path.is_dir() else []
    if _JSON in names and not overwrite:
        raise FileExistsError(f"dir_path={str(path)!r} holds a saved model: use overwrite=True to replace it.")
    if _JSON not in names and not all(map(_is_ours, names)):  # else there is nothing, or a save that was cut short
        raise FileExistsError(f"dir_path={str(path)!r} is not empty and holds no saved model: give another folder.")


def read_model(path: str | os.PathLike, class_name: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a model folder: the description and the tensors.

    Parameters
    ----------
    path
        The folder.
    class_name
        Class of the model; any by default.

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
    before = None
    while True:
        with refuse_damaged(path):
            described = _read_json(path / _JSON)
        if described["format"] > FORMAT:
            raise ValueError(
                f"dir_path={str(path)!r} was saved by a newer sclatent ({described.get('versions')}): update sclatent."
            )
        if class_name not in (None, described["class"]):
            raise ValueError(
                f"dir_path={str(path)!r} holds a {described['class']}, not a {class_name}: "
                f"use {described['class']}.load."
            )
        with refuse_damaged(path):
            file = path / Path(described["tensors"]["file"]).name
            try:
                content = file.read_bytes()
            except OSError:
                content = b""
            if hashlib.sha256(content).hexdigest() == described["tensors"]["sha256"]:
                loaded = safetensors.torch.load(content)
                return _from_json(described, loaded), loaded
            if described == before:
                raise ValueError(f"{file.name} is missing, truncated or changed")
        before = described  # another model may have taken its place while it was read


def read_registry(path: str | os.PathLike) -> dict[str, Any]:
    """Read the registry of scvi-tools from a model folder of any class."""
    description, _ = read_model(path)
    with refuse_damaged(path):
        check(description, {"registry": {"model_name": TEXT, "setup_args": {}, "field_registries": {}}}, _JSON)
    return description["registry"]


def _read_json(file: Path) -> dict[str, Any]:
    described = json.loads(file.read_text())
    check(described, {"sha256": TEXT}, file.name)
    digest = described.pop("sha256")
    if digest != _digest(described):
        raise ValueError(f"{file.name} does not agree with its checksum")
    check(described, {"format": COUNT, "class": TEXT, "tensors": {"file": TEXT, "sha256": TEXT}}, file.name)
    return described


@contextmanager
def refuse_damaged(path: str | os.PathLike) -> Iterator[None]:
    """Say of whatever goes wrong with the contents of a model folder that the folder is damaged."""
    try:
        yield
    except CONTENT_ERRORS as error:
        said = " ".join(str(error).split()).rstrip(".")  # those of torch have several lines
        what = said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"
        raise ValueError(
            f"dir_path={str(path)!r} is damaged or was changed after it was saved: {what}. Restore it from a copy."
        ) from error
