"""The six members of cell-eval2's preset `vcc2026`, raw and scaled, on the folds of `perturbation.py`.

Needs the extra `interop`. Scaled by cell-eval2's own policy (`cell_eval2.scoring.score_one`): 0 is the mean response,
here that of the other groups, "mean shift", since the held-out group has no treated cells to take it from; 1 is a
replicate, one half of the real cells and of their controls against the other (`compute_replicate_anchor`, the mean over
five splits). `pds_cosine` is the rank among the treatments of a context. These folds have one, so that it is 1 for
every source and cannot be scaled.

Rows: peers; SCLDM, new cells and control cells moved, with the defaults; the floors, as counts; the replicate.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from _common import parse, save
from anndata import AnnData
from cell_eval2 import EvalConfig, aggregate_metrics, compute_metrics
from cell_eval2.anchor import compute_replicate_anchor
from cell_eval2.catalog import CATALOG, PROFILES
from cell_eval2.scoring import is_degenerate, score_one
from perturbation import Fold, all_folds, run_peer, trained
from scipy import sparse

from sclatent.metrics import linear_shift, log_normalize, mean_shift
from sclatent.model import SCLDM

MEMBERS = [name for name in PROFILES["vcc2026"] if CATALOG[name].scoring.scored]
MEAN_SHIFT, REPLICATE = "mean shift", "replicate"


def whole(counts: np.ndarray | sparse.spmatrix, rng: np.random.Generator) -> sparse.csr_matrix:
    """Expected counts rounded up or down at random, so that their means stay."""
    counts = sparse.csr_matrix(counts)
    counts.data = np.floor(counts.data + rng.random(counts.nnz)).astype(np.float32)
    return counts


def floors(
    fold: Fold, train: AnnData, control: AnnData, n: int, rng: np.random.Generator
) -> Iterator[tuple[str, sparse.csr_matrix]]:
    """Name and counts of n cells of every floor."""
    group_key, condition_key = fold.group_key, fold.condition_key
    # one row for all cells of a group and condition: cell-eval2 compares means of counts, not of logarithms
    bulk = sc.get.aggregate(train, [group_key, condition_key], "sum")
    arms = (bulk, condition_key, fold.control, fold.treated, group_key, fold.group, "sum")
    of_control = bulk[bulk.obs[condition_key] == fold.control]
    profiles = pd.DataFrame(log_normalize(of_control, "sum"), index=of_control.obs[group_key].astype(str))
    start = profiles.loc[fold.group].to_numpy()
    changes = {"control as it is": 0.0, MEAN_SHIFT: mean_shift(*arms), "linear shift": linear_shift(*arms)}
    for name, change in changes.items():
        # counts scaled, as cell-eval2 makes cells of its mean response; genes without counts stay so
        scale = np.expm1(np.maximum(start + change, 0)) / np.where(start > 0, np.expm1(start), np.inf)
        yield name, whole(control.X[rng.integers(control.n_obs, size=n)].multiply(scale), rng)
    seen = train[train.obs[condition_key] == fold.treated]
    group = seen.obs[group_key].astype(str)
    share = 1 / group.map(group.value_counts()).to_numpy()
    yield "cell mean", seen.X[rng.choice(seen.n_obs, n, p=share / share.sum())]  # every group the same
    others = profiles.loc[group.unique()]
    nearest = np.square(others - start).sum(axis=1).idxmin()
    yield "nearest group", seen.X[rng.choice(np.flatnonzero(group == nearest), n)]


def predictions(
    fold: Fold, train: AnnData, control: AnnData, n: int, seed: int, arguments: argparse.Namespace
) -> Iterator[tuple[str, sparse.csr_matrix]]:
    """Name and counts of the cells of every peer, and of SCLDM."""
    rng, to = np.random.default_rng(seed), {fold.condition_key: fold.treated}
    for peer, python in arguments.peer.items():
        values = run_peer(peer, python, fold, train, seed)[0]
        sizes = rng.choice(np.asarray(control.X.sum(axis=1)).ravel(), len(values))
        yield peer, whole(np.expm1(np.maximum(values, 0)) * sizes[:, None] / 1e4, rng)
    SCLDM.setup_anndata(train, condition_keys=[fold.group_key, fold.condition_key])
    model = trained(train, seed, "mixed", arguments, fold.name, None)
    options = {"seed": seed, "progress_bar": False}
    yield "SCLDM sample", model.sample(n, {fold.group_key: fold.group, **to}, **options).X
    yield "SCLDM counterfactual", model.counterfactual(control, to, **options).X


def run_fold(fold: Fold, seed: int, arguments: argparse.Namespace) -> pd.DataFrame:
    """Values of all members and sources."""
    train, real = fold.split()
    in_group, is_control = train.obs[fold.group_key] == fold.group, train.obs[fold.condition_key] == fold.control
    control = train[in_group & is_control].copy()
    config = replace(
        EvalConfig.from_preset("vcc2026"), pert_col=fold.condition_key, control=fold.control, num_threads=1,
        target_gene_map={"*": None},
    )  # fmt: skip

    def beside_control(counts: sparse.csr_matrix) -> AnnData:
        treated = AnnData(counts, obs=pd.DataFrame(index=map(str, range(counts.shape[0]))), var=train.var[[]])
        return ad.concat({fold.control: control, fold.treated: treated}, label=fold.condition_key, index_unique="-")

    reference = beside_control(real.X)
    values, of = {}, (fold, train, control, real.n_obs)
    sources = {"generated": predictions(*of, seed, arguments), "floor": floors(*of, np.random.default_rng(seed))}
    for kind, some in sources.items():
        for name, counts in some:
            table = aggregate_metrics(compute_metrics(beside_control(counts), reference, config=config))
            values[name, kind] = dict(zip(table["metric"], table["mean"], strict=True))
    anchor = compute_replicate_anchor(reference, config=config, base_seed=seed)[1]
    values[REPLICATE, "ceiling"] = dict(zip(anchor["metric"], anchor["replicate"], strict=True))
    table = pd.DataFrame(values).T[MEMBERS].rename_axis(["source", "kind"])
    for metric in MEMBERS:
        base = table.at[(MEAN_SHIFT, "floor"), metric]
        policy = replace(CATALOG[metric].scoring, anchor=table.at[(REPLICATE, "ceiling"), metric])
        defined = not is_degenerate(base, policy)
        table[f"{metric}, scaled"] = [score_one(v, base, policy) if defined else np.nan for v in table[metric]]
    return table.reset_index().assign(dataset=fold.dataset, condition=fold.group, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kang", type=Path, help="h5ad file of Kang et al. 2018")
    parser.add_argument("--folds", nargs="+", help='folds to run, such as "glioblastoma/PW034"')
    parser.add_argument("--peer", nargs=2, action="append", default=[], metavar=("NAME", "PYTHON"))
    parser.add_argument("--epochs", type=int, help="epochs of each stage (default: sized to the data)")
    parser.add_argument("--models", type=Path, help="folder of trained models, used if there, kept if not")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--progress", action="store_true", help="show progress of training")
    arguments = parse(parser, "cell_eval")
    arguments.peer = {name: Path(python) for name, python in arguments.peer}
    arguments.cell_eval2 = version("cell-eval2")  # which is among the settings of the file of results
    logging.getLogger("cell_eval2").setLevel(logging.ERROR)  # it warns of every panel of one treatment
    better = {m: CATALOG[m].scoring.direction for m in MEMBERS} | {f"{m}, scaled": "higher" for m in MEMBERS}
    tables = []
    for fold in (f for f in all_folds(arguments.kang) if not arguments.folds or f.name in arguments.folds):
        tables += [run_fold(fold, seed, arguments) for seed in arguments.seeds]
        mean = pd.concat(tables[-len(arguments.seeds) :]).groupby("source", sort=False)[list(better)].mean()
        for columns in (MEMBERS, [f"{m}, scaled" for m in MEMBERS]):
            print(f"\n{fold.name}\n{mean[columns].round(3).to_string()}", flush=True)
        path = save(pd.concat(tables, ignore_index=True), arguments, better=better)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
