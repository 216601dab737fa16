"""Differentially expressed genes, and how many of them a prediction finds."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc

from ._change import top_responding

FALSE_DISCOVERY_RATE = 0.05


def differentially_expressed(cells: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Genes that differ between cells and control by the Wilcoxon rank-sum test.

    :func:`scanpy.tl.rank_genes_groups`, corrected for ties (most values of a gene are 0) and for the number of genes
    (Benjamini-Hochberg), at a false discovery rate of 0.05.

    Parameters
    ----------
    cells, control
        Log-normalised cells, (cells, genes).

    Returns
    -------
    np.ndarray
        Boolean, (genes,). The more cells, the more genes.
    """
    adata = ad.AnnData(np.concatenate([cells, control]))
    adata.obs["arm"] = pd.Categorical(["cells"] * len(cells) + ["control"] * len(control))
    with np.errstate(invalid="ignore"):  # a gene that is 0 everywhere: scanpy's score is 0
        sc.tl.rank_genes_groups(
            adata, "arm", groups=["cells"], reference="control", method="wilcoxon", tie_correct=True,
            corr_method="benjamini-hochberg",
        )  # fmt: skip
    result = sc.get.rank_genes_groups_df(adata, "cells").set_index("names").loc[adata.var_names]
    return (result["pvals_adj"] < FALSE_DISCOVERY_RATE).to_numpy()


def direction_match(change: np.ndarray, predicted: np.ndarray, de: np.ndarray) -> float:
    """Share of the differentially expressed genes whose change is predicted with the right sign.

    Parameters
    ----------
    change, predicted
        Real and predicted change over control, (genes,).
    de
        Which genes are differentially expressed, boolean, (genes,).

    Returns
    -------
    float
        From 0 to 1, guessing gives 0.5; a gene that is predicted not to change is not right. NaN if there are no such
        genes.
    """
    return float(np.mean(np.sign(change[de]) == np.sign(predicted[de]))) if de.any() else np.nan


def overlap_and_precision(
    change: np.ndarray, de: np.ndarray, predicted: np.ndarray, predicted_de: np.ndarray, n: int
) -> tuple[float, float]:
    """Overlap at N, and precision at N, of differentially expressed genes.

    Parameters
    ----------
    change, de
        Real change over control, (genes,), and which genes are differentially expressed, boolean, (genes,).
    predicted, predicted_de
        The same of the prediction.
    n
        N.

    Returns
    -------
    tuple[float, float]
        - Overlap: of the N differentially expressed genes with the largest change (or as many as there are), the share
          that is among as many of the predicted ones.
        - Precision: of the N predicted ones with the largest change (or as many as there are), the share that is
          differentially expressed. 0 where none is predicted.

        Both NaN if no gene is differentially expressed.
    """
    if not de.any():
        return np.nan, np.nan
    real_genes = _ranked(change, de)[:n]
    predicted_genes = _ranked(predicted, predicted_de)
    overlap = np.isin(real_genes, predicted_genes[: len(real_genes)]).mean()
    precision = de[predicted_genes[:n]].mean() if len(predicted_genes) else 0.0
    return float(overlap), float(precision)


def jaccard(de: np.ndarray, predicted_de: np.ndarray) -> float:
    """Jaccard index of the differentially expressed genes.

    Parameters
    ----------
    de, predicted_de
        Which genes are differentially expressed, really and as predicted, boolean, (genes,).

    Returns
    -------
    float
        How many are so in both, of those that are so in one of them. NaN if no gene really is.
    """
    return float((de & predicted_de).sum() / (de | predicted_de).sum()) if de.any() else np.nan


def scaled_error(change: np.ndarray, predicted: np.ndarray, de: np.ndarray) -> float:
    """Mean absolute error of the change of differentially expressed genes, by their mean absolute change.

    Parameters
    ----------
    change, predicted, de
        As of :func:`direction_match`.

    Returns
    -------
    float
        0 is perfect, 1 is that of no change. NaN if there are no such genes.
    """
    return float(np.abs(predicted - change)[de].sum() / np.abs(change[de]).sum()) if de.any() else np.nan


def _ranked(change: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Positions of the genes of a boolean array, the largest change first."""
    genes = np.flatnonzero(among)
    return genes[top_responding(change[genes], len(genes))]
