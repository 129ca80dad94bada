"""Products made of ReLUs: how a network without multiplications can multiply, and how well.

x y = ((x + y)² - (x - y)²) / 4, and z² is replaced by its interpolation at equidistant points,
which is a sum of one ReLU a piece. With R pieces on [-2 B, 2 B] the product of two numbers of
absolute value at most B is off by at most B²/R², and by 0.42 B²/R² in the mean square.
"""

import math
from typing import Any

import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array

# Of (e(x + y) - e(x - y)) / 4 with e = h² u (1 - u), u uniform and independent, and h = 4 B / R.
RMS_OF_LARGEST = 16 * math.sqrt(2 / 180) / 4


def interpolated_square(z: Any, pieces: Any, bound: Any) -> Array:
    """Return z² interpolated linearly with R pieces on [-2 B, 2 B], and extended beyond them.

    The same function as `first_slope (z + 2 B) + 4 B² + 2 h sum_j ReLU(z - z_j)` over the R - 1
    inner points z_j, h = 4 B / R; here the piece is looked up.

    Args:
        z: any shape.
        pieces: R, even.
        bound: B.

    Example:
        >>> print(interpolated_square(jnp.array([0.0, 0.5, 1.0]), 4, 1.0))
        [0.  0.5 1. ]
    """
    arguments.numbers(z=z)
    arguments.positive(pieces=pieces, bound=bound)
    width = 4 * bound / pieces
    piece = jnp.clip(jnp.floor(z / width), -pieces / 2, pieces / 2 - 1)
    return (2 * piece + 1) * width * z - piece * (piece + 1) * width**2


def relu_product(x: Any, y: Any, pieces: Any, bound: Any) -> Array:
    """Return x y from sums of ReLUs: within B²/R² of it where |x| and |y| are at most B.

    Args:
        x: any shape that broadcasts with y.
        y: the other factor.
        pieces: R, even, of each of the two squares.
        bound: B.

    References:
        Wu et al. 2024, arXiv:2411.16549 (sums of ReLUs for the terms of a gradient); this way of
        writing a product and its error are derived here.

    Example:
        >>> print(relu_product(2.0, 3.0, 16, 4.0))
        6.0
    """
    arguments.shapes("..., ...", x=x, y=y)
    arguments.positive(pieces=pieces, bound=bound)
    return (
        interpolated_square(x + y, pieces, bound) - interpolated_square(x - y, pieces, bound)
    ) / 4


def relu_matmul(a: Array, b: Array, pieces: Any, bound: Any) -> Array:
    """Return the matrix product (N, M) of a (N, K) and b (K, M), each product by `relu_product`.

    Raises:
        ValueError: the matrices do not fit.

    Example:
        >>> print(relu_matmul(jnp.array([[1.0, 2.0]]), jnp.array([[0.0], [1.0]]), 8, 2.0))
        [[2.]]
    """
    arguments.shapes("N K, K M", a=a, b=b)
    return relu_product(a[:, :, None], b[None], pieces, bound).sum(axis=1)


def largest_product_error(pieces: Any, bound: Any) -> Any:
    """Return B²/R², the largest error of `relu_product` for factors of at most B.

    Example:
        >>> largest_product_error(8, 1.0)
        0.015625
    """
    arguments.positive(pieces=pieces, bound=bound)
    return bound**2 / pieces**2


def growth_of_errors(gradient_error: Any, smoothness: Any, learning_rate: float, steps: Any) -> Any:
    """Return the bound ε ((1 + η H)^l - 1) / H on the distance of two descents after l steps.

    Args:
        gradient_error: ε, the largest error of the gradient of one of them.
        smoothness: H, the largest norm of the Hessian between them.
        learning_rate: η.
        steps: l.

    Raises:
        ValueError: `learning_rate` not positive.

    Example:
        >>> print(round(growth_of_errors(0.1, 1.0, 0.5, 2), 4))  # 0.1 (0.5 + 0.5 · 1.5)
        0.125
    """
    arguments.numbers(gradient_error=gradient_error, steps=steps)
    arguments.positive(smoothness=smoothness)
    arguments.scalars(learning_rate=learning_rate)
    if not learning_rate > 0:
        message = f"learning_rate={learning_rate}: give a positive number"
        raise ValueError(message)
    return gradient_error * ((1 + learning_rate * smoothness) ** steps - 1) / smoothness
