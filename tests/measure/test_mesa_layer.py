"""The mesa-layer in both forms against the batch ridge solution of every prefix, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from dynamics.measure import mesa_layer

FORMS = (None, 8, 64)  # the recursion; chunks that do not divide T; one chunk beyond T
SIZES = 13, 4, 3  # T, K, V


def tokens(key, *lead):
    """Keys, values, queries, none of which is special."""
    keys, values, queries = jax.random.split(key, 3)
    length, dim, outputs = SIZES
    return tuple(
        jax.random.normal(k, (*lead, length, size))
        for k, size in ((keys, dim), (values, outputs), (queries, dim))
    )


def batch(keys, values, queries, ridge):
    """One linear solve for each token."""
    grams = jnp.cumsum(keys[:, :, None] * keys[:, None, :], axis=0) + jnp.diag(ridge)
    moments = jnp.cumsum(values[:, :, None] * keys[:, None, :], axis=0)
    solved = jnp.linalg.solve(grams, queries[..., None])[..., 0]
    return jnp.einsum("tvk,tk->tv", moments, solved)


def scalar(layer, *arguments):
    outputs = layer(*arguments)
    return jnp.sum(jnp.sin(outputs)), outputs


def outputs_and_gradients(layer, arguments):
    every = functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3), has_aux=True)
    (_, outputs), gradients = jax.jit(every(lambda *a: scalar(layer, *a)))(*arguments)
    return outputs, gradients


@functools.lru_cache
def reference():
    arguments = (*tokens(jax.random.key(0)), jnp.linspace(0.1, 1.0, SIZES[1]))
    return arguments, *outputs_and_gradients(batch, arguments)


@pytest.mark.parametrize("chunk_size", FORMS)
def test_values_and_gradients_are_those_of_the_batch_solution(chunk_size, x64):
    arguments, outputs, gradients = reference()
    layer = functools.partial(mesa_layer.mesa_layer, chunk_size=chunk_size)
    again, derived = outputs_and_gradients(layer, arguments)
    np.testing.assert_allclose(again, outputs, atol=1e-10)
    for found, expected in zip(derived, gradients, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-8)


def test_second_derivatives_of_the_chunked_form(x64):
    """Forwards over backwards along one direction, as Hessian-vector products take them."""
    (keys, *rest), *_ = reference()
    direction = jnp.cos(jnp.arange(keys.size)).reshape(keys.shape)

    def product(layer):
        gradient = jax.grad(lambda k: scalar(layer, k, *rest)[0])
        return jax.jit(lambda: jax.jvp(gradient, (keys,), (direction,))[1])()

    chunked = functools.partial(mesa_layer.mesa_layer, chunk_size=8)
    np.testing.assert_allclose(product(chunked), product(batch), atol=1e-8)


def test_batches_of_sequences_are_sequences(x64):
    keys, values, queries = tokens(jax.random.key(1), 2, 3)
    one = jax.jit(batch)(keys[1, 2], values[1, 2], queries[1, 2], jnp.full(SIZES[1], 0.5))
    for chunk_size in (None, 8):
        found = mesa_layer.mesa_layer(keys, values, queries, 0.5, chunk_size=chunk_size)
        np.testing.assert_allclose(found[1, 2], one, atol=1e-10)


@pytest.mark.parametrize("chunk_size", [None, 8])
def test_no_token_sees_a_later_one(chunk_size, x64):
    keys, values, queries = tokens(jax.random.key(2))
    layer = functools.partial(mesa_layer.mesa_layer, ridge=0.3, chunk_size=chunk_size)
    later = layer(keys.at[7:].set(7.0), values.at[7:].set(-2.0), queries)
    np.testing.assert_allclose(later[:7], layer(keys, values, queries)[:7], atol=1e-10)


def test_the_backward_pass_keeps_no_matrix_for_every_token():
    """T K² numbers would be 16 times the bound of either form."""
    length, dim = 512, 64
    spec = jax.ShapeDtypeStruct((length, dim), jnp.float32)
    for chunk_size in (None, 64):
        layer = functools.partial(mesa_layer.mesa_layer, ridge=1.0, chunk_size=chunk_size)
        gradient = jax.jit(jax.grad(lambda *a, layer=layer: scalar(layer, *a)[0]))
        memory = gradient.lower(spec, spec, spec).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 4 * length * dim**2 / 2


def test_the_inverse_of_a_triangle(x64):
    square = np.random.default_rng(0).normal(size=(2, 6, 6))
    lower = np.tril(square) + 3 * np.eye(6)
    expected = [scipy.linalg.solve_triangular(m, np.eye(6), lower=True) for m in lower]
    found = jax.jit(mesa_layer._invert_triangular)(jnp.asarray(lower))
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [None, 64])
def test_single_precision_with_a_small_ridge(chunk_size):
    """Relative error of the fast weights: eps / ridge would be 1e-4 of numbers near one."""
    keys, values, queries = tokens(jax.random.key(3))
    found = mesa_layer.mesa_layer(keys, values, queries, 1e-3, chunk_size=chunk_size)
    with jax.enable_x64(True):
        wide = [np.asarray(a, np.float64) for a in (keys, values, queries)]
        expected = np.asarray(jax.jit(batch)(*map(jnp.asarray, wide), jnp.full(SIZES[1], 1e-3)))
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_wrong_arguments_are_named():
    one, two = jnp.ones((4, 2)), jnp.ones((4, 3))
    for call, message in (
        (lambda: mesa_layer.mesa_layer(one, one, two, 1.0), "queries has shape"),
        (lambda: mesa_layer.mesa_layer(one, one[:3], one, 1.0), "values has shape"),
        (lambda: mesa_layer.mesa_layer(one[0], one, one, 1.0), "keys has shape"),
        (lambda: mesa_layer.mesa_layer(one, two, one, jnp.ones(3)), "ridge has shape"),
        (lambda: mesa_layer.mesa_layer(one, two, one, 0.0), "ridge=0.0"),
        (lambda: mesa_layer.mesa_layer(one, two, one, 1.0, chunk_size=0), "chunk_size=0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
