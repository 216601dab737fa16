"""What a fresh reader of the package tried, and what went wrong."""

import re
import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent.datasets import mitocheck, simulate
from sclatent.metrics import log_normalize, mean_change, pearson_of_change
from sclatent.model import SCLDM, JointLDM
from sclatent.pl import gene_statistics, response

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
