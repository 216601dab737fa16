"""The floor of correlated genes: what independent genes keep, it keeps, and the correlations besides."""

import numpy as np
import pytest
from anndata import AnnData
from scipy.stats import nbinom, norm

from sclatent.metrics import _floors as floors
from sclatent.metrics import evaluate_generation, gene_copula, independent_genes, log_normalize
from sclatent.metrics._copula import factor_loadings, normal_scores

N_GENES, IN_PROGRAM = 60, 15


def cells_with_programs(n: int, seed: int = 0, mean: float = 5.0, correlation: float = 0.7) -> AnnData:
    """Overdispersed counts at varying library sizes; normal variables of genes of a program have this correlation."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((n, N_GENES))
    for program in range(2):
        genes = slice(program * IN_PROGRAM, (program + 1) * IN_PROGRAM)
        common = rng.standard_normal((n, 1))
        normal[:, genes] = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * normal[:, genes]
    means = mean * np.linspace(0.2, 2, N_GENES) * rng.lognormal(0, 0.4, (n, 1))
    return AnnData(nbinom.ppf(norm.cdf(normal), 2, 2 / (2 + means)).astype(np.float32))


def correlations(cells: AnnData) -> np.ndarray:
    return np.corrcoef(log_normalize(cells).T)


@pytest.mark.parametrize("n_cells", [150, 1000])
def test_correlations_are_kept(n_cells):
    cells, real = cells_with_programs(n_cells), correlations(cells_with_programs(5000, seed=1))
    drawn = correlations(gene_copula(cells, n=5000, seed=2))
    within = [np.triu(np.ones((IN_PROGRAM, IN_PROGRAM), bool), 1)] * 2
    for program, pairs in enumerate(within):
        genes = slice(program * IN_PROGRAM, (program + 1) * IN_PROGRAM)
        x, y = real[genes, genes][pairs], drawn[genes, genes][pairs]
        assert x.mean() > 0.4
        assert abs(y.mean() - x.mean()) < 0.1
        assert np.abs(y - x).max() < 0.25
    lone = slice(2 * IN_PROGRAM, None)  # those of no program stay alone
    assert np.abs(drawn[lone, lone] - real[lone, lone]).mean() < 0.05
    independent = correlations(independent_genes(cells, n=5000, seed=2))
    assert np.abs(independent[:IN_PROGRAM, :IN_PROGRAM][within[0]]).mean() < 0.1


def test_correlations_of_sparse_genes_are_kept():
    """Nine counts of ten are 0: scores that are drawn at random would lose most of what correlation there is."""
    cells, real = (cells_with_programs(n, seed, mean=0.15) for n, seed in ((3000, 0), (20000, 1)))
    assert 0.85 < (real.X == 0).mean() < 0.95
    genes = slice(IN_PROGRAM // 2, IN_PROGRAM)
    pairs = np.triu_indices(IN_PROGRAM - IN_PROGRAM // 2, 1)
    real, drawn = (np.corrcoef(a.X[:, genes].T)[pairs].mean() for a in (real, dense(gene_copula(cells, n=20000))))
    assert real > 0.05
    assert drawn == pytest.approx(real, rel=0.3)


def test_marginals_are_those_of_independent_genes():
    cells = cells_with_programs(1000)
    drawn, independent = (dense(draw(cells, n=5000, seed=2)).X for draw in (gene_copula, independent_genes))
    assert (drawn == np.round(drawn)).all()
    # about six standard errors of a difference of two means of 5,000, and of two such fractions
    np.testing.assert_allclose(drawn.mean(axis=0), independent.mean(axis=0), rtol=0.1)
    np.testing.assert_allclose((drawn == 0).mean(axis=0), (independent == 0).mean(axis=0), atol=0.05)
    np.testing.assert_allclose(drawn.var(axis=0), independent.var(axis=0), rtol=0.5)


def test_genes_without_correlation_have_no_factors():
    """Also where cells are fewer than genes, whose correlations are then large by chance."""
    for n_cells in (20, 400):
        scores = np.random.default_rng(0).standard_normal((n_cells, 200))
        assert len(factor_loadings(scores, np.random.default_rng(0))) <= 1
    rng = np.random.default_rng(1)
    # cells of many counts have many of every gene, which is no correlation of genes
    cells = AnnData(rng.poisson(3 * rng.lognormal(0, 0.8, (400, 1)), (400, 200)).astype(np.float32))
    drawn, independent = (draw(cells, n=2000) for draw in (gene_copula, independent_genes))
    assert np.abs(correlations(drawn) - correlations(independent)).mean() < 0.1


def test_scores_are_expected_values_of_the_normal_behind_a_count():
    normal = np.random.default_rng(0).standard_normal(200_000)
    mean, theta = 1.3, 0.8
    counts = nbinom.ppf(norm.cdf(normal), theta, theta / (theta + mean))
    scores = normal_scores(np.arange(4.0)[:, None], np.full((4, 1), mean), np.array([theta]))
    for count in range(4):
        assert scores[count, 0] == pytest.approx(normal[counts == count].mean(), abs=0.02)
    far = normal_scores(np.array([[1e4]]), np.array([[1.0]]), np.array([1e6]))  # whose probability is 0 in double
    assert np.isfinite(far).all()
    assert far[0, 0] > 5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "counts",
    [
        np.zeros((2, 1)),
        np.ones((1, 3)),
        [[1, 2], [3, 0]],
        np.zeros((30, 4)),
        np.vstack([np.zeros((10, 5)), np.random.default_rng(0).poisson(9, (10, 5))]),
        np.column_stack([np.full(50, 3), np.zeros(50), np.random.default_rng(0).poisson(3, (50, 3))]),
        np.random.default_rng(0).poisson(1e5, (50, 3)),
    ],
    ids=["two empty cells", "one cell", "two cells", "all zeros", "empty cells", "constant genes", "large counts"],
)
def test_few_cells_and_genes_that_say_nothing(counts):
    counts = np.asarray(counts, dtype=np.float32)
    drawn = dense(gene_copula(AnnData(counts), n=200, seed=1)).X
    assert drawn.shape == (200, counts.shape[1])
    assert np.isfinite(drawn).all()
    assert (drawn[:, counts.sum(axis=0) == 0] == 0).all()
    np.testing.assert_allclose(drawn.mean(), counts.mean(), rtol=0.5)


def test_conditions_seeds_and_cells_that_are_used(monkeypatch):
    cells = cells_with_programs(300)
    cells.obs["type"] = np.where(np.arange(300) < 100, "a", "b")
    cells.X[:100, 0] = 0
    drawn = gene_copula(cells, "type", n=50, seed=3)
    assert drawn.obs["type"].value_counts().to_dict() == {"a": 50, "b": 50}
    assert drawn[drawn.obs["type"] == "a"].X[:, [0]].nnz == 0 < drawn[drawn.obs["type"] == "b"].X[:, [0]].nnz
    assert (gene_copula(cells, "type", n=50, seed=3).X != drawn.X).nnz == 0
    assert (gene_copula(cells, "type", n=50, seed=4).X != drawn.X).nnz > 0
    assert list(gene_copula(cells, "type").obs["type"].value_counts()) == [200, 100]
    with pytest.raises(ValueError, match="n=0"):
        gene_copula(cells, n=0)
    with pytest.raises(ValueError, match=r"n=2\.5 must be a whole number"):
        gene_copula(cells, n=2.5)
    with pytest.raises(ValueError, match="adata has no cells"):
        gene_copula(cells[:0])
    with pytest.raises(ValueError, match="adata has no genes"):
        gene_copula(cells[:, :0])
    with pytest.raises(ValueError, match="seed=None must be"):
        gene_copula(cells, seed=None)

    used = []
    monkeypatch.setattr(
        floors, "factor_loadings", lambda scores, rng: used.append(scores) or factor_loadings(scores, rng)
    )
    monkeypatch.setattr(floors, "COPULA_VALUES", 70 * N_GENES)
    gene_copula(cells, n=5)
    assert [scores.shape for scores in used] == [(70, N_GENES)]
    used.clear()
    evaluate_generation(cells[:100], {}, train=cells[100:], n_components=5, max_cells=10, progress_bar=False)
    assert [scores.shape for scores in used] == [(50, N_GENES)]  # a quick look is quick


def dense(cells: AnnData) -> AnnData:
    return AnnData(cells.X.toarray(), obs=cells.obs)
