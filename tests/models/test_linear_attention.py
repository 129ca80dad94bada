"""Linear attention in its two forms, stacked and with several heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.models import linear_attention

SEEDS = st.integers(0, 2**31 - 1)


def drawn(seed, *, layers=(), heads=(), dim=4, key_dim=3, std=0.3):
    """Return random weights in float64."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: std * rng.normal(size=(*layers, *heads, *shape))
    into = normal(dim, key_dim)
    return linear_attention.LinearAttentionWeights(*(normal(key_dim, dim) for _ in range(3)), into)


def by_hand(weights, tokens, num_context):
    """One layer of several heads as loops over tokens, in numpy."""
    q, k, v, p = weights
    after = tokens.copy()
    for h in range(len(q)):
        for j in range(len(tokens)):
            for i in range(num_context):
                weight = (k[h] @ tokens[i]) @ (q[h] @ tokens[j])
                after[j] += p[h] @ (v[h] @ tokens[i]) * weight
    return after


@functools.partial(jax.jit, static_argnums=2)
def in_token_form(weights, tokens, num_context):
    """Return all tokens and the Gram matrix of the context after every layer."""
    after = linear_attention.attention_stack(weights, tokens, num_context=num_context)
    return after, linear_attention.context_gram(after, num_context=num_context)


@functools.partial(jax.jit, static_argnums=2)
def in_gram_form(weights, tokens, num_context):
    """Return the Gram matrix and the last token after every layer."""
    gram = linear_attention.context_gram(tokens, num_context=num_context)
    return linear_attention.gram_stack(weights, gram, tokens[..., -1, :])


@given(SEEDS)
def test_several_heads_and_layers_are_loops(seed):
    with jax.enable_x64(True):
        weights = drawn(seed, layers=(2,), heads=(3,))
        tokens = np.random.default_rng(seed + 1).normal(size=(5, 4))
        found, _ = in_token_form(weights, tokens, 3)
        expected = tokens
        for layer in range(2):
            expected = by_hand([np.asarray(m)[layer] for m in weights], expected, 3)
            np.testing.assert_allclose(found[layer], expected, rtol=1e-10, atol=1e-12)


@given(
    seed=SEEDS,
    sizes=st.sampled_from([(1, 1, 1, ()), (4, 7, 2, ()), (6, 20, 3, (2,))]),
    tied=st.booleans(),
)
def test_the_gram_form_is_the_token_form(seed, sizes, tied):
    dim, num_context, num_layers, heads = sizes
    with jax.enable_x64(True):
        std = 0.5 / (dim * num_context) ** 0.5  # a stack triples degrees: larger ones overflow
        weights = drawn(seed, layers=(num_layers,), heads=heads, dim=dim, std=std)
        if tied:
            weights = jax.tree.map(lambda m: np.repeat(m[:1], num_layers, axis=0), weights)
        rng = np.random.default_rng(seed + 1)
        tokens = rng.normal(size=(2, num_context + 1, dim))
        start = np.swapaxes(tokens[:, :-1], 1, 2) @ tokens[:, :-1]
        grams, queries = in_gram_form(weights, tokens, num_context)
        after, expected = in_token_form(weights, tokens, num_context)
        np.testing.assert_allclose(queries, after[:, :, -1], rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(grams, expected, rtol=1e-10, atol=1e-10)
        if not heads:
            row = jax.jit(linear_attention.read_out_row)(weights, start)
            answer = np.sum(row * tokens[:, -1], axis=-1)
            np.testing.assert_allclose(answer, queries[-1, :, -1], rtol=1e-10, atol=1e-10)


def test_the_module_is_a_stack(key, x64):
    tokens = jax.random.normal(key, (3, 5, 4), jnp.float64)
    for tied in (True, False):
        model = linear_attention.LinearAttention(num_layers=2, tied=tied, init_std=0.3)
        params = jax.jit(model.init)(key, tokens)
        weights = linear_attention.LinearAttentionWeights(**params["params"])
        if tied:
            weights = linear_attention.tie(jax.tree.map(lambda m: m[0], weights), 2)
        stacked, _ = in_token_form(weights, tokens, 4)
        np.testing.assert_allclose(jax.jit(model.apply)(params, tokens), stacked[-1], rtol=1e-10)


def test_wrong_arguments_are_named():
    one, tokens = drawn(0), jnp.ones((5, 4))
    with pytest.raises(ValueError, match=r"layers on the first axis"):
        linear_attention.attention_stack(one, tokens, num_context=4)
    with pytest.raises(ValueError, match=r"layers on the first axis"):
        linear_attention.gram_stack(one, jnp.ones((4, 4)), tokens[0])
    with pytest.raises(ValueError, match=r"give \(layers, D_key, D\)"):
        linear_attention.read_out_row(one, jnp.ones((4, 4)))
    with pytest.raises(ValueError, match="num_layers=0"):
        linear_attention.tie(one, 0)
    with pytest.raises(ValueError, match="num_context=6"):
        linear_attention.context_gram(tokens, num_context=6)
    with pytest.raises(ValueError, match=r"weights\.query"):
        linear_attention.layer_matrix(one, jnp.ones((3, 3)))
