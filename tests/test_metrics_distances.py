"""Distances, neighbours, classifiers and marginals against closed forms and against independent implementations."""

import numpy as np
import ot
import pytest
from scipy import stats
from scipy.linalg import sqrtm
from scipy.spatial.distance import pdist

from sclatent.metrics import (
    Projection,
    concordance,
    density_coverage,
    energy_distance,
    frechet_distance,
    median_squared_distance,
    mmd2,
    nearest_neighbor_accuracy,
    precision_recall,
    random_forest_auc,
    sinkhorn_divergence,
    transfer_accuracy,
    wasserstein,
)
from sclatent.metrics import _distances as distances
from sclatent.metrics import _marginals as marginals
from sclatent.metrics import _neighbors as neighbors

ALL = (
    wasserstein,
    sinkhorn_divergence,
    mmd2,
    energy_distance,
    frechet_distance,
    nearest_neighbor_accuracy,
    precision_recall,
    density_coverage,
)
SHIFT = np.array([3.0, 0.0, -4.0])  # of length 5


def gauss(seed: int, n: int = 100, d: int = 3, mean=0.0, sd: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) * sd + mean


def test_distances_of_points_apart():
    """All cells of a sample are the same one, 5 from those of the other."""
    x, y = np.zeros((7, 3)), np.tile(SHIFT, (9, 1))
    assert wasserstein(x, y, p=1) == pytest.approx(5)
    assert wasserstein(x, y) == pytest.approx(5)
    assert sinkhorn_divergence(x, y) == pytest.approx(25)
    assert energy_distance(x, y) == pytest.approx(10)
    assert frechet_distance(x, y) == pytest.approx(25)
    assert mmd2(x, y, [4.0]) == pytest.approx(2 - 2 * np.exp(-25 / 8))
    for function in (wasserstein, sinkhorn_divergence, energy_distance, frechet_distance, mmd2):
        assert function(x, x) == 0


def test_distances_of_a_sample_from_itself_moved():
    """A shift of all cells is what optimal transport finds exactly, and what does not touch the covariance."""
    x = gauss(0)
    y = x[np.random.default_rng(1).permutation(len(x))] + SHIFT
    assert wasserstein(x, y) == pytest.approx(5)
    assert wasserstein(x, y, p=1) == pytest.approx(5)
    assert sinkhorn_divergence(x, y) == pytest.approx(25, rel=1e-3)
    assert frechet_distance(x, y) == pytest.approx(25)


def test_wasserstein_and_energy_in_one_dimension_are_those_of_scipy():
    x, y = gauss(0, 80, 1), gauss(1, 120, 1, mean=0.5, sd=2)
    assert wasserstein(x, y, p=1) == pytest.approx(stats.wasserstein_distance(x[:, 0], y[:, 0]))
    # scipy: square root, and cells are compared with themselves too
    expected = stats.energy_distance(x[:, 0], y[:, 0]) ** 2 - pdist(x).mean() / len(x) - pdist(y).mean() / len(y)
    assert energy_distance(x, y) == pytest.approx(expected)


def test_wasserstein_of_gaussians():
    x, y = gauss(0, 1500, 1), gauss(1, 1500, 1, mean=1, sd=3)
    assert wasserstein(x, y) ** 2 == pytest.approx(1 + (3 - 1) ** 2, rel=0.05)


@pytest.mark.parametrize("reg", [2.0, 6.0])
def test_sinkhorn_divergence_is_that_of_a_long_iteration(reg):
    x, y = gauss(0, 60), gauss(1, 80, mean=0.3, sd=1.5)

    def value(a, b):
        return ot.solve_sample(a, b, reg=reg, tol=1e-7, max_iter=10_000).value

    expected = value(x, y) - (value(x, x) + value(y, y)) / 2
    assert sinkhorn_divergence(x, y, reg) == pytest.approx(expected, rel=1e-3)


def test_sinkhorn_divergence_nears_optimal_transport_and_stands_outliers():
    x, y = gauss(0), gauss(1, mean=SHIFT)
    assert sinkhorn_divergence(x, y, 1e-2) == pytest.approx(wasserstein(x, y) ** 2, rel=1e-3)
    y[0] = 1e4
    assert sinkhorn_divergence(x, y) == pytest.approx(wasserstein(x, y) ** 2, rel=1e-2)


def test_mmd2_is_that_of_a_double_loop():
    x, y = gauss(0, 20), gauss(1, 30, mean=0.5)
    bandwidths = [0.5, 2.0]

    def mean_kernel(a, b):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if a is not b or i != j]
        return np.mean([np.mean([np.exp(-((a[i] - b[j]) ** 2).sum() / (2 * s)) for s in bandwidths]) for i, j in pairs])

    assert mmd2(x, y, bandwidths) == pytest.approx(mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    scale = np.median(pdist(np.concatenate([x, y]), "sqeuclidean"))
    assert median_squared_distance(x, y) == pytest.approx(scale)
    assert mmd2(x, y) == pytest.approx(mmd2(x, y, scale * np.array([0.25, 0.5, 1, 2, 4])))


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_mmd2_and_energy_of_gaussians_in_expectation(shift):
    """Means over many small samples: what is biased would be found out."""
    d, s2 = 2, 1.5
    pairs = [(gauss(2 * i, 12, d), gauss(2 * i + 1, 12, d, mean=[shift, 0])) for i in range(800)]
    kernel = (s2 / (s2 + 2)) ** (d / 2)
    expected = 2 * kernel * (1 - np.exp(-(shift**2) / (2 * (s2 + 2))))
    values = np.array([mmd2(x, y, [s2]) for x, y in pairs])
    assert abs(values.mean() - expected) < 3 * values.std() / len(pairs) ** 0.5
    # the length of a difference, of variance 2 in each of two dimensions, is Rice distributed
    length = stats.rice(shift / 2**0.5, scale=2**0.5).mean() if shift else stats.rayleigh(scale=2**0.5).mean()
    expected = 2 * (length - stats.rayleigh(scale=2**0.5).mean())
    values = np.array([energy_distance(x, y) for x, y in pairs])
    assert abs(values.mean() - expected) < 3 * values.std() / len(pairs) ** 0.5


def test_frechet_distance_is_that_with_a_matrix_root():
    x, y = gauss(0) @ np.diag([1, 2, 3]), gauss(1, mean=0.5) @ np.array([[1, 0.5, 0], [0, 1, 0.5], [0, 0, 1]])
    a, b = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(x, y) == pytest.approx(expected)


def test_frechet_distance_of_gaussians():
    x, y = gauss(0, 20_000), gauss(1, 20_000, mean=SHIFT, sd=2)
    assert frechet_distance(x, y) == pytest.approx(25 + 3 * (2 - 1) ** 2, rel=0.02)


def test_frechet_distance_of_fewer_cells_than_dimensions():
    x = gauss(0, 5, 40)
    variance = x.var(axis=0, ddof=1).sum()  # of x and 3 x: (3 - 1)^2 times it
    assert frechet_distance(x, 3 * x) == pytest.approx(4 * variance + 4 * (x.mean(axis=0) ** 2).sum())
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x[:, :1], 3 * x[:, :1]) > 0  # one dimension


@pytest.mark.parametrize("function", ALL)
def test_chunks_change_nothing(function, monkeypatch):
    x, y = gauss(0, 50), gauss(1, 50, mean=0.5)
    whole = function(x, y)
    monkeypatch.setattr(distances, "CHUNK", 7)
    monkeypatch.setattr(neighbors, "CHUNK", 7)
    np.testing.assert_allclose(function(x, y), whole, rtol=1e-12)


@pytest.mark.parametrize("function", ALL)
def test_distances_refuse_what_is_not_two_samples(function):
    x = gauss(0)
    with pytest.raises(ValueError, match=r"\(100, 3\) and \(100, 2\)"):
        function(x, x[:, :2])
    with pytest.raises(ValueError, match="at least 2 cells"):
        function(x[:1], x[:1])
    with pytest.raises(ValueError, match="y has values that are NaN"):
        function(x, np.where(x > 2, np.nan, x))


def test_the_scale_is_not_zero_where_most_cells_are_one():
    x, y = np.zeros((50, 2)), np.zeros((50, 2))
    y[:10] = 1
    assert median_squared_distance(x, y) > 0
    assert mmd2(x, y) > 0


def test_nearest_neighbor_accuracy():
    x = np.array([[0.0], [1.0], [10.0], [11.0]])
    assert nearest_neighbor_accuracy(x, x + 100) == 1
    assert nearest_neighbor_accuracy(x, x) == 0  # a copy
    assert nearest_neighbor_accuracy(np.array([[0.0], [1.0]]), np.array([[1.1], [9.0]])) == 0.5
    assert nearest_neighbor_accuracy(gauss(0, 1000), gauss(1, 1000)) == pytest.approx(0.5, abs=0.04)
    with pytest.raises(ValueError, match="4 cells and y 3"):
        nearest_neighbor_accuracy(x, x[:3])


def test_precision_recall_density_and_coverage_by_hand():
    real = np.array([[0.0], [1.0], [2.0], [10.0]])  # with k = 1: balls of radius 1, 1, 1, 8
    generated = np.array([[0.5], [0.6], [100.0]])  # 0.1, 0.1, 99.4
    assert precision_recall(real, generated, k=1) == (pytest.approx(2 / 3), pytest.approx(3 / 4))  # all but 0
    density, coverage = density_coverage(real, generated, k=1)
    assert density == pytest.approx((2 + 2 + 0) / 3)  # in the balls around 0 and 1
    assert coverage == pytest.approx(2 / 4)
    with pytest.raises(ValueError, match="k=0"):
        precision_recall(real, generated, k=0)


def test_precision_recall_density_and_coverage_are_those_of_loops():
    real, generated, k = gauss(0, 40), gauss(1, 30, mean=0.5, sd=0.7), 3

    def radius(sample, i):
        return np.sort(np.linalg.norm(sample - sample[i], axis=1))[k]  # 0 is the cell itself

    def inside(points, sample):
        return np.array([[np.linalg.norm(p - s) <= radius(sample, i) for i, s in enumerate(sample)] for p in points])

    in_real, in_generated = inside(generated, real), inside(real, generated)
    expected = in_real.any(axis=1).mean(), in_generated.any(axis=1).mean()
    assert precision_recall(real, generated, k) == pytest.approx(expected)
    assert density_coverage(real, generated, k) == pytest.approx((in_real.sum() / (30 * k), in_real.any(axis=0).mean()))


def test_density_of_one_distribution_is_one():
    density, coverage = density_coverage(gauss(0, 1000), gauss(1, 1000))
    assert density == pytest.approx(1, abs=0.05)
    assert coverage == pytest.approx(1 - 0.5**5, abs=0.03)  # Naeem et al., lemma 2, for many cells


def test_a_dropped_mode_costs_recall_and_not_precision():
    real = np.concatenate([gauss(0, 150), gauss(1, 150, mean=20)])
    precision, recall = precision_recall(real, gauss(2, 300))
    assert precision > 0.8
    assert recall < 0.55


def test_random_forest_auc():
    x, y = gauss(0), gauss(1)
    assert random_forest_auc(x, y, seed=3) == random_forest_auc(x, y, seed=3)
    assert random_forest_auc(x, y) == pytest.approx(0.5, abs=0.15)
    assert random_forest_auc(x[:20], y[:20] + 10) == 1
    with pytest.raises(ValueError, match="x has 4 cells"):
        random_forest_auc(x[:4], y)


def test_transfer_accuracy():
    x, labels = np.concatenate([gauss(0), gauss(1, mean=10)]), np.repeat([0, 1], 100)
    assert transfer_accuracy(x, labels, x[::3] + 0.1, labels[::3]) == 1
    assert transfer_accuracy(x, labels, x[::3] + 0.1, 1 - labels[::3]) == 0


def test_concordance_falls_with_a_shift_and_pearson_does_not():
    x = gauss(0, d=1)[:, 0]
    assert concordance(x, x) == pytest.approx(1)
    assert concordance(x, x + 1) == pytest.approx(2 * x.var() / (2 * x.var() + 1))
    assert concordance(x, -x) < 0
    assert concordance(np.ones(5), np.ones(5)) == 1
    assert concordance(np.ones(5), np.arange(5)) == 0


def test_agreement_of_genes():
    rng = np.random.default_rng(0)
    real = np.where(rng.random((400, 30)) < np.linspace(0.1, 0.6, 30), rng.random((400, 30)), 0)
    more_zeros = np.where(rng.random((400, 30)) < 0.5, real, 0)
    result = marginals.gene_agreement(real, more_zeros)
    zeros = [(v == 0).mean(axis=0) for v in (real, more_zeros)]
    assert result["gene_zeros_pearson"] == pytest.approx(stats.pearsonr(*zeros).statistic)
    assert result["gene_zeros"] == pytest.approx(concordance(*zeros))
    assert result["gene_zeros_pearson"] > 0.9
    assert result["gene_zeros"] < 0.6
    assert marginals.gene_agreement(real, real) == pytest.approx(dict.fromkeys(result, 1))


def test_agreement_of_correlations():
    x, y = gauss(0, 200, 6) @ gauss(5, 6, 6), gauss(1, 200, 6) @ gauss(5, 6, 6)
    upper = np.triu_indices(6, 1)
    expected = stats.pearsonr(np.corrcoef(x.T)[upper], np.corrcoef(y.T)[upper]).statistic
    assert marginals.correlation_agreement(x, y) == pytest.approx(expected)
    constant = np.column_stack([x, np.full(200, 0.1)])
    assert np.isfinite(marginals.correlation_agreement(constant, constant))
    np.testing.assert_array_equal(marginals.most_variable(x * [1, 9, 1, 9, 0, 0], 2), [1, 3])


def test_library_sizes_are_compared_in_tenfolds():
    assert marginals.library_size_distance(np.array([10, 100]), np.array([1000, 100])) == pytest.approx(1)
    assert marginals.library_size_distance(np.array([0.0, 10]), np.array([1.0, 10])) == 0


def test_projection_is_centred_pca():
    x = gauss(0, 60, 8, mean=5).astype(np.float32)
    projection = Projection(x, 3)
    centred = x - x.mean(axis=0)
    expected = centred @ np.linalg.svd(centred, full_matrices=False)[2][:3].T
    np.testing.assert_allclose(np.abs(projection.transform(x)), np.abs(expected), atol=1e-3)
    many = gauss(0, 600, 520) * np.linspace(1, 2, 520)  # so many that scikit-learn would approximate
    expected = np.linalg.svd(many - many.mean(axis=0), compute_uv=False)[:20] ** 2
    for seed in (0, 1):
        np.testing.assert_allclose((Projection(many, 20, seed).transform(many) ** 2).sum(axis=0), expected, rtol=1e-6)
    assert projection.name == "3 PCs of log1p CP10k"
    assert projection.transform(x).dtype == np.float64
    assert Projection(x, 50).n_components == 8
    assert Projection(x[:4], 50).n_components == 3
    with pytest.raises(ValueError, match="n_components=0"):
        Projection(x, 0)
