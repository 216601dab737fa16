"""What SCLDM says of measured cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from sclatent.data import (
    CellBatch,
    CellRows,
    check_library_size,
    log_normalize_counts,
    make_loader,
    short_repr,
)


class DescriptionMixin:
    """Latent representation, denoised expression, reconstruction error."""

    @torch.inference_mode()
    def _encode_batch(self, batch: CellBatch) -> Tensor:
        return self.module.autoencoder.encode(batch.to(self.device).sets)

    def _encode(self, rows: CellRows, batch_size: int, progress_bar: bool = False) -> Tensor:
        blocks = self._blocks(len(rows), batch_size, "Tokens", progress_bar, delay=2)
        return torch.cat([self._encode_batch(rows[cells]).cpu() for cells in blocks])

    def _share(self, batch: CellBatch) -> np.ndarray:
        """Share that every gene has of a cell, (cells, genes), by its own tokens."""
        tokens = self.module.standardize(self._encode_batch(batch))
        return self._mean(tokens, batch.batch.numpy(), np.ones(len(batch)))

    @staticmethod
    def _whole_library(batch: CellBatch, share: np.ndarray) -> np.ndarray:
        """Library sizes of whole cells, (cells,): a total over a part of the genes leaves out the counts of others."""
        measured = 1.0 if batch.is_whole else share[:, batch.sets.panel.numpy()].sum(axis=1)
        return batch.library.numpy().astype(np.float64) / measured

    def get_latent_representation(
        self, adata: AnnData | None = None, indices: Sequence[int] | None = None, batch_size: int = 1024
    ) -> np.ndarray:
        """Encode cells.

        Parameters
        ----------
        adata
            Cells; the training data by default. Genes are aligned by name; those the model does not find count as not
            measured.
        indices
            Rows to encode; all by default.
        batch_size
            Cells computed together.

        Returns
        -------
        np.ndarray
            Tokens of each cell side by side, (cells, n_tokens * token_dim).

        Examples
        --------
        >>> adata.obsm["X_sclatent"] = model.get_latent_representation()
        >>> adata.obsm["X_sclatent"].shape  # 8 tokens of 16
        (200, 128)

        Cells that were measured on a part of the genes can be encoded, too:

        >>> model.get_latent_representation(adata[:, :60]).shape
        (200, 128)
        """
        self._check_stage("autoencoder", "get_latent_representation")
        return self._encode(self._rows(adata, indices, batch=False), batch_size).flatten(1).numpy()

    def get_features(self, adata: AnnData | None = None, indices: Sequence[int] | None = None) -> np.ndarray:
        """Read the expression of cells, as other methods compare it: the logarithm of 1 + counts per 10,000.

        Parameters
        ----------
        adata, indices
            As in :meth:`get_latent_representation`.

        Returns
        -------
        np.ndarray
            (cells, n_measured), float32; log-normalised values as they are.

        Examples
        --------
        >>> model.get_features(adata[:3]).shape
        (3, 100)
        """
        rows = self._rows(adata, indices, batch=False)
        values = rows.rows(np.arange(len(rows)))
        if self.module.autoencoder.likelihood.is_count:
            values = log_normalize_counts(values)
        return values.toarray().astype(np.float32)

    def _size_of(self, batch: CellBatch) -> Tensor:
        return self._size(self._whole_library(batch, self._share(batch)))

    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | str | None = None,
        library_size: float | Literal["observed"] = 1.0,
        batch_size: int = 1024,
        return_numpy: bool = False,
    ) -> pd.DataFrame | np.ndarray:
        """Denoise cells: the mean that the decoder gives for each gene.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        gene_list
            Gene or genes to return; all by default.
        library_size
            Total to scale each cell to, a number up to 1e12, or ``"observed"`` for its own. Of cells that were measured
            on a part of the genes, the observed total is that of this part, and the other genes come on top.
        return_numpy
            Whether to return an array and not a DataFrame.

        Returns
        -------
        pd.DataFrame | np.ndarray
            Mean expression, (cells, genes). With ``gene_likelihood="normal"`` the mean of the log-normalised values.

        Examples
        --------
        >>> denoised = model.get_normalized_expression(library_size=1e4)
        >>> denoised.shape
        (200, 100)
        >>> denoised.sum(axis=1).round(-1).unique().tolist()
        [10000.0]
        """
        self._check_stage("autoencoder", "get_normalized_expression")
        is_observed = isinstance(library_size, str) and library_size == "observed"
        if not is_observed:
            check_library_size(library_size, instead=', or "observed"')
        genes = self._genes_of(gene_list)
        rows = self._rows(adata, indices)
        columns = self.genes.get_indexer(genes)
        means = []
        for batch in make_loader(rows, batch_size):
            share = self._share(batch)
            if self.module.autoencoder.likelihood.is_count:  # log-normalised values have no library size
                library = self._whole_library(batch, share) if is_observed else float(library_size)
                share = np.reshape(library, (-1, 1)) * share
            means.append(share[:, columns].astype(np.float32))
        result = np.concatenate(means)
        if return_numpy:
            return result
        index = (self.adata if adata is None else adata).obs_names[rows.cells]
        return pd.DataFrame(result, index=index, columns=genes)

    def _genes_of(self, gene_list: Sequence[str] | str | None) -> pd.Index:
        """Names of genes that were asked for; raises if the model does not know one."""
        if gene_list is None:
            return self.genes
        try:
            genes = pd.Index([gene_list] if isinstance(gene_list, str) else gene_list)
        except (TypeError, ValueError) as error:
            raise ValueError(f"gene_list={short_repr(gene_list)} must be a name of a gene, or several.") from error
        unknown = genes[~genes.isin(self.genes)]
        if len(unknown) or genes.empty:
            what = f"{unknown[0]!r} is no gene of this model" if len(unknown) else "no gene is named"
            raise ValueError(f"gene_list: {what}: its genes are {short_repr(list(self.genes[:5]))} and others.")
        return genes

    @torch.inference_mode()
    def get_reconstruction_error(
        self, adata: AnnData | None = None, indices: Sequence[int] | None = None, batch_size: int = 1024
    ) -> dict[str, float]:
        """Negative log-likelihood of cells given their own tokens.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.

        Returns
        -------
        dict[str, float]
            ``{"reconstruction_loss": mean over the cells}``, in nats a cell, over the genes that were measured.

        Examples
        --------
        >>> held_out = adata[model.validation_indices_]
        >>> error = model.get_reconstruction_error(held_out)
        >>> error["reconstruction_loss"] > 0
        True
        """
        self._check_stage("autoencoder", "get_reconstruction_error")
        rows = self._rows(adata, indices)
        total = 0.0
        for batch in make_loader(rows, batch_size):
            batch = batch.to(self.device)
            nll, _ = self.module.autoencoder(batch.sets, batch.library, batch.batch, is_whole=batch.is_whole)
            total += float(nll.double().sum())
        return {"reconstruction_loss": total / len(rows)}
