"""Features that are the same in all cells: refused if there are no others, else told, and they do no harm."""

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from sclatent.model import DAED, JointDiffusion, JointLDM

pytestmark = pytest.mark.usefixtures("few_steps")

QUIET = {"progress_bar": False}
MODELS = [DAED, JointDiffusion, JointLDM]
each_model = pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)


@pytest.fixture
def embedded() -> AnnData:
    values = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    obs = pd.DataFrame({"type": ["B", "T"] * 30, "batch": ["x"] * 30 + ["y"] * 30}, index=[f"c{i}" for i in range(60)])
    return AnnData(values, obs=obs, obsm={"e": values.copy()})


@each_model
def test_features_that_are_the_same_in_all_cells_are_refused(embedded, cls):
    adata = embedded
    adata.obsm["e"] = np.ones((60, 8))
    with pytest.raises(ValueError, match=r"adata.obsm\['e'\] has the same values in all 60 cells: there is nothing"):
        cls.setup_anndata(adata, obsm_key="e")
    adata.obsm["e"][30:] = 2
    with pytest.raises(ValueError, match=r"has the same values in all cells of every batch"):
        cls.setup_anndata(adata, obsm_key="e", batch_key="batch")
    adata.obsm["e"] = np.full((60, 32, 32), 7, dtype=np.uint8)
    with pytest.raises(ValueError, match="has the same values in all 60 cells: there is nothing"):
        cls.setup_anndata(adata, obsm_key="e")
    assert "_scvi_uuid" not in adata.uns
    for x in (np.zeros((60, 8)), sparse.csr_matrix((60, 8))):
        adata.X = x
        with pytest.raises(ValueError, match=r"adata.X has the same values in all 60 cells"):
            cls.setup_anndata(adata)


@each_model
def test_some_features_that_do_not_vary_are_told_and_do_no_harm(embedded, cls):
    embedded.obsm["e"][:, [2, 5]] = [7.3, 0]
    with pytest.warns(UserWarning, match=r"obsm\['e'\] has the same values in all 60 cells for 2 of its 8 .*\[2, 5\]"):
        cls.setup_anndata(embedded, obsm_key="e", labels_key="type")
    model = cls(embedded, denoiser_width=16, denoiser_blocks=1, n_heads=2)
    model.train(2, accelerator="cpu", **QUIET)
    moved = model.counterfactual(embedded[:5], "T", **QUIET)
    for values in (model.sample(5, "B", **QUIET).obsm["e"], moved.obsm["e"], model.predict(soft=True)):
        assert np.isfinite(values).all(axis=None)


@each_model
def test_features_that_vary_are_not_told_of(embedded, cls):
    """Neither are pixels: it is channels that should vary."""
    image = np.zeros((60, 32, 32, 2), dtype=np.uint8)
    image[:, 10:20, 10:20] = np.random.default_rng(0).integers(0, 200, (60, 10, 10, 2))
    embedded.obsm["image"], embedded.obsm["channel"] = image, image * np.array([1, 0], dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cls.setup_anndata(embedded, obsm_key="e", batch_key="batch")
        cls.setup_anndata(embedded, obsm_key="image")
    with pytest.warns(UserWarning, match=r"for 1 of its 2 channels, such as \[1\]"):
        cls.setup_anndata(embedded, obsm_key="channel")
