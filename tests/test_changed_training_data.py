"""Values that were spoiled after the model was made are found before any training, in whichever row."""

import re

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from sclatent.data import check_counts, check_finite
from sclatent.datasets import simulate
from sclatent.model import DAED, SCLDM, JointDiffusion, JointLDM

pytestmark = pytest.mark.usefixtures("few_steps")

QUIET = {"accelerator": "cpu", "progress_bar": False}
ROW = 1_090  # beyond the first block that is encoded
VALUES = [
    (np.nan, f"values that are NaN (the first in row {ROW}): remove or replace"),
    (np.inf, f"values that are infinite (the first in row {ROW})"),
    (-np.inf, f"values that are infinite (the first in row {ROW})"),
    (1e39, f"values that are too large for single precision (the first in row {ROW})"),
]


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    return 1 + simulate(1_100, 8, library_size=50).X.toarray().astype(np.float64)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        *VALUES,
        (-2, f"negative values (smallest: -2; the first in row {ROW})"),
        (0.5, "values that are not whole numbers (such as 0.5"),
        (0, f"cells without any counts (the first is row {ROW})"),
    ],
)
@pytest.mark.parametrize("kind", [np.array, sparse.csr_matrix, sparse.csc_matrix], ids=["dense", "csr", "csc"])
def test_counts(counts, kind, value, message):
    adata = AnnData(kind(counts))
    SCLDM.setup_anndata(adata)
    model = SCLDM(adata, n_tokens=2, token_dim=8, width=16, n_blocks=1, n_heads=2, denoiser_width=16, denoiser_blocks=1)
    spoiled = counts.copy()
    spoiled[ROW, slice(None) if value == 0 else 3] = value
    adata.X = kind(spoiled)
    message = "The AnnData of training was changed: it has " + message
    with pytest.raises(ValueError, match=re.escape(message)):
        model.train(1, **QUIET)
    assert not model.trained_stages
    adata.X = kind(counts)
    model.train(1, stage="autoencoder", **QUIET)
    adata.X = kind(spoiled)
    for describe in (
        model.get_latent_representation,
        model.get_normalized_expression,
        model.get_reconstruction_error,
        lambda: model.get_latent_representation(indices=[3, ROW]),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            describe()
    assert len(model.get_latent_representation(indices=[3, ROW - 1])) == 2


@pytest.mark.parametrize("cls", [DAED, JointDiffusion, JointLDM], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(("value", "message"), VALUES)
@pytest.mark.parametrize("where", ["X", "sparse", "image"])
def test_features(cls, value, message, where):
    rng = np.random.default_rng(0)
    adata = AnnData(rng.random((1_100, 4)))
    if where == "sparse":
        adata.X = sparse.csr_matrix(adata.X)
    side = 28 if cls is JointLDM else 4
    adata.obsm["image"] = rng.random((1_100, side, side) if where == "image" else (1_100, 1))
    cls.setup_anndata(adata, obsm_key="image" if where == "image" else None)
    model = cls(adata, denoiser_width=16, denoiser_blocks=1, n_heads=2)
    spoiled = adata.obsm["image"] if where == "image" else adata.X
    spoiled[(ROW, 1, 1) if where == "image" else (ROW, 1)] = value
    with pytest.raises(ValueError, match=re.escape("The AnnData of training was changed: it has " + message)):
        model.train(1, **QUIET)
    assert not model.trained_stages
    with pytest.raises(ValueError, match=rf"The AnnData of training was changed: .* \(the first in row {ROW}\)"):
        model.get_features()
    assert np.isfinite(model.get_features(indices=[3, ROW - 1])).all()


def test_features_of_another_shape():
    adata = AnnData(np.random.default_rng(0).random((30, 4)))
    adata.obsm["X_emb"] = adata.X.copy()
    JointLDM.setup_anndata(adata, obsm_key="X_emb")
    model = JointLDM(adata, denoiser_width=16, denoiser_blocks=1, n_heads=2)
    adata.obsm["X_emb"] = np.ones((30, 5))
    with pytest.raises(ValueError, match=r"X_emb.* has features of shape \(5,\): this model was trained on \(4,\)"):
        model.train(1, **QUIET)


@pytest.mark.parametrize("kind", [np.array, sparse.csr_matrix, sparse.csc_matrix], ids=["dense", "csr", "csc"])
@pytest.mark.parametrize("check", [check_counts, check_finite])
def test_the_first_bad_row_is_named_in_any_block(kind, check):
    counts = np.ones((9_000, 3))
    counts[[8_950, 8_800], [0, 2]] = np.nan
    with pytest.raises(ValueError, match=r"mine has values that are NaN \(the first in row 8800\)"):
        check(kind(counts), "mine")
