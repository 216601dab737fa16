"""SCLDM: latent diffusion of single-cell counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from anndata import AnnData

from sclatent.baseline import Baseline, Residuals
from sclatent.data import is_number, short_repr
from sclatent.module import LIKELIHOODS, POOLINGS, DiT, ResidualDenoiser, SetAutoencoder
from sclatent.train import AutoencoderPlan, StagePlan

from .base import CountModel, check_baseline, check_process, check_sizes


class SCLDM(CountModel):
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
        of conditions (:class:`~sclatent.baseline.MixedModel`); ``"additive"``, the same without interactions; or
        ``"none"``, the network of the paper alone. By default ``"mixed"`` with condition keys, and ``"none"`` without:
        there is nothing to predict then, and the network alone generates better cells
        (`docs/benchmarks/without_labels.md`).
    residuals
        How cells lie around the mean of the baseline: ``"mixture"``, a mixture of Gaussians whose number of components
        held-out cells decide (:class:`~sclatent.baseline.MixtureVelocity`); ``"gaussian"``, with a covariance for each
        combination of conditions (:class:`~sclatent.baseline.GaussianVelocity`); or ``"noise"`` of variance 1.
    gene_effects
        Whether counterfactuals move the mean of a gene by the mean of two predictions: what the decoder makes of the
        mean tokens of conditions, and a mixed model of the genes themselves. It takes a baseline.
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

    STAGES = ("autoencoder", "diffusion")

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
        baseline: Baseline | None = None,
        residuals: Residuals = "gaussian",
        gene_effects: bool = True,
        pooling: Literal["linear", "attention"] = "linear",
        process: Literal["linear", "variance_preserving"] = "linear",
        seed: int = 0,
        registry: dict[str, Any] | None = None,
    ) -> None:
        check_sizes(n_tokens=n_tokens, token_dim=token_dim, width=width, n_blocks=n_blocks, n_heads=n_heads)
        check_sizes(denoiser_width=denoiser_width, denoiser_blocks=denoiser_blocks)
        for name, value in {"token_dim": token_dim, "width": width, "denoiser_width": denoiser_width}.items():
            if value % n_heads:
                raise ValueError(f"{name}={value!r} must be a multiple of n_heads={n_heads!r}.")
        if not (is_number(kl_weight) and kl_weight >= 0):
            raise ValueError(f"kl_weight={kl_weight!r} must be 0 (a plain autoencoder) or above.")
        if not isinstance(gene_likelihood, str) or gene_likelihood not in LIKELIHOODS:
            raise ValueError(f"gene_likelihood={gene_likelihood!r} is not known: use one of {list(LIKELIHOODS)}.")
        check_baseline("none" if baseline is None else baseline, residuals)
        if not isinstance(gene_effects, bool | np.bool_):
            raise ValueError(f"gene_effects={short_repr(gene_effects)} must be True or False.")
        if not isinstance(pooling, str) or pooling not in POOLINGS:
            raise ValueError(f"pooling={short_repr(pooling)} is not known: use one of {list(POOLINGS)}.")
        check_process(process)
        super().__init__(
            adata, registry, n_tokens=n_tokens, token_dim=token_dim, width=width, n_blocks=n_blocks, n_heads=n_heads,
            gene_likelihood=gene_likelihood, kl_weight=kl_weight, denoiser_width=denoiser_width,
            denoiser_blocks=denoiser_blocks, baseline=baseline, residuals=residuals, gene_effects=bool(gene_effects),
            pooling=pooling, process=process, seed=seed,
        )  # fmt: skip

    def _new_autoencoder(self) -> SetAutoencoder:
        p = self.init_params_
        is_count = LIKELIHOODS[p["gene_likelihood"]].is_count
        if is_count != self.domain.is_count:
            needed = "raw counts" if is_count else "log-normalised values"
            raise ValueError(
                f"gene_likelihood={p['gene_likelihood']!r} needs {needed}: "
                f"call {type(self).__name__}.setup_anndata with is_count_data={is_count} and such data."
            )
        return SetAutoencoder(
            len(self.genes), len(self.batches.levels), p["n_tokens"], p["token_dim"], p["width"], p["n_blocks"],
            p["n_heads"], gene_likelihood=p["gene_likelihood"], variational=p["kl_weight"] > 0, pooling=p["pooling"],
        )  # fmt: skip

    def _new_denoiser(self) -> ResidualDenoiser:
        p = self.init_params_
        shape = p["n_tokens"], p["token_dim"]
        size = p["denoiser_width"], p["denoiser_blocks"], p["n_heads"]
        values, of = self.conditions.values(), self.conditions.of
        trunk = DiT(*shape, self.conditions.n_levels, *size, has_size=True, values=values)
        baseline, residuals = p["baseline"], p["residuals"]
        if baseline is None:
            baseline = "mixed" if self.conditions.keys else "none"
        if baseline == "none" and residuals == "mixture":
            raise ValueError(
                "residuals='mixture' lie around the mean of a baseline: make the model with baseline='mixed'."
            )
        return ResidualDenoiser(trunk, shape, self.process, baseline, residuals, values, of)

    def _plan(self, stage: str, arguments: Mapping[str, Any]) -> StagePlan:
        if stage == "autoencoder":
            return AutoencoderPlan(self.module.autoencoder, kl_weight=self.init_params_["kl_weight"], **arguments)
        return super()._plan(stage, arguments)
