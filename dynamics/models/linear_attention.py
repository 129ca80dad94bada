"""Linear self-attention over in-context tokens e_j = (x_j, y_j), as a function and as a module."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from dynamics.aliases import Array


class LinearAttentionWeights(NamedTuple):
    """The matrices of one head, acting on column vectors e (D,)."""

    query: Array  # (D_key, D)
    key: Array  # (D_key, D)
    value: Array  # (D_value, D)
    projection: Array  # (D, D_value)


def linear_self_attention(
    weights: LinearAttentionWeights, tokens: Array, *, num_context: int
) -> Array:
    """Return the tokens after one layer, e_j + P sum_{i <= num_context} (V e_i)(K e_i)^T Q e_j.

    Keys and values come from the first `num_context` tokens only; the others (the query) look at
    them but are not looked at. There is no softmax and no normalisation: a factor 1/num_context
    belongs in P. Residual connection included.

    Args:
        weights: matrices of the layer.
        tokens: (..., T, D).
        num_context: how many tokens, counted from the first, serve as keys and values.

    Raises:
        ValueError: `num_context` is not between 1 and T, or the matrices do not fit the tokens.

    References:
        von Oswald et al. 2023, arXiv:2212.07677, equation 2.

    Example:
        >>> one = jnp.ones((1, 1))
        >>> weights = LinearAttentionWeights(one, one, one, one)
        >>> print(linear_self_attention(weights, jnp.array([[1.0], [2.0]]), num_context=1)[:, 0])
        [2. 4.]
    """
    num_tokens, dim = tokens.shape[-2:]
    if not 1 <= num_context <= num_tokens:
        message = f"num_context={num_context}: give 1 to {num_tokens}, the number of tokens"
        raise ValueError(message)
    for name, matrix in (("query", weights.query), ("key", weights.key), ("value", weights.value)):
        if matrix.shape[-1] != dim:
            message = f"weights.{name} has shape {matrix.shape}; the tokens have dimension {dim}"
            raise ValueError(message)
    context = tokens[..., :num_context, :]
    keys, values = context @ weights.key.T, context @ weights.value.T
    memory = jnp.swapaxes(values, -1, -2) @ keys  # (..., D_value, D_key)
    read = (tokens @ weights.query.T) @ jnp.swapaxes(memory, -1, -2)  # (..., T, D_value)
    return tokens + read @ weights.projection.T


class LinearAttention(nn.Module):
    """A stack of linear self-attention layers over tokens (N, T, D); returns tokens.

    Attributes:
        num_layers: number of layers.
        tied: whether all layers share one set of matrices.
        num_context: number of tokens that serve as keys and values; None for all but the last.
        init_std: standard deviation of the entries at the start. The default keeps the residual
            stream in charge at dimension 10 or so.

    Example:
        >>> import jax
        >>> model = LinearAttention(num_layers=2)
        >>> x = jnp.ones((3, 5, 4))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (3, 5, 4)
    """

    num_layers: int = 1
    tied: bool = False
    num_context: int | None = None
    init_std: float = 0.04

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the tokens (N, T, D) after all layers."""
        num_context = x.shape[-2] - 1 if self.num_context is None else self.num_context
        stacks = 1 if self.tied else self.num_layers
        shape = (stacks, x.shape[-1], x.shape[-1])
        matrices = [
            self.param(name, nn.initializers.normal(self.init_std), shape, x.dtype)
            for name in LinearAttentionWeights._fields
        ]
        for layer in range(self.num_layers):
            weights = LinearAttentionWeights(*(m[layer % stacks] for m in matrices))
            x = linear_self_attention(weights, x, num_context=num_context)
        return x
