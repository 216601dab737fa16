"""What a model says of where its predictions come from: the log, uns, get_sources and repr."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from sclatent.baseline import MixedModel, source_names, source_shares, variance_shares
from sclatent.conditions import Set
from sclatent.data import Conditions
from sclatent.data._kinds import FeatureTable
from sclatent.datasets import simulate
from sclatent.model import SCLDM, JointLDM

pytestmark = pytest.mark.usefixtures("few_steps")

TYPES = [f"T{i}" for i in range(6)]
UNSEEN = {"cell_type": "T0", "condition": "stimulated"}
NAME = "cell_type=T0, condition=stimulated"


def responding(like: float, common: float) -> MixedModel:
    """Ten types in two groups under two conditions, of which the last type was not seen treated.

    The response is ``common`` in all types, and in the second group ``like`` besides.
    """
    codes = np.array([(cell_type, treated) for cell_type in range(10) for treated in (0, 1)])[:-1]
    rng = np.random.default_rng(0)
    of_group, of_type = 3 * rng.standard_normal((2, 200)), 0.5 * rng.standard_normal((10, 200))
    of_treatment, extra = common * rng.standard_normal(200), like * rng.standard_normal(200)
    cell_type, group, treated = codes[:, 0], codes[:, 0] % 2, codes[:, 1:]
    means = of_group[group] + of_type[cell_type] + treated * (of_treatment + group[:, None] * extra)
    means = means + 0.1 * rng.standard_normal(means.shape)
    return MixedModel([10, 2], 200).fit(codes, np.full(19, 100), means, noise=1.0)


def of_genes(shared: float = 0.0, has_features: bool = True) -> tuple[MixedModel, Conditions]:
    """Twenty perturbed genes and some pairs, whose effects are linear in their features, and ``shared`` by all."""
    rng = np.random.default_rng(0)
    genes = [f"G{i}" for i in range(20)]
    features = pd.DataFrame(rng.standard_normal((22, 3)), index=[*genes, "N0", "N1"])
    levels = ["control", *genes, *("+".join(genes[i : i + 2]) for i in range(0, 20, 2))]
    conditions = Conditions(
        {"perturbation": levels},
        kinds={"perturbation": Set(control="control")},
        features={"perturbation": FeatureTable.of(features, "features", genes)} if has_features else None,
    )
    loadings = rng.standard_normal((3, 50))
    own = dict(zip(genes, 0.7 * rng.standard_normal((20, 50)), strict=True))
    effect = {gene: features.loc[gene].to_numpy() @ loadings + own[gene] + shared for gene in genes}
    means = [sum((effect[gene] for gene in level.split("+") if gene in effect), np.zeros(50)) for level in levels]
    codes = conditions.encode(levels)
    model = MixedModel([len(levels)], 50).fit(codes, np.full(len(codes), 100), means, 0.1, conditions.values())
    return model, conditions


def shares_of(model: MixedModel, conditions: Conditions, level: str) -> pd.Series:
    codes = conditions.encode(level)
    return pd.Series(source_shares(model, codes, conditions.values())[0], source_names(model, conditions.keys))


# ---- the mixed model


def test_sources_add_up_to_the_prediction():
    model = responding(like=1.0, common=1.0)
    codes = torch.tensor([[0, 0], [3, 1], [9, 1]])
    values = model._values(None)
    random = sum(kernel @ model.weights for kernel in model.kernels(codes, values))
    whole = model.constant + model._fixed(codes, values) + random
    np.testing.assert_allclose(model.predict(codes), whole, rtol=1e-4, atol=1e-4)
    shares, names = source_shares(model, codes), source_names(model, ["cell_type", "condition"])
    assert len(set(names)) == len(names) == shares.shape[1] == len(variance_shares(model))
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(variance_shares(model).sum(), 1)


def test_an_unseen_response_is_that_of_like_types_where_types_differ_in_it():
    keys = ["cell_type", "condition"]
    same, differing = responding(like=0.0, common=4.0), responding(like=4.0, common=0.2)
    names = source_names(same, keys)
    common, alike = names.index("condition (fixed)"), names.index("cell_type (likeness) x condition")
    for shares in (source_shares(same, [[9, 1]])[0], variance_shares(same)):
        assert shares[common] > 0.3
        assert shares[alike] < 0.01
    for shares in (source_shares(differing, [[9, 1]])[0], variance_shares(differing)):
        assert shares[alike] > 0.05
    for model in (same, differing):  # of the combination itself nothing is known
        assert source_shares(model, [[9, 1]])[0, names.index("cell_type x condition")] == 0


def test_an_unseen_pair_is_predicted_from_members_and_an_unseen_gene_from_features():
    model, conditions = of_genes()
    pair, gene = (shares_of(model, conditions, level) for level in ("G0+G3", "N0"))
    of_features = ["perturbation (features, linear)", "perturbation (features, smooth)"]
    assert pair["perturbation (members)"] > 0.1
    assert gene["perturbation (members)"] == 0
    assert gene[of_features].sum() > 0.9
    assert pair.sum() == pytest.approx(1)
    plain, of_names = of_genes(has_features=False)
    assert shares_of(plain, of_names, "G0+G3")["perturbation (members)"] > 0.9


def test_what_all_genes_share_is_the_fixed_effect_of_their_number():
    model, conditions = of_genes(shared=10.0)
    assert shares_of(model, conditions, "N0")["perturbation (number of members, fixed)"] > 0.8


def test_an_additive_model_has_no_interactions():
    codes = np.array([(a, b) for a in range(6) for b in range(6)])
    means = np.random.default_rng(0).standard_normal((6, 3))[codes[:, 0]] + codes[:, 1:]
    model = MixedModel([6, 6], 3, interactions=False).fit(codes, np.full(36, 50), means, 0.1)
    assert source_names(model, ["a", "b"]) == ["a", "b"]
    np.testing.assert_allclose(source_shares(model, [[0, 1]]).sum(), 1)


# ---- models


@pytest.fixture(scope="module")
def held_out() -> AnnData:
    adata = simulate(300, 40, cell_types=TYPES, library_size=200, seed=1)
    is_unseen = (adata.obs["cell_type"] == "T0") & (adata.obs["condition"] == "stimulated")
    return adata[~is_unseen].copy()


@pytest.fixture(scope="module")
def model(held_out, small, quiet) -> SCLDM:
    SCLDM.setup_anndata(held_out, condition_keys=["cell_type", "condition"])
    model = SCLDM(held_out, **small)
    model.train(max_epochs=1, **quiet)
    return model


def test_sources_are_a_row_for_each_combination(model):
    asked = pd.DataFrame({"cell_type": ["T0", "T1", "T0"], "condition": ["stimulated", "control", "stimulated"]})
    sources = model.get_sources(asked)
    assert sources.index.tolist() == [NAME, "cell_type=T1, condition=control"]
    obs = model.adata.obs.iloc[model.train_indices_]
    n = ((obs["cell_type"] == "T1") & (obs["condition"] == "control")).sum()
    assert sources["n_training_cells"].tolist() == [0, n]
    shares = sources.drop(columns="n_training_cells")
    assert "condition (fixed)" in shares
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert shares.loc[NAME, "cell_type x condition"] == 0


def test_sources_survive_saving(model, tmp_path):
    model.save(tmp_path / "m")
    pd.testing.assert_frame_equal(SCLDM.load(tmp_path / "m").get_sources(UNSEEN), model.get_sources(UNSEEN))


def test_uns_and_the_log_say_what_is_predicted_from_what(model, held_out, caplog, tmp_path):
    asked = pd.DataFrame([UNSEEN, {"cell_type": "T1", "condition": "control"}])
    with caplog.at_level(logging.INFO, "sclatent"):
        cells = model.sample(conditions=asked, progress_bar=False)
    largest = model.get_sources(UNSEEN).drop(columns="n_training_cells").iloc[0].nlargest(1)
    said = dict(zip(cells.uns["sclatent"]["combinations"], cells.uns["sclatent"]["predicted_from"], strict=True))
    assert said["cell_type=T1, condition=control"] == ""
    assert said[NAME].startswith(f"{largest.index[0]} {largest.iloc[0]:.2f}")
    (record,) = [r for r in caplog.records if r.name == "sclatent.model.base._sources"]
    assert f"{NAME}: predicted from {said[NAME]}" in record.getMessage()
    assert "cell_type=T1, condition=control: seen with" in record.getMessage()
    moved = model.counterfactual(held_out[:3].copy(), UNSEEN, progress_bar=False)
    assert moved.uns["sclatent"]["predicted_from"] == [said[NAME]]
    for written in (cells, moved):
        written.write_h5ad(tmp_path / "cells.h5ad")
        written.write_zarr(tmp_path / "cells.zarr")
        for back in (ad.read_h5ad(tmp_path / "cells.h5ad"), ad.read_zarr(tmp_path / "cells.zarr")):
            assert list(back.uns["sclatent"]["predicted_from"]) == written.uns["sclatent"]["predicted_from"]


def test_a_line_of_the_log_is_short(model, caplog):
    with caplog.at_level(logging.INFO, "sclatent"):
        model.sample(conditions=pd.DataFrame({"cell_type": TYPES, "condition": "control"}), progress_bar=False)
    assert caplog.records[-1].getMessage().endswith("; and 3 more.")


def test_repr_says_what_mean_tokens_vary_by(model, held_out, small, capsys):
    repr(model)  # scvi-tools prints it
    said = " ".join(capsys.readouterr().out.split())
    assert "Sources of variation of mean tokens: " in said
    assert "condition (fixed) 0." in said
    assert "Sources" not in SCLDM(held_out, **small).summary_string


def test_without_a_baseline_there_are_no_sources(fit, held_out):
    plain = fit(held_out.copy(), 1, baseline="none")
    assert plain.get_sources(UNSEEN).columns.tolist() == ["n_training_cells"]
    assert plain.sample(2, UNSEEN, progress_bar=False).uns["sclatent"]["predicted_from"] == ["the network alone"]
    assert "Sources" not in plain.summary_string


def test_null_conditions_alone_are_the_mean_of_all_cells(model):
    sources = model.get_sources(None).iloc[0]
    assert sources["n_training_cells"] == len(model.train_indices_)
    assert (sources.drop("n_training_cells") == 0).all()


def test_what_cannot_be_asked_is_said(fit, held_out, small):
    adata = held_out.copy()
    SCLDM.setup_anndata(adata, condition_keys=["cell_type", "condition"])
    with pytest.raises(RuntimeError, match="get_sources"):
        SCLDM(adata, **small).get_sources(UNSEEN)
    with pytest.raises(ValueError, match="trained without conditions"):
        fit(simulate(60, 20, library_size=200), 1, setup={}).get_sources(None)


def test_models_of_embeddings_have_sources_of_their_conditions_not_of_the_label(quiet):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"treated": np.tile(["no", "yes"], 60), "phenotype": np.repeat(["a", "b"], 60)})
    adata = AnnData(rng.standard_normal((120, 16)).astype("float32"), obs.set_axis(obs.index.astype(str)))
    JointLDM.setup_anndata(adata, condition_keys=["treated"], labels_key="phenotype")
    model = JointLDM(adata, width=32, denoiser_width=32, denoiser_blocks=1)
    model.train(max_epochs=1, **quiet)
    sources = model.get_sources({"treated": "yes", "phenotype": "a"})
    assert sources.index.tolist() == ["treated=yes, phenotype=a"]
    assert sources["n_training_cells"].iloc[0] > 0
    assert len(sources.columns) > 1
