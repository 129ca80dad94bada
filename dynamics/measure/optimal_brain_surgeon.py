"""Optimal brain surgeon: pruning by what the loss loses, with an inverse curvature never formed.

About a minimum the loss is 1/2 (w' - w)^T F (w' - w). Without weight i, and with the others moved
to where that is least, it is w_i² / (2 [F^-1]_ii). All that is asked of F^-1 is its diagonal and
one column a removal, which `inverse_fisher` has without a matrix; and the inverse of F without a
row and a column is the same sum with one term more.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.measure import inverse_fisher
from dynamics.measure.inverse_fisher import InverseFisher


class Pruning(NamedTuple):
    """Weights removed one after the other; R removals."""

    order: Array  # (R,) which weight
    increases: Array  # (R,) by which each removal alone raises the quadratic loss
    weights: Array  # (R, d) after each removal, those removed exactly 0


def saliencies(weights: Array, inverse: InverseFisher) -> Array:
    """Return w_i² / (2 [F^-1]_ii) (d,): by how much the loss rises when weight i is removed.

    Exact for the quadratic loss 1/2 (w' - w)^T F (w' - w) and the best change of the others.

    Raises:
        ValueError: `weights` is not (d,).

    References:
        Hassibi and Stork 1992, "Second order derivatives for network pruning: Optimal Brain
        Surgeon".

    Example:
        >>> inverse = inverse_fisher.invert(jnp.array([[1.0, 0.0]]), 1.0)  # F = diag(2, 1)
        >>> print(saliencies(jnp.array([2.0, 2.0]), inverse))
        [4. 2.]
    """
    _check_weights(weights, inverse)
    weights = jnp.asarray(weights)
    return weights**2 / (2 * inverse_fisher.diagonal(inverse))


def compensated(weights: Array, inverse: InverseFisher, index: Any) -> Array:
    """Return the weights (d,) without weight `index`, the others moved to where the loss is least.

    w - w_i F^-1 e_i / [F^-1]_ii; entry `index` is exactly 0.

    Raises:
        ValueError: `weights` is not (d,).

    References:
        Hassibi and Stork 1992.
    """
    _check_weights(weights, inverse)
    inverse_fisher.check_index(inverse, index)
    weights = jnp.asarray(weights)
    column = inverse_fisher.column(inverse, index)
    return (weights - weights[index] * column / column[index]).at[index].set(0)


def remove(inverse: InverseFisher, index: Any) -> InverseFisher:
    """Return the inverse of F without row and column `index`, its own row and column 0.

    With c = F^-1 e_i it is F^-1 - c c^T / c_i (Schur complement): the same sum with a term more.

    Example:
        >>> inverse = inverse_fisher.invert(jnp.array([[1.0, 1.0]]), 1.0)  # F = [[2, 1], [1, 2]]
        >>> print(inverse_fisher.product(remove(inverse, 0), jnp.array([3.0, 1.0])))
        [0.  0.5]
    """
    inverse_fisher.check_index(inverse, index)
    column = inverse_fisher.column(inverse, index)
    return InverseFisher(
        jnp.concatenate([inverse.directions, column[None]]),
        jnp.concatenate([inverse.scales, column[index][None]]),
        inverse.damping,
    )


def prune(
    weights: Array, inverse: InverseFisher, num_removed: int, *, order: Array | None = None
) -> Pruning:
    """Remove weights one after the other, each time moving the rest to where the loss is least.

    The weights left after R removals are the best on their support for the quadratic loss about
    `weights`, whatever the order; the greedy order takes the least saliency of those left, with
    the inverse of those left.

    Args:
        weights: (d,) at the minimum.
        inverse: Of F (d, d) there.
        num_removed: R, 1 to d.
        order: (R,) the weights to remove, all different; by default the greedy order.

    Raises:
        ValueError: `num_removed` outside [1, d], `weights` not (d,), `order` not (R,).

    Cost:
        About 8 d (m + R) operations a removal; d (m + 2 R) numbers held.

    References:
        Hassibi and Stork 1992, for one removal; in this form, without F, derived here.

    Example:
        >>> inverse = inverse_fisher.invert(jnp.array([[1.0, 0.0]]), 1.0)  # F = diag(2, 1)
        >>> found = prune(jnp.array([2.0, 2.0]), inverse, 2)
        >>> print(found.order, found.increases)
        [1 0] [2. 4.]
    """
    _check_weights(weights, inverse)
    arguments.integers(num_removed=num_removed)
    weights = jnp.asarray(weights)
    if not 1 <= num_removed <= len(weights):
        message = f"num_removed={num_removed}: give a number from 1 to the {len(weights)} weights"
        raise ValueError(message)
    if order is not None:
        arguments.numbers(order=order)
        if jnp.shape(order) != (num_removed,):
            message = f"order has shape {jnp.shape(order)}; give (num_removed,) = ({num_removed},)"
            raise ValueError(message)
        arguments.labels(len(weights), order=order)
    first, dim = inverse.directions.shape
    padded = InverseFisher(
        jnp.pad(inverse.directions, ((0, num_removed), (0, 0))),
        jnp.pad(inverse.scales, (0, num_removed), constant_values=1),
        inverse.damping,
    )

    def step(carry: Any, inputs: tuple[Array, Array | None]) -> tuple[Any, tuple[Array, ...]]:
        weights, inverse, inverse_diagonal, left = carry
        count, index = inputs
        scores = weights**2 / (2 * jnp.where(left, inverse_diagonal, 1))
        if index is None:
            index = jnp.argmin(jnp.where(left, scores, jnp.inf))
        column = jnp.where(left, inverse_fisher.column(inverse, index), 0)
        left = left.at[index].set(False)
        moved = jnp.where(left, weights - weights[index] * column / column[index], 0)
        smaller = InverseFisher(
            inverse.directions.at[first + count].set(column),
            inverse.scales.at[first + count].set(column[index]),
            inverse.damping,
        )
        following = moved, smaller, inverse_diagonal - column**2 / column[index], left
        return following, (index, scores[index], moved)

    start = weights, padded, inverse_fisher.diagonal(inverse), jnp.ones(dim, bool)
    return Pruning(*jax.lax.scan(step, start, (jnp.arange(num_removed), order))[1])


def _check_weights(weights: Array, inverse: InverseFisher) -> None:
    arguments.records(InverseFisher, inverse=inverse)
    arguments.shapes("m d, d", inverse=inverse.directions, weights=weights)
