"""Columns of obs: one role each, names that nothing is written over, levels that a saved model holds exactly."""

import datetime
import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from sclatent.data import Conditions
from sclatent.datasets import simulate
from sclatent.model import DAED, SCLDM, JointDiffusion, JointLDM

pytestmark = pytest.mark.usefixtures("few_steps")

FEATURE_MODELS = [DAED, JointDiffusion, JointLDM]
TINY = {
    "n_tokens": 2, "token_dim": 4, "width": 8, "n_blocks": 1, "n_heads": 2, "denoiser_width": 8, "denoiser_blocks": 1,
}  # fmt: skip
N = 24


@pytest.fixture
def counts() -> AnnData:
    return simulate(N, 12, cell_types=["B", "T"], n_batches=2, library_size=100, seed=0)


@pytest.fixture
def embeddings() -> AnnData:
    adata = AnnData(np.random.default_rng(0).standard_normal((N, 6)).astype(np.float32))
    adata.obs["type"] = np.array(["B", "T", "NK"])[np.arange(N) % 3]
    adata.obs["plate"] = np.array(["one", "two"])[np.arange(N) // 3 % 2]
    return adata


def assert_no_setup(adata: AnnData) -> None:
    """Setting up has written nothing."""
    assert not [name for name in [*adata.obs.columns, *adata.obsm, *adata.uns] if str(name).startswith("_scvi")]


# ---- one role, and a name of its own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"condition_keys": ["cell_type", "depth"], "size_factor_key": "depth"},
            "size_factor_key: 'depth' was given by condition_keys, too",
        ),
        ({"batch_key": "depth", "size_factor_key": "depth"}, "size_factor_key: 'depth' was given by batch_key, too"),
        (
            {"condition_keys": ["cell_type", "library_size"]},
            "condition_keys: 'library_size' is a column that is written for generated cells. Rename yours by .*rename",
        ),
        ({"batch_key": "library_size"}, "batch_key: 'library_size' is a column that is written"),
        ({"size_factor_key": "library_size"}, "size_factor_key: 'library_size' is a column that is written"),
        ({"condition_keys": "_scvi_batch"}, "condition_keys: columns with names such as '_scvi_batch'"),
        ({"batch_key": "_scvi_labels"}, "batch_key: columns with names such as '_scvi_labels'"),
    ],
)
def test_counts_want_one_role_for_a_column(counts, arguments, message):
    counts.obs["depth"] = np.arange(N) % 2 + 1
    counts.obs["library_size"] = np.arange(N) % 2 + 1
    for name in ("_scvi_batch", "_scvi_labels"):
        counts.obs[name] = np.arange(N) % 2
    before = counts.obs.copy()
    with pytest.raises(ValueError, match=message):
        SCLDM.setup_anndata(counts, **arguments)
    pd.testing.assert_frame_equal(counts.obs, before)
    assert "_scvi_uuid" not in counts.uns


@pytest.mark.parametrize("cls", FEATURE_MODELS)
def test_features_want_one_role_for_a_column(cls, embeddings):
    embeddings.obs["_scvi_type"] = embeddings.obs.pop("type")
    with pytest.raises(ValueError, match="labels_key: columns with names such as '_scvi_type'"):
        cls.setup_anndata(embeddings, labels_key="_scvi_type")
    embeddings.obs = embeddings.obs.drop(columns="_scvi_type")
    assert_no_setup(embeddings)


@pytest.fixture(scope="module")
def batch_is_condition() -> SCLDM:
    adata = simulate(N, 12, cell_types=["B", "T"], library_size=100, seed=0)
    SCLDM.setup_anndata(adata, condition_keys=["cell_type", "condition"], batch_key="cell_type")
    model = SCLDM(adata, **TINY)
    model.train(2, accelerator="cpu", progress_bar=False)
    with torch.no_grad():  # a decoder that has put all of the difference down to the batch
        model.module.autoencoder.batches.weight.copy_(torch.tensor([[-30.0], [30.0]]) * torch.arange(8))
    return model


def test_a_batch_that_is_a_condition_is_decoded_under_as_it_is_asked_for(batch_is_condition):
    model, control = batch_is_condition, {"condition": "control"}
    share = {t: model.sample(40, {"cell_type": t, **control}, progress_bar=False) for t in ("B", "T")}
    for cell_type, cells in share.items():
        assert set(cells.obs["cell_type"]) == {cell_type}
    b, t = (np.asarray(cells.X.sum(axis=0)).ravel() / cells.X.sum() for cells in share.values())
    assert np.abs(b - t).sum() > 0.5  # the two batches are told apart
    of_b = model.adata[model.adata.obs["cell_type"] == "B"].copy()
    moved = model.counterfactual(of_b, {"cell_type": "T"}, noise_level=1, progress_bar=False)
    assert set(moved.obs["cell_type"]) == {"T"}
    seen = np.asarray(moved.X.sum(axis=0)).ravel() / moved.X.sum()
    assert np.abs(seen - t).sum() < np.abs(seen - b).sum()
    open_cells = model.sample(4, control, progress_bar=False)
    assert open_cells.obs["cell_type"].isna().all()  # not the batch that was drawn
    with pytest.raises(ValueError, match="batch='B': 'cell_type' is a condition of this model"):
        model.sample(4, {"cell_type": "T"}, batch="B")


@pytest.mark.parametrize("cls", FEATURE_MODELS)
def test_a_batch_that_is_the_label_is_decoded_under_as_it_is_asked_for(cls, embeddings):
    embeddings.X[embeddings.obs["type"] == "T"] += 100  # the mean of the batch
    cls.setup_anndata(embeddings, labels_key="type", batch_key="type")
    model = cls(embeddings, denoiser_width=8, denoiser_blocks=1, n_heads=2)
    model.train(1, accelerator="cpu", progress_bar=False)
    for label, mean in {"T": 100, "B": 0}.items():
        cells = model.sample(6, label, progress_bar=False)
        assert set(cells.obs["type"]) == {label}
        assert np.abs(cells.X - mean).max() < 50
    moved = model.counterfactual(embeddings[embeddings.obs["type"] == "B"].copy(), "T", progress_bar=False)
    assert set(moved.obs["type"]) == {"T"}
    assert np.abs(moved.X - 100).max() < 50


def test_an_entry_of_obsm_that_counterfactuals_write_cannot_hold_the_images(embeddings):
    embeddings.obsm["difference"] = np.zeros((N, 8, 8), dtype=np.uint8)
    with pytest.raises(ValueError, match="obsm_key='difference': this is where counterfactual puts differences"):
        JointDiffusion.setup_anndata(embeddings, obsm_key="difference")


def test_columns_that_say_the_same_are_warned_of(counts, embeddings):
    counts.obs["donor"] = counts.obs["cell_type"].map({"B": "d2", "T": "d1"})
    with pytest.warns(UserWarning, match=r"obs\['cell_type'\] and adata.obs\['donor'\] say the same of every cell"):
        SCLDM.setup_anndata(counts, condition_keys=["cell_type", "condition", "donor"])
    with pytest.warns(UserWarning, match=r"obs\['cell_type'\] and adata.obs\['donor'\] say the same of every cell"):
        SCLDM.setup_anndata(counts, condition_keys=["cell_type"], batch_key="donor")
    embeddings.obs["lane"] = embeddings.obs["type"] + "1"
    with pytest.warns(UserWarning, match=r"obs\['type'\] and adata.obs\['lane'\] say the same of every cell"):
        JointLDM.setup_anndata(embeddings, labels_key="type", batch_key="lane")


# ---- levels

FINE = {  # columns of two levels or three, and what these are called
    "text": (["b", "a"], ["a", "b"]),
    "numpy text": (np.array(["b", "a"]), ["a", "b"]),
    "whole numbers": ([10, 2], [2, 10]),
    "int8": (np.array([10, 2], dtype=np.int8), [2, 10]),
    "uint64": (np.array([2**63, 2], dtype=np.uint64), [2, 2**63]),
    "nullable whole numbers": (pd.array([10, 2], dtype="Int64"), [2, 10]),
    "booleans": ([True, False], [False, True]),
    "nullable booleans": (pd.array([True, False], dtype="boolean"), [False, True]),
    "floats": ([0.5, 0.1], [0.1, 0.5]),
    "float32": (np.array([0.3, 0.1], dtype=np.float32), [0.1, 0.3]),
    "nullable float32": (pd.array([0.3, 0.1], dtype="Float32"), [0.1, 0.3]),
    "floats that are whole": ([2.0, 1.0], [1.0, 2.0]),
    "objects": (np.array([0.5, 1], dtype=object), [0.5, 1.0]),
    "categories": (pd.Categorical(["a", "b"], categories=["b", "a"]), ["b", "a"]),
    "categories of float32": (pd.Categorical.from_codes([0, 1], np.array([0.3, 0.1], dtype=np.float32)), [0.3, 0.1]),
    "categories of booleans": (pd.Categorical([True, False], categories=[True, False]), [True, False]),
}


def column(values, n: int = N) -> pd.Series:
    return pd.concat([pd.Series(values)] * (n // len(values)), ignore_index=True)


def same(levels: list, expected: list) -> bool:
    return levels == expected and [type(v) for v in levels] == [type(v) for v in expected]


@pytest.mark.parametrize("name", FINE)
def test_levels_are_the_same_before_and_after_saving(counts, tmp_path, name):
    values, levels = FINE[name]
    counts.obs["level"] = column(values).to_numpy() if name == "numpy text" else column(values).array
    SCLDM.setup_anndata(counts, condition_keys=["level", "condition"])
    model = SCLDM(counts, **TINY)
    model.save(tmp_path / "m")
    for one in (model, SCLDM.load(tmp_path / "m")):
        assert same(one.conditions.levels["level"], levels)
        for i, level in enumerate(levels):
            assert one.conditions.encode({"level": level})[0, 0] == i
        codes = one.conditions.encode(counts.obs)
        assert [levels[code] for code in codes[: len(values), 0]] == [levels[levels.index(v)] for v in _plain(values)]
        back = one.conditions.decode(codes, counts.obs_names)
        assert (one.conditions.encode(back) == codes).all()  # also where a table was made of levels


def _plain(values) -> list:
    """Values as text says them, which is how float32 is meant."""
    values = np.asarray(values) if isinstance(values, pd.Categorical) else values
    return [float(str(v)) if isinstance(v, np.floating) else v for v in values]


@pytest.mark.parametrize("name", ["whole numbers", "float32", "booleans", "categories"])
def test_batches_and_labels_are_the_same_before_and_after_saving(counts, embeddings, tmp_path, name):
    values, levels = FINE[name]
    counts.obs["plate"] = column(values).array
    SCLDM.setup_anndata(counts, condition_keys="condition", batch_key="plate")
    model = SCLDM(counts, **TINY)
    model.save(tmp_path / "counts")
    assert same(model.batches.levels, levels)
    assert same(SCLDM.load(tmp_path / "counts").batches.levels, levels)
    embeddings.obs["type"] = column(values).array
    embeddings.obs["plate"] = column(values).array.take([1, *range(1, N)])  # hardly a copy of the labels
    JointDiffusion.setup_anndata(embeddings, labels_key="type", batch_key="plate")
    model = JointDiffusion(embeddings, denoiser_width=8, denoiser_blocks=1, n_heads=2)
    model.save(tmp_path / "embeddings")
    for one in (model, JointDiffusion.load(tmp_path / "embeddings")):
        assert same(one.conditions.levels["type"], levels)
        assert same(one.batches.levels, levels)


DATES = pd.to_datetime(["2024-01-01", "2024-02-01"])
AS_TEXT = {
    "intervals": (pd.cut([25, 61], [0, 50, 100]), pd.Interval(0, 50), ["(0, 50]", "(50, 100]"]),
    "dates": (DATES, pd.Timestamp("2024-01-01"), ["2024-01-01", "2024-02-01"]),
    "dates of a time zone": (
        DATES.tz_localize("UTC"),
        pd.Timestamp("2024-01-01", tz="UTC"),
        ["2024-01-01 00:00:00+00:00", "2024-02-01 00:00:00+00:00"],
    ),
    "dates of Python": ([d.date() for d in DATES], datetime.date(2024, 1, 1), ["2024-01-01", "2024-02-01"]),
    "categories of dates": (pd.Categorical(DATES), datetime.datetime(2024, 1, 1), ["2024-01-01", "2024-02-01"]),
    "periods": (pd.period_range("2024-01", periods=2, freq="M"), pd.Period("2024-01"), ["2024-01", "2024-02"]),
    "durations": (pd.to_timedelta(["1 day", "2 days"]), datetime.timedelta(days=1), ["1 days", "2 days"]),
    "tuples": ([("DMSO", 0.0), ("drug", 1.0)], ("DMSO", 0.0), ["('DMSO', 0.0)", "('drug', 1.0)"]),
}


@pytest.mark.parametrize("name", AS_TEXT)
def test_intervals_dates_and_tuples_are_known_by_their_text(counts, embeddings, tmp_path, name):
    values, level, levels = AS_TEXT[name]
    for adata in (counts, embeddings):
        adata.obs["level"] = column(values).array
    with pytest.warns(UserWarning, match=r"condition_keys: adata.obs\['level'\] has levels of type .* by their text"):
        SCLDM.setup_anndata(counts, condition_keys=["level", "condition"])
    with pytest.warns(UserWarning, match=r"labels_key: adata.obs\['level'\] has levels of type .* by their text"):
        JointDiffusion.setup_anndata(embeddings, labels_key="level")
    model = SCLDM(counts, **TINY)
    model.save(tmp_path / "m")
    joint = JointDiffusion(embeddings, denoiser_width=8, denoiser_blocks=1, n_heads=2)
    joint.save(tmp_path / "joint")
    for one in (model, SCLDM.load(tmp_path / "m"), SCLDM.load(tmp_path / "m", counts)):
        assert same(one.conditions.levels["level"], levels)
        for asked in (level, levels[0]):
            assert one.conditions.encode({"level": asked})[0, 0] == 0
        assert one.conditions.encode(counts.obs)[:, 0].tolist() == [0, 1] * (N // 2)
    for one in (joint, JointDiffusion.load(tmp_path / "joint", embeddings)):
        assert same(one.conditions.levels["level"], levels)


def test_a_dose_of_float32_is_asked_for_as_it_is_written(counts, tmp_path):
    counts.obs["dose"] = np.array([0.1, 0.3], dtype=np.float32)[np.arange(N) % 2]
    SCLDM.setup_anndata(counts, condition_keys="dose")
    model = SCLDM(counts, **TINY)
    model.train(1, accelerator="cpu", progress_bar=False)
    model.save(tmp_path / "m")
    for one in (model, SCLDM.load(tmp_path / "m")):
        for dose in (0.1, np.float32(0.1), np.float64(0.1), np.float16(0.1)):
            assert set(one.sample(3, {"dose": dose}, progress_bar=False).obs["dose"]) == {0.1}
        with pytest.raises(ValueError, match=r"conditions: 0.2 is no level of 'dose', which has \[0.1, 0.3\]"):
            one.sample(3, {"dose": 0.2})
    moved = model.counterfactual(counts, {"dose": 0.3}, progress_bar=False)  # finds those of the cells, too
    assert set(moved.obs["dose"]) == {0.3}


REFUSED = {
    "bytes": (np.array([b"a", b"b"], dtype=object), "of type bytes, such as b'a'"),
    "lists": ([["a"], ["b"]], "such as .'a'. of type list"),
    "complex": (np.array([1j, 2j]), "of type complex"),
    "decimals": ([Decimal("0.1"), Decimal("0.2")], "of type Decimal"),
    "numbers and text": (np.array([1, "2"], dtype=object), r"both (numbers|text) .* and (numbers|text)"),
    "booleans and numbers": (np.array([True, 0], dtype=object), "both .*booleans"),
    "booleans that are numbers, too": (np.array([True, 1, False, 0], dtype=object), "both .*booleans"),
    "float16": (np.array([0.1, 0.2], dtype=np.float16), r"of type float16.*astype\(float\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_levels_are_refused_with_the_cure(counts, name):
    values, message = REFUSED[name]
    counts.obs["level"] = column(values).array
    for arguments in ({"condition_keys": ["condition", "level"]}, {"batch_key": "level"}):
        with pytest.raises(
            ValueError, match=rf"{next(iter(arguments))}: adata.obs\['level'\] (has|is) .*{message}"
        ) as refusal:
            SCLDM.setup_anndata(counts, **arguments)
        cure = re.search(r"adata.obs\['level'\] = (adata.obs\['level'\].*) makes", str(refusal.value))[1]
    assert_no_setup(counts)
    counts.obs["level"] = eval(cure, {"adata": counts})
    SCLDM.setup_anndata(counts, condition_keys=["condition", "level"])


@pytest.mark.parametrize("cls", FEATURE_MODELS)
@pytest.mark.parametrize("name", ["complex", "decimals", "numbers and text"])
def test_other_labels_are_refused_with_the_cure(embeddings, cls, name):
    embeddings.obs["level"] = column(REFUSED[name][0]).array
    for arguments in ({"labels_key": "level"}, {"batch_key": "level"}):
        with pytest.raises(ValueError, match=rf"{next(iter(arguments))}: adata.obs\['level'\] has .*astype\(str\)"):
            cls.setup_anndata(embeddings, **arguments)
    assert_no_setup(embeddings)


def test_infinite_levels_are_refused(counts):
    counts.obs["dose"] = np.array([1.0, np.inf])[np.arange(N) % 2]
    with pytest.raises(ValueError, match=r"condition_keys: adata.obs\['dose'\] has infinite levels"):
        SCLDM.setup_anndata(counts, condition_keys="dose")


@pytest.mark.parametrize(
    ("levels", "wrong", "right"),
    [
        ([0, 1], [True, "1", np.True_, 0.5], [1, 1.0, np.int8(1), np.float32(1)]),
        ([0.0, 1.0], [True, "1.0"], [1, 1.0, np.uint8(1)]),
        ([False, True], [1, 1.0, "True"], [True, np.True_]),
        (["0", "1"], [1, True, b"1"], ["1", np.str_("1")]),
    ],
)
def test_text_booleans_and_numbers_are_not_taken_for_each_other(levels, wrong, right):
    conditions = Conditions({"key": levels})
    for level in right:
        assert conditions.encode({"key": level})[0, 0] == 1
        assert conditions.encode(pd.DataFrame({"key": [level]}))[0, 0] == 1
    for level in wrong:
        for given in ({"key": level}, pd.DataFrame({"key": [level]})):
            with pytest.raises(ValueError, match="is no level of 'key'"):
                conditions.encode(given)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["B", "B ", "T"], r"has the levels \['B', 'B '\], which differ by blanks alone: .*str.strip\(\)"),
        (["B", "nan", "T"], "has the level 'nan', which is what a missing value becomes as text"),
        (["B", "", "T"], "has the level '', which is what a missing value"),
        (["B", "  ", "T"], "has the level '  ', which is what a missing value"),
    ],
)
def test_levels_that_look_like_a_mistake_are_warned_of(counts, values, message):
    counts.obs["type"] = column(values).array
    with pytest.warns(UserWarning, match=rf"^condition_keys: adata.obs\['type'\] {message}"):
        SCLDM.setup_anndata(counts, condition_keys="type")
