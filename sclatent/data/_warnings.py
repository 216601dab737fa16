"""Warnings that point at the line of the user."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

PASSED_OVER = __name__.split(".", maxsplit=1)[0], "torch"  # whose no_grad calls what it decorates


def warn_user(message: str) -> None:
    """Warn where this package was called, however many of its functions lie between."""
    frame: FrameType | None = sys._getframe()
    level = 0
    while frame is not None and frame.f_globals.get("__name__", "").split(".", maxsplit=1)[0] in PASSED_OVER:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level + 1)
