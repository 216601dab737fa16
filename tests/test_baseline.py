"""The closed form that a network is added to: the mean of any combination of conditions."""

import numpy as np
import pytest
import torch

from sclatent.baseline import ConditionMean, MixedModel, reml
from sclatent.baseline import _mixed_model as mixed
from sclatent.baseline import _solve as solve
from sclatent.nn import NULL, CombinationTable, Context

N_GROUPS, DIM, N_CELLS = 6, 12, 200
HELD_OUT = (2, 1, 1)  # type, donor, condition


def grid(*n_levels: int) -> np.ndarray:
    return np.stack(np.unravel_index(np.arange(np.prod(n_levels)), n_levels), axis=1)


def fitted(codes: np.ndarray, means: np.ndarray, n_levels: list[int], n_cells=N_CELLS, **kwargs) -> MixedModel:
    interactions = kwargs.pop("interactions", True)
    model = MixedModel(n_levels, means.shape[1], interactions=interactions)
    return model.fit(codes, np.broadcast_to(n_cells, len(codes)), means, **{"noise": 1.0, **kwargs})


def groups_in_line(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Six groups along a line, of which each responds to a treatment the more the farther out it lies; true means."""
    rng = np.random.default_rng(seed)
    codes, direction, response = grid(N_GROUPS, 2), rng.normal(size=DIM), rng.normal(size=DIM)
    place = np.linspace(-1, 1, N_GROUPS)[codes[:, :1]]
    return codes, 3 * place * direction + codes[:, 1:] * (1 + place) * response


def noisy(means: np.ndarray, seed: int) -> np.ndarray:
    return means + np.random.default_rng([seed, 1]).normal(size=means.shape) / np.sqrt(N_CELLS)


@pytest.mark.parametrize("held_out", [0, 2, 5])
def test_a_group_responds_as_groups_like_it(held_out):
    """On average over 20 data sets: the errors of a model without interactions are ten times as large."""
    errors = []
    for seed in range(20):
        codes, truth = groups_in_line(seed)
        seen = (codes != (held_out, 1)).any(axis=1)
        for interactions in (True, False):
            model = fitted(codes[seen], noisy(truth, seed)[seen], [N_GROUPS, 2], interactions=interactions)
            errors.append(np.abs(model.predict([[held_out, 1]]) - truth[~seen]).mean())
    full, additive = np.reshape(errors, (20, 2)).mean(axis=0)
    assert full < 0.2
    assert full < 0.5 * additive or held_out == 2  # in the middle of the line the mean response is right


def test_where_likeness_tells_nothing_the_additive_prediction_stands():
    """Every group responds in its own way: on average nothing is lost to the additive model by looking for likeness."""
    errors = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        codes = grid(N_GROUPS, 2)
        truth = 3 * rng.normal(size=(N_GROUPS, DIM))[codes[:, 0]] + codes[:, 1:] * (2 + rng.normal(size=(12, DIM)))
        seen = (codes != (0, 1)).any(axis=1)
        for interactions in (True, False):
            model = fitted(codes[seen], noisy(truth, seed)[seen], [N_GROUPS, 2], interactions=interactions)
            errors.append(np.square(model.predict([[0, 1]]) - truth[~seen]).mean())
    full, additive = np.reshape(errors, (40, 2)).mean(axis=0)
    assert full < 1.15 * additive


@pytest.mark.parametrize("donor_effect", [0.0, 1.0])
def test_a_type_responds_as_it_does_in_the_other_donor(donor_effect):
    codes = grid(3, 2, 2)
    seen = (codes != HELD_OUT).any(axis=1)
    errors = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        of_type, response = rng.normal(size=(2, 3, 5))
        of_donor = donor_effect * rng.normal(size=(2, 5))
        truth = of_type[codes[:, 0]] + of_donor[codes[:, 1]] + codes[:, 2:] * response[codes[:, 0]]
        for interactions in (True, False):
            model = fitted(codes[seen], truth[seen], [3, 2, 2], noise=1e-3, interactions=interactions)
            errors.append(np.linalg.norm(model.predict([HELD_OUT]) - truth[~seen]))
    full, additive = np.reshape(errors, (10, 2)).mean(axis=0)
    assert full < 0.3 * additive


def test_the_fewer_cells_the_more_a_combination_is_shrunk():
    codes, truth = groups_in_line(0)
    means = truth.copy()
    means[0] += 3  # an outlier, which the others do not predict
    distance = []
    for n in (1, 30, 10_000):
        n_cells = np.full(len(codes), 10_000)
        n_cells[0] = n
        predicted = fitted(codes, means, [N_GROUPS, 2], n_cells, noise=30.0).predict(codes[:1])
        distance.append(np.abs(predicted - means[0]).mean())
    assert distance[0] > 2 * distance[1] > 4 * distance[2]
    assert distance[2] < 0.1


def test_a_combination_of_many_cells_is_where_its_cells_are():
    codes, truth = groups_in_line(1)
    np.testing.assert_allclose(fitted(codes, truth, [N_GROUPS, 2], 100_000).predict(codes), truth, atol=0.02)


def test_a_null_condition_stands_for_the_training_cells():
    codes, truth = groups_in_line(2)
    n_cells = np.random.default_rng(0).integers(50, 500, len(codes)).astype(float)
    model = fitted(codes, truth, [N_GROUPS, 2], n_cells)
    predicted = model.predict(codes)
    for k, n in enumerate((N_GROUPS, 2)):
        for level in range(n):
            null = np.full((1, 2), NULL)
            null[0, k] = level
            of_level = codes[:, k] == level
            expected = np.average(predicted[of_level], axis=0, weights=n_cells[of_level])
            np.testing.assert_allclose(model.predict(null)[0], expected, atol=1e-4)
    everything = np.average(predicted, axis=0, weights=n_cells)
    np.testing.assert_allclose(model.predict([[NULL, NULL]])[0], everything, atol=1e-4)


def test_pairs_that_were_not_seen_under_a_null_condition_are_predicted_too():
    codes = grid(3, 2, 2)
    seen = (codes[:, :2] != (2, 1)).any(axis=1)
    truth = codes @ np.random.default_rng(0).normal(size=(3, 4))
    model = fitted(codes[seen], truth[seen], [3, 2, 2], noise=1e-3)
    expected = truth[(codes[:, :2] == (2, 1)).all(axis=1)].mean(axis=0)
    np.testing.assert_allclose(model.predict([[2, 1, NULL]])[0], expected, atol=0.15)


def test_without_interactions_the_prediction_is_a_sum():
    codes, truth = groups_in_line(3)
    model = fitted(codes, truth, [N_GROUPS, 2], interactions=False)
    effect = np.diff(model.predict(codes).reshape(N_GROUPS, 2, DIM), axis=1)
    np.testing.assert_allclose(effect, np.broadcast_to(effect[:1], effect.shape), atol=1e-5)


def test_levels_that_were_never_seen_are_predicted():
    codes, truth = groups_in_line(4)
    model = fitted(codes, truth, [N_GROUPS + 1, 3])
    unseen = model.predict([[N_GROUPS, 0], [0, 2], [N_GROUPS, 2]])
    assert np.isfinite(unseen).all()
    assert np.abs(unseen).max() < 3 * np.abs(truth).max()


def test_many_combinations_are_solved_as_few_are(monkeypatch):
    """By conjugate gradients, and with variances that were estimated on a part of them."""
    rng = np.random.default_rng(0)
    codes = grid(40, 4)
    truth = rng.normal(size=(40, DIM))[codes[:, 0]] + rng.normal(size=(4, DIM))[codes[:, 1]]
    truth = truth + 0.3 * rng.normal(size=truth.shape)
    n_cells = rng.integers(5, 200, len(codes))
    asked = np.vstack([codes, [[3, NULL]]])
    dense = fitted(codes, truth, [40, 4], n_cells)
    monkeypatch.setattr(solve, "DENSE_COMBINATIONS", 10)
    np.testing.assert_allclose(fitted(codes, truth, [40, 4], n_cells).predict(asked), dense.predict(asked), atol=1e-4)
    monkeypatch.setattr(mixed, "REML_COMBINATIONS", 80)
    some = fitted(codes, truth, [40, 4], n_cells)
    assert not some.variances.equal(dense.variances)
    assert np.abs(some.predict(asked) - dense.predict(asked)).mean() < 0.05


def test_two_thousand_perturbations_in_two_contexts():
    rng = np.random.default_rng(0)
    codes = grid(2_000, 2)
    truth = rng.normal(size=(2_000, 8))[codes[:, 0]] + rng.normal(size=(2, 8))[codes[:, 1]]
    model = fitted(codes, truth, [2_000, 2])
    assert np.abs(model.predict(codes[:50]) - truth[:50]).mean() < 0.1
    assert sum(buffer.nbytes for buffer in model.buffers()) < 2**22


def test_reml_finds_the_variances_of_two_effects():
    """Means over 20 data sets are within four standard errors."""
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(30), 4)
        half = np.tile([0, 1], 60)
        y = rng.normal(0, 2, (30, 10))[group] + rng.normal(0, 1, (120, 10)) + 5 * half[:, None]
        same = (group[:, None] == group).astype(float)
        design = np.stack([half, 1 - half, np.ones(120)], axis=1)  # the columns need not be independent
        found.append(reml([same, np.eye(120)], design, y, np.full(120, 0.1)))
    mean, se = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(20)
    assert (np.abs(mean - [4, 0.9]) < 4 * se).all()


def test_a_fitted_model_can_be_saved_and_loaded():
    codes, truth = groups_in_line(0)
    model, other = fitted(codes, truth, [N_GROUPS, 2]), MixedModel([N_GROUPS, 2], DIM)
    assert not other.predict(codes).any()
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(other.predict(codes), model.predict(codes))


# ---- mean of tokens


def cells(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    codes, truth = groups_in_line(seed)
    codes, truth = codes.repeat(N_CELLS, axis=0), truth.repeat(N_CELLS, axis=0)
    rng = np.random.default_rng(seed)
    size = rng.normal(size=len(codes)) + codes[:, 1]
    tokens = truth + size[:, None] * np.linspace(-1, 1, DIM) + rng.normal(size=truth.shape)
    tokens = tokens - tokens.mean(axis=0)
    return torch.from_numpy(tokens).float(), torch.from_numpy(codes), torch.from_numpy(size).float()


def test_the_slope_of_the_library_size_is_that_within_combinations():
    tokens, codes, size = cells()
    mean = ConditionMean([N_GROUPS, 2], DIM)
    mean.fit(tokens, codes, size)
    np.testing.assert_allclose(mean.slope, np.linspace(-1, 1, DIM), atol=0.1)
    residual = tokens - mean(Context(codes, size))
    for k in range(N_GROUPS):
        assert residual[(codes == torch.tensor([k, 1])).all(dim=1)].mean(dim=0).abs().max() < 0.2


@pytest.mark.parametrize(("kind", "least"), [("mixed", 0.3), ("additive", 0.3), ("none", 0.0)])
def test_every_kind_of_mean_and_its_null_condition(kind, least):
    tokens, codes, size = cells()
    mean = ConditionMean([N_GROUPS, 2], DIM, kind=kind)
    mean.fit(tokens, codes, size)
    predicted = mean(Context(codes, size))
    assert 1 - (tokens - predicted).var() / tokens.var() >= least
    assert not mean(Context(torch.full((3, 2), NULL))).any()  # of all cells, whose mean is 0
    assert predicted.any() == (kind != "none")


def test_cells_without_a_condition_do_not_count():
    tokens, codes, _ = cells()
    some = codes.clone()
    some[::2, 1] = NULL
    one, other = ConditionMean([N_GROUPS, 2], DIM), ConditionMean([N_GROUPS, 2], DIM)
    one.fit(tokens, some)
    other.fit(tokens[1::2], codes[1::2])
    torch.testing.assert_close(one(Context(codes)), other(Context(codes)))


# ---- tables of combinations


def test_a_table_has_entries_for_the_combinations_it_was_given():
    table = CombinationTable([3, 2], 2)
    asked = torch.tensor([[2, 1], [0, -1], [1, 1], [-1, -1]])
    assert not table.of(asked).any()
    table.fit_combinations(torch.tensor([[2, 1], [0, -1]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    torch.testing.assert_close(table.of(asked), torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]))
    other = CombinationTable([3, 2], 2)
    other.load_state_dict(table.state_dict())
    assert other.of(asked).equal(table.of(asked))
