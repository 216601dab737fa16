"""Mean of the cells of any combination of conditions, by a linear mixed model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn

from sclatent.nn import NULL, CombinationTable

from ._reml import orthonormal, reml

# A key of fewer levels has fixed effects: from fewer a variance is not estimated well (Gelman and Hill 2007, 11.4).
FEW_LEVELS = 5
N_FEATURES = 32  # principal components of the means of levels, by which they are alike
REML_COMBINATIONS = 500  # variances are estimated on so many: the likelihood takes time to their third power
MAX_KERNEL = 2**20  # numbers of a kernel that are computed together
DENSE_COMBINATIONS = 2_000  # of more, equations are solved by conjugate gradients


class Factor(NamedTuple):
    """How levels of a key share an effect: each has its own, or by their likeness."""

    key: int
    by_likeness: bool


Effect = tuple[Factor, ...]


class MixedModel(nn.Module):
    r"""A linear mixed model of the means of combinations of conditions, fitted in closed form.

    .. math:: y_c = X_c \beta + \sum_r u_r(c) + e_c, \qquad u_r \sim N(0, \sigma_r^2 K_r), \quad
              e_c \sim N(0, \sigma_e^2 / n_c)

    for the mean :math:`y_c` of the :math:`n_c` cells of a combination c. Fixed effects are a constant and the levels of
    keys that have fewer than five. Random effects are the levels of the other keys and, with interactions, these levels
    by their likeness and all pairs of keys: identity by identity, and likeness by identity, so that levels that are
    alike may respond alike. Levels are as alike as the inner product of their means, under those levels of the
    other keys under which most of them were seen. The variances are estimated by restricted maximum likelihood
    (:func:`reml`) and decide all shrinkage. The prediction, of any combination, seen or not, is the best linear
    unbiased one (BLUP, Henderson 1975).

    A null condition stands for the levels of its key in their shares of the training cells.

    Parameters
    ----------
    n_levels
        Number of levels of each key.
    shape
        Shape of a mean.
    interactions
        Whether combinations have more than the sum of the effects of their levels. Without, the model is additive, and
        the variance of combinations around it only weights them.

    Examples
    --------
    Six types of cells that answer a treatment in proportion to their level; of the last the control alone is known:

    >>> import numpy as np
    >>> from sclatent.baseline import MixedModel
    >>> codes = np.array([(cell_type, treated) for cell_type in range(6) for treated in (0, 1)])[:-1]
    >>> means = np.array([[cell_type * (1.0 + treated)] for cell_type, treated in codes])
    >>> model = MixedModel([6, 2], 1).fit(codes, np.full(11, 100), means, noise=0.01)
    >>> model.predict([[5, 0], [5, 1]]).round(1).ravel().tolist()
    [5.0, 10.0]
    """

    constant: Tensor
    seen: Tensor
    weights: Tensor
    variances: Tensor

    def __init__(self, n_levels: Sequence[int], *shape: int, interactions: bool = True) -> None:
        super().__init__()
        self.n_levels, self.shape, self.interactions = tuple(n_levels), shape, interactions
        self.register_buffer("constant", torch.zeros(shape))
        for k, n in enumerate(self.n_levels):  # the last row is that of the null condition
            self.register_buffer(f"fixed{k}", torch.zeros(n + 1, *shape))
            self.register_buffer(f"features{k}", torch.zeros(n + 1, 0, dtype=torch.float64))
            self.register_buffer(f"share{k}", torch.zeros(n, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(0, len(self.n_levels), dtype=torch.int64))
        # in double precision: predictions are small differences of large numbers
        self.register_buffer("weights", torch.zeros(0, *shape, dtype=torch.float64))
        self.register_buffer("variances", torch.zeros(0, dtype=torch.float64))
        self.marginal = CombinationTable(self.n_levels, *shape)  # what combinations with a null condition have besides

    @property
    def effects(self) -> list[Effect]:
        """Random effects, in the order of ``variances``; the last is that of whole combinations, if there is one."""
        keys = range(len(self.n_levels))
        random = [k for k in keys if self.n_levels[k] >= FEW_LEVELS]
        alike = [k for k in keys if self.get_buffer(f"features{k}").shape[1]]
        own = [Factor(k, by_likeness=False) for k in keys]
        effects: list[Effect] = [(own[k],) for k in random]
        if self.interactions:
            effects += [(Factor(k, by_likeness=True),) for k in random if k in alike]
            for pair in combinations(keys, 2):
                for k, other in (pair, pair[::-1]):
                    effects += [(Factor(k, by_likeness=True), own[other])] * (k in alike)
                effects += [(own[pair[0]], own[pair[1]])] * (len(keys) > 2)
        return [*effects, tuple(own)] if len(keys) > 1 else effects

    @torch.no_grad()
    def fit(
        self,
        codes: np.ndarray,
        n_cells: np.ndarray,
        means: np.ndarray,
        noise: float = 0.0,
    ) -> MixedModel:
        r"""Fit the model to a table of means.

        Parameters
        ----------
        codes
            Condition codes of the combinations that were seen, (n_seen, n_keys).
        n_cells
            Number of cells of each, (n_seen,).
        means
            Mean of each, ``(n_seen, *shape)``.
        noise
            :math:`\sigma_e^2`, the variance of a cell around the mean of its combination.
        """
        codes, n_cells = np.asarray(codes, dtype=np.int64), np.asarray(n_cells, dtype=float)
        values = np.asarray(means, dtype=float).reshape(len(codes), -1)
        for k, n in enumerate(self.n_levels):
            share = np.bincount(codes[:, k], n_cells, minlength=n) / n_cells.sum()
            features = np.zeros((n, 0))
            if self.interactions and len(self.n_levels) > 1:
                features = level_features(codes, values, k, n)
            self.get_buffer(f"share{k}").copy_(torch.from_numpy(share))
            setattr(self, f"features{k}", torch.from_numpy(np.vstack([features, share @ features])))
        noise_of = noise / n_cells
        design = self._design(codes)
        some = few_levels(codes, REML_COMBINATIONS)
        kernels = [(a @ a.T).toarray() for a in self._factors(codes[some])]
        variances = reml(kernels, design[some], values[some], noise_of[some])
        basis = orthonormal(design)
        solved = solve_mixed(self._factors(codes), variances, noise_of, np.hstack([basis, values]))
        of_basis, of_values = np.split(solved, [basis.shape[1]], axis=1)
        coefficients = np.linalg.solve(basis.T @ of_basis, basis.T @ of_values)
        self._take_fixed(np.linalg.lstsq(design, basis @ coefficients, rcond=None)[0])
        self.variances, self.seen = torch.from_numpy(variances), torch.from_numpy(codes)
        weights = np.ascontiguousarray(of_values - of_basis @ coefficients)
        self.weights = torch.from_numpy(weights).view(-1, *self.shape)
        self._fit_marginal(codes, n_cells)
        return self

    def predict(self, codes: Any) -> np.ndarray:
        """Means ``(n, *shape)`` of combinations (n, n_keys), -1 where the condition is null."""
        return self(torch.as_tensor(np.asarray(codes), device=self.constant.device)).cpu().numpy()

    def forward(self, codes: Tensor) -> Tensor:
        """Means ``(cells, *shape)`` under codes (cells, n_keys), -1 where the condition is null."""
        unique, place = torch.unique(codes, dim=0, return_inverse=True)
        return (self._blup(unique) + self.marginal.of(unique))[place]

    def _blup(self, codes: Tensor) -> Tensor:
        most = max(1, MAX_KERNEL // max(1, len(self.seen)))
        if len(codes) > most:
            return torch.cat([self._blup(block) for block in codes.split(most)])
        total = self.constant.expand(len(codes), *self.shape)
        if not len(self.seen):  # not fitted
            return total
        inner = {}
        for k, (code, seen) in enumerate(zip(codes.unbind(1), self.seen.unbind(1), strict=True)):
            total = total + self.get_buffer(f"fixed{k}")[code]
            share, features = self.get_buffer(f"share{k}"), self.get_buffer(f"features{k}")
            is_null, same = (code == NULL)[:, None], code[:, None] == seen
            inner[Factor(k, by_likeness=False)] = torch.where(is_null, share[seen], same.to(share.dtype))
            inner[Factor(k, by_likeness=True)] = features[code] @ features[seen].T
        kernel = self.weights.new_zeros(len(codes), len(self.seen))
        for effect, variance in zip(self.effects, self.variances, strict=True):
            if self.interactions or len(effect) == 1:
                kernel = kernel + variance * torch.stack([inner[factor] for factor in effect]).prod(dim=0)
        return total + (kernel @ self.weights.flatten(1)).view_as(total).to(total.dtype)

    def _design(self, codes: np.ndarray) -> np.ndarray:
        """Columns of the fixed effects, (n_seen, p): the constant, and the levels of keys that have few."""
        columns = [codes[:, [k]] == np.arange(n) for k, n in enumerate(self.n_levels) if n < FEW_LEVELS]
        return np.hstack([np.ones((len(codes), 1)), *columns]).astype(float)

    def _take_fixed(self, effects: np.ndarray) -> None:
        self.constant.copy_(torch.from_numpy(effects[0]).view(self.shape))
        start = 1
        for k, n in enumerate(self.n_levels):
            if n < FEW_LEVELS:
                table = torch.from_numpy(effects[start : start + n])
                null = self.get_buffer(f"share{k}").cpu() @ table
                self.get_buffer(f"fixed{k}").copy_(torch.cat([table, null[None]]).view(-1, *self.shape))
                start += n

    def _factors(self, codes: np.ndarray) -> list[sparse.csr_matrix]:
        """For every random effect a sparse matrix A of which :math:`A A^T` is its kernel among combinations."""
        factors = []
        for effect in self.effects:
            own = [factor.key for factor in effect if not factor.by_likeness]
            group, features = np.zeros(len(codes), dtype=np.int64), np.ones((len(codes), 1))
            if own:
                group = np.unique(codes[:, own], axis=0, return_inverse=True)[1].ravel()
            for key in (factor.key for factor in effect if factor.by_likeness):  # one at most
                features = self.get_buffer(f"features{key}").cpu().numpy()[codes[:, key]]
            n, r = features.shape
            columns = group[:, None] * r + np.arange(r)
            factors.append(sparse.csr_matrix((features.ravel(), columns.ravel(), np.arange(n + 1) * r)))
        return factors

    def _fit_marginal(self, codes: np.ndarray, n_cells: np.ndarray) -> None:
        """Make the mean under null conditions that of the training cells that have the others."""
        predicted = self._blup(torch.from_numpy(codes)).flatten(1).numpy()
        found, entries = [], []
        for size in range(len(self.n_levels)):
            for kept in combinations(range(len(self.n_levels)), size):
                null = np.full_like(codes, NULL)
                null[:, kept] = codes[:, kept]
                null, of_null = np.unique(null, axis=0, return_inverse=True)
                member = sparse.csr_matrix((n_cells, (of_null.ravel(), np.arange(len(codes)))))
                found.append(torch.from_numpy(null))
                entries.append(torch.from_numpy(member @ predicted / member.sum(axis=1).A))
        every = torch.cat(found)
        self.marginal.fit_combinations(every, torch.cat(entries).view(-1, *self.shape) - self._blup(every))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name in ("seen", "weights", "variances", *(f"features{k}" for k in range(len(self.n_levels)))):
            saved = state_dict.get(prefix + name)  # how many there are is known from the data alone
            if saved is not None:
                setattr(self, name, torch.empty_like(saved, device=self.constant.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
        errors, n = args[-1], len(self.seen)
        expected: dict[str, tuple[int, ...]] = {"seen": (n, len(self.n_levels)), "weights": (n, *self.shape)}
        for k, n_k in enumerate(self.n_levels):
            expected[f"features{k}"] = n_k + 1, *self.get_buffer(f"features{k}").shape[1:2]
        expected["variances"] = (len(self.effects) if n else 0,)
        for name, shape in expected.items():
            if tuple(self.get_buffer(name).shape) != shape:
                errors.append(f"{prefix}{name} must have the shape {shape}.")
        n_levels = torch.tensor(self.n_levels, device=self.seen.device)
        if not errors and not self.seen.is_meta and not ((self.seen >= 0) & (self.seen < n_levels)).all():
            errors.append(f"{prefix}seen must be codes of the levels.")


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


def few_levels(codes: np.ndarray, most: int) -> np.ndarray:
    """Rows (n,) of combinations, at most about so many: all those of levels that are evenly spaced."""
    n_levels = [len(np.unique(column)) for column in codes.T]
    if len(codes) <= most:
        return np.arange(len(codes))
    column = codes[:, int(np.argmax(n_levels))]
    levels = np.unique(column)
    kept = levels[:: -(-len(codes) // most)]
    return np.flatnonzero(np.isin(column, kept))


def solve_mixed(
    factors: Sequence[sparse.csr_matrix], variances: np.ndarray, noise: np.ndarray, b: np.ndarray
) -> np.ndarray:
    r"""Solve :math:`(\sum_r \sigma_r^2 A_r A_r^T + R) \, x = b` for b (n, m), with R the diagonal ``noise``."""
    diagonal = sum((v * a.multiply(a).sum(axis=1).A1 for v, a in zip(variances, factors, strict=True)), noise)
    noise = noise + 1e-9 * diagonal.mean() + np.finfo(float).tiny
    if len(b) <= DENSE_COMBINATIONS:
        covariance = np.diag(noise)
        for variance, a in zip(variances, factors, strict=True):
            covariance += variance * (a @ a.T).toarray()
        return cho_solve(cho_factor(covariance), b)

    def multiply(x: np.ndarray) -> np.ndarray:
        return noise[:, None] * x + sum(v * (a @ (a.T @ x)) for v, a in zip(variances, factors, strict=True))

    return conjugate_gradients(multiply, b, diagonal)


def conjugate_gradients(
    multiply: Callable[[np.ndarray], np.ndarray], b: np.ndarray, diagonal: np.ndarray, tolerance: float = 1e-6
) -> np.ndarray:
    """Solve for all columns of b (n, m) together, by conjugate gradients with the diagonal as preconditioner."""
    x, r = np.zeros_like(b), b.copy()
    z = r / diagonal[:, None]
    p, rz = z, (r * z).sum(axis=0)
    wanted = tolerance * np.linalg.norm(b, axis=0)
    for _ in range(1_000):
        going = np.linalg.norm(r, axis=0) > wanted
        if not going.any():
            break
        q = multiply(p)
        step = np.where(going, rz / np.maximum((p * q).sum(axis=0), np.finfo(float).tiny), 0.0)
        x, r = x + step * p, r - step * q
        z = r / diagonal[:, None]
        rz, before = (r * z).sum(axis=0), rz
        p = z + np.where(going, rz / np.maximum(before, np.finfo(float).tiny), 0.0) * p
    return x
