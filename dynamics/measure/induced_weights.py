"""What linear function a model makes of its context, and what step of descent that is.

For any model of prompts, whatever framework made it: it is only ever asked for predictions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import ApplyFn, Array, Key, Params


class InducedWeights(NamedTuple):
    """The linear function of the query nearest to a model's predictions, one a prompt."""

    weights: Array  # (B, d), or (B, K, d) of a model with outputs (B, K)
    explained: Array  # (B,) or (B, K): share of the mean square of the predictions; 1 if linear


class EffectiveLearningRate(NamedTuple):
    """The step of gradient descent from zero nearest to the induced weights."""

    learning_rate: Array  # () of the mean over the context, (1/2N) sum (w·x_i - y_i)²
    explained: Array  # () share of |induced weights|² that the step is; 1 for gradient descent
    cosine: Array  # (B,) between induced weights and minus the gradient


def induced_weights(
    apply_fn: ApplyFn,
    params: Params,
    tokens: Array,
    *,
    key: Key,
    num_queries: int | None = None,
    query_std: float | None = None,
) -> InducedWeights:
    """Return w with prediction ≈ w·x over many queries x, for the context of each prompt.

    The context of a prompt is kept and the input of its query replaced by Gaussian ones, the same
    for all prompts; predictions are regressed on them, without intercept.

    Args:
        apply_fn: `apply_fn(params, tokens (B, T, D)) -> (B,)` or (B, K), predictions for the last
            token of each prompt.
        params: what `apply_fn` takes.
        tokens: (B, T, D), the query last; its first D - 1 entries are the input, the last, the
            place of the label, is left as it is.
        key: of the queries.
        num_queries: 4 (D - 1) when None. D - 1 are enough for a linear model; more of them tell a
            model that is not linear by `explained`.
        query_std: of the entries of a query; that of the contexts' inputs when None.

    Raises:
        ValueError: `tokens` is not (B, T, D) with T and D at least 2, or `num_queries` is less
            than D - 1.

    References:
        Fu et al. 2023, arXiv:2310.17086, definition of induced weights and their similarity.

    Example:
        >>> sum_of_labels = lambda scale, e: scale * e[:, :-1, -1].sum(axis=1) * e[:, -1, 0]
        >>> found = induced_weights(
        ...     sum_of_labels, 2.0, jnp.ones((1, 4, 2)), key=jax.random.key(0)
        ... )
        >>> print(found.weights.round(5))
        [[6.]]
    """
    arguments.functions(apply_fn=apply_fn)
    arguments.shapes("B T D", tokens=tokens)
    arguments.keys(key=key)
    arguments.integers(optional=True, num_queries=num_queries)
    arguments.positive(query_std=1 if query_std is None else query_std)
    if min(tokens.shape[1:]) < 2:
        message = f"tokens has shape {tokens.shape}; give (B, T, D) with T and D at least 2"
        raise ValueError(message)
    dim = tokens.shape[-1] - 1
    num = 4 * dim if num_queries is None else num_queries
    if num < dim:
        message = f"num_queries={num}: give at least {dim}, the dimension of a query"
        raise ValueError(message)
    inputs = tokens[:, :-1, :-1]
    std = jnp.sqrt(jnp.mean(inputs**2)) if query_std is None else query_std
    queries = std * jax.random.normal(key, (num, dim), tokens.dtype)
    asked = jax.vmap(lambda query: apply_fn(params, tokens.at[:, -1, :-1].set(query)))
    predictions = jnp.moveaxis(asked(queries), 0, -1)  # (B, Q) or (B, K, Q)
    weights = predictions @ jnp.linalg.pinv(queries).T
    missed = jnp.sum((predictions - weights @ queries.T) ** 2, axis=-1)
    return InducedWeights(weights, 1 - missed / jnp.sum(predictions**2, axis=-1))


def effective_learning_rate(
    apply_fn: ApplyFn,
    params: Params,
    tokens: Array,
    *,
    key: Key,
    num_queries: int | None = None,
    query_std: float | None = None,
) -> EffectiveLearningRate:
    """Return the learning rate of the one step of gradient descent that a model is nearest to.

    The step from zero on the context's mean squared error is η (1/N) sum y_i x_i; η is fitted to
    the induced weights of all prompts together.

    Args:
        apply_fn: `apply_fn(params, tokens (B, T, D)) -> (B,)`, predictions for the last token.
        params: what `apply_fn` takes.
        tokens: (B, N + 1, D), rows (x, y) and the query last.
        key: of the queries, as the other arguments are those of `induced_weights`.
        num_queries: see there.
        query_std: see there.

    Raises:
        ValueError: as `induced_weights`, or `apply_fn` has several outputs.

    Example:
        >>> step = lambda rate, e: rate * jnp.einsum(
        ...     "bn,bnd,bd->b", e[:, :-1, -1], e[:, :-1, :-1], e[:, -1, :-1]) / 3
        >>> tokens = jax.random.normal(jax.random.key(1), (5, 4, 3))
        >>> found = effective_learning_rate(step, 0.5, tokens, key=jax.random.key(0))
        >>> print(found.learning_rate.round(5), found.explained.round(5))
        0.5 1.0
    """
    weights = induced_weights(
        apply_fn, params, tokens, key=key, num_queries=num_queries, query_std=query_std
    ).weights
    if weights.ndim != 2:
        message = f"apply_fn gives {weights.shape[1]} outputs a prompt: give one, of shape (B,)"
        raise ValueError(message)
    context = tokens[:, :-1]
    step = jnp.einsum("bn,bnd->bd", context[..., -1], context[..., :-1]) / context.shape[1]
    rate = jnp.sum(weights * step) / jnp.sum(step**2)
    explained = 1 - jnp.sum((weights - rate * step) ** 2) / jnp.sum(weights**2)
    lengths = jnp.linalg.norm(weights, axis=1) * jnp.linalg.norm(step, axis=1)
    return EffectiveLearningRate(rate, explained, jnp.sum(weights * step, axis=1) / lengths)
