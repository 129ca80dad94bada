"""Grokking: when a curve crosses a threshold, and how long after the training the test does."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.measure import statistics, survival
from dynamics.measure.fourier import fourier_power as fourier_power
from dynamics.measure.fourier import inverse_participation_ratio as inverse_participation_ratio
from dynamics.measure.memorising_neurons import kept_neurons as kept_neurons
from dynamics.measure.memorising_neurons import memorising_neurons as memorising_neurons
from dynamics.measure.memorising_neurons import neuron_participation as neuron_participation
from dynamics.measure.memorising_neurons import prune_neurons as prune_neurons
from dynamics.measure.progress_measures import excluded_loss as excluded_loss
from dynamics.measure.progress_measures import key_frequencies as key_frequencies
from dynamics.measure.progress_measures import restricted_loss as restricted_loss

DIRECTIONS = ("above", "below")


def first_crossing(steps: Any, values: Any, threshold: Any, *, direction: str = "above") -> Array:
    """Return the first step, interpolated, at which `values` reach `threshold`: shape (...).

    Between the last measurement before the crossing and the first one at or beyond the threshold
    the curve is taken to be straight. A curve that begins beyond the threshold crosses at the
    first of the `steps`; one that never gets there has crossed at infinity (it is censored: later
    than all that was seen). A NaN has not crossed, and where the measurement before a crossing is
    not finite there is no interpolation. Later returns across the threshold do not matter.

    Args:
        steps: (T,) increasing; the unit is the caller's (steps, epochs, time).
        values: (T,) or (..., T), one curve along the last axis.
        threshold: A number, or (...) one for each curve.
        direction: "above": reached from below, values >= threshold; "below": the opposite.

    Raises:
        ValueError: unknown `direction`, or the shapes do not fit.

    Example:
        >>> print(first_crossing([0, 10, 20], [0.0, 0.5, 1.0], 0.75))
        15.0
    """
    arguments.choices(DIRECTIONS, direction=direction)
    arguments.shapes("T, ... T", steps=steps, values=values)
    arguments.numbers(threshold=threshold)
    steps, values, threshold = (jnp.asarray(x, float) for x in (steps, values, threshold))
    sign = 1.0 if direction == "above" else -1.0
    height = sign * (values - threshold[..., None])  # (..., T), crossed where >= 0
    crossed = height >= 0
    after = jnp.argmax(crossed, axis=-1)  # (...), the first True
    before = jnp.maximum(after - 1, 0)
    height_after, height_before = (
        jnp.take_along_axis(height, index[..., None], axis=-1)[..., 0] for index in (after, before)
    )
    # The way back from the measurement after the crossing, as a fraction of the gap.
    rise = height_after - height_before
    usable = jnp.isfinite(rise) & (rise > 0)
    fraction = jnp.where(usable, height_after / jnp.where(usable, rise, 1.0), 0.0)
    crossing = steps[after] - fraction * (steps[after] - steps[before])
    return jnp.where(crossed.any(axis=-1), crossing, jnp.inf)


def grokking_delay(steps: Any, train_accuracy: Any, test_accuracy: Any, threshold: Any) -> Array:
    """Return how many steps after the training accuracy the test accuracy reaches `threshold`.

    Infinite where one of the two never does within the `steps`; negative where the test accuracy
    is first. The delay of Power et al. 2022, "Grokking" (arXiv 2201.02177), section 3.

    Args:
        steps: (T,) increasing.
        train_accuracy: (T,) or (..., T).
        test_accuracy: The same shape.
        threshold: The accuracy that counts as solved, for both.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> print(grokking_delay([0, 10, 20], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0], 0.9))
        10.0
    """
    curves = dict(train_accuracy=train_accuracy, test_accuracy=test_accuracy)
    arguments.shapes("T, ... T, ... T", steps=steps, **curves)
    train = first_crossing(steps, train_accuracy, threshold)
    test = first_crossing(steps, test_accuracy, threshold)
    seen = jnp.isfinite(train) & jnp.isfinite(test)
    return jnp.where(seen, test - jnp.where(seen, train, 0.0), jnp.inf)


def grokking_delay_median(
    steps: Any,
    train_accuracy: Any,
    test_accuracy: Any,
    threshold: float,
    *,
    confidence: float = 0.95,
) -> statistics.Interval:
    """Return the median `grokking_delay` over seeds and its interval, in the unit of `steps`.

    A seed whose test accuracy never reaches the threshold is not left out, which would make the
    delay look shorter: its delay is censored at the steps that were left after its training
    crossing, and the median is that of Kaplan and Meier (`survival.kaplan_meier_median`). It, and
    its upper bound, may be infinite. A seed whose training accuracy never crosses has no delay at
    all; then everything is NaN.

    Args:
        steps: (T,) increasing; the budget is the last of them.
        train_accuracy: (S, T).
        test_accuracy: (S, T).
        threshold: The accuracy that counts as solved, for both.
        confidence: Probability that the interval holds the median, for large S.

    Raises:
        ValueError: the shapes do not fit; `confidence` is not inside (0, 1).

    Example:
        >>> train, test = [[0.0, 1.0, 1.0]] * 3, [[0.0, 0.0, 1.0]] * 2 + [[0.0, 0.0, 0.0]]
        >>> print(grokking_delay_median([0, 10, 20], train, test, 1.0).estimate)
        10.0
    """
    curves = dict(train_accuracy=train_accuracy, test_accuracy=test_accuracy)
    arguments.shapes("T, S T, S T", steps=steps, **curves)
    arguments.scalars(confidence=confidence)
    delay = np.asarray(grokking_delay(steps, train_accuracy, test_accuracy, threshold))
    fitted = np.asarray(first_crossing(steps, train_accuracy, threshold))
    if not np.isfinite(fitted).all():
        return statistics.Interval(*[np.float64(np.nan)] * 3)
    observed = np.isfinite(delay)
    waited = np.where(observed, delay, np.asarray(steps)[-1] - fitted)
    return survival.kaplan_meier_median(waited, observed, confidence)


def accuracy(logits: Any, labels: Any) -> Array:
    """Return the share of samples whose own class has the largest logit, no other as large.

    The same as comparing `argmax` with the labels, but for ties, which are wrong here (a network
    that has decayed to zero has learnt nothing) and NaN, which is wrong too. On a CPU it is ten
    times as fast: the largest of 31 logits takes a loop of comparisons, its index one of branches.

    Args:
        logits: (N, C).
        labels: (N,) integers from 0 to C - 1.

    Raises:
        ValueError: the shapes do not fit, or a label is out of range.
        TypeError: `labels` are no integers.

    Example:
        >>> print(accuracy([[2.0, 1.0], [2.0, 1.0], [1.0, 1.0]], jnp.array([0, 1, 0])).round(3))
        0.333
    """
    arguments.shapes("N C, N", logits=logits, labels=labels)
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    arguments.labels(logits.shape[1], labels=labels)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)  # (N, 1)
    return jnp.mean(jnp.sum(logits >= own, axis=1) == 1)
