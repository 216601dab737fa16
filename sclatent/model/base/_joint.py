"""What models with a classifier share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from sclatent.data import make_loader


class JointMixin:
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
        rows = self._rows_to_predict(adata, indices)
        blocks = []
        for batch in make_loader(rows, self._at_most(batch_size)):
            z = self.module.standardize(self._encode_batch(batch))
            blocks.append(self.module.denoiser.logits(z, z.new_ones(len(z))).softmax(dim=1).cpu().numpy())
        return self._labels_of(np.concatenate(blocks), rows, adata, soft)
