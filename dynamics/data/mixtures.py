"""Gaussian classes, balanced or not, and labels that are wrong on purpose."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array, Key


class Classes(NamedTuple):
    """Samples in the order of their classes."""

    inputs: Array  # (N, D)
    labels: Array  # (N,) int32
    means: Array  # (C, D)


def gaussian_mixture(
    key: Key, counts: Sequence[int], dim: int, *, separation: float = 3.0, std: float = 1.0
) -> Classes:
    """Return counts[c] samples of N(m_c, std^2 I) for each class, means at random directions.

    Args:
        key: of means and noise.
        counts: number of samples of each class; unequal for imbalanced classes.
        dim: D.
        separation: |m_c|.
        std: standard deviation within a class, in each direction.

    Raises:
        ValueError: an empty class, `dim` below 1, a negative `separation` or `std`.
    """
    arguments.keys(key=key)
    arguments.sizes(counts=counts)
    arguments.counts(dim=dim)
    arguments.not_negative(separation=separation, std=std)
    mean_key, noise_key = jax.random.split(key)
    directions = jax.random.normal(mean_key, (len(counts), dim))
    means = separation * directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    labels = jnp.asarray(np.repeat(np.arange(len(counts), dtype=np.int32), counts))
    noise = jax.random.normal(noise_key, (len(labels), dim))
    return Classes(means[labels] + std * noise, labels, means)


def corrupt_labels(key: Key, labels: Array, num_classes: int, fraction: float) -> Array:
    """Return labels of which exactly round(fraction N), at random places, are another class.

    Raises:
        ValueError: `fraction` outside [0, 1], fewer than two classes, or a label out of range.
    """
    arguments.keys(key=key)
    arguments.shapes("N", labels=labels)
    arguments.integers(num_classes=num_classes)
    arguments.labels(num_classes if num_classes > 1 else np.inf, labels=labels)
    arguments.fractions(fraction=fraction)
    if num_classes < 2:
        message = f"num_classes={num_classes}: with fewer than 2 no label can be wrong"
        raise ValueError(message)
    place_key, shift_key = jax.random.split(key)
    num_samples = labels.shape[0]
    wrong = jax.random.permutation(place_key, num_samples) < round(fraction * num_samples)
    shift = jax.random.randint(shift_key, (num_samples,), 1, num_classes)
    return jnp.where(wrong, (labels + shift) % num_classes, labels)
