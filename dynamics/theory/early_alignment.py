"""Two-layer ReLU networks that start small: neurons first turn, then grow, then fit.

f(x) = sum v_j ReLU(w_j·x), loss sum log(1 + exp(-y f(x))) over the samples, |v_j| = |w_j| at the
start. While f is small the slope of every sample's loss is -1/2. Where inputs of one class
are at acute angles and those of two at obtuse ones, neurons soon respond to one class alone, and
from then on each class has a linear network to itself.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array


def class_sum_norms(inputs: Any, labels: Any) -> Array:
    """Return |x_+| and |x_-| (2,), the lengths of the sums of the inputs of each class.

    Args:
        inputs: (N, D).
        labels: (N,) of +1 and -1.

    Raises:
        ValueError: the shapes do not fit, or a label is neither +1 nor -1.

    Example:
        >>> print(class_sum_norms([[3.0, 0.0], [0.0, 4.0], [-1.0, 0.0]], [1, 1, -1]))
        [5. 1.]
    """
    arguments.shapes("N D, N", inputs=inputs, labels=labels)
    if not isinstance(labels, jax.core.Tracer) and not np.all(np.abs(np.asarray(labels)) == 1):
        message = f"labels={labels}: give +1 or -1 for each"
        raise ValueError(message)
    inputs, labels = jnp.asarray(inputs), jnp.asarray(labels)
    own = labels == jnp.array([[1], [-1]])  # (2, N)
    return jnp.linalg.norm(own @ inputs, axis=1)


def escape_delay(class_sum_norm: Any, shrinkage: Any, learning_rate: float) -> Any:
    """Return how many steps later a class is fitted when the start is smaller by a factor.

    An aligned neuron is an eigenvector of w ← w + η v x/2, v ← v + η w·x/2, with x the sum of the
    inputs of its class: it grows by 1 + η |x|/2 a step. A start smaller by the factor q thus takes
    ln q / ln(1 + η |x|/2) more steps to the same place, 2 ln q / |x| in the time η t of the flow.

    Args:
        class_sum_norm: |x|.
        shrinkage: q >= 1.
        learning_rate: η.

    Raises:
        ValueError: `shrinkage` below one or `learning_rate` not positive.

    References:
        Derived here for Min, Mallada and Vidal 2023, arXiv:2307.12851.

    Example:
        >>> print(round(escape_delay(8.0, 1000.0, 0.01), 1))
        176.1
    """
    arguments.numbers(shrinkage=shrinkage)
    arguments.scalars(learning_rate=learning_rate)
    arguments.positive(class_sum_norm=class_sum_norm)
    if not (np.all(np.asarray(shrinkage) >= 1) and learning_rate > 0):
        message = (
            f"shrinkage={shrinkage}, learning_rate={learning_rate}: give a factor of at least one "
            "and a positive rate"
        )
        raise ValueError(message)
    return np.log(shrinkage) / np.log1p(learning_rate * class_sum_norm / 2)
