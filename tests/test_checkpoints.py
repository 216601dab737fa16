"""A checkpoint is resumed by its own training alone, is never half written, and a damaged one is noticed."""

import errno
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from scipy import sparse

from sclatent.model import SCLDM, JointDiffusion
from sclatent.model.base import _files

REFUSED = ["settings.json", "start.pt"]  # where damaged
USED = ["diffusion.ckpt", "diffusion.before.ckpt"]  # the one in place of the other
QUIET = {"accelerator": "cpu", "progress_bar": False}
EPOCHS = {"autoencoder": 3, "diffusion": 4}
TINY = {"n_tokens": 2, "token_dim": 4, "width": 8, "n_blocks": 1, "n_heads": 2, "denoiser_width": 8}


class Interrupt(Callback):
    """Raises in the first minibatch of an epoch of a stage, or at its end."""

    def __init__(self, stage: str, epoch: int, at_end: bool = False) -> None:
        self.at, self.at_end = (stage, epoch), at_end

    def on_train_batch_end(self, trainer, pl_module, *_):
        if not self.at_end and (pl_module.name, trainer.current_epoch) == self.at:
            raise RuntimeError("interrupted")

    def on_train_epoch_end(self, trainer, pl_module):
        if self.at_end and (pl_module.name, trainer.current_epoch) == self.at:
            raise RuntimeError("interrupted")


def counts(n: int = 60, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    x = sparse.csr_matrix(rng.poisson(2.0, (n, 20)).astype(np.float32) + np.eye(n, 20, dtype=np.float32))
    obs = pd.DataFrame({"kind": rng.choice(["a", "b"], n)}, index=[f"cell_{i}" for i in range(n)])
    return AnnData(x, obs=obs)


def scldm(adata: AnnData | None = None, **params) -> SCLDM:
    adata = counts() if adata is None else adata
    SCLDM.setup_anndata(adata, condition_keys="kind")
    return SCLDM(adata, **{**TINY, "denoiser_blocks": 1, **params})


def embeddings() -> AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"label": rng.choice(["a", "b"], 200)}, index=[f"cell_{i}" for i in range(200)])
    return AnnData(rng.standard_normal((200, 8)).astype(np.float32), obs=obs)


def joint(adata: AnnData | None = None) -> JointDiffusion:
    """The model with the fewest files: of one stage."""
    adata = embeddings() if adata is None else adata
    JointDiffusion.setup_anndata(adata, labels_key="label")
    return JointDiffusion(adata, denoiser_width=8, denoiser_blocks=1, n_heads=2)


def weights(model) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.module.state_dict().items()}


def assert_same(model, other: dict) -> None:
    """Weights and losses are those of another model, to the bit."""
    own = weights(model)
    assert own.keys() == other["weights"].keys()
    assert not [key for key in own if not own[key].equal(other["weights"][key])]
    assert model.history.keys() == other["history"].keys()
    for key, frame in model.history.items():
        pd.testing.assert_frame_equal(frame, other["history"][key])


def outcome(model, **train) -> dict:
    model.train(**QUIET, **train)
    return {"weights": weights(model), "history": dict(model.history)}


def interrupted(model, folder: Path, at: tuple = ("diffusion", 2), **train):
    """The model, whose training was interrupted in an epoch of a stage."""
    with pytest.raises(RuntimeError, match="interrupted"):
        model.train(checkpoint_dir=folder, callbacks=[Interrupt(*at)], **QUIET, **train)
    return model


@pytest.fixture(scope="module")
def uninterrupted() -> dict:
    return outcome(scldm(), max_epochs=EPOCHS)


@pytest.fixture(scope="module")
def joint_uninterrupted() -> dict:
    return outcome(joint(), max_epochs=4)


@pytest.fixture(scope="module")
def left(tmp_path_factory) -> Path:
    """What a training of SCLDM leaves behind that is interrupted in its second stage."""
    folder = tmp_path_factory.mktemp("left") / "c"
    interrupted(scldm(), folder, max_epochs=EPOCHS)
    return folder


@pytest.fixture(scope="module")
def joint_left(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("left") / "c"
    interrupted(joint(), folder, max_epochs=4)
    return folder


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    file.write_bytes(content)


# ---- another training


def other_genes_of_a_cell(adata: AnnData) -> None:
    """The total of every cell stays."""
    adata.X = sparse.csr_matrix(adata.X.toarray()[:, ::-1])


def one_count(adata: AnnData) -> None:
    x = adata.X.toarray()
    x[37, [3, 4]] = x[37, [4, 3]] + [1, 0]
    adata.X = sparse.csr_matrix(x)


def gene_names(adata: AnnData) -> None:
    adata.var_names = [f"g{i}" for i in range(adata.n_vars)]


def level_names(adata: AnnData) -> None:
    adata.obs["kind"] = adata.obs["kind"].map({"a": "control", "b": "stimulated"})


@pytest.mark.parametrize("change", [other_genes_of_a_cell, one_count, gene_names, level_names])
def test_other_counts_are_refused(left, change):
    adata = counts()
    change(adata)
    model = scldm(adata)
    before = weights(model)
    with pytest.raises(ValueError, match=r"other settings \(data\).*another folder"):
        model.train(EPOCHS, checkpoint_dir=left, **QUIET)
    assert not [key for key, value in weights(model).items() if not value.equal(before[key])]


@pytest.mark.parametrize("row", [1, 100, 198])
def test_other_embeddings_are_refused_whichever_cell_they_are_of(joint_left, row):
    adata = embeddings()
    adata.X[row, 5] += 1e-3
    with pytest.raises(ValueError, match=r"other settings \(data\)"):
        joint(adata).train(4, checkpoint_dir=joint_left, **QUIET)


@pytest.mark.parametrize(
    "argument",
    [
        {"accumulate_grad_batches": 2},
        {"limit_train_batches": 1},
        {"limit_val_batches": 1},
        {"max_steps": 3},
        {"precision": "bf16-mixed"},
        {"gradient_clip_algorithm": "value"},
    ],
    ids=lambda argument: next(iter(argument)),
)
def test_other_arguments_of_the_trainer_are_refused_by_name(left, argument):
    with pytest.raises(ValueError, match=rf"other settings \({next(iter(argument))}\)"):
        scldm().train(EPOCHS, checkpoint_dir=left, **argument, **QUIET)


def test_arguments_that_change_nothing_are_not_compared(joint_left, joint_uninterrupted, tmp_path):
    folder = shutil.copytree(joint_left, tmp_path / "c")
    model = joint()
    model.train(4, checkpoint_dir=folder, log_every_n_steps=5, plan_kwargs={"diffusion": {"mixup": 0.5}}, **QUIET)
    assert_same(model, joint_uninterrupted)


def test_a_model_that_was_trained_differently_before_is_refused(left):
    model = scldm()
    model.train(1, **QUIET)
    with pytest.raises(ValueError, match=r"other settings \(starting weights\)"):
        model.train(EPOCHS, checkpoint_dir=left, **QUIET)


def test_another_autoencoder_before_the_second_stage_is_refused(tmp_path):
    one, other = scldm(), scldm()
    one.train(2, stage="autoencoder", **QUIET)
    other.train(3, stage="autoencoder", **QUIET)
    interrupted(one, tmp_path / "c", max_epochs=4, stage="diffusion")
    with pytest.raises(ValueError, match=r"other settings \(starting weights\)"):
        other.train(4, stage="diffusion", checkpoint_dir=tmp_path / "c", **QUIET)


def test_a_model_that_went_on_after_the_interruption_is_refused(tmp_path):
    """The checkpoint is no longer of what it would start from."""
    model = interrupted(scldm(), tmp_path / "c", max_epochs=EPOCHS)
    model.train(1, stage="autoencoder", **QUIET)
    with pytest.raises(ValueError, match=r"other settings \(starting weights\)"):
        model.train(EPOCHS, checkpoint_dir=tmp_path / "c", **QUIET)


def test_a_checkpoint_without_its_settings_is_not_taken_for_ones_own(joint_left, tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    shutil.copy(joint_left / "diffusion.ckpt", folder)
    with pytest.raises(ValueError, match=r"diffusion\.ckpt.*no settings\.json.*another folder"):
        joint().train(4, checkpoint_dir=folder, **QUIET)
    assert [file.name for file in folder.iterdir()] == ["diffusion.ckpt"]


# ---- the same training


@pytest.mark.parametrize(
    "store", [sparse.csc_matrix, sparse.csr_array, sparse.csr_matrix.toarray, lambda x: x.astype(np.int64)],
    ids=["csc", "csr_array", "dense", "int64"],
)  # fmt: skip
def test_the_same_counts_are_the_same_however_they_are_stored(left, uninterrupted, tmp_path, store):
    folder = shutil.copytree(left, tmp_path / "c")
    adata = counts()
    adata.X = store(adata.X)
    model = scldm(adata)
    model.train(EPOCHS, checkpoint_dir=folder, **QUIET)
    assert_same(model, uninterrupted)


@pytest.mark.parametrize("same_object", [False, True], ids=["new process", "same model"])
@pytest.mark.parametrize("stage", ["all", "diffusion"])
def test_further_training_of_a_trained_model_resumes_to_the_same_result(tmp_path, stage, same_object):
    adata = counts()
    adata.obs["kind"] = adata.obs["kind"].map({"a": 3, "b": 8})  # numbers are those of numpy before they are saved
    model = scldm(adata)
    model.train(2, **QUIET)
    model.save(tmp_path / "model")
    reference = outcome(SCLDM.load(tmp_path / "model", adata, device="cpu"), max_epochs=3, stage=stage)
    interrupted(model, tmp_path / "c", ("diffusion", 1), max_epochs=3, stage=stage)
    if not same_object:
        model = SCLDM.load(tmp_path / "model", adata, device="cpu")
    model.train(3, stage=stage, checkpoint_dir=tmp_path / "c", **QUIET)
    assert_same(model, reference)


@pytest.mark.parametrize("same_object", [False, True], ids=["new process", "same model"])
@pytest.mark.parametrize(("stage", "epoch"), [("autoencoder", 0), ("diffusion", 0), ("diffusion", 3)])
def test_an_interruption_between_an_epoch_and_its_checkpoint(uninterrupted, tmp_path, stage, epoch, same_object):
    model = interrupted(scldm(), tmp_path / "c", (stage, epoch, True), max_epochs=EPOCHS)
    model = model if same_object else scldm()
    model.train(EPOCHS, checkpoint_dir=tmp_path / "c", **QUIET)
    assert_same(model, uninterrupted)


def test_weights_of_another_processor_are_no_other_start(left, uninterrupted, tmp_path):
    """Random numbers differ in their last bit between processors; training goes on from the weights it began with."""
    folder = shutil.copytree(left, tmp_path / "c")
    model = scldm()
    for parameter in model.module.parameters():
        parameter.data *= 1 + 1e-7
    model.train(EPOCHS, checkpoint_dir=folder, **QUIET)
    assert_same(model, uninterrupted)


def test_an_early_stop_is_not_forgotten_where_the_outcome_is_lost(tmp_path):
    settings = {"max_epochs": 12, "early_stopping_patience": 2, "plan_kwargs": {"autoencoder": {"lr": 0.0}}}
    settings["stage"] = "autoencoder"
    reference = outcome(scldm(), **settings)
    n_epochs = len(reference["history"]["autoencoder_loss_train"])
    assert n_epochs < 12
    interrupted(scldm(), tmp_path / "c", ("autoencoder", n_epochs - 1, True), **settings)
    model = scldm()
    model.train(checkpoint_dir=tmp_path / "c", **settings, **QUIET)
    assert_same(model, reference)


def test_other_versions_or_threads_are_told(joint_left, tmp_path, monkeypatch):
    folder, n = shutil.copytree(joint_left, tmp_path / "c"), torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: n + 1)
    with pytest.warns(UserWarning, match=rf"begun with threads={n}, .* now threads={n + 1}: .* not to the bit") as told:
        joint().train(4, checkpoint_dir=folder, **QUIET)
    assert told[0].filename == __file__


# ---- damage


def test_any_bit_that_is_flipped_is_noticed(joint_left, joint_uninterrupted, tmp_path):
    """A damaged checkpoint is never used: the one before it is, to the same result."""
    rng = np.random.default_rng(0)
    assert {file.name for file in joint_left.iterdir()} == set(REFUSED) | set(USED)
    for name in REFUSED + USED:
        for i in range(3 if name in REFUSED else 1):
            folder = shutil.copytree(joint_left, tmp_path / f"{name}.{i}")
            flip(folder / name, int(rng.integers(8 * (folder / name).stat().st_size)))
            model = joint()
            if name in REFUSED:
                with pytest.raises(ValueError, match=rf"{name} is damaged.*[Dd]elete the folder"):
                    model.train(4, checkpoint_dir=folder, **QUIET)
            else:
                with warnings.catch_warnings(record=True) as told:
                    model.train(4, checkpoint_dir=folder, **QUIET)
                assert any(f"{name} is damaged" in str(w.message) for w in told) == (name == "diffusion.ckpt")
                assert_same(model, joint_uninterrupted)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_stage_without_a_whole_checkpoint_is_refused(joint_left, tmp_path, damage):
    folder = shutil.copytree(joint_left, tmp_path / "c")
    contents = {file: file.read_bytes() for file in folder.glob("*.ckpt")}
    assert len(contents) == 2
    for file, content in contents.items():
        if damage == "flip":
            flip(file, 8 * len(content) // 2)
        else:
            file.write_bytes(content[: len(content) // 2] if damage == "truncate" else b"")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    model = joint()
    start = weights(model)
    with pytest.raises(ValueError, match=r"diffusion\.ckpt.* damaged.*[Dd]elete the folder to train anew"):
        model.train(4, checkpoint_dir=folder, **QUIET)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert not [key for key, value in weights(model).items() if not value.equal(start[key])]


def test_a_damaged_outcome_of_a_stage_costs_its_last_epochs(left, uninterrupted, tmp_path):
    folder = shutil.copytree(left, tmp_path / "c")
    flip(folder / "autoencoder.done.pt", 4_000)
    model = scldm()
    with pytest.warns(UserWarning, match=r"autoencoder\.done\.pt is damaged"):
        model.train(EPOCHS, checkpoint_dir=folder, **QUIET)
    assert_same(model, uninterrupted)


def test_a_second_damage_after_the_first_finds_a_whole_checkpoint(joint_left, joint_uninterrupted, tmp_path):
    """The damaged one must not take the place of the one before it."""
    folder = shutil.copytree(joint_left, tmp_path / "c")
    flip(folder / "diffusion.ckpt", 4_000)
    with pytest.warns(UserWarning, match="is damaged"):
        interrupted(joint(), folder, max_epochs=4)
    flip(folder / "diffusion.ckpt", 4_000)
    model = joint()
    with pytest.warns(UserWarning, match="is damaged"):
        model.train(4, checkpoint_dir=folder, **QUIET)
    assert_same(model, joint_uninterrupted)


# ---- writing


class Killed(BaseException):
    """Nothing that a program could clean up after."""


def test_a_kill_at_any_moment_of_writing_leaves_a_good_checkpoint(tmp_path, monkeypatch):
    expected, replace, calls = outcome(joint(), max_epochs=3), os.replace, []
    for moment in range(1, 100):
        folder = tmp_path / str(moment)

        def dies(*args, moment=moment):
            calls.append(args)
            if len(calls) >= moment:
                raise Killed
            replace(*args)

        with monkeypatch.context() as patch:
            calls.clear()
            patch.setattr(os, "replace", dies)
            patch.setattr(Path, "unlink", lambda *args, **kwargs: None)  # nobody cleans up
            try:
                joint().train(3, checkpoint_dir=folder, **QUIET)
                break
            except Killed:
                pass
        model = joint()
        model.train(3, checkpoint_dir=folder, **QUIET)
        assert_same(model, expected)
        assert not folder.exists()
    assert moment == 7  # files: the start, settings, a checkpoint, another after the first has moved, the outcome


def test_checkpoints_are_written_beside_their_place(joint_uninterrupted, tmp_path, monkeypatch):
    """A copy from the folder for temporary files, on another file system, can be cut short."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    model = interrupted(joint(), tmp_path / "c", max_epochs=4)
    model.train(4, checkpoint_dir=tmp_path / "c", **QUIET)
    assert_same(model, joint_uninterrupted)


def test_a_full_disk_is_told_and_costs_no_checkpoint(joint_uninterrupted, tmp_path, monkeypatch):
    folder, sync = tmp_path / "c", os.fsync
    with monkeypatch.context() as patch:

        def full(descriptor):
            if (folder / "diffusion.ckpt").exists():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(descriptor)

        patch.setattr(_files.os, "fsync", full)
        with pytest.raises(
            OSError, match=r"checkpoint_dir=.*No space left on device.*whole.*call train again"
        ) as error:
            joint().train(4, checkpoint_dir=folder, **QUIET)
    assert error.value.errno == errno.ENOSPC
    assert (folder / "diffusion.ckpt").exists()
    assert not list(folder.glob(".*"))
    model = joint()
    model.train(4, checkpoint_dir=folder, **QUIET)
    assert_same(model, joint_uninterrupted)


def test_what_killed_writers_left_goes_with_the_folder(joint_left, tmp_path):
    folder = shutil.copytree(joint_left, tmp_path / "c")
    for name in (".settings.json.4711", ".diffusion.ckpt.12-ab", ".diffusion.done.pt.1", ".start.pt.8-9"):
        (folder / name).write_bytes(b"half")
    joint().train(4, checkpoint_dir=folder, **QUIET)
    assert not folder.exists()


def test_checkpoints_of_the_user_are_those_of_lightning(tmp_path):
    own = ModelCheckpoint(tmp_path / "mine", "mine", save_on_train_epoch_end=True)
    joint().train(2, checkpoint_dir=tmp_path / "c", callbacks=[own], **QUIET)
    assert "state_dict" in torch.load(tmp_path / "mine" / "mine.ckpt", weights_only=True)


def test_a_callback_that_could_not_be_read_again_is_told_before_there_is_anything_to_lose(tmp_path):
    class Remembers(Callback):
        def state_dict(self):
            return {"when": pd.Timestamp("2020-01-01")}

    with pytest.raises(ValueError, match=r"could not be read again.*Remembers.*must hold tensors, numbers"):
        joint().train(3, checkpoint_dir=tmp_path / "c", callbacks=[Remembers()], **QUIET)
