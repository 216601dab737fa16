"""Predicted change of each gene, and how certain it is."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.stats import norm

from sclatent.data import check_whole

from ._figures import axes_or_new, save_figure
from ._names import name_points

COLUMNS = ("change", "lower", "upper", "z")
COLORS = {"down": "tab:blue", "interval holds 0": "0.75", "up": "tab:red"}


def volcano(
    change: pd.DataFrame, n_labels: int = 10, ax: Axes | None = None, save: str | os.PathLike | None = None
) -> Axes:
    r"""Draw how much each gene is predicted to change, and how certain that is.

    The height of a gene is :math:`-\log_{10} p` of the two-sided p of its z under a normal distribution. It ranks
    genes as z does: it is no test of a measured difference, and not corrected for the number of genes. Genes whose
    interval does not hold 0 are coloured by direction.

    Parameters
    ----------
    change
        What ``predict_change`` of a model returned: one row per gene, with ``change``, ``lower``, ``upper`` and ``z``.
        Infinite z are drawn as high as the highest finite one; genes whose change or z is missing are not drawn.
    n_labels
        How many genes to name: the most certain ones.
    ax
        Where to draw; a new figure by default.
    save
        File to write the picture to; a new figure is closed then.

    Returns
    -------
    Axes
        The axes.

    Raises
    ------
    KeyError
        If the table lacks columns.
    ValueError
        If they are no numbers, or no gene has a change and a z.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.model import SCLDM
    >>> adata = sclatent.datasets.simulate(200, 50, library_size=500)
    >>> SCLDM.setup_anndata(adata, condition_keys=["cell_type", "condition"])
    >>> model = SCLDM(adata, width=32, n_blocks=1, denoiser_width=32, denoiser_blocks=1)
    >>> model.train(max_epochs=1)  # only to show how it is done: leave max_epochs out for a good model
    >>> treated, control = ({"condition": level} for level in ("stimulated", "control"))
    >>> ax = sclatent.pl.volcano(model.predict_change(treated, control), n_labels=3)
    >>> len(ax.texts)
    3
    """
    n_labels = check_whole("n_labels", n_labels, least=0)
    table = _checked(change)
    x, lower, upper = (table[column].to_numpy() for column in ("change", "lower", "upper"))
    z = table["z"].abs().to_numpy()
    height = -(np.log(2) + norm.logsf(z)) / np.log(10)  # of the logarithm, as p itself may be 0 in floating point
    highest = height[np.isfinite(height)].max(initial=0.0) or 1.0
    height = np.where(np.isposinf(height), highest, height)
    is_up, is_down = lower > 0, upper < 0
    color = np.where(is_up, COLORS["up"], np.where(is_down, COLORS["down"], COLORS["interval holds 0"]))
    given, ax = ax, axes_or_new(ax, (4.4, 3.8))
    ax.axvline(0, color="0.85", lw=0.8, zorder=0)
    for label, some in {"interval holds 0": ~(is_up | is_down), "down": is_down, "up": is_up}.items():
        ax.scatter(x[some], height[some], s=8, color=COLORS[label], linewidths=0, label=f"{label} ({some.sum()})")
    ax.set(xlabel="predicted change", ylabel="$-\\log_{10}$ p")
    ax.set_ylim(bottom=0)
    ax.margins(y=0.1)
    ax.spines[["top", "right"]].set_visible(False)
    ax.locator_params(axis="x", nbins=6)
    ax.legend(frameon=False, fontsize=7, handletextpad=0.1)
    order = np.argsort(-z, kind="stable")
    named = order[z[order] > 0][:n_labels]  # not of genes that do not change
    name_points(ax, x, height, named, table.index[named].astype(str), color[named])
    save_figure(ax.figure, save, given)
    return ax


def _checked(change: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of genes that can be drawn, as floats."""
    if not isinstance(change, pd.DataFrame):
        raise TypeError(f"change is of type {type(change).__name__}: the DataFrame of predict_change was expected.")
    if missing := [column for column in COLUMNS if column not in change]:
        raise KeyError(
            f"change has no columns {missing}, but {list(change.columns)}: give what predict_change has returned."
        )
    try:
        numbers = change[list(COLUMNS)].to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise ValueError(f"change must have numbers in its columns {list(COLUMNS)}: {error}.") from error
    table = pd.DataFrame(numbers, change.index, COLUMNS)
    is_drawn = np.isfinite(table["change"]) & table["z"].notna()
    if not is_drawn.any():
        raise ValueError(f"change has {len(change)} genes, none of which has a finite change and a z to draw.")
    return table[is_drawn]
