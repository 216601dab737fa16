"""Models of counts: how they are set up, and what the decoder says of measured cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from sclatent.data import (
    check_adata,
    check_counts,
    check_library_size,
    check_place,
    check_size_factors,
    check_var_names,
    get_matrix,
    make_loader,
    raw_counts_hint,
    short_repr,
)
from sclatent.domain import CountDomain
from sclatent.module import CellDiffusion

from ._columns import check_columns
from ._latent_diffusion_model import LatentDiffusionModel


class CountModel(LatentDiffusionModel):
    """A latent diffusion model of counts of genes."""

    DOMAIN = CountDomain

    domain: CountDomain
    module: CellDiffusion

    def __init__(self, adata: AnnData | None, registry: dict[str, Any] | None, *, seed: int, **params: Any) -> None:
        super().__init__(adata, registry, seed=seed, **params)
        if adata is not None and self.registry["setup_args"]["size_factor_key"] is not None:
            self.domain.fit_size_factors(self._rows())

    @property
    def genes(self) -> pd.Index:
        """Names of the genes, in the order in which they are generated."""
        return self.domain.genes

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        condition_keys: Sequence[str] | str | None = None,
        batch_key: str | None = None,
        size_factor_key: str | None = None,
        is_count_data: bool = True,
        **kwargs: Any,
    ) -> None:
        """Tell the model where things are in an AnnData; the counts are checked, and stay where they are.

        Parameters
        ----------
        adata
            Cells x genes; sparse, dense, backed, or a dask array of sparse or dense chunks. A view is turned into an
            AnnData of its own, in place.
        layer
            Layer with the raw counts; X by default.
        condition_keys
            One or more categorical columns of obs to condition on, such as cell type and perturbation. Levels are text,
            numbers or booleans.
        batch_key
            Categorical column of obs that the decoder is told, so that the latent need not carry it. If it is one of
            ``condition_keys``, too, cells are decoded under the batch that is asked for.
        size_factor_key
            Column of obs with size factors, in any unit; by default the library size is the total count of the cell.
        is_count_data
            Whether the values are raw counts. ``False`` is for log-normalised values and ``gene_likelihood="normal"``.
        kwargs
            Further arguments of ``scvi.data.AnnDataManager.register_fields``, which scvi-tools gives.

        Raises
        ------
        KeyError
            If a layer or a column is missing.
        ValueError
            If the data are not what was expected. Nothing has been changed then.

        Examples
        --------
        >>> adata = sclatent.datasets.simulate(200, 100, n_batches=2)
        >>> adata.layers["counts"] = adata.X.copy()
        >>> SCLDM.setup_anndata(adata, layer="counts", condition_keys=["cell_type", "condition"], batch_key="batch")
        >>> SCLDM(adata).conditions.levels["condition"]
        ['control', 'stimulated']
        """
        check_adata(adata)
        check_place(layer=layer)
        if not isinstance(is_count_data, bool | np.bool_):
            raise ValueError(f"is_count_data={short_repr(is_count_data)} must be True or False.")
        check_var_names(adata)
        keys, _ = check_columns(
            adata.obs, condition_keys, batch_key, size_factor_key=size_factor_key, written=cls.DOMAIN.WRITTEN,
            is_query="source_registry" in kwargs,
        )  # fmt: skip
        if size_factor_key is not None:
            check_size_factors(adata.obs, size_factor_key)
        where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
        try:
            check_counts(get_matrix(adata, layer), where, is_count_data=is_count_data)
        except ValueError as error:
            hint = "" if "without any counts" in str(error) else raw_counts_hint(adata)
            raise ValueError(f"{error}{hint}") from error
        setup_args = {
            "layer": layer,
            "condition_keys": keys,
            "batch_key": batch_key,
            "size_factor_key": size_factor_key,
            "is_count_data": bool(is_count_data),
        }
        cls._register(adata, setup_args, **kwargs)

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
            share = self.domain.share(self.module, batch)
            if self.domain.is_count:  # log-normalised values have no library size
                library = self.domain.library_of(self.module, batch) if is_observed else float(library_size)
                share = np.reshape(library, (-1, 1)) * share
            means.append(share[:, columns].astype(np.float32))
        result = np.concatenate(means)
        if return_numpy:
            return result
        index = self._given(adata).obs_names[rows.cells]
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
