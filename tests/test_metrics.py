"""Metrics against numpy, scipy and scanpy, and the floors by hand."""

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from scipy.stats import pearsonr

from sclatent.metrics import (
    log_normalize,
    mean_change,
    mean_shift,
    pearson_of_change,
    top_responding,
)


def cells(seed: int, n: int = 40, n_genes: int = 60, fold: float = 0.0) -> AnnData:
    """Counts in which the genes differ, and change by a pattern of their own times ``fold``."""
    pattern = np.random.default_rng(99).normal(size=n_genes)
    mean = np.exp(np.linspace(-1, 2, n_genes) + fold * pattern)
    counts = np.random.default_rng(seed).poisson(mean, size=(n, n_genes))
    return AnnData(sparse.csr_matrix(counts.astype(np.float32)))


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, lambda x: x.toarray()])
def test_log_normalize_is_that_of_scanpy(kind):
    adata = cells(0)
    expected = adata.copy()
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    adata.X = kind(adata.X)
    before = adata.X.copy()
    np.testing.assert_allclose(log_normalize(adata), expected.X.toarray(), rtol=1e-5)
    assert abs(before - adata.X).sum() == 0


def test_log_normalize_takes_a_layer_and_cells_without_counts():
    adata = cells(0)
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X * 0
    assert (log_normalize(adata) == 0).all()
    assert log_normalize(adata, "counts").sum() > 0


def test_pearson_of_change_is_that_of_scipy():
    real, predicted, control = cells(0, fold=1), cells(1, fold=0.5), cells(2)
    x, y, c = (log_normalize(a).mean(axis=0, dtype=float) for a in (real, predicted, control))
    np.testing.assert_allclose(mean_change(real, control), x - c)
    r = pearson_of_change(real, predicted, control)
    assert r == pytest.approx(pearsonr(x - c, y - c).statistic)
    assert r == pytest.approx(pearson_of_change(real, y - c, control))  # cells, or the change itself
    assert 0.8 < r < 1


def test_a_constant_change_has_no_correlation():
    real, control = cells(0, fold=1), cells(2)
    assert pearson_of_change(real, control, control) == 0
    assert pearson_of_change(real, np.full(60, 0.1), control) == 0


def test_top_responding_counts_both_directions():
    np.testing.assert_array_equal(top_responding(np.array([0.1, -3.0, 2.0, 0.0]), 2), [1, 2])


@pytest.fixture
def groups() -> AnnData:
    """Three groups of different size; the treated cells of the third are held out."""
    parts = {
        ("a", "ctrl"): cells(0, 90), ("a", "drug"): cells(1, 30, fold=1),
        ("b", "ctrl"): cells(2, 20), ("b", "drug"): cells(3, 50, fold=-0.5),
        ("c", "ctrl"): cells(4, 40),
    }  # fmt: skip
    obs = [pd.DataFrame({"group": g, "condition": c}, index=range(p.n_obs)) for (g, c), p in parts.items()]
    adata = AnnData(sparse.vstack([p.X for p in parts.values()]).tocsr())
    adata.obs = pd.concat(obs).set_index(adata.obs_names).astype("category")
    return adata


def test_mean_shift_is_the_mean_over_the_other_groups(groups):
    values, obs = log_normalize(groups).astype(float), groups.obs
    mean = {
        (g, c): values[((obs.group == g) & (obs.condition == c)).to_numpy()].mean(axis=0)
        for g in "ab"
        for c in ("ctrl", "drug")
    }
    expected = sum(mean[g, "drug"] - mean[g, "ctrl"] for g in "ab") / 2
    arguments = ("condition", "ctrl", "drug", "group", "c")
    np.testing.assert_allclose(mean_shift(groups, *arguments), expected, atol=1e-6)

    seen = obs.group.isin(["a", "b"])
    pooled = (
        values[(seen & (obs.condition == "drug")).to_numpy()].mean(axis=0)
        - values[(seen & (obs.condition == "ctrl")).to_numpy()].mean(axis=0)
    )  # fmt: skip
    np.testing.assert_allclose(mean_shift(groups, *arguments, pooled=True), pooled, atol=1e-6)


def test_mean_shift_never_sees_the_group_that_is_held_out(groups):
    arguments = ("condition", "ctrl", "drug", "group", "a")
    before = mean_shift(groups, *arguments)
    groups.X = sparse.csr_matrix(
        groups.X.multiply(1 + 9 * (groups.obs.group == "a").to_numpy()[:, None] * np.arange(60))
    )
    np.testing.assert_array_equal(before, mean_shift(groups, *arguments))


def test_mean_shift_says_what_is_missing(groups):
    with pytest.raises(ValueError, match=r"No group of .*'group'.* but 'a' has cells of both 'ctrl' and 'drug'"):
        mean_shift(groups[groups.obs.group != "b"], "condition", "ctrl", "drug", "group", "a")
    with pytest.raises(KeyError, match="'dose' is not a column"):
        mean_shift(groups, "dose", "ctrl", "drug", "group", "a")


def test_genes_in_another_order_are_refused():
    real, control = cells(0), cells(1)
    with pytest.raises(ValueError, match="order"):
        mean_change(real[:, ::-1], control)
