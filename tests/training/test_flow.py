import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from dynamics.training import flow

TIMES = [0.0, 0.3, 1.0, 4.0]


@pytest.fixture
def matrix(key):
    factor = jax.random.normal(key, (3, 3))
    return factor @ factor.T + 0.1 * jnp.eye(3)


@pytest.mark.parametrize("solver", [None, diffrax.Dopri8(), diffrax.Kvaerno5()])
def test_a_quadratic_follows_the_matrix_exponential(x64, key, matrix, solver):
    matrix = jnp.asarray(matrix, float)
    start = jnp.array([1.0, -2.0, 0.5])
    solution = flow.gradient_flow(
        lambda params: params @ matrix @ params / 2, start, TIMES, solver=solver
    )
    expected = [scipy.linalg.expm(-np.asarray(matrix) * time) @ start for time in TIMES]
    np.testing.assert_allclose(solution, expected, atol=1e-6)


def test_float32_reaches_its_own_precision(matrix):
    start = jnp.array([1.0, -2.0, 0.5])
    solution = flow.gradient_flow(lambda params: params @ matrix @ params / 2, start, [5.0, 50.0])
    reference = [
        scipy.linalg.expm(-np.asarray(matrix, np.float64) * time) @ start for time in (5.0, 50.0)
    ]
    assert solution.dtype == jnp.float32
    np.testing.assert_allclose(solution, reference, atol=1e-5)


def small_network_loss(key):
    inputs_key, targets_key = jax.random.split(key)
    inputs = jax.random.normal(inputs_key, (10, 2))
    targets = jax.random.normal(targets_key, (10,))

    def loss(params):
        outputs = jnp.tanh(inputs @ params["first"]) @ params["second"]
        return ((outputs - targets) ** 2).mean() / 2

    return loss


@pytest.fixture
def start(key):
    first_key, second_key = jax.random.split(jax.random.fold_in(key, 1))
    return {
        "first": jax.random.normal(first_key, (2, 5)),
        "second": jax.random.normal(second_key, (5,)),
    }


def test_gradient_descent_with_tiny_steps_agrees_to_first_order(x64, key, start):
    loss = small_network_loss(key)
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), start)
    exact = flow.gradient_flow(loss, start, [1.0])
    gradient = jax.grad(loss)

    def descended(num_steps):
        descend = lambda _, p: jax.tree.map(lambda x, g: x - g / num_steps, p, gradient(p))
        return jax.lax.fori_loop(0, num_steps, descend, start)

    coarse, fine = (
        max(
            float(jnp.abs(a - b[0]).max())
            for a, b in zip(jax.tree.leaves(descended(n)), jax.tree.leaves(exact), strict=True)
        )
        for n in (500, 1000)
    )
    assert fine < 2e-3
    # Euler's error is of first order: half the step, half the distance.
    np.testing.assert_allclose(coarse / fine, 2.0, rtol=0.02)


def test_the_loss_only_goes_down_and_measure_saves_it(x64, key, start):
    loss = small_network_loss(key)
    times = np.linspace(0, 10, 30)
    losses = jax.jit(lambda start: flow.gradient_flow(loss, start, times, measure=loss))(start)
    assert losses.shape == (30,)
    assert np.all(np.diff(losses) < 0)
    params = flow.gradient_flow(loss, start, times)
    np.testing.assert_allclose(losses, jax.vmap(loss)(params), rtol=1e-5)


def test_vmap_is_a_loop_over_members(x64, matrix):
    loss = lambda params: params @ jnp.asarray(matrix, float) @ params / 2
    starts = jnp.eye(3)
    solve = jax.jit(lambda start: flow.gradient_flow(loss, start, TIMES))
    together = jax.vmap(solve)(starts)
    np.testing.assert_allclose(together, jnp.stack([solve(x) for x in starts]), atol=1e-6)


def test_a_diverging_flow_is_nan_from_where_it_was_lost(x64):
    """dx/dt = x^2 from 1 is 1 / (1 - t): gone at t = 1."""
    run = lambda start: flow.gradient_flow(
        lambda params: -(params**3) / 3, start, [0.0, 0.5, 0.9, 2.0], max_steps=2000
    )
    for solve in (run, jax.jit(run)):
        solution = solve(jnp.array(1.0))
        np.testing.assert_allclose(solution[:3], [1, 2, 10], rtol=1e-4)
        assert np.isnan(solution[3])
    beside_a_tame_one = jax.vmap(run)(jnp.array([1.0, -1.0]))
    np.testing.assert_allclose(
        beside_a_tame_one[1], [1 / -1, -1 / 1.5, -1 / 1.9, -1 / 3], rtol=1e-4
    )


def test_too_few_steps_are_seen():
    solution = flow.gradient_flow(
        lambda params: 1e4 * params**2, jnp.array(1.0), [0.0, 1.0], max_steps=10
    )
    np.testing.assert_array_equal(np.isnan(solution), [False, True])


def test_implicit_steps_do_not_feel_the_sharpness(x64):
    stiffness = jnp.array([1e6, 1.0])
    loss = lambda params: (stiffness * params**2).sum() / 2
    solution = flow.gradient_flow(
        loss, jnp.ones(2), [1.0], solver=diffrax.Kvaerno5(), max_steps=200
    )
    np.testing.assert_allclose(solution[0], [0.0, np.exp(-1)], atol=1e-5)
    explicit = flow.gradient_flow(loss, jnp.ones(2), [1.0], max_steps=200)
    assert np.isnan(explicit).all()


def test_integer_measurements_become_floating():
    counts = flow.gradient_flow(
        lambda p: p**2 / 2, jnp.array(1.0), [0.0, 2.0], measure=lambda p: (p > 0.5).astype(int)
    )
    np.testing.assert_array_equal(counts, [1.0, 0.0])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (dict(times=[]), "times"),
        (dict(times=[1.0, 1.0]), "times"),
        (dict(times=[-1.0, 1.0]), "times"),
        (dict(times=[0.0, np.inf]), "times"),
        (dict(rtol=0.0), "rtol=0.0"),
        (dict(atol=-1.0), "atol=-1.0"),
        (dict(max_steps=0), "max_steps=0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, word):
    with pytest.raises(ValueError, match=word):
        flow.gradient_flow(lambda p: p**2, jnp.array(1.0), **({"times": [1.0]} | arguments))


def test_parameters_must_be_floating():
    with pytest.raises(TypeError, match="floating"):
        flow.gradient_flow(lambda p: p**2, jnp.array(1), [1.0])
