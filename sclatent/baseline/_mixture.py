"""Mixtures of Gaussians, with covariances that are shrunk to what the components share."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from ._gaussian import shrink_covariances

MOST_COMPONENTS = 64
MOST_CELLS, MOST_TO_CHOOSE = 20_000, 5_000  # that components are fitted to, and that say how many there are
FOLDS = 5  # of the cross-validation that chooses their number
MOST_STEPS, TOLERANCE = 200, 1e-2  # of expectation maximisation, and the gain in nats a cell that ends it


class Mixture(NamedTuple):
    r"""A mixture of Gaussians whose weights differ between groups: :math:`p(x | g) = \sum_k \pi_{gk} N(x; \mu_k, C_k)`.

    Attributes
    ----------
    weights
        Of all cells, and of each group, (1 + n_groups, n_components).
    means
        (n_components, dim).
    covariances
        (n_components, dim, dim).

    Examples
    --------
    >>> import torch
    >>> from sclatent.baseline import fit_mixture
    >>> x = torch.randn(400, 2, dtype=torch.float64) + 10 * (torch.arange(400) % 2 == 0)[:, None]
    >>> mixture = fit_mixture(x)
    >>> len(mixture.means), mixture.weights[0].round(decimals=3).tolist()
    (2, [0.5, 0.5])
    >>> mixture.log_densities(x).shape  # of each cell under each component
    torch.Size([400, 2])
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def log_densities(self, x: Tensor) -> Tensor:
        """Log densities (cells, n_components) of cells (cells, dim), without weights."""
        parts = []
        for mean, root in zip(self.means, torch.linalg.cholesky(self.covariances), strict=True):
            whitened = torch.linalg.solve_triangular(root, (x - mean).T, upper=False)
            constant = root.diagonal().log().sum() + len(mean) / 2 * math.log(2 * math.pi)
            parts.append(-whitened.square().sum(dim=0) / 2 - constant)
        return torch.stack(parts, dim=1)

    def shares(self, x: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """Probability (cells, n_components) of each component given a cell, and the mean log density of cells.

        ``group`` are numbers of groups, (cells,), from 0.
        """
        joint = self.weights[1 + group].log() + self.log_densities(x)
        density = joint.logsumexp(dim=1, keepdim=True)
        return (joint - density).exp(), density.mean()


def fit_mixture(
    x: Tensor, group: Tensor | None = None, n_components: int | None = None, min_variance: float = 1e-3, seed: int = 0
) -> Mixture:
    r"""Fit a mixture of Gaussians by expectation maximisation.

    Components are shared by all groups, which differ in how frequent these are. The covariance of a component is shrunk
    to what all have in common, and that to the covariance of all cells, by inverse Wishart priors whose weights
    maximise the marginal likelihood (:func:`shrink_covariances`). The frequencies of a group have those of all cells as
    a prior, worth one cell (a unit information prior, Kass & Wasserman 1995). The number of components is doubled as
    long as held-out cells become more likely, in fivefold cross-validation.

    Parameters
    ----------
    x
        Cells, (cells, dim), float64. Components are fitted to at most 20,000, drawn at random; frequencies to all.
    group
        Number of the group of each cell, (cells,), from 0; by default there is one.
    n_components
        Number of components; by default chosen, up to 64.
    min_variance
        Added to all variances.
    seed
        Seed of what is drawn: the folds, and where components begin (k-means).

    Returns
    -------
    Mixture
        Of float64.

    Raises
    ------
    ValueError
        If there are no cells, or ``n_components`` is no whole number from 1 to their number.

    Examples
    --------
    >>> import torch
    >>> from sclatent.baseline import fit_mixture
    >>> len(fit_mixture(torch.randn(500, 3, dtype=torch.float64)).means)  # nothing says that there are more
    1
    """
    if not len(x):
        raise ValueError("x has no cells: a mixture cannot be fitted.")
    if n_components is not None and n_components not in range(1, len(x) + 1):
        raise ValueError(
            f"n_components={n_components!r} must be a whole number from 1 to {len(x)}, the number of cells."
        )
    group = torch.zeros(len(x), dtype=torch.int64) if group is None else group
    n_groups = int(group.max()) + 1
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x))[:MOST_CELLS])
    some, of_some = x[order], group[order]
    if n_components is None:
        n_components = _n_components(some, of_some, n_groups, min_variance, seed)
    mixture = _maximise(some, of_some, n_groups, n_components, min_variance, seed)
    return mixture._replace(weights=_weights(mixture.shares(x, group)[0], group, n_groups))


def _n_components(x: Tensor, group: Tensor, n_groups: int, min_variance: float, seed: int) -> int:
    """Number of components under which cells that were held out are most likely."""
    x, group = x[:MOST_TO_CHOOSE], group[:MOST_TO_CHOOSE]
    fold = torch.arange(len(x)) % FOLDS
    best, n_best, n = -math.inf, 1, 1
    while n <= min(MOST_COMPONENTS, len(x) // (2 * FOLDS)):  # no fold is empty
        likelihood = 0.0
        for k in range(FOLDS):
            known = fold != k
            mixture = _maximise(x[known], group[known], n_groups, n, min_variance, seed)
            likelihood += float(mixture.shares(x[~known], group[~known])[1])
        if likelihood <= best:
            break
        best, n_best, n = likelihood, n, 2 * n
    return n_best


def _maximise(x: Tensor, group: Tensor, n_groups: int, n_components: int, min_variance: float, seed: int) -> Mixture:
    """Fit so many components, which begin as those of k-means."""
    near = np.zeros(len(x), dtype=np.int64)
    if n_components > 1:
        near = KMeans(n_components, n_init=3, random_state=seed).fit_predict(x.numpy()).astype(np.int64)
    shares = torch.nn.functional.one_hot(torch.from_numpy(near), n_components).to(x)
    deviations = x - x.mean(dim=0)
    every, least = deviations.T @ deviations / len(x), min_variance * torch.eye(x.shape[1], dtype=x.dtype)
    last = -math.inf
    for _ in range(MOST_STEPS):
        n = shares.sum(dim=0)
        means = shares.T @ x / n[:, None].clamp(min=1e-9)
        products = torch.stack(
            [(x - m).T @ ((x - m) * share[:, None]) for m, share in zip(means, shares.T, strict=True)]
        )
        shared = shrink_covariances(products.sum(dim=0)[None], n.sum()[None], every)[0]
        covariances = shrink_covariances(products, n, shared) if n_components > 1 else shared[None]
        mixture = Mixture(_weights(shares, group, n_groups), means, covariances + least)
        shares, likelihood = mixture.shares(x, group)
        if likelihood - last < TOLERANCE:
            break
        last = float(likelihood)
    return mixture


def _weights(shares: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """Frequencies of components among all cells and in each group, (1 + n_groups, n_components)."""
    n_components = shares.shape[1]
    every = (shares.sum(dim=0) + 1 / n_components) / (len(shares) + 1)
    of_groups = shares.new_zeros(n_groups, n_components).index_add_(0, group, shares)
    return torch.cat([every[None], (of_groups + every) / (of_groups.sum(dim=1, keepdim=True) + 1)])
