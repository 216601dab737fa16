"""Evaluation of perturbations: known answers, real cells, floors and ceiling."""

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.stats import false_discovery_control, mannwhitneyu, pearsonr, spearmanr

from sclatent.datasets import glioblastoma, simulate
from sclatent.metrics import (
    Projection,
    _cells,
    _generation,
    _perturbation,
    _perturbation_floors,
    _reconstruction,
    energy_distance,
    evaluate_perturbation,
    floors,
    linear_shift,
    log_normalize,
    mean_change,
    mean_shift,
    pearson_of_change,
    slope_of_change,
    summarize,
)
from sclatent.metrics._differential import differentially_expressed, direction_match, overlap_and_precision
from sclatent.metrics._perturbation_metrics import share_farther
from sclatent.metrics._shift import ridge_shift
from sclatent.metrics._table import finish

KEYS = ("condition", "ctrl", "panobinostat", "patient_id", "PW034")


def evaluate(*args, **kwargs) -> pd.DataFrame:
    return evaluate_perturbation(*args, progress_bar=False, **kwargs)


def value(table: pd.DataFrame, metric: str, source: str = "generated", condition: str = "mean") -> float:
    chosen = table[(table["condition"] == condition) & (table["source"] == source) & (table["metric"] == metric)]
    return chosen["value"].item()


def means(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return values[rows].mean(axis=0, dtype=float)


@pytest.fixture(scope="module")
def screen() -> dict[str, AnnData]:
    """Six perturbations of one cell type with one control; a half of the perturbed cells predicts the other."""
    names = ["control", *(f"gene {i}" for i in range(6))]
    adata = simulate(980, 120, cell_types=["K562"], conditions=names, library_size=600, effect_size=0.8, seed=4)
    control = adata[adata.obs["condition"] == "control"].copy()
    perturbed = adata[adata.obs["condition"] != "control"]
    return {"control": control, "real": perturbed[::2].copy(), "predicted": perturbed[1::2].copy()}


@pytest.fixture(scope="module")
def glio() -> dict[str, AnnData]:
    """A patient of whom the treated cells are held out."""
    adata = glioblastoma()
    treated, patient = adata.obs["condition"] == KEYS[2], adata.obs["patient_id"] == KEYS[4]
    return {
        "all": adata,
        "real": adata[treated & patient].copy(),
        "seen": adata[treated & ~patient].copy(),
        "control": adata[~treated].copy(),
    }


@pytest.fixture(scope="module")
def glio_table(glio) -> pd.DataFrame:
    """One half of the held-out cells as a prediction of the other, beside a change that is predicted exactly."""
    real, predicted = glio["real"][::2].copy(), glio["real"][1::2].copy()
    return evaluate(real, predicted, glio["control"], "patient_id", glio["seen"])


def test_differential_expression_is_that_of_scipy():
    adata = simulate(300, 60, cell_types=1, library_size=100, effect_size=1, seed=0)
    values, treated = log_normalize(adata), (adata.obs["condition"] == "stimulated").to_numpy()
    values[:, 7] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        de = differentially_expressed(values[treated], values[~treated])
    others = np.arange(60) != 7
    p = mannwhitneyu(
        values[treated][:, others], values[~treated][:, others], method="asymptotic", use_continuity=False
    ).pvalue
    expected = false_discovery_control(np.insert(p, 7, 1.0), method="bh") < 0.05
    np.testing.assert_array_equal(de, expected)
    assert 5 < de.sum() < 55
    assert not de[7]


def test_direction_overlap_and_precision_by_hand():
    change = np.array([3.0, -2.0, 1.0, 0.5, 0.1, 0.0])
    de = np.array([True, True, True, True, False, False])
    predicted = np.array([1.0, 2.0, -0.1, 0.0, 3.0, 0.0])
    assert direction_match(change, predicted, de) == 1 / 4  # the first; a change of 0 has no direction
    everything = np.ones(6, dtype=bool)
    # the two largest: real 0, 1; predicted 4, 1
    assert overlap_and_precision(change, de, predicted, everything, 2) == (1 / 2, 1 / 2)
    # the prediction names one gene only
    assert overlap_and_precision(change, de, predicted, np.arange(6) == 1, 2) == (1 / 2, 1.0)
    # four real genes are not five: of 4, 1, 0, 2 three are right; 3 and 5 tie for the fifth
    assert overlap_and_precision(change, de, predicted, everything, 5) == (3 / 4, 4 / 5)
    assert overlap_and_precision(change, de, predicted, ~everything, 2) == (0, 0)
    assert np.isnan(overlap_and_precision(change, ~everything, predicted, everything, 2)).all()
    assert np.isnan(direction_match(change, predicted, ~everything))


def test_discrimination_by_hand():
    changes = np.array([0.0, 1.0, 5.0])
    for group, predicted, expected in ((0, 0.1, 1), (0, 0.9, 0.5), (0, 9, 0), (2, 9, 1), (0, 0.5, 0.75)):
        assert share_farther(np.abs(changes - predicted), group) == expected


@pytest.mark.parametrize("grouped", [True, False])
def test_correlations_and_error_are_those_of_scipy(glio, grouped):
    real, seen = glio["real"][:200], glio["seen"]
    predicted = seen[seen.obs["patient_id"] == "PW030"].copy()
    predicted.obs["patient_id"] = KEYS[4]
    control = glio["control"][glio["control"].obs["patient_id"] == KEYS[4]]
    table = evaluate(real, predicted, control, "patient_id" if grouped else None)
    condition = KEYS[4] if grouped else "all"
    x, y, c = (log_normalize(a).mean(axis=0, dtype=float) for a in (real, predicted, control))
    assert value(table, "pearson", condition=condition) == pytest.approx(pearsonr(x - c, y - c).statistic)
    assert value(table, "spearman", condition=condition) == pytest.approx(spearmanr(x - c, y - c).statistic)
    assert value(table, "mse", condition=condition) == pytest.approx(((x - y) ** 2).mean())
    of_x, of_y, of_c = (log_normalize(a).var(axis=0, ddof=1, dtype=float) / a.n_obs for a in (real, predicted, control))
    unbiased = ((x - y) ** 2 - of_x - of_y).mean()
    assert value(table, "mse_unbiased", condition=condition) == pytest.approx(unbiased, rel=1e-4)
    slope = ((x - c) * (y - c) - of_c).sum() / ((x - c) ** 2 - of_x - of_c).sum()
    assert value(table, "slope", condition=condition) == pytest.approx(slope, rel=1e-4)
    assert slope_of_change(real, predicted, control) == pytest.approx(slope, rel=1e-4)
    for n in (20, 50, 100):
        top = np.argsort(-np.abs(x - c))[:n]
        at = {"condition": condition}
        assert value(table, f"pearson_top{n}", **at) == pytest.approx(pearsonr((x - c)[top], (y - c)[top]).statistic)
        assert value(table, f"spearman_top{n}", **at) == pytest.approx(spearmanr((x - c)[top], (y - c)[top]).statistic)
    assert set(table["source"]) == {"generated", "control as it is", "real half"}  # nothing else was seen
    assert "discrimination" not in set(table["metric"])


def test_every_row_says_what_it_is(glio_table):
    rows = glio_table[glio_table["condition"] == KEYS[4]].set_index(["source", "metric"])
    assert set(glio_table["condition"]) == {KEYS[4], "mean"}
    pearson, energy = rows.loc["generated", "pearson"], rows.loc["generated", "energy"]
    assert (pearson["space"], energy["space"]) == ("log1p CP10k, 300 genes", "50 PCs of log1p CP10k")
    assert rows.loc[("generated", "pearson_top20"), "space"] == "log1p CP10k, 20 genes"
    assert (pearson["n_real"], pearson["n_generated"], pearson["n_available"]) == (250, 250, 250)
    assert (energy["n_real"], energy["n_generated"], energy["n_components"]) == (125, 125, 50)
    assert rows.loc[("cell mean", "mse"), "n_generated"] == 2_000
    assert rows.loc[("mean shift", "mse"), "n_generated"] == 0  # a change, not cells
    assert rows.loc[("mean shift", "energy"), "n_generated"] == 250  # control cells that are moved: half of them
    assert set(rows["seed"]) == {0}
    for metric, best in (("pearson", "max"), ("mse", "min")):
        of_metric = rows.xs(metric, level="metric")
        assert (of_metric["floor"] == of_metric.loc[of_metric["kind"] == "floor", "value"].agg(best)).all()
        assert (of_metric["ceiling"] == of_metric.loc["real half", "value"]).all()


def test_real_cells_of_the_held_out_patient_beat_the_floors(glio_table):
    rows = glio_table[(glio_table["condition"] == "mean") & (glio_table["source"] == "generated")].set_index("metric")
    higher = rows[rows["better"] == "higher"]
    ties = ["de_precision_20", "discrimination", "discrimination_cosine"]  # all are 1
    assert (higher["value"] >= higher["floor"]).all()
    assert (higher["value"] > higher["floor"] + 0.05).drop(ties).all()
    assert (higher["value"] > higher["ceiling"] - 0.1).all()
    slope = rows.loc["slope"]
    assert slope["better"] == "closer to 1"
    assert abs(slope["value"] - 1) < abs(slope["floor"] - 1)
    lower = rows[rows["better"] == "lower"]
    assert sorted(lower.index) == ["energy", "lfc_nmae", "mmd2", "mse", "mse_unbiased"]
    assert (lower["value"] < 0.5 * lower["floor"]).all()
    assert (lower["value"] < 0.1 * lower["floor"]).drop("lfc_nmae").all()


def test_the_mean_shift_beats_control_as_it_is(glio_table):
    wide = summarize(glio_table, ["mean"])
    shift, control = wide["mean shift"], wide["control as it is"]
    for metric in ("pearson", "spearman", "pearson_top50", "direction", "de_overlap_50", "de_precision_50"):
        assert shift[metric] > control[metric] == 0
    for metric in ("mse", "energy", "mmd2"):
        assert shift[metric] < control[metric]


def test_components_are_of_half_of_the_control_cells_and_of_what_was_seen(glio, monkeypatch):
    fitted, projected = [], []

    class Spy(Projection):
        def __init__(self, values, *arguments):
            fitted.append({row.tobytes() for row in values})
            projected.append(set())
            super().__init__(values, *arguments)

        def transform(self, values):
            projected[-1] |= {row.tobytes() for row in values}
            return super().transform(values)

    monkeypatch.setattr(_perturbation, "Projection", Spy)
    arguments = glio["real"][::2], glio["real"][1::2], glio["control"], "patient_id"
    evaluate(*arguments, glio["all"][glio["all"].obs["condition"] == KEYS[2]])  # with the cells that are compared
    evaluate(*arguments)
    evaluate(*arguments, glio["seen"], max_cells=40)
    control, seen = ([row.tobytes() for row in log_normalize(glio[key])] for key in ("control", "seen"))
    assert [len(cells) for cells in fitted] == [1_250 + 1_000, 1_250, 80]  # of 2,500 and 2,000; max_cells of both
    assert fitted[0] < {*control, *seen}
    assert fitted[1] < set(control)
    for used, compared in zip(fitted, projected, strict=True):
        assert used.isdisjoint(compared)
    patients = glio["seen"].obs["patient_id"][[row in fitted[2] for row in seen]]
    assert patients.value_counts().tolist() == [10] * 4  # groups take turns


def test_real_cells_are_as_good_a_prediction_as_the_ceiling():
    """Few cells of many genes, where components of the compared cells would tell them from all others."""
    adata = simulate(600, 400, cell_types=["a", "b", "c"], library_size=1_000, effect_size=0.5, seed=1)
    treated, of_a = adata.obs["condition"] == "stimulated", adata.obs["cell_type"] == "a"
    control, held_out = adata[~treated], adata[treated & of_a]
    real, predicted = held_out[:66], held_out[66:99]
    for seen in (adata[treated & ~of_a], None):
        table = evaluate(real, predicted, control, "cell_type", seen, floors=False)
        assert value(table, "energy") == pytest.approx(value(table, "energy", "real half"), abs=0.2)
    biased = Projection(np.concatenate([log_normalize(real), log_normalize(control)]))
    assert energy_distance(*(biased.transform(log_normalize(cells)) for cells in (real[:33], predicted))) > 1


def test_floors_are_those_of_the_public_functions(glio, glio_table):
    real = glio["real"][::2]
    control = glio["control"][glio["control"].obs["patient_id"] == KEYS[4]]
    for name, floor in (("mean shift", mean_shift), ("linear shift", linear_shift)):
        change = floor(glio["all"], *KEYS)
        assert value(glio_table, "pearson", name) == pytest.approx(pearson_of_change(real, change, control))
    patient = glio["seen"].obs["patient_id"].to_numpy()
    values = log_normalize(glio["seen"])
    cell_mean = np.mean([means(values, patient == p) for p in np.unique(patient)], axis=0)
    change = cell_mean - log_normalize(control).mean(axis=0, dtype=float)
    assert value(glio_table, "pearson", "cell mean") == pytest.approx(pearson_of_change(real, change, control))


def rows_of(source: str, kind: str, metric: str, better: str, values: dict[str, float]) -> list[dict]:
    about = {"source": source, "kind": kind, "metric": metric, "better": better, "space": "", "n_components": None}
    cells = dict.fromkeys(["n_real", "n_generated", "n_available"], 10)
    return [{**about, **cells, "seed": 0, "condition": c, "value": v} for c, v in values.items()]


def test_the_best_slope_of_the_floors_is_the_one_closest_to_1():
    slopes = {"cell mean": 1.7, "mean shift": 0.6, "control as it is": 0.0}
    records = [row for name, v in slopes.items() for row in rows_of(name, "floor", "slope", "closer to 1", {"a": v})]
    table = finish(records + rows_of("real half", "ceiling", "slope", "closer to 1", {"a": 1.1}))
    assert set(table["floor"]) == {0.6}
    assert set(table["ceiling"]) == {1.1}


def test_how_many_groups_a_mean_is_over_is_said_where_some_are_nan():
    slopes = rows_of("generated", "generated", "slope", "closer to 1", {"a": 0.5, "b": np.nan, "c": 0.7})
    with pytest.warns(UserWarning, match=r"left out of means: slope over 2 of 3 conditions\.") as caught:
        table = finish(slopes + rows_of("generated", "generated", "mse", "lower", {"a": 1.0, "b": 2.0, "c": 3.0}))
    assert caught[0].filename == __file__
    assert value(table, "slope") == pytest.approx(0.6)
    assert value(table, "mse") == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(
            value(finish(rows_of("generated", "generated", "slope", "closer to 1", {"a": np.nan})), "slope")
        )


def test_a_summary_of_several_folds_has_their_means():
    """A floor that one fold lacks has no mean, which is said, and the best floor is that of the means."""
    first = finish(
        rows_of("generated", "generated", "mse", "lower", {"a": 1.0})
        + rows_of("x", "floor", "mse", "lower", {"a": 4.0})
    )
    second = finish(rows_of("generated", "generated", "mse", "lower", {"b": 3.0}))
    both = pd.concat([first.assign(fold="one"), second.assign(fold="two")])
    with pytest.warns(UserWarning, match=r"lack folds or seeds that others have: 'x' \(1 of 2\)\."):
        wide = summarize(both)
    assert list(wide.columns) == ["generated", "better"]
    assert wide.loc["mse", "generated"] == 2
    assert summarize(both, ["a"]).loc["mse", ["generated", "x"]].tolist() == [1, 4]
    with pytest.warns(UserWarning, match="different values of a source .*: say by a column fold"):
        assert summarize(pd.concat([first, second])).loc["mse", "generated"] == 2


def test_sources_of_tables_below_one_another_are_all_shown():
    """Floors that both tables have count once, and a source without one of the seeds is named."""

    def table_of(source: str, seed: int) -> pd.DataFrame:
        rows = rows_of(source, "generated", "mse", "lower", {"a": 1.0 + seed})
        return finish(rows + rows_of("x", "floor", "mse", "lower", {"a": 4.0 + seed})).assign(fold="one", seed=seed)

    wide = summarize(pd.concat([table_of("A", 0), table_of("B", 0)]))
    assert wide.loc["mse", ["A", "B", "x"]].tolist() == [1, 1, 4]
    with pytest.warns(UserWarning, match=r"that others have: 'B' \(1 of 2\)\."):
        wide = summarize(pd.concat([table_of("A", 0), table_of("A", 1), table_of("B", 0)]))
    assert wide.loc["mse", ["A", "x"]].tolist() == [1.5, 4.5]
    assert "B" not in wide


def test_the_best_mean_slope_is_the_one_closest_to_1_in_every_group():
    slopes = {"wild": {"a": 0.2, "b": 1.8}, "good": {"a": 0.9, "b": 0.9}}
    records = [row for name, values in slopes.items() for row in rows_of(name, "floor", "slope", "closer to 1", values)]
    table = finish(records)
    assert set(table.loc[table["condition"] == "mean", "floor"]) == {0.9}
    assert "goodness" not in table


def test_every_floor_is_described():
    described = floors().groupby("evaluation")["floor"].agg(list)
    assert described["perturbation"] == _perturbation_floors.FLOORS
    assert described["generation"] == list(_generation.FLOORS)
    assert described["reconstruction"] == [_reconstruction.FLOOR]


def test_groups_that_are_held_out_in_turn_are_each_others_floor(glio):
    treated = glio["all"][glio["all"].obs["condition"] == KEYS[2]]
    treated = treated[treated.obs["patient_id"].isin(["PW030", "PW032", KEYS[4]])]
    first, second = treated[::4], treated[1::4]  # every fourth cell of each patient
    table = evaluate(first, second, glio["control"], "patient_id", n_top=[50])
    alone = (first.obs["patient_id"] == KEYS[4]).to_numpy()
    assert (first.obs["patient_id"].to_numpy() == second.obs["patient_id"].to_numpy()).all()
    one = evaluate(first[alone], second[alone], glio["control"], "patient_id", seen=first[~alone], n_top=[50])
    for source in ("generated", "cell mean", "mean shift"):
        for metric in ("pearson", "mse", "discrimination"):
            expected = value(table, metric, source, KEYS[4])
            assert value(one, metric, source, KEYS[4]) == pytest.approx(expected)
    assert value(table, "discrimination") == value(table, "discrimination", "real half") == 1


def test_the_right_perturbation_is_told_from_the_wrong_ones(screen):
    wrong = screen["predicted"].copy()
    levels = [c for c in wrong.obs["condition"].cat.categories if c != "control"]
    turned = dict(zip(levels, levels[1:] + levels[:1], strict=True))
    wrong.obs["condition"] = wrong.obs["condition"].astype(str).map(turned)
    table = evaluate(screen["real"], {"right": screen["predicted"], "wrong": wrong}, screen["control"], "condition")
    wide = summarize(table, ["mean"])
    assert wide.loc["discrimination", "right"] > 0.95
    assert wide.loc["discrimination", "wrong"] < 0.5
    assert wide.loc["discrimination", "real half"] > 0.9
    assert 0.3 < wide.loc["discrimination", "control as it is"] < 0.7
    assert wide.loc["pearson", "right"] > wide.loc["pearson", "wrong"] + 0.3
    assert "linear shift" not in wide  # with one control for all it is the mean shift
    # the mean of the other perturbations' cells is their mean shift
    for metric in ("pearson", "mse"):
        assert wide.loc[metric, "cell mean"] == pytest.approx(wide.loc[metric, "mean shift"])


def test_control_cells_are_those_of_the_group_or_of_all(screen, glio):
    real, predicted, control = screen["real"], screen["predicted"], screen["control"]
    unlabelled = control.copy()
    del unlabelled.obs["condition"]
    expected = evaluate(real, predicted, control, "condition", floors=False)
    pd.testing.assert_frame_equal(evaluate(real, predicted, unlabelled, "condition", floors=False), expected)

    lacking = glio["control"][glio["control"].obs["patient_id"] != KEYS[4]]
    with pytest.raises(ValueError, match=r"control has cells of some groups but not of \['PW034'\]"):
        evaluate(glio["real"], glio["real"], lacking, "patient_id", glio["seen"])


def test_a_group_without_control_cells_is_left_out_and_the_others_are_evaluated(glio):
    treated = glio["all"][glio["all"].obs["condition"] == KEYS[2]]
    lacking = glio["control"][glio["control"].obs["patient_id"] != KEYS[4]]
    arguments = {"groupby": "patient_id", "floors": False, "n_top": []}
    with pytest.warns(UserWarning, match=r"Left out: \['PW034'\] .*not of \['PW034'\]: add their control cells"):
        table = evaluate(treated[::4], treated[1::4], lacking, **arguments)
    assert set(table["condition"]) == {"PW030", "PW032", "PW036", "PW040", "mean"}


def test_genes_in_another_order_and_genes_too_many(glio, glio_table):
    genes = np.random.default_rng(0).permutation(300)
    predicted = glio["real"][1::2, genes].copy()
    control = AnnData(glio["control"].X, obs=glio["control"].obs, var=glio["control"].var)[:, ::-1]
    table = evaluate(glio["real"][::2], predicted, control, "patient_id", glio["seen"][:, genes])
    pd.testing.assert_frame_equal(table, glio_table)
    # counts per 10,000 are of the genes that are compared
    few = [adata[:, :100] for adata in (glio["real"][::2], control[:, ::-1], glio["seen"])]
    part = evaluate(few[0], predicted, few[1], "patient_id", few[2])
    assert set(part.loc[part["metric"] == "mse", "space"]) == {"log1p CP10k, 100 genes"}
    pd.testing.assert_frame_equal(part, evaluate(few[0], glio["real"][1::2, :100].copy(), few[1], "patient_id", few[2]))


def test_predictions_may_be_arrays(glio, glio_table):
    real, other = glio["real"][::2], glio["real"][1::2]
    control = glio["control"][glio["control"].obs["patient_id"] == KEYS[4]]
    predictions = {"cells": log_normalize(other), "change": mean_change(other, control), "nothing": np.zeros(300)}
    table = evaluate(real, predictions, glio["control"], "patient_id", glio["seen"])
    wide, expected = summarize(table, ["mean"]), summarize(glio_table, ["mean"])["generated"]
    pd.testing.assert_series_equal(wide["cells"], expected, check_names=False)
    of_means = expected.index.str.contains("pearson|spearman|mse$|discrimination")
    np.testing.assert_allclose(wide.loc[of_means, "change"], expected[of_means], rtol=1e-5)
    assert expected["energy"] < wide.loc["energy", "change"] < wide.loc["energy", "nothing"]
    pd.testing.assert_series_equal(wide["nothing"], wide["control as it is"], check_names=False)
    # without groups all cells are one
    table = evaluate(real, predictions["change"], control)
    assert value(table, "pearson", condition="all") == pytest.approx(expected["pearson"])


def test_layers(glio, glio_table):
    stored = {key: glio[key].copy() for key in ("real", "control", "seen")}
    for adata in stored.values():
        adata.layers["counts"], adata.X = adata.X, adata.X * 0.5
    table = evaluate(
        stored["real"][::2], glio["real"][1::2], stored["control"], "patient_id", stored["seen"], layer="counts"
    )
    pd.testing.assert_frame_equal(table, glio_table)


def test_seeds_and_subsampling(screen, monkeypatch):
    arguments = (screen["control"], "condition")
    first = evaluate(screen["real"], screen["predicted"], *arguments, max_cells=25, n_components=5, n_top=[20])
    again = evaluate(screen["real"], screen["predicted"], *arguments, max_cells=25, n_components=5, n_top=[20])
    pd.testing.assert_frame_equal(first, again)
    other = evaluate(screen["real"], screen["predicted"], *arguments, max_cells=25, n_components=5, n_top=[20], seed=1)
    changed = first.loc[first["value"] != other["value"], "metric"].unique()
    assert "energy" in changed
    generated = first["kind"] == "generated"
    of_means = first["metric"].str.contains("pearson|spearman|mse|discrimination")
    pd.testing.assert_series_equal(first["value"][generated & of_means], other["value"][generated & of_means])

    energy = first[(first["metric"] == "energy") & generated & (first["condition"] != "mean")]
    assert set(energy["n_real"]) == set(energy["n_generated"]) == {25}
    assert energy["n_available"].min() > 60
    # a prediction has the same values whichever stand beside it
    several = {"b": screen["real"], "generated": screen["predicted"]}
    beside = evaluate(screen["real"], several, *arguments, max_cells=25, n_components=5, n_top=[20])
    pd.testing.assert_series_equal(
        beside.loc[beside["source"] == "generated", "value"].reset_index(drop=True),
        first.loc[first["source"] == "generated", "value"].reset_index(drop=True),
    )
    # means are taken a block at a time
    monkeypatch.setattr(_cells, "BLOCK", 120 * 11)
    blocks = evaluate(screen["real"], screen["predicted"], *arguments, max_cells=25, n_components=5, n_top=[20])
    pd.testing.assert_frame_equal(first, blocks, rtol=1e-4, atol=1e-6)


def test_no_effect_leaves_nothing_to_find():
    adata = simulate(240, 60, cell_types=1, effect_size=0, library_size=300, library_size_sd=0.1, seed=0)
    treated = (adata.obs["condition"] == "stimulated").to_numpy()
    control, real = adata[~treated], adata[treated]
    table = evaluate(real[::2], real[1::2], control)
    of_genes = table[table["metric"].str.startswith(("direction", "de_", "lfc_"))]
    assert of_genes["value"].isna().all()
    assert np.isfinite(table.loc[~table.index.isin(of_genes.index), "value"]).all()
    assert "pearson_top100" not in set(table["metric"])  # there are 60 genes


def test_groups_that_cannot_be_compared_are_named(screen):
    real, predicted, control = screen["real"], screen["predicted"], screen["control"]
    condition = predicted.obs["condition"]
    few = predicted[(condition != "gene 3") | (np.arange(predicted.n_obs) < 20)]
    with pytest.warns(UserWarning, match=r"\['gene 3'\] have too few cells"):
        table = evaluate(real, few, control, "condition", floors=False, n_top=[])
    assert set(table["condition"]) == {f"gene {i}" for i in range(6) if i != 3} | {"mean"}
    with pytest.warns(UserWarning, match=r"Not in real and in every prediction, and left out: \['gene 0'\]"):
        table = evaluate(
            real, {"a": predicted, "b": predicted[condition != "gene 0"]}, control, "condition", floors=False, n_top=[]
        )
    assert "gene 0" not in set(table["condition"])


@pytest.mark.filterwarnings("ignore:Not in real")
def test_input_that_cannot_be_compared_is_refused(screen, glio):
    real, predicted, control = screen["real"], screen["predicted"], screen["control"]
    log = AnnData(log_normalize(real), obs=real.obs, var=real.var)
    renamed = predicted.copy()
    renamed.obs["condition"] = "another"
    one = real[real.obs["condition"] == "gene 0"]
    for error, message, arguments in (
        (ValueError, r"no group in common: real has \['gene 0'.*'generated': \['another'\]", (real, renamed, control)),
        (ValueError, "predicted lacks 20 of the 120 genes of real, such as", (real, predicted[:, 20:], control)),
        (ValueError, "control lacks 20 of the 120 genes", (real, predicted, control[:, 20:])),
        (ValueError, r"\['gene 0'\] have too few cells: 20 real", (one[:15], predicted, control)),
        (ValueError, r"have too few cells: .* 10 control cells are needed", (real, predicted, control[:5])),
        (ValueError, "predicted is an array, which cannot say of which", (real, log_normalize(predicted), control)),
        (
            ValueError,
            r"predicted\['a'\] has the shape \(3, 7\): \(cells, 120\) or",
            (one, {"a": np.ones((3, 7))}, control),
        ),
        (ValueError, "predicted has values that are NaN", (one, np.full(120, np.nan), control)),
        (ValueError, "above 9.21", (one, predicted.X.toarray(), control)),
        (ValueError, "real has values that are not whole numbers", (log, predicted, control)),
        (ValueError, "predicted has values that are not whole numbers", (real, log, control)),
        (
            ValueError,
            "has the names .'mean shift'.: none of",
            (real, {"mean shift": predicted}, control),
        ),
        (TypeError, "control must be an AnnData", (real, predicted, log.X)),
        (TypeError, "predicted must be an AnnData", (real, "cells", control)),
    ):
        with pytest.raises(error, match=message):
            evaluate(*arguments, "condition")
    with pytest.raises(KeyError, match="groupby, real: 'guide' is not a column"):
        evaluate(real, predicted, control, "guide")
    with pytest.raises(ValueError, match="seen needs groupby"):
        evaluate(one, predicted, control, seen=real)
    with pytest.raises(ValueError, match="disjoint_controls='no' must be True or False"):
        evaluate(one, predicted, control, disjoint_controls="no")
    with pytest.raises(ValueError, match="floors=None must be True or False"):
        evaluate(one, predicted, control, floors=None)
    with pytest.raises(ValueError, match="max_cells=5 must be at least 10"):
        evaluate(one, predicted, control, max_cells=5)
    twice = predicted.copy()
    twice.var_names = ["gene"] * 120
    with pytest.raises(ValueError, match="predicted has genes twice"):
        evaluate(real, twice, control, "condition")


def test_the_linear_shift_finds_a_slope_and_without_one_is_the_mean_shift():
    rng = np.random.default_rng(0)
    controls = rng.normal(size=(12, 3))
    slope = rng.normal(size=(3, 40))
    target = np.array([1.5, -1.0, 0.5])
    changes = 1 + controls @ slope
    np.testing.assert_allclose(ridge_shift(controls, changes, target), 1 + target @ slope, atol=0.05)
    noise = rng.normal(size=(12, 40))
    np.testing.assert_allclose(ridge_shift(controls, noise, target), noise.mean(axis=0), atol=0.3)
    np.testing.assert_array_equal(ridge_shift(controls[:2], changes[:2], target), changes[:2].mean(axis=0))
    np.testing.assert_array_equal(ridge_shift(controls[:1], changes[:1], target), changes[0])
    same = np.tile(controls[0], (4, 1))
    np.testing.assert_array_equal(ridge_shift(same, changes[:4], target), changes[:4].mean(axis=0))


def test_the_linear_shift_never_sees_the_treated_cells_that_are_held_out(glio):
    adata = glio["all"]
    held_out = ((adata.obs["patient_id"] == KEYS[4]) & (adata.obs["condition"] == KEYS[2])).to_numpy()
    without = linear_shift(adata[~held_out], *KEYS)
    np.testing.assert_array_equal(linear_shift(adata, *KEYS), without)
    with pytest.raises(ValueError, match="held_out='PW034' has no cells of 'ctrl'"):
        linear_shift(adata[(adata.obs["patient_id"] != KEYS[4]).to_numpy() | held_out], *KEYS)
