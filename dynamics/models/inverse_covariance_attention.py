"""Linear attention that computes S^-1 x: layers built by hand, and stacks that keep a copy of x.

S is the second moment of the inputs in context. The hand-built layer takes one step of descent
towards S^-1 x (Richardson's iteration). The stacks are trained elsewhere; here is what they
compute: over tokens by attention, and over whole tasks by the linear map that a token is of its x.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.models import linear_attention


class StackWeights(NamedTuple):
    """Per layer the products of matrices that its output depends on; F = 2 D + 1."""

    writers: Array  # (L, F, F): projection times value, rows of the copy zero
    readers: Array  # (L, F, F): key transposed times query


def descent_layers(inputs: Array, queries: Array, step_size: float, num_layers: int) -> Array:
    """Return h (L, B, Q, D) of the queries after each layer of h <- h + a x - a S h, from h = 0.

    Each layer is one head of linear self-attention, the same at every depth. Tokens are (x, h, p):
    the inputs in context, D memory tokens with p = e_1, ..., e_D, then the queries. The head has
    keys (x, p), values x + p and queries (-a / N h, a x): the first half subtracts a S h, the
    second copies a x.

    Args:
        inputs: (B, N, D).
        queries: (B, Q, D).
        step_size: a; below 2 over the largest eigenvalue of S for h to approach S^-1 x.
        num_layers: L.

    Raises:
        ValueError: `num_layers` below 1, or shapes that do not fit.

    References:
        After von Oswald et al. 2023, arXiv:2309.05858, who stack such layers; memory tokens as in
        Fu et al. 2024, arXiv:2310.17086.

    Example:
        One input 2, S = 4, query 1, a = 1/4: the first layer gives a x, and that is S^-1 x.

        >>> print(descent_layers(jnp.full((1, 1, 1), 2.0), jnp.ones((1, 1, 1)), 0.25, 2).ravel())
        [0.25 0.25]
    """
    arguments.counts(num_layers=num_layers)
    arguments.shapes("B N D, B Q D", inputs=inputs, queries=queries)
    arguments.scalars(step_size=step_size)
    num_tasks, num_inputs, dim = inputs.shape
    eye = jnp.eye(dim, dtype=inputs.dtype)
    none = 0 * eye
    weights = linear_attention.LinearAttentionWeights(
        query=jnp.block([[none, -step_size / num_inputs * eye, none],
                         [step_size * eye, none, none]]),
        key=jnp.block([[eye, none, none], [none, none, eye]]),
        value=jnp.block([[eye, none, eye]]),
        projection=jnp.block([[none], [eye], [none]]),
    )  # fmt: skip
    memory = jnp.broadcast_to(jnp.block([none, none, eye]), (num_tasks, dim, 3 * dim))
    fill = lambda a: jnp.pad(a, ((0, 0), (0, 0), (0, 2 * dim)))
    tokens = jnp.concatenate([fill(inputs), memory, fill(queries)], axis=1)
    num_context = num_inputs + dim

    def layer(e: Array, _: None) -> tuple[Array, Array]:
        e = linear_attention.linear_self_attention(weights, e, num_context=num_context)
        return e, e[:, num_context:, dim : 2 * dim]

    return jax.lax.scan(layer, tokens, length=num_layers)[1]


def implicit_weights(stack: StackWeights, moment: Array, task: Array) -> Array:
    """Return (D, B): the weights with which the label slot of a query is linear in the query.

    A token is a linear map of its x: with T that of tokens in context and U the query's, a layer
    adds M T S T^T R times either. That costs nothing in N, and the batch comes last, where small
    products vectorise.

    Args:
        stack: weights of all layers.
        moment: (D, D, B), S of each context, with its 1 / N.
        task: (D, B), labels are its products with the inputs.

    Example:
        Without attention the label slot stays at the zero that it starts from.

        >>> nothing = StackWeights(jnp.zeros((1, 3, 3)), jnp.zeros((1, 3, 3)))
        >>> print(implicit_weights(nothing, jnp.ones((1, 1, 1)), jnp.ones((1, 1))))
        [[0.]]
    """
    arguments.records(StackWeights, stack=stack)
    arguments.shapes("D D B, D B", moment=moment, task=task)
    _check_stack(stack, "task", len(task))
    product = lambda a, b: jnp.sum(a[:, :, None] * b[None], axis=1)
    dim, num_tasks = task.shape
    eye = jnp.broadcast_to(jnp.eye(dim, dtype=task.dtype)[..., None], (dim, dim, num_tasks))
    context = jnp.concatenate([eye, eye, task[None]])  # T (F, D, B)
    query = jnp.concatenate([eye, eye, 0 * task[None]])
    for writer, reader in zip(stack.writers, stack.readers, strict=True):
        write = product(jnp.einsum("fg,gdb->fdb", writer, context), moment)
        read = jnp.einsum("gf,gdb->dfb", reader, context)  # T^T R
        query = query + product(write, product(read, query))
        context = context + product(write, product(read, context))
    return query[-1]


def query_tokens(stack: StackWeights, inputs: Array, labels: Array, query: Array) -> Array:
    """Return the query's token (L + 1, B, F) before, between and after the layers.

    Tokens are (x, x, y), the query's (x, x, 0); attention runs over the context alone.

    Args:
        stack: weights of all layers.
        inputs: (B, N, D).
        labels: (B, N).
        query: (B, D).
    """
    arguments.records(StackWeights, stack=stack)
    arguments.shapes("B N D, B N, B D", inputs=inputs, labels=labels, query=query)
    _check_stack(stack, "inputs", inputs.shape[-1])
    context = jnp.concatenate([inputs, inputs, labels[..., None]], axis=-1)
    asked = jnp.concatenate([query, query, 0 * query[:, :1]], axis=-1)
    tokens = jnp.concatenate([context, asked[:, None]], axis=1)
    eye, seen = jnp.eye(tokens.shape[-1], dtype=tokens.dtype), [tokens[:, -1]]
    for writer, reader in zip(stack.writers, stack.readers, strict=True):
        weights = linear_attention.LinearAttentionWeights(
            query=reader, key=eye, value=eye, projection=writer / inputs.shape[1]
        )
        tokens = linear_attention.linear_self_attention(
            weights, tokens, num_context=inputs.shape[1]
        )
        seen.append(tokens[:, -1])
    return jnp.stack(seen)


def _check_stack(stack: StackWeights, what: str, dim: int) -> None:
    if stack.writers.shape[1:] != (2 * dim + 1, 2 * dim + 1):
        message = (
            f"stack.writers has shape {stack.writers.shape}; for {what} of dimension {dim} give "
            f"(L, {2 * dim + 1}, {2 * dim + 1})"
        )
        raise ValueError(message)
