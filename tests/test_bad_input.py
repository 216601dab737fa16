"""Bad input gets an error that names it and says what was expected, before any work, and nothing is changed."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from sclatent.model import SCLDM

pytestmark = pytest.mark.usefixtures("few_steps")

KEYS = ["cell_type", "condition"]


def values(x) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def assert_untouched(adata: AnnData, before: AnnData) -> None:
    assert adata.X.dtype == before.X.dtype
    np.testing.assert_array_equal(values(adata.X), values(before.X))
    for name in ("obs", "var"):
        pd.testing.assert_frame_equal(getattr(adata, name), getattr(before, name))
    for name in ("uns", "obsm", "varm", "layers", "obsp"):
        assert list(getattr(adata, name)) == list(getattr(before, name)), name
    for name, layer in adata.layers.items():
        np.testing.assert_array_equal(values(layer), values(before.layers[name]))


# ---- setup_anndata


def put(value: float) -> Callable[[AnnData], None]:
    def spoil(adata: AnnData) -> None:
        adata.X.data[7] = value

    return spoil


def empty_cell(adata: AnnData) -> None:
    adata.X = sparse.csr_matrix(adata.X.multiply((np.arange(adata.n_obs) != 17)[:, None]))


def column(key: str, value) -> Callable[[AnnData], None]:
    def spoil(adata: AnnData) -> None:
        adata.obs[key] = value(adata.obs[key]) if callable(value) else value

    return spoil


def duplicated_gene(adata: AnnData) -> None:
    adata.var_names = ["TWICE", "TWICE", *adata.var_names[2:]]


def nothing(adata: AnnData) -> None:
    pass


SETUP = {
    "negative": (put(-3), {}, ValueError, "adata.X has negative values .*-3.*raw counts were expected.*layer="),
    "not whole": (put(0.25), {}, ValueError, r"adata.X has values that are not whole .*0\.25.*raw counts.*layer="),
    "NaN": (put(np.nan), {}, ValueError, "adata.X has values that are NaN .*first in row"),
    "infinite": (put(np.inf), {}, ValueError, "adata.X has values that are infinite"),
    "minus infinite": (put(-np.inf), {}, ValueError, "adata.X has values that are infinite"),
    "bad layer": (
        lambda a: a.layers["counts"].data.__setitem__(3, -1), {"layer": "counts"}, ValueError,
        r"adata.layers\['counts'\] has negative",
    ),
    "empty cell": (empty_cell, {}, ValueError, "adata.X has cells without any counts .*row 17.*filter_cells"),
    "twice": (duplicated_gene, {}, ValueError, "adata.var_names has duplicates .*'TWICE'.*var_names_make_unique"),
    "no layer": (nothing, {"layer": "raw"}, KeyError, r"layer='raw' is not in adata.layers, which has \['counts'\]"),
    "no column": (
        nothing, {"condition_keys": ["cell_type", "drug"]}, KeyError,
        "condition_keys: 'drug' is not a column of adata.obs, which has .*'cell_type'",
    ),
    "no batch": (nothing, {"batch_key": "plate"}, KeyError, "batch_key: 'plate' is not a column of adata.obs"),
    "no size factor": (
        nothing, {"size_factor_key": "sf"}, KeyError, "size_factor_key: 'sf' is not a column of adata.obs",
    ),
    "one level": (
        column("condition", "control"), {}, ValueError,
        r"condition_keys: adata.obs\['condition'\] has only the level 'control'.*at least 2",
    ),
    "one level used": (
        lambda a: a._inplace_subset_obs(np.asarray(a.obs["condition"] == "control"))
        or column("condition", lambda c: pd.Categorical(c, ["control", "stimulated"]))(a), {}, ValueError,
        "has only the level 'control'",
    ),
    "level without cells": (
        column("cell_type", lambda c: pd.Categorical(c, ["B", "NK", "T"])), {}, ValueError,
        r"condition_keys: adata.obs\['cell_type'\] has levels without a cell \(such as 'NK'\): .*remove_unused",
    ),
    "batch without cells": (
        column("batch", lambda c: pd.Categorical(c, ["batch_0", "batch_1", "batch_2"])), {"batch_key": "batch"},
        ValueError, r"batch_key: adata.obs\['batch'\] has levels without a cell \(such as 'batch_2'\)",
    ),
    "missing level": (
        column("condition", lambda c: c.where(np.arange(len(c)) % 4 > 0)), {}, ValueError,
        r"condition_keys: adata.obs\['condition'\] is missing for 60 cells",
    ),
    "missing batch": (
        column("batch", lambda c: c.where(np.arange(len(c)) > 0)), {"batch_key": "batch"}, ValueError,
        r"batch_key: adata.obs\['batch'\] is missing for 1 cell",
    ),
    "key twice": (nothing, {"condition_keys": ["condition", "condition"]}, ValueError, "names a column twice"),
    "size factor of zero": (
        column("size_factor", lambda c: c.where(np.arange(len(c)) > 0, 0.0)), {"size_factor_key": "size_factor"},
        ValueError, r"size_factor_key: adata.obs\['size_factor'\] must be a positive finite number",
    ),
    "size factor of words": (
        column("size_factor", "many"), {"size_factor_key": "size_factor"}, ValueError,
        r"size_factor_key: adata.obs\['size_factor'\] must be a positive finite number",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SETUP)
def test_setup_refuses_and_changes_nothing(cells, case):
    spoil, arguments, error, message = SETUP[case]
    spoil(cells)
    before = cells.copy()
    with pytest.raises(error, match=message):
        SCLDM.setup_anndata(cells, **{"condition_keys": KEYS, **arguments})
    assert_untouched(cells, before)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csc_matrix], ids=["dense", "csc"])
@pytest.mark.parametrize("value", [-1, 0.5, np.nan, np.inf])
def test_setup_refuses_in_any_storage(cells, kind, value):
    x = cells.X.toarray()
    x[11, 5] = value
    cells.X = kind(x)
    before = cells.copy()
    with pytest.raises(ValueError, match=r"adata\.X has"):
        SCLDM.setup_anndata(cells, condition_keys=KEYS)
    assert_untouched(cells, before)


def test_setup_refuses_in_a_view_and_leaves_it_one(cells):
    cells.X.data[:] = -1
    view = cells[:50]
    with pytest.raises(ValueError, match="negative"):
        SCLDM.setup_anndata(view, condition_keys=KEYS)
    assert view.is_view


@pytest.mark.parametrize(("rows", "columns"), [(0, 40), (240, 0)])
def test_setup_wants_cells_and_genes(cells, rows, columns):
    nobody = cells[:rows, :columns].copy()
    with pytest.raises(ValueError, match=f"adata.X has {rows} cells and {columns} genes"):
        SCLDM.setup_anndata(nobody)


def test_a_failed_setup_does_not_spoil_an_earlier_one(cells, small):
    SCLDM.setup_anndata(cells, condition_keys=KEYS)
    with pytest.raises(KeyError, match="'drug'"):
        SCLDM.setup_anndata(cells, condition_keys=["drug"])
    assert SCLDM(cells, **small).conditions.keys == KEYS


def test_a_model_wants_an_anndata_that_was_set_up(cells, small):
    with pytest.raises(ValueError, match=r"adata is missing.*setup_anndata"):
        SCLDM()
    with pytest.raises(ValueError, match="setup_anndata"):
        SCLDM(cells, **small)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gene_likelihood": "gaussian"}, "gene_likelihood='gaussian' is not known: use one of .*'nb', 'zinb'"),
        ({"pooling": "mean"}, "pooling='mean' is not known: use one of .*'linear', 'attention'"),
        ({"pooling": ["attention"]}, r"pooling=\['attention'\] is not known"),
        ({"token_dim": 6, "n_heads": 4}, "token_dim=6 must be a multiple of n_heads=4"),
        ({"width": 30, "n_heads": 4}, "width=30 must be a multiple of n_heads=4"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0"),
    ],
)
def test_a_model_names_the_bad_argument(cells, small, arguments, message):
    SCLDM.setup_anndata(cells)
    with pytest.raises(ValueError, match=message):
        SCLDM(cells, **{**small, **arguments})


# ---- train


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stage": "decoder"}, ValueError, "'decoder' is no stage of training: use 'autoencoder' or 'diffusion'"),
        ({"max_epochs": {"decoder": 3}}, ValueError, "'decoder' is no stage"),
        ({"plan_kwargs": {"decoder": {}}}, ValueError, "'decoder' is no stage"),
        ({"max_epochs": 0}, ValueError, "max_epochs=0 must be at least 1"),
        ({"train_size": 0}, ValueError, "train_size=0 must be above 0 and at most 1"),
        ({"train_size": 1.5}, ValueError, "train_size=1.5 must be above 0 and at most 1"),
        ({"batch_size": 0}, ValueError, "batch_size=0 must be at least 1"),
        ({"stage": "diffusion"}, RuntimeError, "stage='diffusion' needs a trained autoencoder"),
        ({"learning_rate": 1e-3}, TypeError, "learning_rate"),
        ({"plan_kwargs": {"autoencoder": {"learning_rate": 1e-3}}}, TypeError, "learning_rate"),
        ({"plan_kwargs": {"diffusion": {"learning_rate": 1e-3}}}, TypeError, "learning_rate"),
    ],
)
def test_train_refuses_before_any_work(cells, small, quiet, arguments, error, message):
    SCLDM.setup_anndata(cells, condition_keys=KEYS)
    model = SCLDM(cells, **small)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    with pytest.raises(error, match=message):
        model.train(**{"max_epochs": 1, **quiet, **arguments})
    assert all(value.equal(before[key]) for key, value in model.module.state_dict().items())
    assert not model.history


@pytest.mark.parametrize(
    "arguments",
    [{"plan_kwargs": {"autoencoder": {"learning_rate": 1e-3}}}, {"learning_rate": 1e-3}, {"accelerator": "abacus"}],
)
def test_a_refused_training_does_not_cost_a_trained_model(cells, fit, quiet, arguments):
    model = fit(cells, 1)
    before = model.sample(10, progress_bar=False)
    with pytest.raises((TypeError, ValueError), match=r"learning_rate|abacus"):
        model.train(1, **{**quiet, **arguments})
    assert model.is_trained
    after = model.sample(10, progress_bar=False)
    assert (after.X != before.X).nnz == 0


# ---- sample


def test_nothing_can_be_asked_of_an_untrained_model(cells, small):
    SCLDM.setup_anndata(cells, condition_keys=KEYS)
    model = SCLDM(cells, **small)
    for method, stage, arguments in (
        ("sample", "diffusion", (3,)),
        ("counterfactual", "diffusion", (cells, {"condition": "control"})),
        ("get_latent_representation", "autoencoder", ()),
        ("get_normalized_expression", "autoencoder", ()),
        ("get_reconstruction_error", "autoencoder", ()),
        ("posterior_predictive_sample", "autoencoder", ()),
    ):
        with pytest.raises(RuntimeError, match=rf"{method} needs a trained {stage}: call train\(\) first"):
            getattr(model, method)(*arguments)


def frame(**columns) -> pd.DataFrame:
    return pd.DataFrame(columns)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_samples": 0}, ValueError, "n_samples=0 must be a whole number of at least 1"),
        ({"n_samples": -3}, ValueError, "n_samples=-3 must be a whole number of at least 1"),
        ({"n_samples": 2.5}, ValueError, "n_samples=2.5 must be a whole number of at least 1"),
        ({"n_samples": None}, ValueError, "n_samples=None must be a whole number of at least 1"),
        (
            {"conditions": {"cell_typ": "type_0"}},
            KeyError,
            r"conditions: 'cell_typ' is no condition of this model, which has \['cell_type', 'condition'\]",
        ),
        (
            {"conditions": {"condition": "stim"}},
            ValueError,
            r"conditions: 'stim' is no level of 'condition', which has \['control', 'stimulated'\]",
        ),
        (
            {"conditions": {"condition": ["control"]}},
            ValueError,
            "conditions: .*'control'.* is no level of 'condition'",
        ),
        ({"conditions": {"condition": float("nan")}}, ValueError, "conditions: nan is no level of 'condition'"),
        ({"conditions": frame(condition=["control"] * 3)}, ValueError, "conditions has 3 rows, but 5 cells"),
        (
            {"conditions": frame(condition=["control"] * 4 + ["stim"])},
            ValueError,
            "conditions: 'stim' is no level of 'condition'",
        ),
        ({"conditions": frame(drug=["a"] * 5)}, KeyError, r"conditions has columns \['drug'\], none of which"),
        ({"conditions": frame(condition=[]), "n_samples": None}, ValueError, "n_samples=0"),
        (
            {"guidance_weight": {"drug": 2.0}},
            KeyError,
            r"guidance_weight: 'drug' is no condition of this model, which has \['cell_type', 'condition'\]",
        ),
        ({"guidance_weight": float("nan")}, ValueError, "guidance_weight=nan"),
        ({"guidance_weight": {"condition": float("inf")}}, ValueError, "guidance_weight.*inf"),
        ({"library_size": 0}, ValueError, "library_size=0 must be a positive number"),
        ({"library_size": -5.0}, ValueError, "library_size=-5.0 must be a positive number"),
        ({"library_size": [100.0] * 4}, ValueError, "library_size=.* one for each of (the )?5 cells"),
        ({"library_size": [100.0] * 4 + [float("nan")]}, ValueError, "library_size=.* must be a positive number"),
        ({"batch": "plate_3"}, ValueError, r"'plate_3' is no level of 'batch', which has \['batch_0', 'batch_1'\]"),
        ({"solver": "rk45"}, ValueError, "solver='rk45' is not known: use one of 'heun', 'euler', 'adaptive'"),
        ({"n_steps": 0}, ValueError, "n_steps=0 must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size=0 must be at least 1"),
    ],
)
def test_sample_names_what_is_wrong(sim_model, arguments, error, message):
    with pytest.raises(error, match=message):
        sim_model.sample(**{"n_samples": 5, "progress_bar": False, **arguments})


# ---- queries


@pytest.fixture
def query(sim) -> AnnData:
    """Twenty cells as a user brings them."""
    return AnnData(
        sparse.csr_matrix(sim.shape)[:20], obs=sim.obs[[*KEYS, "batch"]].iloc[:20].copy(), var=sim.var[[]].copy(),
        layers={"counts": sim.layers["counts"][:20].copy()},
    )  # fmt: skip


def spoil_count(value: float) -> Callable[[AnnData], None]:
    return lambda adata: adata.layers["counts"].data.__setitem__(4, value)


def no_counts_in_known_genes(adata: AnnData) -> None:
    counts = adata.layers["counts"].toarray()
    counts[3] = 0
    counts[3, 0] = 9
    adata.layers["counts"] = sparse.csr_matrix(counts)
    adata.var_names = ["a gene of their own", *adata.var_names[1:]]


QUERIES = {
    "negative": (spoil_count(-1), ValueError, "query.* has negative values"),
    "not whole": (spoil_count(0.5), ValueError, "query.* has values that are not whole"),
    "NaN": (spoil_count(np.nan), ValueError, "query.* has values that are NaN"),
    "no layer": (lambda a: a.layers.pop("counts"), KeyError, "layer='counts' is not in adata.layers"),
    "other genes": (
        lambda a: setattr(a, "var_names", [f"ENSG{i}" for i in range(a.n_vars)]), ValueError,
        "None of the 80 genes of the query .*'ENSG0'.* is among the 80 genes of the model",
    ),
    "duplicated genes": (duplicated_gene, ValueError, "gene names of the query have duplicates .*'TWICE'"),
    "unknown level": (column("condition", "interferon"), ValueError, "'interferon' is no level of 'condition'"),
    "unknown batch": (column("batch", "plate_3"), ValueError, "'plate_3' is no level of 'batch'"),
    "no batch": (lambda a: a.obs.pop("batch"), KeyError, "'batch'.* batch_key"),
    "no counts in known genes": (no_counts_in_known_genes, ValueError, "without any counts .*row 3"),
}  # fmt: skip


NOT_NEEDED = {  # to encode a cell takes neither conditions nor batch, to decode it no conditions
    "get_latent_representation": ["unknown level", "unknown batch", "no batch"],
    "get_reconstruction_error": ["unknown level"],
    "counterfactual": [],
}


@pytest.mark.parametrize(
    ("case", "method"), [(c, m) for m, fine in NOT_NEEDED.items() for c in QUERIES if c not in fine]
)
def test_a_bad_query_is_refused_and_not_changed(sim_model, query, case, method):
    spoil, error, message = QUERIES[case]
    spoil(query)
    before = query.copy()
    more = {"conditions": {"condition": "stimulated"}, "progress_bar": False} if method == "counterfactual" else {}
    with pytest.raises(error, match=message):
        getattr(sim_model, method)(query, **more)
    assert_untouched(query, before)


@pytest.mark.parametrize(("case", "method"), [(c, m) for m, fine in NOT_NEEDED.items() for c in fine])
def test_what_a_method_does_not_need_may_be_wrong(sim_model, query, case, method):
    expected = getattr(sim_model, method)(query)
    QUERIES[case][0](query)
    np.testing.assert_equal(getattr(sim_model, method)(query), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"conditions": None}, ValueError, "conditions is missing"),
        ({"conditions": {"drug": "a"}}, KeyError, "'drug' is no condition of this model"),
        ({"conditions": {"condition": "stim"}}, ValueError, "'stim' is no level of 'condition'"),
        ({"conditions": frame(condition=["control"] * 3)}, ValueError, "conditions has 3 rows, but 20 cells"),
        ({"noise_level": 1.5}, ValueError, "noise_level=1.5 must be between 0 .* and 1"),
        ({"noise_level": -0.1}, ValueError, "noise_level=-0.1 must be between 0 .* and 1"),
        ({"noise_level": float("nan")}, ValueError, "noise_level=nan must be between 0 .* and 1"),
        ({"guidance_weight": {"drug": 2.0}}, KeyError, "guidance_weight: 'drug' is no condition"),
        ({"solver": "rk45"}, ValueError, "solver='rk45' is not known"),
        ({"n_steps": -1}, ValueError, "n_steps=-1 must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size=0 must be at least 1"),
        ({"indices": [20]}, IndexError, "20"),
        ({"indices": []}, ValueError, "indices"),
    ],
)
def test_counterfactual_names_what_is_wrong(sim_model, query, arguments, error, message):
    with pytest.raises(error, match=message):
        sim_model.counterfactual(query, **{"conditions": {"condition": "control"}, "progress_bar": False, **arguments})


# ---- what a message calls things


def test_levels_are_named_as_python_says_them(cells, fit):
    cells.obs["dose"] = np.where(np.arange(cells.n_obs) % 2, 0.2, 1.0)
    model = fit(cells, 1, setup={"condition_keys": "dose"})
    with pytest.raises(ValueError, match=r"conditions: '0.2' is no level of 'dose', which has \[0.2, 1.0\]"):
        model.sample(3, {"dose": "0.2"})
    assert set(model.sample(3, {"dose": np.float64(0.2)}, progress_bar=False).obs["dose"]) == {0.2}


def test_a_level_of_the_query_is_looked_for_in_its_obs(cells, fit):
    model = fit(cells, 1, setup={"condition_keys": "condition", "batch_key": "batch"})
    for key in ("condition", "batch"):
        query = cells[:5].copy()
        query.obs[key] = "another"
        with pytest.raises(ValueError, match=rf"^adata.obs.*: 'another' is no level of '{key}'"):
            model.counterfactual(query, {"condition": "control"})


def test_training_data_that_were_normalised_in_place_are_noticed(cells, fit, quiet):
    model = fit(cells, 1)
    cells.X = sparse.csr_matrix(np.log1p(cells.X.toarray()))
    for use in (lambda: model.train(1, **quiet), model.get_latent_representation):
        with pytest.raises(ValueError, match=r"AnnData of training was changed: .*not whole numbers"):
            use()
    assert model.sample(3, progress_bar=False).n_obs == 3  # which needs no cells
