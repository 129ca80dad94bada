"""Deep linear classifiers on free features: what padding must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.models import free_features

SETTINGS = dict(weight_decay=0.3, feature_decay=0.2)


def make(key, *, num_samples=5, num_hidden=3):
    return free_features.init(
        key, num_samples=num_samples, width=4, num_classes=2, num_hidden=num_hidden, std=0.7
    )


@pytest.mark.usefixtures("x64")
class TestKernel:
    def test_is_the_product_of_the_matrices_in_use(self, key):
        params = make(key)
        first, second, _ = params.hidden
        np.testing.assert_allclose(
            free_features.kernel(params, 3), first @ second @ params.last, rtol=1e-12
        )


@pytest.mark.usefixtures("x64")
class TestRegularisedLoss:
    def test_written_out(self, key):
        params = make(key, num_hidden=1)._replace(bias=jnp.array([0.5, -1.0]))
        targets = jnp.eye(2)[jnp.array([0, 0, 1, 1, 1])]
        found = free_features.regularised_loss(
            params, targets, depth=2, num_samples=5, bias_scale=1.0, **SETTINGS
        )
        features, (hidden,), last, bias = jax.tree.map(np.asarray, params)
        error = features @ hidden @ last + bias - np.asarray(targets)
        weights = 0.3 * (np.sum(hidden**2) + np.sum(last**2)) + 0.2 * np.sum(features**2)
        np.testing.assert_allclose(found, np.sum(error**2) / 10 + weights / 2, rtol=1e-12)

    @pytest.mark.parametrize("depth", [1, 2, 3])
    def test_matrices_beyond_the_depth_do_not_matter(self, key, depth):
        params = make(key)
        targets = jnp.eye(2)[jnp.array([0, 0, 1, 1, 1])]

        def loss(params, depth):
            return free_features.regularised_loss(
                params, targets, depth=depth, num_samples=5, **SETTINGS
            )

        short = params._replace(hidden=params.hidden[: depth - 1])
        value, gradient = jax.jit(jax.value_and_grad(loss))(params, depth)
        short_value, short_gradient = jax.value_and_grad(loss)(short, depth)
        np.testing.assert_allclose(value, short_value, rtol=1e-12)
        np.testing.assert_array_equal(gradient.hidden[depth - 1 :], 0)
        np.testing.assert_allclose(
            gradient.hidden[: depth - 1], short_gradient.hidden, rtol=1e-10, atol=1e-14
        )
        np.testing.assert_allclose(gradient.features, short_gradient.features, rtol=1e-10)
        np.testing.assert_array_equal(gradient.bias, 0)

    def test_empty_rows_do_not_matter(self, key):
        params = make(key)
        targets = jnp.eye(2)[jnp.array([0, 0, 1, 1, 1])]
        padded = params._replace(features=jnp.pad(params.features, [(0, 3), (0, 0)]))

        def gradient(params, targets):
            return jax.value_and_grad(free_features.regularised_loss)(
                params, targets, depth=3, num_samples=5, **SETTINGS
            )

        value, slope = gradient(params, targets)
        padded_value, padded_slope = gradient(padded, jnp.pad(targets, [(0, 3), (0, 0)]))
        np.testing.assert_allclose(padded_value, value, rtol=1e-12)
        np.testing.assert_array_equal(padded_slope.features[5:], 0)
        np.testing.assert_allclose(padded_slope.hidden, slope.hidden, rtol=1e-10)

    def test_starts_with_the_standard_deviation_asked_for(self, key):
        params = make(key, num_samples=20_000)
        np.testing.assert_allclose(params.features.std(), 0.7, rtol=0.02)
        assert np.all(params.bias == 0)
