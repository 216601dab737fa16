"""Streams of random numbers: one seed, and none that coincides with another or with what users draw from that seed."""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np
import torch

from ._levels import short_repr
from ._numbers import is_whole

Purpose = Literal["sizes", "noise", "counts", "transport", "latent", "steps", "cells"]


def check_seed(seed: int) -> None:
    """Raise a ``ValueError`` unless this is a seed: a whole number, of Python or numpy, of at most 63 bits.

    Parameters
    ----------
    seed
        The seed.

    Examples
    --------
    >>> from sclatent.data import check_seed
    >>> check_seed(-1)
    Traceback (most recent call last):
        ...
    ValueError: seed=-1 must be a whole number of at least 0, and below 2**63.
    """
    if not is_whole(seed, least=0) or seed >= 2**63:
        raise ValueError(f"seed={short_repr(seed)} must be a whole number of at least 0, and below 2**63.")


def cell_rng(seed: int, purpose: Purpose, cell: int = 0) -> np.random.Generator:
    """Random numbers of one cell for one purpose: no cell's depend on how many others there are.

    Parameters
    ----------
    seed
        The seed.
    purpose
        What the numbers are for.
    cell
        Position of the cell.

    Returns
    -------
    np.random.Generator
        The stream, from its beginning.

    Examples
    --------
    >>> from sclatent.data import cell_rng
    >>> bool(cell_rng(0, "noise", 5).random() == cell_rng(0, "noise", 6).random())
    False
    """
    check_seed(seed)
    return random_stream(seed, f"{purpose} of cells", cell)


def random_stream(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """Random numbers of a seed for one purpose.

    Those of another purpose or position have nothing to do with them, and nor have those of
    ``np.random.default_rng(seed)``, from which a user may have drawn which cells to hold out.

    Parameters
    ----------
    seed
        The seed.
    purpose
        What the numbers are for, in words.
    position
        Of what they are: the number of an epoch, of a cell.

    Returns
    -------
    np.random.Generator
        The stream, from its beginning.

    Examples
    --------
    >>> from sclatent.data import random_stream
    >>> one, same = random_stream(0, "order of cells", 3), random_stream(0, "order of cells", 3)
    >>> bool(one.random() == same.random())
    True
    """
    return np.random.default_rng(_sequence(seed, purpose, position))


def torch_stream(seed: int, purpose: str, *position: int, device: torch.device | str | None = None) -> torch.Generator:
    """The same for torch.

    Parameters
    ----------
    seed, purpose, position
        As of :func:`random_stream`.
    device
        Where the numbers are drawn; by default where torch makes tensors.

    Returns
    -------
    torch.Generator
        The stream, from its beginning.

    Examples
    --------
    >>> import torch
    >>> from sclatent.data import torch_stream
    >>> torch.rand(2, generator=torch_stream(0, "noise of an epoch", 1)).shape
    torch.Size([2])
    """
    device = torch.get_default_device() if device is None else device
    number = int(_sequence(seed, purpose, position).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(number)


def _sequence(seed: int, purpose: str, position: tuple[int, ...]) -> np.random.SeedSequence:
    # spawn keys never coincide with seeds; the purpose is a large number, as spawn() takes small ones
    return np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), *position))
