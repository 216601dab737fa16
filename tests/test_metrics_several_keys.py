"""Groups of several keys: their control cells, and floors of the nearest context and of the same one."""

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent.datasets import simulate
from sclatent.metrics import evaluate_perturbation, mean_change, pearson_of_change, summarize

KEYS = ["cell_type", "batch", "condition"]
TYPE, BATCH, TREATMENT = TARGET = ("B", "batch_0", "x")
NAME = "cell_type=B, batch=batch_0, condition=x"
CONTEXTS = [(t, b) for t in "AB" for b in ("batch_0", "batch_1")]


def evaluate(*args, **kwargs) -> pd.DataFrame:
    return evaluate_perturbation(*args, n_components=5, n_top=[20], progress_bar=False, **kwargs)


def of(adata: AnnData, *levels: str) -> AnnData:
    """Cells of a type, a batch and a condition."""
    return adata[np.all([adata.obs[key] == level for key, level in zip(KEYS, levels, strict=True)], axis=0)].copy()


def value(table: pd.DataFrame, metric: str, source: str, condition: str = NAME) -> float:
    return summarize(table, [condition]).loc[metric, source]


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """Two treatments of two types in two batches, which differ less than the types."""
    names = ["control", "x", "y"]
    return simulate(720, 80, cell_types=["A", "B"], conditions=names, n_batches=2, library_size=500, seed=1)


@pytest.fixture(scope="module")
def arms(cells) -> dict[str, AnnData]:
    is_control = (cells.obs["condition"] == "control").to_numpy()
    is_real = np.all([cells.obs[key] == level for key, level in zip(KEYS, TARGET, strict=True)], axis=0)
    real, seen, control = (cells[some].copy() for some in (is_real, ~is_control & ~is_real, is_control))
    return {"real": real[::2].copy(), "predicted": real[1::2].copy(), "control": control, "seen": seen}


@pytest.fixture(scope="module")
def table(arms) -> pd.DataFrame:
    return evaluate(arms["real"], arms["predicted"], arms["control"], KEYS, arms["seen"])


def test_a_group_has_the_control_cells_of_its_context(cells, arms, table):
    assert list(table["condition"].unique()) == [NAME, "mean"]
    expected = pearson_of_change(arms["real"], arms["predicted"], of(cells, TYPE, BATCH, "control"))
    assert value(table, "pearson", "generated") == pytest.approx(expected)


def test_floors_are_of_the_nearest_context_of_the_other_contexts_and_of_the_other_treatments(cells, arms, table):
    own = of(cells, TYPE, BATCH, "control")
    others = [context for context in CONTEXTS if context != (TYPE, BATCH)]
    distance = {c: np.square(mean_change(of(cells, *c, "control"), own)).sum() for c in others}
    nearest = min(others, key=distance.get)
    assert nearest == (TYPE, "batch_1")  # the same type, though names say nothing of it
    shifts = {c: mean_change(of(cells, *c, TREATMENT), of(cells, *c, "control")) for c in others}
    expected = {
        "nearest group": of(cells, *nearest, TREATMENT),
        "nearest shift": shifts[nearest],
        "context mean": of(cells, TYPE, BATCH, "y"),
        "mean shift": np.mean([shifts[c] for c in others], axis=0),  # not of the other treatment
    }
    for source, prediction in expected.items():
        found = value(table, "pearson", source)
        assert found == pytest.approx(pearson_of_change(arms["real"], prediction, own)), source
    assert value(table, "pearson", "nearest group") > value(table, "pearson", "mean shift")


def test_one_key_has_the_nearest_group_too_and_no_other_treatments(cells, arms):
    x = cells[cells.obs["condition"].isin(["control", TREATMENT])].copy()
    x.obs["context"] = x.obs["cell_type"].astype(str) + x.obs["batch"].astype(str)
    is_control, held_out = x.obs["condition"] == "control", x.obs["context"] == TYPE + BATCH
    real, seen = x[~is_control & held_out], x[~is_control & ~held_out]
    one = evaluate(real[::2], real[1::2], x[is_control], "context", seen)
    prediction, own = of(cells, TYPE, "batch_1", TREATMENT), of(cells, TYPE, BATCH, "control")
    expected = pearson_of_change(arms["real"], prediction, own)
    assert value(one, "pearson", "nearest group", TYPE + BATCH) == pytest.approx(expected)
    assert "context mean" not in set(one["source"])


def test_a_treatment_of_no_other_context_is_predicted_from_the_others_of_its_own(cells, arms):
    other = arms["seen"][arms["seen"].obs["condition"] == "y"]
    table = evaluate(arms["real"], arms["predicted"], arms["control"], KEYS, other)
    assert {"nearest group", "nearest shift", "linear shift"}.isdisjoint(table["source"])
    y, own = of(cells, TYPE, BATCH, "y"), of(cells, TYPE, BATCH, "control")
    for source, prediction in {"cell mean": y, "mean shift": mean_change(y, own)}.items():
        assert value(table, "pearson", source) == pytest.approx(pearson_of_change(arms["real"], prediction, own))


def test_a_treatment_is_told_from_the_others_of_its_context(cells, arms):
    real = cells[cells.obs["condition"] != "control"]
    wrong = of(cells, TYPE, BATCH, "y")
    wrong.obs["condition"] = TREATMENT
    with pytest.warns(UserWarning, match="Not in real and in every prediction"):
        table = evaluate(real, {"right": arms["predicted"], "wrong": wrong}, arms["control"], tuple(KEYS))
    assert value(table, "discrimination", "right") == 1
    assert value(table, "discrimination", "wrong") == 0  # all other contexts are farther away


def test_keys_of_numbers_in_any_precision_and_keys_that_are_written_in_another_way(arms):
    doses = {key: adata.copy() for key, adata in arms.items()}
    for key, dtype in zip(arms, ("float32", "int64", "float64", "category"), strict=True):
        number = doses[key].obs["batch"].astype(str).str.removeprefix("batch_").astype("int64")
        doses[key].obs["batch"] = number.astype(dtype)
    arguments = [doses[key] for key in ("real", "predicted", "control")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="More than 5%")  # there are few control cells
        table = evaluate(*arguments, KEYS, doses["seen"])
    assert set(table["condition"]) == {"cell_type=B, batch=0.0, condition=x", "mean"}

    text = doses["seen"].copy()
    text.obs["batch"] = text.obs["batch"].astype(str)
    with pytest.warns(UserWarning, match=r"seen.obs\['batch'\] has \['0'\], real has \[0.0\]"):
        evaluate(*arguments, KEYS, text, floors=False)
    other = arms["control"].copy()
    other.obs["batch"] = other.obs["batch"].astype(str) + " "
    with pytest.warns(UserWarning, match=r"control.obs\['batch'\] has the groups .*whatever their batch"):
        evaluate(arms["real"], arms["predicted"], other, KEYS, arms["seen"], floors=False)


def test_keys_that_cannot_be_are_refused(arms):
    real, predicted, control = (arms[key].copy() for key in ("real", "predicted", "control"))
    with pytest.raises(ValueError, match=r"groupby=\['batch', 'batch'\] names a column twice"):
        evaluate(real, predicted, control, ["batch", "batch"])
    del predicted.obs["batch"]
    with pytest.raises(KeyError, match="groupby, predicted: 'batch' is not a column"):
        evaluate(real, predicted, control, KEYS)
    lacking = control[(control.obs["cell_type"] != TYPE) | (control.obs["batch"] != BATCH)].copy()
    with pytest.raises(ValueError, match="control has cells of some groups but not of"):
        evaluate(arms["real"], arms["real"], lacking, KEYS)
