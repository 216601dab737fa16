"""Guidance: pushing a sample towards its conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sclatent.nn import Context

from ._process import Process

Field = Callable[[Tensor, Tensor], Tensor]
Denoiser = Callable[[Tensor, Tensor, Context], Tensor]


def classifier_free(
    f: Denoiser, context: Context, weight: float | Sequence[float], parts: Sequence[tuple[Context, float]] = ()
) -> Field:
    r"""Steer a denoiser by classifier-free guidance (Ho & Salimans 2022).

    With one weight w,

    .. math:: v = v(\varnothing) + w \, (v(c) - v(\varnothing)):

    w = 1 is plain conditional sampling and w = 0 unconditional sampling, each at the cost of one evaluation. With one
    weight a key, every key is pushed away from its null condition,

    .. math:: v = v(c) + \sum_k (w_k - 1) \, (v(c) - v(c \setminus c_k)),

    at the cost of one evaluation more for every key whose weight is not 1. So is a part of a key, such as a member of a
    set. All evaluations of a step go through in one batch.

    Parameters
    ----------
    f
        Denoiser ``f(x, t, context)``.
    context
        What the cells are conditioned on.
    weight
        One weight, or one a key.
    parts
        With one weight a key: contexts that lack a part of the conditions, and the weight of that part.

    Returns
    -------
    Callable
        The guided prediction, a callable ``g(x, t)``.

    Examples
    --------
    A denoiser that says 1 where it is given the condition, and 0 where not:

    >>> import torch
    >>> from sclatent.diffusion import classifier_free
    >>> from sclatent.nn import Context
    >>> def denoiser(x, t, context):
    ...     return (context.codes[:, :1] >= 0).float()
    >>> x, t, context = torch.zeros(1, 1), torch.zeros(1), Context(torch.tensor([[0, 3]]))  # one cell, two keys
    >>> [classifier_free(denoiser, context, weight)(x, t).item() for weight in (0.0, 1.0, 2.0)]
    [0.0, 1.0, 2.0]
    >>> classifier_free(denoiser, context, [3.0, 1.0])(x, t).item()  # the first key alone is pushed
    3.0
    """
    if isinstance(weight, int | float):
        variants = [(context, float(weight)), (context.without(is_pushed=weight > 1), 1 - weight)]
    else:
        pushed = [(context.without(k, is_pushed=w > 1), 1 - w) for k, w in enumerate(weight)]
        pushed += [(replace(c, pushed_to=context.codes if w > 1 else None), 1 - w) for c, w in parts]
        variants = [(context, 1 - sum(w for _, w in pushed)), *pushed]
    variants = [(c, w) for c, w in variants if w != 0]
    stacked = Context.stack([c for c, _ in variants])

    def guided(x: Tensor, t: Tensor) -> Tensor:
        n = len(variants)
        v = f(x.repeat(n, *[1] * (x.ndim - 1)), t.repeat(n), stacked)
        parts = (w * part for part, (_, w) in zip(v.chunk(n), variants, strict=True))
        return sum(parts, start=v.new_zeros(()))

    return guided


def classifier(f: Field, log_prob: Field, process: Process, weight: float) -> Field:
    r"""Steer a denoiser by the gradient of a classifier (Dhariwal & Nichol 2021; Joint Diffusion, arXiv 2301.13622).

    .. math:: v = f(x, t) + w \, c_t \, \nabla_x \ln p(y | x), \qquad c_t = s_t (\dot a_t s_t - a_t \dot s_t) / a_t.

    Parameters
    ----------
    f
        Velocity ``f(x, t)``.
    log_prob
        :math:`\ln p(y | x_t)` of the label that each cell is pushed to, ``log_prob(x, t)``, (cells,).
    process
        Whose velocity it is.
    weight
        Weight w; 1 is the gradient that Bayes' theorem asks for.

    Returns
    -------
    Callable
        The guided prediction, a callable ``g(x, t)``.

    Examples
    --------
    >>> import torch
    >>> from sclatent.diffusion import LinearFlow, classifier, solve
    >>> def field(x, t):
    ...     return torch.zeros_like(x)
    >>> def log_prob(x, t):  # of a label that is the likelier, the larger x
    ...     return torch.nn.functional.logsigmoid(x).sum(dim=1)
    >>> x = torch.zeros(1, 2)
    >>> pushed = solve(classifier(field, log_prob, LinearFlow(), weight=1.0), x)
    >>> bool((pushed > 0).all())
    True
    """

    def guided(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            gradient = torch.autograd.grad(log_prob(leaf, t).sum(), leaf)[0]
        return f(x, t) + weight * process.steering(t).view(-1, *[1] * (x.ndim - 1)) * gradient

    return guided
