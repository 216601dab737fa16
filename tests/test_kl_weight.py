"""``kl_weight`` is the weight of the KL divergence in the ELBO: it pulls the posterior of the tokens to N(0, I)."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from sclatent.data import CellBatch, CellRows
from sclatent.datasets import simulate
from sclatent.model import SCLDM
from sclatent.module import SetAutoencoder

SHORT = {"batch_size": 32, "early_stopping": False, "accelerator": "cpu", "progress_bar": False}
WEIGHTS = 1e-3, 1.0, 30.0


@pytest.fixture(scope="module")
def adata():
    adata = simulate(240, 40, cell_types=["B", "T"], library_size=200, seed=1)
    SCLDM.setup_anndata(adata, condition_keys=["cell_type", "condition"])
    return adata


@pytest.fixture(scope="module")
def models(adata, small) -> list[SCLDM]:
    """The same model under three weights."""
    models = [SCLDM(adata, **small, kl_weight=weight) for weight in WEIGHTS]
    for model in models:
        model.train(10, stage="autoencoder", plan_kwargs={"autoencoder": {"lr": 1e-2}}, **SHORT)
    return models


@pytest.fixture(scope="module")
def batch(adata) -> CellBatch:
    rows = CellRows(adata.X, np.arange(40), None, np.empty((240, 0), dtype=int), np.zeros(240, dtype=int))
    return rows[range(240)]


@torch.no_grad()
def divergence(model: SCLDM, batch: CellBatch) -> float:
    """Mean KL divergence of the posterior of a cell from N(0, I), in nats."""
    return float(model.module.autoencoder(batch.sets, batch.library, batch.batch)[1].mean())


def test_a_large_weight_makes_the_posterior_the_prior(models, batch):
    little, medium, large = (divergence(model, batch) for model in models)
    assert little > 10 * medium > 10 * large
    assert large < 0.1
    spread = [model.get_latent_representation().var(axis=0).mean() for model in models]
    assert spread[0] > 10 * spread[1] > 10 * spread[2]  # and the means, all of them, 0
    assert np.abs(models[2].get_latent_representation()).max() < 0.1


def test_it_costs_reconstruction(models):
    errors = [model.get_reconstruction_error()["reconstruction_loss"] for model in models]
    assert errors[0] < errors[2]


def test_the_loss_is_the_negative_elbo_at_1(models, batch, adata):
    """Validation goes on all molecules, with noise on the tokens."""
    model = models[1]
    with torch.no_grad():
        nll, kl = model.module.autoencoder(batch.sets, batch.library, batch.batch, torch.Generator().manual_seed(0))
    loss = (nll + kl)[model.validation_indices_]
    watched = model.history["autoencoder_loss_validation"].to_numpy().min()
    assert abs(float(loss.mean()) - watched) < 5 * float(loss.std()) / len(loss) ** 0.5


def test_the_divergence_is_that_of_two_normal_distributions(batch):
    autoencoder = SetAutoencoder(40, n_tokens=4, token_dim=8, width=32, n_blocks=1, n_heads=2, variational=True)
    with torch.no_grad():
        autoencoder.to_log_sd.weight.zero_()
        autoencoder.to_log_sd.bias.fill_(-0.5)
        mean = autoencoder.encode(batch.sets)
        _, kl = autoencoder(batch.sets, batch.library, batch.batch)
    sd = torch.full_like(mean, -0.5).exp()
    expected = kl_divergence(Normal(mean, sd), Normal(torch.zeros_like(mean), 1)).sum(dim=(1, 2))
    torch.testing.assert_close(kl, expected)
    assert kl.std() > 0.01  # not the same for all cells, as of tokens that are normalised


def test_without_it_tokens_are_normalised_and_nothing_is_added(adata, batch, small):
    model = SCLDM(adata, **small)
    with torch.no_grad():
        tokens = model.module.autoencoder.encode(batch.sets)
        nll, kl = model.module.autoencoder(batch.sets, batch.library, batch.batch)
        noisy, _ = model.module.autoencoder(batch.sets, batch.library, batch.batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(tokens.mean(dim=2), torch.zeros(240, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.var(dim=2, correction=0), torch.ones(240, 4), atol=1e-2, rtol=0)
    assert not kl.any()
    assert noisy.equal(nll)


def test_a_variational_model_generates(models):
    model = models[0]
    model.train(2, stage="diffusion", **SHORT)
    cells = model.sample(20, {"cell_type": "B"}, progress_bar=False)
    assert cells.X.sum() > 0


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_none_are_refused(adata, weight):
    with pytest.raises(ValueError, match=f"kl_weight={weight} must be 0"):
        SCLDM(adata, kl_weight=weight)
