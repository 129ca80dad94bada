"""Softmax attention on one token: the gradient that is left when all but rounding is gone."""

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array


def descent_direction(logits: Array, scores: Array) -> Array:
    """Return a positive multiple of -∂L/∂logits (N, T) that neither cancels nor underflows.

    L = Σ_i log(1 + exp(-Σ_t p_t s_t)) with p = softmax of the logits of sequence i, whence
    -∂L/∂l_t = σ(-Σ p s) Σ_u p_t p_u (s_t - s_u). Once one token has nearly all attention,
    p_t (s_t - Σ p s) is lost to cancellation at gaps of 35 between logits, and p_t p_u to underflow
    at 700; pair by pair and divided by the largest term of all, both survive at any gap. The
    direction is what steps of fixed length need.

    Args:
        logits: (N, T), T at least 2.
        scores: (N, T) s_t, what attending to each token is worth.

    Example:
        >>> scores = jnp.array([[1.0, -1.0]])
        >>> print(descent_direction(jnp.array([[2000.0, 0.0]]), scores) > 0)
        [[ True False]]
        >>> loss = lambda l: jnp.log1p(jnp.exp(-jnp.sum(jax.nn.softmax(l) * scores)))
        >>> print(jax.grad(loss)(jnp.array([[2000.0, 0.0]])))
        [[0. 0.]]
    """
    arguments.shapes("N T, N T", logits=logits, scores=scores)
    log_attention = jax.nn.log_softmax(logits)
    answers = jnp.sum(jnp.exp(log_attention) * scores, axis=1, keepdims=True)  # (N, 1)
    gaps = scores[:, :, None] - scores[:, None, :]  # (N, T, T)
    sizes = log_attention[:, :, None] + log_attention[:, None, :] + jnp.log(jnp.abs(gaps))
    pairs = jnp.sign(gaps) * jnp.exp(sizes - sizes.max())
    return jax.nn.sigmoid(-answers) * jnp.sum(pairs, axis=2)
