"""Curvature of a loss: products with its Hessian, extreme eigenpairs, trace and diagonal.

Nothing here forms a matrix. `loss_fn(params)` is a scalar; with `data` it is
`loss_fn(params, data)`, a mean over the leading axis of `data`, and `batch_size` bounds the
memory: batches are weighted by their length, so the result is that of the whole data set also
where the last batch is shorter.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from dynamics import arguments
from dynamics.aliases import Array, Key, LossFn, Params
from dynamics.measure import batching, hessian_products, lanczos
from dynamics.measure.convolutions import convolutions_as_products
from dynamics.measure.exact_trace import (
    exact_hessian_diagonal,
    exact_hessian_trace,
    gauss_newton_diagonal,
    gauss_newton_trace,
)
from dynamics.measure.gauss_newton import (
    empirical_fisher_vector_product,
    fisher_vector_product,
    gauss_newton_vector_product,
)
from dynamics.measure.hessian_products import hessian_vector_product, second_derivative
from dynamics.measure.hessian_trace import TraceEstimate, hessian_diagonal, hessian_trace
from dynamics.measure.piecewise_linear import piecewise_linear_leaves
from dynamics.measure.preconditioned_curvature import (
    adam_preconditioner,
    preconditioned_loss,
    rmsprop_preconditioner,
)
from dynamics.measure.restriction import restrict

__all__ = [
    "Eigenpairs",
    "TraceEstimate",
    "adam_preconditioner",
    "convolutions_as_products",
    "empirical_fisher_vector_product",
    "exact_hessian_diagonal",
    "exact_hessian_trace",
    "fisher_vector_product",
    "gauss_newton_diagonal",
    "gauss_newton_trace",
    "gauss_newton_vector_product",
    "hessian_diagonal",
    "hessian_trace",
    "hessian_vector_product",
    "piecewise_linear_leaves",
    "preconditioned_loss",
    "restrict",
    "rmsprop_preconditioner",
    "second_derivative",
    "top_eigenpairs",
]

# Share of a random direction in a warm start: an eigenvector that overtakes is not missed.
FRESH_SHARE = 1e-3


class Eigenpairs(NamedTuple):
    """The extreme eigenpairs of a Hessian, the most extreme first."""

    values: Array  # (num,)
    vectors: Params  # like params, with a leading axis num; orthonormal
    residuals: Array  # (num,) |H v - value v|; some eigenvalue lies within it of the value


def top_eigenpairs(
    loss_fn: LossFn,
    params: Params,
    *,
    key: Key,
    num: int,
    which: str = "largest",
    num_iterations: int | None = None,
    start: Params = None,
    data: Any = None,
    batch_size: int | None = None,
) -> Eigenpairs:
    """Return the `num` extreme eigenpairs of the Hessian, by Lanczos with reorthogonalisation.

    The number of iterations is fixed, each costs one Hessian-vector product, and memory is one
    vector an iteration. Watch `residuals`: they say how far the iteration has come. Along a
    training run give the last vectors as `start`: ten iterations then do.

    Args:
        loss_fn: `loss_fn(params)`, or `loss_fn(params, data)` if `data` is given.
        params: Any pytree of floating-point arrays, P entries in all.
        key: For the random start, or the thousandth part of randomness in a given one.
        num: Eigenpairs wanted, 1 to P.
        which: "largest" or "smallest" (algebraic, so the smallest is the most negative), or
            "magnitude" (largest absolute value).
        num_iterations: From `num` to P; by default 30 + 4 num, which brings the outliers of
            network Hessians to about four digits, or P where that is less.
        start: A pytree like `params`, or like `Eigenpairs.vectors` (whose sum is then taken), to
            start from; where it is zero or not finite the start is random.
        data: A pytree of arrays with one common leading axis N.
        batch_size: Samples at a time, by default all; it need not divide N.

    Raises:
        ValueError: `num`, `num_iterations` or `which` out of range, `start` of another shape, or
            as in `hessian_vector_product`.
        TypeError: a leaf of `params` is not of floating-point type.

    Reference: Golub and Van Loan, Matrix Computations, 4th edition, section 10.3.

    Example:
        >>> saddle = lambda p: p[0] ** 2 - 3 * p[1] ** 2
        >>> pairs = top_eigenpairs(saddle, jnp.ones(2), key=jax.random.key(0), num=2)
        >>> print(pairs.values.round(4))
        [ 2. -6.]
    """
    arguments.functions(loss_fn=loss_fn)
    params = batching.checked_params(params)
    arguments.keys(key=key)
    arguments.integers(num=num)
    arguments.choices(lanczos.WHICH, which=which)
    arguments.integers(optional=True, num_iterations=num_iterations)
    flat, unravel = ravel_pytree(params)
    if not 1 <= num <= flat.size:
        message = f"num={num}: give a number from 1 to the {flat.size} parameters"
        raise ValueError(message)
    num_iterations = min(30 + 4 * num, flat.size) if num_iterations is None else num_iterations
    if not num <= num_iterations <= flat.size:
        message = f"num_iterations={num_iterations}: give a number from num={num} to {flat.size}"
        raise ValueError(message)
    product = hessian_vector_product(loss_fn, params, data, batch_size)
    start_key, restart_key = jax.random.split(key)
    tridiagonal = lanczos.tridiagonalise(
        lambda vector: ravel_pytree(product(unravel(vector)))[0],
        _start_vector(start, params, start_key),
        key=restart_key,
        num_iterations=num_iterations,
    )
    values, vectors, residuals = lanczos.ritz_pairs(tridiagonal, num=num, which=which)
    hessian_products.checked_finite(values, loss_fn, params, data, batch_size)
    return Eigenpairs(values, jax.vmap(unravel)(vectors), residuals)


def _start_vector(start: Params, params: Params, key: Key) -> Array:
    """Return a unit vector (P,): random, or `start` with a thousandth of randomness."""
    flat = ravel_pytree(params)[0]
    fresh = jax.random.normal(key, flat.shape, flat.dtype)
    fresh = fresh / jnp.linalg.norm(fresh)
    if start is None:
        return fresh
    given = _flat_start(start, params).astype(flat.dtype)
    norm = jnp.linalg.norm(given)
    usable = jnp.isfinite(norm) & (norm > 0)
    direction = jnp.where(usable, given / jnp.where(usable, norm, 1), fresh)
    mixed = direction + FRESH_SHARE * fresh
    return mixed / jnp.linalg.norm(mixed)


def _flat_start(start: Params, params: Params) -> Array:
    """Return `start` as (P,), summed over the leading axis where each leaf has one more."""
    arguments.params(start=start)
    if jax.tree.structure(start) != jax.tree.structure(params):  # type: ignore[operator]
        message = f"start: {jax.tree.structure(start)}; give {jax.tree.structure(params)}"
        raise ValueError(message)
    given, wanted = (
        [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (start, params)
    )
    if given == wanted:
        return ravel_pytree(start)[0]
    leading = {shape[:1] for shape in given}
    if [shape[1:] for shape in given] != wanted or len(leading) != 1:
        message = f"start: shapes {given}; give {wanted}, or the same behind one common axis"
        raise ValueError(message)
    return ravel_pytree(jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), start))[0]
