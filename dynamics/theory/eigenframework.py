"""The eigenframework: train and test error of ridge regression from the kernel's eigenvalues.

The kernel is Σ_i λ_i φ_i(x) φ_i(x') with orthonormal φ_i, the target Σ_i v_i φ_i(x) plus noise of
variance σ², and the predictor minimises Σ_samples (f - y)² + δ |f|²: no 1/n before the sum. With
k random features the kernel is Φ W W^T Φ^T, W of k columns from N(0, 1/k), Φ = φ λ^(1/2); k = ∞ is
the kernel itself. In the limit of many samples, features and modes

    n = z + δ/κ,   k = z + k κ/γ,   z = Σ λ/(λ + γ),   q = Σ (λ/(λ + γ))²

set γ and κ. Put together they are one equation, γ (n - z) (1 - z/k) = δ, whose left side rises in
γ from 0 where z = min(n, k): every ridge has one γ, and every larger γ one ridge. Errors are means
of squares, of noisy labels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array

NUM_BISECTIONS = 64  # of an interval of 70 in log γ: down to the rounding of double precision
NUM_GAMMAS = 65  # of the grid in which the optimal ridge is looked for
NUM_ZOOMS = 5  # each 32 times finer: log γ to 1e-6


class Spectrum(NamedTuple):
    """What ridge regression sees of a kernel and a target; one row may stand for many modes."""

    eigenvalues: Array  # (M,) λ, zero allowed: a mode that the kernel does not have
    traces: Array  # (M,) sum of λ over the modes of the row: λ times their number
    powers: Array  # (M,) sum of v² over the modes of the row


class Risk(NamedTuple):
    """Errors and what they are made of, each of the broadcast shape of n, k and δ."""

    test: Array  # mean squared error on new noisy samples
    train: Array  # mean squared error on the samples
    gamma: Array  # γ: modes with λ above it are learnt
    kappa: Array  # κ = γ (1 - z/k); γ itself for a kernel
    learned: Array  # z, the number of modes that are learnt
    ridge: Array  # δ


def spectrum(eigenvalues: Array, powers: Array) -> Spectrum:
    """Return the spectrum of single modes.

    Args:
        eigenvalues: (M,) λ.
        powers: (M,) v², squared coefficients of the target.

    Raises:
        ValueError: the shapes are not the same (M,).

    Example:
        >>> print(spectrum(jnp.ones(2), jnp.ones(2)).traces)
        [1. 1.]
    """
    arguments.shapes("M, M", eigenvalues=eigenvalues, powers=powers)
    eigenvalues, powers = jnp.asarray(eigenvalues), jnp.asarray(powers)
    return Spectrum(eigenvalues, eigenvalues, powers)


def power_law(
    alpha: float, beta: float, *, num_modes: int = 4096, nugget: bool = False
) -> Spectrum:
    """Return λ_i = i^-α, v_i² = i^-β for all i = 1, 2, ...: the first modes one by one.

    The others, i > M, are the integral from M + 1/2 on (midpoint rule: relative error of the tail
    α² / (24 M²)), by Gauss-Legendre with eight nodes for each unit of log i, up to where 1e-12 of
    trace and power are left.

    With a nugget they are one last row of eigenvalue zero with their whole trace τ and power p:
    what a simulation of M modes has when it adds τ to the diagonal of the kernel of its samples
    and noise of variance p to its labels. The two differ by λ_M/γ. Without any tail they differ
    by (n/M)^(α - 1) and (n/M)^(β - 1), much at every size that fits a memory.

    Args:
        alpha: α, above 1, or the kernel has no trace.
        beta: β, above 1, or the target has no power.
        num_modes: M, of single modes.
        nugget: Whether the tail is one row.

    Raises:
        ValueError: α or β is not above 1, or there are no modes.

    Reference: Simon et al. 2023, arXiv:2311.14646, section 5, for the spectra.

    Example:
        >>> law = power_law(2.0, 3.0)
        >>> print(round(float(law.traces.sum()), 4), round(float(law.powers.sum()), 4))
        1.6449 1.2021
    """
    arguments.scalars(alpha=alpha, beta=beta)
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 1 < value < jnp.inf:
            message = f"{name}={value}: give a number above 1, so that the sum over modes is finite"
            raise ValueError(message)
    arguments.counts(num_modes=num_modes)
    single = np.log(np.arange(1, num_modes + 1))
    length = np.ceil(np.log(1e12) / (min(alpha, beta) - 1))
    nodes, weights = np.polynomial.legendre.leggauss(8)
    tail = (np.arange(length)[:, None] + (nodes + 1) / 2).ravel() + np.log(num_modes + 0.5)
    weights = np.tile(weights / 2, int(length))
    log_index = np.concatenate([single, tail])
    # A row's number of modes, weight * i, overflows long before its trace does: kept in the log.
    log_number = np.concatenate([np.zeros(num_modes), np.log(weights) + tail])
    parts = (-alpha * log_index, log_number - alpha * log_index, log_number - beta * log_index)
    eigenvalues, traces, powers = (np.exp(part) for part in parts)
    if nugget:
        lump = lambda values: np.append(values[:num_modes], values[num_modes:].sum())
        eigenvalues = np.append(eigenvalues[:num_modes], 0.0)
        traces, powers = lump(traces), lump(powers)
    return Spectrum(*(jnp.asarray(part) for part in (eigenvalues, traces, powers)))


def risk(
    modes: Spectrum,
    *,
    num_samples: Array | float,
    ridge: Array | float,
    num_features: Array | float = jnp.inf,
    noise: Array | float = 0.0,
) -> Risk:
    """Return the errors of ridge regression, broadcast over samples, features, ridge and noise.

    With D the denominator 1 - [q (k - 2 z) + z²] / [n (k - q)],

        test = {Σ [γ/(λ + γ) - κ λ/(λ + γ)² k/(k - q)] v² + σ²} / D,   train = (1 - z/n)² test,

    since δ/κ = n - z. For k = ∞, test = n/(n - q) {Σ (γ/(λ + γ))² v² + σ²}. Infinite where
    n = k and there is no ridge.

    Args:
        modes: Spectrum of kernel and target.
        num_samples: n, positive.
        ridge: δ, zero allowed where min(n, k) is below the number of modes.
        num_features: k, positive; infinity for the kernel itself.
        noise: σ², variance of the labels' noise.

    Reference: Simon et al. 2023, arXiv:2311.14646, equations (4) to (9), from memory and from the
    authors' code; here in the one unknown γ.

    Example:
        >>> print(risk(spectrum(jnp.ones(4), jnp.ones(4)), num_samples=2.0, ridge=0.0).test)
        2.0
    """
    arguments.records(Spectrum, modes=modes)
    arguments.positive(num_samples=num_samples, num_features=num_features)
    arguments.not_negative(ridge=ridge, noise=noise)
    settings = jnp.broadcast_arrays(
        *(jnp.asarray(a, modes.traces.dtype) for a in (num_samples, num_features, ridge, noise))
    )
    found = _risks(modes, *(a.ravel() for a in settings))
    return jax.tree.map(lambda leaf: leaf.reshape(settings[0].shape), found)


def optimal_ridge(
    modes: Spectrum,
    *,
    num_samples: Array | float,
    num_features: Array | float = jnp.inf,
    noise: Array | float = 0.0,
) -> Risk:
    """Return the errors at the ridge of smallest test error; zero is one of the ridges.

    Looked for in γ, from no ridge to where a thousandth of a mode is learnt: on a grid of log γ,
    then ever finer around its best point.

    Args:
        modes: Spectrum of kernel and target.
        num_samples: n.
        num_features: k.
        noise: σ².

    Example:
        >>> free = optimal_ridge(power_law(1.5, 3.0), num_samples=64.0)
        >>> print(free.train, free.ridge)  # the best fit goes through all labels
        0.0 0.0
    """
    arguments.records(Spectrum, modes=modes)
    arguments.positive(num_samples=num_samples, num_features=num_features)
    arguments.not_negative(noise=noise)
    settings = jnp.broadcast_arrays(
        *(jnp.asarray(a, modes.traces.dtype) for a in (num_samples, num_features, noise))
    )
    found = _optima(modes, *(a.ravel() for a in settings))
    return jax.tree.map(lambda leaf: leaf.reshape(settings[0].shape), found)


def critical_noise(modes: Spectrum, num_samples: float) -> Array:
    """Return the noise σ² up to which no ridge helps kernel regression at first, at n samples.

    The slope of log test in γ where the ridge is zero is B'/(B + σ²) + q'/(n - q), with
    B = Σ (γ/(λ + γ))² v²: it is negative, and a small ridge helps, where σ² exceeds
    B' (n - q)/|q'| - B. Negative where a ridge helps without any noise.

    Args:
        modes: Spectrum of kernel and target.
        num_samples: n, below the number of modes.

    Returns:
        Scalar, in the unit of the powers; `power_law_critical_noise` is relative and its limit.

    Reference: derived here from `risk`; the limit is that of Simon et al. 2023, arXiv:2311.14646.

    Example:
        >>> equal = spectrum(jnp.ones(4), jnp.ones(4))
        >>> print(abs(round(float(critical_noise(equal, 1.0)), 5)))  # any noise asks for a ridge
        0.0
    """
    arguments.records(Spectrum, modes=modes)
    arguments.positive(num_samples=num_samples)
    none = jnp.zeros((), modes.traces.dtype)
    gamma = _solve(modes, num_samples + none, none, none)
    share = modes.eigenvalues / (modes.eigenvalues + gamma)
    per_gamma = modes.traces / (modes.eigenvalues + gamma)
    bias = jnp.sum((1 - share) ** 2 * modes.powers)
    bias_slope = 2 * jnp.sum(share * (1 - share) ** 2 * modes.powers)  # by log γ
    square_slope = 2 * jnp.sum(per_gamma * share * (1 - share))  # of -q by log γ
    square = jnp.sum(per_gamma * share)
    return bias_slope * (num_samples - square) / square_slope - bias


def power_law_critical_noise(alpha: float, beta: float) -> float:
    """Return (β - α) / (α (α - 1)), the largest relative noise at which no ridge is best.

    Relative to the error of the noiseless problem without ridge, at infinitely many samples;
    negative where a ridge helps without any noise.

    Args:
        alpha: α > 1, of the eigenvalues i^-α.
        beta: β, of the target's powers i^-β; 1 < β < 2 α + 1.

    Raises:
        ValueError: α or β is out of range.

    Reference: Simon et al. 2023, arXiv:2311.14646, section 5; derivation in `power_law_fitting`.

    Example:
        >>> power_law_critical_noise(1.5, 3.0)
        2.0
    """
    _check_exponents(alpha, beta)
    return (beta - alpha) / (alpha * (alpha - 1))


def power_law_test(learned: Array, alpha: float, beta: float, relative_noise: float = 0.0) -> Array:
    """Return the test error over that without ridge, at infinitely many samples.

    With u = z/n, q = u n (α - 1)/α and a bias ∝ u^-(β - 1), the test error is proportional to
    [u^-(β - 1) + α s] / [1 - u (α - 1)/α], s the noise over the noiseless error without ridge.

    Args:
        learned: (...) u = 1 - sqrt(train/test), from 0 for infinite ridge to 1 for none.
        alpha: α > 1.
        beta: β; 1 < β < 2 α + 1.
        relative_noise: s.

    Raises:
        ValueError: an exponent is out of range.

    Reference: Simon et al. 2023, arXiv:2311.14646, section 5, derived anew.

    Example:
        >>> print(power_law_test(jnp.array([0.5, 1.0]), 2.0, 2.0))
        [1.3333334 1.       ]
    """
    _check_exponents(alpha, beta)
    arguments.numbers(learned=learned, relative_noise=relative_noise)
    above = (learned ** (1 - beta) + alpha * relative_noise) / (1 + alpha * relative_noise)
    return above / (alpha - learned * (alpha - 1))


def power_law_fitting(alpha: float, beta: float, relative_noise: float = 0.0) -> float:
    """Return train over test error at the optimal ridge, at infinitely many samples.

    `power_law_test` is a convex function of u by a linear one, so it has one minimum, where

        β u + α s u^β = α (β - 1) / (α - 1),

    or at u = 1, no ridge, where that u is beyond 1: where s <= (β - α) / (α (α - 1)). The ratio
    is (1 - u)². Sums to infinity are near it already at 100 samples, sums
    of 4096 modes are not where β is near 1: at 400 samples of (1.75, 1.25) 0.07, not 0.28.

    Args:
        alpha: α > 1.
        beta: β; 1 < β < 2 α + 1.
        relative_noise: s, not negative.

    Raises:
        ValueError: an exponent or the noise is out of range.

    Reference: Simon et al. 2023, arXiv:2311.14646, section 5, derived anew.

    Example:
        >>> round(power_law_fitting(2.0, 1.5), 6)  # ((α - β) / ((α - 1) β))²
        0.111111
        >>> power_law_fitting(1.5, 3.0, relative_noise=1.9)
        0.0
    """
    _check_exponents(alpha, beta)
    arguments.not_negative(relative_noise=relative_noise)
    wanted = alpha * (beta - 1) / (alpha - 1)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        above = beta * middle + alpha * relative_noise * middle**beta > wanted
        low, high = (low, middle) if above else (middle, high)
    share = 1.0 if relative_noise <= power_law_critical_noise(alpha, beta) else high
    return (1 - share) ** 2


def _check_exponents(alpha: float, beta: float) -> None:
    arguments.scalars(alpha=alpha, beta=beta)
    if not 1 < alpha < jnp.inf:
        message = f"alpha={alpha}: give a number above 1"
        raise ValueError(message)
    if not 1 < beta < 2 * alpha + 1:
        message = f"beta={beta}: give a number between 1 and 2 alpha + 1 = {2 * alpha + 1}"
        raise ValueError(message)


@jax.jit
def _risks(
    modes: Spectrum, num_samples: Array, num_features: Array, ridge: Array, noise: Array
) -> Risk:
    def one(setting: tuple[Array, ...]) -> Risk:
        num_samples, num_features, ridge, noise = setting
        gamma = _solve(modes, num_samples, 1 / num_features, ridge)
        return _risk_at(modes, gamma, num_samples, 1 / num_features, noise)._replace(ridge=ridge)

    return jax.lax.map(one, (num_samples, num_features, ridge, noise))


@jax.jit
def _optima(modes: Spectrum, num_samples: Array, num_features: Array, noise: Array) -> Risk:
    def one(setting: tuple[Array, ...]) -> Risk:
        num_samples, num_features, noise = setting
        at = lambda gamma: _risk_at(modes, gamma, num_samples, 1 / num_features, noise)
        lowest = _solve(modes, num_samples, 1 / num_features, jnp.zeros_like(noise))
        highest = jnp.maximum(1e3 * jnp.sum(modes.traces), 2 * lowest)

        def zoom(_: int, interval: tuple[Array, Array]) -> tuple[Array, Array]:
            grid = jnp.linspace(*interval, NUM_GAMMAS)
            tests = jax.lax.map(lambda log_gamma: at(jnp.exp(log_gamma)).test, grid)
            best = jnp.argmin(jnp.where(jnp.isnan(tests), jnp.inf, tests))
            return grid[jnp.maximum(best - 1, 0)], grid[jnp.minimum(best + 1, NUM_GAMMAS - 1)]

        ends = jnp.log(lowest), jnp.log(highest)
        low, high = jax.lax.fori_loop(0, NUM_ZOOMS, zoom, ends)
        found = at(jnp.exp((low + high) / 2))
        free = at(lowest)._replace(ridge=jnp.zeros_like(noise))
        # Without ridge z = min(n, k) to rounding; with n the smaller, nothing is left to fit.
        fitted = jnp.where(num_samples <= num_features, 0, free.train)
        free = free._replace(train=fitted)
        return jax.tree.map(lambda a, b: jnp.where(free.test <= found.test, a, b), free, found)

    return jax.lax.map(one, (num_samples, num_features, noise))


def _solve(modes: Spectrum, num_samples: Array, inverse_features: Array, ridge: Array) -> Array:
    """Return γ by bisection of its logarithm."""
    smaller = jnp.minimum(num_samples, 1 / inverse_features)
    highest = 2 * jnp.sum(modes.traces) / smaller + 4 * ridge / num_samples
    top = jnp.log(highest)  # there z <= min(n, k) / 2, and the left side is above n γ / 4 >= δ

    def halve(_: int, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = interval
        middle = (low + high) / 2
        gamma = jnp.exp(middle)
        learned = jnp.sum(modes.traces / (modes.eigenvalues + gamma))
        left = gamma * (num_samples - learned) * (1 - learned * inverse_features)
        above = (learned < smaller) & (left >= ridge)
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    _, high = jax.lax.fori_loop(0, NUM_BISECTIONS, halve, (top - 70, top))
    return jnp.exp(high)


def _risk_at(
    modes: Spectrum, gamma: Array, num_samples: Array, inverse_features: Array, noise: Array
) -> Risk:
    share = modes.eigenvalues / (modes.eigenvalues + gamma)
    per_gamma = modes.traces / (modes.eigenvalues + gamma)
    learned, square = jnp.sum(per_gamma), jnp.sum(per_gamma * share)
    kappa_share = 1 - learned * inverse_features  # κ/γ
    free = 1 - square * inverse_features  # (k - q)/k
    numerator = square * (1 - 2 * learned * inverse_features) + learned**2 * inverse_features
    # κ λ/(λ + γ)² = (κ/γ) (λ/(λ + γ)) (γ/(λ + γ))
    left_over = jnp.sum((1 - share) * (1 - share * kappa_share / free) * modes.powers)
    test = (left_over + noise) / (1 - numerator / (num_samples * free))
    rest = num_samples - learned
    return Risk(
        test, (rest / num_samples) ** 2 * test, gamma, gamma * kappa_share, learned,
        gamma * rest * kappa_share,
    )  # fmt: skip
