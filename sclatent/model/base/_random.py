"""Initial weights start from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sclatent.data import torch_stream

OF_TORCH = "bernoulli", "binomial", "multinomial", "normal", "poisson", "rand", "randint", "randn", "randperm"
OF_TENSORS = (
    "bernoulli", "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "multinomial", "normal_",
    "random_", "uniform_",
)  # fmt: skip
DRAWS = {getattr(torch, name) for name in OF_TORCH} | {getattr(Tensor, name) for name in OF_TENSORS}


class _DrawsFrom(TorchFunctionMode):
    """Whatever torch draws in this thread comes from a generator, where none is given."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if (func in DRAWS or "generator" in kwargs) and kwargs.get("generator") is None:
            kwargs = {**kwargs, "generator": self.generator}
        return func(*args, **kwargs)


@contextmanager
def initial_weights(seed: int, part: str) -> Iterator[None]:
    """Draw the initial weights of a part of a model from the seed; the global random numbers are not touched.

    They belong to all threads, so that models that are made at once would get weights of each other.
    """
    if torch.get_default_device().type == "meta":  # there is nothing to draw
        yield
        return
    with _DrawsFrom(torch_stream(seed, f"initial weights of the {part}")):
        yield
