"""Latent diffusion models: what they generate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sclatent.data import cell_rng, check_seed, is_number, short_repr
from sclatent.data._warnings import warn_user
from sclatent.diffusion import DEFAULT_STEPS
from sclatent.nn import NULL

from ._checks import check_generated, check_n_samples, check_order, check_steps
from ._diffusion_model import Solver
from ._guidance import Guidance, GuidanceWeights, Weight
from ._sources import SourcesMixin

OF_UNSEEN = "the nearest number, or without the key, of an unseen value"


class LatentDiffusionModel(SourcesMixin):
    """A latent diffusion model of cells: sampling and counterfactuals.

    What a cell is, is for the domain to say; what it is conditioned on and guided by, for the conditions and the
    denoiser.
    """

    # ---- guidance

    def _default_weight(self, guidance: Guidance | None) -> Weight:
        """Weight of guidance of :meth:`sample`."""
        return 1.0

    def _default_counterfactual(
        self, guidance: Guidance | None, changes_label: bool
    ) -> tuple[Guidance | None, float, Weight]:
        """What guides counterfactuals where nothing is asked for, and noise level and weight of what does."""
        guidance = self._default_guidance if guidance is None else guidance
        return guidance, 0.0 if self.module.denoiser.has_baseline else 0.5, 1.0

    # ---- cells that are made

    def sample(
        self,
        n_samples: int | None = None,
        conditions: Any = None,
        guidance_weight: Weight | None = None,
        guidance: Guidance | None = None,
        library_size: float | Sequence[float] | None = None,
        batch: str | None = None,
        solver: Solver = "heun",
        n_steps: int | None = None,
        batch_size: int = 256,
        seed: int = 0,
        progress_bar: bool = True,
        baseline_only: bool = False,
        features: Mapping[str, pd.DataFrame] | None = None,
    ) -> AnnData:
        r"""Generate cells.

        Parameters
        ----------
        n_samples
            Number of cells; may be left out when ``conditions`` are given cell by cell.
        conditions
            Levels by key for all cells, such as ``{"cell_type": "B cells", "condition": "stimulated"}``, or a
            DataFrame with one row per cell, in the order of its rows (``adata.obs`` works as it is). Of a model with
            one key, also its level, or a list of one per cell. Keys that are not given are null.
        guidance_weight
            Weight w of guidance: 1, the default, is plain conditional sampling, 0 is unconditional, above 1 pushes
            cells towards their conditions. A dict, ``{"condition": 2.0}``, has a weight for each key; of a set
            ``{"perturbation": {"KLF1": 2.0}}`` pushes one member alone, by what the set is beyond that without it. With
            ``guidance="both"``, one number for either, or ``{"classifier-free": 2.0, "classifier": 1.0}``. Of images
            the default is 4 by a classifier alone.
        guidance
            What pushes: ``"classifier-free"`` (:func:`sclatent.diffusion.classifier_free`, at one evaluation of the
            denoiser more for every key whose weight is not 1), ``"classifier"``
            (:func:`sclatent.diffusion.classifier`), the gradient of :math:`\ln p(y | x_t)`, or ``"both"``, the two
            added up. The last two need a classifier. Where the denoiser is conditioned on all keys, the first is the
            default. Of images the classifier sees the clean one that the denoiser predicts, so that the gradient goes
            along what images look like (Jeanneret et al. 2022, arXiv 2203.15636).
        library_size
            Of counts, total counts of each cell, a number up to 1e12 or one per cell. By default drawn from the
            training cells of the same combination of conditions; for an unseen combination, from a mixed model of its
            logarithm (:class:`~sclatent.baseline.MixedModel`), with residuals drawn from the training cells.
        batch
            Level of ``batch_key`` to decode under. By default drawn from the training cells of the same combination,
            together with the library size; for an unseen combination, from the batches in which its levels were seen
            (:class:`~sclatent.data.TrainingBatches`).
        solver, n_steps
            Solver of the flow and its number of steps: ``"heun"`` (12, two evaluations each), ``"euler"`` (25) or
            ``"adaptive"`` (at most 8, three evaluations each).
        batch_size
            Cells computed together.
        seed
            Seed; every cell has random numbers of its own, so the same seed gives the same cells whatever
            ``batch_size`` is. Cells of the same seed under different conditions start from the same noise.
        progress_bar
            Whether to show progress.
        baseline_only
            Whether to leave the network out: cells of the closed form alone (``baseline``), the floor that shows what
            the network adds.
        features
            Features of levels, or members of sets, that training has not, by key, as in ``setup_anndata``.

        Returns
        -------
        AnnData
            Counts are integers (CSR; int32, or int64 where one of them needs it) over the genes of training; images and
            embeddings are where they were in training. ``obs`` has the conditions, ``uns["sclatent"]`` what made it.

        Examples
        --------
        Conditions that are not given are null; those that are can be pushed harder:

        >>> conditions = {key: levels[0] for key, levels in model.conditions.levels.items()}
        >>> cells = model.sample(4, conditions, guidance_weight=2.0)
        >>> cells.n_obs, cells.uns["sclatent"]["guidance_weight"]
        (4, 2.0)

        As many cells of every combination as were measured, row by row:

        >>> like_measured = model.sample(conditions=adata.obs[:5])
        >>> like_measured.n_obs
        5
        """
        self._check_stage("diffusion", "sample")
        self._add_features(features)
        n_samples = check_n_samples(self.conditions.n_rows(conditions) if n_samples is None else n_samples)
        check_steps(n_steps)
        codes = self.conditions.encode(conditions, n_samples)
        if isinstance(conditions, pd.DataFrame):
            check_order(library_size, conditions.index, "library_size", of="conditions", index="conditions.index")
        guidance = self._default_guidance if guidance is None else guidance
        weight = self._default_weight(guidance) if guidance_weight is None else guidance_weight
        weights = self._weights(guidance, weight)
        self._check_baseline_only(baseline_only, weights)
        uniforms = cell_rng(seed, "sizes").random((n_samples, 2))
        seen = self.conditions.of_training(self.conditions.without_dose(codes))
        library, library_rule = self.domain.given_or_drawn_library(library_size, codes, uniforms[:, 0])
        batches, batch_rule = self.batches.given_or_drawn(batch, seen, uniforms)
        self.batches.warn_of_unseen(seen, batches)
        self._warn_of_asked(codes, weights)
        known = self._known_of(codes)
        if (seen != self.conditions.without_dose(codes)).any():
            batch_rule = {key: r if r == "given" else f"{r}, by {OF_UNSEEN}" for key, r in batch_rule.items()}

        blocks = []
        for cells in self._blocks(n_samples, batch_size, "Sampling", progress_bar):
            of_cells = None if library is None else library[cells]
            size, noise = self.domain.size(self.module, of_cells), self._noise(seed, cells)
            tokens = self._flow(noise, codes[cells], size, weights, 0.0, 1.0, solver, n_steps, baseline_only)
            expected = self.domain.decode(self.module, tokens, batches[cells], of_cells)
            check_generated(noise, tokens, expected, weight)
            blocks.append(self.domain.draw(self.module, expected, seed, cells))
        obs = self.batches.obs_of(codes, batches, pd.Index([f"generated_{i}" for i in range(n_samples)]))
        if library is not None:
            obs["library_size"] = library
        result = self.domain.collect(blocks, obs, library)
        result.uns["sclatent"] = self._provenance(
            "sample", seed=seed, guidance=weights.kind, guidance_weight=weight, solver=solver, n_steps=n_steps,
            **known, **library_rule, **batch_rule,
            **({"baseline_only": True} if baseline_only else {}),
        )  # fmt: skip
        return result

    def counterfactual(
        self,
        adata: AnnData | None = None,
        conditions: Any = None,
        noise_level: float | None = None,
        guidance_weight: Weight | None = None,
        guidance: Guidance | None = None,
        inversion: bool = True,
        indices: Sequence[int] | None = None,
        solver: Solver = "heun",
        n_steps: int | None = None,
        batch_size: int = 256,
        seed: int = 0,
        progress_bar: bool = True,
        features: Mapping[str, pd.DataFrame] | None = None,
    ) -> AnnData:
        r"""Move measured cells to other conditions, row by row: add noise, change the conditions, reconstruct.

        The cell is encoded and carried backwards, along the flow of its own conditions, to the noise that it comes
        from; its place around the baseline's mean of its conditions becomes the same place around that of the new ones;
        and it is carried forwards again along the flow of these. Whatever of the measured cell the decoder does not
        explain is kept, so a cell that is moved to where it is comes back as it was. Counts follow by abduction
        (:meth:`~sclatent.module.GeneLikelihood.transport`).

        Parameters
        ----------
        adata
            Cells to move, with their conditions in ``obs``; the training data by default. A condition that is missing
            there is null, and so is a label that is to be changed.
        conditions
            Where to, as in :meth:`sample`. Other keys stay as they are.
        noise_level
            Share of noise in the variance of what the cell is reconstructed from, in [0, 1]. At 0 there is no flow: the
            cell moves by the difference of the baseline's means alone, which evaluates no network but the autoencoder.
            At 1 nothing but its noise is kept, and the denoiser makes the cell anew under the new conditions. By
            default 0, without a baseline 0.5; where a label is changed it depends on what guides, see
            :ref:`counterfactuals-of-features`.
        guidance_weight, guidance
            As in :meth:`sample`; guidance acts on the flow forwards, and with a noise level of 0 there is none. Where a
            label is changed there is less way to go than in sampling, and default weights are higher.
        inversion
            Whether the noise is that which the cell comes from (DDIM inversion, Song et al. 2021, arXiv 2010.02502): so
            that without guidance all of the change is that of the conditions. ``False`` adds noise that is drawn:
            ``seed`` matters.
        indices
            Rows of ``adata`` to move; all by default.
        solver, n_steps, batch_size, seed, progress_bar, features
            As in :meth:`sample`.

        Returns
        -------
        AnnData
            One row per cell of the input, with its index, its obs and the new conditions. Of images,
            ``obsm["difference"]`` is the new image less the old one, float32, (cells, height, width, channels).

        Examples
        --------
        >>> cells = adata[:5].copy()
        >>> conditions = {key: levels[0] for key, levels in model.conditions.levels.items()}
        >>> moved = model.counterfactual(cells, conditions)
        >>> moved.obs_names.equals(cells.obs_names)
        True
        """
        self._check_stage("diffusion", "counterfactual")
        if conditions is None:
            raise ValueError("conditions is missing: say where to move the cells, such as {'condition': 'stimulated'}.")
        check_seed(seed)  # a wrong seed is said even where nothing is drawn
        check_steps(n_steps)
        self._check_noise(noise_level, inversion)
        self._add_features(features)
        origin, rows = self._given(adata), self._rows(adata, indices, conditions=True)
        check_order(conditions, origin.obs_names[rows.cells], "conditions")
        known, target = rows.conditions[rows.cells], self.conditions.encode(conditions, len(rows))
        changes_label = self.labels_key is not None and bool((target[:, -1] != NULL).any())
        noise_level, weight, weights = self._flow_of(noise_level, guidance_weight, guidance, changes_label)
        asked, source, target = target, self._source(known, target), np.where(target == NULL, known, target)
        self._warn_of_no_dose(known, asked, target)
        batches = self.batches.asked(self.conditions.of_training(target), rows.batch[rows.cells])
        self.batches.warn_of_unseen(self.conditions.of_training(np.where(target == known, NULL, target)), batches)

        self._warn_of_asked(target, weights)
        known_of_target = self._known_of(target)
        blocks, libraries = [], []
        for cells in self._blocks(len(rows), batch_size, "Counterfactuals", progress_bar):
            batch = rows[cells]
            library = self.domain.library_of(self.module, batch)
            size, z = self.domain.size(self.module, library), self._latent(batch, seed, cells)
            x = self._noisy(z, source[cells], size, noise_level, inversion, solver, n_steps, seed, cells)
            start = self.process.time(noise_level)
            x = x + self._shift(source[cells], target[cells], size, start)
            moved = self._flow(x, target[cells], size, weights, start, 1.0, solver, n_steps)
            # the same arithmetic for both, so that they agree to the last bit where a cell moves nowhere
            old = self.domain.decode(self.module, z, batch.batch.numpy(), library)
            new = self.domain.decode(self.module, moved, batches[cells], library)
            of_old, of_new = (self.conditions.without_dose(c)[cells] for c in (self._known(source, target), target))
            new = self.domain.moved(self.module, new, of_old, of_new, self.conditions.values())
            check_generated(z, moved, new, weight)
            blocks.append(self.domain.transport(self.module, rows, cells, old, new, seed))
            libraries += [] if library is None else [library]
        obs = self._obs_of(origin, rows.cells)
        new_obs = self.batches.obs_of(target, batches, obs.index)
        obs[new_obs.columns] = new_obs
        result = self.domain.collect(blocks, obs, np.concatenate(libraries) if libraries else None)
        self.domain.add_difference(result, rows)
        result.uns["sclatent"] = self._provenance(
            "counterfactual", noise_level=noise_level, inversion=bool(inversion), seed=seed, guidance=weights.kind,
            guidance_weight=weight, solver=solver, n_steps=n_steps, **known_of_target,
        )  # fmt: skip
        return result

    # ---- parts of these

    def _flow_of(
        self, noise_level: float | None, guidance_weight: Weight | None, guidance: Guidance | None, changes_label: bool
    ) -> tuple[float, Weight, GuidanceWeights]:
        """Noise level of counterfactuals, and weight and weights of what guides them: those asked for, or defaults."""
        guidance, default_level, default_weight = self._default_counterfactual(guidance, changes_label)
        noise_level = default_level if noise_level is None else noise_level
        weight = default_weight if guidance_weight is None else guidance_weight
        weights = self._weights(guidance, weight)
        self._warn_of_no_flow(noise_level, weights, changes_label, is_weight_given=guidance_weight is not None)
        if not changes_label:  # there is none to push to
            weights = weights._replace(classifier=0.0)
        return noise_level, weight, weights

    def _source(self, known: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Conditions (cells, n_keys) that cells are carried back under: their own, but for a label that is asked for.

        A label is for the model to find; that of a cell to move is not looked at.
        """
        source = known.copy()
        if self.labels_key is not None:
            source[:, -1] = np.where(asked[:, -1] == NULL, known[:, -1], NULL)
        return source

    def _check_baseline_only(self, baseline_only: bool, weights: GuidanceWeights) -> None:
        if not isinstance(baseline_only, bool | np.bool_):
            raise ValueError(f"baseline_only={baseline_only!r} must be True or False.")
        if baseline_only and not self.module.denoiser.has_baseline:
            raise ValueError(
                "baseline_only=True needs a baseline, and this model has none: make it with baseline='mixed'."
            )
        if baseline_only and weights.classifier:
            raise ValueError(
                f"guidance={weights.kind!r} needs the network: use 'classifier-free' with baseline_only=True."
            )

    @staticmethod
    def _check_noise(noise_level: float | None, inversion: bool) -> None:
        if not isinstance(inversion, bool | np.bool_):
            raise ValueError(f"inversion={inversion!r} must be True or False.")
        if noise_level is not None and not (is_number(noise_level) and 0 <= noise_level <= 1):
            raise ValueError(
                f"noise_level={short_repr(noise_level)} must be between 0 (cells move by the baseline alone) and 1 "
                "(they are made anew)."
            )

    def _warn_of_no_flow(
        self, noise_level: float, weights: GuidanceWeights, changes_label: bool, is_weight_given: bool
    ) -> None:
        """Say what a noise level of 0 does not do."""
        if noise_level == 0 and not self.module.denoiser.has_baseline:
            warn_user(
                "noise_level=0 moves cells by the effect that conditions have in the baseline, and this model has none "
                "(baseline='none'): they stay as they are. Use a higher noise_level, such as 0.5."
            )
        elif noise_level == 0 and changes_label:
            warn_user(
                f"noise_level=0 does not change {self.labels_key!r}: a label is reached by denoising, and not by the "
                "baseline alone. Use a higher noise_level, or leave it out."
            )
        elif noise_level == 0 and is_weight_given and weights.is_guided:
            warn_user(
                "guidance_weight does nothing at noise_level=0, where cells move by the difference of two means and no "
                "flow is followed: give a noise_level above 0, such as 0.5, or leave guidance_weight out."
            )

    @staticmethod
    def _obs_of(adata: AnnData, cells: np.ndarray) -> pd.DataFrame:
        """The obs of measured cells, without what setting up has added."""
        kept = [not str(name).startswith("_scvi") for name in adata.obs.columns]
        return adata.obs.loc[:, kept].iloc[cells].copy()

    def _provenance(self, method: str, **how: Any) -> dict[str, Any]:
        how = {key: _for_uns(value) for key, value in how.items()}
        if "solver" in how:
            how["n_steps"] = how["n_steps"] or DEFAULT_STEPS[how["solver"]]
        return {"model": type(self).__name__, "version": version("sclatent"), "method": method, **how}


def _for_uns(value: Any) -> Any:
    """A copy of a value that files of AnnData can hold: as text, a dict whose keys have slashes, which files split."""
    if not isinstance(value, Mapping):
        return value
    held = {key: _for_uns(part) for key, part in value.items()}
    return str(held) if any("/" in str(key) for key in held) else held
