"""What the models share: training in stages, saved models; images and embeddings, labels that are predicted."""

from ._feature_model import FeatureModel
from ._joint import JointMixin
from ._random import cell_rng
from ._staged_model import StagedModel

__all__ = ["FeatureModel", "JointMixin", "StagedModel", "cell_rng"]
