"""Pictures of generated cells beside real ones, and of training."""

from ._genes import gene_statistics, response, top_genes
from ._heatmap import metrics_heatmap
from ._history import history
from ._umap import umap

__all__ = ["gene_statistics", "history", "metrics_heatmap", "response", "top_genes", "umap"]
