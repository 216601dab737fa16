"""Convolutional autoencoder of images."""

from __future__ import annotations

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ._features import FeatureAutoencoder

MIN_SIZE, MAX_SIZE = 28, 256


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with group normalisation before each, and a short cut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map (cells, width, height, width) to the same shape."""
        return x + self.layers(x)


class ImageAutoencoder(FeatureAutoencoder):
    """Convolutions that halve the image until 3 x 3 or 4 x 4 places are left, each of which is a token, and back.

    The tokens are normalised, and noise of a fixed size is put on them in training, so that the decoder takes tokens
    that are not quite those of a real image.

    Parameters
    ----------
    shape
        (height, width, channels), square, of 28 to 256 pixels.
    token_dim
        Channels of a token.
    width
        Channels of the convolutions; those at half the resolution, the highest at which any are done, have half of it.
    n_batches
        Number of batches.

    Examples
    --------
    >>> import torch
    >>> from sclatent.module import ImageAutoencoder
    >>> autoencoder = ImageAutoencoder((32, 32, 3), token_dim=8, width=16)
    >>> images, batch = torch.rand(2, 32, 32, 3), torch.zeros(2, dtype=torch.int64)
    >>> tokens = autoencoder.encode(images, batch)
    >>> tokens.shape, autoencoder.decode(tokens, batch).shape
    (torch.Size([2, 16, 8]), torch.Size([2, 32, 32, 3]))
    """

    def __init__(self, shape: tuple[int, ...], token_dim: int = 32, width: int = 64, n_batches: int = 1) -> None:
        size, _, channels = shape
        if not MIN_SIZE <= size <= MAX_SIZE:
            raise ValueError(
                f"Images of {size} x {size} pixels: {MIN_SIZE} to {MAX_SIZE} were expected; resize them, or embed them "
                "by sclatent.pp.embed_images."
            )
        if width % 16:
            raise ValueError(f"width={width!r} must be a multiple of 16.")
        n_halvings = math.ceil(math.log2(size / 4))
        n_side = math.ceil(size / 2**n_halvings)
        super().__init__(shape, n_side**2, token_dim, n_batches)
        self.n_side, self.padded = n_side, n_side * 2**n_halvings
        widths = [width // 2, *[width] * (n_halvings - 1)]
        down: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, stride=2, padding=1), ResidualBlock(widths[0])]
        for before, after in pairwise(widths):
            down += [nn.Conv2d(before, after, 4, stride=2, padding=1), ResidualBlock(after)]
        up: list[nn.Module] = [nn.Conv2d(token_dim, width, 3, padding=1), ResidualBlock(width)]
        for before, after in pairwise(reversed(widths)):
            up += [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1), ResidualBlock(after)]
        self.encoder = nn.Sequential(*down, nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, token_dim, 1))
        self.decoder = nn.Sequential(
            *up, nn.GroupNorm(8, widths[0]), nn.SiLU(),
            nn.Conv2d(widths[0], 4 * channels, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip

    def to_tokens(self, x: Tensor) -> Tensor:
        missing = self.padded - self.shape[0]
        x = F.pad(x.permute(0, 3, 1, 2), (0, missing, 0, missing), mode="replicate")
        tokens = self.encoder(x).flatten(2).transpose(1, 2)  # (cells, n_tokens, token_dim)
        return F.layer_norm(tokens, (self.token_dim,))

    def from_tokens(self, tokens: Tensor) -> Tensor:
        grid = tokens.transpose(1, 2).unflatten(2, (self.n_side, self.n_side))
        x = self.decoder(grid)[:, :, : self.shape[0], : self.shape[1]]
        return x.permute(0, 2, 3, 1)
