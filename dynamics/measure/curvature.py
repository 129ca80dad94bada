"""Curvature of a loss: products with its Hessian, extreme eigenpairs, trace and diagonal.

Nothing here forms a matrix. `loss_fn(params)` is a scalar; with `data` it is
`loss_fn(params, data)`, a mean over the leading axis of `data`, and `batch_size` bounds the
memory: batches are weighted by their length, so the result is that of the whole data set also
where the last batch is shorter.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from dynamics.aliases import Array, Key, LossFn, Params
from dynamics.measure import batching, gauss_newton, lanczos

Matvec = batching.Matvec

gauss_newton_vector_product = gauss_newton.gauss_newton_vector_product
fisher_vector_product = gauss_newton.fisher_vector_product
empirical_fisher_vector_product = gauss_newton.empirical_fisher_vector_product

# Share of a random direction in a warm start: an eigenvector that overtakes is not missed.
FRESH_SHARE = 1e-3


class Eigenpairs(NamedTuple):
    """The extreme eigenpairs of a Hessian, the most extreme first."""

    values: Array  # (num,)
    vectors: Params  # like params, with a leading axis num; orthonormal
    residuals: Array  # (num,) |H v - value v|; some eigenvalue lies within it of the value


class TraceEstimate(NamedTuple):
    """A stochastic estimate of a trace."""

    mean: Array  # ()
    standard_error: Array  # () of the mean, from the spread of the probes


def hessian_vector_product(
    loss_fn: LossFn, params: Params, data: Any = None, batch_size: int | None = None
) -> Matvec:
    """Return `matvec(v)`, the product H v of the Hessian of the loss at `params` with v.

    Forward over reverse. Without batches the gradient is linearised once and each product costs
    only its linear part, about two gradients; with batches each product goes through the data.

    Args:
        loss_fn: `loss_fn(params)`, or `loss_fn(params, data)` if `data` is given.
        params: Any pytree of floating-point arrays.
        data: A pytree of arrays with one common leading axis N.
        batch_size: Samples at a time, by default all; it need not divide N.

    Raises:
        ValueError: the loss is not a scalar, `batch_size` is outside [1, N] or given without
            `data`, or the leading axes of `data` differ; from `matvec`, v not shaped like params.
        TypeError: a leaf of `params` is not of floating-point type.

    Reference: Pearlmutter 1994, "Fast exact multiplication by the Hessian".

    Example:
        >>> matvec = hessian_vector_product(lambda p: p["a"] ** 2 * p["b"], dict(a=1.0, b=2.0))
        >>> print({name: float(entry) for name, entry in matvec(dict(a=1.0, b=0.0)).items()})
        {'a': 4.0, 'b': 2.0}
    """
    params = batching.checked_params(params)
    batches = batching.batches(data, batch_size)
    batching.check_scalar(loss_fn, params, batches.first)
    if batches.is_whole:
        gradient = jax.grad(lambda at: loss_fn(at, *batches.first))
        product = jax.linearize(gradient, params)[1]
    else:

        def product(vector: Params) -> Params:
            def part(*batch: Any) -> Params:
                gradient = jax.grad(lambda at: loss_fn(at, *batch))
                return jax.jvp(gradient, (params,), (vector,))[1]

            return batches.mean(part)

    return batching.checked_matvec(product, params)


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
    params = batching.checked_params(params)
    flat, unravel = ravel_pytree(params)
    if which not in ("largest", "smallest", "magnitude"):
        message = f'which={which!r}: give "largest", "smallest" or "magnitude"'
        raise ValueError(message)
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
    return Eigenpairs(values, jax.vmap(unravel)(vectors), residuals)


def hessian_trace(
    loss_fn: LossFn,
    params: Params,
    *,
    key: Key,
    num_probes: int,
    data: Any = None,
    batch_size: int | None = None,
) -> TraceEstimate:
    """Return an unbiased estimate of the trace of the Hessian and its standard error.

    The mean of v·Hv over independent vectors v of random signs; its variance is twice the sum of
    the squared off-diagonal entries, over `num_probes`. The standard error comes from the spread
    of the probes and is itself rough below some ten of them.

    Args:
        loss_fn: `loss_fn(params)`, or `loss_fn(params, data)` if `data` is given.
        params: Any pytree of floating-point arrays.
        key: For the signs.
        num_probes: Hessian-vector products spent, at least 2.
        data: A pytree of arrays with one common leading axis N.
        batch_size: Samples at a time, by default all; it need not divide N.

    Raises:
        ValueError: `num_probes` below 2, or as in `hessian_vector_product`.
        TypeError: a leaf of `params` is not of floating-point type.

    Reference: Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix".

    Example:
        >>> bowl = lambda p: p[0] ** 2 + 3 * p[1] ** 2
        >>> print(hessian_trace(bowl, jnp.ones(2), key=jax.random.key(0), num_probes=2))
        TraceEstimate(mean=Array(8., dtype=float32), standard_error=Array(0., dtype=float32))
    """
    products = _probe_products(loss_fn, params, num_probes, data, batch_size)
    samples = jax.lax.map(
        lambda probe_key: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(products(probe_key))),
        jax.random.split(key, num_probes),
    )
    return TraceEstimate(jnp.mean(samples), jnp.std(samples, ddof=1) / num_probes**0.5)


def hessian_diagonal(
    loss_fn: LossFn,
    params: Params,
    *,
    key: Key,
    num_probes: int,
    data: Any = None,
    batch_size: int | None = None,
) -> Params:
    """Return an unbiased estimate of the diagonal of the Hessian, a pytree like `params`.

    The mean of v * Hv over independent vectors v of random signs; the variance of an entry is the
    sum of the squared off-diagonal entries of its row, over `num_probes`. Arguments and errors
    are those of `hessian_trace`.

    Reference: Bekas et al. 2007, "An estimator for the diagonal of a matrix".

    Example:
        >>> bowl = lambda p: p[0] ** 2 + 3 * p[1] ** 2
        >>> print(hessian_diagonal(bowl, jnp.ones(2), key=jax.random.key(0), num_probes=2))
        [2. 6.]
    """
    products = _probe_products(loss_fn, params, num_probes, data, batch_size)
    add = lambda total, probe_key: (jax.tree.map(jnp.add, total, products(probe_key)), None)
    zeros = jax.tree.map(jnp.zeros_like, batching.checked_params(params))
    total = jax.lax.scan(add, zeros, jax.random.split(key, num_probes))[0]
    return jax.tree.map(lambda leaf: leaf / num_probes, total)


def _probe_products(
    loss_fn: LossFn, params: Params, num_probes: int, data: Any, batch_size: int | None
) -> Callable[[Key], Params]:
    """Return key -> v * Hv, entry by entry, for one vector v of random signs."""
    if num_probes < 2:
        message = f"num_probes={num_probes}: give at least 2, or there is no spread to judge by"
        raise ValueError(message)
    params = batching.checked_params(params)
    flat, unravel = ravel_pytree(params)
    matvec = hessian_vector_product(loss_fn, params, data, batch_size)

    def products(key: Key) -> Params:
        signs = unravel(jax.random.rademacher(key, flat.shape, flat.dtype))
        return jax.tree.map(jnp.multiply, signs, matvec(signs))

    return products


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
