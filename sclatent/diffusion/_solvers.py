"""Solvers of the ordinary differential equation dx/dt = f(x, t) from one time to another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]
Solver = Literal["heun", "euler", "adaptive"]

DEFAULT_STEPS: dict[str, int] = {"heun": 12, "euler": 25, "adaptive": 8}  # at most 25 evaluations each


def euler(f: Field, x: Tensor, start: float, end: float, n_steps: int) -> Tensor:
    """Euler's method: one evaluation a step, error of first order.

    Parameters
    ----------
    f
        Velocity, a callable of x and times (cells,).
    x
        Where to start, (cells, ...).
    start, end
        Times; ``end`` may be the earlier one.
    n_steps
        Number of steps.

    Returns
    -------
    Tensor
        x at time ``end``.

    Examples
    --------
    >>> import torch
    >>> from sclatent.diffusion import euler
    >>> decay = euler(lambda x, t: -x, torch.ones(1, 1), start=0.0, end=1.0, n_steps=2)
    >>> decay.item()  # two steps to half of what there is; the solution is 0.368
    0.25
    """
    h = (end - start) / n_steps
    for i in range(n_steps):
        x = x + h * f(x, x.new_full((len(x),), start + i * h))
    return x


def heun(f: Field, x: Tensor, start: float, end: float, n_steps: int) -> Tensor:
    """Heun's method: two evaluations a step, error of second order.

    Parameters
    ----------
    f, x, start, end, n_steps
        As of :func:`euler`.

    Returns
    -------
    Tensor
        x at time ``end``.

    Examples
    --------
    >>> import torch
    >>> from sclatent.diffusion import heun
    >>> decay = heun(lambda x, t: -x, torch.ones(1, 1), start=0.0, end=1.0, n_steps=12)
    >>> round(decay.item(), 3)
    0.368
    """
    h = (end - start) / n_steps
    for i in range(n_steps):
        t = x.new_full((len(x),), start + i * h)
        k1 = f(x, t)
        k2 = f(x + h * k1, t + h)
        x = x + h * (k1 + k2) / 2
    return x


def adaptive(f: Field, x: Tensor, start: float, end: float, n_steps: int, tolerance: float = 1e-2) -> Tensor:
    """Bogacki & Shampine's method of orders 3 and 2, with steps of its own for every cell.

    A cell's steps depend on that cell alone, so its result does not depend on which cells share the batch. A step is
    accepted when its error, root mean square against ``tolerance * (1 + |x|)``, is below 1, or when it is as short as
    what is left divided by the attempts that are left: after ``n_steps`` attempts of three evaluations every cell has
    arrived.

    Parameters
    ----------
    f, x, start, end
        As of :func:`euler`; x has two dimensions or more.
    n_steps
        Number of attempted steps, at most.
    tolerance
        What error a step may have.

    Returns
    -------
    Tensor
        x at time ``end``.

    Examples
    --------
    >>> import torch
    >>> from sclatent.diffusion import adaptive
    >>> rate = torch.tensor([[0.0], [1.0], [20.0]])  # three cells; the last one needs short steps
    >>> decay = adaptive(lambda x, t: -rate * x, torch.ones(3, 1), start=0.0, end=1.0, n_steps=100, tolerance=1e-4)
    >>> decay.squeeze(1).round(decimals=3).tolist()
    [1.0, 0.368..., 0.0]
    """
    span = end - start

    def slope(x: Tensor, s: Tensor) -> Tensor:
        return span * f(x, start + span * s)

    s = x.new_zeros(len(x))  # how far each cell has come, from 0 to 1
    h = x.new_full((len(x),), 1 / n_steps)
    k1 = slope(x, s)
    for attempts_left in range(n_steps, 0, -1):
        shortest = (1 - s) / attempts_left
        h = torch.minimum(torch.maximum(h, shortest), 1 - s)
        w = h.view(-1, *[1] * (x.ndim - 1))
        k2 = slope(x + w * k1 / 2, s + h / 2)
        k3 = slope(x + 3 * w * k2 / 4, s + 3 * h / 4)
        new = x + w * (2 * k1 + 3 * k2 + 4 * k3) / 9
        k4 = slope(new, s + h)
        error = w * (-5 * k1 / 72 + k2 / 12 + k3 / 9 - k4 / 8)
        scale = tolerance * (1 + torch.maximum(x.abs(), new.abs()))
        size = (error / scale).square().flatten(1).mean(dim=1).sqrt()
        accepted = (size <= 1) | (h <= shortest)
        keep = accepted.view_as(w)
        x, k1 = torch.where(keep, new, x), torch.where(keep, k4, k1)
        s = torch.where(accepted, s + h, s)
        if bool((s >= 1).all()):
            break
        h = h * (0.9 * size.clamp(min=1e-6) ** (-1 / 3)).clamp(0.2, 5.0)
    return x


def solve(
    f: Field, x: Tensor, start: float = 0.0, end: float = 1.0, solver: Solver = "heun", n_steps: int | None = None
) -> Tensor:
    """Carry x from one time to another along dx/dt = f(x, t).

    Parameters
    ----------
    f
        Velocity, a callable of x (cells, ...) and times (cells,).
    x
        Where to start, (cells, ...).
    start, end
        Times; ``end`` may be the earlier one.
    solver
        ``"heun"`` (2 evaluations a step), ``"euler"`` (1) or ``"adaptive"`` (3, step sizes per cell).
    n_steps
        Number of steps; for ``"adaptive"`` of attempted steps, at most. Default: 12, 25 and 8, at most 25 evaluations.

    Returns
    -------
    Tensor
        x at time ``end``.

    Examples
    --------
    >>> import torch
    >>> from sclatent.diffusion import solve
    >>> def field(x, t):
    ...     return -x
    >>> decay = solve(field, torch.ones(1, 1))  # Heun's method, 12 steps
    >>> round(decay.item(), 3)
    0.368
    >>> round(solve(field, decay, start=1.0, end=0.0).item(), 2)  # and back again
    1.0
    """
    solvers = {"heun": heun, "euler": euler, "adaptive": adaptive}
    if not isinstance(solver, str) or solver not in solvers:
        raise ValueError(f"solver={solver!r} is not known: use one of {', '.join(map(repr, solvers))}.")
    if n_steps is None:
        n_steps = DEFAULT_STEPS[solver]
    if n_steps < 1:
        raise ValueError(f"n_steps={n_steps!r} must be at least 1.")
    return x if start == end else solvers[solver](f, x, start, end, n_steps)
