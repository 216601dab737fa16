"""Pictures of generated cells beside real ones, of training, and of what a model has learned."""

from ._genes import gene_statistics, response, top_genes
from ._heatmap import metrics_heatmap
from ._history import history
from ._images import counterfactuals, guidance, images
from ._noise import denoising, probe, reconstruction_error
from ._umap import umap
from ._volcano import volcano

__all__ = [
    "counterfactuals",
    "denoising",
    "gene_statistics",
    "guidance",
    "history",
    "images",
    "metrics_heatmap",
    "probe",
    "reconstruction_error",
    "response",
    "top_genes",
    "umap",
    "volcano",
]
