"""Training of SCLDM: the autoencoder, then the denoiser on its tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from sclatent.data import (
    MAX_COMBINATIONS,
    MAX_UNSEEN,
    CellRows,
    LibrarySizes,
    TokenRows,
    TrainingBatches,
    additive_effects,
    check_counts,
    common_slope,
    gene_loadings,
    interaction_effects,
    log_normalize_counts,
    make_loader,
    mean_profiles,
    totals,
    unseen_profiles,
)
from sclatent.diffusion import LinearFlow
from sclatent.train import AutoencoderPlan, DiffusionPlan, StagePlan

from .base import CHANGED

MOVED = 50, 512  # least and most cells that are moved to see what tokens make of one combination,
MOVED_IN_ALL = 20_000  # and how many in all, if that is not less than the least
MOVED_VALUES = 100_000_000  # of which, times the number of genes, there are not more than so many
MAX_PROFILE_VALUES = 2**27  # of the mean expression of all combinations: half a gigabyte
PSEUDOCOUNT = 0.1  # counts per 10,000


class TrainingMixin:
    """What each of the two stages trains, and on what."""

    STAGES = ("autoencoder", "diffusion")

    def _training_rows(self) -> CellRows:
        rows = self._rows(conditions=True)
        if (rows.conditions < 0).any():
            raise ValueError(
                f"To train, every cell needs a level of every condition: {self.conditions.keys} in adata.obs."
            )
        return rows

    def _check_values(self, rows: CellRows) -> None:
        is_count = self.registry["setup_args"]["is_count_data"]
        check_counts(rows.matrix, CHANGED, is_count_data=is_count)

    def _contents(self, rows: CellRows) -> Iterator[Any]:
        yield from (list(self.genes), self.conditions.levels, self.batches.levels, rows.panel.numpy())
        yield from (rows.conditions, rows.batch, rows.library)
        for start in range(0, len(rows), 4096):
            block = rows.rows(np.arange(start, min(start + 4096, len(rows))))
            yield np.diff(block.indptr).astype(np.int32)
            yield block.indices.astype(np.int32)
            yield block.data.astype(np.float32)  # as training sees them, whatever they are stored as

    def _plan(self, stage: str, arguments: Mapping[str, Any]) -> StagePlan:
        if stage == "autoencoder":
            return AutoencoderPlan(self.module.autoencoder, kl_weight=self.init_params_["kl_weight"], **arguments)
        return DiffusionPlan(self.module.denoiser, LinearFlow(), **arguments)

    def _look_at_features(self, rows: CellRows) -> None:
        """Set what the autoencoder starts from: mean expression, and embeddings of genes."""
        total = np.zeros(len(self.genes))
        panel = rows.panel.numpy()
        for start in range(0, len(rows), 4096):
            block = rows.rows(np.arange(start, min(start + 4096, len(rows))))
            total[panel] += np.asarray(block.sum(axis=0), dtype=np.float64).ravel()
        autoencoder = self.module.autoencoder
        is_count = autoencoder.likelihood.is_count
        mean = np.log((total + 1) / (total + 1).sum()) if is_count else total / len(rows)
        autoencoder.gene_bias.data.copy_(torch.from_numpy(mean))
        dim, seed = autoencoder.genes_in.shape[1], self.init_params_["seed"]
        loadings = gene_loadings(rows, len(self.genes), dim, is_count, seed=seed, progress_bar=self._progress_bar)
        for genes in (autoencoder.genes_in, autoencoder.genes_out):
            genes.data.copy_(torch.from_numpy(loadings))

    def _learn_from(self, rows: CellRows) -> None:
        codes, batch, n_levels = rows.conditions[rows.cells], rows.batch[rows.cells], self.conditions.n_levels
        self.library_sizes = LibrarySizes(codes, self._library_sizes(rows), n_levels)
        self.training_batches = TrainingBatches(codes, batch, n_levels, self.batches.n_levels[0])
        self._warn_of_levels(self.conditions)

    def _library_sizes(self, rows: CellRows) -> np.ndarray:
        """Library sizes of whole cells, (cells,); of cells that were measured on a part of the genes by the decoder."""
        if rows.library is not None or len(rows.panel) == len(self.genes):
            return rows.library_sizes()
        batches = make_loader(rows, 1024)
        return np.concatenate([self._whole_library(batch, self._share(batch)) for batch in batches])

    def _stage_rows(self, stage: str, rows: CellRows) -> CellRows | TokenRows:
        if stage == "autoencoder":
            return rows
        self._prepare_tokens(rows)
        return self._token_rows(rows)

    def _prepare_tokens(self, rows: CellRows) -> None:
        """Compute the tokens of all cells, once: training of the denoiser never touches the autoencoder again."""
        has_frame = "diffusion" in self.trained_stages
        if self._tokens is not None and has_frame:
            return
        tokens = self._encode(rows, 1024, self._progress_bar)
        seen = rows.subset(self.train_indices_)
        if has_frame:  # it keeps the frame it was trained in, but for what it sees by now
            self.module.correction.cpu().forget(torch.from_numpy(np.unique(seen.conditions[seen.cells], axis=0)))
        else:
            self._fit_frame(seen, tokens[self.train_indices_])
        self._tokens = self.module.standardize.cpu()(tokens)

    def _fit_frame(self, rows: CellRows, tokens: torch.Tensor) -> None:
        """Fit what the denoiser starts from: scales, the mean of the conditions, the correction of unseen ones."""
        self.module.cpu()
        self.module.standardize.fit(tokens)
        library = torch.from_numpy(self._library_sizes(rows))
        self.module.standardize_size.fit(library.log())
        size, values = self.module.size(library.float()).numpy(), self.module.standardize(tokens).flatten(1).numpy()
        codes, n_levels = rows.conditions[rows.cells], self.conditions.n_levels
        slope = common_slope(codes, size, values)
        values = values - size[:, None] * slope
        effects = additive_effects(codes, values, n_levels)[1]
        self._limits = []
        if np.prod(n_levels, dtype=float) > MAX_COMBINATIONS:
            self._limit(
                f"by the additive model alone, because the levels of {self.conditions.keys} multiply to more than "
                f"{MAX_COMBINATIONS:,} combinations"
            )
        profiles = self._profiles(rows)
        combinations, interactions = interaction_effects(codes, values, n_levels, effects, profiles)
        self.module.denoiser.mean.fit(
            [torch.from_numpy(effect) for effect in effects],
            torch.from_numpy(slope),
            torch.from_numpy(combinations),
            torch.from_numpy(interactions),
        )
        table = self.module.correction
        table.fit_combinations(torch.empty(0, len(n_levels), dtype=torch.int64), table.interactions[:0])
        if profiles is not None:
            self._correct_unseen(rows, profiles)

    def _limit(self, how: str) -> None:
        """Say, now and in uns of what is made of them, how unseen combinations are predicted where that is limited."""
        self._limits.append(how)
        warnings.warn(f"Combinations of conditions that were not seen in training are predicted {how}.", stacklevel=2)

    def _profiles(self, rows: CellRows) -> np.ndarray | None:
        """Mean expression of the combinations that were seen; None where it would not go into memory."""
        n_combinations = len(np.unique(rows.conditions[rows.cells], axis=0))
        if n_combinations * len(rows.panel) > MAX_PROFILE_VALUES:
            self._limit(
                f"on tokens alone, because {n_combinations:,} combinations x {len(rows.panel):,} genes are too many to "
                "compare"
            )
            return None
        is_count = self.module.autoencoder.likelihood.is_count
        return mean_profiles(rows, is_count, progress_bar=self._progress_bar)

    def _correct_unseen(self, rows: CellRows, profiles: np.ndarray) -> None:
        """Bring the decoder of combinations that were not seen halfway to the expression that their genes predict.

        Tokens predict it already: cells of a neighbour are moved to the combination by its mean, and decoded. What
        adds up on tokens multiplies expression; what adds up on genes adds to it. Neither is right for all genes, and
        the two are wrong in different ones.
        """
        codes = rows.conditions[rows.cells]
        seen, of_cell, n_cells = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
        unseen, neighbours, predicted, too_many = unseen_profiles(seen, n_cells, profiles, self.conditions.n_levels)
        if too_many:
            self._limit(f"on tokens alone, because more than {MAX_UNSEEN:,} could be predicted on genes")
        is_count = self.module.autoencoder.likelihood.is_count
        in_all = min(MOVED_IN_ALL, MOVED_VALUES / len(self.genes))
        most = int(np.clip(in_all / max(1, len(unseen)), *MOVED))
        decoded = profiles[neighbours]
        for (i,) in self._blocks(len(unseen), 1, "Unseen combinations", self._progress_bar, unit="", delay=2):
            cells = np.flatnonzero(of_cell.ravel() == neighbours[i])
            cells = cells[np.linspace(0, len(cells) - 1, min(len(cells), most)).astype(int)]
            some, positions = rows.subset(cells), np.arange(len(cells))
            before = some.rows(positions)
            after = self._move(some, positions, np.tile(unseen[i], (len(cells), 1)))[:, rows.panel.numpy()]
            if is_count:
                before, after = log_normalize_counts(before), log_normalize_counts(after)
            decoded[i] += (totals(after, axis=0) - totals(before, axis=0)) / len(cells)
        if is_count:
            predicted, decoded = (np.log(np.expm1(x.clip(min=0)) + PSEUDOCOUNT) for x in (predicted, decoded))
        correction = np.zeros((len(unseen), len(self.genes)))
        correction[:, rows.panel.numpy()] = (predicted - decoded) / 2
        self.module.correction.fit_combinations(torch.from_numpy(unseen), torch.from_numpy(correction))

    def _token_rows(self, rows: CellRows) -> TokenRows:
        self.module.standardize_size.cpu()
        sizes = self.module.size(torch.from_numpy(self._library_sizes(rows)).float())
        return TokenRows(self._tokens, torch.from_numpy(rows.conditions), sizes)
