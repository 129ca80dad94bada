"""Closed forms of descent at kinks, against iterating the map itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.theory import nonsmooth_descent as theory

EXPONENT = st.floats(1.1, 1.9)
RATE = st.floats(0.01, 2)


def slope(x, p, delta):
    return p * x * (x**2 + delta**2) ** (p / 2 - 1)


@given(EXPONENT, RATE, st.floats(0, 2).filter(lambda share: abs(share - 1) > 0.05))
def test_descent_ends_where_the_closed_form_says(p, eta, share):
    delta = share * theory.orbit_radius(p, eta)
    x = 1.3 * float(theory.orbit_radius(p, eta))
    for _ in range(400):
        x = x - eta * slope(x, p, delta)
    scale = theory.orbit_radius(p, eta)
    np.testing.assert_allclose(
        abs(x) / scale, theory.orbit_radius(p, eta, delta) / scale, atol=1e-6
    )
    step = 1e-5 * scale
    around = [slope(x + s * step, p, delta) for s in (1, -1)]
    measured = (around[0] - around[1]) / (2 * step)
    np.testing.assert_allclose(
        eta * measured, eta * theory.orbit_sharpness(p, eta, delta), rtol=1e-5
    )


@given(EXPONENT, RATE, st.floats(0, 0.95))
def test_the_orbit_is_stable(p, eta, share):
    """Both factors of a step, and the end of the family at δ = x*: 2/η."""
    delta = share * theory.orbit_radius(p, eta)
    assert abs(1 - eta * theory.orbit_sharpness(p, eta, delta)) < 1
    edge = theory.orbit_radius(p, eta)
    for delta in (edge * (1 - 1e-9), edge * (1 + 1e-9)):
        np.testing.assert_allclose(theory.orbit_sharpness(p, eta, delta), 2 / eta, rtol=1e-6)


def lasso(seed, dim=12, num_samples=8):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_samples, dim)) / num_samples**0.5
    return x.T @ x, x.T @ rng.normal(size=num_samples), rng.normal(size=dim)


def chatter(gram, pull, weight, eta, penalty, num_steps):
    path = []
    for _ in range(num_steps):
        path.append(weight)
        weight = weight - eta * (gram @ weight - pull + penalty * np.sign(weight))
    return np.array(path)


@given(st.integers(0, 1000), st.floats(0.05, 0.2))
def test_two_cycle(seed, eta):
    """A penalty so large that every sign changes at every step."""
    gram, pull, weight = lasso(seed)
    penalty = 300.0
    path = chatter(gram, pull, weight, eta, penalty, 1000)
    signs = np.sign(path[-1])
    if np.any(signs == np.sign(path[-2])):
        return
    found = np.abs(path[-2:]).sum(axis=1).mean()
    np.testing.assert_allclose(found, theory.chatter_norm(gram, signs, eta, penalty), rtol=1e-6)
    least = len(gram) * eta * penalty / 2
    most = least / (1 - eta * np.linalg.eigvalsh(gram)[-1] / 2)
    assert least * (1 - 1e-6) <= found <= most * (1 + 1e-6)


def test_mean_over_time():
    """Without correlations the law is exact up to the irrationality of b/λ."""
    pull = np.sqrt([2.0, 0.3, 5.0, 0.7])
    weight = np.array([0.01, -0.02, 0.03, 0.01])
    path = chatter(np.zeros((4, 4)), pull, weight, 0.1, 4.0, 40_000)
    found = np.abs(path).sum(axis=1).mean()
    expected = theory.mean_chatter_norm(np.zeros((4, 4)), pull, 0.1, 4.0)
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_mean_over_time_with_correlations():
    found, expected = [], []
    for seed in range(8):
        gram, pull, weight = lasso(seed, dim=40, num_samples=20)
        path = chatter(gram, pull, weight, 0.05, 15.0, 2000)
        found.append(np.abs(path[1000:]).sum(axis=1).mean())
        expected.append(theory.mean_chatter_norm(gram, pull, 0.05, 15.0))
    np.testing.assert_allclose(np.mean(found), np.mean(expected), rtol=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.orbit_radius(2.0, 0.1), "exponent=2.0"),
        (lambda: theory.orbit_sharpness(1.5, -0.1), "learning_rate=-0.1"),
        (lambda: theory.orbit_sharpness(1.5, 0.1, -1.0), "rounding=-1.0"),
        (lambda: theory.chatter_norm(np.eye(2), np.ones(2), 2.0, 1.0), "learning_rate=2.0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
