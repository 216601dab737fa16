"""Speed and memory of SCLDM beside scVI, in one run on one machine.

For 2,000 genes (25 % non-zero) and 17,002 genes (10 % non-zero), minibatches of 128 simulated cells:

- stage one, bare step: forward, backward, clipping, optimiser, on minibatches in memory, as `train` of either does
  it (scVI does not clip). The two take turns, round by round, and the median round counts, so that whatever else
  the machine does falls on both.
- stage one, loop: what `train()` reaches, with loading and logging, after the first epoch.
- peak memory of stage one: a process of its own that reads the cells and trains.
- matrix peak: the best of many large products of fp32 matrices, and the share of it that the bare step reaches; its
  operations are counted by torch (matrix products, forward and backward).
- stage two: bare step and loop, on tokens.
- sampling: `model.sample`, end to end, from a denoiser that was trained a little.

With --pooling attention it is SCLDM with cross-attention, and bare steps with linear pooling take turns with it.
With --accelerator gpu all of it runs on a GPU, in one process, and the memory is that of the GPU.
"""

from __future__ import annotations

import argparse
import gc
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import scvi
import torch
from _common import parse, save
from anndata import AnnData
from torch.utils.flop_counter import FlopCounterMode

from sclatent.data import make_loader
from sclatent.datasets import simulate
from sclatent.model import SCLDM
from sclatent.train import AutoencoderPlan, DiffusionPlan

SIZES = {2_000: 0.25, 17_002: 0.10}  # genes: share of counts that are not zero
RATIO_TARGETS = {2_000: 0.5, 17_002: 1.0}  # rate of the bare step over that of scVI
MEMORY_TARGET = 2.0  # GB, at 17,002 genes
SAMPLING_TARGET = 50.0  # cells/s, at 2,000 genes
BATCH = 128
N_BATCHES = 8  # minibatches that the bare steps go through
BETTER = dict.fromkeys(
    ["step_cells_per_s", "loop_cells_per_s", "stage_two_loop_cells_per_s", "sampling_cells_per_s"], "higher"
) | {"peak_memory_gb": "lower"}
LOOP_CELLS = {2_000: 4_096, 17_002: 2_048}

Step = Callable[[int], None]


def device_of(accelerator: str) -> torch.device:
    return torch.device("cuda" if accelerator == "gpu" else "cpu")


def clock(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class EpochStarts(pl.Callback):
    """When each epoch began."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.times.append(time.perf_counter())

    def rate(self, n_cells: int) -> float:
        """Cells a second, from the start of the second epoch to that of the last."""
        return n_cells * (len(self.times) - 2) / (self.times[-1] - self.times[1])


def matrix_peak(device: torch.device, repeats: int = 12) -> float:
    """GFLOP/s of the best of a few products of large fp32 matrices."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device)
    seconds = []
    for _ in range(repeats):
        start = clock(device)
        a @ b
        seconds.append(clock(device) - start)
    return 2 * n**3 / min(seconds) / 1e9


def take_turns(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds a step of each: all take turns, one pass over the minibatches a round; the median round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name, step in steps.items():
            start = clock(device)
            for k in range(N_BATCHES):
                step(k)
            if i > 0:  # the first round warms up
                seconds[name].append((clock(device) - start) / N_BATCHES)
    return {name: statistics.median(values) for name, values in seconds.items()}


def autoencoder_step(model: SCLDM, device: torch.device) -> Step:
    plan = AutoencoderPlan(model.module.autoencoder.train().to(device)).to(device)
    generator = torch.Generator(device).manual_seed(0)
    parameters = list(plan.trained.parameters())
    optimizer = plan.make_optimizer()
    loader = make_loader(model._rows(indices=np.arange(BATCH * N_BATCHES)), BATCH)
    batches = [plan.transfer_batch_to_device(batch, device, 0) for batch in loader]

    def step(k: int) -> None:
        optimizer.zero_grad()
        plan.losses(batches[k], generator).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def diffusion_step(model: SCLDM, device: torch.device) -> Step:
    plan = DiffusionPlan(model.module.denoiser.train().to(device)).to(device)
    generator = torch.Generator(device).manual_seed(0)
    parameters = list(plan.trained.parameters())
    optimizer = plan.make_optimizer()
    shape = (N_BATCHES, BATCH, *model.module.standardize.mean.shape)
    # standardised tokens look like this, and speed does not depend on them
    tokens = torch.randn(shape, generator=generator, device=device)
    sizes = torch.zeros(BATCH, device=device)
    codes = torch.zeros(BATCH, len(model.conditions.keys), dtype=torch.int64, device=device)

    def step(k: int) -> None:
        optimizer.zero_grad()
        plan.losses((tokens[k], codes, sizes), generator).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        plan.averaged.update_parameters(plan.trained)

    return step


def scvi_step(model: scvi.model.SCVI, device: torch.device) -> Step:
    module = model.module.train().to(device)
    plan = scvi.train.TrainingPlan(module)  # for its defaults
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=plan.lr, eps=plan.eps, weight_decay=plan.weight_decay)
    loader = model._make_data_loader(model.adata, indices=np.arange(BATCH * N_BATCHES), batch_size=BATCH)
    batches = [plan.transfer_batch_to_device(batch, device, 0) for batch in loader]

    def step(k: int) -> None:
        optimizer.zero_grad()
        module(batches[k], loss_kwargs={"kl_weight": 1.0})[2].loss.backward()
        optimizer.step()

    return step


def new_scldm(adata: AnnData, pooling: str) -> SCLDM:
    SCLDM.setup_anndata(adata, condition_keys=["cell_type", "condition"])
    return SCLDM(adata, pooling=pooling)


def new_scvi(adata: AnnData) -> scvi.model.SCVI:
    scvi.model.SCVI.setup_anndata(adata)
    return scvi.model.SCVI(adata, gene_likelihood="nb")


def loop_rate(model: SCLDM | scvi.model.SCVI, epochs: int, accelerator: str, **kwargs: Any) -> float:
    """Cells/s of `train()`, without its first epoch."""
    starts = EpochStarts()
    options = {"accelerator": accelerator, "train_size": 1.0, "batch_size": BATCH, "early_stopping": False}
    if isinstance(model, SCLDM):
        model.train(epochs + 2, callbacks=[starts], progress_bar=False, **options, **kwargs)
    else:
        quiet_options = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        model.train(epochs + 2, callbacks=[starts], **quiet_options, **options)
    return starts.rate(model.adata.n_obs)


def peak_memory() -> float:
    """Peak resident memory of this process, in GB.

    Linux carries ``ru_maxrss`` over from the process that started this one, so ``VmHWM`` is read where there is one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def measure_memory(adata: AnnData, threads: int, pooling: str) -> tuple[float, float]:
    """Peak memory in GB before training and after an epoch of stage one, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        adata.write_h5ad(path)
        command = [sys.executable, __file__, "--memory-of", str(path), "--threads", str(threads), "--pooling", pooling]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return float(lines[-2]), float(lines[-1])


def memory_child(path: str, pooling: str) -> None:
    model = new_scldm(ad.read_h5ad(path), pooling)
    before = peak_memory()
    model.train(1, stage="autoencoder", accelerator="cpu", batch_size=BATCH, progress_bar=False)
    print(before, peak_memory())


def measure(
    n_genes: int, rounds: int, loop_epochs: int, n_samples: int, accelerator: str, pooling: str, peak: float
) -> dict[str, Any]:
    density, device = SIZES[n_genes], device_of(accelerator)
    adata = simulate(LOOP_CELLS[n_genes], n_genes, density=density)
    adata.X.sort_indices()
    ours, theirs = new_scldm(adata.copy(), pooling), new_scvi(adata.copy())
    step = autoencoder_step(ours, device)
    with FlopCounterMode(display=False) as counter:
        step(0)
    flops = counter.get_total_flops()
    steps = {"SCLDM": step, "scVI": scvi_step(theirs, device)}
    if pooling != "linear":
        steps["SCLDM, linear"] = autoencoder_step(new_scldm(adata.copy(), "linear"), device)
    seconds = take_turns(steps, rounds, device)
    result: dict[str, Any] = {
        "genes": n_genes,
        "pooling": pooling,
        "nonzero": adata.X.nnz / np.prod(adata.shape),
        "step_cells_per_s": {name: BATCH / s for name, s in seconds.items()},
        "step_ratio": seconds["scVI"] / seconds["SCLDM"],
        "step_gflop": flops / 1e9,
        "step_gflop_per_s": flops / 1e9 / seconds["SCLDM"],
        "matrix_peak_gflop_per_s": peak,
        "share_of_peak": flops / 1e9 / seconds["SCLDM"] / peak,
    }
    seconds = take_turns({"diffusion": diffusion_step(ours, device)}, rounds, device)
    result["stage_two_step_cells_per_s"] = BATCH / seconds["diffusion"]
    del step, steps, ours
    gc.collect()
    trained = new_scldm(adata, pooling)
    if loop_epochs:
        result["loop_cells_per_s"] = {
            "SCLDM": loop_rate(trained, loop_epochs, accelerator, stage="autoencoder"),
            "scVI": loop_rate(theirs, loop_epochs, accelerator),
        }
        result["stage_two_loop_cells_per_s"] = loop_rate(trained, loop_epochs, accelerator, stage="diffusion")
    else:
        trained.train(1, accelerator=accelerator, progress_bar=False)
    conditions = {"cell_type": "type_0", "condition": "stimulated"}
    trained.sample(BATCH, conditions, progress_bar=False)  # warms up
    start = time.perf_counter()
    trained.sample(n_samples, conditions, progress_bar=False)
    result["sampling_cells_per_s"] = n_samples / (time.perf_counter() - start)
    if device.type == "cpu":
        before, after = measure_memory(adata, torch.get_num_threads(), pooling)
    else:
        del trained, theirs
        gc.collect()
        before = torch.cuda.memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        new_scldm(adata, pooling).train(1, "autoencoder", accelerator=accelerator, batch_size=BATCH, progress_bar=False)
        after = torch.cuda.max_memory_allocated() / 1e9
    return result | {"memory_before_training_gb": before, "peak_memory_gb": after}


def show(result: dict[str, Any]) -> None:
    n = result["genes"]
    step, loop = result["step_cells_per_s"], result.get("loop_cells_per_s")

    def line(name: str, value: str, target: str = "", met: bool | None = None) -> None:
        verdict = "" if met is None else ("met" if met else "MISSED")
        print(f"  {name:<54}{value:>24}   {target:<14}{verdict}")

    print(f"\n{n:,} genes, {result['nonzero']:.0%} non-zero, minibatches of {BATCH}, pooling {result['pooling']}")
    line("stage one, bare step: SCLDM, cells/s", f"{step['SCLDM']:,.0f}")
    line("stage one, bare step: scVI, cells/s", f"{step['scVI']:,.0f}")
    ratio, goal = result["step_ratio"], RATIO_TARGETS[n]
    line("  SCLDM / scVI", f"{ratio:.2f}", f">= {goal}", ratio >= goal)
    if "SCLDM, linear" in step:
        line("stage one, bare step: SCLDM, linear pooling, cells/s", f"{step['SCLDM, linear']:,.0f}")
        line("  linear / this pooling", f"{step['SCLDM, linear'] / step['SCLDM']:.2f}")
    if loop:
        line("stage one, train(): SCLDM, cells/s", f"{loop['SCLDM']:,.0f}")
        line("stage one, train(): scVI, cells/s", f"{loop['scVI']:,.0f}")
        line("  SCLDM / scVI", f"{loop['SCLDM'] / loop['scVI']:.2f}")
    line(
        "stage one, bare step, GFLOP/s (share of the peak)",
        f"{result['step_gflop_per_s']:.0f} ({result['share_of_peak']:.0%})",
    )
    memory = result["peak_memory_gb"]
    target = (f"<= {MEMORY_TARGET}", memory <= MEMORY_TARGET) if n == 17_002 else ("", None)
    line(
        "stage one, peak memory, GB (before training)",
        f"{memory:.2f} ({result['memory_before_training_gb']:.2f})",
        *target,
    )
    line("stage two, bare step, cells/s", f"{result['stage_two_step_cells_per_s']:,.0f}")
    if loop:
        line("stage two, train(), cells/s", f"{result['stage_two_loop_cells_per_s']:,.0f}")
    rate = result["sampling_cells_per_s"]
    target = (f">= {SAMPLING_TARGET:.0f}", rate >= SAMPLING_TARGET) if n == 2_000 else ("", None)
    line("sampling, end to end, cells/s", f"{rate:,.0f}", *target)


def by_source(results: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of models, and metrics: what was measured of both, and of SCLDM the rest."""
    rows = []
    for result in results:
        both = {metric: rates for metric, rates in result.items() if isinstance(rates, dict)}
        rest = {metric: value for metric, value in result.items() if metric not in (*both, "genes")}
        for source in both["step_cells_per_s"]:
            about = {"dataset": f"{result['genes']:,} genes", "condition": "all", "source": source, "kind": "model"}
            values = {metric: rates[source] for metric, rates in both.items() if source in rates}
            rows.append({**about, "seed": 0, **values, **(rest if source == "SCLDM" else {})})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--pooling", choices=["linear", "attention"], default="linear", help="of SCLDM")
    parser.add_argument("--rounds", type=int, default=11, help="rounds in which the bare steps take turns")
    parser.add_argument("--loop-epochs", type=int, default=3, help="epochs of train() that are timed; 0 for none")
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu", help="where all of it runs")
    parser.add_argument("--samples", type=int, default=512, help="cells to sample")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parse(parser, "speed")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    scvi.settings.verbosity = logging.WARNING
    if arguments.memory_of:
        memory_child(arguments.memory_of, arguments.pooling)
        return

    device = device_of(arguments.accelerator)
    peak = matrix_peak(device)
    print(f"fp32 matrix peak: {peak:.0f} GFLOP/s", flush=True)
    results = []
    for n_genes in arguments.genes:
        peak = max(peak, matrix_peak(device))  # again, in case something else ran the first time
        how = arguments.rounds, arguments.loop_epochs, arguments.samples, arguments.accelerator, arguments.pooling
        results.append(measure(n_genes, *how, peak))
        show(results[-1])
        path = save(by_source(results), arguments, better=BETTER)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
