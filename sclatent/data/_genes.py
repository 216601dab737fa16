"""Alignment of genes by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

logger = logging.getLogger(__name__)


def align_genes(names: Sequence[str] | pd.Index, genes: pd.Index) -> np.ndarray:
    """Find the genes of a model among those of a query, and report how well they agree.

    Parameters
    ----------
    names
        Gene names of the query.
    genes
        Gene names of the model.

    Returns
    -------
    np.ndarray
        For each gene of the query its position among those of the model, -1 if the model does not know it.

    Raises
    ------
    ValueError
        If gene names of the query are not unique, or none of them is known.

    Examples
    --------
    >>> import pandas as pd
    >>> from sclatent.data import align_genes
    >>> align_genes(["CD3D", "NKG7", "ACTB"], pd.Index(["ACTB", "CD3D"])).tolist()
    [1, -1, 0]
    """
    names = pd.Index(names).astype(str)  # as those of the model are
    if not names.is_unique:
        twice = names[names.duplicated()][0]
        raise ValueError(f"The gene names of the query have duplicates (such as {twice!r}): make them unique first.")
    position = genes.get_indexer(names)
    n_found = int((position >= 0).sum())
    if n_found == 0:
        raise ValueError(
            f"None of the {len(names)} genes of the query (such as {names[0]!r}) is among the {len(genes)} genes of "
            f"the model (such as {genes[0]!r}): are both gene symbols, or both identifiers?"
        )
    if n_found < len(genes) or n_found < len(names):
        logger.warning(
            "Genes aligned by name: %d of the model's %d found, %d missing (not measured), %d extra (ignored).",
            n_found,
            len(genes),
            len(genes) - n_found,
            len(names) - n_found,
        )
    return position
