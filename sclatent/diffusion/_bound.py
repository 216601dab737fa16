"""The evidence lower bound of diffusion."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ._process import Process


def lower_bound(
    f: Callable[[Tensor, Tensor], Tensor], process: Process, z: Tensor, noise: Tensor, uniforms: Tensor, n_steps: int
) -> Tensor:
    r"""Estimate a lower bound of :math:`\ln p(z)` under a denoiser (Ho et al. 2020; Kingma et al. 2021, section 4).

    .. math:: \ln p(z) \ge \ln p(z | x_{T-1}) - \sum_{k < T} \tfrac{1}{2} \bigl( \mathrm{snr}(t_{k}) -
              \mathrm{snr}(t_{k-1}) \bigr) \| z - \hat z(x_{k-1}) \|^2, \qquad \mathrm{snr}(t) = a_t^2 / s_t^2,

    with times :math:`t_k = k / T` from noise to data. The sum is estimated from one of its terms a draw.

    Parameters
    ----------
    f
        Velocity ``f(x, t)``.
    process
        Its process.
    z
        Data, (cells, n_tokens, token_dim).
    noise
        Standard normal, (n_draws, *z.shape).
    uniforms
        Uniform, (n_draws, cells): they choose the terms.
    n_steps
        T, the number of steps.

    Returns
    -------
    The bound in nats, (cells,), averaged over the draws.
    """

    def error(t: Tensor, noise: Tensor) -> Tensor:
        x = process.interpolate(z, noise, t)
        return (z - process.data(x, f(x, t), t)).square().flatten(1).sum(dim=1)

    def snr(t: Tensor) -> Tensor:
        a, s, _, _ = process.coefficients(t)
        return (a / s).square()

    last = z.new_full((len(z),), (n_steps - 1) / n_steps)
    log_variance = -snr(last).log()
    total = torch.zeros_like(last)
    for e, u in zip(noise, uniforms, strict=True):
        reconstruction = -0.5 * (error(last, e) * snr(last) + z[0].numel() * (log_variance + math.log(2 * math.pi)))
        before = (u * (n_steps - 1)).floor() / n_steps
        gain = snr(before + 1 / n_steps) - snr(before)
        total = total + reconstruction - 0.5 * (n_steps - 1) * gain * error(before, e)
    return total / len(noise)
