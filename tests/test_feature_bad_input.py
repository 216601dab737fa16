"""Bad images, embeddings and labels get an error that names them and says what to do, and nothing is changed."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent.model import DAED, JointDiffusion, JointLDM

pytestmark = pytest.mark.usefixtures("few_steps")

MODELS = [DAED, JointDiffusion, JointLDM]
each_model = pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
QUIET = {"accelerator": "cpu", "progress_bar": False}
SMALL = {"denoiser_width": 16, "denoiser_blocks": 1, "n_heads": 2}


@pytest.fixture
def cells() -> AnnData:
    """Embeddings in X, in a layer and in obsm, grey images, and labels of a part of the cells; one for each test."""
    rng = np.random.default_rng(0)
    adata = AnnData(
        rng.standard_normal((30, 6)).astype(np.float32),
        obs=pd.DataFrame({"type": np.array(["B", "T", "unknown"])[np.arange(30) % 3]}, index=list(map(str, range(30)))),
    )
    adata.obs["batch"] = np.array(["one", "two"])[np.arange(30) % 2]
    adata.layers["emb"] = adata.X.copy()
    adata.obsm["X_emb"] = adata.X.copy()
    adata.obsm["image"] = rng.integers(10, 200, (30, 8, 8)).astype(np.uint8)
    adata.obsm["flat"] = adata.obsm["image"].reshape(30, -1)
    return adata


def assert_untouched(adata: AnnData, before: AnnData) -> None:
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    for name in ("uns", "obsm", "layers"):
        assert list(getattr(adata, name)) == list(getattr(before, name)), name
    assert (adata.X is None) == (before.X is None)
    for one, other in [
        *((adata.obsm[key], before.obsm[key]) for key in before.obsm),
        *((adata.layers[key], before.layers[key]) for key in before.layers),
        *([(adata.X, before.X)] if adata.X is not None else []),
    ]:
        assert one.dtype == other.dtype
        assert one.dtype == object or np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


# ---- setup_anndata


def nothing(adata: AnnData) -> None:
    pass


def images(shape: tuple[int, ...], dtype: type = np.uint8):
    def spoil(adata: AnnData) -> None:
        adata.obsm["image"] = np.ones((30, *shape), dtype=dtype)

    return spoil


def of_mixed_size(adata: AnnData) -> None:
    adata.obsm["image"] = np.empty((30, 1), dtype=object)
    for i in range(30):
        adata.obsm["image"][i, 0] = np.zeros((8 + i % 2, 8 + i % 2), dtype=np.uint8)


def value(key: str, bad: float):
    def spoil(adata: AnnData) -> None:
        if key == "X":
            adata.X[7, 2] = bad
        else:
            x = adata.obsm[key].astype(np.float32)
            x.reshape(30, -1)[7, 2] = bad
            adata.obsm[key] = x

    return spoil


def labels(new):
    def spoil(adata: AnnData) -> None:
        adata.obs["type"] = new(adata.obs["type"]) if callable(new) else new

    return spoil


def missing_batch(adata: AnnData) -> None:
    adata.obs["batch"] = adata.obs["batch"].where(np.arange(30) > 0)


def no_x(adata: AnnData) -> None:
    adata.X = None


IMAGE = {"obsm_key": "image"}
LABELS = {"labels_key": "type"}
SETUP = {
    "not square": (images((8, 9)), IMAGE, ValueError, r"obsm\['image'\] has images of 8 x 9 pixels: square.*crop"),
    "not square, colour": (images((9, 8, 3)), IMAGE, ValueError, "images of 9 x 8 pixels: square.*crop or pad"),
    "channels first": (images((3, 8, 8)), IMAGE, ValueError, "looks like channels first.*np.moveaxis"),
    "mixed size": (of_mixed_size, IMAGE, ValueError, r"adata.obsm\['image'\] holds objects.*one size; resize them and"),
    "too many axes": (images((2, 8, 8, 3)), IMAGE, ValueError, r"has shape \(30, 2, 8, 8, 3\): embeddings .*images"),
    "no pixels": (images((0, 0)), IMAGE, ValueError, r"has shape \(30, 0, 0\): there must be some cells and some"),
    "words": (images((6,), "<U3"), IMAGE, ValueError, r"obsm\['image'\] is of type <U3: numbers were expected"),
    "NaN": (value("X", np.nan), {}, ValueError, "adata.X has values that are NaN .*first in row.*: remove"),
    "infinite": (value("X_emb", np.inf), {"obsm_key": "X_emb"}, ValueError, r"obsm\['X_emb'\] has values.*remove"),
    "NaN in an image": (value("image", np.nan), IMAGE, ValueError, r"adata.obsm\['image'\] has values that are NaN"),
    "flat uint8": (nothing, {"obsm_key": "flat"}, ValueError, r"looks like flat images \(64 values.*give image_shape="),
    "image_shape that does not fit": (
        nothing, {"obsm_key": "flat", "image_shape": (8, 9)}, ValueError,
        r"image_shape=\(8, 9\) does not fit adata.obsm\['flat'\], which has 64 values per cell: \(height, width\) or",
    ),
    "image_shape that is not square": (
        nothing, {"obsm_key": "flat", "image_shape": (4, 16)}, ValueError, "images of 4 x 16 pixels: square",
    ),
    "image_shape that is a number": (
        nothing, {"obsm_key": "flat", "image_shape": 8}, ValueError, r"image_shape=\(8,\) does not fit.*\(height, w",
    ),
    "image_shape of uns that does not fit": (
        lambda a: a.uns.__setitem__("image_shape", (9, 9)), {"obsm_key": "flat"}, ValueError,
        r"image_shape=\(9, 9\) does not fit adata.obsm\['flat'\]",
    ),
    "two places": (
        nothing, {"obsm_key": "X_emb", "layer": "emb"}, ValueError,
        "obsm_key='X_emb' and layer='emb': give one of them",
    ),
    "no obsm": (nothing, {"obsm_key": "X_dino"}, KeyError, "obsm_key='X_dino' is not in adata.obsm, .*'X_emb'"),
    "no layer": (nothing, {"layer": "raw"}, KeyError, r"layer='raw' is not in adata.layers, which has \['emb'\]"),
    "no X": (no_x, {}, ValueError, "adata.X is empty: give obsm_key= or layer="),
    "no labels column": (
        nothing, {"labels_key": "phenotype"}, KeyError,
        "labels_key: 'phenotype' is not a column of adata.obs, which has .*'type'",
    ),
    "no batch column": (nothing, {"batch_key": "plate"}, KeyError, "batch_key: 'plate' is not a column of adata.obs"),
    "one label": (
        labels("B"), LABELS, ValueError,
        r"labels_key: adata.obs\['type'\] has only the label 'B'; at least 2 .* Leave labels_key out",
    ),
    "one label and unlabelled cells": (
        labels(lambda c: c.where(c != "T", "unknown")), LABELS, ValueError, "has only the label 'B'; at least 2",
    ),
    "no labelled cell": (
        labels("unknown"), LABELS, ValueError,
        r"labels_key: every cell of adata.obs\['type'\] is 'unknown': label some of them, or leave labels_key out",
    ),
    "unlabelled cells of another name": (
        labels("no idea"), {**LABELS, "unlabeled_category": "no idea"}, ValueError, "every cell .* is 'no idea'",
    ),
    "missing labels": (
        labels(lambda c: c.where(c != "unknown")), LABELS, ValueError,
        r"labels_key: adata.obs\['type'\] is missing for 10 cells: set it to 'unknown', the unlabeled_category.*remove",
    ),
    "missing batch": (
        missing_batch, {"batch_key": "batch"}, ValueError,
        r"batch_key: adata.obs\['batch'\] is missing for 1 cells: fill it in or remove",
    ),
    "an argument that is misspelt": (nothing, {"label_key": "type"}, TypeError, "label_key"),
}  # fmt: skip


def test_a_category_that_may_be_misspelt_is_asked_about():
    adata = query()
    adata.obs["type"] = ["B", "T", "Unknown"]
    with pytest.warns(
        UserWarning, match="has the label 'Unknown', and no cell is 'unknown'.*give unlabeled_category='Un"
    ):
        JointLDM.setup_anndata(adata, labels_key="type")


@pytest.mark.parametrize("case", SETUP)
def test_setup_refuses_and_changes_nothing(cells, case):
    spoil, arguments, error, message = SETUP[case]
    spoil(cells)
    before = cells.copy()
    with pytest.raises(error, match=message):
        JointLDM.setup_anndata(cells, **arguments)
    assert_untouched(cells, before)


@each_model
def test_every_model_checks_alike(cls, cells):
    with pytest.raises(ValueError, match="give image_shape"):
        cls.setup_anndata(cells, obsm_key="flat")
    cls.setup_anndata(cells, obsm_key="X_emb", labels_key="type")
    with pytest.raises(KeyError, match="labels_key: 'phenotype'"):
        cls.setup_anndata(cells, labels_key="phenotype")
    assert cls(cells, **SMALL).conditions.keys == ["type"]  # the earlier setup still holds


@each_model
def test_a_model_wants_an_anndata_that_was_set_up(cls, cells):
    with pytest.raises(ValueError, match=rf"adata is missing: give an AnnData .*{cls.__name__}\.setup_anndata"):
        cls()
    with pytest.raises(ValueError, match="setup_anndata"):
        cls(cells, **SMALL)


@pytest.mark.parametrize(
    ("cls", "obsm_key", "arguments", "message"),
    [
        (DAED, "X_emb", {"noise_level": 0.0}, "noise_level=0.0 must be above 0 and below 1, such as 0.1"),
        (DAED, "X_emb", {"noise_level": 1.0}, "noise_level=1.0 must be above 0 and below 1"),
        (DAED, "X_emb", {"noise_level": float("nan")}, "noise_level=nan must be above 0 and below 1"),
        (JointDiffusion, "image", {"patch": 0}, "patch=0 must be at least 1"),
        (JointDiffusion, "image", {"denoiser_width": 30}, "denoiser_width=30 must be a multiple of 8"),
        (JointDiffusion, "X_emb", {"denoiser_width": 30, "n_heads": 4}, "width=30 must be a multiple of n_heads=4"),
        (JointLDM, "image", {}, "Images of 8 x 8 pixels: 28 to 256 .*resize them, or embed them by .*embed_images"),
    ],
)
def test_a_model_names_the_bad_argument(cells, cls, obsm_key, arguments, message):
    cls.setup_anndata(cells, obsm_key=obsm_key)
    with pytest.raises(ValueError, match=message):
        cls(cells, **{**SMALL, **arguments})


@each_model
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stage": "decoder"}, ValueError, "'decoder' is no stage of training: use .*'diffusion'"),
        ({"max_epochs": 0}, ValueError, "max_epochs=0 must be at least 1"),
        ({"train_size": 0}, ValueError, "train_size=0 must be above 0"),
        ({"plan_kwargs": {"diffusion": {"learning_rate": 1e-3}}}, TypeError, "learning_rate"),
    ],
)
def test_train_refuses_before_any_work(cls, cells, arguments, error, message):
    cls.setup_anndata(cells, labels_key="type")
    model = cls(cells, **SMALL)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    with pytest.raises(error, match=message):
        model.train(**{"max_epochs": 1, **QUIET, **arguments})
    assert all(value.equal(before[key]) for key, value in model.module.state_dict().items())


@each_model
def test_nothing_can_be_asked_of_an_untrained_model(cls, cells):
    cls.setup_anndata(cells, labels_key="type")
    model = cls(cells, **SMALL)
    methods = {
        "sample": {"n_samples": 3}, "counterfactual": {"conditions": "B"}, "predict": {},
        "get_latent_representation": {}, "get_activations": {},
        **({"denoise": {}, "get_elbo": {}} if cls is DAED else {}),
    }  # fmt: skip
    for method, arguments in methods.items():
        with pytest.raises(RuntimeError, match=r"needs a trained \w+: call train\(\) first"):
            getattr(model, method)(**arguments)


# ---- trained models


@pytest.fixture(scope="module")
def trained() -> dict:
    """A model of embeddings of every class, and one of images, all of one epoch."""
    rng = np.random.default_rng(0)
    adata = AnnData(rng.standard_normal((30, 6)).astype(np.float32))
    adata.obs["type"] = np.array(["B", "T", "unknown"])[np.arange(30) % 3]
    adata.obs["batch"] = np.array(["one", "two"])[np.arange(30) % 2]
    adata.obsm["image"] = rng.integers(10, 200, (30, 64)).astype(np.uint8)
    models = {}
    for cls in MODELS:
        cls.setup_anndata(own := adata.copy(), labels_key="type", batch_key="batch")
        models[cls] = cls(own, **SMALL)
    JointDiffusion.setup_anndata(adata, obsm_key="image", image_shape=(8, 8), labels_key="type")
    models["images"] = JointDiffusion(adata, **SMALL)
    for model in models.values():
        model.train(1, **QUIET)
    return models


@pytest.fixture(scope="module")
def without_labels() -> dict:
    models = {}
    for cls in MODELS:
        adata = AnnData(np.random.default_rng(0).standard_normal((30, 6)).astype(np.float32))
        cls.setup_anndata(adata)
        models[cls] = cls(adata, **SMALL)
        models[cls].train(1, **QUIET)
    return models


WRONG = [
    ({"conditions": "NK"}, ValueError, r"conditions: 'NK' is no level of 'type', which has \['B', 'T'\]"),
    ({"conditions": "unknown"}, ValueError, r"conditions: 'unknown' is no level of 'type', which has \['B', 'T'\]"),
    ({"conditions": ["B", "NK", "T"]}, ValueError, "conditions: 'NK' is no level of 'type'"),
    ({"conditions": ["B"] * 2}, ValueError, "conditions has 2 entries, but 3 cells are asked for: give one per cell"),
    ({"guidance": "classifierfree"}, ValueError, "guidance='classifierfree' is not one that this .* has: use one of"),
    ({"guidance_weight": float("nan")}, ValueError, "guidance_weight=nan must be a finite number"),
    ({"guidance_weight": float("inf")}, ValueError, "guidance_weight=inf must be a finite number"),
    ({"guidance_weight": "strong"}, ValueError, "guidance_weight='strong' must be a finite number"),
    ({"guidance_weight": True}, ValueError, "guidance_weight=True must be a finite number"),
    ({"solver": "rk45"}, ValueError, "solver='rk45' is not known: use one of 'heun', 'euler', 'adaptive'"),
    ({"n_steps": 0}, ValueError, "n_steps=0 must be at least 1"),
    ({"batch_size": 0}, ValueError, "batch_size=0 must be at least 1"),
    ({"seed": -1}, ValueError, "seed=-1 must be a whole number of at least 0"),
]


@each_model
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        *WRONG,
        *(
            ({"n_samples": n}, ValueError, f"n_samples={n} must be a whole number of at least 1")
            for n in (0, -3, 2.5, None, True)
        ),
        ({"n_samples": None, "conditions": []}, ValueError, "n_samples=0 must be a whole number of at least 1"),
        ({"batch": "three"}, ValueError, r"batch: 'three' is no level of 'batch', which has \['one', 'two'\]"),
    ],
)
def test_sample_names_what_is_wrong(trained, cls, arguments, error, message):
    with pytest.raises(error, match=message):
        trained[cls].sample(**{"n_samples": 3, "progress_bar": False, **arguments})


@pytest.mark.parametrize(
    ("cls", "guidance"), [(DAED, "classifier"), (JointDiffusion, "classifier-free"), (DAED, "both")]
)
def test_guidance_that_a_model_does_not_have_is_refused(trained, cls, guidance):
    with pytest.raises(
        ValueError, match=rf"guidance='{guidance}' is not one that this {cls.__name__} has: use one of \["
    ):
        trained[cls].sample(3, "B", guidance=guidance)


@pytest.mark.parametrize(
    ("guidance", "weight", "message"),
    [
        ("both", {"classifier": 2.0}, "one for each of .'classifier-free', 'classifier'."),
        (
            "both",
            {"classifier-free": 1.0, "classifier": 2.0, "label": 1.0},
            "guidance_weight=.*'label': 1.0.*one number",
        ),
        (
            "both",
            {"classifier-free": 1.0, "classifier": float("nan")},
            "guidance_weight=.*nan.* must be a finite number",
        ),
        ("classifier", {"classifier-free": 1.0, "classifier": 2.0}, "guidance='classifier': give one number"),
        (None, {"classifier-free": 1.0, "classifier": 2.0}, "guidance='classifier-free': give one number"),
    ],
)
def test_a_weight_for_each_way_of_guidance_is_for_both_of_them(trained, guidance, weight, message):
    with pytest.raises(ValueError, match=message):
        trained[JointLDM].sample(3, "B", weight, guidance)


def query(**obs) -> AnnData:
    """Three cells as a user brings them."""
    rows = np.arange(18, dtype=np.float32).reshape(3, 6) / 10
    return AnnData(rows, obs=pd.DataFrame({"batch": ["one", "two", "one"], **obs}, index=list("abc")))


@each_model
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        *WRONG,
        ({"conditions": None}, ValueError, "conditions is missing: say where to move the cells"),
        (
            {"noise_level": -0.1},
            ValueError,
            r"noise_level=-0.1 must be between 0 \(cells move by the baseline alone\) and 1",
        ),
        ({"noise_level": 1.5}, ValueError, "noise_level=1.5 must be between 0 .* and 1"),
        ({"noise_level": float("nan")}, ValueError, "noise_level=nan must be between 0 .* and 1"),
        ({"inversion": "own"}, ValueError, "inversion='own' must be True or False"),
        ({"indices": [3]}, IndexError, r"indices=\[3\] must be rows of 3 cells: numbers from 0 to 2, or a mask"),
        ({"indices": []}, ValueError, r"indices=\[\] names no cell"),
    ],
)
def test_counterfactual_names_what_is_wrong(trained, cls, arguments, error, message):
    with pytest.raises(error, match=message):
        trained[cls].counterfactual(query(), **{"conditions": "B", "progress_bar": False, **arguments})


def narrow(adata: AnnData) -> AnnData:
    return adata[:, :5].copy()


def with_nan(adata: AnnData) -> AnnData:
    adata.X[1, 1] = np.nan
    return adata


def without_batch(adata: AnnData) -> AnnData:
    del adata.obs["batch"]
    return adata


def of_another_batch(adata: AnnData) -> AnnData:
    adata.obs["batch"] = "three"
    return adata


QUERIES = {
    "width": (narrow, ValueError, r"adata.X has features of shape \(5,\): this model was trained on \(6,\)"),
    "NaN": (with_nan, ValueError, "adata.X has values that are NaN .*: remove or replace them"),
    "no batch": (without_batch, KeyError, "no column 'batch', the batch_key of this model"),
    "batch": (of_another_batch, ValueError, r"'three' is no level of 'batch', which has \['one', 'two'\]"),
}


@pytest.mark.parametrize("case", QUERIES)
@each_model
def test_cells_that_do_not_fit_are_refused_and_not_changed(trained, cls, case, tmp_path):
    spoil, error, message = QUERIES[case]
    model, adata = trained[cls], spoil(query())
    before = adata.copy()
    model.save(tmp_path / "m")
    for method in (
        model.predict, model.get_latent_representation, lambda a: model.counterfactual(a, "B"),
        lambda a: cls.load(tmp_path / "m", a), *([model.denoise, model.get_elbo] if cls is DAED else []),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            method(adata)
    assert_untouched(adata, before)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.ones((3, 9, 9), dtype=np.uint8), ValueError, r"shape \(9, 9, 1\): this model was trained on \(8, 8, 1\)"),
        (
            np.ones((3, 8, 8, 3), dtype=np.uint8),
            ValueError,
            r"shape \(8, 8, 3\): this model was trained on \(8, 8, 1\)",
        ),
        (np.ones((3, 81), dtype=np.uint8), ValueError, r"shape \(81,\): this model was trained on \(8, 8, 1\)"),
        (np.ones((3, 8, 9), dtype=np.uint8), ValueError, "images of 8 x 9 pixels: square"),
        (np.array([["8 x 8"], ["9 x 9"], ["8 x 8"]], dtype=object), ValueError, "holds objects.*all have one size"),
        (None, KeyError, r"obsm_key='image' is not in adata.obsm, which has \[\]"),
    ],
    ids=["size", "colour", "flat", "not square", "mixed size", "missing"],
)
def test_images_that_do_not_fit_are_refused(trained, image, error, message):
    adata = query()
    if image is not None:
        adata.obsm["image"] = image
    for method in (trained["images"].predict, lambda a: trained["images"].counterfactual(a, "B")):
        with pytest.raises(error, match=message):
            method(adata)


def test_images_that_are_stored_in_another_way_are_taken(trained):
    """A model that was trained on flat images takes square ones, and floats for whole numbers."""
    model, adata = trained["images"], query()
    adata.obsm["image"] = model.adata.obsm["image"][:3].reshape(3, 8, 8)
    expected = model.predict(indices=range(3), soft=True).to_numpy()
    np.testing.assert_allclose(model.predict(adata, soft=True), expected, atol=1e-5)
    adata.obsm["image"] = adata.obsm["image"][..., None].astype(np.float64)
    np.testing.assert_allclose(model.predict(adata, soft=True), expected, atol=1e-5)


@each_model
def test_a_model_without_labels_says_so(without_labels, cls):
    model = without_labels[cls]
    for method in (lambda: model.sample(3, "B"), lambda: model.counterfactual(conditions="B")):
        with pytest.raises(
            ValueError, match=r"conditions='B': .* trained without conditions.*with condition_keys, or labels_key"
        ):
            method()
    with pytest.raises(
        RuntimeError, match=r"predict needs labels, .* trained without: set up the data with labels_key"
    ):
        model.predict()


@each_model
@pytest.mark.parametrize("level", [-0.1, 1.5, float("nan")])
def test_the_noise_level_of_activations_is_checked(trained, cls, level):
    with pytest.raises(ValueError, match=f"noise_level={level} must be between 0 .* and 1"):
        trained[cls].get_activations(noise_level=level)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("get_elbo", {"n_draws": 0}, "n_draws=0 must be at least 1"),
        ("get_elbo", {"n_steps": 1}, "n_steps=1 at least 2"),
        ("get_elbo", {"batch_size": 0}, "batch_size=0 must be at least 1"),
        ("predict", {"n_draws": 0}, "n_draws=0 must be at least 1"),
        ("denoise", {"batch_size": 0}, "batch_size=0 must be at least 1"),
    ],
)
def test_the_methods_of_daed_name_what_is_wrong(trained, method, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(trained[DAED], method)(**arguments)


@pytest.mark.parametrize("level", [-0.1, 1.0, float("nan")])
def test_joint_diffusion_cannot_denoise_what_is_noise_alone(trained, level):
    with pytest.raises(ValueError, match=rf"noise_level={level} must be at least 0 .* and below 1"):
        trained[JointDiffusion].denoise(noise_level=level)


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("name", ["n_tokens", "token_dim", "width"])
def test_sizes_of_joint_ldm_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be at least 1, or None for the default"):
        JointLDM(**{name: value})
