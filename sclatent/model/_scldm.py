"""SCLDM: latent diffusion of single-cell counts."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager, AnnDataManagerValidationCheck
from scvi.data.fields import CategoricalJointObsField, CategoricalObsField, LayerField, NumericalObsField
from scvi.model.base import BaseModelClass
from torch import Tensor
from tqdm.auto import tqdm

from sclatent.data import (
    CellRows,
    Conditions,
    LibrarySizes,
    TokenRows,
    additive_effects,
    align_genes,
    check_categorical,
    check_counts,
    check_keys,
    check_size_factors,
    check_var_names,
    get_matrix,
    make_loader,
)
from sclatent.diffusion import classifier_free, solve
from sclatent.module import LIKELIHOODS, DiT, LatentDiffusion, SetAutoencoder, Standardize
from sclatent.nn import OPEN
from sclatent.train import AutoencoderPlan, DiffusionPlan, TrainingDivergedError

from .base import StageDirectory, fingerprint, fit_stage, quiet_lightning, read_model, write_model

logger = logging.getLogger(__name__)

Stage = Literal["both", "autoencoder", "diffusion"]
ConditionsLike = Mapping[str, Any] | pd.DataFrame
CONDITIONS_KEY = "conditions"


class SCLDM(BaseModelClass):
    r"""Latent diffusion of single-cell counts (scLDM, arXiv 2511.02986).

    A cell is a set of (gene, count). A set autoencoder turns it into a few tokens and back; a Diffusion Transformer learns how
    the tokens are distributed under the conditions of the cells; guidance and counterfactuals steer it.

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
        ``"nb"`` (negative binomial), ``"zinb"`` (zero-inflated), ``"poisson"``, or ``"normal"`` for log-normalised data (set up
        with ``is_count_data=False``).
    kl_weight
        Weight of the KL divergence in the loss of the autoencoder, for the paper's ELBO; 0 is a plain autoencoder.
    denoiser_width, denoiser_blocks
        Width and number of blocks of the Diffusion Transformer.
    seed
        Seed of the initial weights.
    registry
        Registry of a saved model, in place of ``adata``; used by :meth:`load`.

    Examples
    --------
    >>> SCLDM.setup_anndata(adata, layer="counts", condition_keys=["cell_type", "condition"])
    >>> model = SCLDM(adata)
    >>> model.train()
    >>> cells = model.sample(500, {"cell_type": "CD4 T cells", "condition": "stimulated"}, seed=0)
    >>> moved = model.counterfactual(adata_ctrl, {"condition": "stimulated"}, seed=0)
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        n_tokens: int = 16,
        token_dim: int = 16,
        width: int = 64,
        n_blocks: int = 2,
        n_heads: int = 4,
        gene_likelihood: Literal["nb", "zinb", "poisson", "normal"] = "nb",
        kl_weight: float = 0.0,
        denoiser_width: int = 128,
        denoiser_blocks: int = 4,
        seed: int = 0,
        registry: dict[str, Any] | None = None,
    ) -> None:
        if adata is None and registry is None:
            raise ValueError("adata is missing: give an AnnData that was set up by SCLDM.setup_anndata, or use SCLDM.load.")
        super().__init__(adata, registry)
        if gene_likelihood not in LIKELIHOODS:
            raise ValueError(f"gene_likelihood={gene_likelihood!r} is not known: use one of {list(LIKELIHOODS)}.")
        setup = self.registry["setup_args"]
        is_count = LIKELIHOODS[gene_likelihood].is_count
        if is_count != setup["is_count_data"]:
            raise ValueError(
                f"gene_likelihood={gene_likelihood!r} needs {'raw counts' if is_count else 'log-normalised values'}: call "
                f"SCLDM.setup_anndata with is_count_data={is_count} and such data."
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
            "seed": seed,
        }
        self.genes = pd.Index(self._state(REGISTRY_KEYS.X_KEY)["column_names"]).astype(str)
        self.conditions = Conditions(self._state(CONDITIONS_KEY).get("mappings", {}))
        self.batches = Conditions({"batch": list(self._state(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"])})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            autoencoder = SetAutoencoder(
                len(self.genes), self.batches.n_levels[0], n_tokens, token_dim, width, n_blocks, n_heads,
                gene_likelihood=gene_likelihood, variational=kl_weight > 0,
            )  # fmt: skip
            self.module = LatentDiffusion(autoencoder, Standardize(n_tokens, token_dim), self._new_denoiser())
        self.module.eval()
        self.trained_stages: set[str] = set()
        self.size_factor_scale = 1.0
        self.library_sizes: LibrarySizes | None = None
        self._tokens: Tensor | None = None
        self.history_ = {}
        self._model_summary_string = (
            f"SCLDM with {len(self.genes)} genes, conditions {self.conditions.keys}, {n_tokens} tokens of {token_dim}, "
            f"gene_likelihood {gene_likelihood!r}"
        )
        if adata is not None:
            self._look_at_training_data()

    def _state(self, key: str) -> dict[str, Any]:
        return self.registry["field_registries"][key]["state_registry"]

    def _new_denoiser(self) -> DiT:
        p = self.init_params_
        return DiT(
            p["n_tokens"], p["token_dim"], self.conditions.n_levels, p["denoiser_width"], p["denoiser_blocks"], p["n_heads"]
        )  # fmt: skip

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
            Cells x genes; sparse (CSR, CSC), dense or backed. A view is turned into an AnnData of its own, in place.
        layer
            Layer with the raw counts; X by default.
        condition_keys
            One or more categorical columns of obs to condition on, such as cell type and perturbation.
        batch_key
            Categorical column of obs that the decoder is told, so that the latent need not carry it.
        size_factor_key
            Column of obs with size factors, in any unit; by default the library size is the total count of the cell.
        is_count_data
            Whether the values are raw counts. ``False`` is for log-normalised values and ``gene_likelihood="normal"``.

        Raises
        ------
        KeyError
            If a layer or a column is missing.
        ValueError
            If the data are not what was expected. Nothing has been changed then.
        """
        keys = check_keys(condition_keys)
        check_var_names(adata)
        for key in keys:
            check_categorical(adata.obs, key, "condition_keys", min_levels=1 if "source_registry" in kwargs else 2)
        if batch_key is not None:
            check_categorical(adata.obs, batch_key, "batch_key")
        if size_factor_key is not None:
            check_size_factors(adata.obs, size_factor_key)
        where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
        check_counts(get_matrix(adata, layer), where, is_count_data=is_count_data)

        setup_method_args = cls._get_setup_method_args(
            cls=cls, adata=adata, layer=layer, condition_keys=keys, batch_key=batch_key, size_factor_key=size_factor_key,
            is_count_data=is_count_data,
        )  # fmt: skip
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False, correct_data_format=False),
            CategoricalJointObsField(CONDITIONS_KEY, keys),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
        ]
        if size_factor_key is not None:
            fields.append(NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key))
        manager = AnnDataManager(
            fields=fields,
            setup_method_args=setup_method_args,
            validation_checks=AnnDataManagerValidationCheck(check_if_view=False),
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*view.*")  # a view becomes an AnnData of its own; documented
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    # ---------------------------------------------------------------------------------------------- data

    def _rows(self, adata: AnnData | None = None, indices: Sequence[int] | None = None, check: bool = True) -> CellRows:
        """Cells of an AnnData (the training data by default), with genes and levels aligned by name."""
        training = adata is None or adata is self.adata
        adata = self.adata if adata is None else adata
        if adata is None:
            raise ValueError("adata is missing: this model was loaded without data, so there are no training cells to fall back on.")
        setup = self.registry["setup_args"]
        matrix = get_matrix(adata, setup["layer"])
        if check and not training:
            check_counts(matrix, "The query", is_count_data=setup["is_count_data"])
        panel = align_genes(adata.var_names, self.genes)
        obs = adata.obs
        known = [key for key in self.conditions.keys if key in obs]
        codes = self.conditions.encode(obs[known], adata.n_obs) if known else self.conditions.encode(None, adata.n_obs)
        batch_key = setup["batch_key"]
        if batch_key is None:
            batch = np.zeros(adata.n_obs, dtype=np.int64)
        elif batch_key in obs:
            batch = self.batches.encode(pd.DataFrame({"batch": obs[batch_key]}))[:, 0]
        else:
            raise KeyError(f"adata.obs has no column {batch_key!r}, the batch_key of this model.")
        library = None
        if not setup["is_count_data"]:
            library = np.ones(adata.n_obs)  # log-normalised values have no library size
        elif setup["size_factor_key"] is not None:
            check_size_factors(obs, setup["size_factor_key"])
            library = self.size_factor_scale * obs[setup["size_factor_key"]].to_numpy(float)
        return CellRows(matrix, panel, library, codes, batch, indices)

    def _look_at_training_data(self) -> None:
        """Set what follows from the data alone: scale of size factors, library sizes, mean expression."""
        rows = self._rows()
        total_of_cell, total_of_gene = [], np.zeros(len(self.genes))
        for batch in make_loader(rows, 4096):
            counts = sparse.csr_matrix(
                (batch.sets.count.numpy(), (batch.sets.cell.numpy(), batch.sets.column.numpy())),
                shape=(len(batch), len(self.genes)),
            )
            total_of_cell.append(np.asarray(counts.sum(axis=1), dtype=np.float64).ravel())
            total_of_gene += np.asarray(counts.sum(axis=0)).ravel()
        totals = np.concatenate(total_of_cell)
        if rows.library is None:
            library = totals
        elif self.registry["setup_args"]["is_count_data"]:
            self.size_factor_scale = totals.sum() / rows.library.sum()
            library = rows.library * self.size_factor_scale
        else:
            library = rows.library
        self.library_sizes = LibrarySizes(rows.conditions, library, self.conditions.n_levels)
        self.batch_codes = rows.batch
        mean = total_of_gene / len(rows)
        if self.module.autoencoder.likelihood.is_count:
            mean = np.log((total_of_gene + 1) / (total_of_gene + 1).sum())
        self.module.autoencoder.gene_bias.data.copy_(torch.from_numpy(mean))

    # ---------------------------------------------------------------------------------------------- training

    def train(
        self,
        max_epochs: int | Mapping[str, int] | None = None,
        stage: Stage = "both",
        accelerator: str = "auto",
        devices: int | str | list[int] = "auto",
        train_size: float = 0.9,
        batch_size: int = 128,
        early_stopping: bool = True,
        early_stopping_patience: int | None = None,
        plan_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        callbacks: Sequence[Callback] = (),
        checkpoint_dir: str | os.PathLike | None = None,
        seed: int = 0,
        progress_bar: bool = True,
        **trainer_kwargs: Any,
    ) -> None:
        r"""Train the autoencoder, then the denoiser on the tokens of all cells.

        A stage that was trained before is trained further. When the autoencoder is, its tokens change, and the denoiser
        starts anew.

        Parameters
        ----------
        max_epochs
            Epochs of each stage: a number for both, or ``{"autoencoder": ..., "diffusion": ...}``. By default
            :math:`3000 / \sqrt{n}` and :math:`4000 / \sqrt{n}` for n cells, between 10 and 400.
        stage
            ``"both"``, or one stage alone.
        accelerator, devices
            As in Lightning.
        train_size
            Share of the cells to train on; on the others the loss is watched for early stopping.
        batch_size
            Cells in a minibatch.
        early_stopping, early_stopping_patience
            Whether to stop when the validation loss has not improved for so many epochs (default: a third of
            ``max_epochs``, at least 15). The weights of the best epoch are kept in any case.
        plan_kwargs
            Arguments of :class:`~sclatent.train.AutoencoderPlan` and :class:`~sclatent.train.DiffusionPlan`, such as
            ``{"autoencoder": {"lr": 1e-3}}``.
        callbacks
            Further Lightning callbacks, for both stages.
        checkpoint_dir
            Folder for checkpoints, one an epoch. Call ``train`` again with the same arguments on the same data to go on after
            an interruption: the result is that of a training without one. The checkpoints are removed at the end.
        seed
            Seed of the split, the order of cells and the noise.
        progress_bar
            Whether to show progress.
        trainer_kwargs
            Further arguments of :class:`scvi.train.Trainer`.

        Raises
        ------
        TrainingDivergedError
            If a loss is no longer finite; the last good weights are kept.
        """
        stages = {"both": ["autoencoder", "diffusion"]}.get(stage, [stage])
        plan_kwargs = dict(plan_kwargs or {})
        for name in (*stages, *plan_kwargs, *(max_epochs if isinstance(max_epochs, Mapping) else ())):
            if name not in ("autoencoder", "diffusion"):
                raise ValueError(f"{name!r} is no stage of training: use 'autoencoder' or 'diffusion'.")
        if stages == ["diffusion"] and "autoencoder" not in self.trained_stages:
            raise RuntimeError("stage='diffusion' needs a trained autoencoder: call train() or train(stage='autoencoder') first.")
        if not 0 < train_size <= 1:
            raise ValueError(f"train_size={train_size!r} must be above 0 and at most 1.")
        rows = self._rows()
        order = np.random.default_rng(seed).permutation(len(rows))
        n_train = max(1, round(train_size * len(rows)))
        self.train_indices_, self.validation_indices_ = np.sort(order[:n_train]), np.sort(order[n_train:])

        epochs = {}
        for name, scale in (("autoencoder", 3000), ("diffusion", 4000)):
            asked = max_epochs.get(name) if isinstance(max_epochs, Mapping) else max_epochs
            epochs[name] = int(np.clip(round(scale / len(rows) ** 0.5), 10, 400)) if asked is None else int(asked)
            if epochs[name] < 1:
                raise ValueError(f"max_epochs={max_epochs!r} must be at least 1.")
        directory = None
        if checkpoint_dir is not None:
            settings = {
                "model": self.init_params_, "stage": stage, "epochs": epochs, "train_size": train_size, "seed": seed,
                "batch_size": batch_size, "plan_kwargs": plan_kwargs, "early_stopping": early_stopping,
                "early_stopping_patience": early_stopping_patience, "trained_before": sorted(self.trained_stages),
                "data": fingerprint(list(self.genes), rows.conditions.tobytes(), self.library_sizes.sizes.tobytes()),
            }  # fmt: skip
            directory = StageDirectory(checkpoint_dir, settings)
            directory.prepare()
        quiet_lightning()
        options = {
            "accelerator": accelerator,
            "devices": devices,
            "early_stopping": early_stopping,
            "callbacks": callbacks,
            "directory": directory,
            "progress_bar": progress_bar,
            **trainer_kwargs,
        }
        for name in stages:
            fit = self._train_autoencoder if name == "autoencoder" else self._train_diffusion
            patience = early_stopping_patience or max(15, epochs[name] // 3)
            loader_args = {"batch_size": batch_size, "seed": seed}
            stage_options = {**options, "max_epochs": epochs[name], "early_stopping_patience": patience}
            try:
                frames = fit(rows, loader_args, {"seed": seed, **plan_kwargs.get(name, {})}, stage_options)
            finally:
                self.module.eval()
            self.trained_stages.add(name)
            self._extend_history(frames)
        self.is_trained_ = self.trained_stages == {"autoencoder", "diffusion"}
        if directory is not None:
            directory.clear()

    def _train_autoencoder(
        self, rows: CellRows, loader_args: dict[str, Any], plan_args: dict[str, Any], options: dict[str, Any]
    ) -> dict[str, pd.DataFrame]:
        self._tokens = None
        if "diffusion" in self.trained_stages:
            logger.warning("The autoencoder is trained further: its tokens change, so the denoiser starts anew.")
            self.trained_stages.discard("diffusion")
            self.is_trained_ = False
            with torch.random.fork_rng():
                torch.manual_seed(self.init_params_["seed"])
                self.module.denoiser = self._new_denoiser()
        plan = AutoencoderPlan(self.module.autoencoder, kl_weight=self.init_params_["kl_weight"], **plan_args)
        train, validation = (rows.subset(i) for i in (self.train_indices_, self.validation_indices_))
        frames = fit_stage(
            plan,
            make_loader(train, shuffle=True, **loader_args),
            make_loader(validation, **loader_args) if len(validation) else None,
            description="Autoencoder",
            n_cells=len(train),
            **options,
        )
        self.module.to(plan.device)
        return frames

    def _train_diffusion(
        self, rows: CellRows, loader_args: dict[str, Any], plan_args: dict[str, Any], options: dict[str, Any]
    ) -> dict[str, pd.DataFrame]:
        codes = torch.from_numpy(rows.conditions)
        if self._tokens is None:  # computed once; training never touches the autoencoder again
            tokens = self._encode(rows, 1024)
            self.module.standardize.cpu().fit(tokens)
            self._tokens = self.module.standardize(tokens)
        denoiser = self.module.denoiser
        effects = additive_effects(rows.conditions, self._tokens.flatten(1).numpy(), self.conditions.n_levels)[1]
        denoiser.mean.fit([torch.from_numpy(e).float() for e in effects])
        plan = DiffusionPlan(denoiser, **plan_args)
        train, validation = (TokenRows(self._tokens[i], codes[i]) for i in (self.train_indices_, self.validation_indices_))
        try:
            return fit_stage(
                plan,
                make_loader(train, shuffle=True, **loader_args),
                make_loader(validation, **loader_args) if len(validation) else None,
                description="Diffusion",
                n_cells=len(train),
                **options,
            )
        finally:
            denoiser.load_state_dict(plan.averaged.module.state_dict())  # the average is what samples
            self.module.to(plan.device)

    def _extend_history(self, frames: dict[str, pd.DataFrame]) -> None:
        for key, frame in frames.items():
            before = self.history_.get(key)
            if before is not None:
                frame = pd.concat([before, frame.set_index(frame.index + before.index.max() + 1)])
            self.history_[key] = frame.rename_axis("epoch")

    def _check_stage(self, stage: str, method: str) -> None:
        if stage not in self.trained_stages:
            raise RuntimeError(f"{method} needs a trained {stage}: call train() first.")

    # ---------------------------------------------------------------------------------------------- generation

    def sample(
        self,
        n_samples: int | None = None,
        conditions: ConditionsLike | None = None,
        guidance_weight: float | Mapping[str, float] = 1.0,
        library_size: float | Sequence[float] | None = None,
        batch: str | None = None,
        solver: Literal["heun", "euler", "adaptive"] = "heun",
        n_steps: int | None = None,
        batch_size: int = 256,
        seed: int = 0,
        progress_bar: bool = True,
    ) -> AnnData:
        r"""Generate cells.

        Parameters
        ----------
        n_samples
            Number of cells; may be left out when ``conditions`` is a DataFrame.
        conditions
            Levels by key for all cells, such as ``{"cell_type": "B cells", "condition": "stimulated"}``, or a DataFrame with a
            row a cell (``adata.obs`` works as it is). Keys that are not given are left open.
        guidance_weight
            Weight w of classifier-free guidance, :math:`v = v(\varnothing) + w (v(c) - v(\varnothing))`: 1 is plain conditional
            sampling at one evaluation a step, 0 is unconditional, above 1 pushes cells towards their conditions. With a dict,
            ``{"condition": 2.0}``, each key is pushed on its own: :math:`v = v(c) + \sum_k (w_k - 1) (v(c) - v(c \setminus c_k))`.
        library_size
            Total counts of each cell, a number or one a cell. By default drawn from the training cells of the same combination of
            conditions; for a combination never seen, from an additive model of its logarithm over the keys, with residuals
            drawn from the training cells.
        batch
            Level of ``batch_key`` to decode under; by default drawn as in training.
        solver, n_steps
            Solver of the flow and its number of steps: ``"heun"`` (12, two evaluations each), ``"euler"`` (25) or ``"adaptive"``
            (at most 8, three evaluations each).
        batch_size
            Cells computed together.
        seed
            Seed; every cell has random numbers of its own, so the same seed gives the same cells whatever ``batch_size``
            is. Cells of the same seed under different conditions start from the same noise.
        progress_bar
            Whether to show progress.

        Returns
        -------
        AnnData of integer counts (CSR) over the genes of training. ``obs`` has the conditions, ``uns["sclatent"]`` what made it.
        """
        self._check_stage("diffusion", "sample")
        if n_samples is None and isinstance(conditions, pd.DataFrame):
            n_samples = len(conditions)
        if not isinstance(n_samples, int | np.integer) or n_samples < 1:
            raise ValueError(f"n_samples={n_samples!r} must be a whole number of at least 1.")
        codes = self.conditions.encode(conditions, int(n_samples))
        weight = self._guidance(guidance_weight)
        rngs = [np.random.default_rng([seed, 0, i]) for i in range(n_samples)]
        uniforms = np.array([rng.random(2) for rng in rngs])
        library, library_rule = self._library(library_size, codes, uniforms[:, 0])
        if batch is None:
            batches = self.batch_codes[(uniforms[:, 1] * len(self.batch_codes)).astype(int)]
        else:
            batches = self.batches.encode({"batch": batch}, int(n_samples))[:, 0]

        p = self.init_params_
        blocks = []
        for cells in self._blocks(n_samples, batch_size, "Sampling", progress_bar):
            noise = np.stack([rngs[i].standard_normal((p["n_tokens"], p["token_dim"]), dtype=np.float32) for i in cells])
            code = torch.from_numpy(codes[cells]).to(self._device)
            tokens = self._flow(torch.from_numpy(noise).to(self._device), code, weight, 0.0, 1.0, solver, n_steps)
            mean = self._mean(tokens, batches[cells], library[cells])
            blocks.append(self._draw(mean, seed, cells))

        index = pd.Index([f"generated_{i}" for i in range(n_samples)])
        return self._generated(
            blocks, self._obs(codes, batches, library, index), "sample",
            seed=seed, guidance_weight=guidance_weight, solver=solver, n_steps=n_steps, library_size=library_rule,
        )  # fmt: skip

    def counterfactual(
        self,
        adata: AnnData | None = None,
        conditions: ConditionsLike | None = None,
        keep: float = 1.0,
        guidance_weight: float | Mapping[str, float] = 1.0,
        indices: Sequence[int] | None = None,
        solver: Literal["heun", "euler", "adaptive"] = "heun",
        n_steps: int | None = None,
        batch_size: int = 256,
        seed: int = 0,
        progress_bar: bool = True,
    ) -> AnnData:
        r"""Move measured cells to other conditions, row by row.

        The cell is encoded and carried backwards along the flow of its own conditions to time ``keep``, and forwards again
        along the flow of the new ones. The counts follow by abduction: whatever of the measured counts the decoder's mean does not
        explain is kept (:meth:`~sclatent.module.GeneLikelihood.transport`), so a cell that is moved to where it is comes back
        as it was.

        Parameters
        ----------
        adata
            Cells to move, with their conditions in ``obs``; the training data by default. A condition that is missing there is
            left open.
        conditions
            Where to: levels by key for all cells, or a DataFrame with a row a cell. Other keys stay as they are.
        keep
            How much of the cell is kept: the time in [0, 1] to which it is carried back. At 1 it is not carried back at all: it
            moves by the additive effect of the conditions; at 0 nothing but its noise is kept, and the denoiser makes the cell
            anew under the new conditions.
        guidance_weight, solver, n_steps, batch_size, seed, progress_bar
            As in :meth:`sample`.
        indices
            Rows of ``adata`` to move; all by default.

        Returns
        -------
        AnnData with a row a cell of the input, with the index and the obs of the input and the new conditions.
        """
        self._check_stage("diffusion", "counterfactual")
        if not 0 <= keep <= 1:
            raise ValueError(f"keep={keep!r} must be between 0 (made anew) and 1 (kept, but for the effect of the conditions).")
        weight = self._guidance(guidance_weight)
        rows = self._rows(adata, indices)
        source = rows.conditions[rows.cells]
        target = self.conditions.encode(conditions, len(rows))
        target = np.where(target == OPEN, source, target)

        blocks = []
        panel = rows.panel.numpy()
        likelihood = self.module.autoencoder.likelihood
        mean_effect = self.module.denoiser.mean
        library_of = np.empty(len(rows))
        for cells in self._blocks(len(rows), batch_size, "Counterfactuals", progress_bar):
            batch = rows[cells]
            x = batch.sets.dense().numpy().astype(np.float64)
            old, new = (torch.from_numpy(c[cells]).to(self._device) for c in (source, target))
            tokens = self.module.standardize(self._encode_batch(batch))
            moved = self._flow(tokens, old, 1.0, 1.0, keep, solver, n_steps)
            with torch.inference_mode():
                moved = moved + keep * (mean_effect(new) - mean_effect(old))  # same place around the new centre
            moved = self._flow(moved, new, weight, keep, 1.0, solver, n_steps)

            codes = batch.batch.numpy()
            share = self._mean(tokens, codes, np.ones(len(cells)))
            measured = share[:, panel].sum(axis=1) if likelihood.is_count else np.ones(len(cells))
            library = batch.library.numpy() / measured  # genes that were not measured have counts too
            mean, new_mean = library[:, None] * share, self._mean(moved, codes, library)
            library_of[cells] = library
            drawn = self._draw(new_mean, seed, cells).toarray()
            for row, i in enumerate(cells):
                rng = np.random.default_rng([seed, 2, i])
                drawn[row, panel] = likelihood.transport(x[row], mean[row, panel], new_mean[row, panel], panel, rng)
            blocks.append(sparse.csr_matrix(drawn))

        origin = self.adata if adata is None else adata
        obs = origin.obs.iloc[rows.cells].copy()
        new_obs = self._obs(target, rows.batch[rows.cells], library_of, obs.index)
        obs[new_obs.columns] = new_obs
        return self._generated(
            blocks, obs, "counterfactual",
            seed=seed, guidance_weight=guidance_weight, solver=solver, n_steps=n_steps, keep=keep, library_size="of the cell",
        )  # fmt: skip

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device

    def _guidance(self, weight: float | Mapping[str, float]) -> float | list[float]:
        if not isinstance(weight, Mapping):
            return float(weight)
        for key in weight:
            if key not in self.conditions.keys:
                raise KeyError(f"guidance_weight: {key!r} is no condition of this model, which has {self.conditions.keys}.")
        return [float(weight.get(key, 1.0)) for key in self.conditions.keys]

    def _library(
        self, library_size: float | Sequence[float] | None, codes: np.ndarray, uniforms: np.ndarray
    ) -> tuple[np.ndarray, str]:
        if library_size is not None:
            library = np.broadcast_to(np.asarray(library_size, dtype=np.float64), len(codes)) if np.size(library_size) in (
                1, len(codes)) else None  # fmt: skip
            if library is None or not (np.isfinite(library) & (library > 0)).all():
                raise ValueError(
                    f"library_size must be a positive number, or one for each of the {len(codes)} cells; got {library_size!r}."
                )
            return library.copy(), "given"
        library, seen = self.library_sizes.draw(codes, uniforms)
        rules = {True: "training cells of the combination", False: "additive model over the conditions"}
        return library, ", ".join(rules[s] for s in (True, False) if s in seen)

    def _blocks(self, n: int, batch_size: int, description: str, progress_bar: bool) -> Any:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be at least 1.")
        with tqdm(total=n, desc=description, unit=" cells", disable=not progress_bar) as bar:
            for start in range(0, n, batch_size):
                cells = np.arange(start, min(start + batch_size, n))
                yield cells
                bar.update(len(cells))

    @torch.inference_mode()
    def _flow(
        self,
        x: Tensor,
        codes: Tensor,
        weight: float | list[float],
        start: float,
        end: float,
        solver: str,
        n_steps: int | None,
    ) -> Tensor:
        return solve(classifier_free(self.module.denoiser, codes, weight), x, start, end, solver, n_steps)

    @torch.inference_mode()
    def _mean(self, tokens: Tensor, batch: np.ndarray, library: np.ndarray) -> np.ndarray:
        """Mean expression (cells, genes) of standardised tokens, in double precision for the draws."""
        every_gene = torch.arange(len(self.genes), device=self._device)
        logits = self.module.decode(tokens, every_gene, torch.from_numpy(batch).to(self._device))
        size = torch.from_numpy(library).float().to(self._device)
        return self.module.autoencoder.likelihood.mean(logits, size).cpu().numpy().astype(np.float64)

    def _draw(self, mean: np.ndarray, seed: int, cells: np.ndarray) -> sparse.csr_matrix:
        """Draw the counts of cells from their means, each with a generator of its own."""
        likelihood, genes = self.module.autoencoder.likelihood, np.arange(len(self.genes))
        rows = [likelihood.draw(mean[r], genes, np.random.default_rng([seed, 1, i])) for r, i in enumerate(cells)]
        return sparse.csr_matrix(np.stack(rows))

    def _obs(self, codes: np.ndarray, batches: np.ndarray, library: np.ndarray, index: pd.Index) -> pd.DataFrame:
        obs = self.conditions.decode(codes, index)
        batch_key = self.registry["setup_args"]["batch_key"]
        if batch_key is not None:
            obs[batch_key] = pd.Categorical.from_codes(batches, categories=self.batches.levels["batch"])
        obs["library_size"] = library
        return obs

    def _generated(self, blocks: list[sparse.csr_matrix], obs: pd.DataFrame, method: str, **how: Any) -> AnnData:
        x = sparse.vstack(blocks, format="csr")
        x = x.astype(np.int32 if self.module.autoencoder.likelihood.is_count else np.float32)
        result = AnnData(x, obs=obs, var=pd.DataFrame(index=self.genes.copy()))
        provenance = {"model": "SCLDM", "version": version("sclatent"), "method": method, **how}
        result.uns["sclatent"] = {k: "default" if v is None else v for k, v in provenance.items()}
        return result

    # ---------------------------------------------------------------------------------------------- description of cells

    @torch.inference_mode()
    def _encode_batch(self, batch: Any) -> Tensor:
        return self.module.autoencoder.encode(batch.to(self._device).sets)

    def _encode(self, rows: CellRows, batch_size: int) -> Tensor:
        return torch.cat([self._encode_batch(batch).cpu() for batch in make_loader(rows, batch_size)])

    def get_latent_representation(
        self, adata: AnnData | None = None, indices: Sequence[int] | None = None, batch_size: int = 1024
    ) -> np.ndarray:
        """Encode cells.

        Parameters
        ----------
        adata
            Cells; the training data by default. Genes are aligned by name; those the model does not find count as not measured.
        indices
            Rows to encode; all by default.
        batch_size
            Cells computed together.

        Returns
        -------
        Tokens of each cell side by side, (cells, n_tokens * token_dim).
        """
        self._check_stage("autoencoder", "get_latent_representation")
        return self._encode(self._rows(adata, indices), batch_size).flatten(1).numpy()

    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
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
            Genes to return; all by default.
        library_size
            Total to scale each cell to, or ``"observed"`` for its own.
        return_numpy
            Whether to return an array and not a DataFrame.

        Returns
        -------
        Mean expression, (cells, genes). With ``gene_likelihood="normal"`` the mean of the log-normalised values.
        """
        self._check_stage("autoencoder", "get_normalized_expression")
        rows = self._rows(adata, indices)
        genes = self.genes if gene_list is None else pd.Index(gene_list)
        columns = self.genes.get_indexer(genes)
        if (columns < 0).any():
            raise ValueError(f"gene_list: {genes[columns < 0][0]!r} is no gene of this model.")
        means = []
        for batch in make_loader(rows, batch_size):
            library = batch.library.numpy() if library_size == "observed" else np.full(len(batch), float(library_size))
            tokens = self.module.standardize(self._encode_batch(batch))
            means.append(self._mean(tokens, batch.batch.numpy(), library)[:, columns].astype(np.float32))
        result = np.concatenate(means)
        if return_numpy:
            return result
        index = (self.adata if adata is None else adata).obs_names[rows.cells]
        return pd.DataFrame(result, index=index, columns=genes)

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
        ``{"reconstruction_loss": mean over the cells}``, in nats a cell, over the genes that were measured.
        """
        self._check_stage("autoencoder", "get_reconstruction_error")
        rows = self._rows(adata, indices)
        total = 0.0
        for batch in make_loader(rows, batch_size):
            batch = batch.to(self._device)
            nll, _ = self.module.autoencoder(batch.sets, batch.library, batch.batch)
            total += float(nll.double().sum())
        return {"reconstruction_loss": total / len(rows)}

    # ---------------------------------------------------------------------------------------------- files

    def save(self, dir_path: str | os.PathLike, overwrite: bool = False) -> None:
        """Save the model as a folder of safetensors and JSON, with all it needs to sample; not the cells.

        Parameters
        ----------
        dir_path
            The folder.
        overwrite
            Whether to replace a model that is there. The old one stands until the new one is whole.
        """
        description = {
            "class": type(self).__name__,
            "versions": {p: version(p) for p in ("sclatent", "torch", "scvi-tools", "anndata")},
            "init_params": self.init_params_,
            "registry": self.registry,
            "trained_stages": sorted(self.trained_stages),
            "size_factor_scale": self.size_factor_scale,
            "history": {key: list(frame.iloc[:, 0].items()) for key, frame in self.history_.items()},
        }
        tensors = {f"module.{key}": value for key, value in self.module.state_dict().items()}
        arrays = {
            "library.codes": self.library_sizes.codes,
            "library.sizes": self.library_sizes.sizes,
            "batch_codes": self.batch_codes,
        }
        tensors |= {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}
        write_model(dir_path, description, tensors, overwrite)

    @classmethod
    def load(cls, dir_path: str | os.PathLike, adata: AnnData | None = None, device: str | torch.device = "auto") -> SCLDM:
        """Load a saved model; no code is run.

        Parameters
        ----------
        dir_path
            The folder.
        adata
            AnnData to use where none is given to a method, and to train further on; genes are aligned by name, and the model
            says how many were found. Not needed to sample.
        device
            Where to put the model; ``"auto"`` takes a GPU if there is one.

        Raises
        ------
        FileNotFoundError
            If there is no model.
        ValueError
            If the folder holds a model of another class, or was damaged or changed.
        """
        description, tensors = read_model(dir_path, cls.__name__)
        model = cls(registry=description["registry"], **description["init_params"])
        prefix = "module."
        model.module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model.module.to(device)
        model.trained_stages = set(description["trained_stages"])
        model.is_trained_ = len(model.trained_stages) == 2
        model.size_factor_scale = description["size_factor_scale"]
        model.batch_codes = tensors["batch_codes"].numpy()
        model.library_sizes = LibrarySizes(
            tensors["library.codes"].numpy(), tensors["library.sizes"].numpy(), model.conditions.n_levels
        )
        model.history_ = {
            key: pd.DataFrame({key: dict(items)}).rename_axis("epoch") for key, items in description["history"].items()
        }
        if adata is not None:
            model._rows(adata)  # checks counts, genes and levels
            model._adata = adata
        return model
