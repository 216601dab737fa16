"""Conditions that nobody measured: a gene by its features, a pair by its members, a dose between measured ones.

Data sets:

- `--replogle REPLOGLE.h5ad --features FEATURES.h5ad`: signatures of knock-downs (one row per knock-down) and features
  of genes in `obsm["X_go128"]`. A fifth of the knock-downs is held out, in five draws, and the mixed model alone
  predicts them (`sclatent.baseline.MixedModel`: no cells, so no network). Correlation with the true signature beyond
  the mean of the others, and discrimination: the share of the other held-out signatures that are less like the
  prediction than the true one.
- pairs, simulated: 12 genes alone and 30 pairs, a third of which have a synergy; all pairs of a gene are held out in
  turn. Beside the sum of the two single effects.
- doses, simulated: 10 drugs with Hill curves at six doses, of which two inside the range are held out. The EC50 is that
  of a Hill curve through what is predicted at 40 doses, along the direction of the largest dose.
- fit: seconds and peak memory of the mixed model of 20,000 simulated combinations x 128 outcomes, of names, of levels
  with features, and of sets with features.

For pairs and doses two rows: `predict_profile`, the mixed model of genes, which evaluates no network, and `sample`,
cells of SCLDM, which does (left out by --without-network, in a tenth of the time). Beside all rows of `predict_profile`
stands the share of genes whose held-out mean lies in the 90 % interval.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from _common import parse, profile, save
from anndata import AnnData
from scipy.optimize import curve_fit

from sclatent.baseline import MixedModel
from sclatent.conditions import Category, Number, Set
from sclatent.model import SCLDM
from sclatent.nn import Values

N_GENES, N_CELLS, DEPTH = 100, 100, 2000
N_HELD_OUT_CELLS = 2000  # the truth is simulated, so that its noise can be small
SUM, BETWEEN = "sum of the single effects", "mean of the neighbouring doses"  # floors
BETTER = {
    **dict.fromkeys(["beyond the mean", "discrimination", "pearson", "ec50 found"], "higher"),
    "mse": "lower",
}
DOSES, HELD_OUT_DOSES = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0], [1.0, 10.0]


def replogle(path: Path, features_path: Path, seed: int) -> pd.DataFrame:
    adata, genes = ad.read_h5ad(path), ad.read_h5ad(features_path)
    name = adata.obs["perturbation"].astype(str)
    known = name.isin(genes.obs_names).to_numpy()
    y = np.asarray(adata.X.todense(), dtype=float)[known]
    x = torch.from_numpy(np.asarray(genes[name[known]].obsm["X_go128"], dtype=np.float32))
    order = np.random.default_rng(seed).permutation(len(y))
    held_out, train = order[: len(y) // 5], order[len(y) // 5 :]
    values = [Values(torch.zeros(len(y), 0), x[np.r_[train, held_out]], *(torch.zeros(len(y), 0) for _ in range(2)))]
    n = len(train)
    model = MixedModel([n], y.shape[1]).fit(np.arange(n)[:, None], np.ones(n), y[train], values=values)
    predicted, mean = model.predict(np.arange(n, len(y))[:, None], values), y[train].mean(axis=0)
    alike = np.corrcoef(predicted - mean, y[held_out] - mean)[: len(held_out), len(held_out) :]
    own = np.diag(alike)
    figures = {"beyond the mean": own.mean(), "discrimination": ((alike < own[:, None]).sum(1) / (len(own) - 1)).mean()}
    return pd.DataFrame([{"condition": "all", "source": "mixed model", "kind": "generated", **figures}])


class Truth:
    """Simulated cells of two states, whose expression an effect changes."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 1])
        self.base = self.rng.gamma(1.0, 1.0, N_GENES) + 0.05
        self.state = 0.7 * self.rng.standard_normal(N_GENES)

    def cells(self, effect: np.ndarray, n: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng([seed, 2])
        mean = self.base * np.exp(effect + rng.integers(0, 2, n)[:, None] * self.state)
        return rng.poisson(DEPTH * mean / mean.sum(axis=1, keepdims=True)).astype(np.float32)


def trained(adata: AnnData, keys: dict[str, Any], seed: int, epochs: int | None) -> SCLDM:
    SCLDM.setup_anndata(adata, condition_keys=keys)
    model = SCLDM(adata, seed=seed)
    model.train(epochs, accelerator="cpu", seed=seed, progress_bar=False)
    return model


def both(
    model: SCLDM, conditions: Any, control: Any, real: np.ndarray, base: np.ndarray, seed: int, network: bool
) -> dict[str, Any]:
    """Changes over control that are predicted and sampled, and the share of genes in the interval."""
    predicted = model.predict_profile(conditions, n_cells=N_HELD_OUT_CELLS)
    own = model.predict_profile(control)["mean"].to_numpy()
    within = np.abs(real - predicted["mean"].to_numpy()) < 1.645 * predicted["sd"].to_numpy()
    found = {"predict_profile": predicted["mean"].to_numpy() - own, "truth": real - base, "within": within.mean()}
    if network:
        made, zero = (model.sample(500, c, seed=seed, progress_bar=False) for c in (conditions, control))
        found["sample"] = profile(made.X) - profile(zero.X)
    return found


def pairs(seed: int, epochs: int | None, network: bool) -> pd.DataFrame:
    truth = Truth(seed)
    genes = [f"G{i}" for i in range(12)]
    single = {gene: 0.6 * truth.rng.standard_normal(N_GENES) * (truth.rng.random(N_GENES) < 0.3) for gene in genes}
    chosen = truth.rng.permutation([(a, b) for a in range(12) for b in range(a)])[:30]
    strength = {gene: truth.rng.normal(0.0, 0.8) for gene in genes}  # genes differ in how they act together with others
    effects = {"control": np.zeros(N_GENES), **single}
    for i, (a, b) in enumerate(chosen):
        one, other = genes[a], genes[b]
        more = 1 + (strength[one] + strength[other] if i % 3 == 0 else 0.0)
        effects[f"{one}+{other}"] = more * (single[one] + single[other])
    counts = {level: truth.cells(effect, N_CELLS, k) for k, (level, effect) in enumerate(effects.items())}
    rows = []
    for gene in genes[:4]:
        held_out = [level for level in effects if "+" in level and gene in level.split("+")]
        kept = [level for level in effects if level not in held_out]
        x = np.vstack([counts[level] for level in kept])
        adata = AnnData(x, obs=pd.DataFrame({"perturbation": np.repeat(kept, N_CELLS)}, index=map(str, range(len(x)))))
        model = trained(adata, {"perturbation": Set("+", control="control")}, seed, epochs)
        base = profile(truth.cells(effects["control"], N_HELD_OUT_CELLS, 999))
        measured = {level: profile(counts[level]) - profile(counts["control"]) for level in kept}
        for level in held_out:
            real = profile(truth.cells(effects[level], N_HELD_OUT_CELLS, 998))
            found = both(model, level, "control", real, base, seed, network)
            found[SUM] = sum(measured[member] for member in level.split("+"))
            rows += [
                {**row, "pearson": np.corrcoef(found[row["source"]], found["truth"])[0, 1]}
                for row in rows_of(found, SUM, f"{level}, without {gene}")
            ]
    return pd.DataFrame(rows)


def rows_of(found: dict[str, Any], floor: str, condition: str) -> list[dict[str, Any]]:
    """Rows of what was found: squared errors, and of the prediction the share of genes in the interval."""
    rows = []
    for source in ("predict_profile", "sample", floor):
        if source in found:
            kind = "floor" if source == floor else "generated"
            error = np.square(found[source] - found["truth"]).mean()
            rows.append({"condition": condition, "source": source, "kind": kind, "mse": error})
    return [{**rows[0], "within 90 %": found["within"]}, *rows[1:]]


def hill(dose: np.ndarray, most: float, half: float, slope: float) -> np.ndarray:
    return most * dose**slope / (dose**slope + half**slope)


def doses(seed: int, epochs: int | None, network: bool) -> pd.DataFrame:
    truth = Truth(seed)
    effect = {f"D{i}": 0.8 * truth.rng.standard_normal(N_GENES) * (truth.rng.random(N_GENES) < 0.4) for i in range(10)}
    half = {drug: 10 ** truth.rng.uniform(-0.3, 1.3) for drug in effect}
    slope = {drug: truth.rng.uniform(0.8, 2.0) for drug in effect}

    def of(drug: str, dose: float) -> np.ndarray:
        return effect[drug] * hill(np.array(dose), 1.0, half[drug], slope[drug])

    measured = [("vehicle", 0.0)] + [(drug, dose) for drug in effect for dose in DOSES if dose not in HELD_OUT_DOSES]
    counts = [
        truth.cells(np.zeros(N_GENES) if d == "vehicle" else of(d, x), N_CELLS, k) for k, (d, x) in enumerate(measured)
    ]
    obs = pd.DataFrame([row for row in measured for _ in range(N_CELLS)], columns=["drug", "dose"])
    adata = AnnData(np.vstack(counts), obs=obs.set_index(obs.index.astype(str)))
    model = trained(adata, {"drug": Category(), "dose": Number("log1p", of="drug")}, seed, epochs)
    base = profile(truth.cells(np.zeros(N_GENES), N_HELD_OUT_CELLS, 999))
    control = {"drug": "vehicle", "dose": 0.0}
    rows = []
    for drug in effect:
        for dose in HELD_OUT_DOSES:
            real = profile(truth.cells(of(drug, dose), N_HELD_OUT_CELLS, 998))
            found = both(model, {"drug": drug, "dose": dose}, control, real, base, seed, network)
            neighbours = [DOSES[DOSES.index(dose) + step] for step in (-1, 1)]
            between = [profile(counts[measured.index((drug, x))]) for x in neighbours]
            found[BETWEEN] = np.mean(between, axis=0) - profile(counts[0])
            rows += rows_of(found, BETWEEN, f"{drug}, {dose:g}")
        grid = np.geomspace(0.05, 100, 40)
        own = model.predict_profile(control)["mean"].to_numpy()
        change = np.array([model.predict_profile({"drug": drug, "dose": x})["mean"].to_numpy() - own for x in grid])
        along = change @ change[-1] / (change[-1] @ change[-1])
        (_, found_half, _), _ = curve_fit(hill, grid, along, p0=(1.0, 5.0, 1.0), bounds=([0.1, 0.01, 0.2], [5, 500, 6]))
        ratio = found_half / half[drug]
        near = float(abs(np.log(ratio)) < np.log(1.5))
        about = {"condition": f"{drug}, EC50", "source": "predict_profile", "kind": "generated"}
        rows.append({**about, "ec50 ratio": ratio, "ec50 found": near})
    return pd.DataFrame(rows)


def fit_times() -> pd.DataFrame:
    """Time the fit at 20,000 combinations of 128 outcomes; memory is that of the process so far."""
    rng, rows = np.random.default_rng(0), []
    for name, (n_types, n, n_features, is_set) in {
        "50 types x 400 perturbations": (50, 400, 0, False),
        "50 types x 400 perturbations with 64 features": (50, 400, 64, False),
        "10 types x 2,000 sets of 80 members with 64 features": (10, 2000, 64, True),
    }.items():
        codes = np.array([(a, b) for a in range(n_types) for b in range(n)])
        features = rng.standard_normal((n, n_features))
        members = np.zeros((n, 81 if is_set else 0))
        for row in members if is_set else ():
            which = rng.choice(80, rng.integers(1, 3), replace=False)
            row[0], row[1 + which] = len(which), 1.0
        parts = (members, features, np.zeros((n, 0)), np.zeros((n, 0)))
        values = [Values.of_levels(n_types), Values(*(torch.from_numpy(part.astype(np.float32)) for part in parts))]
        effect = features @ rng.standard_normal((n_features, 128)) * 0.2 + 0.3 * rng.standard_normal((n, 128))
        y = rng.standard_normal((n_types, 128))[codes[:, 0]] + effect[codes[:, 1]]
        y = y + 0.3 * rng.standard_normal(y.shape)
        start = time.perf_counter()
        MixedModel([n_types, n], 128).fit(codes, np.full(len(codes), 50.0), y, noise=1.0, values=values)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append({"source": name, "seconds": time.perf_counter() - start, "peak memory, GB": memory})
    return pd.DataFrame(rows).assign(condition="all", kind="model")


def run(name: str, seed: int, arguments: argparse.Namespace) -> pd.DataFrame:
    if name == "replogle":
        return replogle(arguments.replogle, arguments.features, seed).assign(dataset=name)
    if name == "fit":
        return fit_times().assign(dataset=name)
    simulated = {"pairs": pairs, "doses": doses}[name](seed, arguments.epochs, not arguments.without_network)
    return simulated.assign(dataset=f"{name}, draw {seed}")  # every seed has other pairs and drugs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replogle", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument(
        "--only", nargs="+", choices=["replogle", "pairs", "doses", "fit"], default=["replogle", "pairs", "doses"]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of pairs and doses")
    parser.add_argument("--epochs", type=int, help="of each stage (default: by the number of cells)")
    parser.add_argument("--without-network", action="store_true", help="train nothing, and sample no cells")
    arguments = parse(parser, "conditions")
    if arguments.without_network:
        arguments.epochs = 1  # of networks that are not evaluated
    for name in arguments.only:
        if name == "replogle" and not (arguments.replogle and arguments.features):
            print("replogle: left out (no --replogle and --features)")
            continue
        tables: list[pd.DataFrame] = []
        for seed in {"replogle": range(5), "fit": [0]}.get(name, arguments.seeds):
            tables.append(run(name, seed, arguments).assign(seed=seed))
            path = save(pd.concat(tables, ignore_index=True), arguments, name, BETTER)
        show(name, pd.concat(tables))
        print(path)


def show(name: str, table: pd.DataFrame) -> None:
    """Print means over seeds and what was held out, and what was aimed at."""
    mean = table.groupby("source", sort=False).mean(numeric_only=True).drop(columns="seed")
    print(f"\n{name}, mean over {table['seed'].nunique()} seeds\n{mean.round(4).to_string()}")
    if name == "doses":
        print(f"EC50 within a factor of 1.5 of the true one: {table['ec50 found'].mean():.0%} (aimed at: 90 %)")
    if name == "fit":
        print("aimed at: 60 s, 2 GB")


if __name__ == "__main__":
    main()
