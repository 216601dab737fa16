"""Counts and features are read alike wherever they lie and of whatever type, in blocks; or it is said what to do."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import h5py
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from anndata.io import sparse_dataset, write_elem
from scipy import sparse

import sclatent
from sclatent.data import _reading, by_rows, read_rows, row_blocks, totals
from sclatent.metrics import (
    _cells,
    _reconstruction,
    cell_mean,
    evaluate_generation,
    evaluate_perturbation,
    evaluate_reconstruction,
    independent_genes,
    linear_shift,
    log_normalize,
    mean_change,
    mean_shift,
)
from sclatent.metrics import _classifiers as classifiers
from sclatent.model import DAED, SCLDM, JointDiffusion, JointLDM

QUIET = {"progress_bar": False}
DTYPES = ["f2", "f8", ">f2", ">f4", ">i4", "?", "i1", "u1", "u2", "u4", "i8", "u8"]
REFUSED = ["longdouble", "complex64", "object", "U3", "datetime64[s]"]


@pytest.fixture
def counts() -> AnnData:
    """Counts that every type of number can hold, float32 and CSR."""
    return simulated()


def simulated() -> AnnData:
    adata = sclatent.datasets.simulate(90, 12, n_batches=2, library_size=60, seed=0)
    adata.X.data = np.minimum(adata.X.data, 9)
    return AnnData(adata.X, obs=adata.obs, var=adata.var[[]])


@pytest.fixture
def small_forests(monkeypatch):
    forest = classifiers._forest
    monkeypatch.setattr(classifiers, "_forest", lambda seed: forest(seed).set_params(n_estimators=2))


def with_x(adata: AnnData, x) -> AnnData:
    return AnnData(x, obs=adata.obs.copy(), var=adata.var.copy())


# ---- where a matrix may lie


def backed(adata: AnnData, x, path: Path) -> AnnData:
    with_x(adata, x).write_h5ad(path / "cells.h5ad")
    return ad.read_h5ad(path / "cells.h5ad", backed="r")


def in_hdf5(adata: AnnData, x, path: Path) -> AnnData:
    file = h5py.File(path / "cells.h5", "w")
    write_elem(file, "X", x)
    return with_x(adata, sparse_dataset(file["X"]) if sparse.issparse(x) else file["X"])


def in_zarr(adata: AnnData, x, path: Path) -> AnnData:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(path / "cells.zarr", mode="w")
    write_elem(group, "X", x)
    return with_x(adata, sparse_dataset(group["X"]) if sparse.issparse(x) else group["X"])


def in_dask(adata: AnnData, x, path: Path) -> AnnData:
    dask = pytest.importorskip("dask.array")
    array = dask.from_array(x.toarray() if sparse.issparse(x) else x, chunks=(40, 5))
    return with_x(adata, array.map_blocks(type(x)) if sparse.issparse(x) else array)


def lazy(adata: AnnData, x, path: Path) -> AnnData:
    pytest.importorskip("dask.array")
    with_x(adata, x).write_h5ad(path / "cells.h5ad")
    adata = ad.experimental.read_lazy(path / "cells.h5ad")
    adata.obs = adata.obs.to_memory()
    return adata


PLACES = {"backed": backed, "hdf5": in_hdf5, "zarr": in_zarr, "dask": in_dask, "lazy": lazy}
LAYOUTS = {
    "csr": lambda x: x,
    "csc": lambda x: x.tocsc(),
    "dense": lambda x: x.toarray(),
    "float16": lambda x: x.toarray().astype(np.float16),
}
elsewhere = pytest.mark.parametrize("layout", LAYOUTS)
anywhere = pytest.mark.parametrize("place", PLACES)
by_columns = pytest.mark.filterwarnings("ignore:.*column by column")


@elsewhere
@anywhere
@by_columns
def test_rows_are_read_from_anywhere(counts, tmp_path, place, layout):
    x = counts.X.toarray()
    adata = PLACES[place](counts, LAYOUTS[layout](counts.X), tmp_path)
    matrix = by_rows(adata.X)
    for rows in ([7, 3, 80, 3], [4, 5, 6], [6, 5], [], slice(10, 20), np.arange(90)):
        block = read_rows(matrix, rows)
        assert isinstance(block, np.ndarray | sparse.csr_matrix)
        np.testing.assert_array_equal(block.toarray() if sparse.issparse(block) else block, x[rows])
    np.testing.assert_array_equal(log_normalize(adata), log_normalize(counts))


def figures(adata: AnnData) -> dict[str, np.ndarray]:
    is_control = (adata.obs["condition"] == "control").to_numpy()
    treated, control = adata[~is_control], adata[is_control]
    pca = {"n_components": 3, **QUIET}
    arms = ("condition", "control", "stimulated", "batch", "batch_0")
    tables = {
        "generation": evaluate_generation(adata, adata, max_cells=12, **pca),
        "perturbation": evaluate_perturbation(treated, control, control, n_top=[5], floors=False, **pca),
        "reconstruction": evaluate_reconstruction(adata, adata, "condition", **QUIET),
    }
    return {
        **{name: table["value"].to_numpy(float) for name, table in tables.items()},
        "mean_shift": mean_shift(adata, *arms),
        "linear_shift": linear_shift(adata, *arms),
        "mean_change": mean_change(treated, control),
        "cell_mean": cell_mean(adata, "condition").to_numpy(),
        "independent_genes": independent_genes(adata, "condition", n=5).X.toarray(),
    }


@pytest.fixture(scope="module")
def in_memory() -> dict[str, np.ndarray]:
    forest = classifiers._forest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "_forest", lambda seed: forest(seed).set_params(n_estimators=2))
        return figures(simulated())


@pytest.mark.parametrize(
    ("place", "layout"), [*((place, "csr") for place in PLACES), ("backed", "csc"), ("backed", "float16")]
)
@by_columns
@pytest.mark.usefixtures("small_forests")
def test_metrics_are_those_of_cells_in_memory(counts, in_memory, tmp_path, place, layout):
    for name, values in figures(PLACES[place](counts, LAYOUTS[layout](counts.X), tmp_path)).items():
        np.testing.assert_array_equal(values, in_memory[name], err_msg=name)


@pytest.mark.parametrize("place", ["backed", "dask", "lazy"])
def test_a_model_is_that_of_cells_in_memory(counts, tmp_path, fit, place):
    adata = PLACES[place](counts, counts.X, tmp_path)
    some = {"conditions": {"condition": "stimulated"}, "indices": [7, 3], **QUIET}
    made = []
    for cells in (adata, counts):
        model = fit(cells, 1, setup={"condition_keys": "condition", "batch_key": "batch"})
        moved = model.counterfactual(cells, **some).X.toarray()
        made.append([model.get_latent_representation(cells), model.sample(5, **QUIET).X.toarray(), moved])
    for one, other in zip(*made, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("place", ["backed", "dask"])
def test_figures_take_cells_that_are_not_in_memory(counts, tmp_path, place):
    adata = PLACES[place](counts, counts.X, tmp_path)
    is_control = (counts.obs["condition"] == "control").to_numpy()
    treated, control = adata[~is_control], adata[is_control]
    axes = sclatent.pl.gene_statistics(adata, counts)
    assert "concordance = 1.000" in axes[0].texts[0].get_text()
    axes = sclatent.pl.response(treated, treated, control, "batch", n_names=0)
    assert axes[0, 0].texts[0].get_text().startswith("r = 1.000")
    plt.close("all")


def test_genes_of_a_file_are_matched_by_name(counts, tmp_path):
    """Also of a view of a file, of which anndata makes no other views."""
    adata, genes = backed(counts, counts.X, tmp_path), counts.var_names[::-1][:7]
    real = counts[:, genes].copy()
    expected = evaluate_reconstruction(real[:40], counts[:40].copy(), **QUIET)
    pd.testing.assert_frame_equal(evaluate_reconstruction(real[:40], adata[:40], **QUIET), expected)
    pd.testing.assert_frame_equal(evaluate_reconstruction(real[:40], adata, **QUIET), expected)


@pytest.mark.usefixtures("small_forests")
def test_no_more_than_a_block_is_read_together(counts, tmp_path, monkeypatch):
    many = AnnData(sparse.vstack([counts.X] * 10, format="csr"), var=counts.var)
    many.obs["group"] = np.array(["a", "b"])[np.arange(900) % 2]
    many.write_h5ad(tmp_path / "many.h5ad")
    file = ad.read_h5ad(tmp_path / "many.h5ad", backed="r")
    in_memory, n_read = _reading._in_memory, []

    def spy(block):
        block = in_memory(block)
        n_read.append(block.shape[0])
        return block

    monkeypatch.setattr(_reading, "_in_memory", spy)
    monkeypatch.setattr(_reading, "VALUES", 12 * 100)
    for module in (_cells, _reconstruction):
        monkeypatch.setattr(module, "BLOCK", 12 * 100)
    pca = {"n_components": 3, **QUIET}
    evaluate_generation(file, counts, max_cells=10, **pca)
    evaluate_perturbation(file, counts, file, max_cells=40, n_top=[5], **pca)
    evaluate_reconstruction(file, file, "group", **QUIET)
    mean_change(file, counts)
    cell_mean(file, "group")
    independent_genes(file, "group", n=5)
    SCLDM.setup_anndata(file, condition_keys="group")
    assert max(n_read) == 100
    assert sum(n_read) > 5 * 900


def test_a_lazily_read_obs_is_refused_with_what_to_do(counts, tmp_path):
    pytest.importorskip("dask.array")
    counts.obsm["e"] = np.random.default_rng(0).standard_normal((90, 4))
    counts.write_h5ad(tmp_path / "cells.h5ad")
    adata = ad.experimental.read_lazy(tmp_path / "cells.h5ad")
    for call in (
        lambda: SCLDM.setup_anndata(adata, condition_keys="condition"),
        lambda: JointLDM.setup_anndata(adata, obsm_key="e", labels_key="condition"),
        lambda: evaluate_generation(adata, counts, **QUIET),
        lambda: mean_shift(adata, "condition", "control", "stimulated", "batch", "batch_0"),
        lambda: sclatent.pl.response(adata, counts, counts, "cell_type"),
        lambda: sclatent.pl.umap(adata, counts),
    ):
        with pytest.raises(TypeError, match=r"\.obs is a Dataset2D.*\.obs\.to_memory\(\).*\.to_memory\(\)"):
            call()
    adata.obs = adata.obs.to_memory()
    JointLDM.setup_anndata(adata, obsm_key="e", labels_key="condition")


def test_columns_in_a_file_are_read_whole_and_that_is_told(counts, tmp_path):
    with pytest.warns(UserWarning, match=r"adata.X lies in its file column by column \(CSC\).*adata.to_memory\(\)"):
        SCLDM.setup_anndata(backed(counts, counts.X.tocsc(), tmp_path))


# ---- types of numbers


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*(("dense", dtype) for dtype in DTYPES), *(("csr", dtype) for dtype in ("f8", "?", "u1", "i8")), ("csc", "u1")],
)
def test_every_type_of_number_means_the_same(counts, kind, dtype):
    x = counts.X
    if dtype == "?":
        x.data[:] = 1
    expected = log_normalize(with_x(counts, x))
    x = (x.toarray() if kind == "dense" else getattr(x, f"to{kind}")()).astype(dtype)
    adata = with_x(counts, x)
    SCLDM.setup_anndata(adata)
    np.testing.assert_array_equal(log_normalize(adata), expected)
    np.testing.assert_array_equal(independent_genes(adata).X.toarray(), independent_genes(counts).X.toarray())
    table = evaluate_reconstruction(adata, counts, **QUIET).set_index("metric")["value"]
    assert table["library_size_error"] == 0
    assert table["gene_mean"] == 1
    for axis in (0, 1):
        np.testing.assert_array_equal(totals(x, axis), np.asarray(counts.X.sum(axis=axis)).ravel())


@pytest.mark.parametrize("dtype", ["f2", ">f4", "?"])
def test_every_type_of_number_trains_the_same_model(counts, fit, dtype):
    if dtype == "?":
        counts.X.data[:] = 1
    adata = with_x(counts, counts.X.toarray().astype(dtype))
    setup = {"condition_keys": "condition", "batch_key": "batch"}
    one, other = (fit(cells, 1, setup=setup) for cells in (adata, counts))
    np.testing.assert_array_equal(one.get_latent_representation(), other.get_latent_representation())
    made = [model.sample(5, **QUIET).X.toarray() for model in (one, other)]
    np.testing.assert_array_equal(*made)
    moved = [m.counterfactual(c, {"condition": "control"}, **QUIET) for m, c in ((one, adata), (other, counts))]
    np.testing.assert_array_equal(*(cells.X.toarray() for cells in moved))


@pytest.mark.parametrize("dtype", [*DTYPES[:5], "?"])
@pytest.mark.parametrize("cls", [DAED, JointDiffusion, JointLDM], ids=lambda cls: cls.__name__)
def test_every_type_of_embedding_means_the_same(cls, dtype):
    values = np.random.default_rng(0).integers(0, 2 if dtype == "?" else 60, (40, 6)).astype(np.float32)
    latents = []
    for stored in (values, values.astype(dtype)):
        adata = AnnData(obs=pd.DataFrame(index=[f"c{i}" for i in range(40)]), obsm={"e": stored})
        cls.setup_anndata(adata, obsm_key="e")
        model = cls(adata, denoiser_width=16, denoiser_blocks=1, n_heads=2)
        latents.append(model.module.autoencoder.encode(*(lambda b: (b.x, b.batch))(model._rows()[[3, 1]])))
        np.testing.assert_array_equal(model.get_features(indices=[5, 3, 3]), values[[5, 3, 3]])
    assert latents[0].equal(latents[1])


def test_counts_are_summed_in_double_precision():
    """One cell of 100,000 counts, each of which float16 holds, whose sum it does not; and one of many small ones."""
    for x in (np.full((1, 100), 1000.0), np.full((1, 100), 100.0)):
        expected = np.log1p(np.full((1, 100), 100.0)).astype(np.float32)
        for dtype in ("f2", "f4", "i2", "u1" if x.max() < 256 else "u2"):
            adata = AnnData(x.astype(dtype))
            np.testing.assert_array_equal(log_normalize(adata), expected)
            np.testing.assert_allclose(mean_change(adata, adata.X * 0.0), expected[0])
    x = np.full((1, 2**12), 0.1, dtype=np.float32)  # in single precision not to the last digit
    exact = float(np.float32(0.1)) * 2**12
    for values in (x, sparse.csr_matrix(x)):
        assert totals(values, axis=1) == pytest.approx(exact, rel=1e-14)
        assert totals(values.T, axis=0) == pytest.approx(exact, rel=1e-14)


@pytest.mark.parametrize("dtype", REFUSED)
def test_what_is_no_number_is_refused_by_name(counts, dtype):
    bad = with_x(counts, counts.X.toarray().astype(dtype))
    name = np.dtype(dtype).name.rstrip("0123456789") if dtype == "longdouble" else ""
    for call, place in (
        (lambda: SCLDM.setup_anndata(bad), "adata"),
        (lambda: log_normalize(bad), "adata"),
        (lambda: evaluate_reconstruction(bad, counts, **QUIET), "real"),
    ):
        with pytest.raises(ValueError, match=rf"{place}.X is of type .*{name}.*{place}.X = {place}.X.astype"):
            call()
    assert "_scvi_uuid" not in bad.uns
    if dtype != "object":
        bad.obsm["e"] = bad.X
        with pytest.raises(ValueError, match=r"obsm\['e'\] is of type .*obsm\['e'\].astype"):
            JointLDM.setup_anndata(bad, obsm_key="e")


@pytest.mark.parametrize("dtype", ["f2", ">f4"])
def test_sparse_numbers_that_scipy_does_not_know_are_refused_by_name(counts, dtype):
    counts.X.data = counts.X.data.astype(dtype)
    with pytest.raises(ValueError, match=r"adata.X is sparse and of type (float16|>f4).*adata.X.astype\(\"float32\"\)"):
        SCLDM.setup_anndata(counts)
    counts.X = counts.X.astype("float32")
    SCLDM.setup_anndata(counts)


def test_masked_values_are_not_taken_for_counts(counts):
    x = counts.X.toarray()
    masked = with_x(counts, np.ma.masked_array(x, mask=x == 1))
    with pytest.raises(ValueError, match=r"adata.X is a masked array.*adata.X.filled"):
        SCLDM.setup_anndata(masked)
    SCLDM.setup_anndata(with_x(counts, np.ma.masked_array(x)))


def test_blocks_cover_every_row_once(monkeypatch):
    x = np.arange(60).reshape(20, 3)
    for values in (1, 7, 59, 60, 1_000):
        monkeypatch.setattr(_reading, "VALUES", values)
        blocks = list(row_blocks(x))
        np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), x)
        np.testing.assert_array_equal(np.concatenate([x[rows] for rows, _ in blocks]), x)
        assert max(block.size for _, block in blocks) <= max(values, 3)
