"""The pooled attention model against a loop over tokens in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from dynamics.models import softmax_pooling

MODEL = softmax_pooling.SoftmaxPooling(vocabulary=3, num_tokens=5, width=4, mlp_width=7)


def reference(params, sequence):
    """Logits and attention of one sequence, token by token."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    norm = lambda x: x / (np.sqrt(np.mean(x**2)) + 1e-5)
    x = [norm(p["embedding"][token] + p["positions"][t]) for t, token in enumerate(sequence)]
    attention = scipy.special.softmax([p["query"] @ row / 2 for row in x])
    h = sum(a * (row @ p["value"]) for a, row in zip(attention, x, strict=True))
    z = norm(h) @ p["hidden"]["kernel"] + p["hidden"]["bias"]
    gelu = z * (1 + scipy.special.erf(z / np.sqrt(2))) / 2
    h = h + gelu @ p["output"]["kernel"] + p["output"]["bias"]
    return p["embedding"] @ h, attention


@pytest.mark.parametrize("seed", [0, 1])
def test_logits_and_attention_are_those_of_the_loop(seed):
    init_key, token_key = jax.random.split(jax.random.key(seed))
    tokens = jax.random.randint(token_key, (6, 5), 0, 3)
    params = MODEL.init(init_key, tokens)
    logits, attention = zip(*(reference(params, row) for row in np.asarray(tokens)), strict=True)
    np.testing.assert_allclose(MODEL.apply(params, tokens), logits, atol=1e-5)
    found = MODEL.apply(params, tokens, method=MODEL.attention)
    np.testing.assert_allclose(found, attention, atol=1e-6)


def test_all_parameters_start_as_in_torch():
    wide = softmax_pooling.SoftmaxPooling(vocabulary=50, num_tokens=60, width=100, mlp_width=400)
    params = wide.init(jax.random.key(0), jnp.zeros((1, 60), int))["params"]
    for name in ("embedding", "positions"):
        assert abs(np.std(params[name]) - 1) < 0.05
    for leaf, fan_in in (
        (params["value"], 100),
        (params["hidden"]["kernel"], 100),
        (params["hidden"]["bias"], 100),
        (params["output"]["kernel"], 400),
        (params["output"]["bias"], 400),
    ):
        bound = fan_in**-0.5
        assert np.abs(leaf).max() <= bound
        assert abs(np.std(leaf) / bound * 3**0.5 - 1) < 0.15


def test_no_position_counts_beyond_its_attention():
    """With a query of zeros attention is uniform, and without positions order does not matter."""
    tokens = jnp.array([[0, 1, 2, 1, 0], [1, 0, 0, 2, 1]])
    params = MODEL.init(jax.random.key(3), tokens)["params"]
    params = {"params": {**params, "query": jnp.zeros(4), "positions": jnp.zeros((5, 4))}}
    np.testing.assert_allclose(MODEL.apply(params, tokens, method=MODEL.attention), 0.2, rtol=1e-6)
    same, shuffled = MODEL.apply(params, tokens)
    np.testing.assert_allclose(same, shuffled, atol=1e-5)
