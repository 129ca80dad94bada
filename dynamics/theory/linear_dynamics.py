"""Predicting the next state of s' = W s, W a Haar-distributed orthogonal matrix, from the past.

What least squares on the pairs seen so far leaves unexplained, and what one gradient step leaves
however many pairs it has seen.
"""

from dynamics import arguments


def unexplained_share(dim: int, num_pairs: int) -> float:
    """Return E|s' - Φ s|² / E|s'|² for the least-squares Φ of t pairs: 1 - t / D, then 0.

    Least squares (the limit of a small ridge) knows W on the span of the t states that it has seen
    mapped; the error is the part of the newest state that is outside. That part is mapped by W to
    a direction uniform in the D - t + 1 dimensions that are left, of which one is then spanned: its
    square shrinks by 1 - 1 / (D - t + 1) on average, and the product telescopes.

    Args:
        dim: D, of the states.
        num_pairs: t, consecutive pairs (s, W s) along one trajectory, the newest state a query.

    Raises:
        ValueError: a `dim` below 1 or negative `num_pairs`.

    References:
        Derived here. The factors are 1 - α² for the Verblunsky coefficients α of a Haar matrix
        (Killip and Nenciu 2004, arXiv:math/0410034).

    Example:
        >>> unexplained_share(10, 3)
        0.7
    """
    arguments.integers(0, num_pairs=num_pairs)
    return max(_dimension(dim) - num_pairs, 0) / dim


def one_step_floor(dim: int) -> float:
    """Return the share that one gradient step from zero leaves unexplained, however many pairs.

    The prediction is η sum_t s_{t+1} (s_t·q), at the best η that is the same for all systems and
    may depend on the number of pairs. After many the sum is W A t with A the time average of
    s s^T, which has on each plane that W rotates half the energy e of the start there (a = e / 2),
    and on each axis that it keeps or flips all of it (a = e), e chi-squared of two and of one
    degrees of freedom. The least error sum e (1 - τ a)² is a share 1 - M2² / (D M3), where
    M2 = E sum e a is 4 a plane and 3 an axis, and M3 = E sum e a² is 12 and 15. For even D half of
    the matrices have D / 2 planes, half two axes and a plane less; for odd D each has one axis.

    Args:
        dim: D, of the states.

    Raises:
        ValueError: a `dim` below 1.

    References:
        Derived here.

    Example:
        As D grows axes count for little and the floor is 1 - 4² / (2 * 12) = 1/3.

        >>> round(one_step_floor(10), 4), round(one_step_floor(100_000), 4)
        (0.3609, 0.3333)
    """
    planes, axes = ((_dimension(dim) - 1) / 2, 1.0)  # on average
    second, third = 4 * planes + 3 * axes, 12 * planes + 15 * axes
    return 1 - second**2 / (dim * third)


def _dimension(dim: int) -> int:
    arguments.counts(dim=dim)
    return dim
