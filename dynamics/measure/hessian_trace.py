"""Trace and diagonal of a Hessian, estimated from products with random vectors.

Public under `measure.curvature`. For the exact values of piecewise linear networks see
`exact_trace`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matfree.stochtrace
from jax.flatten_util import ravel_pytree

from dynamics import arguments
from dynamics.aliases import Array, Key, LossFn, Params
from dynamics.measure import batching, hessian_products

METHODS = ("hutchinson", "xtrace")


class TraceEstimate(NamedTuple):
    """A stochastic estimate of a trace."""

    mean: Array  # ()
    standard_error: Array  # () of the mean, from the spread of the probes


def hessian_trace(
    loss_fn: LossFn,
    params: Params,
    *,
    key: Key,
    num_probes: int,
    data: Any = None,
    batch_size: int | None = None,
    method: str = "hutchinson",
) -> TraceEstimate:
    """Return an unbiased estimate of the trace of the Hessian and its standard error.

    "hutchinson": the mean of v·Hv over independent vectors v of random signs; its variance is
    twice the sum of the squared off-diagonal entries, over `num_probes`. v·Hv is the second
    derivative of the loss along v, by two forward passes of derivatives: two thirds of the time
    of a Hessian-vector product, and the memory of one evaluation. Losses that cannot be
    differentiated forwards take the product. "xtrace" also removes what the other probes have seen
    of the range of H: its error falls as the eigenvalues do, not as the root of `num_probes`, which
    pays for a few outliers above a small bulk. It takes two products a probe, and all vectors are
    in memory.

    The standard error comes from the spread of the probes and is itself rough below some ten of
    them.

    Args:
        loss_fn: `loss_fn(params)`, or `loss_fn(params, data)` if `data` is given.
        params: Any pytree of floating-point arrays, P entries in all.
        key: For the random vectors.
        num_probes: Random vectors, at least 2; for "xtrace" at most P.
        data: A pytree of arrays with one common leading axis N.
        batch_size: Samples at a time, by default all; it need not divide N.
        method: "hutchinson" or "xtrace".

    Raises:
        ValueError: `num_probes` or `method` out of range, or as in `hessian_vector_product`.
        TypeError: a leaf of `params` is not of floating-point type.

    References: Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix";
        Epperly, Tropp and Webber 2024, arXiv:2301.07825 (XTrace).

    Example:
        >>> bowl = lambda p: p[0] ** 2 + 3 * p[1] ** 2
        >>> print(hessian_trace(bowl, jnp.ones(2), key=jax.random.key(0), num_probes=2))
        TraceEstimate(mean=Array(8., dtype=float32), standard_error=Array(0., dtype=float32))
    """
    arguments.functions(loss_fn=loss_fn)
    arguments.choices(METHODS, method=method)
    params = _checked(params, key, num_probes)
    if method == "xtrace":
        return _xtrace(loss_fn, params, key, num_probes, data, batch_size)
    curvature_along = hessian_products.second_derivative(loss_fn, params, data, batch_size)
    sample = lambda probe_key: curvature_along(random_signs(probe_key, params))
    samples = jax.lax.map(sample, jax.random.split(key, num_probes))
    found = TraceEstimate(jnp.mean(samples), jnp.std(samples, ddof=1) / num_probes**0.5)
    return hessian_products.checked_finite(found, loss_fn, params, data, batch_size)


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
    arguments.functions(loss_fn=loss_fn)
    params = _checked(params, key, num_probes)
    matvec = hessian_products.hessian_vector_product(loss_fn, params, data, batch_size)

    def add(total: Params, probe_key: Key) -> tuple[Params, None]:
        signs = random_signs(probe_key, params)
        return jax.tree.map(
            lambda so_far, v, hv: so_far + v * hv, total, signs, matvec(signs)
        ), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    total = jax.lax.scan(add, zeros, jax.random.split(key, num_probes))[0]
    found = jax.tree.map(lambda leaf: leaf / num_probes, total)
    return hessian_products.checked_finite(found, loss_fn, params, data, batch_size)


def random_signs(key: Key, like: Params) -> Params:
    """Return a pytree like `like` of independent random signs, 32 of them from each random word.

    Example:
        >>> print(random_signs(jax.random.key(0), jnp.zeros(4)) ** 2)
        [1. 1. 1. 1.]
    """
    arguments.keys(key=key)
    arguments.params(like=like)
    flat, unravel = ravel_pytree(like)
    words = jax.random.bits(key, (-(-flat.size // 32), 1), jnp.uint32)
    bits = (words >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return unravel(1 - 2 * bits.reshape(-1)[: flat.size].astype(flat.dtype))


def _checked(params: Params, key: Key, num_probes: int) -> Params:
    arguments.keys(key=key)
    arguments.integers(num_probes=num_probes)
    if num_probes < 2:
        message = f"num_probes={num_probes}: give at least 2, or there is no spread to judge by"
        raise ValueError(message)
    return batching.checked_params(params)


def _xtrace(
    loss_fn: LossFn, params: Params, key: Key, num_probes: int, data: Any, batch_size: int | None
) -> TraceEstimate:
    flat, unravel = ravel_pytree(params)
    if num_probes > flat.size:
        message = f"num_probes={num_probes}: XTrace takes at most the {flat.size} parameters"
        raise ValueError(message)
    product = hessian_products.hessian_vector_product(loss_fn, params, data, batch_size)
    matvec = lambda vector: ravel_pytree(product(unravel(vector)))[0]
    estimates: Callable[..., Array] = matfree.stochtrace.leave_one_out_xtrace()
    found = estimates(matvec, jax.random.normal(key, (num_probes, flat.size), flat.dtype))
    return TraceEstimate(jnp.mean(found), jnp.std(found, ddof=1) / num_probes**0.5)
