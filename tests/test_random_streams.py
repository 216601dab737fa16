"""One seed gives many streams of random numbers: none has to do with another, nor with those of other threads."""

import threading
from collections.abc import Callable
from itertools import product
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from anndata import AnnData
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from sclatent.data import EpochSampler, cell_rng, random_stream, torch_stream
from sclatent.datasets import simulate
from sclatent.metrics import _classifiers, evaluate_generation, evaluate_perturbation, independent_genes
from sclatent.model import DAED, SCLDM, JointDiffusion, JointLDM
from sclatent.module import DiT, SetAutoencoder
from sclatent.nn import Dropout
from sclatent.train import AutoencoderPlan, DiffusionPlan, JointPlan

pytestmark = pytest.mark.usefixtures("few_steps")

QUIET = {"accelerator": "cpu", "progress_bar": False}
SMALL = {"n_tokens": 4, "token_dim": 8, "width": 32, "denoiser_width": 32, "denoiser_blocks": 1}


def counts(n: int = 60) -> AnnData:
    return simulate(n, 20, cell_types=["B", "T"], library_size=200, seed=1)


def features() -> AnnData:
    rng = np.random.RandomState(0)
    adata = AnnData(rng.normal(size=(60, 16)).astype(np.float32))
    adata.obsm["image"] = rng.randint(0, 256, (60, 32, 32), dtype=np.uint8)
    adata.obs["label"] = np.array(["a", "b", "unknown"], dtype=object)[np.arange(60) % 3]
    return adata


# ---- streams of numpy


def start(rng: np.random.Generator) -> tuple[int, int]:
    """Where a stream starts."""
    return rng.bit_generator.state["state"]["state"], rng.bit_generator.state["state"]["inc"]


def plain(*seeds: int) -> set[tuple[int, int]]:
    """Streams that a user may draw from: of a seed, of lists that begin with it, and of its children."""
    lists = [[seed, *more] for seed in seeds for n in range(4) for more in product(range(3), repeat=n)]
    children = [child for seed in seeds for child in np.random.SeedSequence(seed).spawn(20)]
    return {start(np.random.default_rng(s)) for s in [*seeds, *lists, *children]}


def test_streams_of_cells_coincide_with_no_other():
    purposes = ["sizes", "noise", "counts", "transport", "latent", "steps", "cells"]
    found = [start(cell_rng(seed, p, cell)) for seed, p, cell in product(range(3), purposes, range(20))]
    assert len(set(found)) == len(found)
    assert not set(found) & plain(0, 1, 2)
    assert start(cell_rng(np.int64(2), "noise", 5)) == start(cell_rng(2, "noise", 5))


@pytest.fixture
def streams(monkeypatch) -> list[tuple[int, int]]:
    """Where the streams start that are made from now on."""
    found, make = [], np.random.default_rng

    def noted(seed: Any = None) -> np.random.Generator:
        rng = make(seed)
        found.append(start(rng))
        return rng

    monkeypatch.setattr(np.random, "default_rng", noted)
    return found


def some_counts() -> tuple[AnnData, AnnData, AnnData]:
    cells = counts(240)
    is_control = (cells.obs["condition"] == "control").to_numpy()
    return cells, cells[~is_control].copy(), cells[is_control].copy()


def train_and_use(cls: type, adata: AnnData, setup: dict[str, Any], **size) -> None:
    cls.setup_anndata(adata, **setup)
    model = cls(adata, **size)
    model.train(2, stage=cls.STAGES[0], **QUIET)
    if len(cls.STAGES) > 1:
        model.train(1, stage="diffusion", **QUIET)
    model.sample(3, n_steps=1, progress_bar=False)


def evaluate() -> None:
    cells, treated, control = some_counts()
    small = {"n_components": 5, "max_cells": 20, "progress_bar": False}
    with mock.patch.object(_classifiers, "_forest", lambda seed: DecisionTreeClassifier(random_state=seed)):  # quick
        evaluate_generation(cells, cells.copy(), **small)
    evaluate_perturbation(treated, treated.copy(), control, groupby="cell_type", seen=treated.copy(), **small)
    independent_genes(cells)


@pytest.mark.parametrize(
    "use",
    [
        lambda: train_and_use(SCLDM, counts(), {"condition_keys": ["cell_type", "condition"]}, **SMALL),
        lambda: train_and_use(JointLDM, features(), {"labels_key": "label"}, **{**SMALL, "width": 16}),
        evaluate,
    ],
    ids=["SCLDM", "JointLDM", "metrics"],
)
def test_nothing_is_drawn_from_where_users_draw(streams, use):
    use()
    ours = set(streams) - {start(np.random.Generator(np.random.PCG64(1)))}  # which is that of the simulated data
    assert len(ours) > 4
    assert not ours & plain(0)


def test_orders_of_cells_are_no_order_of_the_split():
    """The first epoch and the split were drawn from one stream, as was whatever a user drew from the seed."""
    n = 50
    orders = [np.concatenate(list(sampler)) for sampler in (EpochSampler(n, 7, seed=s) for s in (0, 1))]
    orders += [random_stream(0, "split").permutation(n), np.random.default_rng(0).permutation(n)]
    assert len({tuple(order) for order in orders}) == len(orders)
    assert start(random_stream(0, "a", 1)) != start(random_stream(0, "a", 1, 0))  # nor is there a 0 at the end


# ---- streams of torch


def test_noise_of_stages_epochs_and_seeds_differs():
    found = []
    for seed in (0, 1, 1_000_003):
        for plan in (AutoencoderPlan(SetAutoencoder(5), seed=seed), DiffusionPlan(DiT(2, 4, n_blocks=1), seed=seed)):
            plan.on_validation_epoch_start()
            found.append(plan.validation_generator.initial_seed())
            plan.on_train_epoch_start()
            found.append(plan.generator.initial_seed())
    found += [
        torch_stream(seed, "training of the diffusion", epoch).initial_seed() for seed in (0, 1) for epoch in (1, 2)
    ]
    assert len(set(found)) == len(found)
    assert min(found) > 2**32  # not a number that a user gives to torch.manual_seed


# ---- threads, of which torch has one global stream for all

MAKE = {
    "SCLDM": (SCLDM, counts, {"condition_keys": ["cell_type", "condition"]}, SMALL),
    "JointLDM": (JointLDM, features, {"labels_key": "label"}, {**SMALL, "width": 16}),
    "JointDiffusion": (JointDiffusion, features, {"obsm_key": "image", "labels_key": "label"}, {"denoiser_width": 16}),
    "DAED": (DAED, features, {"obsm_key": "image"}, {"width": 16, "n_blocks": 1, "denoiser_width": 16}),
}


def weights(model) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.module.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


def in_another_thread(function: Callable[[], Any]) -> Any:
    result = []
    thread = threading.Thread(target=lambda: result.append(function()))
    thread.start()
    thread.join()
    return result[0]


@pytest.fixture(params=MAKE.values(), ids=MAKE)
def make(request) -> Callable[..., Any]:
    """Makes a model, with weights of a seed."""
    cls, cells, setup, size = request.param
    adata = cells()
    cls.setup_anndata(adata, **setup)
    return lambda seed=0: cls(adata, **size, seed=seed)


def test_weights_are_those_of_the_seed_whatever_other_threads_draw(make, monkeypatch):
    """Another thread draws from the global numbers in the middle of it, and gets what it would have got."""
    alone = weights(make())
    assert not equal(alone, weights(make(seed=1)))
    drawn = []

    def interrupted(build: Callable) -> Callable:
        def init(*args, **kwargs) -> None:
            drawn.append(in_another_thread(lambda: torch.rand(1).item()))
            build(*args, **kwargs)

        return init

    for layer in (nn.LayerNorm, nn.GroupNorm):
        monkeypatch.setattr(layer, "__init__", interrupted(layer.__init__))
    torch.manual_seed(3)
    assert equal(weights(make()), alone)
    assert len(drawn) > 1
    torch.testing.assert_close(torch.tensor(drawn), torch.rand(len(drawn), generator=torch.Generator().manual_seed(3)))


def test_models_made_at_once_are_those_made_one_after_the_other(make):
    seeds = [0, 1, 0, 1]
    alone = {seed: weights(make(seed=seed)) for seed in set(seeds)}
    ready, found = threading.Barrier(len(seeds)), {}

    def build(i: int) -> None:
        ready.wait()
        found[i] = weights(make(seed=seeds[i]))

    torch.manual_seed(3)
    threads = [threading.Thread(target=build, args=(i,)) for i in range(len(seeds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(equal(found[i], alone[seed]) for i, seed in enumerate(seeds))
    assert torch.rand(1).equal(torch.rand(1, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("make", [MAKE["JointLDM"]], indirect=True, ids=["JointLDM"])
def test_training_is_that_of_the_seed_whatever_other_threads_draw(make, monkeypatch):
    """Dropout, too, which takes from the global numbers in torch."""
    models = [make(), make()]
    models[0].train(1, **QUIET)
    step = JointPlan.losses
    monkeypatch.setattr(JointPlan, "losses", lambda *args: (in_another_thread(lambda: torch.rand(1)), step(*args))[1])
    torch.manual_seed(3)
    models[1].train(1, **QUIET)
    assert equal(weights(models[0]), weights(models[1]))


def test_dropout_leaves_the_mean_and_draws_from_what_it_is_told():
    layer, x = Dropout(0.25), torch.ones(4000)
    layer.train()
    draws = []
    for seed in (0, 0, 1):
        with Dropout.drawing_from(torch.Generator().manual_seed(seed), layer):
            draws.append(layer(x))
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])
    kept = (draws[0] > 0).float().mean()
    assert abs(kept - 0.75) < 5 * (0.75 * 0.25 / 4000) ** 0.5
    torch.testing.assert_close(draws[0].unique(), torch.tensor([0, 1 / 0.75]))
    layer.eval()
    assert layer(x) is x
