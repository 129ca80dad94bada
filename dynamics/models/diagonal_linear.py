"""The diagonal linear network: linear regression whose coefficients are differences of squares.

Each coefficient is β = w+² - w-². With w+ = (a + b)/2 and w- = (a - b)/2 it is the product a b, and
the two forms differ by a rotation and a factor √2 of the weights: a step η here is a step 2η there,
and η Tr H is the same.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array


class DiagonalWeights(NamedTuple):
    """The weights of the two halves of the network; leading axes stand for several networks."""

    positive: Array  # (..., D) w+
    negative: Array  # (..., D) w-


def initial_weights(scale: Any, input_dim: int) -> DiagonalWeights:
    """Return weights that are all `scale`: the network is zero.

    Args:
        scale: α, of shape (...). Large: lazy training, near the least |β|; small: rich, sparse β.
        input_dim: D, positive.

    Raises:
        ValueError: `input_dim` is not positive.

    Reference: Woodworth et al. 2020, arXiv:2002.09277.

    Example:
        >>> print(coefficients(initial_weights(0.5, 2)))
        [0. 0.]
    """
    arguments.counts(input_dim=input_dim)
    arguments.numbers(scale=scale)
    scale = jnp.asarray(scale, float)[..., None]
    weights = jnp.broadcast_to(scale, (*scale.shape[:-1], input_dim))
    return DiagonalWeights(weights, weights)


def from_factors(first: Array, second: Array) -> DiagonalWeights:
    """Return the weights whose coefficients are products a b.

    Args:
        first: a, (..., D).
        second: b, (..., D).

    Example:
        >>> print(coefficients(from_factors(jnp.array([3.0, 1.0]), jnp.array([2.0, -4.0]))))
        [ 6. -4.]
    """
    arguments.shapes("... D, ... D", first=first, second=second)
    return DiagonalWeights((first + second) / 2, (first - second) / 2)


def coefficients(weights: DiagonalWeights) -> Array:
    """Return β = w+² - w-², (..., D)."""
    arguments.records(DiagonalWeights, weights=weights)
    return weights.positive**2 - weights.negative**2


def squared_loss(weights: DiagonalWeights, data: tuple[Array, Array]) -> Array:
    """Return half the mean squared error of one network, a scalar.

    Args:
        weights: w+ and w-, (D,) each.
        data: inputs (N, D) and targets (N,).

    Example:
        >>> inputs, targets = jnp.array([[1.0, 2.0]]), jnp.array([3.0])
        >>> print(squared_loss(initial_weights(1.0, 2), (inputs, targets)))
        4.5
    """
    arguments.records(DiagonalWeights, weights=weights)
    arguments.records(tuple, data=data)
    inputs, targets = data
    return jnp.mean((inputs @ coefficients(weights) - targets) ** 2) / 2
