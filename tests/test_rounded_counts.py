"""Counts that are whole but for rounding are told from fractions: the value is shown, and the cure works."""

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from sclatent.data import totals
from sclatent.datasets import simulate
from sclatent.metrics import evaluate_generation, evaluate_reconstruction
from sclatent.model import SCLDM

QUIET = {"progress_bar": False}


@pytest.fixture
def counts() -> AnnData:
    adata = simulate(90, 12, library_size=60, seed=0)
    return AnnData(adata.X, obs=adata.obs, var=adata.var[[]])


def with_x(adata: AnnData, x) -> AnnData:
    return AnnData(x, obs=adata.obs.copy(), var=adata.var.copy())


def off_by(counts: AnnData, share: float) -> sparse.csr_matrix:
    x = counts.X.copy()
    x.data = x.data * (1 + share * np.random.default_rng(0).uniform(-1, 1, x.nnz)).astype(np.float32)
    return x


@pytest.mark.parametrize("layer", [None, "counts"])
@pytest.mark.parametrize("kind", ["csr_matrix", "array"])
def test_counts_that_are_whole_but_for_rounding_are_told_from_others(counts, kind, layer):
    x = off_by(counts, 1e-6)
    stored = x if kind == "csr_matrix" else x.toarray()
    adata = with_x(counts, None if layer else stored)
    if layer:
        adata.layers[layer] = stored
    place = "adata.X" if layer is None else "adata.layers['counts']"
    with pytest.raises(ValueError, match="are not whole numbers") as caught:
        SCLDM.setup_anndata(adata, layer=layer)
    message = str(caught.value)
    example = float(message.split("such as ")[1].split(")")[0])
    assert not example.is_integer()
    assert message.startswith(place)
    assert "whole but for rounding" in message
    cure = message.split("Round them, ")[1].rstrip(".")
    exec(cure, {"adata": adata})  # as one would
    SCLDM.setup_anndata(adata, layer=layer)
    rounded = adata.X if layer is None else adata.layers[layer]
    np.testing.assert_array_equal(totals(rounded, axis=1), totals(counts.X, axis=1))


def test_expected_counts_are_not_told_to_be_rounding(counts):
    """One value in the last block decides, and is the one that is shown."""
    x = off_by(counts, 1e-6).toarray()
    x[-1, -1] = 2.4
    adata = with_x(counts, x)
    with pytest.raises(ValueError, match=r"such as 2\.4\).*layer=.*rint") as caught:
        SCLDM.setup_anndata(adata)
    assert "but for rounding" not in str(caught.value)
    with pytest.raises(ValueError, match=r"real has values that are not whole numbers \(such as 2\.4\)"):
        evaluate_reconstruction(adata, counts, **QUIET)


def test_metrics_tell_counts_that_are_whole_but_for_rounding(counts):
    adata = with_x(counts, off_by(counts, 1e-6))
    match = r"generated has values that are not whole numbers \(such as \d\.\d+\).*generated.X = generated.X.rint\(\)"
    with pytest.raises(ValueError, match=match):
        evaluate_generation(counts, adata, **QUIET)


def test_a_query_and_changed_counts_tell_of_rounding(counts, fit):
    model = fit(counts, 1, setup={}, train={"stage": "autoencoder"})
    with pytest.raises(ValueError, match=r"The query has .*such as \d\.\d+\).*adata.X = adata.X.rint\(\)"):
        model.get_latent_representation(with_x(counts, off_by(counts, 1e-6)))
    counts.X = off_by(counts, 1e-6)
    with pytest.raises(ValueError, match=r"AnnData of training was changed: .*such as \d\.\d+\).*rint\(\)"):
        model.get_latent_representation()
