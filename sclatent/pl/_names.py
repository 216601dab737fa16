"""Names beside points, where they hide neither each other nor, as far as possible, the points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

FONT_SIZE = 7
DISTANCES = np.array([3, 8, 14, 20, 28, 38, 50, 65])  # from a point to its name, in points (1/72 inch)
PADDING = 1  # around a name, in the same
ANGLES = np.deg2rad(np.arange(0, 360, 15))
# what hiding a point, drawing a line through a name, and overlapping one or the edge costs, in points of distance
POINT_COST, LINE_COST, OVERLAP_COST = 15, 30, 1_000
ALONG = np.linspace(0, 1, 12)[None, :, None]  # places on a line from a point to its name


def name_points(
    ax: Axes, x: np.ndarray, y: np.ndarray, named: np.ndarray, names: Sequence[str], color: Any = "tab:red"
) -> None:
    """Write the names of some of the points that a panel shows.

    One name after the other goes where it costs the least: distance from its point, points that it hides, and, above
    all, names that it overlaps. Call it when nothing will change the limits of the axes any more.

    Parameters
    ----------
    ax
        The panel.
    x, y
        All points.
    named, names
        Positions of the points to name, and their names; the first chooses first.
    color
        Of the points that are named, one or one for each.
    """
    ax.scatter(x[named], y[named], s=8, color=color, linewidths=0)
    ax.figure.figure.draw_without_rendering()  # where things are is known only after
    points = ax.transData.transform(np.column_stack([x, y]))
    scale = ax.figure.dpi / 72
    inside = ax.get_window_extent()
    legend = ax.get_legend()
    written = ax.texts if legend is None else [*ax.texts, legend]
    taken = [np.array(artist.get_window_extent().extents) for artist in written]
    distances = np.repeat(DISTANCES, len(ANGLES))
    directions = np.tile(np.column_stack([np.cos(ANGLES), np.sin(ANGLES)]), (len(DISTANCES), 1))
    for i, name in zip(named, names, strict=True):
        measured = ax.text(0, 0, name, fontsize=FONT_SIZE)
        half = np.array(measured.get_window_extent().size) / 2 + PADDING * scale
        measured.remove()
        offsets = directions * (distances[:, None] * scale + half)
        low, high = points[i] + offsets - half, points[i] + offsets + half
        edge = (1 - half / np.maximum(np.abs(offsets), 1e-9)).max(axis=1)  # where the line to the middle meets the box
        lines = points[i] + ALONG * (edge[:, None] * offsets)[:, None]
        hidden = ((points > low[:, None]) & (points < high[:, None])).all(axis=2).sum(axis=1)
        overlaps = ((low < inside.min) | (high > inside.max)).any(axis=1).astype(int)
        crossed = np.zeros(len(offsets))
        for box in taken:
            overlaps += ((low < box[2:]) & (high > box[:2])).all(axis=1)
            crossed += ((lines > box[:2]) & (lines < box[2:])).all(axis=2).any(axis=1)
        best = np.argmin(distances + POINT_COST * hidden + LINE_COST * crossed + OVERLAP_COST * overlaps)
        taken.append(np.concatenate([low[best], high[best]]))
        points = np.concatenate([points, lines[best]])  # no other name may hide the line
        line = {"arrowstyle": "-", "lw": 0.5, "color": "0.5", "shrinkA": 0, "shrinkB": 1}
        annotation = ax.annotate(
            name, (x[i], y[i]), xytext=offsets[best] / scale, textcoords="offset points", fontsize=FONT_SIZE,
            ha="center", va="center", arrowprops=line if distances[best] > DISTANCES[0] else None,
        )  # fmt: skip
        annotation.set_in_layout(False)  # or the layout moves the points, and the names overlap
