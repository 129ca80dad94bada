"""Products of ReLUs against the sum of ReLUs written out, and their errors against the bounds."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.theory import relu_products

PIECES = st.sampled_from([2, 8, 64])


@given(pieces=PIECES, bound=st.floats(0.5, 4), seed=st.integers(0, 1000))
def test_it_is_a_sum_of_relus(pieces, bound, seed):
    z = np.random.default_rng(seed).uniform(-3 * bound, 3 * bound, 50)
    width = 4 * bound / pieces
    nodes = -2 * bound + width * np.arange(pieces + 1)
    slope = (nodes[1] ** 2 - nodes[0] ** 2) / width
    expected = nodes[0] ** 2 + slope * (z - nodes[0])
    for node in nodes[1:-1]:
        expected += 2 * width * np.maximum(z - node, 0)
    found = relu_products.interpolated_square(jnp.asarray(z), pieces, bound)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * bound**2)
    inside = np.abs(z) <= 2 * bound
    by_numpy = np.interp(z[inside], nodes, nodes**2)
    np.testing.assert_allclose(found[inside], by_numpy, rtol=1e-4, atol=1e-4 * bound**2)


@pytest.mark.parametrize("pieces", [8, 32])
def test_errors_are_within_the_bound_reach_it_and_have_the_rms(pieces):
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, 200_000))
    error = np.asarray(relu_products.relu_product(jnp.asarray(x), jnp.asarray(y), pieces, 1.0)) - (
        x * y
    )
    largest = relu_products.largest_product_error(pieces, 1.0)
    assert 0.95 * largest < np.abs(error).max() < largest * (1 + 1e-3)
    rms = np.sqrt(np.mean(error**2)) / largest
    assert abs(rms / relu_products.RMS_OF_LARGEST - 1) < 0.02


def test_a_matrix_product_and_its_symmetries():
    a, b = (jnp.asarray(m) for m in np.random.default_rng(0).uniform(-1, 1, (2, 5, 5)))
    found = relu_products.relu_matmul(a, b, 64, 1.0)
    assert np.abs(found - a @ b).max() <= 5 * relu_products.largest_product_error(64, 1.0) + 1e-5
    other = relu_products.relu_matmul(b.T, a.T, 64, 1.0).T  # products commute here too
    np.testing.assert_allclose(found, other, atol=1e-5)


def test_errors_add_up_as_in_the_recursion():
    distance = 0.0
    for step in range(1, 6):
        distance = (1 + 0.1 * 2.0) * distance + 0.1 * 0.3
        np.testing.assert_allclose(
            relu_products.growth_of_errors(0.3, 2.0, 0.1, step), distance, rtol=1e-12
        )


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="as in a"):
        relu_products.relu_matmul(jnp.ones((2, 3)), jnp.ones((2, 3)), 8, 1.0)
    with pytest.raises(ValueError, match="learning_rate=0"):
        relu_products.growth_of_errors(0.1, 1.0, 0, 3)
