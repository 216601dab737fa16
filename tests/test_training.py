"""Training is reproducible, resumes to the bit, stops in time, and survives a loss that is no number."""

import logging
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from sclatent.model import SCLDM
from sclatent.module import DiT
from sclatent.train import DiffusionPlan, TrainingDivergedError

KEYS = {"condition_keys": ["cell_type", "condition"]}
EPOCHS = {"autoencoder": 4, "diffusion": 5}


class Interrupt(Callback):
    """Raises in a minibatch of an epoch of a stage."""

    def __init__(self, stage: str, epoch: int, error: type[BaseException] = RuntimeError, minibatch: int = 0) -> None:
        self.at, self.error = (stage, epoch, minibatch), error

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (pl_module.name, trainer.current_epoch, batch_idx) == self.at:
            raise self.error("interrupted")


class Poison(Callback):
    """Makes the weights NaN at the end of an epoch, and remembers what they were."""

    def __init__(self, stage: str, epoch: int) -> None:
        self.at = (stage, epoch)

    def on_train_epoch_end(self, trainer, pl_module):
        if (pl_module.name, trainer.current_epoch) == self.at:
            self.good = {key: value.clone() for key, value in pl_module.trained.state_dict().items()}
            for parameter in pl_module.trained.parameters():
                parameter.data.fill_(float("nan"))


def weights(model: SCLDM) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.module.state_dict().items()}


def assert_same_weights(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    different = [key for key in one if not one[key].equal(other[key])]
    assert not different


def samples(model: SCLDM) -> np.ndarray:
    return model.sample(25, {"condition": "stimulated"}, progress_bar=False).X.toarray()


def assert_same_model(one: SCLDM, other: SCLDM) -> None:
    assert_same_weights(weights(one), weights(other))
    np.testing.assert_array_equal(samples(one), samples(other))
    assert one.history.keys() == other.history.keys()
    for key, frame in one.history.items():
        pd.testing.assert_frame_equal(frame, other.history[key])


@pytest.fixture
def untrained(cells, small):
    """Makes models that have not been trained yet, all of the same seed."""
    SCLDM.setup_anndata(cells, **KEYS)
    return lambda **kwargs: SCLDM(cells, **{**small, **kwargs})


@pytest.fixture
def uninterrupted(untrained, quiet) -> SCLDM:
    model = untrained()
    model.train(EPOCHS, **quiet)
    return model


@pytest.fixture
def interrupts():
    """Leaves the handling of Ctrl-C as it was, whatever a test does."""
    handler = signal.getsignal(signal.SIGINT)
    yield handler
    signal.signal(signal.SIGINT, handler)


# ---- interruption


@pytest.mark.parametrize("same_object", [False, True], ids=["new process", "same model"])
@pytest.mark.parametrize(
    ("stage", "epoch", "minibatch"),
    [("autoencoder", 0, 1), ("autoencoder", 2, 0), ("diffusion", 0, 0), ("diffusion", 3, 1)],
)
def test_training_resumes_to_the_same_result(
    untrained, uninterrupted, quiet, tmp_path, stage, epoch, minibatch, same_object
):
    folder = tmp_path / "checkpoints"
    model = untrained()
    with pytest.raises(RuntimeError, match="interrupted"):
        model.train(EPOCHS, checkpoint_dir=folder, callbacks=[Interrupt(stage, epoch, minibatch=minibatch)], **quiet)
    assert folder.is_dir()
    if not same_object:
        model = untrained()
    model.train(EPOCHS, checkpoint_dir=folder, **quiet)
    assert_same_model(model, uninterrupted)
    assert not folder.exists()


def test_training_that_is_interrupted_twice_resumes_too(untrained, uninterrupted, quiet, tmp_path):
    for stage, epoch in (("autoencoder", 1), ("autoencoder", 3), ("diffusion", 2)):
        with pytest.raises(RuntimeError, match="interrupted"):
            untrained().train(EPOCHS, checkpoint_dir=tmp_path / "c", callbacks=[Interrupt(stage, epoch)], **quiet)
    model = untrained()
    model.train(EPOCHS, checkpoint_dir=tmp_path / "c", **quiet)
    assert_same_model(model, uninterrupted)


def test_resumed_training_does_not_repeat_epochs(untrained, quiet, tmp_path):
    epochs = []

    class Record(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            epochs.append((pl_module.name, trainer.current_epoch))

    with pytest.raises(RuntimeError, match="interrupted"):
        untrained().train(EPOCHS, checkpoint_dir=tmp_path / "c", callbacks=[Interrupt("diffusion", 3)], **quiet)
    untrained().train(EPOCHS, checkpoint_dir=tmp_path / "c", callbacks=[Record()], **quiet)
    assert epochs == [("diffusion", 3), ("diffusion", 4)]


def test_ctrl_c_is_a_keyboard_interrupt_and_the_next_one_works_too(
    untrained, uninterrupted, quiet, tmp_path, interrupts
):
    with pytest.raises(KeyboardInterrupt):
        untrained().train(
            EPOCHS, checkpoint_dir=tmp_path / "c", callbacks=[Interrupt("diffusion", 2, KeyboardInterrupt)], **quiet
        )
    assert signal.getsignal(signal.SIGINT) is interrupts
    model = untrained()
    model.train(EPOCHS, checkpoint_dir=tmp_path / "c", **quiet)
    assert_same_model(model, uninterrupted)


def test_the_checkpoint_folder_is_used_and_removed(untrained, uninterrupted, quiet, tmp_path):
    class Look(Callback):
        seen = False

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.seen |= trainer.current_epoch > 0 and any((tmp_path / "c").glob("*.ckpt"))

    look, model = Look(), untrained()
    model.train(EPOCHS, checkpoint_dir=tmp_path / "c", callbacks=[look], **quiet)
    assert look.seen
    assert list(tmp_path.iterdir()) == []
    assert_same_model(model, uninterrupted)


def test_a_folder_with_files_of_the_user_is_kept(untrained, quiet, tmp_path):
    for name in ("notes.txt", "mine.ckpt", "mine.done.pt"):
        (tmp_path / name).write_text("mine")
    untrained().train(1, checkpoint_dir=tmp_path, **quiet)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine.ckpt", "mine.done.pt", "notes.txt"]


@pytest.mark.parametrize(
    ("train", "model", "names"),
    [
        ({"seed": 9}, {}, "seed"),
        ({"batch_size": 64}, {}, "batch_size"),
        ({"plan_kwargs": {"autoencoder": {"lr": 1e-4}}}, {}, "plan_kwargs"),
        ({"max_epochs": 7}, {}, "epochs"),
        ({"train_size": 0.8}, {}, "train_size"),
        ({}, {"width": 16}, "model"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(untrained, quiet, tmp_path, train, model, names):
    settings = {"max_epochs": EPOCHS, "checkpoint_dir": tmp_path / "c", **quiet}
    with pytest.raises(RuntimeError, match="interrupted"):
        untrained().train(**settings, callbacks=[Interrupt("autoencoder", 1)])
    other = untrained(**model)
    before = weights(other)
    with pytest.raises(ValueError, match=rf"other settings \({names}\).*another folder"):
        other.train(**{**settings, **train})
    assert_same_weights(weights(other), before)
    untrained().train(**settings)  # what was there can still be resumed


def test_a_checkpoint_of_other_data_is_refused(untrained, cells, small, quiet, tmp_path):
    settings = {"max_epochs": EPOCHS, "checkpoint_dir": tmp_path / "c", **quiet}
    with pytest.raises(RuntimeError, match="interrupted"):
        untrained().train(**settings, callbacks=[Interrupt("autoencoder", 1)])
    other = cells[:200].copy()
    SCLDM.setup_anndata(other, **KEYS)
    with pytest.raises(ValueError, match=r"other settings \(data\)"):
        SCLDM(other, **small).train(**settings)


def test_what_was_learned_before_an_interruption_stays(untrained, quiet):
    """Without checkpoints: the autoencoder is usable, and training can go on from where it is."""
    model = untrained()
    with pytest.raises(RuntimeError, match="interrupted"):
        model.train(EPOCHS, callbacks=[Interrupt("diffusion", 0)], **quiet)
    assert model.get_latent_representation().shape == (240, 32)
    assert not model.is_trained
    model.train(2, stage="diffusion", **quiet)
    assert samples(model).shape == (25, 40)


# ---- a loss that is no number


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_nan_names_the_epoch_and_keeps_the_last_good_weights(untrained, quiet, epoch):
    """The weights turn NaN between two epochs: the loss of the second one shows it."""
    model, poison = untrained(), Poison("autoencoder", epoch)
    with pytest.raises(TrainingDivergedError, match=rf"autoencoder became nan in epoch {epoch + 2}\b.*plan_kwargs.*lr"):
        model.train(EPOCHS, callbacks=[poison], train_size=1.0, **quiet)
    assert_same_weights(model.module.autoencoder.state_dict(), poison.good)
    assert all(torch.isfinite(value).all() for value in weights(model).values())
    assert np.isfinite(model.get_latent_representation()).all()


def test_a_nan_after_good_epochs_leaves_a_model_that_samples(untrained, quiet):
    model = untrained()
    with pytest.raises(TrainingDivergedError, match="epoch 4"):
        model.train(EPOCHS, callbacks=[Poison("diffusion", 2)], **quiet)
    assert samples(model).sum() > 0
    assert np.isfinite(model.get_latent_representation()).all()


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
@pytest.mark.parametrize("train_size", [0.9, 1.0])
def test_an_absurd_learning_rate_diverges_with_finite_weights(untrained, quiet, stage, train_size):
    model = untrained()
    with pytest.raises(
        TrainingDivergedError, match=rf"loss of the {stage} became .* in epoch \d+\..*lower learning rate"
    ):
        model.train(EPOCHS, plan_kwargs={stage: {"lr": 1e30}}, train_size=train_size, **quiet)
    assert all(torch.isfinite(value).all() for value in weights(model).values())
    model.train(1, **quiet)
    assert samples(model).sum() > 0


# ---- stopping, seeds, averages


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_early_stopping_stops_a_stage_that_learns_nothing(untrained, quiet, stage):
    settings = {**quiet, "early_stopping_patience": 2, "plan_kwargs": {stage: {"lr": 0.0}}}
    one, other = untrained(), untrained()
    one.train({"autoencoder": 12, "diffusion": 12}, **settings)
    assert len(one.history[f"{stage}_loss_train"]) <= 4
    other.train({"autoencoder": 12, "diffusion": 12}, early_stopping=False, **settings)
    assert len(other.history[f"{stage}_loss_train"]) == 12


def test_the_weights_of_the_best_epoch_are_kept(untrained, quiet):
    class Ruin(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch >= 5:
                for parameter in pl_module.trained.parameters():
                    parameter.data.mul_(1.5)

    model = untrained()
    model.train(8, stage="autoencoder", callbacks=[Ruin()], early_stopping=False, **quiet)
    validation = model.history["autoencoder_loss_validation"]["autoencoder_loss_validation"]
    assert validation.idxmin() < 5
    assert validation.iloc[-1] > validation.min() + 1
    error = model.get_reconstruction_error(indices=model.validation_indices_)["reconstruction_loss"]
    assert error == pytest.approx(validation.min(), rel=1e-4)


def test_the_seed_decides_and_the_global_state_does_not(untrained, uninterrupted, quiet):
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    again = untrained()
    again.train(EPOCHS, **quiet)
    assert_same_model(again, uninterrupted)
    other = untrained()
    other.train(EPOCHS, seed=1, **quiet)
    assert (samples(other) != samples(uninterrupted)).any()
    assert any(not value.equal(weights(untrained())[key]) for key, value in weights(untrained(seed=1)).items())


def test_the_global_random_state_is_left_alone(untrained, quiet):
    def states() -> list:
        return [torch.get_rng_state().tolist(), [str(part) for part in np.random.get_state()]]  # noqa: NPY002

    before = states()
    model = untrained()
    assert states() == before, "by making a model"
    model.train(1, **quiet)
    assert states() == before, "by training"
    samples(model)
    model.counterfactual(conditions={"condition": "stimulated"}, noise_level=0.5, progress_bar=False)
    model.get_latent_representation()
    model.get_normalized_expression()
    assert states() == before, "by using a model"


def test_the_average_of_the_weights_is_what_samples(untrained, quiet):
    class Capture(Callback):
        def on_train_end(self, trainer, pl_module):
            if pl_module.name == "diffusion":
                self.raw = {k: v.clone() for k, v in pl_module.trained.state_dict().items()}
                self.averaged = {k: v.clone() for k, v in pl_module.averaged.module.state_dict().items()}

    capture, model = Capture(), untrained()
    model.train(EPOCHS, train_size=1.0, callbacks=[capture], **quiet)
    assert_same_weights(model.module.denoiser.state_dict(), capture.averaged)
    different = [key for key, value in model.module.denoiser.state_dict().items() if not value.equal(capture.raw[key])]
    assert "trunk.out.weight" in different


def test_conditions_are_lost_together_and_key_by_key():
    """Which is what trains the null entries that guidance and open keys rely on; validation loses none."""
    seen = []
    denoiser = DiT(2, 4, [3, 2], width=8, n_blocks=1, n_heads=2, has_size=True)
    plan = DiffusionPlan(denoiser, dropout_all=0.1, dropout_key=0.2)
    for denoiser in (plan.trained, plan.averaged):
        denoiser.register_forward_pre_hook(lambda module, args: seen.append(args[2].codes.numpy()))
    codes = torch.stack([torch.arange(6_000) % 3, torch.arange(6_000) % 2], dim=1)
    for losses in (plan.losses, plan.validation_losses):
        losses((torch.zeros(6_000, 2, 4), codes, torch.zeros(6_000)), torch.Generator().manual_seed(0))
    lost = seen[0] == -1
    np.testing.assert_allclose(lost.mean(axis=0), 0.1 + 0.9 * 0.2, atol=0.02)
    assert lost.all(axis=1).mean() == pytest.approx(0.1 + 0.9 * 0.2**2, abs=0.02)
    np.testing.assert_array_equal(seen[0][~lost], codes.numpy()[~lost])
    np.testing.assert_array_equal(seen[1], codes.numpy())


def test_averaging_can_be_turned_off(untrained, quiet):
    one, other = untrained(), untrained()
    one.train(EPOCHS, **quiet)
    other.train(EPOCHS, plan_kwargs={"diffusion": {"ema_decay": 0.0}}, **quiet)
    assert not one.module.denoiser.trunk.out.weight.equal(other.module.denoiser.trunk.out.weight)
    assert_same_weights(one.module.autoencoder.state_dict(), other.module.autoencoder.state_dict())


def test_tokens_are_standardised_for_the_denoiser(untrained, quiet):
    model = untrained()
    model.train(EPOCHS, **quiet)
    latent = torch.from_numpy(model.get_latent_representation()).view(240, 4, 8)
    standardised = model.module.standardize(latent[model.train_indices_])
    torch.testing.assert_close(standardised.mean(dim=0), torch.zeros(4, 8), atol=1e-4, rtol=0)
    torch.testing.assert_close(standardised.std(dim=0, correction=0), torch.ones(4, 8), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        model.module.standardize.inverse(standardised), latent[model.train_indices_], atol=1e-4, rtol=1e-4
    )


def test_stage_two_never_touches_the_autoencoder(untrained, quiet):
    model = untrained()
    model.train(2, stage="autoencoder", **quiet)
    before = {key: value.clone() for key, value in model.module.autoencoder.state_dict().items()}
    calls = []
    encode = model.module.autoencoder.encode
    model.module.autoencoder.encode = lambda sets: calls.append(sets.n_cells) or encode(sets)
    model.train(6, stage="diffusion", **quiet)
    assert sum(calls) == 240  # every cell once, however many epochs
    assert_same_weights(before, model.module.autoencoder.state_dict())


def test_training_on_all_cells_needs_no_validation(untrained, quiet):
    model = untrained()
    model.train(2, train_size=1.0, **quiet)
    assert set(model.history) == {"autoencoder_loss_train", "diffusion_loss_train"}
    assert len(model.validation_indices_) == 0
    assert samples(model).sum() > 0


def test_callbacks_and_trainer_arguments_arrive(untrained, quiet, caplog):
    class Count(Callback):
        n = 0

        def on_train_epoch_end(self, trainer, pl_module):
            self.n += 1

    count = Count()
    with caplog.at_level(logging.INFO):
        untrained().train(EPOCHS, callbacks=[count], limit_train_batches=1, **quiet)
    assert count.n == sum(EPOCHS.values())


def test_weights_that_turn_nan_in_the_very_last_step_are_not_kept(untrained, quiet):
    """There is no later loss that would tell, and no validation either."""

    class Poison(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            last = batch_idx == trainer.num_training_batches - 1 and trainer.current_epoch == 1
            if last and pl_module.name == "autoencoder":
                with torch.no_grad():
                    pl_module.trained.gene_bias.fill_(float("nan"))

    model = untrained()
    with pytest.raises(TrainingDivergedError, match="after epoch 2"):
        model.train(2, train_size=1.0, callbacks=[Poison()], **quiet)
    assert all(torch.isfinite(value).all() for value in model.module.state_dict().values())


def test_training_on_every_cell_warns_of_nothing(cells, fit, recwarn):
    fit(cells, 1, train={"train_size": 1.0})
    assert not [str(w.message) for w in recwarn if "val" in str(w.message)]
