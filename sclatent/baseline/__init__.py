"""Where the cells of a condition are and how widely they spread, in closed form: what the network is added to."""

from ._condition_mean import BASELINES, RESIDUALS, ConditionMean, common_slope
from ._condition_mean import Baseline as Baseline  # types
from ._condition_mean import Residuals as Residuals
from ._gaussian import GaussianVelocity, shrink_covariances
from ._mixed_model import MixedModel
from ._mixture import Mixture, fit_mixture
from ._mixture_velocity import MixtureVelocity
from ._sources import source_names, source_shares, variance_shares
from ._variances import reml

__all__ = [
    "BASELINES",
    "RESIDUALS",
    "ConditionMean",
    "GaussianVelocity",
    "MixedModel",
    "Mixture",
    "MixtureVelocity",
    "common_slope",
    "fit_mixture",
    "reml",
    "shrink_covariances",
    "source_names",
    "source_shares",
    "variance_shares",
]
