"""Models that are saved to one folder at once: one of them wins, whole, and who reads meanwhile reads a whole one."""

import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sclatent.datasets import simulate
from sclatent.model import SCLDM
from sclatent.model.base import _files

N_SAVERS = 4
forked = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes are not forked")


@pytest.fixture(scope="module")
def models(small) -> list[SCLDM]:
    """Models that can be told apart: by their seed, and by the number that all their weights are."""
    adata = simulate(60, 12, library_size=200)
    SCLDM.setup_anndata(adata)
    models = [SCLDM(adata, **small, seed=i) for i in range(N_SAVERS)]
    for i, model in enumerate(models):
        for weight in model.module.parameters():
            torch.nn.init.constant_(weight, i)
    return models


def saved(path: Path) -> int:
    """Which model a folder holds; fails if it is none, or of several, or if there is anything else."""
    assert sorted(file.suffix for file in path.iterdir()) == [".json", ".safetensors"]
    return loaded(path)


def loaded(path: Path) -> int:
    model = SCLDM.load(path)
    (number,) = {model.init_params_["seed"], *(w for p in model.module.parameters() for w in p.unique().tolist())}
    return int(number)


class Thread(threading.Thread):
    """A thread whose error is raised where it is joined."""

    error: BaseException | None = None

    def run(self) -> None:
        try:
            super().run()
        except BaseException as error:
            self.error = error

    def join(self, timeout: float | None = None) -> None:
        super().join(timeout)
        if self.error is not None:
            raise self.error


def thread(target: Callable, *args) -> Thread:
    """A thread that has started."""
    thread = Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


def process(target: Callable, *args) -> multiprocessing.Process:
    """A process that has started, with the pid of all others of its kind, as in containers."""

    def run() -> None:
        os.getpid = lambda: 7
        target(*args)

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    return process


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(("start", "n_races"), [(thread, 4), pytest.param(process, 1, marks=forked)])
def test_one_of_several_wins(models, tmp_path, start, n_races, exists):
    barrier = threading.Barrier if start is thread else multiprocessing.get_context("fork").Barrier
    for i in range(n_races):
        path, ready = tmp_path / str(i), barrier(N_SAVERS)
        if exists:
            models[0].save(path)

        def save(model, path=path, ready=ready):
            ready.wait()
            model.save(path, overwrite=True)

        savers = [start(save, model) for model in models]
        for saver in savers:
            saver.join()
            assert start is thread or saver.exitcode == 0
        assert saved(path) in range(N_SAVERS)


def test_one_who_saves_leaves_alone_what_another_is_saving(models, tmp_path, monkeypatch):
    """The other has written its tensors, but not yet the description that names them."""
    models[0].save(tmp_path / "m")
    between, done = threading.Event(), threading.Event()
    replace = os.replace

    def pause(source, target):
        if Path(target).name == "model.json" and threading.current_thread() is slow:
            between.set()
            done.wait(0.3)  # no longer: one at a time may be how it is done
        replace(source, target)

    monkeypatch.setattr(os, "replace", pause)
    slow = Thread(target=models[1].save, args=(tmp_path / "m", True), daemon=True)
    slow.start()
    between.wait()
    fast = thread(lambda: (models[2].save(tmp_path / "m", True), done.set()))
    for saver in (slow, fast):
        saver.join()
    assert saved(tmp_path / "m") in (1, 2)


def test_who_does_not_overwrite_keeps_the_one_that_came_first(models, tmp_path):
    ready, refused = threading.Barrier(N_SAVERS), []

    def save(model):
        ready.wait()
        try:
            model.save(tmp_path / "m")
        except FileExistsError as error:
            refused.append(str(error))

    savers = [thread(save, model) for model in models]
    for saver in savers:
        saver.join()
    assert saved(tmp_path / "m") in range(N_SAVERS)
    assert len(refused) == N_SAVERS - 1
    assert all("holds a saved model: use overwrite=True to replace it" in message for message in refused)


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(models, tmp_path, monkeypatch):
    models[0].save(tmp_path / "m")
    replacements, read = iter(models[1:3]), Path.read_text

    def replaced(file, *args, **kwargs):
        text = read(file, *args, **kwargs)
        if file.name == "model.json" and (model := next(replacements, None)) is not None:
            model.save(tmp_path / "m", overwrite=True)
        return text

    monkeypatch.setattr(Path, "read_text", replaced)
    assert loaded(tmp_path / "m") == 2


def test_a_model_can_be_read_at_any_moment(models, tmp_path):
    models[0].save(tmp_path / "m")
    savers = [thread(lambda m: [m.save(tmp_path / "m", overwrite=True) for _ in range(5)], m) for m in models]
    while any(saver.is_alive() for saver in savers):
        assert loaded(tmp_path / "m") in range(N_SAVERS)
    assert saved(tmp_path / "m") in range(N_SAVERS)


@forked
@pytest.mark.parametrize("n", [0, 1])
def test_what_a_killed_save_leaves_behind_locks_nobody_out_and_is_removed(models, tmp_path, n):
    models[0].save(tmp_path / "m")

    def die_at_the_nth_file() -> None:
        replace, files = os.replace, iter(range(10))

        def die(*args) -> None:
            if next(files) == n:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*args)

        os.replace = die
        models[1].save(tmp_path / "m", overwrite=True)

    child = multiprocessing.get_context("fork").Process(target=die_at_the_nth_file)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.joinpath("m").iterdir())) > 2
    assert loaded(tmp_path / "m") == 0
    models[2].save(tmp_path / "m", overwrite=True)
    assert saved(tmp_path / "m") == 2


def test_a_file_system_without_locks_will_do(models, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    models[0].save(tmp_path / "m")
    models[1].save(tmp_path / "m", overwrite=True)
    monkeypatch.setattr(_files, "fcntl", None)
    models[2].save(tmp_path / "m", overwrite=True)
    assert saved(tmp_path / "m") == 2
