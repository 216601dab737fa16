"""The noise of control cells: in the real and in the predicted change, unless their control cells are disjoint."""

import warnings

import pandas as pd
import pytest
from anndata import AnnData

from sclatent.datasets import simulate
from sclatent.metrics import evaluate_perturbation, pearson_of_change, summarize

NAMES = [f"gene {i}" for i in range(8)]


def evaluate(*args, **kwargs) -> pd.DataFrame:
    return evaluate_perturbation(*args, n_components=5, n_top=[20], progress_bar=False, **kwargs)


def screen(effect_size: float, n_control: int = 30, n_names: int = 8) -> tuple[AnnData, AnnData, AnnData]:
    """Real and predicted cells of some perturbations, which are two halves of the same, and control cells."""
    names = ["control", *NAMES[:n_names]]
    adata = simulate(
        120 * len(names), 200, cell_types=1, conditions=names, library_size=400, effect_size=effect_size, seed=3
    )
    is_control = (adata.obs["condition"] == "control").to_numpy()
    perturbed = adata[~is_control]
    return perturbed[::2].copy(), perturbed[1::2].copy(), adata[is_control][:n_control].copy()


@pytest.fixture(scope="module")
def no_effect() -> tuple[AnnData, AnnData, AnnData]:
    return screen(0.0)


@pytest.mark.filterwarnings("ignore:More than 5%")
def test_noise_of_shared_control_cells_correlates_and_that_of_disjoint_ones_does_not(no_effect):
    shared = summarize(evaluate(*no_effect, "condition")).loc["pearson"]
    disjoint = summarize(evaluate(*no_effect, "condition", disjoint_controls=True)).loc["pearson"]
    for source in ("generated", "cell mean", "mean shift", "real half"):
        assert shared[source] > 0.4
        assert abs(disjoint[source]) < 0.15


def test_a_clear_response_is_found_with_disjoint_control_cells_as_well():
    real, predicted, control = screen(1.5, n_control=120, n_names=3)
    disjoint = summarize(evaluate(real, predicted, control, "condition", disjoint_controls=True))
    shared = summarize(evaluate(real, predicted, control, "condition"))
    assert disjoint.loc["pearson", "generated"] > 0.85
    assert disjoint.loc["discrimination", "generated"] == 1
    for metric in ("energy", "mmd2"):  # of cells, which have nothing to do with control cells
        assert disjoint.loc[metric, "generated"] == pytest.approx(shared.loc[metric, "generated"])
    pd.testing.assert_frame_equal(
        disjoint, summarize(evaluate(real, predicted, control, "condition", disjoint_controls=True))
    )


def test_cells_made_from_control_cells_are_compared_with_those_they_were_made_from(no_effect):
    """The change of all of them over one half would be the noise of the other, with the sign turned."""
    real, _, control = no_effect
    moved = control.copy()
    moved.obs["condition"] = NAMES[0]
    one = real[real.obs["condition"] == NAMES[0]]
    for some in (moved, moved[5:25].copy()):
        named = summarize(evaluate(one, some, control, "condition", disjoint_controls=True))
        for metric in ("mse", "mse_unbiased"):
            assert named.loc[metric, "generated"] == pytest.approx(named.loc[metric, "control as it is"])
    moved.obs_names = [f"moved {i}" for i in range(moved.n_obs)]
    unnamed = summarize(evaluate(one, moved, control, "condition", disjoint_controls=True))
    assert unnamed.loc["pearson", "generated"] < -0.2


def test_few_control_cells_are_told_with_the_correlation_by_chance(no_effect):
    real, predicted, control = no_effect
    with pytest.warns(UserWarning, match=r"'gene \d' \(30 control cells\): 0\.\d\d, .*and 3 more.*disjoint_controls"):
        evaluate(real, predicted, control, "condition", floors=False)

    real, _, control = screen(1.0, n_control=120, n_names=1)
    one, few = real[real.obs["condition"] == NAMES[0]].copy(), control[:20].copy()
    with pytest.warns(UserWarning, match="More than 5%") as told:
        evaluate(one, control, few, floors=False)
    said = next(float(str(w.message).split("(20 control cells): ")[1][:4]) for w in told)
    assert said == pytest.approx(pearson_of_change(one, control[20:], few), abs=0.15)  # cells that do not respond
    assert said > 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(one, control, few, floors=False, disjoint_controls=True)


def test_control_cells_that_are_halved_are_twice_as_many(no_effect):
    real, predicted, control = no_effect
    with pytest.raises(ValueError, match="have too few cells: 20 real, 10 predicted and 20 control cells are needed"):
        evaluate(real, predicted, control[:19], "condition", disjoint_controls=True)
    table = evaluate(real, predicted, control[:20], "condition", disjoint_controls=True, floors=False)
    assert set(table["condition"]) == {*NAMES, "mean"}
