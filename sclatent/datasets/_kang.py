"""Kang et al. 2018: blood cells answering interferon beta, the usual perturbation benchmark."""

from http.client import HTTPException
from os import PathLike
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc
from anndata import AnnData
from scipy import sparse

# the copy that pertpy.data.kang_2018 loads: raw counts, the authors' labels
URL = "https://exampledata.scverse.org/pertpy/kang_2018.h5ad"
COLUMNS = {"label": "condition", "replicate": "donor"}
CONDITIONS = {"ctrl": "control", "stim": "stimulated"}


def kang(path: str | PathLike[str] | None = None) -> AnnData:
    """Blood mononuclear cells of eight lupus patients, with and without interferon beta.

    Hold out the stimulated cells of one type and predict them from its controls and from the other types.

    Parameters
    ----------
    path
        An h5ad file of this data that you already have. By default the file (38 MB) is downloaded once into
        ``scanpy.settings.datasetdir``.

    Returns
    -------
    AnnData
        24,673 cells x 15,706 genes, if downloaded. ``X``: raw counts, CSR, float32. ``obs``: ``condition``
        (``"control"``, ``"stimulated"``), ``cell_type`` (8 levels) and, if the file has it, ``donor``; other columns
        are left as they are.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ConnectionError
        If the file cannot be downloaded.
    ValueError
        If the file is not what was expected.

    Notes
    -----
    Kang et al., Multiplexed droplet single-cell RNA-sequencing using natural genetic variation, Nature
    Biotechnology 36:89-94 (2018), https://doi.org/10.1038/nbt.4042, GSE96583; the file is the copy of the
    pertpy project. It is not part of this package: its terms are those of the source.

    Examples
    --------
    >>> import sclatent
    >>> adata = sclatent.datasets.kang()  # doctest: +SKIP
    >>> adata = sclatent.datasets.kang("kang_2018.h5ad")  # doctest: +SKIP
    """
    if path is None:
        adata = _download(Path(sc.settings.datasetdir) / "kang_2018.h5ad")
    elif Path(path).is_file():
        adata = ad.read_h5ad(path)
    else:
        raise FileNotFoundError(
            f"path={str(path)!r} is not a file. Expected an h5ad file of Kang et al. 2018: get it from "
            f"{URL}, or leave path out to download it."
        )

    adata.obs = adata.obs.rename(columns={old: new for old, new in COLUMNS.items() if new not in adata.obs})
    missing = [key for key in ("condition", "cell_type") if key not in adata.obs]
    if missing:
        raise ValueError(
            f"The file has no obs columns {missing}, only {list(adata.obs)}. Expected Kang et al. 2018 with "
            "'condition' (or 'label') and 'cell_type': rename the columns, or leave path out to download it."
        )
    condition = adata.obs["condition"].astype(str).replace(CONDITIONS)
    unknown = sorted(set(condition) - set(CONDITIONS.values()))
    if unknown:
        raise ValueError(
            f"obs['condition'] holds {unknown}. Expected 'control' and 'stimulated' (or 'ctrl' and 'stim'): "
            "rename the levels."
        )
    adata.obs["condition"] = condition.astype("category")
    adata.obs["cell_type"] = adata.obs["cell_type"].astype("category")

    adata.X = sparse.csr_matrix(adata.X, dtype=np.float32)
    counts = adata.X.data
    if not (np.isfinite(counts).all() and (counts >= 0).all() and (counts == np.rint(counts)).all()):
        raise ValueError(
            "X of the file holds values that are no counts (negative, fractional, NaN or infinite). Expected "
            "raw counts: move them into X, or leave path out to download the data."
        )
    return adata


def _download(file: Path) -> AnnData:
    if file.is_file():
        return ad.read_h5ad(file)
    try:
        return sc.read(file, backup_url=URL)
    except (OSError, HTTPException, ImportError) as error:
        # where certifi is missing, scanpy's second try hides the first error behind an ImportError
        reason = error.__context__ if isinstance(error, ImportError) else error
        raise ConnectionError(
            f"Kang et al. 2018 could not be downloaded from {URL} ({reason}). Without a connection, get the "
            f"file on another machine and put it at {file}, or say where it is: kang(path=...)."
        ) from error
