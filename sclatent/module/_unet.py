"""U-Net over the patches of an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sclatent.nn import NULL, ConditionEmbedding, Context, TimeEmbedding, Values

from ._dit import DiT


class TimedBlock(nn.Module):
    """Two 3 x 3 convolutions with a short cut, modulated by the conditioning (Dhariwal & Nichol 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width, affine=False), nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * width)
        for layer in (self.conv2, self.modulation):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map (cells, width, height, width) under what it is conditioned on, (cells, width), to the same shape."""
        shift, scale = self.modulation(F.silu(c))[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        return x + self.conv2(F.silu(torch.addcmul(shift, h, 1 + scale)))


class UNet(nn.Module):
    """Convolutions at falling and rising resolution (Ho et al. 2020): a denoiser that looks at what is near.

    It knows no place in the image, so what it learned of noise on one data set holds on another. Called as
    :class:`DiT` is, with the patches of an image as tokens: they lie on a square grid.

    Parameters
    ----------
    n_tokens, token_dim
        Number of patches, a square, and their width.
    n_levels
        Number of levels of each condition key.
    width
        Channels at every resolution.
    n_resolutions
        Number of resolutions; each has half the side of the one before.
    values
        What is known of the values of each key, as in :class:`~sclatent.nn.ConditionEmbedding`.

    Examples
    --------
    >>> import torch
    >>> from sclatent.module import UNet
    >>> from sclatent.nn import Context
    >>> denoiser = UNet(n_tokens=256, token_dim=4, width=16, n_resolutions=2)  # 16 x 16 patches of 2 x 2 pixels
    >>> x, t, nothing = torch.randn(2, 256, 4), torch.rand(2), Context(torch.empty(2, 0, dtype=torch.int64))
    >>> denoiser(x, t, nothing).shape
    torch.Size([2, 256, 4])
    """

    def __init__(
        self,
        n_tokens: int,
        token_dim: int,
        n_levels: Sequence[int] = (),
        width: int = 64,
        n_resolutions: int = 3,
        values: Sequence[Values] | None = None,
    ) -> None:
        super().__init__()
        if width % 8:
            raise ValueError(f"denoiser_width={width!r} must be a multiple of 8 for images.")
        self.n_side = round(n_tokens**0.5)
        self.n_levels, self.width, self.n_activations = tuple(n_levels), width, 2 * n_resolutions
        self.time = TimeEmbedding(width)
        self.conditions = ConditionEmbedding(n_levels, width, values)
        self.embed = nn.Conv2d(token_dim, width, 3, padding=1)
        self.down = nn.ModuleList(TimedBlock(width) for _ in range(n_resolutions))
        self.shrink = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(n_resolutions - 1))
        self.join = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for _ in range(n_resolutions - 1))
        self.up = nn.ModuleList(TimedBlock(width) for _ in range(n_resolutions))
        self.norm = nn.GroupNorm(8, width)
        self.out = nn.Conv2d(width, token_dim, 3, padding=1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def evaluate(self, x: Tensor, t: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Prediction of the shape of ``x``, and the activations of each block averaged over the image.

        Parameters
        ----------
        x
            Noisy patches, (cells, n_tokens, token_dim).
        t
            Times in [0, 1], (cells,); 0 is noise, 1 is data.
        context
            What the cells are conditioned on.

        Returns
        -------
        tuple[Tensor, Tensor]
            Prediction (cells, n_tokens, token_dim) and activations (cells, n_activations, width).
        """
        c = self.time(t) + self.conditions(context.codes, context.values)
        h = self.embed(x.transpose(1, 2).unflatten(2, (self.n_side, self.n_side)))
        skipped, seen = [], []
        for i, block in enumerate(self.down):
            if i:
                skipped.append(h)
                h = self.shrink[i - 1](h)
            h = block(h, c)
            seen.append(h.mean(dim=(2, 3)))
        for i, block in enumerate(self.up):
            if i:
                skip = skipped.pop()
                h = self.join[i - 1](torch.cat([F.interpolate(h, skip.shape[2:]), skip], dim=1))
            h = block(h, c)
            seen.append(h.mean(dim=(2, 3)))
        prediction = self.out(F.silu(self.norm(h))).flatten(2).transpose(1, 2)
        return prediction, torch.stack(seen, dim=1)

    def activations(self, x: Tensor, t: Tensor) -> Tensor:
        """Activations of each block without any condition, averaged over the image, (cells, n_activations, width)."""
        return self.evaluate(x, t, Context(torch.full((len(t), len(self.n_levels)), NULL, device=t.device)))[1]

    def forward(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """Predict the velocity of patches x (cells, n_tokens, token_dim); as in :class:`DiT`."""
        return self.evaluate(x, t, context)[0]


def new_denoiser(
    is_image: bool,
    n_tokens: int,
    token_dim: int,
    n_levels: Sequence[int] = (),
    width: int | None = None,
    n_blocks: int | None = None,
    n_heads: int = 4,
    values: Sequence[Values] | None = None,
) -> DiT | UNet:
    """Return a U-Net for the patches of an image, else a Diffusion Transformer; by default of a size for two cores.

    Parameters
    ----------
    is_image
        Whether the tokens are patches of an image.
    n_tokens, token_dim
        Shape of the tokens of a cell.
    n_levels
        Number of levels of each condition key.
    width, n_blocks
        Size of the network; by default 48 and 3 resolutions for a U-Net, 128 and 4 blocks for a transformer.
    n_heads
        Heads of every attention of a transformer.
    values
        What is known of the values of each key, as in :class:`~sclatent.nn.ConditionEmbedding`.

    Examples
    --------
    >>> from sclatent.module import new_denoiser
    >>> type(new_denoiser(True, n_tokens=256, token_dim=4)).__name__
    'UNet'
    >>> type(new_denoiser(False, n_tokens=16, token_dim=4)).__name__
    'DiT'
    """
    if is_image:
        return UNet(n_tokens, token_dim, n_levels, width or 48, n_blocks or 3, values)
    return DiT(n_tokens, token_dim, n_levels, width or 128, n_blocks or 4, n_heads, values=values)
