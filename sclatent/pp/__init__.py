"""Preparation of data before a model sees them: images are turned or become vectors, drugs become vectors."""

from ._drug_fingerprints import drug_fingerprints
from ._efficientnet import efficientnet_lite0
from ._embed_images import embed_images
from ._turn_images import turn_images

__all__ = ["drug_fingerprints", "efficientnet_lite0", "embed_images", "turn_images"]
