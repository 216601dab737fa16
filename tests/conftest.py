"""Data and trained models that the tests share. Nobody changes what has session scope."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny: a second thread only waits for the first
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
import pytest
from anndata import AnnData

from sclatent.datasets import glioblastoma, simulate
from sclatent.diffusion import DEFAULT_STEPS
from sclatent.model import SCLDM

HELD_OUT = ("PW034", "panobinostat")
SPREAD = ("test_tutorials", "test_guides")  # files whose tests train nothing that they share
TOGETHER = dict.fromkeys(("test_scldm", "test_interop", "test_set_autoencoder"), "glio_model")  # which train one model


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep tests that share trained models, such as those of a file, in one process, where they are trained once."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if item.path.stem not in SPREAD:
                item.add_marker(pytest.mark.xdist_group(TOGETHER.get(item.path.stem, item.path.stem)))


@pytest.fixture(scope="session")
def small() -> dict:
    """Arguments of a model that trains in seconds."""
    return {
        "n_tokens": 4,
        "token_dim": 8,
        "width": 32,
        "n_blocks": 1,
        "n_heads": 2,
        "denoiser_width": 32,
        "denoiser_blocks": 1,
    }


@pytest.fixture(scope="session")
def quiet() -> dict:
    """Arguments of train() for a test."""
    return {"accelerator": "cpu", "progress_bar": False}


@pytest.fixture
def few_steps(monkeypatch) -> None:
    """Two steps by default, for tests that do not look at how good the cells are."""
    monkeypatch.setitem(DEFAULT_STEPS, "heun", 2)


@pytest.fixture
def cells() -> AnnData:
    """Few cells, two conditions, two batches, size factors; each test gets its own."""
    adata = simulate(240, 40, cell_types=["B", "T"], n_batches=2, library_size=200, seed=1)
    adata.layers["counts"] = adata.X.copy()
    adata.obs["size_factor"] = np.asarray(adata.X.sum(axis=1)).ravel() / 50
    return adata


@pytest.fixture
def fit(small, quiet):
    """Set up and train a model on an AnnData; keyword arguments go where they belong."""

    def fit(
        adata: AnnData, max_epochs: int = 2, *, setup: dict | None = None, train: dict | None = None, **model
    ) -> SCLDM:
        SCLDM.setup_anndata(adata, **({"condition_keys": ["cell_type", "condition"]} if setup is None else setup))
        trained = SCLDM(adata, **{**small, **model})
        trained.train(max_epochs=max_epochs, **{**quiet, **(train or {})})
        return trained

    return fit


@pytest.fixture(scope="session")
def glio() -> AnnData:
    """1,500 glioblastoma cells x 300 genes of five patients; the treated cells of one patient are not among them."""
    adata = glioblastoma()
    held_out = (adata.obs["patient_id"] == HELD_OUT[0]) & (adata.obs["condition"] == HELD_OUT[1])
    seen = np.flatnonzero(~held_out)
    adata = adata[np.sort(np.random.default_rng(0).choice(seen, 1_500, replace=False))].copy()
    SCLDM.setup_anndata(adata, condition_keys=["patient_id", "condition"])
    return adata


@pytest.fixture(scope="session")
def glio_model(glio, small, quiet) -> SCLDM:
    model = SCLDM(glio, **{**small, "n_tokens": 8, "token_dim": 16, "denoiser_width": 64, "denoiser_blocks": 2})
    model.train(max_epochs={"autoencoder": 20, "diffusion": 15}, **quiet)
    return model


@pytest.fixture(scope="session")
def sim() -> AnnData:
    """Simulated cells of three types and two batches with a strong effect; stimulated type_2 is not among them."""
    adata = simulate(1_000, 80, cell_types=3, n_batches=2, effect_size=1.5, library_size=500, seed=3)
    held_out = (adata.obs["cell_type"] == "type_2") & (adata.obs["condition"] == "stimulated")
    adata = adata[~held_out].copy()
    adata.layers["counts"], adata.X = adata.X.copy(), np.zeros(adata.shape, dtype=np.float32)
    SCLDM.setup_anndata(adata, layer="counts", condition_keys=["cell_type", "condition"], batch_key="batch")
    return adata


@pytest.fixture(scope="session")
def sim_model(sim, small, quiet) -> SCLDM:
    model = SCLDM(sim, **small)
    model.train(max_epochs={"autoencoder": 25, "diffusion": 15}, **quiet)
    return model
