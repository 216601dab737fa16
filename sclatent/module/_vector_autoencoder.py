"""Autoencoder of embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._features import FeatureAutoencoder


class VectorAutoencoder(FeatureAutoencoder):
    """Linear map to tokens and back, plus what a perceptron of two layers adds to either.

    Both perceptrons start at 0 and the linear maps at the principal components (:meth:`start_from`), so that training
    goes on from the best linear autoencoder.

    Parameters
    ----------
    dim
        Dimension of the embedding.
    n_tokens, token_dim
        Shape of the tokens of a cell.
    width
        Width of the perceptrons.
    n_batches
        Number of batches.

    Examples
    --------
    >>> import torch
    >>> from sclatent.module import VectorAutoencoder
    >>> autoencoder = VectorAutoencoder(dim=64, n_tokens=4, token_dim=16)
    >>> autoencoder.start_from(torch.eye(64), scale=1.0)  # 64 components, which are the coordinates themselves
    >>> x, batch = torch.randn(5, 64), torch.zeros(5, dtype=torch.int64)
    >>> tokens = autoencoder.encode(x, batch)
    >>> tokens.shape, torch.allclose(autoencoder.decode(tokens, batch), x, atol=1e-5)
    (torch.Size([5, 4, 16]), True)
    """

    def __init__(self, dim: int, n_tokens: int = 16, token_dim: int = 16, width: int = 256, n_batches: int = 1) -> None:
        super().__init__((dim,), n_tokens, token_dim, n_batches)
        latent = n_tokens * token_dim
        self.linear_in, self.linear_out = nn.Linear(dim, latent), nn.Linear(latent, dim)
        self.mlp_in = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, latent))
        self.mlp_out = nn.Sequential(nn.Linear(latent, width), nn.GELU(), nn.Linear(width, dim))
        for mlp in (self.mlp_in, self.mlp_out):
            for parameter in mlp[-1].parameters():
                nn.init.zeros_(parameter)

    @torch.no_grad()
    def start_from(self, components: Tensor, scale: float) -> None:
        """Start from principal components (n_components, dim), whose scores are divided by a scale.

        The tokens take turns, so that every one has large and small components; coordinates beyond them start at 0. To
        bring all components to one variance would drown labels in the noise of the small ones.
        """
        for layer in (self.linear_in, self.linear_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        k = torch.arange(len(components))
        place = (k % self.n_tokens) * self.token_dim + k // self.n_tokens
        self.linear_in.weight[place] = components / scale
        self.linear_out.weight[:, place] = components.T * scale

    def to_tokens(self, x: Tensor) -> Tensor:
        return (self.linear_in(x) + self.mlp_in(x)).view(-1, self.n_tokens, self.token_dim)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        z = tokens.flatten(1)
        return self.linear_out(z) + self.mlp_out(z)
