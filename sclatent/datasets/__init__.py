"""Real data sets, raw counts in `X`, and a simulator whose truth is known."""

from ._bundled import glioblastoma, pbmc3k
from ._kang import kang
from ._simulate import simulate

__all__ = ["glioblastoma", "kang", "pbmc3k", "simulate"]
