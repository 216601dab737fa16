"""Processes, guidance by a classifier and the bound of the likelihood, against what is known in closed form."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from sclatent.diffusion import LinearFlow, Process, VariancePreserving, classifier, lower_bound, solve

PROCESSES = [LinearFlow(), VariancePreserving()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coefficients(process: Process, t: Tensor, like: Tensor) -> list[Tensor]:
    return [c.view(-1, *[1] * (like.ndim - 1)) for c in process.coefficients(t)]


# ---- the path


@each_process
def test_a_path_runs_from_noise_to_data(process):
    z, noise = draws(2, 5, 4, 3)
    torch.testing.assert_close(process.interpolate(z, noise, torch.zeros(5).double()), noise)
    torch.testing.assert_close(process.interpolate(z, noise, torch.ones(5).double()), z)
    t = torch.linspace(0, 1, 50).double()
    a, s, _, _ = process.coefficients(t)
    assert (a.diff() > 0).all()
    assert (s.diff() < 0).all()


@each_process
def test_the_velocity_is_the_derivative_of_the_path(process):
    z, noise = draws(2, 9, 4, 3)
    t, h = torch.linspace(0.05, 0.95, 9).double(), 1e-6
    slope = (process.interpolate(z, noise, t + h) - process.interpolate(z, noise, t - h)) / (2 * h)
    _, _, da, ds = coefficients(process, t, z)
    torch.testing.assert_close(da * z + ds * noise, slope, rtol=1e-6, atol=1e-6)
    # the loss asks for nothing else
    torch.testing.assert_close(
        process.loss(lambda x, t: slope, z, noise, t), torch.zeros(9).double(), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(
        process.loss(lambda x, t: torch.zeros_like(x), z, noise, t), slope.square().mean(dim=(1, 2))
    )


@each_process
def test_the_data_can_be_told_from_x_and_its_velocity(process):
    z, noise = draws(2, 11, 4, 3)
    t = torch.linspace(0, 1, 11).double()  # from noise alone to data alone
    _, _, da, ds = coefficients(process, t, z)
    x = process.interpolate(z, noise, t)
    torch.testing.assert_close(process.data(x, da * z + ds * noise, t), z)


@each_process
def test_time_is_where_noise_has_that_share_of_the_variance(process):
    levels = [0.0, 1e-3, 0.1, 0.5, 0.9, 1.0]
    t = torch.tensor([process.time(level) for level in levels]).double()
    a, s, _, _ = process.coefficients(t)
    torch.testing.assert_close(s**2 / (a**2 + s**2), torch.tensor(levels).double())
    assert t[0] == 1
    assert t[-1] == 0


@each_process
def test_the_velocity_of_gaussian_data_carries_noise_to_them(process):
    """It scales noise to the standard deviation of the data, also where they are constant."""
    variance = torch.tensor([[25.0, 1.0, 0.04, 0.0]]).double()

    def field(x: Tensor, t: Tensor) -> Tensor:
        return process.gaussian_gain(t, variance) * x

    scaled = solve(field, torch.ones(1, 4).double(), 0.0, 0.999, "heun", 2000)
    torch.testing.assert_close(scaled[:, :3], variance[:, :3].sqrt(), rtol=0.01, atol=0)
    assert scaled[0, 3] < 0.01


def test_only_one_path_keeps_the_variance():
    t = torch.linspace(0, 1, 21).double()
    a, s, _, _ = VariancePreserving().coefficients(t)
    torch.testing.assert_close(a**2 + s**2, torch.ones(21).double())
    a, s, _, _ = LinearFlow().coefficients(t)
    torch.testing.assert_close(a + s, torch.ones(21).double())


# ---- guidance by a classifier, where Bayes' theorem is known: two Gaussians


class TwoGaussians:
    """Data from N(mean_y, sd_y^2) with probabilities of y: the exact fields and the exact classifier."""

    mean = torch.tensor([[1.0, -0.5, 0.0], [-0.5, 1.0, 0.5]]).double()
    sd = torch.tensor([0.6, 1.2]).double()
    log_prior = torch.tensor([0.3, 0.7]).double().log()

    def __init__(self, process: Process) -> None:
        self.process = process

    def log_joint(self, x: Tensor, t: Tensor) -> Tensor:
        """ln p(x_t, y), (cells, 2)."""
        a, s, _, _ = coefficients(self.process, t, x)
        likelihood = [
            Normal(a * self.mean[y], (a**2 * self.sd[y] ** 2 + s**2).sqrt()).log_prob(x).sum(1) for y in (0, 1)
        ]
        return torch.stack(likelihood, dim=1) + self.log_prior

    def log_posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """ln p(y | x_t), (cells, 2)."""
        return self.log_joint(x, t).log_softmax(dim=1)

    def velocity_of(self, y: int, x: Tensor, t: Tensor) -> Tensor:
        """E[v | x_t, y]."""
        a, s, da, ds = coefficients(self.process, t, x)
        excess = (x - a * self.mean[y]) / (a**2 * self.sd[y] ** 2 + s**2)
        return da * (self.mean[y] + a * self.sd[y] ** 2 * excess) + ds * s * excess

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """E[v | x_t]."""
        p = self.log_posterior(x, t).exp()
        return sum(p[:, [y]] * self.velocity_of(y, x, t) for y in (0, 1))

    def guided(self, y: int, weight: float):
        return classifier(self.velocity, lambda x, t: self.log_posterior(x, t)[:, y], self.process, weight)


@each_process
@pytest.mark.parametrize("y", [0, 1])
def test_the_gradient_of_the_classifier_turns_the_free_velocity_into_the_conditional_one(process, y):
    data = TwoGaussians(process)
    t = torch.linspace(0.25, 0.99, 40).double()  # earlier, where hardly any data is left, steering is held back
    x = 1.5 * draws(40, 3)
    free, conditional = data.velocity(x, t), data.velocity_of(y, x, t)
    assert (free - conditional).abs().max() > 0.1
    torch.testing.assert_close(data.guided(y, 1.0)(x, t), conditional)
    torch.testing.assert_close(data.guided(y, 0.0)(x, t), free)
    torch.testing.assert_close(data.guided(y, 2.5)(x, t), free + 2.5 * (conditional - free))


@each_process
def test_steering_stays_finite_where_all_is_noise(process):
    steering = process.steering(torch.tensor([0.0, 1e-4, 0.5, 1.0]))
    assert torch.isfinite(steering).all()
    assert (steering[:3] > 0).all()
    assert steering[3] == pytest.approx(0, abs=1e-6)  # and data are left alone


@each_process
def test_guided_samples_are_those_of_the_class(process):
    data, noise = TwoGaussians(process), draws(4_000, 3)
    for y in (0, 1):
        z = solve(data.guided(y, 1.0), noise, n_steps=60)
        torch.testing.assert_close(z.mean(dim=0), data.mean[y], atol=0.1, rtol=0)
        torch.testing.assert_close(z.std(dim=0), data.sd[y].expand(3), rtol=0.1, atol=0)


@each_process
def test_more_weight_means_more_probable_samples(process):
    data, noise, end = TwoGaussians(process), draws(1_000, 3), torch.ones(1_000).double()
    for y in (0, 1):
        p = [
            data.log_posterior(solve(data.guided(y, w), noise, n_steps=30), end)[:, y].exp().mean()
            for w in (0.0, 1.0, 3.0)
        ]
        assert p[0] == pytest.approx(float(data.log_prior[y].exp()), abs=0.05)
        assert p[0] + 0.1 < p[1]
        assert p[1] + 0.02 < p[2]


def test_guidance_of_a_cell_does_not_depend_on_the_others_and_leaves_no_graph():
    data, x, t = TwoGaussians(VariancePreserving()), draws(6, 3), torch.full((6,), 0.4).double()
    field = data.guided(0, 2.0)
    with torch.no_grad():
        together = field(x, t)
    torch.testing.assert_close(together, torch.cat([field(x[i : i + 1], t[i : i + 1]) for i in range(6)]))
    assert not together.requires_grad
    assert not x.requires_grad


# ---- the bound of the likelihood, where the likelihood is known: one Gaussian


class OneGaussian:
    mean = torch.tensor([[1.0, -0.5, 0.0], [0.0, 2.0, -1.0]]).double()
    sd = torch.tensor([[0.5, 1.0, 1.5], [0.35, 1.0, 1.0]]).double()

    def __init__(self, process: Process, n: int) -> None:
        self.process = process
        self.z = self.mean + self.sd * draws(n, 2, 3, seed=1)
        self.log_prob = Normal(self.mean, self.sd).log_prob(self.z).sum(dim=(1, 2))

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        a, s, da, ds = coefficients(self.process, t, x)
        excess = (x - a * self.mean) / (a**2 * self.sd**2 + s**2)
        return da * (self.mean + a * self.sd**2 * excess) + ds * s * excess

    def bound(self, n_steps: int, velocity=None, n_draws: int = 999) -> Tensor:
        """The bound with every term of the sum drawn about as often as any other."""
        uniforms = ((torch.arange(n_draws) + 0.5) / n_draws)[:, None].expand(n_draws, len(self.z))
        noise = draws(n_draws, *self.z.shape, seed=2)
        return lower_bound(velocity or self.velocity, self.process, self.z, noise, uniforms, n_steps)


@each_process
def test_the_bound_of_an_exact_denoiser_is_tight(process):
    data = OneGaussian(process, 100)
    gap = data.log_prob - data.bound(1_000)
    assert 0 < gap.mean() < 0.1 * 6  # nats a cell, of 6 coordinates
    assert np.corrcoef(data.log_prob, data.bound(1_000))[0, 1] > 0.9  # and cell by cell


@each_process
def test_fewer_steps_and_worse_denoisers_have_lower_bounds(process):
    data = OneGaussian(process, 50)
    exact, coarse = data.bound(1_000).mean(), data.bound(30).mean()
    assert coarse < exact - 1

    def of_another_mean(x: Tensor, t: Tensor) -> Tensor:
        return data.velocity(x + 0.5, t)

    assert data.bound(1_000, of_another_mean).mean() < exact - 0.4
    assert data.bound(1_000, lambda x, t: torch.zeros_like(x)).mean() < exact - 1


@each_process
def test_the_bound_follows_the_units(process):
    """Data that are spread twice as far are less probable by ln 2 a coordinate."""
    one, wide = OneGaussian(process, 50), OneGaussian(process, 50)
    wide.mean, wide.sd, wide.z = 2 * one.mean, 2 * one.sd, 2 * one.z
    assert (one.bound(1_000) - wide.bound(1_000)).mean() == pytest.approx(6 * math.log(2), abs=0.2)


@each_process
def test_the_bound_takes_any_uniform_and_any_number_of_steps(process):
    data = OneGaussian(process, 10)
    noise = draws(2, 10, 2, 3)
    for n_steps in (2, 7, 1_000):
        uniforms = torch.stack([torch.zeros(10), torch.ones(10)])  # a uniform in single precision may be rounded to 1
        assert torch.isfinite(lower_bound(data.velocity, process, data.z, noise, uniforms, n_steps)).all()
