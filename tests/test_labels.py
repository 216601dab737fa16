"""Labels of cells: one that is not known is refused where labels are learned, and no hindrance where they are not."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent.datasets import simulate
from sclatent.model import DAED, SCLDM, JointDiffusion, JointLDM

pytestmark = pytest.mark.usefixtures("few_steps")

MODELS = [DAED, JointDiffusion, JointLDM]
each_model = pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
QUIET = {"accelerator": "cpu", "progress_bar": False}
TINY = {"denoiser_width": 8, "denoiser_blocks": 1, "n_heads": 2}
N = 24


def cells(labels=("B", "T", "unknown"), seed: int = 0) -> AnnData:
    adata = AnnData(np.random.default_rng(seed).standard_normal((N, 6)).astype(np.float32))
    adata.obs["type"] = [labels[i % len(labels)] for i in range(N)]
    adata.obs["plate"] = np.array(["one", "two"])[np.arange(N) // 3 % 2]
    return adata


@pytest.fixture(scope="module")
def trained() -> dict:
    models = {}
    for cls in MODELS:
        cls.setup_anndata(adata := cells(), labels_key="type", batch_key="plate")
        models[cls] = cls(adata, **TINY)
        models[cls].train(1, **QUIET)
    return models


def few_draws(cls: type) -> dict:
    """Arguments of predict for a test."""
    return {"n_draws": 2} if cls is DAED else {}


def loaded(trained: dict, cls: type, tmp_path, adata: AnnData):
    trained[cls].save(tmp_path / "m")
    return cls.load(tmp_path / "m", adata)


def with_typo(adata: AnnData) -> None:
    adata.obs["type"] = adata.obs["type"].replace({"T": "T "})


def with_gaps(adata: AnnData) -> None:
    adata.obs["type"] = adata.obs["type"].replace({"unknown": np.nan})


def without(adata: AnnData) -> None:
    adata.obs = adata.obs.rename(columns={"type": "Type"})


NOT_KNOWN = {
    "typo": (
        with_typo, ValueError,
        r"labels_key: adata.obs\['type'\] has labels that this model does not know, \['T '\]. It knows \['B', 'T'\]; "
        "cells without a label are 'unknown', the unlabeled_category",
    ),
    "gaps": (with_gaps, ValueError, r"labels_key: adata.obs\['type'\] is missing for 8 cells: set it to 'unknown'"),
    "no column": (without, KeyError, r"labels_key: 'type' is not a column of adata.obs, which has .*'Type'"),
}  # fmt: skip


# ---- in training


@pytest.mark.parametrize("case", NOT_KNOWN)
@each_model
def test_a_model_is_not_trained_further_on_labels_that_it_does_not_know(trained, cls, case, tmp_path):
    spoil, error, message = NOT_KNOWN[case]
    spoil(query := cells(seed=1))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = loaded(trained, cls, tmp_path, query)
    assert [str(w.message) for w in said if "cannot be trained further" in str(w.message)] or case == "no column"
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    with pytest.raises(error, match=message):
        model.train(1, **QUIET)
    assert all(value.equal(before[key]) for key, value in model.module.state_dict().items())
    assert model.sample(2, "B", progress_bar=False).n_obs == 2


@each_model
def test_labels_that_change_after_setting_up_are_noticed_in_training(cls):
    cls.setup_anndata(adata := cells(), labels_key="type")
    model = cls(adata, **TINY)
    with_typo(adata)
    with pytest.raises(ValueError, match=NOT_KNOWN["typo"][2]):
        model.train(1, **QUIET)
    assert not model.trained_stages


@each_model
def test_a_model_is_trained_further_on_other_cells(trained, cls, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = loaded(trained, cls, tmp_path, cells(("unknown", "T", "T", "B"), seed=1))
    model.train(1, **QUIET)
    assert model.trained_stages == set(cls.STAGES)


# ---- where no label is needed


@pytest.mark.parametrize("case", NOT_KNOWN)
@each_model
def test_other_labels_are_no_hindrance_where_none_is_needed(trained, cls, case):
    model, clean = trained[cls], cells(seed=1)
    NOT_KNOWN[case][0](query := cells(seed=1))
    alike = clean.copy()  # to a counterfactual, which asks what cells were, a label that is not known is none
    if case == "typo":
        alike.obs["type"] = clean.obs["type"].replace({"T": "unknown"})
    elif case == "no column":
        alike.obs["type"] = "unknown"
    methods = {
        "predict": lambda a: model.predict(a, **few_draws(cls)),
        "get_latent_representation": model.get_latent_representation,
        "get_activations": model.get_activations,
        **({"get_elbo": lambda a: model.get_elbo(a, n_draws=1, n_steps=2)} if cls is DAED else {}),
    }
    for name, method in methods.items():
        np.testing.assert_equal(method(query), method(clean), err_msg=name)
    moved, expected = (model.counterfactual(a, "T", progress_bar=False) for a in (query, alike))
    np.testing.assert_array_equal(moved.X, expected.X)
    assert set(moved.obs["type"]) == {"T"}


@each_model
def test_obs_works_as_it_is_where_cells_are_asked_for(trained, cls):
    obs = cells(seed=1).obs[["type"]]
    made = trained[cls].sample(conditions=obs, n_steps=1, progress_bar=False).obs["type"]
    assert made.astype(object).where(made.notna(), "unknown").tolist() == obs["type"].tolist()
    moved = trained[cls].counterfactual(cells(seed=1), obs, n_steps=1, progress_bar=False).obs["type"]
    assert moved.isna().tolist() == (obs["type"] == "unknown").tolist()
    with pytest.raises(ValueError, match="conditions: 'T ' is no level of 'type'"):
        trained[cls].sample(conditions=obs.replace({"T": "T "}), progress_bar=False)


# ---- batches and conditions of a query


@each_model
def test_a_missing_batch_is_not_that_of_the_last_cell(trained, cls):
    query = cells(seed=1)
    query.obs["plate"] = query.obs["plate"].where(np.arange(N) > 0)
    for method in (trained[cls].predict, lambda a: trained[cls].counterfactual(a, "T", progress_bar=False)):
        with pytest.raises(ValueError, match=r"batch_key: adata.obs\['plate'\] is missing for 1 cells"):
            method(query)


@pytest.fixture(scope="module")
def counts() -> tuple[SCLDM, AnnData]:
    adata = simulate(N, 12, cell_types=["B", "T"], n_batches=2, library_size=100, seed=0)
    SCLDM.setup_anndata(adata, condition_keys=["cell_type", "condition"], batch_key="batch")
    model = SCLDM(adata, n_tokens=2, token_dim=4, width=8, n_blocks=1, **TINY)
    model.train(1, **QUIET)
    return model, adata


def test_a_missing_batch_of_counts_is_refused(counts):
    model, query = counts[0], counts[1].copy()
    query.obs["batch"] = query.obs["batch"].where(np.arange(N) > 0)
    for method in (
        model.get_normalized_expression,
        lambda a: model.counterfactual(a, {"condition": "control"}, progress_bar=False),
    ):
        with pytest.raises(ValueError, match=r"batch_key: adata.obs\['batch'\] is missing for 1 cells"):
            method(query)


def test_a_column_that_may_be_misspelt_is_asked_about(counts):
    model, query = counts[0], counts[1].copy()
    query.obs = query.obs.rename(columns={"cell_type": "Cell_Type"})
    asked = "has no column 'cell_type', so that this condition is null, but 'Cell_Type': rename it if"
    with pytest.warns(UserWarning, match=f"adata.obs {asked}"):
        model.counterfactual(query, {"condition": "control"}, progress_bar=False)
    with pytest.warns(UserWarning, match=f"conditions {asked}"):
        model.sample(conditions=query.obs, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.sample(conditions=counts[1].obs[["condition"]], progress_bar=False)


# ---- setting up


@pytest.mark.parametrize(
    ("labels", "unlabeled", "levels"),
    [
        ((-1, 0, 1), -1, [0, 1]),
        ((-1, 0, 1), -1.0, [0, 1]),
        ((-1, 0, 1), np.int64(-1), [0, 1]),
        ((-1.0, 0.0, 1.0), -1, [0.0, 1.0]),
        ((-1.0, 0.5, 1.5), -1, [0.5, 1.5]),
        (("-1", "0", "1"), "-1", ["0", "1"]),
    ],
)
@pytest.mark.parametrize("make", [list, pd.Categorical], ids=["plain", "categories"])
def test_numbers_are_labels_and_minus_one_is_none(labels, unlabeled, levels, make, tmp_path):
    adata = cells(labels)
    adata.obs["type"] = make(adata.obs["type"])
    JointDiffusion.setup_anndata(adata, labels_key="type", unlabeled_category=unlabeled)
    model = JointDiffusion(adata, **TINY)
    model.save(tmp_path / "m")
    for one in (model, JointDiffusion.load(tmp_path / "m", adata)):
        assert one.conditions.levels["type"] == levels
        assert [type(level) for level in one.conditions.levels["type"]] == [type(level) for level in levels]
        assert (one._training_rows().conditions[:, 0] == np.tile([-1, 0, 1], N // 3)).all()


@each_model
def test_labels_that_are_numbers_are_asked_for_and_predicted(cls, tmp_path):
    cls.setup_anndata(adata := cells((-1, 0, 1)), labels_key="type", unlabeled_category=-1)
    model = cls(adata, **TINY)
    model.train(1, **QUIET)
    adata.obs["predicted"] = model.predict(**few_draws(cls))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert set(ad.read_h5ad(tmp_path / "cells.h5ad").obs["predicted"]) <= {0, 1}
    assert set(model.sample(2, 1, progress_bar=False).obs["type"]) == {1}
    assert model.sample(conditions=[1, 0], progress_bar=False).obs["type"].tolist() == [1, 0]
    assert set(model.counterfactual(conditions=0, progress_bar=False).obs["type"]) == {0}


@pytest.mark.parametrize("value", [None, float("nan"), ["unknown"], b"unknown"])
@each_model
def test_an_unlabeled_category_that_no_cell_can_have_is_refused(cls, value):
    with pytest.raises(ValueError, match=r"unlabeled_category=.* must be text, a number or a boolean"):
        cls.setup_anndata(cells(), labels_key="type", unlabeled_category=value)


def test_missing_numbers_are_told_a_number_to_be_set_to():
    adata = cells()
    adata.obs["type"] = pd.array([0, 1, None] * (N // 3), dtype="Int64")
    with pytest.raises(ValueError, match=r"is missing for 8 cells: set it to a number that is no label, such as -1"):
        JointLDM.setup_anndata(adata, labels_key="type")


@pytest.mark.parametrize(
    ("unlabeled", "message"),
    [
        ("unknwon", "has the label 'unknown', and no cell is 'unknwon', .*give unlabeled_category='unknown'"),
        ("Unknown", "has the label 'unknown', and no cell is 'Unknown', .*give unlabeled_category='unknown'"),
        ("?", r"No cell of adata.obs\['type'\] is '\?', the unlabeled_category: all cells count as labelled, with the"),
        (-1, r"No cell of adata.obs\['type'\] is -1, the unlabeled_category"),
    ],
)
def test_a_category_that_no_cell_has_is_asked_about(unlabeled, message):
    with pytest.warns(UserWarning, match=message):
        JointLDM.setup_anndata(cells(), labels_key="type", unlabeled_category=unlabeled)


def test_nothing_is_asked_where_all_cells_have_labels():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        JointLDM.setup_anndata(cells(("B", "T", "NK")), labels_key="type")
