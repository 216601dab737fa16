"""The denoising autoencoder of DAED."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sclatent.nn import Context

from ._patches import Patches
from ._unet import new_denoiser


class DenoisingAutoencoder(Patches):
    r"""From x1 to x0 in one step (DAED, arXiv 2206.00070, section 4).

    .. math:: q(x_1 | x_0) = N(\sqrt{1 - \beta_1} \, x_0, \; \beta_1 I), \qquad
              p(x_0 | x_1) = N(f_\varphi(x_1), \; \sigma^2 I).

    The latent is x1, the data with a little noise. :math:`f_\varphi` is a U-Net for images and a transformer for
    embeddings; it starts as :math:`\sqrt{1 - \beta_1} \, x_1`, the best guess if data were noise themselves.

    Parameters
    ----------
    shape
        Shape of the features of a cell: (dim,), or (height, width, channels).
    noise_level
        :math:`\beta_1`, the share of the noise in the variance of x1.
    patch
        As in :class:`Patches`.
    width, n_blocks, n_heads
        As of the denoisers of images and embeddings.
    n_batches
        Number of batches.

    Examples
    --------
    >>> import torch
    >>> from sclatent.module import DenoisingAutoencoder
    >>> autoencoder = DenoisingAutoencoder((32, 32, 1), noise_level=0.1, width=16, n_blocks=2)
    >>> x0 = autoencoder.encode(torch.rand(4, 32, 32, 1), batch=torch.zeros(4, dtype=torch.int64))
    >>> x0.shape  # patches of 2 x 2 pixels
    torch.Size([4, 256, 4])
    >>> x1 = autoencoder.add_noise(x0, torch.randn_like(x0))
    >>> autoencoder.denoise(x1).shape, autoencoder.log_prob(x0, x1).shape
    (torch.Size([4, 256, 4]), torch.Size([4]))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        noise_level: float = 0.1,
        patch: int | None = None,
        width: int | None = None,
        n_blocks: int | None = None,
        n_heads: int = 4,
        n_batches: int = 1,
    ) -> None:
        super().__init__(shape, patch, n_batches)
        self.noise_level = noise_level
        self.denoiser = new_denoiser(len(shape) == 3, self.n_tokens, self.token_dim, (), width, n_blocks, n_heads)
        self.log_sd = nn.Parameter(torch.tensor(0.5 * math.log(noise_level)))

    def add_noise(self, x0: Tensor, noise: Tensor) -> Tensor:
        """x1 of tokens x0 and noise, both (cells, n_tokens, token_dim)."""
        return math.sqrt(1 - self.noise_level) * x0 + math.sqrt(self.noise_level) * noise

    def denoise(self, x1: Tensor) -> Tensor:
        r""":math:`f_\varphi(x_1)`: tokens x0 (cells, n_tokens, token_dim) of noisy tokens x1."""
        nothing = Context(torch.empty(len(x1), 0, dtype=torch.int64, device=x1.device))
        correction = self.denoiser(x1, x1.new_zeros(len(x1)), nothing)
        return math.sqrt(1 - self.noise_level) * x1 + math.sqrt(self.noise_level) * correction

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """Standardised features ``(cells, *shape)`` of noisy tokens x1, in one step."""
        return super().from_tokens(self.denoise(tokens))

    def log_prob(self, x0: Tensor, x1: Tensor) -> Tensor:
        r""":math:`\ln p(x_0 | f_\varphi(x_1))` in nats, (cells,), of standardised features without their padding."""
        error = super().from_tokens(x0 - self.denoise(x1)).flatten(1)
        log_density = -0.5 * (error / self.log_sd.exp()).square() - self.log_sd - 0.5 * math.log(2 * math.pi)
        return log_density.sum(dim=1)
