"""Kernel ridge regression that is taught by its own fit, over and over, in closed form.

Step one fits the labels y; every later step fits α y + (1 - α) times the fit before, with the same
ridge λ. In an eigendirection of the kernel matrix with eigenvalue s, and a = s/(s + λ), the t-th
fit is y times

    a [b^(t-1) + α (1 - b^(t-1)) / (1 - b)],   b = (1 - α) a,

which tends to s/(s + λ/α), one ridge fit of a larger ridge, geometrically: the difference is
multiplied by b at each step. Without labels, α = 0, everything is forgotten.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array


class Distillation(NamedTuple):
    """Fits at given steps, at the training inputs or wherever the rows of a kernel are."""

    fits: Array  # (T, M) or (T, M, K)
    limit: Array  # (M,) or (M, K), at infinitely many steps
    rate: Array  # scalar: the largest factor b by which the distance to the limit falls


def gains(
    eigenvalues: Array, *, ridge: Array | float, label_weight: Array | float, steps: Any
) -> Array:
    """Return the share of each eigendirection of the labels in the fit after each step, (T, N).

    Args:
        eigenvalues: (N,) s of the kernel matrix, not negative.
        ridge: λ, positive.
        label_weight: α, from 0 (the teacher alone) to 1 (the labels alone).
        steps: (T,) counted from 1, whole; infinity gives the limit.

    Raises:
        ValueError: ridge, weight or a step is out of range.

    Reference: Borup and Andersen 2021, arXiv:2102.13088, theorem 4.1 (recursion and limit); the
    sum of the geometric series is done here.

    Example:
        >>> print(gains(jnp.array([1.0]), ridge=1.0, label_weight=0.5, steps=[1, 2, jnp.inf])[:, 0])
        [0.5        0.375      0.33333334]
    """
    arguments.shapes("N", eigenvalues=eigenvalues)
    steps = _checked(ridge, label_weight, steps)
    share = eigenvalues / (eigenvalues + ridge)  # a
    factor = (1 - label_weight) * share  # b
    power = factor ** jnp.asarray(steps - 1, factor.dtype)[:, None]
    return share * (power + label_weight * (1 - power) / (1 - factor))


def distill(
    kernel_train: Array,
    kernel_test_train: Array,
    labels: Array,
    *,
    ridge: Array | float,
    label_weight: Array | float,
    steps: Any,
) -> Distillation:
    """Return the fits after each step on the test inputs, and what they tend to.

    On a test input the fit is k (K + λ)^-1 times the targets of that step, α y + (1 - α) times
    the fit before at the training inputs. For the training inputs give `kernel_train` twice.

    Args:
        kernel_train: (N, N), symmetric, not negative.
        kernel_test_train: (M, N).
        labels: (N,) or (N, K).
        ridge: λ, positive.
        label_weight: α.
        steps: (T,) counted from 1.

    Raises:
        ValueError: shapes do not fit, or as in `gains`.

    Reference: Borup and Andersen 2021, arXiv:2102.13088, section 4.

    Example:
        >>> one = jnp.ones((1, 1))
        >>> found = distill(one, one, jnp.ones(1), ridge=1.0, label_weight=0.0, steps=[1, 2, 3])
        >>> print(found.fits[:, 0], found.limit, found.rate)
        [0.5   0.25  0.125] [0.] 0.5
    """
    kernels = dict(kernel_train=kernel_train, kernel_test_train=kernel_test_train)
    arguments.shapes("N N, M N, N ...", **kernels, labels=labels)
    labels = jnp.asarray(labels)
    values, vectors = jnp.linalg.eigh(kernel_train)
    values = jnp.maximum(values, 0)
    steps = np.append(_checked(ridge, label_weight, steps), np.inf)
    # The fit before, at the training inputs; before the first step the labels themselves.
    before = jnp.where(
        jnp.asarray(steps[:, None] > 1),
        gains(values, ridge=ridge, label_weight=label_weight, steps=np.maximum(steps - 1, 1)),
        1.0,
    )
    weights = (label_weight + (1 - label_weight) * before) / (values + ridge)  # (T + 1, N)
    projected = jnp.matmul(kernel_test_train, vectors, precision="highest")
    rotated = jnp.tensordot(vectors.T, labels, axes=1, precision="highest")
    fits = jnp.einsum("mn,tn,n...->tm...", projected, weights, rotated, precision="highest")
    rate = (1 - label_weight) * jnp.max(values / (values + ridge))
    return Distillation(fits[:-1], fits[-1], rate)


def best_label_weight(label_fit: Array, teacher_fit: Array, reference: Array) -> Array:
    """Return the weight α* of the labels whose fit is nearest to reference values.

    A fit is linear in its targets, so with weight α it is α A + (1 - α) B, A the fit to the labels
    and B the fit to the teacher's outputs, and the squared distance to the reference v is least at
    <v - B, A - B> / |A - B|². It need not lie between 0 and 1: where more smoothing than one more
    step gives would help it is negative, and then it is no mixture of targets.

    Args:
        label_fit: A, (M,) at any inputs.
        teacher_fit: B, (M,).
        reference: v, (M,): the truth, or held-out labels.

    Returns:
        Scalar; not a number where A = B.

    Reference: Borup and Andersen 2021, arXiv:2102.13088, section 4.3.

    Example:
        >>> ones = jnp.ones(3)
        >>> print(best_label_weight(ones, 0 * ones, 0.25 * ones))
        0.25
    """
    arguments.shapes("M, M, M", label_fit=label_fit, teacher_fit=teacher_fit, reference=reference)
    difference = label_fit - teacher_fit
    return jnp.sum((reference - teacher_fit) * difference) / jnp.sum(difference**2)


def _checked(ridge: Array | float, label_weight: Array | float, steps: Any) -> np.ndarray:
    arguments.scalars(ridge=ridge, label_weight=label_weight)
    arguments.positive(ridge=ridge)
    arguments.fractions(label_weight=label_weight)
    arguments.numbers(steps=steps)
    steps = np.array(steps, dtype=np.float64)
    if steps.ndim != 1 or not steps.size or np.any(steps < 1):
        message = f"steps={steps}: give (T,) numbers from 1 on"
        raise ValueError(message)
    if np.any(steps[np.isfinite(steps)] % 1):
        message = f"steps={steps}: give whole numbers"
        raise ValueError(message)
    return steps
