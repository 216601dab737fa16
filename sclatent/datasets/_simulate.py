"""Simulated cells whose truth is known: gene programs, cell types, perturbations, library sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import brentq

Array = NDArray[np.float64]

BASELINE_SD = 1.5  # log abundance of genes; four orders of magnitude between the rarest and the commonest
MARKER_SHARE, MARKER_LOG_FOLD = 0.1, 2.0  # of the genes, this share stands out in a program, by this much
TYPE_SD = 1.5  # log weight of a program in a type: a few programs make up most of it
LIBRARY_SHIFT_SD = 0.2  # log library size, between types and between conditions
BATCH_SD = 0.2  # log capture of a gene, between batches
BLOCK = 2**21  # entries drawn at once: memory does not grow with the cells, but for the counts themselves


def simulate(
    n_cells: int = 2_000,
    n_genes: int = 2_000,
    *,
    n_programs: int = 20,
    cell_types: int | Iterable[str] = 5,
    conditions: int | Iterable[str] = ("control", "stimulated"),
    n_batches: int = 1,
    effect_size: float = 1.0,
    type_specificity: float = 0.2,
    concentration: float = 50.0,
    density: float | None = None,
    library_size: float | None = None,
    library_size_sd: float = 0.3,
    dispersion: float | Sequence[float] | np.ndarray = 2.0,
    store_mean: bool = False,
    seed: int = 0,
) -> AnnData:
    r"""Draw cells from a model whose every parameter is returned with them.

    A program :math:`k` is a distribution :math:`P_k` over genes, in which its markers :math:`M_k` stand out.
    Cell :math:`n`, of type :math:`t`, under condition :math:`c` and in batch :math:`b`, mixes the programs
    with weights :math:`z_n`; a perturbation turns the markers of some programs up or down:

    .. math::

        z_n &\sim \mathrm{Dirichlet}(\kappa\, w_t) \\
        \rho_{ng} &= (P z_n)_g\, e^{(M \eta_{tc})_g} / Z_{tc},
        \qquad \eta_{tc} = \sqrt{1 - s}\, \delta_c + \sqrt{s}\, \epsilon_{tc} \\
        \log \ell_n &\sim \mathcal{N}(\lambda + \lambda_t + \lambda_c,\ \sigma^2) \\
        x_{ng} &\sim \mathrm{NegativeBinomial}(\mu_{ng} = \ell_n\, \rho_{ng}\, f_{bg},\ \theta_g),
        \qquad \mathrm{Var}\, x = \mu + \mu^2 / \theta

    :math:`Z_{tc}` makes the mean of :math:`\rho` over a group sum to one, so that this mean is known exactly:
    :math:`\mathrm{E}[\rho_g \mid t, c] = (P w_t)_g\, e^{(M \eta_{tc})_g} / Z_{tc}`.

    Parameters
    ----------
    n_cells, n_genes, n_programs
        Sizes. Every combination of type and condition gets the same number of cells, give or take one.
    cell_types, conditions
        Names, or how many (then ``"type_0"``, ... and ``"condition_0"``, ...). The first condition is the
        control: its effects are zero.
    n_batches
        Batches, spread at random over the cells. With more than one there is ``obs["batch"]``, and each batch
        captures each gene a little better or worse (:math:`f`).
    effect_size
        Root mean square of :math:`\eta`, the natural log fold change of the markers of the programs that
        answer a perturbation, a quarter of all programs. 0: no effect.
    type_specificity
        :math:`s`, from 0 (every type answers alike) to 1 (no type tells anything about another); the size of
        the effect stays the same.
    concentration
        :math:`\kappa`, how alike the cells of a type are: higher, more alike.
    density
        Fraction of non-zero counts to reach; sets :math:`\lambda`. By default 0.25, unless ``library_size`` is
        given. 0.25 of 2,000 genes and 0.10 of 17,002 are typical of real data.
    library_size
        :math:`e^\lambda`, the typical expected number of counts of a cell, in place of ``density``.
    library_size_sd
        :math:`\sigma`, in log counts.
    dispersion
        :math:`\theta`, a number or one a gene; what scvi-tools calls inverse dispersion. Towards infinity the
        counts become Poisson.
    store_mean
        Whether to keep :math:`\mu` in ``layers["mean"]``: dense, cells x genes.
    seed
        The same seed and arguments give the same cells.

    Returns
    -------
    AnnData
        ``X``: counts, CSR, float32. The truth is in

        - ``obs``: ``cell_type``, ``condition``, ``batch`` (if any), ``library_size`` (:math:`\ell`)
        - ``var``: ``dispersion`` (:math:`\theta`)
        - ``varm["programs"]``: :math:`P`, genes x programs, columns sum to one
        - ``varm["markers"]``: :math:`M`, genes x programs, 0 or 1
        - ``obsm["program_weights"]``: :math:`z`, cells x programs, rows sum to one
        - ``layers["mean"]``: :math:`\mu`, if asked for
        - ``uns["truth"]``, in the order of the categories of ``obs``:
          ``program_weights`` (:math:`w`, types x programs),
          ``shared_effect`` (:math:`\sqrt{1-s}\,\delta`, conditions x programs),
          ``specific_effect`` (:math:`\sqrt{s}\,\epsilon`, types x conditions x programs),
          ``fraction`` (the mean of :math:`\rho`, types x conditions x genes),
          ``log_library_size`` (the mean of :math:`\log \ell`, types x conditions),
          ``batch_factor`` (:math:`f`, batches x genes) and ``seed``

    Examples
    --------
    >>> import sclatent
    >>> adata = sclatent.datasets.simulate(500, 1_000, cell_types=["B", "T"], density=0.1)
    >>> adata.shape
    (500, 1000)
    >>> adata.obs["condition"].value_counts().to_dict()
    {'control': 250, 'stimulated': 250}

    What a perturbation does to the mean of a type is known, not estimated:

    >>> fraction = adata.uns["truth"]["fraction"]  # types x conditions x genes
    >>> fraction.shape, fraction.sum(axis=2).round(6).tolist()
    ((2, 2, 1000), [[1.0, 1.0], [1.0, 1.0]])

    With ``type_specificity=0`` every type answers alike:

    >>> alike = sclatent.datasets.simulate(500, 100, cell_types=["B", "T"], type_specificity=0.0)
    >>> float(abs(alike.uns["truth"]["specific_effect"]).max())
    0.0
    """
    types = _names("cell_types", cell_types, "type_{}")
    arms = _names("conditions", conditions, "condition_{}")
    sizes = {"n_cells": n_cells, "n_genes": n_genes, "n_programs": n_programs, "n_batches": n_batches}
    for name, number in sizes.items():
        _check(name, number, isinstance(number, Integral) and number > 0, "a whole number of at least 1")
    _check("effect_size", effect_size, effect_size >= 0, "a number of at least 0")
    _check("type_specificity", type_specificity, 0 <= type_specificity <= 1, "a number from 0 to 1")
    _check("concentration", concentration, concentration > 0, "a positive number")
    _check("density", density, density is None or 0 < density < 1, "a fraction between 0 and 1")
    _check("library_size", library_size, library_size is None or library_size > 0, "a positive number")
    _check("library_size_sd", library_size_sd, library_size_sd >= 0, "a number of at least 0")
    theta = np.array(dispersion, dtype=float)
    positive = theta.shape in {(), (n_genes,)} and bool((theta > 0).all())
    _check("dispersion", dispersion, positive, f"a positive number, or one for each of {n_genes} genes")
    if density is not None and library_size is not None:
        raise ValueError(
            f"density={density} and library_size={library_size} were both given. Expected one of them, since "
            "each determines the other: leave one out."
        )

    rng = np.random.default_rng(seed)
    theta = np.broadcast_to(theta, n_genes)
    profiles = _draw_profiles(rng, n_genes, n_programs, len(types), len(arms), effect_size, type_specificity)
    cells = _draw_cells(rng, profiles, n_cells, n_batches, concentration, library_size_sd)
    if library_size is None:  # cells come in random order: the first are as good as any
        library_size = _library_size(cells.mean(slice(0, 256)), theta, 0.25 if density is None else density)
    cells = cells.of_library_size(library_size)

    block = max(1, BLOCK // n_genes)
    rows = [slice(start, min(start + block, n_cells)) for start in range(0, n_cells, block)]
    counts = sparse.vstack([_negative_binomial(cells.mean(r), theta, rng) for r in rows], format="csr")
    adata = _with_truth(counts, cells, theta, types, arms, seed)
    if store_mean:
        adata.layers["mean"] = np.concatenate([cells.mean(r).astype(np.float32) for r in rows])
    return adata


class _Profiles(NamedTuple):
    """What cells express, by type and condition."""

    programs: Array  # (genes, programs)
    markers: NDArray[np.bool_]  # (genes, programs)
    weights: Array  # of programs, (types, programs)
    shared: Array  # effects that all types share, (conditions, programs)
    specific: Array  # effects of their own, (types, conditions, programs)
    fold: Array  # of the expression of a gene, (types, conditions, genes)
    fraction: Array  # mean of the expression of a gene, (types, conditions, genes)


class _Cells(NamedTuple):
    """Cells, but for their counts."""

    profiles: _Profiles
    t: NDArray[np.int64]  # types, (cells,)
    c: NDArray[np.int64]  # conditions, (cells,)
    b: NDArray[np.int64]  # batches, (cells,)
    z: Array  # weights of programs, (cells, programs)
    log_library: Array  # mean log library size, (types, conditions)
    library: Array  # library sizes, (cells,)
    batch_factor: Array  # capture of a gene, (batches, genes)

    def of_library_size(self, size: float) -> _Cells:
        """The same cells, of a typical library size, where it was 1."""
        return self._replace(log_library=np.log(size) + self.log_library, library=self.library * size)

    def mean(self, rows: slice) -> Array:
        """Expected counts of some cells, (rows, genes)."""
        t, c, b = self.t[rows], self.c[rows], self.b[rows]
        expression = self.z[rows] @ self.profiles.programs.T
        return self.library[rows, None] * expression * self.profiles.fold[t, c] * self.batch_factor[b]


def _draw_profiles(
    rng: np.random.Generator,
    n_genes: int,
    n_programs: int,
    n_types: int,
    n_arms: int,
    effect_size: float,
    type_specificity: float,
) -> _Profiles:
    """Draw programs, their weights in types and what conditions do to them."""
    abundance = rng.normal(0, BASELINE_SD, (n_genes, 1))
    markers = rng.random((n_genes, n_programs)) < MARKER_SHARE
    programs = _softmax(abundance + MARKER_LOG_FOLD * markers, axis=0)

    answers = rng.permuted(np.tile(np.arange(n_programs) % 4 == 0, (n_arms, 1)), axis=1)
    answers[0] = False
    size = effect_size * answers  # (conditions, programs)
    shared = np.sqrt(1 - type_specificity) * size * rng.choice([-1.0, 1.0], (n_arms, n_programs))
    specific = np.sqrt(type_specificity) * size * rng.normal(size=(n_types, n_arms, n_programs))

    weights = _softmax(rng.normal(0, TYPE_SD, (n_types, n_programs)), axis=1)
    fold = np.exp((shared + specific) @ markers.T)
    fraction = (weights @ programs.T)[:, None] * fold
    total = fraction.sum(axis=-1, keepdims=True)
    return _Profiles(programs, markers, weights, shared, specific, fold / total, fraction / total)


def _draw_cells(
    rng: np.random.Generator,
    profiles: _Profiles,
    n_cells: int,
    n_batches: int,
    concentration: float,
    library_size_sd: float,
) -> _Cells:
    """Draw cells of a typical library size of 1, evenly of all types, conditions and batches, in random order."""
    n_types, n_arms, n_genes = profiles.fraction.shape
    group = rng.permutation(np.arange(n_cells) % (n_types * n_arms))
    t, c = np.divmod(group, n_arms)
    b = rng.permutation(np.arange(n_cells) % n_batches)
    z = rng.standard_gamma(concentration * profiles.weights[t])
    z /= z.sum(axis=1, keepdims=True)

    log_library = rng.normal(0, LIBRARY_SHIFT_SD, (n_types, 1)) + rng.normal(0, LIBRARY_SHIFT_SD, n_arms)
    log_library -= log_library.mean()
    library = np.exp(log_library[t, c] + rng.normal(0, library_size_sd, n_cells))

    batch_factor = np.ones((n_batches, n_genes))
    if n_batches > 1:
        batch_factor = np.exp(rng.normal(0, BATCH_SD, (n_batches, n_genes)))
        # a batch shifts genes against each other; the typical library size is not its business
        batch_factor /= batch_factor @ profiles.fraction.mean(axis=(0, 1))[:, None]
    return _Cells(profiles, t, c, b, z, log_library, library, batch_factor)


def _with_truth(
    counts: sparse.csr_matrix, cells: _Cells, theta: Array, types: list[str], arms: list[str], seed: int
) -> AnnData:
    """Counts (cells, genes), with all that they were drawn from."""
    profiles, (n_cells, n_genes) = cells.profiles, counts.shape
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(cells.t, types),
            "condition": pd.Categorical.from_codes(cells.c, arms),
            "library_size": cells.library,
        },
        index=[f"cell_{i}" for i in range(n_cells)],
    )
    n_batches = len(cells.batch_factor)
    if n_batches > 1:
        obs["batch"] = pd.Categorical.from_codes(cells.b, [f"batch_{i}" for i in range(n_batches)])
    truth = {
        "program_weights": profiles.weights,
        "shared_effect": profiles.shared,
        "specific_effect": profiles.specific,
        "fraction": profiles.fraction,
        "log_library_size": cells.log_library,
        "batch_factor": cells.batch_factor,
        "seed": seed,
    }
    return ad.AnnData(
        counts,
        obs=obs,
        var=pd.DataFrame({"dispersion": theta}, index=[f"gene_{i}" for i in range(n_genes)]),
        obsm={"program_weights": cells.z},
        varm={"programs": profiles.programs, "markers": profiles.markers.astype(np.int8)},
        uns={"truth": truth},
    )


def _negative_binomial(mu: Array, theta: Array, rng: np.random.Generator) -> sparse.csr_matrix:
    """Counts of shape (cells, genes): Poisson draws at gamma rates of mean ``mu`` and shape ``theta``."""
    rate = rng.standard_gamma(theta, mu.shape) * (mu / theta)
    return sparse.csr_matrix(rng.poisson(rate), dtype=np.float32)


def _library_size(mu: Array, theta: Array, density: float) -> float:
    """Counts a cell that make the fraction ``density`` of the entries non-zero; ``mu`` is for one count a cell.

    The probability of a zero is (1 + mu / theta) ** -theta.
    """

    def excess(log_size: float) -> float:
        return float(-np.expm1(-theta * np.log1p(np.exp(log_size) * mu / theta)).mean() - density)

    most = np.log(1e9)
    if excess(most) < 0:
        raise ValueError(
            f"density={density} is out of reach: with this dispersion even 1e9 counts a cell give "
            f"{excess(most) + density:.3f}. Expected a lower density: choose one, or raise dispersion."
        )
    return float(np.exp(brentq(excess, -most, most, xtol=1e-3)))


def _softmax(logits: Array, axis: int) -> Array:
    weights = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)


def _names(argument: str, value: int | Iterable[str], pattern: str) -> list[str]:
    if isinstance(value, str):
        raise TypeError(f"{argument}={value!r} is one name. Expected several, or their number: give a list.")
    names = [pattern.format(i) for i in range(value)] if isinstance(value, int | np.integer) else list(value)
    _check(argument, value, 0 < len(names) == len(set(names)), "one name or more, none of them twice")
    return names


def _check(argument: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise ValueError(f"{argument}={value!r} is not possible. Expected {expected}: change {argument}.")
