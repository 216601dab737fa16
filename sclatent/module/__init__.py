"""What a model trains: autoencoders, denoisers, and their likelihoods."""

from ._denoising_autoencoder import DenoisingAutoencoder
from ._dit import DiT
from ._features import FeatureAutoencoder, FeatureScale
from ._image_autoencoder import ImageAutoencoder
from ._joint_denoiser import JointDenoiser
from ._latent_diffusion import CellDiffusion, LatentDiffusion
from ._likelihood import (
    LIKELIHOODS,
    GeneLikelihood,
    NegativeBinomial,
    Normal,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from ._patches import Patches
from ._residual_denoiser import ResidualDenoiser
from ._set_autoencoder import POOLINGS, SetAutoencoder
from ._standardize import Standardize
from ._unet import UNet, new_denoiser
from ._vector_autoencoder import VectorAutoencoder

__all__ = [
    "LIKELIHOODS",
    "POOLINGS",
    "CellDiffusion",
    "DenoisingAutoencoder",
    "DiT",
    "FeatureAutoencoder",
    "FeatureScale",
    "GeneLikelihood",
    "ImageAutoencoder",
    "JointDenoiser",
    "LatentDiffusion",
    "NegativeBinomial",
    "Normal",
    "Patches",
    "Poisson",
    "ResidualDenoiser",
    "SetAutoencoder",
    "Standardize",
    "UNet",
    "VectorAutoencoder",
    "ZeroInflatedNegativeBinomial",
    "new_denoiser",
]
