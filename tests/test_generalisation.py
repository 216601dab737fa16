"""What keeps the model from learning the noise of its cells by heart, and what it has to learn besides."""

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from sklearn.decomposition import PCA

from sclatent.baseline import common_slope
from sclatent.data import CellRows, gene_loadings, log_normalize_counts, make_loader
from sclatent.model import SCLDM
from sclatent.module import SetAutoencoder
from sclatent.train import AutoencoderPlan


def rows_of(x: np.ndarray) -> CellRows:
    panel, codes = np.arange(x.shape[1]), np.zeros((len(x), 0), dtype=np.int64)
    return CellRows(sparse.csr_matrix(x), panel, None, codes, np.zeros(len(x), dtype=np.int64))


@pytest.fixture
def batch():
    x = np.random.default_rng(0).poisson(20, size=(200, 50)).astype(np.float32)
    return next(iter(make_loader(rows_of(x), 200)))


# ---- thinning


def test_thinning_keeps_a_share_of_the_molecules(batch):
    share = torch.linspace(0.1, 1, 200)
    thinned = batch.sets.thinned(share, torch.Generator().manual_seed(0)).dense()
    counts = batch.sets.dense()
    assert (thinned <= counts).all()
    assert (thinned == thinned.round()).all()
    torch.testing.assert_close(thinned.sum(1) / counts.sum(1), share, atol=0.08, rtol=0)
    assert torch.equal(thinned[-1], counts[-1])


def test_the_encoder_sees_less_in_training_and_everything_in_validation(batch):
    seen = []
    plan = AutoencoderPlan(SetAutoencoder(50, n_tokens=2, token_dim=4, width=8, n_heads=2), thinning=0.3)
    plan.trained.pooling.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    for losses in (plan.losses, plan.validation_losses):
        losses(batch, torch.Generator().manual_seed(0))
    counts = batch.sets.dense()
    share = seen[0].sum() / counts.sum()
    assert 0.6 < share < 0.7  # 0.65 is the mean of 0.3 and 1
    assert torch.equal(seen[1], counts)


@pytest.mark.parametrize("thinning", [0, -0.1, 1.1])
def test_thinning_out_of_range_is_refused(thinning):
    with pytest.raises(ValueError, match=f"thinning={thinning!r} must be above 0 and at most 1"):
        AutoencoderPlan(SetAutoencoder(5, n_heads=2), thinning=thinning)


def test_log_normalised_values_are_not_thinned(batch):
    autoencoder = SetAutoencoder(50, n_tokens=2, token_dim=4, width=8, n_heads=2, gene_likelihood="normal")
    assert AutoencoderPlan(autoencoder).thinning == 1


# ---- loadings


def test_genes_that_vary_together_start_close_to_each_other():
    """Three programs of ten genes each, and ten genes that only have noise."""
    rng = np.random.default_rng(0)
    programs = np.exp(rng.normal(0, 1, size=(400, 3)))
    rate = np.concatenate([np.repeat(programs, 10, axis=1), np.ones((400, 10))], axis=1)
    w = gene_loadings(rows_of(rng.poisson(5 * rate)), 40, dim=8)
    assert w.shape == (40, 8)
    assert w.dtype == np.float32
    assert np.mean(w**2) == pytest.approx(1, rel=1e-5)
    norm = np.linalg.norm(w, axis=1)
    assert norm[30:].max() < norm[:30].min()
    cosine = (w / norm[:, None]) @ (w / norm[:, None]).T
    program = np.arange(30) // 10
    together = (program[:, None] == program) & ~np.eye(30, dtype=bool)
    apart = program[:, None] != program
    assert cosine[:30, :30][together].mean() > 0.6
    assert cosine[:30, :30][apart].mean() < 0.1


def test_loadings_have_no_sampling_noise():
    """Two programs in counts so shallow that most of the variance is noise of sampling."""
    rng = np.random.default_rng(0)
    programs = np.exp(0.7 * rng.normal(size=(300, 2)))
    rate = np.concatenate([np.repeat(programs, 20, axis=1), np.ones((300, 160))], axis=1)
    counts = rng.poisson(rate)
    w = gene_loadings(rows_of(counts), 200, dim=30)
    cells = log_normalize_counts(counts)
    pca = PCA(30).fit(cells)
    noisy = (pca.components_ * np.sqrt(pca.explained_variance_)[:, None]).T

    def in_programs(loadings):
        return (loadings[:40] ** 2).sum() / (loadings**2).sum()

    def in_first_two(loadings):
        return (loadings[:, :2] ** 2).sum() / (loadings**2).sum()

    assert in_programs(w) > 1.4 * in_programs(noisy)
    assert in_first_two(w) > 1.5 * in_first_two(noisy)


def test_loadings_of_log_normalised_values_are_those_of_principal_components():
    x = log_normalize_counts(np.random.default_rng(0).poisson(3, size=(200, 30)))
    w = gene_loadings(rows_of(x), 30, dim=5, is_count_data=False)
    pca = PCA(5).fit(x)
    expected = (pca.components_ * np.sqrt(pca.explained_variance_)[:, None]).T
    expected /= np.sqrt(np.mean(expected**2))
    np.testing.assert_allclose(np.abs(w), np.abs(expected), atol=0.02)


def test_loadings_of_few_cells_and_of_many():
    x = np.random.default_rng(0).poisson(3, size=(5, 20))
    few = gene_loadings(rows_of(x), 20, dim=8)
    assert np.isfinite(few).all()
    assert (few[:, 4:] == 0).all()
    assert few[:, :4].any(axis=0).all()
    x = np.random.default_rng(0).poisson(3, size=(300, 20))
    one, again, other = (gene_loadings(rows_of(x), 20, 8, max_cells=100, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)
    assert not gene_loadings(rows_of(x[:1]), 20, 8).any()  # one cell does not vary


# ---- dispersions


def test_genes_that_hardly_vary_are_found_to(fit):
    """Their inverse dispersion is two orders of magnitude from where it starts."""
    rng = np.random.default_rng(0)
    x = rng.poisson(rng.gamma(300.0, 60 / 300, size=(600, 40)))
    adata = AnnData(sparse.csr_matrix(x.astype(np.float32)))
    train = {"batch_size": 32, "stage": "autoencoder", "plan_kwargs": {"autoencoder": {"lr": 3e-3}}}
    model = fit(adata, 16, setup={}, train=train)
    assert np.median(model.module.autoencoder.likelihood.log_theta.detach().exp().numpy()) > 20


def test_dispersions_learn_at_a_pace_of_their_own():
    plan = AutoencoderPlan(SetAutoencoder(5, n_heads=2), dispersion_lr=3.0, lr=1e-3)
    *others, dispersion = plan.parameter_groups()
    assert dispersion["params"] == list(plan.trained.likelihood.parameters())
    assert dispersion["lr"] == pytest.approx(3e-3)
    assert not any("lr" in group for group in others)
    with pytest.raises(ValueError, match="dispersion_lr=0 must be above 0"):
        AutoencoderPlan(SetAutoencoder(5, n_heads=2), dispersion_lr=0)


# ---- library size


def test_common_slope_looks_within_combinations():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, size=500)
    x = rng.normal(size=500) + 5 * group
    y = np.outer(x, [2.0, -1.0]) + 100 * group[:, None]  # between the groups the slopes would be others
    np.testing.assert_allclose(common_slope(group, x, y), [2, -1], atol=1e-9)
    np.testing.assert_array_equal(common_slope(group, np.ones(500), y), [0, 0])


def test_what_a_cell_expresses_goes_with_its_library_size(fit):
    """In these cells one half of the genes is on in large cells and the other half in small ones."""
    rng = np.random.default_rng(0)
    library = np.where(rng.random(600) < 0.5, 200, 2_000) * rng.uniform(0.8, 1.25, size=600)
    share = np.where(library[:, None] > 800, np.repeat([0.045, 0.005], 20), np.repeat([0.005, 0.045], 20))
    x = rng.poisson(library[:, None] * share).astype(np.float32)
    plans = {"autoencoder": {"lr": 3e-3}, "diffusion": {"lr": 3e-3}}
    model = fit(
        AnnData(sparse.csr_matrix(x)), {"autoencoder": 20, "diffusion": 25}, setup={}, train={"plan_kwargs": plans}
    )

    def of_first_half(cells: AnnData) -> np.ndarray:
        return np.asarray(cells.X[:, :20].sum(axis=1) / cells.X.sum(axis=1)).ravel()

    assert of_first_half(model.sample(100, library_size=2_000, progress_bar=False)).mean() > 0.75
    assert of_first_half(model.sample(100, library_size=200, progress_bar=False)).mean() < 0.25
    cells = model.sample(200, progress_bar=False)
    assert np.corrcoef(of_first_half(cells), cells.obs["library_size"] > 800)[0, 1] > 0.8


def test_a_library_size_far_from_all_of_training_gives_cells(sim_model):
    for size in (1, 1e7):
        cells = sim_model.sample(5, library_size=size, progress_bar=False)
        assert np.isfinite(cells.X.data).all()
    assert cells.X.sum(axis=1).min() > 1e6


def test_sizes_are_saved_with_the_model(sim_model, tmp_path):
    sim_model.save(tmp_path / "m")
    loaded = SCLDM.load(tmp_path / "m")
    one, other = (m.sample(20, seed=3, progress_bar=False) for m in (sim_model, loaded))
    assert (one.X != other.X).nnz == 0
