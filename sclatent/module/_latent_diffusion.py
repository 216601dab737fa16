"""The parts of a latent diffusion model, held together."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from sclatent.baseline import MixedModel

from ._set_autoencoder import SetAutoencoder
from ._standardize import Standardize

Autoencoder = TypeVar("Autoencoder", bound=nn.Module)
Denoiser = TypeVar("Denoiser", bound=nn.Module)


class LatentDiffusion(nn.Module, Generic[Autoencoder, Denoiser]):
    """An autoencoder, the standardisation of its tokens, and a denoiser of standardised tokens.

    Parameters
    ----------
    autoencoder
        Cells to tokens and back.
    standardize
        Standardisation of the tokens.
    denoiser
        What predicts the velocity of standardised tokens.

    Examples
    --------
    >>> from sclatent.module import DiT, LatentDiffusion, Standardize, VectorAutoencoder
    >>> autoencoder = VectorAutoencoder(dim=64, n_tokens=4, token_dim=16)
    >>> module = LatentDiffusion(autoencoder, Standardize(4, 16), DiT(4, 16))
    >>> [name for name, _ in module.named_children()]
    ['autoencoder', 'standardize', 'denoiser']
    """

    def __init__(self, autoencoder: Autoencoder, standardize: Standardize, denoiser: Denoiser) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.standardize = standardize
        self.denoiser = denoiser


class CellDiffusion(LatentDiffusion[SetAutoencoder, Any]):
    """Latent diffusion of cells, with the standardisation of library sizes.

    Parameters
    ----------
    autoencoder
        :class:`SetAutoencoder`.
    standardize
        Standardisation of the tokens.
    denoiser
        :class:`ResidualDenoiser`.

    Examples
    --------
    >>> import torch
    >>> from sclatent.diffusion import LinearFlow
    >>> from sclatent.module import CellDiffusion, DiT, ResidualDenoiser, SetAutoencoder, Standardize
    >>> denoiser = ResidualDenoiser(DiT(8, 16, has_size=True), (8, 16), LinearFlow())
    >>> module = CellDiffusion(SetAutoencoder(n_genes=100), Standardize(8, 16), denoiser)
    >>> tokens, genes, batch = torch.randn(3, 8, 16), torch.arange(100), torch.zeros(3, dtype=torch.int64)
    >>> module.decode(tokens, genes, batch).shape
    torch.Size([3, 100])
    """

    def __init__(self, autoencoder: SetAutoencoder, standardize: Standardize, denoiser: nn.Module) -> None:
        super().__init__(autoencoder, standardize, denoiser)
        self.standardize_size = Standardize()
        self.gene_means: MixedModel | None = None  # of the genes themselves, in conditions; if a model has one

    def size(self, library: Tensor) -> Tensor:
        """Standardised log library sizes (cells,); those far from all of training are taken as its extremes."""
        return self.standardize_size(library.log()).clamp(-4, 4)

    def decode(self, tokens: Tensor, panel: Tensor, batch: Tensor) -> Tensor:
        """Decode standardised tokens (cells, n_tokens, token_dim) to logits (cells, len(panel)).

        Parameters
        ----------
        tokens
            Standardised tokens, (cells, n_tokens, token_dim).
        panel
            Genes, as positions among those of the model.
        batch
            Batch codes, (cells,).

        Returns
        -------
        Tensor
            Logits, (cells, len(panel)).
        """
        return self.autoencoder.decode(self.standardize.inverse(tokens), panel, batch)
