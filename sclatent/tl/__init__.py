"""What a trained model of images or embeddings has learned; results go into the AnnData, where ``pl`` finds them."""

from ._denoising import denoising
from ._guidance import guidance
from ._probe import probe
from ._reconstruction_error import reconstruction_error

__all__ = ["denoising", "guidance", "probe", "reconstruction_error"]
