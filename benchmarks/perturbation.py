"""Perturbations of groups that were never seen perturbed: SCLDM between the floors and the ceiling.

A fold (`benchmarks/folds/perturbation.json`) holds out the treated cells of one group and trains on the rest: the
treated cells of each glioblastoma patient in turn (bundled), and with --kang the stimulated cells of each of the six
largest cell types. The 2,000 most variable genes (scanpy's flavour "seurat") are chosen on the training cells alone.
`sclatent.metrics.evaluate_perturbation` compares every prediction with the cells that were held out.

Rows: cells that were sampled; control cells that were moved (counterfactual), at one noise level or several; "no
network" where the closed form alone is evaluated, without the network that diffusion trains; "without gene effects"
where counterfactuals move genes by what the decoder makes of the mean tokens alone (`gene_effects=False`);
peers, each run in a Python environment of its own (`benchmarks/peers/`); the floors; the ceiling, one half of the
real cells against the other.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from _common import FOLDS, parse, save, variable_genes, with_autoencoder_of, with_counts
from anndata import AnnData, read_h5ad

from sclatent.datasets import glioblastoma, kang
from sclatent.metrics import evaluate_perturbation, summarize
from sclatent.model import SCLDM

N_GENES = 2_000
PEERS = Path(__file__).parent / "peers"
METRICS = ("pearson", "pearson_top50", "mse", "energy", "mmd2", "direction", "de_overlap_50")


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

    def split(self) -> tuple[AnnData, AnnData]:
        """Training cells, and treated cells that are held out."""
        obs = self.adata.obs
        in_group = obs[self.group_key] == self.group
        held_out = in_group & (obs[self.condition_key] == self.treated)
        train = self.adata[~held_out]
        genes = variable_genes(train, N_GENES)
        return with_counts(train[:, genes]), with_counts(self.adata[held_out, genes])


def all_folds(kang_path: Path | None) -> Iterator[Fold]:
    for dataset, fold in json.loads((FOLDS / "perturbation.json").read_text()).items():
        if dataset == "kang" and kang_path is None:
            continue
        adata = kang(kang_path) if dataset == "kang" else glioblastoma()
        for group in fold["held_out"]:
            yield Fold(dataset, adata, fold["group_key"], group, fold["control"], fold["treated"])


def run_fold(fold: Fold, seed: int, arguments: argparse.Namespace) -> pd.DataFrame:
    """Train without the cells that are held out, predict them in every way, and compare."""
    train, real = fold.split()
    treated = train.obs[fold.condition_key] == fold.treated
    control, seen = train[~treated].copy(), train[treated].copy()
    moved = control[control.obs[fold.group_key] == fold.group].copy()
    predictions, seconds = {}, {}

    if not arguments.only_peers:
        start = time.perf_counter()
        predictions |= predict(fold, train, moved, real.n_obs, seed, arguments)
        seconds["SCLDM"] = time.perf_counter() - start
    for peer, python in arguments.peer.items():
        predictions[peer], seconds[peer] = run_peer(peer, python, fold, train, seed)
    table = evaluate_perturbation(
        real, predictions, control, fold.group_key, seen, seed=seed, progress_bar=arguments.progress
    )
    table = table[table["condition"] != "mean"]  # of one group
    return table.assign(dataset=fold.dataset, seconds=table["source"].str.split(" ").str[0].map(seconds))


def predict(
    fold: Fold, train: AnnData, moved: AnnData, n: int, seed: int, arguments: argparse.Namespace
) -> dict[str, AnnData]:
    """Train SCLDM and predict the treated cells of the group: n new ones, and its control cells moved."""
    SCLDM.setup_anndata(train, condition_keys=[fold.group_key, fold.condition_key])
    target = {fold.group_key: fold.group, fold.condition_key: fold.treated}
    options = {"seed": seed, "progress_bar": False}
    predictions, first = {}, None
    for baseline in arguments.baselines:
        model = trained(train, seed, baseline, arguments, fold.name, first)
        first = first or model
        is_first = model is first
        scldm = "SCLDM" if is_first else f"SCLDM, baseline {baseline},"
        guidance = arguments.guidance if is_first else [1.0]
        for w in guidance:
            weight = {fold.condition_key: w}
            predictions[f"{scldm} sample, guidance {w:g}"] = model.sample(n, target, guidance_weight=weight, **options)
        if baseline != "none":
            predictions[f"{scldm} sample, no network"] = model.sample(n, target, baseline_only=True, **options)
        to = {fold.condition_key: fold.treated}
        for level in arguments.noise_level:
            if baseline == "none" and not level:
                continue  # nothing moves
            # at noise level 0 there is no flow to guide, and the network is not evaluated
            for w in guidance if level else [1.0]:
                name = f"{scldm} counterfactual, noise level {level:g}"
                name += f", guidance {w:g}" if level else ", no network"
                weight = {fold.condition_key: w}
                predictions[name] = model.counterfactual(
                    moved, to, noise_level=level, guidance_weight=weight, **options
                )
        if is_first and model.module.gene_means is not None:
            model.module.gene_means = None
            name = f"{scldm} counterfactual, noise level 0, no network, without gene effects"
            predictions[name] = model.counterfactual(moved, to, noise_level=0, **options)
    return predictions


def trained(
    train: AnnData, seed: int, baseline: str, arguments: argparse.Namespace, fold: str, first: SCLDM | None
) -> SCLDM:
    """Train SCLDM, its denoiser alone if there is a first model; or load the model that an earlier run has kept."""
    kept = arguments.models and arguments.models / f"{fold}, {baseline}, seed {seed}"
    if kept and kept.exists():
        return SCLDM.load(kept, train)
    model = SCLDM(train, seed=seed, baseline=baseline)
    stage = "all"
    if first is not None:
        model, stage = with_autoencoder_of(first, model), "diffusion"
    model.train(arguments.epochs, stage, accelerator="cpu", seed=seed, progress_bar=arguments.progress)
    if kept:
        model.save(kept)
    return model


def run_peer(peer: str, python: Path, fold: Fold, train: AnnData, seed: int) -> tuple[np.ndarray, float]:
    """Log-normalised cells that a peer predicts, and its seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        AnnData(train.X, obs=train.obs[[fold.group_key, fold.condition_key]], var=train.var[[]]).write_h5ad(
            work / "train.h5ad"
        )
        names = ("control", "treated", "group_key", "condition_key")
        what = {name: getattr(fold, name) for name in names} | {"held_out": fold.group}
        (work / "predict.json").write_text(json.dumps(what))
        command = [python, PEERS / f"{peer}.py", work / "train.h5ad", "--predict", work / "predict.json"]
        done = subprocess.run(
            [*map(str, command), "--out", str(work / "out.h5ad"), "--seed", str(seed)], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{peer} failed:\n{done.stderr[-2000:]}")
        predicted = read_h5ad(work / "out.h5ad")
    # nothing can be above all counts in one gene; a few values that come back from components are
    cells = np.clip(predicted[:, train.var_names].X, None, np.log1p(1e4))
    return cells, float(predicted.uns["seconds"])


def show(table: pd.DataFrame) -> None:
    """Print, for each data set, the mean over folds and seeds, and Pearson by fold; and what was aimed at."""
    for dataset, part in table.groupby("dataset", sort=False):
        mean = part.groupby(["source", "kind", "metric", "better"], sort=False)["value"].mean().reset_index()
        wide = summarize(mean.assign(condition="mean"))
        print(f"\n{dataset}: mean over {part['condition'].nunique()} folds and {part['seed'].nunique()} seeds")
        print(wide.loc[list(METRICS)].T.rename_axis(None).to_string(float_format="{:.3f}".format))
        for metric in ("pearson", "pearson_top50"):
            by_fold = part[part["metric"] == metric].pivot_table("value", "source", "condition", sort=False)
            print(f"\n{metric} by fold\n{by_fold.reindex(wide.columns.drop('better')).round(3).to_string()}")
        values = mean.pivot(index="source", columns="metric", values="value")
        kinds = mean.groupby("source")["kind"].first()
        rivals = values[(kinds == "floor") | ((kinds == "generated") & ~kinds.index.str.startswith("SCLDM"))]
        for source in values.index[values.index.str.startswith("SCLDM")]:
            for metric in ("pearson", "pearson_top50"):
                best = rivals[metric].idxmax()
                ours, theirs = values.loc[source, metric], rivals.loc[best, metric]
                met = "met   " if ours > theirs else "MISSED"
                print(f"{met} {source}, {metric} {ours:.3f} above every floor and peer (best: {best}, {theirs:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kang", type=Path, help="h5ad file of Kang et al. 2018")
    parser.add_argument("--folds", nargs="+", help='folds to run, such as "glioblastoma/PW034" or all of "kang"')
    parser.add_argument(
        "--baselines", nargs="+", default=["mixed"], help="of SCLDM, the main one, with all rows, first"
    )
    parser.add_argument(
        "--noise-level", type=float, nargs="+", default=[0.0, 1.0], help="of counterfactuals (default: 0 and 1)"
    )
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument(
        "--peer",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "PYTHON"),
        help="run benchmarks/peers/NAME.py with this interpreter; may be given more than once",
    )
    parser.add_argument("--only-peers", action="store_true", help="leave SCLDM out")
    parser.add_argument("--epochs", type=int, help="epochs of each stage (default: sized to the data)")
    parser.add_argument("--models", type=Path, help="folder of trained models, used if there, kept if not")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--progress", action="store_true", help="show progress of training")
    arguments = parse(parser, "perturbation")
    arguments.peer = {name: Path(python) for name, python in arguments.peer}

    folds = list(all_folds(arguments.kang))
    names = [fold.name for fold in folds]
    if arguments.folds:
        known = {*names, *(fold.dataset for fold in folds)}
        unknown = [name for name in arguments.folds if name not in known]
        if unknown:
            raise SystemExit(f"--folds {unknown}: the folds are {names}.")
        folds = [fold for fold in folds if {fold.name, fold.dataset} & set(arguments.folds)]

    for peer in sorted({path.stem for path in PEERS.glob("[a-z]*.py")} - set(arguments.peer)):
        print(f"{peer}: missing (no --peer {peer} PYTHON)")

    tables: list[pd.DataFrame] = []
    for seed in arguments.seeds:
        for fold in folds:
            tables.append(run_fold(fold, seed, arguments))
            took = tables[-1].groupby("source")["seconds"].first().dropna()
            took = {name.split(" ")[0]: s for name, s in took.items()}
            print(f"{fold.name}, seed {seed}: " + ", ".join(f"{k} {s:.0f} s" for k, s in took.items()), flush=True)
            # after every fold, so that a long run that is cut short leaves what it has
            table = pd.concat(tables, ignore_index=True)
            path = save(table, arguments)
    show(table)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
