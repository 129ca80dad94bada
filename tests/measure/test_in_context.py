"""The parts work on a network that they were not made with: a trained layer, end to end."""

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.data import in_context as prompts
from dynamics.measure import in_context
from dynamics.models import linear_attention
from dynamics.theory import in_context_regression


def test_a_constructed_layer_is_known_by_all_of_its_measures():
    """One descent step from zero: its errors, its induced weights and its iterate are known."""
    num_context, dim, rate = 8, 3, 0.5
    made = prompts.linear_regression(jax.random.key(0), 200, num_context, dim)
    weights = in_context.gradient_descent_construction(
        dim, num_context=num_context, learning_rate=rate
    )

    def apply_fn(weights, tokens):
        e = linear_attention.linear_self_attention(weights, tokens, num_context=num_context)
        return -e[:, -1, -1]

    tokens = made.tokens()
    found = in_context.induced_weights(apply_fn, weights, tokens, key=jax.random.key(1))
    step = rate / num_context * jnp.einsum("bnd,bn->bd", made.inputs, made.targets)
    np.testing.assert_allclose(found.weights, step, atol=1e-4)
    x = jnp.concatenate([made.inputs, made.query[:, None]], axis=1)
    y = jnp.concatenate([made.targets, made.answer[:, None]], axis=1)
    steps = jnp.array([0, 1, 2, 5])
    descent = lambda x, y: in_context_regression.gradient_descent_predictions(
        x, y, steps, rate / num_context
    )[:, -1]
    errors = jax.vmap(descent, out_axes=1)(x, y) - made.answer  # (4, B)
    own = apply_fn(weights, tokens) - made.answer
    matched = in_context.match_iterates(own[None, None], errors[:, None])
    assert matched.iterate[0] == 1
    np.testing.assert_allclose(matched.best, 1, atol=1e-5)
