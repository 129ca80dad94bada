import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.training import step, trajectory

QUADRATIC = jnp.array([1.0, 4.0])


def quadratic(params):
    return (QUADRATIC * params**2).sum() / 2


@given(rate=st.floats(0.01, 0.3), count=st.integers(1, 6))
def test_gradient_descent_on_a_quadratic_is_a_geometric_series(rate, count):
    optimiser = optax.sgd(rate)
    update = step.optax_step(quadratic, optimiser)
    state = step.initial_state(jnp.ones(2), optimiser)
    for _ in range(count):
        state = update(state)
    expected = (1 - rate * np.array([1.0, 4.0])) ** count
    np.testing.assert_allclose(state.params, expected, rtol=1e-5, atol=1e-6)
    assert state.step == count


def test_momentum_is_the_heavy_ball():
    rate, momentum = 0.1, 0.9
    optimiser = optax.sgd(rate, momentum=momentum)
    update = step.optax_step(lambda x: x**2 / 2, optimiser)
    state = step.initial_state(jnp.array(1.0), optimiser)
    position, velocity = 1.0, 0.0
    for _ in range(20):
        state = update(state)
        velocity = momentum * velocity + position
        position = position - rate * velocity
    np.testing.assert_allclose(state.params, position, rtol=1e-5)


def test_an_optimiser_with_a_line_search_gets_what_it_needs():
    optimiser = optax.lbfgs()
    update = jax.jit(step.optax_step(quadratic, optimiser))
    state = step.initial_state(jnp.array([3.0, -2.0]), optimiser)
    for _ in range(8):
        state = update(state)
    np.testing.assert_allclose(state.params, 0, atol=1e-4)


def linear_loss(weights, batch):
    inputs, targets = batch
    return ((inputs @ weights - targets) ** 2).mean() / 2


@pytest.fixture
def regression(key):
    inputs_key, targets_key = jax.random.split(key)
    return jax.random.normal(inputs_key, (12, 3)), jax.random.normal(targets_key, (12,))


def test_a_batch_of_everything_is_full_batch_training(regression, key):
    optimiser = optax.adam(0.1)
    full = step.optax_step(lambda weights: linear_loss(weights, regression), optimiser)
    batched = step.minibatch_step(linear_loss, optimiser, regression, 12)
    states = [
        trajectory.record_with_state(update, state, lambda state: 0, times=[5])[1]
        for update, state in (
            (full, step.initial_state(jnp.ones(3), optimiser)),
            (batched, step.initial_minibatch_state(jnp.ones(3), optimiser, key)),
        )
    ]
    np.testing.assert_allclose(states[0].params, states[1].params, rtol=1e-4)


def test_batches_hold_each_sample_once_and_all_samples_equally_often(key):
    optimiser = optax.sgd(1.0)
    data = jnp.eye(6)  # sample i moves parameter i
    update = step.minibatch_step(lambda params, batch: (batch @ params).sum(), optimiser, data, 2)
    state = step.initial_minibatch_state(jnp.zeros(6), optimiser, key)
    visited = trajectory.record(update, state, lambda state: -state.params, times=range(601))
    batches = np.diff(visited, axis=0)  # (600, 6)
    np.testing.assert_array_equal(batches.sum(axis=1), 2)
    assert batches.max() == 1
    # Binomial (600, 1/3) for each sample: 4.5 standard deviations.
    assert np.abs(visited[-1] - 200).max() < 4.5 * np.sqrt(600 / 3 * 2 / 3)
    # Six samples make 15 pairs, and consecutive steps are not the same batch over and over.
    assert len(np.unique(batches, axis=0)) == 15


def test_batches_depend_on_key_and_step_only(regression, key):
    optimiser = optax.sgd(0.1)
    update = step.minibatch_step(linear_loss, optimiser, regression, 4)
    start = step.initial_minibatch_state(jnp.ones(3), optimiser, key)
    straight = trajectory.record_with_state(update, start, lambda state: 0, times=[7])[1]
    half = trajectory.record_with_state(update, start, lambda state: 0, times=[3])[1]
    joined = trajectory.record_with_state(update, half, lambda state: 0, times=[4])[1]
    np.testing.assert_array_equal(straight.params, joined.params)
    other = step.initial_minibatch_state(jnp.ones(3), optimiser, jax.random.key(99))
    moved = trajectory.record_with_state(update, other, lambda state: 0, times=[7])[1]
    assert np.abs(moved.params - straight.params).max() > 1e-4


@pytest.mark.parametrize("batch_size", [0, 13])
def test_batch_sizes_out_of_range_are_refused(regression, batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size}"):
        step.minibatch_step(linear_loss, optax.sgd(0.1), regression, batch_size)


def test_wrong_data_and_parameters_are_refused(regression):
    with pytest.raises(ValueError, match="data"):
        step.minibatch_step(linear_loss, optax.sgd(0.1), (regression[0], jnp.ones(5)), 2)
    with pytest.raises(TypeError, match=r"\['weights'\]"):
        step.initial_state({"weights": jnp.arange(3)}, optax.sgd(0.1))


def test_with_replacement_samples_repeat(key):
    """The rows of a batch are 0, 1, ... marked by the gradient: drawn one by one, some repeat."""
    data, optimiser = jnp.eye(50), optax.sgd(1.0)
    loss = lambda params, batch: (batch @ params).sum()
    state = step.initial_minibatch_state(jnp.zeros(50), optimiser, key)
    without = step.minibatch_step(loss, optimiser, data, 50)(state).params
    repeated = step.minibatch_step(loss, optimiser, data, 50, with_replacement=True)(state).params
    np.testing.assert_array_equal(without, -np.ones(50))
    assert repeated.sum() == -50
    # 50 (1 - 1/50)^50 = 18.2 of the samples are missed, with a standard deviation of 2.1.
    assert 8 <= (repeated == 0).sum() <= 29
