"""Warnings point at the line of the user, by whichever way they come."""

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent.datasets import simulate
from sclatent.model import SCLDM, JointDiffusion, JointLDM

QUIET = {"accelerator": "cpu", "progress_bar": False}
TINY = {"denoiser_width": 8, "denoiser_blocks": 1, "n_heads": 2}
N = 24


def counts() -> AnnData:
    return simulate(N, 12, cell_types=["B", "T"], n_batches=2, library_size=100, seed=0)


def embeddings(labels: tuple = ("B", "T", "unknown")) -> AnnData:
    adata = AnnData(np.random.default_rng(0).standard_normal((N, 6)).astype(np.float32))
    adata.obs["type"] = [labels[i % len(labels)] for i in range(N)]
    adata.obs["dose"] = np.arange(N) % 2
    return adata


@pytest.fixture(scope="module")
def model() -> JointLDM:
    JointLDM.setup_anndata(adata := embeddings(), labels_key="type", condition_keys="dose")
    model = JointLDM(adata, **TINY)
    model.train(1, **QUIET)
    return model


def renamed(adata: AnnData, key: str) -> AnnData:
    adata.obs = adata.obs.rename(columns={key: key.title()})
    return adata


def with_level(adata: AnnData, key: str, level: str) -> AnnData:
    adata.obs[key] = adata.obs[key].astype(object)
    adata.obs.iloc[0, adata.obs.columns.get_loc(key)] = level
    return adata


def copied(adata: AnnData, key: str) -> AnnData:
    adata.obs["copy"] = adata.obs[key].astype(str) + "1"
    return adata


SETUP = {
    "copies": (SCLDM, copied(counts(), "cell_type"), {"condition_keys": ["cell_type", "copy"]}, "say the same of"),
    "copies of labels": (
        JointDiffusion, copied(embeddings(), "type"), {"labels_key": "type", "batch_key": "copy"}, "say the same of",
    ),
    "a level of blanks": (SCLDM, with_level(counts(), "cell_type", "B "), {"condition_keys": "cell_type"}, "blanks"),
    "a batch of blanks": (SCLDM, with_level(counts(), "batch", "batch_0 "), {"batch_key": "batch"}, "blanks"),
    "a label of blanks": (JointLDM, with_level(embeddings(), "type", "B "), {"labels_key": "type"}, "blanks"),
    "no such category": (
        JointLDM, embeddings(("B", "T", "NK")), {"labels_key": "type", "unlabeled_category": "?"}, "No cell",
    ),
    "a category that is misspelt": (JointLDM, embeddings(("B", "T", "Unknown")), {"labels_key": "type"}, "no cell is"),
}  # fmt: skip


@pytest.mark.parametrize("case", SETUP)
def test_setting_up_warns_where_it_was_called(case):
    cls, adata, arguments, message = SETUP[case]
    with pytest.warns(UserWarning, match=message) as said:
        cls.setup_anndata(adata.copy(), **arguments)
    assert {w.filename for w in said} == {__file__}


def test_levels_that_are_known_by_their_text_are_told_of_there_too():
    adata = embeddings()
    adata.obs["age"] = pd.cut(np.arange(N) % 3, [-1, 0, 1, 2])
    for key in ("labels_key", "condition_keys", "batch_key"):
        with pytest.warns(UserWarning, match="known by their text") as said:
            JointLDM.setup_anndata(adata.copy(), **{key: "age"})
        assert said[0].filename == __file__


@pytest.mark.parametrize("use", ["counterfactual", "sample", "load"])
def test_a_misspelt_column_is_told_of_where_cells_are_given(model, tmp_path, use):
    adata = renamed(embeddings(), "dose")
    model.save(tmp_path / "m")
    methods = {
        "counterfactual": lambda: model.counterfactual(adata, {"type": "B"}, n_steps=1, progress_bar=False),
        "sample": lambda: model.sample(conditions=adata.obs, n_steps=1, progress_bar=False),
        "load": lambda: JointLDM.load(tmp_path / "m", adata),
    }
    with pytest.warns(UserWarning, match="has no column 'dose'.*but 'Dose'") as said:
        methods[use]()
    assert said[0].filename == __file__


def test_labels_may_be_missing_without_a_word(model):
    adata = renamed(embeddings(), "type")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        predicted = model.predict(adata)
        moved = model.counterfactual(adata, {"type": "B"}, n_steps=1, progress_bar=False)
    assert len(predicted) == moved.n_obs == adata.n_obs


def test_a_level_without_training_cells_is_told_of_where_train_was_called():
    JointLDM.setup_anndata(adata := embeddings(), condition_keys="dose", labels_key="type")
    model = JointLDM(adata, **TINY)
    adata.obs.loc[adata.obs["type"] == "T", "type"] = "unknown"
    with pytest.warns(UserWarning, match="No training cell has a level of 'type'") as said:
        model.train(1, **QUIET)
    assert {w.filename for w in said if "training cell" in str(w.message)} == {__file__}
