"""Random numbers: every cell has its own, and weights start from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import numpy as np
import torch

Purpose = Literal["sizes", "noise", "counts", "transport", "latent", "steps"]


def cell_rng(seed: int, purpose: Purpose, cell: int = 0) -> np.random.Generator:
    """Random numbers of one cell for one purpose: no cell's depend on how many others there are."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed={seed!r} must be a whole number of at least 0.")
    return np.random.default_rng([seed, get_args(Purpose).index(purpose), cell])


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Draw the random numbers of torch from a seed, and leave the global ones as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
