"""Small real data sets that come with the package; their sources and licences are in LICENSES.md."""

from importlib.resources import as_file, files

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData


def glioblastoma() -> AnnData:
    """Glioblastoma slices of five patients, with and without panobinostat.

    Slices of freshly resected tumours were kept in culture with 0.2 uM panobinostat, a histone deacetylase
    inhibitor, or with vehicle. The effect is strong and every patient has both arms: hold out the treated
    cells of one patient and predict them.

    Returns
    -------
    AnnData
        5,000 cells x 300 genes (58 % non-zero). ``X``: raw counts, CSR. ``obs``: ``patient_id`` (5 levels),
        ``condition`` (``"ctrl"``, ``"panobinostat"``; 500 cells of each in each patient), and what is known of
        patient and sample. ``var``: ``gene_id`` (Ensembl). Every call reads a fresh copy.

    Notes
    -----
    Zhao et al., Deconvolution of cell type-specific drug responses in human tumor tissue with single-cell
    RNA-seq, Genome Medicine 13:82 (2021), https://doi.org/10.1186/s13073-021-00894-y, GSE148842. The subset
    of cells and genes is ``glioblastoma_example_data`` of the Bioconductor package lemur (MIT licence).

    Examples
    --------
    >>> import sclatent
    >>> adata = sclatent.datasets.glioblastoma()
    >>> adata.shape
    (5000, 300)

    The treated cells of one patient, to be predicted from all others:

    >>> held_out = (adata.obs["patient_id"] == "PW034") & (adata.obs["condition"] == "panobinostat")
    >>> train, test = adata[~held_out].copy(), adata[held_out].copy()
    >>> test.n_obs
    500
    """
    return _read("lemur_glioblastoma_panobinostat_300g.h5ad")


def pbmc3k() -> AnnData:
    """Blood mononuclear cells of a healthy donor, in eight types.

    Returns
    -------
    AnnData
        2,638 cells x 2,000 most variable genes (9 % non-zero). ``X``: raw counts, CSR. ``obs``: ``cell_type``
        (8 levels, from 15 megakaryocytes to 1,144 CD4 T cells). Every call reads a fresh copy.

    Notes
    -----
    3k PBMCs from a Healthy Donor, 10x Genomics (2016), CC BY 4.0; here restricted to the labelled cells and
    to the 2,000 most variable genes. The labels are those of the scanpy tutorial.

    Examples
    --------
    >>> import sclatent
    >>> adata = sclatent.datasets.pbmc3k()
    >>> adata.shape
    (2638, 2000)
    >>> adata.obs["cell_type"].value_counts().tail(2).to_dict()  # the rare ones
    {'Dendritic cells': 37, 'Megakaryocytes': 15}
    """
    return _read("pbmc3k_2000hvg.h5ad")


def mitocheck() -> AnnData:
    """Nuclei of HeLa cells after a gene was silenced, in sixteen phenotypes of cell division.

    Returns
    -------
    AnnData
        3,277 cells. ``X``: 64 principal components of EfficientNet-Lite0 features of the image, float32.
        ``obsm["image"]``: the images, 32 x 32 pixels, grey, uint8, flat (3,277 x 1,024); ``uns["image_shape"]`` gives
        their shape. ``obs``: ``phenotype`` (16 levels, from 58 to 473 cells), ``gene`` that was silenced, ``plate`` and
        more. Every call reads a fresh copy.

    Notes
    -----
    Neumann et al., Phenotypic profiling of the human genome by time-lapse microscopy reveals cell division genes,
    Nature 464:721 (2010), https://doi.org/10.1038/nature08869; sample images of WayScience/phenotypic_profiling
    (CC BY 4.0).

    Examples
    --------
    >>> import sclatent
    >>> adata = sclatent.datasets.mitocheck()
    >>> adata.shape, adata.obsm["image"].shape, adata.uns["image_shape"].tolist()
    ((3277, 64), (3277, 1024), [32, 32])
    >>> ax = sclatent.pl.images(adata, "image", groupby="phenotype")
    """
    return _read("mitocheck_3277_32x32.h5ad")


def blood_cells() -> AnnData:
    """Peripheral blood cells of healthy donors under the microscope, in eight types.

    Returns
    -------
    AnnData
        2,000 cells, 250 of each type. ``X``: 64 principal components of EfficientNet-Lite0 features of the image,
        float32. ``obsm["image"]``: the images, 28 x 28 pixels, RGB, uint8, flat (2,000 x 2,352); ``uns["image_shape"]``
        gives their shape. ``obs``: ``cell_type`` (8 levels), ``subtype``, ``split`` (train, val, test). Every call
        reads a fresh copy.

    Notes
    -----
    Acevedo et al., A dataset of microscopic peripheral blood cell images for development of automatic recognition
    systems, Data in Brief 30:105474 (2020), https://doi.org/10.1016/j.dib.2020.105474, CC BY 4.0.

    Examples
    --------
    >>> import sclatent
    >>> adata = sclatent.datasets.blood_cells()
    >>> adata.shape, adata.obsm["image"].shape, adata.uns["image_shape"].tolist()
    ((2000, 64), (2000, 2352), [28, 28, 3])
    >>> train = adata[adata.obs["split"] == "train"].copy()
    """
    return _read("pbc_blood_2000.h5ad")


def gene_features() -> pd.DataFrame:
    """What is known of human genes: components of their membership in processes of the Gene Ontology.

    Genes that take part in the same processes have like features, so that a gene that was never perturbed can be asked
    for by those of it that were (``features=`` of :class:`sclatent.conditions.Set`).

    Returns
    -------
    pd.DataFrame
        18,780 genes by symbol, 64 components, float32. Those of 856 genes without annotation are 0.

    Notes
    -----
    Gene Ontology (CC BY 4.0, http://geneontology.org), by the annotation of Debian's org.Hs.eg.db (Artistic-2.0).

    Examples
    --------
    >>> import sclatent
    >>> features = sclatent.datasets.gene_features()
    >>> features.shape, "TP53" in features.index
    ((18780, 64), True)
    """
    with as_file(files(__package__) / "gene_go64_bundle.npz") as path, np.load(path) as data:
        return pd.DataFrame(data["X"].astype(np.float32), index=data["symbol"])


def _read(name: str) -> AnnData:
    with as_file(files(__package__) / name) as path:
        return ad.read_h5ad(path)
