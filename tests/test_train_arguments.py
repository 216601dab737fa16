"""Arguments of train are refused before any work or mean what they say, and a refused training costs nothing."""

import re
from datetime import timedelta

import lightning.pytorch
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from scvi.train import SaveCheckpoint

from sclatent.datasets import simulate
from sclatent.model import DAED, SCLDM, JointDiffusion, JointLDM

pytestmark = pytest.mark.usefixtures("few_steps")

MODELS = [SCLDM, JointLDM, JointDiffusion, DAED]
each_model = pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
QUIET = {"accelerator": "cpu", "progress_bar": False}
SMALL = {"denoiser_width": 16, "denoiser_blocks": 1, "n_heads": 2}


class At(Callback):
    """Does something in a hook of Lightning, of one stage or of all."""

    def __init__(self, hook: str, action, stage: str | None = None) -> None:
        def act(trainer, pl_module, *args):
            if stage in (None, pl_module.name):
                action(trainer, pl_module)

        setattr(self, hook, act)


def fail(trainer, pl_module) -> None:
    raise RuntimeError("failed")


@pytest.fixture(scope="module")
def cells() -> AnnData:
    return simulate(100, 20, n_batches=2, library_size=200, seed=1)


@pytest.fixture(scope="module")
def embeddings() -> AnnData:
    adata = AnnData(np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32))
    adata.obs["type"] = np.array(["B", "T", "unknown"])[np.arange(60) % 3]
    adata.obs["batch"] = np.array(["one", "two"])[np.arange(60) % 2]
    return adata


@pytest.fixture(scope="module")
def new(cells, embeddings):
    """Makes untrained models, with an AnnData of their own."""

    def new(cls: type):
        if cls is SCLDM:
            SCLDM.setup_anndata(own := cells.copy(), condition_keys="condition", batch_key="batch")
            return SCLDM(own, n_tokens=2, token_dim=8, width=16, n_blocks=1, **SMALL)
        cls.setup_anndata(own := embeddings.copy(), labels_key="type", batch_key="batch")
        return cls(own, **SMALL, **({"width": 16, "n_blocks": 1} if cls is DAED else {}))

    return new


@pytest.fixture(scope="module")
def trained(new) -> dict:
    """A trained model of each class, that nobody changes."""
    models = {cls: new(cls) for cls in MODELS}
    for model in models.values():
        model.train(2, **QUIET)
    return models


def state(model) -> dict:
    """All of a model that a training changes."""
    return {
        "weights": {key: value.clone() for key, value in model.module.state_dict().items()},
        "trained": (set(model.trained_stages), model.is_trained),
        "history": {key: frame.copy() for key, frame in model.history.items()},
        "split": (model.train_indices_.copy(), model.validation_indices_.copy()),
        "batches": model.batches.training.batch.copy(),
        "sizes": model.domain.library_sizes.sizes.copy() if isinstance(model, SCLDM) else None,
        "tokens": model._tokens,
        "sample": model.sample(5, progress_bar=False).X,
    }


def assert_same(before: dict, after: dict) -> None:
    assert before["weights"].keys() == after["weights"].keys()
    assert all(value.equal(after["weights"][key]) for key, value in before["weights"].items())
    assert before["trained"] == after["trained"]
    assert before["history"].keys() == after["history"].keys()
    for key, frame in before["history"].items():
        pd.testing.assert_frame_equal(frame, after["history"][key])
    for key in ("split", "batches", "sizes"):
        np.testing.assert_equal(before[key], after[key])
    assert before["tokens"] is after["tokens"]
    assert (before["sample"] != after["sample"]).sum() == 0


# ---- a training that comes to nothing costs nothing


@each_model
@pytest.mark.parametrize(
    "arguments",
    [
        {"callbacks": [At("on_train_start", fail)]},
        {"callbacks": [At("on_before_backward", fail)]},  # as where memory does not do, in the first minibatch
        {"callbacks": [At("on_train_batch_end", fail)], "seed": 5, "train_size": 0.5},
        {"callbacks": [At("on_train_start", fail)], "stage": "diffusion", "train_size": 0.5},
        {"callbacks": [LearningRateMonitor()]},  # Lightning refuses it where there is no logger
    ],
    ids=["start", "first step", "first epoch", "one stage", "refused late"],
)
def test_a_training_that_ends_before_an_epoch_costs_nothing(trained, cls, arguments):
    model = trained[cls]
    before = state(model)
    with pytest.raises(Exception, match=r"failed|no logger"):
        model.train(2, **{**QUIET, **arguments})
    assert_same(before, state(model))


@each_model
def test_ctrl_c_in_the_first_epoch_costs_nothing(trained, cls):
    def interrupt(trainer, pl_module):
        raise KeyboardInterrupt

    model = trained[cls]
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        model.train(2, callbacks=[At("on_train_batch_end", interrupt)], **QUIET)
    assert_same(before, state(model))


def test_the_first_stage_stays_where_the_second_comes_to_nothing(new):
    model = new(SCLDM)
    with pytest.raises(RuntimeError, match="failed"):
        model.train(2, callbacks=[At("on_train_start", fail, "diffusion")], **QUIET)
    assert model.trained_stages == {"autoencoder"}
    assert len(model.history["autoencoder_loss_train"]) == 2
    assert model.get_latent_representation().shape == (100, 16)
    model.train(1, stage="diffusion", **QUIET)
    assert model.sample(3, progress_bar=False).n_obs == 3


def test_a_stage_that_never_begins_is_an_error(trained):
    model = trained[SCLDM]
    before = state(model)
    with pytest.raises(RuntimeError, match="autoencoder was not trained: training ended before the first epoch"):
        model.train(2, max_time=timedelta(0), **QUIET)
    assert_same(before, state(model))


# ---- arguments that are refused

NOT_WHOLE = [0, -1, 2.5, True, "2", float("nan")]
REFUSED = [
    *(({"seed": seed}, f"seed={seed!r} must be") for seed in (None, -1, True, 1.5, "0")),
    *(({"batch_size": n}, f"batch_size={n!r} must be") for n in (*NOT_WHOLE, None)),
    *(({"max_epochs": n}, f"max_epochs={n!r} must be") for n in (*NOT_WHOLE, [1, 2])),
    ({"max_epochs": {"diffusion": 1.5}}, "max_epochs['diffusion']=1.5 must be"),
    ({"max_epochs": {"decoder": 1}}, "'decoder' is no stage"),
    *(({"train_size": share}, f"train_size={share!r} must be") for share in (0, 1.1, float("nan"), None, "0.9", True)),
    *(({"early_stopping_patience": n}, f"early_stopping_patience={n!r} must be") for n in NOT_WHOLE),
    ({"early_stopping": "no"}, "early_stopping='no' must be True or False"),
    ({"progress_bar": None}, "progress_bar=None must be True or False"),
    ({"callbacks": [3]}, "callbacks=[3] must be a list of callbacks of lightning.pytorch"),
    ({"callbacks": 3}, "callbacks=3 must be a list of callbacks of lightning.pytorch"),
    ({"callbacks": [SaveCheckpoint(monitor="diffusion_loss_train")]}, "SaveCheckpoint is for models of scvi-tools"),
    ({"callbacks": [TQDMProgressBar()]}, "`enable_progress_bar=False` but found `TQDMProgressBar`"),
    *(({"plan_kwargs": p}, f"plan_kwargs={p!r} must go by stage") for p in (3, [1], {"diffusion": 3})),
    ({"accelerator": "abacus"}, "accelerator='abacus'"),
    ({"accelerator": "tpu"}, "accelerator='tpu'"),
    *(
        ({"devices": d}, f"devices={d!r}: this version trains on one device")
        for d in (2, "2", -1, "-1", [0, 1], "0,1", 0)
    ),
    *(({"precision": p}, f"precision={p!r}") for p in ("64-true", "bf16-true", "16-true", "half")),
    # of the trainer
    *(({"check_val_every_n_epoch": n}, f"check_val_every_n_epoch={n!r} must be") for n in NOT_WHOLE),
    *(({"accumulate_grad_batches": n}, f"accumulate_grad_batches={n!r} must be") for n in NOT_WHOLE),
    *(({"max_steps": n}, f"max_steps={n!r} must be") for n in (0, 2.5, "2")),
    *(({"limit_train_batches": n}, f"limit_train_batches={n!r} must be") for n in (0, 0.0, 1.5, -1, "1")),
    *(({"gradient_clip_val": x}, f"gradient_clip_val={x!r} must be") for x in (-1, float("nan"), "1")),
    ({"gradient_clip_algorithm": "sign"}, "gradient_clip_algorithm='sign'"),
    ({"max_time": "soon"}, "max_time='soon'"),
    ({"logger": "here"}, "logger='here' must be a logger"),
    ({"learning_rate_monitor": True}, "learning_rate_monitor=True needs a logger"),
    ({"enable_checkpointing": True}, "enable_checkpointing=True cannot be honoured: use checkpoint_dir"),
    ({"enable_checkpointing": False, "checkpoint_dir": "never"}, "enable_checkpointing=False cannot be honoured"),
    ({"strategy": "ddp"}, "strategy='ddp' cannot be honoured: this version trains on one device"),
    ({"num_nodes": 2}, "num_nodes=2 cannot be honoured: this version trains on one device"),
    ({"barebones": True}, "barebones=True cannot be honoured"),
    ({"overfit_batches": 1}, "overfit_batches=1 cannot be honoured: .*limit_train_batches"),
    ({"val_check_interval": 0.5}, "val_check_interval=0.5 cannot be honoured: .*check_val_every_n_epoch"),
    ({"early_stopping_monitor": "elbo_validation"}, "early_stopping_monitor='elbo_validation' cannot be honoured"),
    ({"early_stopping_min_delta": 0.1}, "early_stopping_min_delta=0.1 cannot be honoured: .*EarlyStopping"),
    ({"simple_progress_bar": True}, "simple_progress_bar=True cannot be honoured: use progress_bar"),
    ({"log_save_dir": "x"}, "log_save_dir='x' cannot be honoured: give a logger"),
    # of the plans
    *(
        ({"plan_kwargs": {"diffusion": {name: value}}}, f"{name}={value!r} must be")
        for name, values in {
            "seed": [-1, 1.5, None],
            "lr": [-1e-3, float("nan"), float("inf"), "fast", None],
            "weight_decay": [-1, float("nan")],
            "betas": [0.9, (0.9,), (0.9, 1.0), (0.9, 0.95, 0.99)],
            "n_warmup_steps": [-1, 1.5],
            "dropout_all": [1.5, float("nan")],
            "dropout_key": [-0.1],
            "ema_decay": [1.5, -0.1, float("nan")],
        }.items()
        for value in values
    ),
    ({"plan_kwargs": {"autoencoder": {"thinning": float("nan")}}}, "thinning=nan must be"),
    ({"plan_kwargs": {"autoencoder": {"dispersion_lr": 0}}}, "dispersion_lr=0 must be above 0"),
    ({"plan_kwargs": {"autoencoder": {"lr": -1}}, "stage": "diffusion"}, "lr=-1 must be at least 0"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_refused_is_refused_before_any_work(trained, monkeypatch, arguments, message):
    model = trained[SCLDM]
    monkeypatch.setattr(model, "_check_values", lambda rows: pytest.fail("work was done before"), raising=False)
    before = dict(vars(model))
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        model.train(**{"max_epochs": 2, **QUIET, **arguments})
    assert {key: id(value) for key, value in vars(model).items()} == {key: id(value) for key, value in before.items()}


@pytest.mark.parametrize("name", ["lr", "max_epoch", "default_root", "kwargs"])
def test_an_unknown_argument_is_named(trained, name):
    with pytest.raises(TypeError, match=f"no argument '{name}'.*plan_kwargs"):
        trained[SCLDM].train(2, **QUIET, **{name: 1})


@pytest.mark.parametrize("name", ["process", "denoiser", "nonsense"])
def test_an_argument_that_no_plan_takes_is_named(trained, name):
    with pytest.raises(TypeError, match=f"'{name}'"):
        trained[SCLDM].train(2, plan_kwargs={"diffusion": {name: 1}}, **QUIET)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classifier_weight", -1), ("n_labelled", 1.5), ("mixup", -0.5), ("mixup", 1e-3),
        ("consistency_weight", float("nan")), ("threshold", "high"), ("strong_noise", 2),
    ],
)  # fmt: skip
def test_joint_plans_refuse_before_any_work(trained, name, value):
    for cls in (JointLDM, JointDiffusion):
        with pytest.raises(ValueError, match=f"^{name}={value!r} must be"):
            trained[cls].train(2, plan_kwargs={"diffusion": {name: value}}, **QUIET)


@each_model
def test_another_default_dtype_is_refused_with_the_cure(new, trained, cls):
    model = trained[cls]
    torch.set_default_dtype(torch.float64)
    try:
        for use in (
            lambda: new(cls),
            lambda: model.train(2, **QUIET),
            lambda: model.sample(3, progress_bar=False),
            model.get_latent_representation,
        ):
            with pytest.raises(RuntimeError, match=r"torch.float64.*torch.set_default_dtype\(torch.float32\)"):
                use()
    finally:
        torch.set_default_dtype(torch.float32)


# ---- arguments that mean what they say


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), np.arange(4)[3]], ids=repr)
def test_a_whole_number_of_numpy_is_a_seed(new, seed):
    one, other = new(SCLDM), new(SCLDM)
    one.train(1, seed=3, **QUIET)
    other.train(
        np.int64(1), seed=seed, batch_size=np.int32(128), train_size=np.float32(0.9),
        plan_kwargs={"diffusion": {"seed": seed, "lr": np.float64(1e-3)}}, **QUIET,
    )  # fmt: skip
    assert all(value.equal(other.module.state_dict()[key]) for key, value in one.module.state_dict().items())


@each_model
def test_any_seed_of_at_least_0_will_do(new, cls):
    model = new(cls)
    model.train(1, seed=2**62, **QUIET)
    assert model.trained_stages == set(model.STAGES)


@each_model
def test_mixed_precision_learns_the_same(new, cls):
    """But for rounding; weights stay in single precision, and what is trained can be used."""
    models = {precision: new(cls) for precision in ("32-true", "bf16-mixed")}
    for precision, model in models.items():
        model.train(4, precision=precision, **QUIET)
        assert all(p.dtype == torch.float32 for p in model.module.parameters())
        assert model.sample(3, progress_bar=False).n_obs == 3
    exact, mixed = (model.history for model in models.values())
    for key, frame in exact.items():
        np.testing.assert_allclose(mixed[key], frame, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("likelihood", ["zinb", "poisson", "normal"])
def test_mixed_precision_trains_every_likelihood(cells, likelihood):
    SCLDM.setup_anndata(own := cells.copy(), condition_keys="condition", is_count_data=likelihood != "normal")
    model = SCLDM(own, n_tokens=2, token_dim=8, width=16, n_blocks=1, gene_likelihood=likelihood, **SMALL)
    model.train(1, precision="bf16-mixed", **QUIET)
    assert np.isfinite(model.history["autoencoder_loss_train"].to_numpy()).all()


@pytest.mark.parametrize(
    ("arguments", "attribute", "value"),
    [
        ({"gradient_clip_val": 0.25}, "gradient_clip_val", 0.25),
        ({"gradient_clip_val": None}, "gradient_clip_val", None),
        ({}, "gradient_clip_val", 1.0),
        ({"gradient_clip_algorithm": "value"}, "gradient_clip_algorithm", "value"),
        ({"check_val_every_n_epoch": 2}, "check_val_every_n_epoch", 2),
        ({"check_val_every_n_epoch": None}, "check_val_every_n_epoch", 1),
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches", 2),
        ({"log_every_n_steps": 3}, "log_every_n_steps", 3),
        ({"num_sanity_val_steps": 1}, "num_sanity_val_steps", 1),
        ({"limit_train_batches": 1}, "limit_train_batches", 1),
        ({"limit_val_batches": 0}, "limit_val_batches", 0),
        ({"max_steps": 3}, "max_steps", 3),
        ({"min_epochs": 1}, "min_epochs", 1),
        ({"inference_mode": False}, "predict_loop", ...),
        ({"deterministic": False, "benchmark": False}, "loggers", []),
        ({"enable_checkpointing": False}, "checkpoint_callbacks", []),
        ({"enable_checkpointing": None, "logger": None}, "loggers", []),
        ({"enable_progress_bar": False, "progress_bar": True}, "progress_bar_callback", None),
        ({"strategy": "auto", "num_nodes": 1, "overfit_batches": 0.0, "barebones": False}, "num_nodes", 1),
        ({"devices": "1"}, "num_devices", 1),
        ({"devices": np.int64(1), "accelerator": "auto"}, "num_devices", 1),
    ],
    ids=str,
)
def test_what_is_given_reaches_the_trainer_of_every_stage(new, arguments, attribute, value):
    seen = []
    look = At("on_train_end", lambda trainer, pl_module: seen.append(getattr(trainer, attribute)))
    model = new(SCLDM)
    model.train(**{"max_epochs": 2, "batch_size": 20, **QUIET, "callbacks": [look], **arguments})
    assert len(seen) == 2
    assert model.is_trained
    assert value is ... or seen == [value, value]


def test_a_logger_gets_the_losses_of_all_stages_by_name(new, tmp_path):
    model = new(SCLDM)
    model.train(3, batch_size=40, logger=CSVLogger(tmp_path), learning_rate_monitor=True, log_every_n_steps=1, **QUIET)
    (file,) = tmp_path.rglob("metrics.csv")
    logged = pd.read_csv(file)
    for key in (f"{stage}_loss_{split}" for stage in model.STAGES for split in ("train", "validation")):
        frame = model.history[key]
        assert list(frame.index) == [0, 1, 2]
        np.testing.assert_allclose(logged[key].dropna(), frame[key], rtol=1e-5)
    steps = {stage: logged["step"][logged[f"{stage}_loss_train"].notna()] for stage in model.STAGES}
    assert steps["autoencoder"].max() < steps["diffusion"].min()  # none is written over
    rates = logged.filter(like="lr-AdamW").dropna(how="all")
    assert len(rates) == len(rates.assign(step=logged["step"]).drop_duplicates("step"))


@pytest.mark.parametrize("cls", [JointLDM, DAED], ids=lambda cls: cls.__name__)
def test_a_logger_that_lightning_makes_is_one_for_all_stages(new, tmp_path, cls):
    loggers = []
    look = At("on_train_end", lambda trainer, pl_module: loggers.append(trainer.logger))
    new(cls).train(1, logger=True, default_root_dir=tmp_path, callbacks=[look], **QUIET)
    assert len(loggers) == 2
    assert loggers[0] is loggers[1]


def test_epochs_that_are_not_validated_are_not_the_best(new):
    class Ruin(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 4:  # the last one, which is not validated
                for parameter in pl_module.trained.parameters():
                    parameter.data.mul_(3)

    model = new(SCLDM)
    model.train(5, stage="autoencoder", check_val_every_n_epoch=2, callbacks=[Ruin()], **QUIET)
    watched = model.history["autoencoder_loss_validation"]["autoencoder_loss_validation"]
    assert list(watched.index) == [1, 3]
    assert len(model.history["autoencoder_loss_train"]) == 5
    error = model.get_reconstruction_error(indices=model.validation_indices_)["reconstruction_loss"]
    assert error == pytest.approx(watched.min(), rel=1e-4)
    model.train(4, stage="autoencoder", check_val_every_n_epoch=2, **QUIET)
    assert list(model.history["autoencoder_loss_validation"].index) == [1, 3, 6, 8]  # 5 epochs were before


def test_without_any_validation_the_last_epoch_is_kept(new):
    kept = []
    look = At("on_train_end", lambda trainer, plan: kept.append(plan.trained.gene_bias.detach().clone()), "autoencoder")
    for arguments in ({"check_val_every_n_epoch": 9}, {"limit_val_batches": 0}, {"train_size": 1.0}):
        model = new(SCLDM)
        model.train(2, callbacks=[look], **arguments, **QUIET)
        assert model.module.autoencoder.gene_bias.equal(kept[-1])
        assert set(model.history) == {"autoencoder_loss_train", "diffusion_loss_train"}


def test_a_metric_that_was_not_there_before_has_the_number_of_its_epoch(new):
    model = new(SCLDM)
    model.train(3, stage="autoencoder", train_size=1.0, **QUIET)
    model.train(2, stage="autoencoder", **QUIET)
    assert list(model.history["autoencoder_loss_validation"].index) == [3, 4]
    assert list(model.history["autoencoder_loss_train"].index) == [0, 1, 2, 3, 4]


def test_patience_is_in_epochs_however_often_the_loss_is_watched(new):
    model = new(SCLDM)
    model.train(
        30, stage="autoencoder", check_val_every_n_epoch=2, early_stopping_patience=4,
        plan_kwargs={"autoencoder": {"lr": 0.0}}, **QUIET,
    )  # fmt: skip
    assert len(model.history["autoencoder_loss_train"]) == 6  # the first validation, and two that bring nothing


def test_weights_are_averaged_once_a_step(new):
    seen = []
    look = At("on_train_end", lambda trainer, plan: seen.append((trainer.global_step, int(plan.averaged.n_averaged))))
    model = new(SCLDM)
    model.train(2, stage="autoencoder", **QUIET)
    model.train(2, stage="diffusion", batch_size=20, accumulate_grad_batches=3, callbacks=look, **QUIET)
    assert seen == [(4, 4)]  # of 5 minibatches an epoch: 3 and 2


def test_max_steps_may_end_in_the_middle_of_an_epoch(new):
    model = new(SCLDM)
    model.train(5, batch_size=20, max_steps=7, callbacks=None, **QUIET)
    assert model.is_trained
    assert len(model.history["diffusion_loss_train"]) == 2


def test_callbacks_that_monitor_a_stage_are_of_that_stage(new, tmp_path):
    """And the user's early stopping takes the place of ours."""
    stop = EarlyStopping("autoencoder_loss_validation", patience=1, min_delta=1e9)
    best = ModelCheckpoint(tmp_path, monitor="diffusion_loss_validation")
    model = new(SCLDM)
    model.train(6, callbacks=[stop, best], enable_checkpointing=True, **QUIET)
    assert len(model.history["autoencoder_loss_train"]) == 2
    assert len(model.history["diffusion_loss_train"]) == 6
    assert best.best_model_score == pytest.approx(model.history["diffusion_loss_validation"].to_numpy().min())


# ---- one device


@pytest.mark.parametrize(
    ("cuda", "arguments", "accelerator", "devices"),
    [
        (True, {}, "gpu", 1),
        (False, {}, "cpu", 1),
        (True, {"devices": [1]}, "gpu", [1]),
        (True, {"accelerator": "gpu"}, "gpu", 1),
        (True, {"accelerator": "cpu"}, "cpu", 1),
    ],
)
def test_auto_is_one_device(new, monkeypatch, cuda, arguments, accelerator, devices):
    """However many there are; Apple's GPU, on which nothing was tested, has to be asked for."""
    asked = []

    def refuse(self, *args, **kwargs):
        asked.append((kwargs["accelerator"], kwargs["devices"]))
        raise RuntimeError("no trainer")

    model = new(SCLDM)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4 * cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(lightning.pytorch.Trainer, "__init__", refuse)
    with pytest.raises(Exception, match="no trainer"):
        model.train(2, progress_bar=False, **arguments)
    assert asked == [(accelerator, devices)]
