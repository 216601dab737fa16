"""Conditions that nobody measured: sets of members, numbers, and levels that are known by their features."""

from __future__ import annotations

import copy
import pickle
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent.baseline import MixedModel
from sclatent.conditions import Category, Number, Set
from sclatent.data import Conditions
from sclatent.data._kinds import FeatureTable
from sclatent.model import DAED, SCLDM, JointDiffusion, JointLDM

QUIET = {"accelerator": "cpu", "progress_bar": False}
SMALL = {"n_tokens": 4, "token_dim": 8, "width": 32, "denoiser_width": 32, "denoiser_blocks": 1}
N_GENES = 40
GENES = [f"P{i}" for i in range(10)]
PAIRS = ["P0+P1", "P2+P3", "P4+P5", "P6+P7", "P8+P9", "P0+P2", "P1+P3"]
DRUGS = {"D0": 1.0, "D1": 10.0, "D2": 4.0}
DOSES = [0.1, 0.3, 1.0, 10.0, 30.0, 100.0]

world = np.random.default_rng(0)
EXPRESSION = 5 * world.gamma(1.0, 1.0, N_GENES) + 0.5
FEATURES = pd.DataFrame(world.standard_normal((13, 3)), index=[*GENES, "N0", "N1", "N2"])
OF_FEATURES = 0.4 * world.standard_normal((3, N_GENES))
OF_DRUG = 0.8 * world.standard_normal((3, N_GENES))


def cells(log_effect: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Counts of cells of two states, under an effect on the logarithm of expression."""
    rng = np.random.default_rng(seed)
    state = rng.integers(0, 2, n)[:, None] * np.linspace(-0.5, 0.5, N_GENES)
    mean = EXPRESSION * np.exp(log_effect + state)
    return rng.poisson(600 * mean / mean.sum(axis=1, keepdims=True)).astype(np.float32)


def of_set(level: str) -> np.ndarray:
    members = [] if level == "control" else level.split("+")
    return sum((FEATURES.loc[m].to_numpy() @ OF_FEATURES for m in members), np.zeros(N_GENES))


def of_dose(drug: str, dose: float) -> np.ndarray:
    if drug == "vehicle":
        return np.zeros(N_GENES)
    return OF_DRUG[list(DRUGS).index(drug)] * dose / (dose + DRUGS[drug])


def profile(x: np.ndarray) -> np.ndarray:
    x = x.toarray() if hasattr(x, "toarray") else x
    return np.log1p(1e4 * x.sum(axis=0) / x.sum())


def perturbed() -> AnnData:
    levels = ["control", *GENES, *PAIRS]
    x = np.vstack([cells(of_set(level), 60, seed) for seed, level in enumerate(levels)])
    return AnnData(x, obs=pd.DataFrame({"perturbation": np.repeat(levels, 60)}, index=[f"c{i}" for i in range(len(x))]))


def dosed() -> AnnData:
    rows = [("vehicle", 0.0), *((drug, dose) for drug in DRUGS for dose in DOSES)]
    x = np.vstack([cells(of_dose(*row), 50, seed) for seed, row in enumerate(rows)])
    obs = pd.DataFrame([row for row in rows for _ in range(50)], columns=["drug", "dose"])
    return AnnData(x, obs=obs.set_index(obs.index.astype(str)))


@pytest.fixture(scope="module")
def of_sets() -> SCLDM:
    adata = perturbed()
    SCLDM.setup_anndata(adata, condition_keys={"perturbation": Set("+", control="control", features=FEATURES)})
    model = SCLDM(adata, **SMALL)
    model.train(max_epochs=15, **QUIET)
    return model


@pytest.fixture(scope="module")
def of_doses() -> SCLDM:
    adata = dosed()
    SCLDM.setup_anndata(adata, condition_keys={"drug": Category(), "dose": Number("log1p", of="drug")})
    model = SCLDM(adata, **SMALL)
    model.train(max_epochs=15, **QUIET)
    return model


def change(model: SCLDM, conditions, control: np.ndarray) -> np.ndarray:
    return profile(model.sample(300, conditions, progress_bar=False).X) - control


# ---- sets and features


@pytest.mark.parametrize("level", ["P4+P7", "N0", "P3+N1"], ids=["unseen pair", "unseen gene", "pair with it"])
def test_what_was_never_perturbed_is_predicted(of_sets, level):
    control, real = profile(cells(of_set("control"), 4000, 90)), profile(cells(of_set(level), 4000, 91))
    made = change(of_sets, level, control)
    assert np.corrcoef(made, real - control)[0, 1] > 0.85
    others = [profile(cells(of_set(other), 2000, 92)) - control for other in GENES]
    assert np.square(made - (real - control)).mean() < np.square(np.mean(others, axis=0) - (real - control)).mean() / 2


def test_guidance_pushes_one_member_of_a_set(of_sets):
    def mean(weight) -> np.ndarray:
        return profile(of_sets.sample(300, "P4+P7", guidance_weight=weight, progress_bar=False).X)

    plain, pushed = mean(1.0), mean({"perturbation": {"P4": 3.0}})
    along = [np.corrcoef(pushed - plain, of_set(member))[0, 1] for member in ("P4", "P7")]
    assert along[0] > 0.7 > abs(along[1])
    np.testing.assert_array_equal(mean({"perturbation": {"P4": 1.0}}), plain)
    np.testing.assert_allclose(mean({"perturbation": {"P0": 3.0}}), plain, rtol=1e-3)  # which is not in the set
    made = of_sets.sample(2, "P4+P7", guidance_weight={"perturbation": {"P4": 3.0}}, progress_bar=False)
    assert made.uns["sclatent"]["guidance_weight"] == {"perturbation": {"P4": 3.0}}


def test_members_that_guidance_cannot_push_are_refused(of_sets, of_doses):
    with pytest.raises(ValueError, match=r"guidance_weight: 'P99' is no member of 'perturbation'"):
        of_sets.sample(2, "P4+P7", guidance_weight={"perturbation": {"P99": 2.0}}, progress_bar=False)
    with pytest.raises(ValueError, match=r"guidance_weight=.* must be a finite number.*one per member"):
        of_sets.sample(2, "P4+P7", guidance_weight={"perturbation": {"P4": "much"}}, progress_bar=False)
    conditions = {"drug": "D0", "dose": 1.0}
    with pytest.raises(ValueError, match=r"guidance_weight: 'drug' is no set, so that it has no member 'D0'"):
        of_doses.sample(2, conditions, guidance_weight={"drug": {"D0": 2.0}}, progress_bar=False)


def test_the_order_of_members_does_not_matter(of_sets):
    one, same = (of_sets.sample(5, level, progress_bar=False) for level in ("P4+P7", "P7+P4"))
    assert (one.X != same.X).nnz == 0
    assert one.obs["perturbation"].tolist() == ["P4+P7"] * 5


def test_counterfactuals_go_to_conditions_that_nobody_measured(of_sets):
    controls = of_sets.adata[of_sets.adata.obs["perturbation"] == "control"].copy()
    moved = of_sets.counterfactual(controls, "N0", progress_bar=False)
    real = profile(cells(of_set("N0"), 4000, 91)) - profile(cells(of_set("control"), 4000, 90))
    assert np.corrcoef(profile(moved.X) - profile(controls.X), real)[0, 1] > 0.85
    assert (moved.obs["perturbation"] == "N0").all()


def test_saved_models_make_the_same_cells_and_obs_goes_to_a_file(of_sets, of_doses, tmp_path):
    for name, model, conditions in (("sets", of_sets, "P3+N1"), ("doses", of_doses, {"drug": "D1", "dose": 4.0})):
        model.save(tmp_path / name)
        again = SCLDM.load(tmp_path / name)
        one, same = (m.sample(5, conditions, progress_bar=False, seed=3) for m in (model, again))
        assert (one.X != same.X).nnz == 0
        one.write_h5ad(tmp_path / f"{name}.h5ad")
        pd.testing.assert_frame_equal(ad.read_h5ad(tmp_path / f"{name}.h5ad").obs, one.obs)


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("XX", r"'XX' is no level of 'perturbation': its member 'XX' was not measured, and has no features"),
        ("P1+P1", r"'P1\+P1' has the member 'P1' twice"),
        ("P1++P2", r"'P1\+\+P2' has an empty member between delimiters '\+'"),
        (3, "3 is no text: names of members and"),
    ],
)
def test_sets_that_cannot_be_are_refused(of_sets, level, message):
    with pytest.raises(ValueError, match=message):
        of_sets.sample(2, level)


def test_a_set_of_known_members_needs_no_features():
    adata = perturbed()
    SCLDM.setup_anndata(adata, condition_keys={"perturbation": Set(control="control")})
    model = SCLDM(adata, **SMALL)
    model.train(max_epochs=2, **QUIET)
    assert model.sample(3, "P4+P7", progress_bar=False).n_obs == 3
    with pytest.raises(ValueError, match="its member 'N0' was not measured"):
        model.sample(3, "N0")


# ---- numbers


@pytest.mark.parametrize("drug", DRUGS)
def test_doses_between_measured_ones_are_predicted(of_doses, drug):
    control = profile(cells(of_dose("vehicle", 0.0), 4000, 90))
    for dose in (3.0, 17.0):
        real = profile(cells(of_dose(drug, dose), 4000, 91)) - control
        made = change(of_doses, {"drug": drug, "dose": dose}, control)
        assert np.square(made - real).mean() < 0.1 * np.square(real).mean() + 0.01


def test_no_drug_has_an_effect_at_a_dose_of_0(of_doses):
    one, other, vehicle = (
        of_doses.sample(20, {"drug": drug, "dose": 0.0}, progress_bar=False) for drug in ("D0", "D1", "vehicle")
    )
    assert (one.X != other.X).nnz == 0
    assert (one.X != vehicle.X).nnz == 0
    assert one.obs["drug"].tolist() == ["D0"] * 20
    assert one.obs["dose"].tolist() == [0.0] * 20


def test_numbers_beyond_the_measured_ones_give_a_warning(of_doses):
    with pytest.warns(UserWarning, match=r"dose=1000.0 is beyond the numbers of training, which go from 0 to 100"):
        of_doses.sample(2, {"drug": "D0", "dose": 1000.0}, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of_doses.sample(2, {"drug": "D0", "dose": 55.5}, progress_bar=False)


@pytest.mark.parametrize(("dose", "message"), [("high", "no finite number"), (np.inf, "no finite"), (-1.0, "below 0")])
def test_numbers_that_cannot_be_are_refused(of_doses, dose, message):
    with pytest.raises(ValueError, match=rf"is no level of 'dose': .*{message}"):
        of_doses.sample(2, {"drug": "D0", "dose": dose})


def test_models_of_embeddings_take_numbers():
    rng = np.random.default_rng(0)
    time = rng.uniform(0, 10, 900).round(1)
    x = rng.standard_normal((900, 6)).astype(np.float32)
    x[:, 0] += np.sin(time / 2) * 4
    adata = AnnData(x, obs=pd.DataFrame({"time": time}, index=[f"c{i}" for i in range(900)]))
    adata = adata[(time < 4) | (time > 6)].copy()
    JointLDM.setup_anndata(adata, condition_keys={"time": Number()})
    model = JointLDM(adata, denoiser_width=32, denoiser_blocks=1)
    model.train({"autoencoder": 5, "diffusion": 20}, plan_kwargs={"diffusion": {"lr": 5e-3}}, **QUIET)
    for at in (1.0, 5.03, 9.0):
        made = np.asarray(model.sample(300, {"time": at}, progress_bar=False).X)[:, 0].mean()
        assert abs(made - 4 * np.sin(at / 2)) < 1.0


# ---- how sure


def test_profiles_are_predicted_with_how_sure_they_are(of_sets):
    within = []
    for seed, level in enumerate(("P4+P7", "N0", "N1", "N2", "P3+N1")):
        predicted = of_sets.predict_profile(level)
        real = profile(cells(of_set(level), 5000, 50 + seed))
        within.append((np.abs(real - predicted["mean"]) < 1.645 * predicted["sd"]).mean())
    assert 0.7 < np.mean(within) < 1.0
    seen, unseen = (of_sets.predict_profile(level)["sd"].mean() for level in ("P0", "N0"))
    assert seen < unseen / 1.5
    assert of_sets.predict_profile("N0", n_cells=20)["sd"].mean() > 1.05 * unseen


def test_changes_come_with_intervals_the_most_certain_first(of_sets):
    table = of_sets.predict_change("N0", "control")
    real = profile(cells(of_set("N0"), 5000, 50)) - profile(cells(of_set("control"), 5000, 51))
    assert (np.diff(table["z"].abs()) <= 0).all()
    certain = table[:10]
    assert (np.sign(certain["change"]) == np.sign(real[certain.index.astype(int)])).all()
    narrow = of_sets.predict_change("N0", "control", level=0.5).loc[table.index]
    assert ((narrow["upper"] - narrow["lower"]) < (table["upper"] - table["lower"])).all()
    with pytest.raises(ValueError, match="has 2 rows: give one combination"):
        of_sets.predict_profile(["P0", "P1"])


def test_a_change_that_is_certain_has_an_infinite_z(of_sets, monkeypatch):
    monkeypatch.setattr(MixedModel, "covariance", lambda self, codes, values: np.zeros((2, 2)))
    table = of_sets.predict_change("N0", "control")
    assert (table["z"] == np.inf * np.sign(table["change"])).all()
    assert (of_sets.predict_change("N0", "N0")["z"] == 0).all()


def test_features_that_tell_nothing_do_not_make_an_unseen_member_certain():
    """What is not known of a member is as large as members differ, whether it shares features with others or not."""
    rng = np.random.default_rng(0)
    names = [f"G{i}" for i in range(40)]
    table = pd.DataFrame(rng.standard_normal((42, 3)), index=[*names, "N0", "N1"])
    kind = Set(control="control")
    conditions = Conditions(
        {"perturbation": ["control", *names]},
        kinds={"perturbation": kind},
        features={"perturbation": FeatureTable.of(table, "features", names)},
    )
    means = np.vstack([np.zeros(300), rng.standard_normal((40, 300))])
    model = MixedModel([41], 300)
    model.fit(np.arange(41)[:, None], np.full(41, 100), means, noise=1.0, values=conditions.values())
    for level, expected in (("G3", 0.1), ("N0", 1.0), ("N0+N1", 2**0.5), ("N0+G3", 1.0)):
        codes = conditions.encode(level)
        sd = np.sqrt(model.covariance(codes, conditions.values())[0, 0] * float(model.outcome_scale.mean()))
        assert 0.8 * expected < sd < 1.5 * expected, level  # of pairs, which nobody measured, a little more
    codes = np.vstack([conditions.encode(level) for level in ("N0", "N0+N1")])
    covariance = model.covariance(codes, conditions.values())
    assert covariance[0, 1] > 0.5 * covariance[0, 0]  # they share a member that nobody measured


def test_profiles_need_a_mixed_model_of_genes():
    adata = perturbed()
    SCLDM.setup_anndata(adata, condition_keys="perturbation")
    model = SCLDM(adata, gene_effects=False, **SMALL)
    model.train(max_epochs=1, **QUIET)
    with pytest.raises(RuntimeError, match=r"no mixed model of genes: make it with .* gene_effects=True"):
        model.predict_profile("P0")


# ---- what cannot be set up


def features(**changed) -> pd.DataFrame:
    return FEATURES.assign(**changed)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Set(control="vehicle"), r"control='vehicle' is no level of adata.obs\['perturbation'\]"),
        (Set("P", control="control"), "has an empty member between delimiters 'P'"),
        (Set(control="control", features=FEATURES.drop("P3")), r"features has no row for \['P3'\], 1 of 10 names"),
        (Set(control="control", features=features(**{"0": np.nan})), "must be finite numbers"),
        (Set(control="control", features=FEATURES * 0), "are the same for all 10 names"),
        (Set(control="control", features=features(name="x")), "features must be numbers alone"),
        (Set(control="control", features=pd.concat([FEATURES, FEATURES[:1]])), "features has 'P0' twice"),
        (Set(control="control", features=[1, 2]), r"must be a DataFrame with one row per level"),
        (Number(), "is no finite number"),
        ("category", r"the kind of 'perturbation' is 'category': one of sclatent.conditions was expected"),
        (Number(of="drug"), r"'perturbation' is a dose of='drug', which is none of the other keys"),
    ],
)
def test_kinds_that_do_not_fit_are_refused_before_any_work(kind, message):
    adata = perturbed()
    with pytest.raises(ValueError, match=message):
        SCLDM.setup_anndata(adata, condition_keys={"perturbation": kind})
    assert not [key for key in adata.uns if key.startswith("_scvi")]


def test_features_may_lie_in_uns():
    adata = perturbed()
    with pytest.raises(KeyError, match=r"features='genes' is not in adata.uns"):
        SCLDM.setup_anndata(adata, condition_keys={"perturbation": Set(control="control", features="genes")})
    adata.uns["genes"] = FEATURES
    SCLDM.setup_anndata(adata, condition_keys={"perturbation": Set(control="control", features="genes")})
    assert SCLDM(adata, **SMALL).conditions.values()[0].features.shape[1] == 3


@pytest.mark.parametrize("wrong", [{"scale": "log"}, {"scale": 3}])
def test_a_scale_that_is_not_known_is_refused(wrong):
    with pytest.raises(ValueError, match="must be 'linear' or 'log1p'"):
        Number(**wrong)


# ---- what is said of what was asked for


def test_further_features_may_be_given_when_cells_are_asked_for(of_sets):
    more = pd.DataFrame([[0.1, 0.5, -0.2]], index=["N9"], columns=FEATURES.columns)
    with pytest.raises(ValueError, match="its member 'N9' was not measured"):
        of_sets.sample(2, "N9")
    assert of_sets.sample(3, "N9+P1", features={"perturbation": more}, progress_bar=False).n_obs == 3
    same = pd.DataFrame([FEATURES.loc["P0"]], index=["N10"])
    of_sets.sample(2, "N10", features={"perturbation": same}, progress_bar=False)
    values = of_sets.conditions.values()[0].features
    spaces = of_sets.conditions.spaces["perturbation"]
    np.testing.assert_allclose(values[spaces.code("N10", "")], values[spaces.code("P0", "")], rtol=1e-4)
    for wrong, message in (
        (more.iloc[:, :2], r"features has the columns .*; those of training are"),
        (more.set_axis(["P0"]), "has a row for 'P0', which has other values already"),
    ):
        with pytest.raises(ValueError, match=message):
            of_sets.sample(2, "P0", features={"perturbation": wrong})
    with pytest.raises(KeyError, match=r"features: 'drug' is no condition of this model"):
        of_sets.sample(2, "P0", features={"drug": more})


def test_uns_says_how_many_training_cells_a_combination_has(of_sets):
    cells_of = of_sets.sample(conditions=["P0", "P4+P7"], progress_bar=False).uns["sclatent"]
    n = dict(zip(cells_of["combinations"], cells_of["n_training_cells"], strict=True))
    is_training = of_sets.adata.obs["perturbation"].iloc[of_sets.train_indices_]
    assert n == {"perturbation=P0": int((is_training == "P0").sum()), "perturbation=P4+P7": 0}


@pytest.mark.parametrize(("gene_effects", "method"), [(True, "predict_profile"), (False, "get_sources")])
def test_a_prediction_that_is_only_the_mean_of_the_others_gives_a_warning(of_sets, gene_effects, method):
    """Of a gene whose features have nothing to do with what genes do, nothing is known but the mean of the others."""
    adata = perturbed()
    noise = pd.DataFrame(np.random.default_rng(6).standard_normal(FEATURES.shape), index=FEATURES.index)
    SCLDM.setup_anndata(adata, condition_keys={"perturbation": Set(control="control", features=noise)})
    model = SCLDM(adata, gene_effects=gene_effects, **SMALL)
    model.train(max_epochs=1, **QUIET)
    said = rf"What is predicted of \['N0'\] differs from the mean of the others by less.* {method} says"
    with pytest.warns(UserWarning, match=said):
        model.sample(2, "N0", progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of_sets.sample(2, "N0", progress_bar=False)


@pytest.mark.parametrize("cls", [JointLDM, JointDiffusion, DAED])
def test_models_of_embeddings_say_what_is_only_the_mean_of_the_others(cls, tmp_path):
    rng = np.random.default_rng(0)
    drugs = [f"D{i}" for i in range(12)]
    known = pd.DataFrame(rng.standard_normal((13, 2)), index=[*drugs, "new"])
    x = (3 * known.loc[drugs].to_numpy() @ rng.standard_normal((2, 6))).repeat(25, axis=0)
    x = (x + rng.standard_normal(x.shape)).astype(np.float32)
    obs = pd.DataFrame({"drug": np.repeat(drugs, 25)}, index=[f"c{i}" for i in range(len(x))])
    noise = pd.DataFrame(rng.standard_normal((13, 2)), index=known.index)

    def trained(features: pd.DataFrame):
        adata = AnnData(x, obs=obs.copy())
        cls.setup_anndata(adata, condition_keys={"drug": Category(features=features)})
        model = cls(adata, baseline="mixed", denoiser_width=16, denoiser_blocks=1)
        model.train(max_epochs=1, **QUIET)
        return model

    of_noise, of_known = trained(noise), trained(known)
    with pytest.warns(UserWarning, match=r"\['new'\] differs from the mean of the others .* get_sources says what"):
        made = of_noise.sample(conditions=["D3", "new"], progress_bar=False)
    made.write_h5ad(tmp_path / "made.h5ad")
    assert ad.read_h5ad(tmp_path / "made.h5ad").uns["sclatent"]["is_mean_of_others"].tolist() == [False, True]
    with pytest.warns(UserWarning, match="differs from the mean of the others"):
        moved = of_noise.counterfactual(of_noise.adata[:3].copy(), "new", noise_level=0.5, progress_bar=False)
    assert moved.uns["sclatent"]["is_mean_of_others"] == [True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert of_known.sample(2, "new", progress_bar=False).uns["sclatent"]["is_mean_of_others"] == [False]


# ---- faults that a reader found


def test_further_features_go_by_the_names_of_their_columns(of_sets):
    more = pd.DataFrame([FEATURES.loc["P0"]], index=["N20"])
    of_sets.predict_profile("N20", features={"perturbation": more.iloc[:, ::-1]})
    space = of_sets.conditions.spaces["perturbation"]
    values = of_sets.conditions.values()[0].features
    np.testing.assert_allclose(values[space.code("N20", "")], values[space.code("P0", "")], rtol=1e-4)
    with pytest.raises(ValueError, match=r"features has the columns .*; those of training are"):
        of_sets.predict_profile("N21", features={"perturbation": more.set_axis(["N21"]).add_prefix("x")})
    with pytest.raises(ValueError, match=r"features is of type DataFrame: a dict of a DataFrame by condition key"):
        of_sets.sample(2, "P0", features=more)


def test_further_features_are_saved(of_sets, tmp_path):
    more = pd.DataFrame([[0.3, -0.5, 0.2]], index=["N22"], columns=FEATURES.columns)
    one = of_sets.predict_profile("N22", features={"perturbation": more})
    of_sets.save(tmp_path / "m")
    pd.testing.assert_frame_equal(SCLDM.load(tmp_path / "m").predict_profile("N22"), one)


def test_a_model_is_not_trained_on_values_that_it_was_not_made_for():
    def timed(times) -> AnnData:
        x = cells(np.zeros(N_GENES), 12 * len(times), 0)
        return AnnData(x, obs=pd.DataFrame({"t": np.repeat(times, 12)}, index=[f"c{i}" for i in range(len(x))]))

    adata = timed([0.0, 1.0, 4.0])
    SCLDM.setup_anndata(adata, condition_keys={"t": Number()})
    model = SCLDM(adata, **SMALL)
    model.train(max_epochs=1, **QUIET)
    model.adata = timed([0.0, 1.0, 2.0, 4.0])
    with pytest.raises(ValueError, match=r"adata.obs\['t'\] has values that this model was not made for, such as 2.0"):
        model.train(max_epochs=1, **QUIET)
    assert model.sample(2, 2.0, progress_bar=False).n_obs == 2


def test_control_beside_a_member_is_no_member():
    assert Set("+", control="ctrl").members_of("KLF1+ctrl") == ("KLF1",)
    assert Set("+", control="ctrl").members_of("ctrl+ctrl2") == ("ctrl2",)


def test_library_sizes_of_a_time_between_lie_between():
    totals = {0.0: 3000, 4.0: 500, 8.0: 150}
    rng = np.random.default_rng(0)
    x = np.vstack([rng.poisson(total / N_GENES, (40, N_GENES)) for total in totals.values()]).astype(np.float32)
    adata = AnnData(x, obs=pd.DataFrame({"t": np.repeat(list(totals), 40)}, index=[f"c{i}" for i in range(120)]))
    SCLDM.setup_anndata(adata, condition_keys={"t": Number()})
    model = SCLDM(adata, **SMALL)
    model.train(max_epochs=1, **QUIET)
    made = model.sample(200, 6.0, progress_bar=False)
    assert 200 < np.exp(np.log(made.obs["library_size"]).mean()) < 400  # the root of 500 * 150 is 274
    assert made.uns["sclatent"]["library_size"] == "mixed model of the conditions"


def test_a_drug_at_a_dose_of_0_gives_a_warning_and_a_dose_beyond_one_every_time(of_doses):
    vehicle = of_doses.adata[of_doses.adata.obs["drug"] == "vehicle"][:5].copy()
    with pytest.warns(UserWarning, match=r"'dose' of 5 of these cells is 0, where no level of 'drug' has an effect"):
        of_doses.counterfactual(vehicle, {"drug": "D0"}, progress_bar=False)
    for _ in range(2):
        with pytest.warns(UserWarning, match="beyond the numbers of training"):
            of_doses.sample(2, {"drug": "D0", "dose": 5000.0}, progress_bar=False)


def test_a_dose_of_a_vehicle_gives_a_warning(of_doses):
    with pytest.warns(UserWarning, match=r"'vehicle'.* has no 'dose' above 0 in training"):
        of_doses.sample(2, {"drug": "vehicle", "dose": 10.0}, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of_doses.sample(2, {"drug": "vehicle", "dose": 0.0}, progress_bar=False)
        of_doses.sample(2, {"drug": "D0", "dose": 20.0}, progress_bar=False)


def test_models_can_be_copied_and_their_setup_is_printed_in_a_few_lines(of_sets, capsys):
    again = pickle.loads(pickle.dumps(copy.deepcopy(of_sets)))
    one, same = (m.sample(3, "P4+P7", progress_bar=False).X for m in (of_sets, again))
    assert (one != same).nnz == 0
    of_sets.view_anndata_setup()
    assert len(capsys.readouterr().out.splitlines()) < 120


def test_many_numbers_in_training_give_no_warning():
    x = cells(np.zeros(N_GENES), 200, 0)
    adata = AnnData(x, obs=pd.DataFrame({"t": np.linspace(0, 1, 200)}, index=[f"c{i}" for i in range(200)]))
    SCLDM.setup_anndata(adata, condition_keys={"t": Number()})
    model = SCLDM(adata, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.train(max_epochs=1, **QUIET)
    assert model.is_trained


@pytest.mark.parametrize("column", [pd.date_range("2020", periods=13), [1j] * 13, ["1"] * 13])
def test_features_that_are_no_numbers_are_refused(column):
    adata, kind = perturbed(), Set(control="control", features=FEATURES.assign(more=column))
    with pytest.raises(ValueError, match="features must be numbers alone, and 'more' has the type"):
        SCLDM.setup_anndata(adata, condition_keys={"perturbation": kind})
