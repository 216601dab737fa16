"""What a fresh reader of the package tried, and what went wrong."""

import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent import tl
from sclatent.datasets import mitocheck, simulate
from sclatent.metrics import log_normalize, mean_change, pearson_of_change
from sclatent.model import DAED, SCLDM, JointLDM
from sclatent.pl import gene_statistics, response

pytestmark = pytest.mark.usefixtures("few_steps")

QUIET = {"accelerator": "cpu", "progress_bar": False}


@pytest.fixture(scope="module")
def nuclei() -> AnnData:
    return mitocheck()[::40].copy()


def counts_model(adata: AnnData, **setup) -> SCLDM:
    SCLDM.setup_anndata(adata, **{"condition_keys": ["cell_type", "condition"], **setup})
    small = {"n_tokens": 2, "token_dim": 4, "width": 8, "n_blocks": 1, "n_heads": 2}
    return SCLDM(adata, **small, denoiser_width=8, denoiser_blocks=1)


def joint(adata: AnnData, **setup) -> JointLDM:
    JointLDM.setup_anndata(adata, labels_key="phenotype", **setup)
    model = JointLDM(adata, width=16, n_heads=2, denoiser_width=16, denoiser_blocks=1)
    model.train(1, **QUIET)
    return model


@pytest.mark.parametrize("obsm_key", [None, "pcs"])
def test_features_are_matched_by_name(nuclei, obsm_key, tmp_path):
    adata = nuclei.copy()
    adata.obsm["pcs"] = pd.DataFrame(adata.X, index=adata.obs_names, columns=adata.var_names)
    model = joint(adata, obsm_key=obsm_key)
    model.save(tmp_path / "model")
    turned, renamed, numbered = (adata[:, ::-1].copy() for _ in range(3))
    turned.obsm["pcs"] = adata.obsm["pcs"].iloc[:, ::-1]
    for names, other in (([f"other{i}" for i in range(64)], renamed), (range(64), numbered)):
        other.var_names = other.obsm["pcs"].columns = [*map(str, names)]
    numbered.X = adata.X.copy()
    expected = model.get_latent_representation()
    loaded = JointLDM.load(tmp_path / "model", turned)
    for found in (
        model.get_latent_representation(turned),
        loaded.get_latent_representation(),
        loaded.get_latent_representation(numbered),  # no names, but numbers: by position
    ):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(model.get_features(turned[:3]), adata.X[:3])
    changed = model.counterfactual(turned[:3], "Metaphase", noise_level=0, progress_bar=False)
    if obsm_key is None:
        assert changed.var_names.equals(adata.var_names)
    for refuse in (model.predict, lambda other: JointLDM.load(tmp_path / "model", other)):
        with pytest.raises(ValueError, match=re.escape("it lacks 64 of them, such as ['pc00', 'pc01', 'pc02']")):
            refuse(renamed)


def test_cells_that_are_log_normalised_already_are_no_counts():
    counts = simulate(60, 20)
    logs = AnnData(log_normalize(counts), obs=counts.obs, var=counts.var)
    for call, argument in (
        (lambda: mean_change(counts, logs), "control"),
        (lambda: pearson_of_change(counts, logs, counts), "predicted"),
        (lambda: response(counts, logs, counts), "predicted 'generated'"),
        (lambda: gene_statistics(counts, logs), "generated"),
        (lambda: gene_statistics(logs, counts), "real"),
    ):
        with pytest.raises(ValueError, match=f"^{argument} has values that are not whole .* Log-normalised"):
            call()


def test_levels_without_a_training_cell_are_told():
    adata = simulate(60, 20, cell_types=["A", "B", "C"], n_batches=2)
    model = counts_model(adata, batch_key="batch")
    adata._inplace_subset_obs(((adata.obs["cell_type"] != "A") & (adata.obs["batch"] != "batch_1")).to_numpy())
    with (
        pytest.warns(UserWarning, match=r"No training cell has a level of 'cell_type' that is one of \['A'\]"),
        pytest.warns(UserWarning, match=r"No training cell has a level of 'batch' that is one of \['batch_1'\]"),
    ):
        model.train(1, **QUIET)
    for arguments, level in (({"conditions": {"cell_type": "A"}}, "A"), ({"batch": "batch_1"}, "batch_1")):
        with pytest.warns(UserWarning, match=rf"No training cell has a level of .* \['{level}'\]"):
            model.sample(2, **arguments, progress_bar=False)
    with pytest.warns(UserWarning, match=r"No training cell has a level of .* \['A'\]"):
        model.counterfactual(adata[:2].copy(), {"cell_type": "A"}, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.sample(2, {"cell_type": "B"}, progress_bar=False)


def test_labels_without_a_training_cell_are_told(nuclei):
    adata = nuclei[nuclei.obs["phenotype"].isin(["Interphase", "Metaphase"])].copy()
    JointLDM.setup_anndata(adata, labels_key="phenotype")
    model = JointLDM(adata, width=16, n_heads=2, denoiser_width=16, denoiser_blocks=1)
    adata._inplace_subset_obs((adata.obs["phenotype"] == "Interphase").to_numpy())
    for call in (lambda: model.train(1, **QUIET), lambda: model.sample(2, "Metaphase", progress_bar=False)):
        with pytest.warns(UserWarning, match=r"No training cell has a level of 'phenotype' .* \['Metaphase'\]"):
            call()


def test_library_sizes_in_another_order_than_conditions_are_refused():
    adata = simulate(60, 20, library_size=500)
    model = counts_model(adata)
    model.train(1, **QUIET)
    sizes = pd.Series(np.arange(60.0) + 100, index=adata.obs_names)
    with pytest.raises(ValueError, match=r"library_size .* another order than conditions .*loc\[conditions.index\]"):
        model.sample(conditions=adata.obs, library_size=sizes[::-1], progress_bar=False)
    made = model.sample(conditions=adata.obs, library_size=sizes, progress_bar=False)
    assert made.obs["library_size"].tolist() == sizes.tolist()


def test_models_of_different_batches_get_the_same_noisy_cells(nuclei):
    adata, models = nuclei.copy(), {}
    adata.obs["side"] = np.where(np.arange(adata.n_obs) % 2, "left", "right")
    adata.X[adata.obs["side"] == "left"] += 30
    for batch_key in (None, "side"):
        DAED.setup_anndata(adata, batch_key=batch_key)
        models[str(batch_key)] = model = DAED(adata, width=16, n_blocks=1)
        model.train(1, stage="denoiser", **QUIET)
    errors = [
        tl.denoising(some, {"nuclei": adata}).set_index("model")["error"]
        for some in (models, dict(reversed(models.items())))
    ]
    pd.testing.assert_series_equal(errors[0], errors[1].reindex(errors[0].index), check_exact=True)
    same = tl._noise.clean_cells(models["None"], adata, "adata", 50, 0, ["side"])
    np.testing.assert_array_equal(same, tl._noise.clean_cells(models["side"], adata, "adata", 50, 0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_level_of_single_precision_is_found_as_a_float_of_python(dtype):
    adata = simulate(60, 20, library_size=500)
    adata.obs["dose"] = (adata.obs["condition"] == "control").map({True: 0.1, False: 0.3}).astype(dtype)
    model = counts_model(adata, condition_keys=["dose"])
    single = float(np.float32(0.1))  # 0.10000000149011612
    np.testing.assert_array_equal(model.conditions.encode({"dose": single}), [[0]])
    table = pd.DataFrame({"dose": [single, 0.3]})
    np.testing.assert_array_equal(model.conditions.encode(table), [[0], [1]])
    with pytest.raises(ValueError, match=r"0\.10000000149011613 is no level"):
        model.conditions.encode({"dose": np.nextafter(single, 1)})
    model.conditions.encode({"dose": 0.1})
    with pytest.raises(ValueError, match=r"1e[+]300 is no level"):
        model.conditions.encode({"dose": 1e300})


def test_numbers_in_another_order_of_bytes_are_told_at_setup():
    adata = simulate(60, 20, library_size=500)
    adata.obs["dose"] = pd.Series(np.arange(60) % 2, index=adata.obs_names).to_numpy().astype(">i4")
    with pytest.raises(ValueError, match=r"'dose'\] is of type >i4.*astype\(\"int32\"\)"):
        counts_model(adata, condition_keys=["dose"])
    adata.obs["dose"] = adata.obs["dose"].astype("int32")
    model = counts_model(adata, condition_keys=["dose"])
    table = pd.DataFrame({"dose": np.array([1, 0], dtype=">i4")})
    np.testing.assert_array_equal(model.conditions.encode(table), [[1], [0]])


@pytest.mark.parametrize("cls", [SCLDM, JointLDM], ids=lambda cls: cls.__name__)
def test_a_view_of_a_file_is_told_at_setup(cls, tmp_path):
    simulate(60, 20, library_size=500).write_h5ad(tmp_path / "cells.h5ad")
    view = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")[:40]
    with pytest.raises(ValueError, match=r"adata is a view of a file.*to_memory\(\)"):
        cls.setup_anndata(view)
    cls.setup_anndata(view.to_memory())


def test_names_of_genes_that_are_numbers_are_text(tmp_path):
    adata = simulate(60, 20, library_size=500)
    adata.var.index = pd.Index(range(20))
    model = counts_model(adata)
    model.train(1, **QUIET)
    model.save(tmp_path / "model")
    loaded = SCLDM.load(tmp_path / "model", adata[:, ::-1].copy())
    np.testing.assert_allclose(
        loaded.get_latent_representation(), model.get_latent_representation(), rtol=1e-4, atol=1e-5
    )
    assert list(loaded.sample(2, progress_bar=False).var_names[:2]) == ["0", "1"]


def test_names_of_features_that_are_numbers_are_text(nuclei, tmp_path):
    adata = nuclei.copy()
    adata.var.index = pd.Index(range(64))
    model = joint(adata)
    model.save(tmp_path / "model")
    loaded = JointLDM.load(tmp_path / "model", adata[:, ::-1].copy())
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())


def test_the_category_without_a_label_is_none_to_ask_for(nuclei):
    adata = nuclei.copy()
    adata.obs["phenotype"] = adata.obs["phenotype"].astype(str)
    adata.obs.loc[adata.obs_names[0], "phenotype"] = "unknown"
    model = joint(adata)
    for labels in ("unknown", adata.obs["phenotype"].iloc[:3]):
        with pytest.raises(
            ValueError, match=r"'unknown' is no level of .* It is the unlabeled_category, which means no label"
        ):
            model.counterfactual(adata[:3], labels, progress_bar=False)
