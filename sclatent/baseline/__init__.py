"""Where the cells of a condition are and how widely they spread, in closed form: what the network is added to."""

from ._condition_mean import BASELINES, ConditionMean, common_slope
from ._condition_mean import Baseline as Baseline  # a type
from ._gaussian import GaussianVelocity, shrink_covariances
from ._mixed_model import MixedModel
from ._sources import source_names, source_shares, variance_shares
from ._variances import reml

__all__ = [
    "BASELINES",
    "ConditionMean",
    "GaussianVelocity",
    "MixedModel",
    "common_slope",
    "reml",
    "shrink_covariances",
    "source_names",
    "source_shares",
    "variance_shares",
]
