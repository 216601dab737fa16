"""From features of a cell (an embedding, an image) to tokens and back: what all such autoencoders share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class FeatureScale(nn.Module):
    """Shift features to mean 0 and scale them to variance 1: embeddings by one number, images by channel.

    Coordinates of an embedding keep their proportions: most of what tells cells apart is in large ones, and to bring
    all to one variance would drown it in noise. Every batch has a mean of its own, so that no batch is told from
    another by its mean.

    Parameters
    ----------
    shape
        Shape of the features of a cell: (dim,), or (height, width, channels).
    n_batches
        Number of batches.

    Examples
    --------
    >>> import torch
    >>> from sclatent.module import FeatureScale
    >>> scale = FeatureScale((2,), n_batches=2)
    >>> _ = scale.mean.copy_(torch.tensor([[0.0, 0.0], [10.0, 10.0]]))  # each batch has its own
    >>> x, batch = torch.tensor([[1.0, 2.0], [11.0, 12.0]]), torch.tensor([0, 1])
    >>> scale(x, batch).tolist()
    [[1.0, 2.0], [1.0, 2.0]]
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, shape: tuple[int, ...], n_batches: int = 1) -> None:
        super().__init__()
        shape = shape if len(shape) == 1 else (1, 1, shape[2])
        self.register_buffer("mean", torch.zeros(n_batches, *shape))
        self.register_buffer("sd", torch.ones(1 if len(shape) == 1 else shape))

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        """Standardise features ``(cells, *shape)`` of batches (cells,)."""
        return (x - self.mean[batch]) / self.sd

    def inverse(self, standardised: Tensor, batch: Tensor) -> Tensor:
        """Undo :meth:`forward`."""
        return standardised * self.sd + self.mean[batch]


class FeatureAutoencoder(nn.Module, ABC):
    """Tokens of standardised features, and back.

    Parameters
    ----------
    shape
        Shape of the features of a cell: (dim,), or (height, width, channels).
    n_tokens, token_dim
        Shape of the tokens of a cell.
    n_batches
        Number of batches.

    Examples
    --------
    An autoencoder of your own says how standardised features become tokens, and what they look like then:

    >>> import torch
    >>> from sclatent.module import FeatureAutoencoder
    >>> class Halves(FeatureAutoencoder):
    ...     def __init__(self, dim):
    ...         super().__init__((dim,), n_tokens=2, token_dim=dim // 2)
    ...     def to_tokens(self, x):
    ...         return x.view(-1, 2, self.token_dim)
    ...     def from_tokens(self, tokens):
    ...         return tokens.flatten(1)
    >>> x, batch = torch.randn(5, 8), torch.zeros(5, dtype=torch.int64)
    >>> autoencoder = Halves(8)
    >>> tokens = autoencoder.encode(x, batch)
    >>> tokens.shape, torch.equal(autoencoder.decode(tokens, batch), x)
    (torch.Size([5, 2, 4]), True)
    """

    def __init__(self, shape: tuple[int, ...], n_tokens: int, token_dim: int, n_batches: int = 1) -> None:
        super().__init__()
        self.shape, self.n_tokens, self.token_dim = shape, n_tokens, token_dim
        self.scale = FeatureScale(shape, n_batches)

    @abstractmethod
    def to_tokens(self, x: Tensor) -> Tensor:
        """Tokens (cells, n_tokens, token_dim) of standardised features ``(cells, *shape)``."""

    @abstractmethod
    def from_tokens(self, tokens: Tensor) -> Tensor:
        """Standardised features ``(cells, *shape)`` of tokens (cells, n_tokens, token_dim)."""

    def encode(self, x: Tensor, batch: Tensor) -> Tensor:
        """Tokens (cells, n_tokens, token_dim) of features ``(cells, *shape)`` of batches (cells,)."""
        return self.to_tokens(self.scale(x, batch))

    def decode(self, tokens: Tensor, batch: Tensor) -> Tensor:
        """Features ``(cells, *shape)`` of tokens (cells, n_tokens, token_dim) under batches (cells,)."""
        return self.scale.inverse(self.from_tokens(tokens), batch)
