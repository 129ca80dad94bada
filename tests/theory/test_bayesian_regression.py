"""Sequential answers against the batch formulas, brute-force integrals and laws, in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from dynamics.theory import bayesian_regression as bayes

PRIORS = st.builds(
    bayes.NormalInverseGamma, st.floats(1.1, 9), st.floats(0.01, 9), st.floats(0.01, 9)
)


def prompt(seed, num_examples=6, dim=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_examples, dim)), 2 * rng.normal(size=num_examples)


def answers(inputs, targets, prior):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, bayes.posterior_predictive(inputs, targets, prior))


@given(st.integers(0, 2**31), PRIORS)
def test_one_example_at_a_time_is_all_at_once(seed, prior):
    inputs, targets = prompt(seed)
    found = answers(inputs, targets, prior)
    for i, query in enumerate(inputs):
        x, y = inputs[:i], targets[:i]
        matrix = prior.precision * np.eye(3) + x.T @ x
        weights = np.linalg.solve(matrix, x.T @ y)
        scale = prior.scale + (y @ y - weights @ matrix @ weights) / 2
        spread = 1 + query @ np.linalg.solve(matrix, query)
        variance = scale / (prior.shape + i / 2 - 1) * spread
        np.testing.assert_allclose(found.mean[i], weights @ query, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.variance[i], variance, rtol=1e-8)


@pytest.mark.parametrize(
    "prior", [bayes.NormalInverseGamma(), bayes.NormalInverseGamma(2.5, 0.7, 3.0)]
)
def test_one_weight_by_brute_force(prior):
    """Every weight and every variance on a grid, weighed by prior and likelihood."""
    inputs, targets = prompt(5, num_examples=4, dim=1)
    weights = np.linspace(-30, 30, 1201)[:, None]
    log_variance = np.linspace(-9, 14, 161)
    variance = np.exp(log_variance)
    log_density = (
        scipy.stats.invgamma.logpdf(variance, prior.shape, scale=prior.scale)
        + log_variance  # dσ² = σ² dlog σ²
        + scipy.stats.norm.logpdf(weights, 0, np.sqrt(variance / prior.precision))
    )
    found = answers(inputs, targets, prior)
    for i, (x, y) in enumerate(zip(inputs[:, 0], targets, strict=True)):
        density = np.exp(log_density - log_density.max())
        mean = (density * weights * x).sum() / density.sum()
        square = (density * ((weights * x) ** 2 + variance)).sum() / density.sum()
        np.testing.assert_allclose(found.mean[i], mean, atol=1e-5)
        np.testing.assert_allclose(found.variance[i], square - mean**2, rtol=2e-4)
        log_density += scipy.stats.norm.logpdf(y, weights * x, np.sqrt(variance))


@given(st.integers(0, 2**31), PRIORS)
def test_the_first_answer_is_the_priors(seed, prior):
    inputs, targets = prompt(seed)
    first = jax.tree.map(lambda leaf: leaf[0], answers(inputs, targets, prior))
    expected = bayes.prior_predictive(inputs[0], prior)
    np.testing.assert_allclose(first, expected, rtol=1e-6)


@given(st.floats(-3, 3), st.floats(0.1, 5), st.floats(-3, 3), st.floats(0.1, 5))
def test_excess_risk_is_the_difference_of_two_integrals(mean, variance, best_mean, best_variance):
    width = math.sqrt(best_variance / 2)
    density = lambda y: math.exp(-abs(y - best_mean) / width) / (2 * width)  # not a Gaussian

    def risk(m, s2):
        cost = lambda y: math.log(s2) / 2 + (y - m) ** 2 / (2 * s2)
        half = lambda a, b: scipy.integrate.quad(lambda y: density(y) * cost(y), a, b)[0]
        return half(-np.inf, best_mean) + half(best_mean, np.inf)

    with jax.enable_x64(True):
        best = bayes.Predictive(best_mean, best_variance)
        found = float(bayes.excess_risk(bayes.Predictive(mean, variance), best))
    expected = risk(mean, variance) - risk(best_mean, best_variance)
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-6)
    assert found >= 0


def test_tasks_of_the_prior_score_best_with_its_answers(key):
    """Calibration: squared errors over variances average to one, at every position."""
    prior = bayes.NormalInverseGamma(shape=4.0)
    gamma_key, weight_key, input_key, noise_key = jax.random.split(key, 4)
    noise = jnp.sqrt(prior.scale / jax.random.gamma(gamma_key, prior.shape, (4000, 1)))
    inputs = jax.random.normal(input_key, (4000, 4, 2))
    weights = jax.random.normal(weight_key, (4000, 2))
    targets = jnp.einsum("bnd,bd->bn", inputs, weights) + jax.random.normal(noise_key, (4000, 4))
    known = jax.jit(jax.vmap(lambda x, y: bayes.posterior_predictive(x, y, prior)))(
        inputs, noise * targets
    )
    ratio = np.asarray((noise * targets - known.mean) ** 2 / known.variance)
    np.testing.assert_array_less(abs(ratio.mean(0) - 1), 5 * ratio.std(0) / len(ratio) ** 0.5)


@pytest.mark.parametrize(
    ("prior", "match"),
    [((1.0, 2.0, 1.0), "shape=1.0"), ((3.0, 0.0, 1.0), "scale=0"), ((3, 2, -1.0), "precision=-1")],
)
def test_a_prior_without_a_variance_is_refused(prior, match):
    for call in (
        lambda prior: bayes.prior_predictive(jnp.ones((2, 1)), prior),
        lambda prior: bayes.posterior_predictive(jnp.ones((2, 1)), jnp.ones(2), prior),
    ):
        with pytest.raises(ValueError, match=match):
            call(bayes.NormalInverseGamma(*prior))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"targets has shape .* as in inputs"):
        bayes.posterior_predictive(jnp.ones((4, 2)), jnp.ones(3), bayes.NormalInverseGamma())
