"""Activations in the normalised Hermite polynomials, in which their duals are power series.

With z standard normal, h_k = He_k / sqrt(k!) is orthonormal, and an activation s(z) = Σ a_k h_k(z)
has E[s(z) s(z')] = Σ a_k² c^k for z, z' of correlation c.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import scipy.special

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.theory import dual_activations


def coefficients(
    activation: Callable[[Array], Array],
    *,
    number: int,
    variance: float = 1.0,
    order: int = 200,
) -> Array:
    """Return a_k = E[s(sqrt(variance) z) h_k(z)] for k = 0 to number - 1, (number,).

    By Gauss-Hermite quadrature: to rounding for smooth activations, as long as the nodes resolve
    them; with a kink the error falls only like 1 / order.

    Args:
        activation: s, acting on each entry of an array.
        number: How many, at least 1 and at most `order`: the quadrature is exact for polynomials
            of degree 2 order - 1, and no more polynomials are told apart by its nodes.
        variance: Of the pre-activations, positive.
        order: Nodes of the quadrature.

    Raises:
        ValueError: `number`, `variance` or `order` is out of range.

    Reference: O'Donnell 2014, "Analysis of Boolean functions", section 11.2.

    Example:
        >>> print(coefficients(lambda z: z**2, number=3).round(3) + 0.0)
        [1.    0.    1.414]
    """
    arguments.functions(activation=activation)
    arguments.integers(number=number, order=order)
    arguments.scalars(variance=variance)
    arguments.finite(variance=variance)
    if not 1 <= number <= order:
        message = f"number={number}: give 1 to order={order}"
        raise ValueError(message)
    if not variance > 0:
        message = f"variance={variance}: give a positive number"
        raise ValueError(message)
    nodes, weights = scipy.special.roots_hermitenorm(order)
    polynomials = [np.ones(order), nodes]
    for k in range(1, number - 1):
        following = (nodes * polynomials[k] - k**0.5 * polynomials[k - 1]) / (k + 1) ** 0.5
        polynomials.append(following)
    weighted = np.stack(polynomials[:number]) * weights / weights.sum()
    values = activation(jnp.asarray(variance**0.5 * nodes))
    return jnp.matmul(jnp.asarray(weighted, values.dtype), values, precision="highest")


def dual(
    coefficients: Array, correlation: Array, *, variance: float = 1.0
) -> dual_activations.Dual:
    """Return Σ a_k² c^k and the dual of the derivative, Σ k a_k² c^(k-1) / variance.

    Both arguments of the activation have the `variance` for which the coefficients were made.

    Args:
        coefficients: (K,) from `coefficients`.
        correlation: c between -1 and 1, any shape.
        variance: Of the pre-activations.

    Reference: Daniely, Frostig, Singer 2016, arXiv:1602.05897, definition 4 and lemma 11.

    Example:
        >>> print(dual(jnp.array([0.0, 0.0, 1.0]), 0.5))
        Dual(value=Array(0.25, dtype=float32), derivative=Array(1., dtype=float32))
    """
    arguments.shapes("K", coefficients=coefficients)
    arguments.numbers(correlation=correlation)
    arguments.positive(variance=variance)
    squares = jnp.asarray(coefficients) ** 2
    degrees = jnp.arange(len(squares))
    value = jnp.polyval(squares[::-1], jnp.asarray(correlation))
    slopes = (degrees * squares)[:0:-1]
    derivative = jnp.polyval(slopes, jnp.asarray(correlation)) / variance
    return dual_activations.Dual(value, derivative)
