"""Preparation of data before a model sees them: images of cells are turned, or become vectors."""

from ._efficientnet import efficientnet_lite0
from ._embed_images import embed_images
from ._turn_images import turn_images

__all__ = ["efficientnet_lite0", "embed_images", "turn_images"]
