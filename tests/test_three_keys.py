"""A combination of three keys that was not seen is predicted from its pairs."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from sclatent.data import additive_effects, interaction_effects, log_normalize_counts
from sclatent.model import SCLDM

HELD_OUT = (2, 1, 1)  # type, donor, condition


def triples(held_out: tuple[int, int, int], n_donors: int = 2) -> np.ndarray:
    all_of_them = np.array([(t, d, c) for t in range(3) for d in range(n_donors) for c in range(2)])
    return all_of_them[(all_of_them != held_out).any(axis=1)]


def predicted(codes: np.ndarray, means: np.ndarray, code: tuple[int, ...], n_cells: int = 1_000) -> np.ndarray:
    """Mean of a combination, from the means of others, of each of which there are so many cells."""
    codes, means = np.repeat(codes, n_cells, axis=0), np.repeat(means, n_cells, axis=0)
    n_levels = list(codes.max(axis=0) + 1)
    constant, effects = additive_effects(codes, means, n_levels)
    combinations, beyond = interaction_effects(codes, means - constant, n_levels, effects)
    entries = {tuple(row): entry for row, entry in zip(combinations.tolist(), beyond, strict=True)}
    assert len(entries) == len(combinations)
    return constant + sum(effect[level] for effect, level in zip(effects, code, strict=True)) + entries.get(code, 0)


@pytest.mark.parametrize("donor_effect", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_type_answers_as_it_does_in_the_other_donor(seed, donor_effect):
    rng = np.random.default_rng(seed)
    of_type, of_donor, answer = rng.normal(size=(3, 5)), donor_effect * rng.normal(size=(2, 5)), rng.normal(size=(3, 5))

    def mean(codes: np.ndarray) -> np.ndarray:
        return of_type[codes[:, 0]] + of_donor[codes[:, 1]] + codes[:, 2:] * answer[codes[:, 0]]

    seen = triples(HELD_OUT)
    truth = mean(np.array([HELD_OUT]))[0]
    additive = sum(e[i] for e, i in zip(additive_effects(seen, mean(seen), [3, 2, 2])[1], HELD_OUT, strict=True))
    additive = additive + mean(seen).mean(axis=0)
    error = np.linalg.norm(predicted(seen, mean(seen), HELD_OUT) - truth)
    assert error < 0.1 * np.linalg.norm(additive - truth)


def test_what_few_cells_say_of_a_pair_is_carried_on_less():
    """A type that responds as others do, but for noise in its only donor: the fewer its cells, the less it counts."""
    seen = triples(HELD_OUT)
    means = seen @ np.array([[3.0], [0.5], [2.0]]) + np.where((seen == (2, 0, 1)).all(axis=1), 1.0, 0.0)[:, None]
    predictions = [predicted(seen, means, HELD_OUT, n_cells).item() for n_cells in (1, 10, 1_000)]
    np.testing.assert_array_less(predictions[:-1], predictions[1:])
    assert predictions[0] < 8.5 + 0.5 < predictions[-1] < 8.5 + 1.01


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """Three types that answer a treatment each in its own way, and as much in either donor."""
    rng = np.random.default_rng(0)
    codes = np.repeat([(t, d, c) for t in range(3) for d in range(2) for c in range(2)], 50, axis=0)
    answer = np.zeros((3, 40))
    for t in range(3):
        answer[t, rng.choice(40, 8, replace=False)] = rng.choice([-1.5, 1.5], 8)
    log_rate = rng.normal(0, 0.6, 40) + rng.normal(0, 0.6, (3, 40))[codes[:, 0]] + codes[:, 2:] * answer[codes[:, 0]]
    share = np.exp(log_rate) / np.exp(log_rate).sum(axis=1, keepdims=True)
    x = rng.poisson(rng.integers(500, 900, len(codes))[:, None] * share).astype(np.float32)
    obs = pd.DataFrame(codes, columns=["type", "donor", "treated"], index=[f"cell_{i}" for i in range(len(codes))])
    return AnnData(sparse.csr_matrix(x), obs=obs.astype(str).astype("category"))


def test_the_response_of_a_type_in_another_donor_is_predicted(cells, small, quiet):
    def of(t: int, d: int, c: int) -> AnnData:
        return cells[(cells.obs == [str(t), str(d), str(c)]).all(axis=1)].copy()

    def level(x) -> np.ndarray:
        return np.asarray(log_normalize_counts(x).mean(axis=0)).ravel()

    def response(t: int, d: int) -> np.ndarray:
        return level(of(t, d, 1).X) - level(of(t, d, 0).X)

    train = cells[~(cells.obs == ["2", "1", "1"]).all(axis=1)].copy()
    SCLDM.setup_anndata(train, condition_keys=["type", "donor", "treated"])
    model = SCLDM(train, **small)
    model.train({"autoencoder": 15, "diffusion": 1}, batch_size=32, **quiet)
    controls, truth = of(2, 1, 0), response(2, 1)
    moved = model.counterfactual(controls, {"treated": "1"}, progress_bar=False)
    change = level(moved.X) - level(controls.X)

    def error(prediction: np.ndarray) -> float:
        return float(np.sqrt(np.mean((prediction - truth) ** 2)))

    others = [response(t, d) for t in range(3) for d in range(2) if (t, d) != (2, 1)]
    assert error(response(2, 0)) < 0.5 * error(np.mean(others, axis=0))  # the other donor says it well
    assert error(change) < 0.65 * error(np.mean(others, axis=0))
