import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.training import step, trajectory


@pytest.fixture
def compilations():
    """Counts compilations as the test goes on."""
    count = [0]

    def listen(name, *_, **__):
        count[0] += name == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield count
    jax.monitoring.unregister_event_duration_listener(listen)


def logistic(x):
    return 3.7 * x * (1 - x)


def identity(state):
    return state


@given(times=st.lists(st.integers(0, 40), min_size=4, max_size=4, unique=True).map(sorted))
def test_measurements_are_those_of_a_python_loop(times):
    states, x = [], np.float32(0.3)
    for _ in range(41):
        states.append(x)
        x = np.asarray(jax.jit(logistic)(x))
    recorded = trajectory.record(logistic, jnp.float32(0.3), identity, times=times)
    # The map is chaotic, rounding may grow 3.7 times a step: only early states are close.
    early = np.array(times) < 9
    np.testing.assert_allclose(recorded[early], np.array(states)[times][early], rtol=1e-2)


@given(times=st.lists(st.integers(0, 200), min_size=5, max_size=5, unique=True).map(sorted))
def test_counting_steps(times):
    recorded, final = trajectory.record_with_state(
        lambda state: state + 1, jnp.int32(0), lambda state: {"twice": 2 * state}, times=times
    )
    np.testing.assert_array_equal(recorded["twice"], 2 * np.array(times))
    assert final == times[-1]


def test_no_step_is_taken_before_time_zero_and_none_is_lost_when_times_start_late():
    increment = lambda state: state + 1
    np.testing.assert_array_equal(trajectory.record(increment, 0, identity, times=[0]), [0])
    np.testing.assert_array_equal(trajectory.record(increment, 0, identity, times=[5, 7]), [5, 7])


@pytest.mark.parametrize("times", [range(3), (0, 1, 2), np.arange(3, dtype=np.uint8)])
def test_times_of_any_integer_kind(times):
    recorded = trajectory.record(lambda state: state + 1, 0, identity, times=times)
    np.testing.assert_array_equal(recorded, [0, 1, 2])


def test_memory_goes_from_one_measurement_to_the_next():
    def measure(state, memory):
        return (state, memory), memory + state

    (states, memories), final, memory = trajectory.record_with_state(
        lambda state: state + 1, 0, measure, times=[1, 2, 5], memory=100
    )
    np.testing.assert_array_equal(states, [1, 2, 5])
    np.testing.assert_array_equal(memories, [100, 101, 103])
    assert (final, memory) == (5, 108)


def test_a_second_run_compiles_nothing(compilations):
    trajectory.record(logistic, jnp.float32(0.1), identity, times=[0, 2, 4])
    assert compilations[0] > 0
    before = compilations[0]
    trajectory.record(logistic, jnp.float32(0.2), identity, times=[1, 20, 400])
    assert compilations[0] == before


def test_compilations_do_not_grow_with_the_number_of_steps(compilations):
    counts = []
    for last in (2, 20_000):
        before = compilations[0]
        fresh = lambda x: logistic(x)
        trajectory.record(fresh, jnp.float32(0.1), identity, times=[0, 1, last])
        counts.append(compilations[0] - before)
    assert counts[0] == counts[1] == 1


def test_under_vmap_the_number_of_steps_stays_common():
    """With a condition for each member, every step would pay for a select over all states."""
    run = lambda state: trajectory.record(lambda x: x + 1, state, identity, times=[3, 9])
    program = str(jax.make_jaxpr(jax.vmap(run))(jnp.arange(4.0)))
    assert "bool[] = lt" in program  # the loop's condition: one for all
    assert "bool[4]" not in program
    np.testing.assert_array_equal(jax.vmap(run)(jnp.arange(2)), [[3, 9], [4, 10]])


def test_functions_may_close_over_what_is_transformed():
    def final(rate):
        run = lambda x: trajectory.record(lambda x: rate * x, x, identity, times=[0, 3])[-1]
        return run(1.0)

    rates = jnp.array([1.0, 2.0, 3.0])
    for transformed in (jax.vmap(final), jax.jit(jax.vmap(final)), jax.vmap(jax.jit(final))):
        np.testing.assert_allclose(transformed(rates), [1, 8, 27], rtol=1e-6)
    tangent = jax.jvp(final, (2.0,), (1.0,))[1]
    np.testing.assert_allclose(tangent, 12.0, rtol=1e-6)  # 3 rate^2


def test_times_may_be_traced():
    run = jax.jit(lambda times: trajectory.record(lambda x: x + 1, 0, identity, times=times))
    np.testing.assert_array_equal(run(jnp.array([2, 3])), [2, 3])


def test_a_callable_without_hash_is_welcome():
    class Unhashable:
        __hash__ = None

        def __call__(self, x):
            return x + 1

    np.testing.assert_array_equal(trajectory.record(Unhashable(), 0, identity, times=[4]), [4])


def test_training_goes_down_with_keys_in_the_state(key):
    inputs_key, batch_key = jax.random.split(key)
    inputs = jax.random.normal(inputs_key, (32, 4))
    data = inputs, inputs @ jnp.arange(4.0)
    loss = lambda weights, batch: ((batch[0] @ weights - batch[1]) ** 2).mean()
    optimiser = optax.sgd(0.05)
    update = step.minibatch_step(loss, optimiser, data, 8)
    state = step.initial_minibatch_state(jnp.zeros(4), optimiser, batch_key)
    losses = trajectory.record(update, state, lambda s: loss(s.params, data), times=[0, 50, 300])
    # Noiseless least squares: minibatch steps contract towards the one solution.
    assert losses[1] < 0.2 * losses[0]
    assert losses[2] < 1e-3 * losses[0]


@pytest.mark.parametrize(
    ("times", "error", "word"),
    [
        ([], ValueError, "at least one"),
        ([[0, 1]], ValueError, "one dimension"),
        ([0, 0], ValueError, "strictly increasing"),
        ([3, 1], ValueError, "strictly increasing"),
        ([-1, 1], ValueError, "from 0"),
        ([0, 2**31], ValueError, "largest"),
        (np.array([3, 1], np.uint8), ValueError, "strictly increasing"),
        ([0.0, 1.0], TypeError, "integers"),
    ],
)
def test_wrong_times_are_refused(times, error, word):
    with pytest.raises(error, match=f"(?s)times.*{word}"):
        trajectory.record(lambda x: x, 0, identity, times=times)


@pytest.mark.parametrize("name", ["step", "measure"])
def test_what_cannot_be_called_is_refused(name):
    functions = {"step": identity, "measure": identity} | {name: 3}
    with pytest.raises(TypeError, match=f"{name}=3"):
        trajectory.record(functions["step"], 0, functions["measure"], times=[0])
