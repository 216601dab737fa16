"""Metrics of a prediction of perturbed cells."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
from scipy.spatial.distance import cdist

from ._arms import Arm, Controls
from ._cells import Profile
from ._change import pearson, slope, spearman, top_responding
from ._differential import direction_match, jaccard, overlap_and_precision, scaled_error
from ._distances import energy_distance, mmd2
from ._projection import Projection
from ._table import TO_ONE

LOWER_IS_BETTER = {"mse", "mse_unbiased", "energy", "mmd2", "lfc_nmae"}
OF_MEANS = {"slope", "mse", "mse_unbiased", "discrimination", "discrimination_cosine"}  # beside the correlations


def rivals_of(group: Hashable, profiles: Mapping[Hashable, Profile], controls: Controls) -> tuple[np.ndarray, int]:
    """Real changes that a predicted one is compared with, to see whether it is nearest to that of its own group.

    They are those of the other treatments of the same context, or of all groups where a context has one alone.

    Parameters
    ----------
    group
        The group.
    profiles, controls
        Mean profiles of the real cells of every group, and control cells.

    Returns
    -------
    tuple[np.ndarray, int]
        Changes, (groups, genes), and which of them is that of the group.
    """
    among = [g for g in profiles if controls.context(g) == controls.context(group)]
    among = among if len(among) > 1 else list(profiles)
    return np.array([profiles[g].mean - controls.profile(g).mean for g in among]), among.index(group)


def metrics_of(
    real: Arm, predicted: Arm, rivals: tuple[np.ndarray, int], n_top: Sequence[int], bandwidths: Sequence[float]
) -> dict[str, float]:
    """Every metric of a prediction.

    Parameters
    ----------
    real, predicted
        Real and predicted cells.
    rivals
        Real changes, (groups, genes), and which of them is the right one.
    n_top
        Numbers of genes for the metrics of few genes.
    bandwidths
        Those of :func:`mmd2`.
    """
    change, predicted_change = real.change, predicted.change
    values = {}
    for name, correlation in (("pearson", pearson), ("spearman", spearman)):
        values[name] = correlation(change, predicted_change)
        for n in n_top:
            genes = top_responding(change, n)
            values[f"{name}_top{n}"] = correlation(change[genes], predicted_change[genes])
    noise, predicted_noise = noise_apart(real, predicted)
    of_control = np.zeros_like(change) if real.control is None else real.control.noise
    shared = of_control if predicted.control is real.control else None
    values["slope"] = slope(change, predicted_change, real.noise + of_control, shared)
    values["mse"] = float(np.mean((change - predicted_change) ** 2))
    values["mse_unbiased"] = values["mse"] - float(np.mean(noise + predicted_noise))
    values["energy"] = energy_distance(real.cells, predicted.cells)
    values["mmd2"] = mmd2(real.cells, predicted.cells, bandwidths)
    values["direction"] = direction_match(change, predicted_change, real.de)
    for n in n_top:
        overlap, precision = overlap_and_precision(change, real.de, predicted_change, predicted.de, n)
        values |= {f"de_overlap_{n}": overlap, f"de_precision_{n}": precision}
    values["de_jaccard"] = jaccard(real.de, predicted.de)
    values["lfc_nmae"] = scaled_error(change, predicted_change, real.de)
    changes, place = rivals
    if len(changes) > 1:
        values["discrimination"] = share_farther(cdist(predicted_change[None], changes, "cityblock")[0], place)
        cosine = changes @ predicted_change / np.maximum(np.linalg.norm(changes, axis=1), np.finfo(float).tiny)
        values["discrimination_cosine"] = share_farther(-cosine, place)
    return values


def noise_apart(real: Arm, predicted: Arm) -> tuple[np.ndarray, np.ndarray]:
    """Sampling variance, (genes,), of the real change that the predicted one does not share, and the other way round.

    Over the same control cells it is that of the perturbed cells alone. Otherwise it is that of the control cells, too.
    """
    if predicted.control is real.control:
        return real.noise, predicted.noise
    noise, predicted_noise = (a.noise + (0.0 if a.control is None else a.control.noise) for a in (real, predicted))
    return noise, predicted_noise


def share_farther(distances: np.ndarray, group: int) -> float:
    """Share of the other distances, of (groups,), that are above that of the right group; ties count half."""
    others = np.delete(distances, group)
    return float(np.mean(others > distances[group]) + np.mean(others == distances[group]) / 2)


def rows_of(
    values: Mapping[str, float], real: Arm, predicted: Arm, space: Projection, **about: object
) -> Iterator[dict[str, object]]:
    """Rows of the table: every metric of a prediction, and what it was computed from."""
    for metric, value in values.items():
        of_means = metric.startswith(("pearson", "spearman")) or metric in OF_MEANS
        in_components = metric in ("energy", "mmd2")
        n_genes = int(metric.split("_top")[1]) if "_top" in metric else len(real.change)
        yield {
            **about,
            "metric": metric,
            "value": value,
            "better": TO_ONE if metric == "slope" else "lower" if metric in LOWER_IS_BETTER else "higher",
            "space": space.name if in_components else f"log1p CP10k, {n_genes} genes",
            "n_components": space.n_components if in_components else None,
            "n_real": real.n if of_means else len(real.cells),
            "n_generated": predicted.n if of_means else len(predicted.cells),
            "n_available": predicted.n,
        }
