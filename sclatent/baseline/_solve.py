"""Equations of the mixed model, dense or sparse."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve

from ._variances import orthonormal

DENSE_COMBINATIONS = 2_000  # of more, equations are solved by conjugate gradients
FEW_COLUMNS = 1_000  # of an effect that the preconditioner has in full: it takes time to the third power of their sum


def products_of_rows(a: sparse.csr_matrix, b: sparse.csr_matrix) -> sparse.csr_matrix:
    """Kronecker product of every row of a (n, p) with the same row of b (n, q), (n, p q)."""
    n_a, n_b = np.diff(a.indptr), np.diff(b.indptr)
    row_of_a = np.repeat(np.arange(len(n_a)), n_a)
    repeats = n_b[row_of_a]
    place = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    of_b = np.repeat(b.indptr[:-1][row_of_a], repeats) + place
    columns = np.repeat(a.indices.astype(np.int64), repeats) * b.shape[1] + b.indices[of_b]
    data = np.repeat(a.data, repeats) * b.data[of_b]
    indptr = np.concatenate([[0], np.cumsum(n_a * n_b)])
    return sparse.csr_matrix((data, columns, indptr), shape=(a.shape[0], a.shape[1] * b.shape[1]))


def diagonals(factors: Sequence[sparse.csr_matrix], variances: np.ndarray) -> list[np.ndarray]:
    r"""Diagonal of :math:`\sigma_r^2 A_r A_r^T` of every random effect, (n,) each."""
    return [v * a.multiply(a).sum(axis=1).A1 for v, a in zip(variances, factors, strict=True)]


def solve_mixed(
    factors: Sequence[sparse.csr_matrix], variances: np.ndarray, noise: np.ndarray, b: np.ndarray
) -> np.ndarray:
    r"""Solve :math:`(\sum_r \sigma_r^2 A_r A_r^T + R) \, x = b` for b (n, m), with R the diagonal ``noise``.

    Of many combinations by conjugate gradients. Their preconditioner has the effects of few columns in full (by the
    Woodbury identity), since these have the largest eigenvalues, and the diagonal of all others.
    """
    of_effects = diagonals(factors, variances)
    noise = noise + 1e-9 * (sum(of_effects, noise).mean() or 1.0)
    if len(b) <= DENSE_COMBINATIONS:
        covariance = np.diag(noise)
        for variance, a in zip(variances, factors, strict=True):
            covariance += variance * (a @ a.T).toarray()
        return cho_solve(cho_factor(covariance), b)
    effects = [(np.sqrt(v) * a, d) for v, a, d in zip(variances, factors, of_effects, strict=True) if d.any()]
    few = [a for a, _ in effects if a.shape[1] <= FEW_COLUMNS]
    rest = sum((d for a, d in effects if a.shape[1] > FEW_COLUMNS), noise)

    def multiply(x: np.ndarray) -> np.ndarray:
        return noise[:, None] * x + sum(a @ (a.T @ x) for a, _ in effects)

    return conjugate_gradients(multiply, b, preconditioner(few, rest))


def error_covariance(
    factors: Sequence[sparse.csr_matrix],
    variances: np.ndarray,
    noise: np.ndarray,
    design: np.ndarray,
    prior: np.ndarray,
    shared: np.ndarray,
    asked: np.ndarray,
) -> np.ndarray:
    """Covariance of the errors of best linear unbiased predictions (Henderson 1975), (m, m).

    A fixed effect in a direction in which no rows of the design differ is not determined, and predicted to be 0. It is
    taken to have as large a variance as all random effects together.

    Parameters
    ----------
    factors, variances, noise
        As of :func:`solve_mixed`.
    design
        Columns of the fixed effects of what was seen, (n, p).
    prior, shared
        Covariance of the random effects of what is predicted, (m, m), and with those of what was seen, (m, n).
    asked
        Columns of the fixed effects of what is predicted, (m, p).
    """
    rows, beyond = design - design[0], asked - design[0]
    beyond -= beyond @ np.linalg.pinv(rows, rcond=1e-9) @ rows
    size = np.mean(sum(diagonals(factors, variances)))
    basis = orthonormal(design)
    solved = solve_mixed(factors, variances, noise, np.hstack([basis, shared.T]))
    of_basis, of_shared = np.split(solved, [basis.shape[1]], axis=1)
    determined = (asked - beyond) @ np.linalg.pinv(design, rcond=1e-9) @ basis
    apart = determined - shared @ of_basis
    of_fixed = apart @ np.linalg.solve(basis.T @ of_basis, apart.T)
    return prior - shared @ of_shared + of_fixed + size * beyond @ beyond.T


def preconditioner(few: Sequence[sparse.csr_matrix], rest: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    r"""Inverse of :math:`\sum_r A_r A_r^T + D`, with D the diagonal ``rest``, as a function of columns (n, m)."""
    if not few:
        return lambda x: x / rest[:, None]
    a = sparse.hstack(few).tocsr()
    scaled = sparse.diags(1 / rest) @ a
    inner = cho_factor(np.eye(a.shape[1]) + (a.T @ scaled).toarray())
    return lambda x: x / rest[:, None] - scaled @ cho_solve(inner, scaled.T @ x)


def conjugate_gradients(
    multiply: Callable[[np.ndarray], np.ndarray],
    b: np.ndarray,
    precondition: Callable[[np.ndarray], np.ndarray],
    tolerance: float = 1e-6,
) -> np.ndarray:
    """Solve for all columns of b (n, m) together, by preconditioned conjugate gradients."""
    x, r = np.zeros_like(b), b.copy()
    z = precondition(r)
    p, rz = z, (r * z).sum(axis=0)
    wanted = tolerance * np.linalg.norm(b, axis=0)
    for _ in range(1_000):
        going = np.linalg.norm(r, axis=0) > wanted
        if not going.any():
            break
        q = multiply(p)
        step = np.where(going, rz / np.maximum((p * q).sum(axis=0), np.finfo(float).tiny), 0.0)
        x, r = x + step * p, r - step * q
        z = precondition(r)
        rz, before = (r * z).sum(axis=0), rz
        p = z + np.where(going, rz / np.maximum(before, np.finfo(float).tiny), 0.0) * p
    return x
