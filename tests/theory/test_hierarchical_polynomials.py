"""Functions of a quadratic form: against characteristic functions, Monte Carlo and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.preprocessing

from dynamics.theory import hierarchical_polynomials

pytestmark = pytest.mark.usefixtures("x64")


def form(dim, seed=0):
    """B with eigenvalues of one modulus along random axes."""
    rotation = scipy.stats.special_ortho_group.rvs(dim, random_state=seed)
    signs = np.repeat([1.0, -1.0], dim // 2)
    return rotation * signs @ rotation.T / (2 * dim) ** 0.5


@pytest.mark.parametrize("dim", [4, 16, 30])
@pytest.mark.parametrize("a", [0.5, 1.5])
def test_a_sine_by_its_characteristic_function(dim, a):
    """E exp(isp) = (1 + 2s²/d)^(-d/4): c is its derivative at a, Var h its value at 2a."""
    parts = hierarchical_polynomials.degree_two(lambda p: jnp.sin(a * p), dim=dim)
    slope = a * (1 + 2 * a**2 / dim) ** (-dim / 4 - 1)
    variance = (1 - (1 + 8 * a**2 / dim) ** (-dim / 4)) / 2
    np.testing.assert_allclose(parts.signal, slope**2, rtol=1e-10)
    np.testing.assert_allclose(parts.variance, variance, rtol=1e-10)
    np.testing.assert_allclose(parts.floor, 1 - slope**2 / variance, rtol=1e-10)
    np.testing.assert_allclose(parts.radial, 0, atol=1e-20)


def fits(link, matrix, num_samples, repeats, seed):
    """Least squares by numpy, again and again: coefficients (repeats, D) without the constant's."""
    x = np.random.default_rng(seed).normal(size=(repeats * num_samples, len(matrix)))
    labels = link(np.einsum("ni,ij,nj->n", x, matrix, x))
    inputs = np.asarray(hierarchical_polynomials.features(jnp.asarray(x)))
    pairs = zip(np.split(inputs, repeats), np.split(labels, repeats), strict=True)
    return np.stack([np.linalg.solve(f.T @ f, f.T @ y) for f, y in pairs])[:, 1:]


def axis(matrix):
    return np.asarray(hierarchical_polynomials.coefficients(jnp.asarray(matrix)))[1:]


@pytest.mark.parametrize("link", [np.sin, np.cos, lambda p: p + np.cos(2 * p)])
def test_the_noise_by_least_squares_on_many_samples(link):
    """Squared distance to the limit of the coefficients, without that along p."""
    dim, num_samples, repeats = 4, 2000, 200
    parts = hierarchical_polynomials.degree_two(link, dim=dim)
    matrix = form(dim)
    along_form, along_radius = axis(matrix), axis(np.eye(dim) / (2 * dim) ** 0.5)
    found = fits(link, matrix, num_samples, repeats, seed=0)
    found = found - np.outer(found @ along_form, along_form)
    sign = np.sign(np.mean(found @ along_radius))  # the square does not tell it
    distances = num_samples * np.sum((found - sign * parts.radial**0.5 * along_radius) ** 2, axis=1)
    error = np.std(distances) / repeats**0.5
    assert abs(distances.mean() - parts.noise) < 4 * error + 0.02 * parts.noise
    assert error < 0.06 * parts.noise


def test_the_overlap_of_least_squares_in_many_samples():
    link, matrix, num_samples = lambda p: np.sin(1.5 * p), form(6), 1500
    parts = hierarchical_polynomials.degree_two(link, dim=6)
    found = fits(link, matrix, num_samples, repeats=100, seed=1)
    overlap = (found @ axis(matrix)) ** 2 / np.sum(found**2, axis=1)
    predicted = hierarchical_polynomials.recovered_overlap(parts, num_samples)
    assert abs((1 - overlap.mean()) / (1 - float(predicted)) - 1) < 0.1


def test_noise_of_constant_variance_would_be_less():
    parts = hierarchical_polynomials.degree_two(lambda p: np.sin(1.5 * p), dim=16)
    constant = (16 + 16 * 17 / 2 - 1) * parts.floor * parts.variance
    assert parts.noise / constant == pytest.approx(1.49, abs=0.01)


def test_features_are_orthonormal_and_span_degree_two(key):
    """Gauss-Hermite in each of three coordinates is exact for these degrees."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    x = np.stack(np.meshgrid(nodes, nodes, nodes), axis=-1).reshape(-1, 3)
    mass = np.prod(np.stack(np.meshgrid(weights, weights, weights), axis=-1), axis=-1).ravel()
    found = np.asarray(hierarchical_polynomials.features(x))
    gram = found.T * (mass / mass.sum()) @ found
    np.testing.assert_allclose(gram, np.eye(10), atol=1e-12)
    monomials = sklearn.preprocessing.PolynomialFeatures(2).fit_transform(x)
    assert np.linalg.matrix_rank(np.hstack([found, monomials])) == 10


def test_coefficients_give_the_form(key):
    matrix_key, x_key = jax.random.split(key)
    matrix = jax.random.normal(matrix_key, (5, 5))
    matrix, x = matrix + matrix.T, jax.random.normal(x_key, (20, 5))
    found = hierarchical_polynomials.features(x) @ hierarchical_polynomials.coefficients(matrix)
    np.testing.assert_allclose(found, jnp.einsum("ni,ij,nj->n", x, matrix, x), rtol=1e-10)


@pytest.mark.parametrize("dim", [0, 3])
def test_dimensions_without_two_halves_are_refused(dim):
    with pytest.raises(ValueError, match=f"dim={dim}: give an even number"):
        hierarchical_polynomials.degree_two(np.sin, dim=dim)
