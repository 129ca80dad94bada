"""What Bayes answers in an in-context regression whose noise is unknown too, after every prefix.

The task is drawn from the normal-inverse-gamma prior: σ² ~ InverseGamma(a, b), w | σ² ~
N(0, σ² I / k), and then y = w·x + σ ε with ε ~ N(0, 1). It is conjugate, so that what to expect
of the next target, and how far to trust it, has a closed form.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array


class NormalInverseGamma(NamedTuple):
    """The prior of weights and noise variance; σ² has mean b / (a - 1).

    With the defaults that mean is 1, and σ² still varies from task to task by as much: its
    coefficient of variation is 1 / sqrt(a - 2) = 1.
    """

    shape: float = 3.0  # a, above 1: the variance of a target is infinite below
    scale: float = 2.0  # b
    precision: float = 1.0  # k, of each weight in units of 1 / σ²


class Predictive(NamedTuple):
    """Mean and variance of each target given the examples before it."""

    mean: Array  # (N,)
    variance: Array  # (N,)


def prior_predictive(inputs: Array, prior: NormalInverseGamma) -> Predictive:
    """Return what is known of each target (..., N) from its own input (..., N, D) alone.

    The mean is 0, the variance b / (a - 1) (1 + |x|² / k).

    Raises:
        ValueError: a number of the prior that leaves no such variance.

    Example:
        >>> print(prior_predictive(jnp.array([[1.0, 2.0]]), NormalInverseGamma()).variance)
        [6.]
    """
    _check(prior)
    arguments.shapes("... D", inputs=inputs)
    spread = 1 + jnp.sum(inputs**2, axis=-1) / prior.precision
    variance = prior.scale / (prior.shape - 1) * spread
    return Predictive(jnp.zeros_like(variance), variance)


def posterior_predictive(inputs: Array, targets: Array, prior: NormalInverseGamma) -> Predictive:
    """Return mean and variance of each target under Bayes' rule, given the examples before it.

    With L = k I + Σ x x^T over those n examples and m = L^-1 Σ y x the mean is m·x and the variance
    b_n / (a_n - 1) (1 + x^T L^-1 x), where a_n = a + n / 2 and b_n = b + (Σ y² - m^T L m) / 2. That
    difference is summed as (y - m·x)² / (1 + x^T L^-1 x), with the m and L before each example:
    squares, which single precision can add.

    Args:
        inputs: (N, D) of one prompt.
        targets: (N,).
        prior: of the task.

    Raises:
        ValueError: shapes that do not fit; a number of the prior that leaves no variance.

    References:
        Gelman et al., Bayesian Data Analysis, 3rd edition, section 14.2, with a proper prior;
        Liu, Cai, Chen and Li 2024, arXiv:2405.15115 (mean and variance as two answers of one
        network; the prior of the noise is chosen here, for its closed form).

    Example:
        One example at x = 1 is met half way by the prior; nothing is known before.

        >>> x, y = jnp.ones((2, 1)), jnp.array([4.0, 0.0])
        >>> known = posterior_predictive(x, y, NormalInverseGamma(shape=2.0, scale=1.0))
        >>> print(known.mean, known.variance)  # b + 4² / 2 / 2 = 5, a - 1 = 3/2, 1 + 1/2
        [0. 2.] [2. 5.]
    """
    _check(prior)
    arguments.shapes("N D, N", inputs=inputs, targets=targets)
    inputs, targets = jnp.asarray(inputs), jnp.asarray(targets)

    dim, dtype = inputs.shape[1], jnp.result_type(inputs, targets)
    start: tuple[Array, ...] = (
        jnp.zeros(dim, dtype),
        jnp.eye(dim, dtype=dtype) / prior.precision,
        jnp.asarray(prior.shape, dtype),
        jnp.asarray(prior.scale, dtype),
    )
    return jax.lax.scan(_learn, start, (inputs, targets))[1]


def _learn(
    known: tuple[Array, ...], example: tuple[Array, Array]
) -> tuple[tuple[Array, ...], Predictive]:
    """Answer one example from m, L^-1, a_n and b_n, and return them after it (Sherman-Morrison)."""
    weights, inverse, shape, scale = known
    x, y = example
    gain = inverse @ x
    spread = 1 + x @ gain
    error = y - weights @ x
    after = (
        weights + gain * error / spread,
        inverse - jnp.outer(gain, gain) / spread,
        shape + 0.5,
        scale + error**2 / (2 * spread),
    )
    return after, Predictive(weights @ x, scale / (shape - 1) * spread)


def excess_risk(answer: Predictive, best: Predictive) -> Array:
    """Return how much more an answer costs than the best one, in nats, each (...).

    The cost of mean m and variance s² is the Gaussian negative log likelihood (log s²) / 2 +
    (y - m)² / (2 s²). Whatever the distribution of y, of mean μ and variance V, its expectation is
    least at (μ, V), and greater elsewhere by (log(s² / V) + (V + (m - μ)²) / s² - 1) / 2: the
    divergence of N(m, s²) from N(μ, V).

    Example:
        >>> one = jnp.ones(())
        >>> print(excess_risk(Predictive(2 * one, one), Predictive(0 * one, one)))
        2.0
    """
    arguments.records(Predictive, answer=answer, best=best)
    ratio = best.variance / answer.variance
    return (ratio - 1 - jnp.log(ratio) + (answer.mean - best.mean) ** 2 / answer.variance) / 2


def _check(prior: NormalInverseGamma) -> None:
    arguments.records(NormalInverseGamma, prior=prior)
    if not prior.shape > 1:
        message = f"prior: shape={prior.shape}; give more than 1, or targets have no variance"
        raise ValueError(message)
    for name in ("scale", "precision"):
        if not getattr(prior, name) > 0:
            message = f"prior: {name}={getattr(prior, name)}; give a positive number"
            raise ValueError(message)
