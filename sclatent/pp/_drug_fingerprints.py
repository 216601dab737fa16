"""Features of drugs from their structure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from sclatent.data import check_whole, short_repr


def drug_fingerprints(smiles: Mapping[str, str] | pd.Series, n_bits: int = 1024, radius: int = 2) -> pd.DataFrame:
    """Describe drugs by the substructures that they have: counts of Morgan fingerprints (Rogers and Hahn 2010).

    Drugs that are alike in structure have like features, so that one that was never measured can be asked for by those
    that were (``features=`` of :class:`sclatent.conditions.Category`). It takes rdkit, ``pip install sclatent[drugs]``.

    Parameters
    ----------
    smiles
        SMILES strings by the name of the drug.
    n_bits
        Number of features.
    radius
        How many bonds around an atom count.

    Returns
    -------
    pd.DataFrame
        One row per drug: the logarithm of 1 + counts of substructures, float32, (drugs, n_bits).

    Raises
    ------
    ImportError
        If rdkit is not installed.
    ValueError
        If a string is no SMILES.

    Examples
    --------
    >>> import sclatent
    >>> features = sclatent.pp.drug_fingerprints({"aspirin": "CC(=O)Oc1ccccc1C(=O)O", "ethanol": "CCO"})
    >>> features.shape
    (2, 1024)
    """
    try:
        from rdkit.Chem import MolFromSmiles, rdFingerprintGenerator
        from rdkit.rdBase import BlockLogs
    except ImportError as error:
        raise ImportError("drug_fingerprints needs rdkit: pip install sclatent[drugs].") from error
    if not isinstance(smiles, Mapping | pd.Series) or not len(smiles):
        raise ValueError(f"smiles={short_repr(smiles)} must be SMILES strings by the names of drugs.")
    n_bits, radius = check_whole("n_bits", n_bits), check_whole("radius", radius, least=0)
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=n_bits)
    rows = []
    for name, text in smiles.items():
        with BlockLogs():  # what rdkit says of a wrong one is in the message
            molecule = MolFromSmiles(text) if isinstance(text, str) and text else None
        if molecule is None:
            raise ValueError(f"smiles[{name!r}]={short_repr(text)} is no SMILES string.")
        rows.append(generator.GetCountFingerprintAsNumPy(molecule))
    values = np.log1p(np.array(rows, dtype=np.float32))
    return pd.DataFrame(values, index=list(smiles.keys()))
