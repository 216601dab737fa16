"""What a model keeps of its training cells belongs to the cells that are there, also after they were changed."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent.model import DAED, SCLDM, JointDiffusion, JointLDM

QUIET = {"accelerator": "cpu", "progress_bar": False}
SMALL = {"denoiser_width": 8, "denoiser_blocks": 1, "n_heads": 2}
MODELS = {
    SCLDM: ({"condition_keys": "kind"}, {"n_tokens": 2, "token_dim": 4, "width": 8, "n_blocks": 1, **SMALL}),
    DAED: ({"labels_key": "kind"}, {"width": 8, "n_blocks": 1, **SMALL}),
    JointDiffusion: ({"labels_key": "kind"}, SMALL),
    JointLDM: ({"labels_key": "kind"}, {"token_dim": 4, "width": 8, **SMALL}),
}
each_model = pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)


def cells(n: int = 60, seed: int = 0) -> AnnData:
    """Counts that serve as embeddings, too; a kind has genes of its own."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 3 // 2
    x = rng.poisson(3, (n, 8)) * (np.arange(8) // 4 == kind[:, None]) + np.eye(n, 8)
    obs = pd.DataFrame({"kind": np.array(["a", "b"])[kind]}, index=[f"cell_{seed}_{i}" for i in range(n)])
    return AnnData(x.astype(np.float32), obs=obs)


def trained(cls, adata: AnnData, **train):
    setup, params = MODELS[cls]
    cls.setup_anndata(adata, **setup)
    model = cls(adata, **params)
    model.train(2, **train, **QUIET)
    return model


def filtered(model) -> None:
    """As ``sc.pp.filter_cells`` does."""
    model.adata._inplace_subset_obs(np.arange(model.adata.n_obs) >= 7)


def turned(model) -> None:
    model.adata._inplace_subset_obs(np.arange(model.adata.n_obs)[::-1])


def counted_again(model) -> None:
    model.adata.X[:, :4] *= 2


def others(model) -> None:
    adata = cells(50, seed=1)
    type(model).setup_anndata(adata, **MODELS[type(model)][0])
    model.adata = adata


def further_from_disk(model, folder, adata: AnnData, **train):
    """The same model without anything that it keeps in memory of cells, trained further on an AnnData."""
    again = type(model).load(folder, adata, device="cpu")
    again.train(2, **train, **QUIET)
    return again


@pytest.mark.parametrize(
    ("cls", "change"),
    [(cls, filtered) for cls in MODELS]
    + [(cls, change) for cls in (SCLDM, JointLDM) for change in (turned, counted_again, others)],
)
def test_the_denoiser_is_trained_on_the_cells_that_are_there(cls, change, tmp_path):
    model = trained(cls, cells())
    model.save(tmp_path / "model")
    change(model)
    expected = further_from_disk(model, tmp_path / "model", model.adata.copy(), stage="diffusion")
    model.train(2, stage="diffusion", **QUIET)
    weights = model.module.state_dict()
    assert not [key for key, value in expected.module.state_dict().items() if not value.equal(weights[key])]
    assert len(model._tokens) == model.adata.n_obs


@pytest.mark.parametrize("cls", [DAED, JointLDM])  # of which stage one may leave tokens
def test_a_denoiser_is_trained_for_the_first_time_on_the_cells_that_are_there(cls, tmp_path):
    model = trained(cls, cells(), stage=cls.STAGES[0])
    model.save(tmp_path / "model")
    filtered(model)
    expected = further_from_disk(model, tmp_path / "model", model.adata.copy(), stage="diffusion")
    model.train(2, stage="diffusion", **QUIET)
    weights = model.module.state_dict()
    assert not [key for key, value in expected.module.state_dict().items() if not value.equal(weights[key])]


@each_model
def test_tokens_of_unchanged_cells_are_computed_once(cls, monkeypatch):
    model = trained(cls, cells())
    encoded = []
    encode = model._encode
    monkeypatch.setattr(model, "_encode", lambda rows, *args: encoded.append(len(rows)) or encode(rows, *args))
    model.train(1, stage="diffusion", **QUIET)
    assert not encoded
    filtered(model)
    model.train(1, stage="diffusion", **QUIET)
    assert encoded == [53]


def others_of_the_same_names(model) -> None:
    adata = cells(60, seed=1)
    adata.obs_names = model.adata.obs_names
    model.adata = adata


@pytest.mark.parametrize("change", [filtered, turned, others, others_of_the_same_names])
def test_rows_of_training_are_not_given_for_other_cells(change):
    model = trained(SCLDM, cells())
    assert sorted([*model.train_indices_, *model.validation_indices_]) == list(range(60))
    change(model)
    for name in ("train_indices_", "validation_indices_", "validation_indices"):
        with pytest.raises(RuntimeError, match=r"indices_: .* are no longer those .* train.*names"):
            getattr(model, name)
    model.train(1, stage="diffusion", **QUIET)
    assert sorted([*model.train_indices_, *model.validation_indices_]) == list(range(model.adata.n_obs))
