"""From AnnData to minibatches: checks, conditions, genes by name, sparse loaders."""

from ._additive import additive_effects, common_slope
from ._batches import TrainingBatches
from ._checks import (
    check_categorical,
    check_counts,
    check_keys,
    check_no_empty_level,
    check_size_factors,
    check_var_names,
    get_matrix,
)
from ._conditions import Conditions
from ._features import FeatureBatch, FeatureRows, check_finite, feature_shape, get_features, read_features
from ._genes import align_genes
from ._interactions import MAX_COMBINATIONS, MAX_UNSEEN, SHRINKAGE, ChangeRidge, interaction_effects, unseen_profiles
from ._library import LibrarySizes
from ._loader import CellBatch, CellRows, EpochSampler, TokenRows, make_loader
from ._loadings import gene_loadings
from ._normalize import TARGET_SUM, log_normalize_counts
from ._profiles import mean_profiles

__all__ = [
    "MAX_COMBINATIONS",
    "MAX_UNSEEN",
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
    "TrainingBatches",
    "additive_effects",
    "align_genes",
    "check_categorical",
    "check_counts",
    "check_finite",
    "check_keys",
    "check_no_empty_level",
    "check_size_factors",
    "check_var_names",
    "common_slope",
    "feature_shape",
    "gene_loadings",
    "get_features",
    "get_matrix",
    "interaction_effects",
    "log_normalize_counts",
    "make_loader",
    "mean_profiles",
    "read_features",
    "unseen_profiles",
]
