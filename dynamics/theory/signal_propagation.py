"""How variance, correlation and gradients pass through deep random networks of infinite width.

Layers are z <- sqrt(weight_variance / fan_in) W s(z) + sqrt(bias_variance) b with all entries of W
and b from N(0, 1). In the limit the pre-activations z of a unit are Gaussian, so that a network is
a map of their variance and correlation. ReLU maps are closed forms; those of other activations are
Gauss-Hermite sums, which converge fast where the activation is smooth. `criticality` says at which
variances of the parameters signals survive, `finite_width_signal` what a finite width adds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from dynamics import arguments
from dynamics.aliases import Array

Activation = Callable[[Array], Array]  # one unit at a time, written in JAX


class Susceptibilities(NamedTuple):
    """By how much a layer stretches small differences; both 1 at criticality."""

    parallel: Array  # of the variance, by which it was moved
    perpendicular: Array  # of inputs of one norm; also what gradients gain going back one layer


class Correlations(NamedTuple):
    """Two inputs on their way up, in layers 0 to L; the trailing axes are those of the pairs.

    `defect` is kept instead of the correlation because it is what becomes small.
    """

    defect: Array  # (L + 1, ...) 1 - correlation of the pre-activations
    derivative: Array  # (L + 1, ...) correlation that gradients keep in going back that layer


def gaussian_mean(function: Activation, variance: Array, *, num_nodes: int = 128) -> Array:
    """Return E[function(u)], u ~ N(0, variance), by Gauss-Hermite quadrature; shaped as `variance`.

    Args:
        function: Acts on every entry of an array.
        variance: Not negative, any shape.
        num_nodes: Exact for polynomials up to degree 2 num_nodes - 1. For tanh at variance 1 the
            default is exact to rounding, and even counts see half of a symmetric kink at zero.

    Raises:
        ValueError: `num_nodes` is not positive.

    Example:
        >>> print(round(float(gaussian_mean(lambda u: u**4, 2.0)), 3))
        12.0
    """
    arguments.functions(function=function)
    arguments.not_negative(variance=variance)
    nodes, weights = _nodes(num_nodes)
    root = jnp.sqrt(jnp.asarray(variance, nodes.dtype))[..., None]
    return jnp.sum(weights * function(root * nodes), axis=-1)


def slope_of(activation: Activation) -> Activation:
    """Return the derivative s' of an activation, entry by entry.

    Example:
        >>> print(slope_of(jnp.sin)(jnp.zeros(2)))
        [1. 1.]
    """
    arguments.functions(activation=activation)

    def slope(u: Array) -> Array:
        return jax.jvp(activation, (u,), (jnp.ones_like(u),))[1]

    return slope


def variances(
    activation: Activation,
    variance: Array,
    num_layers: int,
    *,
    weight_variance: float = 1.0,
    bias_variance: float = 0.0,
    num_nodes: int = 128,
) -> Array:
    """Return the variance K_l of the pre-activations in layers 0 to L, (L + 1, ...).

    Args:
        activation: s.
        variance: K_0 of the first pre-activations, any shape (...).
        num_layers: L, not negative.
        weight_variance: Of the weights, times fan_in.
        bias_variance: Of the biases.
        num_nodes: As in `gaussian_mean`.

    Raises:
        ValueError: `num_layers` is negative, or a variance of parameters out of range.

    Reference: Poole et al. 2016, arXiv:1606.05340.

    Example:
        >>> print(variances(lambda u: u, 1.0, 2, weight_variance=0.5))
        [1.   0.5  0.25]
    """
    arguments.functions(activation=activation)
    arguments.not_negative(variance=variance)
    _check(num_layers, weight_variance, bias_variance)

    def step(k: Array, _: None) -> tuple[Array, Array]:
        second_moment = gaussian_mean(lambda u: activation(u) ** 2, k, num_nodes=num_nodes)
        return weight_variance * second_moment + bias_variance, k

    start = jnp.asarray(variance, jnp.result_type(float))
    last, path = jax.lax.scan(step, start, length=num_layers)
    return jnp.concatenate([path, last[None]])


def susceptibilities(
    activation: Activation, variance: Array, *, weight_variance: Array, num_nodes: int = 128
) -> Susceptibilities:
    """Return C_W d E[s²]/dK and C_W E[s'²] at variance K, shaped as `variance`.

    Args:
        activation: s.
        variance: K, positive.
        weight_variance: C_W.
        num_nodes: As in `gaussian_mean`.

    Reference: Roberts, Yaida, Hanin 2022, arXiv:2106.10165, section 5.1.

    Example:
        >>> print(susceptibilities(jax.nn.relu, 3.0, weight_variance=2.0).parallel.round(5))
        1.0
    """
    arguments.functions(activation=activation)
    arguments.positive(variance=variance)
    arguments.numbers(weight_variance=weight_variance)
    variance = jnp.asarray(variance)
    slope = slope_of(activation)
    # Stein's lemma: no second derivative, which ReLU does not have.
    by_variance = gaussian_mean(
        lambda u: activation(u) ** 2 * (u**2 / variance[..., None] - 1),
        variance,
        num_nodes=num_nodes,
    )
    squared = gaussian_mean(lambda u: slope(u) ** 2, variance, num_nodes=num_nodes)
    return Susceptibilities(
        weight_variance * by_variance / (2 * variance), weight_variance * squared
    )


def relu_correlations(correlation: Array, num_layers: int, *, gain: float = 1.0) -> Correlations:
    """Return how ReLU layers at a fixed variance make two inputs of one norm alike.

    With θ the angle, a critical layer (C_W = 2, C_b = 0) makes it
    arccos((sin θ + (π - θ) cos θ) / π) and gradients keep 1 - θ / π of their correlation. Going
    up θ falls as 3π / (l + 3/2 log l + const), so that the defect falls as 9π² / 2l². Without
    biases every C_W does this: only `gain` < 1, which leaves variance to biases, does otherwise.

    Args:
        correlation: c_0 in [-1, 1], any shape (...).
        num_layers: L, not negative.
        gain: χ = C_W / 2 in (0, 1]; biases have the variance (1 - χ) K, and the defect falls
            as χ^l where χ < 1.

    Raises:
        ValueError: an argument is out of range.

    Reference: Cho and Saul 2009; Hayou et al. 2019, arXiv:1902.06853 (the rate).

    Example:
        >>> print(relu_correlations(0.0, 1).defect.round(5))
        [1.      0.68169]
    """
    _check(num_layers, 1.0, 0.0)
    arguments.scalars(gain=gain)
    if not 0 < gain <= 1:
        message = f"gain={gain}: give a number above 0 and at most 1"
        raise ValueError(message)

    def step(angle: Array, _: None) -> tuple[Array, Array]:
        # 1 - cos θ', in a form that loses nothing where θ is small
        defect = 2 * jnp.sin(angle / 2) ** 2 - (jnp.sin(angle) - angle * jnp.cos(angle)) / jnp.pi
        return 2 * jnp.arcsin(jnp.sqrt(gain * defect / 2)), angle

    start = jnp.arccos(_correlation(correlation))
    last, path = jax.lax.scan(step, start, length=num_layers)
    angles = jnp.concatenate([path, last[None]])
    return Correlations(2 * jnp.sin(angles / 2) ** 2, gain * (1 - angles / jnp.pi))


def smooth_correlations(
    activation: Activation,
    correlation: Array,
    num_layers: int,
    *,
    variance: float,
    weight_variance: Array,
    num_nodes: int = 32,
) -> Correlations:
    """Return how layers with a smooth activation at a fixed variance K change a correlation.

    At criticality the defect falls as 2 / (C_W E[s''²] K l), and gradients keep (l / L)² of
    their correlation from layer L down to l. The variance of the biases is that which keeps K.

    Args:
        activation: s, with two derivatives: the quadrature is slow to converge at a kink.
        correlation: c_0 in [-1, 1], any shape (...).
        num_layers: L, not negative.
        variance: K, positive.
        weight_variance: C_W, as from `criticality.critical_initialisation`.
        num_nodes: In each of two directions.

    Raises:
        ValueError: an argument is out of range.

    Reference: Hayou et al. 2019, arXiv:1902.06853.

    Example:
        >>> found = smooth_correlations(lambda u: u, 0.5, 1, variance=1.0, weight_variance=1.0)
        >>> print(found.defect.round(4))
        [0.5 0.5]
    """
    arguments.functions(activation=activation)
    _check(num_layers, weight_variance, 0.0)
    arguments.scalars(variance=variance)
    arguments.positive(variance=variance)
    nodes, weights = _nodes(num_nodes)
    grid = weights[:, None] * weights
    slope = slope_of(activation)

    def step(defect: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        # The half-sum and the half-difference of the two are independent, and 1 - c' is
        # E[(s(u) - s(v))²] C_W / 2K: no small difference of large numbers.
        middle = jnp.sqrt(variance * (1 - defect / 2))[..., None, None] * nodes[:, None]
        apart = jnp.sqrt(variance * defect / 2)[..., None, None] * nodes
        u, v = middle + apart, middle - apart
        mean = lambda values: weight_variance * jnp.sum(grid * values, axis=(-2, -1))
        after = mean((activation(u) - activation(v)) ** 2) / (2 * variance)
        return after, (defect, mean(slope(u) * slope(v)))

    start = 1 - _correlation(correlation)
    return Correlations(*jax.lax.scan(step, start, length=num_layers + 1)[1])


def backward_correlations(derivative: Array) -> Array:
    """Return the log correlation of gradients at layers 0 to L when they start alike in layer L.

    Args:
        derivative: (L + 1, ...) as in `Correlations`, divided by its value at correlation 1 where
            that is not 1.

    Reference: Schoenholz et al. 2017, arXiv:1611.01232, section 4.

    Example:
        >>> print(jnp.exp(backward_correlations(jnp.array([0.5, 0.25, 1.0]))))
        [0.125 0.25  1.   ]
    """
    arguments.shapes("L ...", derivative=derivative)
    logarithm = jnp.log(derivative[:-1])
    below = jnp.cumsum(logarithm[::-1], axis=0)[::-1]
    return jnp.concatenate([below, jnp.zeros_like(derivative[:1])])


def crossing_layers(correlations: Correlations, depths: Any) -> Array:
    """Return the layer in which a network of each depth keeps most of both signals, (X, ...).

    That is where the defect of the forward signal, which falls going up, meets the correlation of
    the gradients, which falls going down; between layers by linear interpolation of logarithms.

    Args:
        correlations: Of one pass to the largest depth, (L + 1, P) for P pairs.
        depths: (X,) integers from 1 to L.

    Raises:
        ValueError: the shapes or a depth are out of range.

    Reference: Lou et al. 2022, arXiv:2110.11749 ("equilibrium" of the two losses).
    """
    arguments.records(Correlations, correlations=correlations)
    arguments.shapes("X", depths=depths)
    arguments.labels(np.inf, depths=depths)
    depths = np.asarray(depths)
    defect, derivative = correlations
    if defect.ndim != 2 or defect.shape != derivative.shape:
        message = f"correlations: shapes {defect.shape}, {derivative.shape}; give (L + 1, P) twice"
        raise ValueError(message)
    if depths.ndim != 1 or not depths.size or depths.min() < 1 or depths.max() >= len(defect):
        message = f"depths={depths}: give integers from 1 to {len(defect) - 1} in one dimension"
        raise ValueError(message)
    passed = jnp.concatenate(  # Σ log χ over the layers below: B_l(L) = passed_L - passed_l
        [jnp.zeros_like(defect[:1]), jnp.cumsum(jnp.log(derivative[:-1]), axis=0)]
    )
    falling = jnp.log(defect) + passed  # crosses passed_L once

    def of_pair(curve: Array, ends: Array) -> Array:
        after = jnp.clip(jnp.searchsorted(-curve, -ends), 1, len(curve) - 1)
        left, right = curve[after - 1], curve[after]
        return after - 1 + (left - ends) / (left - right)

    return jax.vmap(of_pair, in_axes=1, out_axes=1)(falling, passed[depths])


def _nodes(num_nodes: int) -> tuple[Array, Array]:
    """Return nodes and weights (num_nodes,) of the standard normal law."""
    arguments.counts(num_nodes=num_nodes)
    nodes, weights = scipy.special.roots_hermitenorm(num_nodes)
    return jnp.asarray(nodes, float), jnp.asarray(weights / weights.sum(), float)


def _correlation(correlation: Array) -> Array:
    arguments.numbers(correlation=correlation)
    traced = isinstance(correlation, jax.core.Tracer)
    if not traced and not np.all(np.abs(np.asarray(correlation)) <= 1):
        message = f"correlation={correlation}: give numbers from -1 to 1"
        raise ValueError(message)
    return jnp.asarray(correlation, jnp.result_type(float))


def _check(num_layers: int, weight_variance: Any, bias_variance: Any) -> None:
    arguments.integers(0, num_layers=num_layers)
    arguments.scalars(weight_variance=weight_variance, bias_variance=bias_variance)
    arguments.positive(weight_variance=weight_variance)
    arguments.not_negative(bias_variance=bias_variance)
