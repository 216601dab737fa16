"""Between the genes of a cell and its tokens, linear in the counts, at the price of a narrow table of genes.

In a set of (gene, count) the key of an element is the identity of its gene and the queries are learned, so the
attention weights do not depend on the cell: they are computed once a step, not once a cell. What remains for the cell
is one sum of table rows, and the attention of all cells to all genes is a (cells x genes) by (genes x slots) matrix
product. No tensor of cells x genes x width ever exists. The tables are kept with the genes last, so that every
operation on them runs along memory. Attention with weights that depend on the cell is in ``_cross_attention.py``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SetPooling(nn.Module):
    r"""From genes to tokens, linear in the counts: Deep Sets with learned weights; invariant to the order of the genes.

    Token m of cell b receives, in head h,

    .. math:: y_{bhm} = \sqrt{G} \sum_{g} a_{hmg} \sum_k \varphi_k(c_{bg}) \, v_{khg}, \qquad
              a_{hmg} = \operatorname{softmax}_{g} (q_{hm} \cdot k_{hg}),

    where g runs over the genes that were measured and :math:`\varphi(c) = (\ln(1 + c), \min(c, 1))`: how much, and
    whether at all. A gene measured as zero takes part in the softmax; a gene that was not measured is not in the set.
    The factor (G genes in training) gives sums of unit scale. No norm follows it, so the encoder sees magnitudes.

    The weights a depend on genes and not on the cell, so tokens are linear in :math:`\varphi` and those of two disjoint
    parts of a cell add up: a sum over the elements of a set (Deep Sets, Zaheer et al. 2017) with learned weights. The
    cross-attention of the paper is :class:`CrossAttentionPooling`.

    Parameters
    ----------
    gene_dim
        Width of the gene embeddings.
    n_tokens, n_heads, head_dim
        Number of queries, heads of each, and width of a head.
    n_genes
        Number of genes in training, G.

    Examples
    --------
    Neither the order of the genes nor genes that were not measured matter:

    >>> import torch
    >>> from sclatent.nn import SetPooling
    >>> pooling = SetPooling(gene_dim=16, n_tokens=8, n_heads=4, head_dim=8, n_genes=100)
    >>> genes, counts = torch.randn(100, 16), torch.poisson(torch.ones(5, 100))
    >>> tokens = pooling(genes, counts)
    >>> tokens.shape
    torch.Size([5, 8, 32])
    >>> order = torch.randperm(100)
    >>> torch.allclose(pooling(genes[order], counts[:, order]), tokens, atol=1e-4)
    True
    """

    n_features = 2

    def __init__(self, gene_dim: int, n_tokens: int, n_heads: int, head_dim: int, n_genes: int) -> None:
        super().__init__()
        self.n_tokens, self.n_heads, self.head_dim = n_tokens, n_heads, head_dim
        self.gain = math.sqrt(n_genes)
        self.to_logits = nn.Linear(gene_dim, n_heads * n_tokens, bias=False)  # q_hm . k_hg, folded into one matrix
        self.to_values = nn.Linear(gene_dim, self.n_features * n_heads * head_dim, bias=False)

    def forward(self, genes: Tensor, counts: Tensor) -> Tensor:
        """Pool counts into tokens.

        Parameters
        ----------
        genes
            Embeddings of the measured genes, (n_measured, gene_dim).
        counts
            Counts of the measured genes, (cells, n_measured).

        Returns
        -------
        Tensor
            Tokens, (cells, n_tokens, n_heads * head_dim).
        """
        n_measured = len(genes)
        a = (self.to_logits.weight @ genes.T).softmax(dim=1).view(self.n_heads, 1, self.n_tokens, n_measured)
        values = (self.to_values.weight @ genes.T).view(self.n_features, self.n_heads, self.head_dim, 1, n_measured)
        features = torch.log1p(counts), counts.clamp(max=1)
        parts = (phi @ (a * v).flatten(0, 2).T for phi, v in zip(features, values.unbind(0), strict=True))
        pooled = sum(parts, start=counts.new_zeros(()))
        return self.gain * pooled.view(len(counts), -1, self.n_tokens).transpose(1, 2)


class SetReadout(nn.Module):
    r"""From tokens to genes, linear in the tokens; equivariant to the order of the genes.

    .. math:: s_{bg} = \sqrt{M / (H d)} \sum_{hm} a_{hmg} \, u_{hg} \cdot y_{bhm}, \qquad
              a_{hmg} = \operatorname{softmax}_m (q_{hg} \cdot k_{hm}),

    with M tokens and H heads of width d. The key of a token is its address, learned; what the cell has to say goes
    through the values :math:`y`. The weights depend on genes and not on the cell, as those of :class:`SetPooling` do
    (linear in the counts: Deep Sets with learned weights); :class:`CrossAttentionReadout` has weights that do.

    Parameters
    ----------
    gene_dim
        Width of the gene embeddings.
    n_tokens, n_heads, head_dim
        Number of tokens, heads of the attention, and width of a head.

    Examples
    --------
    >>> import torch
    >>> from sclatent.nn import SetReadout
    >>> readout = SetReadout(gene_dim=16, n_tokens=8, n_heads=4, head_dim=8)
    >>> readout(torch.randn(100, 16), torch.randn(5, 8, 32)).shape  # a logit for each of 100 genes of 5 cells
    torch.Size([5, 100])
    """

    def __init__(self, gene_dim: int, n_tokens: int, n_heads: int, head_dim: int) -> None:
        super().__init__()
        self.n_tokens, self.n_heads, self.head_dim = n_tokens, n_heads, head_dim
        self.gain = math.sqrt(n_tokens / (n_heads * head_dim))
        self.to_logits = nn.Linear(gene_dim, n_heads * n_tokens, bias=False)  # q_hg . k_hm, folded into one matrix
        self.to_outputs = nn.Linear(gene_dim, n_heads * head_dim, bias=False)

    def forward(self, genes: Tensor, values: Tensor) -> Tensor:
        """Read values (cells, n_tokens, n_heads * head_dim) out at genes (n, gene_dim): logits (cells, n)."""
        n = len(genes)
        a = (self.to_logits.weight @ genes.T).view(self.n_heads, 1, self.n_tokens, n).softmax(dim=2)
        u = (self.to_outputs.weight @ genes.T).view(self.n_heads, self.head_dim, 1, n)
        return (self.gain * values).transpose(1, 2).flatten(1) @ (a * u).flatten(0, 2)
