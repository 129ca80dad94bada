"""Where gradient descent of constant step η ends on functions with a kink or an infinite curvature.

On |x|^p, 1 < p < 2, the gradient is continuous and the curvature at the minimum is infinite: no
step is small enough, and descent ends in the orbit x → -x → x with η f'(x) = 2x. On λ|w|_1 each
coordinate chatters about zero with an amplitude of about η λ / 2, however large the penalty.
"""

from typing import Any

import numpy as np

from dynamics import arguments


def orbit_radius(exponent: Any, learning_rate: Any, rounding: Any = 0.0) -> Any:
    """Return |x| of the orbit of period two on (x² + δ²)^(p/2), or 0 where there is none.

    η f'(x) = 2x says x² + δ² = x*², with x* = (η p / 2)^(1/(2 - p)) that of |x|^p. From δ = x* on
    the step is within 2 / f''(0) and the minimum is stable.

    Args:
        exponent: p, between 1 and 2; any shape.
        learning_rate: η, positive.
        rounding: δ, 0 for |x|^p itself.

    Raises:
        ValueError: `exponent` outside (1, 2), `learning_rate` not positive, `rounding` negative.

    Example:
        >>> print(orbit_radius(1.5, 0.1).round(6))
        0.005625
    """
    p, eta, delta = _checked(exponent, learning_rate, rounding)
    return np.sqrt(np.maximum((eta * p / 2) ** (2 / (2 - p)) - delta**2, 0))


def orbit_sharpness(exponent: Any, learning_rate: Any, rounding: Any = 0.0) -> Any:
    """Return f'' of (x² + δ²)^(p/2) where descent ends: on the orbit, or at 0 without one.

    On the orbit it is (2/η)(p - 1 + (2 - p) δ²/x*²), so (p - 1) 2/η on |x|^p; at 0 it is p δ^(p-2).
    A step multiplies a deviation from the end by 1 - η f'', which is 3 - 2p on |x|^p: the orbit is
    stable for every p between 1 and 2.

    Args:
        exponent: p, between 1 and 2; any shape.
        learning_rate: η, positive.
        rounding: δ.

    Raises:
        ValueError: as `orbit_radius`.

    Example:
        >>> print(orbit_sharpness(1.5, 0.1))
        10.0
    """
    p, eta, delta = _checked(exponent, learning_rate, rounding)
    share = delta**2 / (eta * p / 2) ** (2 / (2 - p))  # δ²/x*²
    at_zero = (2 / eta) * np.where(share > 0, share, 1) ** (p / 2 - 1)
    return np.where(share < 1, (2 / eta) * (p - 1 + (2 - p) * share), at_zero)


def chatter_norm(gram: Any, signs: Any, learning_rate: float, penalty: float) -> np.ndarray:
    """Return |w|_1, the mean of two steps, of subgradient descent on the LASSO in its two-cycle.

    Where every weight changes sign at every step, the half difference v of the two iterates solves
    (2 - η X^T X) v = η λ σ, σ the signs of one, and the mean of their norms is σ·v: from d η λ / 2
    to that over 1 - η h / 2, h the largest eigenvalue. It knows nothing of the targets.

    Args:
        gram: X^T X (d, d).
        signs: σ (..., d) of one iterate, ±1.
        learning_rate: η, below 2 / h.
        penalty: λ.

    Raises:
        ValueError: η not below 2 / h.

    Example:
        >>> print(chatter_norm(np.diag([1.0, 0.0]), np.array([1, -1]), 0.5, 4.0).round(4))
        2.3333
    """
    arguments.shapes("d d, ... d", gram=gram, signs=signs)
    arguments.numbers(penalty=penalty)
    solved = np.asarray(signs) @ _resolvent(gram, learning_rate)
    return learning_rate * penalty * np.sum(solved * signs, axis=-1)


def mean_chatter_norm(
    gram: Any, correlation: Any, learning_rate: float, penalty: Any
) -> np.ndarray:
    """Return the mean over time of |w|_1 of subgradient descent on the LASSO, far above |X^T y|_∞.

    Under a pull b_j = (X^T y)_j weaker than λ a weight steps by η(b_j ± λ), fills an interval of
    length 2 η λ evenly and has a mean size of (η λ / 2)(1 + b_j²/λ²). Correlations X^T X between
    weights of random signs turn the sum over weights into

        |w|_1 = η λ tr (2 - η X^T X)^-1 + η |b|² / (2 λ),

    up to terms of fourth order in b/λ, second order in η h, and the chance of the signs.

    Args:
        gram: X^T X (d, d).
        correlation: b = X^T y (d,).
        learning_rate: η, below 2 / h.
        penalty: λ, any shape.

    Raises:
        ValueError: η not below 2 / h.

    References:
        Derived here; that the norm grows with the penalty: Kumar 2024, arXiv:2401.08426.

    Example:
        >>> print(mean_chatter_norm(np.zeros((3, 3)), np.zeros(3), 0.1, 10.0).round(4))
        1.5
    """
    arguments.shapes("d d, d", gram=gram, correlation=correlation)
    arguments.positive(penalty=penalty)
    trace = np.trace(_resolvent(gram, learning_rate))
    pull = np.sum(np.asarray(correlation) ** 2)
    penalty = np.asarray(penalty)
    return learning_rate * (penalty * trace + pull / (2 * penalty))


def _resolvent(gram: Any, learning_rate: float) -> np.ndarray:
    arguments.shapes("d d", gram=gram)
    arguments.finite(gram=gram)
    arguments.scalars(learning_rate=learning_rate)
    gram = np.asarray(gram)
    largest = np.linalg.eigvalsh(gram)[-1]
    if not learning_rate * largest < 2:
        message = f"learning_rate={learning_rate}: give one below 2 / {largest:g}, or it diverges"
        raise ValueError(message)
    return np.linalg.inv(2 * np.eye(len(gram)) - learning_rate * gram)


def _checked(exponent: Any, learning_rate: Any, rounding: Any) -> tuple[np.ndarray, ...]:
    arguments.numbers(exponent=exponent, learning_rate=learning_rate, rounding=rounding)
    p, eta, delta = (np.asarray(a, np.float64) for a in (exponent, learning_rate, rounding))
    if not np.all((p > 1) & (p < 2)):
        message = f"exponent={exponent}: give a number between 1 and 2"
        raise ValueError(message)
    if not (np.all(eta > 0) and np.all(delta >= 0)):
        message = f"learning_rate={learning_rate}, rounding={rounding}: give η > 0 and δ >= 0"
        raise ValueError(message)
    return p, eta, delta
