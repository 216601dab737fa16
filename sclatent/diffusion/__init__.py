"""The mathematics of diffusion, without networks: processes, solvers, guidance."""

from ._bound import lower_bound
from ._guidance import classifier, classifier_free
from ._process import PROCESSES, Coefficients, LinearFlow, Process, VariancePreserving
from ._solvers import DEFAULT_STEPS, adaptive, euler, heun, solve

__all__ = [
    "DEFAULT_STEPS",
    "PROCESSES",
    "Coefficients",
    "LinearFlow",
    "Process",
    "VariancePreserving",
    "adaptive",
    "classifier",
    "classifier_free",
    "euler",
    "heun",
    "lower_bound",
    "solve",
]
