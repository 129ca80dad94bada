import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import checks

finite = st.floats(-1e6, 1e6)


@given(finite, finite, finite)
def test_between_is_the_two_inequalities(a, b, measured):
    lower, upper = min(a, b), max(a, b)
    check = checks.between("x", measured, lower, upper, why="w")
    assert check.passed == (lower <= measured <= upper)


@given(finite, st.floats(0, 1e3), st.floats(0, 2))
def test_close_is_symmetric_about_its_target(target, offset, atol):
    sides = [checks.close("x", target + s * offset, target, atol=atol, why="w") for s in (1, -1)]
    wanted = math.isclose(offset, atol, abs_tol=1e-8 * (1 + abs(target))) or offset < atol
    assert all(check.passed for check in sides) == wanted or abs(offset - atol) < 1e-6


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_fails_every_check(bad):
    steps = np.arange(3)
    assert not checks.above("x", bad, -5, why="w").passed
    assert not checks.below("x", bad, 5, why="w").passed
    assert not checks.between("x", 1.0, 0, 2, interval=(0.5, bad), why="w").passed
    assert not checks.every_seed("x", [1.0, bad], lower=-9, upper=9, why="w").passed
    assert not checks.stays_finite("x", steps, [1.0, bad, 1.0], mend="m").passed


def test_the_whole_interval_must_lie_inside():
    assert checks.above("x", 3, 2, interval=(2.1, 4), why="w").passed
    assert not checks.above("x", 3, 2, interval=(1.9, 4), why="w").passed


def test_every_seed_judges_the_worst():
    check = checks.every_seed("x", [1.0, 1.04, 0.97], lower=0.95, upper=1.05, why="w")
    assert check.passed
    assert check.measured == 1.04
    assert check.interval == (0.97, 1.04)
    assert not checks.every_seed("x", [1.0, 1.06], lower=0.95, upper=1.05, why="w").passed


def test_stays_finite_names_the_step_before_the_divergence():
    values = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, np.inf, np.nan]])
    check = checks.stays_finite("loss", [0, 10, 20, 30], values, mend="lower the rate")
    assert (check.measured, check.passed, check.role) == (10, False, "precondition")
    assert "lower the rate" in check.why


@pytest.mark.parametrize(
    ("measured", "side", "passed"),
    [(0.8, "below", True), (0.95, "below", False), (1.0, "below", False), (1.2, "below", False),
     (1.2, "above", True), (1.05, "above", False), (math.nan, "above", False)],
)  # fmt: skip
def test_a_control_must_miss_the_bounds_on_its_side(measured, side, passed):
    check = checks.between("ratio", measured, 0.95, 1.05, why="w")
    assert checks.broken(check, "control", side, "w").passed == passed


def test_a_control_cannot_fall_past_a_bound_that_is_not_there():
    with pytest.raises(ValueError, match="no bound to fall below"):
        checks.broken(checks.below("x", 1, 2, why="w"), "c", "below", "w")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(lower=2, upper=1), "hold no number"),
        (dict(lower=-math.inf, upper=math.inf), "cannot fail"),
        (dict(lower=math.nan, upper=1), "hold no number"),
        (dict(lower=0, upper=1, why=""), "why"),
        (dict(lower=0, upper=1, role="hope"), "role"),
    ],
)
def test_checks_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        checks.between("x", 0.5, **{"why": "w", **arguments})


def test_empty_seeds_are_refused():
    with pytest.raises(ValueError, match="empty"):
        checks.every_seed("x", [], lower=0, why="w")


def test_verdict():
    good = checks.above("a", 1, 0, why="w")
    bad = checks.above("b", -1, 0, why="w")
    unmet = checks.above("c", -1, 0, why="w", role="precondition")
    red_control = checks.above("d", -1, 0, why="w", role="control")
    assert checks.verdict([good]) == "holds"
    assert checks.verdict([good, bad]) == "fails"
    assert checks.verdict([good, red_control]) == "fails"
    assert checks.verdict([good, bad, unmet]) == "void"
