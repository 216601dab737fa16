"""Latent diffusion models of single cells, from AnnData to AnnData."""

from importlib.metadata import version

from . import datasets, model

__all__ = ["datasets", "model"]

__version__ = version("sclatent")
