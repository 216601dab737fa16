"""From AnnData to minibatches: checks, conditions, genes by name, sparse loaders."""

from ._additive import additive_effects, common_slope
from ._checks import (
    check_adata,
    check_categorical,
    check_counts,
    check_keys,
    check_no_empty_level,
    check_place,
    check_roles,
    check_size_factors,
    check_var_names,
    check_whole,
    get_matrix,
    is_number,
    is_whole,
    raw_counts_hint,
    warn_of_copies,
)
from ._conditions import Conditions
from ._features import FeatureBatch, FeatureRows, check_finite, feature_shape, get_features, read_features
from ._genes import align_genes
from ._interactions import SHRINKAGE, ChangeRidge, interaction_effects, unseen_profiles
from ._labels import UNLABELED, check_labels, label_codes
from ._levels import check_levels, plain_level, short_repr
from ._library import LibrarySizes, check_library_size
from ._loader import CellBatch, CellRows, EpochSampler, TokenRows, make_loader
from ._loadings import gene_loadings
from ._normalize import TARGET_SUM, log_normalize_counts
from ._profiles import mean_profiles

__all__ = [
    "SHRINKAGE",
    "TARGET_SUM",
    "UNLABELED",
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
    "check_adata",
    "check_categorical",
    "check_counts",
    "check_finite",
    "check_keys",
    "check_labels",
    "check_levels",
    "check_library_size",
    "check_no_empty_level",
    "check_place",
    "check_roles",
    "check_size_factors",
    "check_var_names",
    "check_whole",
    "common_slope",
    "feature_shape",
    "gene_loadings",
    "get_features",
    "get_matrix",
    "interaction_effects",
    "is_number",
    "is_whole",
    "label_codes",
    "log_normalize_counts",
    "make_loader",
    "mean_profiles",
    "plain_level",
    "raw_counts_hint",
    "read_features",
    "short_repr",
    "unseen_profiles",
    "warn_of_copies",
]
