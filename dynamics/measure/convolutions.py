"""Convolutions as products of matrices, for derivatives on a CPU.

XLA's own convolutions are slow on a CPU where they are differentiated twice, and several times
slower inside a loop. The windows of the input, laid out as rows and multiplied with the kernel as a
matrix, are neither; they take as many times the memory of the input as a window has positions, so
go with small batches.
"""

from collections.abc import Callable
from typing import Any

import jax

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.measure import linear_layers


def convolutions_as_products(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fn` with every convolution in it done by a product of matrices.

    The same function to rounding, whatever framework wrote it; convolutions in groups, and those
    inside loops, branches and functions with derivatives of their own, stay as they are.

    Args:
        fn: Any function of pytrees of arrays, for example a loss for
            `hessian_vector_product(fn, params, data, batch_size=50)`.

    Example:
        >>> import jax.numpy as jnp
        >>> smooth = lambda x: jnp.convolve(x, jnp.ones(3), mode="valid")
        >>> print(convolutions_as_products(smooth)(jnp.arange(5.0)))
        [3. 6. 9.]
    """
    arguments.functions(fn=fn)

    def converted(*given: Any) -> Any:
        leaves, tree = jax.tree.flatten(given)
        flat = lambda leaves: fn(*jax.tree.unflatten(tree, leaves))
        closed, shape = jax.make_jaxpr(flat, return_shape=True)(leaves)
        program = linear_layers.written_out(closed)
        replace = lambda index, operands: _product(program.equations[index].source, operands)
        outputs = linear_layers.run(program, leaves, replace)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return converted


def suited_to_device(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fn` with convolutions as products where programs run on a CPU, else `fn`."""
    arguments.functions(fn=fn)
    return convolutions_as_products(fn) if jax.default_backend() == "cpu" else fn


def _product(source: Any, operands: list[Any]) -> Array | None:
    """Return the output of an operation that is a plain convolution, else None."""
    params = source.params
    if source.primitive.name != "conv_general_dilated":
        return None
    if (params["feature_group_count"], params["batch_group_count"]) != (1, 1):
        return None
    x, kernel = operands
    numbers = params["dimension_numbers"]
    out, into, *spatial = numbers.rhs_spec
    matrix = kernel.transpose(*spatial, into, out).reshape(-1, kernel.shape[out])
    made = jax.numpy.matmul(
        linear_layers.windows(x, source), matrix, precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )  # fmt: skip
    batch, features, *places = numbers.out_spec
    laid = (batch, *places, features)
    shape = source.outvars[0].aval.shape
    made = made.reshape([shape[axis] for axis in laid])
    return made.transpose([laid.index(axis) for axis in range(len(shape))])
