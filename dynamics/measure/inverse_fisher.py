"""Inverse of the damped empirical Fisher matrix, by products with m gradients.

F = λ I + (1/m) Σ_i g_i g_i^T over m gradients g_i (d,) has d² entries and is never formed: its
inverse is kept as F^-1 = I / λ - Σ_i v_i v_i^T / q_i, m vectors v_i and numbers q_i. `invert`
finds them one gradient after the other; a `Window` lets the oldest gradient go when a new one
comes. `optimal_brain_surgeon` prunes with either.

A product with F^-1 loses as many digits as the condition number of F has, (λ + largest eigenvalue
of the mean) / λ, and the loss shows on vectors in the span of the gradients: elsewhere F^-1 x is
nearly x / λ whatever was done. In single precision keep λ above m ε times the largest eigenvalue.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from dynamics import arguments
from dynamics.aliases import Array, LossFn, Params
from dynamics.measure import batching

HIGHEST = jax.lax.Precision.HIGHEST


class InverseFisher(NamedTuple):
    """F^-1 = I / λ - Σ_i v_i v_i^T / q_i."""

    directions: Array  # (m, d) v_i
    scales: Array  # (m,) q_i, positive
    damping: Array  # () λ


class Window(NamedTuple):
    """The last m gradients and the factor of their small system; a ring, so in no fixed order."""

    gradients: Array  # (m, d) g_i
    gram: Array  # (m, m) g_i·g_j
    factor: Array  # (m, m) lower triangular L with L L^T = m λ I + gram
    oldest: Array  # () which row goes next
    damping: Array  # () λ


def per_example_gradients(
    loss_fn: LossFn, params: Params, data: Any, *, batch_size: int | None = None
) -> Array:
    """Return the gradients g_n (N, d) of the loss on each sample, parameters flattened.

    Args:
        loss_fn: `loss_fn(params, data)`, a mean over samples; g_n is its gradient on the batch
            that holds sample n alone.
        params: A pytree of floating-point arrays, d entries in all, in the order of
            `jax.flatten_util.ravel_pytree`.
        data: A pytree of arrays with one common leading axis N.
        batch_size: Samples at a time, by default all.

    Raises:
        ValueError: `data` is None or its leading axes differ, `batch_size` is outside [1, N], the
            loss is not a scalar.
        TypeError: a leaf of `params` is not of floating-point type.

    Example:
        >>> loss = lambda slope, data: jnp.mean(slope * data)
        >>> print(per_example_gradients(loss, 0.0, jnp.array([1.0, 3.0])))
        [[1.]
         [3.]]
    """
    params, _ = batching.of_samples(loss_fn, params, data, batch_size)

    def gradient(sample: Any) -> Array:
        single = jax.tree.map(lambda leaf: leaf[None], sample)
        return ravel_pytree(jax.grad(loss_fn)(params, single))[0]

    data = jax.tree.map(jnp.asarray, data)
    return jax.lax.map(gradient, data, batch_size=batch_size or len(jax.tree.leaves(data)[0]))


def invert(gradients: Array, damping: Any) -> InverseFisher:
    """Return the inverse of F = λ I + (1/m) Σ_i g_i g_i^T, built one gradient at a time.

    v_i = g_i / λ - Σ_{j<i} v_j (v_j·g_i) / q_j and q_i = m + g_i·v_i: Sherman and Morrison, m
    times. It is the Cholesky factorisation of the small system in another dress: v_i / q_i^(1/2)
    is row i of L^-1 G / λ^(1/2) with L L^T = m λ I + G G^T.

    Args:
        gradients: (m, d), any number of rows.
        damping: λ > 0, in units of the mean of g g^T.

    Raises:
        ValueError: `gradients` is not (m, d) or empty; a `damping` that is not positive.

    Cost:
        4 d m² operations; 2 d m numbers held.

    References:
        Frantar, Kurtic, Alistarh 2021, arXiv:2107.03356 (the static algorithm).

    Example:
        >>> inverse = invert(jnp.array([[1.0, 0.0]]), 1.0)  # F = diag(2, 1)
        >>> print(product(inverse, jnp.array([1.0, 1.0])))
        [0.5 1. ]
    """
    gradients, damping = _checked(gradients, damping)
    count = len(gradients)

    def add(carry: tuple[Array, Array], inputs: tuple[Array, Array]) -> tuple[Any, None]:
        directions, scales = carry  # rows to come are 0, and their scales 1
        index, gradient = inputs
        overlaps = jnp.matmul(directions, gradient, precision=HIGHEST) / scales
        direction = gradient / damping - jnp.matmul(overlaps, directions, precision=HIGHEST)
        scale = count + jnp.dot(gradient, direction, precision=HIGHEST)
        return (directions.at[index].set(direction), scales.at[index].set(scale)), None

    start = jnp.zeros_like(gradients), jnp.ones(count, gradients.dtype)
    found, _ = jax.lax.scan(add, start, (jnp.arange(count), gradients))
    return InverseFisher(*found, damping)


def product(inverse: InverseFisher, vector: Array) -> Array:
    """Return F^-1 x for x (..., d), in 4 d m operations a vector.

    Raises:
        ValueError: the last axis of `vector` is not d.
    """
    arguments.records(InverseFisher, inverse=inverse)
    arguments.shapes("m d, ... d", inverse=inverse.directions, vector=vector)
    vector = jnp.asarray(vector)
    overlaps = jnp.matmul(vector, inverse.directions.T, precision=HIGHEST) / inverse.scales
    return vector / inverse.damping - jnp.matmul(overlaps, inverse.directions, precision=HIGHEST)


def diagonal(inverse: InverseFisher) -> Array:
    """Return the diagonal of F^-1 (d,), in 2 d m operations."""
    arguments.records(InverseFisher, inverse=inverse)
    squares = jnp.sum(inverse.directions**2 / inverse.scales[:, None], axis=0)
    return 1 / inverse.damping - squares


def column(inverse: InverseFisher, index: Any) -> Array:
    """Return F^-1 e_i (d,), column `index`, in 2 d m operations."""
    arguments.records(InverseFisher, inverse=inverse)
    check_index(inverse, index)
    overlaps = inverse.directions[:, index] / inverse.scales
    found = -jnp.matmul(overlaps, inverse.directions, precision=HIGHEST)
    return found.at[index].add(1 / inverse.damping)


def check_index(inverse: InverseFisher, index: Any) -> None:
    """Raise where `index` is not one of the weights; a traced one is taken on trust."""
    arguments.records(InverseFisher, inverse=inverse)
    arguments.scalars(index=index)
    arguments.labels(inverse.directions.shape[1], index=index)


def inverse_empirical_fisher_vector_product(
    loss_fn: LossFn,
    params: Params,
    data: Any,
    *,
    damping: float,
    batch_size: int | None = None,
) -> batching.Matvec:
    """Return `matvec(v)`, the product F^-1 v, undoing `curvature.empirical_fisher_vector_product`.

    F = λ I + (1/N) Σ_n g_n g_n^T; v and the product are pytrees like `params`. The gradients of
    all samples are held: give as `data` the few hundred that are wanted in F.

    Args:
        loss_fn: As in `per_example_gradients`, and so are `params`, `data` and `batch_size`.
        params: A pytree of floating-point arrays.
        data: A pytree of arrays with one common leading axis N.
        damping: λ > 0.
        batch_size: Samples whose gradients are taken at a time, by default all.

    Raises:
        ValueError, TypeError: as `per_example_gradients` and `invert`; from `matvec`, v not shaped
            like params.

    Example:
        >>> loss = lambda slope, data: jnp.mean(slope * data)
        >>> data = jnp.array([1.0, 3.0])  # F = 3 + (1 + 9) / 2
        >>> matvec = inverse_empirical_fisher_vector_product(loss, 0.0, data, damping=3.0)
        >>> print(matvec(4.0))
        0.5
    """
    params = batching.checked_params(params)
    gradients = per_example_gradients(loss_fn, params, data, batch_size=batch_size)
    inverse = invert(gradients, damping)  # in single precision at least
    flat, unravel = ravel_pytree(params)
    solve = lambda vector: product(inverse, ravel_pytree(vector)[0]).astype(flat.dtype)
    return batching.checked_matvec(lambda vector: unravel(solve(vector)), params)


def open_window(gradients: Array, damping: Any) -> Window:
    """Return a window on the m gradients (m, d), the first of which is the oldest.

    Raises:
        ValueError: as `invert`.

    Cost:
        2 d m² operations, and m³ / 3 for the factor.

    References:
        Frantar, Kurtic, Alistarh 2021, arXiv:2107.03356 (the dynamic algorithm).
    """
    gradients, damping = _checked(gradients, damping)
    gram = jnp.matmul(gradients, gradients.T, precision=HIGHEST)
    return Window(gradients, gram, _factor(gram, damping), jnp.zeros((), int), damping)


def slide(window: Window, gradient: Array) -> Window:
    """Return the window with its oldest gradient replaced by `gradient` (d,).

    Only the products with the new gradient are taken, 2 d m operations, and a new factor,
    m³ / 3. Nothing is updated twice, so that rounding does not add up over a training run.

    Raises:
        ValueError: `gradient` is not (d,).

    Example:
        >>> window = slide(open_window(jnp.array([[1.0, 0.0]]), 1.0), jnp.array([0.0, 2.0]))
        >>> print(window_product(window, jnp.array([1.0, 1.0])).round(3))  # F = diag(1, 5)
        [1.  0.2]
    """
    arguments.records(Window, window=window)
    arguments.shapes("m d, d", window=window.gradients, gradient=gradient)
    gradient = jnp.asarray(gradient, window.gradients.dtype)
    at = window.oldest
    gradients = window.gradients.at[at].set(gradient)
    overlaps = jnp.matmul(gradients, gradient, precision=HIGHEST)
    gram = window.gram.at[at].set(overlaps).at[:, at].set(overlaps)
    factor = _factor(gram, window.damping)
    return Window(gradients, gram, factor, (at + 1) % len(gradients), window.damping)


def window_product(window: Window, vector: Array) -> Array:
    """Return F^-1 x = x / λ - G^T (m λ I + G G^T)^-1 G x / λ (d,), in 4 d m + 2 m² operations.

    Raises:
        ValueError: `vector` is not (d,).
    """
    arguments.records(Window, window=window)
    arguments.shapes("m d, d", window=window.gradients, vector=vector)
    vector = jnp.asarray(vector)
    overlaps = jnp.matmul(window.gradients, vector, precision=HIGHEST)
    solved = jax.scipy.linalg.cho_solve((window.factor, True), overlaps)
    return (vector - jnp.matmul(solved, window.gradients, precision=HIGHEST)) / window.damping


def window_inverse(window: Window) -> InverseFisher:
    """Return the inverse of a window in the form of `invert`, for its diagonal or for pruning."""
    arguments.records(Window, window=window)
    directions = jax.scipy.linalg.solve_triangular(window.factor, window.gradients, lower=True)
    scales = jnp.broadcast_to(window.damping, len(directions)).astype(directions.dtype)
    return InverseFisher(directions, scales, window.damping)


def _factor(gram: Array, damping: Array) -> Array:
    count = len(gram)
    return jnp.linalg.cholesky(gram + count * damping * jnp.eye(count, dtype=gram.dtype))


def _checked(gradients: Array, damping: Any) -> tuple[Array, Array]:
    arguments.shapes("m d", gradients=gradients)
    arguments.scalars(damping=damping)
    gradients = jnp.asarray(gradients)
    if not isinstance(damping, jax.core.Tracer) and not np.all(np.asarray(damping) > 0):
        message = f"damping={damping}: give a positive number, or F has no inverse where m < d"
        raise ValueError(message)
    kind = jnp.promote_types(gradients.dtype, jnp.float32)
    return gradients.astype(kind), jnp.asarray(damping, kind)
