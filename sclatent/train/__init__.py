"""Training: plans of the two stages, callbacks."""

from ._callbacks import BestWeights, History, ProgressBar
from ._plans import AutoencoderPlan, DiffusionPlan, StagePlan, TrainingDivergedError

__all__ = [
    "AutoencoderPlan",
    "BestWeights",
    "DiffusionPlan",
    "History",
    "ProgressBar",
    "StagePlan",
    "TrainingDivergedError",
]
