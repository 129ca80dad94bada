"""Closed forms against neural-tangents, Gauss-Hermite quadrature and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from dynamics.theory import dual_activations, infinite_width

VARIANCES = (1.3, 0.4)
COVARIANCES = (-0.7, -0.2, 0.0, 0.35, 0.7)


def quadrature(function, covariance, variance1, variance2, order=120):
    """E[function(u, v)] by a grid of Gauss-Hermite nodes; function must be smooth."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    root = np.linalg.cholesky([[variance1, covariance], [covariance, variance2]])
    u, v = root @ np.stack([a.ravel() for a in np.meshgrid(nodes, nodes, indexing="ij")])
    return np.sum(function(u, v) * np.outer(weights, weights).ravel()) / weights.sum() ** 2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_erf_dual_is_the_expectation(covariance):
    derivative = lambda u: 2 / np.sqrt(np.pi) * np.exp(-(u**2))
    erf = scipy.special.erf
    dual = dual_activations.erf_dual(covariance, *VARIANCES)
    value = quadrature(lambda u, v: erf(u) * erf(v), covariance, *VARIANCES)
    slope = quadrature(lambda u, v: derivative(u) * derivative(v), covariance, *VARIANCES)
    np.testing.assert_allclose(dual, (value, slope), atol=1e-9)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_relu_dual_is_the_expectation(covariance):
    """The mean of 400 000 draws, within four of its standard errors."""
    matrix = [[VARIANCES[0], covariance], [covariance, VARIANCES[1]]]
    u, v = np.random.default_rng(7).multivariate_normal([0, 0], matrix, 400_000).T
    dual = dual_activations.relu_dual(covariance, *VARIANCES)
    for found, draws in zip(
        dual, (np.maximum(u, 0) * np.maximum(v, 0), (u > 0) * (v > 0) * 1.0), strict=True
    ):
        assert abs(float(found) - draws.mean()) < 4 * draws.std() / np.sqrt(draws.size)


@pytest.mark.usefixtures("x64")
def test_quadrature_of_any_activation():
    """Against the arcsine of erf, and for sine the characteristic function of u - v and u + v."""
    covariance = jnp.array([COVARIANCES, COVARIANCES])
    a, b = VARIANCES
    found = dual_activations.dual_activation(jax.scipy.special.erf, covariance, a, b)
    expected = dual_activations.erf_dual(covariance, a, b)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    found = dual_activations.dual_activation(jnp.sin, covariance, a, b)
    damping = np.exp(-(a + b) / 2)
    np.testing.assert_allclose(found.value, damping * np.sinh(covariance), atol=1e-13)
    np.testing.assert_allclose(found.derivative, damping * np.cosh(covariance), atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_quadrature_of_a_kink_and_at_the_edges():
    found = dual_activations.dual_activation(jax.nn.relu, jnp.array(COVARIANCES), *VARIANCES)
    expected = dual_activations.relu_dual(jnp.array(COVARIANCES), *VARIANCES)
    np.testing.assert_allclose(found.value, expected.value, atol=0.01)
    np.testing.assert_allclose(found.derivative, expected.derivative, atol=0.01)
    edges = dual_activations.dual_activation(
        jnp.cos, jnp.array([0.7, -0.7, 0.0, 0.0]), jnp.array([0.7, 0.7, 0.0, 0.7]),
        jnp.array([0.7, 0.7, 0.7, 0.0]),
    )  # fmt: skip
    square, mean = (1 + np.exp(-1.4)) / 2, np.exp(-0.35)
    np.testing.assert_allclose(edges.value, [square, square, mean, mean], atol=1e-12)


def test_quadrature_in_single_precision():
    arguments = [np.float32(c) for c in (0.3, *VARIANCES)]
    found = dual_activations.dual_activation(jnp.tanh, *arguments)
    with jax.enable_x64(True):
        double = dual_activations.dual_activation(jnp.tanh, *map(float, arguments))
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found, double, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_the_derivative_dual_is_the_derivative_of_the_value():
    for dual in dual_activations.DUALS.values():
        for covariance in COVARIANCES:
            slope = jax.grad(lambda c, dual=dual: dual(c, *VARIANCES).value)(covariance)
            np.testing.assert_allclose(dual(covariance, *VARIANCES).derivative, slope, rtol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("activation", ["relu", "erf"])
@pytest.mark.parametrize("depth", [0, 1, 4])
def test_recursion_is_that_of_neural_tangents(key, activation, depth):
    x1, x2 = jax.random.normal(key, (7, 5)), jax.random.normal(jax.random.fold_in(key, 1), (4, 5))
    options = dict(weight_std=1.4, bias_std=0.3)
    reference = infinite_width.fully_connected(depth, activation, **options)
    for second, tolerance in ((x2, 1e-10), (None, 1e-7)):
        found = dual_activations.fully_connected_kernels(
            x1, second, activation=activation, depth=depth, **options
        )
        expected = infinite_width.kernels(reference, x1, second)
        np.testing.assert_allclose(found.nngp, expected.nngp, rtol=0, atol=tolerance)
        np.testing.assert_allclose(found.ntk, expected.ntk, rtol=0, atol=tolerance)


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_single_precision(key, activation):
    x = jax.random.normal(key, (6, 5))
    options = dict(activation=activation, depth=3, weight_std=1.4, bias_std=0.1)
    single = dual_activations.fully_connected_kernels(x, **options)
    with jax.enable_x64(True):
        double = dual_activations.fully_connected_kernels(jnp.asarray(x, jnp.float64), **options)
    np.testing.assert_allclose(single.ntk, double.ntk, rtol=1e-5)
    assert single.ntk.dtype == jnp.float32


@pytest.mark.usefixtures("x64")
def test_known_diagonals():
    """He initialisation keeps the variance; the tangent kernel then grows by it at each layer."""
    x = jnp.array([[3.0, 4.0]])
    kernels = dual_activations.fully_connected_kernels(
        x, activation="relu", depth=5, weight_std=2**0.5
    )
    np.testing.assert_allclose(kernels.nngp, 25.0, rtol=1e-12)  # 2 |x|^2 / 2 at every layer
    np.testing.assert_allclose(kernels.ntk, 6 * 25.0, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(activation="gelu"), "activation"),
        (dict(depth=-1), "depth"),
        (dict(weight_std=0.0), "weight_std"),
        (dict(bias_std=-1.0), "bias_std"),
        (dict(x2=jnp.ones((2, 3))), "x2"),
        (dict(x1=jnp.ones(4)), "x1"),
    ],
)
def test_bad_arguments_are_named(change, named):
    arguments = dict(x1=jnp.ones((2, 4)), activation="relu", depth=1) | change
    with pytest.raises(ValueError, match=named):
        dual_activations.fully_connected_kernels(**arguments)


def test_bad_degree_is_named():
    with pytest.raises(ValueError, match="degree=2"):
        dual_activations.arc_cosine(0.0, 1.0, 1.0, degree=2)


def test_bad_order_is_named():
    with pytest.raises(ValueError, match="order=0"):
        dual_activations.dual_activation(jnp.tanh, 0.0, 1.0, 1.0, order=0)
