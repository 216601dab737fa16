"""Sizes, counts and weights far beyond the usual ones: right values, or an error that names the argument."""

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from sclatent.datasets import simulate
from sclatent.model import DAED, SCLDM, JointDiffusion, JointLDM

pytestmark = pytest.mark.usefixtures("few_steps")

FEATURE_MODELS = [DAED, JointDiffusion, JointLDM]
QUIET = {"accelerator": "cpu", "progress_bar": False}
TINY = {"denoiser_width": 8, "denoiser_blocks": 1, "n_heads": 2}
SMALL = {"n_tokens": 2, "token_dim": 4, "width": 8, "n_blocks": 1, **TINY}
KEYS = ["cell_type", "condition"]
N = 24


def trained_on(adata: AnnData, **arguments) -> SCLDM:
    SCLDM.setup_anndata(adata, condition_keys=KEYS)
    model = SCLDM(adata, **SMALL, **arguments)
    model.train(1, **QUIET)
    return model


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return simulate(N, 12, cell_types=["B", "T"], library_size=100, seed=0)


@pytest.fixture(scope="module")
def model(adata) -> SCLDM:
    return trained_on(adata)


# ---- library sizes


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_counts_beyond_32_bits_are_held(adata, likelihood):
    model = trained_on(adata.copy(), gene_likelihood=likelihood)
    for library_size in (1e11, [1e2, 1e6, 1e11, 1e12]):
        cells = model.sample(4, library_size=library_size, progress_bar=False)
        assert cells.X.dtype == np.int64
        assert cells.X.min() >= 0
        assert cells.X.max() > np.iinfo(np.int32).max
        assert cells.obs["library_size"].tolist() == np.broadcast_to(library_size, 4).tolist()
    assert model.sample(4, library_size=1e6, progress_bar=False).X.dtype == np.int32


WRONG = [
    -5,
    0,
    float("nan"),
    float("inf"),
    -np.inf,
    1e13,
    10**400,
    "observd",
    True,
    None,
    [100.0],
    np.array([1.0, 2.0]),
]


@pytest.mark.parametrize("library_size", WRONG, ids=repr)
def test_library_sizes_that_cells_cannot_have_are_refused(model, library_size):
    message = r"library_size=.* must be a positive number of at most 1e\+12"
    with pytest.raises(ValueError, match=f'{message}, or "observed"'):
        model.get_normalized_expression(library_size=library_size)
    if library_size is not None:  # which stands for the default
        with pytest.raises(ValueError, match=message):
            model.sample(3, library_size=library_size, progress_bar=False)


@pytest.mark.parametrize("library_size", [[100.0, 1.0, -1.0], [100.0, 1.0, np.nan], ["1", "2", "3"], "observed"])
def test_one_wrong_library_size_of_several_is_refused(model, library_size):
    with pytest.raises(ValueError, match=r"library_size=.* or one for each of 3 cells"):
        model.sample(3, library_size=library_size, progress_bar=False)


def test_library_sizes_of_any_number_are_taken(model):
    expected = model.get_normalized_expression(library_size=1000.0, return_numpy=True)
    for size in (1000, np.int16(1000), np.float32(1000)):
        np.testing.assert_array_equal(model.get_normalized_expression(library_size=size, return_numpy=True), expected)


# ---- counts and pixels


def test_large_counts_come_back_as_they_were(adata):
    large = adata.copy()
    large.X = sparse.csr_matrix(
        large.X.toarray().astype(np.int64) + 2**24 * (np.arange(12) == 3) + (np.arange(12) == 3)
    )
    assert (large.X.toarray()[:, 3] != large.X.toarray()[:, 3].astype(np.float32)).any()
    model = trained_on(large)
    same = model.counterfactual(large, large.obs[KEYS], progress_bar=False)
    assert (same.X != large.X).nnz == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_saturated_pixels_stay_bright(dtype):
    most = np.iinfo(dtype).max
    adata = AnnData(obs={"type": ["B", "T"] * (N // 2)}, shape=(N, 0))
    adata.obsm["image"] = np.random.default_rng(0).choice(np.array([0, most // 2, most], dtype=dtype), (N, 8, 8))
    JointDiffusion.setup_anndata(adata, obsm_key="image", labels_key="type")
    model = JointDiffusion(adata, denoiser_width=8, denoiser_blocks=1)
    model.train(1, **QUIET)
    moved = model.counterfactual(conditions=adata.obs["type"].tolist(), noise_level=0.0, progress_bar=False).obsm[
        "image"
    ]
    assert moved.dtype == dtype
    change = np.abs(moved.astype(np.float64) - adata.obsm["image"].astype(np.float64))
    assert change.max() <= 1e-6 * most  # black stays black and white white


# ---- guidance, and models that have learned nothing


@pytest.mark.parametrize("weight", [1e10, 1e30, -1e30, 1e300, {"condition": 1e30}])
def test_guidance_that_leaves_the_numbers_is_refused(model, adata, weight):
    message = r"guidance_weight=.* took cells beyond all bounds: use a smaller weight"
    with pytest.raises(ValueError, match=message):
        model.sample(3, {"condition": "stimulated"}, weight, progress_bar=False)
    with pytest.raises(ValueError, match=message):
        model.counterfactual(
            adata, {"condition": "stimulated"}, noise_level=1.0, guidance_weight=weight, progress_bar=False
        )
    for large in (10.0, {"condition": 10.0}):
        assert model.sample(3, {"condition": "stimulated"}, large, progress_bar=False).n_obs == 3


@pytest.mark.parametrize("place", ["X", "image"])
@pytest.mark.parametrize("cls", FEATURE_MODELS)
def test_guidance_of_features_that_leaves_the_numbers_is_refused(cls, place):
    rng = np.random.default_rng(0)
    adata = AnnData(rng.standard_normal((N, 6)).astype(np.float32), obs={"type": ["B", "T"] * (N // 2)})
    side = 28 if cls is JointLDM else 8
    adata.obsm["image"] = rng.integers(0, 255, (N, side, side)).astype(np.uint8)
    cls.setup_anndata(adata, obsm_key=None if place == "X" else place, labels_key="type")
    model = cls(adata, **{**TINY, **({"width": 16} if cls is JointLDM else {})})
    model.train(1, **QUIET)
    for guidance in model._ways:
        for method in (
            lambda **k: model.sample(3, "B", progress_bar=False, **k),
            lambda **k: model.counterfactual(adata[:3], "B", progress_bar=False, **k),
        ):
            with pytest.raises(ValueError, match=r"guidance_weight=.*1e\+30 took cells beyond all bounds"):
                method(guidance_weight=1e30, guidance=guidance, n_steps=2)


def test_empty_cells_are_told_of(adata):
    model = trained_on(adata.copy())
    likelihood = model.module.autoencoder.likelihood
    likelihood.log_theta.data.fill_(-60.0)  # what a learning rate of 1 may come to
    with pytest.warns(UserWarning, match="10 of the 10 cells have no counts, .*the autoencoder has learned nothing"):
        cells = model.sample(10, progress_bar=False)
    assert cells.X.nnz == 0


def test_cells_that_are_empty_by_chance_are_not_told_of(model, recwarn):
    cells = model.sample(50, library_size=1, progress_bar=False)
    assert (cells.X.getnnz(axis=1) == 0).any()
    assert not [w for w in recwarn if "no counts" in str(w.message)]
