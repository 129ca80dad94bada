"""Hermite coefficients against closed forms and adaptive integration, and the duals they give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from dynamics.theory import dual_activations, hermite_expansion

pytestmark = pytest.mark.usefixtures("x64")
ACTIVATIONS = {
    "tanh": (jnp.tanh, np.tanh),
    "erf": (jax.scipy.special.erf, scipy.special.erf),
    "gelu": (lambda u: u * jax.scipy.stats.norm.cdf(u), lambda u: u * scipy.stats.norm.cdf(u)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("variance", [1.0, 0.3])
def test_coefficients_are_adaptive_integrals(name, variance):
    function, reference = ACTIVATIONS[name]
    found = hermite_expansion.coefficients(function, number=6, variance=variance)
    for k, coefficient in enumerate(found):
        polynomial = scipy.special.hermitenorm(k)
        integrand = lambda z, p=polynomial: (
            reference(variance**0.5 * z) * p(z) * scipy.stats.norm.pdf(z)
        )
        integral = scipy.integrate.quad(integrand, -12, 12, epsabs=1e-13, limit=200)[0]
        expected = integral / scipy.special.factorial(k) ** 0.5
        np.testing.assert_allclose(coefficient, expected, atol=1e-10)


def test_exponential_has_its_known_series():
    """exp(t z) = exp(t²/2) Σ t^k h_k(z) / sqrt(k!), the generating function."""
    t, k = 0.7, np.arange(40)
    found = hermite_expansion.coefficients(lambda z: jnp.exp(t * z), number=40)
    np.testing.assert_allclose(
        found, np.exp(t**2 / 2) * t**k / scipy.special.factorial(k) ** 0.5, atol=1e-13
    )


def test_relu_within_the_error_of_a_kink():
    """1/sqrt(2π), 1/2, 1/(2 sqrt(π)), 0: E[relu(z) h_k(z)] by hand."""
    known = [1 / np.sqrt(2 * np.pi), 0.5, 1 / (2 * np.sqrt(np.pi)), 0]
    for order in (100, 200):
        found = hermite_expansion.coefficients(jax.nn.relu, number=4, order=order)
        assert np.abs(found - jnp.array(known)).max() < 1 / order


def test_parseval():
    coefficients = hermite_expansion.coefficients(jnp.sin, number=40, variance=1.7)
    np.testing.assert_allclose(jnp.sum(coefficients**2), (1 - np.exp(-2 * 1.7)) / 2, rtol=1e-12)


def test_dual_of_erf_is_the_arcsine(key):
    variance, correlation = 0.4, jax.random.uniform(key, (5, 3), minval=-1, maxval=1)
    coefficients = hermite_expansion.coefficients(
        jax.scipy.special.erf, number=100, variance=variance
    )
    found = hermite_expansion.dual(coefficients, correlation, variance=variance)
    expected = dual_activations.erf_dual(variance * correlation, variance, variance)
    np.testing.assert_allclose(found.value, expected.value, atol=1e-12)
    np.testing.assert_allclose(found.derivative, expected.derivative, rtol=1e-10)


@pytest.mark.parametrize("bad", [dict(number=0), dict(number=300), dict(variance=0.0)])
def test_bad_arguments_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        hermite_expansion.coefficients(jnp.tanh, **{"number": 3, **bad})
