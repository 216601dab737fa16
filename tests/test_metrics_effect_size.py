"""Metrics of how large a response is: attenuation, errors without sampling noise, and what does not depend on it."""

import numpy as np
import pytest
from anndata import AnnData

from sclatent.datasets import simulate
from sclatent.metrics import evaluate_perturbation, mean_change, slope_of_change, summarize
from sclatent.metrics._differential import jaccard, scaled_error

NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def screen() -> tuple[AnnData, AnnData]:
    """Perturbed and control cells: few of each."""
    adata = simulate(240, 300, cell_types=1, conditions=["control", *NAMES], library_size=800, effect_size=1.2, seed=2)
    is_control = (adata.obs["condition"] == "control").to_numpy()
    return adata[~is_control].copy(), adata[is_control].copy()


def summary(*args, **kwargs):
    options = {"n_components": 5, "n_top": [20], "progress_bar": False}
    return summarize(evaluate_perturbation(*args, **options, **kwargs))


def test_jaccard_and_scaled_error_by_hand():
    change, predicted = np.array([2.0, -1.0, 1.0, 5.0]), np.array([1.0, 1.0, 1.0, 0.0])
    de, predicted_de = np.array([True, True, True, False]), np.array([True, False, True, True])
    assert jaccard(de, predicted_de) == 2 / 4
    assert jaccard(de, ~de) == 0
    assert scaled_error(change, predicted, de) == (1 + 2 + 0) / (2 + 1 + 1)
    assert scaled_error(change, np.zeros(4), de) == 1
    nothing = np.zeros(4, dtype=bool)
    assert np.isnan([jaccard(nothing, de), scaled_error(change, predicted, nothing)]).all()


def test_noise_does_not_attenuate_the_slope():
    """Few cells of a known change, half of which is predicted: least squares alone find less than a half."""
    rng = np.random.default_rng(0)
    change = rng.normal(scale=0.3, size=2_000)
    real, predicted, control = (3 + shift + rng.normal(size=(20, 2_000)) for shift in (change, change / 2, 0))
    measured = mean_change(real, control)
    assert measured @ (change / 2) / (measured @ measured) < 0.3
    assert slope_of_change(real, change / 2, control) == pytest.approx(0.5, abs=0.1)
    # the noise of the control cells is in both changes, and hides no attenuation
    assert slope_of_change(real, predicted, control) == pytest.approx(0.5, abs=0.1)
    assert slope_of_change(real, 3 + rng.normal(size=(20, 2_000)), control) == pytest.approx(0, abs=0.1)
    assert np.isnan(slope_of_change(control[:10], change / 2, control))  # no more than noise


@pytest.mark.filterwarnings("ignore:More than 5%")
@pytest.mark.parametrize("disjoint_controls", [False, True])
def test_noise_of_few_cells_is_no_error_and_no_attenuation(screen, disjoint_controls):
    real, control = screen
    options = {"disjoint_controls": disjoint_controls, "floors": False}
    wide = summary(real[::2].copy(), real[1::2].copy(), control, "condition", **options)
    for source in ("generated", "real half"):
        assert abs(wide.loc["mse_unbiased", source]) < 0.15 * wide.loc["mse", source]
        assert wide.loc["slope", source] == pytest.approx(1, abs=0.15)
    far = summary(real[::2].copy(), control, control, None, **options)
    assert far.loc["mse_unbiased", "generated"] > 0.2 * far.loc["mse", "generated"]


@pytest.mark.filterwarnings("ignore:More than 5%")
def test_of_shared_control_cells_the_noise_of_the_mean_shift_is_that_of_the_cell_mean(screen):
    """Among treatments of one context both floors are the same change."""
    real, control = screen
    wide = summary(real[::2].copy(), real[1::2].copy(), control[:30].copy(), "condition", real[1::2].copy())
    for metric in ("mse", "mse_unbiased", "slope"):
        assert wide.loc[metric, "mean shift"] == pytest.approx(wide.loc[metric, "cell mean"], rel=1e-3, abs=1e-6)


@pytest.mark.filterwarnings("ignore:More than 5%", "ignore:Not in real")
def test_the_cosine_does_not_see_how_large_a_change_is(screen):
    real, control = screen
    is_a = (real.obs["condition"] == "a").to_numpy()
    change = mean_change(real[is_a], control)
    predictions = {"right": change, "small": 1e-3 * change, "turned": -change, "nothing": 0 * change}
    wide = summary(real[is_a].copy(), predictions, control, "condition", real[~is_a].copy(), floors=False)
    assert wide.loc["discrimination_cosine", [*predictions]].tolist() == [1, 1, 0, 0.5]
    assert wide.loc["slope", "small"] == pytest.approx(1e-3 * wide.loc["slope", "right"])
    assert wide.loc["lfc_nmae", ["right", "nothing"]].tolist() == pytest.approx([0, 1])
    assert wide.loc["de_jaccard", "nothing"] == 0 < wide.loc["de_jaccard", "real half"]
