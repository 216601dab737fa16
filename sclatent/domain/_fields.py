"""Fields of scvi-tools that take over to further cells what a model knows: its features and levels, by name.

Those of scvi-tools refuse cells on other genes, or without a column. Whether cells fit is for the model to say.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.data.fields import CategoricalJointObsField, CategoricalObsField, LayerField, ObsmField

from sclatent.data._levels import code_of, factorize, level_key


class KnownLayerField(LayerField):
    """X or a layer. Of further cells the features are those of the model, not those that there are; names are text."""

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        return {**super().register_field(adata), self.COLUMN_NAMES_KEY: np.asarray(adata.var_names.astype(str))}

    def transfer_field(self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any) -> dict[str, Any]:
        self.validate_field(adata_target)
        return {**state_registry, self.N_OBS_KEY: adata_target.n_obs}


class KnownObsmField(ObsmField):
    """An entry of obsm."""

    def transfer_field(self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any) -> dict[str, Any]:
        self.validate_field(adata_target)
        return dict(state_registry)


class KnownLevelsField(CategoricalObsField):
    """A column of obs. Cells of no level of the model, or without the column, have the code -1."""

    def transfer_field(self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any) -> dict[str, Any]:
        if self.is_default:
            return super().transfer_field(state_registry, adata_target, **kwargs)
        levels = state_registry[self.CATEGORICAL_MAPPING_KEY]
        adata_target.obs[self.attr_key] = _codes(adata_target, state_registry[self.ORIGINAL_ATTR_KEY], levels)
        return dict(state_registry)


class KnownConditionsField(CategoricalJointObsField):
    """Columns of obs, joined; as of :class:`KnownLevelsField`."""

    def transfer_field(self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any) -> dict[str, Any]:
        levels = state_registry[self.MAPPINGS_KEY]
        codes = {key: _codes(adata_target, key, levels[key]) for key in self.attr_keys}
        adata_target.obsm[self.attr_key] = pd.DataFrame(codes, index=adata_target.obs_names)
        return dict(state_registry)


def _codes(adata: AnnData, key: Any, levels: Any) -> np.ndarray:
    if key not in adata.obs:
        return np.full(adata.n_obs, -1)
    code = {level_key(level): i for i, level in enumerate(levels)}
    codes, found = factorize(adata.obs[key])
    return np.array([*(code_of(level, code, -1) for level in found), -1])[codes]
