"""Models of counts: how they are set up, and what the decoder says of measured cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.stats import norm

from sclatent.baseline import MixedModel
from sclatent.data import (
    check_adata,
    check_counts,
    check_library_size,
    check_number,
    check_place,
    check_seed,
    check_size_factors,
    check_var_names,
    check_whole,
    get_matrix,
    make_loader,
    raw_counts_hint,
    short_repr,
)
from sclatent.domain import CountDomain
from sclatent.module import CellDiffusion

from ._columns import ConditionKeys, check_columns
from ._latent_diffusion_model import LatentDiffusionModel


class CountModel(LatentDiffusionModel):
    """A latent diffusion model of counts of genes."""

    DOMAIN = CountDomain

    domain: CountDomain
    module: CellDiffusion

    def __init__(self, adata: AnnData | None, registry: dict[str, Any] | None, *, seed: int, **params: Any) -> None:
        super().__init__(adata, registry, seed=seed, **params)
        if params.get("gene_effects") and self.conditions.keys and self.module.denoiser.has_baseline:
            self.module.gene_means = MixedModel(self.conditions.n_levels, len(self.genes), of=self.conditions.of)
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
        condition_keys: ConditionKeys = None,
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
            One or more columns of obs to condition on, such as cell type and perturbation. They are categories, whose
            levels are text, numbers or booleans; or a dict of a kind for each column, of :mod:`sclatent.conditions`:
            sets of members, numbers, and levels with features can be asked for although no cell has them.
        batch_key
            Categorical column of obs that the decoder is conditioned on, so that the latent need not carry it. If it is
            one of ``condition_keys``, too, cells are decoded under the batch that is asked for.
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
            adata, condition_keys, batch_key, size_factor_key=size_factor_key, written=cls.DOMAIN.WRITTEN,
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
            **keys,
            "batch_key": batch_key,
            "size_factor_key": size_factor_key,
            "is_count_data": bool(is_count_data),
        }
        cls._register(adata, setup_args, **kwargs)

    def predict_profile(
        self, conditions: Any, n_cells: int | None = None, features: Mapping[str, pd.DataFrame] | None = None
    ) -> pd.DataFrame:
        r"""Predict the mean expression of a combination of conditions, and how sure that is, without sampling.

        The prediction is that of a linear mixed model of the genes (:class:`~sclatent.baseline.MixedModel`), of the
        logarithm of 1 + mean counts per 10,000; of log-normalised values their mean. The standard deviation is that of
        the error of the best linear unbiased prediction (Henderson 1975), gene by gene, with variances of genes that
        are moderated by empirical Bayes (Smyth 2004). It takes the variance components as known.

        Parameters
        ----------
        conditions
            One combination, as in :meth:`sample`; keys that are not given are null.
        n_cells
            Number of cells that a measured mean is taken over: its sampling noise is added. By default none is.
        features
            Features of levels, or members of sets, that training has not, by key, as in :meth:`sample`.

        Returns
        -------
        pd.DataFrame
            One row per gene: ``mean`` and ``sd``.

        Raises
        ------
        RuntimeError
            If the model is not trained, or has no mixed model of the genes.

        Examples
        --------
        >>> profile = model.predict_profile({"cell_type": "B cells", "condition": "stimulated"})
        >>> profile.columns.tolist(), len(profile)
        (['mean', 'sd'], 100)
        """
        self._add_features(features)
        codes = self._codes_to_predict(conditions, "predict_profile")
        model, values = self._gene_means, self.conditions.values()
        variance = max(float(model.covariance(codes, values)[0, 0]), 0.0)
        if n_cells is not None:
            variance += self._noise_of_cell() / check_whole("n_cells", n_cells)
        sd = np.sqrt(variance * model.outcome_scale.cpu().numpy())
        return pd.DataFrame({"mean": model.predict(codes, values)[0], "sd": sd}, index=self.genes)

    def predict_change(
        self,
        conditions: Any,
        control: Any,
        level: float = 0.9,
        features: Mapping[str, pd.DataFrame] | None = None,
    ) -> pd.DataFrame:
        """Predict how mean expression differs between two combinations of conditions, gene by gene.

        Parameters
        ----------
        conditions, control
            Two combinations, as in :meth:`predict_profile`.
        level
            Probability that the interval holds the true change.
        features
            As in :meth:`predict_profile`.

        Returns
        -------
        pd.DataFrame
            One row per gene, the most certain change first: ``change`` (of the logarithm of 1 + mean counts per 10,000;
            :func:`~sclatent.metrics.evaluate_perturbation` has the mean of the logarithm), ``sd``, ``lower``, ``upper``
            and ``z``, the change in standard deviations, infinite where these are 0.

        Examples
        --------
        >>> treated, control = ({"cell_type": "B cells", "condition": c} for c in ("stimulated", "control"))
        >>> change = model.predict_change(treated, control)
        >>> bool((change["lower"] < change["upper"]).all())
        True
        """
        self._add_features(features)
        level = check_number("level", level, high=1, above=True)
        codes = np.vstack([self._codes_to_predict(c, "predict_change") for c in (conditions, control)])
        model, values = self._gene_means, self.conditions.values()
        one, other = model.predict(codes, values).astype(float)
        covariance = model.covariance(codes, values)
        variance = max(float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]), 0.0)
        sd = np.sqrt(variance * model.outcome_scale.cpu().numpy())
        reach = norm.ppf((1 + level) / 2) * sd
        change = one - other
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(change == 0, 0.0, change / sd)
        table = {"change": change, "sd": sd, "lower": change - reach, "upper": change + reach, "z": z}
        frame = pd.DataFrame(table, index=self.genes)
        return frame.iloc[np.argsort(-np.abs(z), kind="stable")]

    @property
    def _model_of_means(self) -> MixedModel | None:
        return self.module.gene_means or super()._model_of_means

    @property
    def _gene_means(self) -> MixedModel:
        model = self.module.gene_means
        if model is None:
            raise RuntimeError(
                "This model has no mixed model of genes: make it with conditions, a baseline and gene_effects=True."
            )
        return model

    def _codes_to_predict(self, conditions: Any, method: str) -> np.ndarray:
        """Condition codes (1, n_keys) of the denoiser."""
        self._check_stage("diffusion", method)
        codes = self.conditions.encode(conditions)
        if len(codes) != 1:
            raise ValueError(f"conditions={short_repr(conditions)} has {len(codes)} rows: give one combination.")
        return self.conditions.without_dose(codes)

    def _noise_of_cell(self) -> float:
        """Variance of a cell around the mean of its combination, of genes on average."""
        noise, training = self._gene_means.noise, self.batches.training
        assert training is not None
        _, n = np.unique(self.conditions.without_dose(training.codes), axis=0, return_counts=True)
        return float(noise[0]) * int(n[0])

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

    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int = 1024,
        seed: int = 0,
    ) -> AnnData:
        """Encode cells, and draw their counts anew from the decoder.

        Cells that were held out, encoded and decoded, bound what :meth:`sample` can reach with this autoencoder.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        seed
            Seed of the draws.

        Returns
        -------
        AnnData
            The same cells, with their ``obs``, over the genes of training.

        Examples
        --------
        >>> drawn = model.posterior_predictive_sample(adata[:5])
        >>> drawn.shape, drawn.obs_names.equals(adata[:5].obs_names)
        ((5, 100), True)
        """
        self._check_stage("autoencoder", "posterior_predictive_sample")
        check_seed(seed)
        origin, rows = self._given(adata), self._rows(adata, indices)
        blocks, libraries = [], []
        for cells in self._blocks(len(rows), batch_size, "Drawing", progress_bar=False):
            batch = rows[cells]
            libraries.append(self.domain.library_of(self.module, batch))
            expected = libraries[-1][:, None] * self.domain.share(self.module, batch)
            blocks.append(self.domain.draw(self.module, expected, seed, cells))
        result = self.domain.collect(blocks, self._obs_of(origin, rows.cells), np.concatenate(libraries))
        result.uns["sclatent"] = self._provenance("posterior_predictive_sample", seed=seed)
        return result

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
