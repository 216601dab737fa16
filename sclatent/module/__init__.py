"""What a model trains: autoencoders, denoisers, and their likelihoods."""

from ._dit import DiT
from ._latent_diffusion import LatentDiffusion
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
    "DiT",
    "GeneLikelihood",
    "LatentDiffusion",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "SetAutoencoder",
    "Standardize",
    "ZeroInflatedNegativeBinomial",
]
