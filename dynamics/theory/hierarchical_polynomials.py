"""What regression of degree two makes of a function of a quadratic form.

The target is h(x) = g(p(x)) with x standard normal in d dimensions and p(x) = xᵀ B x, where half of
the eigenvalues of B are 1/sqrt(2d) and half are -1/sqrt(2d): p has mean zero and variance one. With
u and v the squared lengths of x in the two eigenspaces, independent chi-squared variables of d/2
degrees of freedom,

    p = (u - v) / sqrt(2d),    q = (u + v - d) / sqrt(2d),

and as h depends on u and v alone, its best predictor of degree two is m + c p + e q with m = E[h],
c = E[h p], e = E[h q]. Least squares on n samples finds c p plus noise in all other features. What
the best predictor leaves, r = h - m - c p - e q, is orthogonal to the features but does not have
the same variance everywhere, and it is large where the features are: the squared length of the
noise is M / n with

    M = E[(S - p²) r²],    S = d/2 + |x|⁴/2,

where S is the sum of squares of all orthonormal features of degree one and two. A formula for
noise of constant variance has E[S - p²] E[r²] instead, which is less.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.special

from dynamics import arguments
from dynamics.aliases import Array


class DegreeTwo(NamedTuple):
    """What the features of degree two and less hold of h; all in squares of the labels' unit."""

    variance: float  # of h
    signal: float  # c², the part along p
    radial: float  # e², the part along |x|²; zero where g is odd
    noise: float  # M: the estimate's squared distance to c p + e q, times n

    @property
    def floor(self) -> float:
        """The least error of a predictor of degree two, relative to the variance of h."""
        return 1 - (self.signal + self.radial) / self.variance


def degree_two(link: Callable[[Array], Array], *, dim: int, order: int = 100) -> DegreeTwo:
    """Return the parts of h = link(p) that regression of degree two sees, and its noise.

    By Gauss-Laguerre quadrature over u and v: to rounding for smooth links that vary on the
    scale of p or more slowly.

    Args:
        link: g, acting on each entry of an array.
        dim: d, even and positive.
        order: Nodes for each of u and v; 60 do for sin(1.5 p) in 16 dimensions.

    Raises:
        ValueError: `dim` is odd or not positive.

    Reference: Wang, Nichani, Lee 2023, arXiv:2311.13774 (the targets, and why the first layers
    learn p); the quantities are derived here.

    Example:
        >>> p_itself = degree_two(lambda p: p, dim=4)
        >>> [round(abs(part), 6) for part in p_itself]
        [1.0, 1.0, 0.0, 0.0]
    """
    arguments.functions(link=link)
    arguments.integers(dim=dim)
    arguments.counts(order=order)
    if dim < 2 or dim % 2:
        message = f"dim={dim}: give an even number, at least 2"
        raise ValueError(message)
    halves, weights = scipy.special.roots_genlaguerre(order, dim / 4 - 1)  # of u / 2
    u, v = np.meshgrid(2 * halves, 2 * halves, indexing="ij")
    weights = np.outer(weights, weights) / weights.sum() ** 2
    form, radius = (u - v) / (2 * dim) ** 0.5, (u + v - dim) / (2 * dim) ** 0.5
    mean = lambda values: float(np.sum(weights * values))
    target = np.asarray(link(form), float)
    target = target - mean(target)
    along_form, along_radius = mean(target * form), mean(target * radius)
    residual = target - along_form * form - along_radius * radius
    sum_of_squares = dim / 2 + (u + v) ** 2 / 2
    return DegreeTwo(
        variance=mean(target**2),
        signal=along_form**2,
        radial=along_radius**2,
        noise=mean((sum_of_squares - form**2) * residual**2),
    )


def recovered_overlap(parts: DegreeTwo, num_samples: Array) -> Array:
    """Return the squared correlation with p of the least-squares fit on n samples, large n.

    c² / (c² + e² + M / n), to first order in d² / n: the features' sample covariance is taken for
    its mean.

    Args:
        parts: From `degree_two`.
        num_samples: n, any shape, positive.

    Example:
        >>> parts = DegreeTwo(variance=1.0, signal=0.5, radial=0.0, noise=50.0)
        >>> print(recovered_overlap(parts, jnp.array([100, 300])))
        [0.5  0.75]
    """
    arguments.records(DegreeTwo, parts=parts)
    arguments.positive(num_samples=num_samples)
    return parts.signal / (parts.signal + parts.radial + parts.noise / jnp.asarray(num_samples))


def features(x: Array) -> Array:
    """Return the Hermite features of degree zero to two, (N, 1 + d + d (d + 1) / 2), orthonormal.

    The constant, x_i, (x_i² - 1) / sqrt(2), and x_i x_j for i < j, in this order.

    Args:
        x: (N, d).

    Example:
        >>> print(features(jnp.array([[1.0, 3.0]])).round(2))
        [[1.   1.   3.   0.   5.66 3.  ]]
    """
    arguments.shapes("N d", x=x)
    first, second = jnp.triu_indices(x.shape[1], 1)
    squares = (x**2 - 1) / 2**0.5
    products = x[:, first] * x[:, second]
    return jnp.concatenate([jnp.ones_like(x[:, :1]), x, squares, products], axis=1)


def coefficients(matrix: Array) -> Array:
    """Return what xᵀ B x is made of in the order of `features`, (1 + d + d (d + 1) / 2,).

    Args:
        matrix: B (d, d), symmetric.

    Example:
        >>> print(coefficients(jnp.array([[0.0, 1.0], [1.0, 0.0]])))
        [0. 0. 0. 0. 0. 2.]
    """
    arguments.shapes("d d", matrix=matrix)
    first, second = jnp.triu_indices(len(matrix), 1)
    diagonal = jnp.diagonal(matrix)
    return jnp.concatenate([
        jnp.trace(matrix)[None], jnp.zeros_like(diagonal), 2**0.5 * diagonal,
        2 * matrix[first, second],
    ])  # fmt: skip
