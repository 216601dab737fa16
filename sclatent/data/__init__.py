"""From AnnData to minibatches: checks, conditions, genes by name, sparse loaders."""

from ._additive import additive_effects, common_slope
from ._checks import (
    check_categorical,
    check_counts,
    check_keys,
    check_no_empty_level,
    check_obs,
    check_size_factors,
    check_var_names,
    get_matrix,
    not_whole,
)
from ._conditions import Conditions
from ._features import FeatureBatch, FeatureRows, check_finite, check_varies, feature_shape, get_features, read_features
from ._genes import align_genes
from ._interactions import SHRINKAGE, ChangeRidge, interaction_effects, unseen_profiles
from ._library import LibrarySizes
from ._loader import CellBatch, CellRows, EpochSampler, TokenRows, make_loader
from ._loadings import gene_loadings
from ._normalize import TARGET_SUM, log_normalize_counts
from ._numbers import check_number, check_whole
from ._profiles import mean_profiles
from ._random import random_stream, torch_stream
from ._reading import by_rows, read_rows, row_blocks, totals

__all__ = [
    "SHRINKAGE",
    "TARGET_SUM",
    "CellBatch",
    "CellRows",
    "ChangeRidge",
    "Conditions",
    "EpochSampler",
    "FeatureBatch",
    "FeatureRows",
    "LibrarySizes",
    "TokenRows",
    "additive_effects",
    "align_genes",
    "by_rows",
    "check_categorical",
    "check_counts",
    "check_finite",
    "check_keys",
    "check_no_empty_level",
    "check_number",
    "check_obs",
    "check_size_factors",
    "check_var_names",
    "check_varies",
    "check_whole",
    "common_slope",
    "feature_shape",
    "gene_loadings",
    "get_features",
    "get_matrix",
    "interaction_effects",
    "log_normalize_counts",
    "make_loader",
    "mean_profiles",
    "not_whole",
    "random_stream",
    "read_features",
    "read_rows",
    "row_blocks",
    "torch_stream",
    "totals",
    "unseen_profiles",
]
