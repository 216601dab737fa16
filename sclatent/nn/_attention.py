"""Attention between the tokens of one cell: the blocks of every transformer in the package."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens (Vaswani et al. 2017).

    Parameters
    ----------
    width
        Width of a token.
    n_heads
        Number of heads, of which the width is a multiple.

    Examples
    --------
    >>> import torch
    >>> from sclatent.nn import SelfAttention
    >>> SelfAttention(width=32, n_heads=4)(torch.randn(5, 8, 32)).shape  # 5 cells of 8 tokens
    torch.Size([5, 8, 32])
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        if width % n_heads:
            raise ValueError(f"width={width} must be a multiple of n_heads={n_heads}.")
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens ``x`` of shape (cells, n_tokens, width); the shape stays."""
        b, m, w = x.shape
        q, k, v = self.qkv(x).view(b, m, 3, self.n_heads, w // self.n_heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)  # (cells, heads, n_tokens, width / heads)
        return self.out(y.transpose(1, 2).reshape(b, m, w))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer perceptron, both residual.

    Parameters
    ----------
    width
        Width of a token.
    n_heads
        Heads of the attention.
    mlp_ratio
        Width of the perceptron's hidden layer, times the width of a token.

    Examples
    --------
    >>> import torch
    >>> from sclatent.nn import Block
    >>> Block(width=32, n_heads=4)(torch.randn(5, 8, 32)).shape  # 5 cells of 8 tokens
    torch.Size([5, 8, 32])
    """

    def __init__(self, width: int, n_heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, n_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (cells, n_tokens, width) to tokens of the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class AdaLNBlock(nn.Module):
    """Transformer block steered by a condition through adaLN-zero (Peebles & Xie 2023, section 3.2).

    Shift, scale and gate of both halves are linear in the condition and start at zero, so that the block starts
    as the identity.

    Parameters
    ----------
    width
        Width of a token and of the condition.
    n_heads
        Heads of the attention.
    mlp_ratio
        Width of the perceptron's hidden layer, times the width of a token.

    Examples
    --------
    >>> import torch
    >>> from sclatent.nn import AdaLNBlock
    >>> x, condition = torch.randn(5, 8, 32), torch.randn(5, 32)
    >>> torch.equal(AdaLNBlock(width=32, n_heads=4)(x, condition), x)  # as it starts
    True
    """

    def __init__(self, width: int, n_heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = SelfAttention(width, n_heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(approximate="tanh"), nn.Linear(mlp_ratio * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map tokens (cells, n_tokens, width) under a condition ``c`` (cells, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate1 * self.attention(torch.addcmul(shift1, self.norm(x), 1 + scale1))
        return x + gate2 * self.mlp(torch.addcmul(shift2, self.norm(x), 1 + scale2))
