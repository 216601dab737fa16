"""Pictures of generated cells beside real ones, and of training."""

from ._cells import mean_expression, response, top_genes, umap
from ._history import history

__all__ = ["history", "mean_expression", "response", "top_genes", "umap"]
