"""A denoiser that learns what a closed form leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sclatent.baseline import Baseline, ConditionMean, GaussianVelocity, MixtureVelocity, Residuals
from sclatent.diffusion import Process
from sclatent.nn import NULL, Context, Values

from ._dit import DiT
from ._unet import UNet


class ResidualDenoiser(nn.Module):
    r"""A network that is added to the velocity of a closed form, the baseline.

    .. math:: v(x_t, t, c) = \dot a_t \, m(c) + g(u, t, c) + f(u, t, c), \qquad u = x_t - a_t \, m(c),

    with m the mean tokens of the context c (:class:`~sclatent.baseline.ConditionMean`), g the velocity of cells around
    it that are Gaussian (:class:`~sclatent.baseline.GaussianVelocity`) or a mixture of Gaussians
    (:class:`~sclatent.baseline.MixtureVelocity`), and f the network, which sees cells of all conditions around one
    centre. So a combination of conditions that nobody measured is in distribution for the network, and
    guidance knows the mean from the first step on. With ``baseline="none"`` it is the network alone.

    Parameters
    ----------
    trunk
        The network f.
    shape
        Number of tokens and their width.
    process
        Whose :math:`x_t` the denoiser sees.
    baseline
        ``"mixed"``, ``"additive"`` or ``"none"``.
    residuals
        How cells lie around the mean of the baseline: ``"mixture"`` of Gaussians, ``"gaussian"`` with a covariance for
        each combination of conditions, or ``"noise"`` of variance 1.
    values, of
        What is known of the values of each key, and of which key it is a dose; by default which they are alone.

    Examples
    --------
    >>> import torch
    >>> from sclatent.diffusion import VariancePreserving
    >>> from sclatent.module import ResidualDenoiser, UNet
    >>> from sclatent.nn import Context
    >>> trunk = UNet(16, 4, n_levels=[2], width=16, n_resolutions=2)
    >>> denoiser = ResidualDenoiser(trunk, (16, 4), VariancePreserving())
    >>> tokens, codes = torch.randn(10, 16, 4), torch.tensor([[0], [1]]).repeat(5, 1)
    >>> denoiser.fit(tokens, codes)
    >>> denoiser(tokens, torch.rand(10), Context(codes)).shape
    torch.Size([10, 16, 4])
    """

    def __init__(
        self,
        trunk: DiT | UNet,
        shape: tuple[int, int],
        process: Process,
        baseline: Baseline = "mixed",
        residuals: Residuals = "gaussian",
        values: Sequence[Values] | None = None,
        of: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__()
        self.trunk, self.process = trunk, process
        self.mean = ConditionMean(trunk.n_levels, *shape, kind=baseline, of=of)
        # there are too many combinations of numbers for a distribution each
        self.of_residuals = [k for k in range(len(trunk.n_levels)) if values is None or not values[k].is_number]
        n_levels = [*(trunk.n_levels[k] for k in self.of_residuals), 1]  # the last says that there are any conditions
        self.residuals: GaussianVelocity | MixtureVelocity | None = None
        if baseline != "none" and residuals != "noise":
            velocity = MixtureVelocity if residuals == "mixture" else GaussianVelocity
            self.residuals = velocity(n_levels, shape, process)
        self.has_values = values is not None
        self.with_features = [k for k, of_key in enumerate(values or ()) if of_key.features.shape[1]]
        for k, of_key in enumerate(values or ()):
            for name, part in of_key._asdict().items():
                self.register_buffer(f"{name}_of_{k}", part, persistent=False)  # the model knows them

    @property
    def n_levels(self) -> tuple[int, ...]:
        """Number of levels of each key that the denoiser is conditioned on."""
        return self.trunk.n_levels

    @property
    def has_baseline(self) -> bool:
        """Whether there is a closed form that the network is added to."""
        return self.mean.kind != "none"

    def fit(
        self,
        tokens: Tensor,
        codes: Tensor,
        size: Tensor | None = None,
        noise_level: float = 0.0,
    ) -> None:
        """Fit the baseline, if there is one, to standardised tokens (cells, n_tokens, token_dim).

        Parameters
        ----------
        tokens, codes, size
            As in :meth:`sclatent.baseline.ConditionMean.fit`.
        noise_level
            Variance of noise that comes on top of these tokens in training.
        """
        if not self.has_baseline:
            return
        context = self._with_values(Context(codes, torch.zeros(len(codes)) if size is None else size))
        # without conditions, components of a mixture depend on library size, each in its own way
        has_slopes = isinstance(self.residuals, MixtureVelocity) and not self.n_levels
        self.mean.fit(tokens, codes, None if has_slopes else size, context.values)
        if self.residuals is not None:
            means = self.mean(context), self.mean(context.without())
            self.residuals.fit(tokens, self._of_residuals(context), *means, noise_level)

    def activations(self, x: Tensor, t: Tensor, size: Tensor | None = None) -> Tensor:
        """Activations of each block of the network without any condition, (cells, n_activations, width)."""
        null = torch.full((len(t), len(self.n_levels)), NULL, device=t.device)
        return self.evaluate(x, t, Context(null, size))[1]

    def evaluate(self, x: Tensor, t: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Velocity, and the activations of each block of the network (cells, n_activations, width).

        Parameters
        ----------
        x
            Noisy tokens, (cells, n_tokens, token_dim).
        t
            Times in [0, 1], (cells,); 0 is noise, 1 is data.
        context
            What the cells are conditioned on.
        """
        context = self._with_values(context)
        u, closed_form = self._closed_form(x, t, context)
        v, seen = self.trunk.evaluate(u, t, context)
        return closed_form + v, seen

    def forward(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """Predict the velocity; arguments as in :meth:`evaluate`."""
        return self.evaluate(x, t, context)[0]

    def without_network(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """Velocity of the baseline alone; arguments as in :meth:`evaluate`."""
        return self._closed_form(x, t, self._with_values(context))[1]

    def mean_of(self, context: Context) -> Tensor:
        """Mean tokens (cells, n_tokens, token_dim) of the baseline."""
        return self.mean(self._with_values(context))

    def _with_values(self, context: Context) -> Context:
        """The same context with what is known of the values of training, if it says nothing of values."""
        if not self.has_values or context.values is not None:
            return context
        parts = [[self.get_buffer(f"{name}_of_{k}") for name in Values._fields] for k in range(len(self.n_levels))]
        return replace(context, values=tuple(Values(*of_key) for of_key in parts))

    def _closed_form(self, x: Tensor, t: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Noisy tokens less their mean, and the velocity of the baseline."""
        if not self.has_baseline:
            return x, torch.zeros_like(x)
        at = self.process.coefficients(t)
        m = self.mean(context)
        u, of_mean = x - at.data[:, None, None] * m, at.data_rate[:, None, None] * m
        if self.residuals is None:
            gain = self.process.gaussian_gain(t, torch.ones_like(u))
            return u, of_mean + gain * u
        return u, of_mean + self.residuals(u, t, self._of_residuals(context))

    def _of_residuals(self, context: Context) -> Context:
        """The same context with those keys alone that residuals depend on, and whether any condition is given."""

        def keys_of(codes: Tensor) -> Tensor:
            given = torch.where((codes != NULL).any(dim=1, keepdim=True), 0, NULL)
            return torch.cat([codes[:, self.of_residuals], given], dim=1)

        pushed_to = None if context.pushed_to is None else keys_of(context.pushed_to)
        return Context(keys_of(context.codes), context.size, pushed_to)
