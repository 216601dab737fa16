"""What models with a classifier share, and models that denoise cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from sclatent.data import make_loader

from ._feature_model import FeatureModel
from ._latent_diffusion_model import LatentDiffusionModel


class PredictionMixin(LatentDiffusionModel):
    """What to predict labels takes."""

    def _check_predict(self) -> None:
        if self.labels_key is None:
            raise RuntimeError(
                "predict needs labels, and this model was trained without: set up the data with labels_key."
            )
        self._check_stage("diffusion", "predict")

    def _labels_of(
        self, probabilities: np.ndarray, rows: Any, adata: AnnData | None, soft: bool
    ) -> np.ndarray | pd.DataFrame:
        assert self.labels_key is not None
        levels = self.conditions.levels[self.labels_key]
        if soft:
            return pd.DataFrame(probabilities, index=self._given(adata).obs_names[rows.cells], columns=levels)
        is_text = isinstance(levels[0], str)  # a file holds objects that are text, but none that are numbers
        return np.array(levels, dtype=object if is_text else None)[probabilities.argmax(axis=1)]


class JointMixin(PredictionMixin):
    """Prediction of labels."""

    @torch.no_grad()
    def predict(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        soft: bool = False,
        batch_size: int = 1024,
    ) -> np.ndarray | pd.DataFrame:
        """Predict the labels of cells.

        Parameters
        ----------
        adata
            Cells, labelled or not; the training data by default.
        indices
            Rows; all by default.
        soft
            Whether to return the probability of every label.
        batch_size
            Cells computed together.

        Returns
        -------
        np.ndarray | pd.DataFrame
            The most probable label of each cell, (cells,), or a DataFrame of probabilities (cells, labels).

        Examples
        --------
        >>> adata.obs["predicted"] = model.predict()
        >>> probability = model.predict(adata[:3], soft=True)
        >>> list(probability.columns[:3])
        ['ADCCM', 'Anaphase', 'Apoptosis']
        >>> probability.sum(axis=1).round(3).tolist()
        [1.0, 1.0, 1.0]
        """
        self._check_predict()
        rows = self._rows(adata, indices)
        blocks = []
        for batch in make_loader(rows, self.domain.at_most(batch_size)):
            z = self.module.standardize(self.domain.encode(self.module, batch))
            blocks.append(self.module.denoiser.logits(z, z.new_ones(len(z))).softmax(dim=1).cpu().numpy())
        return self._labels_of(np.concatenate(blocks), rows, adata, soft)


class DenoisingMixin(FeatureModel):
    """Denoising of features in one step."""

    def _denoise(
        self,
        adata: AnnData | None,
        noise_level: float,
        indices: Sequence[int] | None,
        batch_size: int,
        progress_bar: bool,
    ) -> AnnData:
        """Measured cells, taken as noisy ones and scaled to be what the process makes of clean ones, in one step."""
        origin, rows = self._given(adata), self._rows(adata, indices)
        blocks = []
        for cells in self._blocks(len(rows), batch_size, "Denoising", progress_bar):
            batch = rows[cells]
            x = math.sqrt(1 - noise_level) * self.domain.encode(self.module, batch)
            clean = self.domain.decode(self.module, self.denoise_tokens(x, noise_level), batch.batch.numpy())
            blocks.append(self.domain.in_range(clean, batch.x.numpy()))
        result = self.domain.collect(blocks, self._obs_of(origin, rows.cells))
        result.uns["sclatent"] = self._provenance("denoise", noise_level=noise_level)
        return result
