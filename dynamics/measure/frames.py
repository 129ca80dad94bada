"""How near a set of vectors is to an equiangular tight frame."""

from typing import Any

import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.measure.class_statistics import matmul


def cosines(vectors: Array) -> Array:
    """Return the cosines between all vectors (C, D): (C, C).

    Raises:
        ValueError: fewer than two vectors.
    """
    vectors = _checked_vectors(vectors)
    units = vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
    return matmul(units, units.T)


def coherence(vectors: Array) -> Array:
    """Return the largest |cosine| between any two of the vectors (C, D): ().

    No set of C > D vectors comes below the Welch bound (`theory.frames.welch_bound`).

    Raises:
        ValueError: fewer than two vectors.
    """
    found = cosines(vectors)
    off = ~jnp.eye(len(found), dtype=bool)
    return jnp.max(jnp.where(off, jnp.abs(found), 0))


def equiangularity(vectors: Array) -> Array:
    """Return the standard deviation of the cosines between pairs of vectors (C, D): ().

    Zero for an equiangular frame (Papyan et al. 2020, figure 3).

    Raises:
        ValueError: fewer than two vectors.
    """
    found = cosines(vectors)
    return jnp.std(found[jnp.triu_indices(len(found), 1)])


def equinorm(vectors: Array) -> Array:
    """Return the coefficient of variation of the lengths of vectors (C, D): ().

    Zero where all are of one length (Papyan et al. 2020, figure 2). Centre class means first.

    Raises:
        ValueError: fewer than two vectors.
    """
    lengths = jnp.linalg.norm(_checked_vectors(vectors), axis=1)
    return jnp.std(lengths) / jnp.mean(lengths)


def _checked_vectors(vectors: Any) -> Array:
    arguments.shapes("C D", vectors=vectors)
    vectors = jnp.asarray(vectors)
    if len(vectors) < 2:
        message = f"vectors: shape {vectors.shape}; give (C, D), C at least 2"
        raise ValueError(message)
    return vectors
