"""Training of SCLDM: the autoencoder, then the denoiser on its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sclatent.data import CellRows, TokenRows, additive_effects, common_slope, interaction_effects, mean_profiles
from sclatent.train import AutoencoderPlan, DiffusionPlan, StagePlan


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

    def _contents(self, rows: CellRows) -> list[Any]:
        arrays = (rows.conditions, rows.batch, rows.library_sizes())
        return [list(self.genes), *(array.tobytes() for array in arrays)]

    def _plan(self, stage: str, arguments: Mapping[str, Any]) -> StagePlan:
        if stage == "autoencoder":
            return AutoencoderPlan(self.module.autoencoder, kl_weight=self.init_params_["kl_weight"], **arguments)
        return DiffusionPlan(self.module.denoiser, **arguments)

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
        first = "diffusion" not in self.trained_stages  # a trained denoiser keeps the frame it was trained in
        if first:
            self.module.standardize.cpu().fit(tokens)
            self.module.standardize_size.cpu().fit(torch.from_numpy(rows.library_sizes()).log())
        self._tokens = self.module.standardize.cpu()(tokens)
        if first:
            size, values = self._token_rows(rows).others[1].numpy(), self._tokens.flatten(1).numpy()
            slope = common_slope(rows.conditions, size, values)
            values = values - size[:, None] * slope
            n_levels = self.conditions.n_levels
            effects = additive_effects(rows.conditions, values, n_levels)[1]
            profiles = mean_profiles(rows, self.module.autoencoder.likelihood.is_count)
            combinations, interactions = interaction_effects(rows.conditions, values, n_levels, effects, profiles)
            self.module.denoiser.mean.cpu().fit(
                [torch.from_numpy(effect) for effect in effects],
                torch.from_numpy(slope),
                torch.from_numpy(combinations),
                torch.from_numpy(interactions),
            )

    def _token_rows(self, rows: CellRows) -> TokenRows:
        self.module.standardize_size.cpu()
        sizes = self.module.size(torch.from_numpy(rows.library_sizes()).float())
        return TokenRows(self._tokens, torch.from_numpy(rows.conditions), sizes)
