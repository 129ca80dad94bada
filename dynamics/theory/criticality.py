"""Where deep random networks are critical, and which activations share a kind of critical point.

At criticality small differences of a signal neither grow nor vanish from layer to layer. The
conventions are those of `signal_propagation`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.theory import signal_propagation

Activation = signal_propagation.Activation

UNIVERSALITY_CLASSES = ("scale invariant", "zero variance", "half stable", "none")


class Initialisation(NamedTuple):
    """The variances from which the parameters of every layer are drawn."""

    weight_variance: Array  # () times fan_in
    bias_variance: Array  # ()


class VarianceDecay(NamedTuple):
    """1 / K_l = rate l + logarithm log l + a constant that remembers the input + O(log l / l)."""

    rate: Array  # ()
    logarithm: Array  # ()


def critical_initialisation(
    activation: Activation, variance: float, *, num_nodes: int = 128
) -> Initialisation:
    """Return the variances of parameters that keep K and let gradients neither grow nor vanish.

    C_W = 1 / E[s'²] makes the perpendicular susceptibility 1 ("the edge of chaos"), and
    C_b = K - C_W E[s²] makes K a fixed point.

    Args:
        activation: s.
        variance: K, positive.
        num_nodes: As in `gaussian_mean`.

    Raises:
        ValueError: `variance` is not positive, or this activation has no such point at it: the
            variance of the biases would be negative.

    Reference: Schoenholz et al. 2017, arXiv:1611.01232; Hayou et al. 2019, arXiv:1902.06853.

    Example:
        >>> print(critical_initialisation(jax.nn.relu, 1.0).weight_variance.round(5))
        2.0
    """
    arguments.functions(activation=activation)
    arguments.scalars(variance=variance)
    arguments.positive(variance=variance)
    arguments.finite(variance=variance)
    arguments.counts(num_nodes=num_nodes)
    slope = signal_propagation.slope_of(activation)

    def mean(function: Activation) -> Array:
        at = jnp.asarray(variance)
        return signal_propagation.gaussian_mean(function, at, num_nodes=num_nodes)

    weight = 1 / mean(lambda u: slope(u) ** 2)
    bias = variance - weight * mean(lambda u: activation(u) ** 2)
    if not bias > -1e-5 * variance:  # single precision may end below zero for ReLU
        message = f"variance={variance}: there C_b = {float(bias):.3g} would be critical; give"
        raise ValueError(message + " a variance at which it is not negative")
    return Initialisation(weight, jnp.maximum(bias, 0))


def variance_series(activation: Activation) -> Array:
    """Return (a_1, a_2, a_3) of E[s²] = a_1 K + a_2 K² + a_3 K³ + O(K⁴), for s(0) = 0, (3,).

    They are the derivatives of s² at 0 of order 2m divided by 2^m m!, as for any heat kernel.

    Args:
        activation: s, with six derivatives at 0.

    Example:
        >>> print(variance_series(jnp.sin))
        [ 1.        -1.         0.6666667]
    """
    arguments.functions(activation=activation)
    derivatives, function = [], lambda u: activation(u) ** 2
    for m in (1, 2, 3):
        function = jax.grad(jax.grad(function))
        derivatives.append((function, 2**m * math.factorial(m)))
    # one program: operation by operation a sixth derivative takes seconds
    return jax.jit(lambda u: jnp.stack([f(u) / factor for f, factor in derivatives]))(0.0)


def variance_decay(activation: Activation) -> VarianceDecay:
    """Return how fast the variance dies out at the critical point K = 0, C_W = 1 / s'(0)².

    K <- K + a K² + b K³ is 1/K <- 1/K - a + (a² - b) K: summed, 1/K_l = -a l - (a² - b)/a log l.

    Args:
        activation: s, with s(0) = 0, s'(0) not 0, and six derivatives at 0.

    Raises:
        ValueError: s(0) is not 0, s'(0) is, or the variance does not fall (a >= 0).

    Reference: Roberts, Yaida, Hanin 2022, arXiv:2106.10165, section 5.3.3 (the rate); the
    logarithm is derived here.

    Example:
        >>> print(f"{variance_decay(jnp.tanh).logarithm:.3f}")  # -5/6
        -0.833
    """
    arguments.functions(activation=activation)
    passes_zero = abs(float(activation(jnp.zeros(())))) < 1e-6
    first, second, third = variance_series(activation) if passes_zero else jnp.zeros(3)
    if not first > 0:
        message = f"activation={activation!r}: it has no critical point at K = 0; give one with"
        raise ValueError(message + " s(0) = 0 and s'(0) other than 0")
    a, b = second / first, third / first
    if not a < 0:
        message = f"activation={activation!r}: small variances grow (a = {float(a):.3g})"
        raise ValueError(message + "; give one that saturates")
    return VarianceDecay(-a, (b - a**2) / a)


def half_stable_variance(activation: Activation, *, num_nodes: int = 160) -> float | None:
    """Return the variance K > 0 at which both susceptibilities can be 1, or None.

    Args:
        activation: s.
        num_nodes: As in `gaussian_mean`; more than there, because K may be above 10.

    Reference: Roberts, Yaida, Hanin 2022, arXiv:2106.10165, section 5.3.4.

    Example:
        >>> print(round(half_stable_variance(lambda u: jax.nn.gelu(u, approximate=False)), 2))
        3.56
    """
    arguments.functions(activation=activation)
    arguments.counts(num_nodes=num_nodes)

    @jax.jit
    def relative(log_variance: Array) -> Array:
        found = signal_propagation.susceptibilities(
            activation, jnp.exp(log_variance), weight_variance=jnp.ones(()), num_nodes=num_nodes
        )
        return found.parallel / found.perpendicular - 1

    excess = lambda log_variance: np.asarray(relative(log_variance), np.float64)

    grid = np.linspace(math.log(0.05), math.log(50), 40)
    values = excess(grid)
    crossed = np.flatnonzero(values[:-1] * values[1:] < 0)
    for first in crossed:
        root = scipy.optimize.brentq(excess, grid[first], grid[first + 1], xtol=1e-6)
        try:
            critical_initialisation(activation, math.exp(root), num_nodes=num_nodes)
        except ValueError:
            continue
        return math.exp(root)
    return None


def universality_class(activation: Activation) -> str:
    """Return which kind of critical point an activation has, one of UNIVERSALITY_CLASSES.

    "scale invariant": s(λu) = λ s(u), every variance is kept (ReLU, linear). "zero variance": the
    variance falls as 1 / l at C_W = 1 / s'(0)² (tanh, sin). "half stable": a variance K > 0
    that is stable from one side (GELU, SiLU). "none": sigmoid, softplus.

    Args:
        activation: s, with derivatives at 0 unless it is scale invariant.

    Reference: Roberts, Yaida, Hanin 2022, arXiv:2106.10165, section 5.3.

    Example:
        >>> universality_class(jnp.tanh)
        'zero variance'
    """
    arguments.functions(activation=activation)
    points = jnp.array([-1.7, -0.6, 0.4, 2.3])
    if bool(jnp.allclose(activation(3 * points), 3 * activation(points), rtol=1e-4, atol=1e-5)):
        return "scale invariant"
    try:
        variance_decay(activation)
    except ValueError:
        return "none" if half_stable_variance(activation) is None else "half stable"
    return "zero variance"
