"""The AnnData of a model, and how it was set up, in the registry of scvi-tools: it works for loaded models, too."""

from __future__ import annotations

import logging
import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import rich.pretty  # noqa: F401, scvi-tools 1.4 prints by it without importing it
from anndata import AnnData
from scvi.data import AnnDataManager, AnnDataManagerValidationCheck
from scvi.data.fields import AnnDataField
from scvi.model.base import BaseModelClass

from sclatent.data import check_adata

from ._folder import read_registry


class RegistryMixin(BaseModelClass):
    """The AnnData of a model, and the manager of scvi-tools that knows how it was set up."""

    _adata: AnnData | None
    _adata_manager: AnnDataManager | None
    n_adatas = 0  # how many times another AnnData was set: names of its cells may be the same

    @abstractmethod
    def _check_query(self, adata: AnnData) -> None:
        """Raise if an AnnData does not fit the model."""

    @abstractmethod
    def _transfer_setup(self, adata: AnnData) -> AnnDataManager:
        """Set up an AnnData as that of training was, with its levels."""

    @classmethod
    @abstractmethod
    def _fields(cls, setup: Mapping[str, Any]) -> list[AnnDataField]:
        """Return the fields of scvi-tools for what the arguments of ``setup_anndata`` name."""

    @classmethod
    def _register(cls, adata: AnnData, setup_args: dict[str, Any], **kwargs: Any) -> AnnDataManager:
        """Write the fields of an AnnData into the registry of scvi-tools; a view becomes an AnnData of its own."""
        if adata.is_view and adata.isbacked:
            raise ValueError(
                "adata is a view of a file, which cannot be set up: read it into memory, adata = adata.to_memory(), or "
                'write its cells to a file of their own, adata = adata.copy(filename="cells.h5ad").'
            )
        manager = AnnDataManager(
            fields=cls._fields(setup_args),
            setup_method_args=cls._get_setup_method_args(cls=cls, adata=adata, **setup_args),
            validation_checks=AnnDataManagerValidationCheck(check_if_view=False),
        )
        # scvi-tools tells of the names that it makes up for pixels
        logging.getLogger("scvi.data.fields._arraylike_field").setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*view.*")
            warnings.filterwarnings("ignore", message=".*fewer than 3 cells")  # labels may be few
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)
        return manager

    @property
    def adata(self) -> AnnData | None:
        """AnnData that is used where none is given; it can be set to another one that fits the model."""
        return self._adata

    @adata.setter
    def adata(self, adata: AnnData) -> None:
        if adata is None:
            raise ValueError("adata=None: give an AnnData, or load the model without one by load(dir_path).")
        self._check_query(adata)
        manager = self._transfer_setup(adata)
        self._register_manager_for_instance(manager)
        self.n_adatas += adata is not self._adata
        self._adata, self._adata_manager = adata, manager
        self.registry_, self.summary_stats = manager.registry, manager.summary_stats

    def _given(self, adata: AnnData | None) -> AnnData:
        """The AnnData that was given to a method, by default that of training."""
        adata = self.adata if adata is None else adata
        if adata is None:
            raise ValueError(
                "adata is missing: this model was loaded without data, so there are no training cells to fall back on."
            )
        check_adata(adata)
        return adata

    def _manager_of(self, adata: AnnData | None) -> AnnDataManager:
        adata = self.adata if adata is None else adata
        if adata is None:
            raise ValueError(
                "adata is missing: this model was loaded without data. Give it some: model.adata = adata. What it "
                "knows of those of training is in model.registry."
            )
        manager = self.get_anndata_manager(adata)
        if manager is None:
            raise ValueError("adata is not known to this model: give it to the model first by model.adata = adata.")
        return manager

    def view_anndata_setup(self, adata: AnnData | None = None, hide_state_registries: bool = False) -> None:
        """Print where the data are in an AnnData, and their levels.

        Parameters
        ----------
        adata
            AnnData of the model, which is the default, or one that was.
        hide_state_registries
            Whether to leave out the levels.

        Examples
        --------
        >>> model.view_anndata_setup(hide_state_registries=True)
        Anndata setup with scvi-tools version ...
        """
        self._manager_of(adata).view_registry(hide_state_registries=hide_state_registries)

    def view_registry(self, hide_state_registries: bool = False) -> None:
        """Print where the data are in the AnnData of the model, as :meth:`view_anndata_setup`.

        Parameters
        ----------
        hide_state_registries
            Whether to leave out the levels.

        Examples
        --------
        >>> model.view_registry(hide_state_registries=True)
        Anndata setup with scvi-tools version ...
        """
        self.view_anndata_setup(hide_state_registries=hide_state_registries)

    def get_from_registry(self, adata: AnnData, registry_key: str) -> np.ndarray | pd.DataFrame:
        """Return what an AnnData of the model has under a key of the registry.

        Parameters
        ----------
        adata
            AnnData of the model, or one that was.
        registry_key
            Such as ``"X"`` or ``"batch"``.

        Returns
        -------
        np.ndarray | pd.DataFrame
            The data, as they are stored; of columns of obs the codes of their levels.

        Examples
        --------
        >>> model.get_from_registry(adata, "batch").shape == (adata.n_obs, 1)
        True
        """
        return self._manager_of(adata).get_from_registry(registry_key)

    def deregister_manager(self, adata: AnnData | None = None) -> None:
        """Forget how AnnData were set up, so that they can be removed from memory.

        Parameters
        ----------
        adata
            Which AnnData; by default all but that of the model.

        Examples
        --------
        >>> model.deregister_manager()
        >>> model.adata_manager.adata is model.adata
        True
        """
        if adata is not None:  # scvi-tools forgets only what the class knows, but a copy is known to the model alone
            self.register_manager(self._manager_of(adata))
        elif self.adata_manager is None:
            raise ValueError(
                "adata is missing: this model was loaded without data and has none to keep. Name the AnnData to "
                "forget, on a model that knows it."
            )
        super().deregister_manager(adata)

    @staticmethod
    def load_registry(dir_path: str | os.PathLike) -> dict[str, Any]:
        """Return the registry of a saved model: how its data were set up, and their levels.

        Parameters
        ----------
        dir_path
            The folder.

        Returns
        -------
        dict[str, Any]
            The registry, as ``model.registry``.

        Examples
        --------
        >>> model.save("my_model", overwrite=True)
        >>> type(model).load_registry("my_model")["setup_args"] == model.registry["setup_args"]
        True
        """
        return read_registry(dir_path)

    @staticmethod
    def view_setup_args(dir_path: str | os.PathLike) -> None:
        """Print the arguments of ``setup_anndata`` of a saved model.

        Parameters
        ----------
        dir_path
            The folder.

        Examples
        --------
        >>> model.save("my_model", overwrite=True)
        >>> type(model).view_setup_args("my_model")
        Setup via ...
        """
        AnnDataManager.view_setup_method_args(read_registry(dir_path))

    @classmethod
    def convert_legacy_save(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise: there is one format of saved models, which :meth:`load` reads.

        Examples
        --------
        >>> model.convert_legacy_save("old", "new")
        Traceback (most recent call last):
        NotImplementedError: There are no legacy saved models of ...
        """
        raise NotImplementedError(f"There are no legacy saved models of {cls.__name__}: use {cls.__name__}.load.")

    @classmethod
    def setup_annbatch(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise: data are set up by :meth:`setup_anndata`, also those on disk.

        Examples
        --------
        >>> model.setup_annbatch(paths=["cells.h5ad"])
        Traceback (most recent call last):
        NotImplementedError: ... does not read through annbatch: ...
        """
        raise NotImplementedError(
            f"{cls.__name__} does not read through annbatch: use {cls.__name__}.setup_anndata, which takes backed "
            'AnnData, such as anndata.read_h5ad(path, backed="r").'
        )

    def update_setup_method_args(self, setup_method_args: dict[str, Any]) -> NoReturn:
        """Raise: the networks of a model are made for the data as they were set up.

        Parameters
        ----------
        setup_method_args
            Arguments of ``setup_anndata``.

        Examples
        --------
        >>> model.update_setup_method_args({"layer": "counts"})
        Traceback (most recent call last):
        NotImplementedError: ... is made for the data as they were set up: ...
        """
        name = type(self).__name__
        raise NotImplementedError(
            f"A {name} is made for the data as they were set up: call {name}.setup_anndata with "
            f"{list(setup_method_args)} and make a new {name}."
        )
