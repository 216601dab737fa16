"""What the models share: training in stages, saved models; images and embeddings, labels that are predicted."""

from sclatent.data import check_adata

from ._feature_model import FeatureModel
from ._joint import JointMixin
from ._random import cell_rng, check_seed, initial_weights
from ._staged_model import (
    CHANGED,
    StagedModel,
    check_baseline,
    check_n_samples,
    check_order,
    check_sizes,
    check_steps,
)

__all__ = [
    "CHANGED",
    "FeatureModel",
    "JointMixin",
    "StagedModel",
    "cell_rng",
    "check_adata",
    "check_baseline",
    "check_n_samples",
    "check_order",
    "check_seed",
    "check_sizes",
    "check_steps",
    "initial_weights",
]
