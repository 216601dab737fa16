"""Perturbations of groups that were never seen perturbed: SCLDM between the floors and the ceiling.

A fold holds out the treated cells of one group and trains on the rest: the treated cells of each glioblastoma
patient in turn (bundled), and with --kang the stimulated cells of some cell types. The 2,000 most variable genes
(scanpy's flavour "seurat") are chosen on the training cells alone. Every prediction is compared with the cells that
were held out: Pearson correlation of the change of the mean over the group's control cells, on log1p of counts per
10,000 of these genes.

Rows: the floors (control as it is, mean shift of the other groups, and of their cells pooled); cells that were
sampled; control cells that were moved (counterfactual), with more or less of the cell kept; the ceiling, one half
of the real cells against the other.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import RESULTS, environment, quiet, variable_genes, with_counts, write_json
from anndata import AnnData

from sclatent.datasets import glioblastoma, kang
from sclatent.metrics import mean_shift, perturbation_table
from sclatent.model import SCLDM

N_GENES = 2_000
KANG_TYPES = ("CD4 T cells", "CD14+ Monocytes", "B cells")


@dataclass(frozen=True)
class Fold:
    """The treated cells of one group, held out."""

    dataset: str
    adata: AnnData
    group_key: str
    group: str
    control: str
    treated: str
    condition_key: str = "condition"

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.group}"

    def split(self) -> tuple[AnnData, AnnData, AnnData]:
        """Training cells, control cells of the group (part of the former), and treated cells that are held out."""
        obs = self.adata.obs
        in_group = obs[self.group_key] == self.group
        held_out = in_group & (obs[self.condition_key] == self.treated)
        train = self.adata[~held_out]
        genes = variable_genes(train, N_GENES)
        train = with_counts(train[:, genes])
        is_control = (train.obs[self.group_key] == self.group) & (train.obs[self.condition_key] == self.control)
        return train, train[is_control].copy(), with_counts(self.adata[held_out, genes])


def all_folds(kang_path: Path | None, types: list[str]) -> Iterator[Fold]:
    adata = glioblastoma()
    for patient in adata.obs["patient_id"].cat.categories:
        yield Fold("glioblastoma", adata, "patient_id", patient, "ctrl", "panobinostat")
    if kang_path is not None:
        adata = kang(kang_path)
        unknown = sorted(set(types) - set(adata.obs["cell_type"]))
        if unknown:
            raise SystemExit(f"--types {unknown}: the cell types are {list(adata.obs['cell_type'].cat.categories)}.")
        for cell_type in types:
            yield Fold("kang", adata, "cell_type", cell_type, "control", "stimulated")


def run_fold(fold: Fold, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train without the cells that are held out, predict them in every way, and compare."""
    train, control, real = fold.split()
    floor = (train, fold.condition_key, fold.control, fold.treated, fold.group_key, fold.group)
    predictions: dict[str, AnnData | np.ndarray] = {
        "mean shift of the other groups": mean_shift(*floor),
        "mean shift, cells pooled": mean_shift(*floor, pooled=True),
    }
    start = time.perf_counter()
    SCLDM.setup_anndata(train, condition_keys=[fold.group_key, fold.condition_key])
    model = SCLDM(train, seed=seed)
    model.train(arguments.epochs, accelerator="cpu", seed=seed, progress_bar=arguments.progress)
    seconds = time.perf_counter() - start

    target = {fold.group_key: fold.group, fold.condition_key: fold.treated}
    options = {"seed": seed, "progress_bar": False}
    for w in arguments.guidance:
        predictions[f"sample, guidance {w:g}"] = model.sample(
            real.n_obs, target, guidance_weight={fold.condition_key: w}, **options
        )
    for keep in arguments.keep:
        # with all of the cell kept there is no flow to guide
        for w in arguments.guidance if keep < 1 else [1.0]:
            name = f"counterfactual, keep {keep:g}" + (f", guidance {w:g}" if keep < 1 else "")
            predictions[name] = model.counterfactual(
                control,
                {fold.condition_key: fold.treated},
                keep=keep,
                guidance_weight={fold.condition_key: w},
                **options,
            )
    table = perturbation_table(real, control, predictions, seed=seed).reset_index()
    table.insert(0, "fold", fold.name)
    table.insert(1, "seed", seed)
    return table.assign(train_seconds=seconds, n_real=real.n_obs, n_control=control.n_obs).to_dict("records")


def show(table: pd.DataFrame, metric: str, title: str) -> None:
    """Print a row a prediction and a column a fold; the mean over seeds."""
    order = table["prediction"].unique()
    wide = table.pivot_table(index="prediction", columns="fold", values=metric, aggfunc="mean", sort=False).loc[order]
    wide = wide.rename_axis(None).rename_axis(None, axis=1)
    print(f"\n{title}\n{wide.round(3).to_string()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kang", type=Path, help="h5ad file of Kang et al. 2018")
    parser.add_argument("--types", nargs="+", default=list(KANG_TYPES), help="cell types of Kang to hold out in turn")
    parser.add_argument("--folds", nargs="+", help='folds to run, such as "glioblastoma/PW034" or all of "kang"')
    parser.add_argument("--keep", type=float, nargs="+", default=[1.0, 0.8, 0.5, 0.0])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--epochs", type=int, help="epochs of each stage (default: sized to the data)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--progress", action="store_true", help="show progress of training")
    parser.add_argument("--json", default="perturbation.json", help="name of the file in benchmarks/results/")
    arguments = parser.parse_args()
    quiet()

    folds = list(all_folds(arguments.kang, arguments.types))
    names = [fold.name for fold in folds]
    if arguments.folds:
        known = {*names, *(fold.dataset for fold in folds)}
        unknown = [name for name in arguments.folds if name not in known]
        if unknown:
            raise SystemExit(f"--folds {unknown}: the folds are {names}.")
        folds = [fold for fold in folds if {fold.name, fold.dataset} & set(arguments.folds)]
    around = environment()
    print(", ".join(f"{key} {value}" for key, value in around.items()), flush=True)

    records: list[dict[str, Any]] = []
    for fold in folds:
        for seed in arguments.seeds:
            records += run_fold(fold, seed, arguments)
            print(f"{fold.name}, seed {seed}: trained in {records[-1]['train_seconds']:.0f} s", flush=True)
            # after every fold, so that a long run that is cut short leaves what it has
            settings = {key: value for key, value in vars(arguments).items() if key not in ("kang", "json")}
            path = write_json(arguments.json, {"environment": around, "settings": settings, "results": records})
            table = pd.DataFrame(records)
            table.to_csv(RESULTS / Path(arguments.json).with_suffix(".csv"), index=False)
    show(table, "pearson", "Pearson of the change over control, all genes")
    show(table, "pearson_top", "Pearson of the change over control, 50 genes with the largest real change")
    show(table, "rmse", "Root mean square error of the change, all genes")
    print(f"\n{path}")


if __name__ == "__main__":
    main()
