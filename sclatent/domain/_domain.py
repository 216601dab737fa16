"""What a model needs to know of the cells that it is a model of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.data.fields import AnnDataField
from torch import Tensor, nn

from sclatent.data import Conditions, check_whole, short_repr
from sclatent.module import LatentDiffusion, Standardize
from sclatent.nn import Values

CHANGED = "The AnnData of training was changed: it"


class Domain(ABC):
    """A kind of cells: counts of genes, or features.

    A model holds one, and asks it whatever depends on what a cell is. It has no weights: methods that need the networks
    are given the module.

    Parameters
    ----------
    registry
        Registry of the model, of scvi-tools.
    """

    STATE: ClassVar[Mapping[str, Any]] = {}  # what describe() says, and of which kind
    SETUP: ClassVar[Mapping[str, Any]] = {}  # arguments of setup_anndata, and of which kind
    WRITTEN: ClassVar[tuple[str, ...]] = ()  # columns of obs of generated cells besides conditions and batch
    encodes_batch: ClassVar[bool]  # whether a cell is encoded under its batch
    common_scale: ClassVar[bool]  # whether all coordinates of the tokens are standardised by one scale

    def __init__(self, registry: Mapping[str, Any]) -> None:
        self.setup = registry["setup_args"]
        self.names = registry["field_registries"]["X"]["state_registry"]["column_names"]

    # ---- the AnnData

    @staticmethod
    @abstractmethod
    def fields(setup: Mapping[str, Any]) -> list[AnnDataField]:
        """Return the fields of scvi-tools for what the arguments of ``setup_anndata`` name, that of X first."""

    @abstractmethod
    def rows(
        self,
        adata: AnnData,
        codes: np.ndarray,
        batch: np.ndarray,
        indices: Sequence[int] | None,
        is_training: bool,
    ) -> Any:
        """Read cells by position, with features aligned by name: a data set with ``subset``, ``conditions``, ``batch``.

        Parameters
        ----------
        adata
            The cells.
        codes, batch
            Condition codes (cells, n_keys) and batch codes (cells,) of all of them.
        indices
            Rows; all by default.
        is_training
            Whether it is the AnnData of training, which was checked when it was set up.
        """

    @abstractmethod
    def check_values(self, rows: Any) -> None:
        """Raise if a value of the cells to train on is none that can be; looks at all of them."""

    @abstractmethod
    def contents(self, rows: Any) -> Iterator[Any]:
        """All that training sees of these cells besides conditions: arrays, in blocks, and names."""

    @abstractmethod
    def values(self, rows: Any) -> np.ndarray:
        """Read cells as methods compare them, (cells, ...), float32."""

    # ---- networks

    def new_module(self, autoencoder: Any, standardize: Standardize) -> LatentDiffusion[Any, Any]:
        """Put an autoencoder and the standardisation of its tokens together; the denoiser is still missing."""
        return LatentDiffusion(autoencoder, standardize, nn.Identity())

    @abstractmethod
    def look_at(self, module: Any, rows: Any, seed: int, progress_bar: bool) -> None:
        """Fit what follows from the training cells alone, before anything is trained."""

    def learn_from(self, module: Any, rows: Any, conditions: Conditions) -> None:  # noqa: B027
        """Remember what sampling needs to know of the training cells."""

    def fit_means(  # noqa: B027
        self, module: Any, rows: Any, codes: np.ndarray, values: Sequence[Values] | None
    ) -> None:
        """Fit what is predicted of the cells of conditions themselves, and not of their tokens."""

    def at_most(self, batch_size: int) -> int:
        """Cells to compute together: fewer than asked for where they are so large that memory would not do."""
        return check_whole("batch_size", batch_size)

    @abstractmethod
    def encode(self, module: Any, batch: Any) -> Tensor:
        """Tokens of a minibatch, (cells, n_tokens, token_dim), not standardised."""

    @abstractmethod
    def decode(self, module: Any, tokens: Tensor, batches: np.ndarray, library: np.ndarray | None) -> np.ndarray:
        """Expected values (cells, ...) of standardised tokens under batch codes (cells,) and library sizes (cells,)."""

    # ---- library sizes, of cells that have any

    def given_or_drawn_library(
        self, library_size: float | Sequence[float] | None, codes: np.ndarray, uniforms: np.ndarray
    ) -> tuple[np.ndarray | None, dict[str, str]]:
        """Library sizes of cells to make, (cells,), and what uns says of them."""
        if library_size is not None:
            raise ValueError(
                f"library_size={short_repr(library_size)}: images and embeddings have no library size; leave it out."
            )
        return None, {}

    def library_of(self, module: Any, batch: Any) -> np.ndarray | None:
        """Library sizes of measured cells, (cells,)."""
        return None

    def size(self, module: Any, library: np.ndarray | None) -> Tensor | None:
        """Library sizes as the denoiser is conditioned on them, (cells,)."""
        return None

    def fit_size(self, module: Any, rows: Any) -> None:  # noqa: B027
        """Standardise library sizes by those of the training cells."""

    def sizes(self, module: Any, rows: Any) -> Tensor | None:
        """Library sizes of all cells, as the denoiser is conditioned on them."""
        return None

    # ---- cells that were made

    def moved(
        self,
        module: Any,
        expected: np.ndarray,
        source: np.ndarray,
        target: np.ndarray,
        values: Sequence[Values] | None,
    ) -> np.ndarray:
        """Expected values of cells that were moved from condition codes (cells, n_keys) to others."""
        return expected

    @abstractmethod
    def draw(self, module: Any, expected: np.ndarray, seed: int, cells: np.ndarray) -> Any:
        """Draw cells from their expected values."""

    @abstractmethod
    def transport(self, module: Any, rows: Any, cells: np.ndarray, old: np.ndarray, new: np.ndarray, seed: int) -> Any:
        """Move measured cells, by position, as their expected values (cells, ...) have moved; the rest is kept."""

    @abstractmethod
    def collect(self, blocks: list[Any], obs: pd.DataFrame, library: np.ndarray | None) -> AnnData:
        """Put cells that were made into an AnnData, where those of training had theirs.

        Parameters
        ----------
        blocks
            Results of :meth:`draw` or :meth:`transport`.
        obs
            One row per cell.
        library
            Library sizes that were asked for, (cells,), if there are any.
        """

    def add_difference(self, result: AnnData, rows: Any) -> None:  # noqa: B027
        """Add what has changed of measured cells to counterfactuals, where there is a place for it."""

    # ---- saved models

    @property
    @abstractmethod
    def summary(self) -> str:
        """What the cells are, in words."""

    def describe(self) -> dict[str, Any]:
        """Return what is saved of the cells, as JSON can say it."""
        return {}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return arrays that are saved beside the weights."""
        return {}

    @abstractmethod
    def restore(
        self,
        description: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        codes: np.ndarray | None,
        conditions: Conditions,
    ) -> None:
        """Take back what was saved; ``codes`` are those of the training cells, if the model is trained."""

    @classmethod
    @abstractmethod
    def check_description(cls, description: Mapping[str, Any]) -> None:
        """Raise unless a description, which has the kinds of ``STATE`` and ``SETUP``, is one of such cells."""
