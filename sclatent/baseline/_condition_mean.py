"""Mean tokens under conditions and library size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from sclatent.nn import NULL, Context, Values

from ._mixed_model import MixedModel

Baseline = Literal["none", "additive", "mixed"]
BASELINES: tuple[Baseline, ...] = ("none", "additive", "mixed")
Residuals = Literal["noise", "gaussian", "mixture"]
RESIDUALS: tuple[Residuals, ...] = ("noise", "gaussian", "mixture")


def common_slope(group: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Slope of y on x within groups, one for all of them (analysis of covariance).

    Parameters
    ----------
    group
        Number of the group of each cell, (cells,).
    x
        Covariate, (cells,).
    y
        Outcomes, (cells, dim).

    Returns
    -------
    np.ndarray
        The slope (dim,); 0 if the covariate does not vary within any group.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.baseline import common_slope
    >>> group = np.array([0, 0, 1, 1])
    >>> x, y = np.array([0.0, 1.0, 0.0, 1.0]), np.array([[0.0], [2.0], [10.0], [12.0]])
    >>> common_slope(group, x, y).tolist()
    [2.0]
    """
    x = x - (np.bincount(group, x) / np.maximum(np.bincount(group), 1))[group]
    square = x @ x
    return (x @ y) / square if square > 1e-6 * len(x) else np.zeros(y.shape[1])


class ConditionMean(nn.Module):
    r"""Mean of standardised tokens under their conditions and library size; fitted in closed form and then fixed.

    .. math:: m(c, s) = m(c) + s \, \beta, \qquad m(\varnothing) = 0,

    with s the standardised log library size and m(c) a :class:`MixedModel`.

    Parameters
    ----------
    n_levels
        Number of levels of each condition key.
    shape
        Shape of the tokens of a cell.
    of
        For each key the one that it is a dose of, or None.
    kind
        ``"mixed"``, ``"additive"`` (no interactions), or ``"none"``, which is 0.

    Examples
    --------
    >>> import torch
    >>> from sclatent.baseline import ConditionMean
    >>> from sclatent.nn import Context
    >>> mean = ConditionMean([2], 1)
    >>> mean.fit(torch.tensor([[-1.0], [1.0]]).repeat(50, 1), torch.tensor([[0], [1]]).repeat(50, 1))
    >>> mean(Context(torch.tensor([[0], [1], [-1]]))).tolist()
    [[-1.0], [1.0], [0.0]]
    """

    slope: Tensor

    def __init__(
        self, n_levels: Sequence[int], *shape: int, kind: Baseline = "mixed", of: Sequence[int | None] | None = None
    ) -> None:
        super().__init__()
        self.shape, self.kind = shape, kind
        self.register_buffer("slope", torch.zeros(shape))
        self.model: MixedModel | None = None
        if n_levels and kind != "none":
            self.model = MixedModel(n_levels, *shape, interactions=kind == "mixed", of=of)

    def fit(
        self, tokens: Tensor, codes: Tensor, size: Tensor | None = None, values: Sequence[Values] | None = None
    ) -> None:
        """Fit the mean to standardised tokens.

        Parameters
        ----------
        tokens
            ``(cells, *shape)``.
        codes
            Condition codes, (cells, n_keys); cells that lack one are left out.
        size
            Standardised log library sizes, (cells,).
        values
            What is known of the values of each key; by default which they are alone.
        """
        if self.kind == "none":
            return
        y, known = tokens.flatten(1).numpy().astype(float), codes.numpy()
        dosed = [] if self.model is None else list(self.model.owner.values())  # null where the dose is 0
        kept = (np.delete(known, dosed, axis=1) != NULL).all(axis=1)
        y, known = y[kept], known[kept]
        if not len(known):
            return
        seen, group, n_cells = np.unique(known, axis=0, return_inverse=True, return_counts=True)
        group = group.ravel()
        if size is not None:
            sizes = size.numpy().astype(float)[kept]
            slope = common_slope(group, sizes, y)
            self.slope.copy_(torch.from_numpy(slope).view(self.shape))
            y = y - sizes[:, None] * slope
        if self.model is None:
            return
        member = sparse.csr_matrix((1 / n_cells[group], (group, np.arange(len(group)))))
        means = member @ y
        within = np.square(y - means[group]).sum() / max(1, len(y) - len(seen)) / y.shape[1]
        self.model.fit(seen, n_cells, means.reshape(-1, *self.shape), within, values)

    def forward(self, context: Context) -> Tensor:
        """Mean tokens ``(cells, *shape)``."""
        total = self.slope.new_zeros(len(context), *self.shape)
        ones = [1] * len(self.shape)
        if context.size is not None:
            total = total + context.size.view(-1, *ones) * self.slope
        if self.model is None:
            return total
        given = (context.codes != NULL).any(dim=1)
        return total + given.view(-1, *ones) * self.model(context.codes, context.values)
