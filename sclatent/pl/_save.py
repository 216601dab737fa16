"""Writing of pictures."""

from __future__ import annotations

import os

from matplotlib.figure import Figure


def save_figure(figure: Figure, save: str | os.PathLike | None) -> None:
    """Write a figure to a file, if one was given; the ending says in which format."""
    if save is not None:
        figure.savefig(save, dpi=150, bbox_inches="tight")
