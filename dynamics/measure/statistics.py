"""Intervals over seeds and slopes of power laws, on the host in float64.

Everywhere the seeds are on the first axis. A number that is not finite makes the result that
depends on it NaN, estimate and both bounds: the check made of it then fails, and says so, rather
than ending the run. A single seed has an estimate and no interval (NaN bounds).
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from dynamics import arguments

FloatArray = Any  # a NumPy array of float64, or a NumPy number where the shape is ()
AVERAGES: dict[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median}


class Interval(NamedTuple):
    """An estimate and its confidence interval."""

    estimate: FloatArray  # (...)
    lower: FloatArray  # (...)
    upper: FloatArray  # (...)


class MedianInterval(NamedTuple):
    """A median, its interval, and the confidence which that interval really has."""

    estimate: FloatArray  # (...)
    lower: FloatArray  # (...)
    upper: FloatArray  # (...)
    confidence: float  # exact for continuous distributions


class Slope(NamedTuple):
    """The exponent of a fitted power law exp(intercept) x^slope, with its interval."""

    slope: float
    lower: float
    upper: float
    intercept: float
    residual: float  # largest |log y - fit|: large where there is no power law


def standard_error(values: Any) -> FloatArray:
    """Return the standard error of the mean over the first axis, s / sqrt(S): shape (...).

    Args:
        values: (S, ...); with S = 1 the error is NaN.

    Raises:
        ValueError: `values` is empty or has no axis.

    Example:
        >>> print(standard_error([1.0, 3.0]))
        1.0
    """
    values = _seeds_first(values)
    if len(values) == 1:
        return np.full(values.shape[1:], np.nan)[()]
    with np.errstate(invalid="ignore"):
        return values.std(axis=0, ddof=1) / np.sqrt(len(values))


def mean_interval(values: Any, confidence: float = 0.95) -> Interval:
    """Return the mean over the first axis and its Student t interval, each of shape (...).

    Exact for independent normal values and close for others; the narrow interval that a few seeds
    would get from the normal distribution is not given.

    Args:
        values: (S, ...).
        confidence: Probability that the interval holds the expectation.

    Raises:
        ValueError: `values` is empty or has no axis; `confidence` is not inside (0, 1).

    Example:
        >>> print(mean_interval([1.0, 3.0], confidence=0.5).upper)  # tan(pi / 4) standard errors
        3.0
    """
    _check_confidence(confidence)
    values = _seeds_first(values)
    with np.errstate(invalid="ignore"):
        mean = values.mean(axis=0)
    mean = np.where(np.isfinite(values).all(axis=0), mean, np.nan)[()]
    quantile = scipy.stats.t.ppf((1 + confidence) / 2, max(len(values) - 1, 1))
    half_width = quantile * standard_error(values)
    return Interval(mean, mean - half_width, mean + half_width)


def median_interval(values: Any, confidence: float = 0.95) -> MedianInterval:
    """Return the median over the first axis and its interval between two order statistics.

    The k-th smallest and k-th largest of S values hold the median with probability
    1 - 2 P(B < k), B binomial (S, 1/2), whatever the (continuous) distribution; k is the largest
    for which that is at least `confidence`. Where no k reaches it (S < 6 for 95 %), the interval
    is the range, and the field `confidence` says what it is worth.

    Args:
        values: (S, ...).
        confidence: The least probability that the interval holds the median.

    Raises:
        ValueError: `values` is empty or has no axis; `confidence` is not inside (0, 1).

    Example:
        >>> median_interval(range(1, 6)).confidence  # 1 - 2 / 2**5
        0.9375
    """
    _check_confidence(confidence)
    values = _seeds_first(values)
    num_seeds = len(values)
    outside = scipy.stats.binom.cdf(np.arange((num_seeds + 1) // 2), num_seeds, 0.5)  # P(B < k+1)
    # The slack lets a confidence that is exactly attained pass its rounding.
    rank = max(int(np.sum(1 - 2 * outside >= confidence - 1e-12)) - 1, 0)
    ordered = np.sort(values, axis=0)
    known = np.isfinite(values).all(axis=0)
    estimate, lower, upper = (
        np.where(known, row, np.nan)[()]
        for row in (_middle(ordered), ordered[rank], ordered[num_seeds - 1 - rank])
    )
    if num_seeds == 1:
        lower, upper = np.full_like(lower, np.nan)[()], np.full_like(upper, np.nan)[()]
    return MedianInterval(estimate, lower, upper, float(1 - 2 * outside[rank]))


def bootstrap_interval(
    values: Any,
    statistic: Callable[..., Any] = np.mean,
    *,
    seed: int,
    confidence: float = 0.95,
    num_resamples: int = 2000,
) -> Interval:
    """Return a statistic over the first axis and its percentile bootstrap interval.

    The percentile method, because it also serves statistics that are not smooth (medians,
    quantiles), for which the jackknife inside BCa is wrong, keeps the range of the statistic, and
    gives an interval of width zero (BCa: NaN) where all values agree. With few seeds it is too
    narrow, by sqrt((S - 1) / S) and more: `mean_interval` is the one for the mean of fewer than 20.

    Args:
        values: (S, ...).
        statistic: `statistic(values, axis=...)`, as NumPy's are.
        seed: Seed of the resampling, an integer.
        confidence: Probability that the interval holds the true value, for large S.
        num_resamples: 2000 leave an error of 0.5 % in the probability of each 2.5 % tail.

    Raises:
        ValueError: `values` is empty or has no axis; `confidence` is not inside (0, 1);
            `num_resamples` is not positive.

    Example:
        >>> print(bootstrap_interval([2.0, 2.0, 2.0], seed=0).upper)
        2.0
    """
    values = _seeds_first(values)
    arguments.functions(statistic=statistic)
    known = np.isfinite(values).all(axis=0)
    filled = np.where(known, values, 0.0)
    estimate = np.asarray(statistic(filled, axis=0))
    lower, upper = _percentile(filled, statistic, seed, confidence, num_resamples)
    return Interval(*(np.where(known, part, np.nan)[()] for part in (estimate, lower, upper)))


def log_log_slope(x: Any, y: Any) -> FloatArray:
    """Return the least-squares slope of log y against log x: shape (...), the exponent.

    Args:
        x: (X,) positive, not all equal.
        y: (X,) or (..., X); where a value is not positive and finite the slope is NaN.

    Raises:
        ValueError: `x` is not one-dimensional, not positive, or has fewer than two different
            values; the last axis of `y` does not fit.

    Example:
        >>> print(log_log_slope([1, 2, 4], [3, 12, 48]).round(12))
        2.0
    """
    weights = _slope_weights(x)
    return _logarithm(y, len(weights)) @ weights


def log_log_slope_interval(
    x: Any,
    values: Any,
    *,
    seed: int,
    confidence: float = 0.95,
    average: str = "mean",
    num_resamples: int = 2000,
) -> Slope:
    """Return the slope of the average over seeds in log-log axes, with its bootstrap interval.

    Whole seeds are drawn anew, so that whatever the points of one seed share stays together;
    each draw is averaged at every x, then fitted. Percentile interval as in
    `bootstrap_interval`.

    Args:
        x: (X,) positive, not all equal.
        values: (S, X); if one is not finite, or an average not positive, the result is NaN.
        seed: Seed of the resampling, an integer.
        confidence: Probability that the interval holds the true slope, for large S.
        average: "mean" or "median" over seeds, at each x.
        num_resamples: Draws.

    Raises:
        ValueError: as in `log_log_slope`; `values` is not (S, X); unknown `average`.

    Example:
        >>> print(round(log_log_slope_interval([1, 10], [[1, 0.1], [2, 0.2]], seed=0).upper, 12))
        -1.0
    """
    weights = _slope_weights(x)
    values = _seeds_first(values)
    if values.shape[1:] != weights.shape:
        message = f"values: shape {values.shape}; give (S, {len(weights)}), one column for each x"
        raise ValueError(message)
    arguments.choices(tuple(AVERAGES), average=average)

    def slope_of(seeds: Any, axis: int) -> Any:
        del axis  # always the last: scipy is told so by vectorized=True
        return _logarithm(AVERAGES[average](values[seeds], axis=-2), len(weights)) @ weights

    seeds = np.arange(len(values))
    lower, upper = _percentile(seeds, slope_of, seed, confidence, num_resamples)
    heights = _logarithm(AVERAGES[average](values, axis=0), len(weights))
    slope = float(heights @ weights)
    log_x = np.log(np.asarray(x, np.float64))
    intercept = float(heights.mean() - slope * log_x.mean())
    residual = float(np.abs(heights - intercept - slope * log_x).max())
    if not (np.isfinite(values).all() and np.isfinite(slope)):
        return Slope(*[np.nan] * 5)
    return Slope(slope, float(lower), float(upper), intercept, residual)


def _percentile(
    values: Any, statistic: Callable[..., Any], seed: int, confidence: float, num_resamples: int
) -> tuple[Any, Any]:
    arguments.integers(0, seed=seed)
    _check_confidence(confidence)
    arguments.counts(num_resamples=num_resamples)
    if len(values) == 1:
        return np.nan, np.nan
    with warnings.catch_warnings():  # said of a resample that is NaN; the bounds are NaN then
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        interval = scipy.stats.bootstrap(
            (values,),
            statistic,
            axis=0,
            vectorized=True,
            n_resamples=num_resamples,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return interval.low, interval.high


def _seeds_first(values: Any) -> FloatArray:
    arguments.numbers(values=values)
    values = np.asarray(values, np.float64)
    if values.ndim == 0 or len(values) == 0:
        message = f"values: shape {values.shape}; give at least one value on the first axis"
        raise ValueError(message)
    return values


def _middle(ordered: FloatArray) -> FloatArray:
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _check_confidence(confidence: float) -> None:
    arguments.scalars(confidence=confidence)
    if not 0 < confidence < 1:
        message = f"confidence={confidence}: give a probability inside (0, 1)"
        raise ValueError(message)


def _slope_weights(x: Any) -> FloatArray:
    """Return w with slope = Σ w log y, the least-squares weights: shape (X,)."""
    arguments.numbers(x=x)
    x = np.asarray(x, np.float64)
    if x.ndim != 1 or not (np.isfinite(x) & (x > 0)).all() or len(np.unique(x)) < 2:
        message = f"x={x}: give positive numbers in one dimension, at least two of them different"
        raise ValueError(message)
    centred = np.log(x) - np.log(x).mean()
    return centred / (centred**2).sum()


def _logarithm(y: Any, num_points: int) -> FloatArray:
    arguments.numbers(y=y)
    y = np.asarray(y, np.float64)
    if y.shape[-1:] != (num_points,):
        message = f"y: shape {y.shape}; the last axis must have the {num_points} points of x"
        raise ValueError(message)
    return np.log(np.where(np.isfinite(y) & (y > 0), y, np.nan))
