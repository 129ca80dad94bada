"""Attention that computes S^-1 x against the iteration written out and its own Gram form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.models import inverse_covariance_attention as attention


def test_layers_are_steps_of_the_iteration(x64):
    rng = np.random.default_rng(0)
    inputs, queries = rng.normal(size=(3, 7, 2)), rng.normal(size=(3, 4, 2))
    found = attention.descent_layers(jnp.asarray(inputs), jnp.asarray(queries), 0.3, 5)
    moment = np.einsum("bnd,bne->bde", inputs, inputs) / 7
    values, vectors = np.linalg.eigh(moment)
    for k, layer in enumerate(found, 1):
        applied = (vectors * ((1 - (1 - 0.3 * values) ** k) / values)[:, None]) @ vectors.swapaxes(
            1, 2
        )
        np.testing.assert_allclose(layer, queries @ applied, atol=1e-12)


def test_the_label_slot_is_linear_in_the_query_with_the_implicit_weights(x64):
    rng = np.random.default_rng(1)
    inputs, tasks = rng.normal(size=(3, 7, 2)), rng.normal(size=(3, 2))
    query = rng.normal(size=(3, 2))
    stack = attention.StackWeights(*jnp.asarray(0.3 * rng.normal(size=(2, 3, 5, 5))))
    labels = np.einsum("bnd,bd->bn", inputs, tasks)
    tokens = attention.query_tokens(stack, *map(jnp.asarray, (inputs, labels, query)))
    assert tokens.shape == (4, 3, 5)
    moment = np.einsum("bnd,bne->deb", inputs, inputs) / 7
    weights = jax.jit(attention.implicit_weights)(stack, moment, tasks.T)
    np.testing.assert_allclose(tokens[-1, :, -1], np.sum(weights.T * query, axis=1), atol=1e-12)
    # One layer that writes y x from (y, x), read with the query: one step of descent, by hand.
    writer, reader = np.zeros((2, 1, 5, 5))
    writer[0, 4, 4] = 0.7
    reader[0, :2, :2] = np.eye(2)
    one = attention.implicit_weights(attention.StackWeights(writer, reader), moment, tasks.T)
    np.testing.assert_allclose(one, 0.7 * np.einsum("deb,be->db", moment, tasks), atol=1e-12)


def test_wrong_arguments_are_named():
    ones = jnp.ones((2, 3, 4))
    with pytest.raises(ValueError, match="num_layers=0"):
        attention.descent_layers(ones, ones, 0.1, 0)
    with pytest.raises(ValueError, match="queries has shape"):
        attention.descent_layers(ones, ones[:1], 0.1, 1)
