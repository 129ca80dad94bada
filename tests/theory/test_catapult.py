"""The map of two numbers, against descent on the weights themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.theory import catapult as theory


def pair(u, v):
    return theory.Pair(u @ v / len(u), (u @ u + v @ v) / len(u))


@given(st.integers(0, 1000), st.integers(1, 30), st.floats(-2, 2), st.floats(0.01, 3))
def test_one_step_of_the_weights(seed, width, target, rate):
    u, v = np.random.default_rng(seed).normal(size=(2, width))
    error = u @ v / width - target
    expected = pair(u - rate * error * v, v - rate * error * u)
    found = theory.advance(pair(u, v), rate, target)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert found.curvature >= 2 * abs(found.output) - 1e-9


@pytest.mark.parametrize(("share", "trains"), [(0.45, True), (0.9, True), (1.1, False)])
def test_largest_constant_rate(share, trains):
    """Wide: the start's output is 1/sqrt(m)."""
    state = theory.Pair(1e-4, 2.0)
    rate = share * theory.largest_constant_rate(2.0)
    for _ in range(2000):
        state = theory.advance(state, rate, 0.0)
        if not abs(state.output) < 1e6:
            break
    assert bool(abs(state.output) < 1e-3) == trains


@given(st.floats(0.05, 2), st.sampled_from([0.8, 0.95, 1.05, 1.2]))
def test_largest_stable_rate(target, share):
    """From beside the flattest solution, λ = 2 |y|."""
    rate = share * theory.largest_stable_rate(target)
    state = theory.Pair(target * (1 + 1e-6), 2 * target * (1 + 1e-5))
    for _ in range(5):
        last, state = state, theory.advance(state, rate, target)
    shrinks = abs(state.output - target) < abs(last.output - target)
    assert shrinks == (share < 1)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="curvature=-1"):
        theory.largest_constant_rate(-1)
    with pytest.raises(ValueError, match="target=0"):
        theory.largest_stable_rate(0.0)
