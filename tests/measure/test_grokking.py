import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.measure import grokking

STEPS = np.array([0.0, 10.0, 30.0, 40.0])
LEVELS = st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4)


def by_hand(steps, values, threshold):
    """The definition, point by point, in float64."""
    for index, value in enumerate(values):
        if value >= threshold:
            if index == 0:
                return steps[0]
            begin, rise = values[index - 1], value - values[index - 1]
            part = (threshold - begin) / rise
            return steps[index - 1] + part * (steps[index] - steps[index - 1])
    return np.inf


@given(values=LEVELS, threshold=st.floats(0.0, 1.0))
def test_the_first_crossing_is_its_definition(values, threshold):
    with jax.enable_x64(True):
        found = grokking.first_crossing(STEPS, values, threshold)
    np.testing.assert_allclose(found, by_hand(STEPS, values, threshold), atol=1e-9)


@given(values=LEVELS, threshold=st.floats(0.05, 0.95))
def test_below_is_above_turned_over(values, threshold):
    with jax.enable_x64(True):
        above = grokking.first_crossing(STEPS, values, threshold)
        below = grokking.first_crossing(STEPS, -np.array(values), -threshold, direction="below")
    np.testing.assert_array_equal(above, below)


@given(
    values=LEVELS, threshold=st.floats(0.05, 0.95), scale=st.floats(0.1, 9), shift=st.floats(0, 99)
)
def test_crossings_move_with_the_units(values, threshold, scale, shift):
    with jax.enable_x64(True):
        plain = np.asarray(grokking.first_crossing(STEPS, values, threshold))
        moved = grokking.first_crossing(shift + scale * STEPS, values, threshold)
    np.testing.assert_allclose(moved, shift + scale * plain, rtol=1e-9)


def test_a_straight_line_is_crossed_where_it_is():
    steps = jnp.array([0, 3, 7, 100])
    for threshold in (0.0, 0.2, 2.5, 50.0, 100.0):
        np.testing.assert_allclose(
            grokking.first_crossing(steps, steps, threshold), threshold, rtol=1e-5
        )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], np.inf),
        ([0.9, 0.0, 0.0, 0.0], 0.0),  # from the start, whatever comes later
        ([0.0, 0.5, 0.0, 1.0], 10.0),  # exactly, and only the first time
        ([np.nan, np.nan, np.nan, np.nan], np.inf),
        ([0.0, np.nan, 0.75, 1.0], 30.0),  # nothing to interpolate from
        ([0.0, 0.25, np.nan, np.nan], np.inf),
        ([-np.inf, 1.0, 1.0, 1.0], 10.0),
        ([0.0, np.inf, 1.0, 1.0], 10.0),
    ],
)
def test_hard_cases(values, expected):
    for first_crossing in (grokking.first_crossing, jax.jit(grokking.first_crossing)):
        np.testing.assert_array_equal(first_crossing(STEPS, values, 0.5), expected)


def test_curves_along_leading_axes_and_under_vmap():
    values = jnp.linspace(0, 1, 24).reshape(2, 3, 4)
    thresholds = jnp.full((2, 3), 0.3)
    together = grokking.first_crossing(STEPS, values, thresholds)
    mapped = jax.vmap(jax.vmap(lambda v: grokking.first_crossing(STEPS, v, 0.3)))(values)
    assert together.shape == (2, 3)
    np.testing.assert_array_equal(together, mapped)
    np.testing.assert_array_equal(together, grokking.first_crossing(STEPS, values, 0.3))


def test_the_delay_is_the_difference_of_crossings():
    train = 1 / (1 + np.exp(-(np.arange(400) - 50.0)))
    test = 1 / (1 + np.exp(-(np.arange(400) - 350.0)))
    delay = grokking.grokking_delay(np.arange(400), train, test, 0.9)
    np.testing.assert_allclose(delay, 300.0, rtol=1e-5)  # the same curve, 300 steps later
    reverse = grokking.grokking_delay(np.arange(400), test, train, 0.9)
    np.testing.assert_allclose(reverse, -300.0, rtol=1e-5)


def test_a_curve_that_never_gets_there_makes_the_delay_infinite():
    flat, rising = np.zeros(4), np.linspace(0, 1, 4)
    for train, test in ((rising, flat), (flat, rising), (flat, flat)):
        assert grokking.grokking_delay(STEPS, train, test, 0.5) == np.inf


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="direction='up'"):
        grokking.first_crossing(STEPS, STEPS, 0.5, direction="up")
    for steps, values in ((STEPS, STEPS[:3]), (np.zeros((2, 4)), STEPS), ([], []), (STEPS, 1.0)):
        with pytest.raises(ValueError, match=r"steps|values"):
            grokking.first_crossing(steps, values, 0.5)


@given(seed=st.integers(0, 1000))
def test_accuracy_is_that_of_the_largest_logit(seed):
    random = np.random.default_rng(seed)
    logits, labels = random.normal(size=(40, 5)), random.integers(0, 5, 40)
    found = grokking.accuracy(logits, labels)
    np.testing.assert_allclose(found, np.mean(logits.argmax(axis=1) == labels), rtol=1e-6)


def test_a_network_without_an_answer_has_no_accuracy():
    labels = np.zeros(3, int)
    assert grokking.accuracy(np.zeros((3, 4)), labels) == 0
    assert grokking.accuracy(np.full((3, 4), np.nan), labels) == 0
