"""Linear self-attention over in-context tokens e_j = (x_j, y_j), as functions and as a module.

Token form: what a layer does to each token. Gram form: a layer reads the context only through
G = sum_context e e^T, and its effect on every token is one matrix, so a stack costs O(L D^3) a
prompt however long the context is. Both are exact and agree to rounding.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array, Key, LinearAttentionWeights

__all__ = [
    "LinearAttention",
    "LinearAttentionWeights",
    "attention_stack",
    "context_gram",
    "gram_self_attention",
    "gram_stack",
    "layer_matrix",
    "linear_self_attention",
    "read_out_row",
    "tie",
]


def linear_self_attention(
    weights: LinearAttentionWeights, tokens: Array, *, num_context: int
) -> Array:
    """Return the tokens after one layer, e_j + P sum_{i <= num_context} (V e_i)(K e_i)^T Q e_j.

    Keys and values come from the first `num_context` tokens only; the others (the query) look at
    them but are not looked at. There is no softmax and no normalisation: a factor 1/num_context
    belongs in P. Residual connection included.

    Args:
        weights: matrices of the layer; with a leading axis of heads, what the heads write is added.
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
    arguments.records(LinearAttentionWeights, weights=weights)
    arguments.shapes("... T D", tokens=tokens)
    arguments.integers(num_context=num_context)
    num_tokens, dim = tokens.shape[-2:]
    if not 1 <= num_context <= num_tokens:
        message = f"num_context={num_context}: give 1 to {num_tokens}, the number of tokens"
        raise ValueError(message)
    _check_weights(weights, dim, "tokens")
    context = tokens[..., :num_context, :]

    def written(head: LinearAttentionWeights) -> Array:
        keys, values = context @ head.key.T, context @ head.value.T
        memory = jnp.swapaxes(values, -1, -2) @ keys  # (..., D_value, D_key)
        read = (tokens @ head.query.T) @ jnp.swapaxes(memory, -1, -2)  # (..., T, D_value)
        return read @ head.projection.T

    if weights.query.ndim == 2:
        return tokens + written(weights)
    return tokens + jax.vmap(written)(weights).sum(axis=0)


def attention_stack(weights: LinearAttentionWeights, tokens: Array, *, num_context: int) -> Array:
    """Return the tokens (L, ..., T, D) after each of L layers of `linear_self_attention`.

    Args:
        weights: the layers on a leading axis (L,), heads on the next if there are several;
            `tie` makes a stack of one layer.
        tokens: (..., T, D).
        num_context: how many tokens, counted from the first, serve as keys and values.

    Raises:
        ValueError: as `linear_self_attention`, or `weights` has no axis of layers.

    Example:
        >>> one = jnp.ones((1, 1))
        >>> weights = tie(LinearAttentionWeights(one, one, one, one), 2)
        >>> tokens = jnp.array([[1.0], [2.0]])
        >>> print(attention_stack(weights, tokens, num_context=1)[..., 0])
        [[ 2.  4.]
         [10. 20.]]
    """
    _check_stack(weights)
    arguments.shapes("... T D", tokens=tokens)
    arguments.integers(num_context=num_context)

    def layer(e: Array, one: LinearAttentionWeights) -> tuple[Array, Array]:
        e = linear_self_attention(one, e, num_context=num_context)
        return e, e

    return jax.lax.scan(layer, tokens, weights)[1]


def random_weights(key: Key, dim: int, std: float) -> LinearAttentionWeights:
    """Return the matrices (dim, dim) of one head with entries from N(0, std²), to train from.

    Example:
        >>> weights = random_weights(jax.random.key(0), 3, 0.04)
        >>> print(weights.query.shape, weights.projection.shape)
        (3, 3) (3, 3)
    """
    arguments.keys(key=key)
    arguments.counts(dim=dim)
    arguments.not_negative(std=std)
    return LinearAttentionWeights(
        *(std * jax.random.normal(one, (dim, dim)) for one in jax.random.split(key, 4))
    )


def tie(weights: LinearAttentionWeights, num_layers: int) -> LinearAttentionWeights:
    """Return a stack of `num_layers` copies of one layer, on a new leading axis.

    Raises:
        ValueError: `num_layers` is below 1.
    """
    arguments.records(LinearAttentionWeights, weights=weights)
    arguments.counts(num_layers=num_layers)
    return jax.tree.map(lambda m: jnp.broadcast_to(m, (num_layers, *m.shape)), weights)


def context_gram(tokens: Array, *, num_context: int) -> Array:
    """Return G = sum over the first `num_context` tokens of e e^T, (..., D, D).

    Raises:
        ValueError: `num_context` is not between 1 and T.

    Example:
        >>> print(context_gram(jnp.array([[1.0, 2.0], [3.0, 0.0]]), num_context=1))
        [[1. 2.]
         [2. 4.]]
    """
    arguments.shapes("... T D", tokens=tokens)
    arguments.integers(num_context=num_context)
    if not 1 <= num_context <= tokens.shape[-2]:
        message = f"num_context={num_context}: give 1 to {tokens.shape[-2]}, the number of tokens"
        raise ValueError(message)
    context = tokens[..., :num_context, :]
    return jnp.swapaxes(context, -1, -2) @ context


def layer_matrix(weights: LinearAttentionWeights, gram: Array) -> Array:
    """Return A = I + sum_heads P V G K^T Q (..., D, D): the layer maps each token e to A e.

    Args:
        weights: matrices of the layer, with or without an axis of heads.
        gram: (..., D, D) of the tokens that serve as keys and values, from `context_gram`.

    Raises:
        ValueError: the matrices do not fit the Gram matrix.

    Example:
        >>> one = jnp.ones((1, 1))
        >>> print(layer_matrix(LinearAttentionWeights(one, one, one, one), 4 * one))
        [[5.]]
    """
    arguments.records(LinearAttentionWeights, weights=weights)
    arguments.shapes("... D D", gram=gram)
    dim = gram.shape[-1]
    _check_weights(weights, dim, "gram")
    written = weights.projection @ weights.value  # (..., D, D)
    looked_at = jnp.swapaxes(weights.key, -1, -2) @ weights.query
    eye = jnp.eye(dim, dtype=gram.dtype)
    if written.ndim == 2:
        return eye + written @ gram @ looked_at
    return eye + jax.vmap(lambda left, right: left @ gram @ right)(written, looked_at).sum(axis=0)


def gram_self_attention(
    weights: LinearAttentionWeights, gram: Array, query: Array
) -> tuple[Array, Array]:
    """Return the Gram matrix A G A^T of the context after one layer, and the query A e.

    The same as `linear_self_attention` for a query that is no key: see `layer_matrix` for A.

    Args:
        weights: matrices of the layer, with or without an axis of heads.
        gram: (..., D, D) of the tokens that serve as keys and values, from `context_gram`.
        query: (..., D), one token more.

    Raises:
        ValueError: the matrices do not fit the Gram matrix.

    Example:
        >>> one = jnp.ones((1, 1))
        >>> weights = LinearAttentionWeights(one, one, one, one)
        >>> print(*gram_self_attention(weights, one, jnp.array([2.0])))
        [[4.]] [4.]
    """
    arguments.records(LinearAttentionWeights, weights=weights)
    arguments.shapes("... D D, ... D", gram=gram, query=query)
    matrix = layer_matrix(weights, gram)
    return matrix @ gram @ jnp.swapaxes(matrix, -1, -2), jnp.einsum("...ij,...j->...i", matrix,
                                                                    query)  # fmt: skip


def gram_stack(weights: LinearAttentionWeights, gram: Array, query: Array) -> tuple[Array, Array]:
    """Return Gram matrices (L, ..., D, D) and queries (L, ..., D) after each of L layers.

    Args:
        weights: the layers on a leading axis (L,), as for `attention_stack`.
        gram: (..., D, D) before the first layer, from `context_gram`.
        query: (..., D) before the first layer.

    Raises:
        ValueError: the matrices do not fit the Gram matrix, or have no axis of layers.
    """
    _check_stack(weights)
    arguments.shapes("... D D, ... D", gram=gram, query=query)
    if jnp.shape(gram)[:-1] != jnp.shape(query):
        message = f"gram {jnp.shape(gram)} and query {jnp.shape(query)}: give (..., D, D), (..., D)"
        raise ValueError(message)

    def layer(
        state: tuple[Array, Array], one: LinearAttentionWeights
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        state = gram_self_attention(one, *state)
        return state, state

    return jax.lax.scan(layer, (gram, query), weights)[1]


def read_out_row(weights: LinearAttentionWeights, gram: Array) -> Array:
    """Return the row r (..., D) with which the last entry of a query e is r·e after all layers.

    The last row of A_L ... A_1, and so the linear function that a prompt's context makes of its
    query. It takes products of matrices with vectors only, about 3^L of them: for one to three
    layers it is several times as fast as `gram_stack`, and has nothing random about the query.

    Args:
        weights: layers of one head on a leading axis (L,), as for `attention_stack`.
        gram: (..., D, D) before the first layer, from `context_gram`.

    Raises:
        ValueError: the matrices do not fit the Gram matrix, or are not (L, D_key, D).

    Example:
        >>> one = jnp.ones((1, 1, 1))
        >>> weights = LinearAttentionWeights(one, one, one, one)
        >>> print(read_out_row(weights, 4 * jnp.ones((1, 1))))
        [5.]
    """
    arguments.records(LinearAttentionWeights, weights=weights)
    arguments.shapes("... D D", gram=gram)
    if weights.query.ndim != 3:
        message = f"weights.query has shape {weights.query.shape}; give (layers, D_key, D)"
        raise ValueError(message)
    _check_weights(jax.tree.map(lambda m: m[0], weights), gram.shape[-1], "gram")
    written = weights.projection @ weights.value  # (L, D, D)
    looked_at = jnp.swapaxes(weights.key, -1, -2) @ weights.query

    def gram_times(layer: int, v: Array) -> Array:
        """G_l v with G_l = A G A^T of the layer before."""
        if layer == 0:
            return jnp.einsum("...ij,...j->...i", gram, v)
        return forward(layer - 1, gram_times(layer - 1, backward(layer - 1, v)))

    def forward(layer: int, v: Array) -> Array:
        return v + gram_times(layer, v @ looked_at[layer].T) @ written[layer].T

    def backward(layer: int, v: Array) -> Array:
        return v + gram_times(layer, v @ written[layer]) @ looked_at[layer]

    row = jnp.zeros(gram.shape[:-1], gram.dtype).at[..., -1].set(1.0)
    for layer in reversed(range(len(written))):
        row = backward(layer, row)
    return row


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
        arguments.counts(num_layers=self.num_layers)
        arguments.not_negative(init_std=self.init_std)
        arguments.shapes("... T D", x=x)
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


def _check_weights(weights: LinearAttentionWeights, dim: int, what: str) -> None:
    for name, matrix in (("query", weights.query), ("key", weights.key), ("value", weights.value)):
        if matrix.shape[-1] != dim or matrix.ndim not in (2, 3):
            message = (
                f"weights.{name} has shape {matrix.shape}; {what} of dimension {dim}: give "
                f"(D_key, {dim}), or (heads, D_key, {dim})"
            )
            raise ValueError(message)


def _check_stack(weights: LinearAttentionWeights) -> None:
    arguments.records(LinearAttentionWeights, weights=weights)
    if weights.query.ndim not in (3, 4):
        message = (
            f"weights.query has shape {weights.query.shape}; give layers on the first axis, "
            "(layers, D_key, D) or (layers, heads, D_key, D): `tie` makes a stack of one layer"
        )
        raise ValueError(message)
