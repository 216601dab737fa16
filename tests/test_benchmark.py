"""Models on folds: what they see, and the table beside floors and ceiling."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent.datasets import simulate
from sclatent.metrics import benchmark, evaluate_generation, evaluate_perturbation, split, summarize

KEY, TYPE = "condition", "cell_type"
QUICK = {"n_components": 5, "max_cells": 40, "progress_bar": False}
pytestmark = pytest.mark.filterwarnings("ignore:More than 5%")


@pytest.fixture(autouse=True)
def no_forests(monkeypatch):
    """Random forests take most of the time of an evaluation, and what they find is not looked at here."""
    for name in ("random_forest_auc", "transfer_accuracy"):
        monkeypatch.setattr(f"sclatent.metrics._samples.{name}", lambda *_: 0.5)


@pytest.fixture(scope="module")
def cells() -> AnnData:
    return simulate(360, 60, cell_types=["A", "B", "C"], library_size=500, effect_size=1, seed=3)


@pytest.fixture(scope="module")
def folds(cells) -> list[split.Fold]:
    return split.unseen_combinations(cells, KEY, control="control", context_keys=TYPE)


def other_type(train: AnnData, fold: split.Fold) -> AnnData:
    """Treated cells of another type."""
    treated = train[train.obs[KEY] == "stimulated"].copy()
    treated.obs[TYPE] = fold.asked[TYPE].iloc[0]
    return treated


def test_the_table_is_that_of_the_evaluation_of_every_fold(cells, folds, tmp_path):
    table = benchmark({"other": other_type}, cells, folds[:2], n_top=[20], save=tmp_path / "table.csv", **QUICK)
    assert list(table["fold"].unique()) == ["cell_type=A, condition=stimulated", "cell_type=B, condition=stimulated"]
    held_out = ((cells.obs[TYPE] == "A") & (cells.obs[KEY] == "stimulated")).to_numpy()
    train, is_control = cells[~held_out], (cells.obs[KEY] == "control").to_numpy()
    expected = evaluate_perturbation(
        cells[held_out].copy(), {"other": other_type(train, folds[0])}, cells[is_control].copy(), [TYPE, KEY],
        cells[~is_control & ~held_out].copy(), n_top=[20], **QUICK,
    )  # fmt: skip
    first = table[table["fold"] == folds[0].name].drop(columns="fold")
    pd.testing.assert_frame_equal(first.reset_index(drop=True), expected, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "table.csv"), table, check_dtype=False)
    of_folds = table[(table["condition"] == "mean") & (table["metric"] == "mse") & (table["source"] == "other")]
    assert summarize(table).loc["mse", "other"] == pytest.approx(of_folds["value"].mean())


def test_without_a_model_there_are_floors_and_a_ceiling(cells, folds):
    table = benchmark({}, cells, folds[0], **QUICK)
    assert set(table["kind"]) == {"floor", "ceiling"}
    wide = summarize(table)
    assert wide.loc["pearson", "control as it is"] == 0 < wide.loc["pearson", "mean shift"]
    generation = benchmark({}, cells, split.random(cells, TYPE), **QUICK)
    assert set(generation["source"]) == {
        "other conditions",
        "cell mean",
        "independent genes",
        "gene copula",
        "real half",
    }


def test_models_see_no_cell_that_is_held_out_and_change_nothing_for_others(cells, folds):
    seen = []

    def spoils(train: AnnData, fold: split.Fold) -> dict[str, AnnData]:
        seen.append(set(train.obs_names))
        found = other_type(train, fold)
        train.X = train.X * 0
        train.obs[KEY] = "control"
        fold.asked[TYPE] = "C"
        return {"one way": found, "another": found}

    table = benchmark({"spoils": spoils, "other": other_type}, cells, folds[0], **QUICK)
    assert seen == [set(folds[0].train)]
    assert seen[0].isdisjoint(folds[0].asked.index)
    wide = summarize(table)
    assert list(wide.columns[:3]) == ["spoils, one way", "spoils, another", "other"]
    pd.testing.assert_series_equal(wide["spoils, one way"], wide["other"], check_names=False)
    assert set(folds[0].asked[TYPE]) == {"A"}


def test_cells_that_were_held_out_at_random_are_compared_as_such(cells):
    fold = split.random(cells, [TYPE, KEY])

    def copies(train: AnnData, fold: split.Fold) -> AnnData:
        return train

    table = benchmark({"copies": copies}, cells, fold, seed=1, floors=False, **QUICK)
    train, real = fold.split(cells)
    expected = evaluate_generation(real, {"copies": train}, [TYPE, KEY], train, seed=1, floors=False, **QUICK)
    pd.testing.assert_frame_equal(table.drop(columns="fold"), expected)


def test_rows_of_finished_folds_are_kept_where_a_model_fails(cells, folds, tmp_path):
    def fails(train: AnnData, fold: split.Fold) -> AnnData:
        if fold.name == folds[1].name:
            raise RuntimeError("out of memory")
        return other_type(train, fold)

    with pytest.raises(RuntimeError, match="out of memory") as caught:
        benchmark({"fails": fails}, cells, folds, save=tmp_path / "table.csv", **QUICK)
    assert caught.value.__notes__ == [
        "This was raised by models['fails'] in the fold 'cell_type=B, condition=stimulated'."
    ]
    assert set(pd.read_csv(tmp_path / "table.csv")["fold"]) == {"cell_type=A, condition=stimulated"}


def test_what_a_model_returned_is_checked_before_the_next_is_trained(cells, folds):
    def never(train: AnnData, fold: split.Fold) -> AnnData:
        raise AssertionError("trained")

    for error, message, returned in (
        (TypeError, "must be an AnnData with raw counts, not NoneType", lambda train, fold: None),
        (KeyError, "'cell_type' is not a column", lambda train, fold: AnnData(train.X, var=train.var)),
        (ValueError, "lacks 1 of the 60 genes", lambda train, fold: {"way": train[:, 1:].copy()}),
        (ValueError, "returned no predictions, but {}", lambda train, fold: {}),
    ):
        with pytest.raises(error, match=message) as caught:
            benchmark({"wrong": returned, "never": never}, cells, folds[0], **QUICK)
        assert caught.value.__notes__[-1].startswith("This was raised by models['wrong'] in the fold 'cell_type=A")
    same_name = {"a, way": other_type, "a": lambda train, fold: {"way": other_type(train, fold)}}
    with pytest.raises(ValueError, match=r"Another model has the names \['a, way'\]"):
        benchmark(same_name, cells, folds[0], **QUICK)
    few = {"few": lambda train, fold: other_type(train, fold)[:5].copy()}
    with pytest.raises(ValueError, match="too few cells") as caught:
        benchmark(few, cells, folds[0], **QUICK)
    assert caught.value.__notes__[-1].startswith("This was raised by the evaluation in the fold 'cell_type=A")


def test_levels_may_be_numbers(cells):
    numbers = cells.copy()
    numbers.obs[KEY] = (numbers.obs[KEY] == "stimulated").astype("float32") / 10
    folds = split.unseen_contexts(numbers, KEY, control=np.float32(0), context_keys=TYPE)
    table = benchmark({}, numbers, folds[0], **QUICK)
    assert set(table["condition"]) == {"cell_type=A, condition=0.1", "mean"}


def test_what_cannot_be_is_said_before_a_model_is_trained(cells, folds, tmp_path):
    def never(train: AnnData, fold: split.Fold) -> AnnData:
        raise AssertionError("trained")

    logs = cells.copy()
    logs.X = logs.X.log1p()
    ours = {"ours": never}
    renamed = cells.copy()
    renamed.obs[KEY] = renamed.obs[KEY].cat.rename_categories({"control": "ctrl"})
    few = split.Fold("few", folds[0].train, folds[0].asked[:5], folds[0].groupby, KEY, "control")
    for error, message, arguments, options in (
        (TypeError, "models must be functions by name", (never, cells, folds), {}),
        (TypeError, "models must be functions by name", ({"ours": cells}, cells, folds), {}),
        (TypeError, "folds must be one or more of sclatent.metrics.split", (ours, cells, ["A"]), {}),
        (TypeError, "folds must be one or more", (ours, cells, []), {}),
        (
            TypeError,
            r"options \['n_tops'\] are no arguments of evaluate_perturbation",
            (ours, cells, folds),
            {"n_tops": 2},
        ),
        (ValueError, r"models has the names \['mean shift'\]", ({"mean shift": never}, cells, folds), {}),
        (ValueError, "different ones were expected", (ours, cells, [folds[0], folds[0]]), {}),
        (ValueError, "has 60 cells that are not in adata", (ours, cells[60:], folds), {}),
        (ValueError, "adata has values that are not whole numbers", (ours, logs, folds), {}),
        (ValueError, "has no control='control', but", (ours, renamed, folds), {}),
        (ValueError, "too few cells", (ours, cells, [folds[0], few]), {}),
        (TypeError, "models must be functions by name", ({1: never}, cells, folds), {}),
        (ValueError, "must be a file, in a folder that exists", (ours, cells, folds), {"save": tmp_path}),
        (ValueError, "in a folder that exists", (ours, cells, folds), {"save": tmp_path / "no" / "table.csv"}),
        (ValueError, "n_top=20 must be a list", (ours, cells, folds), {"n_top": 20}),
        (ValueError, "n_top=0 must be at least 1", (ours, cells, folds), {"n_top": [0]}),
        (ValueError, "max_cells=1 must be at least 10", (ours, cells, folds), {"max_cells": 1}),
        (ValueError, "n_components=0 must be", (ours, cells, split.random(cells, TYPE)), {"n_components": 0}),
        (ValueError, "floors='no' must be True or False", (ours, cells, folds), {"floors": "no"}),
        (ValueError, "seed=-1 must be", (ours, cells, folds), {"seed": -1}),
    ):
        with pytest.raises(error, match=message):
            benchmark(*arguments, **options)
