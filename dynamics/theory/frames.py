"""Bounds on how far apart unit vectors can point, and the frames that attain them."""

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array, Key


def welch_bound(num_vectors: int, dim: int) -> float:
    """Return the least coherence, the largest |cosine|, that unit vectors can have.

    sqrt((C - D) / (D (C - 1))) for C vectors in D dimensions, zero where C <= D. It is attained
    only by equiangular tight frames, which exist for few pairs (C, D); no set comes below it.
    Source: Welch 1974, doi:10.1109/TIT.1974.1055219, equation 6 with k = 1.

    Raises:
        ValueError: fewer than two vectors, or less than one dimension.

    Example:
        >>> welch_bound(3, 2)
        0.5
    """
    arguments.integers(num_vectors=num_vectors, dim=dim)
    if num_vectors < 2 or dim < 1:
        message = f"num_vectors={num_vectors}, dim={dim}: give at least 2 vectors and 1 dimension"
        raise ValueError(message)
    return float(max(0, num_vectors - dim) / (dim * (num_vectors - 1))) ** 0.5


def simplex(num_classes: int, dim: int, *, key: Key | None = None) -> Array:
    """Return a simplex equiangular tight frame (C, D): unit vectors with cosines -1 / (C - 1).

    Args:
        num_classes: C, at least 2.
        dim: D, at least C - 1.
        key: Rotates the frame at random in the D dimensions; without it the frame lies in the
            first C - 1 of them.

    Raises:
        ValueError: C is below 2 or D below C - 1: no such frame exists.

    Example:
        >>> frame = simplex(3, 2)
        >>> bool(jnp.allclose(frame @ frame.T, 1.5 * jnp.eye(3) - 0.5, atol=1e-6))
        True
    """
    arguments.integers(num_classes=num_classes, dim=dim)
    if key is not None:
        arguments.keys(key=key)
    if num_classes < 2 or dim < num_classes - 1:
        message = (
            f"num_classes={num_classes}, dim={dim}: "
            "give at least 2 classes and num_classes - 1 dimensions"
        )
        raise ValueError(message)
    # Helmert's orthonormal basis of the vectors that sum to zero.
    row, column = jnp.mgrid[1:num_classes, 0:num_classes]  # each (C - 1, C)
    basis = jnp.where(column < row, 1.0, jnp.where(column == row, -row, 0.0))
    basis = basis / jnp.sqrt(row * (row + 1.0))
    frame = jnp.sqrt(num_classes / (num_classes - 1)) * basis.T  # (C, C - 1)
    frame = jnp.pad(frame, ((0, 0), (0, dim - num_classes + 1)))
    if key is None:
        return frame
    return frame @ jax.random.orthogonal(key, dim, dtype=frame.dtype)
