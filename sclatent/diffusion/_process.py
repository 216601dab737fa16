"""Processes: how noise comes and goes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class LinearFlow:
    r"""Straight paths from noise to data (flow matching, Lipman et al. 2023; rectified flow, Liu et al. 2023).

    .. math:: x_t = (1 - t) \, \varepsilon + t \, z, \qquad v = \frac{dx_t}{dt} = z - \varepsilon,

    with noise :math:`\varepsilon \sim N(0, I)` at t = 0 and data z at t = 1. A network that predicts v from
    :math:`(x_t, t)` carries noise to data along :math:`dx = v \, dt`.
    """

    def interpolate(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t for data and noise (cells, ...) at times (cells,)."""
        t = t.view(-1, *[1] * (z.ndim - 1))
        return (1 - t) * noise + t * z

    def loss(self, f: Callable[[Tensor, Tensor], Tensor], z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Mean squared error of the velocity that ``f(x, t)`` predicts, per cell, (cells,)."""
        v = f(self.interpolate(z, noise, t), t)
        return (v - (z - noise)).square().flatten(1).mean(dim=1)

    def draw_time(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw times for n cells: uniform, and spread evenly over the minibatch to lower the variance of the loss."""
        offsets = torch.rand(n, generator=generator, device=generator.device)
        strata = torch.randperm(n, generator=generator, device=generator.device)
        return (strata + offsets) / n
