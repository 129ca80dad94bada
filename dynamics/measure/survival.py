"""Waiting times of which some are censored: known only to be longer than the run was.

On the host in float64, as `dynamics.measure.statistics`. A censored time is the one up to which
nothing had happened; where an event and a censoring share a time, the event came first.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from dynamics import arguments
from dynamics.measure.statistics import FloatArray, Interval


class KaplanMeier(NamedTuple):
    """The product-limit estimate at the E distinct times at which something happened."""

    time: FloatArray  # (E,) increasing
    survival: FloatArray  # (E,) P(waiting time > time)
    at_risk: FloatArray  # (E,) neither seen nor censored before that time
    events: FloatArray  # (E,)


class LogRank(NamedTuple):
    """Mantel's comparison of two samples of waiting times."""

    statistic: float  # standard normal if they are alike; negative where the first waits longer
    p_value: float  # two-sided


def kaplan_meier(times: Any, observed: Any) -> KaplanMeier:
    """Return the Kaplan-Meier estimate S(t) = Π_(t_i <= t) (1 - d_i / n_i) at the event times.

    Args:
        times: (N,) finite, of the event or of the censoring; the unit is the caller's.
        observed: (N,) bool, False where the time is censored.

    Raises:
        ValueError: the shapes do not fit, there is no time, or one is not finite.

    Reference: Kaplan, Meier 1958, "Nonparametric estimation from incomplete observations".

    Example:
        >>> kaplan_meier([1, 2, 3], [True, False, True]).survival.round(3).tolist()
        [0.667, 0.0]
    """
    times, observed = _sample(times, observed)
    time, events = np.unique(times[observed], return_counts=True)
    at_risk = np.sum(times[:, None] >= time, axis=0)  # (E,)
    survival = np.cumprod(1 - events / at_risk)
    return KaplanMeier(time, survival, at_risk, events)


def kaplan_meier_median(times: Any, observed: Any, confidence: float = 0.95) -> Interval:
    """Return the median waiting time and its Brookmeyer-Crowley interval.

    The estimate is the first time at which S(t) <= 1/2 and the bounds are the first times at which
    the upper and the lower limit of S(t) are: the interval holds the times at which S = 1/2 is not
    rejected. The limits of S are Greenwood's on the scale log(-log S), which keeps them between 0
    and 1 and has the better coverage in small samples. Where S never falls to 1/2 the median is
    infinite, and so is an upper bound that is not reached; where S = 0 the limits do not exist,
    and the last event alone bounds nothing. With five or six seeds the upper bound is therefore
    often infinite: that is what they can tell.

    Args:
        times: (N,) finite, of the event or of the censoring.
        observed: (N,) bool.
        confidence: Probability that the interval holds the median, for large N.

    Raises:
        ValueError: as `kaplan_meier`; `confidence` is not inside (0, 1).

    Reference: Brookmeyer, Crowley 1982, "A confidence interval for the median survival time";
    on the scale log(-log S) as in Klein, Moeschberger 2003, "Survival Analysis", section 4.5.

    Example:
        >>> print(kaplan_meier_median([1, 2, 3, 9, 9], [True, True, True, False, False]).estimate)
        3.0
    """
    arguments.scalars(confidence=confidence)
    if not 0 < confidence < 1:
        message = f"confidence={confidence}: give a probability inside (0, 1)"
        raise ValueError(message)
    time, survival, at_risk, events = kaplan_meier(times, observed)
    inside = survival > 0  # (E,), all but perhaps the last
    s, n, d = survival[inside], at_risk[inside], events[inside]
    error = np.sqrt(np.cumsum(d / (n * (n - d)))) / -np.log(s)  # of log(-log S)
    half_width = scipy.stats.norm.ppf((1 + confidence) / 2) * error
    lower_limit, upper_limit = (s ** np.exp(sign * half_width) for sign in (1, -1))
    return Interval(
        _first(time, survival <= 0.5),
        _first(time[inside], lower_limit <= 0.5),
        _first(time[inside], upper_limit <= 0.5),
    )


def log_rank_test(times: Any, observed: Any, other_times: Any, other_observed: Any) -> LogRank:
    """Return whether two samples of waiting times differ, censored ones included.

    At each event time the events of the first sample are compared with their share of those at
    risk; the sum of the differences is divided by its hypergeometric standard deviation. NaN where
    nothing can differ (no event while both samples are at risk).

    Args:
        times: (N,) finite, of the first sample.
        observed: (N,) bool, False where the time is censored.
        other_times: (M,) of the second sample.
        other_observed: (M,) bool.

    Raises:
        ValueError: as `kaplan_meier`.

    Reference: Mantel 1966, "Evaluation of survival data and two new rank order statistics".
    """
    times, observed = _sample(times, observed)
    other_times, other_observed = _sample(other_times, other_observed, "other_")
    both = kaplan_meier(
        np.concatenate([times, other_times]), np.concatenate([observed, other_observed])
    )
    share = np.sum(times[:, None] >= both.time, axis=0) / both.at_risk  # (E,) of the first sample
    remaining = (both.at_risk - both.events) / np.maximum(both.at_risk - 1, 1)
    variance = np.sum(both.events * share * (1 - share) * remaining)
    if not variance > 0:
        return LogRank(np.nan, np.nan)
    statistic = float((observed.sum() - np.sum(both.events * share)) / np.sqrt(variance))
    return LogRank(statistic, float(2 * scipy.stats.norm.sf(abs(statistic))))


def _first(time: FloatArray, reached: Any) -> FloatArray:
    return np.float64(time[np.argmax(reached)] if reached.any() else np.inf)


def _sample(times: Any, observed: Any, which: str = "") -> tuple[FloatArray, Any]:
    named = {f"{which}times": times, f"{which}observed": observed}
    arguments.shapes("N, N", **named)
    times, observed = np.asarray(times, np.float64), np.asarray(observed, bool)
    if not np.isfinite(times).all():
        message = f"{which}times={times}: give finite ones, for a censored one the time until then"
        raise ValueError(message)
    return times, observed
