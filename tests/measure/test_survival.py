"""Kaplan-Meier and log-rank against a textbook example, scipy, and what must hold of them."""

import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from dynamics.measure import grokking, statistics, survival

# Weeks of remission under 6-mercaptopurine and placebo: Freireich et al. 1963, the example of
# every textbook (Klein and Moeschberger, table 1.2). Negative: censored.
DRUG = np.array([6, 6, 6, -6, 7, -9, 10, -10, -11, 13, 16, -17, -19, -20, 22, 23,
                 -25, -32, -32, -34, -35])  # fmt: skip
PLACEBO = np.array([1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23])
SAMPLES = st.lists(st.tuples(st.integers(-3, 12), st.booleans()), min_size=1, max_size=25)


def split(sample):
    return np.abs(sample).astype(float), sample > 0


def censored(times, observed):
    return scipy.stats.CensoredData(uncensored=times[observed], right=times[~observed])


def test_the_textbook_example():
    found = survival.kaplan_meier(*split(DRUG))
    assert found.time.tolist() == [6, 7, 10, 13, 16, 22, 23]
    assert found.at_risk.tolist() == [21, 17, 15, 12, 11, 7, 6]
    assert found.events.tolist() == [3, 1, 1, 1, 1, 1, 1]
    printed = [0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448]
    np.testing.assert_allclose(found.survival, printed, atol=5e-4)
    assert tuple(survival.kaplan_meier_median(*split(DRUG))) == (23, 13, np.inf)
    assert survival.kaplan_meier_median(*split(PLACEBO)).estimate == 8


def test_the_textbook_comparison():
    found = survival.log_rank_test(*split(DRUG), *split(PLACEBO))
    assert found.statistic**2 == pytest.approx(16.79, abs=0.01)  # the printed chi-square
    assert found.statistic < 0  # the drug delays


def test_by_hand():
    """Four waits: S = 3/4, then 3/8 since only two are left; Greenwood by hand at the first."""
    times, observed = [2.0, 3.0, 5.0, 8.0], [True, False, True, False]
    found = survival.kaplan_meier(times, observed)
    np.testing.assert_allclose(found.survival, [3 / 4, 3 / 8])
    median = survival.kaplan_meier_median(times, observed, confidence=0.5)
    z = 0.6744897501960817  # of 50 %
    errors = np.sqrt([1 / 12, 1 / 12 + 1 / 2]) / -np.log([3 / 4, 3 / 8])
    lower, upper = (np.array([3 / 4, 3 / 8]) ** np.exp(sign * z * errors) for sign in (1, -1))
    assert (lower <= 0.5).tolist() == [False, True]
    assert (upper <= 0.5).tolist() == [False, False]
    assert tuple(median) == (5.0, 5.0, np.inf)


@given(sample=SAMPLES, confidence=st.floats(0.3, 0.99))
def test_as_in_scipy(sample, confidence):
    times, observed = (np.array(column) for column in zip(*sample, strict=True))
    times = times.astype(float)
    reference = scipy.stats.ecdf(censored(times, observed)).sf
    found = survival.kaplan_meier(times, observed)
    np.testing.assert_allclose(found.survival, reference.evaluate(found.time), atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # S = 0
        limits = reference.confidence_interval(confidence, method="log-log")
    median = survival.kaplan_meier_median(times, observed, confidence)
    at = found.time
    for bound, limit in zip(median, (reference, limits.low, limits.high), strict=True):
        values = limit.evaluate(at) if len(at) else np.array([])
        near = np.abs(values - 0.5) < 1e-9  # a rounding decides
        if not near.any():
            reached = at[values <= 0.5]  # NaN, where S = 0, is not
            expected = reached[0] if len(reached) else np.inf
            assert bound == expected


@given(sample=SAMPLES, other=SAMPLES)
def test_log_rank_as_in_scipy(sample, other):
    (times, observed), (other_times, other_observed) = (
        [np.array(column) for column in zip(*rows, strict=True)] for rows in (sample, other)
    )
    found = survival.log_rank_test(times, observed, other_times, other_observed)
    back = survival.log_rank_test(other_times, other_observed, times, observed)
    if np.isnan(found.statistic):
        assert np.isnan(back.statistic)
        assert np.isnan(found.p_value)
        return
    reference = scipy.stats.logrank(
        censored(times.astype(float), observed), censored(other_times.astype(float), other_observed)
    )
    np.testing.assert_allclose(found.statistic, reference.statistic, atol=1e-9)
    np.testing.assert_allclose(found.p_value, reference.pvalue, atol=1e-9)
    assert back.statistic == pytest.approx(-found.statistic, abs=1e-9)


@given(sample=SAMPLES, scale=st.floats(0.1, 9), shift=st.floats(-50, 50))
def test_the_median_moves_with_the_units_and_lies_in_its_interval(sample, scale, shift):
    times, observed = (np.array(column) for column in zip(*sample, strict=True))
    plain = survival.kaplan_meier_median(times, observed)
    moved = survival.kaplan_meier_median(shift + scale * times, observed)
    np.testing.assert_allclose(moved, shift + scale * np.array(plain), atol=1e-9)
    assert plain.lower <= plain.upper
    assert plain.estimate <= plain.upper or np.isclose(plain.estimate, plain.upper)


@given(sample=SAMPLES)
def test_later_events_never_make_the_median_shorter(sample):
    times, observed = (np.array(column) for column in zip(*sample, strict=True))
    less = np.where(np.arange(len(times)) == 0, False, observed)  # one wait turns out longer
    estimates = [survival.kaplan_meier_median(times, seen).estimate for seen in (observed, less)]
    assert estimates[1] >= estimates[0]


@given(values=st.lists(st.integers(-99, 99), min_size=1, max_size=21, unique=True))
def test_without_censoring_it_is_an_order_statistic(values):
    found = survival.kaplan_meier_median(values, np.ones(len(values), bool)).estimate
    assert found == sorted(values)[(len(values) - 1) // 2]


def test_coverage():
    """Exponential waits, half of them censored: the interval holds the median about 95 times in
    a hundred (s.e. 1 over 500 draws); without the censored ones it would miss most of the time."""
    rng = np.random.default_rng(0)
    held = naive = 0
    for _ in range(500):
        wait, end = rng.exponential(1, 60), rng.exponential(1, 60)
        seen = wait <= end
        found = survival.kaplan_meier_median(np.minimum(wait, end), seen)
        held += found.lower <= np.log(2) <= found.upper
        plain = statistics.median_interval(wait[seen])
        naive += plain.lower <= np.log(2) <= plain.upper
    assert 0.92 <= held / 500 <= 0.985
    assert naive / 500 < 0.3


def test_wrong_arguments_are_refused():
    for times, observed in (([], []), ([1.0], [True, False]), ([[1.0]], [[True]])):
        with pytest.raises(ValueError, match=r"times|observed"):
            survival.kaplan_meier(times, observed)
    with pytest.raises(ValueError, match="give finite ones"):
        survival.log_rank_test([1.0], [True], [np.inf], [False])
    with pytest.raises(ValueError, match="confidence=1"):
        survival.kaplan_meier_median([1.0], [True], confidence=1)


class TestDelayMedian:
    STEPS = np.arange(0, 101, 10)

    def curves(self, crossings):
        return np.array([(self.STEPS >= crossing).astype(float) for crossing in crossings])

    def test_without_censoring(self):
        train, test = self.curves([10, 20, 10]), self.curves([30, 50, 90])
        found = grokking.grokking_delay_median(self.STEPS, train, test, 1.0)
        assert found.estimate == 30

    def test_censored_seeds_count(self):
        """Delays 20, 80+ and 60+ (budget less the crossing of training): S(20) = 2/3 only."""
        train, test = self.curves([10, 20, 40]), self.curves([30, 999, 999])
        assert grokking.grokking_delay_median(self.STEPS, train, test, 1.0).estimate == np.inf
        train, test = self.curves([10, 90, 40]), self.curves([30, 999, 80])
        # 20, 10+ and 40: after the censoring at 10 two are left, S(20) = 1/2.
        assert grokking.grokking_delay_median(self.STEPS, train, test, 1.0).estimate == 20

    def test_a_seed_that_never_fits_makes_it_unknown(self):
        train, test = self.curves([10, 999]), self.curves([30, 40])
        assert np.isnan(grokking.grokking_delay_median(self.STEPS, train, test, 1.0)).all()

    def test_one_row_a_seed(self):
        with pytest.raises(ValueError, match="give \\(S, T\\)"):
            grokking.grokking_delay_median(self.STEPS, np.ones(11), np.ones(11), 1.0)
