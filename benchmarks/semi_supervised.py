"""Labels for a part of the cells: JointLDM beside classifiers that are given the same labelled cells.

Data sets are embeddings of images (EfficientNet-Lite0, 1,280 numbers a cell): blood cells of 8 types (Acevedo et al.
2020) with --blood, nuclei of 16 phenotypes (MitoCheck) with --mitocheck. Test cells are never seen, not even without
their labels: of blood those whose obs["split"] is "test", trained on "train"; of MitoCheck a stratified fifth, the same
in every run. With --validation, where settings are chosen, cells that are not among these take their place: of blood
those of the split "val", of MitoCheck a fifth of the training cells, which are then no longer trained on.

A stratified draw of training cells, at least one of every class, keeps its labels; the others are there without.

Rows beside JointLDM, on features that are centred and divided by one number, as in JointLDM, or on their principal
components, which are fitted on all training cells, labelled or not. What is said to be chosen is chosen by
cross-validation of the accuracy on the labelled cells, stratified as far as there are enough of a class:

- logistic regression: all features or 128 components, and the penalty, are chosen
- nearest neighbours: their number and the number of components are chosen
- gradient boosting: HistGradientBoostingClassifier on 64 components; the size of leaves is chosen
- MLP: one hidden layer of 256 on 256 components; the penalty is chosen
- label spreading: on the neighbour graph of all training cells in 32 components; neighbours and clamping are chosen
- self-training: around logistic regression as chosen above, cells above 0.9 become labelled, up to five rounds

--time only measures how long JointLDM takes: to train on all nuclei, labelled, and to predict all blood cells.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import parse, save
from anndata import AnnData, read_h5ad
from sklearn.base import ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier

OURS, UNKNOWN = "JointLDM", "unknown"
N_FOLDS = 5
PENALTIES = 10.0 ** np.arange(-3, 0.6, 0.5)  # C of logistic regression


@dataclass
class Cells:
    """Training and test cells of a data set: their features, and their classes."""

    train: AnnData
    test: AnnData
    key: str

    @cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """Centred features of training and test cells, in the unit of their root mean variance."""
        x, other = (np.asarray(adata.X, dtype=np.float32) for adata in (self.train, self.test))
        mean = x.mean(axis=0)
        # one scale for all: to bring every feature to variance 1 costs logistic regression 1 to 3 points
        sd = np.sqrt(x.var(axis=0).mean())
        return (x - mean) / sd, (other - mean) / sd

    @cached_property
    def components(self) -> tuple[np.ndarray, np.ndarray]:
        """Principal components of training and test cells, not whitened."""
        x, other = self.features
        axes = np.linalg.eigh(np.cov(x.T).astype(np.float32))[1][:, ::-1][:, :256]
        return x @ axes, other @ axes

    @cached_property
    def classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Classes of training and test cells."""
        return tuple(adata.obs[self.key].astype(str).to_numpy() for adata in (self.train, self.test))


@dataclass
class Task:
    """Cells, of which the rows of training cells in ``labelled`` have a class that may be looked at."""

    cells: Cells
    labelled: np.ndarray
    seed: int

    @cached_property
    def linear(self) -> tuple[str, float]:
        """Features and penalty of logistic regression."""
        return chosen(self, linear_candidates(self))

    def choose(self, candidates: dict[Any, Callable[[], Scorer]]) -> Any:
        """Key of the candidate with the highest accuracy in cross-validation on the labelled cells, first of equals."""
        y = self.cells.classes[0][self.labelled]
        folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=self.seed)
        hits = dict.fromkeys(candidates, 0)
        for fit, held_out in folds.split(y, y):
            for key, candidate in candidates.items():
                predicted = candidate()(self.labelled[fit], y[fit], self.labelled[held_out])
                hits[key] += int((predicted == y[held_out]).sum())
        return max(hits, key=hits.get)


Scorer = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # rows to fit on, their classes, rows to predict
Candidates = dict[Any, tuple[tuple[np.ndarray, np.ndarray], Callable[[], ClassifierMixin]]]


def draw_labelled(classes: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Rows of a stratified draw of this fraction of the cells, at least one of every class."""
    rng = np.random.default_rng(seed)
    _, codes = np.unique(classes, return_inverse=True)
    wanted = fraction * np.bincount(codes)
    n = np.maximum(1, np.floor(wanted).astype(int))
    missing = max(0, round(fraction * len(codes)) - n.sum())
    n[np.argsort(np.floor(wanted) - wanted, kind="stable")[:missing]] += 1
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(codes == k))[:m] for k, m in enumerate(n)]))


def datasets(arguments: argparse.Namespace) -> Iterator[tuple[str, Cells]]:
    """Name and cells of every data set that is there."""
    if arguments.blood is not None:
        adata = read_h5ad(arguments.blood)
        split = adata.obs["split"]
        held_out = "val" if arguments.validation else "test"
        yield "blood", Cells(adata[split == "train"].copy(), adata[split == held_out].copy(), "cell_type")
    if arguments.mitocheck is not None:
        adata = read_h5ad(arguments.mitocheck)
        train, test = a_fifth(adata, "phenotype")
        if arguments.validation:
            train, test = a_fifth(train, "phenotype")
        yield "mitocheck", Cells(train, test, "phenotype")


def a_fifth(adata: AnnData, key: str) -> tuple[AnnData, AnnData]:
    """Four fifths of the cells, and a stratified fifth that is always the same."""
    splitter = StratifiedShuffleSplit(1, test_size=0.2, random_state=0)
    rest, fifth = next(splitter.split(np.empty(adata.n_obs), adata.obs[key].astype(str)))
    return adata[rest].copy(), adata[fifth].copy()


def fitted(features: np.ndarray, make: Callable[[], ClassifierMixin]) -> Callable[[], Scorer]:
    """Return a candidate that fits on some training cells and predicts for others."""
    return lambda: lambda fit, y, rows: make().fit(features[fit], y).predict(features[rows])


def chosen(task: Task, candidates: Candidates) -> Any:
    """Key of the best of pairs of features and a classifier."""
    if len(candidates) == 1:
        return next(iter(candidates))
    return task.choose({key: fitted(x[0], make) for key, (x, make) in candidates.items()})


def supervised(task: Task, candidates: Candidates, best: Any = None) -> np.ndarray:
    """Choose a candidate, fit it on the labelled cells, predict the test cells."""
    (x, other), make = candidates[chosen(task, candidates) if best is None else best]
    return make().fit(x[task.labelled], task.cells.classes[0][task.labelled]).predict(other)


def linear(c: float) -> LogisticRegression:
    """Logistic regression with a penalty."""
    return LogisticRegression(C=c, max_iter=300)


def linear_candidates(task: Task) -> Candidates:
    """Features and penalties that logistic regression chooses from."""
    spaces = {"features": task.cells.features, "128 components": tuple(x[:, :128] for x in task.cells.components)}
    # features in a basis of the span of the labelled cells, which changes nothing but the time that it takes
    x, other = spaces["features"]
    if len(task.labelled) < x.shape[1]:
        basis = np.linalg.qr(x[task.labelled].T.astype(np.float64))[0].astype(np.float32)
        spaces["features"] = (x @ basis, other @ basis)
    return {(name, c): (pair, lambda c=c: linear(c)) for name, pair in spaces.items() for c in PENALTIES}


def logistic_regression(task: Task) -> np.ndarray:
    return supervised(task, linear_candidates(task), task.linear)


def nearest_neighbours(task: Task) -> np.ndarray:
    def first(n: int) -> tuple[np.ndarray, np.ndarray]:
        return tuple(x[:, :n] for x in task.cells.components)

    candidates = {
        (n, k): (first(n), lambda k=k: KNeighborsClassifier(k, weights="distance"))
        for n in (16, 32, 64, 128)
        for k in (1, 3, 5, 10, 20)
        if k <= 0.8 * len(task.labelled) - 1
    }
    return supervised(task, candidates)


def gradient_boosting(task: Task) -> np.ndarray:
    space = tuple(x[:, :64] for x in task.cells.components)

    def make(leaf: int) -> HistGradientBoostingClassifier:
        return HistGradientBoostingClassifier(
            max_iter=60, early_stopping=False, min_samples_leaf=leaf, max_leaf_nodes=8, random_state=task.seed
        )

    return supervised(task, {leaf: (space, lambda leaf=leaf: make(leaf)) for leaf in (5, 20)})


def mlp(task: Task) -> np.ndarray:
    x, other = task.cells.components
    scale = x.std()

    def make(alpha: float) -> MLPClassifier:
        return MLPClassifier(  # without its rule to stop, which uneven minibatches of few cells trip at once
            (256,), alpha=alpha, batch_size=64, max_iter=100, n_iter_no_change=100, random_state=task.seed
        )

    space = (x / scale, other / scale)
    return supervised(task, {alpha: (space, lambda alpha=alpha: make(alpha)) for alpha in (1.0, 0.3, 0.1, 0.01)})


def label_spreading(task: Task) -> np.ndarray:
    x, other = (components[:, :32] for components in task.cells.components)
    names, codes = np.unique(task.cells.classes[0], return_inverse=True)

    def spread(rows: np.ndarray, y: np.ndarray, k: int, alpha: float) -> LabelSpreading:
        labels = np.full(len(x), -1)
        labels[rows] = np.searchsorted(names, y)
        return LabelSpreading("knn", n_neighbors=k, alpha=alpha, max_iter=50).fit(x, labels)

    def candidate(k: int, alpha: float) -> Callable[[], Scorer]:
        return lambda: lambda fit, y, rows: names[spread(fit, y, k, alpha).transduction_[rows]]

    settings = {(k, alpha): candidate(k, alpha) for k in (7, 15) for alpha in (0.2, 0.9)}
    best = task.choose(settings)
    return names[spread(task.labelled, names[codes[task.labelled]], *best).predict(other)]


def self_training(task: Task) -> np.ndarray:
    space, c = task.linear
    x, other = task.cells.components if space == "features" else (z[:, :128] for z in task.cells.components)
    names, codes = np.unique(task.cells.classes[0], return_inverse=True)
    labels = np.full(len(x), -1)
    labels[task.labelled] = codes[task.labelled]
    model = SelfTrainingClassifier(LogisticRegression(C=c, max_iter=100, tol=1e-3), threshold=0.9, max_iter=5)
    return names[model.fit(x, labels).predict(other)]


def joint_ldm(task: Task) -> np.ndarray:
    from sclatent.model import JointLDM

    labels = np.full(task.cells.train.n_obs, UNKNOWN, dtype=object)
    labels[task.labelled] = task.cells.classes[0][task.labelled]
    adata = AnnData(
        np.asarray(task.cells.train.X, dtype=np.float32),
        obs=pd.DataFrame({"label": pd.Categorical(labels)}, index=task.cells.train.obs_names.astype(str)),
        var=task.cells.train.var[[]].copy(),
    )
    test = AnnData(
        np.asarray(task.cells.test.X, dtype=np.float32),
        obs=pd.DataFrame(index=task.cells.test.obs_names.astype(str)),
        var=task.cells.test.var[[]].copy(),
    )
    JointLDM.setup_anndata(adata, labels_key="label", unlabeled_category=UNKNOWN)
    model = JointLDM(adata, seed=task.seed)
    model.train(accelerator="cpu", seed=task.seed, progress_bar=False)
    return np.asarray(model.predict(test)).astype(str)


ROWS: dict[str, Callable[[Task], np.ndarray]] = {
    "logistic regression": logistic_regression,
    "nearest neighbours": nearest_neighbours,
    "gradient boosting": gradient_boosting,
    "MLP": mlp,
    "label spreading": label_spreading,
    "self-training": self_training,
    OURS: joint_ldm,
}


def run(name: str, cells: Cells, fraction: float, seed: int, rows: list[str]) -> pd.DataFrame:
    """Draw labelled cells, and let every row predict the test cells."""
    task = Task(cells, draw_labelled(cells.classes[0], fraction, seed), seed)
    truth, results = cells.classes[1], []
    for row in rows:
        start = time.perf_counter()
        predicted = ROWS[row](task)
        results.append(
            {
                "dataset": name, "condition": f"{100 * fraction:g} %", "source": row, "kind": "model", "seed": seed,
                "accuracy": accuracy_score(truth, predicted),
                "balanced_accuracy": balanced_accuracy_score(truth, predicted),
                "seconds": time.perf_counter() - start,
            }
        )  # fmt: skip
    return pd.DataFrame(results)


def timing(mitocheck: Path, blood: Path) -> None:
    """Print seconds of training on all nuclei, labelled, and of predicting all blood cells."""
    from sclatent.model import JointLDM

    nuclei, cells = read_h5ad(mitocheck), read_h5ad(blood)
    cells.var_names = nuclei.var_names  # other cells of the same encoder
    JointLDM.setup_anndata(nuclei, labels_key="phenotype")
    model = JointLDM(nuclei, seed=0)
    for what, adata, do in (
        ("training on", nuclei, lambda: model.train(accelerator="cpu", progress_bar=False)),
        ("predicting", cells, lambda: model.predict(cells)),
    ):
        start = time.perf_counter()
        do()
        print(f"{what} {adata.n_obs:,} x {adata.n_vars:,}: {time.perf_counter() - start:.1f} s", flush=True)


def show(table: pd.DataFrame) -> None:
    """Print accuracy, balanced accuracy and seconds by row and fraction."""
    print(f"\n{table['dataset'].iloc[0]}, mean over {table['seed'].nunique()} seeds (standard deviation)")
    for metric in ("accuracy", "balanced_accuracy"):
        groups = table.groupby(["source", "condition"], sort=False)[metric]
        text = groups.mean().map("{:.3f}".format) + groups.std().fillna(0).map(" ({:.3f})".format)
        print(f"\n{metric.replace('_', ' ')}\n{text.unstack().to_string()}")
    seconds = table.groupby(["source", "condition"], sort=False)["seconds"].mean().unstack().round(0)
    print(f"\nseconds\n{seconds.to_string()}")


def targets(table: pd.DataFrame) -> None:
    """Print, for every fraction, whether JointLDM is ahead of every other row in mean accuracy over seeds."""
    mean = table.groupby(["source", "condition"], sort=False)["accuracy"].mean().unstack()
    if OURS not in mean.index or len(mean) < 2:
        return
    for fraction, values in mean.items():
        others = values.drop(OURS)
        best, margin = others.idxmax(), values[OURS] - others.max()
        met = "met   " if margin > 0 else "MISSED"
        print(f"{met} {fraction} of the labels, accuracy: {values[OURS]:.3f}, {margin:+.3f} to {best}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blood", type=Path, help="h5ad of embeddings of blood cells")
    parser.add_argument("--mitocheck", type=Path, help="h5ad of embeddings of MitoCheck nuclei")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), help="rows to run")
    parser.add_argument("--validation", action="store_true", help="to choose settings: other cells than the test cells")
    parser.add_argument("--time", action="store_true", help="seconds of JointLDM alone; wants both data sets")
    arguments = parse(parser, "semi_supervised")
    if arguments.time and None in (arguments.mitocheck, arguments.blood):
        parser.error("--time trains on the one and predicts the other: give --mitocheck and --blood")
    if arguments.time:
        timing(arguments.mitocheck, arguments.blood)
        return
    tables: list[pd.DataFrame] = []
    path = None
    for name, cells in datasets(arguments):
        n_classes = len(np.unique(cells.classes[0]))
        print(f"\n{name}: {cells.train.n_obs:,} cells to train on, {cells.test.n_obs:,} to test, {n_classes} classes")
        for seed in arguments.seeds:
            for fraction in arguments.fractions:
                tables.append(run(name, cells, fraction, seed, arguments.only))
                line = ", ".join(f"{r.source} {r.accuracy:.3f} ({r.seconds:.0f} s)" for r in tables[-1].itertuples())
                print(f"seed {seed}, {fraction:.0%}: {line}", flush=True)
            everything = pd.concat(tables, ignore_index=True)  # after every seed: a long run may be cut short
            path = save(everything, arguments, better={"accuracy": "higher", "balanced_accuracy": "higher"})
        show(everything[everything["dataset"] == name])
        targets(everything[everything["dataset"] == name])
    print(f"\n{path}")


if __name__ == "__main__":
    main()
