"""CellFlow (Klein, Fleck et al. 2025), as in its tutorial: predict the treated cells of a group from its control cells.

Flow matching from control to treated cells, coupled by optimal transport within a group, on 50 principal components of
log1p of counts per 10,000; predicted components go back to genes through the loadings and the mean. Run it in the
environment of `cellflow.txt`. The tutorial's network and iterations want a GPU: the defaults of --scale, --iterations,
--batch-size, --learning-rate and --accumulate fit a core, and README.md says by how much they differ.

With --task generation there is no treatment: cells of every group are made from Gaussian noise, as many as are given.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import optax
import pandas as pd
from _interface import NAMES, parse, parser, read_log, split, write
from anndata import AnnData, concat

# else this file would be imported as the package of the same name
sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]
from cellflow.model import CellFlow  # noqa: E402
from cellflow.preprocessing import centered_pca, reconstruct_pca  # noqa: E402
from cellflow.utils import match_linear  # noqa: E402

PACKAGES = ("cellflow-tools", "jax", "ott-jax", "diffrax", "anndata")
SETTINGS = ("iterations", "batch_size", "scale", "learning_rate", "accumulate", "one_hot")


def read(path: Path) -> AnnData:
    """Cells on log1p CP10k with 50 principal components."""
    cells = read_log(path)
    cells.X = cells.X.toarray() if hasattr(cells.X, "toarray") else cells.X
    centered_pca(cells, n_comps=50, keep_centered_data=False)
    return cells


def embeddings(names: list[str]) -> dict[str, np.ndarray]:
    """One-hot vectors."""
    return dict(zip(names, np.eye(len(names), dtype=np.float32), strict=True))


def fit(
    train: AnnData, target_key: str, group_key: str | None, arguments: argparse.Namespace
) -> tuple[CellFlow, float]:
    """Train from control cells (`is_control`) to those of each target, within groups; return model and seconds."""

    def mlp(width: int, dropout: float = 0.0) -> dict:
        return {"layer_type": "mlp", "dims": [int(width * arguments.scale)] * 2, "dropout_rate": dropout}

    def widths(width: int) -> list[int]:
        return [int(width * arguments.scale)] * 3

    groups = [] if group_key is None else [group_key]
    model = CellFlow(train, solver="otfm")
    model.prepare_data(
        sample_rep="X_pca",
        control_key="is_control",
        perturbation_covariates={"perturbation": (target_key,)},
        perturbation_covariate_reps={"perturbation": "target_embedding"},
        sample_covariates=groups,
        sample_covariate_reps=dict.fromkeys(groups, "group_embedding"),
        split_covariates=groups,
        max_combination_length=1,
    )
    model.prepare_model(
        layers_before_pool={"perturbation": mlp(1024, 0.5), **dict.fromkeys(groups, mlp(256))},
        layers_after_pool=mlp(1024),
        condition_embedding_dim=256,
        cond_output_dropout=0.9,
        time_encoder_dims=widths(1024),
        hidden_dims=widths(2048),
        decoder_dims=widths(4096),
        conditioning_kwargs={},
        probability_path={"constant_noise": 0.5},
        match_fn=partial(match_linear, epsilon=0.5),
        optimizer=optax.MultiSteps(optax.adam(arguments.learning_rate), arguments.accumulate),
        seed=arguments.seed,
    )
    start = time.perf_counter()
    model.train(num_iterations=arguments.iterations, batch_size=arguments.batch_size, valid_freq=arguments.iterations)
    return model, time.perf_counter() - start


def move(model: CellFlow, source: AnnData, wanted: pd.DataFrame) -> np.ndarray:
    """Components of control cells, moved to the one condition that is wanted."""
    (moved,) = model.predict(adata=source, sample_rep="X_pca", covariate_data=wanted).values()
    return np.asarray(moved)


def to_genes(components: np.ndarray, obs: pd.DataFrame, cells: AnnData) -> AnnData:
    """Cells on log1p CP10k of given components."""
    empty = np.empty((len(obs), cells.n_vars), np.float32)
    predicted = AnnData(empty, obs=obs, var=cells.var[[]], obsm={"X_pca": components})
    reconstruct_pca(predicted, ref_adata=cells, layers_key_added="genes")
    predicted.X = predicted.layers.pop("genes")
    return predicted


def perturbation(arguments: argparse.Namespace) -> tuple[AnnData, float]:
    """Treated cells of the group that is held out, from its control cells; and seconds of training."""
    cells = read(arguments.train)
    group_key, condition_key = arguments.group_key, arguments.condition_key
    held_out, control = split(cells, arguments)
    obs = cells.obs[held_out & control]
    cells.obs["is_control"] = control
    cells.uns["target_embedding"] = embeddings([arguments.control, arguments.treated])
    names = sorted(set(cells.obs[group_key]))
    means = {name: cells.obsm["X_pca"][control & (cells.obs[group_key] == name)].mean(0) for name in names}
    cells.uns["group_embedding"] = embeddings(names) if arguments.one_hot else means

    # control cells without treated ones have no place in training
    train = cells[~held_out].copy()
    train.obs[group_key] = train.obs[group_key].astype(str).astype("category")
    model, seconds = fit(train, condition_key, group_key, arguments)
    source = cells[held_out & control].copy()
    wanted = source.obs.iloc[:1].assign(**{condition_key: arguments.treated, "is_control": False})
    return to_genes(move(model, source, wanted), obs, cells), seconds


def generation(arguments: argparse.Namespace) -> tuple[AnnData, float]:
    """Cells of every group from noise, as many as were given; and seconds of training."""
    cells = read(arguments.train)
    key = arguments.group_key
    generator = np.random.default_rng(arguments.seed)
    scale = cells.obsm["X_pca"].std(0)

    def noise(n_cells: int) -> AnnData:
        obs = pd.DataFrame({key: "noise", "is_control": True}, index=[f"noise_{i}" for i in range(n_cells)])
        components = (generator.standard_normal((n_cells, len(scale))) * scale).astype(np.float32)
        return AnnData(np.zeros((n_cells, 1), np.float32), obs=obs, obsm={"X_pca": components}, uns=embedded)

    names = sorted(set(cells.obs[key]))
    embedded = {"target_embedding": embeddings([*names, "noise"])}
    given = AnnData(
        np.zeros((cells.n_obs, 1), np.float32),
        obs=pd.DataFrame({key: cells.obs[key].astype(str), "is_control": False}),
        obsm={"X_pca": cells.obsm["X_pca"]},
    )
    train = concat([given, noise(cells.n_obs)])
    train.uns = embedded
    train.obs[key] = train.obs[key].astype("category")
    model, seconds = fit(train, key, None, arguments)

    moved, labels = [], []
    for name, n_cells in cells.obs[key].value_counts().loc[names].items():
        source = noise(n_cells)
        moved.append(move(model, source, source.obs.iloc[:1].assign(**{key: name, "is_control": False})))
        labels += [name] * n_cells
    obs = pd.DataFrame({key: pd.Categorical(labels)}, index=[f"generated_{i}" for i in range(len(labels))])
    return to_genes(np.concatenate(moved), obs, cells), seconds


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--task", choices=["perturbation", "generation"], default="perturbation")
    command.add_argument("--iterations", type=int, default=2000, help="tutorial: 500,000")
    command.add_argument("--batch-size", type=int, default=128, help="tutorial: 1,024")
    command.add_argument("--scale", type=float, default=0.125, help="width of the network; tutorial: 1")
    command.add_argument("--learning-rate", type=float, default=5e-4, help="tutorial: 5e-5")
    command.add_argument("--accumulate", type=int, default=2, help="iterations a step of the optimiser; tutorial: 20")
    command.add_argument("--one-hot", action="store_true", help="groups as one-hot vectors, not mean control cells")
    arguments = parse(command, needed={"generation": ("group_key",), "perturbation": NAMES})
    predicted, seconds = {"perturbation": perturbation, "generation": generation}[arguments.task](arguments)
    write(arguments.out, predicted, seconds, PACKAGES, {name: getattr(arguments, name) for name in SETTINGS})


if __name__ == "__main__":
    main()
