"""What sampled targets do to the factors of the logits A b, at the minimum of the loss and near it.

The target is drawn, y ~ p, and SGD steps on its cross-entropy: with ξ = π - y, π the model's
probabilities, A ← A - η ξ b^T and b ← b - η A^T ξ. The imbalance M = A^T A - b b^T then changes by

    η² (|ξ|² b b^T - A^T ξ ξ^T A)

exactly: terms of first order cancel. For one logit, z = u v, that is u² - v² times 1 - η² ξ². The
Hessian of the expected loss has the trace |b|² Tr F + Tr A^T F A everywhere, F the covariance of
y at π; at the minimum F is that of ξ too, and the logits stay while the factors drift, as in
gradient descent on the trace along the set of minima, at a quarter of η² a step. "One logit" is F
of shape (1, 1), the variance of a Bernoulli variable. Computed on the host in float64.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.integrate

from dynamics import arguments

FloatArray = Any  # a NumPy array of float64, or a NumPy number where the shape is ()


class FactorCourse(NamedTuple):
    """Two factors that drift along the minima of the loss; T times."""

    outer: FloatArray  # (T, V, K) A
    inner: FloatArray  # (T, K) b


def covariance(probabilities: Any) -> FloatArray:
    """Return the covariance diag(p) - p p^T of a one-hot draw, (V, V).

    Example:
        >>> print(covariance([0.25, 0.75]))
        [[ 0.1875 -0.1875]
         [-0.1875  0.1875]]
    """
    arguments.shapes("V", probabilities=probabilities)
    arguments.fractions(probabilities=probabilities)
    probabilities = np.asarray(probabilities, np.float64)
    return np.diag(probabilities) - np.outer(probabilities, probabilities)


def hessian_trace(outer: Any, inner: Any, fisher: Any) -> Any:
    """Return the trace of the Hessian of the expected cross-entropy to A and b.

    Args:
        outer: A, (..., V, K).
        inner: b, (..., K).
        fisher: F at the model's probabilities, (V, V) or (..., V, V).

    Example:
        >>> print(hessian_trace(np.array([[3.0]]), np.array([2.0]), np.array([[0.25]])))
        3.25
    """
    arguments.shapes("... V K, ... K, ... V V", outer=outer, inner=inner, fisher=fisher)
    variance = fisher.trace(axis1=-2, axis2=-1)
    curved = (outer * (fisher @ outer)).sum(axis=(-2, -1))
    return variance * (inner**2).sum(axis=-1) + curved


def imbalance_change(outer: Any, inner: Any, noise: Any) -> Any:
    """Return |ξ|² b b^T - A^T ξ ξ^T A: one step adds η² times it to A^T A - b b^T.

    Args:
        outer: A, (V, K).
        inner: b, (K,).
        noise: ξ, (V,), probabilities less one-hot target.

    Example:
        >>> print(imbalance_change(np.array([[3.0]]), np.array([2.0]), np.array([0.5])))
        [[-1.25]]
    """
    arguments.shapes("V K, K, V", outer=outer, inner=inner, noise=noise)
    pulled = outer.T @ noise
    size = (noise**2).sum()
    return size * inner[:, None] * inner - pulled[:, None] * pulled


def imbalance_course(
    probability: float, first: float, second: float, *, learning_rate: float, num_steps: int
) -> FloatArray:
    """Return E[u² - v²] over its start after 0, 1, ..., `num_steps` steps, for one logit z = u v.

    From a start at the minimum, where ξ² has the mean q = p (1 - p). SGD does not stay in it: the
    logit fluctuates with the variance η c / (2 - η q c), c = u² + v², which adds q² times that.
    What is left out is of the order of the square of η c.

    Args:
        probability: p.
        first: u at the start.
        second: v at the start; u v should be the logit of p.
        learning_rate: η, below 2 / (q c), where SGD is stable.
        num_steps: not negative.

    Raises:
        ValueError: `learning_rate` is out of range.

    Reference: derived here; the leading order is Li, Wang and Arora 2022, arXiv:2110.06914.

    Example:
        >>> course = imbalance_course(0.5, 2.0, 0.0, learning_rate=0.1, num_steps=1)
        >>> print(course.round(6))
        [1.       0.997368]
    """
    arguments.scalars(probability=probability, first=first, second=second)
    arguments.fractions(probability=probability)
    arguments.finite(first=first, second=second, learning_rate=learning_rate)
    arguments.integers(0, num_steps=num_steps)
    variance = probability * (1 - probability)
    size, logit = first**2 - second**2, first * second
    if not 0 < learning_rate * variance * np.hypot(size, 2 * logit) < 2:
        message = (
            f"learning_rate={learning_rate}: SGD is not stable, or never moves, at "
            f"probability={probability}"
        )
        raise ValueError(message)
    course = [size]
    for _ in range(num_steps):
        total = np.hypot(course[-1], 2 * logit)  # u² + v²
        spread = learning_rate * total / (2 - learning_rate * variance * total)
        course.append(course[-1] * (1 - learning_rate**2 * (variance + variance**2 * spread)))
    return np.array(course) / size


def drift(
    outer: Any, inner: Any, fisher: Any, times: Any, *, tolerance: float = 1e-9
) -> FactorCourse:
    """Return the factors while they follow -∇ Tr H / 4 along the minima of the loss.

    SGD of rate η from a minimum is there, to first order in η, at the step time / η².

    Args:
        outer: A at the start, (V, K), a minimum of the loss.
        inner: b at the start, (K,).
        fisher: F at the minimum, (V, V).
        times: (T,) increasing from 0 on, in units of steps x η².
        tolerance: Error of a step of the solver, absolute and relative.

    Reference: Li, Wang and Arora 2022, arXiv:2110.06914, noise with the covariance of the Hessian.

    Example:
        >>> one = np.ones((1, 1))
        >>> course = drift(2 * one, one[0], 0.25 * one, [0.0, 4.0])
        >>> balance = course.outer[:, 0, 0] ** 2 - course.inner[:, 0] ** 2
        >>> print(round(balance[1] / balance[0] * np.e, 6))  # falls as exp(-p (1 - p) time)
        1.0
    """
    arguments.shapes("V K, K, V V, T", outer=outer, inner=inner, fisher=fisher, times=times)
    arguments.finite(outer=outer, inner=inner, fisher=fisher, times=times)
    arguments.not_negative(times=times)
    arguments.positive(tolerance=tolerance)
    if np.any(np.diff(np.asarray(times)) <= 0) or not np.asarray(times)[-1] > 0:
        message = f"times={times}: give increasing ones that end above 0"
        raise ValueError(message)
    outer, inner, fisher = (np.asarray(a, np.float64) for a in (outer, inner, fisher))
    shape, split = outer.shape, outer.size
    values, vectors = np.linalg.eigh(fisher)
    basis = vectors[:, values > values[-1] * len(values) * np.finfo(float).eps]  # (V, R)
    spread = np.trace(fisher)

    def rates(time: float, flat: FloatArray) -> FloatArray:
        outer, inner = flat[:split].reshape(shape), flat[split:]
        outer_slope, inner_slope = 2 * fisher @ outer, 2 * spread * inner
        # Less what moves the logits: their gradients are (m b^T, A^T m), m in the range of F.
        inside = basis.T @ outer
        moves = basis.T @ (outer_slope @ inner + outer @ inner_slope)
        gram = inside @ inside.T + np.sum(inner**2) * np.eye(len(moves))
        push = basis @ np.linalg.solve(gram, moves)
        outer_rate = outer_slope - np.outer(push, inner)
        inner_rate = inner_slope - outer.T @ push
        return -np.concatenate([outer_rate.ravel(), inner_rate]) / 4

    times = np.asarray(times, np.float64)
    solution = scipy.integrate.solve_ivp(
        rates, (0.0, times[-1]), np.concatenate([outer.ravel(), inner]), method="DOP853",
        t_eval=times, rtol=tolerance, atol=tolerance,
    )  # fmt: skip
    course = solution.y.T
    return FactorCourse(course[:, :split].reshape(-1, *shape), course[:, split:])
