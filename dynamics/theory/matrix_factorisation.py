"""Gradient descent on factors with more columns than the target has rank: how the excess dies.

Symmetric: loss 1/4 |X X^T - M|², X (N, K), step X ← X - η (X X^T - M) X. Asymmetric: loss
1/2 |F G^T - M|², F ← F - η (F G^T - M) G and G likewise. M has rank r < K.
"""

from typing import Any

import numpy as np

from dynamics import arguments

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


def excess_clock(squares: Any, learning_rate: float) -> Any:
    """Return h(y) = 1/y + (3 η/2) ln y + (5 η²/4) y, which grows by 2 η a step.

    Once the target is fitted, each of the K - r singular values of X that nothing needs obeys
    s ← s (1 - η s²). For y = s² that is y ← y (1 - η y)², whose Abel function this is: the growth
    is 2 η (1 + O(η³ y³)). So y → 1 / (2 η t) whatever the start.

    Args:
        squares: y > 0, any shape: the K - r smallest eigenvalues of X^T X.
        learning_rate: η.

    References:
        Derived here; Xiong, Ding and Du 2023, arXiv:2310.01769, prove Ω(1/T²) for the loss.

    Example:
        >>> y, later = 0.01, 0.01 * (1 - 0.2 * 0.01) ** 2
        >>> print(round(excess_clock(later, 0.2) - excess_clock(y, 0.2), 6))
        0.4
    """
    arguments.positive(squares=squares)
    arguments.finite(learning_rate=learning_rate)
    eta = learning_rate
    return 1 / squares + 1.5 * eta * np.log(squares) + 1.25 * eta**2 * squares


def symmetric_loss(num_excess: Any, num_steps: Any, learning_rate: float) -> Any:
    """Return the limit (K - r) / (4 η² T²) of |X X^T - M|²: the sum of the y² of `excess_clock`.

    Approached from below, with a relative error of order 1/T: twice the clock at the start, over
    2 η T.

    Args:
        num_excess: K - r.
        num_steps: T.
        learning_rate: η.

    Example:
        >>> symmetric_loss(2, 100, 0.5)
        0.0002
    """
    arguments.numbers(num_excess=num_excess)
    arguments.positive(num_steps=num_steps, learning_rate=learning_rate)
    return num_excess / (4 * learning_rate**2 * num_steps**2)


def exact_rank_rate(eigenvalues: Any, learning_rate: float) -> float:
    """Return by how much ln |X X^T - M|² falls in a step when K = r: -2 ln(1 - η λ_min).

    Errors between the range of M and its complement shrink by 1 - η λ_i, those inside the range by
    1 - η (λ_i + λ_j); the slowest of all is left. For K = r < N.

    Args:
        eigenvalues: (r,) of M, all positive.
        learning_rate: η < 1 / λ_max, else descent does not settle.

    Raises:
        ValueError: a learning rate or an eigenvalue outside these bounds.

    References:
        Derived here; Xiong, Ding and Du 2023, arXiv:2310.01769, state exp(-Ω(T)).

    Example:
        >>> print(round(exact_rank_rate([1.0, 0.5], 0.2), 4))  # -2 ln 0.9
        0.2107
    """
    arguments.shapes("r", eigenvalues=eigenvalues)
    arguments.scalars(learning_rate=learning_rate)
    eigenvalues = np.asarray(eigenvalues, np.float64)
    if not eigenvalues.min() > 0:
        message = f"eigenvalues={eigenvalues}: give those of the range of M, all positive"
        raise ValueError(message)
    if not 0 < learning_rate < 1 / eigenvalues.max():
        message = f"learning_rate={learning_rate}: give one between 0 and {1 / eigenvalues.max()}"
        raise ValueError(message)
    inside = abs(1 - 2 * learning_rate * eigenvalues.max())
    return float(-2 * np.log(max(1 - learning_rate * eigenvalues.min(), inside)))


def excess_imbalance(first: Any, second: Any, left: Any, right: Any) -> FloatArray:
    """Return the eigenvalues (K - r,) of F^T F - G^T G on the columns that the target leaves free.

    The flow conserves F^T F - G^T G. From a small start the rows U^T F + V^T G, with U and V the
    singular vectors of M, grow and become the row space of the fit; on its orthogonal complement
    F and G end with F^T F - G^T G as it was and F G^T = 0. There the error then shrinks by
    1 - η |c| a step along each eigenvalue c, so the loss as (1 - η min |c|)^(2 t): with a start of
    scale α the rate goes as α², and without imbalance there is none. Relative errors are of order
    α² ln(1/α), and the step size enters at that order only.

    Args:
        first: (N, K) F at the start.
        second: (M, K) G at the start.
        left: (N, r) singular vectors of the target, orthonormal columns.
        right: (M, r) of the other side.

    Returns:
        In ascending order.

    Raises:
        ValueError: shapes that do not fit, or K <= r.

    References:
        Derived here; Xiong, Ding and Du 2023, arXiv:2310.01769, prove exp(-Ω(α² T)).

    Example:
        One entry is fitted; what is left is a scalar f g with f² - g² = 4 - 1.

        >>> first, second = np.diag([1.0, 2.0]), np.diag([1.0, 1.0])
        >>> print(excess_imbalance(first, second, np.eye(2)[:, :1], np.eye(2)[:, :1]))
        [3.]
    """
    given = dict(first=first, second=second, left=left, right=right)
    arguments.shapes("N K, M K, N r, M r", **given)
    first, second, left, right = (np.asarray(a, np.float64) for a in (first, second, left, right))
    rank = left.shape[1]
    if first.shape[1] <= rank:
        message = f"first: {first.shape[1]} columns; give more than the rank {rank} of the target"
        raise ValueError(message)
    free = np.linalg.svd(left.T @ first + right.T @ second)[2][rank:]  # (K - r, K)
    return np.linalg.eigvalsh(free @ (first.T @ first - second.T @ second) @ free.T)
