"""Mean of the cells of any combination of conditions, by a linear mixed model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import combinations
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from sclatent.nn import NULL, CombinationTable, Values

from ._maps import LENGTHS, Effect, Factor, KeyMaps, MapName, level_features
from ._solve import error_covariance, products_of_rows, solve_mixed
from ._variances import few_levels, moderated_variances, orthonormal, restricted_fit

# A key of fewer levels has fixed effects: from fewer a variance is not estimated well (Gelman and Hill 2007, 11.4).
FEW_LEVELS = 5
REML_COMBINATIONS = 500  # variances are estimated on so many: the likelihood takes time to their third power
LENGTH_COMBINATIONS = 250  # and length scales, several of which are tried
MAX_KERNEL = 2**22  # numbers of a kernel that are computed together


class MixedModel(nn.Module):
    r"""A linear mixed model of the means of combinations of conditions, fitted in closed form.

    .. math:: y_c = X_c \beta + \sum_r u_r(c) + e_c, \qquad u_r \sim N(0, \sigma_r^2 K_r), \quad
              e_c \sim N(0, \sigma_e^2 / n_c)

    for the mean :math:`y_c` of the :math:`n_c` cells of a combination c. Fixed effects are a constant, the levels of
    keys that have fewer than five, numbers, and the number of members of a set: what members do on average. Random
    effects have kernels (:class:`KeyMaps`): the levels of the other keys, members of sets, features, smooth functions
    of numbers and, with interactions, likeness of levels and products of two kernels, so that levels that are alike may
    respond alike. Levels are as alike as the inner product of their means, under those levels of the other keys under
    which most of them were seen. The variances are estimated by restricted maximum likelihood (:func:`reml`) and decide
    all shrinkage. The prediction, of any combination, seen or not, is the best linear unbiased one (BLUP, Henderson
    1975).

    A number that belongs to a key, such as the dose of a drug, multiplies all effects of this key: at 0 there is none.
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
    of
        For each key the one that it is a dose of, or None.

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
    noise: Tensor
    outcome_scale: Tensor

    def __init__(
        self,
        n_levels: Sequence[int],
        *shape: int,
        interactions: bool = True,
        of: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__()
        self.n_levels, self.shape, self.interactions = tuple(n_levels), shape, interactions
        self.owner = {number: key for number, key in enumerate(of or ()) if key is not None}
        self.register_buffer("constant", torch.zeros(shape))
        self.key_maps = nn.ModuleList(KeyMaps(n) for n in self.n_levels)
        for k, n in enumerate(self.n_levels):  # of levels, the last that of the null condition; or the slope of numbers
            self.register_buffer(f"fixed{k}", torch.zeros(n + 1, *shape))
        self.register_buffer("seen", torch.zeros(0, len(self.n_levels), dtype=torch.int64))
        # in double precision: predictions are small differences of large numbers
        self.register_buffer("weights", torch.zeros(0, *shape, dtype=torch.float64))
        self.register_buffer("variances", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("noise", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("outcome_scale", torch.ones(shape, dtype=torch.float64))
        self.marginal = CombinationTable(self.n_levels, *shape)  # what combinations with a null condition have besides

    def _values(self, values: Sequence[Values] | None) -> list[Values]:
        """What is known of the values of each key; by default which they are alone."""
        given = [Values.of_levels(n) for n in self.n_levels] if values is None else list(values)
        return [v.to(self.constant.device) for v in given]

    def _slope_of(self, k: int) -> MapName | None:
        """The map of a key that has a fixed effect, if its levels have none."""
        if self._maps(k).is_number:
            return "linear"
        return "size" if self._maps(k).is_set and k not in self.owner.values() else None  # of a dose of sets, its own

    def _has_fixed_levels(self, k: int) -> bool:
        few = self.n_levels[k] < FEW_LEVELS and k not in self.owner.values()
        return few and not self._maps(k).is_number and not self._maps(k).is_set

    @property
    def effects(self) -> list[Effect]:
        """Random effects, in the order of ``variances``; the last is that of whole combinations, if there is one."""
        keys = range(len(self.n_levels))
        maps = [self._maps(k) for k in keys]

        def some(k: int, *wanted: MapName) -> list[Factor]:
            return [Factor(k, name) for name in wanted if name in maps[k].names]

        own: list[list[Factor]] = []  # how values of a key differ, each from all others
        alike: list[list[Factor]] = []  # how they share
        for k in keys:
            of_values: tuple[MapName, ...] = ("linear", "smooth") if maps[k].is_number else ("own",)
            own.append(some(k, *(("members",) if maps[k].is_set else of_values)))
            alike.append(some(k, *(("likeness",) if self.interactions else ()), "features", "similar"))
        dosed = set(self.owner.values())
        effects: list[Effect] = []
        for k in keys:
            if k in dosed or self._has_fixed_levels(k):
                continue
            effects += [(factor,) for factor in own[k] if factor.map != "linear"]  # which has a fixed effect
        for k in keys:
            if k not in dosed and not self._has_fixed_levels(k):
                effects += [(factor,) for factor in alike[k]]
                if maps[k].is_set and self.interactions:
                    effects += [(factor,) for factor in some(k, "together", "own")]
        for number, k in self.owner.items():
            effects += [(factor, dose) for factor in own[k] + alike[k] for dose in own[number]]
        if self.interactions:
            for a, b in combinations(keys, 2):
                if {a, b} in [set(pair) for pair in self.owner.items()]:
                    continue
                dose = [own[number][0] for number, k in self.owner.items() if k in (a, b)]  # without it, no effect
                pairs = [(x, y) for one, other in ((a, b), (b, a)) for x in alike[one] for y in own[other]]
                if len(keys) > 2 or any(m.is_number or m.is_set for m in (maps[a], maps[b])):
                    pairs += [(x, y) for x in own[a] for y in own[b]]
                effects += [(*pair, *dose) for pair in pairs]
        whole = tuple(Factor(k, "own") for k in keys)
        return [*effects, whole] if len(keys) > 1 or maps[0].is_number else effects

    @torch.no_grad()
    def fit(
        self,
        codes: np.ndarray,
        n_cells: np.ndarray,
        means: np.ndarray,
        noise: float = 0.0,
        values: Sequence[Values] | None = None,
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
        values
            What is known of the values of each key; by default which they are alone.
        """
        codes, n_cells = np.asarray(codes, dtype=np.int64), np.asarray(n_cells, dtype=float)
        y = np.asarray(means, dtype=float).reshape(len(codes), -1)
        known = self._values(values)
        for k, n in enumerate(self.n_levels):
            of_key = codes[:, k] != NULL  # a level at a dose of 0 is null
            share = np.bincount(codes[of_key, k], n_cells[of_key], minlength=n) / max(n_cells[of_key].sum(), 1e-300)
            likeness = np.zeros((n, 0))
            is_level = not (known[k].is_number or known[k].is_set)
            if self.interactions and len(self.n_levels) > 1 and is_level and of_key.any():
                likeness = level_features(codes[of_key], y[of_key], k, n)
            self._maps(k).fit(known[k], share, likeness)
        noise_of = noise / n_cells
        self._choose_lengths(codes, y, noise_of, known)
        design, some = self._design(codes, known), few_levels(codes, REML_COMBINATIONS)
        variances, _ = self._restricted_fit(codes[some], y[some], noise_of[some], known)
        basis, factors = orthonormal(design), self._factors(codes, known)
        solved = solve_mixed(factors, variances, noise_of, np.hstack([basis, y]))
        of_basis, of_y = np.split(solved, [basis.shape[1]], axis=1)
        coefficients = np.linalg.solve(basis.T @ of_basis, basis.T @ of_y)
        fixed = basis @ coefficients
        self._take_fixed(design, fixed)
        self.variances, self.seen = torch.from_numpy(variances), torch.from_numpy(codes)
        weights = np.ascontiguousarray(of_y - of_basis @ coefficients)
        self.weights = torch.from_numpy(weights).view(-1, *self.shape)
        self.noise = torch.from_numpy(noise_of)
        freedom = max(1, len(codes) - basis.shape[1])
        scale = moderated_variances((y * weights).sum(axis=0) / freedom, freedom)
        self.outcome_scale.copy_(torch.from_numpy(scale).view(self.shape))
        random = [a @ (v * (a.T @ weights)) for a, v in zip(factors, variances, strict=True)]
        predicted = [part for effect, part in zip(self.effects, random, strict=True) if self._is_predicted(effect)]
        self._fit_marginal(codes, n_cells, sum(predicted, fixed), known)
        return self

    def _choose_lengths(self, codes: np.ndarray, y: np.ndarray, noise_of: np.ndarray, values: Sequence[Values]) -> None:
        """Choose the length scale of the smooth functions of every number by their restricted likelihood."""
        some = few_levels(codes, LENGTH_COMBINATIONS)
        for k, of_key in ((k, of_key) for k, of_key in enumerate(values) if of_key.is_number):
            found = []
            for length in LENGTHS:
                self._maps(k).fit_smooth(of_key, length)
                found.append(self._restricted_fit(codes[some], y[some], noise_of[some], values)[1])
            self._maps(k).fit_smooth(of_key, LENGTHS[int(np.argmin(found))])

    def _restricted_fit(
        self, codes: np.ndarray, y: np.ndarray, noise_of: np.ndarray, values: Sequence[Values]
    ) -> tuple[np.ndarray, float]:
        kernels = [(a @ a.T).toarray() for a in self._factors(codes, values)]
        return restricted_fit(kernels, self._design(codes, values), y, noise_of)

    def predict(self, codes: Any, values: Sequence[Values] | None = None) -> np.ndarray:
        """Means ``(n, *shape)`` of combinations (n, n_keys), -1 where the condition is null."""
        return self(torch.as_tensor(np.asarray(codes), device=self.constant.device), values).cpu().numpy()

    @torch.no_grad()
    def covariance(self, codes: Any, values: Sequence[Values] | None = None) -> np.ndarray:
        r"""Covariance of the errors of the predictions of combinations (n, n_keys), (n, n), of outcomes on average.

        That of an outcome is so many times as large as ``outcome_scale`` says. Variance components are taken as known.
        Fixed effects that training does not determine (what members do on average, if all sets are of one size) are
        predicted to be 0, and taken to vary around it as the random effects do together.
        """
        if self.seen.device.type != "cpu":  # where its equations are solved
            return copy.deepcopy(self).cpu().covariance(codes, values)
        asked, known = np.asarray(codes, dtype=np.int64), self._values(values)
        seen, noise, variances = (part.numpy() for part in (self.seen, self.noise, self.variances))
        shared = self.kernel(torch.from_numpy(asked), known).numpy()
        prior = np.zeros((len(asked), len(asked)))
        for effect, variance in zip(self.effects, variances, strict=True):
            inner = [self._maps(f.key).among(f.map, torch.from_numpy(asked[:, f.key]), known[f.key]) for f in effect]
            prior += variance * np.prod([kernel.numpy() for kernel in inner], axis=0)
        design, of_asked = self._design(seen, known), self._design(asked, known)
        return error_covariance(self._factors(seen, known), variances, noise, design, prior, shared, of_asked)

    def forward(self, codes: Tensor, values: Sequence[Values] | None = None) -> Tensor:
        """Means ``(cells, *shape)`` under codes (cells, n_keys), -1 where the condition is null."""
        known = self._values(values)
        unique, place = torch.unique(codes, dim=0, return_inverse=True)
        return (self._blup(unique, known) + self.marginal.of(unique))[place]

    def _maps(self, k: int) -> KeyMaps:
        return cast(KeyMaps, self.key_maps[k])

    def _blup(self, codes: Tensor, values: Sequence[Values]) -> Tensor:
        most = max(1, MAX_KERNEL // max(1, len(self.seen)))
        if len(codes) > most:
            return torch.cat([self._blup(block, values) for block in codes.split(most)])
        if not len(self.seen):  # not fitted
            return self.constant.expand(len(codes), *self.shape)
        total = self.constant + self._fixed(codes, values)
        kernel = self.kernel(codes, values)
        return total + (kernel @ self.weights.flatten(1)).view_as(total).to(total.dtype)

    @property
    def predicted_effects(self) -> list[tuple[Effect, Tensor]]:
        """Random effects that predictions have, with their variances; of an additive model no interactions."""
        every = zip(self.effects, self.variances, strict=True)
        return [(effect, variance) for effect, variance in every if self._is_predicted(effect)]

    def _is_predicted(self, effect: Effect) -> bool:
        keys = [factor.key for factor in effect]
        return self.interactions or len(keys) == 1 or keys in [[k, number] for number, k in self.owner.items()]

    def kernels(self, codes: Tensor, values: Sequence[Values]) -> Iterator[Tensor]:
        """Covariance of combinations (n, n_keys) and those that were seen, (n, n_seen), of each predicted effect."""
        inner: dict[Factor, Tensor] = {}
        for effect, variance in self.predicted_effects:
            for factor in effect:
                if factor not in inner:
                    code, seen = codes[:, factor.key], self.seen[:, factor.key]
                    inner[factor] = self._maps(factor.key).inner(factor.map, code, seen, values[factor.key])
            yield variance * torch.stack([inner[factor] for factor in effect]).prod(dim=0)

    def kernel(self, codes: Tensor, values: Sequence[Values]) -> Tensor:
        """Covariance of the random effects of combinations (n, n_keys) and of those that were seen, (n, n_seen)."""
        kernel = self.weights.new_zeros(len(codes), len(self.seen))
        for of_effect in self.kernels(codes, values):
            kernel = kernel + of_effect
        return kernel

    def _has_fixed_effect(self, k: int) -> bool:
        return self._slope_of(k) is not None or self._has_fixed_levels(k)

    def _fixed_of(self, k: int, code: Tensor, values: Values) -> Tensor:
        """Fixed effect of one key, ``(n, *shape)``; an unknown level has that of a null condition."""
        effect, slope = self.get_buffer(f"fixed{k}"), self._slope_of(k)
        if slope is None:
            return effect[torch.where(code < self.n_levels[k], code, NULL)]
        x = self._maps(k).of(slope, code, values).to(effect.dtype)
        return x.view(-1, *[1] * len(self.shape)) * effect[0]

    def _fixed(self, codes: Tensor, values: Sequence[Values]) -> Tensor:
        """Fixed effects but the constant, ``(n, *shape)``."""
        total = self.constant.new_zeros(len(codes), *self.shape)
        for k, code in enumerate(codes.unbind(1)):
            total = total + self._fixed_of(k, code, values[k])
        return total

    def _design(self, codes: np.ndarray, values: Sequence[Values]) -> np.ndarray:
        """Columns of the fixed effects of any combinations, (n, p); a null or unknown level has the shares of all."""
        columns = [np.ones((len(codes), 1))]
        for k, n in enumerate(self.n_levels):
            code, slope = codes[:, k], self._slope_of(k)
            if slope is not None:
                columns.append(self._maps(k).of(slope, torch.from_numpy(code), values[k]).numpy())
            elif self._has_fixed_levels(k):
                known = ((code >= 0) & (code < n))[:, None]
                columns.append(np.where(known, code[:, None] == np.arange(n), self._maps(k).share.cpu().numpy()))
        return np.hstack(columns).astype(float)

    def _take_fixed(self, design: np.ndarray, fitted: np.ndarray) -> None:
        """Take the fixed effects of a design (n, p) of what they are fitted to; that of a constant column is 0."""
        center = design.mean(axis=0) * (np.ptp(design, axis=0) == 0)
        center[0] = 0.0
        effects = np.linalg.lstsq(design - center, fitted, rcond=None)[0]
        self.constant.copy_(torch.from_numpy(effects[0]).view(self.shape))
        start = 1
        for k, n in enumerate(self.n_levels):
            fixed = self.get_buffer(f"fixed{k}")
            fixed.zero_()
            if self._slope_of(k) is not None:
                fixed[0] = torch.from_numpy(effects[start]).view(self.shape)
                start += 1
            elif self._has_fixed_levels(k):
                table = torch.from_numpy(effects[start : start + n])
                null = self._maps(k).share.cpu() @ table
                fixed.copy_(torch.cat([table, null[None]]).view(-1, *self.shape))
                start += n

    def _factors(self, codes: np.ndarray, values: Sequence[Values]) -> list[sparse.csr_matrix]:
        """For every random effect a sparse matrix A of which :math:`A A^T` is its kernel among combinations."""
        factors = []
        for effect in self.effects:
            own = [factor.key for factor in effect if factor.map == "own"]
            rows = []
            if own:
                group = np.unique(codes[:, own], axis=0, return_inverse=True)[1].ravel()
                rows.append(sparse.csr_matrix((np.ones(len(group)), (np.arange(len(group)), group))))
            for factor in (factor for factor in effect if factor.map != "own"):
                rows.append(self._maps(factor.key).rows(factor.map, codes[:, factor.key], values[factor.key]))
            factors.append(reduce(products_of_rows, rows))
        return factors

    def _fit_marginal(
        self, codes: np.ndarray, n_cells: np.ndarray, predicted: np.ndarray, values: Sequence[Values]
    ) -> None:
        """Make the mean under null conditions that of the training cells that have the others, as it is predicted."""
        found, entries = [], []
        for size in range(len(self.n_levels)):
            for kept in combinations(range(len(self.n_levels)), size):
                null = np.full_like(codes, NULL)
                null[:, kept] = codes[:, kept]
                null, of_null = np.unique(null, axis=0, return_inverse=True)
                member = sparse.csr_matrix((n_cells, (of_null.ravel(), np.arange(len(codes)))))
                found.append(torch.from_numpy(null))
                entries.append(torch.from_numpy(member @ predicted / member.sum(axis=1).A))
        # a level at a dose of 0 is null already, so that a combination may be found twice
        every, first = np.unique(torch.cat(found).numpy(), axis=0, return_index=True)
        entry = torch.cat(entries)[torch.from_numpy(first)].view(-1, *self.shape)
        combinations_found = torch.from_numpy(every)
        self.marginal.fit_combinations(combinations_found, entry - self._blup(combinations_found, values))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for k in range(len(self.n_levels)):  # before the effects, which follow from them, are counted
            self._maps(k)._load_from_state_dict(state_dict, f"{prefix}key_maps.{k}.", *args)
        for name in ("seen", "weights", "variances", "noise"):
            saved = state_dict.get(prefix + name)  # how many there are is known from the data alone
            if saved is not None:
                setattr(self, name, torch.empty_like(saved, device=self.constant.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
        errors, n = args[-1], len(self.seen)
        expected: dict[str, tuple[int, ...]] = {"seen": (n, len(self.n_levels)), "weights": (n, *self.shape)}
        expected |= {"noise": (n,), "variances": (len(self.effects) if n else 0,)}
        for name, shape in expected.items():
            if tuple(self.get_buffer(name).shape) != shape:
                errors.append(f"{prefix}{name} must have the shape {shape}.")
        n_levels = torch.tensor(self.n_levels, device=self.seen.device)
        least = torch.zeros_like(n_levels)
        least[list(self.owner.values())] = NULL  # a level at a dose of 0
        if not errors and not self.seen.is_meta and not ((self.seen >= least) & (self.seen < n_levels)).all():
            errors.append(f"{prefix}seen must be codes of the levels.")
