"""What known algorithms answer in an in-context regression, after every prefix of the prompt.

Example i of a prompt is predicted from the examples before it. Gradient descent and Newton's
iteration start from zero weights, so that each of their iterates is a filter on the spectrum of
the prefix's Gram matrix S = Σ x x^T: w = Σ_j f(λ_j) / λ_j v_j (v_j·b), with b = Σ y x.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array

# Positive eigenvalues (D,) and the largest () -> the learned share of each (T, D).
Filter = Callable[[Array, Array], Array]


def gradient_descent_predictions(
    inputs: Array, targets: Array, num_steps: Array, learning_rate: float | None = None
) -> Array:
    """Return the answers (T, N) of gradient descent on the sum of squares of each prefix.

    After t steps of w ← w + η Σ (y - w·x) x from w = 0 the direction of eigenvalue λ is learned
    to the share 1 - (1 - ηλ)^t.

    Args:
        inputs: (N, D) of one prompt.
        targets: (N,).
        num_steps: (T,) integers, or a number: how many steps t.
        learning_rate: η; None takes 1 / (largest eigenvalue) of each prefix, which is stable on
            every prompt and leaves a condition number κ about κ steps.

    Raises:
        ValueError: shapes that do not fit, a negative number of steps.

    Source:
        Fu et al. 2023, arXiv:2310.17086, section 3.2.

    Example:
        >>> x, y = jnp.array([[2.0], [1.0]]), jnp.array([6.0, 3.0])
        >>> print(gradient_descent_predictions(x, y, jnp.array([0, 1])))
        [[0. 0.]
         [0. 3.]]
    """
    steps = _counts("num_steps", num_steps)
    arguments.not_negative(learning_rate=0 if learning_rate is None else learning_rate)

    def learned(eigenvalues: Array, largest: Array) -> Array:
        rate = 1 / largest if learning_rate is None else learning_rate
        return 1 - (1 - rate * eigenvalues) ** steps[:, None]

    return _filtered(inputs, targets, learned)


def newton_predictions(inputs: Array, targets: Array, num_iterations: Array) -> Array:
    """Return the answers (K, N) of Newton's iteration for the inverse of each prefix's S.

    M ← 2M - M S M from M = α S with α = 1 / (largest eigenvalue)² squares the unlearned share of
    every direction: after k iterations it is (1 - αλ²)^(2^k), as small in the direction of the
    smallest eigenvalue as after about 2^k / κ steps of gradient descent, at condition number κ.

    Args:
        inputs: (N, D) of one prompt.
        targets: (N,).
        num_iterations: (K,) integers, or a number: how many iterations k, up to 30.

    Raises:
        ValueError: shapes that do not fit, a negative number of iterations, or more than 30.

    Source:
        Fu et al. 2023, arXiv:2310.17086, equation 4; Schulz 1933 (convergence).
    """
    iterations = _counts("num_iterations", num_iterations, at_most=30)

    def learned(eigenvalues: Array, largest: Array) -> Array:
        unlearned = 1 - (eigenvalues / largest) ** 2
        return 1 - unlearned ** (2.0 ** iterations[:, None])

    return _filtered(inputs, targets, learned)


def ridge_predictions(inputs: Array, targets: Array, ridge: float = 0.0) -> Array:
    """Return the answers (N,) of ridge regression, (S + ridge I)^-1 b, of each prefix.

    The mean of Bayes' posterior is the ridge of noise variance over the weights' variance; 0 is
    least squares of the smallest norm.

    Args:
        inputs: (N, D) of one prompt.
        targets: (N,).
        ridge: not below 0.

    Raises:
        ValueError: shapes that do not fit, a negative ridge.
    """
    arguments.scalars(ridge=ridge)
    arguments.not_negative(ridge=ridge)

    def learned(eigenvalues: Array, largest: Array) -> Array:
        return (eigenvalues / (eigenvalues + ridge))[None]

    return _filtered(inputs, targets, learned)[0]


def _filtered(inputs: Array, targets: Array, learned: Filter) -> Array:
    """Return the answers (T, N): each input times the filtered solution of those before it."""
    arguments.shapes("N D, N", inputs=inputs, targets=targets)

    def before(values: Array) -> Array:
        return jnp.cumsum(values, axis=0) - values

    grams = before(jnp.einsum("nd,ne->nde", inputs, inputs))
    moments = before(targets[:, None] * inputs)

    def answer(gram: Array, moment: Array, query: Array) -> Array:
        eigenvalues, basis = jnp.linalg.eigh(gram)
        largest = jnp.where(eigenvalues[-1] > 0, eigenvalues[-1], 1)  # 1 for the empty prefix
        floor = len(eigenvalues) * jnp.finfo(eigenvalues.dtype).eps * largest
        seen = eigenvalues > floor  # rounding leaves no exact zeros
        positive = jnp.where(seen, eigenvalues, largest)
        inverse = jnp.where(seen, learned(positive, largest) / positive, 0)
        return inverse @ ((basis.T @ moment) * (basis.T @ query))

    return jax.vmap(answer, out_axes=1)(grams, moments, inputs)


def _counts(name: str, counts: Array, at_most: int | None = None) -> Array:
    arguments.numbers(**{name: counts})
    if jnp.ndim(counts):
        arguments.shapes("T", **{name: counts})
    counts = jnp.atleast_1d(jnp.asarray(counts))
    if not isinstance(counts, jax.core.Tracer) and (
        counts.min() < 0 or (at_most is not None and counts.max() > at_most)
    ):
        limit = "" if at_most is None else f" and at most {at_most}"
        message = f"{name}={counts}: at least 0{limit}"
        raise ValueError(message)
    return counts
