"""A combination of three keys that was not seen is predicted from its pairs."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from sclatent.data import log_normalize_counts
from sclatent.model import SCLDM


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
