"""The mesa-layer: at every token, what ridge regression on all tokens so far says to a query.

Two forms give the same numbers. The recursion (`chunk_size=None`) carries the fast weights and the
inverse from token to token, as the paper writes it. The chunked form has no recursion: with
R_0 the inverse at the start of a chunk and w_s = R_{s-1} k_s / (1 + k_s·R_{s-1} k_s)^(1/2), the
inverse within it is R_t = R_0 - sum_s w_s w_s^T, and the w of a whole chunk are L^-1 K R_0 with
L L^T = I + K R_0 K^T: one factorisation and a few products of matrices per chunk, all chunks at
once. Its derivatives are those of a linear system, so that the backward pass solves once more
with the same factors.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array


def mesa_layer(
    keys: Array, values: Array, queries: Array, ridge: Any, *, chunk_size: int | None = 64
) -> Array:
    """Return Φ_t q_t (..., T, V), Φ_t the ridge regression of the values on the keys up to t.

    Φ_t = argmin 1/2 sum_{s <= t} |v_s - Φ k_s|² + 1/2 tr(Φ Λ Φ^T)
        = (sum_{s <= t} v_s k_s^T) (sum_{s <= t} k_s k_s^T + Λ)^-1, token t included.

    Differentiable to any order in all four arguments, forwards and backwards.

    Args:
        keys: (..., T, K).
        values: (..., T, V); the axes before T are the same in all three.
        queries: (..., T, K).
        ridge: the diagonal of Λ, () or (K,), positive. The paper's λ is 1 / ridge.
        chunk_size: tokens in a chunk of the chunked form, any positive number (the last chunk is
            filled up); None for the recursion. Fastest near K; 64 is within a factor of two of
            the best from K = 8 to K = 128 on CPU.

    Raises:
        ValueError: shapes that do not fit, a ridge that is not positive, `chunk_size` below 1.

    Cost:
        Chunked: O(T K (K + V + C)) time, and O(K³) for each of the T / C chunks; the backward pass
        keeps O(T (K + V + C) + (T / C) K (K + V)) numbers. Recursion: O(T K (K + V)) time, one
        token after the other; the backward pass keeps O(T^(1/2) K (K + V)) numbers and runs the
        forward pass once more. Neither keeps a K x K matrix for every token.

    References:
        von Oswald et al. 2023, arXiv:2309.05858, section on the mesa-layer (recursion); von Oswald
        et al. 2025, arXiv:2506.05233 (MesaNet, which solves the same systems by conjugate
        gradients); the chunked form is derived here.

    Example:
        One key of length 1 and value 3 with ridge 1/2: Φ = 3 / (1 + 1/2) = 2.

        >>> one = jnp.ones((1, 1))
        >>> print(mesa_layer(one, 3 * one, one, 0.5).round(5))
        [[2.]]
    """
    arguments.numbers(keys=keys, values=values, queries=queries, ridge=ridge)
    arguments.integers(optional=True, chunk_size=chunk_size)
    keys, values, queries, ridge = (jnp.asarray(a) for a in (keys, values, queries, ridge))
    _check(keys, values, queries, ridge, chunk_size)
    kind = jnp.result_type(keys, values, queries, ridge, jnp.float32)
    keys, values, queries, ridge = (a.astype(kind) for a in (keys, values, queries, ridge))
    return _layer(keys, values, queries, ridge, chunk_size)


@functools.partial(jax.jit, static_argnames="chunk_size")
def _layer(
    keys: Array, values: Array, queries: Array, ridge: Array, chunk_size: int | None
) -> Array:
    ridge = jnp.broadcast_to(ridge, keys.shape[-1:])

    def one(keys: Array, values: Array, queries: Array) -> Array:
        if chunk_size is None:
            return _recursive(keys, values, queries, ridge)
        return _chunked(keys, values, queries, ridge, min(chunk_size, len(keys)))

    if keys.ndim == 2:
        return one(keys, values, queries)
    flat = (a.reshape(-1, *a.shape[-2:]) for a in (keys, values, queries))
    return jax.vmap(one)(*flat).reshape(values.shape)


def _recursive(keys: Array, values: Array, queries: Array, ridge: Array) -> Array:
    """Sherman and Morrison, token by token; the backward pass keeps one state in T^(1/2)."""
    num_tokens, dim = keys.shape

    def token(state: tuple[Array, Array], inputs: tuple[Array, ...]) -> tuple[Any, Array]:
        weights, inverse = state  # (V, K), (K, K)
        key, value, query = inputs
        seen = inverse @ key  # R k
        gain = seen / (1 + key @ seen)
        weights = weights + jnp.outer(value - weights @ key, gain)
        inverse = inverse - jnp.outer(seen, gain)
        inverse = (inverse + inverse.T) / 2  # which rounding would lose
        return (weights, inverse), weights @ query

    @jax.checkpoint
    def block(state: tuple[Array, Array], inputs: tuple[Array, ...]) -> tuple[Any, Array]:
        return jax.lax.scan(token, state, inputs)

    length = math.isqrt(num_tokens - 1) + 1
    blocks = tuple(_split(a, length) for a in (keys, values, queries))
    start = jnp.zeros((values.shape[1], dim), keys.dtype), jnp.diag(1 / ridge)
    _, outputs = jax.lax.scan(block, start, blocks)
    return outputs.reshape(-1, values.shape[1])[:num_tokens]


def _chunked(keys: Array, values: Array, queries: Array, ridge: Array, size: int) -> Array:
    """x_t = R_t q_t for all tokens, then sum_{s <= t} v_s (k_s·x_t): causal linear attention."""
    num_tokens = len(keys)
    keys, values, queries = (_split(a, size) for a in (keys, values, queries))
    factors = _factorise(*jax.lax.stop_gradient((keys, ridge)))

    def solve(matvec: Any, right: Array) -> Array:
        """R_t is a difference of 1 / ridge and nearly that: one refinement mends its rounding."""
        first = _solve(factors, right)
        return first + _solve(factors, right - matvec(first))

    solved = jax.lax.custom_linear_solve(
        lambda x: ridge * x + _read(keys, keys, x),  # H_t x_t, H_t = sum k k^T + Λ
        queries,
        solve,
        symmetric=True,
    )
    return _read(keys, values, solved).reshape(-1, values.shape[-1])[:num_tokens]


def _split(tokens: Array, size: int) -> Array:
    """Return chunks (T / size, size, D), the last one filled up with zeros."""
    missing = -len(tokens) % size
    return jnp.pad(tokens, ((0, missing), (0, 0))).reshape(-1, size, tokens.shape[1])


def _before(of_chunk: Array) -> Array:
    """Return the sum over the chunks before each, without rounding from subtracting its own."""
    return jnp.cumsum(jnp.pad(of_chunk, ((1, 0), (0, 0), (0, 0)))[:-1], axis=0)


def _read(keys: Array, values: Array, queries: Array) -> Array:
    """Return sum_{s <= t} v_s (k_s·q_t) for chunks (J, C, K), (J, C, V), (J, C, K)."""
    within = jnp.tril(jnp.einsum("jtk,jsk->jts", queries, keys))
    memory = _before(jnp.einsum("jsk,jsv->jkv", keys, values))
    return within @ values + queries @ memory


def _factorise(keys: Array, ridge: Array) -> tuple[Array, Array]:
    """Return L^-1 (J, K, K) of H_0 = L L^T, and the w (J, C, K), of each chunk."""
    grams = _before(jnp.einsum("jsk,jsl->jkl", keys, keys)) + jnp.diag(ridge)
    start = _invert_triangular(jnp.linalg.cholesky(grams))
    white = keys @ start.swapaxes(1, 2)  # K L^-T
    inner = jnp.eye(keys.shape[1], dtype=keys.dtype) + white @ white.swapaxes(1, 2)
    return start, _invert_triangular(jnp.linalg.cholesky(inner)) @ (white @ start)


def _solve(factors: tuple[Array, Array], right: Array) -> Array:
    """Return R_t b_t for b (J, C, K)."""
    start, directions = factors
    within = jnp.tril(jnp.einsum("jtk,jsk->jts", right, directions))
    return (right @ start.swapaxes(1, 2)) @ start - within @ directions


def _invert_triangular(lower: Array) -> Array:
    """Return L^-1 for (J, D, D), by doubling blocks: [[A, 0], [B, C]]^-1 = [[a, 0], [-c B a, c]].

    All of it is products of matrices. LAPACK's solver is slower on blocks this small, and on a
    busy machine its threads make it slower by hundreds.
    """
    num, dim = lower.shape[:2]
    length = 1 << (dim - 1).bit_length()
    lower = jnp.pad(lower, ((0, 0), (0, length - dim), (0, length - dim)))
    diagonal = jnp.diagonal(lower, axis1=1, axis2=2)
    inverse = 1 / jnp.where(jnp.arange(length) < dim, diagonal, 1)[..., None, None]
    size = 1
    while size < length:
        blocks = lower.reshape(num, length // size, size, length // size, size)
        even = np.arange(0, length // size, 2)
        below = blocks[:, even + 1, :, even].swapaxes(0, 1)  # (J, D / (2 size), size, size)
        first, second = inverse[:, 0::2], inverse[:, 1::2]
        corner = -second @ below @ first
        top = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        inverse = jnp.concatenate([top, jnp.concatenate([corner, second], axis=-1)], axis=-2)
        size *= 2
    return inverse[:, 0, :dim, :dim]


def _check(keys: Array, values: Array, queries: Array, ridge: Array, chunk_size: Any) -> None:
    shapes = {"keys": keys.shape, "values": values.shape, "queries": queries.shape}
    for name, shape in shapes.items():
        if len(shape) < 2 or 0 in shape or shape[:-1] != keys.shape[:-1]:
            message = f"{name} has shape {shape}; give (..., T, D) with the axes before D of keys"
            raise ValueError(message)
    if queries.shape != keys.shape:
        message = f"queries has shape {queries.shape}; give that of keys, {keys.shape}"
        raise ValueError(message)
    if ridge.shape not in ((), keys.shape[-1:]):
        message = f"ridge has shape {ridge.shape}; give () or {keys.shape[-1:]} of keys"
        raise ValueError(message)
    if not isinstance(ridge, jax.core.Tracer) and not np.all(np.asarray(ridge) > 0):
        message = f"ridge={ridge}: give positive numbers, else the first systems are singular"
        raise ValueError(message)
    if chunk_size is not None and chunk_size < 1:
        message = f"chunk_size={chunk_size}: give a positive number, or None for the recursion"
        raise ValueError(message)
