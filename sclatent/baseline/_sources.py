"""From which effects of a mixed model a prediction comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sclatent.nn import Values

from ._maps import MapName
from ._mixed_model import MAX_KERNEL, MixedModel

NAMES: dict[MapName, str] = {
    "own": "",
    "members": "members",
    "size": "number of members",
    "together": "members in combination",
    "likeness": "likeness",
    "features": "features, linear",
    "similar": "features, smooth",
    "linear": "linear",
    "smooth": "smooth",
}


def source_names(model: MixedModel, keys: Sequence[str]) -> list[str]:
    """Names of the sources of variation of a fitted mixed model: its fixed effects by key, then its random effects.

    Parameters
    ----------
    model
        A fitted mixed model.
    keys
        Names of its keys.

    Returns
    -------
    list[str]
        Such as ``"condition (fixed)"``, ``"cell_type"``, ``"perturbation (members)"``, or, of an interaction,
        ``"cell_type (likeness) x condition"``. The constant is none of them.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.baseline import MixedModel, source_names
    >>> codes = np.array([(cell_type, treated) for cell_type in range(6) for treated in (0, 1)])[:-1]
    >>> means = np.array([[cell_type * (1.0 + treated)] for cell_type, treated in codes])
    >>> model = MixedModel([6, 2], 1).fit(codes, np.full(11, 100), means, noise=0.01)
    >>> for name in source_names(model, ["cell_type", "condition"]):
    ...     print(name)
    condition (fixed)
    cell_type
    cell_type (likeness)
    cell_type (likeness) x condition
    cell_type x condition
    """

    def name_of(key: str, what: str) -> str:
        return f"{key} ({what})" if what else key

    names = []
    for k in _fixed_keys(model):
        slope = model._slope_of(k)
        names.append(name_of(keys[k], "fixed" if slope is None else f"{NAMES[slope]}, fixed"))
    for effect, _ in model.predicted_effects:
        names.append(" x ".join(name_of(keys[factor.key], NAMES[factor.map]) for factor in effect))
    return names


@torch.no_grad()
def source_shares(model: MixedModel, codes: Any, values: Sequence[Values] | None = None) -> np.ndarray:
    r"""Share of each source of variation in the predictions of combinations of conditions.

    .. math:: \lVert u_r(c) \rVert^2 \Big/ \sum_{r'} \lVert u_{r'}(c) \rVert^2

    with :math:`u_r(c)` what a random effect adds to the prediction of c, or what the fixed effect of a key does. The
    fixed effect of a level is taken from the mean over the levels in their shares of the training cells, a slope from
    0: the empty set, or the lowest number.

    Parameters
    ----------
    model
        A fitted mixed model.
    codes
        Combinations (n, n_keys), -1 where a condition is null.
    values
        What is known of the values of each key; by default which they are alone.

    Returns
    -------
    np.ndarray
        Shares (n, n_sources), in the order of :func:`source_names`. They sum to 1, or are all 0 where the prediction is
        the constant.

    Examples
    --------
    The response of the sixth type of cells was not measured. It is predicted from the types themselves, their mean
    response, and that of types that are alike:

    >>> import numpy as np
    >>> from sclatent.baseline import MixedModel, source_names, source_shares
    >>> codes = np.array([(cell_type, treated) for cell_type in range(6) for treated in (0, 1)])[:-1]
    >>> means = np.array([[cell_type * (1.0 + treated)] for cell_type, treated in codes])
    >>> model = MixedModel([6, 2], 1).fit(codes, np.full(11, 100), means, noise=0.01)
    >>> names, shares = source_names(model, ["cell_type", "condition"]), source_shares(model, [[5, 1]])[0]
    >>> dict(zip(names, shares.round(2).tolist()))["cell_type x condition"], round(float(shares.sum()), 3)
    (0.0, 1.0)
    """
    asked, known = torch.as_tensor(np.asarray(codes), device=model.seen.device), model._values(values)
    weights = model.weights.flatten(1)
    blocks = []
    for block in asked.split(max(1, MAX_KERNEL // max(1, len(model.seen)))):
        lengths = []
        for k in _fixed_keys(model):
            of_key = model._fixed_of(k, block[:, k], known[k])
            if model._has_fixed_levels(k):
                of_key = of_key - model.get_buffer(f"fixed{k}")[-1]  # of the null condition
            lengths.append(of_key.flatten(1).double().square().sum(dim=1))
        lengths += [(kernel @ weights).square().sum(dim=1) for kernel in model.kernels(block, known)]
        blocks.append(torch.stack(lengths, dim=1) if lengths else weights.new_zeros(len(block), 0))
    squared = torch.cat(blocks).cpu().numpy()
    total = squared.sum(axis=1, keepdims=True)
    return np.divide(squared, total, out=np.zeros_like(squared), where=total > 0)


@torch.no_grad()
def variance_shares(model: MixedModel, values: Sequence[Values] | None = None) -> np.ndarray:
    r"""Share of each source in the variance of the means of the combinations that were seen, without noise.

    The variance of a random effect is :math:`\sigma_r^2` times the mean of the diagonal of its kernel, that of a fixed
    effect the variance of what it predicts, as in the coefficient of determination of mixed models (Nakagawa and
    Schielzeth 2013).

    Parameters
    ----------
    model
        A fitted mixed model.
    values
        What is known of the values of each key; by default which they are alone.

    Returns
    -------
    np.ndarray
        Shares (n_sources,), in the order of :func:`source_names`.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.baseline import MixedModel, variance_shares
    >>> codes = np.array([(cell_type, treated) for cell_type in range(6) for treated in (0, 1)])[:-1]
    >>> means = np.array([[cell_type * (1.0 + treated)] for cell_type, treated in codes])
    >>> model = MixedModel([6, 2], 1).fit(codes, np.full(11, 100), means, noise=0.01)
    >>> round(float(variance_shares(model).sum()), 3)
    1.0
    """
    seen, known = model.seen, model._values(values)
    variances = []
    for k in _fixed_keys(model):
        of_key = model._fixed_of(k, seen[:, k], known[k]).flatten(1).double()
        variances.append(of_key.var(dim=0, correction=0).mean())
    for effect, variance in model.predicted_effects:
        diagonals = [model._maps(f.key).diagonal(f.map, seen[:, f.key], known[f.key]) for f in effect]
        variances.append(variance * torch.stack(diagonals).prod(dim=0).mean())
    found = torch.stack(variances).cpu().numpy() if variances else np.zeros(0)
    return found / found.sum() if found.sum() > 0 else found


def _fixed_keys(model: MixedModel) -> list[int]:
    return [k for k in range(len(model.n_levels)) if model._has_fixed_effect(k)]
