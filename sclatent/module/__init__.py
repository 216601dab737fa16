"""What a model trains: autoencoders, denoisers, and their likelihoods."""

from ._cell_denoiser import CellDenoiser
from ._dit import DiT
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
from ._set_autoencoder import SetAutoencoder
from ._standardize import Standardize

__all__ = [
    "LIKELIHOODS",
    "CellDenoiser",
    "CellDiffusion",
    "DiT",
    "GeneLikelihood",
    "JointDenoiser",
    "LatentDiffusion",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "SetAutoencoder",
    "Standardize",
    "ZeroInflatedNegativeBinomial",
]
