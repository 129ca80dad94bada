"""The smallest attention model: one learned query pools the tokens, and an MLP follows."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array, Key


class SoftmaxPooling(nn.Module):
    """Softmax attention of one learned query over tokens plus positions, then a residual MLP.

    With x_t = embedding of token t + position t, divided by its root mean square, the pooled
    vector is h = Σ_t softmax_t(q·x_t / √D) V x_t and the logits are those of h + MLP(h divided by
    its root mean square) with the token embeddings as readout. Attention depends on token and
    position alone, so that it is a table of both, looked up.

    Attributes:
        vocabulary: number of token ids, and of classes.
        num_tokens: T, the length of every sequence.
        width: D.
        mlp_width: hidden width of the MLP.

    Reference: the softmax model of github.com/facebookresearch/pal, with the initialisation of
    torch: embeddings N(0, 1), all else uniform on ±1/√fan_in.

    Example:
        >>> model = SoftmaxPooling(vocabulary=3, num_tokens=4, width=2, mlp_width=8)
        >>> tokens = jnp.array([[0, 1, 2, 0]])
        >>> params = model.init(jax.random.key(0), tokens)
        >>> print(model.apply(params, tokens).shape)
        (1, 3)
        >>> print(model.apply(params, tokens, method=model.attention).sum().round(5))
        1.0
    """

    vocabulary: int
    num_tokens: int
    width: int
    mlp_width: int

    def setup(self) -> None:
        """Draw the parameters."""
        arguments.counts(vocabulary=self.vocabulary, num_tokens=self.num_tokens)
        arguments.counts(width=self.width, mlp_width=self.mlp_width)
        normal, width = nn.initializers.normal(1.0), self.width
        self.embedding = self.param("embedding", normal, (self.vocabulary, width))
        self.positions = self.param("positions", normal, (self.num_tokens, width))
        self.query = self.param("query", _uniform(width), (width,))
        self.value = self.param("value", _uniform(width), (width, width))
        dense = functools.partial(nn.Dense, param_dtype=jnp.result_type(float))
        self.hidden = dense(self.mlp_width, kernel_init=_uniform(width), bias_init=_uniform(width))
        self.output = dense(
            width, kernel_init=_uniform(self.mlp_width), bias_init=_uniform(self.mlp_width)
        )

    def __call__(self, tokens: Array) -> Array:
        """Return the logits (N, vocabulary) of tokens (N, T) of integers."""
        self._check(tokens)
        weights, normed = self._tables()
        values = weights[:, :, None] * (normed @ self.value)  # (T, V, D)
        table = jnp.concatenate([values, weights[:, :, None]], axis=-1)
        chosen = jax.nn.one_hot(tokens, self.vocabulary)  # (N, T, V): a product beats a look-up
        pooled = jnp.einsum("ntv,tvd->nd", chosen, table)  # numerator and denominator
        h = pooled[:, :-1] / pooled[:, -1:]
        h = h + self.output(nn.gelu(self.hidden(_normalise(h)), approximate=False))
        return h @ self.embedding.T

    def attention(self, tokens: Array) -> Array:
        """Return the attention on each position (N, T) of tokens (N, T); rows sum to one."""
        self._check(tokens)
        weights, _ = self._tables()
        chosen = weights[jnp.arange(self.num_tokens), tokens]  # (N, T)
        return chosen / chosen.sum(axis=1, keepdims=True)

    def _check(self, tokens: Array) -> None:
        arguments.shapes("N _", tokens=tokens)
        arguments.labels(self.vocabulary, tokens=tokens)
        if tokens.shape[1] != self.num_tokens:
            message = f"tokens has shape {tokens.shape}; give (N, num_tokens={self.num_tokens})"
            raise ValueError(message)

    def _tables(self) -> tuple[Array, Array]:
        """Return attention before it is normalised (T, V) and the tokens themselves (T, V, D)."""
        normed = _normalise(self.embedding + self.positions[:, None])
        logits = normed @ self.query / self.width**0.5
        return jnp.exp(logits - logits.max()), normed


def _normalise(x: Array) -> Array:
    return x / (jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True)) + 1e-5)


def _uniform(fan_in: int) -> Callable[..., Array]:
    def draw(key: Key, shape: tuple[int, ...], dtype: Any = float) -> Array:
        return jax.random.uniform(key, shape, dtype, minval=-1, maxval=1) / fan_in**0.5

    return draw
