"""Feature maps of the values of a condition key, the inner products of which are the kernels of a mixed model."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from scipy import sparse
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn

from sclatent.nn import NULL, Values

MapName = Literal["own", "members", "size", "together", "likeness", "features", "similar", "linear", "smooth"]
N_LANDMARKS = 64  # values that smooth kernels are taken from (Williams and Seeger 2001)
N_COMPONENTS = 32  # of a smooth kernel
LENGTHS = 0.125, 0.25, 0.5, 1.0  # length scales that smooth functions of numbers may have, of the range of training
N_FEATURES = 32  # principal components of the means of levels, by which they are alike


class Factor(NamedTuple):
    """How the values of a key share an effect: by which map of :class:`KeyMaps`."""

    key: int
    map: MapName


Effect = tuple[Factor, ...]


class KeyMaps(nn.Module):
    r"""Maps :math:`\varphi` of the values of one key, each with a kernel :math:`\varphi(v)^\top \varphi(v')`.

    - ``own``: 1 of the value itself, 0 of all others;
    - ``members``: members that two sets share; ``together``: the same of sets of two members or more; ``size``:
      products of numbers of members;
    - ``likeness``: inner products of the mean cells of levels;
    - ``features``: inner products of given features; ``similar``: :math:`\exp(-\lVert f - f' \rVert^2 / 2 \ell^2)` of
      them, with the median distance for :math:`\ell`; of features that are not known, those of their mean and of a
      direction of their own (:class:`~sclatent.nn.Values`);
    - ``linear``: products of numbers; ``smooth``: :math:`k(s, t) - k(s, 0) k(0, t)` with
      :math:`k(s, t) = \exp(-(s - t)^2 / 2 \ell^2)`, a smooth function that is 0 at 0 (Rasmussen and Williams 2006).

    Maps but ``own`` and ``members`` have a mean square length of 1 over the levels. A null condition has the mean of
    the levels in their shares of the training cells. Where no member is in two sets, sets have neither ``own`` nor
    ``together``: they do what their members do.

    Parameters
    ----------
    n_levels
        Number of levels of training.
    """

    share: Tensor
    likeness: Tensor
    features_center: Tensor
    similar_landmarks: Tensor
    similar_weights: Tensor
    smooth_landmarks: Tensor
    smooth_weights: Tensor
    length: Tensor
    smooth_length: Tensor
    scales: Tensor

    def __init__(self, n_levels: int) -> None:
        super().__init__()
        self.n_levels = n_levels
        self.register_buffer("share", _zeros(n_levels))
        self.register_buffer("likeness", _zeros(n_levels, 0))
        self.register_buffer("features_center", _zeros(0))
        for name in ("similar", "smooth"):
            self.register_buffer(f"{name}_landmarks", _zeros(0, 0))
            self.register_buffer(f"{name}_weights", _zeros(0, 0))
        self.register_buffer("length", _zeros(1))
        self.register_buffer("smooth_length", _zeros(1))
        self.register_buffer("scales", _zeros(len(get_args(MapName))))
        for name in get_args(MapName):
            self.register_buffer(f"null_{name}", _zeros(0))

    @torch.no_grad()
    def fit(self, values: Values, share: np.ndarray, likeness: np.ndarray) -> None:
        """Take what maps need from the values of the levels, and the shares (n_levels,) that levels have of the cells.

        ``likeness`` are features (n_levels, r) of levels by their mean cells, as of :func:`level_features`.
        """
        of_levels = self._of_levels(values)
        self.share = torch.from_numpy(share)
        self.likeness = torch.from_numpy(likeness)
        self.scales = torch.ones_like(self.scales)
        for name in get_args(MapName):
            setattr(self, f"null_{name}", _zeros(0))
        x = _features(of_levels)
        if x.shape[1]:
            # sets are measured from the empty one, levels from their mean
            center = torch.zeros_like(of_levels.features[0]) if values.is_set else of_levels.features.mean(dim=0)
            self.features_center = _padded(center, x.shape[1])
            self.similar_landmarks = x[:: -(-len(x) // N_LANDMARKS)]
            apart = torch.cdist(self.similar_landmarks, self.similar_landmarks)
            positive = apart[apart > 0]
            self.length = positive.median()[None] if len(positive) else torch.ones_like(self.length)
            self.similar_weights = _whiten(self._similar(self.similar_landmarks, self.similar_landmarks))
        if values.is_number:
            distinct = torch.unique(of_levels.number)
            self.smooth_landmarks = distinct[:: -(-len(distinct) // N_LANDMARKS), None]
            self.fit_smooth(values, LENGTHS[0])
        for name in get_args(MapName):
            if name != "own":
                self._scale(name, of_levels)
        if not (of_levels.members[:, 1:].sum(dim=0) > 1).any():
            self.null_together = _zeros(0)  # what a set does for itself cannot be told from what its members do

    @torch.no_grad()
    def fit_smooth(self, values: Values, length: float) -> None:
        """Take what the smooth map needs from the numbers of the levels, at a length scale, a share of their range."""
        self.smooth_length = torch.full_like(self.smooth_length, length)
        self.smooth_weights = _whiten(_smooth(self.smooth_landmarks, self.smooth_landmarks, self.smooth_length))
        self._scale("smooth", self._of_levels(values))

    def _of_levels(self, values: Values) -> Values:
        of_levels = Values(*(part[: self.n_levels].double().cpu() for part in values))
        members, unknown = (part[:, part.any(dim=0)] for part in (of_levels.members, of_levels.unknown))
        return of_levels._replace(members=members, unknown=unknown)

    def _scale(self, name: MapName, of_levels: Values) -> None:
        """Bring a map to a mean square length of 1 over the levels, and find the null condition."""
        i, table = get_args(MapName).index(name), self._map(name, torch.arange(self.n_levels), of_levels)
        square = table.square().sum(dim=1).mean()
        self.scales[i] = square.rsqrt() if name != "members" and square > 0 else 1.0
        setattr(self, f"null_{name}", self.share @ table * self.scales[i])

    @property
    def is_number(self) -> bool:
        """Whether the values are numbers."""
        return len(self.get_buffer("null_linear")) > 0

    @property
    def is_set(self) -> bool:
        """Whether the values are sets."""
        return len(self.get_buffer("null_members")) > 0

    @property
    def names(self) -> list[MapName]:
        """Maps of which there is one."""
        found: list[MapName] = [] if self.is_number or self.is_set else ["own"]
        found += ["members", "size"] if self.is_set else []
        found += ["together", "own"] if len(self.get_buffer("null_together")) else []
        found += ["likeness"] if self.likeness.shape[1] else []
        found += ["features"] if len(self.get_buffer("null_features")) else []
        found += ["similar"] if self.similar_weights.shape[1] else []
        found += ["linear"] if self.is_number else []
        found += ["smooth"] if self.smooth_weights.shape[1] else []
        return found

    def of(self, name: MapName, codes: Tensor, values: Values) -> Tensor:
        """Map of values by their codes, (n, r), in double precision; not for ``own``."""
        null = self.get_buffer(f"null_{name}")
        table = self._map(name, codes.clamp(min=0), values) * self.scales[get_args(MapName).index(name)]
        return torch.where((codes == NULL)[:, None], _padded(null, table.shape[1]), table)

    def inner(self, name: MapName, codes: Tensor, seen: Tensor, values: Values) -> Tensor:
        """Kernel of values and values that were seen, by their codes, (n, n_seen)."""
        if name == "own":
            same = (codes[:, None] == seen).to(self.share.dtype)
            return torch.where((codes == NULL)[:, None], self.share[seen], same)
        return self.of(name, codes, values) @ self.of(name, seen, values).T

    def among(self, name: MapName, codes: Tensor, values: Values) -> Tensor:
        """Kernel of values among themselves, by their codes, (n, n)."""
        if name in ("similar", "smooth"):
            kernel, is_new = self.inner(name, codes, codes, values), codes >= self.n_levels
            exact = self._kernel(name, codes[is_new], values) * self.scales[get_args(MapName).index(name)].square()
            kernel[is_new[:, None] & is_new] = exact.flatten()  # of which the map has a part, less the further away
            return kernel
        if name != "own":
            return self.inner(name, codes, codes, values)
        share = torch.cat([self.share, self.share.square().sum()[None]])  # of null with null
        of_null = share[torch.where((codes < 0) | (codes >= self.n_levels), self.n_levels, codes)]
        is_null = codes == NULL
        same = (codes[:, None] == codes).to(share.dtype)
        other = torch.where(is_null[:, None], of_null, of_null[:, None])
        return torch.where(is_null[:, None] | is_null, other, same)

    def diagonal(self, name: MapName, codes: Tensor, values: Values) -> Tensor:
        """Kernel of each value with itself, by its code, (n,)."""
        if name == "own":
            return torch.where(codes == NULL, self.share.square().sum(), torch.ones_like(self.share[:1]))
        return self.of(name, codes, values).square().sum(dim=1)

    def rows(self, name: MapName, codes: np.ndarray, values: Values) -> sparse.csr_matrix:
        """The same map as sparse rows, of codes (n,)."""
        if name == "own":
            return sparse.csr_matrix((np.ones(len(codes)), (np.arange(len(codes)), codes)))
        return sparse.csr_matrix(self.of(name, torch.from_numpy(codes), values).numpy())

    def _map(self, name: MapName, codes: Tensor, values: Values) -> Tensor:
        if name == "likeness":
            known = (codes < self.n_levels)[:, None]
            return torch.where(known, self.likeness[codes.clamp(max=self.n_levels - 1)], 0.0)
        if name in ("members", "size", "together"):
            members = values.members[codes].double()
            size, known = members[:, :1], members[:, 1:]
            return {"members": known, "size": size, "together": known * (size > 1)}[name]
        if name == "features":
            x = _features(values, codes)
            return x - _padded(self.features_center, x.shape[1]) if x.shape[1] else x
        if name == "similar":
            return self._similar(_features(values, codes), self.similar_landmarks) @ self.similar_weights
        number = values.number[codes].double()
        if name == "linear":
            return number
        return _smooth(number, self.smooth_landmarks, self.smooth_length) @ self.smooth_weights

    def _kernel(self, name: MapName, codes: Tensor, values: Values) -> Tensor:
        """Kernel that a map was taken from, before it was scaled, of values by their codes among themselves, (n, n)."""
        if name == "similar":
            x = _features(values, codes)
            return self._similar(x, x)
        number = values.number[codes].double()
        return _smooth(number, number, self.smooth_length)

    def _similar(self, x: Tensor, y: Tensor) -> Tensor:
        if not len(y):
            return x.new_zeros(len(x), 0)
        return torch.exp(-torch.cdist(x, _padded(y, x.shape[1])).square() / (2 * self.length**2))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name, buffer in self.named_buffers():
            saved = state_dict.get(prefix + name)  # how many there are is known from the data alone
            if saved is not None and name not in ("share", "scales", "length", "smooth_length"):
                setattr(self, name, torch.empty_like(saved, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def level_features(codes: np.ndarray, means: np.ndarray, key: int, n_levels: int) -> np.ndarray:
    """Features of the levels of a key, (n_levels, r), the inner products of which say how alike they are.

    They are principal components of the means under the levels of the other keys under which most levels were seen,
    scaled to a mean square length of 1. A level that was not seen there has features of 0: nothing is known of it. From
    fewer than three levels there are none.
    """
    other = np.unique(np.delete(codes, key, axis=1), axis=0, return_inverse=True)[1].ravel()
    is_seen = np.zeros((other.max() + 1, n_levels), dtype=bool)
    is_seen[other, codes[:, key]] = True
    levels = is_seen[is_seen.sum(axis=1).argmax()]
    if levels.sum() < 3:
        return np.zeros((n_levels, 0))
    shared = np.all(is_seen[:, levels], axis=1)
    used = np.flatnonzero(shared[other] & levels[codes[:, key]])
    member = sparse.csr_matrix((np.ones(len(used)), (codes[used, key], used)), shape=(n_levels, len(codes)))
    profiles = member @ means / shared.sum()
    profiles[levels] -= profiles[levels].mean(axis=0)
    u, s, _ = randomized_svd(profiles, min(N_FEATURES, levels.sum() - 1, means.shape[1]), random_state=0)
    length = np.sqrt(np.square(s).sum() / levels.sum())
    return u * s / length if length > 0 else np.zeros((n_levels, 0))


def _features(values: Values, codes: Tensor | None = None) -> Tensor:
    """Features of values by their codes, of all by default, with a direction for each of those that are not known."""
    parts = (values.features, values.unknown)
    return torch.cat([part if codes is None else part[codes] for part in parts], dim=1).double()


def _padded(x: Tensor, width: int) -> Tensor:
    """Columns (..., width), with 0 for members that training has not."""
    return nn.functional.pad(x, (0, width - x.shape[-1]))


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def _smooth(s: Tensor, t: Tensor, length: Tensor) -> Tensor:
    """Squared-exponential kernel of numbers (n, 1) and (m, 1), of a function that is known to be 0 at 0, (n, m)."""
    if not len(t):
        return s.new_zeros(len(s), 0)

    def k(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-(a - b.T).square() / (2 * length**2))

    zero = t.new_zeros(1, 1)
    return k(s, t) - k(s, zero) @ k(zero, t)


def _whiten(kernel: Tensor) -> Tensor:
    """Weights W of landmarks, so that k W are coordinates whose inner products are the kernel (Nystrom's method)."""
    variances, axes = torch.linalg.eigh(kernel)
    kept = variances.argsort(descending=True)[:N_COMPONENTS]
    kept = kept[variances[kept] > 1e-8 * variances.max().clamp(min=1e-300)]
    return axes[:, kept] / variances[kept].sqrt()
