"""SCLDM: latent diffusion of single-cell counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data.fields import AnnDataField, NumericalObsField
from torch import Tensor

from sclatent.baseline import Baseline
from sclatent.data import (
    CellRows,
    Conditions,
    LibrarySizes,
    TrainingBatches,
    align_genes,
    by_rows,
    check_adata,
    check_categorical,
    check_counts,
    check_keys,
    check_levels,
    check_no_empty_level,
    check_place,
    check_roles,
    check_size_factors,
    check_var_names,
    get_matrix,
    is_number,
    raw_counts_hint,
    short_repr,
    warn_of_copies,
)
from sclatent.diffusion import PROCESSES
from sclatent.module import LIKELIHOODS, POOLINGS, CellDiffusion, DiT, ResidualDenoiser, SetAutoencoder, Standardize
from sclatent.nn import OPEN

from ._scldm_description import DescriptionMixin
from ._scldm_generation import GenerationMixin
from ._scldm_training import TrainingMixin
from .base import CHANGED, StagedModel, check_baseline, check_seed, check_sizes, initial_weights
from .base._fields import KnownConditionsField, KnownLayerField, KnownLevelsField
from .base._schema import FLAG, LEVELS, NAME, NAMES, POSITIVE, check, check_codes, dict_of, list_of, optional

CONDITIONS_KEY = "conditions"
WRITTEN = ("library_size",)  # columns of obs that cells of sample() have besides conditions and batch


class SCLDM(TrainingMixin, GenerationMixin, DescriptionMixin, StagedModel):
    r"""Latent diffusion of single-cell counts (scLDM, arXiv 2511.02986).

    A cell is a set of (gene, count). A set autoencoder turns it into a few tokens and back; a Diffusion Transformer
    learns how the tokens are distributed under the conditions of the cells; guidance and counterfactuals steer it.

    Parameters
    ----------
    adata
        AnnData that was set up by :meth:`setup_anndata`.
    n_tokens, token_dim
        Shape of the latent of a cell.
    width, n_blocks
        Width of the autoencoder's transformer and number of its blocks on either side.
    n_heads
        Heads of every attention.
    gene_likelihood
        ``"nb"`` (negative binomial), ``"zinb"`` (zero-inflated), ``"poisson"``, or ``"normal"`` for log-normalised
        data (set up with ``is_count_data=False``).
    kl_weight
        Weight of the KL divergence from N(0, I) in the loss of the autoencoder: 1 is the ELBO of the paper; 0 is a
        plain autoencoder, the tokens of which are layer-normalised instead.
    denoiser_width, denoiser_blocks
        Width and number of blocks of the Diffusion Transformer.
    baseline
        The closed form that the Diffusion Transformer is added to: ``"mixed"``, a linear mixed model of the mean tokens
        of conditions (:class:`~sclatent.baseline.MixedModel`) with their covariance around it; ``"additive"``, the same
        without interactions; or ``"none"``, the network of the paper alone.
    pooling
        How the autoencoder turns genes into tokens and back: ``"linear"``, linear in the counts (Deep Sets with learned
        weights), or ``"attention"``, the multi-head cross-attention of the paper, in which the weights depend on the
        cell; slower on a CPU (:class:`~sclatent.module.SetAutoencoder`).
    process
        How noise comes to tokens: ``"linear"``, straight paths (:class:`~sclatent.diffusion.LinearFlow`), as in the
        paper, or ``"variance_preserving"`` (:class:`~sclatent.diffusion.VariancePreserving`).
    seed
        Seed of the initial weights.
    registry
        Registry of a saved model, in place of ``adata``; used by :meth:`load`.

    Attributes
    ----------
    genes
        Names of the genes, in the order in which they are generated.
    conditions
        Condition keys and their levels, ``conditions.levels["cell_type"]`` (:class:`~sclatent.data.Conditions`).
    module
        The networks (:class:`~sclatent.module.CellDiffusion`).
    history
        Losses of every epoch, a table a metric, such as ``history["diffusion_loss_validation"]``.
    train_indices_
        Rows of the training data that the model was trained on; not saved with the model, and an error once there are
        other cells in the AnnData.
    validation_indices_
        Rows on which the loss was watched; none with ``train_size=1``.
    trained_stages
        Names of the stages of training that are done.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.model import SCLDM
    >>> adata = sclatent.datasets.simulate(200, 100, cell_types=["B cells", "T cells"])  # raw counts in X
    >>> SCLDM.setup_anndata(adata, condition_keys=["cell_type", "condition"])
    >>> model = SCLDM(adata)
    >>> model.train(max_epochs=1)  # only to show how it is done: leave max_epochs out for a good model

    New cells, under conditions of your choice:

    >>> cells = model.sample(50, {"cell_type": "B cells", "condition": "stimulated"}, seed=0)
    >>> cells.shape, cells.obs.columns.tolist()
    ((50, 100), ['cell_type', 'condition', 'library_size'])

    Measured cells, moved to another condition row by row:

    >>> control = adata[adata.obs["condition"] == "control"].copy()
    >>> moved = model.counterfactual(control, {"condition": "stimulated"}, seed=0)
    >>> moved.obs["condition"].value_counts().to_dict()
    {'stimulated': 100, 'control': 0}

    An embedding, for neighbours and a UMAP by scanpy:

    >>> adata.obsm["X_sclatent"] = model.get_latent_representation()
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        n_tokens: int = 8,
        token_dim: int = 16,
        width: int = 64,
        n_blocks: int = 2,
        n_heads: int = 4,
        gene_likelihood: Literal["nb", "zinb", "poisson", "normal"] = "nb",
        kl_weight: float = 0.0,
        denoiser_width: int = 128,
        denoiser_blocks: int = 4,
        baseline: Baseline = "mixed",
        pooling: Literal["linear", "attention"] = "linear",
        process: Literal["linear", "variance_preserving"] = "linear",
        seed: int = 0,
        registry: dict[str, Any] | None = None,
    ) -> None:
        if adata is None and registry is None:
            raise ValueError(
                "adata is missing: give an AnnData that was set up by SCLDM.setup_anndata, or use SCLDM.load."
            )
        check_sizes(n_tokens=n_tokens, token_dim=token_dim, width=width, n_blocks=n_blocks, n_heads=n_heads)
        check_sizes(denoiser_width=denoiser_width, denoiser_blocks=denoiser_blocks)
        for name, value in {"token_dim": token_dim, "width": width, "denoiser_width": denoiser_width}.items():
            if value % n_heads:
                raise ValueError(f"{name}={value!r} must be a multiple of n_heads={n_heads!r}.")
        check_seed(seed)
        if not (is_number(kl_weight) and kl_weight >= 0):
            raise ValueError(f"kl_weight={kl_weight!r} must be 0 (a plain autoencoder) or above.")
        if not isinstance(gene_likelihood, str) or gene_likelihood not in LIKELIHOODS:
            raise ValueError(f"gene_likelihood={gene_likelihood!r} is not known: use one of {list(LIKELIHOODS)}.")
        check_baseline(baseline)
        if not isinstance(pooling, str) or pooling not in POOLINGS:
            raise ValueError(f"pooling={short_repr(pooling)} is not known: use one of {list(POOLINGS)}.")
        if not isinstance(process, str) or process not in PROCESSES:
            raise ValueError(f"process={short_repr(process)} is not known: use one of {list(PROCESSES)}.")
        if adata is not None:
            check_adata(adata)
        super().__init__(adata, registry)
        setup = self.registry["setup_args"]
        is_count = LIKELIHOODS[gene_likelihood].is_count
        if is_count != setup["is_count_data"]:
            raise ValueError(
                f"gene_likelihood={gene_likelihood!r} needs {'raw counts' if is_count else 'log-normalised values'}: "
                f"call SCLDM.setup_anndata with is_count_data={is_count} and such data."
            )
        self.init_params_ = {
            "n_tokens": n_tokens,
            "token_dim": token_dim,
            "width": width,
            "n_blocks": n_blocks,
            "n_heads": n_heads,
            "gene_likelihood": gene_likelihood,
            "kl_weight": kl_weight,
            "denoiser_width": denoiser_width,
            "denoiser_blocks": denoiser_blocks,
            "baseline": baseline,
            "pooling": pooling,
            "process": process,
            "seed": seed,
        }
        self.process = PROCESSES[process]()
        self.genes = pd.Index(self._state(REGISTRY_KEYS.X_KEY)["column_names"]).astype(str)
        self.conditions = Conditions(self._state(CONDITIONS_KEY).get("mappings", {}))
        self.batches = Conditions({"batch": list(self._state(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"])}, "batch")
        with initial_weights(seed, "autoencoder"):
            autoencoder = SetAutoencoder(
                len(self.genes), self.batches.n_levels[0], n_tokens, token_dim, width, n_blocks, n_heads,
                gene_likelihood=gene_likelihood, variational=kl_weight > 0, pooling=pooling,
            )  # fmt: skip
        self.module = CellDiffusion(autoencoder, Standardize(n_tokens, token_dim), self._seeded_denoiser())
        self.size_factor_scale = 1.0
        self.library_sizes: LibrarySizes | None = None
        self._start()
        self._model_summary_string = (
            f"SCLDM with {len(self.genes)} genes, conditions {self.conditions.keys}, {n_tokens} tokens of {token_dim}, "
            f"gene_likelihood {gene_likelihood!r}"
        )
        if adata is not None and is_count and setup["size_factor_key"] is not None:
            rows = self._rows()  # the unit of size factors is no finding: all cells count
            self.size_factor_scale = rows.totals().sum() / rows.library.sum()

    def _new_denoiser(self) -> ResidualDenoiser:
        p = self.init_params_
        shape = p["n_tokens"], p["token_dim"]
        size = p["denoiser_width"], p["denoiser_blocks"], p["n_heads"]
        trunk = DiT(*shape, self.conditions.n_levels, *size, has_size=True)
        return ResidualDenoiser(trunk, shape, self.process, p["baseline"])

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
        keys = check_keys(condition_keys)
        check_roles(WRITTEN, condition_keys=keys, size_factor_key=size_factor_key)
        check_roles(WRITTEN, batch_key=batch_key, size_factor_key=size_factor_key)
        if not isinstance(is_count_data, bool | np.bool_):
            raise ValueError(f"is_count_data={short_repr(is_count_data)} must be True or False.")
        check_var_names(adata)
        is_query = "source_registry" in kwargs
        named = [(key, "condition_keys") for key in keys] + [(batch_key, "batch_key")] * (batch_key is not None)
        for key, argument in named:
            least = 1 if is_query or key == batch_key else 2
            check_categorical(adata.obs, key, argument, min_levels=least)
            check_no_empty_level(adata.obs, key, argument)
            check_levels(adata.obs, key, argument)
        if size_factor_key is not None:
            check_size_factors(adata.obs, size_factor_key)
        where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
        try:
            check_counts(get_matrix(adata, layer), where, is_count_data=is_count_data)
        except ValueError as error:
            hint = "" if "without any counts" in str(error) else raw_counts_hint(adata)
            raise ValueError(f"{error}{hint}") from error
        if not is_query:
            warn_of_copies(adata.obs, list(dict.fromkeys(key for key, _ in named)))

        setup_method_args = cls._get_setup_method_args(
            cls=cls,
            adata=adata,
            layer=layer,
            condition_keys=keys,
            batch_key=batch_key,
            size_factor_key=size_factor_key,
            is_count_data=bool(is_count_data),
        )
        cls._register(adata, setup_method_args, **kwargs)

    @classmethod
    def _fields(cls, setup: Mapping[str, Any]) -> list[AnnDataField]:
        fields = [
            KnownLayerField(REGISTRY_KEYS.X_KEY, setup["layer"], is_count_data=False, correct_data_format=False),
            KnownConditionsField(CONDITIONS_KEY, setup["condition_keys"]),
            KnownLevelsField(REGISTRY_KEYS.BATCH_KEY, setup["batch_key"]),
        ]
        if setup["size_factor_key"] is not None:
            fields.append(NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, setup["size_factor_key"]))
        return fields

    def _rows(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        *,
        conditions: bool = False,
        batch: bool = True,
    ) -> CellRows:
        """Cells of an AnnData (the training data by default), with genes and levels aligned by name.

        Conditions and batch are looked up only where they are needed: to encode a cell takes neither.
        """
        training = adata is None or adata is self.adata
        adata = self._given(adata)
        setup = self.registry["setup_args"]
        matrix = by_rows(get_matrix(adata, setup["layer"]), "The AnnData of training" if training else "The query")
        panel = align_genes(adata.var_names, self.genes)
        if not training:  # cells of training were checked at setup, and are again when they are read
            known_genes = None if (panel >= 0).all() else np.flatnonzero(panel >= 0)
            check_counts(matrix, "The query", is_count_data=setup["is_count_data"], columns=known_genes)
        obs = adata.obs
        codes = self.conditions.encode_rows(obs if conditions else obs[[]], "adata.obs")
        batch_codes = self._batch_codes(obs) if batch else np.zeros(adata.n_obs, dtype=np.int64)
        library = None
        if not setup["is_count_data"]:
            library = np.ones(adata.n_obs)  # log-normalised values have no library size
        elif setup["size_factor_key"] is not None:
            check_size_factors(obs, setup["size_factor_key"])
            library = self.size_factor_scale * obs[setup["size_factor_key"]].to_numpy(float)
        where = CHANGED if training else None
        return CellRows(matrix, panel, library, codes, batch_codes, indices, where, setup["is_count_data"])

    @classmethod
    def _schema(cls) -> dict[str, Any]:
        schema = super()._schema()
        schema["registry"]["setup_args"] |= {
            "layer": optional(NAME),
            "condition_keys": list_of(NAME),
            "size_factor_key": optional(NAME),
            "is_count_data": FLAG,
        }
        fields = schema["registry"]["field_registries"]
        fields |= {REGISTRY_KEYS.X_KEY: {"state_registry": {"column_names": NAMES}}, CONDITIONS_KEY: {}}
        return schema | {"size_factor_scale": POSITIVE}

    @classmethod
    def _check_description(cls, description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        super()._check_description(description, weights)
        registry = description["registry"]
        levels = registry["field_registries"][CONDITIONS_KEY]["state_registry"].get("mappings", {})
        check(levels, dict_of(LEVELS), "model.json: levels of conditions")
        keys = registry["setup_args"]["condition_keys"]
        if list(levels) != [str(key) for key in keys]:
            raise ValueError(f"model.json: levels of {list(levels)} are not those of condition_keys={keys}")

    def _description(self) -> dict[str, Any]:
        return {"size_factor_scale": self.size_factor_scale}

    def _arrays(self) -> dict[str, np.ndarray]:
        if self.library_sizes is None:  # not trained yet
            return {}
        return {
            "library.codes": self.library_sizes.codes,
            "library.sizes": self.library_sizes.sizes,
            "batch_codes": self.training_batches.batch,
        }

    def _restore(self, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self.size_factor_scale = float(description["size_factor_scale"])
        if not arrays:  # not trained yet
            return
        codes, sizes, batch = (arrays[name] for name in ("library.codes", "library.sizes", "batch_codes"))
        check_codes(codes, self.conditions.n_levels, "library.codes", least=OPEN)
        check_codes(batch[:, None], self.batches.n_levels, "batch_codes")
        if sizes.shape != (len(codes),) or not (np.isfinite(sizes) & (sizes > 0)).all():
            raise ValueError("library.sizes must be positive numbers, one for each row of library.codes")
        if len(batch) != len(codes):
            raise ValueError("batch_codes must be one for each row of library.codes")
        n_levels = self.conditions.n_levels
        self.library_sizes = LibrarySizes(codes, sizes, n_levels)
        self.training_batches = TrainingBatches(codes, batch, n_levels, self.batches.n_levels[0])

    def _check_query(self, adata: AnnData) -> None:
        self._rows(adata, conditions=True)  # checks counts, genes and levels
