"""The perceptron and its bounds against recursions written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from dynamics.theory import batch_perceptron

path_of = jax.jit(batch_perceptron.path, static_argnums=1)  # one compilation for all examples
expansion_of = jax.jit(batch_perceptron.expansion)


def separable(seed, num_samples=12, dim=4):
    generator = np.random.default_rng(seed)
    x, w = generator.normal(size=(num_samples, dim)), generator.normal(size=dim)
    return np.sign(x @ w)[:, None] * x + 0.05 * w / np.linalg.norm(w)


def iterates(rows, slope, num_steps):
    found = [np.zeros(rows.shape[1])]
    for _ in range(num_steps):
        found.append(found[-1] + slope(rows @ found[-1]) @ rows / len(rows))
    return np.array(found)


def steps(rows, slope, normalised=False):
    """Return how many updates it takes until all rows are right."""
    theta, count = np.zeros(rows.shape[1]), 0
    while np.any(rows @ theta <= 1e-12):  # a tie is not right
        weights = slope(rows @ theta)
        theta = theta + weights @ rows / (weights.sum() if normalised else len(rows))
        count += 1
    return count


@given(seed=st.integers(0, 10_000))
def test_path_starts_with_half_the_mean_and_then_adds_the_wrong_rows(seed):
    rows = separable(seed)
    expected = [np.zeros(4), rows.mean(axis=0) / 2]
    for _ in range(8):
        wrong = rows[rows @ expected[-1] <= 0]
        expected.append(expected[-1] + wrong.sum(axis=0) / len(rows))
    with jax.enable_x64(True):
        found = np.asarray(path_of(jnp.asarray(rows), 9))
        at = int(batch_perceptron.separation_step(jnp.asarray(rows), jnp.asarray(found)))
    np.testing.assert_allclose(found, expected, atol=1e-14)
    right = [np.all(rows @ u > 0) for u in expected]
    assert at == (right.index(True) if any(right) else len(right))


@given(seed=st.integers(0, 10_000), decades=st.floats(-1, 5))
def test_expansion_holds_for_every_step_size(seed, decades):
    rows, gamma = separable(seed), 10**decades
    with jax.enable_x64(True):
        path = path_of(jnp.asarray(rows), 9)
        found = jax.tree.map(np.asarray, expansion_of(jnp.asarray(rows), path, gamma))
    difference = iterates(rows, lambda a: special.expit(-gamma * a), 9) - np.asarray(path)
    rounding = 1e-15 * (1 + 10 * gamma * np.asarray(found.distance))
    distance = np.linalg.norm(difference, axis=1)
    left = np.linalg.norm(difference - found.leading, axis=1)
    assert np.all(distance <= found.distance + rounding)
    assert np.all(left <= found.remainder + rounding)
    assert np.all(np.isfinite(found.remainder))


def test_expansion_is_sharp_where_the_step_is_large():
    rows = separable(3)
    with jax.enable_x64(True):
        path = path_of(jnp.asarray(rows), 9)
        margin = np.abs(rows @ np.asarray(path)[1:].T).min()
        found = jax.tree.map(np.asarray, expansion_of(jnp.asarray(rows), path, 20 / margin))
    assert 0 < found.remainder[-1] < 1e-2 * np.linalg.norm(found.leading[-1])


@pytest.mark.parametrize("num_samples", [5, 10, 16, 26, 36, 107])
def test_lone_row_of_the_perceptron_with_and_without_ties(num_samples):
    """0.3 N + 0.2 is whole for N = 16, 26 and 36."""
    rows = batch_perceptron.two_clusters(num_samples)
    expected = steps(rows, lambda a: np.heaviside(-np.round(a, 12), 0.5))
    found = batch_perceptron.lone_row_steps(rows, np.inf)
    assert found.least == found.most == expected == (3 * num_samples + 2) // 10 + 1


@given(seed=st.integers(0, 10_000), decades=st.floats(1.7, 5))
def test_descent_is_between_the_bounds_on_moved_clusters(seed, decades):
    rows = batch_perceptron.two_clusters(60)
    rows = rows + 0.01 * np.random.default_rng(seed).normal(size=rows.shape)
    found = batch_perceptron.lone_row_steps(rows, 10**decades)
    taken = steps(rows, lambda a: 10**decades * special.expit(-(10**decades) * a))
    assert found.least <= taken <= found.most
    assert found.most - found.least <= 2 + 0.8 * 60 / 10**decades


@pytest.mark.parametrize("num_samples", [100, 3000])
def test_normalised_descent_is_within_its_range_and_two_steps_for_large_rates(num_samples):
    rows = batch_perceptron.two_clusters(num_samples)
    low, high = batch_perceptron.normalised_steps(num_samples, 0.05)
    theta, count = np.zeros(2), 0
    while np.any(rows @ theta <= 0):
        weights = special.expit(-(rows @ theta))
        theta, count = theta + 0.05 * weights @ rows / weights.sum(), count + 1
    assert low < count < high + 1
    large = 1.01 * np.log(6 * num_samples) / (1.25 - 2 / num_samples)
    slope = lambda a: special.expit(-large * a)  # of θ / γ
    assert steps(rows, slope, normalised=True) == 2


def test_wrong_arguments_are_named():
    rows = jnp.ones((3, 2))
    with pytest.raises(ValueError, match="rows"):
        batch_perceptron.path(jnp.ones(3), 2)
    with pytest.raises(ValueError, match="num_steps"):
        batch_perceptron.path(rows, 0)
    with pytest.raises(ValueError, match="path"):
        batch_perceptron.expansion(rows, jnp.ones((4, 3)), 1.0)
    with pytest.raises(ValueError, match="num_samples"):
        batch_perceptron.two_clusters(1)
    with pytest.raises(ValueError, match="right after one step"):
        batch_perceptron.lone_row_steps(np.ones((3, 2)), 1.0)
