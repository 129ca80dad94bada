"""Products with the Hessian of a loss, and second derivatives along a direction.

Public under `measure.curvature`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dynamics import arguments, leaf_names
from dynamics.aliases import Array, LossFn, Params
from dynamics.measure import batching

Matvec = batching.Matvec


def hessian_vector_product(
    loss_fn: LossFn, params: Params, data: Any = None, batch_size: int | None = None
) -> Matvec:
    """Return `matvec(v)`, the product H v of the Hessian of the loss at `params` with v.

    Forward over reverse. Without batches the gradient is linearised once and each product costs
    only its linear part, about two gradients; with batches each product goes through the data.
    On a CPU a convolutional network takes two thirds of the time as
    `convolutions_as_products(loss_fn)` in batches of 50.

    Args:
        loss_fn: `loss_fn(params)`, or `loss_fn(params, data)` if `data` is given.
        params: Any pytree of floating-point arrays.
        data: A pytree of arrays with one common leading axis N.
        batch_size: Samples at a time, by default all; it need not divide N.

    Raises:
        ValueError: the loss is not a scalar, `batch_size` is outside [1, N] or given without
            `data`, or the leading axes of `data` differ; from `matvec`, v not shaped like params,
            or a product that is not finite (outside `jax.jit`; leaves with a bad gradient are
            named).
        TypeError: a leaf of `params` is not of floating-point type.

    Reference: Pearlmutter 1994, "Fast exact multiplication by the Hessian".

    Example:
        >>> matvec = hessian_vector_product(lambda p: p["a"] ** 2 * p["b"], dict(a=1.0, b=2.0))
        >>> print({name: float(entry) for name, entry in matvec(dict(a=1.0, b=0.0)).items()})
        {'a': 4.0, 'b': 2.0}
    """
    arguments.functions(loss_fn=loss_fn)
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

    matvec = batching.checked_matvec(product, params)
    return lambda vector: checked_finite(matvec(vector), loss_fn, params, data, batch_size)


def second_derivative(
    loss_fn: LossFn, params: Params, data: Any = None, batch_size: int | None = None
) -> Callable[[Params], Array]:
    """Return `along(v)`, the second derivative v·Hv of the loss at `params` along v.

    Forward over forward where the loss can be differentiated so, with what the two passes share
    computed once; else v times the product with v. Arguments and errors are those of
    `hessian_vector_product`.

    Example:
        >>> along = second_derivative(lambda p: p[0] ** 2 * p[1], jnp.array([1.0, 2.0]))
        >>> print(along(jnp.array([1.0, 1.0])))
        8.0
    """
    arguments.functions(loss_fn=loss_fn)
    params = batching.checked_params(params)
    batches = batching.batches(data, batch_size)
    batching.check_scalar(loss_fn, params, batches.first)

    def forwards(vector: Params) -> Array:
        def part(*batch: Any) -> Array:
            slope = lambda at: jax.jvp(lambda at: loss_fn(at, *batch), (at,), (vector,))[1]
            return jax.jvp(slope, (params,), (vector,))[1]

        return batches.mean(part)

    try:
        jax.eval_shape(forwards, params)
    except (TypeError, NotImplementedError):  # a derivative given for reverse mode alone
        matvec = hessian_vector_product(loss_fn, params, data, batch_size)
        return lambda vector: optax.tree.vdot(vector, matvec(vector))
    return batching.checked_matvec(forwards, params)


def checked_finite(
    found: Any, loss_fn: LossFn, params: Params, data: Any = None, batch_size: int | None = None
) -> Any:
    """Return `found`, or raise and say which leaf is to blame where it is not finite.

    Under `jax.jit` and the like nothing is known, and nothing raised.
    """
    arguments.functions(loss_fn=loss_fn)
    arguments.params(params=params)
    arguments.integers(1, optional=True, batch_size=batch_size)
    if data is not None:
        arguments.samples(data=data)
    arguments.pytrees(found=found)
    leaves = jax.tree.leaves(found)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return found
    if all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves):
        return found
    batches = batching.batches(data, batch_size)
    gradient = batches.mean(lambda *batch: jax.grad(lambda at: loss_fn(at, *batch))(params))
    bad = [
        name
        for name, leaf in leaf_names.named_leaves(gradient)
        if not bool(jnp.all(jnp.isfinite(leaf)))
    ]
    if bad:
        message = f"loss_fn: gradient not finite in {', '.join(bad)}; mend the loss there"
    else:
        message = (
            "loss_fn: second derivatives are not finite, though the gradient is; look for kinks, "
            "roots and divisions at 0, or for a vector v that is not finite"
        )
    raise ValueError(message)
