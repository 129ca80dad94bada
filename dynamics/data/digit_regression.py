"""Regression of one-hot labels on centred images of digits: a small loss with real structure."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array, Key, LossFn, Params
from dynamics.data import real


def squared_error_on_digits(
    model: Any, num_images: int, *, unit_variance: bool = False
) -> tuple[LossFn, Callable[[Key], Params]]:
    """Return the full-batch training loss of a network on digits, and what initialises it.

    The loss is half the squared error, summed over the ten classes and averaged over images;
    pixels have mean 0 over the images.

    Args:
        model: a flax linen module of ten outputs.
        num_images: of the digits, as `real.digits`.
        unit_variance: whether pixels are also divided by the standard deviation of them all.

    Returns:
        `loss(params) -> ()` and `initialise(key) -> params`.

    Raises:
        ValueError: `num_images` is not between 1 and 1796.

    Example:
        >>> from dynamics.models import mlp
        >>> loss, initialise = squared_error_on_digits(mlp.MLP(widths=(10,)), 20)
        >>> print(loss(jax.tree.map(jnp.zeros_like, initialise(jax.random.key(0)))))
        0.5
    """
    arguments.modules(model=model)
    arguments.integers(num_images=num_images)
    if not 1 <= num_images <= 1796:
        message = f"num_images={num_images}: give 1 to 1796"
        raise ValueError(message)
    data = real.digits(num_images)
    images = jnp.asarray(data.train_images.reshape(num_images, -1), float)  # as precise as the run
    inputs = images - images.mean(axis=0)
    inputs = inputs / images.std() if unit_variance else inputs
    targets = jax.nn.one_hot(data.train_labels, 10)

    def loss(params: Params) -> Array:
        return 0.5 * jnp.mean(jnp.sum((model.apply(params, inputs) - targets) ** 2, axis=1))

    return loss, lambda key: model.init(key, inputs)
