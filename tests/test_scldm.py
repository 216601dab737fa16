"""SCLDM as a user meets it: set up, train, describe cells, generate cells, move cells."""

import logging
import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback
from scipy import sparse, stats

from sclatent.data import log_normalize_counts
from sclatent.datasets import glioblastoma, simulate
from sclatent.model import SCLDM

TREATED = {"condition": "panobinostat"}
SEEN_PATIENTS = ["PW030", "PW032", "PW036", "PW040"]


def dense(x) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def log_mean(x) -> np.ndarray:
    """Mean over cells of log1p of counts per 10,000."""
    x = dense(x).astype(float)
    return np.log1p(1e4 * x / np.maximum(x.sum(axis=1, keepdims=True), 1)).mean(axis=0)


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def copy_of(adata: AnnData) -> AnnData:
    layers = {name: layer for name, layer in adata.layers.items() if name is not None}  # not X, as of anndata 0.13
    return ad.AnnData(adata.X.copy(), obs=adata.obs.copy(), var=adata.var.copy(), layers=layers)


def assert_unchanged(adata: AnnData, before: AnnData) -> None:
    assert (adata.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert list(adata.layers) == list(before.layers)


@pytest.fixture(scope="module")
def real_change() -> np.ndarray:
    """Mean change under panobinostat of the patients whose treated cells are in training, all cells."""
    adata = glioblastoma()
    seen, treated = adata.obs["patient_id"].isin(SEEN_PATIENTS), adata.obs["condition"] == "panobinostat"
    return log_mean(adata[seen & treated].X) - log_mean(adata[seen & ~treated].X)


@pytest.fixture(scope="module")
def generated(glio_model) -> AnnData:
    """60 cells for every seen patient under either condition."""
    rows = [(p, c) for p in SEEN_PATIENTS for c in ("ctrl", "panobinostat") for _ in range(60)]
    conditions = pd.DataFrame(rows, columns=["patient_id", "condition"])
    return glio_model.sample(conditions=conditions, progress_bar=False)


# ---- end to end


def test_the_snippet_of_the_readme(tmp_path, capsys):
    adata = simulate(
        200, 30, cell_types=["CD4 T cells", "B cells"], conditions=["control", "stimulated"], library_size=100
    )
    adata.layers["counts"] = adata.X.copy()

    SCLDM.setup_anndata(adata, layer="counts", condition_keys=["cell_type", "condition"])
    model = SCLDM(adata)
    model.train(max_epochs=1, accelerator="cpu")
    adata.obsm["X_sclatent"] = model.get_latent_representation()
    cells = model.sample(50, {"cell_type": "CD4 T cells", "condition": "stimulated"}, seed=0)
    adata_ctrl = adata[adata.obs["condition"] == "control"]
    moved = model.counterfactual(adata_ctrl, {"condition": "stimulated"}, seed=0)
    model.save(tmp_path / "m")
    again = SCLDM.load(tmp_path / "m", adata)

    n_tokens, token_dim = model.module.standardize.mean.shape
    assert adata.obsm["X_sclatent"].shape == (200, n_tokens * token_dim)
    assert cells.shape == (50, 30)
    assert set(cells.obs["cell_type"]) == {"CD4 T cells"}
    assert moved.shape == adata_ctrl.shape
    assert set(moved.obs["condition"]) == {"stimulated"}
    np.testing.assert_array_equal(again.get_latent_representation(), adata.obsm["X_sclatent"])
    progress = capsys.readouterr().err
    for part in ("Autoencoder, epoch 1/1: 100%", "Diffusion, epoch 1/1: 100%", "loss=", "cells/s", "[00:0"):
        assert part in progress
    for each in (model, again):
        repr(each)  # scvi-tools prints it
        assert "SCLDM of 30 genes" in capsys.readouterr().out


class FirstEpoch(Callback):
    """Notes how many epochs a stage is to have, and ends it after the first."""

    def __init__(self):
        self.planned = []

    def on_train_epoch_end(self, trainer, plan):
        self.planned.append(trainer.max_epochs)
        trainer.should_stop = True


def test_by_default_both_stages_are_sized_to_the_data(cells, small, quiet):
    SCLDM.setup_anndata(cells, condition_keys="condition")
    model = SCLDM(cells, **small)
    first = FirstEpoch()
    model.train(**quiet, callbacks=[first])
    assert first.planned == [round(4_000 / len(cells) ** 0.5)] * 2
    assert model.is_trained
    assert len(model.train_indices_) == round(0.9 * len(cells))
    assert sorted([*model.train_indices_, *model.validation_indices_]) == list(range(len(cells)))


# ---- sampled cells are an AnnData that scanpy takes


def test_sampled_cells_are_integer_counts_with_the_names_of_training(generated, glio):
    assert sparse.issparse(generated.X)
    assert generated.X.format == "csr"
    assert np.issubdtype(generated.X.dtype, np.integer)
    assert generated.X.data.min() >= 0
    assert list(generated.var_names) == list(glio.var_names)
    assert generated.obs_names.is_unique
    for key in ("patient_id", "condition"):
        assert list(generated.obs[key].cat.categories) == list(glio.obs[key].cat.categories)
    density = generated.X.count_nonzero() / np.prod(generated.shape)
    assert density == pytest.approx(glio.X.count_nonzero() / np.prod(glio.shape), rel=0.15)


def test_sampled_cells_run_through_scanpy_and_h5ad(generated, tmp_path):
    generated.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert (back.X != generated.X).nnz == 0
    pd.testing.assert_frame_equal(back.obs, generated.obs)
    assert back.uns["sclatent"]["model"] == "SCLDM"
    sc.pp.normalize_total(back, target_sum=1e4)
    sc.pp.log1p(back)
    sc.pp.pca(back, n_comps=10)
    assert back.obsm["X_pca"].shape == (back.n_obs, 10)
    assert np.isfinite(back.obsm["X_pca"]).all()


def test_uns_says_how_the_cells_were_made(sim_model):
    how = sim_model.sample(
        3, guidance_weight={"condition": 2.0}, solver="euler", n_steps=5, seed=7, progress_bar=False
    ).uns["sclatent"]
    expected = {
        "model": "SCLDM",
        "method": "sample",
        "guidance_weight": {"condition": 2.0},
        "solver": "euler",
        "seed": 7,
    }
    assert expected.items() <= how.items()
    assert how["n_steps"] == 5
    assert how["version"]
    moved = sim_model.counterfactual(
        indices=[0, 1], conditions={"condition": "control"}, noise_level=0.5, progress_bar=False
    )
    assert moved.uns["sclatent"]["method"] == "counterfactual"
    assert moved.uns["sclatent"]["noise_level"] == 0.5


@pytest.mark.parametrize(("solver", "default"), [("heun", 12), ("euler", 25), ("adaptive", 8)])
def test_uns_has_the_number_of_steps_that_were_taken(sim_model, solver, default):
    taken, spelt_out = (sim_model.sample(4, solver=solver, n_steps=n, progress_bar=False) for n in (None, default))
    assert (taken.X != spelt_out.X).nnz == 0
    assert taken.uns["sclatent"]["n_steps"] == default


# ---- seeds


def counts_of(model: SCLDM, n: int = 40, **kwargs) -> np.ndarray:
    conditions = kwargs.pop("conditions", {"condition": "stimulated"})
    return model.sample(n, conditions, progress_bar=False, **kwargs).X.toarray()


@pytest.mark.parametrize(
    "how", [{}, {"guidance_weight": 2.0}, {"solver": "adaptive"}], ids=["plain", "guided", "adaptive"]
)
def test_the_same_seed_gives_the_same_cells_whatever_the_batch_size(sim_model, how):
    reference = counts_of(sim_model, seed=3, **how)
    np.testing.assert_array_equal(counts_of(sim_model, seed=3, batch_size=13, **how), reference)  # the last one alone
    np.testing.assert_array_equal(counts_of(sim_model, n=15, seed=3, **how), reference[:15])
    other = counts_of(sim_model, seed=4, **how)
    assert (other != reference).any(axis=1).all()
    assert len(np.unique(reference, axis=0)) == 40


def test_counterfactuals_do_not_depend_on_the_batch_size_either(sim_model, sim):
    ctrl = sim[sim.obs["condition"] == "control"][:50]
    one, other, third = (
        sim_model.counterfactual(ctrl, {"condition": "stimulated"}, batch_size=b, seed=s, progress_bar=False)
        for b, s in ((256, 1), (7, 1), (256, 2))
    )
    assert (one.X != other.X).nnz == 0
    assert (one.X != third.X).nnz > 0


# ---- conditions of samples


def test_conditions_as_dict_frame_and_obs_agree(sim_model, sim):
    combination = {"cell_type": "type_1", "condition": "stimulated"}
    by_dict = sim_model.sample(10, combination, progress_bar=False)
    by_frame = sim_model.sample(conditions=pd.DataFrame([combination] * 10), progress_bar=False)
    assert (by_dict.X != by_frame.X).nnz == 0
    assert (by_dict.obs[list(combination)] == list(combination.values())).all(axis=None)

    like = sim_model.sample(conditions=sim.obs, progress_bar=False)
    assert like.n_obs == sim.n_obs
    for key in ("cell_type", "condition"):
        assert list(like.obs[key]) == list(sim.obs[key])


def test_conditions_may_be_left_open(sim_model):
    some = sim_model.sample(20, {"condition": "stimulated"}, progress_bar=False)
    assert some.obs["cell_type"].isna().all()
    assert set(some.obs["condition"]) == {"stimulated"}
    none = sim_model.sample(20, progress_bar=False)
    assert none.obs[["cell_type", "condition"]].isna().all(axis=None)
    assert (some.X != none.X).nnz > 0
    mixed = pd.DataFrame({"cell_type": ["type_0", None], "condition": [None, "control"]})
    assert sim_model.sample(conditions=mixed, progress_bar=False).obs["cell_type"].isna().tolist() == [False, True]


# ---- library sizes


def test_library_size_is_honoured_and_recorded(sim_model):
    given = sim_model.sample(200, library_size=1_000, progress_bar=False)
    assert given.X.sum(axis=1).mean() == pytest.approx(1_000, rel=0.05)
    np.testing.assert_array_equal(given.obs["library_size"], 1_000)
    sizes = np.repeat([200.0, 2_000.0], 100)
    per_cell = sim_model.sample(200, library_size=sizes, progress_bar=False)
    np.testing.assert_array_equal(per_cell.obs["library_size"], sizes)
    totals = np.asarray(per_cell.X.sum(axis=1)).reshape(2, 100).mean(axis=1)
    np.testing.assert_allclose(totals, [200, 2_000], rtol=0.1)
    assert given.uns["sclatent"]["library_size"] == per_cell.uns["sclatent"]["library_size"] == "given"


def test_default_library_sizes_follow_the_combination(sim_model, sim):
    totals = pd.Series(np.asarray(sim.layers["counts"].sum(axis=1)).ravel(), index=sim.obs_names)
    rules = {}
    for cell_type, condition in [("type_0", "control"), ("type_1", "stimulated"), ("type_2", "stimulated")]:
        cells = sim_model.sample(100, {"cell_type": cell_type, "condition": condition}, progress_bar=False)
        pool = totals[(sim.obs["cell_type"] == cell_type) & (sim.obs["condition"] == condition)]
        rules[cell_type] = cells.uns["sclatent"]["library_size"]
        if len(pool):
            assert set(cells.obs["library_size"]) <= set(pool)
        else:
            ratio = sim.uns["truth"]["log_library_size"][:, 1] - sim.uns["truth"]["log_library_size"][:, 0]
            control = totals[(sim.obs["cell_type"] == cell_type) & (sim.obs["condition"] == "control")]
            expected = np.log(control).mean() + ratio[0]
            assert np.log(cells.obs["library_size"]).mean() == pytest.approx(expected, abs=0.15)
    assert rules["type_0"] == rules["type_1"] != rules["type_2"]


# ---- do conditions steer?


def test_generated_cells_change_as_the_real_ones_do(generated, real_change):
    treated = (generated.obs["condition"] == "panobinostat").to_numpy()
    change = log_mean(generated[treated].X) - log_mean(generated[~treated].X)
    assert correlation(change, real_change) > 0.5


def test_generated_cells_are_of_their_patient(generated, glio):
    """The mean of the cells made for a patient is nearest to the mean of that patient's real cells."""
    control = glio[glio.obs["condition"] == "ctrl"]
    real = {p: log_mean(control[control.obs["patient_id"] == p].X) for p in SEEN_PATIENTS}
    centre = np.mean(list(real.values()), axis=0)
    made_as_control = generated.obs["condition"] == "ctrl"
    made = {p: log_mean(generated[made_as_control & (generated.obs["patient_id"] == p)].X) for p in SEEN_PATIENTS}
    made_centre = np.mean(list(made.values()), axis=0)
    for patient in SEEN_PATIENTS:
        alike = {p: correlation(made[patient] - made_centre, real[p] - centre) for p in SEEN_PATIENTS}
        assert max(alike, key=alike.get) == patient


@pytest.fixture(scope="module")
def sim_change(sim) -> np.ndarray:
    counts, stimulated = sim.layers["counts"], (sim.obs["condition"] == "stimulated").to_numpy()
    seen = (sim.obs["cell_type"] != "type_2").to_numpy()
    return log_mean(counts[seen & stimulated]) - log_mean(counts[seen & ~stimulated])


def test_guidance_pushes_along_the_effect(sim_model, sim_change):
    def effect(weight) -> float:
        made = [
            log_mean(
                sim_model.sample(
                    150, {"cell_type": "type_0", "condition": c}, weight, library_size=500, progress_bar=False
                ).X
            )
            for c in ("control", "stimulated")
        ]
        return float((made[1] - made[0]) @ sim_change / (sim_change @ sim_change))

    weak, plain, strong = (effect({"condition": w}) for w in (0.0, 1.0, 2.0))
    assert plain > 0.4
    assert weak < plain - 0.1
    assert strong > plain + 0.1
    assert effect(2.0) > plain


def test_weights_zero_and_one_are_unconditional_and_plain_sampling(sim_model):
    combination = {"cell_type": "type_0", "condition": "stimulated"}
    library = {"library_size": 400, "batch": sim_model.batches.levels[0]}  # that are drawn by the conditions
    plain = counts_of(sim_model, conditions=combination, **library)
    np.testing.assert_array_equal(counts_of(sim_model, conditions=combination, guidance_weight=1, **library), plain)
    np.testing.assert_array_equal(
        counts_of(sim_model, conditions=combination, guidance_weight={"condition": 1.0}, **library), plain
    )
    free = counts_of(sim_model, conditions=combination, guidance_weight=0.0, **library)
    np.testing.assert_array_equal(free, counts_of(sim_model, conditions=None, **library))
    assert (free != plain).any()


def test_solvers_agree_on_the_mean(sim_model):
    reference = log_mean(counts_of(sim_model, n=200, library_size=500, n_steps=50))
    for solver in ("heun", "euler", "adaptive"):
        mean = log_mean(counts_of(sim_model, n=200, library_size=500, solver=solver))
        assert correlation(mean, reference) > 0.99
        assert np.abs(mean - reference).mean() < 0.2
    assert (counts_of(sim_model, n_steps=1) != counts_of(sim_model)).any()  # n_steps is honoured


def test_sampled_cells_differ_as_real_cells_do(sim_model, sim):
    """Not one mean for all: the variance of total-normalised expression between cells is that of real cells."""
    combination = {"cell_type": "type_0", "condition": "control"}
    made = dense(sim_model.sample(300, combination, progress_bar=False).X).astype(float)
    of_it = (sim.obs[list(combination)] == list(combination.values())).all(axis=1).to_numpy()
    real = dense(sim.layers["counts"][of_it]).astype(float)
    made, real = (np.log1p(1e3 * x / x.sum(axis=1, keepdims=True)).std(axis=0) for x in (made, real))
    assert correlation(made, real) > 0.8
    assert made.mean() == pytest.approx(real.mean(), rel=0.2)


# ---- counterfactuals


@pytest.fixture(scope="module")
def controls(glio) -> AnnData:
    """A view of control cells, without what setup_anndata wrote, and with columns of its own."""
    adata = copy_of(glio[glio.obs["condition"] == "ctrl"])
    adata.obs["mine"] = np.arange(adata.n_obs)
    return adata[::2]


def test_counterfactuals_answer_row_by_row(glio_model, controls, real_change):
    before = copy_of(controls)
    moved = glio_model.counterfactual(controls, TREATED, progress_bar=False)
    assert controls.is_view
    assert_unchanged(controls, before)
    assert list(moved.obs_names) == list(controls.obs_names)
    assert list(moved.var_names) == list(glio_model.genes)
    assert moved.X.format == "csr"
    assert np.issubdtype(moved.X.dtype, np.integer)
    assert set(moved.obs["condition"]) == {"panobinostat"}
    assert list(moved.obs["condition"].cat.categories) == ["ctrl", "panobinostat"]
    for key in ("patient_id", "mine"):
        assert list(moved.obs[key]) == list(controls.obs[key])
    change = log_mean(moved.X) - log_mean(controls.X)
    assert correlation(change, real_change) > 0.5
    # a cell is moved, not replaced: it stays nearer to itself than to another cell of its patient
    own, other = controls.X.toarray(), np.roll(controls.X.toarray(), 1, axis=0)
    x = np.log1p(moved.X.toarray())
    distance = [np.linalg.norm(x - np.log1p(y), axis=1).mean() for y in (own, other)]
    assert distance[0] < 0.8 * distance[1]


def test_where_a_cell_is_it_stays(glio_model, controls, glio):
    for conditions in ({"condition": "ctrl"}, {}, controls.obs):
        same = glio_model.counterfactual(controls, conditions, progress_bar=False)
        assert (same.X != controls.X).nnz == 0
    everything = glio_model.counterfactual(conditions=glio.obs[["condition"]], progress_bar=False)
    assert (everything.X != glio.X).nnz == 0


def test_a_deeply_sequenced_cell_stays_too(cells, fit):
    """Exactly, however many counts: rounding of the mean must not let single counts get lost or appear."""
    cells.X = 20_000 * cells.X
    model = fit(cells, 1)
    same = model.counterfactual(cells, {}, progress_bar=False)
    assert (same.X != cells.X).nnz == 0


@pytest.fixture(scope="module")
def types_in_line() -> AnnData:
    """Six types along a line, whose answer grows along it; of the last one no stimulated cell was seen."""
    rng = np.random.default_rng(0)
    kind, stimulated = np.repeat(np.arange(6), 100), np.tile([0, 1], 300)
    place, n_genes = np.linspace(0, 1, 6)[kind][:, None], 60
    rate = np.exp(rng.normal(size=n_genes) + place * rng.normal(size=n_genes))
    rate = rate + 3 * (stimulated[:, None] * (0.3 + place)) * rng.random(n_genes)
    obs = pd.DataFrame(
        {"cell_type": kind.astype(str), "condition": stimulated.astype(str), "batch": np.tile(["a", "b", "b"], 200)},
        index=[f"cell_{i}" for i in range(600)],
    ).astype("category")
    obs["size"] = rate.sum(axis=1)
    adata = AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs)
    return adata[(kind < 5) | (stimulated == 0)].copy()


@pytest.fixture(scope="module")
def graded(types_in_line, small, quiet) -> SCLDM:
    SCLDM.setup_anndata(types_in_line, condition_keys=["cell_type", "condition"])
    model = SCLDM(types_in_line, **small)
    model.train(max_epochs={"autoencoder": 15, "diffusion": 6}, **quiet)
    return model


def test_an_unseen_combination_is_predicted_from_types_like_it(graded, types_in_line, small, quiet):
    """Its cells are drawn as those of the fixture are; an additive model does not know that the response grows."""
    rng, n_genes = np.random.default_rng(0), 60
    base, slope, response = rng.normal(size=n_genes), rng.normal(size=n_genes), rng.random(n_genes)
    stimulated = rng.poisson(np.exp(base + slope) + 3 * 1.3 * response, size=(400, n_genes))
    additive = SCLDM(types_in_line, **small, baseline="additive")
    additive.train(max_epochs={"autoencoder": 15, "diffusion": 1}, **quiet)
    controls = graded.adata[graded.adata.obs["cell_type"] == "5"].copy()
    change = log_mean(stimulated) - log_mean(controls.X)
    errors = []
    for model in (graded, additive):
        moved = model.counterfactual(controls, {"condition": "1"}, progress_bar=False)
        predicted = log_mean(moved.X) - log_mean(controls.X)
        errors.append(np.abs(predicted - change).mean())
        assert correlation(predicted, change) > 0.7
    assert errors[0] < 0.85 * errors[1]


def test_a_cell_of_an_unseen_combination_stays_where_it_is(graded):
    cells = graded.adata[graded.adata.obs["cell_type"] == "5"].copy()
    cells.obs["condition"] = pd.Categorical(["1"] * cells.n_obs)
    same = graded.counterfactual(cells, {"condition": "1"}, progress_bar=False)
    assert (same.X != cells.X).nnz == 0


def test_the_order_of_genes_does_not_matter_to_an_unseen_combination(graded, types_in_line, tmp_path):
    graded.save(tmp_path / "model")
    asked = {"cell_type": "5", "condition": "1"}
    cells = []
    for genes in (slice(None), np.random.default_rng(0).permutation(60)):
        model = SCLDM.load(tmp_path / "model", types_in_line[:, genes].copy())
        model.train_indices_ = np.arange(types_in_line.n_obs)
        model.trained_stages.discard("diffusion")  # so that scales and baseline are fitted anew, to the same weights
        model._stage_rows("diffusion", model._training_rows())
        model.trained_stages.add("diffusion")
        cells.append(log_mean(model.sample(200, asked, progress_bar=False).X))
    np.testing.assert_allclose(*cells, atol=0.05)


@pytest.mark.parametrize(
    ("setup", "model"),
    [
        ({"batch_key": "batch"}, {}),
        ({"size_factor_key": "size"}, {"gene_likelihood": "zinb"}),
        ({"is_count_data": False}, {"gene_likelihood": "normal"}),
    ],
)
def test_whatever_cells_are_an_unseen_combination_is_predicted(types_in_line, fit, setup, model):
    adata = types_in_line.copy()
    if not setup.get("is_count_data", True):
        adata.X = log_normalize_counts(adata.X)
    trained = fit(adata, 1, setup={"condition_keys": ["cell_type", "condition"], **setup}, **model)
    cells = trained.sample(10, {"cell_type": "5", "condition": "1"}, progress_bar=False)
    assert np.isfinite(cells.X.data).all()


@pytest.mark.parametrize("noise_level", [1.0, 0.5])
def test_with_more_noise_a_cell_still_moves_the_right_way(glio_model, controls, real_change, noise_level):
    controls = controls[:150]
    moved = glio_model.counterfactual(controls, TREATED, noise_level=noise_level, progress_bar=False)
    assert correlation(log_mean(moved.X) - log_mean(controls.X), real_change) > 0.4


def test_rows_and_conditions_of_counterfactuals_may_be_chosen(sim_model, sim):
    rows = [5, 2, 30]
    conditions = pd.DataFrame({"condition": ["control", "stimulated", None]})
    moved = sim_model.counterfactual(conditions=conditions, indices=rows, progress_bar=False)
    assert list(moved.obs_names) == list(sim.obs_names[rows])
    assert list(moved.obs["condition"]) == ["control", "stimulated", sim.obs["condition"].iloc[30]]
    assert list(moved.obs["batch"]) == list(sim.obs["batch"].iloc[rows])
    alone = sim_model.counterfactual(sim[rows], {"cell_type": "type_1", "condition": "control"}, progress_bar=False)
    assert set(alone.obs["cell_type"]) == {"type_1"}


def test_obs_of_counterfactuals_keeps_what_the_user_had(sim_model, sim):
    """The simulator's library_size is a column of the user's, not ours to overwrite."""
    moved = sim_model.counterfactual(indices=[0, 1, 2], conditions={"condition": "stimulated"}, progress_bar=False)
    others = [key for key in sim.obs if key != "condition" and not key.startswith("_scvi")]
    assert "library_size" in others
    assert not [key for key in moved.obs if key.startswith("_scvi")]
    pd.testing.assert_frame_equal(moved.obs[others], sim.obs[others].iloc[:3])


def test_counterfactuals_of_a_panel_give_all_genes(glio_model, controls):
    panel = controls[:40, np.flatnonzero(np.arange(300) % 3)[::-1]].copy()
    panel.var_names = [*panel.var_names[:-1], "not a gene of the model"]
    moved = glio_model.counterfactual(panel, TREATED, progress_bar=False)
    assert list(moved.var_names) == list(glio_model.genes)
    missing = np.setdiff1d(moved.var_names, panel.var_names)
    assert moved[:, missing].X.sum() > 0
    measured = panel.var_names[:-1]
    own = glio_model.counterfactual(panel, {"condition": "ctrl"}, progress_bar=False)
    np.testing.assert_array_equal(own[:, measured].X.toarray(), panel[:, measured].X.toarray())
    assert own[:, missing].X.sum(axis=1).mean() == pytest.approx(controls[:40, missing].X.sum(axis=1).mean(), rel=0.5)


# ---- description of cells


def test_latent_representation(glio_model, glio):
    latent = glio_model.get_latent_representation()
    assert latent.shape == (glio.n_obs, 8 * 16)
    tokens = latent.reshape(-1, 8, 16)
    np.testing.assert_allclose(tokens.mean(axis=2), 0, atol=1e-4)
    rows = np.array([4, 1, 900])
    np.testing.assert_allclose(glio_model.get_latent_representation(indices=rows), latent[rows], atol=1e-4)
    np.testing.assert_allclose(glio_model.get_latent_representation(batch_size=100), latent, atol=1e-4)
    order = np.random.default_rng(0).permutation(glio.n_vars)
    np.testing.assert_allclose(glio_model.get_latent_representation(glio[:, order]), latent, atol=1e-4)
    # cells of a patient are alike
    patients = glio.obs["patient_id"].to_numpy()
    centres = np.stack([latent[patients == p].mean(axis=0) for p in np.unique(patients)])
    nearest = np.unique(patients)[((latent[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)]
    assert (nearest == patients).mean() > 0.5


@pytest.mark.parametrize(("indices", "rows"), [(slice(2, 5), [2, 3, 4]), ([-1, 0], [239, 0]), ("mask", [1, 7])])
def test_indices_may_be_what_numpy_takes(cells, fit, indices, rows):
    model = fit(cells, 1, train={"stage": "autoencoder"})
    indices = np.isin(np.arange(240), rows) if isinstance(indices, str) else indices
    expected = model.get_latent_representation()[rows]
    np.testing.assert_allclose(model.get_latent_representation(indices=indices), expected, atol=1e-5)
    assert list(model.get_normalized_expression(indices=indices).index) == list(cells.obs_names[rows])


def test_a_panel_by_name_is_encoded_near_the_whole_cell(glio_model, glio, caplog):
    panel = glio[:200, np.random.default_rng(1).permutation(300)[:240]]
    whole = glio_model.get_latent_representation(glio[:200])
    with caplog.at_level(logging.WARNING):
        part = glio_model.get_latent_representation(panel)
    assert "240 of the model's 300 found, 60 missing" in caplog.text
    assert part.shape == whole.shape
    own, other = ((part - whole) ** 2).mean(), ((part - np.roll(whole, 1, axis=0)) ** 2).mean()
    assert 0 < own < 0.6 * other


def test_normalized_expression(glio_model, glio):
    expression = glio_model.get_normalized_expression(indices=range(300))
    assert list(expression.columns) == list(glio.var_names)
    assert list(expression.index) == list(glio.obs_names[:300])
    np.testing.assert_allclose(expression.sum(axis=1), 1, rtol=1e-4)
    assert (expression > 0).all(axis=None)
    scaled = glio_model.get_normalized_expression(indices=range(300), library_size=1e4, return_numpy=True)
    np.testing.assert_allclose(scaled, 1e4 * expression, rtol=1e-3)
    observed = glio_model.get_normalized_expression(indices=range(300), library_size="observed")
    np.testing.assert_allclose(observed.sum(axis=1), dense(glio.X[:300]).sum(axis=1), rtol=1e-4)
    some = list(glio.var_names[[7, 3]])
    pd.testing.assert_frame_equal(
        glio_model.get_normalized_expression(indices=range(300), gene_list=some), expression[some]
    )
    # denoised expression follows the cell: genes that vary correlate with their counts
    share = dense(glio.X[:300]) / dense(glio.X[:300]).sum(axis=1, keepdims=True)
    variable = np.argsort(share.std(axis=0))[-20:]
    assert np.median([correlation(share[:, g], expression.to_numpy()[:, g]) for g in variable]) > 0.4
    with pytest.raises(ValueError, match="gene_list: 'nothing' is no gene of this model"):
        glio_model.get_normalized_expression(gene_list=["nothing"])


def test_reconstruction_beats_the_best_model_without_a_latent(glio_model, glio):
    """Held-out cells, against a negative binomial with one share and the best dispersion a gene."""
    held_out, train = glio_model.validation_indices_, glio_model.train_indices_
    x = dense(glio.X).astype(float)
    share = x[train].sum(axis=0) / x[train].sum()
    mean = x[held_out].sum(axis=1, keepdims=True) * share
    theta = np.geomspace(0.05, 20, 25)[:, None, None]
    by_theta = -stats.nbinom.logpmf(x[held_out], theta, theta / (theta + mean)).sum(axis=1)
    floor = by_theta.min(axis=0).sum() / len(held_out)
    error = glio_model.get_reconstruction_error(indices=held_out)["reconstruction_loss"]
    assert error < floor - 10
    history = glio_model.history["autoencoder_loss_validation"].to_numpy()
    assert error == pytest.approx(history.min(), rel=1e-3)  # the weights of the best epoch are the ones kept


# ---- training from the outside


def test_history_has_an_epoch_a_row(glio_model):
    for stage, n_epochs in (("autoencoder", 20), ("diffusion", 15)):
        for split in ("train", "validation"):
            key = f"{stage}_loss_{split}"
            frame = glio_model.history[key]
            assert list(frame.columns) == [key]
            assert frame.index.name == "epoch"
            assert list(frame.index) == list(range(n_epochs))
            assert np.isfinite(frame.to_numpy()).all()
            assert frame[key].iloc[-3:].mean() < frame[key].iloc[0]


def test_stages_can_be_trained_alone_and_further(cells, fit, quiet, caplog):
    model = fit(cells, 2, train={"stage": "autoencoder"})
    assert not model.is_trained
    latent, error = model.get_latent_representation(), model.get_reconstruction_error()["reconstruction_loss"]
    with pytest.raises(RuntimeError, match="sample needs a trained diffusion"):
        model.sample(2)

    model.train(2, stage="diffusion", **quiet)
    assert model.is_trained
    np.testing.assert_array_equal(model.get_latent_representation(), latent)
    first = counts_of(model)
    model.train(3, stage="diffusion", **quiet)
    assert (counts_of(model) != first).any()
    np.testing.assert_array_equal(model.get_latent_representation(), latent)
    assert list(model.history["diffusion_loss_train"].index) == list(range(5))

    with caplog.at_level(logging.WARNING):
        model.train(8, stage="autoencoder", **quiet)
    assert "denoiser" in caplog.text
    assert not model.is_trained
    assert model.get_reconstruction_error()["reconstruction_loss"] < error
    assert list(model.history["autoencoder_loss_train"].index) == list(range(10))
    with pytest.raises(RuntimeError, match="sample needs a trained diffusion"):
        model.sample(2)
    model.train(1, stage="diffusion", **quiet)
    assert counts_of(model).shape == (40, 40)


def test_batches_are_told_to_the_decoder_alone(sim_model, sim):
    """Where a gene is captured better in one batch, cells decoded under that batch have more of it."""
    factor = sim.uns["truth"]["batch_factor"]
    made = [counts_of(sim_model, n=400, batch=b, library_size=500, conditions=None) for b in ("batch_0", "batch_1")]
    share = [(x.sum(axis=0) + 1) / x.sum() for x in made]
    common = share[0] > np.median(share[0])
    assert correlation(np.log(share[1] / share[0])[common], np.log(factor[1] / factor[0])[common]) > 0.35
    default = sim_model.sample(400, progress_bar=False)
    assert list(default.obs["batch"].cat.categories) == ["batch_0", "batch_1"]
    drawn, real = ((obs["batch"] == "batch_0").mean() for obs in (default.obs, sim.obs))
    assert drawn == pytest.approx(real, abs=0.1)


def test_units_of_size_factors_do_not_matter(cells, fit):
    def model(scale: float) -> SCLDM:
        adata = copy_of(cells)
        adata.obs["size_factor"] *= scale
        return fit(adata, 2, setup={"condition_keys": "condition", "size_factor_key": "size_factor"})

    one, other = model(1.0), model(1024.0)
    np.testing.assert_allclose(one.domain.library_sizes.sizes, other.domain.library_sizes.sizes)
    np.testing.assert_allclose(
        one.domain.library_sizes.sizes, dense(cells.X).sum(axis=1)[one.train_indices_], rtol=1e-5
    )
    np.testing.assert_array_equal(counts_of(one), counts_of(other))
    assert counts_of(one).sum(axis=1).mean() == pytest.approx(cells.X.sum(axis=1).mean(), rel=0.25)


@pytest.mark.parametrize("gene_likelihood", ["nb", "zinb", "poisson"])
def test_every_count_likelihood_trains_and_samples(cells, fit, gene_likelihood):
    model = fit(cells, 1, gene_likelihood=gene_likelihood)
    x = counts_of(model)
    assert x.sum(axis=1).mean() == pytest.approx(cells.X.sum(axis=1).mean(), rel=0.3)
    same = model.counterfactual(cells, {}, progress_bar=False)
    np.testing.assert_array_equal(same.X.toarray(), cells.X.toarray())
    assert np.isfinite(model.get_reconstruction_error()["reconstruction_loss"])


def test_log_normalised_values_train_and_sample(cells, fit):
    sc.pp.normalize_total(cells)
    sc.pp.log1p(cells)
    model = fit(
        cells, 2, setup={"condition_keys": ["cell_type", "condition"], "is_count_data": False}, gene_likelihood="normal"
    )
    made = model.sample(100, progress_bar=False)
    assert np.issubdtype(made.X.dtype, np.floating)
    assert made.X.min() >= 0
    assert correlation(dense(made.X).mean(axis=0), dense(cells.X).mean(axis=0)) > 0.8
    same = model.counterfactual(cells, {}, progress_bar=False)
    np.testing.assert_allclose(same.X.toarray(), cells.X.toarray(), rtol=1e-6)


@pytest.mark.parametrize(("gene_likelihood", "is_count_data"), [("normal", True), ("nb", False)])
def test_likelihood_and_data_must_fit(cells, gene_likelihood, is_count_data):
    SCLDM.setup_anndata(cells, is_count_data=is_count_data)
    with pytest.raises(
        ValueError, match=f"gene_likelihood='{gene_likelihood}' needs .*is_count_data={not is_count_data}"
    ):
        SCLDM(cells, gene_likelihood=gene_likelihood)


def test_a_kl_weight_draws_the_tokens_to_the_prior(cells, fit):
    """A large weight leaves nothing of the cells in the tokens, but N(0, I); a small one leaves them wide apart."""
    models = [fit(cells, 12, kl_weight=w, train={"stage": "autoencoder", "batch_size": 32}) for w in (1e-3, 100.0)]
    rows = models[0]._rows()
    divergence, spread = [], []
    for model in models:
        autoencoder, batch = model.module.autoencoder, rows[range(len(rows))]
        with torch.no_grad():
            divergence.append(float(autoencoder(batch.sets, batch.library, batch.batch)[1].mean()))
            spread.append(float(autoencoder.encode(batch.sets).std(dim=0).mean()))
    assert divergence[1] < 0.05 * divergence[0]  # that of means that are layer-normalised is at least 4 x 8 / 2
    assert spread[1] < 0.2 * spread[0]
    models[0].train(1, stage="diffusion", accelerator="cpu", progress_bar=False)
    assert counts_of(models[0]).shape == (40, 40)


def test_without_conditions(cells, fit):
    model = fit(cells, 2, setup={})
    made = model.sample(30, progress_bar=False)
    assert list(made.obs) == ["library_size"]
    assert made.X.sum(axis=1).mean() == pytest.approx(cells.X.sum(axis=1).mean(), rel=0.3)
    same = model.counterfactual(cells, {}, progress_bar=False)
    assert (same.X != cells.X).nnz == 0


def test_conditions_of_numbers_keep_their_type(cells, fit, tmp_path):
    cells.obs["dose"] = np.where(cells.obs["condition"] == "control", 0, 10)
    model = fit(cells, 1, setup={"condition_keys": "dose"})
    assert list(model.sample(3, {"dose": 10}, progress_bar=False).obs["dose"]) == [10] * 3
    model.save(tmp_path / "m")
    again = SCLDM.load(tmp_path / "m").sample(conditions=cells.obs, progress_bar=False)
    assert list(again.obs["dose"]) == list(cells.obs["dose"])


def test_guidance_that_does_nothing_is_said(sim_model, sim):
    some, where = sim[:5], {"condition": "stimulated"}
    with pytest.warns(UserWarning, match="guidance_weight does nothing at noise_level=0, .*noise_level above 0"):
        sim_model.counterfactual(some, where, guidance_weight={"condition": 2.0}, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        sim_model.counterfactual(some, where, guidance_weight={"condition": 1.0}, progress_bar=False)
        sim_model.counterfactual(some, where, noise_level=0.5, guidance_weight=2.0, n_steps=2, progress_bar=False)


# ---- parts


@pytest.mark.parametrize("process", ["linear", "variance_preserving"])
@pytest.mark.parametrize("baseline", ["mixed", "additive", "none"])
def test_every_process_goes_with_every_baseline(cells, fit, process, baseline, tmp_path):
    model = fit(cells, 2, process=process, baseline=baseline)
    model.save(tmp_path / "m")
    loaded = SCLDM.load(tmp_path / "m")
    asked = {"cell_type": "B", "condition": "stimulated"}
    made, again = (m.sample(20, asked, progress_bar=False) for m in (model, loaded))
    assert (made.X != again.X).nnz == 0
    for noise_level in (0.7, 0.0):
        same = model.counterfactual(cells, cells.obs[["condition"]], noise_level=noise_level, progress_bar=False)
        assert abs(same.X - cells.X).mean() < 0.2 * cells.X.mean()
    if baseline == "none":
        with pytest.raises(ValueError, match="baseline_only=True needs a baseline"):
            model.sample(5, asked, baseline_only=True, progress_bar=False)
    else:
        floor = model.sample(20, asked, baseline_only=True, progress_bar=False)
        assert floor.uns["sclatent"]["baseline_only"]
        assert "baseline_only" not in made.uns["sclatent"]


@pytest.mark.parametrize("argument", ["baseline", "residuals", "process"])
@pytest.mark.parametrize("value", ["normal", (), 1])
def test_parts_that_are_not_known_are_refused(cells, argument, value):
    SCLDM.setup_anndata(cells, condition_keys="condition")
    with pytest.raises(ValueError, match=rf"{argument}={re.escape(repr(value))} is not known: use one of"):
        SCLDM(cells, **{argument: value})
