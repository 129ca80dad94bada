import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from dynamics.measure import statistics

NUM_SETS = 400
SEEDS = st.integers(0, 2**31)


def inside(interval, truth):
    return np.mean((np.asarray(interval.lower) <= truth) & (truth <= np.asarray(interval.upper)))


def four_sigma(confidence):
    return 4 * np.sqrt(confidence * (1 - confidence) / NUM_SETS)


@pytest.mark.parametrize("num_seeds", [2, 5, 30])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_mean_interval_covers_as_often_as_it_says(num_seeds, confidence):
    draws = np.random.default_rng(num_seeds).normal(3.0, 2.0, (num_seeds, NUM_SETS))
    coverage = inside(statistics.mean_interval(draws, confidence), 3.0)
    assert abs(coverage - confidence) < four_sigma(confidence)


@pytest.mark.parametrize("num_seeds", [7, 12, 31])
def test_the_median_interval_covers_what_its_field_says(num_seeds):
    draws = np.random.default_rng(num_seeds).exponential(1.0, (num_seeds, NUM_SETS))
    interval = statistics.median_interval(draws, 0.8)
    assert interval.confidence >= 0.8
    assert abs(inside(interval, np.log(2)) - interval.confidence) < four_sigma(0.8)


@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_the_bootstrap_interval_covers_as_often_as_it_says(statistic):
    draws = np.random.default_rng(0).normal(3.0, 2.0, (60, NUM_SETS))
    interval = statistics.bootstrap_interval(draws, statistic, seed=1, num_resamples=500)
    assert abs(inside(interval, 3.0) - 0.95) < four_sigma(0.95)


def test_the_slope_interval_covers_as_often_as_it_says():
    random = np.random.default_rng(3)
    x = np.array([1.0, 2.0, 4.0, 8.0])
    covered = 0
    for seed in range(NUM_SETS):
        # Mean-one factors, one common to a seed (it does not move the slope), one for each point.
        noise = random.lognormal(-0.02, 0.2, (40, 4)) * random.lognormal(-0.5, 1.0, (40, 1))
        slope = statistics.log_log_slope_interval(x, x**-1.5 * noise, seed=seed, num_resamples=200)
        covered += slope.lower <= -1.5 <= slope.upper
    assert abs(covered / NUM_SETS - 0.95) < four_sigma(0.95) + 0.015  # 200 resamples, 40 seeds


def test_the_mean_interval_is_scipys():
    draws = np.random.default_rng(5).normal(size=9)
    reference = scipy.stats.ttest_1samp(draws, 0.0).confidence_interval(0.9)
    interval = statistics.mean_interval(draws, 0.9)
    np.testing.assert_allclose(interval[1:], reference, rtol=1e-12)
    np.testing.assert_allclose(statistics.standard_error(draws), scipy.stats.sem(draws), rtol=1e-12)


@pytest.mark.parametrize("num_seeds", range(2, 40))
def test_the_median_interval_is_the_best_pair_of_order_statistics(num_seeds):
    """By enumeration of the binomial distribution, and against SciPy's quantile test."""
    values = np.arange(1.0, num_seeds + 1)
    interval = statistics.median_interval(values)
    assert interval.estimate == np.median(values)
    coverage = lambda k: 1 - 2 * scipy.stats.binom.cdf(k - 1, num_seeds, 0.5)
    good = [k for k in range(1, num_seeds // 2 + 1) if coverage(k) >= 0.95]
    rank = max(good, default=1)
    assert (interval.lower, interval.upper) == (rank, num_seeds + 1 - rank)
    np.testing.assert_allclose(interval.confidence, coverage(rank), rtol=1e-12)
    if good:
        reference = scipy.stats.quantile_test(values).confidence_interval(0.95)
        assert (interval.lower, interval.upper) == tuple(reference)


INTERVALS = {
    "mean": statistics.mean_interval,
    "median": statistics.median_interval,
    "bootstrap": lambda values: statistics.bootstrap_interval(values, seed=0, num_resamples=99),
}


@pytest.mark.parametrize("name", INTERVALS)
@given(seed=SEEDS, shift=st.floats(-10, 10), scale=st.floats(0.1, 10))
def test_intervals_move_with_the_units(name, seed, shift, scale):
    draws = np.random.default_rng(seed).normal(size=(8, 2))
    for sign in (1, -1):
        moved = INTERVALS[name](shift + sign * scale * draws)
        plain = [shift + sign * scale * part for part in INTERVALS[name](draws)[:3]]
        expected = plain if sign == 1 else [plain[0], plain[2], plain[1]]
        tolerance = {"atol": 1e-9}
        if name == "bootstrap" and sign == -1:  # resampled quantiles are not symmetric
            tolerance = {"atol": 2 * scale}
        np.testing.assert_allclose(moved[:3], expected, rtol=1e-9, **tolerance)


@pytest.mark.parametrize("name", INTERVALS)
@given(seed=SEEDS)
def test_the_order_of_the_seeds_does_not_matter(name, seed):
    random = np.random.default_rng(seed)
    draws = random.normal(size=8)
    one, other = INTERVALS[name](draws), INTERVALS[name](random.permutation(draws))
    # The bootstrap draws positions, so its bounds are only close.
    np.testing.assert_allclose(one[:3], other[:3], atol=0.6 if name == "bootstrap" else 1e-12)


@pytest.mark.parametrize("name", INTERVALS)
def test_equal_values_have_an_interval_of_no_width(name):
    interval = INTERVALS[name](np.full((6, 2), 1.5))
    np.testing.assert_array_equal(interval[:3], np.full((3, 2), 1.5))


@pytest.mark.parametrize("name", INTERVALS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_column_only(name, bad):
    draws = np.random.default_rng(0).normal(size=(8, 2))
    clean = INTERVALS[name](draws)
    draws[3, 0] = bad
    spoilt = INTERVALS[name](draws)
    assert np.isnan([part[0] for part in spoilt[:3]]).all()
    np.testing.assert_array_equal([part[1] for part in spoilt[:3]], [p[1] for p in clean[:3]])


@pytest.mark.parametrize("name", INTERVALS)
def test_one_seed_has_an_estimate_and_no_interval(name):
    interval = INTERVALS[name]([2.0])
    assert interval.estimate == 2.0
    assert np.isnan([interval.lower, interval.upper]).all()


@pytest.mark.parametrize("name", INTERVALS)
@pytest.mark.parametrize("values", [[], 3.0, np.zeros((0, 4))])
def test_no_values_are_refused(name, values):
    with pytest.raises(ValueError, match="values"):
        INTERVALS[name](values)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, np.nan])
def test_confidence_is_a_probability(confidence):
    values = [1.0, 2.0]
    for call in (
        lambda: statistics.mean_interval(values, confidence),
        lambda: statistics.median_interval(values, confidence),
        lambda: statistics.bootstrap_interval(values, seed=0, confidence=confidence),
        lambda: statistics.log_log_slope_interval(values, [values], seed=0, confidence=confidence),
    ):
        with pytest.raises(ValueError, match="confidence"):
            call()


def test_the_bootstrap_is_a_function_of_its_seed():
    draws = np.random.default_rng(0).normal(size=20)
    first, same, other = (statistics.bootstrap_interval(draws, seed=s) for s in (1, 1, 2))
    assert first == same
    assert first != other
    # The normal approximation of the bootstrap distribution of a mean, to its sampling error.
    spread = 1.96 * draws.std() / np.sqrt(20)
    np.testing.assert_allclose(first.upper - first.lower, 2 * spread, rtol=0.1)


@given(exponent=st.floats(-4, 4), factor=st.floats(1e-3, 1e3), unit=st.floats(1e-3, 1e3))
def test_slopes_are_exact_on_power_laws(exponent, factor, unit):
    x = unit * np.array([1.0, 3.0, 7.0, 50.0])
    y = factor * x**exponent
    np.testing.assert_allclose(statistics.log_log_slope(x, y), exponent, atol=1e-10)
    rows = np.stack([y, 2 * y, 5 * y])
    np.testing.assert_allclose(statistics.log_log_slope(x, rows), [exponent] * 3, atol=1e-10)
    for average in ("mean", "median"):
        slope = statistics.log_log_slope_interval(
            x, rows, seed=0, average=average, num_resamples=20
        )
        np.testing.assert_allclose(slope[:3], [exponent] * 3, atol=1e-10)
        middle = factor * (8 / 3 if average == "mean" else 2)
        np.testing.assert_allclose(slope.intercept, np.log(middle), atol=1e-9)
        assert slope.residual < 1e-9


@given(seed=SEEDS)
def test_slopes_are_those_of_linregress(seed):
    random = np.random.default_rng(seed)
    x, values = random.lognormal(size=6), random.lognormal(size=(5, 6))
    reference = scipy.stats.linregress(np.log(x), np.log(np.median(values, axis=0)))
    slope = statistics.log_log_slope_interval(x, values, seed=0, average="median", num_resamples=20)
    np.testing.assert_allclose(slope.slope, reference.slope, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(slope.intercept, reference.intercept, rtol=1e-9, atol=1e-9)
    fit = reference.intercept + reference.slope * np.log(x)
    residual = np.abs(np.log(np.median(values, axis=0)) - fit).max()
    np.testing.assert_allclose(slope.residual, residual, rtol=1e-9)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_a_power_law_through_what_has_no_logarithm_is_nan(bad):
    x, y = [1.0, 2.0, 4.0], [[1.0, 2.0, 4.0], [1.0, 2.0, bad]]
    slopes = statistics.log_log_slope(x, y)
    assert slopes[0] == pytest.approx(1.0)
    assert np.isnan(slopes[1])
    interval = statistics.log_log_slope_interval(x, [y[1], y[1]], seed=0, num_resamples=20)
    assert np.isnan(interval).all()


def test_one_seed_has_a_slope_and_no_interval():
    slope = statistics.log_log_slope_interval([1.0, 2.0], [[1.0, 4.0]], seed=0)
    assert slope.slope == pytest.approx(2.0)
    assert np.isnan([slope.lower, slope.upper]).all()


@pytest.mark.parametrize(
    ("x", "values", "average", "word"),
    [
        ([1.0], [[1.0]], "mean", "x="),
        ([1.0, 1.0], [[1.0, 2.0]], "mean", "x="),
        ([0.0, 1.0], [[1.0, 2.0]], "mean", "x="),
        ([1.0, 2.0], [[1.0, 2.0, 3.0]], "mean", "values"),
        ([1.0, 2.0], [1.0, 2.0], "mean", "values"),
        ([1.0, 2.0], [[1.0, 2.0]], "mode", "average='mode'"),
    ],
)
def test_wrong_power_laws_are_refused(x, values, average, word):
    with pytest.raises(ValueError, match=word):
        statistics.log_log_slope_interval(x, values, seed=0, average=average)


def test_points_and_values_must_fit():
    with pytest.raises(ValueError, match="y: shape"):
        statistics.log_log_slope([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="num_resamples=0"):
        statistics.bootstrap_interval([1.0, 2.0], seed=0, num_resamples=0)
