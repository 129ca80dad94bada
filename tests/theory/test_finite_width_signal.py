"""Moments of finite random networks against closed forms, quadrature and sampled networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from dynamics.theory import finite_width_signal as theory


@pytest.mark.parametrize("width", [1, 3, 32, 500])
def test_second_moments(width):
    assert abs(theory.gain_moment(width, 0) - 1) < 1e-12
    assert abs(theory.gain_moment(width, 1) - 1) < 1e-12
    np.testing.assert_allclose(theory.gain_moment(width, 2), 1 + 5 / width, rtol=1e-12)
    np.testing.assert_allclose(theory.gain_moment(width, 2, "linear"), 1 + 2 / width, rtol=1e-12)


def test_higher_moments_by_expansion_over_units():
    """E[(Σ y)³] of independent y = 2 relu(u)², E y = 1, E y² = 6, E y³ = 60; over n³."""
    n = 7
    expected = (n * 60 + 3 * n * (n - 1) * 6 + n * (n - 1) * (n - 2)) / n**3
    np.testing.assert_allclose(theory.gain_moment(n, 3), expected, rtol=1e-12)


def test_log_gain_of_few_units_by_quadrature():
    """Two linear units: half a χ² with 2 degrees of freedom, an exponential law."""
    density = scipy.stats.chi2(2).pdf
    moment = lambda power: scipy.integrate.quad(
        lambda x: np.log(x / 2) ** power * density(x), 0, 100, limit=500
    )[0]
    found = theory.log_gain(2, "linear")
    np.testing.assert_allclose(found.mean, moment(1), atol=1e-6)
    np.testing.assert_allclose(found.variance, moment(2) - moment(1) ** 2, atol=1e-5)


def test_log_gain_of_relu_by_sampling():
    u = np.random.default_rng(5).normal(size=(200_000, 6))
    gain = 2 * np.mean(np.maximum(u, 0) ** 2, axis=1)
    logs = np.log(gain[gain > 0])
    found = theory.log_gain(6)
    assert abs(found.mean - logs.mean()) < 5 * logs.std() / np.sqrt(logs.size)
    np.testing.assert_allclose(found.variance, logs.var(), rtol=0.03)


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_moment_ratio_and_its_error_in_sampled_networks(key, activation):
    """200 experiments of 500 networks each: mean and spread of the measured ratio."""
    width, num_hidden, repeats, networks = 24, 2, 200, 500
    function = {"relu": jax.nn.relu, "linear": lambda u: u}[activation]

    def outputs(key):
        keys = jax.random.split(key, num_hidden + 1)
        z = jax.random.normal(keys[0], (width,))
        for layer_key in keys[1:]:
            z = jax.random.normal(layer_key, (width, width)) @ function(z) / width**0.5
        return jnp.mean(z**4), jnp.mean(z**2)

    fourth, second = jax.lax.map(
        lambda keys: jax.vmap(outputs)(keys), jax.random.split(key, (repeats, networks))
    )
    ratio = np.asarray(fourth.mean(axis=1) / (3 * second.mean(axis=1) ** 2))
    error = theory.moment_ratio_error(width, num_hidden, networks, activation)
    relative = ratio / theory.output_moment_ratio(width, num_hidden, activation) - 1
    # a ratio of means of `networks` samples has a bias of the order of its squared error
    assert abs(relative.mean()) < 5 * error / repeats**0.5 + 2 * error**2
    np.testing.assert_allclose(relative.std(), error, rtol=0.25)


@pytest.mark.usefixtures("x64")
def test_first_order_is_exact_for_relu_and_linear():
    """G's mean is kept, and its variance begins as 5 l / n or 2 l / n."""
    for activation, weight, excess in ((jax.nn.relu, 2.0, 5), (lambda u: u, 1.0, 2)):
        found = theory.finite_width_variance(
            activation, 1.5, 10, width=1000, weight_variance=weight
        )
        np.testing.assert_allclose(found.mean, 1.5, rtol=1e-10)
        expected = excess * np.arange(11) / 1000 * 1.5**2
        np.testing.assert_allclose(found.variance, expected, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_tanh_ends_at_the_fixed_point_of_the_first_order():
    found = theory.finite_width_variance(jnp.tanh, 1.0, 3000, width=100)
    assert abs((found.mean - found.infinite)[-1] * 600 + 1) < 0.02
    assert abs(found.variance[-1] * 600 * 3000 - 1) < 0.02


@pytest.mark.usefixtures("x64")
def test_one_hidden_layer_of_tanh_by_sampling(key):
    """G_1 = Σ tanh(z)² / n over a million draws of z: mean K_1, variance by the formula, exact."""
    squares = jnp.tanh(jax.random.normal(key, (1_000_000,))) ** 2
    found = theory.finite_width_variance(jnp.tanh, 1.0, 1, width=10)
    assert abs(found.mean[1] - squares.mean()) < 5 * squares.std() / 1000
    np.testing.assert_allclose(found.variance[1], squares.var() / 10, rtol=0.01)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: theory.gain_moment(0, 2), "width"),
        (lambda: theory.gain_moment(3, -1), "order"),
        (lambda: theory.log_gain(3, "tanh"), "activation"),
        (lambda: theory.output_moment_ratio(3, -1), "num_hidden"),
        (lambda: theory.moment_ratio_error(3, 1, 0), "num_networks"),
        (lambda: theory.finite_width_variance(jnp.tanh, 1.0, 1, width=0), "width"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
