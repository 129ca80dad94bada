"""How well a linear probe reads S^-1 x off a polynomial of S applied to x, from spectra alone.

S = X^T X / N is the second moment of a context of N Gaussian inputs, x a query. A probe is one
matrix for all contexts; by isotropy the best one is a multiple of the identity, and its score is a
ratio of moments of the eigenvalues of S.
"""

from typing import Any

import numpy as np

from dynamics import arguments

FloatArray = Any  # a NumPy array of float64


def wishart_spectra(dim: int, num_context: int, num_draws: int, *, seed: int) -> FloatArray:
    """Return eigenvalues (M, D), rising, of M draws of S = X^T X / N for X (N, D) of N(0, 1).

    Raises:
        ValueError: a size below 1, or `num_context` below `dim` (S would be singular).

    References:
        Bartlett's decomposition: Anderson 2003, An Introduction to Multivariate Statistical
        Analysis, corollary 7.2.1.

    Example:
        >>> wishart_spectra(2, 50, 1000, seed=0).mean().round(1)
        np.float64(1.0)
    """
    arguments.counts(dim=dim, num_context=num_context, num_draws=num_draws)
    arguments.integers(0, seed=seed)
    if min(dim, num_draws) < 1 or num_context < dim:
        message = f"dim={dim}, num_context={num_context}, num_draws={num_draws}: give positive "
        message += "sizes, and at least as many examples as dimensions"
        raise ValueError(message)
    rng = np.random.default_rng(seed)
    factor = np.tril(rng.normal(size=(num_draws, dim, dim)), -1)
    freedom = num_context - np.arange(dim)
    factor[:, range(dim), range(dim)] = np.sqrt(rng.chisquare(freedom, size=(num_draws, dim)))
    return np.linalg.svd(factor, compute_uv=False)[:, ::-1] ** 2 / num_context


def descent_polynomial(eigenvalues: FloatArray, step: float, num_steps: int) -> FloatArray:
    """Return p_K(λ) = (1 - (1 - a λ)^K) / λ: K steps of descent towards S^-1 x give p_K(S) x.

    x_{k+1} = a x_0 + (I - a S) x_k from zero, Richardson's iteration, gives p_K(S) x_0.

    Example:
        >>> print(descent_polynomial(np.array([2.0]), 0.25, 2))  # (1 - 1/4) / 2
        [0.375]
    """
    arguments.positive(eigenvalues=eigenvalues)
    arguments.numbers(step=step)
    arguments.integers(0, num_steps=num_steps)
    return (1 - (1 - step * eigenvalues) ** num_steps) / eigenvalues


def probe_r_squared(eigenvalues: FloatArray, applied: FloatArray) -> float:
    """Return the R² of the best linear probe for S^-1 x from p(S) x, against the second moment.

    R² = (E tr p(S) S^-1)² / (E tr p(S)² E tr S^-2).

    Args:
        eigenvalues: (M, D) draws of the spectrum of S.
        applied: (M, D), p of them.

    Example:
        >>> spectrum = np.array([[1.0, 2.0]])
        >>> round(probe_r_squared(spectrum, 3 / spectrum), 12)
        1.0
    """
    arguments.shapes("M D, M D", eigenvalues=eigenvalues, applied=applied)
    arguments.positive(eigenvalues=eigenvalues)
    product = np.mean(np.sum(applied / eigenvalues, axis=1))
    squares = np.mean(np.sum(applied**2, axis=1)) * np.mean(np.sum(eigenvalues**-2.0, axis=1))
    return float(product**2 / squares)


def polynomial_r_squared(eigenvalues: FloatArray, degree: int) -> float:
    """Return the largest R² that any polynomial of a degree allows for S^-1 x.

    With b_j = E tr S^(j - 1) and M_jk = E tr S^(j + k), it is b M^-1 b / E tr S^-2: also what a
    probe gets from x, S x, ..., S^degree x together. One layer of linear attention over the inputs
    has degree one.

    Args:
        eigenvalues: (M, D) draws of the spectrum of S.
        degree: 0 is x alone.

    Example:
        Two eigenvalues are interpolated by a line.

        >>> round(polynomial_r_squared(np.array([[1.0, 2.0]]), 1), 12)
        1.0
    """
    arguments.shapes("M D", eigenvalues=eigenvalues)
    arguments.positive(eigenvalues=eigenvalues)
    arguments.integers(0, degree=degree)
    moment = lambda power: np.mean(np.sum(eigenvalues**power, axis=1))
    powers = range(degree + 1)
    against = np.array([moment(j - 1.0) for j in powers])
    gram = np.array([[moment(float(j + k)) for k in powers] for j in powers])
    try:
        return float(against @ np.linalg.solve(gram, against) / moment(-2.0))
    except np.linalg.LinAlgError:
        message = f"degree={degree}: give one below the number of different eigenvalues"
        raise ValueError(message) from None


def raw_input_r_squared(dim: int, num_context: int) -> float:
    """Return the R² for S^-1 x from x itself: (N - D)(N - D - 3) / ((N - 1)(N - D - 1)).

    From E S^-1 and E S^-2 of the inverse Wishart distribution; what any probe gets that knows
    nothing of its context.

    Raises:
        ValueError: N - D - 3 is not positive: S^-1 x has no second moment then.

    Example:
        >>> round(raw_input_r_squared(4, 16), 4)
        0.6545
    """
    arguments.counts(dim=dim, num_context=num_context)
    free = num_context - dim
    if free <= 3:
        message = f"num_context={num_context}, dim={dim}: give more than dim + 3 examples"
        raise ValueError(message)
    return free * (free - 3) / ((num_context - 1) * (free - 1))
