"""The evidence lower bound of diffusion."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ._process import Process

SNR = 1e-3, 1e4  # the least, after none at all, and the largest ratio of signal to noise


def lower_bound(
    f: Callable[[Tensor, Tensor], Tensor], process: Process, z: Tensor, noise: Tensor, uniforms: Tensor, n_steps: int
) -> Tensor:
    r"""Estimate a lower bound of :math:`\ln p(z)` under a denoiser (Ho et al. 2020; Kingma et al. 2021, section 4).

    .. math:: \ln p(z) \ge \ln p(z | x_{T-1}) - \sum_{k < T} \tfrac{1}{2} \bigl( \mathrm{snr}(t_{k}) -
              \mathrm{snr}(t_{k-1}) \bigr) \| z - \hat z(x_{k-1}) \|^2, \qquad \mathrm{snr}(t) = a_t^2 / s_t^2,

    with :math:`t_0 = 0`, where all is noise, and times from there to nearly data at which :math:`\ln \mathrm{snr}`
    grows evenly: like that no step is a large one, and the bound of an exact denoiser tends to :math:`\ln p(z)` with T
    (with even steps of time, the last ones cost more than 1 nat a coordinate, however many there are). The sum is
    estimated from one of its terms a draw.

    Parameters
    ----------
    f
        Velocity ``f(x, t)``.
    process
        Its process.
    z
        Data, (cells, n_tokens, token_dim).
    noise
        Standard normal, ``(n_draws, *z.shape)``.
    uniforms
        Uniform, (n_draws, cells): they choose the terms.
    n_steps
        T, the number of steps, at least 2.

    Returns
    -------
    Tensor
        The bound in nats, (cells,), averaged over the draws.

    Examples
    --------
    Where data are standard normal, the exact velocity of a variance preserving process is 0, and the bound is tight:

    >>> import math
    >>> import torch
    >>> from sclatent.diffusion import VariancePreserving, lower_bound
    >>> generator = torch.Generator().manual_seed(0)
    >>> z = torch.randn(4, 1, 2, generator=generator)  # 4 cells of 2 numbers
    >>> noise, uniforms = torch.randn(2000, 4, 1, 2, generator=generator), torch.rand(2000, 4, generator=generator)
    >>> bound = lower_bound(lambda x, t: 0 * x, VariancePreserving(), z, noise, uniforms, n_steps=1000)
    >>> exact = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(dim=(1, 2))
    >>> bool(((bound - exact).abs() < 1).all())
    True
    """

    def error(t: Tensor, noise: Tensor) -> Tensor:
        x = process.interpolate(z, noise, t)
        return (z - process.data(x, f(x, t), t)).square().flatten(1).sum(dim=1)

    def snr(t: Tensor) -> Tensor:
        a, s, _, _ = process.coefficients(t)
        return (a / s).square()

    times = z.new_tensor([0.0, *(process.time(1 / (1 + ratio)) for ratio in np.geomspace(*SNR, n_steps - 1))])
    last = times[-1].expand(len(z))
    log_variance = -snr(last).log()
    total = torch.zeros_like(last)
    for e, u in zip(noise, uniforms, strict=True):
        reconstruction = -0.5 * (error(last, e) * snr(last) + z[0].numel() * (log_variance + math.log(2 * math.pi)))
        k = (u * (n_steps - 1)).long().clamp(max=n_steps - 2)  # a uniform may be rounded to 1
        gain = snr(times[k + 1]) - snr(times[k])
        total = total + reconstruction - 0.5 * (n_steps - 1) * gain * error(times[k], e)
    return total / len(noise)
