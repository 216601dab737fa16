"""Bad input to the models of images and embeddings: messages name the argument and what to do, nothing is changed."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent.model import DAED, JointDiffusion, JointLDM

MODELS = (DAED, JointDiffusion, JointLDM)
TINY = {"denoiser_width": 16, "denoiser_blocks": 1, "n_heads": 2}


def embeddings(n: int = 40, dim: int = 12) -> AnnData:
    x = np.random.default_rng(0).normal(size=(n, dim)).astype(np.float32)
    obs = pd.DataFrame(
        {"label": pd.Categorical(["a", "b", "c", "unknown"] * (n // 4))}, index=[f"c{i}" for i in range(n)]
    )
    return AnnData(x, obs=obs)


def images(*shape: int, dtype: type = np.uint8) -> AnnData:
    adata = embeddings()
    adata.obsm["image"] = np.random.default_rng(0).integers(0, 255, (40, *shape)).astype(dtype)
    return adata


def relabelled(labels: list) -> AnnData:
    adata = embeddings()
    adata.obs["label"] = pd.Categorical((labels * 40)[:40])
    return adata


def with_nan() -> AnnData:
    adata = embeddings()
    adata.X[7, 3] = np.nan
    return adata


def mixed() -> AnnData:
    adata = embeddings()
    ragged = np.empty((40, 2), dtype=object)
    ragged[:] = [np.zeros((28, 28)), np.zeros((32, 32))]
    adata.obsm["image"] = ragged
    return adata


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (lambda: images(28, 32), {"obsm_key": "image"}, ValueError, "28 x 32 pixels: square ones were expected"),
        (mixed, {"obsm_key": "image"}, ValueError, "one size; resize them"),
        (with_nan, {}, ValueError, "NaN or infinite.*remove or replace"),
        (lambda: images(784), {"obsm_key": "image"}, ValueError, "looks like flat images.*give image_shape"),
        (lambda: images(784), {"obsm_key": "image", "image_shape": (28, 27)}, ValueError, r"image_shape=\(28, 27\)"),
        (embeddings, {"obsm_key": "X_dino"}, KeyError, "obsm_key='X_dino'"),
        (lambda: images(784), {"obsm_key": "image", "layer": "raw"}, ValueError, "give one of them"),
        (embeddings, {"labels_key": "kind"}, KeyError, "labels_key: 'kind'"),
        (lambda: relabelled(["a", "unknown"]), {"labels_key": "label"}, ValueError, "only the label 'a'"),
        (lambda: relabelled(["unknown"]), {"labels_key": "label"}, ValueError, "leave labels_key out"),
        (lambda: relabelled(["a", None, "b"]), {"labels_key": "label"}, ValueError, "missing for"),
        (embeddings, {"batch_key": "plate"}, KeyError, "batch_key: 'plate'"),
    ],
)
def test_setup_refuses_and_changes_nothing(cls, make, arguments, error, message):
    adata = make()
    columns, uns = list(adata.obs), list(adata.uns)
    with pytest.raises(error, match=message):
        cls.setup_anndata(adata, **arguments)
    assert list(adata.obs) == columns
    assert list(adata.uns) == uns


@pytest.fixture(scope="module")
def trained() -> dict:
    """A model of each class with labels, and a JointLDM without."""
    models = {}
    for name, cls, labels_key in (*((cls.__name__, cls, "label") for cls in MODELS), ("blind", JointLDM, None)):
        adata = embeddings()
        cls.setup_anndata(adata, labels_key=labels_key)
        models[name] = cls(adata, **TINY)
        models[name].train(1, accelerator="cpu", progress_bar=False)
    return models


@pytest.mark.parametrize("name", [cls.__name__ for cls in MODELS])
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.sample(5, "d"), ValueError, "labels: 'd' is no level of 'label', which has"),
        (lambda m: m.sample(5, "unknown"), ValueError, "labels: 'unknown' is no level"),
        (lambda m: m.sample(0), ValueError, "n_samples=0 must be a whole number"),
        (lambda m: m.sample(3, ["a", "b"]), ValueError, "labels has 2 entries, but 3 cells"),
        (lambda m: m.sample(3, "a", np.nan), ValueError, "guidance_weight=nan must be a finite number"),
        (lambda m: m.sample(3, "a", guidance="strong"), ValueError, "guidance='strong' is not one that"),
        (lambda m: m.sample(3, "a", solver="rk4"), ValueError, "solver='rk4'"),
        (lambda m: m.sample(3, "a", seed=-1), ValueError, "seed=-1"),
        (lambda m: m.counterfactual(), ValueError, "labels is missing"),
        (lambda m: m.counterfactual(labels="a", noise_level=1.5), ValueError, "noise_level=1.5 must be between"),
        (lambda m: m.predict(embeddings(dim=13)), ValueError, "shape.*13.*trained on.*12"),
        (lambda m: m.predict(with_nan()), ValueError, "NaN or infinite"),
        (lambda m: m.predict(indices=[99]), IndexError, "indices=.99. must be rows of 40 cells"),
    ],
)
def test_a_trained_model_names_what_is_wrong(trained, name, call, error, message):
    with pytest.raises(error, match=message):
        call(trained[name])


def test_without_labels_there_is_nothing_to_predict_or_to_ask_for(trained):
    with pytest.raises(RuntimeError, match=r"predict needs labels.*labels_key"):
        trained["blind"].predict()
    with pytest.raises(ValueError, match=r"trained without labels.*labels_key"):
        trained["blind"].sample(3, "a")


@pytest.mark.parametrize("cls", MODELS)
def test_an_untrained_model_says_so(cls):
    adata = embeddings()
    cls.setup_anndata(adata, labels_key="label")
    model = cls(adata, **TINY)
    for call in (lambda: model.sample(3), lambda: model.predict(), lambda: model.counterfactual(labels="a")):
        with pytest.raises(RuntimeError, match=r"call train\(\) first"):
            call()


def test_images_too_small_for_the_autoencoder_are_refused():
    adata = images(20, 20)
    JointLDM.setup_anndata(adata, obsm_key="image")
    with pytest.raises(ValueError, match="20 x 20 pixels: 28 to 256 were expected"):
        JointLDM(adata)
