"""Lanczos with full reorthogonalisation: the extreme eigenpairs of a symmetric matvec."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.aliases import Array, Key


class Tridiagonal(NamedTuple):
    """Q A Q^T = T after m iterations, in exact arithmetic A Q^T = Q^T T + remainder e_m^T."""

    basis: Array  # (m, P) Q, orthonormal rows
    diagonal: Array  # (m,) of T
    off_diagonal: Array  # (m,) of T, and in the last place the norm of the remainder


def tridiagonalise(
    matvec: Callable[[Array], Array], start: Array, *, key: Key, num_iterations: int
) -> Tridiagonal:
    """Return the Lanczos basis of a symmetric `matvec` and its projection T on it.

    Each new vector is orthogonalised twice against all earlier ones. Where the Krylov space is
    exhausted (the new vector is rounding noise) the coupling is set to 0 and the iteration goes
    on from a random vector orthogonal to the basis, so that T keeps only eigenvalues of A and
    repeated eigenvalues are found as often as they occur.

    Args:
        matvec: (P,) -> (P,), symmetric.
        start: (P,) of norm 1.
        key: For the vectors drawn after an exhausted space; unused otherwise.
        num_iterations: m, at least 1 and at most P.

    Reference: Golub and Van Loan, Matrix Computations, 4th edition, section 10.3.
    """
    epsilon = float(np.finfo(start.dtype).eps)
    basis = jnp.zeros((num_iterations, start.size), start.dtype)

    def iterate(carry: Any, index: Array) -> tuple[Any, Any]:
        basis, vector, scale = carry
        basis = basis.at[index].set(vector)
        image = matvec(vector).astype(start.dtype)
        diagonal = jnp.dot(vector, image, precision="highest")
        remainder = orthogonalise(basis, image)
        norm = jnp.linalg.norm(remainder)
        scale = jnp.maximum(scale, jnp.maximum(jnp.abs(diagonal), norm))
        exhausted = norm <= 10 * epsilon * scale

        def afresh() -> Array:
            drawn = jax.random.normal(jax.random.fold_in(key, index), start.shape, start.dtype)
            drawn = orthogonalise(basis, drawn)
            return drawn / jnp.maximum(jnp.linalg.norm(drawn), float(np.finfo(start.dtype).tiny))

        following = jax.lax.cond(
            exhausted, afresh, lambda: remainder / jnp.where(exhausted, 1, norm)
        )
        return (basis, following, scale), (diagonal, jnp.where(exhausted, 0, norm))

    carry = (basis, start, jnp.zeros((), start.dtype))
    (basis, _, _), entries = jax.lax.scan(iterate, carry, jnp.arange(num_iterations))
    return Tridiagonal(basis, *entries)


def ritz_pairs(tridiagonal: Tridiagonal, *, num: int, which: str) -> tuple[Array, Array, Array]:
    """Return `num` Ritz values (num,), vectors (num, P) and residual norms (num,).

    The first is the most extreme. A residual is |remainder| times the last entry of the small
    eigenvector, which full reorthogonalisation makes equal to |A v - λ v| up to rounding; it is
    given no smaller than that rounding, taken as sqrt(m) times machine epsilon times the largest
    |Ritz value|.

    Args:
        tridiagonal: From `tridiagonalise`.
        num: At most the number of iterations.
        which: "largest" or "smallest" (algebraic), or "magnitude".
    """
    basis, diagonal, off = tridiagonal
    matrix = jnp.diag(diagonal) + jnp.diag(off[:-1], 1) + jnp.diag(off[:-1], -1)
    values, small_vectors = jnp.linalg.eigh(matrix)
    ranked = {"largest": -values, "smallest": values, "magnitude": -jnp.abs(values)}[which]
    chosen = jnp.argsort(ranked)[:num]
    small = small_vectors[:, chosen].T  # (num, m)
    vectors = jnp.matmul(small, basis, precision="highest")
    epsilon = float(np.finfo(values.dtype).eps) * len(values) ** 0.5
    rounding = epsilon * jnp.max(jnp.abs(values))
    residuals = jnp.hypot(off[-1] * jnp.abs(small[:, -1]), rounding)
    return values[chosen], vectors, residuals


def orthogonalise(basis: Array, vector: Array) -> Array:
    """Return `vector` (P,) without its part in the span of the rows of `basis` (m, P)."""
    for _ in range(2):
        overlaps = jnp.matmul(basis, vector, precision="highest")
        vector = vector - jnp.matmul(overlaps, basis, precision="highest")
    return vector
