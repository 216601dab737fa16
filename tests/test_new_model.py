"""The model that the developer pages show: a fifth model is one small file, and it works."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from sclatent import tl
from sclatent.metrics import energy_distance

FILE = Path(__file__).parents[1] / "docs" / "developer" / "example_model.py"
LABELS = ["B", "NK", "T"]
DIM = 16
QUIET = {"accelerator": "cpu", "progress_bar": False}


@pytest.fixture(scope="module")
def pca_flow() -> type:
    """The class, from the file that the page includes."""
    spec = importlib.util.spec_from_file_location("example_model", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PCAFlow


def draw(label: str, n: int, seed: int) -> np.ndarray:
    """Cells of a label: each has a mean of its own, and coordinates that are correlated in the same way."""
    world = np.random.default_rng(0)
    means, mixing = 2.5 * world.standard_normal((len(LABELS), DIM)), world.standard_normal((4, DIM))
    rng = np.random.default_rng([seed, LABELS.index(label)])
    noise = rng.standard_normal((n, 4)) @ mixing + 0.3 * rng.standard_normal((n, DIM))
    return (means[LABELS.index(label)] + noise).astype(np.float32)


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """Embeddings of three labels; those of every third cell are unknown."""
    adata = AnnData(obsm={"X_embedding": np.concatenate([draw(label, 200, seed=1) for label in LABELS])})
    label = np.repeat(LABELS, 200).astype(object)
    label[::3] = "unknown"
    adata.obs["label"] = label
    return adata


@pytest.fixture(scope="module")
def small() -> dict:
    return {"n_tokens": 4, "token_dim": 4, "width": 48, "n_blocks": 2}


@pytest.fixture(scope="module")
def model(pca_flow, cells, small):
    pca_flow.setup_anndata(cells, obsm_key="X_embedding", labels_key="label")
    model = pca_flow(cells, **small)
    model.train(max_epochs=40, batch_size=64, plan_kwargs={"diffusion": {"lr": 5e-3}}, **QUIET)
    return model


def sample(model, label: str, **kwargs) -> np.ndarray:
    return model.sample(300, label, seed=0, progress_bar=False, **kwargs).obsm["X_embedding"]


def is_like(generated: np.ndarray, label: str) -> bool:
    """Whether cells are nearer to new ones of a label than a twentieth of what lies between labels."""
    real = draw(label, 300, seed=2)
    between = min(energy_distance(draw(other, 300, seed=2), real) for other in LABELS if other != label)
    return energy_distance(generated, real) < between / 20


@pytest.mark.parametrize("label", LABELS)
def test_it_generates_what_it_was_trained_on(model, label):
    generated = sample(model, label)
    assert is_like(generated, label)
    assert not any(is_like(generated, other) for other in LABELS if other != label)
    mean = generated.mean(axis=0)
    assert not is_like(np.broadcast_to(mean, generated.shape), label)  # it is not the mean alone that is learned
    assert not is_like(sample(model, None), label)
    covariances = [np.cov(x.T)[np.triu_indices(DIM, 1)] for x in (generated, draw(label, 5_000, seed=2))]
    assert np.corrcoef(covariances)[0, 1] > 0.8


def test_a_model_that_has_learned_nothing_fails_this(pca_flow, cells, small):
    untrained = pca_flow(cells, **small)
    untrained.train(max_epochs=1, **QUIET)
    assert not any(is_like(sample(untrained, label), label) for label in LABELS)


def test_a_saved_model_generates_the_same_cells(model, pca_flow, tmp_path):
    model.save(tmp_path / "model")
    again = pca_flow.load(tmp_path / "model")
    np.testing.assert_array_equal(sample(again, "T", guidance_weight=2.0), sample(model, "T", guidance_weight=2.0))


def test_the_latent_are_principal_components(model, cells):
    z = model.get_latent_representation(indices=model.train_indices_)
    covariance = np.cov(z.T)
    variance = np.diag(covariance)
    assert np.abs(covariance - np.diag(variance)).max() < 1e-3 * variance[0]
    assert (np.diff(variance) < 0).all()


def test_the_rest_of_the_house_takes_it(model, cells):
    source = cells[:50]
    moved = model.counterfactual(source, "T", noise_level=1.0, progress_bar=False)
    assert list(moved.obs_names) == list(source.obs_names)
    assert (moved.obs["label"] == "T").all()
    near = [np.linalg.norm(moved.obsm["X_embedding"].mean(axis=0) - draw(x, 300, 2).mean(axis=0)) for x in LABELS]
    assert LABELS[int(np.argmin(near))] == "T"
    table = tl.reconstruction_error(model, cells, noise_levels=[0.05, 0.3], n_cells=200)
    assert (table["error"] < table["noise"]).all()


def test_images_are_taken_too(pca_flow, cells, small):
    images = AnnData(obsm={"image": np.random.default_rng(0).integers(0, 256, (40, 12, 12), dtype=np.uint8)})
    pca_flow.setup_anndata(images, obsm_key="image")
    model = pca_flow(images, **small)
    model.train(max_epochs=1, **QUIET)
    generated = model.sample(3, progress_bar=False).obsm["image"]
    assert generated.shape == (3, 12, 12)
    assert generated.dtype == np.uint8


def test_the_variations_of_the_page_are_models_too(pca_flow, cells, small):
    blocks = re.findall(r"```python\n(.*?)```", FILE.with_name("new_model.md").read_text(), flags=re.DOTALL)
    names = {"PCAFlow": pca_flow}
    for block in blocks:
        if "\nclass " in block:
            exec(block, names)
    variations = [cls for cls in names.values() if isinstance(cls, type) and issubclass(cls, pca_flow)]
    assert len(variations) == 1 + 3
    for cls in variations[1:]:
        cls.setup_anndata(cells, obsm_key="X_embedding", labels_key="label")
        model = cls(cells, **small)
        model.train(max_epochs=8, plan_kwargs={"diffusion": {"lr": 5e-3}}, **QUIET)
        assert model.trained_stages == set(cls.STAGES)
        loss = model.history["diffusion_loss_validation"].iloc[:, 0]
        if not model.module.denoiser.has_baseline:  # a Gaussian a label is all there is to these cells
            assert loss.min() < 0.95 * loss.iloc[0]  # after so few epochs; it stays where it is if nothing is learned
        assert np.isfinite(sample(model, "T")).all()
        if hasattr(model, "predict"):
            known = cells.obs["label"] != "unknown"
            assert (model.predict()[known] == cells.obs["label"][known]).mean() > 0.8
