"""What a finite width adds to the signal in deep random networks: moments that grow with depth.

Layers are as in `signal_propagation`, without biases and with n units each. Given one layer, the
next has independent Gaussian pre-activations whose variance G is (C_W / n) Σ s(z_j)²: a random
number. For ReLU and linear networks G is multiplied in every layer by an independent gain, so that
its moments are known at any width; for other activations they are known to first order in 1 / n.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.theory import signal_propagation

Activation = signal_propagation.Activation

GAINS = ("relu", "linear")


class LogGain(NamedTuple):
    """Law of the logarithm of a layer's gain, given that the gain is not zero."""

    mean: float
    variance: float


class FiniteWidthVariance(NamedTuple):
    """Mean and variance over networks of G_l, the variance of pre-activations given a network."""

    infinite: Array  # (L + 1, ...) K_l, the limit
    mean: Array  # (L + 1, ...) K_l + O(1/n), up to O(1/n²)
    variance: Array  # (L + 1, ...) O(1/n), up to O(1/n²)


def gain_moment(width: int, order: int, activation: str = "relu") -> float:
    """Return E[g^order], g = (2/n) Σ relu(u_j)² or (1/n) Σ u_j² of n standard normal u.

    These gains have mean 1 (C_W = 2 for ReLU, 1 for linear); the second moment is 1 + 5/n or
    1 + 2/n. For ReLU n/2 times g is half of a χ² with as many degrees as units are active.

    Args:
        width: n, at least 1.
        order: Not negative.
        activation: "relu" or "linear".

    Raises:
        ValueError: an argument is out of range.

    Reference: Hanin and Nica 2020, arXiv:1812.05994 (products of such matrices); derived here.

    Example:
        >>> print(round(gain_moment(10, 2), 12), round(gain_moment(10, 2, "linear"), 12))
        1.5 1.2
    """
    degrees, probabilities, scale = _active(width, activation)
    arguments.integers(0, order=order)
    rising = scipy.special.poch(degrees / 2, order)  # E[(χ²/2)^order]
    return float(np.sum(probabilities * rising) * (2 * scale) ** order)


def log_gain(width: int, activation: str = "relu") -> LogGain:
    """Return mean and variance of log g, g as in `gain_moment`, where not all units are off.

    The mean is negative: a typical network shrinks what the average one keeps.

    Args:
        width: n, at least 1.
        activation: "relu" or "linear".

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> print(round(log_gain(100).mean, 3))  # about -5 / 2n
        -0.025
    """
    degrees, probabilities, scale = _active(width, activation)
    alive = degrees > 0
    shape, weights = degrees[alive] / 2, probabilities[alive] / probabilities[alive].sum()
    means = scipy.special.digamma(shape) + math.log(2 * scale)
    mean = np.sum(weights * means)
    spread = scipy.special.polygamma(1, shape) + (means - mean) ** 2
    return LogGain(float(mean), float(np.sum(weights * spread)))


def output_moment_ratio(width: int, num_hidden: int, activation: str = "relu") -> float:
    """Return E[z⁴] / 3 E[z²]² of an output over random networks: 1 where outputs are Gaussian.

    (1 + 5/n)^num_hidden for ReLU and (1 + 2/n)^num_hidden for linear networks, at any width n of
    the hidden layers and whatever the variance of the weights.

    Args:
        width: n, at least 1.
        num_hidden: Hidden layers, not negative.
        activation: "relu" or "linear".

    Raises:
        ValueError: an argument is out of range.

    Reference: Roberts, Yaida, Hanin 2022, arXiv:2106.10165, section 3.3 (linear networks); Hanin
    2018, arXiv:1801.03744 (ReLU, the exponential in 5 L / n); exact form derived here.

    Example:
        >>> print(round(output_moment_ratio(5, 3), 12))
        8.0
    """
    arguments.integers(0, num_hidden=num_hidden)
    return gain_moment(width, 2, activation) ** num_hidden


def moment_ratio_error(
    width: int, num_hidden: int, num_networks: int, activation: str = "relu"
) -> float:
    """Return the relative standard error of a sampled `output_moment_ratio`.

    Of mean(z⁴) / 3 mean(z²)² over independent networks and the `width` outputs of each, to first
    order in 1 / num_networks. It grows as exp(10 num_hidden / n) for ReLU: deep networks cannot be
    sampled.

    Args:
        width: n of the hidden layers and the outputs.
        num_hidden: Hidden layers, not negative.
        num_networks: Sampled, at least 1.
        activation: "relu" or "linear".

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> print(round(moment_ratio_error(100, 0, 1000), 5))  # sqrt(8 / 3 / width / 1000)
        0.00516
    """
    arguments.integers(0, num_hidden=num_hidden)
    arguments.counts(num_networks=num_networks)
    two, three, four = (gain_moment(width, m, activation) ** num_hidden for m in (2, 3, 4))
    # Given G: E[z⁴z⁴], E[z²z⁴] and E[z²z²] of means over n independent outputs, by 9, 3 and 1
    fourth = four / two**2 * (1 + (105 / 9 - 1) / width)
    mixed = three / two * (1 + (5 - 1) / width)
    second = two * (1 + (3 - 1) / width)
    return math.sqrt((fourth - 4 * mixed + 4 * second - 1) / num_networks)


def finite_width_variance(
    activation: Activation,
    variance: Array,
    num_layers: int,
    *,
    width: int,
    weight_variance: float = 1.0,
    num_nodes: int = 64,
) -> FiniteWidthVariance:
    """Return mean and variance over networks of the variance G_l of pre-activations, to O(1/n).

    With g(K) = C_W E[s²]: K' = g, V' = g'² V + C_W² Var[s²] / n, and the mean's correction
    δ' = g' δ + g'' V / 2. For tanh at criticality V ends at 1 / 6nl and δ at -1 / 6n.

    Args:
        activation: s.
        variance: K_0 of the first pre-activations, any shape (...), positive.
        num_layers: L, not negative.
        width: n, at least 1.
        weight_variance: C_W.
        num_nodes: As in `gaussian_mean`.

    Raises:
        ValueError: an argument is out of range.

    Reference: Roberts, Yaida, Hanin 2022, arXiv:2106.10165, chapters 4 and 5, for one input.

    Example:
        >>> found = finite_width_variance(lambda u: u, 1.0, 3, width=100)
        >>> print(found.mean, found.variance.round(3))  # 2 l / n
        [1. 1. 1. 1.] [0.   0.02 0.04 0.06]
    """
    arguments.functions(activation=activation)
    arguments.positive(variance=variance, weight_variance=weight_variance)
    arguments.numbers(weight_variance=weight_variance)
    arguments.integers(0, num_layers=num_layers)
    arguments.counts(width=width, num_nodes=num_nodes)

    def moments(k: Array) -> tuple[Array, ...]:
        """g, g', g'' by Hermite polynomials, and the variance of C_W s²."""
        mean = lambda f: signal_propagation.gaussian_mean(f, k, num_nodes=num_nodes)
        square = lambda u: weight_variance * activation(u) ** 2
        scaled = lambda u: u**2 / k[..., None]
        value = mean(square)
        first = mean(lambda u: square(u) * (scaled(u) - 1)) / (2 * k)
        second = mean(lambda u: square(u) * (scaled(u) ** 2 - 6 * scaled(u) + 3)) / (4 * k**2)
        return value, first, second, mean(lambda u: square(u) ** 2) - value**2

    def step(state: Any, _: None) -> tuple[Any, Any]:
        k, correction, spread = state
        value, first, second, fresh = moments(k)
        after = (
            value,
            first * correction + second * spread / 2,
            first**2 * spread + fresh / width,
        )
        return after, state

    start = jnp.asarray(variance, jnp.result_type(float))
    zero = jnp.zeros_like(start)
    last, path = jax.lax.scan(step, (start, zero, zero), length=num_layers)
    join = lambda steps, end: jnp.concatenate([steps, end[None]])
    infinite, correction, spread = (join(*both) for both in zip(path, last, strict=True))
    return FiniteWidthVariance(infinite, infinite + correction, spread)


def _active(width: int, activation: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Return degrees of freedom (A,), their probabilities (A,) and the scale of χ² in a gain."""
    arguments.counts(width=width)
    arguments.choices(GAINS, activation=activation)
    if activation == "linear":
        return np.array([float(width)]), np.ones(1), 1 / width
    degrees = np.arange(width + 1.0)
    return degrees, scipy.special.comb(width, degrees) * 0.5**width, 2 / width
