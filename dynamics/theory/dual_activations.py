"""Dual activations, and the kernels of infinitely wide layers built from them.

The dual of an activation s is E[s(u) s(v)] for centred Gaussian (u, v); the derivative's dual,
E[s'(u) s'(v)], carries the tangent kernel from layer to layer.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import scipy.special

from dynamics import arguments
from dynamics.aliases import Array


class Dual(NamedTuple):
    """Expectations over centred Gaussian (u, v), shaped like their covariance."""

    value: Array  # E[s(u) s(v)]
    derivative: Array  # E[s'(u) s'(v)]


class InfiniteWidthKernels(NamedTuple):
    """The two kernels of a network in the limit of infinite width, for one of its outputs."""

    nngp: Array  # (N1, N2) covariance of the outputs at initialisation
    ntk: Array  # (N1, N2) J J^T, which training does not move


def arc_cosine(covariance: Array, variance1: Array, variance2: Array, *, degree: int) -> Array:
    """Return E[u^n v^n 1(u>0) 1(v>0)], half the arc-cosine kernel of degree n, broadcast.

    With θ the angle of the covariance: (π - θ) / 2π for degree 0, and
    sqrt(variance1 variance2) (sin θ + (π - θ) cos θ) / 2π for degree 1.

    Args:
        covariance: E[u v].
        variance1: E[u^2], not negative.
        variance2: E[v^2], not negative.
        degree: 0 or 1.

    Raises:
        ValueError: another degree.

    Reference: Cho and Saul 2009, "Kernel methods for deep learning", eqs (3), (5) and (6), whose
    kernel is twice this expectation.

    Example:
        >>> print(arc_cosine(1.0, 1.0, 1.0, degree=1), arc_cosine(0.0, 1.0, 1.0, degree=0))
        0.5 0.25
    """
    _check_moments(covariance, variance1, variance2)
    if degree not in (0, 1):
        message = f"degree={degree}: give 0 or 1"
        raise ValueError(message)
    product = jnp.asarray(variance1 * variance2)
    sine = jnp.sqrt(jnp.maximum(product - covariance**2, 0))  # times the root of the product
    opening = jnp.pi - jnp.arctan2(sine, covariance)
    if degree == 0:
        return opening / (2 * jnp.pi)
    return (sine + opening * covariance) / (2 * jnp.pi)


def relu_dual(covariance: Array, variance1: Array, variance2: Array) -> Dual:
    """Return the duals of max(0, u) and of its derivative, by the arc-cosine kernels.

    Example:
        >>> print(relu_dual(1.0, 1.0, 1.0).derivative)
        0.5
    """
    _check_moments(covariance, variance1, variance2)
    moments = covariance, variance1, variance2
    return Dual(arc_cosine(*moments, degree=1), arc_cosine(*moments, degree=0))


def erf_dual(covariance: Array, variance1: Array, variance2: Array) -> Dual:
    """Return the duals of erf(u) and of its derivative.

    (2/π) arcsin(2c / sqrt((1+2a)(1+2b))) and (4/π) / sqrt((1+2a)(1+2b) - 4c^2), with c the
    covariance and a, b the variances.

    Reference: Williams 1997, "Computing with infinite networks", eq. (11); the second is its
    derivative by c.

    Example:
        >>> print(erf_dual(0.0, 0.0, 0.0).derivative * jnp.pi)
        4.0
    """
    _check_moments(covariance, variance1, variance2)
    scale = jnp.asarray((1 + 2 * variance1) * (1 + 2 * variance2))
    value = 2 / jnp.pi * jnp.arcsin(2 * covariance / jnp.sqrt(scale))
    return Dual(value, 4 / jnp.pi / jnp.sqrt(scale - 4 * covariance**2))


def dual_activation(
    activation: Callable[[Array], Array],
    covariance: Array,
    variance1: Array,
    variance2: Array,
    *,
    order: int = 100,
) -> Dual:
    """Return the duals of any activation and of its derivative, by Gauss-Hermite quadrature.

    Exact to rounding for smooth activations whose scale is not far below the standard deviations;
    with a kink the error falls like 1 / order, with a jump it does not fall fast enough to be of
    use. `order` squared evaluations for each entry, one entry after the other.

    Args:
        activation: s, acting on each entry of an array, differentiable by JAX.
        covariance: E[u v], of floating-point type.
        variance1: E[u^2], not negative.
        variance2: E[v^2], not negative; the three are broadcast.
        order: Nodes a direction, at least 1.

    Raises:
        ValueError: `order` is below 1.

    Reference: Daniely, Frostig, Singer 2016, arXiv:1602.05897, definition 4, for the dual.

    Example:
        >>> print(f"{dual_activation(jnp.square, 0.5, 1.0, 1.0).value:.4f}")  # 1 + 2 c^2
        1.5000
    """
    arguments.functions(activation=activation)
    _check_moments(covariance, variance1, variance2)
    arguments.counts(order=order)
    moments = jnp.broadcast_arrays(*map(jnp.asarray, (covariance, variance1, variance2)))
    dtype = jnp.result_type(float, *moments)
    nodes, weights = (jnp.asarray(a, dtype) for a in scipy.special.roots_hermitenorm(order))
    weights = weights / jnp.sum(weights)

    def one(entry: Array) -> tuple[Array, Array]:
        covariance, variance1, variance2 = entry
        scale = jnp.sqrt(variance1)
        slope = covariance / jnp.where(scale > 0, scale, 1)  # of v on the first node
        rest = jnp.sqrt(jnp.maximum(variance2 - slope**2, 0))
        u, v = scale * nodes[:, None], slope * nodes[:, None] + rest * nodes
        pairs = [jax.jvp(activation, (a,), (jnp.ones_like(a),)) for a in (u, v)]
        average = lambda a, b: jnp.einsum("i,j,ij->", weights, weights, a * b, precision="highest")
        return average(pairs[0][0], pairs[1][0]), average(pairs[0][1], pairs[1][1])

    entries = jnp.stack([a.astype(dtype).ravel() for a in moments], axis=1)
    value, derivative = jax.lax.map(one, entries)
    return Dual(value.reshape(moments[0].shape), derivative.reshape(moments[0].shape))


DUALS = {"relu": relu_dual, "erf": erf_dual}


def fully_connected_kernels(
    x1: Array,
    x2: Array | None = None,
    *,
    activation: str,
    depth: int,
    weight_std: float = 1.0,
    bias_std: float = 0.0,
) -> InfiniteWidthKernels:
    """Return the NNGP and the NTK of an infinitely wide fully connected network, (N1, N2).

    Layers compute weight_std W h / sqrt(fan_in) + bias_std b with all entries of W and b from
    N(0, 1), and all of them, the last included, are trained.

    Args:
        x1: (N1, D) samples, of floating-point type.
        x2: (N2, D) samples; the same as `x1` when None.
        activation: "relu" or "erf".
        depth: Hidden layers; 0 is linear regression.
        weight_std: Standard deviation of the weights times sqrt(fan_in).
        bias_std: Standard deviation of the biases.

    Raises:
        ValueError: `x1` or `x2` is not (N, D) with one common D, `depth` or a standard deviation
            is negative, or the activation is unknown.

    Reference: Jacot et al. 2018, arXiv:1806.07572, theorem 1; Lee et al. 2018, arXiv:1711.00165.

    Example:
        >>> x = jnp.array([[1.0, 1.0], [1.0, -1.0]])
        >>> print(fully_connected_kernels(x, activation="relu", depth=0).ntk)
        [[1. 0.]
         [0. 1.]]
    """
    check_architecture(activation, depth, weight_std, bias_std)
    arguments.shapes("N D, ?M D", x1=x1, x2=x2)
    same, x1 = x2 is None, jnp.asarray(x1)
    x2 = x1 if same else jnp.asarray(x2)

    def affine(moment: Array) -> Array:
        return weight_std**2 * moment + bias_std**2

    dual = DUALS[activation]
    variance1, variance2 = (affine(jnp.mean(x**2, axis=1)) for x in (x1, x2))
    nngp = affine(jnp.matmul(x1, x2.T, precision="highest") / x1.shape[1])
    ntk = nngp
    for _ in range(depth):
        if same:  # angles near 0 are the square root of rounding: make them 0
            nngp = jnp.fill_diagonal(nngp, variance1, inplace=False)
        moments = dual(nngp, variance1[:, None], variance2[None, :])
        nngp = affine(moments.value)
        ntk = nngp + weight_std**2 * moments.derivative * ntk
        variance1, variance2 = (affine(dual(v, v, v).value) for v in (variance1, variance2))
    return InfiniteWidthKernels(nngp, ntk)


def check_architecture(activation: str, depth: int, weight_std: float, bias_std: float) -> None:
    """Raise ValueError where one of the arguments of an architecture is out of range."""
    arguments.choices(tuple(DUALS), activation=activation)
    arguments.integers(0, depth=depth)
    arguments.positive(weight_std=weight_std)
    arguments.not_negative(bias_std=bias_std)


def _check_moments(covariance: Array, variance1: Array, variance2: Array) -> None:
    moments = dict(covariance=covariance, variance1=variance1, variance2=variance2)
    arguments.shapes("..., ..., ...", **moments)
    arguments.not_negative(variance1=variance1, variance2=variance2)
