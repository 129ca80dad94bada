"""Sequences for attention: which of several tokens carries the answer, and which are in the way."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array, Key


class TokenSelection(NamedTuple):
    """Sequences of tokens, a query for each, and what each token is worth.

    Attention on tokens with weights p answers Σ_t p_t s_t, and the larger that is the better.
    """

    tokens: Array  # (N, T, D)
    queries: Array  # (N, D)
    scores: Array  # (N, T) s_t: label times what a fixed head reads from the token


def token_selection(
    key: Key, num_sequences: int, num_tokens: int, dim: int, *, head: str = "random"
) -> TokenSelection:
    """Return tokens and queries that are uniform on the unit sphere, and the scores of a head.

    Args:
        key: Source of all draws; tokens and queries are the same for every `head`.
        num_sequences: N, at least 1.
        num_tokens: T, at least 2.
        dim: D, at least 1.
        head: "random": labels ±1 times v·x for a unit vector v, as in Ataee Tarzanagh et al. 2023,
            arXiv:2308.16898, section 3. "one relevant": 1 for the first token and -1 for all
            others, which is their assumption for convergence from everywhere.

    Raises:
        ValueError: a size below its least, or an unknown `head`.

    Example:
        >>> data = token_selection(jax.random.key(0), 2, 3, 4, head="one relevant")
        >>> print(data.tokens.shape, data.queries.shape, data.scores[0])
        (2, 3, 4) (2, 4) [ 1. -1. -1.]
    """
    arguments.keys(key=key)
    arguments.counts(num_sequences=num_sequences, dim=dim)
    arguments.integers(2, num_tokens=num_tokens)
    arguments.choices(("random", "one relevant"), head=head)
    # One draw, as compiling each costs more than drawing: T tokens, a query and a label in a row.
    vectors = jax.random.normal(key, (num_sequences + 1, num_tokens + 2, dim))
    labels = jnp.sign(vectors[:-1, -1, :1])  # (N, 1)
    vectors = vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    tokens, queries, v = vectors[:-1, :-2], vectors[:-1, -2], vectors[-1, 0]
    if head == "random":
        return TokenSelection(tokens, queries, labels * (tokens @ v))
    relevant = jnp.arange(num_tokens) == 0
    return TokenSelection(tokens, queries, jnp.where(relevant, 1.0, -1.0) * jnp.ones_like(labels))


def majority_counts(
    key: Key, num_sequences: int, num_tokens: int, num_classes: int, *, margin: int
) -> tuple[Array, Array]:
    """Return how often each class occurs (N, C) in sequences with a clear majority, and it (N,).

    All but `margin` of the tokens are uniform, and the rest belong to the class that leads among
    them (one of those, at random), so that it leads by at least `margin`.

    Raises:
        ValueError: not 1 <= margin <= num_tokens, or a size below 1.

    Example:
        >>> counts, majority = majority_counts(jax.random.key(0), 5, 20, 8, margin=4)
        >>> print(counts.sum(axis=1), bool((counts.argmax(axis=1) == majority).all()))
        [20 20 20 20 20] True
    """
    arguments.keys(key=key)
    arguments.counts(num_sequences=num_sequences, num_classes=num_classes)
    arguments.integers(num_tokens=num_tokens, margin=margin)
    if not 1 <= margin <= num_tokens:
        message = f"margin={margin}: give 1 to num_tokens={num_tokens}"
        raise ValueError(message)
    free = num_tokens - margin
    uniform = jax.random.uniform(key, (num_sequences, free + num_classes))  # one draw for both
    tokens = jnp.floor(num_classes * uniform[:, :free]).astype(jnp.int32)
    counts = jnp.sum(jax.nn.one_hot(tokens, num_classes, dtype=jnp.int32), axis=1)
    majority = jnp.argmax(counts + uniform[:, free:], axis=1)
    return counts + margin * jax.nn.one_hot(majority, num_classes, dtype=jnp.int32), majority
