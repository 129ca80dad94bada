"""A transformer block without positions, evaluated from how often each token occurs.

Without positions all tokens of a class are alike, so attention is a table of class by class, and
a sequence enters only by its counts: a batch costs classes squared, whatever its length.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array, Key


class Norm(NamedTuple):
    """The norm before attention; numbers, so that members of an ensemble can differ in it."""

    project: Array | float = 1.0  # 1 takes the mean over features away first, 0 does not
    divide: Array | float = 1.0  # 1 divides by the root mean square, 0 does not
    scale: Array | float = 1.0  # of the result; 1 gives vectors of length √D where divided

    def __call__(self, x: Array) -> Array:
        """Return x (..., D) normalised; LayerNorm without gain and bias where all are 1."""
        x = x - self.project * x.mean(axis=-1, keepdims=True)
        root = jnp.sqrt((x**2).mean(axis=-1, keepdims=True))
        return self.scale * x / jnp.where(self.divide > 0, root, 1.0)


class Block(NamedTuple):
    """The parameters of one head and one MLP; C classes, D features, H hidden units."""

    embedding: Array  # (C, D), the read-out too
    query: Array  # (D, D), as x @ query
    key: Array  # (D, D)
    value: Array  # (D, D)
    output: Array  # (D, D)
    hidden: Array  # (D + 1, H), the last row the bias
    back: Array  # (H + 1, D)


def init(key: Key, *, num_classes: int, width: int, hidden: int) -> Block:
    """Return parameters as torch draws them: embeddings N(0, 1), the rest uniform.

    Query, key and value on ±√(6 / 4D), all else on ±1/√fan_in.
    """
    arguments.keys(key=key)
    arguments.counts(num_classes=num_classes, width=width, hidden=hidden)
    table_key, key = jax.random.split(key)
    shapes = [(3, width, width), (width, width), (width + 1, hidden), (hidden + 1, width)]
    bounds = [(6 / (4 * width)) ** 0.5, width**-0.5, width**-0.5, hidden**-0.5]
    sizes = [math.prod(shape) for shape in shapes]
    uniform = jax.random.uniform(key, (sum(sizes),), minval=-1.0)  # one draw: quick to compile
    parts = jnp.split(uniform, list(itertools.accumulate(sizes))[:-1])
    attention, *rest = (
        bound * part.reshape(shape)
        for bound, part, shape in zip(bounds, parts, shapes, strict=True)
    )
    embedding = jax.random.normal(table_key, (num_classes, width))
    return Block(embedding, *attention, *rest)


def attention(params: Block, counts: Array, norm: Norm) -> Array:
    """Return the weight (N, C, C) that a token of one class gives to all tokens of another."""
    _check(params, norm)
    arguments.shapes("N C, C D", counts=counts, embedding=params.embedding)
    logits = attention_logits(params, norm)
    weights = counts[:, None, :] * jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attention_logits(params: Block, norm: Norm) -> Array:
    """Return q·k / √D (C, C) of each class as query with each class as key."""
    _check(params, norm)
    x = norm(params.embedding)
    return (x @ params.query) @ (x @ params.key).T / x.shape[-1] ** 0.5


def apply(params: Block, counts: Array, norm: Norm) -> Array:
    """Return the logits (N, C, C) of a token of each class in sequences of counts (N, C).

    x + attention(norm(x)), then a ReLU MLP on its LayerNorm added, then the products with the
    embeddings. A class that does not occur gets an answer too; weight it by its count.

    Example:
        >>> params = init(jax.random.key(0), num_classes=3, width=4, hidden=5)
        >>> print(apply(params, jnp.array([[2, 0, 1]]), Norm()).shape)
        (1, 3, 3)
    """
    _check(params, norm)
    arguments.shapes("N C, C D", counts=counts, embedding=params.embedding)
    values = norm(params.embedding) @ params.value @ params.output
    x = params.embedding + attention(params, counts, norm) @ values  # (N, C, D)
    affine = lambda x, kernel: x @ kernel[:-1] + kernel[-1]
    x = x + affine(jax.nn.relu(affine(Norm()(x), params.hidden)), params.back)
    return x @ params.embedding.T


def _check(params: Block, norm: Norm) -> None:
    arguments.records(Block, params=params)
    arguments.records(Norm, norm=norm)
