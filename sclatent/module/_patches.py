"""Data cut into tokens, nothing learned: the autoencoder of diffusion in data space."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from ._features import FeatureAutoencoder


class Patches(FeatureAutoencoder):
    """Square patches of an image, or stretches of a vector, as tokens; nothing is lost and nothing is learned.

    What the last patches lack is padded with 0, which is the mean.

    Parameters
    ----------
    shape
        Shape of the features of a cell: (dim,), or (height, width, channels).
    patch
        Side of a patch in pixels, by default 2; or length of a stretch, by default so that there are 16, but none
        shorter than 4.
    n_batches
        Number of batches.

    Examples
    --------
    >>> import torch
    >>> from sclatent.module import Patches
    >>> patches = Patches((28, 28, 3))
    >>> images, batch = torch.rand(2, 28, 28, 3), torch.zeros(2, dtype=torch.int64)
    >>> tokens = patches.encode(images, batch)
    >>> tokens.shape, torch.equal(patches.decode(tokens, batch), images)  # 14 x 14 patches of 2 x 2 pixels
    (torch.Size([2, 196, 12]), True)
    """

    def __init__(self, shape: tuple[int, ...], patch: int | None = None, n_batches: int = 1) -> None:
        if patch is None:
            patch = 2 if len(shape) == 3 else max(4, math.ceil(shape[0] / 16))
        if patch < 1:
            raise ValueError(f"patch={patch!r} must be at least 1.")
        self.patch = patch
        self.n_side = math.ceil(shape[0] / patch)
        n_tokens, token_dim = (self.n_side**2, patch**2 * shape[2]) if len(shape) == 3 else (self.n_side, patch)
        super().__init__(shape, n_tokens, token_dim, n_batches)

    def to_tokens(self, x: Tensor) -> Tensor:
        n, p = self.n_side, self.patch
        missing = n * p - self.shape[0]
        if len(self.shape) == 1:
            return F.pad(x, (0, missing)).view(-1, n, p)
        x = F.pad(x, (0, 0, 0, missing, 0, missing)).view(-1, n, p, n, p, self.shape[2])
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, n * n, self.token_dim)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        n, p, size = self.n_side, self.patch, self.shape[0]
        if len(self.shape) == 1:
            return tokens.reshape(-1, n * p)[:, :size]
        x = tokens.view(-1, n, n, p, p, self.shape[2]).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, n * p, n * p, self.shape[2])[:, :size, :size]
