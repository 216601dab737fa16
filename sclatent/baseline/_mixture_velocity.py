"""The velocity of cells that are a mixture of Gaussians."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sclatent.diffusion import Process
from sclatent.nn import NULL, CombinationTable, Context

from ._gaussian import MIN_VARIANCE, seen_combinations
from ._mixture import fit_mixture


class MixtureVelocity(nn.Module):
    r"""Velocity that turns noise into cells of a mixture of Gaussians, in closed form.

    .. math:: g(u, t, c) = \sum_k p_t(k | u, c) \left(\dot a_t \mu_k + U_k \, \mathrm{diag}\left(\frac{
              \dot a_t a_t \lambda_{ki} + \dot s_t s_t}{a_t^2 \lambda_{ki} + s_t^2}\right) U_k^\top (u - a_t \mu_k)
              \right), \qquad p_t(k | u, c) \propto \pi_{ck} \, N(u; a_t \mu_k, a_t^2 C_k + s_t^2 I),

    with u the noisy tokens less the mean of their conditions and library size. Components are shared by all
    combinations of conditions, which differ in their frequencies (:func:`~sclatent.baseline.fit_mixture`); a
    combination that was not seen has those of all cells. Cells whose conditions are all null have a mixture of their
    own, of tokens and library size together: given the size, components have other means and frequencies. It is the
    exact velocity of such cells (Wang & Vastola 2024, arXiv 2412.09726), and a network that is added to it begins where
    the mixture ends. Guidance above 1 is not bounded, as it is with :class:`GaussianVelocity`.

    Parameters
    ----------
    n_levels
        Number of levels of each condition key.
    shape
        Number of tokens and their width.
    process
        Whose :math:`x_t` the tokens are.

    Examples
    --------
    >>> import torch
    >>> from sclatent.baseline import MixtureVelocity
    >>> from sclatent.diffusion import LinearFlow, solve
    >>> from sclatent.nn import Context
    >>> mixture, context = MixtureVelocity([], (1, 2), LinearFlow()), Context(torch.zeros(1000, 0).long())
    >>> tokens = torch.cat([torch.randn(500, 1, 2) - 5, torch.randn(500, 1, 2) + 5])
    >>> mixture.fit(tokens, context, torch.zeros(1000, 1, 2), torch.zeros(1000, 1, 2))
    >>> cells = solve(lambda x, t: mixture(x, t, context), torch.randn(1000, 1, 2), n_steps=50)
    >>> bool((cells.abs().mean() - 5).abs() < 0.2), bool(cells.mean().abs() < 0.5)
    (True, True)
    """

    def __init__(self, n_levels: Sequence[int], shape: tuple[int, int], process: Process) -> None:
        super().__init__()
        self.process = process
        self.dim = shape[0] * shape[1]
        self.entry = CombinationTable(n_levels)  # of each combination that was seen, counted from 1
        self.around_mean, self.of_all = _Components(self.dim), _Components(self.dim)

    @torch.no_grad()
    def fit(
        self, tokens: Tensor, context: Context, means: Tensor, null_means: Tensor, noise_level: float = 0.0
    ) -> None:
        """Fit both mixtures to the tokens of all cells; arguments as in :meth:`GaussianVelocity.fit`."""
        size = torch.zeros(len(tokens)) if context.size is None else context.size
        known, seen, group = seen_combinations(context.codes)
        self.of_all.fit((tokens - null_means).flatten(1), size, None, noise_level)
        if len(seen):
            self.around_mean.fit((tokens - means)[known].flatten(1), torch.zeros(len(group)), group, noise_level)
            self.entry.fit_combinations(seen, torch.arange(1.0, 1 + len(seen)))

    def forward(self, u: Tensor, t: Tensor, context: Context) -> Tensor:
        """Velocity (cells, n_tokens, token_dim).

        Parameters
        ----------
        u
            Noisy tokens less the mean of their conditions, (cells, n_tokens, token_dim).
        t
            Times in [0, 1], (cells,); 0 is noise, 1 is data.
        context
            What the cells are conditioned on.
        """
        no_size = torch.zeros_like(t)
        size = no_size if context.size is None else context.size
        is_null = (context.codes == NULL).all(dim=1)
        v = torch.empty_like(u)
        for part, cells, s in ((self.of_all, is_null, size), (self.around_mean, ~is_null, no_size)):
            if cells.any():
                entry = self.entry.of(context.codes[cells]).long()
                x = u[cells].flatten(1)
                v[cells] = part(x, t[cells], s[cells], entry, self.process).view(-1, *u.shape[1:])
        return v


class _Components(nn.Module):
    """Components of one mixture, in the form in which the velocity needs them.

    Given the library size, a component is Gaussian again: its mean depends on the size, its covariance does not.
    """

    log_weights: Tensor
    means: Tensor
    slopes: Tensor
    variances: Tensor
    axes: Tensor
    sizes: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("log_weights", torch.zeros(1, 1))  # of all cells, and of each combination
        self.register_buffer("means", torch.zeros(1, dim))
        self.register_buffer("slopes", torch.zeros(1, dim))
        self.register_buffer("variances", torch.ones(1, dim))
        self.register_buffer("axes", torch.eye(dim)[None])
        self.register_buffer("sizes", torch.tensor([[0.0, 1.0]]))  # mean and variance

    def fit(self, x: Tensor, size: Tensor, group: Tensor | None, noise_level: float) -> None:
        """Fit components to cells (cells, dim) and their sizes (cells,)."""
        together = torch.cat([x, size[:, None]], dim=1).double()
        weights, means, covariances = fit_mixture(together, group, min_variance=MIN_VARIANCE)
        mean, variance = means[:, -1], covariances[:, -1, -1]
        slopes = covariances[:, :-1, -1] / variance[:, None]
        given_size = covariances[:, :-1, :-1] - slopes[:, :, None] * covariances[:, None, -1, :-1]
        variances, axes = torch.linalg.eigh(given_size)
        self.log_weights, self.means, self.slopes = weights.log().float(), means[:, :-1].float(), slopes.float()
        self.variances = (variances.clamp(min=MIN_VARIANCE) + noise_level).float()
        self.axes = axes.float().contiguous()  # as they are after loading, so that results are equal to the bit
        self.sizes = torch.stack([mean, variance], dim=1).float()

    def forward(self, x: Tensor, t: Tensor, size: Tensor, entry: Tensor, process: Process) -> Tensor:
        """Velocity of cells (cells, dim) that have these rows of the weights."""
        a, s, da, ds = (part[:, None, None] for part in process.coefficients(t))
        n, n_components = len(x), len(self.means)
        axes = self.axes.permute(1, 0, 2).reshape(self.dim, -1)  # side by side: one product of matrices for all
        off = size[:, None] - self.sizes[:, 0]
        centre = (self.means[:, None] @ self.axes)[:, 0] + off[..., None] * (self.slopes[:, None] @ self.axes)[:, 0]
        y = (x @ axes).view(n, n_components, self.dim) - a * centre
        variances = a.square() * self.variances + s.square()
        log_density = -(y.square() / variances + variances.log()).sum(dim=2) / 2
        of_size = -(off.square() / self.sizes[:, 1] + self.sizes[:, 1].log()) / 2
        share = (self.log_weights[entry] + of_size + log_density).softmax(dim=1)
        gain = (da * a * self.variances + ds * s) / variances
        return (share[..., None] * (da * centre + gain * y)).view(n, -1) @ axes.T

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        names = ("log_weights", "means", "slopes", "variances", "axes", "sizes")
        for name in names:  # how many components there are is known from the data alone
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(saved, device=self.means.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
        n = len(self.means)
        shapes = [
            (len(self.log_weights), n),
            (n, self.dim),
            (n, self.dim),
            (n, self.dim),
            (n, self.dim, self.dim),
            (n, 2),
        ]
        for name, shape in zip(names, shapes, strict=True):
            if tuple(self.get_buffer(name).shape) != shape:
                args[-1].append(f"{prefix}{name} must have the shape {shape}.")  # errors
