"""Evaluation of generated cells: what is bad must look bad, and the table must say what it was computed from."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from sclatent.datasets import pbmc3k
from sclatent.metrics import (
    Projection,
    cell_mean,
    evaluate_generation,
    independent_genes,
    log_normalize,
    random_forest_auc,
    summarize,
)
from sclatent.metrics import _cells as cells_module
from sclatent.metrics import _classifiers as classifiers
from sclatent.metrics import _samples as samples
from sclatent.metrics._table import COLUMNS, finish

PRINCIPAL = ["w1", "w2", "sinkhorn", "mmd2", "frechet", "energy", "nn_accuracy", "rf_auc", "precision", "recall"]
TRANSFER = ["real_to_generated", "generated_to_real"]
FLOORS = ["other conditions", "cell mean", "independent genes", "gene copula"]


@pytest.fixture
def small_forests(monkeypatch):
    """Forests of few trees: most of the time goes there."""
    forest = classifiers._forest
    monkeypatch.setattr(classifiers, "_forest", lambda seed: forest(seed).set_params(n_estimators=4))


@pytest.fixture(scope="module")
def two_halves() -> tuple[AnnData, AnnData]:
    """Blood cells of three types in unequal numbers, their 150 strongest genes, and as many more."""
    adata = pbmc3k()
    adata = adata[:, np.argsort(-np.asarray(adata.X.sum(axis=0)).ravel())[:150]].copy()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories(
        {"CD14+ Monocytes": "a", "B cells": "b", "CD8 T cells": "c"}
    )
    numbers = {"a": 400, "b": 240, "c": 160}
    rows = [np.flatnonzero(adata.obs["cell_type"] == t)[:n] for t, n in numbers.items()]
    return tuple(adata[np.concatenate([r[i::2] for r in rows])].copy() for i in (0, 1))


def evaluate(real, generated, groupby=None, **kwargs) -> pd.DataFrame:
    return evaluate_generation(real, generated, groupby, **{"progress_bar": False, "n_components": 20, **kwargs})


def value(table: pd.DataFrame, metric: str, source: str = "generated", condition: str = "all") -> float:
    row = table[(table["metric"] == metric) & (table["source"] == source) & (table["condition"] == condition)]
    return row["value"].item()


def thin_out(adata: AnnData, keep: float) -> AnnData:
    """Lose counts, as a generator that is too sparse."""
    thinned = adata.copy()
    thinned.X.data = np.random.default_rng(0).binomial(adata.X.data.astype(int), keep).astype(np.float32)
    thinned.X.eliminate_zeros()
    return thinned


# --- good is good, bad is bad ----------------------------------------------------------------------------------------


def test_real_cells_are_as_good_as_the_ceiling(two_halves):
    real, more = two_halves
    table = evaluate(real, more)
    for metric, tolerance in {
        "w1": 0.15, "w2": 0.15, "mmd2": 0.01, "nn_accuracy": 0.08, "rf_auc": 0.08, "precision": 0.1, "recall": 0.1,
        "density": 0.2, "coverage": 0.1, "gene_mean": 0.02, "gene_zeros": 0.02, "gene_correlation": 0.1,
    }.items():  # fmt: skip
        ceiling = value(table, metric, "real half")
        bound = tolerance * ceiling if metric in ("w1", "w2") else tolerance
        assert abs(value(table, metric) - ceiling) < bound, metric
    assert value(table, "rf_auc", "real half") == pytest.approx(0.5, abs=0.08)
    assert value(table, "nn_accuracy", "real half") == pytest.approx(0.5, abs=0.08)
    assert value(table, "mmd2", "real half") == pytest.approx(0, abs=0.01)


@pytest.fixture
def bad(two_halves) -> dict[str, AnnData]:
    more = two_halves[1]
    one_type = more[np.flatnonzero(more.obs["cell_type"] == "a")]
    return {
        "half of the real cells": more,
        "drops modes": one_type,
        "no correlation": independent_genes(more, "cell_type", seed=1),
        "too sparse": thin_out(more, 0.5),
    }


@pytest.mark.usefixtures("small_forests")
def test_a_wrong_generator_is_worse_on_the_metrics_meant_to_see_it(two_halves, bad):
    table = evaluate(two_halves[0], bad, floors=False)
    good = {metric: value(table, metric, "half of the real cells") for metric in table["metric"].unique()}
    seen = {
        "drops modes": [("recall", 0.3), ("coverage", 0.3), ("mmd2", 0.05), ("energy", 0.5), ("w2", 1.0)],
        "no correlation": [("frechet", 1), ("energy", 0.05), ("gene_correlation", 0.02), ("nn_accuracy", 0.05)],
        "too sparse": [("gene_zeros", 0.1), ("library_size", 0.2), ("rf_auc", 0.1)],
    }
    for source, metrics in seen.items():
        for metric, margin in metrics:
            worse = value(table, metric, source) - good[metric]
            if metric in ("recall", "coverage", "gene_zeros", "gene_correlation"):
                worse = -worse
            assert worse > margin, (source, metric, worse)
    assert value(table, "precision", "drops modes") > good["precision"] - 0.1  # what is there is fine
    # a shift of all fractions of zeros correlates all the same
    assert value(table, "gene_zeros_pearson", "too sparse") > 0.9


@pytest.mark.usefixtures("small_forests")
def test_another_condition_is_worse_and_its_labels_give_it_away(two_halves):
    real, more = two_halves
    swapped = more.copy()
    swapped.obs["cell_type"] = more.obs["cell_type"].cat.rename_categories({"a": "b", "b": "a"})
    swapped = ad.concat([swapped, swapped], index_unique="-")
    sources = {"right": ad.concat([more, more], index_unique="-"), "swapped": swapped}
    table = evaluate(real, sources, groupby="cell_type", floors=False, max_cells=60)
    for condition in "ab":
        for metric in ("w2", "mmd2", "energy", "frechet", "sinkhorn", "nn_accuracy", "rf_auc"):
            assert value(table, metric, "swapped", condition) > value(table, metric, "right", condition), metric
    for metric in TRANSFER:
        assert value(table, metric, "right") > 0.8
        assert value(table, metric, "swapped") < 0.5
        assert value(table, metric, "real half") > 0.8


@pytest.mark.usefixtures("small_forests")
def test_copies_of_the_training_cells_are_nearer_to_these_than_real_cells_are(two_halves):
    train, held_out = two_halves
    copies = train[np.random.default_rng(0).permutation(train.n_obs)].copy()
    table = evaluate(held_out, copies, train=train, floors=False)
    assert value(table, "nn_accuracy") == pytest.approx(value(table, "nn_accuracy", "real half"), abs=0.1)
    table = evaluate(train, copies, train=held_out, floors=False)
    assert value(table, "nn_accuracy") < 0.35 < 0.42 < value(table, "nn_accuracy", "real half")
    assert value(table, "w2") < 0.9 * value(table, "w2", "real half")


@pytest.mark.usefixtures("small_forests")
@pytest.mark.usefixtures("small_forests")
def test_components_tell_the_cells_they_were_fitted_on_from_others():
    values = log_normalize(pbmc3k())[np.random.default_rng(0).permutation(2_638)]
    x, y, others = np.split(values[:900], 3)
    for fitted_on, least, most in ((x, 0.85, 1), (others, 0.4, 0.6)):
        points = (Projection(fitted_on).transform(cells) for cells in (x, y))
        assert least < random_forest_auc(*points) < most


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_forests")
def test_the_table(two_halves):
    real, more = two_halves
    table = evaluate(real, more, groupby="cell_type", max_cells=50, seed=7)
    assert list(table.columns) == COLUMNS
    assert set(table["condition"]) == {"a", "b", "c", "mean", "all"}
    assert set(table["source"]) == {"generated", *FLOORS, "real half"}
    assert not table.duplicated(["condition", "source", "metric"]).any()
    assert table["value"].notna().all()
    assert (table["seed"] == 7).all()
    assert set(table.loc[table["condition"] == "a", "metric"]).isdisjoint(TRANSFER)
    assert set(TRANSFER) < set(table.loc[table["condition"] == "all", "metric"])

    # sizes: m cells of both, and how many there were
    first = table[table["metric"] == "w2"].set_index(["condition", "source"])
    assert first.loc[("a", "generated"), ["n_real", "n_generated", "n_available"]].tolist() == [50, 50, 200]
    assert first.loc[("a", "real half"), ["n_real", "n_generated", "n_available"]].tolist() == [50, 50, 134]
    for floor in ("independent genes", "gene copula"):
        assert first.loc[("b", floor), ["n_real", "n_generated", "n_available"]].tolist() == [40, 40, 40]
    assert first.loc[("c", "other conditions"), ["n_real", "n_generated", "n_available"]].tolist() == [27, 27, 214]
    assert first.loc[("all", "generated"), ["n_real", "n_generated", "n_available"]].tolist() == [49, 49, 400]
    assert ("all", "other conditions") not in first.index

    # definitions
    of = table.drop_duplicates("metric").set_index("metric")
    assert (of.loc[PRINCIPAL, "space"] == "20 PCs of log1p CP10k").all()
    assert (of.loc[PRINCIPAL, "n_components"] == 20).all()
    assert of.loc["gene_mean", "space"] == "log1p CP10k, 150 genes"
    assert of.loc["gene_mean", "n_components"] is pd.NA
    assert set(of.index[of["better"] == "lower"]) == samples.LOWER_IS_BETTER

    # mean, floor and ceiling
    for metric, best in (("mmd2", min), ("recall", max)):
        floors = [value(table, metric, f, "a") for f in FLOORS]
        rows = table[(table["condition"] == "a") & (table["metric"] == metric)]
        assert (rows["floor"] == best(floors)).all()
        assert (rows["ceiling"] == value(table, metric, "real half", "a")).all()
        mean = np.mean([value(table, metric, "generated", c) for c in "abc"])
        assert value(table, metric, "generated", "mean") == pytest.approx(mean)

    wide = summarize(table, ["all"])
    assert list(wide.columns) == ["generated", *FLOORS[1:], "real half", "better"]
    assert wide.loc["w2", "generated"] == value(table, "w2")
    assert list(summarize(table).index.unique("condition")) == ["mean", "all"]
    with pytest.raises(ValueError, match=r"\['z'\] are not in the table"):
        summarize(table, ["z"])


@pytest.mark.usefixtures("small_forests")
def test_the_same_seed_gives_the_same_table(two_halves):
    real, more = two_halves
    arguments = {"max_cells": 30}
    table = evaluate(real, more, **arguments)
    pd.testing.assert_frame_equal(table, evaluate(real, more, **arguments))
    other = evaluate(real, more, seed=1, **arguments)
    assert (table["value"] != other["value"]).mean() > 0.8
    # what stands beside a source does not touch its values
    beside = evaluate(real, {"other": real, "generated": more}, **arguments)
    pd.testing.assert_frame_equal(
        table.reset_index(drop=True),
        beside[beside["source"] != "other"].reset_index(drop=True),
    )


@pytest.mark.usefixtures("small_forests")
def test_genes_are_matched_by_name(two_halves):
    real, more = two_halves
    more = more.copy()
    extra = AnnData(sparse.csr_matrix(np.ones((more.n_obs, 1), dtype=np.float32)), obs=more.obs)
    extra.var_names = ["extra"]
    shuffled = ad.concat([extra, more[:, ::-1]], axis=1, merge="same")
    assert shuffled.var_names[1] == real.var_names[-1]
    expected = evaluate(real, more, max_cells=40, floors=False)
    pd.testing.assert_frame_equal(evaluate(real, shuffled, max_cells=40, floors=False), expected)
    dense = real.copy()
    dense.layers["counts"], dense.X = real.X.toarray(), None
    pd.testing.assert_frame_equal(evaluate(dense, shuffled, max_cells=40, floors=False, layer="counts"), expected)
    with pytest.raises(ValueError, match="generated lacks 1 of the 150 genes of real, such as"):
        evaluate(real, more[:, 1:])


@pytest.mark.usefixtures("small_forests")
def test_sizes_that_do_not_fit(two_halves):
    """The mix of conditions is the real one, whatever was generated."""
    real, more = two_halves  # 200, 120, 80
    rows = [np.flatnonzero(more.obs["cell_type"] == t)[:n] for t, n in (("a", 200), ("b", 120), ("c", 40))]
    table = evaluate(real, more[np.concatenate(rows)], groupby="cell_type", floors=False)
    n = table[(table["metric"] == "w2") & (table["source"] == "generated")].set_index("condition")["n_generated"]
    assert n[["a", "b", "c"]].tolist() == [67, 40, 20]
    assert n["all"] == sum([49, 29, 20])  # the 20 of c decide: 134, 80 and 54 real cells are to be compared


@pytest.mark.usefixtures("small_forests")
def test_small_conditions_are_left_out_with_a_warning(two_halves):
    real, more = two_halves
    few = np.r_[0:200, 200:320, 320:348]  # a third of the last 28 is set aside
    with pytest.warns(UserWarning, match="fewer than 20 real cells to compare: c"):
        table = evaluate(real[few], more, groupby="cell_type", floors=False, max_cells=20)
    assert set(table["condition"]) == {"a", "b", "mean", "all"}
    with pytest.raises(ValueError, match="fewer than 20 cells to compare in every condition"):
        evaluate(real[:28], more)


@pytest.mark.usefixtures("small_forests")
def test_a_half_may_be_without_a_small_condition(two_halves):
    real, more = two_halves
    some = real[np.r_[0:200, 200:320, 320:350]]  # of 10 cells of a half, one is of c, or none
    for seed in (2, 3):
        table = evaluate(some, more, groupby="cell_type", train=more, max_cells=10, seed=seed)
        assert table.loc[table["condition"] == "all", "value"].notna().all()


# --- floors ----------------------------------------------------------------------------------------------------------


def test_independent_genes(two_halves):
    real = two_halves[0]
    drawn = independent_genes(real, "cell_type", n=3000, seed=2)
    assert drawn.n_obs == 9000
    assert list(drawn.obs["cell_type"].value_counts()) == [3000] * 3
    assert drawn.X.format == "csr"
    assert (drawn.X.data == np.round(drawn.X.data)).all()
    of_type, drawn = real[real.obs["cell_type"] == "a"], drawn[drawn.obs["cell_type"] == "a"]
    x, y = (a.X.toarray().astype(float) for a in (of_type, drawn))
    sizes = x.sum(axis=1)
    # means, by hand: all 150 within 6 standard errors, once in a million draws not (4.9 was the most of 1,000 seeds)
    fraction = x.sum(axis=0) / sizes.sum()
    standard_error = np.sqrt(np.maximum(x.var(axis=0), x.mean(axis=0)) / len(y))
    assert (np.abs(y.mean(axis=0) - fraction * sizes.mean()) < 6 * standard_error).all()
    # variances: the ratios are between 0.6 and 1.7 in 60 seeds; Poisson counts have a tenth of these variances
    overdispersed = np.argsort(-x.var(axis=0))[:20]
    ratio = y.var(axis=0)[overdispersed] / x.var(axis=0)[overdispersed]
    assert 0.35 < ratio.min() < ratio.max() < 3
    log_real, log_drawn = (log_normalize(a)[:, overdispersed] for a in (of_type, drawn))
    pairs = np.triu_indices(20, 1)  # 0.029 at most in 200 seeds, and 0.14 in the real cells, of which none is drawn
    assert np.abs(np.corrcoef(log_drawn.T)[pairs]).mean() < 0.05 < 0.1 < np.abs(np.corrcoef(log_real.T)[pairs]).mean()

    again = independent_genes(real, "cell_type", n=3000, seed=2)
    assert (again[again.obs["cell_type"] == "a"].X != drawn.X).nnz == 0
    assert independent_genes(real).n_obs == real.n_obs
    with pytest.raises(ValueError, match="n=0"):
        independent_genes(real, n=0)


def test_independent_genes_without_overdispersion_are_poisson():
    counts = np.random.default_rng(0).poisson(np.linspace(0, 8, 20), (2000, 20)).astype(np.float32)
    drawn = independent_genes(AnnData(counts), seed=1).X.toarray()
    np.testing.assert_allclose(drawn.var(axis=0), counts.var(axis=0), rtol=0.25)
    assert (drawn[:, 0] == 0).all()


def test_cell_mean(two_halves):
    real = two_halves[0]
    table = cell_mean(real, "cell_type")
    expected = log_normalize(real[real.obs["cell_type"] == "b"]).mean(axis=0)
    np.testing.assert_allclose(table.loc["b"], expected, atol=1e-5)
    assert list(table.columns) == list(real.var_names)
    assert list(cell_mean(real).index) == ["all"]


@pytest.mark.usefixtures("small_forests")
@pytest.mark.parametrize("with_train", [True, False])
def test_conditions_that_do_not_differ_have_a_floor_as_good_as_the_ceiling(two_halves, with_train):
    real, more = (adata.copy() for adata in two_halves)
    for adata in (real, more):
        adata.obs["label"] = np.random.default_rng(0).permutation(["x", "y"] * 200)
    table = evaluate(real, more, groupby="label", train=more if with_train else None)
    for metric, tolerance in {"rf_auc": 0.12, "nn_accuracy": 0.1, "mmd2": 0.01, "precision": 0.1}.items():
        ceiling = value(table, metric, "real half", "mean")
        assert value(table, metric, "other conditions", "mean") == pytest.approx(ceiling, abs=tolerance)


@pytest.mark.usefixtures("small_forests")
def test_floors_and_components_come_from_the_training_cells(two_halves):
    real, more = two_halves
    train = more.copy()
    train.layers["counts"] = train.X.copy()
    real = real.copy()
    real.layers["counts"] = real.X.copy()
    arguments = {"groupby": "cell_type", "max_cells": 30, "layer": "counts"}
    before = evaluate(real, more, train=train, **arguments)
    first = before[before["metric"] == "w2"].set_index(["condition", "source"])
    assert first.loc[("a", "cell mean"), "n_available"] == 200  # and not a third
    assert first.loc[("a", "real half"), "n_available"] == 200

    # of other training cells come other components, and a condition they lack has no floors of its own
    train = train[train.obs["cell_type"] != "c"]
    table = evaluate(real, more, train=train, **arguments)
    assert value(table, "w2") != value(before, "w2")
    assert value(table, "gene_mean") == value(before, "gene_mean")
    of_c = table[table["condition"] == "c"]
    assert set(of_c.loc[of_c["kind"] == "floor", "source"]) == {"other conditions"}
    # means over different conditions could not be compared
    assert set(table.loc[(table["condition"] == "mean") & (table["kind"] == "floor"), "source"]) == {"other conditions"}


@pytest.mark.usefixtures("small_forests")
def test_combinations_of_several_keys_are_conditions(two_halves):
    """They are evaluated as the levels of one column that says as much, and called as in the other evaluations."""
    real, more = (adata[adata.obs["cell_type"] != "c"].copy() for adata in two_halves)
    for adata in (real, more):
        adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
        adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 2, "x", "y")
        adata.obs["both"] = [f"cell_type={t}, donor={d}" for t, d in adata.obs[["cell_type", "donor"]].to_numpy()]
    arguments = {"train": more, "max_cells": 10, "floors": False}
    table = evaluate(real, more, ["cell_type", "donor"], **arguments)
    assert "cell_type=a, donor=x" in set(table["condition"])
    pd.testing.assert_frame_equal(table, evaluate(real, more, ["both"], **arguments))
    lacking = more[more.obs["both"] != "cell_type=b, donor=x"]
    with pytest.raises(ValueError, match="generated has 0 cells with cell_type=b, donor=x: at least 20"):
        evaluate(real, lacking, ("cell_type", "donor"))
    with pytest.raises(ValueError, match="names a column twice"):
        evaluate(real, more, ["cell_type", "cell_type"])


def test_without_floors_there_is_none(two_halves):
    record = {
        "condition": "all", "source": "generated", "kind": "generated", "metric": "w2", "value": 1.0,
        "better": "lower", "space": "counts", "n_components": None, "n_real": 1, "n_generated": 1, "n_available": 1,
        "seed": 0,
    }  # fmt: skip
    table = finish([record])
    assert table[["floor", "ceiling"]].isna().all(axis=None)
    with pytest.raises(ValueError, match="no condition could be compared"):
        finish([])


# --- many cells, bad input, real data --------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_forests")
def test_many_cells_are_never_dense_together(monkeypatch):
    """20,000 cells: no more are made dense at once than the cap allows, and few altogether."""
    counts = sparse.random(20_000, 300, density=0.05, format="csr", random_state=0, dtype=np.float32)
    counts.data = np.ceil(counts.data * 5)
    real = AnnData(counts)
    real.obs["group"] = np.where(np.arange(20_000) % 4, "x", "y")
    dense = []

    def spy(function):
        def log_normalize_dense(counts):
            dense.append(counts.shape[0])
            return function(counts)

        return log_normalize_dense

    for module in (cells_module, samples):
        monkeypatch.setattr(module, "log_normalize_dense", spy(module.log_normalize_dense))
    monkeypatch.setattr(cells_module, "BLOCK", 300 * 100)  # of the mean profile
    table = evaluate(real, real, groupby="group", max_cells=40)
    assert max(dense) == 5 * 40  # the principal components
    assert table.loc[table["condition"] != "mean", "n_generated"].max() == 40
    assert table.loc[table["source"] == "generated", "n_available"].min() == 5_000


def test_bad_input(two_halves):
    real, more = two_halves
    log = more.copy()
    log.X = log.X.log1p()
    no_b = more[more.obs["cell_type"] != "b"]
    for error, message, arguments in [
        (ValueError, "generated has values", (real, log)),
        (ValueError, r"generated\['ours'\] has values", (real, {"ours": log})),
        (TypeError, "generated", (real, more.X)),
        (TypeError, "real", (real.X, more)),
        (ValueError, r"none of \['cell mean', 'gene copula', 'independent genes'", (real, {"cell mean": more})),
        (KeyError, "'dose' is not a column", (real, more, "dose")),
        (ValueError, r"generated has 0 cells with cell_type='b': at least 20", (real, no_b, "cell_type")),
        (ValueError, r"generated has 10 cells: at least 20", (real, more[:10])),
    ]:
        with pytest.raises(error, match=message):
            evaluate(*arguments)
    with pytest.raises(ValueError, match="max_cells=5"):
        evaluate(real, more, max_cells=5)
    with pytest.raises(ValueError, match="n_components=0"):
        evaluate(real, more, n_components=0)
    renamed = [a.copy() for a in two_halves]
    for adata in renamed:
        adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"a": "all"})
    with pytest.raises(ValueError, match=r"has the levels \['all'\]"):
        evaluate(*renamed, groupby="cell_type")


@pytest.mark.usefixtures("small_forests")
def test_progress_is_shown(two_halves, capsys):
    real, more = two_halves
    evaluate_generation(real, more, "cell_type", max_cells=20, floors=False)
    shown = capsys.readouterr().err
    assert "evaluate a" in shown
    assert "evaluate all" in shown
    assert "100%" in shown
    evaluate(real, more, max_cells=20, floors=False)
    assert not capsys.readouterr().err


def test_real_cells_of_pbmc3k_beat_independent_genes():
    cells = pbmc3k()
    cells = cells[cells.obs["cell_type"].isin(["B cells", "CD14+ Monocytes"])]
    real, more = cells[::2], cells[1::2]
    sources = {"real": more, "independent": independent_genes(cells, "cell_type", seed=1)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = evaluate_generation(real, sources, floors=False, max_cells=150, progress_bar=False)
    found = summarize(table)
    assert found.loc["rf_auc", "real"] < 0.6 < 0.75 < found.loc["rf_auc", "independent"]
    assert abs(found.loc["mmd2", "real"]) < 0.005 < found.loc["mmd2", "independent"]
    assert abs(found.loc["mmd2", "real half"]) < 0.005
