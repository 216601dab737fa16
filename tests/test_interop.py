"""cell-eval and pertpy take generated cells as they are, and agree with us where the definition is the same."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy.spatial.distance import pdist
from scipy.stats import pearsonr

from sclatent.metrics import energy_distance, evaluate_perturbation, log_normalize, mmd2, wasserstein

cell_eval = pytest.importorskip("cell_eval")
pertpy = pytest.importorskip("pertpy")

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs: deprecations, fits that do not converge

PATIENT, CONTROL, TREATED = "patient_id", "ctrl", "panobinostat"
REFERENCE = "PW030"  # the patient that plays the control where several perturbations are needed


@pytest.fixture(scope="module")
def real(glio) -> AnnData:
    """Measured cells, without what the model noted in them."""
    return AnnData(glio.X.copy(), obs=glio.obs[[PATIENT, "condition"]].copy(), var=glio.var.copy())


@pytest.fixture(scope="module")
def sampled(glio_model, real) -> AnnData:
    return glio_model.sample(conditions=real.obs, seed=0, progress_bar=False)


@pytest.fixture(scope="module")
def moved(glio_model, real) -> AnnData:
    control = real[real.obs["condition"] == CONTROL].copy()
    return glio_model.counterfactual(control, {"condition": TREATED}, seed=0, progress_bar=False)


@pytest.fixture
def evaluator(tmp_path):
    """A MetricsEvaluator of copies, which it normalises in place."""

    def evaluator(predicted: AnnData, real: AnnData, column: str, control: str) -> cell_eval.MetricsEvaluator:
        return cell_eval.MetricsEvaluator(
            predicted.copy(), real.copy(), control_pert=control, pert_col=column, num_threads=1, outdir=str(tmp_path)
        )

    return evaluator


def table(results) -> pd.DataFrame:
    """Results of cell-eval, a row a perturbation."""
    return pd.DataFrame(results.to_dict(as_series=False)).set_index("perturbation")


# cell-eval


def test_cell_eval_takes_samples(sampled, real, evaluator):
    assert sampled.X.dtype == np.int32
    e = evaluator(sampled, real, PATIENT, REFERENCE)
    results, _ = e.compute(profile="full", write_csv=False, break_on_error=True)
    results = table(results)
    assert sorted(results.index) == sorted(set(real.obs[PATIENT]) - {REFERENCE})
    assert results.notna().all(axis=None)
    assert (results["pearson_delta"] > 0.5).all()


def test_cell_eval_takes_counterfactuals_beside_their_controls(moved, real, evaluator):
    control = real[real.obs["condition"] == CONTROL]
    predicted = ad.concat([control, moved], index_unique="-", keys=["control", "moved"])
    e = evaluator(predicted, real, "condition", CONTROL)
    # the full profile has metrics of several perturbations, and here is one
    results = table(e.compute(profile="minimal", write_csv=False, break_on_error=True)[0])
    assert list(results.index) == [TREATED]
    assert results.notna().all(axis=None)
    assert results.loc[TREATED, "pearson_delta"] > 0.5


def test_cell_eval_normalises_counts_to_the_median_of_each_data_set(sampled, real, evaluator):
    e = evaluator(sampled, real, PATIENT, REFERENCE)
    for given, used in ((sampled, e.anndata_pair.pred), (real, e.anndata_pair.real)):
        expected = given.copy()
        sc.pp.normalize_total(expected)
        sc.pp.log1p(expected)
        np.testing.assert_allclose(used.X.toarray(), expected.X.toarray(), rtol=1e-5)


def test_cell_eval_agrees_on_log_normalised_cells(sampled, real, evaluator):
    is_control = (real.obs[PATIENT] == REFERENCE).to_numpy()
    control, others, predicted = real[is_control], real[~is_control], sampled[~is_control].copy()
    mistaken = {"PW032": "PW034", "PW034": "PW032"}  # or the discrimination would be perfect
    predicted.obs[PATIENT] = predicted.obs[PATIENT].astype(str).replace(mistaken).astype("category")
    ours = evaluate_perturbation(others, predicted, control, PATIENT, floors=False, n_top=(), progress_bar=False)
    ours = ours[(ours["kind"] == "generated") & (ours["condition"] != "mean")]
    ours = ours.pivot(index="condition", columns="metric", values="value")

    def normalised(*parts: AnnData) -> AnnData:
        values = np.concatenate([log_normalize(part) for part in parts]).astype(float)
        obs = pd.concat([part.obs[[PATIENT]].astype(str) for part in parts]).reset_index(drop=True)
        return AnnData(values, obs=obs.set_index(obs.index.astype(str)), var=pd.DataFrame(index=real.var_names))

    # its predicted change is over the control cells among the predicted ones: here, as in ours, the real ones
    e = evaluator(normalised(control, predicted), normalised(control, others), PATIENT, REFERENCE)
    theirs = table(e.compute(profile="anndata", write_csv=False, break_on_error=True)[0]).loc[ours.index]
    np.testing.assert_allclose(theirs["pearson_delta"], ours["pearson"], atol=1e-6)
    np.testing.assert_allclose(theirs["mse_delta"], ours["mse"], rtol=1e-5)
    n = len(ours)
    assert ours["discrimination"].nunique() > 1
    np.testing.assert_allclose(theirs["discrimination_score_l1"], 1 - (1 - ours["discrimination"]) * (n - 1) / n)

    # distances of perturbed from control cells, theirs with the distance of every cell from itself
    base, distances = log_normalize(control), {}
    for arm, cells in {"real": others, "predicted": predicted}.items():
        groups = [log_normalize(cells[(cells.obs[PATIENT] == patient).to_numpy()]) for patient in ours.index]
        distances[arm] = [energy_distance_with_itself(group, base) for group in groups]
    expected = pearsonr(distances["real"], distances["predicted"]).statistic
    np.testing.assert_allclose(theirs["pearson_edistance"], expected, atol=1e-4)


def energy_distance_with_itself(x: np.ndarray, y: np.ndarray) -> float:
    """Energy distance whose means within a sample have the distance of a cell from itself, which ours leaves out."""
    return energy_distance(x, y) + pdist(x).mean() / len(x) + pdist(y).mean() / len(y)


# pertpy


@pytest.mark.parametrize(
    "metric",
    [
        "edistance", "euclidean", "mse", "mean_absolute_error", "pearson_distance", "spearman_distance", "r2_distance",
        "cosine_distance", "mean_pairwise", "mmd", "wasserstein", "sym_kldiv", "t_test", "ks_test", "nb_ll",
        "classifier_proba", "mean_var_distribution",
    ],
)  # fmt: skip
def test_pertpy_takes_counts(metric, sampled, moved, real):
    genes = real.var_names[:20]
    for cells in (sampled, moved):
        value = pertpy.tl.Distance(metric)(real[:200, genes].X, cells[:200, genes].X)
        assert np.isfinite(value)


def test_pertpy_takes_annotated_cells(sampled):
    cells = sampled.copy()
    projections = pertpy.tl.Distance("classifier_cp").onesided_distances(
        cells, PATIENT, REFERENCE, show_progressbar=False
    )
    assert np.isfinite(projections).all()
    sc.pp.normalize_total(cells)  # as its documentation has it
    sc.pp.log1p(cells)
    sc.pp.pca(cells, n_comps=10)
    distances = pertpy.tl.Distance("edistance").pairwise(cells, PATIENT, show_progressbar=False, n_jobs=1)
    points = {p: cells.obsm["X_pca"][(cells.obs[PATIENT] == p).to_numpy()] for p in distances.index}
    for a in distances.index:
        for b in distances.index.drop(a):
            assert distances.loc[a, b] == pytest.approx(energy_distance_with_itself(points[a], points[b]), rel=1e-4)


@pytest.fixture(scope="module")
def points(sampled, real) -> tuple[np.ndarray, np.ndarray]:
    """Log-normalised cells in the principal components of the real ones; as many of either."""
    x, y = (log_normalize(cells)[:300].astype(float) for cells in (real, sampled))
    components = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2][:20]
    return (x - x.mean(axis=0)) @ components.T, (y - x.mean(axis=0)) @ components.T


def test_pertpy_agrees_on_the_energy_distance(points):
    assert pertpy.tl.Distance("edistance")(*points) == pytest.approx(energy_distance_with_itself(*points))


def test_pertpy_agrees_on_mmd_of_one_bandwidth(points):
    x, y = points
    variance = 30.0
    kernel = {name: np.exp(-pdist(v, "sqeuclidean") / (2 * variance)).mean() for name, v in (("x", x), ("y", y))}
    # theirs has the kernel of every cell with itself, which is 1
    biased = mmd2(x, y, [variance]) + (1 - kernel["x"]) / len(x) + (1 - kernel["y"]) / len(y)
    theirs = pertpy.tl.Distance("mmd")(x, y, kernel="rbf", gamma=1 / (2 * variance))
    assert theirs == pytest.approx(biased)


def test_wasserstein_of_pertpy_is_an_entropic_upper_bound_of_ours_squared(points):
    geometry = pytest.importorskip("ott.geometry.pointcloud")
    x, y = points
    exact, theirs = wasserstein(x, y, p=2) ** 2, pertpy.tl.Distance("wasserstein")(x, y)
    epsilon = float(geometry.PointCloud(x, y).epsilon)
    # the exact plan is a permutation, whose entropic cost is epsilon log n: the best entropic cost is no higher
    assert 0.99 * exact <= theirs <= 1.01 * (exact + epsilon * np.log(len(x)))
    assert theirs != pytest.approx(exact, rel=0.01)


def test_pertpy_agrees_on_means(sampled, real):
    x, y, base = (log_normalize(cells) for cells in (real[:500], sampled[:500], real[500:]))
    mean = [v.mean(axis=0, dtype=float) for v in (x, y)]
    assert pertpy.tl.Distance("pearson_distance")(x, y) == pytest.approx(1 - pearsonr(*mean).statistic, abs=1e-5)
    real_change, predicted_change = (m - base.mean(axis=0, dtype=float) for m in mean)
    mse = np.mean((real_change - predicted_change) ** 2)
    assert pertpy.tl.Distance("mse")(x, y) == pytest.approx(mse, rel=1e-4)
