"""Held-out reconstruction of SCLDM beside scVI on the cells of Kang et al. 2018, in one run.

2,000 most variable genes (scanpy's flavour "seurat" on log1p of counts per 10,000, over all cells: the same for
both); 400 cells held out by ``np.random.default_rng(1).permutation(n)[:400]``. Both train with their own defaults
on the rest, of which they keep a tenth for early stopping. What is compared is the negative log-likelihood of the
counts of a held-out cell given its own latent, in nats a cell; for scVI with the latent drawn from its posterior
(its ``get_reconstruction_error``) and at the mean of it.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scvi
import torch
from _common import parse, save, variable_genes, with_counts
from anndata import AnnData
from scvi import REGISTRY_KEYS

from sclatent.datasets import kang
from sclatent.model import SCLDM

N_GENES, N_HELD_OUT, SPLIT_SEED = 2_000, 400, 1
TARGET = 400.0  # nats a cell
N_LATENT, SCVI_EPOCHS = 30, 150


def run_scldm(train: AnnData, held_out: AnnData, epochs: int | None, seed: int) -> dict[str, Any]:
    SCLDM.setup_anndata(train)
    model = SCLDM(train, seed=seed)
    start = time.perf_counter()
    model.train(epochs, stage="autoencoder", accelerator="cpu", seed=seed)
    return {
        "seconds": time.perf_counter() - start,
        "epochs": len(model.history["autoencoder_loss_train"]),
        "parameters": sum(p.numel() for p in model.module.autoencoder.parameters()),
        "nll": model.get_reconstruction_error(held_out)["reconstruction_loss"],
    }


def run_scvi(train: AnnData, held_out: AnnData, epochs: int, seed: int) -> dict[str, Any]:
    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(train)
    model = scvi.model.SCVI(train, n_latent=N_LATENT, gene_likelihood="nb")
    start = time.perf_counter()
    model.train(epochs, early_stopping=True, accelerator="cpu", enable_model_summary=False, logger=False)
    return {
        "seconds": time.perf_counter() - start,
        "epochs": len(model.history["train_loss_epoch"]) if "train_loss_epoch" in model.history else epochs,
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "nll": float(model.get_reconstruction_error(held_out)["reconstruction_loss"]),
        "nll_at_posterior_mean": _at_posterior_mean(model, held_out),
    }


@torch.inference_mode()
def _at_posterior_mean(model: scvi.model.SCVI, held_out: AnnData) -> float:
    total, module = 0.0, model.module
    for tensors in model._make_data_loader(model._validate_anndata(held_out)):
        latent = module.inference(**module._get_inference_input(tensors))
        latent["z"] = latent["qz"].loc
        px = module.generative(**module._get_generative_input(tensors, latent))["px"]
        total -= float(px.log_prob(tensors[REGISTRY_KEYS.X_KEY]).double().sum())
    return total / held_out.n_obs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kang", type=Path, help="h5ad file of Kang et al. 2018")
    parser.add_argument("--epochs", type=int, help="epochs of SCLDM (default: sized to the data)")
    parser.add_argument("--scvi-epochs", type=int, default=SCVI_EPOCHS, help="epochs of scVI, at most")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parse(parser, "reconstruction")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

    adata = kang(arguments.kang)
    adata = with_counts(adata[:, variable_genes(adata, N_GENES)])
    order = np.random.default_rng(SPLIT_SEED).permutation(adata.n_obs)
    held_out, train = adata[order[:N_HELD_OUT]].copy(), adata[order[N_HELD_OUT:]].copy()
    print(f"{train.n_obs:,} cells to train on, {held_out.n_obs} held out, {adata.n_vars:,} genes", flush=True)
    results = {
        "SCLDM": run_scldm(train.copy(), held_out, arguments.epochs, arguments.seed),
        f"scVI, {N_LATENT} latent dimensions": run_scvi(train, held_out, arguments.scvi_epochs, arguments.seed),
    }

    print(f"\n{'held-out NLL, nats a cell':<28}{'NLL':>8}{'at mean':>10}{'epochs':>8}{'seconds':>9}{'parameters':>12}")
    for name, r in results.items():
        at_mean = f"{r['nll_at_posterior_mean']:.1f}" if "nll_at_posterior_mean" in r else ""
        row = f"{r['nll']:>8.1f}{at_mean:>10}{r['epochs']:>8}{r['seconds']:>9.0f}{r['parameters']:>12,}"
        print(f"{name:<28}{row}")
    nll = results["SCLDM"]["nll"]
    print(f"Target for SCLDM: below {TARGET}: {'met' if nll < TARGET else 'MISSED'}")
    about = {"dataset": "kang", "condition": "all", "kind": "model", "seed": arguments.seed}
    rows = [{**about, "source": source, **result} for source, result in results.items()]
    print(save(pd.DataFrame(rows), arguments, better={"nll": "lower", "nll_at_posterior_mean": "lower"}))


if __name__ == "__main__":
    main()
