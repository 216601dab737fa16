"""A saved model is a folder that runs no code, is whole or refused, and gives the same model back."""

import builtins
import copy
import json
import logging
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent.datasets import simulate
from sclatent.model import SCLDM

pytestmark = pytest.mark.usefixtures("few_steps")

TREATED = {"condition": "stimulated"}


def samples(model: SCLDM, **kwargs) -> np.ndarray:
    return model.sample(30, TREATED, seed=5, progress_bar=False, **kwargs).X.toarray()


@pytest.fixture(scope="module")
def folder(sim_model, tmp_path_factory) -> Path:
    """A saved model; tests that damage one work on a copy."""
    path = tmp_path_factory.mktemp("saved") / "model"
    sim_model.save(path)
    return path


@pytest.fixture
def damaged(folder, tmp_path) -> Path:
    """A copy to damage."""
    path = tmp_path / "damaged"
    path.mkdir()
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def tensors_file(path: Path) -> Path:
    (file,) = path.glob("*.safetensors")
    return file


# ---- round trip


def test_a_reloaded_model_is_the_same_to_the_bit(sim_model, sim, folder):
    again = SCLDM.load(folder, sim)
    assert again.is_trained
    for key, value in sim_model.module.state_dict().items():
        assert value.equal(again.module.state_dict()[key]), key
    for how in ({}, {"guidance_weight": {"condition": 2.0}}, {"solver": "adaptive"}, {"library_size": 300}):
        one, other = (m.sample(30, TREATED, seed=5, progress_bar=False, **how) for m in (sim_model, again))
        assert (one.X != other.X).nnz == 0
        pd.testing.assert_frame_equal(one.obs, other.obs)
        assert one.uns["sclatent"] == other.uns["sclatent"]
    for level in (0.0, 0.7):
        one, other = (
            m.counterfactual(indices=range(20), conditions=TREATED, noise_level=level, progress_bar=False)
            for m in (sim_model, again)
        )
        assert (one.X != other.X).nnz == 0
        pd.testing.assert_frame_equal(one.obs, other.obs)
    np.testing.assert_array_equal(again.get_latent_representation(), sim_model.get_latent_representation())
    assert again.get_reconstruction_error() == sim_model.get_reconstruction_error()


def test_history_and_library_rule_are_saved(sim_model, folder):
    again = SCLDM.load(folder)
    assert list(again.history) == list(sim_model.history)
    for key, frame in sim_model.history.items():
        pd.testing.assert_frame_equal(again.history[key], frame)
    for cell_type in ("type_0", "type_2"):  # seen, and never seen, under the treatment
        one, other = (m.sample(50, {"cell_type": cell_type, **TREATED}, progress_bar=False) for m in (sim_model, again))
        np.testing.assert_array_equal(one.obs["library_size"], other.obs["library_size"])
        assert one.uns["sclatent"]["library_size"] == other.uns["sclatent"]["library_size"]


def test_without_an_anndata_a_model_samples_and_takes_queries(sim_model, sim, folder):
    again = SCLDM.load(folder)
    np.testing.assert_array_equal(samples(again), samples(sim_model))
    np.testing.assert_array_equal(
        again.get_latent_representation(sim, indices=range(9)), sim_model.get_latent_representation(indices=range(9))
    )
    for method in (again.get_latent_representation, lambda: again.counterfactual(conditions=TREATED), again.train):
        with pytest.raises(ValueError, match="adata is missing"):
            method()


@pytest.mark.parametrize(
    ("setup", "model"),
    [
        ({}, {}),
        ({"condition_keys": "condition", "size_factor_key": "size_factor"}, {"gene_likelihood": "zinb"}),
        ({"condition_keys": "condition"}, {"kl_weight": 1e-3, "seed": 4}),
    ],
    ids=["no conditions", "size factors, zinb", "variational"],
)
def test_other_models_come_back_too(cells, fit, tmp_path, setup, model):
    first = fit(cells, 1, setup=setup, **model)
    first.save(tmp_path / "m")
    again = SCLDM.load(tmp_path / "m", cells)
    one, other = (m.sample(20, progress_bar=False) for m in (first, again))
    assert (one.X != other.X).nnz == 0
    assert again.get_reconstruction_error() == first.get_reconstruction_error()
    assert again.domain.size_factor_scale == first.domain.size_factor_scale


def test_a_model_can_be_trained_further_after_loading(cells, fit, quiet, tmp_path):
    first = fit(cells, 1)
    first.save(tmp_path / "m")
    again = SCLDM.load(tmp_path / "m", cells)
    first.train(2, stage="diffusion", seed=3, **quiet)
    again.train(2, stage="diffusion", seed=3, **quiet)
    np.testing.assert_array_equal(samples(first), samples(again))
    assert len(again.history["diffusion_loss_train"]) == 3


def test_a_model_with_one_stage_is_saved_as_that(cells, fit, tmp_path):
    first = fit(cells, 1, train={"stage": "autoencoder"})
    first.save(tmp_path / "m")
    again = SCLDM.load(tmp_path / "m")
    np.testing.assert_array_equal(again.get_latent_representation(cells), first.get_latent_representation())
    with pytest.raises(RuntimeError, match="sample needs a trained diffusion"):
        again.sample(3)


# ---- what is in the folder


def test_nothing_in_the_folder_can_run_code(folder):
    assert sorted({file.suffix for file in folder.iterdir()}) == [".json", ".safetensors"]
    for file in folder.iterdir():
        assert not file.read_bytes().startswith((b"\x80", b"PK"))  # no pickle, no zip of pickles
    description = json.loads((folder / "model.json").read_text())
    assert description["class"] == "SCLDM"
    assert "sclatent" in description["versions"]


def test_the_cells_are_not_in_the_folder(folder, sim):
    text = (folder / "model.json").read_text()
    assert sim.var_names[3] in text
    assert f'"{sim.obs_names[3]}"' not in text


# ---- saving over a model


def test_an_existing_model_is_replaced_only_if_asked(cells, fit, folder, damaged):
    other = fit(cells, 1)
    with pytest.raises(FileExistsError, match="holds a saved model: use overwrite=True"):
        other.save(damaged)
    assert {f.name: f.read_bytes() for f in damaged.iterdir()} == {f.name: f.read_bytes() for f in folder.iterdir()}
    other.save(damaged, overwrite=True)
    np.testing.assert_array_equal(samples(SCLDM.load(damaged)), samples(other))
    assert len(list(damaged.iterdir())) == 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_files_are_never_touched(sim_model, tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty and holds no saved model"):
        sim_model.save(tmp_path, overwrite=overwrite)
    with pytest.raises(FileExistsError, match="is a file"):
        sim_model.save(tmp_path / "thesis.txt", overwrite=overwrite)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_files_with_a_name_like_tensors_are_not_removed(cells, fit, sim_model, damaged, tmp_path):
    names = ["tensors-mine.safetensors", ".tensors-mine", ".model.json.bak", "tensors-0123456789abcdeF.safetensors"]
    for name in names:
        (damaged / name).write_text("mine")
    fit(cells, 1).save(damaged, overwrite=True)
    assert [(damaged / name).read_text() for name in names] == ["mine"] * 4
    (tmp_path / names[0]).write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty and holds no saved model"):
        sim_model.save(tmp_path)


def dies_at(patch: pytest.MonkeyPatch, what: str, n: int) -> None:
    """Let the n-th call of os.replace, or the n-th file that is written, fail as on a full disk."""
    original, calls = {"replace": os.replace, "write": builtins.open}[what], iter(range(1_000))

    def replace(*args):
        if next(calls) == n:
            raise OSError(28, "No space left on device")
        return original(*args)

    def open_half(file, mode="r", *args, **kwargs):
        handle = original(file, mode, *args, **kwargs)
        if "w" in mode and next(calls) == n:
            with handle:
                handle.write(b"half of" if "b" in mode else "half of")
            raise OSError(28, "No space left on device")
        return handle

    patch.setattr(os, "replace", replace) if what == "replace" else patch.setattr(builtins, "open", open_half)


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("what", ["replace", "write"])
def test_a_save_that_dies_leaves_the_old_model(cells, fit, sim_model, damaged, what, n):
    other = fit(cells, 1)
    with pytest.MonkeyPatch.context() as patch:
        dies_at(patch, what, n)
        with pytest.raises(OSError, match="No space left"):
            other.save(damaged, overwrite=True)
    np.testing.assert_array_equal(samples(SCLDM.load(damaged)), samples(sim_model))
    other.save(damaged, overwrite=True)
    np.testing.assert_array_equal(samples(SCLDM.load(damaged)), samples(other))
    assert len(list(damaged.iterdir())) == 2


@pytest.mark.parametrize("n", [0, 1])
def test_a_first_save_that_dies_can_be_repeated(sim_model, tmp_path, n):
    with pytest.MonkeyPatch.context() as patch:
        dies_at(patch, "replace", n)
        with pytest.raises(OSError, match="No space left"):
            sim_model.save(tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="holds no saved model"):
        SCLDM.load(tmp_path / "m")
    sim_model.save(tmp_path / "m")
    np.testing.assert_array_equal(samples(SCLDM.load(tmp_path / "m")), samples(sim_model))


def test_saving_again_repairs_a_damaged_folder(sim_model, damaged):
    file = tensors_file(damaged)
    file.write_bytes(file.read_bytes()[:-100])
    sim_model.save(damaged, overwrite=True)
    np.testing.assert_array_equal(samples(SCLDM.load(damaged)), samples(sim_model))


# ---- folders that are refused


def remove_tensors(path: Path) -> None:
    tensors_file(path).unlink()


def truncate(path: Path) -> None:
    file = tensors_file(path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    file = tensors_file(path)
    content = bytearray(file.read_bytes())
    content[-50] ^= 1
    file.write_bytes(bytes(content))


def edit(old: str, new: str):
    def edit_json(path: Path) -> None:
        text = (path / "model.json").read_text()
        assert old in text
        (path / "model.json").write_text(text.replace(old, new, 1))

    return edit_json


def cut_json(path: Path) -> None:
    text = (path / "model.json").read_text()
    (path / "model.json").write_text(text[: len(text) // 2])


@pytest.mark.parametrize(
    "damage",
    [
        remove_tensors,
        truncate,
        flip_a_byte,
        cut_json,
        edit('"stimulated"', '"simulated"'),
        edit('"SCLDM"', '"DAED"'),
        edit("tensors-", "../tensors-"),
        lambda path: (path / "model.json").write_text("[]"),
        lambda path: (path / "model.json").write_bytes(b"\xff\xfe\x00"),
    ],
    ids=["no tensors", "truncated", "flipped byte", "half json", "level", "class", "path", "no object", "no text"],
)
def test_a_damaged_folder_is_refused(damaged, damage):
    damage(damaged)
    with pytest.raises(ValueError, match=r"damaged' is damaged or was changed after it was saved: .* copy"):
        SCLDM.load(damaged)


def test_a_missing_folder_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=rf"dir_path='{path}' holds no saved model"):
            SCLDM.load(path)


def test_a_model_whose_networks_were_others_is_refused(sim_model, tmp_path):
    """As one that an earlier version saved, whole as it is."""
    earlier = copy.copy(sim_model)
    earlier.module = copy.deepcopy(sim_model.module)
    del earlier.module.denoiser.mean.slope
    earlier.save(tmp_path / "earlier")
    with pytest.raises(ValueError, match=r"saved by sclatent .*, whose SCLDM had other networks .*: train it again"):
        SCLDM.load(tmp_path / "earlier")


def test_a_model_of_another_class_is_refused(folder):
    class Other(SCLDM):
        pass

    with pytest.raises(ValueError, match=r"holds a SCLDM, not a Other: use SCLDM\.load"):
        Other.load(folder)


# ---- loading onto other cells


def counts_under(sim: AnnData, names: list[str]) -> AnnData:
    """The training cells over other genes; what the model does not know is noise."""
    adata = AnnData(
        np.zeros((sim.n_obs, len(names)), dtype=np.float32), obs=sim.obs[["cell_type", "condition", "batch"]]
    )
    adata.var_names = names
    known = [name for name in names if name in sim.var_names]
    counts = np.random.default_rng(0).poisson(1.0, adata.shape).astype(np.float32)
    counts[:, adata.var_names.get_indexer(known)] = sim[:, known].layers["counts"].toarray()
    adata.layers["counts"] = counts
    return adata


def test_genes_in_another_order_are_the_same_genes(sim_model, sim, folder, caplog):
    shuffled = counts_under(sim, list(np.random.default_rng(0).permutation(sim.var_names)))
    with caplog.at_level(logging.INFO):
        again = SCLDM.load(folder, shuffled)
    assert again.adata is shuffled
    np.testing.assert_allclose(again.get_latent_representation(), sim_model.get_latent_representation(), atol=1e-4)


def test_missing_and_extra_genes_are_reported(folder, sim, caplog):
    query = counts_under(sim, [*sim.var_names[:60], "extra_1", "extra_2"])
    with caplog.at_level(logging.INFO):
        again = SCLDM.load(folder, query)
    assert "60 of the model's 80 found, 20 missing" in caplog.text
    assert "2 extra" in caplog.text
    latent = again.get_latent_representation()
    assert latent.shape == (sim.n_obs, 32)
    np.testing.assert_allclose(
        again.get_latent_representation(counts_under(sim, list(sim.var_names[:60]))), latent, atol=1e-4
    )
    moved = again.counterfactual(conditions=TREATED, progress_bar=False)
    assert list(moved.var_names) == list(sim.var_names)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda a: setattr(a, "var_names", [f"ENSG{i}" for i in range(a.n_vars)]), ValueError, "None of the 80 genes"),
        (lambda a: a.layers.pop("counts"), KeyError, "layer='counts' is not in adata.layers"),
        (lambda a: a.obs.pop("batch"), KeyError, "'batch'"),
        (lambda a: a.layers["counts"].__imul__(-1), ValueError, "negative"),
        (
            lambda a: a.obs.__setitem__("condition", "interferon"),
            ValueError,
            r"'interferon' is no level of 'condition', which has \['control', 'stimulated'\]",
        ),
        (
            lambda a: a.obs.__setitem__("batch", "batch_9"),
            ValueError,
            r"'batch_9' is no level of 'batch', which has \['batch_0', 'batch_1'\]",
        ),
    ],
    ids=["genes", "layer", "batch column", "counts", "level", "batch"],
)
def test_cells_that_do_not_fit_are_refused(folder, sim, spoil, error, message):
    query = counts_under(sim, list(sim.var_names))
    spoil(query)
    with pytest.raises(error, match=message):
        SCLDM.load(folder, query)


def test_a_saved_model_does_not_need_the_conditions_of_the_query(folder, sim, sim_model):
    """Cells without their conditions can be encoded."""
    query = counts_under(sim, list(sim.var_names))
    del query.obs["condition"], query.obs["cell_type"]
    again = SCLDM.load(folder, query)
    np.testing.assert_allclose(again.get_latent_representation(), sim_model.get_latent_representation(), atol=1e-4)
    with pytest.raises(ValueError, match="every cell needs a level of every condition"):
        again.train(1)


def test_further_training_on_other_cells_learns_their_library_sizes(cells, fit, quiet, tmp_path):
    fit(cells, 1).save(tmp_path / "m")
    other = simulate(200, 40, cell_types=["B", "T"], library_size=900, seed=2)
    again = SCLDM.load(tmp_path / "m", other)
    again.train(1, stage="diffusion", **quiet)
    made = again.sample(100, TREATED, progress_bar=False)
    assert made.X.sum(axis=1).mean() == pytest.approx(other.X.sum(axis=1).mean(), rel=0.3)
