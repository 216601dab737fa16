"""From AnnData to minibatches: whatever the storage, the same data; names, codes and library sizes."""

import logging
from itertools import chain

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from sclatent.data import (
    CellRows,
    Conditions,
    EpochSampler,
    align_genes,
    check_categorical,
    check_counts,
    check_keys,
    get_matrix,
)
from sclatent.datasets import simulate
from sclatent.domain import LibrarySizes

# ---- storage


def unsorted(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """CSR as it may come: columns in no order, and each entry in two parts."""
    coo = x.tocoo()
    order = np.lexsort([np.random.default_rng(0).random(2 * coo.nnz), np.tile(coo.row, 2)])
    data = np.concatenate([np.ceil(coo.data / 2), np.floor(coo.data / 2)])[order]
    return sparse.csr_matrix(
        (data, np.tile(coo.col, 2)[order], np.concatenate([[0], 2 * np.cumsum(x.getnnz(axis=1))])), x.shape
    )


def view(adata: AnnData) -> AnnData:
    spare = adata[:5].copy()
    spare.obs_names = [f"spare_{i}" for i in range(5)]
    both = ad.concat([adata, spare])
    return both[: adata.n_obs]


def in_layer(adata: AnnData) -> AnnData:
    adata.layers["mine"], adata.X = adata.X, None
    return adata


def backed(adata: AnnData, tmp_path) -> AnnData:
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")


def with_x(adata: AnnData, x) -> AnnData:
    adata.X = x
    return adata


STORAGE = {
    "csr_array": lambda a, _: with_x(a, sparse.csr_array(a.X)),
    "csr of integers": lambda a, _: with_x(a, a.X.astype(np.int64)),
    "csr, unsorted, with duplicates": lambda a, _: with_x(a, unsorted(a.X)),
    "csc": lambda a, _: with_x(a, a.X.tocsc()),
    "dense": lambda a, _: with_x(a, a.X.toarray()),
    "view": lambda a, _: view(a),
    "layer": lambda a, _: in_layer(a),
    "backed csr": backed,
    "backed csc": lambda a, tmp: backed(with_x(a, a.X.tocsc()), tmp),
    "backed dense": lambda a, tmp: backed(with_x(a, a.X.toarray()), tmp),
}


@pytest.mark.parametrize("storage", STORAGE)
def test_every_storage_trains_the_same_model(cells, fit, tmp_path, storage):
    keys, train = {"condition_keys": ["cell_type", "condition"]}, {"stage": "autoencoder"}
    other = STORAGE[storage](AnnData(cells.X.copy(), obs=cells.obs.copy(), var=cells.var[[]].copy()), tmp_path)
    reference = fit(cells, 1, setup=keys, train=train)
    model = fit(other, 1, setup={**keys, "layer": "mine" if storage == "layer" else None}, train=train)
    assert not other.is_view
    np.testing.assert_array_equal(model.domain.library_sizes.sizes, reference.domain.library_sizes.sizes)
    np.testing.assert_array_equal(model.get_latent_representation(), reference.get_latent_representation())
    some = [7, 3, 200, 3]
    np.testing.assert_array_equal(
        model.get_latent_representation(indices=some), reference.get_latent_representation(indices=some)
    )


def test_rows_come_in_the_order_asked_for_over_known_genes(cells):
    panel = np.arange(cells.n_vars)[::-1].copy()
    panel[[0, 5]] = -1
    codes, batch = np.arange(cells.n_obs)[:, None], np.arange(cells.n_obs)
    rows = CellRows(cells.X, panel, None, codes, batch, cells=np.arange(100, 200))
    assert len(rows) == 100
    positions = [40, 2, 2, 99]
    minibatch = rows[positions]
    at = np.array([140, 102, 102, 199])
    expected = cells.X[at][:, panel >= 0].toarray()
    np.testing.assert_array_equal(minibatch.sets.dense().numpy(), expected)
    np.testing.assert_array_equal(minibatch.sets.panel.numpy(), panel[panel >= 0])
    np.testing.assert_array_equal(minibatch.library.numpy(), expected.sum(axis=1))
    np.testing.assert_array_equal(minibatch.conditions.numpy()[:, 0], at)
    np.testing.assert_array_equal(minibatch.batch.numpy(), at)
    assert (minibatch.sets.count > 0).all()
    subset = rows.subset(np.array([40, 2]))
    np.testing.assert_array_equal(subset[[1, 0]].conditions.numpy()[:, 0], [102, 140])


def test_the_sampler_depends_on_seed_and_epoch_alone():
    def epoch(seed: int, epoch: int) -> list[list[int]]:
        sampler = EpochSampler(25, 10, seed)
        sampler.set_epoch(epoch)
        assert len(sampler) == 3
        return list(sampler)

    assert [len(batch) for batch in epoch(0, 0)] == [10, 10, 5]
    assert sorted(chain(*epoch(0, 3))) == list(range(25))
    assert epoch(0, 3) == epoch(0, 3)
    assert epoch(0, 3) != epoch(0, 4)
    assert epoch(0, 3) != epoch(1, 3)
    assert list(chain(*EpochSampler(25, 10, 0, shuffle=False))) == list(range(25))


# ---- checks


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix], ids=["dense", "csr", "csc"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "negative values.*raw counts were expected"),
        (0.5, r"not whole numbers \(such as 0.5\).*raw counts were expected"),
        (np.nan, "values that are NaN"),
        (np.inf, "values that are infinite"),
    ],
)
def test_check_counts_names_what_is_wrong(kind, value, message):
    counts = np.ones((9_000, 3))
    check_counts(kind(counts), "mine")
    counts[8_800, 1] = value
    with pytest.raises(ValueError, match=f"mine has .*{message}"):
        check_counts(kind(counts), "mine")
    if value == 0.5:
        check_counts(kind(counts), "mine", is_count_data=False)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix], ids=["dense", "csr", "csc"])
def test_check_counts_finds_the_empty_cell(kind):
    counts = np.ones((9_000, 3))
    counts[8_500] = 0
    with pytest.raises(ValueError, match=r"cells without any counts.*row 8500"):
        check_counts(kind(counts), "mine")


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_check_counts_wants_cells_and_genes(shape):
    with pytest.raises(ValueError, match=f"mine has {shape[0]} cells and {shape[1]} genes"):
        check_counts(sparse.csr_matrix(shape), "mine")


def test_checks_of_names(cells):
    assert check_keys("a") == ["a"]
    assert check_keys(None) == []
    with pytest.raises(ValueError, match=r"\['a', 'a'\] names a column twice"):
        check_keys(["a", "a"])
    with pytest.raises(KeyError, match=r"argument: 'nothing' is not a column of adata.obs, which has \['cell_type'"):
        check_categorical(cells.obs, "nothing", "argument")
    with pytest.raises(KeyError, match=r"layer='nothing' is not in adata.layers, which has \['counts'\]"):
        get_matrix(cells, "nothing")
    assert get_matrix(cells, "counts") is cells.layers["counts"]


# ---- conditions

CONDITIONS = Conditions({"type": ["B", "T", "NK"], "dose": [0, 1]})


@pytest.mark.parametrize(
    ("given", "codes"),
    [
        ({"type": "T", "dose": 1}, [1, 1]),
        ({"dose": 0}, [-1, 0]),
        ({"type": "NK", "dose": None}, [2, -1]),
        ({}, [-1, -1]),
        (None, [-1, -1]),
    ],
)
def test_one_combination_for_all_cells(given, codes):
    np.testing.assert_array_equal(CONDITIONS.encode(given, 3), [codes] * 3)


def test_a_row_a_cell_and_back():
    frame = pd.DataFrame(
        {"dose": [1, 0, 1], "other": [1.5, 2.5, 3.5], "type": pd.Categorical(["NK", None, "B"], ["B", "NK", "unused"])},
        index=["x", "y", "z"],
    )
    codes = CONDITIONS.encode(frame)
    np.testing.assert_array_equal(codes, [[2, 1], [-1, 0], [0, 1]])
    back = CONDITIONS.decode(codes, frame.index)
    assert list(back["type"].cat.categories) == ["B", "T", "NK"]
    assert list(back["dose"].cat.categories) == [0, 1]
    assert back["type"].isna().tolist() == [False, True, False]
    assert list(back["dose"]) == [1, 0, 1]
    assert list(back["type"].dropna()) == ["NK", "B"]
    assert list(back.index) == ["x", "y", "z"]
    np.testing.assert_array_equal(CONDITIONS.encode(back), codes)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"tissue": "lung"}, KeyError, r"'tissue' is no condition of this model, which has \['type', 'dose'\]"),
        ({"type": "b"}, ValueError, r"'b' is no level of 'type', which has \['B', 'T', 'NK'\]"),
        ({"dose": 2}, ValueError, r"2 is no level of 'dose', which has \[0, 1\]"),
        (pd.DataFrame({"type": ["B", "Q", "T"]}), ValueError, "'Q' is no level of 'type'"),
        (pd.DataFrame({"type": ["B"]}), ValueError, "has 1 rows, but 3 cells"),
        (pd.DataFrame({"tissue": ["lung"] * 3}), KeyError, r"\['tissue'\], none of which"),
    ],
)
def test_unknown_conditions_are_named(given, error, message):
    with pytest.raises(error, match=message):
        CONDITIONS.encode(given, 3)


# ---- library sizes


@pytest.fixture(scope="module")
def groups() -> tuple[AnnData, np.ndarray]:
    """Cells of 4 types x 3 conditions whose library sizes follow an additive law, and which of them are held out."""
    adata = simulate(6_000, 20, cell_types=4, conditions=3, library_size=1_000, seed=5)
    held_out = (adata.obs["cell_type"] == "type_3") & (adata.obs["condition"] == "condition_2")
    return adata, held_out.to_numpy()


def codes_of(adata: AnnData) -> np.ndarray:
    return np.stack([adata.obs[key].cat.codes.to_numpy(np.int64) for key in ("cell_type", "condition")], axis=1)


TYPES_AND_CONDITIONS = Conditions({"cell_type": [f"type_{i}" for i in range(4)], "condition": list("abc")})
UNIFORMS = (np.arange(2_000) + 0.5) / 2_000


@pytest.mark.parametrize("combination", [(1, 2), (-1, 1), (3, -1), (-1, -1)])
def test_library_sizes_of_seen_combinations_are_those_of_their_cells(groups, combination):
    adata, held_out = groups
    codes, sizes = codes_of(adata)[~held_out], adata.obs["library_size"].to_numpy()[~held_out]
    drawn, seen = LibrarySizes(TYPES_AND_CONDITIONS, codes, sizes).draw(np.tile(combination, (2_000, 1)), UNIFORMS)
    pool = sizes[np.all([(codes[:, k] == c) | (c == -1) for k, c in enumerate(combination)], axis=0)]
    assert seen.all()
    assert set(drawn) <= set(pool)
    np.testing.assert_allclose(np.quantile(drawn, [0.1, 0.5, 0.9]), np.quantile(pool, [0.1, 0.5, 0.9]), rtol=0.1)


def test_library_sizes_of_an_unseen_combination_follow_the_additive_law(groups):
    adata, held_out = groups
    codes, sizes = codes_of(adata)[~held_out], adata.obs["library_size"].to_numpy()[~held_out]
    drawn, seen = LibrarySizes(TYPES_AND_CONDITIONS, codes, sizes).draw(np.tile((3, 2), (2_000, 1)), UNIFORMS)
    truth = adata.uns["truth"]["log_library_size"]
    assert not seen.any()
    assert np.ptp(truth) > 0.3  # the groups differ by more than the tolerance
    assert np.log(drawn).mean() == pytest.approx(truth[3, 2], abs=0.06)
    assert np.log(drawn).std() == pytest.approx(0.3, abs=0.04)
    mixed, which = LibrarySizes(TYPES_AND_CONDITIONS, codes, sizes).draw(
        np.array([[3, 2], [0, 0]]), np.array([0.5, 0.5])
    )
    assert which.tolist() == [False, True]
    assert mixed[1] in sizes[(codes == 0).all(axis=1)]


def test_library_sizes_without_conditions():
    sizes = np.array([10.0, 20.0, 30.0])
    drawn, seen = LibrarySizes(Conditions({}), np.zeros((3, 0), dtype=int), sizes).draw(
        np.zeros((3, 0), dtype=int), UNIFORMS[::900]
    )
    assert seen.all()
    assert set(drawn) <= set(sizes)


# ---- genes by name


def test_genes_are_aligned_and_reported(caplog):
    genes = pd.Index(["a", "b", "c", "d"])
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(align_genes(["d", "c", "b", "a"], genes), [3, 2, 1, 0])
    assert not caplog.records
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(align_genes(["x", "c", "y", "a", "z"], genes), [-1, 2, -1, 0, -1])
    assert "2 of the model's 4 found, 2 missing" in caplog.text
    assert "3 extra" in caplog.text
    with pytest.raises(ValueError, match=r"None of the 1 genes of the query .*'A'.* 4 genes of the model .*'a'"):
        align_genes(["A"], genes)
    with pytest.raises(ValueError, match=r"duplicates .*'a'"):
        align_genes(["a", "b", "a"], genes)
