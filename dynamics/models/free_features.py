"""A deep linear classifier on features that are free: the last layers of a network, by themselves.

The features of the training samples are parameters like the weights (the unconstrained-features
model, Mixon et al. 2020, arXiv:2011.11619), as if the layers below could fit anything. Classifiers
of different depth share one shape, so that `jax.vmap` runs over depths as well.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array, Key


class FreeFeatures(NamedTuple):
    """Features and classifier; logits are features @ hidden[0] @ ... @ last + bias."""

    features: Array  # (N, D)
    hidden: Array  # (L, D, D), of which a classifier of depth M uses the first M - 1
    last: Array  # (D, K)
    bias: Array  # (K,)


def init(
    key: Key, *, num_samples: int, width: int, num_classes: int, num_hidden: int, std: Array | float
) -> FreeFeatures:
    """Return features and weights drawn from N(0, std²), and no bias.

    Args:
        key: One key.
        num_samples: N.
        width: D.
        num_classes: K.
        num_hidden: L, the largest depth less one.
        std: The standard deviation of every entry.
    """
    arguments.keys(key=key)
    arguments.counts(num_samples=num_samples, width=width, num_classes=num_classes)
    arguments.integers(0, num_hidden=num_hidden)
    arguments.not_negative(std=std)
    shapes = [(num_samples, width), (num_hidden, width, width), (width, num_classes)]
    keys = jax.random.split(key, len(shapes))
    drawn = [std * jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]
    features, hidden, last = drawn
    return FreeFeatures(features, hidden, last, jnp.zeros(num_classes))


def kernel(params: FreeFeatures, depth: Array | int) -> Array:
    """Return the product of the first `depth` - 1 hidden matrices and the last one: (D, K).

    Args:
        params: Of which hidden matrices beyond the depth count as the identity.
        depth: M, from 1 to L + 1; may be traced.

    Example:
        >>> params = init(jax.random.key(0), num_samples=1, width=2, num_classes=3,
        ...               num_hidden=4, std=1.0)
        >>> bool((kernel(params, 1) == params.last).all())
        True
    """
    arguments.records(FreeFeatures, params=params)
    arguments.integers(1, depth=depth)
    product = params.last
    for index in reversed(range(len(params.hidden))):
        longer = jnp.matmul(params.hidden[index], product, precision="highest")
        product = jnp.where(index < depth - 1, longer, product)
    return product


def regularised_loss(
    params: FreeFeatures,
    targets: Array,
    *,
    depth: Array | int,
    num_samples: Array | float,
    weight_decay: Array | float,
    feature_decay: Array | float,
    bias_scale: Array | float = 0.0,
) -> Array:
    """Return |H P + b - Y|² / (2 N) + (λ_W / 2) Σ_j |W_j|² + (λ_H / 2) |H|², no decay on the bias.

    Samples may be padded, if there is no bias: rows of `targets` and of the features that are both
    zero cost nothing and have gradient zero. So do hidden matrices beyond the depth.

    Args:
        params: Features H (N, D) and the matrices.
        targets: Y, (N, K).
        depth: M, the number of matrices in use.
        num_samples: N of the mean, the number of rows less the padding.
        weight_decay: λ_W.
        feature_decay: λ_H.
        bias_scale: What the bias is multiplied by: 1 to train with it, 0 without.
    """
    arguments.records(FreeFeatures, params=params)
    arguments.shapes("N D, D K, N K", features=params.features, last=params.last, targets=targets)
    arguments.integers(1, depth=depth)
    arguments.positive(num_samples=num_samples)
    arguments.numbers(weight_decay=weight_decay, feature_decay=feature_decay, bias_scale=bias_scale)
    logits = jnp.matmul(params.features, kernel(params, depth), precision="highest")
    residual = logits + bias_scale * params.bias - targets
    used = jnp.arange(len(params.hidden)) < depth - 1
    weights = jnp.sum(used * jnp.sum(params.hidden**2, axis=(1, 2))) + jnp.sum(params.last**2)
    decay = weight_decay * weights + feature_decay * jnp.sum(params.features**2)
    return jnp.sum(residual**2) / (2 * num_samples) + decay / 2
