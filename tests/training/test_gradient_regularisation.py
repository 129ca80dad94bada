"""Gradient regularisation against the gradient of its penalty; flooding by its definition."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics.training import gradient_regularisation, step

penalty_direction = gradient_regularisation.penalty_direction
pytestmark = pytest.mark.usefixtures("x64")


def loss(params):
    return jnp.sum(jnp.sin(params["a"]) * params["b"] ** 2) + jnp.sum(params["a"] ** 4)


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=3)) for name in "ab"}


def penalty(params):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jax.grad(loss)(params))) / 2


# Compiled once, not at every example.
gradient = jax.jit(jax.grad(loss))
penalty_gradient = jax.jit(jax.grad(penalty))
limit = jax.jit(lambda params: penalty_direction(loss, params, finite_step=0.0))
quotient = jax.jit(lambda params, size: penalty_direction(loss, params, finite_step=size))


@hypothesis.given(st.integers(0, 2**16))
def test_the_limit_is_the_gradient_of_the_penalty(seed):
    params = draw(seed)
    expected = penalty_gradient(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), limit(params), expected)
    for finite_step in (1e-6, -1e-6):
        near = quotient(params, finite_step)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2),
                     near, expected)  # fmt: skip


def test_regularised_step_is_descent_on_the_penalised_loss():
    params, optimiser = draw(0), optax.sgd(0.01, momentum=0.9)
    whole = lambda params: loss(params) + 0.3 * penalty(params)
    ours = gradient_regularisation.regularised_step(loss, optimiser, strength=0.3, finite_step=0.0)
    plain = step.optax_step(whole, optimiser)
    states = [step.initial_state(params, optimiser)] * 2
    for _ in range(3):
        states = [ours(states[0]), plain(states[1])]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), *states)


@pytest.mark.parametrize("finite_step", [0.05, -0.05])
def test_traced_and_given_steps_agree(finite_step):
    params = draw(1)
    given = penalty_direction(loss, params, finite_step=finite_step)
    traced = quotient(params, finite_step)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), given, traced)


@hypothesis.given(st.integers(0, 2**16), st.sampled_from([-1.0, 0.0, 1.0]))
def test_flooding_turns_the_gradient_below_its_level(seed, offset):
    params = draw(seed)
    level = loss(params) + offset
    flooded = gradient_regularisation.flooded(loss, level)
    expected = float(abs(loss(params) - level) + level)
    assert float(flooded(params)) == pytest.approx(expected, rel=1e-12)
    sign = -1.0 if offset > 0 else 1.0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, sign * b, rtol=1e-12),
                 jax.grad(flooded)(params), gradient(params))  # fmt: skip


def test_ascent_and_descent_are_one_step_along_the_quotient():
    params, rate = draw(2), 1e-2
    up = jax.tree.map(lambda w, g: w + rate * g, params, gradient(params))
    down = jax.tree.map(lambda w, g: w - rate * g, up, gradient(up))
    direction = quotient(params, rate)
    expected = jax.tree.map(lambda w, d: w - rate**2 * d, params, direction)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), down, expected)
