"""What the models share: one latent diffusion model, training in stages, saved models."""

from ._checks import check_baseline, check_process, check_sizes
from ._count_model import CountModel
from ._feature_model import FeatureModel
from ._joint import DenoisingMixin, JointMixin, PredictionMixin
from ._latent_diffusion_model import LatentDiffusionModel
from ._random import initial_weights

__all__ = [
    "CountModel",
    "DenoisingMixin",
    "FeatureModel",
    "JointMixin",
    "LatentDiffusionModel",
    "PredictionMixin",
    "check_baseline",
    "check_process",
    "check_sizes",
    "initial_weights",
]
