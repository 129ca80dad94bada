"""Two moments of the weights against networks that are trained unit by unit."""

from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.theory import lazy_rich

SCALE, CURVATURE, RATE = 4.0, 0.25, 2 / 4.0**2


class Task(NamedTuple):
    teacher: jax.Array  # (D,)
    inputs: jax.Array  # (P, D)
    targets: jax.Array  # (P,)
    weights: jax.Array  # (N, D)


def make_task(key, *, num_units, input_dim=16, num_samples=80):
    teacher_key, input_key, weight_key = jax.random.split(key, 3)
    teacher = jax.random.normal(teacher_key, (input_dim,))
    inputs = jax.random.normal(input_key, (num_samples, input_dim)) / jnp.sqrt(input_dim)
    weights = jax.random.normal(weight_key, (num_units, input_dim))
    return Task(teacher, inputs, (inputs @ teacher) ** 2 / 2, weights)


def network(weights, inputs, cubic=0.0):
    """(α/N) Σ φ(w·x), unit by unit."""
    h = inputs @ weights.T
    return SCALE * jnp.mean(h + CURVATURE * h**2 / 2 + cubic * h**3 / 6, axis=1)


def train_network(task, num_steps, cubic=0.0):
    """Plain gradient descent on the weights by automatic differentiation: (steps, N, D)."""
    before = network(task.weights, task.inputs, cubic)

    def loss(weights):
        error = network(weights, task.inputs, cubic) - before - task.targets
        return 0.5 * jnp.mean(error**2)

    def step(weights, _):
        return weights - RATE * len(weights) * jax.grad(loss)(weights), weights

    return jax.lax.scan(step, task.weights, length=num_steps)[1]


def recursion(task, num_steps):
    """The moments (steps, ...) of the same training, without any weight."""
    start = lazy_rich.weight_moments(task.weights)

    def step(moments, _):
        f = lazy_rich.predictor(moments, start, output_scale=SCALE, curvature=CURVATURE)
        error = lazy_rich.evaluate(f, task.inputs) - task.targets
        residual = lazy_rich.Quadratic(
            jnp.mean(error[:, None] * task.inputs, axis=0),
            jnp.einsum("p,pi,pj->ij", error, task.inputs, task.inputs) / len(error),
        )
        after = lazy_rich.descend(
            moments, residual, learning_rate=RATE, output_scale=SCALE, curvature=CURVATURE
        )
        return after, moments

    return jax.lax.scan(step, start, length=num_steps)[1]


def deviation(trajectory, moments):
    """Largest deviation of the network's moments from the recursion's, over the steps (T,)."""
    mean = trajectory.mean(axis=1)
    second = jnp.einsum("tni,tnj->tij", trajectory, trajectory) / trajectory.shape[1]
    apart = jnp.abs(second - moments.second).max(axis=(1, 2))
    return np.maximum(jnp.abs(mean - moments.mean).max(axis=1), apart)


@pytest.mark.usefixtures("x64")
class TestDescend:
    @pytest.mark.parametrize("num_units", [3, 50])
    def test_follows_a_network_exactly(self, key, num_units):
        task = make_task(key, num_units=num_units)
        trajectory = train_network(task, 400)
        assert np.abs(trajectory[-1] - trajectory[0]).max() > 0.1  # it moved
        assert deviation(trajectory, recursion(task, 400)).max() < 1e-10

    def test_does_not_follow_a_cubic_network(self, key):
        task = make_task(key, num_units=50)
        trajectory = train_network(task, 100, cubic=CURVATURE)
        assert deviation(trajectory, recursion(task, 100)).max() > 1e-2

    def test_is_one_step_of_a_single_unit(self, key):
        """One unit: the second moment is the outer product of the mean, before and after."""
        task = make_task(key, num_units=1)
        moments = recursion(task, 50)
        outer = jnp.einsum("ti,tj->tij", moments.mean, moments.mean)
        np.testing.assert_allclose(moments.second, outer, atol=1e-12)


@pytest.mark.usefixtures("x64")
class TestPredictor:
    def test_is_the_trained_network(self, key):
        task = make_task(key, num_units=20)
        weights = train_network(task, 200)[-1]
        fresh = jax.random.normal(jax.random.key(7), (30, 16))
        f = lazy_rich.predictor(
            lazy_rich.weight_moments(weights),
            lazy_rich.weight_moments(task.weights),
            output_scale=SCALE,
            curvature=CURVATURE,
        )
        expected = network(weights, fresh) - network(task.weights, fresh)
        np.testing.assert_allclose(lazy_rich.evaluate(f, fresh), expected, rtol=1e-10)


class TestStart:
    def test_is_the_limit_of_wide_networks(self, key):
        moments = lazy_rich.weight_moments(jax.random.normal(key, (200_000, 3)))
        limit = lazy_rich.infinite_width_start(3)
        np.testing.assert_allclose(moments.mean, limit.mean, atol=5 / 200_000**0.5)
        np.testing.assert_allclose(moments.second, limit.second, atol=5 * (2 / 200_000) ** 0.5)

    def test_refuses_no_inputs(self):
        with pytest.raises(ValueError, match="input_dim=0"):
            lazy_rich.infinite_width_start(0)

    def test_refuses_a_single_weight_vector(self):
        with pytest.raises(ValueError, match="weights"):
            lazy_rich.weight_moments(jnp.ones(3))


def random_quadratic(key, input_dim):
    linear_key, matrix_key = jax.random.split(key)
    matrix = jax.random.normal(matrix_key, (input_dim, input_dim))
    return lazy_rich.Quadratic(jax.random.normal(linear_key, (input_dim,)), (matrix + matrix.T) / 2)


@pytest.mark.usefixtures("x64")
class TestPopulationLoss:
    def test_is_the_mean_over_sampled_inputs(self, key):
        """Half a million inputs, five standard errors; errors have heavy tails."""
        function_key, teacher_key, input_key = jax.random.split(key, 3)
        f = random_quadratic(function_key, 6)
        teacher = jax.random.normal(teacher_key, (6,))
        inputs = jax.random.normal(input_key, (500_000, 6)) / jnp.sqrt(6)
        errors = (lazy_rich.evaluate(f, inputs) - (inputs @ teacher) ** 2 / 2) ** 2
        standard_error = errors.std() / len(errors) ** 0.5
        exact = lazy_rich.population_loss(f, teacher)
        assert standard_error < 0.01 * exact
        assert abs(errors.mean() - exact) < 5 * standard_error

    def test_is_exact_by_quadrature(self, key):
        """Gauss-Hermite nodes integrate the quartic exactly, in two dimensions."""
        f = random_quadratic(key, 2)
        teacher = jnp.array([0.3, -1.2])
        nodes, weights = np.polynomial.hermite_e.hermegauss(4)
        inputs = jnp.array([(a, b) for a in nodes for b in nodes]) / jnp.sqrt(2)
        measure = np.outer(weights, weights).ravel() / weights.sum() ** 2
        errors = (lazy_rich.evaluate(f, inputs) - (inputs @ teacher) ** 2 / 2) ** 2
        np.testing.assert_allclose(
            lazy_rich.population_loss(f, teacher), measure @ errors, rtol=1e-12
        )

    def test_vanishes_at_the_teacher(self):
        teacher = jnp.array([1.0, 2.0, -1.0])
        f = lazy_rich.Quadratic(jnp.zeros(3), jnp.outer(teacher, teacher) / 2)
        assert lazy_rich.population_loss(f, teacher) == 0


@pytest.mark.usefixtures("x64")
class TestPack:
    @hypothesis.given(st.integers(0, 2**31 - 1))
    def test_keeps_inner_products_and_comes_back(self, seed):
        with jax.enable_x64(True):
            one, two = (random_quadratic(k, 4) for k in jax.random.split(jax.random.key(seed)))
            inner = one.linear @ two.linear + jnp.sum(one.matrix * two.matrix)
            np.testing.assert_allclose(lazy_rich.pack(one) @ lazy_rich.pack(two), inner, rtol=1e-9)
            back = lazy_rich.unpack(lazy_rich.pack(one), 4)
            np.testing.assert_allclose(back.matrix, one.matrix, rtol=1e-12)
            np.testing.assert_array_equal(back.linear, one.linear)

    def test_is_linear_regression_on_features(self, key):
        f = random_quadratic(key, 5)
        inputs = jax.random.normal(key, (7, 5))
        squares = inputs[:, :, None] * inputs[:, None, :]
        features = lazy_rich.pack(lazy_rich.Quadratic(inputs, squares))
        np.testing.assert_allclose(
            features @ lazy_rich.pack(f), lazy_rich.evaluate(f, inputs), rtol=1e-10
        )

    def test_refuses_another_length(self):
        with pytest.raises(ValueError, match="give 5"):
            lazy_rich.unpack(jnp.zeros(4), 2)


@pytest.mark.parametrize("num_samples", [1, 7, 80])
def test_sample_against_the_errors_one_by_one(key, x64, num_samples):
    task_key, function_key = jax.random.split(key)
    task = make_task(task_key, num_units=5)
    form = jax.random.normal(function_key, (17, 16))
    function = lazy_rich.Quadratic(form[0], form[1:] + form[1:].T)
    sample = lazy_rich.summarise(task.teacher, task.inputs, num_samples)
    inputs = task.inputs[:num_samples]
    error = lazy_rich.evaluate(function, inputs) - task.targets[:num_samples]
    found = lazy_rich.residual(function, sample)
    by_hand = jnp.einsum("p,pi,pj->ij", error, inputs, inputs) / num_samples
    np.testing.assert_allclose(lazy_rich.training_loss(function, sample), jnp.mean(error**2))
    np.testing.assert_allclose(found.linear, error @ inputs / num_samples, rtol=1e-9)
    np.testing.assert_allclose(found.matrix, by_hand, rtol=1e-9, atol=1e-12)


def test_samples_beyond_the_number_count_for_nothing(key, x64):
    task = make_task(key, num_units=5)
    spoilt = task.inputs.at[30:].set(1e3)
    right, wrong = (lazy_rich.summarise(task.teacher, x, 30) for x in (task.inputs, spoilt))
    jax.tree.map(np.testing.assert_array_equal, right, wrong)
