"""Generated cells are of the batches in which their conditions were measured."""

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from sclatent.data import Conditions, TrainingBatches
from sclatent.domain import LibrarySizes
from sclatent.model import DAED, SCLDM, JointDiffusion, JointLDM

pytestmark = pytest.mark.usefixtures("few_steps")

RULES = TrainingBatches.RULES


def by_batch(batches: np.ndarray, probability: list[float], n_errors: float = 5.0) -> None:
    """Assert that batches are drawn with these probabilities, within as many standard errors."""
    share = np.bincount(batches, minlength=len(probability)) / len(batches)
    error = np.sqrt(np.array(probability) * (1 - np.array(probability)) / len(batches))
    assert (np.abs(share - probability) <= n_errors * error).all()


# ---- the rule


@pytest.fixture
def plates() -> TrainingBatches:
    """Two types under three conditions: 2 only on the third plate, and (1, 1) and (1, 2) were not seen."""
    cells = {(0, 0): [6, 2, 0], (0, 1): [1, 3, 0], (0, 2): [0, 0, 5], (1, 0): [4, 4, 0]}
    codes = np.concatenate([np.tile(code, (sum(n), 1)) for code, n in cells.items()])
    batch = np.concatenate([np.repeat(np.arange(3), n) for n in cells.values()])
    return TrainingBatches(codes, batch, n_levels=[2, 3], n_batches=3)


@pytest.mark.parametrize(
    ("code", "probability"),
    [
        ((0, 0), [0.75, 0.25, 0]),
        ((0, 1), [0.25, 0.75, 0]),
        ((0, 2), [0, 0, 1]),
        ((-1, 0), [10 / 16, 6 / 16, 0]),  # all cells that agree with what is given
        ((0, -1), [7 / 17, 5 / 17, 5 / 17]),
        ((-1, -1), [11 / 25, 9 / 25, 5 / 25]),
    ],
)
def test_batches_of_a_combination_are_those_of_its_cells(plates, code, probability):
    uniforms = np.random.default_rng(0).random((4_000, 2))
    batches, rules = plates.draw(np.tile(code, (4_000, 1)), uniforms)
    assert rules == [RULES[0]]
    by_batch(batches, probability)


def test_batches_of_an_unseen_combination_are_those_of_its_levels(plates):
    uniforms = np.random.default_rng(0).random((4_000, 2))
    batches, rules = plates.draw(np.tile([1, 1], (4_000, 1)), uniforms)
    assert rules == [RULES[1]]
    share = np.array([11, 9, 5]) / 25
    expected = share * (np.array([4, 4, 0]) / 8 / share) * (np.array([1, 3, 0]) / 4 / share)
    by_batch(batches, list(expected / expected.sum()))


def test_where_no_batch_has_all_levels_it_is_any_batch_of_training(plates):
    batches, rules = plates.draw(np.tile([1, 2], (4_000, 1)), np.random.default_rng(0).random((4_000, 2)))
    assert rules == [RULES[2]]
    by_batch(batches, [11 / 25, 9 / 25, 5 / 25])


def test_several_rules_are_said_in_their_order(plates):
    _, rules = plates.draw(np.array([[1, 2], [0, 0], [1, 1], [0, 0]]), np.full((4, 2), 0.5))
    assert rules == list(RULES)


def test_a_level_without_training_cells_tells_nothing():
    batches = TrainingBatches(np.array([[0, 0], [1, 0]]), np.array([0, 1]), n_levels=[2, 2], n_batches=2)
    drawn, rules = batches.draw(np.array([[1, 1]] * 9), np.linspace(0, 0.99, 18).reshape(9, 2))
    assert set(drawn) == {1}
    assert rules == [RULES[1]]


def test_cells_without_a_label_count_for_open_labels_alone():
    codes = np.array([[0]] * 4 + [[-1]] * 4)
    batches = TrainingBatches(codes, np.repeat([0, 1], 4), n_levels=[1], n_batches=2)
    uniforms = np.random.default_rng(0).random((1_000, 2))
    by_batch(batches.draw(np.full((1_000, 1), -1), uniforms)[0], [0.5, 0.5])
    by_batch(batches.draw(np.zeros((1_000, 1), dtype=int), uniforms)[0], [1, 0])


def test_drawn_cells_have_the_library_size_and_the_batch_of_one_cell():
    rng = np.random.default_rng(0)
    codes, batch = rng.integers(0, 2, size=(200, 2)), rng.integers(0, 3, 200)
    sizes = 1.0 + np.arange(200)  # by which the cell is known
    asked, uniforms = rng.integers(-1, 2, size=(300, 2)), rng.random((300, 2))
    drawn_sizes, seen = LibrarySizes(Conditions({"a": ["0", "1"], "b": ["0", "1"]}), codes, sizes).draw(
        asked, uniforms[:, 0]
    )
    drawn_batches, _ = TrainingBatches(codes, batch, [2, 2], 3).draw(asked, uniforms)
    assert seen.all()
    cell = drawn_sizes.astype(int) - 1
    np.testing.assert_array_equal(batch[cell], drawn_batches)
    assert ((codes[cell] == asked) | (asked == -1)).all()


# ---- the models


def counts(drug_plates: str) -> AnnData:
    """300 cells of two types: controls on plate p0, treated cells on the plates named; no treated cell of type b."""
    rng = np.random.default_rng(0)
    kind, treated = np.repeat(["a", "a", "b"], 100), np.repeat([False, True, False], 100)
    plate = np.where(treated, np.array(list(drug_plates))[np.arange(300) % len(drug_plates)], "0")
    x = rng.poisson(np.where(plate == "1", 12, 3)[:, None], size=(300, 12)).astype(np.float32)
    obs = pd.DataFrame({"kind": kind, "drug": np.where(treated, "drug", "none"), "plate": np.char.add("p", plate)})
    return AnnData(sparse.csr_matrix(x), obs=obs.set_index(np.char.add("cell_", np.arange(300).astype(str))))


@pytest.fixture(scope="module")
def nested(small, quiet) -> SCLDM:
    """The drug was measured on another plate than all controls."""
    adata = counts("1")
    SCLDM.setup_anndata(adata, condition_keys=["kind", "drug"], batch_key="plate")
    model = SCLDM(adata, **small)
    model.train(1, **quiet)
    return model


@pytest.mark.parametrize(
    ("conditions", "plates", "rule"),
    [
        ({"drug": "drug"}, {"p1"}, RULES[0]),
        ({"kind": "a", "drug": "drug"}, {"p1"}, RULES[0]),
        ({"kind": "b"}, {"p0"}, RULES[0]),
        (None, {"p0", "p1"}, RULES[0]),
        ({"kind": "b", "drug": "drug"}, {"p0", "p1"}, RULES[2]),  # type b was on one plate alone, the drug on the other
    ],
)
@pytest.mark.filterwarnings("ignore:No training cell of")
def test_a_condition_stays_in_its_batches(nested, conditions, plates, rule):
    cells = nested.sample(60, conditions, n_steps=1, progress_bar=False)
    assert set(cells.obs["plate"]) == plates
    assert cells.uns["sclatent"]["batch"] == rule
    if rule == RULES[0]:  # on plate p1 cells are four times as large
        small_ones = cells.obs["library_size"] < 70
        assert (small_ones == (cells.obs["plate"] == "p0")).all()


def test_what_is_known_of_batches_is_saved(nested, tmp_path):
    nested.save(tmp_path / "model")
    one, other = (m.sample(20, n_steps=1, progress_bar=False) for m in (nested, SCLDM.load(tmp_path / "model")))
    pd.testing.assert_frame_equal(one.obs, other.obs)


def test_a_condition_in_a_batch_that_never_had_it_is_said(nested):
    message = r"No training cell of drug='drug' has plate='p0'.*\({} of {} cells"
    with pytest.warns(UserWarning, match=message.format(5, 5)):
        cells = nested.sample(5, {"drug": "drug"}, batch="p0", n_steps=1, progress_bar=False)
    assert cells.uns["sclatent"]["batch"] == "given"
    with pytest.warns(UserWarning, match=message.format(200, 300)):
        nested.counterfactual(conditions={"drug": "drug"}, progress_bar=False)


def test_nothing_is_said_where_conditions_and_batches_are_crossed(nested, fit):
    crossed = fit(counts("01"), 1, setup={"condition_keys": ["kind", "drug"], "batch_key": "plate"})
    alone = fit(counts("1"), 1, setup={"condition_keys": ["kind", "drug"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        crossed.counterfactual(conditions={"drug": "drug"}, progress_bar=False)
        crossed.sample(5, {"drug": "drug"}, batch="p0", n_steps=1, progress_bar=False)
        crossed.sample(5, {"kind": "b", "drug": "drug"}, n_steps=1, progress_bar=False)
        nested.counterfactual(conditions={"drug": "none"}, indices=np.arange(100), progress_bar=False)
        made = alone.sample(5, {"kind": "b", "drug": "drug"}, n_steps=1, progress_bar=False)
    assert "batch" not in made.uns["sclatent"]


@pytest.mark.parametrize("cls", [DAED, JointDiffusion, JointLDM], ids=lambda cls: cls.__name__)
def test_a_label_stays_in_its_batches(cls, quiet, tmp_path):
    rng = np.random.default_rng(0)
    label = np.repeat(["one", "other", "unknown"], 30)
    plate = np.where(label == "one", "p0", np.where(label == "other", "p1", rng.choice(["p0", "p1"], 90)))
    obs = pd.DataFrame({"label": label, "plate": plate}, index=[f"cell_{i}" for i in range(90)])
    adata = AnnData(rng.normal(size=(90, 4)).astype(np.float32), obs=obs)
    cls.setup_anndata(adata, labels_key="label", batch_key="plate")
    model = cls(adata, denoiser_width=8, denoiser_blocks=1, n_heads=2)
    model.train(1, **quiet)
    model.save(tmp_path / "model")
    for each in (model, cls.load(tmp_path / "model")):
        cells = each.sample(40, "other", n_steps=1, progress_bar=False)
        assert set(cells.obs["plate"]) == {"p1"}
        assert cells.uns["sclatent"]["batch"] == RULES[0]
        assert set(each.sample(40, n_steps=1, progress_bar=False).obs["plate"]) == {"p0", "p1"}
    with pytest.warns(UserWarning, match=r"No training cell of label='other' has plate='p0'"):
        model.sample(2, "other", batch="p0", n_steps=1, progress_bar=False)
    with pytest.warns(UserWarning, match=r"No training cell of label='other' has plate='p0'"):
        model.counterfactual(conditions="other", indices=[0, 1], n_steps=1, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.counterfactual(conditions="one", indices=[0, 1], n_steps=1, progress_bar=False)
