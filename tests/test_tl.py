"""What a trained model has learned is measured as it says, on every data set alike, and stored where ``pl`` looks."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent import tl
from sclatent.datasets import mitocheck, simulate
from sclatent.model import DAED, SCLDM, JointDiffusion, JointLDM

PHENOTYPES = ["Interphase", "Polylobed", "Prometaphase"]
LEVELS = [0.02, 0.1, 0.5]
TINY = {"denoiser_width": 32, "denoiser_blocks": 2, "n_heads": 2}


@pytest.fixture(scope="module")
def nuclei() -> AnnData:
    """240 nuclei of 16 x 16 pixels, labelled by phenotype and by whether they are bright."""
    adata = mitocheck()
    adata = adata[adata.obs["phenotype"].isin(PHENOTYPES)]
    adata = adata[np.sort(np.random.default_rng(0).choice(adata.n_obs, 240, replace=False))]
    images = adata.obsm["image"].reshape(-1, 16, 2, 16, 2).mean(axis=(2, 4)).round().astype(np.uint8)
    obs = pd.DataFrame({"phenotype": pd.Categorical(adata.obs["phenotype"].astype(str))}, index=adata.obs_names)
    brightness = images.mean(axis=(1, 2))
    obs["bright"] = np.where(brightness > np.median(brightness), "yes", "no")
    return AnnData(np.asarray(adata.X), obs=obs, obsm={"image": images})  # X has embeddings


def fit(cls, adata, max_epochs, obsm_key="image", **kwargs):
    adata = adata.copy()
    cls.setup_anndata(adata, obsm_key=obsm_key, labels_key="phenotype")
    model = cls(adata, **TINY, **kwargs)
    plan = {stage: {"lr": 3e-3} for stage in cls.STAGES}
    model.train(max_epochs=max_epochs, batch_size=64, plan_kwargs=plan, accelerator="cpu", progress_bar=False)
    return model


@pytest.fixture(scope="module")
def joint(nuclei) -> JointDiffusion:
    return fit(JointDiffusion, nuclei, 40)


@pytest.fixture(scope="module")
def daed(nuclei) -> DAED:
    return fit(DAED, nuclei, {"denoiser": 25, "diffusion": 1}, width=32, n_blocks=2, patch=4)


@pytest.fixture(scope="module")
def ldm(nuclei) -> JointLDM:
    return fit(JointLDM, nuclei, {"autoencoder": 2, "diffusion": 4}, None, width=32)


@pytest.fixture(scope="module")
def shuffled(nuclei) -> AnnData:
    """Nuclei with the pixels of each in random order: the same values, and nothing that a model could know."""
    images = np.random.default_rng(0).permuted(nuclei.obsm["image"].reshape(240, -1), axis=1).reshape(-1, 16, 16)
    return AnnData(obs=nuclei.obs, obsm={"image": images})


# ---- reconstruction_error


def test_every_data_set_gets_the_same_noise(joint, nuclei, shuffled):
    table = tl.reconstruction_error(joint, nuclei.copy(), {"shuffled": shuffled}, LEVELS[::-1], n_cells=100)
    assert list(table.columns) == ["model", "data_set", "noise_level", "error", "se", "noise", "n_cells"]
    assert table["data_set"].tolist() == ["training data"] * 3 + ["shuffled"] * 3
    assert table["noise_level"].tolist() == LEVELS * 2
    by_set = table.pivot(index="noise_level", columns="data_set", values="noise")
    np.testing.assert_allclose(by_set["shuffled"], by_set["training data"], rtol=1e-5)
    amplitude = np.sqrt(by_set.index / (1 - by_set.index))
    np.testing.assert_allclose(by_set["shuffled"] / amplitude, np.sqrt(2 / np.pi), rtol=0.02)
    assert (table["n_cells"] == 100).all()


def test_the_error_is_small_where_the_model_has_learned_something(joint, nuclei, shuffled):
    barely = fit(JointDiffusion, nuclei, 1, patch=4)
    learned, other = (
        tl.reconstruction_error(m, nuclei.copy(), {"shuffled": shuffled}, LEVELS, 100).groupby("data_set")
        for m in (joint, barely)
    )
    known, unknown = learned.get_group("training data"), learned.get_group("shuffled")
    assert (known["error"] < 0.8 * other.get_group("training data")["error"]).all()
    assert (known["error"].to_numpy() < 0.8 * unknown["error"].to_numpy()).all()
    assert (known["error"] < 0.8 * known["noise"]).all()
    assert known["error"].is_monotonic_increasing
    assert ((known["se"] > 0) & (known["se"] < 0.2 * known["error"])).all()


def test_contrast_and_brightness_of_a_data_set_do_not_matter(joint, nuclei):
    changed = nuclei.copy()
    changed.obsm["image"] = (0.3 * nuclei.obsm["image"] + 50).reshape(240, -1)  # floats, stored flat
    table = tl.reconstruction_error(joint, nuclei.copy(), {"changed": changed}, LEVELS, n_cells=60)
    one, other = (rows["error"].to_numpy() for _, rows in table.groupby("data_set"))
    np.testing.assert_allclose(one, other, rtol=1e-3)


def test_results_are_stored_and_can_be_written(joint, nuclei, tmp_path):
    adata = nuclei.copy()
    table = tl.reconstruction_error(joint, adata, noise_levels=[0.1], n_cells=20, key_added="here")
    pd.testing.assert_frame_equal(adata.uns["here"], table)
    again = tl.reconstruction_error(joint, adata, noise_levels=[0.1], n_cells=20)
    pd.testing.assert_frame_equal(again, table)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad").uns["here"]
    np.testing.assert_allclose(read["error"], table["error"])
    assert read["data_set"].tolist() == ["training data"]
    assert list(adata.obs.columns) == ["phenotype", "bright"]


def test_daed_has_one_level(daed, nuclei):
    table = tl.reconstruction_error(daed, nuclei.copy(), n_cells=100)
    assert table["noise_level"].tolist() == [0.1]
    assert table["error"][0] < 0.8 * table["noise"][0]
    with pytest.raises(ValueError, match=r"noise_levels=0.5: a DAED denoises cells of its own level alone, here 0.1"):
        tl.reconstruction_error(daed, nuclei, noise_levels=[0.1, 0.5])


def test_latent_diffusion_is_measured_on_latents(ldm, nuclei):
    table = tl.reconstruction_error(ldm, nuclei.copy(), {"same": nuclei}, LEVELS, 100)
    amplitude = np.sqrt(table["noise_level"] / (1 - table["noise_level"]))
    np.testing.assert_allclose(table["noise"] / amplitude, np.sqrt(2 / np.pi), rtol=0.05)
    np.testing.assert_array_equal(table["error"][:3], table["error"][3:])
    assert (table["error"] < 1).all()


def test_reconstruction_error_says_what_is_wrong(joint, nuclei):
    wide = AnnData(obs=nuclei.obs, obsm={"image": np.zeros((240, 20, 20), dtype=np.uint8)})
    with pytest.raises(ValueError, match=r"others\['wide'\]: .*shape \(20, 20, 1\): this model was trained on \(16"):
        tl.reconstruction_error(joint, nuclei, {"wide": wide})
    with pytest.raises(KeyError, match=r"others\['none'\]: obsm_key='image' is not in adata.obsm"):
        tl.reconstruction_error(joint, nuclei, {"none": AnnData(obs=nuclei.obs)})
    with pytest.raises(ValueError, match=r"noise_levels=1.0 must be above 0 and below 1"):
        tl.reconstruction_error(joint, nuclei, noise_levels=[0.1, 1])
    with pytest.raises(ValueError, match="n_cells=0 must be a whole number"):
        tl.reconstruction_error(joint, nuclei, n_cells=0)
    with pytest.raises(ValueError, match="name='x' is the name of one of others"):
        tl.reconstruction_error(joint, nuclei, {"x": nuclei}, name="x")
    with pytest.raises(TypeError, match=r"model is of type AnnData: a model was expected \(SCLDM, DAED"):
        tl.reconstruction_error(nuclei, nuclei)
    adata = nuclei.copy()
    JointDiffusion.setup_anndata(adata, obsm_key="image")
    with pytest.raises(RuntimeError, match="model has no trained diffusion: call its train"):
        tl.reconstruction_error(JointDiffusion(adata, **TINY), adata)


# ---- probe


def test_a_probe_reads_what_is_there_until_noise_hides_it(joint, nuclei):
    adata = nuclei.copy()
    table = tl.probe(joint, adata, "bright", [1, 0, 0.1])
    assert list(table.columns) == [
        "label_key", "noise_level", "accuracy", "se", "features", "majority", "n_cells"
    ]  # fmt: skip
    assert table["noise_level"].tolist() == [0, 0.1, 1]
    assert (table["n_cells"] == 72).all()
    assert table["majority"][0] == 0.5
    assert table["accuracy"][0] > 0.85
    assert table["accuracy"][2] < 0.7  # noise alone
    assert table["features"][0] > 0.7
    p = table["accuracy"]
    np.testing.assert_allclose(table["se"], np.sqrt(p * (1 - p) / 72))
    pd.testing.assert_frame_equal(adata.uns["probe"], table)


def test_a_probe_reads_what_a_model_of_counts_has_learned():
    adata = simulate(600, 40, cell_types=["B", "T"], library_size=1_500, seed=0)
    SCLDM.setup_anndata(adata)  # without any condition
    model = SCLDM(adata, n_tokens=2, token_dim=8, width=16, n_blocks=1, n_heads=2, denoiser_width=32, denoiser_blocks=2)
    model.train({"autoencoder": 20, "diffusion": 10}, accelerator="cpu", progress_bar=False)
    assert model.get_activations(adata, [3, 4], 0.3).shape == (2, 2, 32)
    one, several = model.get_activations(adata, batch_size=7, seed=1), model.get_activations(adata, seed=1)
    np.testing.assert_allclose(one, several, atol=1e-4)
    table = tl.probe(model, adata, "cell_type", [0.0, 1.0])
    clean, noise = table["accuracy"]
    assert clean > 0.85 > 0.8 > noise  # three standard errors from what library size alone can reach, 0.66
    assert (table["features"] > 0.8).all()


def test_a_probe_leaves_out_cells_without_a_label(joint, nuclei):
    adata = nuclei.copy()
    adata.obs["phenotype"] = adata.obs["phenotype"].cat.add_categories("unknown")
    adata.obs.iloc[:100, adata.obs.columns.get_loc("phenotype")] = "unknown"
    adata.obs.iloc[100:140, adata.obs.columns.get_loc("phenotype")] = np.nan
    table = tl.probe(joint, adata, "phenotype", [0.1])
    assert table["n_cells"].tolist() == [30]


def test_a_probe_says_what_is_wrong(joint, nuclei):
    with pytest.raises(KeyError, match=r"label_key='dose' is not a column of adata.obs, which has \['phenotype', 'br"):
        tl.probe(joint, nuclei, "dose")
    with pytest.raises(ValueError, match="must be shares of noise in the variance, from 0 to 1"):
        tl.probe(joint, nuclei, "bright", [0.1, 2])
    adata = nuclei.copy()
    adata.obs["rare"] = ["one"] + ["many"] * 239
    with pytest.raises(ValueError, match=r"label_key='rare' has 2 labels among 240 cells, {'one': 1}"):
        tl.probe(joint, adata, "rare")
    with pytest.raises(ValueError, match=r"has the labels \['many'\] among 239 labelled cells: 2 are needed"):
        tl.probe(joint, adata[1:], "rare")


# ---- denoising


def test_models_get_the_same_noisy_cells(joint, daed, nuclei, shuffled):
    adatas = {"nuclei": nuclei.copy(), "shuffled": shuffled.copy()}
    table = tl.denoising({"joint": joint, "daed": daed}, adatas, n_cells=100)
    assert list(table.columns) == ["model", "data_set", "noise_level", "error", "se", "n_cells"]
    assert table["model"].tolist() == ["noisy cells", "joint", "daed"] * 2
    assert table["data_set"].tolist() == ["nuclei"] * 3 + ["shuffled"] * 3
    error = table.pivot(index="model", columns="data_set", values="error")
    np.testing.assert_allclose(error.loc["noisy cells"], np.sqrt(2 / np.pi / 9), rtol=0.02)
    for model in ("joint", "daed"):
        assert error.loc[model, "nuclei"] < 0.8 * error.loc["noisy cells", "nuclei"]
        assert error.loc[model, "nuclei"] < 0.8 * error.loc[model, "shuffled"]
    for adata in adatas.values():
        pd.testing.assert_frame_equal(adata.uns["denoising"], table)
    alone = tl.reconstruction_error(joint, nuclei.copy(), noise_levels=[0.1], n_cells=100)
    np.testing.assert_allclose(alone["error"][0], error.loc["joint", "nuclei"])


def test_denoising_says_what_is_wrong(joint, daed, ldm, nuclei):
    with pytest.raises(ValueError, match=r"models\['it'\]: noise_level=0.2: a DAED denoises cells of its own level"):
        tl.denoising({"it": daed}, {"nuclei": nuclei}, noise_level=0.2)
    with pytest.raises(TypeError, match=r"models\['it'\] is a JointLDM, which takes noise off its tokens"):
        tl.denoising({"it": ldm}, {"nuclei": nuclei})
    with pytest.raises(TypeError, match="models is of type JointDiffusion: a dict"):
        tl.denoising(joint, {"nuclei": nuclei})


@pytest.mark.parametrize("name", ["joint", "daed"])
def test_noise_is_taken_off_cells(name, nuclei, request):
    model = request.getfixturevalue(name)
    clean = nuclei.obsm["image"].astype(np.float32)
    noise = np.random.default_rng(1).standard_normal(clean.shape) * clean.std() / 3
    noisy = AnnData(obs=nuclei.obs, obsm={"image": (clean + noise).astype(np.float32)})
    found = model.denoise(noisy, progress_bar=False, indices=np.arange(9, -1, -1), batch_size=4)
    assert found.obs_names.tolist() == nuclei.obs_names[9::-1].tolist()
    assert found.obs["phenotype"].tolist() == nuclei.obs["phenotype"][9::-1].tolist()
    assert found.obsm["image"].dtype == np.uint8
    assert found.uns["sclatent"]["noise_level"] == 0.1
    error = np.abs(found.obsm["image"] - clean[9::-1]).mean()
    assert error < 0.8 * np.abs(noise[9::-1]).mean()


def test_noise_of_any_level_is_taken_off_by_joint_diffusion(joint, nuclei):
    same = joint.denoise(nuclei, 0, progress_bar=False)
    np.testing.assert_array_equal(same.obsm["image"], nuclei.obsm["image"])
    with pytest.raises(ValueError, match=r"noise_level=1 must be at least 0 \(clean cells\) and below 1"):
        joint.denoise(nuclei, 1)


# ---- guidance


def test_guidance_starts_from_the_same_noise(joint):
    cells = tl.guidance(joint, weights=[0, 2], n=3, n_steps=3, progress_bar=False)
    assert cells.n_obs == 18
    assert cells.obs_names.is_unique
    assert cells.uns["guidance"] == {"key": "phenotype"}
    assert cells.obs["phenotype"].astype(str).tolist() == [p for p in PHENOTYPES for _ in range(6)]
    assert cells.obs["guidance_weight"].tolist() == [0, 0, 0, 2, 2, 2] * 3
    assert cells.obs["noise"].tolist() == [0, 1, 2] * 6
    images = cells.obsm["image"].reshape(3, 2, 3, 16, 16)
    np.testing.assert_array_equal(images[0, 0], images[1, 0])  # without guidance, nothing tells one label from another
    np.testing.assert_array_equal(images[0, 0], images[2, 0])
    expected = joint.sample(3, PHENOTYPES[1], guidance_weight=2, n_steps=3, progress_bar=False).obsm["image"]
    np.testing.assert_array_equal(images[1, 1], expected)
    assert not np.array_equal(images[0, 1], images[1, 1])


def test_guidance_needs_labels(joint, nuclei):
    with pytest.raises(ValueError, match="Anaphase"):
        tl.guidance(joint, ["Anaphase"], progress_bar=False)
    adata = nuclei.copy()
    JointDiffusion.setup_anndata(adata, obsm_key="image")
    model = JointDiffusion(adata, **TINY)
    model.train(max_epochs=1, accelerator="cpu", progress_bar=False)
    with pytest.raises(ValueError, match="model was trained without conditions, so nothing guides it"):
        tl.guidance(model)
