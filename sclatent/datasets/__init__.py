"""Real data sets of cells, counted or seen under the microscope, and a simulator whose truth is known."""

from ._bundled import blood_cells, gene_features, glioblastoma, mitocheck, pbmc3k
from ._kang import kang
from ._simulate import simulate

__all__ = ["blood_cells", "gene_features", "glioblastoma", "kang", "mitocheck", "pbmc3k", "simulate"]
