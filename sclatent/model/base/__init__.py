"""What the models share: training in stages, saved models; images and embeddings, labels that are predicted."""

from ._feature_model import FeatureModel
from ._joint import JointMixin
from ._random import cell_rng, initial_weights
from ._staged_model import StagedModel, check_n_samples

__all__ = ["FeatureModel", "JointMixin", "StagedModel", "cell_rng", "check_n_samples", "initial_weights"]
