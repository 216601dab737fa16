"""Models of images and embeddings: how they are set up, and what they do by default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sclatent.data import (
    UNLABELED,
    check_adata,
    check_finite,
    check_place,
    check_varies,
    feature_shape,
    get_features,
    plain_level,
)
from sclatent.domain import DIFFERENCE, FeatureDomain

from ._columns import ConditionKeys, check_columns
from ._guidance import Guidance, Weight
from ._latent_diffusion_model import LatentDiffusionModel

# weight of a classifier alone that sees what is predicted of images: its gradient falls short; chosen on training cells
IMAGE_CLASSIFIER_WEIGHT = 4.0
# noise level and weight of counterfactuals by default, chosen on training cells
COUNTERFACTUAL: dict[str, dict[Guidance, tuple[float, Weight]]] = {
    "embedding": {
        "classifier-free": (0.4, 8.0),
        "classifier": (0.2, 40.0),
        "both": (0.2, {"classifier-free": 2.0, "classifier": 20.0}),
    },
    "image": {
        "classifier-free": (0.95, 5.0),
        "classifier": (0.55, 100.0),
        "both": (0.6, {"classifier-free": 4.0, "classifier": 100.0}),
    },
}


class FeatureModel(LatentDiffusionModel):
    """A latent diffusion model of images or embeddings."""

    DOMAIN = FeatureDomain

    domain: FeatureDomain

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features of a cell: (dim,), or (height, width, channels)."""
        return self.domain.shape

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        obsm_key: str | None = None,
        layer: str | None = None,
        image_shape: Sequence[int] | None = None,
        condition_keys: ConditionKeys = None,
        labels_key: str | None = None,
        unlabeled_category: str | float = UNLABELED,
        batch_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell the model where things are in an AnnData; the features are checked, and stay where they are.

        Parameters
        ----------
        adata
            Cells, with embeddings (cells, dim) or square images (cells, height, width[, channels]), of uint8, float or
            bool, in memory, in a file or as a dask array. Features that are the same in all cells give a warning.
            Embeddings keep the proportions of their coordinates: bring features of different units, such as areas and
            intensities, to one scale first (``sc.pp.scale``).
        obsm_key, layer
            Entry of obsm, or layer, with the features; X by default.
        image_shape
            (height, width) or (height, width, channels) of images that are stored flat. Flat pixels of type uint8 also
            take it from ``adata.uns["image_shape"]``.
        condition_keys
            One or more columns of obs to condition on, such as a treatment. They are categories, whose levels are
            text, numbers or booleans; or a dict of a kind for each column, of :mod:`sclatent.conditions`.
        labels_key
            Categorical column of obs with the labels: a condition, too, which may be missing, and which is predicted.
        unlabeled_category
            What the column says of cells without a label, such as -1 where labels are numbers.
        batch_key
            Categorical column of obs; every batch is centred on a mean of its own, so that the latent need not carry
            it. Batches should hold labels in like proportions. If it is ``labels_key``, too, cells are decoded under
            the batch of the label that is asked for.
        kwargs
            Further arguments of ``scvi.data.AnnDataManager.register_fields``, which scvi-tools gives.

        Raises
        ------
        KeyError
            If an entry or a column is missing.
        ValueError
            If the data are not what was expected. Nothing has been changed then.

        Examples
        --------
        It is the same for DAED, JointDiffusion and JointLDM. Embeddings in X, with labels for a quarter of the cells:

        >>> from sclatent.model import JointLDM
        >>> adata = sclatent.datasets.mitocheck()
        >>> known = adata.obs["phenotype"].astype(str).iloc[::4]
        >>> adata.obs["label"] = known.reindex(adata.obs_names, fill_value="unknown")
        >>> JointLDM.setup_anndata(adata, labels_key="label", unlabeled_category="unknown")

        Images in obsm, without labels:

        >>> JointLDM.setup_anndata(adata, obsm_key="image")
        >>> JointLDM(adata).shape
        (32, 32, 1)
        """
        check_adata(adata)
        check_place(obsm_key=obsm_key, layer=layer)
        values, where = get_features(adata, obsm_key, layer)
        shape = feature_shape(values, where, image_shape, adata.uns)
        if obsm_key == DIFFERENCE and len(shape) == 3:
            raise ValueError(
                f"obsm_key={obsm_key!r}: this is where counterfactual puts differences of images. Rename yours by "
                f'adata.obsm["image"] = adata.obsm.pop({obsm_key!r}).'
            )
        check_finite(values, where)
        is_query = "source_registry" in kwargs
        keys, labels = check_columns(
            adata, condition_keys, batch_key, labels_key, unlabeled_category, is_query=is_query
        )
        if adata.n_obs > 1 and not is_query:
            codes = np.zeros(adata.n_obs) if batch_key is None else pd.factorize(adata.obs[batch_key])[0]
            check_varies(values, where, shape, codes)
        setup_args = {
            "obsm_key": obsm_key,
            "layer": layer,
            "image_shape": None if image_shape is None else list(map(int, image_shape)),
            **keys,
            "labels_key": labels_key,
            "unlabeled_category": UNLABELED if labels_key is None else plain_level(unlabeled_category),
            "batch_key": batch_key,
            "shape": list(shape),
            "labels": labels,
            "dtype": str(values.dtype),
            "stored_shape": [int(n) for n in values.shape[1:]],
        }
        cls._register(adata, setup_args, **kwargs)

    @staticmethod
    def _default_epochs(n_cells: int) -> float:
        return min(4000 / n_cells**0.5, 150_000 / n_cells)

    @property
    def _classifier_sees_clean(self) -> bool:
        return self.domain.is_image

    def _default_weight(self, guidance: Guidance | None) -> Weight:
        return IMAGE_CLASSIFIER_WEIGHT if self.domain.is_image and guidance == "classifier" else 1.0

    def _default_counterfactual(
        self, guidance: Guidance | None, changes_label: bool
    ) -> tuple[Guidance | None, float, Weight]:
        if not changes_label:
            return super()._default_counterfactual(guidance, changes_label)
        if guidance is None:
            wanted: Guidance = "both" if self.domain.is_image else "classifier"
            guidance = wanted if wanted in self._ways else self._default_guidance
        defaults: Mapping[Any, tuple[float, Weight]] = COUNTERFACTUAL["image" if self.domain.is_image else "embedding"]
        # guidance that is not known has no defaults, and is refused later
        level, weight = defaults.get(guidance if isinstance(guidance, str) else None, (1.0, 1.0))
        return guidance, level, weight
