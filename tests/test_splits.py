"""Folds: nothing that is held out is trained on, the same seed makes the same ones, and files bring them back."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent.datasets import simulate
from sclatent.metrics import split

KEY, TYPE = "condition", "cell_type"
LINES = ["control", "a", "b", "c", "d"]
SEEDS = [None, "a", 1.5, -1]
SINGLES, PAIRS = ["A", "B", "C", "D"], ["A+B", "C+A", "B+C", "D+B"]


@pytest.fixture(scope="module")
def lines() -> AnnData:
    """Four knock-downs in three lines, 20 cells of each."""
    adata = simulate(300, 5, cell_types=["K", "J", "H"], conditions=LINES, library_size=50)
    adata.obs["time"] = np.arange(300) % 10 * 6.0
    return adata


@pytest.fixture(scope="module")
def pairs() -> AnnData:
    return simulate(270, 5, cell_types=1, conditions=["ctrl", *SINGLES, *PAIRS], library_size=50)


def of_lines(adata: AnnData, name: str, **kwargs) -> list[split.Fold]:
    context = {} if name == "unseen_perturbations" else {"context_keys": TYPE}
    return getattr(split, name)(adata, KEY, control="control", **context, **kwargs)


def made(lines: AnnData, pairs: AnnData) -> list[tuple[AnnData, list[split.Fold]]]:
    """Folds of every kind."""
    return [
        (lines, of_lines(lines, "unseen_combinations")),
        (lines, of_lines(lines, "unseen_combinations", n_folds=3)),
        (lines, of_lines(lines, "unseen_contexts")),
        (lines, of_lines(lines, "unseen_perturbations", n_folds=2)),
        (lines, split.windows(lines, "time", n_windows=3, groupby=TYPE)),
        (lines, [split.random(lines, TYPE)]),
        (pairs, split.unseen_pairs(pairs, KEY, control="ctrl", n_folds=2)),
    ]


def test_no_cell_is_held_out_and_trained_on_and_none_is_held_out_twice(lines, pairs):
    for adata, folds in made(lines, pairs):
        held_out = [set(fold.asked.index) for fold in folds]
        assert all(held_out)
        assert len(set().union(*held_out)) == sum(map(len, held_out))
        for fold in folds:
            assert set(fold.train).isdisjoint(fold.asked.index)
            train, test = fold.split(adata)
            assert list(train.obs_names) == list(fold.train)
            pd.testing.assert_frame_equal(test.obs[list(fold.asked.columns)], fold.asked, check_categorical=False)
            assert not test.is_view
            if fold.perturbation_key:
                assert (train.obs[KEY] == fold.control).sum() == (adata.obs[KEY] == fold.control).sum()
                assert not (test.obs[KEY] == fold.control).any()


def test_the_same_seed_makes_the_same_folds(lines, pairs):
    def drawn(seed: int) -> list[list[str]]:
        folds = [
            *of_lines(lines, "unseen_combinations", n_folds=3, seed=seed),
            *of_lines(lines, "unseen_perturbations", n_folds=2, seed=seed),
            *split.unseen_pairs(pairs, KEY, control="ctrl", n_folds=2, seed=seed),
            split.random(lines, TYPE, seed=seed),
        ]
        return [list(fold.asked.index) for fold in folds]

    assert drawn(0) == drawn(0)
    assert all(any(a != b for b in (drawn(s)[k] for s in (1, 2, 3, 4, 5))) for k, a in enumerate(drawn(0)))


def test_a_perturbation_that_is_held_out_in_a_context_is_seen_in_another(lines):
    folds = of_lines(lines, "unseen_combinations")
    assert len(folds) == 12
    assert folds[0].name == "cell_type=K, condition=a"
    for fold in [*folds, *of_lines(lines, "unseen_combinations", n_folds=3)]:
        train, test = fold.split(lines)
        for perturbation, of_one in test.obs.groupby(KEY, observed=True):
            assert of_one[TYPE].nunique() == 1
            assert train.obs.loc[train.obs[KEY] == perturbation, TYPE].nunique() == 2


def test_folds_of_combinations_are_a_latin_square(lines):
    """As many of every line in each fold, as far as numbers allow, and every knock-down once."""
    for fold in of_lines(lines, "unseen_combinations", n_folds=3, seed=7):
        asked = fold.asked.drop_duplicates()
        assert sorted(asked[KEY]) == LINES[1:]
        assert asked[TYPE].value_counts().max() == 2  # four in three lines


def test_all_perturbations_of_a_context_are_held_out(lines):
    for fold in of_lines(lines, "unseen_contexts"):
        of_context = lines.obs[TYPE] == fold.name
        assert set(fold.asked.index) == set(lines.obs_names[of_context & (lines.obs[KEY] != "control")])
        assert set(fold.train) == set(lines.obs_names) - set(fold.asked.index)


def test_few_cells_of_a_context_that_is_held_out_are_neither_asked_for_nor_trained_on(lines):
    few = lines[~((lines.obs[TYPE] == "K") & (lines.obs[KEY] == "a")) | (np.arange(300) < 100)].copy()
    n = ((few.obs[TYPE] == "K") & (few.obs[KEY] == "a")).sum()
    assert 0 < n < 20
    with pytest.warns(UserWarning, match="Not asked for, without at least 20 perturbed .*: cell_type=K, condition=a"):
        folds = {fold.name: fold for fold in of_lines(few, "unseen_contexts")}
    assert sorted(folds["K"].asked[KEY].unique()) == ["b", "c", "d"]
    assert len(folds["K"].train) == few.n_obs - len(folds["K"].asked) - n


def test_a_context_without_control_cells_and_a_perturbation_of_one_context_are_not_asked_for(lines):
    obs = lines.obs
    kept = lines[~((obs[TYPE] == "H") & (obs[KEY] == "control")) & ~((obs[TYPE] == "K") & (obs[KEY] == "d"))].copy()
    with pytest.warns(UserWarning, match="Not asked for") as caught:
        folds = of_lines(kept, "unseen_combinations")
    said = [str(w.message) for w in caught]
    assert "10 control cells: cell_type=H, condition=a; cell_type=H, condition=b" in said[0]
    assert said[1] == "Not asked for, of perturbations that no other context has: cell_type=J, condition=d."
    assert {w.filename for w in caught} == {__file__}
    assert {fold.name for fold in folds} == {f"cell_type={t}, condition={c}" for t in "KJ" for c in "abc"}


def test_a_perturbation_is_held_out_in_all_contexts_and_within_pairs(lines, pairs):
    folds = split.unseen_perturbations(lines, KEY, "control", n_folds=4, context_keys=TYPE)
    assert sorted(fold.name for fold in folds) == LINES[1:]
    for fold in folds:
        assert set(fold.asked.columns) == {TYPE, KEY}
        assert fold.asked[TYPE].nunique() == 3
        assert not (lines.obs.loc[fold.train, KEY] == fold.name).any()
    for fold in split.unseen_perturbations(pairs, KEY, "ctrl", n_folds=4, delimiter="+"):
        assert set(fold.asked[KEY]) == {fold.name}
        assert fold.name in SINGLES
        assert set(pairs.obs.loc[fold.train, KEY]) == {
            level for level in ["ctrl", *SINGLES, *PAIRS] if fold.name not in level.split("+")
        }


def test_singles_stay_when_pairs_are_held_out(pairs):
    other = pairs.copy()
    other.obs[KEY] = other.obs[KEY].astype(str).replace({"D": "D+ctrl", "D+B": "B+E"})
    turned = (other.obs[KEY] == "C+A") & (np.arange(other.n_obs) % 2 == 0)
    other.obs.loc[turned, KEY] = "A+C"
    with pytest.warns(UserWarning, match="since a member was not measured alone: B[+]E"):
        folds = split.unseen_pairs(other, KEY, control="ctrl", n_folds=3, min_cells=10)
    assert {frozenset(fold.asked[KEY]) for fold in folds} == {frozenset(p) for p in (["A+B"], ["A+C", "C+A"], ["B+C"])}
    for fold in folds:
        assert {"ctrl", "A", "B", "C", "D+ctrl", "B+E"} <= set(other.obs.loc[fold.train, KEY])


def test_what_holds_a_pair_is_left_out_and_blanks_do_not_matter(pairs):
    other = pairs.copy()
    turned = np.arange(other.n_obs) % 2 == 0
    names = other.obs[KEY].astype(str).replace({"D+B": "A+B+C", "D": "D "})
    other.obs[KEY] = names.where((names != "A+B") | turned, "B + A")
    for delimiter in ("+", " + "):
        folds = split.unseen_pairs(other, KEY, "ctrl", delimiter, n_folds=4, min_cells=10)
        held_out = {frozenset(fold.asked[KEY]): set(other.obs.loc[fold.train, KEY]) for fold in folds}
        assert held_out.keys() == {frozenset(p) for p in (["A+B", "B + A"], ["C+A"], ["B+C"], ["A+B+C"])}
        assert not any("A+B+C" in train for train in held_out.values())
        for fold in split.unseen_perturbations(other, KEY, "ctrl", n_folds=4, delimiter=delimiter, min_cells=10):
            assert not other.obs.loc[fold.train, KEY].str.contains(fold.name.strip()).any()


def test_shares_of_groups_are_those_of_all_within_a_cell(lines):
    obs = lines.obs
    uneven = lines[(obs[TYPE] != "K") | (np.arange(300) < 17)].copy()
    uneven.obs["rare"] = np.where(np.arange(uneven.n_obs) == 3, "one", "others")
    fold = split.random(uneven, [TYPE, "rare"], test_size=0.3)
    n = uneven.obs.groupby([TYPE, "rare"], observed=True).size()
    held_out = fold.asked.groupby([TYPE, "rare"], observed=True).size().reindex(n.index, fill_value=0)
    assert ((held_out - 0.3 * n).abs() < 1).all()
    assert len(fold.train) + len(fold.asked) == uneven.n_obs
    most = split.random(uneven, [TYPE, "rare"], test_size=0.9)
    assert len(uneven.obs.loc[most.train, [TYPE, "rare"]].drop_duplicates()) == len(n)


def test_windows_hold_every_number_out_once(lines):
    fold = split.window(lines, "time", 12, 24)
    assert sorted(fold.asked["time"].unique()) == [12, 18]
    assert not lines.obs.loc[fold.train, "time"].between(12, 23.9).any()
    folds = split.windows(lines, "time", n_windows=3, groupby=TYPE)
    assert sum(len(fold.asked) for fold in folds) == 300
    assert max(fold.asked["time"].max() for fold in folds[:2]) < folds[2].asked["time"].min()
    assert folds[0].groupby == (TYPE,)
    late = lines.copy()
    late.obs["time"] = (late.obs["time"] + 1_700_000_000).astype(int)
    folds = split.windows(late, "time", n_windows=3)
    assert folds[0].name == "time 1700000000 to 1700000018"
    late.obs["time"] = (lines.obs["time"] / 10).astype("float32")
    assert split.windows(late, "time", n_windows=3)[1].name == "time 1.8 to 3.6"
    assert len(split.window(late, "time", 4.2, np.inf).asked) == 90


def test_files_bring_folds_back(lines, pairs, tmp_path):
    for adata, folds in made(lines, pairs):
        split.write_folds(folds, tmp_path / "folds.json")
        more = adata[::-1].copy()  # in another order
        for fold, read in zip(folds, split.read_folds(tmp_path / "folds.json", more), strict=True):
            assert (read.name, read.groupby) == (fold.name, fold.groupby)
            assert (read.perturbation_key, read.control) == (fold.perturbation_key, fold.control)
            assert list(read.train) == [name for name in more.obs_names if name in set(fold.train)]
            pd.testing.assert_frame_equal(read.asked, fold.asked)
    fold = split.random(lines)
    split.write_folds(fold, tmp_path / "one.json")
    assert list(split.read_folds(tmp_path / "one.json", lines)[0].train) == list(fold.train)
    for text in ("no JSON", "[1]", "{}"):
        (tmp_path / "wrong.json").write_text(text)
        with pytest.raises(ValueError, match=r"wrong\.json is no file of folds"):
            split.read_folds(tmp_path / "wrong.json", lines)
    with pytest.raises(ValueError, match="has 1 cells that adata lacks, such as"):
        split.read_folds(tmp_path / "folds.json", pairs[1:])
    with pytest.raises(ValueError, match=r"asks for the columns \['condition'\], which adata.obs lacks"):
        split.read_folds(tmp_path / "folds.json", AnnData(pairs.X, pd.DataFrame(index=pairs.obs_names)))


def test_a_fold_with_leaks_or_of_other_labels_is_refused(lines):
    fold = of_lines(lines, "unseen_contexts")[0]
    leaks = split.Fold("leaks", fold.train.append(fold.asked.index[:2]), fold.asked, fold.groupby, KEY, "control")
    with pytest.raises(ValueError, match="'leaks' has 2 cells that are both held out and trained on"):
        leaks.split(lines)
    other = lines.copy()
    other.obs[KEY] = other.obs[KEY].cat.rename_categories({"c": "d", "d": "c"})
    first = fold.asked.index[fold.asked[KEY].isin(["c", "d"])][0]
    with pytest.raises(ValueError, match=rf"asks for condition='[cd]' of the cell '{first}', which has '[cd]'"):
        fold.split(other)
    del other.obs[TYPE]
    with pytest.raises(ValueError, match=r"asks for the column 'cell_type', which adata\.obs lacks"):
        fold.split(other)


def test_cells_that_are_new_are_in_no_fold_of_a_file(lines, tmp_path):
    """They may be of what is held out."""
    part = lines[:250].copy()
    split.write_folds(of_lines(part, "unseen_contexts", min_cells=10), tmp_path / "folds.json")
    for fold in split.read_folds(tmp_path / "folds.json", lines):
        assert set(fold.train) | set(fold.asked.index) <= set(part.obs_names)


def test_what_cannot_be_is_said(lines, pairs):
    missing = lines.copy()
    missing.obs[KEY] = missing.obs[KEY].astype(object).where(np.arange(300) > 2)
    twice = lines.copy()
    twice.obs_names = ["cell"] * 300
    for error, message, call in (
        (
            KeyError,
            "context_keys: 'donor' is not a column",
            lambda: split.unseen_contexts(lines, KEY, "control", "donor"),
        ),
        (KeyError, "perturbation_key: 'drug' is not", lambda: split.unseen_perturbations(lines, "drug", "control")),
        (ValueError, "which is the perturbation_key", lambda: split.unseen_contexts(lines, KEY, "control", KEY)),
        (ValueError, "is missing for 3 cells", lambda: of_lines(missing, "unseen_contexts")),
        (
            ValueError,
            "control='ctrl' is no level .*, which has",
            lambda: split.unseen_perturbations(lines, KEY, "ctrl"),
        ),
        (ValueError, "but 'control' is: give that", lambda: split.unseen_perturbations(lines, KEY, "Control")),
        (ValueError, "No group .* at least 50 perturbed", lambda: of_lines(lines, "unseen_contexts", min_cells=50)),
        (ValueError, "min_cells=0 must be", lambda: of_lines(lines, "unseen_contexts", min_cells=0)),
        (ValueError, "n_folds=5 is more than the 4", lambda: of_lines(lines, "unseen_perturbations", n_folds=5)),
        (ValueError, "n_folds=1 must be", lambda: of_lines(lines, "unseen_perturbations", n_folds=1)),
        (ValueError, "no perturbation has enough", lambda: split.unseen_contexts(pairs, KEY, "ctrl", TYPE)),
        (ValueError, "has no pairs", lambda: split.unseen_pairs(lines, KEY, "control")),
        (ValueError, "delimiter='': delimiter='' must", lambda: split.unseen_pairs(pairs, KEY, "ctrl", "")),
        (ValueError, "low=1, high=2: 0 of the 300 cells", lambda: split.window(lines, "time", 1, 2)),
        (ValueError, "300 of the 300", lambda: split.window(lines, "time", 0, 99)),
        (ValueError, "finite numbers were expected", lambda: split.windows(lines, TYPE)),
        (ValueError, "n_windows=11", lambda: split.windows(lines, "time", n_windows=11)),
        (ValueError, "test_size=1.5 must be", lambda: split.random(lines, TYPE, test_size=1.5)),
        (ValueError, "test_size=1 must be", lambda: split.random(lines, TYPE, test_size=1)),
        (ValueError, "holds out none of 300", lambda: split.random(lines, TYPE, test_size=1e-3)),
        *((ValueError, f"seed={seed!r} must be", partial(split.random, lines, seed=seed)) for seed in SEEDS),
        *((ValueError, f"seed={s!r} must be", partial(of_lines, lines, "unseen_perturbations", seed=s)) for s in SEEDS),
        (ValueError, "must be one level of", lambda: split.unseen_perturbations(lines, KEY, ["control"])),
        (ValueError, "low='a' must be a number", lambda: split.window(lines, "time", "a", 2)),
        (ValueError, "high=None must be a number", lambda: split.window(lines, "time", 1, None)),
        (ValueError, "cells of the same name", lambda: split.random(twice)),
        (TypeError, "adata must be an AnnData", lambda: split.random(lines.X)),
        (ValueError, "has 60 cells that are not in adata", lambda: split.random(lines).split(lines[60:])),
    ):
        with pytest.raises(error, match=message):
            call()
