"""Domains: what a cell is, how it is read from an AnnData, encoded, decoded and written back."""

from ._counts import CountDomain
from ._domain import CHANGED, Domain
from ._features import DIFFERENCE, FeatureDomain
from ._fields import KnownConditionsField, KnownLevelsField
from ._library import LibrarySizes

__all__ = [
    "CHANGED",
    "DIFFERENCE",
    "CountDomain",
    "Domain",
    "FeatureDomain",
    "KnownConditionsField",
    "KnownLevelsField",
    "LibrarySizes",
]
