"""Checks that models share: of arguments, and of generated cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sclatent.baseline import BASELINES, RESIDUALS
from sclatent.data import check_whole, short_repr
from sclatent.diffusion import PROCESSES

FAR = 1e6  # standard deviations of tokens, or times as far as they were: no cell is there


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


def check_baseline(baseline: Any, residuals: Any = "gaussian") -> None:
    """Raise a ``ValueError`` unless there is such a baseline, and such a distribution of cells around it."""
    for name, value, known in (("baseline", baseline, BASELINES), ("residuals", residuals, RESIDUALS)):
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{name}={short_repr(value)} is not known: use one of {list(known)}.")


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


def check_generated(start: Tensor, tokens: Tensor, values: np.ndarray, guidance_weight: Any) -> None:
    """Raise a ``ValueError`` if cells have gone where none can be, as guidance that is too strong takes them.

    Parameters
    ----------
    start, tokens
        Standardised tokens, before and after.
    values
        What they were decoded to.
    guidance_weight
        The weight, for the message.
    """
    farthest = FAR * max(1.0, float(start.abs().max()))
    if not (bool((tokens.abs() < farthest).all()) and np.isfinite(values).all()):
        raise ValueError(
            f"guidance_weight={guidance_weight!r} took cells beyond all bounds: use a smaller weight. If it is an "
            "ordinary one, the model has learned nothing: train it anew with a lower learning rate."
        )
