"""The set autoencoder: a cell is a set of genes, its latent is a handful of tokens."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sclatent.nn import Block, CellSets, CrossAttentionPooling, CrossAttentionReadout, SetPooling, SetReadout

from ._likelihood import LIKELIHOODS

POOLINGS = {"linear": (SetPooling, SetReadout), "attention": (CrossAttentionPooling, CrossAttentionReadout)}


class SetAutoencoder(nn.Module):
    """Permutation-invariant encoder and permutation-equivariant decoder (scLDM, arXiv 2511.02986, section 3.1).

    genes and counts -> pooling -> self-attention blocks -> normalised tokens -> self-attention blocks -> readout at the
    genes -> parameters of a count distribution.

    Parameters
    ----------
    n_genes
        Number of genes that the model knows.
    n_batches
        Number of batches; the decoder is conditioned on the batch, so that the tokens need not carry it.
    n_tokens, token_dim
        Shape of the latent of a cell.
    width, n_blocks, n_heads
        Width of the transformer, number of its blocks on either side, and heads of every attention.
    gene_dim
        Width of the gene embeddings, of which encoder and decoder have one each; they start from the loadings of the
        genes (:func:`sclatent.data.gene_loadings`).
    gene_likelihood
        ``"nb"``, ``"zinb"``, ``"poisson"`` or ``"normal"``.
    variational
        Whether the encoder gives a normal distribution over tokens (for the paper's ELBO) and not tokens. Its mean and
        log standard deviation are linear in normalised features, and free to go to those of N(0, I); tokens themselves
        are normalised where there is no KL divergence.
    pooling
        How genes become tokens, and tokens genes. ``"linear"`` is linear in the counts: Deep Sets with learned weights
        (:class:`~sclatent.nn.SetPooling`, :class:`~sclatent.nn.SetReadout`). ``"attention"`` is the multi-head
        cross-attention of the paper, in which the weights depend on the cell
        (:class:`~sclatent.nn.CrossAttentionPooling`, :class:`~sclatent.nn.CrossAttentionReadout`).

    Examples
    --------
    >>> import torch
    >>> from sclatent.module import SetAutoencoder
    >>> from sclatent.nn import CellSets
    >>> autoencoder = SetAutoencoder(n_genes=100)
    >>> sets = CellSets(  # 2 cells, of which the first 60 genes were measured
    ...     panel=torch.arange(60),
    ...     cell=torch.tensor([0, 0, 1]),
    ...     column=torch.tensor([3, 7, 3]),
    ...     count=torch.tensor([2.0, 1.0, 4.0]),
    ...     n_cells=2,
    ... )
    >>> tokens = autoencoder.encode(sets)
    >>> tokens.shape
    torch.Size([2, 8, 16])
    >>> batch = torch.zeros(2, dtype=torch.int64)
    >>> autoencoder.decode(tokens, torch.arange(100), batch).shape  # at all genes
    torch.Size([2, 100])
    >>> nll, kl = autoencoder(sets, library=torch.tensor([3.0, 4.0]), batch=batch)
    >>> nll.shape
    torch.Size([2])
    """

    def __init__(
        self,
        n_genes: int,
        n_batches: int = 1,
        n_tokens: int = 8,
        token_dim: int = 16,
        width: int = 64,
        n_blocks: int = 2,
        n_heads: int = 4,
        gene_dim: int = 64,
        gene_likelihood: str = "nb",
        variational: bool = False,
        pooling: Literal["linear", "attention"] = "linear",
    ) -> None:
        super().__init__()
        if not isinstance(pooling, str) or pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling!r} is not known: use one of {list(POOLINGS)}.")
        if token_dim % n_heads:
            raise ValueError(f"token_dim={token_dim} must be a multiple of n_heads={n_heads}.")
        self.n_tokens, self.token_dim = n_tokens, token_dim
        pooled_dim = token_dim  # what a token reads from the genes and writes to them is as wide as the token
        head_dim = pooled_dim // n_heads
        self.genes_in = nn.Parameter(torch.randn(n_genes, gene_dim))
        self.genes_out = nn.Parameter(torch.randn(n_genes, gene_dim))
        self.gene_bias = nn.Parameter(torch.zeros(n_genes))
        self.likelihood = LIKELIHOODS[gene_likelihood](n_genes)

        pool, readout = POOLINGS[pooling]
        self.pooling = pool(gene_dim, n_tokens, n_heads, head_dim, n_genes)
        self.queries = nn.Parameter(0.02 * torch.randn(n_tokens, width))
        self.embed = nn.Linear(pooled_dim, width)
        self.encoder = nn.Sequential(*(Block(width, n_heads) for _ in range(n_blocks)), nn.LayerNorm(width))
        self.to_tokens = nn.Linear(width, token_dim)
        self.to_log_sd = nn.Linear(width, token_dim) if variational else None

        self.from_tokens = nn.Linear(token_dim, width)
        self.addresses = nn.Parameter(0.02 * torch.randn(n_tokens, width))
        self.batches = nn.Embedding(n_batches, width)
        nn.init.zeros_(self.batches.weight)
        self.decoder = nn.Sequential(*(Block(width, n_heads) for _ in range(n_blocks)), nn.LayerNorm(width))
        self.to_values = nn.Linear(width, pooled_dim)
        self.readout = readout(gene_dim, n_tokens, n_heads, head_dim)

    def _encode(self, sets: CellSets) -> tuple[Tensor, Tensor]:
        """Tokens, or the means of their distributions, (cells, n_tokens, token_dim), and the features behind them."""
        pooled = self.pooling(self.genes_in.index_select(0, sets.panel), sets.dense())  # (cells, n_tokens, pooled_dim)
        h = self.encoder(self.queries + self.embed(pooled))
        tokens = self.to_tokens(h)
        return F.layer_norm(tokens, (self.token_dim,)) if self.to_log_sd is None else tokens, h

    def encode(self, sets: CellSets) -> Tensor:
        """Encode cells as tokens, each with mean 0 and variance 1; if variational, as the means of their distributions.

        Parameters
        ----------
        sets
            The cells.

        Returns
        -------
        Tensor
            Tokens, (cells, n_tokens, token_dim).
        """
        return self._encode(sets)[0]

    def decode(self, tokens: Tensor, panel: Tensor, batch: Tensor) -> Tensor:
        """Decode tokens at some genes.

        Parameters
        ----------
        tokens
            As they are encoded, not standardised, (cells, n_tokens, token_dim).
        panel
            Genes, as positions among those of the model.
        batch
            Batch codes, (cells,).

        Returns
        -------
        Tensor
            Logits (cells, len(panel)), from which ``likelihood.mean(logits, library)`` makes the mean counts.
        """
        h = self.from_tokens(tokens) + self.addresses + self.batches(batch)[:, None]
        values = self.to_values(self.decoder(h))  # (cells, n_tokens, pooled_dim)
        return self.readout(self.genes_out.index_select(0, panel), values) + self.gene_bias.index_select(0, panel)

    def forward(
        self,
        sets: CellSets,
        library: Tensor,
        batch: Tensor,
        generator: torch.Generator | None = None,
        seen: CellSets | None = None,
        is_whole: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Reconstruct cells.

        Parameters
        ----------
        sets, library, batch
            Cells, their library sizes (cells,) and batch codes (cells,).
        generator
            Source of the noise on variational tokens; without it the tokens are the means.
        seen
            What the encoder sees of the cells, such as a part of their molecules; all by default.
        is_whole
            Whether library sizes are those of whole cells, of which genes that were not measured have a share, and not
            totals over the genes that were.

        Returns
        -------
        tuple[Tensor, Tensor]
            Negative log-likelihood and KL divergence of each cell, both (cells,); the latter is 0 unless variational.
        """
        tokens, h = self._encode(sets if seen is None else seen)
        kl = tokens.new_zeros(len(tokens))
        if self.to_log_sd is not None:
            log_sd = self.to_log_sd(h).clamp(-7, 2)
            kl = 0.5 * (tokens.square() + torch.exp(2 * log_sd) - 1 - 2 * log_sd).sum(dim=(1, 2))  # to N(0, I)
            if generator is not None:
                noise = torch.randn(tokens.shape, generator=generator, device=tokens.device)
                tokens = tokens + log_sd.exp() * noise
        if is_whole and len(sets.panel) < len(self.gene_bias):
            logits = self.decode(tokens, torch.arange(len(self.gene_bias), device=tokens.device), batch)
            measured = logits.index_select(1, sets.panel)
            library = library * (measured.logsumexp(dim=1) - logits.logsumexp(dim=1)).exp()
            logits = measured
        else:
            logits = self.decode(tokens, sets.panel, batch)
        with torch.autocast(logits.device.type, enabled=False):  # sums over all genes need all digits
            return -self.likelihood.log_prob(logits.float(), library, sets), kl
