"""Deep linear networks on free features under weight decay: their global minimisers.

The features H (N, D) of N samples are trained like the weights (the unconstrained-features model),

    L = |H W_1 ... W_M - Y|² / (2 N) + (λ_W / 2) Σ_j |W_j|² + (λ_H / 2) |H|²,

with one-hot targets Y (N, K), n_k samples in class k, no bias, and all widths at least K. At a
minimum the features of a class are all at its mean h_k, which lies along the class's column w_k of
the product P = W_1 ... W_M (D, K); different classes are orthogonal, and each chooses its squared
length p_k = |w_k|² for itself. It minimises, times n_k / 2 N,

    g(u) = 1 / (1 + u) + β u^(1/M),  u = p_k / (N λ_H),  β = b / n_k,  b = M N λ_W (N λ_H)^(1/M).

The first term is the fit with the best features, the second what M matrices pay for the length. At
M = 1 the minimiser falls to zero continuously as β grows to 1. From M = 2 on zero is a local
minimum for every β > 0 and takes over by a jump, at the `threshold`; the other minimum lives on
until the `spinodal`.

Reference: Dang et al. 2023, arXiv:2301.00437, theorems on bias-free MSE, balanced and imbalanced;
    threshold, jump and spinodal in this form are derived here.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array

BRANCHES = ("global", "outer")
HALVINGS = 80  # of the bracket: they exhaust double precision for any price above 1e-12
Branch = Literal["global", "outer"]


class Minimiser(NamedTuple):
    """What the classes' directions are at a minimum; different classes are orthogonal."""

    classifier: Array  # (K,) p_k = |w_k|², of the columns of W_1 ... W_M
    features: Array  # (K,) |h_k|² = p_k / (p_k + N λ_H)², of the class means, not centred
    alignment: Array  # (K,) w_k·h_k = p_k / (p_k + N λ_H): the output at class k for its samples
    loss: Array  # () the whole loss L, decay included


class BalancedMinimiser(NamedTuple):
    """Gram matrices at a minimum for equal classes, and the last bias."""

    classifier: Array  # (K, K) w_k·w_l
    features: Array  # (K, K) h_k·h_l of the class means, not centred
    alignment: Array  # (K, K) w_k·h_l
    bias: Array  # (K,)


def threshold(depth: int | Array) -> Array:
    """Return β = b / n_k up to which a class survives at the global minimum, (M-1)^((M-1)/M) / M.

    There both minima are equally deep: g(u) = 1 and g'(u) = 0 at u = M - 1. Dimensionless, of the
    shape of `depth`.

    Raises:
        ValueError: `depth` is below 1.

    Example:
        >>> print(threshold(1), threshold(2))
        1.0 0.5
    """
    number = _depth(depth)
    return (number - 1) ** (1 - 1 / number) / number


def spinodal(depth: int | Array) -> Array:
    """Return β up to which the minimum at non-zero length exists, if only as a local one.

    M ((M-1)/(M+1))^((M-1)/M) ((M+1)/(2M))², the largest slope of the fit in units of the length's
    price, at u = (M-1)/(M+1). Equal to the threshold at M = 1: nothing is metastable there.

    Raises:
        ValueError: `depth` is below 1.

    Example:
        >>> print(spinodal(1), spinodal(2).round(4))
        1.0 0.6495
    """
    number = _depth(depth)
    return _slope((number - 1) / (number + 1), number)


def jump(depth: int | Array) -> Array:
    """Return the length u = p / (N λ_H) from which a class falls to zero at the threshold: M - 1.

    Raises:
        ValueError: `depth` is below 1.

    Example:
        >>> print(jump(1), jump(3))
        0.0 2.0
    """
    return _depth(depth) - 1


def price(
    class_sizes: Array,
    *,
    weight_decay: float | Array,
    feature_decay: float | Array,
    depth: int | Array,
) -> Array:
    """Return β = b / n_k = M N λ_W (N λ_H)^(1/M) / n_k, the price of a class's length: (K,).

    Args:
        class_sizes: n_k, (K,), positive; N is their sum. They need not be integers.
        weight_decay: λ_W, non-negative: coefficient of |W_j|² / 2 for each j. Where matrices have
            decays of their own, their geometric mean.
        feature_decay: λ_H, positive: coefficient of |H|² / 2.
        depth: M >= 1, the number of matrices. May be traced.

    Raises:
        ValueError: an argument is outside its range.

    Example:
        >>> sizes = jnp.array([3.0, 1.0])
        >>> print(price(sizes, weight_decay=0.25, feature_decay=0.25, depth=1))
        [0.33333334 1.        ]
    """
    sizes, weight_decay, feature_decay = _checked(class_sizes, weight_decay, feature_decay)
    number, samples = _depth(depth).astype(sizes.dtype), jnp.sum(sizes)
    return number * samples * weight_decay * (samples * feature_decay) ** (1 / number) / sizes


def scaled_length(price: Array, depth: int | Array, *, branch: Branch = "global") -> Array:
    """Return the length u = p / (N λ_H) that minimises g(u) = 1 / (1 + u) + β u^(1/M).

    The larger root of g'(u) = 0, by bisection between the steepest point of the fit and a bound
    on the root; zero where g is smaller there. Gradients do not pass through the bisection.

    Args:
        price: β, any shape, non-negative; infinite length at zero.
        depth: M >= 1, scalar or of a shape that broadcasts against `price`.
        branch: "global" (zero beyond the threshold) or "outer": the minimum at non-zero length
            wherever it exists, that is zero beyond the spinodal only.

    Raises:
        ValueError: `price` is negative, `depth` is below 1, `branch` is unknown.

    Example:
        >>> print(scaled_length(jnp.array([0.25, 0.51, 4.0]), 1).round(4))
        [1.     0.4003 0.    ]
        >>> print(scaled_length(jnp.array([0.51, 0.51]), jnp.array([1, 2])).round(4))
        [0.4003 0.    ]
    """
    arguments.choices(BRANCHES, branch=branch)
    _refuse(price, "price", "give non-negative numbers", lambda value: value >= 0)
    beta = _floating(price)
    beta, number = jnp.broadcast_arrays(beta, _depth(depth).astype(beta.dtype))
    # g' < 0 left of the root and > 0 right of it; M u^(-1-1/M) bounds the slope from above.
    low = (number - 1) / (number + 1)
    high = jnp.maximum((number / beta) ** (number / (number + 1)), low)

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        too_small = _slope(middle, number) > beta
        return jnp.where(too_small, middle, low), jnp.where(too_small, high, middle)

    low, high = jax.lax.fori_loop(0, HALVINGS, halve, (low, high))
    last = threshold(number) if branch == "global" else spinodal(number)
    root = jnp.where(beta == 0, jnp.inf, (low + high) / 2)
    return jnp.where(beta > last, 0.0, root)


def minimiser(
    class_sizes: Array,
    *,
    weight_decay: float | Array,
    feature_decay: float | Array,
    depth: int | Array,
    branch: Branch = "global",
) -> Minimiser:
    """Return lengths and loss at the global minimum for classes of any sizes, without bias.

    Large classes have long classifier columns and short features. Up to a rotation of the hidden
    spaces the minimum is unique; each matrix has singular values p_k^(1/2M) where all decays are
    equal.

    Args:
        class_sizes: n_k, (K,), positive.
        weight_decay: λ_W > 0: coefficient of |W_j|² / 2 (no 1/N). Where matrices have decays of
            their own, their geometric mean.
        feature_decay: λ_H > 0: coefficient of |H|² / 2.
        depth: M >= 1, the number of matrices between features and outputs. May be traced.
        branch: "global", or "outer" for the point at which each class keeps a non-zero length as
            long as that is a local minimum.

    Raises:
        ValueError: an argument is outside its range, or `branch` is unknown.

    Example:
        >>> found = minimiser(jnp.array([9.0, 1.0]), weight_decay=0.1, feature_decay=0.1, depth=1)
        >>> print(found.classifier.round(2), found.features.round(2))
        [2. 0.] [0.22 0.  ]
    """
    arguments.choices(BRANCHES, branch=branch)
    sizes, weight_decay, feature_decay = _checked(class_sizes, weight_decay, feature_decay)
    _refuse(weight_decay, "weight_decay", "give a positive number", lambda value: value > 0)
    samples = jnp.sum(sizes)
    beta = price(sizes, weight_decay=weight_decay, feature_decay=feature_decay, depth=depth)
    u = scaled_length(beta, depth, branch=branch)
    classifier = samples * feature_decay * u
    features = u / (1 + u) ** 2 / (samples * feature_decay)
    cost = 1 / (1 + u) + beta * u ** (1 / _depth(depth))
    return Minimiser(classifier, features, u / (1 + u), jnp.sum(sizes * cost) / (2 * samples))


def balanced_minimiser(
    num_classes: int,
    class_size: int | float,
    *,
    weight_decay: float | Array,
    feature_decay: float | Array,
    depth: int | Array,
    free_bias: bool = False,
) -> BalancedMinimiser:
    """Return the Gram matrices at the global minimum for K classes of n samples each.

    Without a bias all of them are multiples of I: an orthogonal frame. A bias at the outputs that
    no decay acts on takes the mean 1/K of the targets, so that training fits Y - 1 1^T / K, whose
    K - 1 singular values are those of Y. So nothing changes but I, which becomes I - 1 1^T / K: a
    simplex equiangular tight frame of the same singular value.

    Args:
        num_classes: K >= 2.
        class_size: n > 0.
        weight_decay: λ_W, as in `minimiser`.
        feature_decay: λ_H, as in `minimiser`.
        depth: M >= 1.
        free_bias: Whether the outputs have a bias without decay.

    Raises:
        ValueError: an argument is outside its range.

    Example:
        >>> found = balanced_minimiser(
        ...     2, 2, weight_decay=0.125, feature_decay=0.125, depth=1, free_bias=True
        ... )
        >>> print(found.bias, (2 * found.alignment).round(4))
        [0.5 0.5] [[ 0.6464 -0.6464]
         [-0.6464  0.6464]]
    """
    arguments.integers(2, num_classes=num_classes)
    arguments.numbers(class_size=class_size)
    arguments.positive(class_size=class_size)
    found = minimiser(
        jnp.full(num_classes, class_size, dtype=jnp.result_type(float)),
        weight_decay=weight_decay,
        feature_decay=feature_decay,
        depth=depth,
    )
    frame = jnp.eye(num_classes) - (1 / num_classes if free_bias else 0.0)
    bias = jnp.full(num_classes, 1 / num_classes if free_bias else 0.0)
    classifier, features, alignment = (length[0] * frame for length in found[:3])
    return BalancedMinimiser(classifier, features, alignment, bias)


def _slope(u: Array, depth: Array) -> Array:
    """The price β at which g' vanishes at u; never overflows."""
    return depth * u ** (1 - 1 / depth) / (1 + u) / (1 + u)


def _depth(depth: int | Array) -> Array:
    _refuse(depth, "depth", "give at least 1", lambda value: value >= 1)
    return _floating(depth)


def _checked(
    class_sizes: Array, weight_decay: float | Array, feature_decay: float | Array
) -> tuple[Array, Array, Array]:
    arguments.shapes("K", class_sizes=class_sizes)
    arguments.numbers(weight_decay=weight_decay, feature_decay=feature_decay)
    sizes = _floating(class_sizes)
    positive = lambda value: value > 0
    _refuse(sizes, "class_sizes", "give positive numbers", positive)
    _refuse(weight_decay, "weight_decay", "give a number from 0 on", lambda value: value >= 0)
    _refuse(feature_decay, "feature_decay", "give a positive number", positive)
    as_given = lambda value: jnp.asarray(value, sizes.dtype)
    return sizes, as_given(weight_decay), as_given(feature_decay)


def _floating(value: Any) -> Array:
    return jnp.asarray(value, jnp.result_type(value, 1.0))


def _refuse(value: Any, name: str, mend: str, allowed: Callable[[Any], Any]) -> None:
    """Raise where a number is not allowed; under a trace none is known and none refused."""
    arguments.numbers(**{name: value})
    if isinstance(value, jax.core.Tracer):
        return
    numbers = np.asarray(value, dtype=float)
    if not np.all(allowed(numbers)):  # NaN is never allowed
        message = f"{name}={numbers}: {mend}"
        raise ValueError(message)
