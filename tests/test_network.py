"""What the network adds to the closed form: cells that are not Gaussian within a condition.

Every check here has to fail for a model whose network predicts nothing.
"""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

from sclatent.model import DAED, SCLDM, JointDiffusion, JointLDM

QUIET = {"accelerator": "cpu", "progress_bar": False}
FEATURE_MODELS = [DAED, JointDiffusion, JointLDM]


def without_network(model):
    """The model, with a network that predicts 0."""
    model = copy.copy(model)
    model.module = copy.deepcopy(model.module)
    out = model.module.denoiser.trunk.out
    with torch.no_grad():
        out.weight.zero_()
        out.bias.zero_()
    return model


# ---- counts: two states in each of two conditions


def two_states(n: int, seed: int) -> AnnData:
    """Cells of either state in equal numbers: one half of the genes is on in the one, the other half in the other."""
    rng = np.random.default_rng(seed)
    treated, state = rng.integers(0, 2, n), rng.integers(0, 2, n)
    log_rate = np.tile(np.where(np.arange(40) < 20, 1.0, -1.0), (n, 1)) * np.where(state, 1, -1)[:, None]
    log_rate[:, ::4] += treated[:, None]
    x = rng.poisson(10 * np.exp(log_rate)).astype(np.float32)
    obs = pd.DataFrame({"condition": np.where(treated, "treated", "control")}, index=[f"cell_{i}" for i in range(n)])
    return AnnData(sparse.csr_matrix(x), obs=obs)


def share_between_states(adata: AnnData) -> float:
    """Share of cells of neither state: a state has three quarters of its counts, or more, in its half of the genes."""
    x = adata.X.toarray()
    share = x[:, :20].sum(axis=1) / np.maximum(x.sum(axis=1), 1)
    return float(((share > 0.25) & (share < 0.75)).mean())


@pytest.fixture(scope="module")
def of_counts() -> SCLDM:
    adata = two_states(800, 0)
    SCLDM.setup_anndata(adata, condition_keys=["condition"])
    model = SCLDM(adata, n_tokens=2, token_dim=8, width=32, n_blocks=1, n_heads=2, denoiser_width=64, denoiser_blocks=2)
    plan = {"autoencoder": {"lr": 3e-3}, "diffusion": {"lr": 3e-3}}
    model.train({"autoencoder": 15, "diffusion": 60}, batch_size=64, plan_kwargs=plan, **QUIET)
    return model


def test_counts_have_two_states_and_nothing_between_them(of_counts):
    asked = {"condition": "treated"}

    def between(model, **kwargs) -> float:
        return share_between_states(model.sample(400, asked, progress_bar=False, **kwargs))

    assert share_between_states(two_states(400, 1)) < 0.02
    floor = between(of_counts, baseline_only=True)
    assert floor > 0.15
    assert between(of_counts) < floor / 3
    assert between(without_network(of_counts)) == floor
    cells = of_counts.sample(400, asked, progress_bar=False)
    first = cells.X.toarray()[:, :20].sum(axis=1) > cells.X.toarray()[:, 20:].sum(axis=1)
    assert 0.3 < first.mean() < 0.7


# ---- embeddings: two states under either label


def two_clouds(n: int, seed: int) -> AnnData:
    rng = np.random.default_rng(seed)
    label, state = rng.integers(0, 2, n), rng.integers(0, 2, n)
    x = 0.3 * rng.normal(size=(n, 4))
    x[:, 0] += np.where(state, 2.0, -2.0)
    x[:, 2] += np.where(label, 3.0, -3.0)
    obs = pd.DataFrame({"label": np.where(label, "up", "down")}, index=[f"cell_{i}" for i in range(n)])
    return AnnData(x.astype(np.float32), obs=obs)


def share_between_clouds(adata: AnnData) -> float:
    return float((np.abs(adata.X[:, 0]) < 1).mean())


@pytest.mark.parametrize("cls", FEATURE_MODELS, ids=lambda cls: cls.__name__)
def test_embeddings_have_two_states_and_nothing_between_them(cls):
    adata = two_clouds(800, 0)
    cls.setup_anndata(adata, labels_key="label")
    model = cls(
        adata, denoiser_width=64, denoiser_blocks=2, n_heads=2, **({"noise_level": 0.001} if cls is DAED else {})
    )
    epochs = {stage: 60 if stage == "diffusion" else 10 for stage in cls.STAGES}
    model.train(epochs, batch_size=64, plan_kwargs={stage: {"lr": 3e-3} for stage in cls.STAGES}, **QUIET)

    def between(model, **kwargs) -> float:
        return share_between_clouds(model.sample(400, "up", progress_bar=False, **kwargs))

    assert share_between_clouds(two_clouds(400, 1)) < 0.02
    floor = between(without_network(model))
    assert floor > 0.2
    assert between(model) < 0.6 * floor
    if model.module.denoiser.has_baseline:
        assert between(model, baseline_only=True) == floor
