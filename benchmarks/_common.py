"""What the benchmarks share: where results go, and under what they were measured."""

from __future__ import annotations

import json
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scanpy as sc
import torch
from anndata import AnnData

from sclatent.model import SCLDM

RESULTS = Path(__file__).parent / "results"  # ignored by git
FOLDS = Path(__file__).parent / "folds"  # which cells are held out


def quiet() -> None:
    """Silence what would come between the lines of a table."""
    warnings.filterwarnings("ignore")


def environment(accelerator: str = "cpu") -> dict[str, Any]:
    """Return machine and versions, to stand beside every figure."""
    packages = ("sclatent", "torch", "scvi-tools", "scanpy", "anndata", "numpy")
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": _processor() if accelerator == "cpu" else torch.cuda.get_device_name(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_json(name: str, content: dict[str, Any]) -> Path:
    """Write a result into the folder of results."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / name
    path.write_text(json.dumps(content, indent=1, default=float) + "\n")
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
