"""Does more data help? Held-out likelihood and generated cells by number of training cells and size of the model.

One set of held-out cells and one projection (50 principal components of all training cells) for every row. No model is
told of conditions: all cells are compared at once. Training cells are nested: a half is in all that is larger.

Data sets: 20,729 THP-1 cells with 25 knock-outs, 299 genes (Papalexi et al. 2021), with --papalexi; simulated cells of
ten types, 300 genes. A fifth is held out, at most 4,000 cells.

Sources: the network alone (the default without conditions); "mixture, no network", a mixture of Gaussians in the same
tokens whose number of components cross-validation chooses; held-out cells, encoded and decoded, the bound of every
latent model with this autoencoder.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from _common import parse, save, with_autoencoder_of, with_counts
from _results import KEYS, read_results
from anndata import AnnData, read_h5ad

from sclatent.datasets import simulate
from sclatent.metrics import evaluate_generation
from sclatent.model import SCLDM

SIZES = {  # of the autoencoder and of the denoiser
    "small": {"width": 32, "denoiser_width": 64, "denoiser_blocks": 2},
    "default": {},
    "large": {"width": 128, "denoiser_width": 256, "denoiser_blocks": 6},
}
HELD_OUT, MOST_HELD_OUT = 0.2, 4_000  # share of the cells, and number
METRICS = {
    "nll": "held-out NLL, nats a cell",
    "rf_auc": "random-forest AUC (0.5 is perfect)",
    "energy": "energy distance",
}


def datasets(arguments: argparse.Namespace) -> Iterator[tuple[str, AnnData]]:
    """Name and cells of every data set that is there."""
    if arguments.papalexi is not None:
        yield "THP-1 knock-outs", read_h5ad(arguments.papalexi)
    n = arguments.simulated
    if n:
        yield "simulated", simulate(n, 300, cell_types=10, conditions=["control"], library_size=500, seed=0)


def run(
    train: AnnData, everything: AnnData, held_out: AnnData, size: str, arguments: argparse.Namespace
) -> pd.DataFrame:
    """Train a model of one size on these cells, and compare what it makes with the cells that were held out."""
    options = {"seed": arguments.seed, "progress_bar": False}
    SCLDM.setup_anndata(train)
    model = SCLDM(train, seed=arguments.seed, **SIZES[size])
    start = time.perf_counter()
    model.train(arguments.epochs, accelerator="cpu", **options)
    seconds = time.perf_counter() - start
    mixture = SCLDM(train, seed=arguments.seed, baseline="mixed", residuals="mixture", **SIZES[size])
    with_autoencoder_of(model, mixture).train(1, "diffusion", accelerator="cpu", **options)  # fits the closed form
    n = held_out.n_obs
    generated = {
        "network": model.sample(n, **options),
        "mixture, no network": mixture.sample(n, baseline_only=True, **options),
        "held-out cells, encoded and decoded": model.posterior_predictive_sample(held_out, seed=arguments.seed),
    }
    table = evaluate_generation(held_out, generated, train=everything, **options)
    better = table.drop_duplicates("metric").set_index("metric")["better"].to_dict() | {"nll": "lower"}
    index = ["condition", "source", "kind", "seed"]
    table = table.pivot_table("value", index, "metric", sort=False).reset_index()
    is_ours = table["kind"] == "generated"
    table["source"] = np.where(is_ours, size + ": " + table["source"], table["source"])
    nll = model.get_reconstruction_error(held_out)["reconstruction_loss"]
    trained = table["source"] == f"{size}: network"
    table.loc[trained, ["nll", "seconds"]] = nll, seconds
    table.loc[trained, "parameters"] = sum(p.numel() for p in model.module.parameters())
    table.attrs["better"] = better
    return table.assign(condition=f"{train.n_obs:,} cells", n_cells=train.n_obs)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw metrics by number of training cells: one row per data set, one column per metric, one line per size."""
    names = list(table["dataset"].unique())
    figure, axes = plt.subplots(len(names), len(METRICS), figsize=(12, 3.4 * len(names)), squeeze=False)
    styles = {"network": "o-", "mixture, no network": "x:", "held-out cells, encoded and decoded": ".--"}
    for row, name in zip(axes, names, strict=True):
        of_set = table[table["dataset"] == name].sort_values("n_cells")
        for axis, (metric, label) in zip(row, METRICS.items(), strict=True):
            for colour, size in enumerate(SIZES):
                for source, style in styles.items():
                    line = of_set[of_set["source"] == f"{size}: {source}"].dropna(subset=metric)
                    if len(line):
                        axis.plot(line["n_cells"], line[metric], style, color=f"C{colour}", label=f"{size}: {source}")
            if metric in of_set and metric != "nll":
                ceiling = of_set.loc[of_set["kind"] == "ceiling", metric].mean()
                axis.axhline(ceiling, color="grey", linewidth=1, label="one real half to the other")
            axis.set(xscale="log", xlabel="training cells", ylabel=label, title=name)
    axes[0, -1].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papalexi", type=Path, help="h5ad file of Papalexi et al. 2021, raw counts")
    parser.add_argument("--simulated", type=int, default=20_000, help="number of simulated cells; 0 for none")
    parser.add_argument("--only", nargs="+", help='data sets to run, such as "simulated"')
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES), help="of the model")
    parser.add_argument("--shares", type=float, nargs="+", default=[1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="epochs of each stage (default: sized to the data)")
    parser.add_argument("--figure", type=Path, help="draw all files of results like scaling-*.csv, and run nothing")
    arguments = parse(parser, "scaling")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if arguments.figure:
        matplotlib.use("Agg")
        draw(read_results("scaling*.csv")[0], arguments.figure)
        return
    tables: list[pd.DataFrame] = []
    there = dict(datasets(arguments))
    if unknown := set(arguments.only or ()) - set(there):
        raise SystemExit(f"--only {sorted(unknown)}: the data sets that are there are {list(there)}.")
    if not there:
        raise SystemExit("There is no data set: give --papalexi, or --simulated above 0.")
    for name, adata in there.items():
        if arguments.only and name not in arguments.only:
            continue
        adata = with_counts(adata)
        order = np.random.default_rng(0).permutation(adata.n_obs)
        n_held_out = min(int(HELD_OUT * adata.n_obs), MOST_HELD_OUT)
        held_out, everything = adata[order[:n_held_out]].copy(), adata[order[n_held_out:]].copy()
        for share in arguments.shares:
            train = everything[: round(share * everything.n_obs)].copy()
            for size in arguments.sizes:
                tables.append(run(train, everything, held_out, size, arguments).assign(dataset=name))
                done = pd.concat(tables, ignore_index=True).drop_duplicates(KEYS)  # floors and ceiling are there once
                path = save(done, arguments, better=tables[-1].attrs["better"])
                shown = tables[-1].set_index("source")[list(METRICS)].round(3)
                print(f"\n{name}, {train.n_obs:,} cells, {size}\n{shown.to_string()}", flush=True)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
