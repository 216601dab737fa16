"""The denoiser of SCLDM: a Diffusion Transformer around the mean of the conditions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sclatent.nn import OPEN, ConditionMean

from ._dit import DiT


class CellDenoiser(DiT):
    r"""Diffusion Transformer around a mean of the conditions and the library size.

    The velocity of tokens x at time t under conditions c and library size s (its standardised logarithm) is

    .. math:: v(x, t, c, s) = m(c, s) + f(x - t \, m(c, s), t, c, s),

    with :math:`m` the :class:`~sclatent.nn.ConditionMean` and :math:`f` the transformer. As :math:`x_t = (1 - t)
    \varepsilon + t z`, the transformer sees :math:`z - m(c, s)`: cells of all conditions around one centre. A
    combination that was never trained on is therefore no foreign place to it. The library size is told because tokens
    know it: drawn without regard to it, they would not agree with the size that the counts are decoded at.

    Parameters
    ----------
    n_tokens, token_dim, n_levels, width, n_blocks, n_heads
        As in :class:`DiT`.

    Examples
    --------
    >>> import torch
    >>> from sclatent.module import CellDenoiser
    >>> denoiser = CellDenoiser(n_tokens=8, token_dim=16, n_levels=[5, 2], width=32, n_blocks=1)
    >>> x, t = torch.randn(3, 8, 16), torch.rand(3)
    >>> codes = torch.tensor([[0, 1], [4, 0], [2, -1]])  # cell type and condition; -1 leaves one open
    >>> denoiser(x, t, codes, size=torch.zeros(3)).shape  # all of average library size
    torch.Size([3, 8, 16])
    """

    def __init__(
        self,
        n_tokens: int,
        token_dim: int,
        n_levels: Sequence[int] = (),
        width: int = 128,
        n_blocks: int = 4,
        n_heads: int = 4,
    ) -> None:
        super().__init__(n_tokens, token_dim, n_levels, width, n_blocks, n_heads)
        self.mean = ConditionMean(n_levels, n_tokens, token_dim)
        self.size = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))

    def _evaluate(self, x: Tensor, t: Tensor, codes: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity of the shape of ``x``, and the activations of each block (cells, n_blocks, width)."""
        m = self.mean(codes, size)
        v, seen = self.evaluate(x - t[:, None, None] * m, self.context(t, codes) + self.size(size[:, None]))
        return m + v, seen

    def activations(self, x: Tensor, t: Tensor, size: Tensor) -> Tensor:
        """Activations of each block without any condition, averaged over the tokens.

        Parameters
        ----------
        x, t
            As in :class:`DiT`.
        size
            Standardised log library sizes, (cells,).

        Returns
        -------
        Tensor
            (cells, n_blocks, width).
        """
        no_condition = torch.full((len(t), len(self.conditions.tables)), OPEN, device=t.device)
        return self._evaluate(x, t, no_condition, size)[1]

    def forward(self, x: Tensor, t: Tensor, codes: Tensor, size: Tensor) -> Tensor:
        """Predict the velocity.

        Parameters
        ----------
        x, t, codes
            As in :class:`DiT`.
        size
            Standardised log library sizes, (cells,).

        Returns
        -------
        Tensor
            Velocity, of the shape of ``x``.
        """
        return self._evaluate(x, t, codes, size)[0]
