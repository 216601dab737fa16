"""What the models share: training of a stage, saved models."""

from ._folder import read_model, write_model
from ._stages import StageDirectory, fingerprint, fit_stage, quiet_lightning

__all__ = ["StageDirectory", "fingerprint", "fit_stage", "quiet_lightning", "read_model", "write_model"]
