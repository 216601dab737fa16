"""Cells that were measured on a part of the genes: their library size is that of the part; a whole cell has more."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse, stats

from sclatent.model import SCLDM

pytestmark = pytest.mark.usefixtures("few_steps")


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """Forty genes: the first ten have a quarter of the counts of every cell; two types, which differ in either part."""
    rng = np.random.default_rng(0)
    of_a = np.arange(200) % 2 == 0
    share = np.where(of_a[:, None], np.tile([1.0, 3.0], 20), np.tile([3.0, 1.0], 20))
    share *= np.where(np.arange(40) < 10, 0.25 / 20, 0.75 / 60)
    library = rng.integers(300, 600, 200)
    x = rng.poisson(library[:, None] * share).astype(np.float32)
    obs = pd.DataFrame({"type": np.where(of_a, "a", "b"), "size": x.sum(axis=1)}, index=[f"c{i}" for i in range(200)])
    return AnnData(sparse.csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"gene_{i}" for i in range(40)]))


def trained(cells: AnnData, small: dict, quiet: dict, **setup) -> SCLDM:
    cells = cells.copy()
    SCLDM.setup_anndata(cells, condition_keys="type", **setup)
    model = SCLDM(cells, **small)
    model.train({"autoencoder": 3, "diffusion": 1}, **quiet)
    return model


@pytest.fixture(scope="module")
def model(cells, small, quiet) -> SCLDM:
    return trained(cells, small, quiet)


@pytest.fixture(scope="module")
def model_of_size_factors(cells, small, quiet) -> SCLDM:
    return trained(cells, small, quiet, size_factor_key="size")


def total(x) -> np.ndarray:
    return np.asarray(x.sum(axis=1)).ravel()


@pytest.mark.parametrize("genes", [slice(0, 10), slice(10, 40), slice(0, 40, 3), slice(None)])
def test_an_observed_library_size_is_that_of_the_genes_that_were_measured(model, cells, genes):
    part = cells[:, genes].copy()
    denoised = model.get_normalized_expression(part, library_size="observed")
    assert list(denoised.columns) == list(cells.var_names)
    np.testing.assert_allclose(total(denoised[part.var_names]), total(part.X), rtol=1e-4)
    some = model.get_normalized_expression(part, library_size="observed", gene_list=list(part.var_names[:2]))
    pd.testing.assert_frame_equal(some, denoised[part.var_names[:2]])
    assert total(denoised).mean() == pytest.approx(total(cells.X).mean(), rel=0.2)  # which is no part of it


def test_cells_that_are_decoded_again_are_drawn_around_their_means(model, cells):
    part = cells[:, 10:].copy()
    drawn = [model.posterior_predictive_sample(part, seed=seed) for seed in range(20)]
    assert list(drawn[0].var_names) == list(cells.var_names)
    assert drawn[0].obs.equals(part.obs)
    expected = model.get_normalized_expression(part, library_size="observed").to_numpy()
    mean = np.mean([d.X.toarray() for d in drawn], axis=0)
    np.testing.assert_allclose(mean.sum(axis=0), expected.sum(axis=0), rtol=0.2)
    assert np.corrcoef(mean.ravel(), expected.ravel())[0, 1] > 0.9
    assert (drawn[0].X != drawn[1].X).nnz
    again = model.posterior_predictive_sample(part, batch_size=7, seed=0)
    np.testing.assert_array_equal(again.X.toarray(), drawn[0].X.toarray())


def test_size_factors_are_of_whole_cells(model_of_size_factors, cells):
    part = cells[:, :10].copy()
    denoised = model_of_size_factors.get_normalized_expression(part, library_size="observed")
    np.testing.assert_allclose(total(denoised), cells.obs["size"], rtol=1e-3)


def test_a_number_is_the_total_of_all_genes(model, cells):
    denoised = model.get_normalized_expression(cells[:, :10].copy(), library_size=100.0)
    np.testing.assert_allclose(total(denoised), 100, rtol=1e-4)


def test_a_counterfactual_and_the_denoised_cell_agree_on_the_library_size(model, cells):
    part = cells[:, 10:].copy()
    denoised = model.get_normalized_expression(part, library_size="observed")
    same = model.counterfactual(part, {}, progress_bar=False)
    assert (same[:, part.var_names].X != part.X).nnz == 0
    missing = cells.var_names[:10]
    drawn, mean = same[:, missing].X.sum(), denoised[missing].to_numpy()
    assert drawn == pytest.approx(mean.sum(), rel=0.15)  # 6 standard errors of counts that vary as these may


@pytest.mark.parametrize("genes", [slice(0, 10), slice(10, 40), slice(None)])
@pytest.mark.parametrize("which", ["model", "model_of_size_factors"])
def test_the_error_of_a_part_is_that_of_its_share_of_the_whole_cell(request, cells, genes, which):
    """Wherever the library size comes from: the mean is what the denoised cell has of these genes."""
    model, part = request.getfixturevalue(which), cells[:, genes].copy()
    mean = model.get_normalized_expression(part, library_size="observed")[part.var_names].to_numpy()
    columns = model.genes.get_indexer(part.var_names)
    theta = model.module.autoencoder.likelihood.log_theta.detach().exp().numpy()[columns]
    expected = -stats.nbinom.logpmf(part.X.toarray(), theta, theta / (theta + mean)).sum(axis=1).mean()
    error = model.get_reconstruction_error(part)["reconstruction_loss"]
    assert error == pytest.approx(expected, rel=1e-4)


def test_training_further_on_a_part_makes_whole_cells(model, cells, tmp_path, quiet):
    model.save(tmp_path / "model")
    again = SCLDM.load(tmp_path / "model", cells[:, :10].copy())
    again.train(1, stage="diffusion", **quiet)
    made = again.sample(200, progress_bar=False)
    assert made.obs["library_size"].mean() == pytest.approx(total(cells.X).mean(), rel=0.2)  # not a quarter of it
    assert made.X.sum() == pytest.approx(made.obs["library_size"].sum(), rel=0.1)
