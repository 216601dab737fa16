"""Random numbers of which every cell has its own."""

from __future__ import annotations

from typing import Literal

import numpy as np


def cell_rng(
    seed: int, purpose: Literal["sizes", "noise", "counts", "transport"], cell: int = 0
) -> np.random.Generator:
    """Random numbers of one cell for one purpose: no cell's depend on how many others there are."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed={seed!r} must be a whole number of at least 0.")
    return np.random.default_rng([seed, ("sizes", "noise", "counts", "transport").index(purpose), cell])
