"""From AnnData to minibatches: checks, conditions, genes by name, sparse loaders."""

from ._batches import TrainingBatches
from ._checks import (
    check_adata,
    check_counts,
    check_obs,
    check_var_names,
    get_matrix,
    not_whole,
    raw_counts_hint,
)
from ._columns import (
    check_categorical,
    check_keys,
    check_no_empty_level,
    check_place,
    check_roles,
    check_size_factors,
    warn_of_copies,
)
from ._conditions import Conditions
from ._features import (
    FeatureBatch,
    FeatureRows,
    align_features,
    check_finite,
    check_varies,
    feature_shape,
    get_features,
    read_features,
)
from ._genes import align_genes
from ._labels import UNLABELED, check_labels, label_codes
from ._levels import check_levels, plain_level, short_repr
from ._library import check_library_size
from ._loader import CellBatch, CellRows, EpochSampler, TokenRows, make_loader
from ._loadings import gene_loadings
from ._normalize import TARGET_SUM, log_normalize_counts
from ._numbers import check_number, check_whole, is_number, is_whole
from ._random import cell_rng, check_seed, random_stream, torch_stream
from ._reading import by_rows, read_rows, row_blocks, totals

__all__ = [
    "TARGET_SUM",
    "UNLABELED",
    "CellBatch",
    "CellRows",
    "Conditions",
    "EpochSampler",
    "FeatureBatch",
    "FeatureRows",
    "TokenRows",
    "TrainingBatches",
    "align_features",
    "align_genes",
    "by_rows",
    "cell_rng",
    "check_adata",
    "check_categorical",
    "check_counts",
    "check_finite",
    "check_keys",
    "check_labels",
    "check_levels",
    "check_library_size",
    "check_no_empty_level",
    "check_number",
    "check_obs",
    "check_place",
    "check_roles",
    "check_seed",
    "check_size_factors",
    "check_var_names",
    "check_varies",
    "check_whole",
    "feature_shape",
    "gene_loadings",
    "get_features",
    "get_matrix",
    "is_number",
    "is_whole",
    "label_codes",
    "log_normalize_counts",
    "make_loader",
    "not_whole",
    "plain_level",
    "random_stream",
    "raw_counts_hint",
    "read_features",
    "read_rows",
    "row_blocks",
    "short_repr",
    "torch_stream",
    "totals",
    "warn_of_copies",
]
