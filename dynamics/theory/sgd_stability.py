"""Linear stability of SGD at a minimum that fits every sample, in the mean square and exactly.

Near such a minimum the loss of sample i is (g_i·d)²/2, with d the distance from the minimum and
g_i the gradient of the i-th output; the Hessian is H, the mean of g_i g_i^T. A step of SGD maps d
to A d, A = I - η times the mean of g g^T over the batch, and the second moment S = E[d d^T] to

    T S = E[A S A] = S - η (H S + S H) + η² [(1 - w) H S H + w E_i (g_i·S g_i) g_i g_i^T],

w = 1/B for batches of B samples drawn with replacement, (N - B)/(B (N - 1)) without, zero for all
of them: gradient descent. T keeps positive matrices positive, so its largest eigenvalue is its
spectral radius, and SGD is stable until η reaches 1/λ, λ the largest eigenvalue of the quadratic
part of T relative to the linear one. Everything is restricted to the span of the g_i: across it
nothing moves. Computed on the host in float64.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from dynamics import arguments

FloatArray = Any  # a NumPy array of float64, or a NumPy number where the shape is ()


class CriticalPoint(NamedTuple):
    """Where SGD loses its stability in the mean square."""

    learning_rate: float  # the second moment stays bounded up to it and grows without limit above
    covariance: FloatArray  # (P, P) of trace one, which SGD keeps at that learning rate


def batch_weight(num_samples: int, batch_size: int, *, with_replacement: bool = True) -> float:
    """Return w, the share of single samples in what batches do to the second moment.

    Args:
        num_samples: N.
        batch_size: B, from 1 to N; larger ones only with replacement.
        with_replacement: whether a sample may be in a batch more than once.

    Raises:
        ValueError: a size is out of range.

    Reference: Mulayoff and Michaeli 2024, arXiv:2306.07850 (p there, without replacement).

    Example:
        >>> batch_weight(5, 2), batch_weight(5, 2, with_replacement=False)
        (0.5, 0.375)
    """
    arguments.counts(num_samples=num_samples, batch_size=batch_size)
    if with_replacement:
        return 1 / batch_size
    if batch_size > num_samples:
        message = f"batch_size={batch_size}: give at most the {num_samples} samples"
        raise ValueError(message)
    if num_samples == 1:
        return 0.0
    return (num_samples - batch_size) / (batch_size * (num_samples - 1))


def critical_point(gradients: Any, *, weight: float = 1.0) -> CriticalPoint:
    """Return the learning rate at which SGD stops being stable, and what it then keeps.

    Never above 2/λ_max(H), that of gradient descent, and falling with the weight of single
    samples. Single samples: from 2/max|g_i|² to 2 mean|g_i|²/mean|g_i|⁴, which is 2/Tr H or less;
    so 2/Tr H itself where all |g_i| are equal.

    Args:
        gradients: (N, P), g_i a row, not all zero. The cost is that of a dense eigenproblem of
            R (R + 1)/2 unknowns, R the rank.
        weight: w of single samples, from 0 (gradient descent) to 1 (batches of one), as from
            `batch_weight`.

    Raises:
        ValueError: `gradients` is not a matrix, not finite or zero; `weight` is out of range.

    Reference: Mulayoff and Michaeli 2024, arXiv:2306.07850; the bounds follow
    from S = I and from |g_i|² at its largest; Wu and Su 2023, arXiv:2305.17490, for 2/Tr H.

    Example:
        >>> found = critical_point([[2.0, 0.0], [0.0, 2.0]])
        >>> print(round(found.learning_rate, 12))  # 2/Tr H, H = 2 I
        0.5
    """
    rows, basis = _in_span(gradients)
    arguments.fractions(weight=weight)
    linear, quadratic = _parts(rows, weight)
    last = len(linear) - 1
    values, vectors = scipy.linalg.eigh(quadratic, linear, subset_by_index=[last, last])
    second = _unpack(vectors[:, 0], rows.shape[1])
    second = basis @ second @ basis.T
    return CriticalPoint(1 / float(values[0]), second / np.trace(second))


def radius(gradients: Any, learning_rate: float, *, weight: float = 1.0) -> float:
    """Return the factor by which the second moment grows at each step, in the long run.

    The spectral radius of T on the span of the gradients: below one where SGD is stable.

    Args:
        gradients: (N, P), as in `critical_point`.
        learning_rate: η.
        weight: w of single samples.

    Raises:
        ValueError: as in `critical_point`.

    Example:
        >>> print(round(radius([[2.0, 0.0]], 0.25), 12), round(radius([[2.0, 0.0]], 0.5), 12))
        0.0 1.0
    """
    rows, _ = _in_span(gradients)
    arguments.scalars(learning_rate=learning_rate)
    arguments.finite(learning_rate=learning_rate)
    arguments.fractions(weight=weight)
    linear, quadratic = _parts(rows, weight)
    total = np.eye(len(linear)) - learning_rate * linear + learning_rate**2 * quadratic
    return float(np.linalg.eigvalsh(total)[-1])


def second_moments(
    gradients: Any, start: Any, learning_rate: float, num_steps: int, *, weight: float = 1.0
) -> FloatArray:
    """Return the second moment E[d d^T] after 0, 1, ..., `num_steps` steps, (num_steps + 1, P, P).

    Args:
        gradients: (N, P), g_i a row.
        start: (P, P) second moment before the first step.
        learning_rate: η.
        num_steps: not negative.
        weight: w of single samples.

    Raises:
        ValueError: the shape of `start` does not fit.

    Example:
        >>> moments = second_moments([[1.0]], [[3.0]], 0.5, 2)
        >>> print(moments[:, 0, 0])
        [3.     0.75   0.1875]
    """
    arguments.shapes("N P, P P", gradients=gradients, start=start)
    arguments.finite(gradients=gradients, start=start, learning_rate=learning_rate)
    arguments.integers(0, num_steps=num_steps)
    arguments.fractions(weight=weight)
    gradients, second = np.asarray(gradients, np.float64), np.asarray(start, np.float64)
    num_samples = len(gradients)
    hessian = gradients.T @ gradients / num_samples
    found = [second]
    for _ in range(num_steps):
        forms = np.einsum("ip,pq,iq->i", gradients, second, gradients)  # g·S g
        single = (gradients * forms[:, None]).T @ gradients / num_samples
        whole = hessian @ second @ hessian
        once = hessian @ second
        second = second - learning_rate * (once + once.T)
        second = second + learning_rate**2 * ((1 - weight) * whole + weight * single)
        found.append(second)
    return np.stack(found)


def _in_span(gradients: Any) -> tuple[FloatArray, FloatArray]:
    """Return the gradients in coordinates (N, R) of an orthonormal basis (P, R) of their span."""
    arguments.shapes("N P", gradients=gradients)
    gradients = np.asarray(gradients, np.float64)
    if not np.isfinite(gradients).all() or not gradients.any():
        message = f"gradients: shape {gradients.shape}; give a finite matrix (N, P), not all zero"
        raise ValueError(message)
    _, sizes, right = np.linalg.svd(gradients, full_matrices=False)
    rank = int(np.sum(sizes > sizes[0] * max(gradients.shape) * np.finfo(float).eps))
    basis = right[:rank].T
    return gradients @ basis, basis


def _parts(rows: FloatArray, weight: float) -> tuple[FloatArray, FloatArray]:
    """Return L and Q of T = I - η L + η² Q on packed symmetric matrices, (K, K) each."""
    num_samples, rank = rows.shape
    hessian = rows.T @ rows / num_samples
    first, second = np.triu_indices(rank)
    # The packed basis e_a e_a^T and (e_a e_b^T + e_b e_a^T) / √2 is orthonormal.
    share = np.where(first == second, 0.5, np.sqrt(0.5))  # of e_a e_b^T + e_b e_a^T
    packed = 2 * share * rows[:, first] * rows[:, second]  # (N, K) of g g^T

    def product(left: FloatArray, right: FloatArray) -> FloatArray:
        """The matrix (K, K) of S -> (left S right + right S left) / 2."""
        total = sum(
            one[np.ix_(first, ends[0])] * other[np.ix_(second, ends[1])]
            for one, other in ((left, right), (right, left))
            for ends in ((first, second), (second, first))
        )
        return total * np.outer(share, share)

    linear = 2 * product(hessian, np.eye(rank))
    single = packed.T @ packed / num_samples
    return linear, (1 - weight) * product(hessian, hessian) + weight * single


def _unpack(packed: FloatArray, rank: int) -> FloatArray:
    """Return the symmetric matrix (R, R) of packed coordinates (K,)."""
    first, second = np.triu_indices(rank)
    entries = np.where(first == second, packed, packed * np.sqrt(0.5))
    matrix = np.zeros((rank, rank))
    matrix[first, second] = matrix[second, first] = entries
    return matrix
