"""Induced weights and effective learning rates against models whose weights are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.measure import induced_weights, weight_constructions
from dynamics.models import linear_attention

SEEDS = st.integers(0, 2**31 - 1)


def attention(weights, tokens):
    num_context = tokens.shape[-2] - 1
    return -linear_attention.attention_stack(weights, tokens, num_context=num_context)[
        -1, :, -1, -1
    ]


def ridge(penalty, tokens):
    x, y, query = tokens[:, :-1, :-1], tokens[:, :-1, -1], tokens[:, -1, :-1]
    gram = jnp.swapaxes(x, 1, 2) @ x + penalty * jnp.eye(x.shape[-1])
    moment = jnp.einsum("bnd,bn->bd", x, y)
    return jnp.sum(query * jnp.linalg.solve(gram, moment[..., None])[..., 0], axis=1)


def prompts_of(seed, num_tasks, num_context, dim):
    """Return tokens of noisy tasks, drawn by numpy."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_tasks, num_context + 1, dim))
    y = np.einsum("bnd,bd->bn", x, rng.normal(size=(num_tasks, dim)))
    y[:, :-1] += 0.5 * rng.normal(size=(num_tasks, num_context))
    y[:, -1] = 0
    return np.concatenate([x, y[..., None]], axis=-1)


induced = jax.jit(
    lambda penalty, tokens, key: induced_weights.induced_weights(ridge, penalty, tokens, key=key)
)
learning_rate = jax.jit(
    lambda stack, tokens, key: induced_weights.effective_learning_rate(
        attention, stack, tokens, key=key
    )
)


@given(seed=SEEDS, penalty=st.floats(0.1, 3))
def test_of_ridge_regression_they_are_its_weights(seed, penalty):
    tokens = prompts_of(seed, 4, 9, 3)
    with jax.enable_x64(True):
        found = induced(penalty, tokens, jax.random.key(seed))
    for prompt, weights in zip(tokens, found.weights, strict=True):
        x, y = prompt[:-1, :-1], prompt[:-1, -1]
        expected = np.linalg.solve(x.T @ x + penalty * np.eye(3), x.T @ y)
        np.testing.assert_allclose(weights, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.explained, 1, rtol=1e-12)


@given(seed=SEEDS, rate=st.floats(0.05, 2.0))
def test_the_learning_rate_of_a_layer_is_read_back(seed, rate):
    with jax.enable_x64(True):
        layer = weight_constructions.gradient_descent_construction(3, rate, 6)
        stack = jax.tree.map(lambda m: m[None], layer)
        found = learning_rate(stack, prompts_of(seed, 5, 6, 3), jax.random.key(seed))
    np.testing.assert_allclose(found.learning_rate, rate, rtol=1e-10)
    np.testing.assert_allclose(found.explained, 1, rtol=1e-10)
    np.testing.assert_allclose(found.cosine, 1, rtol=1e-10)


def test_two_steps_are_not_one(key, x64):
    layer = weight_constructions.gradient_descent_construction(3, 0.5, 6)
    two = jax.tree.map(lambda m: jnp.stack([m, m]), layer)
    found = learning_rate(two, prompts_of(0, 5, 6, 3), key)
    assert found.explained < 0.99
    assert found.cosine.min() < 0.999


def test_a_model_that_is_not_linear_is_told(key, x64):
    tokens = jnp.asarray(prompts_of(0, 4, 6, 3))
    cubic = lambda scale, tokens: scale * tokens[:, -1, 0] ** 3
    ask = lambda e: induced_weights.induced_weights(cubic, 1.0, e, key=key, num_queries=2000)
    found = jax.jit(ask)(tokens)
    assert (found.explained < 0.8).all()  # of x³ the share 9/15 is linear in a Gaussian x
    assert (found.explained > 0.4).all()


def test_several_outputs_keep_their_axis(key, x64):
    tokens = jnp.asarray(prompts_of(0, 4, 6, 3))
    both = lambda params, e: jnp.stack([ridge(p, e) for p in params], axis=1)
    ask = lambda e: induced_weights.induced_weights(both, (0.1, 0.5), e, key=key)
    found, alone = jax.jit(ask)(tokens), induced(0.5, tokens, key)
    np.testing.assert_allclose(found.weights[:, 1], alone.weights, rtol=1e-10)
    with pytest.raises(ValueError, match="2 outputs a prompt"):
        induced_weights.effective_learning_rate(both, (0.1, 0.5), tokens, key=key)


def test_wrong_arguments_are_named(key):
    with pytest.raises(ValueError, match="tokens has shape"):
        induced_weights.induced_weights(ridge, 0.1, jnp.ones((3, 2)), key=key)
    with pytest.raises(ValueError, match="num_queries=1"):
        induced_weights.induced_weights(ridge, 0.1, jnp.ones((2, 4, 3)), key=key, num_queries=1)
