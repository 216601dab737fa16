"""How sure predictions of a mixed model are of values that training tells little or nothing of."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sclatent.baseline import MixedModel, reml
from sclatent.conditions import Category, Number, Set
from sclatent.data import Conditions
from sclatent.data._kinds import FeatureTable, Kind

N_OUTCOMES = 300


class Fitted:
    """A mixed model of one key, of means of many cells."""

    def __init__(
        self, kind: Kind, levels: list, means: np.ndarray, features: pd.DataFrame | None = None, noise: float = 0.01
    ) -> None:
        names = sorted({m for level in levels for m in kind.members_of(level)}) if isinstance(kind, Set) else levels
        tables = None if features is None else {"key": FeatureTable.of(features, "features", names)}
        self.conditions = Conditions({"key": levels}, kinds={"key": kind}, features=tables)
        n, codes = np.full(len(levels), 100), np.arange(len(levels))[:, None]
        values = self.conditions.values()
        self.model = MixedModel([len(levels)], means.shape[1]).fit(codes, n, means, noise, values)

    def mean(self, level) -> np.ndarray:
        return self.model.predict(self.conditions.encode(level), self.conditions.values())[0]

    def covariance(self, *levels) -> np.ndarray:
        codes = np.vstack([self.conditions.encode(level) for level in levels])
        return self.model.covariance(codes, self.conditions.values()) * float(self.model.outcome_scale.mean())

    def sd(self, level) -> float:
        return float(np.sqrt(self.covariance(level)[0, 0]))


def spread(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean()))


# ---- sets of sizes that nobody measured


def test_what_members_do_on_average_is_not_known_from_sets_of_one_size():
    rng = np.random.default_rng(0)
    names = [f"G{i}" for i in range(20)]
    shared, base = 0.7 * rng.standard_normal(N_OUTCOMES), 3 * rng.standard_normal(N_OUTCOMES)
    effects = shared + 0.5 * rng.standard_normal((20, N_OUTCOMES))
    of_singles = Fitted(Set("+"), names, base + effects)
    single, pair, triple = (of_singles.sd(level) for level in ("G0", "G0+G1", "G0+G1+G2"))
    error = spread(of_singles.mean("G0+G1+G2") - base - effects[:3].sum(axis=0))
    assert 3 * single < pair < triple
    assert error < 1.6 * triple
    one, other = of_singles.covariance("G0+G1+G2", "G0+G1+G3")
    assert one[0] + other[1] - 2 * one[1] < one[0]  # it is the same in both
    with_control = Fitted(Set("+", control="no"), ["no", *names], np.vstack([base, base + effects]))
    assert with_control.sd("G0+G1+G2") < triple
    assert spread(with_control.mean("G0+G1+G2") - base - effects[:3].sum(axis=0)) < error


def test_a_pair_is_the_sum_of_its_members_where_these_were_measured_one_by_one():
    """Half of what a member does would be lost, if it were taken for what its set does for itself."""
    rng = np.random.default_rng(1)
    names = [f"G{i}" for i in range(20)]
    effects = 0.3 + 0.5 * rng.standard_normal((20, N_OUTCOMES))
    means = np.vstack([np.zeros(N_OUTCOMES), effects])
    of_singles = Fitted(
        Set("+", control="no"), ["no", *names], means + 0.1 * rng.standard_normal(means.shape), noise=1.0
    )
    errors = [of_singles.mean(f"G{i}+G{i + 1}") - effects[i] - effects[i + 1] for i in range(10)]
    assert spread(errors) < 0.25
    assert 0.7 * spread(errors) < of_singles.sd("G0+G1") < 1.4 * spread(errors)
    assert [effect[0].map for effect in of_singles.model.effects] == ["members"]


def test_what_sets_do_beside_their_members_is_known_from_sets_that_share_them():
    rng = np.random.default_rng(2)
    levels = [f"G{i}+G{j}" for i in range(8) for j in range(i)]
    fitted = Fitted(Set("+"), levels, rng.standard_normal((len(levels), N_OUTCOMES)))
    variances = {
        effect[0].map: float(v) for effect, v in zip(fitted.model.effects, fitted.model.variances, strict=True)
    }
    assert variances["own"] > 0.8
    assert variances["members"] + variances["together"] < 0.2


def test_an_effect_that_no_value_has_gets_no_variance():
    """From any start the likelihood is the same, whatever it is."""
    rng = np.random.default_rng(0)
    of_level, nothing = np.eye(20), np.zeros((20, 20))
    variances = reml([of_level, nothing], np.ones((20, 1)), 2 * rng.standard_normal((20, 50)), np.full(20, 0.1))
    assert variances[0] > 2
    assert variances[1] == 0


# ---- features that say nothing


@pytest.mark.parametrize("nothing", [0.0, np.nan])
def test_a_member_without_features_is_as_unknown_as_one_can_be(nothing):
    """Features tell almost all of what members do, but of two members they are not there."""
    rng = np.random.default_rng(1)
    names, new = [f"G{i}" for i in range(40)], [f"N{i}" for i in range(10)]
    table = pd.DataFrame(1.0 + rng.standard_normal((50, 4)), index=[*names, *new])
    effects = table.to_numpy() @ rng.standard_normal((4, N_OUTCOMES)) + 0.2 * rng.standard_normal((50, N_OUTCOMES))
    table.loc["nothing"] = table.loc["G5"] = nothing
    means = np.vstack([np.zeros(N_OUTCOMES), effects[:40]])
    fitted = Fitted(Set("+", control="no", features=table), ["no", *names], means, table)
    of_members, mean = spread(effects - effects.mean(axis=0)), effects[:40].mean(axis=0)
    assert np.mean([fitted.sd(name) for name in new]) < 0.2 * of_members
    assert 0.7 * of_members < fitted.sd("nothing") < 1.5 * of_members
    assert spread(fitted.mean("nothing") - mean) < 0.3 * of_members
    assert fitted.sd("G5") < 0.2 * of_members  # it was measured
    assert spread(fitted.mean("G5") - effects[5]) < 0.2 * of_members
    covariance = fitted.covariance("nothing", "nothing+G3")
    assert covariance[0, 1] > 0.8 * covariance[0, 0]  # they share it


def test_a_level_without_features_is_as_unknown_as_one_can_be():
    rng = np.random.default_rng(2)
    names, new = [f"D{i}" for i in range(40)], [f"N{i}" for i in range(10)]
    table = pd.DataFrame(rng.standard_normal((50, 4)), index=[*names, *new])
    effects = table.to_numpy() @ rng.standard_normal((4, N_OUTCOMES)) + 0.2 * rng.standard_normal((50, N_OUTCOMES))
    table.loc["nothing"] = table.loc["D5"] = np.nan
    fitted = Fitted(Category(features=table), names, effects[:40], table)
    assert np.mean([fitted.sd(name) for name in new]) < 0.2 * spread(effects)
    assert 0.7 * spread(effects) < fitted.sd("nothing") < 1.5 * spread(effects)
    assert fitted.sd("D5") < 0.2 * spread(effects)


def test_features_may_lack_in_part_of_the_names_alone():
    table = pd.DataFrame({"a": [1.0, 2.0, np.nan], "b": [0.0, 1.0, 1.0]}, index=["x", "y", "z"])
    with pytest.raises(ValueError, match="those of 'z' are not; or NaN in all columns, where nothing is known"):
        FeatureTable.of(table, "features", ["x", "y"])
    table = table.assign(b=[0.0, 1.0, np.nan])
    kept = FeatureTable.of(table, "features", ["x", "y", "z"])
    assert np.isnan(kept.rows(["x", "z"])).all(axis=1).tolist() == [False, True]
    assert kept.with_more(table.loc[["z"]], "features").names == ("x", "y", "z")
    with pytest.raises(ValueError, match="they tell nothing apart"):
        FeatureTable.of(table, "features", ["z"])


def test_a_level_that_is_unlike_all_others_is_as_unknown_as_one_can_be():
    """What levels do is no linear function of their feature, of which landmarks tell less the further away it is."""
    rng = np.random.default_rng(3)
    x = np.sort(rng.uniform(0, 1, 60))
    effects = np.sin(8 * x[:, None] + rng.uniform(0, 6.28, N_OUTCOMES))
    names = [f"D{i}" for i in range(60)]
    table = pd.DataFrame({"feature": [*x, 0.5, 3.0]}, index=[*names, "near", "far"])
    fitted = Fitted(Category(features=table), names, effects, table)
    assert fitted.sd("near") < 0.3 * spread(effects)
    assert fitted.sd("far") > 0.8 * spread(effects)


def test_a_time_far_from_all_others_is_less_known_than_a_time_can_be_in_their_range():
    """Its smooth effect has all of its variance, and the linear one is extrapolated."""
    rng = np.random.default_rng(4)
    times = np.linspace(0, 1, 25)
    effects = np.sin(8 * times[:, None] + rng.uniform(0, 6.28, N_OUTCOMES))
    fitted = Fitted(Number(), times.tolist(), effects)
    assert fitted.sd(0.52) < 0.3 * spread(effects)
    with pytest.warns(UserWarning, match="beyond the numbers of training"):
        assert fitted.sd(1.8) ** 2 > float(fitted.model.variances[0] * fitted.model.outcome_scale.mean())
