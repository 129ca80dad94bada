"""Factors under sampled targets: identities in steps, the Hessian's trace, and the slow drift."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.measure import curvature
from dynamics.theory import factor_balance

pytestmark = pytest.mark.usefixtures("x64")
SEEDS = st.integers(0, 2**16)


def draw(seed, vocabulary=4, hidden=3):
    rng = np.random.default_rng(seed)
    outer, inner = rng.normal(size=(vocabulary, hidden)), rng.normal(size=hidden)
    target = rng.dirichlet(np.ones(vocabulary))
    return outer, inner, target


def fitted(seed):
    outer, inner, target = draw(seed)
    missing = np.log(target) - outer @ inner
    return outer + np.outer(missing, inner) / (inner @ inner), inner, target


def cross_entropy(factors, target):
    return -target @ jax.nn.log_softmax(factors[0] @ factors[1])


@jax.jit  # once, not at every example
def dense_trace(flat, target):
    loss = lambda flat: cross_entropy((flat[:12].reshape(4, 3), flat[12:]), target)
    return jnp.trace(jax.hessian(loss)(flat))


@hypothesis.given(SEEDS)
def test_trace_is_that_of_the_hessian_everywhere(seed):
    outer, inner, target = draw(seed)
    fisher = factor_balance.covariance(jax.nn.softmax(outer @ inner))
    expected = float(dense_trace(np.concatenate([outer.ravel(), inner]), target))
    assert factor_balance.hessian_trace(outer, inner, fisher) == pytest.approx(expected, rel=1e-10)


def test_hutchinson_agrees():
    outer, inner, target = draw(1)
    fisher = factor_balance.covariance(jax.nn.softmax(outer @ inner))
    found = curvature.hessian_trace(
        lambda factors: cross_entropy(factors, target), (jnp.asarray(outer), jnp.asarray(inner)),
        key=jax.random.key(0), num_probes=200,
    )  # fmt: skip
    gap = abs(found.mean - factor_balance.hessian_trace(outer, inner, fisher))
    assert gap < 5 * found.standard_error


@hypothesis.given(SEEDS, st.floats(0.01, 1))
def test_imbalance_after_a_step(seed, rate):
    outer, inner, _ = draw(seed)
    noise = np.asarray(jax.nn.softmax(outer @ inner)) - np.eye(4)[seed % 4]
    after = outer - rate * np.outer(noise, inner), inner - rate * outer.T @ noise
    imbalance = lambda a, b: a.T @ a - np.outer(b, b)
    change = factor_balance.imbalance_change(outer, inner, noise)
    np.testing.assert_allclose(
        imbalance(*after), imbalance(outer, inner) + rate**2 * change, atol=1e-12
    )


@hypothesis.given(SEEDS)
def test_drift_stays_at_the_minimum_and_descends_on_the_trace(seed):
    outer, inner, target = fitted(seed)
    fisher = factor_balance.covariance(target)
    course = factor_balance.drift(outer, inner, fisher, [0.0, 0.1, 0.2])
    for factors in zip(*course, strict=True):
        np.testing.assert_allclose(jax.nn.softmax(factors[0] @ factors[1]), target, atol=1e-7)
    traces = factor_balance.hessian_trace(course.outer, course.inner, fisher)
    assert np.all(np.diff(traces) < 0)


def test_drift_is_what_the_mean_step_does():
    """From the minimum the imbalance changes as its identity says with E ξ ξ^T = F."""
    outer, inner, target = fitted(5)
    fisher, time = factor_balance.covariance(target), 1e-5
    course = factor_balance.drift(outer, inner, fisher, [0.0, time])
    imbalance = lambda i: course.outer[i].T @ course.outer[i] - np.outer(*[course.inner[i]] * 2)
    change = (imbalance(1) - imbalance(0)) / time
    mean = np.trace(fisher) * np.outer(inner, inner) - outer.T @ fisher @ outer
    np.testing.assert_allclose(change, mean, rtol=1e-3, atol=1e-3)


def test_balance_of_one_logit_over_all_targets():
    """The exact mean over every sequence of targets; the prediction is of first order."""
    probability, rate, num_steps = 0.3, 0.02, 12
    first, second = 2.0, np.log(0.3 / 0.7) / 2.0
    u, v, chance = np.array([first]), np.array([second]), np.array([1.0])
    means = [1.0]
    for _ in range(num_steps):
        noise = 1 / (1 + np.exp(-u * v)) - np.array([[1.0], [0.0]])
        u, v = (u - rate * noise * v).ravel(), (v - rate * noise * u).ravel()
        chance = (np.array([[probability], [1 - probability]]) * chance).ravel()
        means.append(chance @ (u**2 - v**2) / (first**2 - second**2))
    found = factor_balance.imbalance_course(
        probability, first, second, learning_rate=rate, num_steps=num_steps
    )
    np.testing.assert_allclose(np.log(found), np.log(means), rtol=0.03)


def test_refusals():
    with pytest.raises(ValueError, match="learning_rate=9"):
        factor_balance.imbalance_course(0.5, 1.0, 0.0, learning_rate=9.0, num_steps=1)
