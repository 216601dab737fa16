"""What a user relies on in sclatent.datasets: counts, categories, and a simulator that tells the truth."""

from pathlib import Path
from urllib.error import URLError

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from sclatent.datasets import blood_cells, glioblastoma, kang, mitocheck, pbmc3k, simulate


def assert_counts(adata: AnnData) -> None:
    """X holds whole, positive numbers in CSR, and no cell is empty."""
    assert sparse.issparse(adata.X)
    assert adata.X.format == "csr"
    assert adata.X.data.min() >= 1
    np.testing.assert_array_equal(adata.X.data, np.rint(adata.X.data))
    assert np.asarray(adata.X.sum(axis=1)).min() > 0
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique


def assert_same(one: AnnData, other: AnnData) -> None:
    assert (one.X != other.X).nnz == 0
    pd.testing.assert_frame_equal(one.obs, other.obs)
    pd.testing.assert_frame_equal(one.var, other.var)
    assert set(one.uns["truth"]) == set(other.uns["truth"])
    for key, value in one.uns["truth"].items():
        np.testing.assert_array_equal(value, other.uns["truth"][key], err_msg=key)


# ---- bundled data


def test_glioblastoma_has_both_arms_of_five_patients():
    adata = glioblastoma()
    assert_counts(adata)
    assert adata.shape == (5_000, 300)
    arms = pd.crosstab(adata.obs["patient_id"], adata.obs["condition"])
    assert list(arms.columns) == ["ctrl", "panobinostat"]
    assert arms.shape == (5, 2)
    assert (arms == 500).all(axis=None)


def test_pbmc3k_has_eight_cell_types():
    adata = pbmc3k()
    assert_counts(adata)
    assert adata.shape == (2_638, 2_000)
    assert len(adata.obs["cell_type"].cat.categories) == 8


@pytest.mark.parametrize(
    ("load", "n_cells", "key", "n_labels"), [(mitocheck, 3_277, "phenotype", 16), (blood_cells, 2_000, "cell_type", 8)]
)
def test_images_come_with_embeddings_labels_and_a_shape(load, n_cells, key, n_labels):
    adata = load()
    assert adata.shape == (n_cells, 64)
    assert np.isfinite(adata.X).all()
    assert adata.obsm["image"].dtype == np.uint8
    assert adata.obsm["image"].shape == (n_cells, np.prod(adata.uns["image_shape"]))
    assert len(adata.obs[key].cat.categories) == n_labels
    assert adata.obs[key].notna().all()


@pytest.mark.parametrize("load", [glioblastoma, pbmc3k])
def test_a_second_call_does_not_see_changes_to_the_first(load):
    first = load()
    total = first.X.sum()
    first.X.data[:] = 0
    first.obs["mine"] = 1
    second = load()
    assert second.X.sum() == total
    assert "mine" not in second.obs


# ---- Kang et al. 2018, in the shape of the public file


@pytest.fixture
def public_file() -> AnnData:
    """Six cells with the public file's columns and labels."""
    counts = np.array([[0, 1], [2, 0], [3, 1], [1, 1], [0, 4], [5, 0]])
    obs = pd.DataFrame(
        {
            "label": ["ctrl", "stim"] * 3,
            "replicate": ["patient_101"] * 6,
            "cell_type": ["B cells", "B cells", "NK cells"] * 2,
        },
        index=[f"cell_{i}" for i in range(6)],
    )
    return AnnData(counts.astype(np.float64), obs=obs)


def test_kang_from_a_file_has_the_documented_columns(public_file, tmp_path):
    public_file.write_h5ad(tmp_path / "mine.h5ad")
    adata = kang(tmp_path / "mine.h5ad")
    assert list(adata.obs["condition"].cat.categories) == ["control", "stimulated"]
    assert list(adata.obs["condition"]) == ["control", "stimulated"] * 3
    assert list(adata.obs["cell_type"].cat.categories) == ["B cells", "NK cells"]
    assert set(adata.obs["donor"]) == {"patient_101"}
    assert adata.X.format == "csr"
    np.testing.assert_array_equal(adata.X.toarray(), public_file.X)


@pytest.fixture
def datasetdir(tmp_path: Path):
    """scanpy's folder of data sets, empty."""
    before, sc.settings.datasetdir = sc.settings.datasetdir, tmp_path
    yield tmp_path
    sc.settings.datasetdir = before


def test_kang_downloads_once(public_file, datasetdir, monkeypatch):
    calls = []

    def read(path, *, backup_url):
        calls.append(backup_url)
        public_file.write_h5ad(path)
        return ad.read_h5ad(path)

    monkeypatch.setattr(sc, "read", read)
    first, second = kang(), kang()
    assert len(calls) == 1
    assert calls[0].endswith("kang_2018.h5ad")
    pd.testing.assert_frame_equal(first.obs, second.obs)


def test_kang_offline_says_what_to_do_and_leaves_nothing(datasetdir, monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(ConnectionError, match=r"no route to host.*kang_2018\.h5ad.*kang\(path="):
        kang()
    assert list(datasetdir.iterdir()) == []


def test_kang_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path='.*nowhere\.h5ad' is not a file"):
        kang(tmp_path / "nowhere.h5ad")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: setattr(a, "X", np.log1p(a.X)), "raw counts"),
        (lambda a: setattr(a, "X", -a.X), "raw counts"),
        (lambda a: a.obs.pop("cell_type"), r"no obs columns \['cell_type'\]"),
        (lambda a: a.obs.replace("stim", "IFN", inplace=True), r"\['IFN'\]"),
    ],
    ids=["normalised", "negative", "no cell type", "unknown condition"],
)
def test_kang_refuses_other_data(public_file, tmp_path: Path, spoil, message):
    spoil(public_file)
    public_file.write_h5ad(tmp_path / "mine.h5ad")
    with pytest.raises(ValueError, match=message):
        kang(tmp_path / "mine.h5ad")


# ---- the simulator


@pytest.fixture(scope="module")
def simulated() -> AnnData:
    return simulate(3_000, 400, cell_types=["B", "T", "NK"], n_batches=2, density=0.4, store_mean=True)


def test_simulated_cells_are_counts_with_categories(simulated):
    assert_counts(simulated)
    assert list(simulated.obs["cell_type"].cat.categories) == ["B", "T", "NK"]
    assert list(simulated.obs["condition"].cat.categories) == ["control", "stimulated"]
    assert list(simulated.obs["batch"].cat.categories) == ["batch_0", "batch_1"]
    assert (simulated.obs.groupby(["cell_type", "condition"], observed=True).size() == 500).all()


def test_group_means_are_the_documented_truth(simulated):
    """sum of counts / sum of library sizes of a group estimates its fractions, batch by batch."""
    truth = simulated.uns["truth"]
    codes = simulated.obs[["cell_type", "condition", "batch"]].apply(lambda column: column.cat.codes)
    groups = codes.groupby(list(codes)).indices
    assert len(groups) == 3 * 2 * 2
    for (t, c, b), cells in groups.items():
        total = simulated.obs["library_size"].iloc[cells].sum()
        seen = np.asarray(simulated.X[cells].sum(axis=0)).ravel() / total
        expected = truth["fraction"][t, c] * truth["batch_factor"][b]
        assert np.corrcoef(seen, expected)[0, 1] > 0.99
        common = expected > np.median(expected)
        assert np.abs(np.log(seen[common] / expected[common])).mean() < 0.1


def test_counts_have_the_documented_mean_and_variance(simulated):
    mean = simulated.layers["mean"].astype(float)
    variance = mean + mean**2 / simulated.var["dispersion"].to_numpy()
    residual = (simulated.X.toarray() - mean) / np.sqrt(variance)
    by_gene = residual.sum(axis=0) / np.sqrt(simulated.n_obs)  # standard normal if the mean is right
    assert abs(by_gene.mean()) < 4 / np.sqrt(simulated.n_vars)
    assert 0.8 < by_gene.std() < 1.2
    assert (residual**2).mean() == pytest.approx(1, abs=0.05)


def test_programs_rebuild_the_mean(simulated):
    """The parts that are returned give layers['mean'] by the formula of the docstring."""
    truth = simulated.uns["truth"]
    t, c, b = (simulated.obs[key].cat.codes.to_numpy() for key in ("cell_type", "condition", "batch"))
    fold = truth["fraction"][t, c] / (truth["program_weights"] @ simulated.varm["programs"].T)[t]
    mean = (
        simulated.obs["library_size"].to_numpy()[:, None]
        * (simulated.obsm["program_weights"] @ simulated.varm["programs"].T)
        * fold
        * truth["batch_factor"][b]
    )
    np.testing.assert_allclose(simulated.layers["mean"], mean, rtol=1e-5)
    effect = (truth["shared_effect"] + truth["specific_effect"]) @ simulated.varm["markers"].T
    log_fold = np.log(truth["fraction"] / truth["fraction"][:, :1])
    offset = log_fold - effect
    np.testing.assert_allclose(offset, np.broadcast_to(offset[..., :1], offset.shape), atol=1e-9)
    assert (effect[:, 0] == 0).all()
    assert (effect[:, 1] != 0).any()
    np.testing.assert_allclose(truth["fraction"].sum(axis=-1), 1)


def test_library_sizes_follow_their_log_normal(simulated):
    obs = simulated.obs
    groups = np.log(obs["library_size"]).groupby([obs["cell_type"], obs["condition"]], observed=True)
    np.testing.assert_allclose(groups.mean().unstack(), simulated.uns["truth"]["log_library_size"], atol=0.06)
    np.testing.assert_allclose(groups.std(), 0.3, atol=0.04)


@pytest.mark.parametrize(("n_genes", "density"), [(2_000, 0.25), (17_002, 0.10)])
def test_density_is_reached(n_genes, density):
    adata = simulate(600, n_genes, density=density)
    assert adata.X.nnz / (600 * n_genes) == pytest.approx(density, rel=0.05)


def test_library_size_in_place_of_density():
    adata = simulate(500, 200, library_size=750, library_size_sd=0.0)
    assert np.exp(adata.uns["truth"]["log_library_size"].mean()) == pytest.approx(750)
    assert np.median(np.asarray(adata.X.sum(axis=1))) == pytest.approx(750, rel=0.25)


@pytest.mark.parametrize(("specificity", "low", "high"), [(0.0, 1 - 1e-9, 1.0), (1.0, -1.0, 0.6)])
def test_type_specificity_decides_how_alike_types_answer(specificity, low, high):
    truth = simulate(10, 500, cell_types=4, n_programs=40, type_specificity=specificity).uns["truth"]
    log_fold = np.log(truth["fraction"][:, 1] / truth["fraction"][:, 0])
    alike = np.corrcoef(log_fold)[np.triu_indices(4, 1)]
    assert low <= alike.mean() <= high + 1e-9


def test_no_effect_leaves_the_control():
    fraction = simulate(10, 100, effect_size=0.0, conditions=3).uns["truth"]["fraction"]
    np.testing.assert_allclose(fraction, np.broadcast_to(fraction[:, :1], fraction.shape))


def test_the_seed_decides():
    one, same, other = (simulate(300, 100, seed=seed) for seed in (3, 3, 4))
    assert_same(one, same)
    assert (one.X != other.X).nnz > 0


def test_simulated_cells_survive_h5ad(simulated, tmp_path):
    simulated.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert_same(simulated, back)
    np.testing.assert_array_equal(simulated.layers["mean"], back.layers["mean"])
    np.testing.assert_array_equal(simulated.varm["programs"], back.varm["programs"])
    np.testing.assert_array_equal(simulated.obsm["program_weights"], back.obsm["program_weights"])


def test_more_cells_than_fit_in_a_block():
    """12,000 x 400 counts are drawn in several blocks; their mean is still that of the model."""
    adata = simulate(12_000, 400, store_mean=True, seed=2)
    assert adata.X.sum() == pytest.approx(adata.layers["mean"].sum(dtype=float), rel=0.01)
    last = adata[-500:]
    assert last.X.sum() == pytest.approx(last.layers["mean"].sum(dtype=float), rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_cells": 0}, "n_cells=0 .*at least 1"),
        ({"n_genes": 0.5}, "n_genes=0.5 .*at least 1"),
        ({"density": 1.0}, "density=1.0 .*between 0 and 1"),
        ({"density": 0.2, "library_size": 100}, "density=0.2 and library_size=100 were both given"),
        ({"density": 0.99, "dispersion": 0.05}, "density=0.99 is out of reach"),
        ({"dispersion": 0}, "dispersion=0 .*positive"),
        ({"dispersion": [1.0, 2.0]}, "one for each of 50 genes"),
        ({"type_specificity": 2}, "type_specificity=2 .*from 0 to 1"),
        ({"cell_types": ["B", "B"]}, r"cell_types=\['B', 'B'\] .*none of them twice"),
        ({"conditions": 0}, "conditions=0 .*one name or more"),
    ],
)
def test_simulate_names_the_bad_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate(**{"n_cells": 20, "n_genes": 50, **arguments})


def test_simulate_refuses_a_name_where_names_belong():
    with pytest.raises(TypeError, match="cell_types='B' is one name"):
        simulate(cell_types="B")
