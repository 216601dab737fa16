"""SIGTERM ends a training that can be resumed, with an exit status that says so; handlers of the user stay."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from lightning.pytorch.callbacks import Callback

from sclatent.datasets import simulate
from sclatent.model import SCLDM

STATUS = 128 + signal.SIGTERM
EPOCHS = 3
SCRIPT = textwrap.dedent("""
    import os, signal, sys
    from lightning.pytorch.callbacks import LambdaCallback
    from sclatent.datasets import simulate
    from sclatent.model import SCLDM

    def terminate(trainer, plan):
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    adata = simulate(60, 20, library_size=200)
    SCLDM.setup_anndata(adata)
    model = SCLDM(adata, n_tokens=2, token_dim=8, width=16, n_blocks=1, n_heads=2, denoiser_width=16, denoiser_blocks=1)
    stop = LambdaCallback(on_train_epoch_start=terminate)
    model.train(3, accelerator="cpu", progress_bar=False, checkpoint_dir=sys.argv[1], callbacks=[stop])
    print("went on")
""")


class Terminate(Callback):
    """Sends SIGTERM to this process, as a scheduler does."""

    def __init__(self, hook: str, stage: str, epoch: int | None = None) -> None:
        def act(trainer, pl_module, *args):
            if pl_module.name == stage and epoch in (None, trainer.current_epoch):
                os.kill(os.getpid(), signal.SIGTERM)

        setattr(self, hook, act)


@pytest.fixture
def train(small, quiet):
    adata = simulate(60, 20, library_size=200)
    SCLDM.setup_anndata(adata)

    def train(callbacks=(), **arguments) -> SCLDM:
        model = SCLDM(adata, **small)
        model.train(EPOCHS, batch_size=20, callbacks=list(callbacks), **quiet, **arguments)
        return model

    return train


@pytest.fixture
def handler():
    """A handler of the user, and how often it was called."""
    calls = []

    def handler(number, frame):
        calls.append(number)

    before = signal.signal(signal.SIGTERM, handler)
    yield handler, calls
    signal.signal(signal.SIGTERM, before)


def test_a_script_that_is_terminated_does_not_look_successful(tmp_path):
    run = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / "c"], capture_output=True, text=True, timeout=300)
    assert run.returncode == STATUS, run.stderr
    assert "went on" not in run.stdout
    assert "SIGTERM" in run.stderr
    assert (tmp_path / "c").is_dir()


@pytest.mark.parametrize(
    ("hook", "stage", "epoch"),
    [
        ("on_train_batch_end", "autoencoder", 1),
        ("on_train_end", "autoencoder", None),  # later than Lightning looks for it
        ("on_train_batch_end", "diffusion", 2),
        ("on_train_end", "diffusion", None),
    ],
)
def test_the_last_good_state_is_on_disk(train, handler, tmp_path, hook, stage, epoch):
    with pytest.raises(SystemExit) as stop:
        train([Terminate(hook, stage, epoch)], checkpoint_dir=tmp_path / "c")
    assert stop.value.code == STATUS
    trained = []

    class Record(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trained.append((pl_module.name, trainer.current_epoch))

    model, whole = train([Record()], checkpoint_dir=tmp_path / "c"), train()
    assert all(value.equal(whole.module.state_dict()[key]) for key, value in model.module.state_dict().items())
    all_epochs = [(name, i) for name in SCLDM.STAGES for i in range(EPOCHS)]
    n_done = EPOCHS * SCLDM.STAGES.index(stage) + (EPOCHS if epoch is None else epoch)
    assert trained == all_epochs[n_done:]  # what was done is not done again
    assert not (tmp_path / "c").exists()


def test_the_handler_of_the_user_is_called_and_stays(train, handler):
    mine, calls = handler
    with pytest.raises(SystemExit):
        train([Terminate("on_train_batch_end", "autoencoder", 1)])
    assert calls == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is mine


def test_handlers_stay_where_a_callback_fails_on_the_way_out(train, handler):
    class Fails(Callback):
        def on_train_start(self, trainer, pl_module):
            raise RuntimeError("on the way in")

        def on_exception(self, trainer, pl_module, exception):
            raise RuntimeError("on the way out")

    with pytest.raises(RuntimeError, match="on the way out"):
        train([Fails()])
    assert signal.getsignal(signal.SIGTERM) is handler[0]


def test_leaving_is_no_ctrl_c(train):
    """What a callback ends the script with is what it ends with."""

    class Leave(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            sys.exit(3)

    with pytest.raises(SystemExit) as stop:
        train([Leave()])
    assert stop.value.code == 3
