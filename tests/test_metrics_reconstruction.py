"""Reconstructions of cells, row by row, against numpy and scipy."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.stats import pearsonr

from sclatent.datasets import glioblastoma, pbmc3k, simulate
from sclatent.metrics import _cells, _reconstruction, evaluate_reconstruction, log_normalize, summarize


def value(table: pd.DataFrame, metric: str, condition: str = "all", source: str = "reconstructed") -> float:
    chosen = table[(table["condition"] == condition) & (table["source"] == source) & (table["metric"] == metric)]
    return chosen["value"].item()


@pytest.fixture(scope="module")
def real() -> AnnData:
    return simulate(150, 80, cell_types=["B", "T"], library_size=300, seed=2)


@pytest.fixture(scope="module")
def noisy(real) -> AnnData:
    """The cells measured again, with half the counts."""
    other = real.copy()
    other.X.data = np.random.default_rng(0).binomial(other.X.data.astype(int), 0.5).astype(np.float32)
    return other


def test_values_are_those_of_scipy_and_numpy(real, noisy):
    table = evaluate_reconstruction(real, noisy, "cell_type", progress_bar=False)
    x, y = log_normalize(real).astype(float), log_normalize(noisy).astype(float)
    is_b = (real.obs["cell_type"] == "B").to_numpy()
    for condition, rows in (("all", np.ones(150, bool)), ("B", is_b), ("T", ~is_b)):
        correlations = [pearsonr(a, b).statistic for a, b in zip(x[rows], y[rows], strict=True)]
        assert value(table, "pearson", condition) == pytest.approx(np.mean(correlations), rel=1e-5)
        assert value(table, "mse", condition) == pytest.approx(((x[rows] - y[rows]) ** 2).mean(), rel=1e-5)
        means, zeros = [v[rows].mean(axis=0) for v in (x, y)], [(v[rows] == 0).mean(axis=0) for v in (x, y)]
        assert value(table, "gene_mean_pearson", condition) == pytest.approx(pearsonr(*means).statistic, rel=1e-5)
        assert value(table, "gene_zeros_pearson", condition) == pytest.approx(pearsonr(*zeros).statistic, rel=1e-5)
        assert value(table, "gene_zeros", condition) < value(table, "gene_zeros_pearson", condition)  # all more zeros
    sizes = [np.log10(np.asarray(a.X.sum(axis=1)).ravel()) for a in (real, noisy)]
    assert value(table, "library_size_error") == pytest.approx(np.abs(sizes[0] - sizes[1]).mean(), rel=1e-6)
    for metric in table["metric"].unique():
        both = [value(table, metric, c) for c in "BT"]
        if not metric.startswith("gene_"):
            both_weighted = np.average(both, weights=[is_b.sum(), (~is_b).sum()])
            assert value(table, metric) == pytest.approx(both_weighted)
    assert value(table, "mse", "mean") == pytest.approx(np.mean([value(table, "mse", c) for c in "BT"]))
    assert set(table.loc[table["condition"] == "B", "n_real"]) == {is_b.sum()}


def test_combinations_of_several_keys_are_conditions(real, noisy):
    cells = real.copy()
    cells.obs["both"] = [f"cell_type={t}, condition={c}" for t, c in cells.obs[["cell_type", "condition"]].to_numpy()]
    table = evaluate_reconstruction(cells, noisy, ["cell_type", "condition"], progress_bar=False)
    assert "cell_type=B, condition=control" in set(table["condition"])
    pd.testing.assert_frame_equal(table, evaluate_reconstruction(cells, noisy, "both", progress_bar=False))
    pd.testing.assert_frame_equal(table, evaluate_reconstruction(cells, noisy, ["both"], progress_bar=False))


def test_the_cells_themselves_are_perfect_and_the_floor_is_not(real, noisy):
    table = evaluate_reconstruction(real, {"itself": real, "noisy": noisy}, "cell_type", progress_bar=False)
    wide = summarize(table, ["all"])
    assert wide.loc[["pearson", "gene_mean", "gene_zeros"], "itself"].to_numpy() == pytest.approx(1)
    assert wide.loc[["mse", "library_size_error"], "itself"].tolist() == [0, 0]
    assert wide.loc["pearson", "condition mean"] < wide.loc["pearson", "noisy"] < 1
    assert wide["condition mean"].dropna().index.tolist() == ["pearson", "mse"]
    assert table["ceiling"].isna().all()
    assert (table.loc[table["metric"] == "mse", "floor"] > 0).all()

    x, cell_type = log_normalize(real).astype(float), real.obs["cell_type"].to_numpy()
    means = np.stack([x[cell_type == t].mean(axis=0) for t in cell_type])
    assert wide.loc["mse", "condition mean"] == pytest.approx(((x - means) ** 2).mean(), rel=1e-5)


def test_cells_are_paired_by_name_or_by_row_and_genes_by_name(real, noisy):
    expected = evaluate_reconstruction(real, noisy, progress_bar=False)
    order = np.random.default_rng(1).permutation(real.n_obs)
    pd.testing.assert_frame_equal(evaluate_reconstruction(real, noisy[order, ::-1], progress_bar=False), expected)
    unnamed = noisy.copy()
    unnamed.obs_names = [f"row {i}" for i in range(real.n_obs)]
    pd.testing.assert_frame_equal(evaluate_reconstruction(real, unnamed, progress_bar=False), expected)
    twice = [adata.copy() for adata in (real, noisy)]
    for adata in twice:
        adata.obs_names = ["cell"] * real.n_obs
    pd.testing.assert_frame_equal(evaluate_reconstruction(*twice, progress_bar=False), expected)
    # a reconstruction may have more cells than are asked for, as of the training data
    part = evaluate_reconstruction(real[:50], noisy, progress_bar=False)
    pd.testing.assert_frame_equal(part, evaluate_reconstruction(real[:50], noisy[:50], progress_bar=False))


def test_expected_counts_and_layers(real):
    stored = real.copy()
    stored.layers["counts"], stored.X = stored.X, stored.X * 0
    smooth = real.copy()
    smooth.X = real.X.toarray() * 0.5 + 0.1
    with_layer = evaluate_reconstruction(stored, smooth, layer="counts", progress_bar=False)
    pd.testing.assert_frame_equal(with_layer, evaluate_reconstruction(real, smooth, progress_bar=False))
    assert value(with_layer, "pearson") > 0.9


def test_blocks_change_nothing(real, noisy, monkeypatch):
    expected = evaluate_reconstruction(real, noisy, "cell_type", progress_bar=False)
    for module in (_cells, _reconstruction):
        monkeypatch.setattr(module, "BLOCK", 7 * real.n_vars)
    table = evaluate_reconstruction(real, noisy, "cell_type", progress_bar=False)
    pd.testing.assert_frame_equal(table, expected, rtol=1e-5)


def test_cells_without_counts():
    real = simulate(40, 30, library_size=100, seed=1)
    nothing = AnnData(np.zeros(real.shape, dtype=np.float32), obs=real.obs, var=real.var)
    table = evaluate_reconstruction(real, nothing, progress_bar=False)
    assert value(table, "pearson") == 0
    assert np.isfinite(table.loc[table["kind"] == "generated", "value"]).all()


@pytest.mark.parametrize("data", [glioblastoma, pbmc3k])
def test_thinned_real_cells_lie_between_the_floor_and_perfection(data):
    """Half of the counts of a cell, as good as a second measurement, predict the other half."""
    adata = data()
    adata = adata[np.random.default_rng(0).choice(adata.n_obs, 600, replace=False)].copy()
    half, rest = adata.copy(), adata.copy()
    half.X.data = np.random.default_rng(0).binomial(adata.X.data.astype(int), 0.5).astype(np.float32)
    rest.X.data = adata.X.data - half.X.data
    key = "cell_type" if "cell_type" in adata.obs else "patient_id"
    wide = summarize(evaluate_reconstruction(rest, half, key, progress_bar=False), ["all"])
    assert wide.loc["gene_mean", "reconstructed"] > 0.98
    assert wide.loc["gene_zeros", "reconstructed"] > 0.98
    assert 0.2 < wide.loc["pearson", "reconstructed"] < 0.95
    # sparse cells are better predicted by their type than by a second measurement: what the floor is there to tell
    assert wide.loc["mse", "condition mean"] < wide.loc["mse", "reconstructed"]


def test_input_that_cannot_be_paired_is_refused(real, noisy):
    def evaluate(*args, **kwargs):
        return evaluate_reconstruction(*args, progress_bar=False, **kwargs)

    with pytest.raises(ValueError, match=r"150 cells of real cannot be paired with the 50 .* share 50"):
        evaluate(real, noisy[:50])
    with pytest.raises(ValueError, match="reconstructed lacks 40 of the 80 genes"):
        evaluate(real, noisy[:, :40])
    with pytest.raises(ValueError, match=r"reconstructed\['a'\] has values that are negative"):
        evaluate(real, {"a": AnnData(-noisy.X, obs=noisy.obs, var=noisy.var)})
    with pytest.raises(ValueError, match="real has values that are not whole numbers"):
        evaluate(AnnData(log_normalize(real), obs=real.obs, var=real.var), noisy)
    with pytest.raises(KeyError, match="groupby, real: 'tissue' is not a column"):
        evaluate(real, noisy, "tissue")
    with pytest.raises(TypeError, match="reconstructed must be an AnnData with raw counts, not ndarray"):
        evaluate(real, log_normalize(noisy))
    assert set(evaluate(real, {})["source"]) == {"condition mean"}
