"""Diagonal linear networks: closed forms against automatic derivatives and trained weights."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.measure import curvature
from dynamics.models import diagonal_linear
from dynamics.theory import diagonal_linear as closed_form
from dynamics.training import gradient_regularisation

pytestmark = pytest.mark.usefixtures("x64")


def draw(seed, num_samples=4, dim=3):
    rng = np.random.default_rng(seed)
    inputs, targets = rng.normal(size=(num_samples, dim)), rng.normal(size=num_samples)
    weights = diagonal_linear.DiagonalWeights(*map(jnp.asarray, rng.normal(size=(2, dim))))
    return inputs, targets, weights


@jax.jit  # once, not at every example
def dense_hessian(weights, data):
    loss = lambda flat: diagonal_linear.squared_loss(
        diagonal_linear.DiagonalWeights(flat[:3], flat[3:]), data
    )
    return jax.hessian(loss)(jnp.concatenate(weights))


@jax.jit
def regularised_gradient(weights, data, strength, finite_step):
    """Return ∇L, and ∇L plus the penalty's direction."""
    loss = lambda weights: diagonal_linear.squared_loss(weights, data)
    slope = jax.grad(loss)(weights)
    penalty = gradient_regularisation.penalty_direction(loss, weights, finite_step=finite_step)
    return slope, jax.tree.map(lambda g, h: g + strength * h, slope, penalty)


SEEDS = st.integers(0, 2**16)


@hypothesis.given(SEEDS)
def test_products_are_differences_of_squares(seed):
    first, second = np.random.default_rng(seed).normal(size=(2, 5))
    weights = diagonal_linear.from_factors(jnp.asarray(first), jnp.asarray(second))
    np.testing.assert_allclose(diagonal_linear.coefficients(weights), first * second, atol=1e-14)


@hypothesis.given(SEEDS)
def test_trace_is_that_of_the_hessian_everywhere(seed):
    inputs, targets, weights = draw(seed)
    expected = float(jnp.trace(dense_hessian(weights, (inputs, targets))))
    assert closed_form.hessian_trace(*weights, inputs) == pytest.approx(expected, rel=1e-12)


def test_hutchinson_agrees():
    inputs, targets, weights = draw(1)
    loss = lambda weights: diagonal_linear.squared_loss(weights, (jnp.asarray(inputs), targets))
    found = curvature.hessian_trace(loss, weights, key=jax.random.key(0), num_probes=200)
    gap = abs(found.mean - closed_form.hessian_trace(*weights, inputs))
    assert gap < 5 * found.standard_error


def test_hessian_of_a_perfect_fit():
    inputs, _, weights = draw(2)
    data = jnp.asarray(inputs), jnp.asarray(inputs) @ diagonal_linear.coefficients(weights)
    gradients = closed_form.output_gradients(*weights, inputs)
    dense = dense_hessian(weights, data)
    np.testing.assert_allclose(gradients.T @ gradients / len(gradients), dense, atol=1e-12)


def test_signs_make_gradients_of_one_length():
    _, _, weights = draw(3)
    signs = np.sign(np.random.default_rng(0).normal(size=(6, 3)))
    squares = (closed_form.output_gradients(*weights, signs) ** 2).sum(axis=1)
    np.testing.assert_allclose(squares, closed_form.hessian_trace(*weights, signs), rtol=1e-12)


@hypothesis.given(SEEDS, st.floats(0.001, 0.1), st.floats(0, 0.5),
                  st.sampled_from([-0.1, 1e-3, 0.2]))  # fmt: skip
def test_factor_of_one_step(seed, rate, strength, finite_step):
    """One regularised step on the weights, by automatic gradients."""
    inputs, targets, weights = draw(seed)
    slope, whole = regularised_gradient(weights, (inputs, targets), strength, finite_step)
    after = jax.tree.map(lambda w, g: w - rate * g, weights, whole)
    moved = jax.tree.map(lambda w, g: w + finite_step * g, weights, slope)
    to_coefficients = lambda w: inputs.T @ (inputs @ diagonal_linear.coefficients(w) - targets) / 4
    factor = closed_form.product_factor(
        to_coefficients(weights), to_coefficients(moved), learning_rate=rate, strength=strength,
        finite_step=finite_step,
    )  # fmt: skip
    product = weights.positive * weights.negative
    np.testing.assert_allclose(after.positive * after.negative, factor * product, atol=1e-11)


@pytest.mark.parametrize("finite_step", [0.0, 0.1])
def test_flow_against_small_steps_on_the_weights(finite_step):
    inputs, targets, _ = draw(4)
    data = jnp.asarray(inputs), jnp.asarray(targets)
    loss = lambda weights: diagonal_linear.squared_loss(weights, data)
    start = diagonal_linear.initial_weights(0.4, 3)

    def train(num_steps):
        rate = 2.0 / num_steps

        def update(_, weights):
            slope = jax.grad(loss)(weights)
            penalty = gradient_regularisation.penalty_direction(
                loss, weights, finite_step=finite_step
            )
            return jax.tree.map(lambda w, g, h: w - rate * (g + 0.2 * h), weights, slope, penalty)

        end = jax.lax.fori_loop(0, num_steps, update, start)
        return np.stack([diagonal_linear.coefficients(end), jnp.log(end.positive * end.negative)])

    expected = 2 * train(4000) - train(2000)
    found = closed_form.regularised_flow(
        inputs[None], targets[None], scale=0.4, strength=0.2, finite_step=finite_step, horizon=2.0
    )
    np.testing.assert_allclose(np.stack([found.coefficients[0], found.log_scale[0]]), expected,
                               atol=2e-5)  # fmt: skip
    ratio = np.arcsinh(found.coefficients[0] / (2 * np.exp(found.log_scale[0])))
    np.testing.assert_allclose(ratio, inputs.T @ found.dual[0], atol=1e-9)
    assert closed_form.outside_row_space(ratio, inputs) < 1e-9


def test_refusals():
    with pytest.raises(ValueError, match="targets"):
        closed_form.regularised_flow(np.ones((1, 2, 3)), np.ones((1, 3)), scale=1.0, strength=0.0,
                                     finite_step=0.0, horizon=1.0)  # fmt: skip
    with pytest.raises(ValueError, match="input_dim=0"):
        diagonal_linear.initial_weights(1.0, 0)
