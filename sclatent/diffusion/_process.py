"""Processes: how noise comes and goes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    r"""Shares of data and noise in x_t, and how fast they change; each of the shape of the times.

    Attributes
    ----------
    data, noise
        :math:`a_t` and :math:`s_t`.
    data_rate, noise_rate
        :math:`\dot a_t` and :math:`\dot s_t`.

    Examples
    --------
    >>> import torch
    >>> from sclatent.diffusion import LinearFlow
    >>> at_half = LinearFlow().coefficients(torch.tensor([0.5]))
    >>> at_half.data.item(), at_half.noise_rate.item()
    (0.5, -1.0)
    """

    data: Tensor
    noise: Tensor
    data_rate: Tensor
    noise_rate: Tensor


class Process(ABC):
    r"""A path from noise to data.

    .. math:: x_t = a_t \, z + s_t \, \varepsilon, \qquad v = \frac{dx_t}{dt} = \dot a_t \, z + \dot s_t \, \varepsilon,

    with noise :math:`\varepsilon \sim N(0, I)` alone at t = 0 and data z alone at t = 1. A network that predicts v from
    :math:`(x_t, t)` carries noise to data along :math:`dx = v \, dt` (flow matching, Lipman et al. 2023; for the
    variance preserving path this is the probability flow of Song et al. 2021 under v-prediction).

    Examples
    --------
    A process of your own says how much there is of data and noise, and when (here, paths that leave the noise late):

    >>> import torch
    >>> from sclatent.diffusion import Coefficients, Process
    >>> class Late(Process):
    ...     def coefficients(self, t):
    ...         return Coefficients(data=t**2, noise=1 - t**2, data_rate=2 * t, noise_rate=-2 * t)
    ...     def time(self, noise_level):
    ...         return (1 / (1 + (noise_level / (1 - noise_level)) ** 0.5)) ** 0.5
    >>> z, noise = torch.randn(2, 4, 8, 16)  # data and noise of 4 cells, each of 8 tokens of 16
    >>> t = torch.full((4,), 0.5)
    >>> x = Late().interpolate(z, noise, t)
    >>> torch.allclose(Late().data(x, Late().velocity(z, noise, t), t), z, atol=1e-5)
    True
    """

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        r"""Return :math:`a_t, s_t, \dot a_t, \dot s_t` at times (cells,), each of that shape."""

    @abstractmethod
    def time(self, noise_level: float) -> float:
        """Return the time at which noise has this share of the variance of x_t, of data with variance 1."""

    def _at(self, t: Tensor, x: Tensor) -> Coefficients:
        return Coefficients(*(c.view(-1, *[1] * (x.ndim - 1)) for c in self.coefficients(t)))

    def interpolate(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t for data and noise (cells, ...) at times (cells,)."""
        a, s, _, _ = self._at(t, z)
        return s * noise + a * z

    def velocity(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return v at x_t for data and noise (cells, ...) at times (cells,)."""
        _, _, da, ds = self._at(t, z)
        return da * z + ds * noise

    def data(self, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """Return the data that x_t and its velocity come from: the prediction of z if v is predicted."""
        a, s, da, ds = self._at(t, x)
        return (ds * x - s * v) / (a * ds - s * da)

    def gaussian_gain(self, t: Tensor, variance: Tensor) -> Tensor:
        r"""Return the velocity at x_t = 1 of data that are Gaussian with mean 0 and these variances (cells, ...).

        At times (cells,). It is :math:`(\dot a_t a_t \lambda + \dot s_t s_t) / (a_t^2 \lambda + s_t^2)` for a variance
        :math:`\lambda`, and the velocity elsewhere is proportional to x_t.
        """
        a, s, da, ds = self._at(t, variance)
        return (da * a * variance + ds * s) / (a.square() * variance + s.square())

    def steering(self, t: Tensor) -> Tensor:
        r"""Return by how much the velocity changes with the score, (cells,).

        The gradient g of some :math:`\ln p(y | x_t)` takes :math:`s_t g` from the noise and, for x_t to stay where it
        is, gives :math:`s_t^2 g / a_t` to the data (Dhariwal & Nichol 2021): v changes by
        :math:`s_t (\dot a_t s_t - a_t \dot s_t) / a_t` times g. Where hardly any data is left, a is taken as 0.05.
        """
        a, s, da, ds = self.coefficients(t)
        return s * (da * s - a * ds) / a.clamp(min=0.05)

    def loss(self, f: Callable[[Tensor, Tensor], Tensor], z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Mean squared error of the velocity that ``f(x, t)`` predicts, per cell, (cells,)."""
        v = f(self.interpolate(z, noise, t), t)
        return (v - self.velocity(z, noise, t)).square().flatten(1).mean(dim=1)

    def draw_time(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw times for n cells: uniform, and spread evenly over the minibatch to lower the variance of the loss."""
        offsets = torch.rand(n, generator=generator, device=generator.device)
        strata = torch.randperm(n, generator=generator, device=generator.device)
        return (strata + offsets) / n


class LinearFlow(Process):
    r"""Straight paths, :math:`a_t = t, \; s_t = 1 - t` (Lipman et al. 2023; rectified flow, Liu et al. 2023).

    Examples
    --------
    >>> import torch
    >>> from sclatent.diffusion import LinearFlow
    >>> process = LinearFlow()
    >>> z, noise = torch.ones(1, 2), torch.zeros(1, 2)
    >>> process.interpolate(z, noise, torch.tensor([0.25])).tolist()  # a quarter of the way
    [[0.25, 0.25]]
    >>> process.time(0.5)  # as much noise as data
    0.5
    """

    def coefficients(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(t, 1 - t, one, -one)

    def time(self, noise_level: float) -> float:
        return 1 / (1 + math.sqrt(noise_level / (1 - noise_level))) if noise_level < 1 else 0.0


class VariancePreserving(Process):
    r"""Paths of constant variance, :math:`a_t = \sin(\pi t / 2), \; s_t = \cos(\pi t / 2)`.

    The cosine schedule of diffusion (Nichol & Dhariwal 2021) in continuous time: x_t moves along a circle, v along its
    tangent (Salimans & Ho 2022).

    Examples
    --------
    >>> import torch
    >>> from sclatent.diffusion import VariancePreserving
    >>> process = VariancePreserving()
    >>> a, s, _, _ = process.coefficients(torch.tensor([0.0, 0.3, 1.0]))
    >>> (a**2 + s**2).tolist()
    [1.0, 1.0, 1.0]
    >>> round(process.time(0.1), 3)  # when a tenth of the variance is noise
    0.795
    """

    def coefficients(self, t: Tensor) -> Coefficients:
        angle = t * (math.pi / 2)
        a, s = angle.sin(), angle.cos()
        return Coefficients(a, s, s * (math.pi / 2), -a * (math.pi / 2))

    def time(self, noise_level: float) -> float:
        return 2 / math.pi * math.acos(math.sqrt(noise_level))


PROCESSES: dict[str, type[Process]] = {"linear": LinearFlow, "variance_preserving": VariancePreserving}
