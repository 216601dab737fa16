"""Groups are matched by name: names that are written in another way are told, and controls are shared where meant."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent.datasets import simulate
from sclatent.metrics import (
    evaluate_generation,
    evaluate_perturbation,
    evaluate_reconstruction,
    linear_shift,
    mean_shift,
)
from sclatent.pl import response

KEY = "cell_type"
QUICK = {"n_components": 5, "n_top": [], "floors": False, "progress_bar": False}


@pytest.fixture(scope="module")
def cells() -> AnnData:
    adata = simulate(180, 30, cell_types=["1", "2", "3"], library_size=300)
    adata.obs[KEY] = adata.obs[KEY].astype(str)
    return adata


@pytest.fixture(scope="module")
def control(cells) -> AnnData:
    return cells[cells.obs["condition"] == "control"].copy()


@pytest.fixture(scope="module")
def real(cells) -> AnnData:
    return cells[cells.obs["condition"] == "stimulated"].copy()


def renamed(adata: AnnData, new: Callable[[pd.Series], object] | object) -> AnnData:
    adata = adata.copy()
    adata.obs[KEY] = new(adata.obs[KEY]) if callable(new) else new
    return adata


OTHER_WAYS = {
    "numbers": lambda names: names.astype(int),
    "floats": lambda names: names.astype(float),
    "a blank": lambda names: names + " ",
    "categories": lambda names: pd.Categorical(names.astype(int)),
    "other names": lambda names: "type " + names,
}


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_control_groups_of_other_names_are_told(real, control, way):
    other = renamed(control, OTHER_WAYS[way])
    names = r"control.obs\['cell_type'\] has the groups \[.*none of those of real, \['1', '2', '3'\].*del control.obs"
    with pytest.warns(UserWarning, match=names):
        evaluate_perturbation(real, control, other, KEY, **QUICK)
    if str(other.obs[KEY].iloc[0]) not in ("1", "2", "3"):  # figures read names as text
        with pytest.warns(UserWarning, match=names):
            response(real, control, other, KEY, n_names=0)


def test_one_control_group_of_another_name_is_told_if_it_reads_as_one_of_real(real, control):
    one, other = real[real.obs[KEY] == "1"], control[control.obs[KEY] == "1"]
    with pytest.warns(UserWarning, match=r"has the groups \[1\], and none of those of real, \['1'\]"):
        evaluate_perturbation(one, other, renamed(other, 1), KEY, **QUICK)


def test_controls_that_are_shared_are_shared_without_a_word(real, control):
    """Perturbations with one control level, or none, or no column: the values are those of all control cells."""
    without, missing = control.copy(), renamed(control, None)
    del without.obs[KEY]
    tables = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="More than 5%")  # there are few control cells
        for shared in (without, renamed(control, "non-targeting"), missing):
            tables.append(evaluate_perturbation(real, control, shared, KEY, **QUICK)["value"])
        evaluate_perturbation(real, control, control, KEY, seen=real, **QUICK)  # own ones
    for values in tables[1:]:
        np.testing.assert_array_equal(values, tables[0])


def test_one_name_of_many_that_is_written_in_another_way_is_told(real, control):
    """It would leave the floors of other groups, or enter its own."""
    one = real[real.obs[KEY] == "1"]
    other = renamed(real, lambda names: names.replace("1", "1 "))
    control = control[control.obs[KEY] == "1"].copy()
    with pytest.warns(UserWarning, match=r"seen.obs\['cell_type'\] has \['1 '\], real has \['1'\].*seen.obs.*strip"):
        evaluate_perturbation(one, control, control, KEY, seen=other, **QUICK)
    seen = real[real.obs[KEY] != "1"]
    other = renamed(seen, lambda names: names.replace("2", "2 "))
    other = ad.concat([control, other])
    with pytest.warns(UserWarning, match=r"control.obs\['cell_type'\] has \['2 '\], real has \['2'\]"):
        evaluate_perturbation(one, control, other, KEY, seen=seen, **QUICK)


@pytest.mark.filterwarnings("ignore:Left out")
def test_generation_tells_of_names(cells):
    arguments = {"n_components": 5, "max_cells": 10, "progress_bar": False}
    other = renamed(cells, OTHER_WAYS["numbers"])
    with pytest.raises(ValueError, match=r"generated has 0 cells with cell_type='1'.*Is it 1 in generated\?"):
        evaluate_generation(cells, other, KEY, floors=False, **arguments)
    few = cells[cells.obs[KEY] == "1"][:30]
    with (
        pytest.warns(UserWarning, match=r"train.obs\['cell_type'\] has \[1.*real has \['1'"),
        pytest.raises(ValueError, match="generated has 5 cells"),
    ):
        evaluate_generation(few, few[:5], KEY, train=other, **arguments)


@pytest.mark.parametrize("shift", [mean_shift, linear_shift])
def test_a_group_that_is_held_out_under_another_name_is_refused(cells, shift):
    """It would enter its own floor."""
    with pytest.raises(ValueError, match=r"held_out=1 is no level of adata.obs\['cell_type'\], but '1' is"):
        shift(cells, "condition", "control", "stimulated", KEY, held_out=1)


@pytest.mark.parametrize("shift", [mean_shift, linear_shift])
def test_a_group_that_is_not_there_is_refused_as_held_out(cells, shift):
    with pytest.raises(
        ValueError, match=r"held_out='4' is no level of adata.obs\['cell_type'\], which has \['1', '2', "
    ):
        shift(cells, "condition", "control", "stimulated", KEY, held_out="4")


@pytest.mark.parametrize("dtype", ["float32", "Float32", "category"])
def test_numbers_are_the_same_group_in_any_precision(cells, real, control, dtype):
    def doses(adata: AnnData, dtype: str) -> AnnData:
        numbers = (adata.obs[KEY].astype(float) / 10).astype("float32" if dtype == "category" else dtype)
        return renamed(adata, numbers.astype(dtype))

    for shift in (mean_shift, linear_shift):
        expected = shift(cells, "condition", "control", "stimulated", KEY, held_out="1")
        for held_out in (0.1, np.float32(0.1)):
            found = shift(doses(cells, dtype), "condition", "control", "stimulated", KEY, held_out=held_out)
            np.testing.assert_array_equal(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="More than 5%")  # there are few control cells
        table = evaluate_perturbation(
            doses(real, dtype), doses(real, "float64"), doses(control, dtype), KEY, seen=doses(real, "float64"), **QUICK
        )
    assert list(table["condition"].unique()) == [0.1, 0.2, 0.3, "mean"]
    pd.testing.assert_frame_equal(
        table.drop(columns="condition"),
        evaluate_perturbation(real, real, control, KEY, seen=real, **QUICK).drop(columns="condition"),
    )


@pytest.mark.parametrize("name", ["all", "mean"])
def test_groups_that_have_the_name_of_a_summary_are_refused(real, control, name):
    bad = renamed(real, lambda names: names.replace("1", name))
    for evaluate in (
        lambda: evaluate_generation(bad, bad, KEY),
        lambda: evaluate_reconstruction(bad, bad, KEY),
        lambda: evaluate_perturbation(bad, bad, control, KEY),
    ):
        with pytest.raises(ValueError, match=rf"groupby='cell_type': real has the levels \['{name}'\].*rename them"):
            evaluate()


def test_a_real_group_that_a_prediction_lacks_is_told(real, control):
    with pytest.warns(UserWarning, match=r"Not in real and in every prediction, and left out: \['2'\]"):
        table = evaluate_perturbation(real, real[real.obs[KEY] != "2"].copy(), control, KEY, **QUICK)
    assert list(table["condition"].unique()) == ["1", "3", "mean"]


@pytest.mark.filterwarnings("error:train has no cells")  # which ends it there
def test_conditions_that_train_lacks_have_fewer_floors_and_that_is_told(cells):
    train = renamed(cells, lambda names: names.replace("1", "one"))
    left_out = "the floors 'cell mean', 'independent genes' and 'gene copula' are left"
    with pytest.raises(UserWarning, match=rf"no cells of \['1'\]: {left_out}"):
        evaluate_generation(cells, cells, KEY, train=train, n_components=5, max_cells=10, progress_bar=False)
