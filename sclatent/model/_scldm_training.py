"""Training of SCLDM: the autoencoder, then the denoiser on its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from sclatent.data import (
    CellRows,
    LibrarySizes,
    TokenRows,
    TrainingBatches,
    check_counts,
    gene_loadings,
    make_loader,
)
from sclatent.train import AutoencoderPlan, DiffusionPlan, StagePlan

from .base import CHANGED


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
        return DiffusionPlan(self.module.denoiser, self.process, **arguments)

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
        if not has_frame:  # else the denoiser keeps the scales and the baseline that it was trained with
            self._fit_frame(rows.subset(self.train_indices_), tokens[self.train_indices_])
        self._tokens = self.module.standardize.cpu()(tokens)

    def _fit_frame(self, rows: CellRows, tokens: torch.Tensor) -> None:
        """Fit what the denoiser starts from: scales of tokens and sizes, and the baseline."""
        self.module.cpu()
        self.module.standardize.fit(tokens)
        library = torch.from_numpy(self._library_sizes(rows))
        self.module.standardize_size.fit(library.log())
        codes, size = torch.from_numpy(rows.conditions[rows.cells]), self.module.size(library.float())
        self.module.denoiser.fit(self.module.standardize(tokens), codes, size)

    def _token_rows(self, rows: CellRows) -> TokenRows:
        self.module.standardize_size.cpu()
        sizes = self.module.size(torch.from_numpy(self._library_sizes(rows)).float())
        return TokenRows(self._tokens, torch.from_numpy(rows.conditions), sizes)
