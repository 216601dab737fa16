"""DAED, JointDiffusion and JointLDM as a user meets them, on embeddings and on images."""

import math

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback
from scipy import sparse
from scipy.stats import multivariate_normal
from sklearn.linear_model import LogisticRegression

from sclatent.model import DAED, JointDiffusion, JointLDM
from sclatent.nn import Context

MODELS = [DAED, JointDiffusion, JointLDM]
each_joint_model = pytest.mark.parametrize("cls", MODELS[1:], ids=lambda cls: cls.__name__)
WAYS = {  # what guides models that were trained with a label, the default first
    DAED: ("classifier-free",),
    JointDiffusion: ("classifier",),
    JointLDM: ("classifier-free", "classifier", "both"),
}
GUIDANCE = [(cls, guidance) for cls in MODELS for guidance in WAYS[cls]]
each_model = pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
TYPES = ["B", "NK", "T"]
SIDES = ["left", "right"]
QUIET = {"accelerator": "cpu", "progress_bar": False}


def embeddings(n: int, seed: int) -> AnnData:
    """Cells of three types that lie far apart in three coordinates, and alike in five; half of the labels are known."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = rng.standard_normal((n, 8))
    x[:, :3] = 0.5 * x[:, :3] + 3 * np.eye(3)[y]
    adata = AnnData(x.astype(np.float32), obs=pd.DataFrame(index=[f"cell_{seed}_{i}" for i in range(n)]))
    adata.obs["type"] = pd.Categorical.from_codes(y, TYPES)
    adata.obs["label"] = np.where(rng.random(n) < 0.5, adata.obs["type"], "not looked at")
    adata.obs["batch"] = rng.choice(["one", "two"], n)
    adata.obs["area"] = rng.random(n)
    return adata


def images(n: int, seed: int, size: int = 12, channels: int | None = None, grain: float = 15.0) -> tuple:
    """A round spot on the left or on the right, at any height and of any brightness: images, and the sides."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    row, column = rng.uniform(0.25, 0.75, n) * size, np.where(y, 0.75, 0.25) * size
    i, j = np.mgrid[:size, :size] + 0.5
    squared = (i - row[:, None, None]) ** 2 + (j - column[:, None, None]) ** 2
    spot = np.exp(-squared / (2 * (0.13 * size) ** 2)) * rng.uniform(60, 100, n)[:, None, None]
    x = (60 + spot + rng.normal(0, grain, spot.shape)).clip(0, 255)
    if channels is not None:
        x = x[..., None] * np.linspace(1, 0.5, channels)
    return x.round().astype(np.uint8), np.array(SIDES)[y]


def with_images(x: np.ndarray, y: np.ndarray) -> AnnData:
    adata = AnnData(obs=pd.DataFrame({"side": y}, index=[f"image_{i}" for i in range(len(y))]), obsm={"image": x})
    adata.obs["label"] = np.where(np.arange(len(y)) % 2 == 0, y, "unknown")
    return adata


def small(cls, **kwargs) -> dict:
    own = {DAED: {"width": 32, "n_blocks": 1}, JointDiffusion: {}, JointLDM: {"token_dim": 4, "width": 32}}[cls]
    return {"denoiser_width": 32, "denoiser_blocks": 2, "n_heads": 2, **own, **kwargs}


def untrained(cls, adata: AnnData, setup: dict | None = None, **kwargs):
    cls.setup_anndata(adata, **(setup or {}))
    return cls(adata, **small(cls, **kwargs))


def fit(cls, adata: AnnData, epochs: int = 1, setup: dict | None = None, lr: float = 1e-2, **kwargs):
    """A model that was set up and trained; one epoch is enough where it does not matter what is learned."""
    model = untrained(cls, adata, setup, **kwargs)
    first = {"autoencoder": max(1, epochs // 8)}
    model.train(
        {stage: first.get(stage, epochs) for stage in cls.STAGES},
        batch_size=64, plan_kwargs={stage: {"lr": lr if stage != "autoencoder" else 3e-3} for stage in cls.STAGES},
        **QUIET,
    )  # fmt: skip
    return model


def features(adata: AnnData, model) -> np.ndarray:
    """Features of cells where this model has them, (cells, ...)."""
    setup = model.registry["setup_args"]
    if setup["obsm_key"] is not None:
        x = adata.obsm[setup["obsm_key"]]
    else:
        x = adata.X if setup["layer"] is None else adata.layers[setup["layer"]]
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def flat(adata: AnnData, model) -> np.ndarray:
    return features(adata, model).reshape(adata.n_obs, -1).astype(float)


def sample(model, n=None, conditions=None, *args, **kwargs) -> AnnData:
    return model.sample(n, conditions, *args, progress_bar=False, **kwargs)


def counterfactual(model, *args, **kwargs) -> AnnData:
    return model.counterfactual(*args, progress_bar=False, **kwargs)


# ---- trained models that tests share


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """Embeddings, wherever the models look for them."""
    adata = embeddings(400, 1)
    adata.obsm["X_emb"], adata.layers["emb"] = adata.X.copy(), adata.X.copy()
    return adata


@pytest.fixture(scope="module")
def held_out() -> AnnData:
    adata = embeddings(120, 2)
    adata.obsm["X_emb"], adata.layers["emb"] = adata.X.copy(), adata.X.copy()
    return adata


@pytest.fixture(scope="module")
def models(cells) -> dict:
    """Models of embeddings that were trained until they know what they do; one in X, in obsm and in a layer each."""
    setup = {"labels_key": "label", "unlabeled_category": "not looked at"}
    return {
        DAED: fit(DAED, cells.copy(), 15, setup),
        JointDiffusion: fit(JointDiffusion, cells.copy(), 20, {**setup, "obsm_key": "X_emb"}),
        JointLDM: fit(JointLDM, cells.copy(), 20, {**setup, "layer": "emb"}, n_tokens=2),
    }


@pytest.fixture
def model(models, cls):
    return models[cls]


@pytest.fixture(scope="module")
def judge(held_out):
    """A classifier of embeddings that no model has seen, trained on real cells."""
    return LogisticRegression().fit(held_out.X, held_out.obs["type"])


def more_images(cls, n: int = 60, seed: int = 2) -> AnnData:
    """Images as the models of images are trained on: colour ones for DAED, without labels that it would learn."""
    size, channels, grain = {DAED: (12, 3, 2), JointDiffusion: (12, None, 15), JointLDM: (28, None, 15)}[cls]
    return with_images(*images(n, seed, size, channels, grain))


@pytest.fixture(scope="module")
def image_models() -> dict:
    """Models of images, which are stored in another way each."""
    setup = {"obsm_key": "image", "labels_key": "side"}
    colour, grey, flat_grey = (more_images(cls, 200, 1) for cls in MODELS)
    flat_grey.obsm["image"] = flat_grey.obsm["image"].reshape(200, -1)
    flat_grey.uns["image_shape"] = [28, 28]
    daed = fit(DAED, colour, 20, setup)
    daed.train(15, stage="denoiser", batch_size=64, plan_kwargs={"denoiser": {"lr": 1e-2}}, **QUIET)
    return {
        DAED: daed,
        JointDiffusion: fit(JointDiffusion, grey, 25, setup, patch=3),
        JointLDM: fit(JointLDM, flat_grey, 25, setup, width=16),
    }


@pytest.fixture
def image_model(image_models, cls):
    return image_models[cls]


def is_right(x: np.ndarray, model) -> np.ndarray:
    """Whether there is more light on the right."""
    x = x.reshape(len(x), *model.shape).astype(float)
    middle = model.shape[1] // 2
    return x[:, :, middle:].sum(axis=(1, 2, 3)) > x[:, :, :middle].sum(axis=(1, 2, 3))


# ---- what comes back


LAYOUTS = ["X", "sparse X", "layer", "obsm", "frame", "whole numbers", "float64"]
IMAGE_LAYOUTS = ["flat, image_shape", "flat, uns", "grey", "one channel", "colour", "float"]


def laid_out(cls, layout: str) -> tuple[AnnData, dict]:
    """Few cells, and how to set them up."""
    setup = {"labels_key": "label", "unlabeled_category": "unknown"}
    if layout in LAYOUTS:
        adata = embeddings(40, 0)[:, :6].copy()
        adata.obs["label"] = adata.obs["label"].replace("not looked at", "unknown")
        adata.var_names = [f"feature {i}" for i in range(6)]
        if layout == "sparse X":
            adata.X = sparse.csr_matrix(adata.X)
        elif layout == "layer":
            adata.layers["emb"], adata.X = adata.X.copy(), None
            setup["layer"] = "emb"
        elif layout == "obsm":
            adata.obsm["X_emb"], setup["obsm_key"] = adata.X.copy(), "X_emb"
        elif layout == "frame":
            adata.obsm["X_emb"] = pd.DataFrame(adata.X, adata.obs_names, list("abcdef"))
            setup["obsm_key"] = "X_emb"
        elif layout == "whole numbers":
            adata.X = (10 * adata.X).round().astype(np.int16) + 100
        elif layout == "float64":
            adata.X = adata.X.astype(np.float64)
        return adata, setup
    size = 28 if cls is JointLDM else 6
    x, y = images(40, 0, size, {"colour": 3, "one channel": 1}.get(layout))
    adata, setup["obsm_key"] = with_images(x, y), "image"
    if layout.startswith("flat"):
        adata.obsm["image"] = x.reshape(40, -1)
        if layout == "flat, uns":
            adata.uns["image_shape"] = (size, size)
        else:
            adata.obsm["image"], setup["image_shape"] = adata.obsm["image"].astype(np.float32) / 255, (size, size)
    elif layout == "float":
        adata.obsm["image"] = (x / 255).astype(np.float32)
    return adata, setup


LESS_OFTEN = ["sparse X", "frame", "float64", "one channel", "float", "flat, image_shape"]


@pytest.mark.parametrize(
    ("cls", "layout"),
    [(c, x) for c in MODELS for x in (*LAYOUTS, *IMAGE_LAYOUTS) if c is JointDiffusion or x not in LESS_OFTEN],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_comes_back_is_where_and_as_it_was_in_training(cls, layout):
    adata, setup = laid_out(cls, layout)
    before = adata.copy()
    model = fit(cls, adata, 1, setup)
    real = features(adata, model)
    integers = np.issubdtype(real.dtype, np.integer)
    label = before.obs["label"][before.obs["label"] != "unknown"].iloc[0]
    results = {
        "sample": sample(model, 7, label, n_steps=2),
        "counterfactual": counterfactual(model, conditions=label, indices=range(7), n_steps=2),
    }
    for method, result in results.items():
        made = features(result, model)
        assert made.dtype == (real.dtype if integers else np.float32), method
        assert result.n_obs == 7
        assert made.shape == (7, *real.shape[1:])
        assert np.isfinite(made).all()
        if layout in IMAGE_LAYOUTS or integers:
            assert real.min() <= made.min() <= made.max() <= real.max()
        if layout in IMAGE_LAYOUTS:
            assert tuple(result.uns["image_shape"]) == model.shape
        else:
            assert "image_shape" not in result.uns
        assert list(filter(None, result.layers)) == list(filter(None, [setup.get("layer")]))
        assert set(result.obsm) == {*filter(None, [setup.get("obsm_key")])} | (
            {"difference"} if method == "counterfactual" and layout in IMAGE_LAYOUTS else set()
        )
        if setup.get("obsm_key") is None:
            assert list(result.var_names) == list(adata.var_names)
        assert list(result.obs["label"].cat.categories) == sorted(set(before.obs["label"]) - {"unknown"})
        assert not result.obs.columns.str.startswith("_scvi").any()
    # what came back can be given back, and nothing that a user sees has been changed
    assert model.predict(results["counterfactual"], indices=[0, 1]).shape == (2,)
    pd.testing.assert_frame_equal(adata.obs[before.obs.columns], before.obs)
    np.testing.assert_array_equal(features(adata, model), features(before, model))


@each_model
def test_uns_says_how_cells_were_made_and_results_are_written_and_read(cls, models, image_models, tmp_path):
    guidance, by_default = WAYS[cls][-1], "classifier-free" if cls is DAED else "classifier"
    made = {
        "cells": sample(models[cls], 4, "B", 2.0, guidance, solver="euler", n_steps=3, seed=7),
        "moved": counterfactual(models[cls], None, "B", 0.3, indices=[0, 1]),
        "moved images": counterfactual(image_models[cls], None, "left", indices=[0, 1]),
    }
    how = made["cells"].uns["sclatent"]
    expected = {
        "model": cls.__name__, "method": "sample", "guidance_weight": 2.0, "guidance": guidance, "solver": "euler",
        "n_steps": 3, "seed": 7,
    }  # fmt: skip
    assert expected.items() <= how.items()
    assert how["version"]
    expected = {"method": "counterfactual", "noise_level": 0.3, "guidance": by_default, "n_steps": 12, "seed": 0}
    assert expected.items() <= made["moved"].uns["sclatent"].items()
    for name, adata in made.items():
        adata.write_h5ad(tmp_path / "made.h5ad")
        back = ad.read_h5ad(tmp_path / "made.h5ad")
        model = image_models[cls] if "images" in name else models[cls]
        np.testing.assert_array_equal(features(back, model), features(adata, model))
        pd.testing.assert_frame_equal(back.obs, adata.obs)
        assert back.uns["sclatent"]["model"] == cls.__name__
        assert counterfactual(model, back, "B" if model is models[cls] else "left").n_obs == adata.n_obs


@each_model
def test_a_model_without_labels_generates_and_is_written_too(cls, tmp_path):
    model = fit(cls, embeddings(60, 0))
    cells = sample(model, 5)
    assert cells.obs.shape == (5, 0)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    model.save(tmp_path / "m")
    np.testing.assert_array_equal(sample(cls.load(tmp_path / "m"), 5).X, cells.X)
    assert len(model.get_latent_representation()) == 60


# ---- seeds


def assert_close(one: AnnData, other: AnnData, model) -> None:
    """Equal up to rounding, also to whole numbers."""
    whole = np.issubdtype(features(one, model).dtype, np.integer)
    tolerance = {"atol": 1} if whole else {"atol": 1e-4, "rtol": 1e-4}
    np.testing.assert_allclose(flat(one, model), flat(other, model), **tolerance)


@pytest.mark.parametrize("kind", ["embeddings", "images"])
@each_model
def test_the_same_seed_gives_the_same_cells_whatever_the_batch_size(cls, models, image_models, kind):
    model, label = (models[cls], "T") if kind == "embeddings" else (image_models[cls], "right")
    for guidance in WAYS[cls] if kind == "embeddings" else WAYS[cls][-1:]:
        for generate in (
            lambda guidance=guidance, **kwargs: sample(model, 9, label, 2.0, guidance, n_steps=3, **kwargs),
            lambda guidance=guidance, **kwargs: counterfactual(
                model, None, label, 0.5, 2.0, guidance, False, indices=range(9), n_steps=3, **kwargs
            ),
        ):
            reference = generate(seed=3)
            assert_close(generate(seed=3, batch_size=4), reference, model)  # of which the last one has one cell
            other = flat(generate(seed=4), model)
            assert (other != flat(reference, model)).any(axis=1).all()
            assert len(np.unique(flat(reference, model), axis=0)) == 9
        assert_close(
            sample(model, 4, label, 2.0, guidance, n_steps=3, seed=3), reference_head(model, label, guidance), model
        )


def reference_head(model, label: str, guidance: str) -> AnnData:
    return sample(model, 9, label, 2.0, guidance, n_steps=3, seed=3)[:4]


@each_model
def test_the_adaptive_solver_does_not_depend_on_the_batch_size_either(cls, model):
    one, other = (sample(model, 9, "T", solver="adaptive", batch_size=b) for b in (9, 2))
    np.testing.assert_allclose(
        flat(one, model), flat(other, model), atol=0.01
    )  # whether a step is long enough is rounded


@each_model
def test_what_is_said_of_cells_does_not_depend_on_the_batch_size(cls, model):
    for method in (model.get_latent_representation, model.get_activations, lambda **k: model.predict(soft=True, **k)):
        np.testing.assert_allclose(
            method(indices=range(9), batch_size=9), method(indices=range(9), batch_size=2), atol=1e-4, rtol=1e-3
        )


# ---- labels steer


@pytest.mark.parametrize(("cls", "guidance"), GUIDANCE, ids=lambda value: getattr(value, "__name__", value))
def test_an_independent_classifier_recognises_conditional_samples(cls, guidance, models, judge):
    """At weight 1 nearly always, at 0 by chance, and at 2 at least as well."""
    model, labels = models[cls], np.repeat(TYPES, 60)
    accuracy, probability = {}, {}
    for weight in (0.0, 1.0, 2.0):
        x = flat(sample(model, conditions=labels, guidance_weight=weight, guidance=guidance), model)
        accuracy[weight] = (judge.predict(x) == labels).mean()
        p = pd.DataFrame(judge.predict_proba(x), columns=judge.classes_)
        probability[weight] = np.mean([p[label][i] for i, label in enumerate(labels)])
    assert accuracy[0.0] < 0.5
    assert accuracy[1.0] > 0.8
    assert probability[1.0] > probability[0.0] + 0.3
    assert probability[2.0] > max(probability[1.0], 0.9) - 0.02


@pytest.mark.parametrize(("cls", "guidance"), GUIDANCE, ids=lambda value: getattr(value, "__name__", value))
def test_conditional_samples_lie_where_the_cells_of_their_label_lie(cls, guidance, models, cells):
    """Steps enough that a solver's error is no matter: neither all in one place, nor thrown out of the data."""
    made = flat(sample(models[cls], 150, "B", 1.0, guidance, n_steps=40), models[cls])
    real = cells.X[(cells.obs["type"] == "B").to_numpy()]
    np.testing.assert_allclose(made.mean(axis=0), real.mean(axis=0), atol=0.8)
    assert made[:, 0].mean() > 2.3
    ratio = made.std(axis=0) / real.std(axis=0)
    assert 0.5 < ratio.min() <= np.median(ratio) < 1.5
    assert ratio.max() < 2.5


@pytest.mark.parametrize(("cls", "guidance"), GUIDANCE[1:], ids=lambda value: getattr(value, "__name__", value))
def test_images_have_their_spot_where_the_label_says(cls, guidance, image_models):
    model, labels = image_models[cls], np.repeat(SIDES, 40)
    right = is_right(flat(sample(model, conditions=labels, guidance_weight=4.0, guidance=guidance), model), model)
    assert (right == (labels == "right")).mean() > 0.75


def test_what_guides_by_default(models, image_models):
    def default(model):
        how = sample(model, 1).uns["sclatent"]
        return how["guidance"], how["guidance_weight"]

    assert {cls: default(model) for cls, model in image_models.items()} == {
        DAED: ("classifier-free", 1.0), JointDiffusion: ("classifier", 4.0), JointLDM: ("classifier-free", 1.0)
    }  # fmt: skip
    assert default(models[JointDiffusion]) == ("classifier", 1.0)
    assert default(models[JointLDM]) == ("classifier-free", 1.0)


@pytest.mark.parametrize(("cls", "guidance"), GUIDANCE, ids=lambda value: getattr(value, "__name__", value))
def test_weight_zero_is_unconditional_and_one_label_a_cell_is_as_good_as_one_for_all(cls, guidance, models):
    model = models[cls]
    free = sample(model, 10)
    assert_close(sample(model, 10, "B", 0.0, guidance), free, model)
    assert free.obs["label"].isna().all()
    steered = sample(model, 10, "B", 1.5, guidance)
    assert np.abs(flat(steered, model) - flat(free, model)).max() > 0.1
    open_and_steered = sample(model, conditions=[None, "B"] * 5, guidance_weight=1.5, guidance=guidance)
    assert open_and_steered.obs["label"].isna().tolist() == [True, False] * 5
    expected = np.where(np.arange(10)[:, None] % 2, flat(steered, model), flat(free, model))
    if guidance == "classifier-free":  # open cells have no guidance to be extrapolated by
        np.testing.assert_allclose(flat(open_and_steered, model)[1::2], expected[1::2], atol=1e-4)
    else:
        np.testing.assert_allclose(flat(open_and_steered, model), expected, atol=1e-4)


def test_each_way_of_guidance_may_have_a_weight_of_its_own(models):
    model = models[JointLDM]
    for weights, one, guidance in (
        ({"classifier-free": 3.0, "classifier": 0.0}, 3.0, "classifier-free"),
        ({"classifier-free": 0.0, "classifier": 3.0}, 3.0, "classifier"),
        ({"classifier-free": 2.0, "classifier": 2.0}, 2.0, "both"),
    ):
        cells = sample(model, 6, "B", weights, "both")
        np.testing.assert_array_equal(cells.X, sample(model, 6, "B", one, guidance).X)
        assert cells.uns["sclatent"]["guidance_weight"] == weights


@each_model
def test_labels_may_be_given_in_any_form(cls, model):
    names = ["B", "T", "B", "NK"]
    reference = sample(model, conditions=names)
    assert list(reference.obs["label"]) == names
    for labels in (
        pd.Series(names, index=list("wxyz")), pd.Index(names), pd.Categorical(names), np.array(names), tuple(names),
        pd.Series(names, dtype="category"),
    ):  # fmt: skip
        np.testing.assert_array_equal(flat(sample(model, conditions=labels), model), flat(reference, model))
    one, same = sample(model, 3, "T"), sample(model, conditions=["T"] * 3)
    np.testing.assert_array_equal(flat(one, model), flat(same, model))
    for weight in (np.float32(2), np.int64(2), 2):
        np.testing.assert_allclose(
            flat(sample(model, 3, "T", weight), model), flat(sample(model, 3, "T", 2.0), model), atol=1e-5
        )


@each_model
def test_unconditional_samples_are_like_the_cells(cls, model, cells):
    made = flat(sample(model, 400), model)
    np.testing.assert_allclose(made.mean(axis=0), cells.X.mean(axis=0), atol=0.45)
    np.testing.assert_allclose(made.std(axis=0), cells.X.std(axis=0), rtol=0.35)


# ---- prediction


@each_model
def test_predictions_of_held_out_cells(cls, model, held_out):
    """Of cells whose labels the model is not given, most are right; no answer is what unlabelled cells are called."""
    query = held_out.copy()
    del query.obs["label"]
    predicted = model.predict(query)
    assert predicted.shape == (120,)
    assert set(predicted) <= set(TYPES)
    assert (predicted == query.obs["type"].to_numpy()).mean() > 0.9
    soft = model.predict(query, soft=True)
    assert list(soft.columns) == TYPES
    assert list(soft.index) == list(query.obs_names)
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-5)
    assert list(soft.idxmax(axis=1)) == list(predicted)
    some = model.predict(query, indices=[5, 2], soft=True)
    assert list(some.index) == list(query.obs_names[[5, 2]])
    query.obs["label"] = "a type that nobody knows"
    assert list(model.predict(query, indices=range(20))) == list(predicted[:20])


@each_model
def test_predictions_of_the_training_cells(cls, model, cells):
    unlabelled = np.flatnonzero(cells.obs["label"] == "not looked at")[:80]
    predicted = model.predict(indices=unlabelled)
    assert (predicted == cells.obs["type"].to_numpy()[unlabelled]).mean() > 0.9


@each_joint_model
def test_predictions_of_images(cls, image_model):
    query = more_images(cls)
    assert (image_model.predict(query) == query.obs["side"].to_numpy()).mean() > 0.85


@each_model
def test_what_unlabelled_cells_are_called_is_no_label(cls, model):
    assert model.conditions.levels == {"label": TYPES}
    assert list(sample(model, 5, "B").obs["label"].cat.categories) == TYPES


@each_model
def test_categories_without_cells_are_no_labels_either(cls):
    adata = embeddings(60, 0)
    adata.obs["label"] = pd.Categorical(adata.obs["type"], categories=["T", "nobody", "NK", "B"])
    model = fit(cls, adata, 1, {"labels_key": "label"})
    assert model.conditions.levels == {"label": ["T", "NK", "B"]}
    assert list(model.predict(soft=True).columns) == ["T", "NK", "B"]


@each_model
def test_unlabelled_cells_are_learned_from(cls):
    """A cluster of which no cell has a label is generated all the same, and so is the other one."""
    adata = embeddings(200, 0)
    far = np.arange(200) % 2 == 0
    adata.X[far, 4] += 12
    adata.obs["label"] = np.where(far, "unknown", adata.obs["type"].astype(str))
    model = fit(cls, adata, 12, {"labels_key": "label"})
    made = sample(model, 200).X[:, 4]
    assert 0.25 < (made > 6).mean() < 0.98


# ---- counterfactuals


def own_labels(adata: AnnData) -> list:
    """Labels that cells have, None where nobody has looked."""
    return [None if label == "not looked at" else label for label in adata.obs["label"]]


@each_model
def test_without_noise_no_label_is_reached(cls, model, image_model, held_out):
    """A label is reached by denoising: at a noise level of 0 cells stay as they are, and a warning says so."""
    with pytest.warns(UserWarning, match="noise_level=0") as said:
        moved = counterfactual(model, held_out, "B", 0.0)
    assert said[0].filename == __file__
    np.testing.assert_allclose(flat(moved, model), held_out.X, atol=1e-4)
    assert set(moved.obs["label"]) == {"B"}
    query = more_images(cls)
    query.obsm["image"][:, 0, 0] = 255  # also pixels brighter than any in training
    query.obsm["image"][:, 0, 1] = 0
    same = counterfactual(image_model, query, query.obs["side"], 0.0)
    np.testing.assert_array_equal(flat(same, image_model), query.obsm["image"].reshape(60, -1))
    assert not same.obsm["difference"].any()


def test_a_model_says_what_does_not_move_without_noise(models, held_out):
    with pytest.warns(UserWarning, match=r"noise_level=0 moves cells by .*this model has none.*higher noise_level"):
        counterfactual(models[JointDiffusion], held_out, "B", 0.0)
    with pytest.warns(UserWarning, match=r"noise_level=0 does not change 'label': a label is reached by denoising"):
        counterfactual(models[JointLDM], held_out, "B", 0.0)


@each_model
def test_more_noise_moves_further_and_noise_alone_leaves_nothing(cls, model, held_out):
    some = held_out[:60]
    distance = []
    for level in (0.01, 0.1, 0.5, 0.9):
        moved = counterfactual(model, some, "B", level, guidance_weight=1.0, inversion=False)
        distance.append(np.linalg.norm(flat(moved, model) - some.X, axis=1).mean())
    assert (np.diff(distance) > 0).all()
    if cls is JointDiffusion:  # whose autoencoder expresses all of a cell
        one, other = (
            counterfactual(model, held_out, "B", 1.0, 1.0, inversion=False, indices=rows)
            for rows in (range(5), range(5, 10))
        )
        np.testing.assert_allclose(flat(one, model), flat(other, model), atol=1e-4)


@each_model
def test_counterfactuals_become_the_label_and_stay_near_their_cell(cls, model, judge, held_out):
    """By default, of cells that were not in training: nearer to where they come from than a cell of the target type."""
    is_b, is_t = (held_out.obs["type"] == "B").to_numpy(), (held_out.obs["type"] == "T").to_numpy()
    moved = counterfactual(model, held_out[is_b], "T")
    start, end, others = held_out.X[is_b], flat(moved, model), held_out.X[is_t]
    p = [pd.DataFrame(judge.predict_proba(x), columns=judge.classes_)["T"].mean() for x in (start, end)]
    assert p[0] < 0.05
    assert p[1] > 0.8
    to_random = np.linalg.norm(start[:, None] - others[None], axis=2).mean()
    assert np.linalg.norm(end - start, axis=1).mean() < 0.85 * to_random
    alike = 3 + np.arange(5)  # the coordinates in which types do not differ are what a cell has of its own
    own = [np.corrcoef(end[:, k], start[:, k])[0, 1] for k in alike]
    assert np.mean(own) > 0.6


@each_joint_model
def test_counterfactual_images_move_their_spot(cls, image_model):
    query = more_images(cls)
    query = query[query.obs["side"] == "left"].copy()
    old = query.obsm["image"].reshape(query.n_obs, -1)
    assert is_right(old, image_model).mean() < 0.1
    share = {}
    for side in SIDES:
        moved = counterfactual(image_model, query, side, 0.8)
        new = flat(moved, image_model)
        share[side] = is_right(new, image_model).mean()
        difference = moved.obsm["difference"]
        assert difference.dtype == np.float32
        assert difference.shape == (query.n_obs, *image_model.shape)
        np.testing.assert_array_equal(difference.reshape(query.n_obs, -1), new - old)
    assert share["left"] < 0.1
    assert share["right"] > 0.5


@pytest.mark.parametrize("stored", ["grey", "flat"])
def test_the_difference_is_what_float_images_have_changed_by(stored):
    x, y = images(40, 0, 6)
    adata = with_images((x / 255).astype(np.float32), y)
    if stored == "flat":
        adata.obsm["image"] = adata.obsm["image"].reshape(40, -1)
    shape = (6, 6) if stored == "flat" else None
    model = fit(JointDiffusion, adata, 1, {"obsm_key": "image", "labels_key": "side", "image_shape": shape})
    moved = counterfactual(model, adata, "right", indices=range(5))
    new, old = flat(moved, model), flat(adata[:5], model)
    np.testing.assert_allclose(moved.obsm["difference"].reshape(5, -1), new - old, atol=1e-6)
    assert np.abs(new - old).max() < new.max()  # the images are images still
    assert new.min() >= 0


@each_joint_model
def test_of_images_the_classifier_sees_what_the_denoiser_predicts(cls, image_model):
    """One step of Euler's method, recomputed: the gradient goes through the denoiser, to the clean image."""
    query, model = more_images(cls)[:5].copy(), image_model
    by_classifier = {"noise_level": 0.6, "guidance_weight": 30.0, "guidance": "classifier", "inversion": False}
    moved = counterfactual(model, query, "right", **by_classifier, solver="euler", n_steps=1)
    batch = model._rows(query, conditions=True)[np.arange(5)]
    denoiser, process = model.module.denoiser, model.process
    z = model._latent(batch, 0, np.arange(5))
    x, t = model._add_noise(z, 0.6, 0, np.arange(5))
    null = Context(torch.full((5, len(denoiser.n_levels)), -1))
    x.requires_grad_()
    v = denoiser(x, t, null)
    code = model.conditions.levels["side"].index("right")
    log_p = denoiser.logits(process.data(x, v, t), torch.ones(5)).log_softmax(dim=1)[:, code]
    (gradient,) = torch.autograd.grad(log_p.sum(), x)
    end = x + (1 - t[0]) * (v + 30.0 * process.steering(t)[:, None, None] * gradient)
    new, old = (model.domain.decode(model.module, tokens, batch.batch.numpy()) for tokens in (end, z))
    change = new - old
    low, high = model.domain.value_range
    expected = np.rint(np.clip(batch.x.numpy() + change, low, high)).reshape(5, -1)
    np.testing.assert_allclose(flat(moved, model), expected, atol=1)
    assert np.abs(gradient).max() > 0


@each_model
def test_noise_of_their_own_brings_cells_back_to_what_they_are(cls, model, image_model, held_out):
    """Where nothing guides: the classifier is not asked on the way to the noise."""
    guidance = WAYS[cls][0]
    plain = 0.0  # as on the way to the noise, where no label is looked at
    known = held_out[held_out.obs["label"] != "not looked at"][:3].copy()
    nuclei = more_images(cls)[:3].copy()
    for m, cells, own, label in (
        (model, known, known.obs["label"].tolist(), "T"), (image_model, nuclei, nuclei.obs["side"].tolist(), "right"),
    ):  # fmt: skip
        before = flat(cells, m).astype(float)
        back, moved, again, drawn = (
            flat(counterfactual(m, cells, to, 0.9, weight, guidance, inversion, n_steps=25, seed=seed), m).astype(float)
            for to, weight, inversion, seed in (
                (own, plain, True, 0), (label, 4.0, True, 0), (label, 4.0, True, 1), (own, plain, False, 0),
            )
        )  # fmt: skip
        distance = {name: np.abs(x - before).mean() for name, x in (("back", back), ("moved", moved), ("drawn", drawn))}
        assert distance["back"] < 0.1 * distance["drawn"]
        assert distance["back"] < 0.1 * distance["moved"]
        if cls is not DAED:  # its first noise is part of the model
            np.testing.assert_array_equal(moved, again)


@each_model
def test_counterfactuals_keep_order_index_and_obs(cls, model, held_out):
    query = held_out[[7, 3, 100, 4]].copy()
    query.obs_names = ["d", "b", "c", "b2"]
    query.obs["size"] = [4.0, 3.0, 2.0, 1.0]
    before = query.copy()
    moved = counterfactual(model, query, ["B", "T", "NK", "B"], 0.2)
    assert list(moved.obs_names) == ["d", "b", "c", "b2"]
    assert list(moved.obs["label"]) == ["B", "T", "NK", "B"]
    pd.testing.assert_frame_equal(moved.obs.drop(columns="label"), before.obs.drop(columns="label"))
    pd.testing.assert_frame_equal(query.obs, before.obs)
    np.testing.assert_array_equal(query.X, before.X)
    # the rows that are asked for, in their order
    some = counterfactual(model, query, ["NK", "B"], 0.0, indices=[2, 0])
    assert list(some.obs_names) == ["c", "d"]
    assert list(some.obs["label"]) == ["NK", "B"]
    same = counterfactual(model, query, [own_labels(query)[i] for i in (2, 0)], 0.0, indices=[2, 0])
    np.testing.assert_allclose(flat(same, model), before.X[[2, 0]], atol=1e-4)
    masked = counterfactual(model, query, "B", 0.0, indices=np.array([False, True, True, False]))
    assert list(masked.obs_names) == ["b", "c"]


@each_model
def test_the_training_cells_are_what_is_moved_by_default(cls, model, cells):
    moved = counterfactual(model, conditions="B", noise_level=0.0)
    assert list(moved.obs_names) == list(cells.obs_names)
    given = counterfactual(model, cells, "B", 0.0)
    np.testing.assert_array_equal(flat(moved, model), flat(given, model))
    same = counterfactual(model, conditions=own_labels(cells), noise_level=0.0)
    np.testing.assert_allclose(flat(same, model), cells.X, atol=1e-4)


# ---- batches


@pytest.fixture(scope="module", params=MODELS, ids=lambda cls: cls.__name__)
def batch_model(request):
    adata = embeddings(80, 0)
    adata.X[(adata.obs["batch"] == "two").to_numpy()] += np.arange(8)
    adata.obs["label"] = adata.obs["type"]
    return fit(request.param, adata, 1, {"labels_key": "label", "batch_key": "batch"})


def test_batches_are_put_back_where_they_were(batch_model):
    adata = batch_model.adata
    one, two = (sample(batch_model, 30, "B", batch=batch, seed=1) for batch in ("one", "two"))
    seen = adata[batch_model.train_indices_]  # those that the loss is watched on do not count
    centre = [seen.X[(seen.obs["batch"] == b).to_numpy()].mean(axis=0) for b in ("one", "two")]
    np.testing.assert_allclose(two.X - one.X, np.tile(centre[1] - centre[0], (30, 1)), atol=1e-4)
    assert set(one.obs["batch"]) == {"one"}
    as_trained = sample(batch_model, 200)
    assert list(as_trained.obs["batch"].cat.categories) == ["one", "two"]
    share = (adata.obs["batch"] == "one").mean()
    assert (as_trained.obs["batch"] == "one").mean() == pytest.approx(share, abs=0.1)


def test_batches_do_not_show_in_what_is_made_of_a_cell(batch_model):
    """The same cell in either batch has the same representation and prediction, and stays in its batch."""
    adata = batch_model.adata
    seen = adata[batch_model.train_indices_]
    shift = np.subtract(*(seen.X[(seen.obs["batch"] == b).to_numpy()].mean(axis=0) for b in ("two", "one")))
    one = adata[adata.obs["batch"] == "one"][:5].copy()
    two = one.copy()
    two.X, two.obs["batch"] = one.X + shift, "two"
    for method in (batch_model.get_latent_representation, lambda a: batch_model.predict(a, soft=True)):
        np.testing.assert_allclose(method(two), method(one), atol=1e-3)
    moved = [counterfactual(batch_model, a, "T", 0.5) for a in (one, two)]
    np.testing.assert_allclose(moved[1].X - moved[0].X, np.tile(shift, (5, 1)), atol=1e-3)
    assert set(moved[1].obs["batch"]) == {"two"}


# ---- saving and loading


@pytest.mark.parametrize("kind", ["embeddings", "images"])
@each_model
def test_a_reloaded_model_is_the_same(cls, models, image_models, kind, tmp_path):
    model, label = (models[cls], "T") if kind == "embeddings" else (image_models[cls], "right")
    model.save(tmp_path / "m")
    again, bare = cls.load(tmp_path / "m", model.adata), cls.load(tmp_path / "m")
    assert again.is_trained
    for key, value in model.module.state_dict().items():
        assert value.equal(again.module.state_dict()[key]), key
    expected, *both = (sample(m, 5, label, 2.0, WAYS[cls][-1], n_steps=3) for m in (model, again, bare))
    for made in both:
        np.testing.assert_array_equal(features(made, model), features(expected, model))
        pd.testing.assert_frame_equal(made.obs, expected.obs)
        assert made.uns["sclatent"] == expected.uns["sclatent"]
    (soft, z, moved), *both = (
        (
            m.predict(query, indices=range(5), soft=True),
            m.get_latent_representation(query, range(5)),
            features(counterfactual(m, query, label, indices=range(5), n_steps=3), model),
        )
        for m, query in ((model, None), (again, None), (bare, model.adata[:20].copy()))
    )
    for other_soft, other_z, other_moved in both:
        pd.testing.assert_frame_equal(other_soft, soft)
        np.testing.assert_array_equal(other_z, z)
        np.testing.assert_array_equal(other_moved, moved)
    assert list(bare.history) == list(model.history)
    for key, frame in model.history.items():
        pd.testing.assert_frame_equal(bare.history[key], frame)
    for method in (
        bare.predict,
        bare.get_latent_representation,
        lambda: bare.counterfactual(conditions=label),
        bare.train,
    ):
        with pytest.raises(ValueError, match="adata is missing"):
            method()
    with pytest.raises(ValueError, match=rf"holds a {cls.__name__}, not a .*: use {cls.__name__}\.load"):
        MODELS[MODELS.index(cls) - 1].load(tmp_path / "m")


@each_model
def test_a_reloaded_model_can_be_trained_further(cls, tmp_path):
    adata = embeddings(60, 0)
    model = fit(cls, adata, 1, {"labels_key": "type"})
    model.save(tmp_path / "m")
    again = cls.load(tmp_path / "m", adata)
    for m in (model, again):
        m.train(2, stage="diffusion", seed=3, **QUIET)
    np.testing.assert_array_equal(sample(model, 5, "T").X, sample(again, 5, "T").X)
    assert len(again.history["diffusion_loss_train"]) == 3


@each_model
def test_large_images_go_in_and_come_out(cls):
    """A few are computed together, whatever batch_size is, and memory does not grow with the square of the pixels."""
    size = 256
    x, y = images(4, 0, size)
    parts = {"width": 16} if cls is JointLDM else {"patch": 8, "denoiser_width": 8}
    model = fit(cls, with_images(x, y), 1, {"obsm_key": "image", "labels_key": "side"}, **parts)
    assert model.domain.at_most(1024) == 4_000_000 // size**2
    assert model.sample(2, "left", n_steps=1, progress_bar=False).obsm["image"].shape == (2, size, size)
    if cls is not DAED:  # which asks every pixel for every label
        assert set(model.predict()) <= set(SIDES)


# ---- training


class Interrupt(Callback):
    """Raises in an epoch of a stage."""

    def __init__(self, stage: str, epoch: int) -> None:
        self.at = (stage, epoch)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (pl_module.name, trainer.current_epoch) == self.at:
            raise RuntimeError("interrupted")


@each_model
def test_an_interrupted_training_resumes_to_the_same_weights(cls, tmp_path):
    adata = embeddings(60, 0)
    setup = {"labels_key": "label", "unlabeled_category": "not looked at"}
    reference = untrained(cls, adata, setup)
    reference.train(3, batch_size=32, **QUIET)
    settings = {"max_epochs": 3, "batch_size": 32, "checkpoint_dir": tmp_path / "c", **QUIET}
    for stage in cls.STAGES:
        with pytest.raises(RuntimeError, match="interrupted"):
            untrained(cls, adata, setup).train(callbacks=[Interrupt(stage, 1)], **settings)
    model = untrained(cls, adata, setup)
    model.train(**settings)
    different = [k for k, v in reference.module.state_dict().items() if not v.equal(model.module.state_dict()[k])]
    assert not different
    for key, frame in reference.history.items():
        pd.testing.assert_frame_equal(model.history[key], frame)
    assert not (tmp_path / "c").exists()


@each_model
def test_the_history_has_a_curve_a_stage(cls, model):
    curves = {f"{stage}_loss_{split}" for stage in cls.STAGES for split in ("train", "validation")}
    assert curves <= set(model.history)
    for key, frame in model.history.items():
        values = frame[key].to_numpy()
        assert np.isfinite(values).all()
        assert frame.index.name == "epoch"
    # these cells are Gaussian under their label, which is where the diffusion of DAED and JointLDM starts
    stage = {DAED: "denoiser", JointDiffusion: "diffusion", JointLDM: "autoencoder"}[cls]
    watched = model.history[f"{stage}_loss_validation"][f"{stage}_loss_validation"]
    assert watched.iloc[-1] < watched.iloc[0]
    if cls is not DAED:
        cross_entropy = model.history["diffusion_cross_entropy_train"]["diffusion_cross_entropy_train"]
        assert cross_entropy.iloc[-5:].mean() < 0.8 * math.log(3)


@each_model
def test_the_seed_decides(cls):
    adata = embeddings(60, 0)
    one, same, other = (fit(cls, adata, 1, {"labels_key": "type"}, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(sample(one, 5).X, sample(same, 5).X)
    assert (sample(one, 5).X != sample(other, 5).X).any()


@each_model
def test_representations_tell_types_apart(cls, model, cells, held_out):
    train, test = (model.get_latent_representation(a) for a in (cells, held_out))
    assert train.shape == (400, train.shape[1])
    probe = LogisticRegression(max_iter=2_000).fit(train, cells.obs["type"])
    assert probe.score(test, held_out.obs["type"]) > 0.85
    activations = model.get_activations(held_out, indices=[3, 1], noise_level=0.5)
    assert activations.shape == (2, 2, 32)
    again = model.get_activations(held_out, indices=[3, 1], noise_level=0.0)
    assert np.abs(activations - again).max() > 1e-3


# ---- whole numbers


@each_model
def test_whole_numbers_are_rounded_and_not_cut_off(cls):
    """Those of a model of the same values that does not know that they are whole."""
    adata = embeddings(60, 0)
    adata.X = (2 * adata.X - 20).round().astype(np.int16)
    whole, real = (
        fit(cls, AnnData(x, obs=adata.obs), 1, {"labels_key": "type"}) for x in (adata.X, adata.X.astype("f4"))
    )
    made = sample(whole, 100)
    assert made.X.dtype == np.int16
    expected = sample(real, 100).X.clip(adata.X.min(), adata.X.max()).round()
    np.testing.assert_array_equal(made.X, expected)
    np.testing.assert_array_equal(counterfactual(whole, adata, adata.obs["type"], 0.0).X, adata.X)


# ---- DAED: denoising and the likelihood


def error(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.square(x.astype(float) - y.astype(float)).mean())


def noisy(adata: AnnData, model, seed: int = 0) -> AnnData:
    """Cells with as much noise as the model is made to remove."""
    other = adata.copy()
    share = model.module.autoencoder.noise_level
    x = features(other, model).astype(np.float32)
    sd = math.sqrt(share / (1 - share)) * model.module.autoencoder.scale.sd.numpy()
    x = x + np.broadcast_to(sd, x.shape) * np.random.default_rng(seed).standard_normal(x.shape).astype(np.float32)
    key = model.registry["setup_args"]["obsm_key"]
    if key is None:
        other.X = x
    else:
        other.obsm[key] = x
    return other


def test_denoising_lowers_the_error(models, held_out):
    model = models[DAED]
    spoilt = noisy(held_out, model)
    clean = model.denoise(spoilt, progress_bar=False)
    assert error(clean.X, held_out.X) < 0.9 * error(spoilt.X, held_out.X)
    assert list(clean.obs_names) == list(held_out.obs_names)
    assert list(clean.obs["type"]) == list(held_out.obs["type"])
    assert clean.uns["sclatent"]["method"] == "denoise"
    some = model.denoise(spoilt, indices=[4, 2], batch_size=1, progress_bar=False)
    np.testing.assert_allclose(some.X, clean.X[[4, 2]], atol=1e-5)
    assert list(some.obs_names) == list(held_out.obs_names[[4, 2]])


def test_denoising_works_on_other_data_too(image_models):
    """Spots above and below, two of them, and images that are brighter than any of training."""
    model, own = image_models[DAED], more_images(DAED).obsm["image"]
    across = own.transpose(0, 2, 1, 3)
    bright = across + across[::-1] // 2
    assert bright.max() > model.domain.value_range[1] + 20
    for clean, gain in ((own, 0.4), (across // 2 + across[::-1] // 2, 0.6), (bright, 0.95)):
        spoilt = noisy(with_images(clean, np.repeat("left", 60)), model)
        denoised = model.denoise(spoilt, progress_bar=False).obsm["image"]
        assert denoised.dtype == np.uint8
        assert error(denoised, clean) < gain * error(spoilt.obsm["image"], clean)


@pytest.fixture(scope="module")
def gaussian() -> tuple:
    """Cells of a Gaussian that is known, and a model of them."""
    mean, covariance = np.array([5.0, 0, 0, -3]), np.diag([1.0, 1, 0.25, 0.25])
    covariance[0, 1] = covariance[1, 0] = 0.8
    law = multivariate_normal(mean, covariance)
    return law, fit(DAED, AnnData(law.rvs(500, random_state=0).astype(np.float32)), 30, lr=5e-3)


def test_the_elbo_is_below_the_likelihood_and_near_to_it(gaussian):
    law, model = gaussian
    x = law.rvs(500, random_state=1).astype(np.float32)
    elbo = model.get_elbo(AnnData(x), n_draws=32)
    true = law.logpdf(x).mean()
    assert true - 2.0 < elbo["elbo"] < true + 0.1
    assert elbo["elbo"] == pytest.approx(elbo["reconstruction"] + elbo["prior"] + elbo["entropy"])
    again = model.get_elbo(AnnData(x), n_draws=32, batch_size=100)
    assert again["elbo"] == pytest.approx(elbo["elbo"], abs=1e-3)
    assert model.get_elbo(AnnData(x), n_draws=32, seed=1)["elbo"] == pytest.approx(elbo["elbo"], abs=0.3)


@pytest.mark.parametrize("kind", ["embeddings", "images"])
def test_the_elbo_is_in_units_of_the_features(kind):
    adata = (
        embeddings(60, 0) if kind == "embeddings" else AnnData(images(60, 0, 6)[0].reshape(60, -1).astype(np.float32))
    )
    setup = {} if kind == "embeddings" else {"image_shape": (6, 6)}
    one, ten = fit(DAED, adata, 1, setup), fit(DAED, AnnData(10 * adata.X), 1, setup)
    difference = one.get_elbo()["elbo"] - ten.get_elbo()["elbo"]
    assert difference == pytest.approx(adata.n_vars * math.log(10), abs=0.1)


def test_the_elbo_tells_cells_like_those_of_training_from_others(gaussian, models, held_out, image_models):
    law, model = gaussian
    x = law.rvs(200, random_state=1).astype(np.float32)
    like = model.get_elbo(AnnData(x))["elbo"]
    for other in (x + 3, x[:, ::-1].copy(), 3 * (x - x.mean(axis=0)) + x.mean(axis=0)):
        assert model.get_elbo(AnnData(other.astype(np.float32)))["elbo"] < like - 1
    shuffled = held_out.copy()
    shuffled.X = np.random.default_rng(0).permuted(held_out.X, axis=0)  # the same values, cell by cell in disorder
    assert models[DAED].get_elbo(shuffled)["elbo"] < models[DAED].get_elbo(held_out)["elbo"] - 1
    own = more_images(DAED)
    upside = own.copy()
    upside.obsm["image"] = 255 - own.obsm["image"]
    assert image_models[DAED].get_elbo(upside)["elbo"] < image_models[DAED].get_elbo(own)["elbo"]
