"""The velocity of cells that are Gaussian under each label."""

from __future__ import annotations

import math

import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn

from sclatent.diffusion import Process
from sclatent.nn import OPEN

MIN_VARIANCE = 1e-3  # of standardised tokens: coordinates that do not vary have a velocity, too
MAX_ENTRIES = 2**24  # of the principal components of images of many pixels, and of the axes of many labels: 64 MiB


class GaussianVelocity(nn.Module):
    r"""Velocity that turns noise into cells which are Gaussian under each label; fitted and then fixed.

    .. math:: g(u, t, y) = U \, \mathrm{diag}\left(\frac{\dot a_t a_t \lambda_i + \dot s_t s_t}
              {a_t^2 \lambda_i + s_t^2}\right) U^\top u, \qquad C_y = U \, \mathrm{diag}(\lambda_i) \, U^\top,

    with u the noisy tokens less the mean of the label and :math:`C_y` the covariance of clean ones under it, or of all
    cells where it is left open. This is what a denoiser learns first (Wang & Vastola 2024, arXiv 2412.09726), and a
    network that is added to it begins where a Gaussian a label ends.

    A matrix of all pixels for each label would be larger than the networks. Of more coordinates than ``rank``, the
    covariances are those of so many principal components of all cells, and there is one variance outside of them.

    Guidance above 1 divides by the density of all cells. Where a label is wider than these, nothing would be left to
    hold it: there, cells that are guided to a label take all cells to be as wide as it is.

    Parameters
    ----------
    n_labels
        Number of labels.
    shape
        Number of tokens and their width.
    process
        Whose :math:`x_t` the tokens are.
    rank
        Largest number of principal components. Of more than 32,768 coordinates or 31 labels there are fewer than 512:
        neither they nor the matrices take more than 64 MiB.

    Examples
    --------
    >>> import torch
    >>> from sclatent.diffusion import LinearFlow, solve
    >>> from sclatent.module import GaussianVelocity
    >>> gaussian = GaussianVelocity(2, (1, 2), LinearFlow())
    >>> tokens, labels = torch.randn(1000, 1, 2) * torch.tensor([3.0, 0.5]), torch.tensor([0, 1]).repeat(500)
    >>> gaussian.fit(tokens, labels, means=torch.zeros(2, 1, 2), shrinkage=10.0)
    >>> cells = solve(lambda x, t: gaussian(x, t, labels[:, None]), torch.randn(1000, 1, 2), n_steps=50)
    >>> bool((cells[:, 0].std(dim=0) / tokens[:, 0].std(dim=0) - 1).abs().max() < 0.15)
    True
    """

    def __init__(self, n_labels: int, shape: tuple[int, int], process: Process, rank: int = 512) -> None:
        super().__init__()
        self.process = process
        dim = shape[0] * shape[1]
        # of an open label, of each label, and of an open label as wide as each
        self.n_labels, n_entries = n_labels, 1 + 2 * n_labels
        self.rank = max(1, min(rank, dim, MAX_ENTRIES // dim, math.isqrt(MAX_ENTRIES // n_entries)))
        self.register_buffer("variances", torch.ones(n_entries, self.rank))
        self.register_buffer("axes", torch.eye(self.rank).repeat(n_entries, 1, 1))
        if self.rank < dim:
            self.register_buffer("components", torch.eye(self.rank, dim))
            self.register_buffer("rest", torch.ones(()))

    @torch.no_grad()
    def fit(self, tokens: Tensor, labels: Tensor, means: Tensor, shrinkage: float, noise_level: float = 0.0) -> None:
        r"""Take the covariances from tokens (cells, n_tokens, token_dim) of mean 0.

        That of a label is shrunk to the one that all labels share, and that to the covariance of all cells, either as
        if there were so many cells more:

        .. math:: C_y = \frac{\sum_{i: y_i = y} d_i d_i^\top + k \, C}{n_y + k}, \qquad
                  C = \frac{\sum_{i: y_i \ne \varnothing} d_i d_i^\top + k \, C_\varnothing}{n + k}, \qquad
                  C_\varnothing = \mathrm{mean} \, z_i z_i^\top, \qquad d_i = z_i - m(y_i).

        Parameters
        ----------
        tokens
            :math:`z_i` of all cells.
        labels
            Label codes, (cells,), -1 for none.
        means
            m, (n_labels, n_tokens, token_dim).
        shrinkage
            k.
        noise_level
            Variance of noise that comes on top of these tokens in training.
        """
        z, means = tokens.flatten(1), means.flatten(1)
        if self.rank < z.shape[1]:
            enough = z[:: -(-len(z) // 8192)]
            components = torch.from_numpy(randomized_svd(enough.numpy(), self.rank, random_state=0)[2])
            self.components.zero_()[: len(components)] = components  # fewer than rank if there are fewer cells
            outside = z.square().sum() - (z @ components.T).square().sum()
            rest = outside / (len(z) * (z.shape[1] - self.rank))
            self.rest.copy_((rest + noise_level).clamp(min=MIN_VARIANCE))
            z, means = z @ self.components.T, means @ self.components.T
        every = z.T @ z / len(z)
        deviations = [z[labels == k] - mean for k, mean in enumerate(means)]
        n = sum(map(len, deviations))
        products = torch.stack([d.T @ d for d in deviations])
        shared = (products.sum(dim=0) + shrinkage * every) / (n + shrinkage)
        counts = torch.tensor([len(d) for d in deviations])[:, None, None]
        of_labels = (products + shrinkage * shared) / (counts + shrinkage)
        variances, axes = torch.linalg.eigh(torch.cat([every[None], of_labels]).double())
        variances = (variances + noise_level).clamp(min=MIN_VARIANCE)
        root, inverse = ((axes[0] * variances[0].pow(power)) @ axes[0].T for power in (0.5, -0.5))
        # a label in the coordinates in which all cells have variance 1
        relative, directions = torch.linalg.eigh(inverse @ (axes[1:] * variances[1:, None]) @ axes[1:].mT @ inverse)
        as_wide = root @ (directions * relative.clamp(min=1)[:, None]) @ directions.mT @ root
        wide_variances, wide_axes = torch.linalg.eigh(as_wide)
        self.variances.copy_(torch.cat([variances, wide_variances]))
        self.axes.copy_(torch.cat([axes, wide_axes]))

    def forward(self, u: Tensor, t: Tensor, codes: Tensor, guided_to: Tensor | None = None) -> Tensor:
        """Velocity (cells, n_tokens, token_dim).

        Parameters
        ----------
        u
            Noisy tokens less the mean of their label, (cells, n_tokens, token_dim).
        t
            Times in [0, 1], (cells,); 0 is noise, 1 is data.
        codes
            Label codes, (cells, 1), -1 for none.
        guided_to
            Labels (cells, 1) as wide as which the cells without one are taken to be.
        """
        entry = codes[:, 0] + 1
        if guided_to is not None:
            instead = (entry == 0) & (guided_to[:, 0] != OPEN)
            entry = torch.where(instead, guided_to[:, 0] + 1 + self.n_labels, entry)
        x = u.flatten(1)
        if self.rank == x.shape[1]:
            return self._within(x, t, entry).view_as(u)
        z, outside = x @ self.components.T, self.process.gaussian_gain(t, self.rest.expand(len(t), 1))
        return (outside * x + (self._within(z, t, entry) - outside * z) @ self.components).view_as(u)

    def _within(self, x: Tensor, t: Tensor, entry: Tensor) -> Tensor:
        """Velocity of coordinates (cells, rank) that have these of the covariances."""
        gain = self.process.gaussian_gain(t, self.variances[entry])
        order = entry.argsort()  # cells of a label side by side: a product of matrices for each
        blocks = torch.bincount(entry, minlength=len(self.axes)).tolist()
        parts = zip(x[order].split(blocks), gain[order].split(blocks), self.axes, strict=True)
        v = torch.cat([(x @ axes * gain) @ axes.T for x, gain, axes in parts])
        return v[order.argsort()]
