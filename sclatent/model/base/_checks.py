"""Checks of arguments that models share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from sclatent.baseline import BASELINES
from sclatent.data import check_whole, short_repr
from sclatent.diffusion import PROCESSES


def check_n_samples(n_samples: Any) -> int:
    """Return how many cells are asked for; raises unless that is a number of cells."""
    if isinstance(n_samples, bool) or not isinstance(n_samples, int | np.integer) or n_samples < 1:
        raise ValueError(
            f"n_samples={n_samples!r} must be a whole number of at least 1: how many cells to make, the first argument."
        )
    return int(n_samples)


def check_steps(n_steps: int | None) -> None:
    """Raise a ``ValueError`` unless this is a number of steps of a solver, or None for its own."""
    if n_steps is not None:
        check_whole("n_steps", n_steps)


def check_sizes(*, optional: bool = False, **sizes: int | None) -> None:
    """Raise a ``ValueError`` unless all sizes of a network are whole numbers of at least 1, or None if optional."""
    for argument, size in sizes.items():
        if size is not None or not optional:
            check_whole(argument, size, instead=", or None for the default" if optional else "")


def check_baseline(baseline: Any) -> None:
    """Raise a ``ValueError`` unless there is such a baseline."""
    if not isinstance(baseline, str) or baseline not in BASELINES:
        raise ValueError(f"baseline={short_repr(baseline)} is not known: use one of {list(BASELINES)}.")


def check_process(process: Any) -> None:
    """Raise a ``ValueError`` unless there is such a process."""
    if not isinstance(process, str) or process not in PROCESSES:
        raise ValueError(f"process={short_repr(process)} is not known: use one of {list(PROCESSES)}.")


def check_order(given: Any, names: pd.Index, argument: str, of: str = "adata", index: str = "adata.obs_names") -> None:
    """Raise a ``ValueError`` if a table or column has the names of the cells in another order: it goes by position."""
    if not isinstance(given, pd.DataFrame | pd.Series) or len(given) != len(names) or given.index.equals(names):
        return
    if given.index.is_unique and given.index.isin(names).all():
        raise ValueError(
            f"{argument} has the names of the cells in another order than {of} has, and goes by position: give "
            f"{argument}.loc[{index}], or {argument}.reset_index(drop=True) if the order is meant."
        )


def check_default_dtype() -> None:
    """Raise unless torch makes single-precision tensors: weights, cells and noise are all of them."""
    if torch.get_default_dtype() != torch.float32:
        raise RuntimeError(
            f"torch.get_default_dtype() is {torch.get_default_dtype()}: models are made, trained and used in single "
            "precision; call torch.set_default_dtype(torch.float32) first."
        )
