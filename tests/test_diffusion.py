"""Processes, solvers and guidance against what is known in closed form."""

import math

import pytest
import torch
from torch import Tensor

from sclatent.diffusion import LinearFlow, classifier_free, solve
from sclatent.nn import Context

SOLVERS = ["euler", "heun", "adaptive"]


class Counted:
    """A field that counts its evaluations and remembers how many rows each had."""

    def __init__(self, f) -> None:
        self.f, self.rows = f, []

    def __call__(self, x: Tensor, t: Tensor, *codes: Tensor) -> Tensor:
        assert t.shape == (len(x),)
        self.rows.append(len(x))
        return self.f(x, t, *codes)


def growth(x: Tensor, t: Tensor) -> Tensor:
    """dx/dt = x cos t, solved by x(t) = x(0) exp(sin t)."""
    return x * t.cos()[:, None]


@pytest.fixture
def start() -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# ---- process


def test_linear_flow_runs_straight_from_noise_to_data():
    generator = torch.Generator().manual_seed(0)
    z, noise = torch.randn(2, 6, 4, 3, generator=generator)
    flow = LinearFlow()
    torch.testing.assert_close(flow.interpolate(z, noise, torch.zeros(6)), noise)
    torch.testing.assert_close(flow.interpolate(z, noise, torch.ones(6)), z)
    t = torch.linspace(0.1, 0.9, 6)
    torch.testing.assert_close(flow.interpolate(z, noise, t)[2], (1 - t[2]) * noise[2] + t[2] * z[2])

    def true_velocity(x: Tensor, time: Tensor) -> Tensor:
        torch.testing.assert_close(x, flow.interpolate(z, noise, t))
        torch.testing.assert_close(time, t)
        return z - noise

    torch.testing.assert_close(flow.loss(true_velocity, z, noise, t), torch.zeros(6))
    loss = flow.loss(lambda x, t: torch.zeros_like(x), z, noise, t)
    torch.testing.assert_close(loss, (z - noise).square().mean(dim=(1, 2)))


def test_times_are_spread_over_the_unit_interval_and_reproducible():
    flow = LinearFlow()
    t, again = (flow.draw_time(1_000, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(t, again)
    assert 0 <= t.min() <= t.max() <= 1
    torch.testing.assert_close(t.sort().values, torch.linspace(0, 1, 1_000), atol=2e-3, rtol=0)
    assert abs(torch.corrcoef(torch.stack([t, torch.arange(1_000.0)]))[0, 1]) < 0.15  # in no order of the cells


# ---- solvers


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(start, solver, order):
    exact = start * math.exp(math.sin(2.0))
    error = [(solve(growth, start, 0.0, 2.0, solver, n) - exact).abs().max() for n in (40, 80)]
    assert math.log2(error[0] / error[1]) == pytest.approx(order, abs=0.15)
    assert error[1] < 0.1


@pytest.mark.parametrize(("solver", "tolerance"), [("euler", 0.05), ("heun", 5e-3), ("adaptive", 5e-3)])
def test_defaults_solve_a_smooth_equation_there_and_back(start, solver, tolerance):
    there = solve(growth, start, 0.0, 1.0, solver)
    torch.testing.assert_close(there, start * math.exp(math.sin(1.0)), rtol=tolerance, atol=0)
    torch.testing.assert_close(solve(growth, there, 1.0, 0.0, solver), start, rtol=3 * tolerance, atol=0)
    half = solve(growth, start, 0.25, 0.75, solver)
    torch.testing.assert_close(half, start * math.exp(math.sin(0.75) - math.sin(0.25)), rtol=tolerance, atol=0)
    assert torch.equal(solve(growth, start, 0.5, 0.5, solver), start)


@pytest.mark.parametrize(("solver", "default"), [("euler", 25), ("heun", 24), ("adaptive", 25)])
def test_number_of_evaluations(start, solver, default):
    def stiff(x: Tensor, t: Tensor) -> Tensor:
        return 300 * torch.sin(80 * x + 50 * t[:, None])

    f = Counted(stiff)
    solve(f, start, solver=solver)
    assert len(f.rows) == default <= 25
    for n_steps in (1, 7):
        f = Counted(stiff)
        solve(f, start, solver=solver, n_steps=n_steps)
        assert len(f.rows) == {"euler": n_steps, "heun": 2 * n_steps, "adaptive": 1 + 3 * n_steps}[solver]


def test_adaptive_arrives_early_where_the_path_is_straight(start):
    f = Counted(lambda x, t: torch.ones_like(x))
    torch.testing.assert_close(solve(f, start, solver="adaptive"), start + 1)
    assert len(f.rows) <= 13


def test_adaptive_spends_its_steps_where_the_path_bends(start):
    def bend(x: Tensor, t: Tensor) -> Tensor:
        """dx/dt = 30 exp(-30 t): nearly all that happens, happens at once."""
        return (30 * torch.exp(-30 * t))[:, None].expand_as(x)

    exact = start + 1 - math.exp(-30)
    error = {solver: (solve(bend, start, solver=solver) - exact).abs().max() for solver in SOLVERS}
    assert error["adaptive"] < 0.5 * min(error["euler"], error["heun"])


def test_adaptive_result_of_a_cell_does_not_depend_on_the_others():
    x = torch.linspace(-3, 3, 8)[:, None] * torch.ones(8, 2)

    def f(x: Tensor, t: Tensor) -> Tensor:
        return 5 * torch.sin(4 * x) * t[:, None]

    together = solve(f, x, solver="adaptive")
    alone = torch.cat([solve(f, x[i : i + 1], solver="adaptive") for i in range(8)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"solver": "rk45"}, "solver='rk45'.*'heun', 'euler', 'adaptive'"), ({"n_steps": 0}, "n_steps=0.*at least 1")],
)
def test_solve_names_the_bad_argument(start, arguments, message):
    with pytest.raises(ValueError, match=message):
        solve(growth, start, **arguments)


@pytest.mark.parametrize(("solver", "tolerance"), [("euler", 0.12), ("heun", 0.03), ("adaptive", 0.03)])
def test_the_exact_flow_of_a_gaussian_samples_that_gaussian(solver, tolerance):
    """For data N(m, s^2) the velocity is known, and it carries the noise e to m + s e."""
    m, s = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.5, 1.5, 1.0])

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        variance = (1 - t) ** 2 + t**2 * s**2
        return m + (t * s**2 - (1 - t)) / variance * (x - t * m)

    noise = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    z = solve(velocity, noise, solver=solver)
    torch.testing.assert_close(z.mean(dim=0), m, atol=0.04, rtol=0)
    torch.testing.assert_close(z.std(dim=0), s, rtol=tolerance, atol=0)
    assert (z - (m + s * noise)).square().mean().sqrt() < tolerance


# ---- guidance


@pytest.fixture
def denoiser() -> Counted:
    """v(x, t, c) = x + t + effects of the codes with an interaction; an open key has an effect of its own."""
    tables = torch.randn(2, 4, generator=torch.Generator().manual_seed(4))

    def f(x: Tensor, t: Tensor, context: Context) -> Tensor:
        a, b = tables[0][context.codes[:, 0]], tables[1][context.codes[:, 1]]
        return x + t[:, None] + (a + b + a * b)[:, None]

    return Counted(f)


CODES = torch.tensor([[0, 1], [2, 0], [1, -1]])
X, T = torch.arange(6.0).view(3, 2), torch.full((3,), 0.4)


def without(codes: Tensor, *keys: int) -> Context:
    codes = codes.clone()
    codes[:, list(keys)] = -1
    return Context(codes)


@pytest.mark.parametrize(("weight", "codes"), [(1.0, Context(CODES)), (0.0, without(CODES, 0, 1))])
def test_plain_and_unconditional_sampling_cost_one_evaluation(denoiser, weight, codes):
    expected = denoiser.f(X, T, codes)
    assert torch.equal(classifier_free(denoiser, Context(CODES), weight)(X, T), expected)
    assert denoiser.rows == [3]


@pytest.mark.parametrize("weight", [2.5, 0.3, -1.0, 2])
def test_guidance_extrapolates_in_one_batch(denoiser, weight):
    plain, free = denoiser.f(X, T, Context(CODES)), denoiser.f(X, T, without(CODES, 0, 1))
    guided = classifier_free(denoiser, Context(CODES), weight)(X, T)
    torch.testing.assert_close(guided, free + weight * (plain - free))
    assert denoiser.rows == [6]


@pytest.mark.parametrize(
    ("weights", "rows"), [((1.0, 1.0), 3), ((3.0, 1.0), 6), ((1.0, 0.0), 3), ((2.0, 1.5), 9), ((0.0, 3.0), 9)]
)
def test_guidance_key_by_key(denoiser, weights, rows):
    plain = denoiser.f(X, T, Context(CODES))
    expected = plain + sum((w - 1) * (plain - denoiser.f(X, T, without(CODES, k))) for k, w in enumerate(weights))
    torch.testing.assert_close(classifier_free(denoiser, Context(CODES), weights)(X, T), expected)
    assert denoiser.rows == [rows]
