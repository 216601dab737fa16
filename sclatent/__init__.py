"""Latent diffusion models of single cells, from AnnData to AnnData."""

from importlib.metadata import version

from . import conditions, datasets, metrics, model, pl, pp, tl

__all__ = ["conditions", "datasets", "metrics", "model", "pl", "pp", "tl"]

__version__ = version("sclatent")
