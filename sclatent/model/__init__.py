"""The models: what a user calls."""

from ._daed import DAED
from ._joint_diffusion import JointDiffusion
from ._joint_ldm import JointLDM
from ._scldm import SCLDM

__all__ = ["DAED", "SCLDM", "JointDiffusion", "JointLDM"]
