"""Saved models: a folder of safetensors and JSON, from which no code is run."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from torch import Tensor, nn

from sclatent.data._schema import (
    FIELD,
    LEVELS,
    LOSSES,
    NAME,
    TEXT,
    check,
    dict_of,
    list_of,
    one_of,
    optional,
    parameters,
)

from ._folder import read_model, refuse_damaged, write_model
from ._registry import RegistryMixin


class SavedModel(RegistryMixin):
    """A model that can be saved and loaded.

    A model names its ``STAGES`` of training, the last of which is ``"diffusion"``.
    """

    STAGES: ClassVar[tuple[str, ...]]

    module: nn.Module
    init_params_: dict[str, Any]
    history_: dict[str, pd.DataFrame]
    trained_stages: set[str]

    @abstractmethod
    def _description(self) -> dict[str, Any]:
        """Return what is saved beside the weights, as JSON can say it."""

    @abstractmethod
    def _arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that are saved beside the weights."""

    @abstractmethod
    def _restore(self, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Take back what was saved beside the weights."""

    @classmethod
    def _schema(cls) -> dict[str, Any]:
        """Return what a description has to have at least; what a model saves itself comes on top."""
        levels = {"state_registry": {"categorical_mapping": LEVELS, "original_key": NAME}}
        return {
            "versions": {"sclatent": TEXT},
            "init_params": parameters(cls.__init__),
            "registry": {
                "scvi_version": TEXT,
                "model_name": one_of(cls.__name__),
                "setup_args": {"batch_key": optional(NAME)},
                "field_registries": {REGISTRY_KEYS.X_KEY: {}, REGISTRY_KEYS.BATCH_KEY: levels},
            },
            "trained_stages": list_of(one_of(*cls.STAGES)),
            "history": dict_of(LOSSES),
        }

    @classmethod
    def _check_description(cls, description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Raise if a description is not one of this model, or asks for larger networks than there are weights."""
        check(description, cls._schema(), "model.json")
        for name, field in description["registry"]["field_registries"].items():
            check(field, FIELD, f"model.json.registry.field_registries.{name}")
        n_numbers = sum(weight.numel() for weight in weights.values())
        for name, value in description["init_params"].items():
            most = len(weights) if name.endswith("blocks") else n_numbers
            if isinstance(value, int) and name != "seed" and value > most:
                raise ValueError(f"model.json.init_params.{name}={value} is more than the tensors hold")

    def save(self, dir_path: str | os.PathLike, overwrite: bool = False) -> None:
        """Save the model as a folder of safetensors and JSON, with all it needs to sample; not the cells.

        Parameters
        ----------
        dir_path
            The folder.
        overwrite
            Whether to replace a model that is there. The old one stands until the new one is whole.

        Examples
        --------
        >>> model.save("my_model")
        >>> model.save("my_model", overwrite=True)
        """
        description = {
            "class": type(self).__name__,
            "versions": {p: version(p) for p in ("sclatent", "torch", "scvi-tools", "anndata")},
            "init_params": self.init_params_,
            "registry": self.registry,
            "trained_stages": sorted(self.trained_stages),
            "history": {key: list(frame.iloc[:, 0].items()) for key, frame in self.history_.items()},
            **self._description(),
        }
        tensors = {f"module.{key}": value for key, value in self.module.state_dict().items()}
        arrays = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in self._arrays().items()}
        write_model(dir_path, description, tensors | arrays, overwrite)

    @classmethod
    def load(
        cls, dir_path: str | os.PathLike, adata: AnnData | None = None, device: str | torch.device = "auto"
    ) -> Self:
        """Load a saved model; no code is run.

        Parameters
        ----------
        dir_path
            The folder.
        adata
            AnnData to use where none is given to a method, and to train further on; it must have the features that
            the model was trained on. Not needed to sample.
        device
            Where to put the model; ``"auto"`` takes a GPU if there is one.

        Returns
        -------
        Self
            The model, as it was when it was saved.

        Raises
        ------
        FileNotFoundError
            If there is no model.
        ValueError
            If the folder holds a model of another class or of other networks, or was damaged or changed.

        Examples
        --------
        Call it on the class of the model, such as ``SCLDM.load``; of a model at hand that is ``type(model)``:

        >>> model.save("my_model")
        >>> loaded = type(model).load("my_model", adata)
        >>> loaded.trained_stages == model.trained_stages
        True

        To sample takes no data:

        >>> type(model).load("my_model").sample(2).n_obs
        2
        """
        description, tensors = read_model(dir_path, cls.__name__)
        prefix = "module."
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        with refuse_damaged(dir_path):
            cls._check_description(description, weights)
            with torch.device("meta"):  # the shapes alone, which cost nothing
                outline = cls(registry=description["registry"], **description["init_params"]).module
        try:
            outline.load_state_dict({key: value.to("meta") for key, value in weights.items()})
        except RuntimeError as error:
            raise ValueError(
                f"dir_path={str(dir_path)!r} was saved by sclatent {description['versions']['sclatent']}, whose "
                f"{cls.__name__} had other networks than that of this version: train it again."
            ) from error
        model = cls(registry=description["registry"], **description["init_params"])
        with refuse_damaged(dir_path):
            model.module.load_state_dict(weights)
            for key, weight in model.module.state_dict().items():
                saved = weights.get(key, weight)
                if saved.is_floating_point() != weight.is_floating_point():
                    raise ValueError(f"{key} is {saved.dtype}, not {weight.dtype}")
                if not weight.isfinite().all():
                    raise ValueError(f"{key} has numbers that are not finite")
            model.trained_stages = set(description["trained_stages"])
            model.is_trained_ = model.trained_stages == set(cls.STAGES)
            model.history_ = {
                key: pd.DataFrame({key: dict(items)}).rename_axis("epoch")
                for key, items in description["history"].items()
            }
            model._restore(description, {k: v.numpy() for k, v in tensors.items() if not k.startswith(prefix)})
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model.module.to(device)
        if adata is not None:
            model.adata = adata
        return model
