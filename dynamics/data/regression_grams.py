"""Linear regression tasks as Gram matrices of their contexts: all that linear attention sees."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array, Key


class RegressionGrams(NamedTuple):
    """A batch of tasks y = w·x without noise, for `linear_attention.gram_stack` and its like."""

    gram: Array  # (B, d + 1, d + 1) sum over the context of e e^T, e = (x, y)
    weights: Array  # (B, d)


def uniform_tasks(
    key: Key, num_tasks: int, num_context: int, dim: int, *, shift: int = 0
) -> RegressionGrams:
    """Return tasks with w ~ N(0, I) and inputs of entries uniform on [-1/2, 1/2].

    Args:
        key: of everything.
        num_tasks: B.
        num_context: N.
        dim: d.
        shift: places by which the labels of a context are turned against its inputs, round the
            circle: with a multiple of N none, with another number labels say nothing of w.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> tasks = uniform_tasks(jax.random.key(0), num_tasks=2, num_context=5, dim=3)
        >>> print(tasks.gram.shape, tasks.weights.shape)
        (2, 4, 4) (2, 3)
    """
    arguments.keys(key=key)
    arguments.counts(num_tasks=num_tasks, num_context=num_context, dim=dim)
    arguments.integers(shift=shift)
    input_key, weight_key = jax.random.split(key)
    x = jax.random.uniform(input_key, (num_tasks, num_context, dim), minval=-0.5, maxval=0.5)
    weights = jax.random.normal(weight_key, (num_tasks, dim))
    y = jnp.roll(jnp.einsum("bnd,bd->bn", x, weights), shift, axis=1)
    tokens = jnp.concatenate([x, y[..., None]], axis=-1)
    return RegressionGrams(jnp.einsum("bni,bnj->bij", tokens, tokens), weights)


def query_loss(row: Array, weights: Array, *, variance: float = 1 / 12) -> Array:
    """Return half the mean squared error of a query (...,), averaged over queries exactly.

    (s²/2) |w - v|², where v·x is the answer to a query x of independent entries of variance s².

    Args:
        row: v (..., d).
        weights: w (..., d).
        variance: s²; 1/12 of uniform entries on an interval of length one.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> print(query_loss(jnp.zeros(2), jnp.array([3.0, 4.0]), variance=2.0))
        25.0
    """
    arguments.shapes("... d, ... d", row=row, weights=weights)
    arguments.not_negative(variance=variance)
    if row.shape != weights.shape:
        message = f"row has shape {row.shape} and weights {weights.shape}: give the same"
        raise ValueError(message)
    return variance / 2 * jnp.sum((weights - row) ** 2, axis=-1)
