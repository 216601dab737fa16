"""Three questions to real data, each about cells that were held out: SCLDM between floors and a ceiling.

- `--donors`: three condition keys at once (cell type, donor, condition). The stimulated cells of one type of one donor
  are held out, each with at least 20 cells in turn. Floors: those of the type and donor with the nearest control cells,
  such as the same type of the other donor, copied or as a change; the mean shift of the other types and donors.
- `--lines`: weak effects. Nine knock-downs in three cell lines, each held out once in each line: a fold holds out every
  knock-down in one line (a Latin square), so that all stay in two. Floors: the knock-down in the other lines, as a
  change or as cells; and the other knock-downs of the same line ("context mean"), which share its control cells and
  whatever guides do.
- `--times`: a condition that is a number. All cells of a window of time are held out, and each is predicted by its type
  and time. Floors: the cells of the windows of 60 minutes before and after, alone and mixed half and half, which do not
  know the types; and, which does, for each cell one of its type that is nearest in time. The energy distance is taken
  in principal components of one half of the training cells; the cells of the floors are of the other.

The 2,000 most variable genes (scanpy's flavour "seurat") are chosen on training cells alone, settings are the defaults.

Rows: "sample" and "counterfactual, noise level 1" evaluate the network that diffusion trains; rows with "no network"
are the closed form. "predict_change" and "predict_profile" are of genes, of the logarithm of a mean and not of the mean
of logarithms: their correlations can be compared with those of other rows, their mse hardly. The noise of the control
cells of a group is in the real change, and in that of whatever was learned from them or is compared with them: all rows
but floors that are changes of other groups. It favours them, the more the weaker the effect and the fewer these cells.

"within 90 %" is the share of genes whose held-out mean lies in the interval of `predict_profile(..., n_cells=...)`; of
times that of each type with at least 20 cells in the window, at its mean time, and, "at a time", of each type and time
with at least 10.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import parse, profile, save, variable_genes, with_counts
from anndata import AnnData, read_h5ad

from sclatent.conditions import Category, Number
from sclatent.metrics import Projection, energy_distance, evaluate_perturbation, log_normalize
from sclatent.model import SCLDM

N_GENES = 2_000
CONTROL = "control"  # as all of these files call it
MIN_CELLS, MIN_CELLS_AT_A_TIME = 20, 10
# of minutes, from the first to before the last; and how wide the windows beside them are
WINDOWS, WIDTH = [(330, 390), (450, 510), (580, 650)], 60
N_SPLITS = 20  # of the held-out cells into halves, for the ceiling of times
METRICS = ["pearson", "pearson_top50", "mse", "energy"]
WITHIN, WITHIN_AT_A_TIME = "within 90 %", "within 90 %, at a time"
MIXED = "neighbouring windows, mixed"
TO_BEAT = {
    "donors": ["nearest group", "nearest shift", "mean shift"],
    "lines": ["mean shift", "cell mean", "control as it is"],
    "times": [MIXED],
}
Compare = Callable[[SCLDM, AnnData, AnnData, int], pd.DataFrame]


@dataclass(frozen=True)
class Fold:
    """Cells that are held out, and how predictions of them are compared."""

    question: str
    name: str
    adata: AnnData
    held_out: np.ndarray
    keys: Any
    compare: Compare

    def run(self, seed: int, arguments: argparse.Namespace) -> pd.DataFrame:
        """Train without the cells that are held out, predict them in every way, and compare."""
        start = time.perf_counter()
        train = self.adata[~self.held_out]
        genes = variable_genes(train, N_GENES)
        train, real = with_counts(train[:, genes]), with_counts(self.adata[self.held_out, genes])
        model = self._trained(train, seed, arguments)
        table = self.compare(model, train, real, seed)
        return table.assign(dataset=self.question, seed=seed, seconds=time.perf_counter() - start)

    def _trained(self, train: AnnData, seed: int, arguments: argparse.Namespace) -> SCLDM:
        """Train SCLDM, or load the model that an earlier run has kept."""
        kept = arguments.models and arguments.models / self.question / f"{self.name}, seed {seed}"
        if kept and kept.exists():
            return SCLDM.load(kept, train)
        SCLDM.setup_anndata(train, condition_keys=self.keys)
        model = SCLDM(train, seed=seed)
        model.train(arguments.epochs, accelerator="cpu", seed=seed, progress_bar=False)
        if kept:
            model.save(kept)
        return model


def of_donors(path: Path) -> Iterator[Fold]:
    adata = read_h5ad(path)
    obs, keys = adata.obs, ["cell_type", "donor", "condition"]
    group = obs["cell_type"].astype(str) + ", " + obs["donor"].astype(str)
    is_treated = obs["condition"] != CONTROL
    for name, n in group[is_treated].value_counts(sort=False).sort_index().items():
        if n >= MIN_CELLS:
            held_out = (is_treated & (group == name)).to_numpy()
            yield Fold("donors", name, adata, held_out, keys, partial(compare_group, keys=keys))


def of_lines(path: Path) -> Iterator[Fold]:
    adata = read_h5ad(path)
    obs, keys = adata.obs, ["cell_type", "condition"]
    lines = sorted(obs["cell_type"].unique())
    knock_downs = sorted(set(obs["condition"].unique()) - {CONTROL})
    square = obs["cell_type"].astype(str).map(lines.index)
    square += obs["condition"].astype(str).map([*knock_downs, CONTROL].index)
    for k in range(len(lines)):
        held_out = ((square % len(lines) == k) & (obs["condition"] != CONTROL)).to_numpy()
        yield Fold("lines", f"Latin square {k}", adata, held_out, keys, partial(compare_lines, keys=keys))


def of_times(path: Path) -> Iterator[Fold]:
    adata = read_h5ad(path)
    keys = {"cell_type": Category(), "embryo_time": Number()}
    for low, high in WINDOWS:
        held_out = between(adata, low, high)
        yield Fold("times", f"{low}-{high}", adata, held_out, keys, partial(compare_times, low=low, high=high))


def between(adata: AnnData, low: float, high: float) -> np.ndarray:
    return ((adata.obs["embryo_time"] >= low) & (adata.obs["embryo_time"] < high)).to_numpy()


def compare_lines(model: SCLDM, train: AnnData, real: AnnData, seed: int, keys: list[str]) -> pd.DataFrame:
    groups = [real[real.obs["condition"] == knock_down].copy() for knock_down in sorted(real.obs["condition"].unique())]
    return pd.concat([compare_group(model, train, group, seed, keys) for group in groups])


def compare_group(model: SCLDM, train: AnnData, real: AnnData, seed: int, keys: list[str]) -> pd.DataFrame:
    """Compare predicted with real perturbed cells of one combination, by the control cells of its context."""
    target = real.obs[keys].iloc[0].to_dict()
    to, context = {"condition": target["condition"]}, [key for key in keys if key != "condition"]
    is_control = (train.obs["condition"] == CONTROL).to_numpy()
    control, seen = train[is_control].copy(), train[~is_control].copy()
    to_move = control[np.all([control.obs[key] == target[key] for key in context], axis=0)].copy()
    options = {"seed": seed, "progress_bar": False}
    cells = {
        "SCLDM sample": model.sample(real.n_obs, target, **options),
        "SCLDM counterfactual, noise level 1": model.counterfactual(to_move, to, noise_level=1, **options),
        "SCLDM sample, no network": model.sample(real.n_obs, target, baseline_only=True, **options),
        "SCLDM counterfactual, noise level 0, no network": model.counterfactual(to_move, to, noise_level=0, **options),
    }
    change = model.predict_change(target, target | {"condition": CONTROL})["change"]
    mean = model.predict_profile(target)["mean"]
    changes = {
        "SCLDM predict_change, no network": change[real.var_names].to_numpy(),
        "SCLDM predict_profile less real control, no network": mean.to_numpy() - profile(to_move.X),
    }
    table = evaluate_perturbation(real, cells | changes, control, keys, seen, seed=seed, progress_bar=False)
    table = table[table["condition"] != "mean"]
    columns = ["source", "kind", "metric", "value", "better"]
    interval = pd.DataFrame([within(model, target, real, WITHIN)])
    what = {"group": ", ".join(target[key] for key in context), "condition": ", ".join(target.values())}
    return pd.concat([table[columns], interval]).assign(**what)


def compare_times(model: SCLDM, train: AnnData, real: AnnData, seed: int, low: float, high: float) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    order = rng.permutation(train.n_obs)
    space = Projection(log_normalize(train[order[: train.n_obs // 2]].copy()), seed=seed)
    others = train[order[train.n_obs // 2 :]].copy()

    def points(cells: AnnData) -> np.ndarray:
        return space.transform(log_normalize(cells))

    asked, options = real.obs[["cell_type", "embryo_time"]], {"seed": seed, "progress_bar": False}
    before, after = (points(others[between(others, *w)].copy()) for w in ((low - WIDTH, low), (high, high + WIDTH)))
    n = min(len(before), len(after))  # in random order already
    rows = {
        ("SCLDM sample", "generated"): points(model.sample(conditions=asked, **options)),
        ("SCLDM sample, no network", "generated"): points(
            model.sample(conditions=asked, baseline_only=True, **options)
        ),
        (MIXED, "floor"): np.concatenate([before[:n], after[:n]]),
        ("window before", "floor"): before,
        ("window after", "floor"): after,
        ("same type at the nearest time", "floor"): points(nearest(others, asked)),
    }
    truth = points(real)
    records = [
        {"source": source, "kind": kind, "metric": "energy", "value": energy_distance(truth, cells)}
        for (source, kind), cells in rows.items()
    ]
    splits = [np.array_split(rng.permutation(truth), 2) for _ in range(N_SPLITS)]
    ceiling = float(np.mean([energy_distance(*halves) for halves in splits]))
    records.append({"source": "real half", "kind": "ceiling", "metric": "energy", "value": ceiling})
    table = pd.DataFrame(records).assign(better="lower", condition=f"{low}-{high}")

    intervals = []
    for metric, columns, least in (
        (WITHIN, ["cell_type"], MIN_CELLS),
        (WITHIN_AT_A_TIME, ["cell_type", "embryo_time"], MIN_CELLS_AT_A_TIME),
    ):
        for _, some in asked.groupby(columns, observed=True):
            if len(some) >= least:
                target = {"cell_type": some["cell_type"].iloc[0], "embryo_time": some["embryo_time"].mean()}
                found = within(model, target, real[some.index], metric)
                intervals.append({**found, "condition": f"{target['cell_type']}, {target['embryo_time']:.0f}"})
    return pd.concat([table, pd.DataFrame(intervals)]).assign(group=f"{low}-{high}")


def nearest(cells: AnnData, asked: pd.DataFrame) -> AnnData:
    """For each of the cells that are asked for another one of its type, nearest in time, as far as there are."""
    left, chosen = cells.obs.assign(row=np.arange(cells.n_obs)).set_index("row"), []
    for cell in asked.itertuples():
        alike = left.loc[left["cell_type"] == cell.cell_type, "embryo_time"]
        if len(alike):
            chosen.append((alike - cell.embryo_time).abs().idxmin())
            left = left.drop(chosen[-1])
    return cells[chosen].copy()


def within(model: SCLDM, target: dict[str, Any], real: AnnData, metric: str) -> dict[str, Any]:
    """Share of the genes whose mean in real cells lies in the 90 % interval of the prediction."""
    predicted = model.predict_profile(target, n_cells=real.n_obs)
    error = np.abs(profile(real.X) - predicted["mean"].to_numpy())
    share = float(np.mean(error < 1.645 * predicted["sd"].to_numpy()))
    source = "SCLDM predict_profile, no network"
    return {"source": source, "kind": "generated", "metric": metric, "value": share}


def verdict(met: bool, text: str) -> None:
    print(f"{'met   ' if met else 'MISSED'} {text}")


def show(question: str, table: pd.DataFrame) -> None:
    """Print the mean over what was held out, what there is of each part, and what was aimed at."""
    kinds = table.groupby("source", sort=False)["kind"].first()
    values = table.groupby(["metric", "group", "condition", "source"], sort=False)["value"].mean()  # over seeds
    compared = values.drop([WITHIN, WITHIN_AT_A_TIME], errors="ignore").unstack("source")
    order = [s for kind in ("generated", "floor", "ceiling") for s in kinds.index[kinds == kind] if s in compared]
    compared = compared[order]
    metrics = [metric for metric in METRICS if metric in compared.index]
    mean = compared.groupby("metric").mean().loc[metrics].T
    n = len(compared.loc[metrics[0]])
    print(f"\n{question}: mean over {n} held out and {table['seed'].nunique()} seeds")
    print(mean.rename_axis(columns=None).to_string(float_format="{:.3f}".format))
    ours, floors = ([s for s in compared if kinds[s] == kind] for kind in ("generated", "floor"))
    wanted = ["energy"] if question == "times" else ["pearson", "pearson_top50"]
    for metric in wanted:
        by_group = compared.loc[metric].groupby("group", sort=False).mean().T
        print(f"\n{metric} by group\n{by_group.rename_axis(columns=None).round(3).to_string()}")
        scores = compared.loc[metric] * (-1 if metric == "energy" else 1)
        wins = pd.DataFrame({floor: [int((scores[s] > scores[floor]).sum()) for s in ours] for floor in floors}, ours)
        print(f"\n{metric}: on how many of {n} better than each floor\n{wins.to_string()}")
    print()
    asked = TO_BEAT[question]
    for source in ours:
        for metric in wanted:
            sign, value = (-1 if metric == "energy" else 1), mean.loc[source, metric]
            for names, what in ((asked, "; ".join(asked)), (floors, "every floor")):
                best = (sign * mean.loc[names, metric]).idxmax()
                what = f"better than {what} (best: {best}, {mean.loc[best, metric]:.3f})"
                verdict(sign * (value - mean.loc[best, metric]) > 0, f"{source}, {metric} {value:.3f}, {what}")
            if question == "times":
                floor, ceiling = mean.loc[[MIXED, "real half"], metric]
                way = (floor - value) / (floor - ceiling)
                verdict(way >= 0.5, f"{source}, {metric}, at least half of the way from {MIXED}, to real: {way:.0%}")
    for metric in (WITHIN, WITHIN_AT_A_TIME):
        if metric in values.index:
            share = values.loc[metric]
            what = f"{metric}: {share.mean():.1%} of the genes, mean over {len(share)} predictions"
            verdict(0.85 <= share.mean() <= 0.95, f"{what} ({share.min():.1%} to {share.max():.1%}); 85 to 95 % wanted")


QUESTIONS = {"donors": of_donors, "lines": of_lines, "times": of_times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    about = {"cell_type, donor and condition": "donors", "cell_type and condition": "lines"}
    for columns, question in {**about, "cell_type and embryo_time": "times"}.items():
        parser.add_argument(f"--{question}", type=Path, help=f"h5ad file with raw counts, and {columns} in obs")
    parser.add_argument("--only", nargs="+", choices=list(QUESTIONS), default=list(QUESTIONS))
    parser.add_argument("--folds", nargs="+", help='names of folds to run, such as "B cells, 107" or "330-390"')
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="of each stage (default: by the number of cells)")
    parser.add_argument("--models", type=Path, help="folder of trained models, used if there, kept if not")
    arguments = parse(parser, "held_out")

    paths = {question: getattr(arguments, question) for question in arguments.only if getattr(arguments, question)}
    if not paths:
        raise SystemExit("No data: give one or more of --donors, --lines and --times.")
    folds = [fold for question, path in paths.items() for fold in QUESTIONS[question](path)]
    if arguments.folds:
        names = [fold.name for fold in folds]
        if unknown := set(arguments.folds) - set(names):
            raise SystemExit(f"--folds {sorted(unknown)}: the folds are {names}.")
        folds = [fold for fold in folds if fold.name in arguments.folds]

    tables: list[pd.DataFrame] = []
    for seed in arguments.seeds:
        for fold in folds:
            tables.append(fold.run(seed, arguments))
            seconds = tables[-1]["seconds"].iloc[0]
            found = tables[-1][(tables[-1]["metric"] == "energy") & (tables[-1]["kind"] != "floor")]
            energy = ", ".join(f"{s} {v:.3f}" for s, v in found.groupby("source", sort=False)["value"].mean().items())
            print(f"{fold.question}, {fold.name}, seed {seed}: {seconds:.0f} s; energy: {energy}", flush=True)
            # after every fold, so that a long run that is cut short leaves what it has
            table = pd.concat(tables, ignore_index=True)
            path = save(table, arguments)
    for question, part in table.groupby("dataset", sort=False):
        show(question, part)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
