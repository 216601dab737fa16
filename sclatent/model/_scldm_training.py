"""Training of SCLDM: the autoencoder, then the denoiser on its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from sclatent.data import (
    CellRows,
    TokenRows,
    additive_effects,
    check_counts,
    common_slope,
    interaction_effects,
    log_normalize_counts,
    mean_profiles,
    totals,
    unseen_profiles,
)
from sclatent.diffusion import LinearFlow
from sclatent.train import AutoencoderPlan, DiffusionPlan, StagePlan

MOVED = 50, 512  # least and most cells that are moved to see what tokens make of one combination,
MOVED_IN_ALL = 20_000  # and how many in all, if that is not less than the least
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
        check_counts(rows.matrix, "The AnnData of training was changed: it", is_count_data=is_count)

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

    def _stage_rows(self, stage: str, rows: CellRows) -> CellRows | TokenRows:
        if stage == "autoencoder":
            return rows
        self._prepare_tokens(rows)
        return self._token_rows(rows)

    def _prepare_tokens(self, rows: CellRows) -> None:
        """Compute the tokens of all cells, once: training of the denoiser never touches the autoencoder again."""
        if self._tokens is not None:
            return
        tokens = self._encode(rows, 1024)
        if "diffusion" in self.trained_stages:  # it keeps the frame it was trained in, but for what it sees by now
            self.module.correction.cpu().forget(torch.from_numpy(np.unique(rows.conditions, axis=0)))
        else:
            self._fit_frame(rows, tokens)
        self._tokens = self.module.standardize.cpu()(tokens)

    def _fit_frame(self, rows: CellRows, tokens: torch.Tensor) -> None:
        """Fit what the denoiser starts from: scales, the mean of the conditions, the correction of unseen ones."""
        self.module.cpu()
        self.module.standardize.fit(tokens)
        self.module.standardize_size.fit(torch.from_numpy(rows.library_sizes()).log())
        size, values = self._sizes(rows).numpy(), self.module.standardize(tokens).flatten(1).numpy()
        slope = common_slope(rows.conditions, size, values)
        values = values - size[:, None] * slope
        n_levels = self.conditions.n_levels
        effects = additive_effects(rows.conditions, values, n_levels)[1]
        profiles = mean_profiles(rows, self.module.autoencoder.likelihood.is_count)
        combinations, interactions = interaction_effects(rows.conditions, values, n_levels, effects, profiles)
        self.module.denoiser.mean.fit(
            [torch.from_numpy(effect) for effect in effects],
            torch.from_numpy(slope),
            torch.from_numpy(combinations),
            torch.from_numpy(interactions),
        )
        self._correct_unseen(rows, profiles)

    def _correct_unseen(self, rows: CellRows, profiles: np.ndarray) -> None:
        """Bring the decoder of combinations that were not seen halfway to the expression that their genes foretell.

        Tokens foretell it already: cells of a neighbour are moved to the combination by its mean, and decoded. What
        adds up on tokens multiplies expression; what adds up on genes adds to it. Neither is right for all genes, and
        the two are wrong in different ones.
        """
        seen, of_cell, n_cells = np.unique(rows.conditions, axis=0, return_inverse=True, return_counts=True)
        unseen, neighbours, foretold = unseen_profiles(seen, n_cells, profiles, self.conditions.n_levels)
        is_count = self.module.autoencoder.likelihood.is_count
        most = int(np.clip(MOVED_IN_ALL / max(1, len(unseen)), *MOVED))
        table = self.module.correction
        table.fit_combinations(torch.from_numpy(unseen[:0]), table.interactions[:0])  # tokens alone move cells here
        decoded = profiles[neighbours]
        for i, (code, neighbour) in enumerate(zip(unseen, neighbours, strict=True)):
            cells = np.flatnonzero(of_cell.ravel() == neighbour)
            cells = cells[np.linspace(0, len(cells) - 1, min(len(cells), most)).astype(int)]
            some, positions = rows.subset(cells), np.arange(len(cells))
            before = some.rows(positions)
            after = self._move(some, positions, np.tile(code, (len(cells), 1)))[:, rows.panel.numpy()]
            if is_count:
                before, after = log_normalize_counts(before), log_normalize_counts(after)
            decoded[i] += (totals(after, axis=0) - totals(before, axis=0)) / len(cells)
        if is_count:
            foretold, decoded = (np.log(np.expm1(x.clip(min=0)) + PSEUDOCOUNT) for x in (foretold, decoded))
        correction = np.zeros((len(unseen), len(self.genes)))
        correction[:, rows.panel.numpy()] = (foretold - decoded) / 2
        table.fit_combinations(torch.from_numpy(unseen), torch.from_numpy(correction))

    def _sizes(self, rows: CellRows) -> torch.Tensor:
        return self.module.size(torch.from_numpy(rows.library_sizes()).float())

    def _token_rows(self, rows: CellRows) -> TokenRows:
        self.module.standardize_size.cpu()
        return TokenRows(self._tokens, torch.from_numpy(rows.conditions), self._sizes(rows))
