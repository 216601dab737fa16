"""What the models share: training in stages, saved models."""

from ._random import cell_rng
from ._staged_model import StagedModel

__all__ = ["StagedModel", "cell_rng"]
