"""cell-eval2 and pertpy take generated cells as they are, and agree with us where the definition is the same."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy.spatial.distance import pdist
from scipy.stats import pearsonr

from sclatent.metrics import energy_distance, evaluate_perturbation, log_normalize, mmd2, wasserstein

cell_eval2 = pytest.importorskip("cell_eval2", reason="needs pip install sclatent[interop]")
pertpy = pytest.importorskip("pertpy", reason="needs pip install sclatent[interop]")

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs: deprecations, fits that do not converge

PATIENT, CONTROL, TREATED = "patient_id", "ctrl", "panobinostat"
REFERENCE = "PW030"  # the patient that plays the control where several perturbations are needed
MEMBERS = [
    "pds_cosine",
    "expr_mse_unbiased_capped_norm",
    "de_wilcoxon_direction_fidelity_yield_raw",
    "de_wilcoxon_direction_reach_raw",
    "de_wilcoxon_sig_jaccard",
    "de_wilcoxon_lfc_nmae",
]  # of the preset vcc2026


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


def vcc2026(column: str, control: str) -> cell_eval2.EvalConfig:
    """The preset of the Virtual Cell Challenge, for treatments that are no genes."""
    config = cell_eval2.EvalConfig.from_preset("vcc2026")
    return replace(config, pert_col=column, control=control, target_gene_map={"*": None}, num_threads=1)


def members(predicted: AnnData, real: AnnData, config: cell_eval2.EvalConfig) -> dict[str, float]:
    """The six members of the preset, over all perturbations."""
    table = cell_eval2.aggregate_metrics(cell_eval2.compute_metrics(predicted, real, config=config))
    means = dict(zip(table["metric"], table["mean"], strict=True))
    return {name: means[name] for name in MEMBERS}


# cell-eval2


def test_cell_eval2_takes_samples(sampled, real):
    assert sampled.X.dtype == np.int32
    values = members(sampled, real, vcc2026(PATIENT, REFERENCE))
    assert np.isfinite(list(values.values())).all()
    assert values["pds_cosine"] > 0.5  # chance
    assert values["expr_mse_unbiased_capped_norm"] < 1  # as of control cells
    assert values["de_wilcoxon_direction_fidelity_yield_raw"] > 0.5


def test_cell_eval2_takes_counterfactuals_beside_their_controls(moved, real):
    control = real[real.obs["condition"] == CONTROL]
    predicted = ad.concat([control, moved], index_unique="-", keys=["control", "moved"])
    values = members(predicted, real, vcc2026("condition", CONTROL))
    assert np.isfinite(list(values.values())).all()
    assert values["expr_mse_unbiased_capped_norm"] < 0.5
    assert values["de_wilcoxon_direction_fidelity_yield_raw"] > 0.5


def test_cell_eval2_agrees_on_log_normalised_cells(sampled, real):
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

    same = {
        "pearson": "delta_pearson",
        "mse": "delta_mse",
        "mse_unbiased": "expr_mse_unbiased",
        "discrimination": "pds_l1",
        "discrimination_cosine": "pds_cosine",
    }
    config = cell_eval2.EvalConfig(
        metrics=list(same.values()), pert_col=PATIENT, control=REFERENCE, input_type="lognorm", num_threads=1,
        target_gene_map={"*": None},
    )  # fmt: skip
    theirs = cell_eval2.compute_metrics(normalised(control, predicted), normalised(control, others), config=config)
    theirs = pd.DataFrame(theirs.to_dict(as_series=False)).pivot(index="perturbation", columns="metric", values="value")
    assert ours["discrimination"].nunique() > 1
    for name, their_name in same.items():
        np.testing.assert_allclose(theirs.loc[ours.index, their_name], ours[name], rtol=1e-5, err_msg=name)


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
