"""Training: plans of the stages, callbacks."""

from ._callbacks import BestWeights, History, ProgressBar
from ._feature_plans import DenoisingPlan, JointPlan, PriorPlan, ReconstructionPlan
from ._plans import AutoencoderPlan, DiffusionPlan, StagePlan, TrainingDivergedError

__all__ = [
    "AutoencoderPlan",
    "BestWeights",
    "DenoisingPlan",
    "DiffusionPlan",
    "History",
    "JointPlan",
    "PriorPlan",
    "ProgressBar",
    "ReconstructionPlan",
    "StagePlan",
    "TrainingDivergedError",
]
