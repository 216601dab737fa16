"""Latent diffusion models of single cells, from AnnData to AnnData."""

from importlib.metadata import version

from . import datasets

__all__ = ["datasets"]

__version__ = version("sclatent")
