"""The flow of the two-layer linear model, against an integrator and the data's own loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from hypothesis import given
from hypothesis import strategies as st

from dynamics.data import opposing_signals as data
from dynamics.theory import opposing_signals as theory


def draw(seed, outlier, dim=3):
    rng = np.random.default_rng(seed)
    state = theory.State(rng.normal(), rng.normal(size=dim), outlier)
    return state, rng.normal(size=dim)


def velocity(y, beta, alpha):
    b, outlier, c = y[:-2], y[-2], y[-1]
    error = c * b - beta
    return np.concatenate(
        [-c * error, [-alpha * c**2 * outlier, -error @ b - alpha * c * outlier**2]]
    )


def integrate(state, beta, alpha, times):
    start = np.concatenate([state.signal, [state.outlier, state.read_out]])
    found = scipy.integrate.solve_ivp(
        lambda _, y: velocity(y, beta, alpha), (0, times[-1]), start, t_eval=times,
        method="DOP853", rtol=1e-11, atol=1e-13,
    ).y.T  # fmt: skip
    return theory.State(found[:, -1], found[:, :-2], found[:, -2])


@given(st.integers(0, 1000), st.floats(1, 10))
def test_flow_without_outlier(seed, alpha):
    state, beta = draw(seed, 1e-7)
    times = np.linspace(0, 2, 7)
    expected = integrate(state, beta, alpha, times)
    found = theory.flow(state, beta, alpha, times)
    np.testing.assert_allclose(found.read_out, expected.read_out, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(found.signal, expected.signal, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(found.outlier, expected.outlier, rtol=1e-6, atol=1e-12)


@given(st.floats(0.05, 1), st.floats(0.5, 8), st.floats(0, 3))
def test_balanced_flow_is_logistic(c, norm, time):
    state = theory.State(c, np.array([0.6, 0.8]) * c, 0.0)
    found = theory.flow(state, np.array([0.6, 0.8]) * norm, 10.0, [time]).read_out ** 2
    logistic = norm / (1 + (norm / c**2 - 1) * np.exp(-2 * norm * time))
    np.testing.assert_allclose(found, logistic, rtol=1e-9)


@given(st.integers(0, 1000), st.floats(0.1, 1))
def test_what_is_kept_and_where_it_ends(seed, outlier):
    """With an outlier's weight of any size; c starts away from the saddle."""
    state, beta = draw(seed, outlier)
    state = state._replace(read_out=1.0 + abs(state.read_out) + outlier)
    alpha, times = 10.0, np.linspace(0, 20 / np.linalg.norm(beta), 9)
    found = integrate(state, beta, alpha, times)
    q = theory.conserved(state)
    np.testing.assert_allclose(theory.conserved(found), q, atol=1e-8)
    end = theory.final_sharpness(q, np.linalg.norm(beta), alpha)
    np.testing.assert_allclose(alpha * found.read_out[-1] ** 2, end, rtol=1e-5)


def test_hessian_and_data():
    """The loss of the samples has the Hessian of the closed form; labels do not enter it."""
    alpha, label = 7.3, 0.4
    with jax.enable_x64(True):
        beta = np.array([0.7, -1.1, 0.3])
        samples = data.opposing_groups(jnp.asarray(beta), alpha, label)

        def loss(y):
            return 0.5 * jnp.mean((y[-1] * samples.inputs @ y[:-1] - samples.targets) ** 2)

        derivatives = jax.jit(lambda y: (jax.hessian(loss)(y), jax.grad(loss)(y)))
        for seed in range(5):
            state = draw(seed, 0.4)[0]
            y = np.concatenate([state.signal, [state.outlier, state.read_out]])
            found, slope = derivatives(y)
            np.testing.assert_allclose(found, theory.hessian(state, beta, alpha), atol=1e-10)
            np.testing.assert_allclose(slope, -velocity(y, beta, alpha), atol=1e-10)


def test_groups_that_agree():
    samples = data.opposing_groups(jnp.array([1.0, 2.0]), 10.0, label=0.5, agreement=1.0)
    np.testing.assert_allclose(samples.targets, samples.inputs @ samples.teacher, rtol=1e-6)


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.1, 2))
def test_antiphase(u, after, label):
    plus, minus = ((after - s * label) ** 2 - (u - s * label) ** 2 for s in (1, -1))
    if abs(plus * minus) > 1e-9:
        assert (plus * minus < 0) == (abs(u + after) < theory.antiphase_bound(label))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.flow(theory.State(1.0, np.ones(2), 0.0), [1.0], 1.0, [0.0]), "teacher"),
        (lambda: theory.flow(theory.State(1.0, np.ones(1), 0.0), [1.0], 1.0, [-1.0]), "times"),
        (lambda: theory.hessian(theory.State(1.0, np.ones(2), 0.0), [1.0], 1.0), "teacher"),
        (lambda: theory.final_sharpness(0.0, 0.0, 1.0), "signal_norm=0.0"),
        (lambda: theory.antiphase_bound(0.0), "label=0.0"),
        (lambda: data.opposing_groups(jnp.ones((2, 2)), 1.0), "signal"),
        (lambda: data.opposing_groups(jnp.ones(2), 0.0), "outlier_variance=0.0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
