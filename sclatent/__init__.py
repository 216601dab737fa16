"""Latent diffusion models of single cells, from AnnData to AnnData."""

from importlib.metadata import version

from . import datasets, metrics, model, pl, pp, tl

__all__ = ["datasets", "metrics", "model", "pl", "pp", "tl"]

__version__ = version("sclatent")
