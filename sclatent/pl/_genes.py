"""Genes of generated beside those of real cells: their statistics, and their change over control."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from sclatent.data import by_rows, check_keys, get_matrix
from sclatent.metrics import concordance, log_normalize, slope_of_change, top_responding
from sclatent.metrics._arms import Controls
from sclatent.metrics._cells import CellGroups, check_values
from sclatent.metrics._change import change_of, pearson
from sclatent.metrics._groups import name_of

from ._figures import axes_or_new, grid, indexable, save_figure
from ._names import name_points

Predicted = Mapping[str, AnnData | np.ndarray]


def gene_statistics(real: AnnData, generated: AnnData, save: str | os.PathLike | None = None) -> np.ndarray:
    """Draw mean, variance and zero fraction of every gene in generated against real cells.

    Mean and variance are of log1p of counts per 10,000. Beside Pearson's r stands Lin's concordance, which, unlike r,
    is 1 on the diagonal only: zero fractions that are off by the same everywhere correlate perfectly.

    Parameters
    ----------
    real, generated
        Cells with raw counts in X; genes are matched by name.
    save
        File to write the picture to; a new figure is closed then.

    Returns
    -------
    np.ndarray
        The three axes.

    Examples
    --------
    >>> import sclatent
    >>> cells = sclatent.datasets.simulate(200, 50, library_size=500)
    >>> real, generated = cells[::2].copy(), cells[1::2].copy()  # give cells of your model in place of the latter
    >>> axes = sclatent.pl.gene_statistics(real, generated)
    >>> [ax.get_title() for ax in axes]
    ['mean (log1p CP10k)', 'variance (log1p CP10k)', 'zero fraction']
    """
    x, y = _statistics(indexable(real)[:, generated.var_names], "real"), _statistics(generated, "generated")
    figure, axes = grid(len(x), (3.2, 3.4))
    for ax, name in zip(axes, x, strict=True):
        a, b = x[name], y[name]
        _scatter(ax, a, b, np.concatenate([a, b]))
        ax.set(title=name, xlabel="real")
        _say(ax, f"concordance = {concordance(a, b):.3f}\nr = {pearson(a, b):.3f}")
    axes[0].set_ylabel("generated")
    save_figure(figure, save)
    return axes


def response(
    real: AnnData,
    predicted: AnnData | Predicted,
    control: AnnData,
    groupby: str | Sequence[str] | None = None,
    n_names: int = 8,
    save: str | os.PathLike | None = None,
) -> np.ndarray:
    """Draw the predicted change over control against the real one, and name the genes that respond the most.

    Changes on the grey line are predicted as large as they are. The orange line has the slope of the predicted on the
    real change, of all genes (:func:`sclatent.metrics.slope_of_change`); where it is flatter, the response is
    attenuated. There is none where the real change is no larger than its noise.

    Parameters
    ----------
    real, control
        Treated and control cells, with raw counts in X.
    predicted
        Predicted cells; or several predictions by name, each predicted cells or a predicted change (genes,), such as
        of :func:`sclatent.metrics.mean_shift`. Genes are those of ``real``, in the same order.
    groupby
        Column of obs with groups (perturbations, cell types, patients), in ``real`` and in all predicted cells: a panel
        for each group of ``real``. Or several columns, whose combinations are the groups. Control cells are those of
        :func:`sclatent.metrics.evaluate_perturbation`: where ``control`` has cells of these groups, each is compared
        with its own, else with all of ``control``.
    n_names
        How many genes to name: those with the largest real change.
    save
        File to write the picture to; a new figure is closed then.

    Returns
    -------
    np.ndarray
        The axes, one a prediction; with ``groupby``, (groups, predictions).

    Examples
    --------
    >>> import sclatent
    >>> adata = sclatent.datasets.simulate(400, 50, cell_types=["B", "T"], library_size=500)
    >>> is_control = adata.obs["condition"] == "control"
    >>> control, treated = adata[is_control].copy(), adata[~is_control].copy()
    >>> real, predicted = treated[::2].copy(), treated[1::2].copy()  # give predictions of your model for the latter
    >>> axes = sclatent.pl.response(real, predicted, control, groupby="cell_type", n_names=3)
    >>> axes.shape
    (2, 1)
    """
    if isinstance(predicted, AnnData):
        predicted = {"generated": predicted}
    keys = check_keys(groupby, "groupby")
    groups = _by_group(real, predicted, control, keys) if keys else {"": (real, predicted, control)}
    panels = []
    for group, (cells, predictions, base) in groups.items():
        x = change_of(cells, base, "real")
        for name, prediction in predictions.items():
            y = _change(prediction, base, name)
            title = name if not keys else group if len(predictions) == 1 else f"{group}, {name}"
            panels.append((title, x, y, slope_of_change(cells, prediction, base)))
    columns = len(predicted) if len(predicted) > 1 else None
    figure, axes = grid(len(panels), (3.2, 3.3), columns)
    n = len(predicted)
    for i, (ax, (title, x, y, slope)) in enumerate(zip(axes, panels, strict=True)):
        _, xs, ys, _ = zip(*panels[i // n * n : (i // n + 1) * n], strict=True)  # the same limits for one group
        _scatter(ax, x, y, np.concatenate([*xs, *ys]))
        ax.set_title(title)
        said = f"r = {pearson(x, y):.3f}"
        if np.isfinite(slope):
            ax.axline((0, 0), slope=slope, color="tab:orange", lw=1, zorder=0)
            said += f"\nslope = {slope:.2f}"
        _say(ax, said)
    figure.supxlabel("real change over control")
    figure.supylabel("predicted change")
    for ax, (_, x, y, _) in zip(axes, panels, strict=True):
        named = top_responding(x, n_names)
        name_points(ax, x, y, named, real.var_names[named])
    save_figure(figure, save)
    return axes if not keys else axes.reshape(len(groups), len(predicted))


def top_genes(
    real: AnnData,
    predicted: Mapping[str, AnnData | np.ndarray],
    control: AnnData,
    n_genes: int = 20,
    ax: Axes | None = None,
    save: str | os.PathLike | None = None,
) -> Axes:
    """Draw the genes that respond the most: how much they do in the real cells, and in each prediction.

    Parameters
    ----------
    real, predicted, control
        As in :func:`response`.
    n_genes
        Number of genes.
    ax
        Where to draw; a new figure by default.
    save
        File to write the picture to; a new figure is closed then.

    Returns
    -------
    Axes
        The axes.

    Examples
    --------
    >>> import sclatent
    >>> adata = sclatent.datasets.simulate(400, 50, cell_types=["B", "T"], library_size=500)
    >>> is_control = adata.obs["condition"] == "control"
    >>> of_b = adata.obs["cell_type"] == "B"
    >>> shift = sclatent.metrics.mean_shift(adata, "condition", "control", "stimulated", "cell_type", held_out="B")
    >>> ax = sclatent.pl.top_genes(
    ...     adata[of_b & ~is_control], {"mean shift": shift}, adata[of_b & is_control], n_genes=10
    ... )
    >>> len(ax.get_yticks())
    10
    """
    x = change_of(real, control, "real")
    genes = top_responding(x, n_genes)
    genes = genes[np.argsort(x[genes])]
    place = np.arange(len(genes))
    given, ax = ax, axes_or_new(ax, (5.5, 0.8 + 0.22 * len(genes)))
    ax.barh(place, x[genes], color="0.85", label="real", zorder=1)
    for i, (name, prediction) in enumerate(predicted.items()):
        change = _change(prediction, control, name)[genes]
        marker = "osD^v"[i % 5]
        ax.scatter(change, place, s=18, marker=marker, label=name, zorder=2)
    ax.axvline(0, color="0.3", lw=0.8)
    ax.set_yticks(place, real.var_names[genes])
    ax.set(xlabel="change over control (mean log1p of counts per 10,000)", title="top responding genes")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.margins(y=0.02)
    ax.legend(frameon=False, loc="lower right")
    save_figure(ax.figure, save, given)
    return ax


def _change(prediction: AnnData | np.ndarray, control: AnnData, name: str) -> np.ndarray:
    return change_of(prediction, control, f"predicted {name!r}") if isinstance(prediction, AnnData) else prediction


def _by_group(
    real: AnnData, predicted: Predicted, control: AnnData, keys: Sequence[str]
) -> dict[str, tuple[AnnData, Predicted, AnnData]]:
    """Real, predicted and control cells of each group of the real ones, by what it is called."""
    rows = CellGroups(real, real.var_names, keys, "real").rows
    rows_of = {}
    for name, cells in predicted.items():
        if not isinstance(cells, AnnData):
            raise TypeError(f"{name!r} is an array: with groupby={keys}, predictions are cells, each with its group.")
        rows_of[name] = CellGroups(cells, cells.var_names, keys, name).rows
        if missing := [group for group in rows if group not in rows_of[name]]:
            raise ValueError(f"{name!r} has no cells of {missing}, groups of real: leave them out of real.")
    controls = Controls(control, control.var_names, keys, None, rows, seed=0)
    if missing := [group for group in rows if not len(controls.rows(group))]:
        raise ValueError(
            f"control has cells of some groups but not of {missing}: leave them out of real, or remove the column from "
            "control.obs so that all groups share all control cells."
        )
    real, control = indexable(real), indexable(control)
    return {
        str(name_of(group, keys)): (
            real[of_group],
            {name: indexable(cells)[rows_of[name][group]] for name, cells in predicted.items()},
            control[np.sort(controls.rows(group))],
        )
        for group, of_group in rows.items()
    }


def _statistics(cells: AnnData, argument: str) -> dict[str, np.ndarray]:
    check_values(by_rows(get_matrix(cells, None), f"{argument}.X"), None, argument, f"{argument}.X")
    values = log_normalize(cells)
    return {
        "mean (log1p CP10k)": values.mean(axis=0, dtype=np.float64),
        "variance (log1p CP10k)": values.var(axis=0, dtype=np.float64, ddof=1),
        "zero fraction": (values == 0).mean(axis=0),
    }


def _scatter(ax: Axes, x: np.ndarray, y: np.ndarray, values: np.ndarray) -> None:
    """Dots and the diagonal, with the same limits on both axes, in which there is room for ``values``."""
    low, high = values.min(), values.max()
    margin = 0.08 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    ax.axline((low, low), slope=1, color="0.75", lw=0.8, zorder=0)
    ax.scatter(x, y, s=8, alpha=0.7, color="tab:blue", linewidths=0)
    ax.set(xlim=limits, ylim=limits, aspect="equal")
    ax.spines[["top", "right"]].set_visible(False)


def _say(ax: Axes, text: str) -> None:
    ax.annotate(text, (0.03, 0.98), xycoords="axes fraction", va="top", fontsize=8)
