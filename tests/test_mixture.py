"""Mixtures of Gaussians around the mean of a baseline: how they are fitted, and the velocity that they have."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from torch.distributions import MultivariateNormal

from sclatent.baseline import GaussianVelocity, MixtureVelocity, fit_mixture
from sclatent.diffusion import LinearFlow, VariancePreserving, solve
from sclatent.model import SCLDM
from sclatent.module import DiT, ResidualDenoiser
from sclatent.nn import Context, Values

CLUSTERS = torch.tensor([[4.0, 0.0, 0.0], [-4.0, 0.0, 0.0], [0.0, 6.0, 0.0]])


def clusters(n: int, shares: list[float], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells (n, 1, 3) of three clusters, and the cluster of each."""
    rng = np.random.default_rng(seed)
    cluster = torch.from_numpy(rng.choice(3, n, p=shares))
    noise = torch.from_numpy(rng.standard_normal((n, 3))).float() * torch.tensor([1.0, 0.5, 0.2])
    return (CLUSTERS[cluster] + noise)[:, None], cluster


def unconditional(cells: torch.Tensor, size: torch.Tensor | None = None) -> tuple[torch.Tensor, Context, torch.Tensor]:
    """What `fit` takes of cells without conditions around a mean of 0."""
    return cells, Context(torch.zeros(len(cells), 0, dtype=torch.int64), size), torch.zeros_like(cells)


@pytest.mark.parametrize("n_clusters", [1, 2, 3])
def test_held_out_cells_say_how_many_components_there_are(n_clusters):
    cells, _ = clusters(600, [1 / n_clusters] * n_clusters + [0.0] * (3 - n_clusters))
    mixture = fit_mixture(cells[:, 0].double())
    frequent = mixture.weights[0] > 0.02
    assert int(frequent.sum()) in (n_clusters, 4 if n_clusters == 3 else n_clusters)  # they are doubled
    near = torch.cdist(mixture.means[frequent].float(), CLUSTERS[:n_clusters])
    assert near.min(dim=0).values.max() < 1.5
    assert near.min(dim=1).values.max() < 1.5


def test_groups_differ_in_the_frequencies_of_components():
    cells, cluster = clusters(900, [0.4, 0.3, 0.3])
    group = (cluster == 2).long()  # the first two clusters are a group, the third is another
    group[:30] = 2  # a group of all of them
    mixture = fit_mixture(cells[:, 0].double(), group, n_components=3)
    third = int(torch.cdist(mixture.means.float(), CLUSTERS[2:])[:, 0].argmin())
    assert mixture.weights.shape == (4, 3)
    torch.testing.assert_close(mixture.weights.sum(dim=1), torch.ones(4, dtype=torch.float64))
    assert mixture.weights[1, third] < 0.01
    assert mixture.weights[2, third] > 0.99
    assert 0.1 < mixture.weights[3, third] < 0.6


def test_covariances_of_few_cells_are_shrunk_to_what_components_share():
    cells = torch.from_numpy(np.random.default_rng(0).standard_normal((120, 40)))
    cells[:, 0] += 20 * (torch.arange(120) % 2)
    mixture = fit_mixture(cells, n_components=2)  # 60 cells in 40 dimensions each
    assert (torch.linalg.eigvalsh(mixture.covariances) > 0.2).all()


@pytest.mark.parametrize("process", [LinearFlow(), VariancePreserving()])
def test_velocity_is_that_of_the_score_of_the_mixture(process):
    """The score of the noisy cells, by automatic differentiation of their density."""
    cells, _ = clusters(800, [0.5, 0.3, 0.2])
    velocity = MixtureVelocity([], (1, 3), process)
    tokens, context, zero = unconditional(cells)
    velocity.fit(tokens, context, zero, zero)
    part = velocity.of_all
    covariances = part.axes * part.variances[:, None] @ part.axes.mT
    t = torch.rand(50, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    x = process.interpolate(cells[:50, 0], torch.randn(50, 3), t).requires_grad_()
    at = process.coefficients(t)
    a, s = at.data[:, None, None], at.noise[:, None, None]
    noisy = MultivariateNormal(a * part.means, a[..., None] ** 2 * covariances + s[..., None] ** 2 * torch.eye(3))
    log_density = (part.log_weights[0] + noisy.log_prob(x[:, None])).logsumexp(dim=1)
    score = torch.autograd.grad(log_density.sum(), x)[0]
    expected = (at.data_rate / at.data)[:, None] * x + process.steering(t)[:, None] * score
    got = velocity(x.detach()[:, None], t, Context(torch.zeros(50, 0, dtype=torch.int64)))[:, 0]
    torch.testing.assert_close(got, expected.detach(), rtol=1e-3, atol=1e-3)


def test_one_component_is_a_gaussian(monkeypatch):
    monkeypatch.setattr("sclatent.baseline._mixture.MOST_COMPONENTS", 1)
    cells = torch.randn(3_000, 1, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 1.0, 0.5])
    tokens, context, zero = unconditional(cells - cells.mean(dim=0))
    both = [kind([], (1, 3), LinearFlow()) for kind in (MixtureVelocity, GaussianVelocity)]
    for velocity in both:
        velocity.fit(tokens, context, zero, zero)
    t = torch.linspace(0.1, 0.9, 3_000)
    torch.testing.assert_close(*(v(tokens, t, context) for v in both), rtol=0.02, atol=0.02)


def test_cells_of_a_library_size_are_those_that_have_it():
    cells, cluster = clusters(900, [0.5, 0.5, 0.0])
    size = 2.0 * cluster - 1 + 0.3 * torch.randn(900, generator=torch.Generator().manual_seed(0))
    tokens, context, zero = unconditional(cells, size)
    velocity = MixtureVelocity([], (1, 3), LinearFlow())
    velocity.fit(tokens, context, zero, zero)
    noise = torch.randn(200, 1, 3, generator=torch.Generator().manual_seed(1))
    for wanted, cluster_of in ((-1.0, 0), (1.0, 1)):
        _, of_size, _ = unconditional(noise, torch.full((200,), wanted))
        made = solve(lambda x, t, context=of_size: velocity(x, t, context), noise)
        assert (torch.cdist(made[:, 0], CLUSTERS[:2]).argmin(dim=1) == cluster_of).float().mean() > 0.98


@pytest.mark.parametrize("residuals", ["gaussian", "mixture"])
def test_cells_of_a_number_lie_around_its_mean_as_cells_of_numbers_do(residuals):
    """Not as all cells lie around the mean of all: numbers have no distributions of their own."""
    none, number = torch.zeros(3, 0), torch.tensor([[0.0], [0.5], [1.0]])
    code = (torch.arange(900) % 3)[:, None]
    noise = torch.randn(900, 1, 2, generator=torch.Generator().manual_seed(0))
    tokens = 2.0 * (code[:, :, None] - 1) + 0.3 * noise
    trunk = DiT(1, 2, n_levels=[3], width=8, n_blocks=1)
    values = [Values(none, none, number, none)]
    denoiser = ResidualDenoiser(trunk, (1, 2), LinearFlow(), residuals=residuals, values=values)
    denoiser.fit(tokens, code)
    last = Context(torch.full((1000, 1), 2))
    noise = torch.randn(1000, 1, 2, generator=torch.Generator().manual_seed(1))
    cells = solve(lambda x, t: denoiser.without_network(x, t, last), noise, n_steps=30)
    assert cells.std(dim=0).max() < 0.45
    assert (cells.mean(dim=0) - 2).abs().max() < 0.3


@pytest.mark.parametrize("residuals", ["gaussian", "mixture"])
def test_tokens_depend_on_library_size_within_a_type_as_they_do_in_training(residuals):
    """Types differ in depth: what depth does among types is not what it does within one."""
    rng = np.random.default_rng(0)
    code = (torch.arange(1000) % 8)[:, None]
    within = torch.from_numpy(0.5 * rng.standard_normal(1000)).float()
    size = torch.linspace(-2, 2, 8)[code[:, 0]] + within
    scale = size.std()
    size = (size - size.mean()) / scale
    places = torch.from_numpy(rng.standard_normal((8, 1, 4))).float()
    tokens = (
        places[code[:, 0]] + within[:, None, None] + torch.from_numpy(0.3 * rng.standard_normal((1000, 1, 4))).float()
    )
    denoiser = ResidualDenoiser(DiT(1, 4, n_levels=[8], width=8, n_blocks=1), (1, 4), LinearFlow(), residuals=residuals)
    denoiser.fit(tokens, code, size)
    noise = torch.randn(400, 1, 4, generator=torch.Generator().manual_seed(1))
    of_size = []
    for s in (-1.5, -0.5):  # of the first type, which has the shallowest cells
        context = Context(torch.zeros(400, 1, dtype=torch.int64), torch.full((400,), s))
        of_size.append(solve(lambda x, t, c=context: denoiser.without_network(x, t, c), noise, n_steps=30).mean(dim=0))
    slope = (of_size[1] - of_size[0]).mean()
    assert slope == pytest.approx(float(scale), rel=0.15)  # the tokens go with the size


@pytest.mark.parametrize("n_components", [0, -1, 1.5, 5])
def test_numbers_of_components_that_there_cannot_be_are_refused(n_components):
    with pytest.raises(ValueError, match=rf"n_components={n_components} must be a whole number from 1 to 4"):
        fit_mixture(torch.randn(4, 2, dtype=torch.float64), n_components=n_components)


@pytest.fixture(scope="module")
def two_states():
    """Cells of two states that no condition tells apart; half of the genes are ten times as frequent in either."""
    rng = np.random.default_rng(0)
    state = rng.permutation(300) % 2
    rate = np.where(np.arange(40) % 2 == state[:, None], 10.0, 1.0)
    obs = pd.DataFrame({"condition": rng.choice(["control", "treated"], 300)}, index=[f"cell_{i}" for i in range(300)])
    return AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs)


def even_share(cells: AnnData) -> np.ndarray:
    """Share of even genes in the counts of each cell: 10 / 11 in one state, 1 / 11 in the other."""
    counts = cells.X.toarray()
    return counts[:, ::2].sum(axis=1) / counts.sum(axis=1)


@pytest.fixture(scope="module")
def model(two_states, small, quiet):
    """A model of them whose denoiser has learned next to nothing."""
    SCLDM.setup_anndata(two_states, condition_keys=["condition"])
    model = SCLDM(two_states, residuals="mixture", **small)
    model.train(max_epochs={"autoencoder": 20, "diffusion": 1}, **quiet)
    return model


@pytest.mark.parametrize("conditions", [None, {"condition": "control"}])
def test_cells_of_the_closed_form_alone_are_in_either_state(model, conditions):
    """One Gaussian would put cells between the states, too."""
    share = even_share(model.sample(300, conditions, baseline_only=True, seed=0, progress_bar=False))
    assert ((share > 0.3) & (share < 0.7)).mean() < 0.05
    assert 0.35 < (share > 0.5).mean() < 0.65


def test_a_saved_mixture_makes_the_same_cells(model, two_states, tmp_path):
    options = {"baseline_only": True, "seed": 1, "progress_bar": False}
    before = [model.sample(20, c, **options) for c in (None, {"condition": "control"})]
    model.save(tmp_path / "model")
    again = SCLDM.load(tmp_path / "model", two_states)
    for cells, c in zip(before, (None, {"condition": "control"}), strict=True):
        np.testing.assert_array_equal(cells.X.toarray(), again.sample(20, c, **options).X.toarray())


def test_residuals_may_be_noise(two_states, small, quiet):
    SCLDM.setup_anndata(two_states, condition_keys=["condition"])
    model = SCLDM(two_states, residuals="noise", **small)
    model.train(max_epochs=1, **quiet)
    assert model.sample(3, baseline_only=True, progress_bar=False).n_obs == 3


def test_unknown_residuals_are_refused(two_states, small):
    SCLDM.setup_anndata(two_states, condition_keys=["condition"])
    with pytest.raises(
        ValueError, match=r"residuals='gauss' is not known: use one of \['noise', 'gaussian', 'mixture'\]"
    ):
        SCLDM(two_states, residuals="gauss", **small)


def test_without_conditions_the_network_is_alone_by_default(two_states, small, quiet):
    SCLDM.setup_anndata(two_states)
    assert not SCLDM(two_states, **small).module.denoiser.has_baseline
    with pytest.raises(ValueError, match="make the model with baseline='mixed'"):
        SCLDM(two_states, residuals="mixture", **small)
    model = SCLDM(two_states, baseline="mixed", residuals="mixture", **small)
    model.train(max_epochs=1, **quiet)
    assert model.sample(3, baseline_only=True, progress_bar=False).n_obs == 3
