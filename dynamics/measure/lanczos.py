"""Lanczos with full reorthogonalisation: the extreme eigenpairs of a symmetric matvec."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array, Key

WHICH = ("largest", "smallest", "magnitude")
PART = 8  # rows of a basis that are read at a time
# Entries of a basis from which it is read in parts: 16 MB in single precision, about a cache.
MANY = 2**22


class Tridiagonal(NamedTuple):
    """Q A Q^T = T after m iterations, in exact arithmetic A Q^T = Q^T T + remainder e_m^T."""

    basis: Array  # (m, P) Q, orthonormal rows
    diagonal: Array  # (m,) of T
    off_diagonal: Array  # (m,) of T, and in the last place the norm of the remainder


def tridiagonalise(
    matvec: Callable[[Array], Array], start: Array, *, key: Key, num_iterations: int
) -> Tridiagonal:
    """Return the Lanczos basis of a symmetric `matvec` and its projection T on it.

    Each new vector is orthogonalised against all earlier ones, twice where once may not do. Where
    the Krylov space is exhausted (the new vector is rounding noise) the coupling is set to 0 and
    the iteration goes on from a random vector orthogonal to the basis, so that T keeps only
    eigenvalues of A and repeated eigenvalues are found as often as they occur.

    Args:
        matvec: (P,) -> (P,), symmetric.
        start: (P,) of norm 1.
        key: For the vectors drawn after an exhausted space; unused otherwise.
        num_iterations: m, at least 1 and at most P.

    Reference: Golub and Van Loan, Matrix Computations, 4th edition, section 10.3.
    """
    arguments.functions(matvec=matvec)
    arguments.shapes("P", start=start)
    arguments.keys(key=key)
    arguments.counts(num_iterations=num_iterations)
    epsilon = float(np.finfo(start.dtype).eps)
    is_long = num_iterations * start.size >= MANY
    basis = jnp.zeros((num_iterations, start.size), start.dtype)

    def iterate(carry: Any, index: Array) -> tuple[Any, Any]:
        basis, vector, coupling, scale = carry
        basis = basis.at[index].set(vector)
        image = matvec(vector).astype(start.dtype)
        diagonal = jnp.dot(vector, image, precision="highest")
        if is_long:
            before = basis[jnp.maximum(index - 1, 0)]
            image = image - diagonal * vector - coupling * before
            remainder = orthogonalise_in_parts(basis, image, index + 1)
        else:
            remainder = orthogonalise(basis, image)
        norm = jnp.linalg.norm(remainder)
        scale = jnp.maximum(scale, jnp.maximum(jnp.abs(diagonal), norm))
        exhausted = norm <= 10 * epsilon * scale
        draw = lambda: jax.random.normal(jax.random.fold_in(key, index), start.shape, start.dtype)
        following = remainder / jnp.where(exhausted, 1, norm)
        if is_long:
            fresh = _where(exhausted, draw, jnp.zeros_like(start))
            fresh = orthogonalise_in_parts(basis, fresh, index + 1, exhausted)
            following = jnp.where(exhausted, _normalised(fresh), following)
        else:
            afresh = lambda: _normalised(orthogonalise(basis, draw()))
            following = jax.lax.cond(exhausted, afresh, lambda: following)
        coupling = jnp.where(exhausted, 0, norm)
        return (basis, following, coupling, scale), (diagonal, coupling)

    nothing = jnp.zeros((), start.dtype)
    carry: Any = (basis, start, nothing, nothing)
    (basis, *_), entries = jax.lax.scan(iterate, carry, jnp.arange(num_iterations))
    return Tridiagonal(basis, *entries)


def three_term(
    matvec: Callable[[Array], Array], start: Array, *, num_iterations: int
) -> tuple[Array, Array]:
    """Return diagonal (m,) and off-diagonal (m,) of T by the recurrence alone, no basis kept.

    Arguments and the layout of T are those of `tridiagonalise`. Rounding lets eigenvalues that
    have converged come back; where the space is exhausted the couplings that follow are 0.
    """
    arguments.functions(matvec=matvec)
    arguments.shapes("P", start=start)
    arguments.counts(num_iterations=num_iterations)
    tiny = float(np.finfo(start.dtype).tiny)
    epsilon = float(np.finfo(start.dtype).eps)

    def iterate(carry: Any, _: Any) -> tuple[Any, Any]:
        before, vector, coupling, scale = carry
        image = matvec(vector).astype(start.dtype) - coupling * before
        diagonal = jnp.dot(vector, image, precision="highest")
        remainder = image - diagonal * vector
        norm = jnp.linalg.norm(remainder)
        scale = jnp.maximum(scale, jnp.maximum(jnp.abs(diagonal), norm))
        norm = jnp.where(norm <= 10 * epsilon * scale, 0, norm)
        following = jnp.where(norm > 0, remainder / jnp.maximum(norm, tiny), 0)
        return (vector, following, norm, scale), (diagonal, norm)

    nothing = jnp.zeros((), start.dtype)
    carry: Any = (jnp.zeros_like(start), start, nothing, nothing)
    return jax.lax.scan(iterate, carry, length=num_iterations)[1]


def as_matrix(diagonal: Array, off_diagonal: Array) -> Array:
    """Return T (m, m); the last of `off_diagonal` (m,) leads out of it."""
    arguments.shapes("m, m", diagonal=diagonal, off_diagonal=off_diagonal)
    beside = off_diagonal[:-1]
    return jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)


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
    arguments.records(Tridiagonal, tridiagonal=tridiagonal)
    arguments.counts(num=num)
    arguments.choices(WHICH, which=which)
    basis, diagonal, off = tridiagonal
    values, small_vectors = jnp.linalg.eigh(as_matrix(diagonal, off))
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
    arguments.shapes("m P, P", basis=basis, vector=vector)
    for _ in range(2):
        overlaps = jnp.matmul(basis, vector, precision="highest")
        vector = vector - jnp.matmul(overlaps, basis, precision="highest")
    return vector


def orthogonalise_in_parts(
    basis: Array, vector: Array, num_rows: Array, wanted: Any = True
) -> Array:
    """Return the same, with the first `num_rows` rows alone and a few of them at a time.

    A long basis comes from memory, which can take longer than the product with the matrix: rows to
    come are left out, and a second pass is made only where the first took away more than half
    of the square, and so may have left rounding behind. Where it is not `wanted`, nothing is done.
    (Loops of no turns, and not branches: XLA copies what a branch reads.)

    Reference: Daniel, Gragg, Kaufman and Stewart 1976, section 4.
    """
    arguments.shapes("m P, P", basis=basis, vector=vector)
    arguments.integers(0, num_rows=num_rows)
    size = min(PART, len(basis))
    num_parts = (num_rows + size - 1) // size

    def part(index: Array, vector: Array) -> Array:
        # The last part may overlap the one before, whose rows are gone from the vector.
        start = jnp.minimum(index * size, len(basis) - size)
        rows = jax.lax.dynamic_slice_in_dim(basis, start, size)
        overlaps = jnp.matmul(rows, vector, precision="highest")
        return vector - jnp.matmul(overlaps, rows, precision="highest")

    def once(vector: Array, wanted: Any) -> Array:
        return jax.lax.fori_loop(0, jnp.where(wanted, num_parts, 0), part, vector)

    cleaned = once(vector, wanted)
    return once(cleaned, wanted & (jnp.sum(cleaned**2) < 0.5 * jnp.sum(vector**2)))


def _where(wanted: Array, make: Callable[[], Array], other: Array) -> Array:
    """Return what `make` returns where it is wanted, and only then make it."""
    return jax.lax.fori_loop(0, wanted.astype(int), lambda _, __: make(), other)


def _normalised(vector: Array) -> Array:
    tiny = float(np.finfo(vector.dtype).tiny)
    return vector / jnp.maximum(jnp.linalg.norm(vector), tiny)
