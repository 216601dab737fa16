"""What the benchmarks share: where results go, and under what they were measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
import torch
from _results import KEYS, RESULTS, write_results
from anndata import AnnData

from sclatent.model import SCLDM

FOLDS = Path(__file__).parent / "folds"  # which cells are held out


def parse(parser: argparse.ArgumentParser, name: str) -> argparse.Namespace:
    """Parse the arguments of a script and those that all have, and print machine and versions above its tables."""
    parser.add_argument("--name", default=name, help="results go to benchmarks/results/NAME.csv (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: as torch chooses)")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # what would come between the lines of a table
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    around = environment(getattr(arguments, "accelerator", "cpu"))
    print(", ".join(f"{key} {value}" for key, value in around.items()), flush=True)
    return arguments


@cache  # as it was at the start: numba changes the number of threads, and files may change meanwhile
def environment(accelerator: str = "cpu") -> dict[str, Any]:
    """Return commit, machine and versions, to stand beside every figure."""
    packages = ("sclatent", "torch", "scvi-tools", "scanpy", "anndata", "numpy")
    return {
        "commit": _commit(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": torch.cuda.get_device_name() if accelerator == "gpu" else _processor(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _commit() -> str:
    """Short hash of the commit, with "+changes" if files of it were changed, but for results."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        state = [*git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"]
        changes = subprocess.run(state, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("+changes" if changes else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def save(
    table: pd.DataFrame, arguments: argparse.Namespace, part: str = "", better: dict[str, str] | None = None
) -> Path:
    """Write what a run has found until now, with what it was measured under, as ``benchmarks/results/NAME.csv``.

    Parameters
    ----------
    table
        The columns `KEYS` and one a metric, of numbers; or what `sclatent.metrics` return, with a row a value.
    part
        What is added to the name, for scripts with several tables.
    better
        "higher" or "lower" by metric, if the table does not say so itself.
    """
    if "metric" in table:
        better = table.dropna(subset="better").drop_duplicates("metric").set_index("metric")["better"].to_dict()
        seconds = table.groupby(KEYS, sort=False)["seconds"].first()
        table = table.pivot_table("value", KEYS, "metric", sort=False).join(seconds).reset_index()
    metrics = table.drop(columns=KEYS).select_dtypes("number").columns
    command = [Path(word).name if Path(word).is_absolute() or Path(word).exists() else word for word in sys.argv[1:]]
    settings = {key: value for key, value in vars(arguments).items() if key != "name"}
    header = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *command]),
        "settings": json.dumps(settings, default=lambda path: path.name),  # of files, what they are called
        "better": json.dumps(better or {}),
        "date": date.today().isoformat(),
        **environment(getattr(arguments, "accelerator", "cpu")),
    }
    path = RESULTS / f"{arguments.name}{part and '-'}{part}.csv"
    write_results(path, header, table[[*KEYS, *metrics]])
    return path


@contextmanager
def keep_threads() -> Iterator[None]:
    """Give torch its threads back: numba, which scanpy calls, sets them to one a core when they share OpenMP."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@keep_threads()
def variable_genes(adata: AnnData, n_genes: int) -> np.ndarray:
    """Names of the most variable genes: scanpy's flavour "seurat", on log1p of counts per 10,000."""
    if adata.n_vars <= n_genes:
        return adata.var_names.to_numpy()
    cells = adata.copy()
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.pp.highly_variable_genes(cells, n_top_genes=n_genes, flavor="seurat")
    return cells.var_names[cells.var["highly_variable"]].to_numpy()


def profile(x: Any) -> np.ndarray:
    """Logarithm of 1 + mean counts per 10,000 of cells, (genes,), as of `predict_profile`."""
    x = x.toarray() if hasattr(x, "toarray") else x
    return np.log1p((1e4 * x / np.maximum(x.sum(axis=1, keepdims=True), 1)).mean(axis=0))


@keep_threads()
def with_counts(adata: AnnData) -> AnnData:
    """Return the cells that have any counts."""
    cells = adata.copy()
    sc.pp.filter_cells(cells, min_counts=1)
    return cells


def with_autoencoder_of(trained: SCLDM, model: SCLDM) -> SCLDM:
    """Give a model the trained autoencoder of another: rows of one table that differ in the denoiser alone share it."""
    model.module.autoencoder.load_state_dict(trained.module.autoencoder.state_dict())
    model.trained_stages.add("autoencoder")
    return model
