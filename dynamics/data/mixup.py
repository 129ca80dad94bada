"""Mixup: convex combinations of pairs of samples and of their targets."""

from typing import Any

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array, Key

Pair = tuple[Array, Array]  # inputs (N, ...) and targets (N, K)


def mixup(key: Key, inputs: Array, targets: Array, *, concentration: Any = 1.0) -> Pair:
    """Return `(inputs, targets)` with every sample mixed with a random other one.

    Sample i becomes w x_i + (1 - w) x_j and its target w y_i + (1 - w) y_j, j from a random
    permutation and w ~ Beta(concentration, concentration), drawn for each sample. A concentration
    of 0 leaves the samples as they are; it may be traced, so settings with and without mixup share
    one program. Source: Zhang et al. 2018, arXiv:1710.09412, equation 2.

    Args:
        key: Of the pairs and the weights.
        inputs: (N, ...).
        targets: (N, K).
        concentration: () of the Beta distribution, 1 for uniform weights.

    Raises:
        ValueError: numbers of inputs and targets differ, or `concentration` is negative.
    """
    arguments.keys(key=key)
    arguments.shapes("N ..., N K", inputs=inputs, targets=targets)
    arguments.scalars(concentration=concentration)
    arguments.not_negative(concentration=concentration)
    if isinstance(concentration, int | float):  # known: no other branch needs to be compiled
        known: dict[float, Any] = {0.0: _as_they_are, 1.0: _uniformly}
        mix = known.get(concentration, _by_beta)
        return mix(key, jnp.asarray(concentration, targets.dtype), (inputs, targets))
    concentration = jnp.asarray(concentration, targets.dtype)
    # Branches, so that a member of an ensemble run one after the other pays for its own only.
    kind = jnp.where(concentration == 0, 0, jnp.where(concentration == 1, 1, 2))
    return jax.lax.switch(
        kind, (_as_they_are, _uniformly, _by_beta), key, concentration, (inputs, targets)
    )


def _as_they_are(key: Key, concentration: Array, samples: Pair) -> Pair:
    return samples


def _uniformly(key: Key, concentration: Array, samples: Pair) -> Pair:
    pair_key, weight_key = jax.random.split(key)
    inputs, targets = samples
    weights = jax.random.uniform(weight_key, (len(inputs),), targets.dtype)
    return _mix(pair_key, samples, weights)


def _by_beta(key: Key, concentration: Array, samples: Pair) -> Pair:
    pair_key, weight_key = jax.random.split(key)
    inputs, targets = samples
    shape = jnp.maximum(concentration, jnp.finfo(targets.dtype).tiny)
    weights = jax.random.beta(weight_key, shape, shape, (len(inputs),), targets.dtype)
    return _mix(pair_key, samples, weights)


def _mix(key: Key, samples: Pair, weights: Array) -> Pair:
    partner = jax.random.permutation(key, len(weights))

    def mix(part: Array) -> Array:
        by = weights.reshape(-1, *(1,) * (part.ndim - 1)).astype(part.dtype)
        return by * part + (1 - by) * part[partner]

    inputs, targets = samples
    return mix(inputs), mix(targets)
