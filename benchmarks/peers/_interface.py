"""What every peer is given and hands back: h5ad files, and one command line."""

from __future__ import annotations

import argparse
import json
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import scanpy as sc
from anndata import AnnData, read_h5ad

NAMES = ("control", "treated", "group_key", "condition_key", "held_out")
SPACE = "log1p CP10k"


def parser(description: str) -> argparse.ArgumentParser:
    """Return the command line that all peers share."""
    warnings.filterwarnings("ignore")
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("train", type=Path, help="h5ad: training cells with raw counts in X")
    result.add_argument("--predict", type=Path, help=f"JSON with any of {', '.join(NAMES)}, in place of the options")
    result.add_argument("--out", type=Path, required=True, help="h5ad to write")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--control", help="name of the condition of untreated cells")
    result.add_argument("--treated", help="name of the condition of treated cells")
    result.add_argument("--group-key", help="column of obs: cell type, patient, ...")
    result.add_argument("--condition-key", default="condition", help="column of obs: control or treated")
    result.add_argument("--held-out", help="group whose treated cells are predicted")
    return result


def parse(result: argparse.ArgumentParser, needed: dict[str, tuple[str, ...]] | None = None) -> argparse.Namespace:
    """Read the command line, which goes before the JSON; `needed` has what must be given, by task."""
    path = result.parse_args().predict
    if path is not None:
        given = json.loads(path.read_text())
        unknown = sorted(set(given) - set(NAMES))
        if unknown:
            result.error(f"{path} has {', '.join(unknown)}; it may have {', '.join(NAMES)}")
        result.set_defaults(**given)
    arguments = result.parse_args()
    names = needed[arguments.task] if needed else NAMES
    missing = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) is None]
    if missing:
        result.error(f"missing: {', '.join(missing)}")
    return arguments


def read_log(path: Path) -> AnnData:
    """Read counts and return them as log1p of counts per 10,000, which all peers work on."""
    adata = read_h5ad(path)
    adata.X = adata.X.astype(np.float32)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def split(adata: AnnData, arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the cells of the group that is held out, and of all control cells."""
    group, condition = adata.obs[arguments.group_key], adata.obs[arguments.condition_key]
    unknown = sorted(set(condition) - {arguments.control, arguments.treated})
    if unknown:
        raise SystemExit(f"{arguments.condition_key} is {unknown} in some cells; drop them")
    held_out = (group == arguments.held_out).to_numpy()
    control = (condition == arguments.control).to_numpy()
    if not held_out.any():
        raise SystemExit(f"no cells of {arguments.held_out!r}: their control cells are what is moved")
    if (held_out & ~control).any():
        raise SystemExit(f"treated cells of {arguments.held_out!r} are among the training cells")
    return held_out, control


def write(path: Path, predicted: AnnData, seconds: float, packages: tuple[str, ...], settings: dict) -> None:
    """Write predicted cells with the time of training, the versions and the settings."""
    predicted.X = np.asarray(predicted.X, dtype=np.float32)
    predicted.uns = {
        "space": SPACE,
        "seconds": seconds,
        "versions": {name: version(name) for name in packages},
        "settings": {key: str(value) for key, value in settings.items()},
    }
    predicted.write_h5ad(path)
    print(f"{path}: {predicted.n_obs} cells, trained in {seconds:.0f} s")
