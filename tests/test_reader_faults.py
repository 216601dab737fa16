"""What a fresh reader of the package tried, and what went wrong."""

import re

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent.datasets import mitocheck, simulate
from sclatent.metrics import log_normalize, mean_change, pearson_of_change
from sclatent.model import JointLDM
from sclatent.pl import gene_statistics, response

QUIET = {"accelerator": "cpu", "progress_bar": False}


@pytest.fixture(scope="module")
def nuclei() -> AnnData:
    return mitocheck()[::40].copy()


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
