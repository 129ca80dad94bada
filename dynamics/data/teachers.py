"""Regression problems whose targets are a known function of Gaussian inputs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array, Key


class Regression(NamedTuple):
    """Inputs, targets, and the direction or matrix of the teacher that made them."""

    inputs: Array  # (N, D)
    targets: Array  # (N,)
    teacher: Array  # (D,) or (D, H)


def linear_teacher(key: Key, num_samples: int, dim: int, *, noise_std: float = 0.0) -> Regression:
    """Return y = β·x + noise with x ~ N(0, I) and |β|^2 = 1, so that E[y^2] = 1 + noise_std^2.

    Raises:
        ValueError: a size below 1 or a negative `noise_std`.
    """
    arguments.keys(key=key)
    arguments.counts(num_samples=num_samples, dim=dim)
    arguments.not_negative(noise_std=noise_std)
    input_key, teacher_key, noise_key = jax.random.split(key, 3)
    inputs = jax.random.normal(input_key, (num_samples, dim))
    teacher = _direction(teacher_key, dim)
    noise = noise_std * jax.random.normal(noise_key, (num_samples,))
    return Regression(inputs, inputs @ teacher + noise, teacher)


def quadratic_teacher(key: Key, num_samples: int, dim: int) -> Regression:
    """Return y = (β·x)^2 / 2 with x ~ N(0, I/D) and |β|^2 = D, so that E[y^2] = 3/4.

    References:
        Kumar et al. 2024, arXiv:2310.06110, section 3.

    Raises:
        ValueError: a size below 1.
    """
    arguments.keys(key=key)
    arguments.counts(num_samples=num_samples, dim=dim)
    input_key, teacher_key = jax.random.split(key)
    inputs = jax.random.normal(input_key, (num_samples, dim)) / dim**0.5
    teacher = dim**0.5 * _direction(teacher_key, dim)
    return Regression(inputs, 0.5 * (inputs @ teacher) ** 2, teacher)


def two_layer_teacher(key: Key, num_samples: int, dim: int, num_hidden: int) -> Regression:
    """Return y = Σ_h tanh(w_h·x) / sqrt(H) with x ~ N(0, I) and |w_h| = 1, equal read-outs.

    Raises:
        ValueError: a size below 1.
    """
    arguments.keys(key=key)
    arguments.counts(num_samples=num_samples, dim=dim, num_hidden=num_hidden)
    input_key, teacher_key = jax.random.split(key)
    inputs = jax.random.normal(input_key, (num_samples, dim))
    weights = jax.random.normal(teacher_key, (dim, num_hidden))
    weights = weights / jnp.linalg.norm(weights, axis=0)
    targets = jnp.sum(jnp.tanh(inputs @ weights), axis=1) / num_hidden**0.5
    return Regression(inputs, targets, weights)


def _direction(key: Key, dim: int) -> Array:
    vector = jax.random.normal(key, (dim,))
    return vector / jnp.linalg.norm(vector)
