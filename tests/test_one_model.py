"""What holds for every model alike: condition keys beside labels, the same arguments, the same tools."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

import sclatent
from sclatent import tl
from sclatent.model import DAED, SCLDM, JointDiffusion, JointLDM

QUIET = {"accelerator": "cpu", "progress_bar": False}
OF_FEATURES = [DAED, JointDiffusion, JointLDM]
EXAMPLE = Path(__file__).parents[1] / "docs" / "developer" / "example_counts.py"
MOVED_BY = 4.0


def embeddings(n: int, seed: int) -> AnnData:
    """Two types that differ along one coordinate, and a treatment that moves all cells along another."""
    rng = np.random.default_rng(seed)
    kind, treatment = rng.choice(["left", "right"], n), rng.choice(["control", "drug"], n)
    x = rng.standard_normal((n, 8)).astype(np.float32)
    x[:, 0] += np.where(kind == "right", MOVED_BY, 0.0)
    x[:, 1] += np.where(treatment == "drug", MOVED_BY, 0.0)
    adata = AnnData(x, obs={"kind": kind, "treatment": treatment})
    adata.obs.loc[adata.obs_names[::4], "kind"] = "unknown"
    return adata


@pytest.fixture(scope="module")
def features() -> dict[type, object]:
    """Models of two keys: a treatment, which all cells have, and a label, which some lack."""
    models = {}
    for cls in OF_FEATURES:
        adata = embeddings(500, seed=0)
        cls.setup_anndata(adata, condition_keys="treatment", labels_key="kind")
        more = {"baseline": "mixed"} if cls is JointDiffusion else {}
        model = cls(adata, denoiser_width=32, denoiser_blocks=2, **more)
        epochs = {stage: 4 if stage == "autoencoder" else 15 for stage in cls.STAGES}
        plans = {stage: {"lr": 3e-3 if stage == "autoencoder" else 1e-2} for stage in cls.STAGES}
        model.train(epochs, batch_size=64, plan_kwargs=plans, **QUIET)
        models[cls] = model
    return models


@pytest.fixture(scope="module")
def counts() -> SCLDM:
    adata = sclatent.datasets.simulate(600, 60, cell_types=["B", "T", "NK"], library_size=500, seed=1)
    SCLDM.setup_anndata(adata, condition_keys=["cell_type", "condition"])
    model = SCLDM(adata, width=32, denoiser_width=32, denoiser_blocks=1)
    model.train(max_epochs=8, **QUIET)
    return model


def means(adata: AnnData) -> np.ndarray:
    return np.asarray(adata.X)[:, :2].mean(axis=0) / MOVED_BY


@pytest.mark.parametrize("cls", OF_FEATURES)
def test_a_condition_key_beside_labels_moves_cells(features, cls):
    model = features[cls]
    assert model.conditions.keys == ["treatment", "kind"]
    made = {
        (kind, treatment): means(model.sample(300, {"kind": kind, "treatment": treatment}, progress_bar=False))
        for kind in ("left", "right")
        for treatment in ("control", "drug")
    }
    for (kind, treatment), (x, y) in made.items():
        assert abs(y - (treatment == "drug")) < 0.3, (kind, treatment, y)
        if cls is not JointDiffusion:  # whose label is for the classifier to push to
            assert abs(x - (kind == "right")) < 0.3, (kind, treatment, x)


@pytest.mark.parametrize("cls", OF_FEATURES)
def test_a_counterfactual_of_one_key_keeps_the_other(features, cls):
    model, cells = features[cls], embeddings(200, seed=5)
    source = cells[(cells.obs["treatment"] == "control").to_numpy() & (cells.obs["kind"] == "left").to_numpy()].copy()
    moved = model.counterfactual(
        source, {"treatment": "drug"}, noise_level=0.2, guidance_weight=1.0, progress_bar=False
    )
    change = means(moved) - means(source)
    assert change[1] > 0.6
    assert abs(change[0]) < 0.2
    assert (moved.obs["treatment"] == "drug").all()
    assert (moved.obs["kind"] == "left").all()


@pytest.mark.parametrize("cls", OF_FEATURES)
def test_labels_are_predicted_whatever_the_other_keys_are(features, cls):
    cells = embeddings(300, seed=7)
    known = (cells.obs["kind"] != "unknown").to_numpy()
    predicted = features[cls].predict(cells)
    assert (predicted[known] == cells.obs["kind"][known]).mean() > 0.85


def test_weights_go_by_key_and_by_what_guides(features):
    model = features[JointLDM]
    plain = model.sample(50, {"treatment": "drug", "kind": "left"}, progress_bar=False)
    pushed = model.sample(50, {"treatment": "drug", "kind": "left"}, {"treatment": 2.5}, progress_bar=False)
    assert means(pushed)[1] > means(plain)[1] + 0.1
    both = {"classifier-free": {"treatment": 2.5}, "classifier": 0.0}
    same = model.sample(50, {"treatment": "drug", "kind": "left"}, both, "both", progress_bar=False)
    np.testing.assert_allclose(same.X, pushed.X, atol=1e-4)
    with pytest.raises(KeyError, match=r"guidance_weight: 'dose' is no condition .*\['treatment', 'kind'\]"):
        model.sample(2, None, {"dose": 2.0}, progress_bar=False)


def test_a_model_says_what_it_can_be_guided_by(features, counts):
    with pytest.raises(ValueError, match=r"guidance='classifier' is not one that this DAED has: .*classifier-free"):
        features[DAED].sample(2, guidance="classifier", progress_bar=False)
    with pytest.raises(ValueError, match=r"guidance='both' is not one that this SCLDM has"):
        counts.sample(2, guidance="both", progress_bar=False)


@pytest.mark.parametrize("cls", OF_FEATURES)
def test_cells_without_library_size_refuse_one(features, cls):
    with pytest.raises(ValueError, match="library_size=500: images and embeddings have no library size"):
        features[cls].sample(2, library_size=500, progress_bar=False)


def test_tools_take_counts(counts):
    adata = counts.adata
    table = tl.reconstruction_error(counts, adata.copy(), noise_levels=[0.05, 0.4], n_cells=200)
    assert (table["error"] < table["noise"]).all()
    to = [{"condition": "control"}, {"condition": "stimulated"}]
    cells = tl.guidance(counts, to, weights=[0, 1, 3], n=20, library_size=500)
    assert cells.n_obs == 2 * 3 * 20
    assert cells.uns["guidance"]["key"] == "condition"
    expression = np.log1p(np.asarray(cells.X.todense()))
    mean = {}
    for level in ("control", "stimulated"):
        for weight in (0, 1, 3):
            rows = (cells.obs["condition"] == level) & (cells.obs["guidance_weight"] == weight)
            mean[level, weight] = expression[rows.to_numpy()]
    apart = [np.abs(mean["stimulated", w].mean(axis=0) - mean["control", w].mean(axis=0)).mean() for w in (0, 1, 3)]
    assert apart[0] == 0  # unconditional cells of one seed are the same
    assert apart[1] < apart[2]
    with pytest.raises(ValueError, match=r"conditions is missing: give levels of some of \['cell_type', 'condition'\]"):
        tl.guidance(counts)
    with pytest.raises(TypeError, match=r"models\['counts'\] is a SCLDM, which takes noise off its tokens"):
        tl.denoising({"counts": counts}, {"cells": adata.copy()})


def test_counterfactuals_of_counts_may_draw_noise(counts):
    cells, to = counts.adata[:40].copy(), {"condition": "stimulated"}
    own, drawn, other = (
        counts.counterfactual(cells, to, 0.3, inversion=inversion, seed=seed, progress_bar=False).X.toarray()
        for inversion, seed in ((True, 0), (False, 0), (False, 1))
    )
    assert (own != drawn).any()
    assert (drawn != other).any()


@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_gene_effects_move_genes_halfway_to_what_a_model_of_genes_predicts(counts, likelihood):
    """A change that the tokens do not have at all is half of what was measured."""
    adata = sclatent.datasets.simulate(600, 40, cell_types=["B", "T"], library_size=2000, seed=2)
    treated = (adata.obs["condition"] == "stimulated").to_numpy()
    x = adata.X.toarray().astype(np.float32)
    if likelihood == "normal":
        x = np.log1p(1e4 * x / x.sum(axis=1, keepdims=True))
    adata.X = x
    SCLDM.setup_anndata(adata, condition_keys=["cell_type", "condition"], is_count_data=likelihood == "nb")
    model = SCLDM(adata, width=32, denoiser_width=32, denoiser_blocks=1, gene_likelihood=likelihood)
    model.train(max_epochs=4, **QUIET)
    control = adata[~treated].copy()

    def profile(cells: np.ndarray) -> np.ndarray:
        mean = cells.mean(axis=0)
        return np.log1p(1e4 * mean / mean.sum()) if likelihood == "nb" else mean

    def change() -> np.ndarray:
        moved = model.counterfactual(control, {"condition": "stimulated"}, progress_bar=False).X
        return profile(moved.toarray()) - profile(x[~treated])

    measured = profile(x[treated]) - profile(x[~treated])
    with_genes = change()
    model.module.gene_means = None
    without = change()
    assert np.square(with_genes - measured).mean() < 0.5 * np.square(without - measured).mean()


def test_gene_effects_are_saved_and_can_be_switched_off(counts, tmp_path):
    counts.save(tmp_path / "model")
    again = SCLDM.load(tmp_path / "model", counts.adata)
    moved = [
        m.counterfactual(indices=range(30), conditions={"condition": "control"}, **{"progress_bar": False})
        for m in (counts, again)
    ]
    assert (moved[0].X != moved[1].X).nnz == 0
    assert SCLDM(counts.adata, gene_effects=False).module.gene_means is None
    assert SCLDM(counts.adata, baseline="none").module.gene_means is None
    with pytest.raises(ValueError, match=r"gene_effects='yes' must be True or False"):
        SCLDM(counts.adata, gene_effects="yes")


def test_the_example_of_the_developer_pages_on_counts_works(tmp_path):
    spec = importlib.util.spec_from_file_location("example_counts", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    adata = sclatent.datasets.simulate(900, 40, cell_types=["B", "T"], library_size=500, seed=3)
    example.PerceptronFlow.setup_anndata(adata, condition_keys=["cell_type", "condition"])
    model = example.PerceptronFlow(adata, width=48, n_blocks=2)
    model.train(max_epochs=10, **QUIET)
    loss = model.history["diffusion_loss_validation"].iloc[:, 0]
    assert loss.iloc[-1] < loss.iloc[0]
    profile = {}
    for kind in ("B", "T"):
        cells = model.sample(200, {"cell_type": kind, "condition": "control"}, progress_bar=False)
        profile[kind] = np.log1p(np.asarray(cells.X.mean(axis=0)).ravel())
    for kind, other in (("B", "T"), ("T", "B")):
        is_real = ((adata.obs["cell_type"] == kind) & (adata.obs["condition"] == "control")).to_numpy()
        real = np.log1p(np.asarray(adata.X[is_real].mean(axis=0)).ravel())
        assert np.square(profile[kind] - real).sum() < np.square(profile[other] - real).sum() / 2
    model.save(tmp_path / "model")
    again = example.PerceptronFlow.load(tmp_path / "model")
    one, same = (m.sample(5, seed=2, progress_bar=False).X for m in (model, again))
    assert (one != same).nnz == 0
