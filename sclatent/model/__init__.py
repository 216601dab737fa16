"""The models: what a user calls."""

from ._scldm import SCLDM

__all__ = ["SCLDM"]
