"""Images and embeddings: generation by class, counterfactuals, and what diffusion steps learn.

Data sets come with the package: nuclei of 16 phenotypes (MitoCheck) and blood cells of 8 types, as 64 principal
components of embeddings and as images of 32 x 32 and 28 x 28 pixels. A stratified third of the cells is held out; no
model sees them. With --validation, where settings are chosen, they are not looked at: a third of the other cells takes
their place, and classes of at least 20 of these count.

--generation: as many cells of every class as were held out, by JointLDM from embeddings and by all three models from
images, guided as they are by default. Frechet distance, precision and recall in the space of the embedding (images: of
64 components of the pixels of training cells), mean over the classes with at least 40 held-out cells, beside a Gaussian
a class (floor) and one real half against the other (ceiling). An independent classifier that was trained on training
cells is asked how often it finds the label that was asked for, and how often it does on real cells: logistic regression
of embeddings; of images a support vector machine on the 64 components, of training cells in all eight orientations.

--turned trains on images in all eight orientations. --models picks models, and --steering what steers
counterfactuals, for instance JointLDM on images:
--counterfactuals --images --turned --models JointLDM --steering both --noise 0.6 --weights 100.

--counterfactuals: held-out cells of every class moved to another class drawn at random. How often the classifier sees
the target, how often the classifier of the model itself does, and how often the cell stays closer to its own than the
nearest training cell of the target class is.

--steps: the talk's curves, on images, for models of either data set: error by noise level on cells of training, on
held-out cells and on the other data set; denoising of these by DAED and by plain diffusion; accuracy of a linear probe
by noise level.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import parse, save
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from sclatent import tl
from sclatent.datasets import blood_cells, mitocheck
from sclatent.metrics import frechet_distance, precision_recall
from sclatent.model import DAED, JointDiffusion, JointLDM
from sclatent.pp import turn_images

MODELS = {cls.__name__: cls for cls in (DAED, JointDiffusion, JointLDM)}
DATASETS = {"mitocheck": (mitocheck, "phenotype"), "blood": (blood_cells, "cell_type")}
MIN_CELLS, MIN_CELLS_VALIDATION = 40, 20  # of a class that counts in generation
BETTER = {
    **dict.fromkeys(["precision", "recall", "recognised", "target_seen", "stays_closer", "accuracy"], "higher"),
    **dict.fromkeys(["frechet", "error"], "lower"),
}


def thirds(adata: AnnData, key: str, random_state: int) -> tuple[AnnData, AnnData]:
    """Two thirds of the cells, and a stratified third."""
    splitter = StratifiedShuffleSplit(1, test_size=1 / 3, random_state=random_state)
    train, test = next(splitter.split(np.empty(adata.n_obs), adata.obs[key]))
    return adata[train], adata[test]


def split(
    adata: AnnData, key: str, labels: list[str] | None = None, validation: bool = False
) -> tuple[AnnData, AnnData]:
    """Cells to train on and cells to look at, always the same; of some labels, if these are named."""
    train, test = thirds(adata, key, random_state=0)
    if labels is not None:
        train, test = (part[part.obs[key].isin(labels)] for part in (train, test))
    if validation:
        train, test = thirds(train, key, random_state=1)
    return train.copy(), test.copy()


def features(adata: AnnData, obsm_key: str | None) -> np.ndarray:
    return np.asarray(adata.X if obsm_key is None else adata.obsm[obsm_key], dtype=np.float64)


class Judge:
    """What generated cells are judged by: a space fitted on training cells, and a classifier trained on them."""

    def __init__(self, train: AnnData, key: str, obsm_key: str | None) -> None:
        self.key, self.obsm_key = key, obsm_key
        x = features(train, obsm_key)
        self.space = PCA(64, random_state=0).fit(x) if x.shape[1] > 64 else None
        y = train.obs[key].astype(str).to_numpy()
        self.classifier: Pipeline | SVC = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        if obsm_key is not None:  # linear in pixels, it is often wrong and easily deceived
            self.classifier = SVC(C=10)
            turned = turn_images(train, obsm_key)
            x, y = features(turned, obsm_key), turned.obs[key].astype(str).to_numpy()
        self.classifier.fit(x if self.space is None else self.space.transform(x), y)

    def __call__(self, adata: AnnData) -> np.ndarray:
        """Coordinates of cells, (cells, dim)."""
        x = features(adata, self.obsm_key)
        return x if self.space is None else self.space.transform(x)


def fit(
    cls: type, train: AnnData, key: str | None, obsm_key: str | None, arguments: argparse.Namespace, seed: int
) -> Any:
    """Train a model, or load the one that an earlier run has kept."""
    if arguments.turned:
        train = turn_images(train, obsm_key)
    cls.setup_anndata(train, obsm_key=obsm_key, labels_key=key)
    about = cls.__name__, obsm_key or "X", key or "no labels", f"{train.n_obs} cells", f"epochs {arguments.epochs}"
    kept = arguments.keep and arguments.keep / ", ".join((*about, arguments.accelerator, f"seed {seed}"))
    if kept and kept.exists():
        model = cls.load(kept, train)
        model.seconds = np.nan
        return model
    model = cls(train, seed=seed)
    start = time.perf_counter()
    # of cells in eight orientations some would be held out in the one and trained on in the other
    train_size = 1.0 if arguments.turned else 0.9
    model.train(
        arguments.epochs, accelerator=arguments.accelerator, train_size=train_size, seed=seed, progress_bar=False
    )
    model.seconds = time.perf_counter() - start
    if kept:
        model.save(kept)
    return model


def compare(real: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    precision, recall = precision_recall(real, generated)
    return {"frechet": frechet_distance(real, generated), "precision": precision, "recall": recall}


def generation(
    model: Any, judge: Judge, train: AnnData, test: AnnData, arguments: argparse.Namespace, seed: int
) -> pd.DataFrame:
    """Means over classes: the model, the floor and the ceiling."""
    key = judge.key
    enough = MIN_CELLS_VALIDATION if arguments.validation else MIN_CELLS
    counts = test.obs[key].value_counts()
    labels = [label for label in counts.index if counts[label] >= enough]
    rng = np.random.default_rng(seed)
    rows = []
    for label in labels:
        real, seen = judge(test[test.obs[key] == label]), judge(train[train.obs[key] == label])
        half = rng.permutation(len(real))
        one, other = real[half[: len(real) // 2]], real[half[len(real) // 2 :]]
        normal = rng.multivariate_normal(seen.mean(axis=0), np.cov(seen.T), len(real))
        pairs = {
            ("a Gaussian a class", "floor"): (real, normal),
            ("training cells", "reference"): (real, seen[rng.permutation(len(seen))[: len(real)]]),
            ("real half", "ceiling"): (one, other),
        }
        for weight in arguments.guidance:
            cells = model.sample(len(real), label, weight, seed=seed, progress_bar=False)
            weight = cells.uns["sclatent"]["guidance_weight"]
            pairs[f"{type(model).__name__}, guidance {weight:g}", "generated"] = real, judge(cells)
        for (source, kind), (reference, cells) in pairs.items():
            said = judge.classifier.predict(cells) == label
            figures = {**compare(reference, cells), "recognised": said.mean()}
            rows.append({"condition": "mean", "source": source, "kind": kind, **figures})
    return pd.DataFrame(rows).groupby(["condition", "source", "kind"], sort=False).mean().reset_index()


def counterfactuals(
    model: Any, judge: Judge, train: AnnData, test: AnnData, arguments: argparse.Namespace, seed: int
) -> pd.DataFrame:
    """How often the target is seen, and how often the cell stays close to its own."""
    rng = np.random.default_rng(seed)
    if arguments.cells is not None:
        test = test[np.sort(rng.permutation(test.n_obs)[: arguments.cells])].copy()
    own, labels = (cells.obs[judge.key].astype(str).to_numpy() for cells in (test, train))
    known = np.unique(own)
    target = np.array([rng.choice(known[known != label]) for label in own])
    at, places = judge(test), judge(train)
    nearest = np.array([np.linalg.norm(places[labels == y] - x, axis=1).min() for x, y in zip(at, target, strict=True)])
    has_head = not isinstance(model, DAED)  # without one, to predict is slow
    real = {
        "real_seen": (judge.classifier.predict(at) == own).mean(),
        "model_sees_real": (model.predict(test) == own).mean() if has_head else np.nan,
    }
    rows = []
    for level in arguments.noise:
        for weight in arguments.weights:
            both = {"classifier-free": arguments.free, "classifier": weight}
            moved_cells = model.counterfactual(
                test, target, level, both if arguments.steering == "both" else weight, guidance=arguments.steering,
                inversion=not arguments.without_inversion, seed=seed, progress_bar=False,
            )  # fmt: skip
            moved = judge(moved_cells)
            moved_by = np.linalg.norm(moved - at, axis=1)
            rows.append(
                {
                    "condition": f"noise {level:g}, weight {weight:g}", "source": type(model).__name__,
                    "kind": "generated",
                    "target_seen": (judge.classifier.predict(moved) == target).mean(),
                    "model_sees_it": (model.predict(moved_cells) == target).mean() if has_head else np.nan,
                    "stays_closer": (moved_by < nearest).mean(), "moved_by": (moved_by / nearest).mean(), **real,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def same_shape() -> dict[str, AnnData]:
    """Grey images of 28 x 28 pixels of both data sets: the centre of nuclei, the mean of the colours of blood cells."""
    nuclei, blood = mitocheck(), blood_cells()
    nuclei.obsm["image"] = nuclei.obsm["image"].reshape(-1, 32, 32)[:, 2:30, 2:30].copy()
    blood.obsm["image"] = blood.obsm["image"].reshape(-1, 28, 28, 3).mean(axis=3).round().astype(np.uint8)
    return {"mitocheck": nuclei, "blood": blood}


def steps(name: str, arguments: argparse.Namespace, seed: int) -> dict[str, pd.DataFrame]:
    """The talk's curves: models of one data set, looked at on cells of it that were held out and on the other one."""
    both = same_shape()
    (other,) = set(both) - {name}
    train, test = split(both[name], DATASETS[name][1], arguments.labels, arguments.validation)
    plain = fit(JointDiffusion, train, None, "image", arguments, seed)
    daed = fit(DAED, train, None, "image", arguments, seed)
    others = {"held out": test, "the other data set": both[other]}
    error = tl.reconstruction_error(plain, train, others, seed=seed)
    denoised = tl.denoising({"DAED": daed, "plain diffusion": plain}, others, seed=seed)
    probe = tl.probe(plain, test, DATASETS[name][1], seed=seed)
    by_level = [table["noise_level"].map("{:g}".format) for table in (error, probe)]
    return {
        "error": error.assign(condition=by_level[0], source=error["data_set"], kind="model"),
        "denoising": denoised.assign(condition=denoised["data_set"], source=denoised["model"], kind="model"),
        "probe": probe.assign(condition=by_level[1], source="linear probe", kind="model"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in ("generation", "counterfactuals", "steps"):
        parser.add_argument(f"--{part}", action="store_true")
    parser.add_argument("--datasets", nargs="+", choices=list(DATASETS), default=list(DATASETS))
    parser.add_argument("--images", action="store_true", help="images in place of embeddings")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="default: JointLDM, with --images all three")
    parser.add_argument("--labels", nargs="+", help="cells of these labels only (default: all)")
    parser.add_argument("--keep", type=Path, help="folder of trained models, used if there, kept if not")
    parser.add_argument("--cells", type=int, help="held-out cells to make counterfactuals of (default: all)")
    parser.add_argument("--guidance", type=float, nargs="+", default=[None], help="weights of guidance in generation")
    parser.add_argument("--turned", action="store_true", help="train on images in all eight orientations")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument("--weights", type=float, nargs="+", default=[20.0, 40.0])
    parser.add_argument(
        "--steering",
        default="classifier",
        help="guidance of counterfactuals (DAED: classifier-free); of both, --weights are those of the classifier",
    )
    parser.add_argument(
        "--without-inversion", action="store_true", help="counterfactuals with noise that is drawn (inversion=False)"
    )
    parser.add_argument("--free", type=float, default=4.0, help="weight of classifier-free guidance, of both")
    parser.add_argument("--epochs", type=int, help="epochs of each stage (default: sized to the data)")
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu", help="what trains and generates")
    parser.add_argument(
        "--validation", action="store_true", help="to choose settings: other cells than the held-out ones"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parse(parser, "images")
    if not (arguments.generation or arguments.counterfactuals or arguments.steps):
        parser.error("nothing to do: give --generation, --counterfactuals or --steps")
    if arguments.turned and not arguments.images:
        parser.error("--turned turns images: give --images, too")

    names = arguments.models or (list(MODELS) if arguments.images else ["JointLDM"])
    models = [(MODELS[name], "image" if arguments.images else None) for name in names]
    results: dict[str, list[pd.DataFrame]] = {}
    for seed in arguments.seeds:
        for name in arguments.datasets:
            load, key = DATASETS[name]
            for cls, obsm_key in models if arguments.generation or arguments.counterfactuals else []:
                train, test = split(load(), key, arguments.labels, arguments.validation)
                judge = Judge(train, key, obsm_key)
                model = fit(cls, train, key, obsm_key, arguments, seed)
                tables = {}
                if arguments.generation:
                    tables["generation"] = generation(model, judge, train, test, arguments, seed)
                if arguments.counterfactuals:
                    tables["counterfactuals"] = counterfactuals(model, judge, train, test, arguments, seed)
                about = {"dataset": f"{name}, {obsm_key or 'embedding'}", "seed": seed, "seconds": model.seconds}
                for what, table in tables.items():
                    results.setdefault(what, []).append(table.assign(**about))
            if arguments.steps:
                for what, table in steps(name, arguments, seed).items():
                    results.setdefault(what, []).append(table.assign(dataset=name, seed=seed))
        print(f"seed {seed} done", flush=True)
        paths = [save(pd.concat(tables), arguments, what, BETTER) for what, tables in results.items()]
    for path, (what, tables) in zip(paths, results.items(), strict=True):
        table = pd.concat(tables)
        mean = table.groupby(["dataset", "condition", "source"], sort=False).mean(numeric_only=True)
        print(f"\n{what}, mean over {table['seed'].nunique()} seeds\n{mean.drop(columns='seed').round(3).to_string()}")
        print(f"\n{path}")


if __name__ == "__main__":
    main()
