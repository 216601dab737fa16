"""Combinations that are asked for: what is not known of them is not made up, and what does nothing is said."""

from __future__ import annotations

import warnings
from itertools import product

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent.baseline import MixedModel
from sclatent.baseline._variances import few_levels
from sclatent.conditions import Category, Number, Set
from sclatent.data import Conditions
from sclatent.domain import LibrarySizes
from sclatent.model import SCLDM

pytestmark = pytest.mark.usefixtures("few_steps")

QUIET = {"accelerator": "cpu", "progress_bar": False}
SMALL = {
    "n_tokens": 2, "token_dim": 4, "width": 8, "n_blocks": 1, "n_heads": 2, "denoiser_width": 8, "denoiser_blocks": 1,
}  # fmt: skip


def trained(obs: pd.DataFrame, kinds: dict, total: int = 500) -> SCLDM:
    x = np.random.default_rng(0).multinomial(total, np.full(10, 0.1), len(obs)).astype(np.float32)
    adata = AnnData(x, obs=obs.set_axis(obs.index.astype(str)))
    SCLDM.setup_anndata(adata, condition_keys=kinds)
    model = SCLDM(adata, **SMALL)
    model.train(max_epochs=1, **QUIET)
    return model


def cells(rows: list[tuple], columns: list[str], n: int = 20) -> pd.DataFrame:
    return pd.DataFrame([row for row in rows for _ in range(n)], columns=columns)


@pytest.fixture(scope="module")
def of_dosed_sets() -> SCLDM:
    rows = [("DMSO", 0.0), *product("ABCDEF", (1.0, 10.0, 100.0))]
    kinds = {"drug": Set("+", control="DMSO"), "dose": Number("log1p", of="drug")}
    return trained(cells(rows, ["drug", "dose"]), kinds)


@pytest.fixture(scope="module")
def of_sets() -> SCLDM:
    rows = [("control",), ("A",), ("B",), ("C",), ("A+B",), ("B+C",)]
    return trained(cells(rows, ["perturbation"]), {"perturbation": Set("+", control="control")})


def test_a_pair_of_drugs_that_do_nothing_changes_nothing(of_dosed_sets):
    """All cells have 500 counts, and all genes the same mean."""
    made = of_dosed_sets.sample(30, {"drug": "A+B", "dose": 10.0}, progress_bar=False)
    assert made.obs["library_size"].between(400, 600).all()
    change = of_dosed_sets.predict_change({"drug": "A+B", "dose": 10.0}, {"drug": "DMSO", "dose": 0.0})
    assert change["change"].abs().max() < 0.5


def test_pairs_are_not_made_up_from_singles_alone():
    conditions = Conditions({"p": list("ABCDEFGH")}, kinds={"p": Set("+")})
    codes = np.repeat(np.arange(8), 10)[:, None]
    sizes = np.random.default_rng(0).lognormal(6.0, 0.1, 80)
    pair = conditions.encode("A+B")
    drawn, _ = LibrarySizes(conditions, codes, sizes).draw(np.repeat(pair, 20, axis=0), np.linspace(0, 0.99, 20))
    assert 300 < np.median(drawn) < 550


def test_an_extrapolated_library_size_stays_near_those_of_training():
    conditions = Conditions({"t": [0.0, 1.0, 2.0, 3.0]}, kinds={"t": Number()})
    codes, sizes = np.repeat(np.arange(4), 10)[:, None], np.repeat([100.0, 200.0, 400.0, 800.0], 10)
    for time in (-1000.0, 1000.0):
        with pytest.warns(UserWarning, match="beyond the numbers of training"):
            asked = conditions.encode(time)
        drawn, _ = LibrarySizes(conditions, codes, sizes).draw(asked, np.array([0.5]))
        assert 49 < drawn[0] < 1601


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_means_without_noise_that_fixed_effects_explain(scale):
    means = scale * np.array([[1.0], [2.0], [3.0]])
    model = MixedModel([2, 2], 1).fit(np.array([[0, 0], [0, 1], [1, 0]]), np.ones(3), means)
    np.testing.assert_allclose(model.predict([[1, 1]]), 4 * scale, rtol=1e-5)


def test_variances_are_estimated_on_several_levels_of_every_key():
    for n_levels in ([8] * 4, [25] * 3, [50, 400], [3, 5000]):
        codes = np.array(list(product(*map(range, n_levels))))
        rows = few_levels(codes, 500)
        assert 100 <= len(rows) <= 500
        assert min(len(np.unique(column)) for column in codes[rows].T) >= 3
    np.testing.assert_array_equal(few_levels(codes[:400], 500), np.arange(400))


def test_the_unit_of_doses_does_not_matter():
    def number(unit: float) -> np.ndarray:
        conditions = Conditions({"dose": [unit * x for x in (0, 1, 10, 100)]}, kinds={"dose": Number("log1p")})
        conditions.encode(unit * 30.0)
        return conditions.values()[0].number.numpy()

    np.testing.assert_allclose(number(1.0), number(1000.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("number", "levels", "inside", "outside"),
    [
        (Number(), [1.0, 2.0, 3.0], [1.5, float(np.nextafter(3.0, 4.0))], [0.95, 3.05]),
        (Number("log1p"), [1.0, 10.0, 100.0], [1.5], [0.0, 0.9, 101.0]),
        (Number("log1p", of="drug"), [0.0, 1.0, 100.0], [0.01, 50.0], [101.0]),  # at 0 there is no effect
        (Number(of="drug"), [1.0, 2.0, 3.0], [1.5], [0.0, 0.95]),  # and here no cell without one
    ],
)
def test_numbers_outside_of_the_measured_range_give_a_warning(number, levels, inside, outside):
    conditions = Conditions({"drug": ["A"], "x": levels}, kinds={"x": number})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in (*levels, *inside):
            conditions.encode({"x": x})
    for x in outside:
        with pytest.warns(UserWarning, match=rf"x={x} is beyond the numbers of training, which go from {levels[0]:g}"):
            conditions.encode({"x": x})


def test_a_set_that_is_larger_than_all_measured_ones_is_compared_with_none(of_sets):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = of_sets.sample(2, "A+B+C", progress_bar=False)
    assert not np.any(made.uns["sclatent"]["is_mean_of_others"])


def test_a_pair_at_a_dose_of_0_is_not_said_to_be_like_the_others():
    """The drugs do nothing, so that at any other dose it is."""
    rows = [("DMSO", 0.0), *product(["A", "B", "C", "A+B", "B+C"], (1.0, 10.0))]
    kinds = {"drug": Set("+", control="DMSO"), "dose": Number("log1p", of="drug")}
    model = trained(cells(rows, ["drug", "dose"]), kinds)
    with pytest.warns(UserWarning, match="differs from the mean of the others by less"):
        model.sample(2, {"drug": "A+C", "dose": 10.0}, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.sample(2, {"drug": "A+C", "dose": 0.0}, progress_bar=False)


def test_guidance_of_a_member_that_is_not_asked_for_gives_a_warning(of_sets):
    with pytest.warns(UserWarning, match=r"guidance_weight pushes 'C', which none of the sets of 'perturbation'"):
        of_sets.sample(2, "A+B", guidance_weight={"perturbation": {"C": 2.0}}, progress_bar=False)


def test_uns_keeps_the_weight_that_was_asked_for(of_sets):
    weight = {"perturbation": {"A": 2.0}}
    made = of_sets.sample(2, "A+B", guidance_weight=weight, progress_bar=False)
    weight["perturbation"]["A"] = 99.0
    assert made.uns["sclatent"]["guidance_weight"] == {"perturbation": {"A": 2.0}}


def test_members_with_slashes_survive_a_file(tmp_path):
    rows = [("control",), ("A/x",), ("B",), ("A/x+B",)]
    model = trained(cells(rows, ["perturbation"]), {"perturbation": Set("+", control="control")})
    made = model.sample(2, "A/x+B", guidance_weight={"perturbation": {"A/x": 2.0}}, progress_bar=False)
    made.write_zarr(tmp_path / "cells.zarr")
    assert "A/x" in ad.read_zarr(tmp_path / "cells.zarr").uns["sclatent"]["guidance_weight"]["perturbation"]


def test_uns_says_how_many_combinations_were_asked_for_and_leaves_null_keys_out():
    model = trained(cells(list(product("ab", "xyz")), ["one", "two"]), {"one": Category(), "two": Category()})
    said = model.sample(4, {"two": "x"}, progress_bar=False).uns["sclatent"]
    assert said["combinations"] == ["two=x"]
    assert said["n_combinations"] == 1
    assert model.sample(2, progress_bar=False).uns["sclatent"]["combinations"] == ["null conditions"]


def test_a_vehicle_without_a_dose_was_seen(of_dosed_sets):
    assert of_dosed_sets.get_sources({"drug": "DMSO"})["n_training_cells"].iloc[0] > 10


def test_cells_that_keep_a_dose_of_0_are_counted(of_dosed_sets):
    adata = of_dosed_sets.adata[[0, 1, 30, 31]].copy()
    with pytest.warns(UserWarning, match=r"'dose' of 2 of these cells is 0"):
        of_dosed_sets.counterfactual(adata, {"drug": "B"}, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of_dosed_sets.counterfactual(adata[:2].copy(), {"drug": "DMSO"}, progress_bar=False)
