"""Generation conditioned on a key, or without conditions: SCLDM beside scVI, between the floors and the ceiling.

Half of the cells of every condition are held out (`benchmarks/folds/`, by name), and every model is trained on the
others. Each then makes as many cells of every condition as were held out, and `sclatent.metrics.evaluate_generation`
compares them with these cells, on 50 principal components of the training cells. With --unconditional no model is told
of conditions, and all cells are compared at once.

Data sets, conditioned on the cell type:

- pbmc3k: PBMC3k with the 2,000 genes that are bundled; "pbmc3k, all genes" with --pbmc3k
- "kang, control": the control cells of Kang et al. 2018, with --kang; 2,000 genes chosen on the training cells
  (scanpy's flavour "seurat")

Data sets in which the cells of a condition are not one cloud:

- "kang, by condition": all cells of Kang et al., conditioned on control or stimulated alone; eight types in each
- "glioblastoma, by patient": bundled, conditioned on the patient alone; control and treated cells in each
- embryo, with --embryo: cells of C. elegans over time (Packer et al. 2019), without conditions; 2,000 genes
- ring, branches, with --simulated: as many cells on a cycle, and on three branches, without conditions; a fifth is
  held out, at most 4,000

Sources beside SCLDM:

- SCLDM, no network: cells of its closed form alone (`baseline_only=True`); what the network adds is what is above this
- SCLDM, baseline none (with --baselines mixed none): the network without a closed form
- SCLDM, residuals mixture (with --residuals gaussian mixture): cells are a mixture of Gaussians in the closed form
- mixture of each condition (with --residuals gaussian mixture): one mixture for each condition, in the same tokens
- held-out cells, encoded and decoded: the bound of every latent model with this autoencoder
- SCLDM, pooling attention (with --poolings linear attention): cross-attention in the autoencoder. Beside each pooling
  stand the NLL of held-out cells, in nats a cell, and the seconds of training
- scVI, prior: conditioned on the key as its batch; z from N(0, I), library sizes of training cells of the condition
- scVI, aggregated posterior: without the key; z of training cells of the condition, and their library sizes
- training cells: handed back as they are, which is what a model that remembers would do. The components were fitted on
  them, so that they are recognised by these.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
import torch
from _common import FOLDS, keep_threads, parse, save, variable_genes, with_autoencoder_of, with_counts
from _simulated import branches, ring
from anndata import AnnData, read_h5ad
from scipy import sparse

from sclatent.datasets import glioblastoma, kang, pbmc3k
from sclatent.metrics import evaluate_generation, summarize
from sclatent.model import SCLDM

N_GENES, MIN_CELLS_OF_GENE = 2_000, 3
SCVI_EPOCHS = 400  # at most, with early stopping; scVI's own default for data sets of this size
MAIN_METRICS = ("rf_auc", "nn_accuracy", "precision", "recall", "mmd2", "energy", "frechet", "w2")


@dataclass(frozen=True)
class Task:
    """Training cells, held-out cells, and the key that models are conditioned on."""

    name: str
    train: AnnData
    held_out: AnnData
    key: str | None = None


def tasks(arguments: argparse.Namespace) -> Iterator[Task]:
    """Every task whose data are there, and that was asked for."""
    typed, n = "cell_type", arguments.simulated
    there: dict[str, Callable[[], tuple[AnnData, AnnData, str | None]]] = {
        "pbmc3k": lambda: (*split(pbmc3k(), "pbmc3k"), typed),
        "glioblastoma, by patient": lambda: (*split(glioblastoma(), "glioblastoma"), "patient_id"),
    }
    if (path := arguments.pbmc3k) is not None:
        there["pbmc3k, all genes"] = lambda: (*split(read_h5ad(path), "pbmc3k", all_genes=True), typed)
    if (of_kang := arguments.kang) is not None:
        there["kang, control"] = lambda: (*split(kang(of_kang), "kang_control"), typed)
        there["kang, by condition"] = lambda: (*split(kang(of_kang), "kang"), "condition")
    if (of_embryo := arguments.embryo) is not None:
        there["embryo"] = lambda: (*split(read_h5ad(of_embryo), "embryo"), None)
    if n:
        there["ring"], there["branches"] = (lambda: (*halves(ring(n)), None)), (lambda: (*halves(branches(n)), None))
    if unknown := set(arguments.only or ()) - set(there):
        raise SystemExit(f"--only {sorted(unknown)}: the data sets that are there are {list(there)}.")
    for name, task in there.items():
        if not arguments.only or name in arguments.only:
            train, held_out, key = task()
            yield Task(name, train, held_out, None if arguments.unconditional else key)


def halves(adata: AnnData) -> tuple[AnnData, AnnData]:
    """Training cells and held-out cells, which are in no order."""
    n = min(adata.n_obs // 5, 4_000)
    return adata[n:].copy(), adata[:n].copy()


@keep_threads()
def split(adata: AnnData, fold: str, all_genes: bool = False) -> tuple[AnnData, AnnData]:
    """Cells of a fold, training and held out, with the genes chosen on the former."""
    names = json.loads((FOLDS / f"{fold}.json").read_text())
    train, held_out = adata[names["train"]].copy(), adata[names["held_out"]].copy()
    if all_genes:
        sc.pp.filter_genes(train, min_cells=MIN_CELLS_OF_GENE)
        genes = train.var_names
    else:
        genes = variable_genes(train, N_GENES)
    return with_counts(train[:, genes]), with_counts(held_out[:, genes])


def run_scldm(task: Task, seed: int, arguments: argparse.Namespace) -> dict[str, AnnData]:
    """Train SCLDM and sample as many cells of every condition as were held out.

    The first pooling, baseline and residuals are those of the rows without their names.
    """
    train, held_out, key = task.train, task.held_out, task.key
    SCLDM.setup_anndata(train, condition_keys=None if key is None else [key])
    asked = {"n_samples": held_out.n_obs} if key is None else {"conditions": held_out.obs[[key]]}
    options = {"seed": seed, "progress_bar": False, **asked}
    sources: dict[str, AnnData] = {}
    baselines = arguments.baselines or ["none" if key is None else "mixed"]  # the model's own default
    first: dict[str, SCLDM] = {}  # of each pooling, whose autoencoder the others take over
    denoisers = list(product(baselines, arguments.residuals))
    if arguments.without_network:
        denoisers = denoisers[:1]
    for pooling, (baseline, residuals) in product(arguments.poolings, denoisers):
        if baseline == "none" and residuals != arguments.residuals[0]:
            continue  # there is nothing around which they would lie
        name = "SCLDM" if pooling == arguments.poolings[0] else f"SCLDM, pooling {pooling}"
        name += "" if baseline == baselines[0] else f", baseline {baseline}"
        name += "" if residuals == arguments.residuals[0] else f", residuals {residuals}"
        model = SCLDM(train, seed=seed, baseline=baseline, residuals=residuals, pooling=pooling)
        stage = "autoencoder" if arguments.without_network else "all"
        if pooling in first:
            model, stage = with_autoencoder_of(first[pooling], model), "diffusion"
        first.setdefault(pooling, model)
        start = time.perf_counter()
        model.train(arguments.epochs, stage, accelerator="cpu", seed=seed, progress_bar=arguments.progress)
        took = time.perf_counter() - start
        nll = model.get_reconstruction_error(held_out)["reconstruction_loss"]
        print(f"{name}: held-out NLL {nll:.1f} nats a cell, trained in {took:.0f} s", flush=True)
        if model is first[pooling]:
            bound = "held-out cells, encoded and decoded" + name.removeprefix("SCLDM")
            sources[bound] = model.posterior_predictive_sample(held_out, seed=seed)
            if key is not None and (arguments.without_network or "mixture" in arguments.residuals):
                sources["mixture of each condition" + name.removeprefix("SCLDM")] = mixture_of_each(task, model, seed)
        if arguments.without_network:
            continue
        sources[name] = model.sample(**options)
        for w in arguments.guidance:
            sources[f"{name}, guidance {w:g}"] = model.sample(guidance_weight=w, **options)
        if baseline != "none":
            sources[f"{name}, no network"] = model.sample(baseline_only=True, **options)
    return sources


def mixture_of_each(task: Task, trained: SCLDM, seed: int) -> AnnData:
    """Cells of mixtures of Gaussians in the tokens of a trained autoencoder, one mixture for each condition."""
    made = []
    pooling = trained.init_params_["pooling"]
    for level, asked in task.held_out.obs.groupby(task.key, observed=True):
        train = task.train[task.train.obs[task.key] == level].copy()
        SCLDM.setup_anndata(train)
        mixture = SCLDM(train, seed=seed, baseline="mixed", residuals="mixture", pooling=pooling)
        with_autoencoder_of(trained, mixture)
        mixture.train(1, "diffusion", accelerator="cpu", seed=seed, progress_bar=False)  # fits the closed form
        made.append(mixture.sample(len(asked), baseline_only=True, seed=seed, progress_bar=False))
        made[-1].obs[task.key] = level
    return ad.concat(made, index_unique="-", keys=[str(i) for i in range(len(made))])


def run_scvi(train: AnnData, key: str | None, rows: np.ndarray, seed: int) -> dict[str, AnnData]:
    """Train scVI, conditioned on the key and not, and draw a cell for each of these training cells."""
    scvi.settings.seed = seed
    generated = {}
    for name, batch_key in (("scVI, prior", key), ("scVI, aggregated posterior", None)):
        cells = AnnData(train.X, obs=train.obs[[] if key is None else [key]].copy(), var=train.var[[]].copy())
        scvi.model.SCVI.setup_anndata(cells, batch_key=batch_key)
        model = scvi.model.SCVI(cells, n_latent=30, gene_likelihood="nb")
        model.train(
            SCVI_EPOCHS, early_stopping=True, accelerator="cpu", enable_model_summary=False, enable_progress_bar=False,
            logger=False,
        )  # fmt: skip
        counts = []
        for tensors in model._make_data_loader(cells, indices=rows, batch_size=512):
            with torch.inference_mode():
                latent = model.module.inference(**model.module._get_inference_input(tensors))
                if name == "scVI, prior":
                    latent["z"] = torch.randn_like(latent["z"])
                px = model.module.generative(**model.module._get_generative_input(tensors, latent))["px"]
                counts.append(sparse.csr_matrix(px.sample().numpy()))
        obs = cells.obs.iloc[rows].reset_index(drop=True)
        obs.index = obs.index.astype(str)
        generated[name] = AnnData(sparse.vstack(counts, format="csr"), obs=obs, var=cells.var)
    return generated


def training_cells_like(task: Task, seed: int) -> np.ndarray:
    """Rows of training cells with the conditions of the held-out cells, each used once before any is used again."""
    rng = np.random.default_rng(seed)
    train, held_out = (
        np.zeros(cells.n_obs) if task.key is None else cells.obs[task.key].to_numpy(str)
        for cells in (task.train, task.held_out)
    )
    rows = np.empty(len(held_out), dtype=int)
    for condition in np.unique(held_out):
        wanted = np.flatnonzero(held_out == condition)
        rows[wanted] = np.resize(rng.permutation(np.flatnonzero(train == condition)), len(wanted))
    return rows


def run(task: Task, seed: int, arguments: argparse.Namespace) -> pd.DataFrame:
    """Train every model, generate, compare."""
    start = time.perf_counter()
    generated = run_scldm(task, seed, arguments)
    seconds = {"SCLDM": time.perf_counter() - start}
    rows = training_cells_like(task, seed)
    if not arguments.without_scvi:
        start = time.perf_counter()
        generated |= run_scvi(task.train, task.key, rows, seed)
        seconds["scVI"] = time.perf_counter() - start
    again = task.train[rows].copy()
    again.obs_names_make_unique()
    generated["training cells"] = again
    table = evaluate_generation(
        task.held_out, generated, groupby=task.key, train=task.train, seed=seed, progress_bar=arguments.progress
    )
    table.insert(0, "dataset", task.name)
    return table.assign(seconds=table["source"].str.partition(",")[0].map(seconds))


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """Return what is kept in the file of results: means over conditions and all cells; which rows are real cells."""
    is_real = table["source"].str.startswith(("training cells", "held-out cells"))
    table = table.assign(kind=table["kind"].mask(is_real, "reference"))
    return table[table["condition"].isin(["mean", "all"])]


def targets(table: pd.DataFrame) -> None:
    """Print what was aimed at, for the mean over conditions and seeds, and whether it was met."""
    values = table[table["condition"] == "mean"].groupby(["source", "metric"])["value"].mean().unstack()
    if "SCLDM" not in values.index:
        return
    ours, ceiling = values.loc["SCLDM"], values.loc["real half"]
    aims = [
        ("random-forest AUC at most 0.70", ours["rf_auc"], ours["rf_auc"] <= 0.70),
        ("1-nearest-neighbour accuracy at most 0.60", ours["nn_accuracy"], ours["nn_accuracy"] <= 0.60),
        ("precision at least 0.85 of the ceiling", ours["precision"], ours["precision"] >= 0.85 * ceiling["precision"]),
        ("recall at least 0.85 of the ceiling", ours["recall"], ours["recall"] >= 0.85 * ceiling["recall"]),
        ("MMD2 at most twice the ceiling", ours["mmd2"], ours["mmd2"] <= 2 * ceiling["mmd2"]),
    ]
    for peer in values.index[values.index.str.startswith("scVI")]:
        better = table.drop_duplicates("metric").set_index("metric")["better"].reindex(values.columns)
        sign = np.where(better == "higher", 1.0, -1.0)
        behind = values.columns[(sign * (values.loc[peer] - ours) > 0).to_numpy()]
        aims.append((f"ahead of {peer} on every metric", float(len(behind)), not len(behind)))
        if len(behind):
            aims[-1] = (f"ahead of {peer} on every metric (behind on {', '.join(behind)})", float(len(behind)), False)
    for aim, value, met in aims:
        print(f"{'met   ' if met else 'MISSED'} {aim}: {value:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pbmc3k", type=Path, help="h5ad of PBMC3k with all genes, raw counts and obs['cell_type']")
    parser.add_argument("--kang", type=Path, help="h5ad file of Kang et al. 2018")
    parser.add_argument("--embryo", type=Path, help="h5ad file of Packer et al. 2019, raw counts")
    parser.add_argument("--simulated", type=int, default=0, help="number of cells of ring and branches")
    parser.add_argument("--only", nargs="+", help='data sets to run, such as "pbmc3k" or "kang, control"')
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--guidance", type=float, nargs="*", default=[], help="further rows with these weights")
    parser.add_argument("--baselines", nargs="+", help="of SCLDM, the main one first (default: that of the model)")
    parser.add_argument("--residuals", nargs="+", default=["gaussian"], help="of SCLDM, the main one first")
    parser.add_argument("--unconditional", action="store_true", help="tell no model of conditions")
    parser.add_argument("--poolings", nargs="+", default=["linear"], help="of SCLDM, the main one first")
    parser.add_argument("--epochs", type=int, help="epochs of each stage (default: sized to the data)")
    parser.add_argument("--without-scvi", action="store_true")
    parser.add_argument(
        "--without-network",
        action="store_true",
        help="train autoencoders alone: bounds, and mixtures of each condition",
    )
    parser.add_argument("--progress", action="store_true", help="show progress of training and evaluation")
    arguments = parse(parser, "generation")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

    tables: list[pd.DataFrame] = []
    for task in tasks(arguments):
        n, n_held_out = task.train.n_obs, task.held_out.n_obs
        print(f"\n{task.name}: {n:,} cells to train on, {n_held_out:,} held out, {task.train.n_vars:,} genes")
        for seed in arguments.seeds:
            tables.append(run(task, seed, arguments))
            took = tables[-1].groupby("source")["seconds"].first().dropna()
            print(f"seed {seed}: " + ", ".join(f"{k} {v:.0f} s" for k, v in took.items()), flush=True)
            everything = pd.concat(tables, ignore_index=True)  # after every seed: a long run may be cut short
            path = save(kept(everything), arguments)
        show(everything[everything["dataset"] == task.name])
    print(f"\n{path}")


def show(table: pd.DataFrame) -> None:
    """Print metrics by source, for the mean over conditions and for all cells together, and what was aimed at."""
    of_metric = ["condition", "source", "kind", "metric", "better"]
    mean = table.groupby(of_metric, sort=False)["value"].mean().reset_index()
    titles = {"mean": "Mean over conditions", "all": "All cells together"}
    there = [condition for condition in titles if (table["condition"] == condition).any()]
    for condition in there:
        print(f"\n{titles[condition]}, mean over {table['seed'].nunique()} seeds")
        print(summarize(mean, (condition,)).round(3).to_string())
    main = table[table["condition"] == there[0]]
    spread = main.groupby(["source", "metric"], sort=False)["value"].std().unstack()
    print(f"\nStandard deviation over seeds: {titles[there[0]].lower()}")
    print(spread[list(MAIN_METRICS)].round(3).to_string())
    targets(table)


if __name__ == "__main__":
    main()
