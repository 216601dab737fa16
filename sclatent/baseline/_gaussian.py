"""The velocity of cells that are Gaussian under each condition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import multigammaln
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn

from sclatent.diffusion import Process
from sclatent.nn import NULL, CombinationTable, Context

MIN_VARIANCE = 1e-3  # of standardised tokens: coordinates that do not vary have a velocity, too
MAX_ENTRIES = 2**24  # of the principal components of images of many pixels, and of the axes of many conditions: 64 MiB
MAX_RANK = 512


class GaussianVelocity(nn.Module):
    r"""Velocity that turns noise into cells which are Gaussian under each combination of conditions; in closed form.

    .. math:: g(u, t, c) = U \, \mathrm{diag}\left(\frac{\dot a_t a_t \lambda_i + \dot s_t s_t}
              {a_t^2 \lambda_i + s_t^2}\right) U^\top u, \qquad C_c = U \, \mathrm{diag}(\lambda_i) \, U^\top,

    with u the noisy tokens less the mean of the combination and :math:`C_c` the covariance of clean ones around it. A
    combination that was not seen has the covariance that all share; where all conditions are null it is that of all
    cells. This is what a denoiser learns first (Wang & Vastola 2024, arXiv 2412.09726), and a network that is added to
    it begins where a Gaussian a combination ends.

    Guidance above 1 divides by the density of all cells. Where a combination is wider than these, nothing would hold
    what is pushed: there, all cells are taken to be as wide as the combination that they are pushed to.

    A matrix of all pixels for each combination would be larger than the networks. Of more coordinates than 512, the
    covariances are those of so many principal components of all cells, and there is one variance outside of them. Of
    more than 32,768 coordinates or 31 combinations there are fewer components: neither they nor the matrices take more
    than 64 MiB.

    Parameters
    ----------
    n_levels
        Number of levels of each condition key.
    shape
        Number of tokens and their width.
    process
        Whose :math:`x_t` the tokens are.
    rank
        Largest number of principal components.

    Examples
    --------
    >>> import torch
    >>> from sclatent.baseline import GaussianVelocity
    >>> from sclatent.diffusion import LinearFlow, solve
    >>> from sclatent.nn import Context
    >>> gaussian = GaussianVelocity([2], (1, 2), LinearFlow())
    >>> tokens, context = torch.randn(1000, 1, 2) * torch.tensor([3.0, 0.5]), Context(torch.zeros(1000, 1).long())
    >>> gaussian.fit(tokens, context, torch.zeros(1000, 1, 2), torch.zeros(1000, 1, 2))
    >>> cells = solve(lambda x, t: gaussian(x, t, context), torch.randn(1000, 1, 2), n_steps=50)
    >>> bool((cells[:, 0].std(dim=0) / tokens[:, 0].std(dim=0) - 1).abs().max() < 0.15)
    True
    """

    variances: Tensor
    axes: Tensor
    components: Tensor
    rest: Tensor

    def __init__(self, n_levels: Sequence[int], shape: tuple[int, int], process: Process, rank: int = MAX_RANK) -> None:
        super().__init__()
        self.process, self.max_rank = process, rank
        self.dim = shape[0] * shape[1]
        self.entry = CombinationTable(n_levels)  # of each combination that was seen, counted from 1
        # of all cells; of each combination that was seen, of one that was not; of all cells as wide as each of these
        self.register_buffer("variances", torch.ones(3, 0))
        self.register_buffer("axes", torch.zeros(3, 0, 0))
        self.register_buffer("components", torch.zeros(0, self.dim))  # of which the axes are, if not of all coordinates
        self.register_buffer("rest", torch.ones(()))

    @torch.no_grad()
    def fit(
        self, tokens: Tensor, context: Context, means: Tensor, null_means: Tensor, noise_level: float = 0.0
    ) -> None:
        r"""Take the covariances from the tokens of all cells.

        That of a combination is shrunk to the one that all share, and that to the covariance of all cells, by an
        inverse Wishart prior (:func:`shrink_covariances`).

        Parameters
        ----------
        tokens
            (cells, n_tokens, token_dim).
        context
            What the cells are conditioned on; those that lack a condition count in the covariance of all cells alone.
        means, null_means
            Of the conditions of each cell, and where all are null, (cells, n_tokens, token_dim).
        noise_level
            Variance of noise that comes on top of these tokens in training.
        """
        codes = context.codes
        z, deviations = ((tokens - m).flatten(1).double() for m in (null_means, means))
        known, seen, group = seen_combinations(codes)
        n_entries = 3 + 2 * len(seen)
        rank = max(1, min(self.max_rank, self.dim, MAX_ENTRIES // self.dim, math.isqrt(MAX_ENTRIES // n_entries)))
        self.components = self.components[:0]
        if rank < self.dim:
            some = z[:: -(-len(z) // 8192)]
            rank = min(rank, len(some))
            components = torch.from_numpy(randomized_svd(some.numpy(), rank, random_state=0)[2])
            outside = z.square().sum() - (z @ components.T).square().sum()
            rest = outside / (len(z) * (self.dim - rank))
            self.rest.copy_((rest + noise_level).clamp(min=MIN_VARIANCE))
            self.components = components.float().contiguous()
            z, deviations = z @ components.T, deviations @ components.T
        every = z.T @ z / len(z)
        parts = [deviations[known][group == k] for k in range(len(seen))]
        products = torch.stack([d.T @ d for d in parts]) if parts else every.new_zeros(0, *every.shape)
        n = torch.tensor([len(d) for d in parts], dtype=torch.float64)
        shared = shrink_covariances(products.sum(dim=0)[None], n.sum()[None], every)[0] if parts else every
        of_seen = shrink_covariances(products, n, shared)
        variances, axes = torch.linalg.eigh(torch.cat([every[None], of_seen, shared[None]]))
        variances = (variances + noise_level).clamp(min=MIN_VARIANCE)
        root, inverse = ((axes[0] * variances[0].pow(power)) @ axes[0].T for power in (0.5, -0.5))
        # combinations in the coordinates in which all cells have variance 1
        relative, directions = torch.linalg.eigh(inverse @ (axes[1:] * variances[1:, None]) @ axes[1:].mT @ inverse)
        wide = root @ (directions * relative.clamp(min=1)[:, None]) @ directions.mT @ root
        of_wide, axes_of_wide = torch.linalg.eigh(wide)
        variances, axes = torch.cat([variances, of_wide]), torch.cat([axes, axes_of_wide])
        self.variances = variances.float()
        self.axes = axes.float().contiguous()  # as they are after loading, so that results are equal to the bit
        self.entry.fit_combinations(seen, torch.arange(1.0, 1 + len(seen)))

    def forward(self, u: Tensor, t: Tensor, context: Context) -> Tensor:
        """Velocity (cells, n_tokens, token_dim).

        Parameters
        ----------
        u
            Noisy tokens less the mean of their conditions, (cells, n_tokens, token_dim).
        t
            Times in [0, 1], (cells,); 0 is noise, 1 is data.
        context
            What the cells are conditioned on. Where guidance makes conditions null that it pushes to, all cells are
            taken to be as wide as these; cells that have a part of the conditions have their covariance.
        """
        x, codes, pushed_to = u.flatten(1), context.codes, context.pushed_to
        if not self.variances.shape[1]:  # not fitted: of variance 1 in all directions
            return (self.process.gaussian_gain(t, torch.ones_like(x)) * x).view_as(u)
        entry = self._entry(codes)
        if pushed_to is not None:  # all cells are as wide as the combination at least, cells of a part of it just so
            wide = self._entry(pushed_to)
            is_part = (codes != pushed_to).any(dim=1) & (wide > 0)
            entry = torch.where(is_part, torch.where(entry == 0, len(self.axes) // 2 + wide, wide), entry)
        if not len(self.components):
            return self._within(x, t, entry).view_as(u)
        z, outside = x @ self.components.T, self.process.gaussian_gain(t, self.rest.expand(len(t), 1))
        return (outside * x + (self._within(z, t, entry) - outside * z) @ self.components).view_as(u)

    def _entry(self, codes: Tensor) -> Tensor:
        """Entry of each combination, (cells,): 0 where all conditions are null."""
        entry, unseen = self.entry.of(codes).long(), len(self.axes) // 2
        return torch.where((codes == NULL).all(dim=1), 0, torch.where(entry == 0, unseen, entry))

    def _within(self, x: Tensor, t: Tensor, entry: Tensor) -> Tensor:
        """Velocity of coordinates (cells, rank) that have these of the covariances."""
        gain = self.process.gaussian_gain(t, self.variances[entry])
        order = entry.argsort()  # cells of a combination side by side: a product of matrices for each
        blocks = torch.bincount(entry, minlength=len(self.axes)).tolist()
        parts = zip(x[order].split(blocks), gain[order].split(blocks), self.axes, strict=True)
        v = torch.cat([(x @ axes * gain) @ axes.T for x, gain, axes in parts if len(x)])
        return v[order.argsort()]

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name in ("variances", "axes", "components"):  # how many there are is known from the data alone
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(saved, device=self.rest.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
        errors = args[-1]
        n_entries, rank = 1 + 2 * len(state_dict.get(f"{prefix}entry.combinations", [None])), self.variances.shape[-1]
        expected = {"variances": (n_entries, rank), "axes": (n_entries, rank, rank)}
        expected["components"] = (rank if len(self.components) else 0, self.dim)
        for name, shape in expected.items():
            if tuple(self.get_buffer(name).shape) != shape:
                errors.append(f"{prefix}{name} must have the shape {shape}.")
        entries = state_dict.get(f"{prefix}entry.interactions")
        if entries is not None and not entries.is_meta and not ((entries >= 0) & (entries <= n_entries // 2)).all():
            errors.append(f"{prefix}entries must be covariances that there are.")


def seen_combinations(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which cells lack no condition, the combinations of these, and the number of the combination of each of them.

    ``codes`` are (cells, n_keys). Without any key no cell has a combination.
    """
    known = (codes != NULL).all(dim=1) if codes.shape[1] else torch.zeros(len(codes), dtype=torch.bool)
    if not known.any():
        return known, codes[:0], codes.new_zeros(0)
    return known, *torch.unique(codes[known], dim=0, return_inverse=True)


def shrink_covariances(products: Tensor, n: Tensor, prior: Tensor) -> Tensor:
    r"""Shrink covariances of groups to a prior one, as much as their likelihood says.

    .. math:: C_g = \frac{S_g + k \, C}{n_g + k},

    the posterior mean under an inverse Wishart prior of mean C and :math:`k + d + 1` degrees of freedom. k, the weight
    of the prior in cells, maximises the marginal likelihood of all groups (empirical Bayes; Chen 1979, J. R. Stat. Soc.
    B 41:235).

    Parameters
    ----------
    products
        Sums of the products of deviations from the mean, S, (n_groups, d, d).
    n
        Number of cells of each group, (n_groups,).
    prior
        C, (d, d), positive semidefinite.

    Returns
    -------
    Tensor
        (n_groups, d, d).

    Examples
    --------
    Groups that differ only by chance are shrunk to what they share:

    >>> import torch
    >>> from sclatent.baseline import shrink_covariances
    >>> cells = torch.randn(40, 20, 5, dtype=torch.float64)  # 40 groups of 20 cells
    >>> shrunk = shrink_covariances(cells.mT @ cells, torch.full((40,), 20.0), torch.eye(5, dtype=torch.float64))
    >>> bool((shrunk - torch.eye(5)).abs().max() < 0.3)
    True
    """
    d = len(prior)
    scale = float(prior.diagonal().mean())
    if not len(products) or scale <= 0:
        return products
    variances, axes = torch.linalg.eigh(prior)
    inverse_root = axes / variances.clamp(min=1e-6 * scale).sqrt()
    relative = torch.linalg.eigvalsh(inverse_root.mT @ products @ inverse_root).clamp(min=0).numpy()
    sizes = n.numpy()

    def negative_likelihood(log_k: float) -> float:
        k = np.exp(log_k)
        freedom = k + d + 1
        gammas = multigammaln((freedom + sizes) / 2, d) - multigammaln(freedom / 2, d)
        return -float(
            (gammas + freedom / 2 * d * log_k - (freedom + sizes) / 2 * np.log(k + relative).sum(axis=1)).sum()
        )

    most = np.log(1e3 * max(d, sizes.max()))
    k = float(np.exp(minimize_scalar(negative_likelihood, bounds=(np.log(1e-2), most), method="bounded").x))
    return (products + k * prior) / (n + k)[:, None, None]
