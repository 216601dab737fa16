"""Multi-head cross-attention between the genes of a cell and its tokens, with weights that depend on the cell."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class CrossAttentionPooling(nn.Module):
    r"""From genes to tokens: learned queries attend to the expressed genes of a cell (scLDM, arXiv 2511.02986, MCAB).

    Token m of cell b receives, in head h,

    .. math:: y_{bhm} = \sqrt{G} \sum_{g \in S_b} a_{bhmg} \, v_{bhg}, \qquad
              a_{bhmg} = \operatorname{softmax}_{g \in S_b} (q_{hm} \cdot k_{bhg} / \sqrt d), \qquad
              (k, v)_{bhg} = \sum_{i=0}^{2} \varphi_i(c_{bg}) (W_{ih} e_g + w_{ih}),

    where :math:`S_b` are the genes with a count above zero, :math:`e_g` is the embedding of a gene and d the width of a
    head. Keys and values are linear in the embedding, with a shift and a scale that the count gives by the features
    :math:`\varphi_0 = 1`, :math:`\varphi_1 = \ln(1 + c_{bg})` and :math:`\varphi_2 = \ln(1 + c_{bg} / \bar c_b)`, with
    :math:`\bar c_b` the mean count of the cell over the measured genes. So the weights depend on the cell, and no norm
    follows the counts, so the encoder sees magnitudes. The factor (G genes in training) is that of :class:`SetPooling`.
    Invariant to the order of the genes.

    One more element stands for the panel: the mean embedding of all genes that were measured, with a count of 0. By it
    a gene that was measured as zero differs from one that was not measured, and a cell without any counts has something
    to attend to.

    Cells are padded to the largest number of expressed genes in the minibatch, and the padding is masked. The largest
    tensors are of cells x expressed genes x ``2 * n_heads * head_dim``.

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
    Other cells of a minibatch do not matter, even if these have more genes:

    >>> import torch
    >>> from sclatent.nn import CrossAttentionPooling
    >>> pooling = CrossAttentionPooling(gene_dim=16, n_tokens=8, n_heads=4, head_dim=8, n_genes=100)
    >>> genes, counts = torch.randn(100, 16), torch.poisson(torch.ones(5, 100))
    >>> tokens = pooling(genes, counts)
    >>> tokens.shape
    torch.Size([5, 8, 32])
    >>> torch.allclose(pooling(genes, counts[:1]), tokens[:1], atol=1e-4)
    True
    """

    n_features = 3

    def __init__(self, gene_dim: int, n_tokens: int, n_heads: int, head_dim: int, n_genes: int) -> None:
        super().__init__()
        self.n_heads, self.head_dim = n_heads, head_dim
        self.gain = math.sqrt(n_genes)
        self.queries = nn.Parameter(torch.randn(n_heads, n_tokens, head_dim))
        self.to_keys_values = nn.Linear(gene_dim, self.n_features * 2 * n_heads * head_dim)

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
        column, count, is_there = self._padded(counts)
        relative = len(genes) * count / counts.sum(dim=1, keepdim=True).clamp(min=1e-12)
        features = torch.ones_like(count), torch.log1p(count), torch.log1p(relative)
        # keys and values of all genes for each feature, (n_features, n_measured + 1, 2 * heads * head_dim)
        tables = self.to_keys_values(torch.cat([genes, genes.mean(dim=0, keepdim=True)])).chunk(self.n_features, dim=1)
        # index_select, whose gradient is far cheaper than that of indexing
        parts = (table.index_select(0, column.flatten()).view(*column.shape, -1) for table in tables)
        keys_values = sum(phi[..., None] * part for phi, part in zip(features, parts, strict=True))
        # (2, cells, heads, elements, head_dim)
        k, v = keys_values.view(*column.shape, 2, self.n_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q = self.queries.to(k.dtype).expand(len(counts), -1, -1, -1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=is_there[:, None, None])
        return self.gain * y.transpose(1, 2).flatten(2)

    @staticmethod
    def _padded(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Columns, counts and mask of the elements of every cell, (cells, 1 + most expressed genes) each.

        The first element is the panel, of column n_measured, as are those of the padding; their counts are 0.
        """
        n_measured, is_expressed = counts.shape[1], counts > 0
        n_expressed = is_expressed.sum(dim=1)
        cell, column = is_expressed.nonzero(as_tuple=True)  # by cell
        before = n_expressed.cumsum(0) - n_expressed
        slot = 1 + torch.arange(len(cell), device=cell.device) - before.index_select(0, cell)
        shape = len(counts), 1 + (int(n_expressed.max()) if len(counts) else 0)
        columns = column.new_full(shape, n_measured).index_put_((cell, slot), column)
        padded = counts.new_zeros(shape).index_put_((cell, slot), counts[cell, column])
        return columns, padded, torch.arange(shape[1], device=cell.device) <= n_expressed[:, None]


class CrossAttentionReadout(nn.Module):
    r"""From tokens to genes: every gene attends to the tokens of the cell; equivariant to the order of the genes.

    .. math:: s_{bg} = \sqrt{M / (H d)} \sum_{hm} a_{bhmg} \, u_{hg} \cdot v_{bhm}, \qquad
              a_{bhmg} = \operatorname{softmax}_m (q_{hg} \cdot k_{bhm} / \sqrt d),

    with M tokens and H heads of width d. Queries q and outputs u come from the gene embeddings, keys k and values v
    from the tokens of the cell, so the weights depend on the cell. Genes are read a block at a time, so that no tensor
    of cells x heads x tokens x genes has more than ``max_elements`` numbers; where there are several blocks, each is
    computed again for its gradient.

    Parameters
    ----------
    gene_dim
        Width of the gene embeddings.
    n_tokens, n_heads, head_dim
        Number of tokens, heads of the attention, and width of a head.

    Examples
    --------
    >>> import torch
    >>> from sclatent.nn import CrossAttentionReadout
    >>> readout = CrossAttentionReadout(gene_dim=16, n_tokens=8, n_heads=4, head_dim=8)
    >>> readout(torch.randn(100, 16), torch.randn(5, 8, 32)).shape  # a logit for each of 100 genes of 5 cells
    torch.Size([5, 100])
    """

    max_elements = 2**23

    def __init__(self, gene_dim: int, n_tokens: int, n_heads: int, head_dim: int) -> None:
        super().__init__()
        self.n_tokens, self.n_heads, self.head_dim = n_tokens, n_heads, head_dim
        self.gain = math.sqrt(n_tokens / (n_heads * head_dim))
        self.to_queries = nn.Linear(gene_dim, n_heads * head_dim, bias=False)
        self.to_outputs = nn.Linear(gene_dim, n_heads * head_dim, bias=False)
        self.to_keys_values = nn.Linear(n_heads * head_dim, 2 * n_heads * head_dim)

    def forward(self, genes: Tensor, tokens: Tensor) -> Tensor:
        """Read tokens (cells, n_tokens, n_heads * head_dim) out at genes (n, gene_dim): logits (cells, n)."""
        by_head = -1, self.n_heads, self.head_dim
        q, u = (to(genes).view(by_head).permute(1, 2, 0) for to in (self.to_queries, self.to_outputs))  # (heads, d, n)
        k, v = self.to_keys_values(tokens).view(-1, self.n_tokens, 2, *by_head[1:]).permute(2, 0, 3, 1, 4)
        width = max(1, self.max_elements // max(1, len(tokens) * self.n_heads * self.n_tokens))
        blocks = list(zip((q / math.sqrt(self.head_dim)).split(width, dim=2), u.split(width, dim=2), strict=True))
        if len(blocks) == 1 or not torch.is_grad_enabled():
            logits = [self._read(*block, k, v) for block in blocks]
        else:
            logits = [
                checkpoint(self._read, *block, k, v, use_reentrant=False, preserve_rng_state=False) for block in blocks
            ]
        return self.gain * torch.cat(logits, dim=1)

    @staticmethod
    def _read(q: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Logits (cells, n) of a block of genes.

        Queries and outputs are (heads, d, n), keys and values of tokens (cells, heads, n_tokens, d). Genes are last, so
        that every operation runs along memory: some three times as fast on a CPU as scaled_dot_product_attention, the
        queries of which are the genes.
        """
        a = (k @ q).softmax(dim=2)  # (cells, heads, n_tokens, n)
        return (a * (v @ u)).sum(dim=(1, 2))
