"""Random numbers: every cell has its own, and weights start from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import numpy as np
import torch

from sclatent.data import is_whole, short_repr

Purpose = Literal["sizes", "noise", "counts", "transport", "latent", "steps"]


def check_seed(seed: int) -> None:
    """Raise a ``ValueError`` unless this is a seed: a whole number, of Python or numpy, of at most 63 bits."""
    if not is_whole(seed, least=0) or seed >= 2**63:
        raise ValueError(f"seed={short_repr(seed)} must be a whole number of at least 0, and below 2**63.")


def cell_rng(seed: int, purpose: Purpose, cell: int = 0) -> np.random.Generator:
    """Random numbers of one cell for one purpose: no cell's depend on how many others there are."""
    check_seed(seed)
    return np.random.default_rng([seed, get_args(Purpose).index(purpose), cell])


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Draw the random numbers of torch from a seed, and leave the global ones as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
