"""Two-layer networks with squared activation on the table of addition modulo M.

A hidden neuron with weights w = (u, v) sees the pair (a, b) as (u_a + v_b)². Its Li_2 energy is

    E(w) = 1/2 |Y_c^T σ(X w)|²,

X (M², 2M) with rows (e_a, e_b), Y_c (M², M) the one-hot a + b less 1/M. The sums of u_a² and v_b²
are the same in every class, which leaves E = 2 |u * v - mean|² (a cyclic convolution), and in the
Fourier transforms u^_k = Σ_a u_a exp(-2πi k a / M)

    E = (2/M) Σ_(k≠0) |u^_k|² |v^_k|².

Gradient ascent moves each frequency by itself: du^_k/dt = 4 u^_k |v^_k|² and the same for v^.
Phases stand still, |u^_k|² - |v^_k|² is conserved, and frequency k alone would diverge at the time
1 / (8 L_k), L_k the logarithmic mean of the two powers. E is homogeneous, so ascent on the unit
sphere is this flow seen from the origin: it ends at the frequency that diverges first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array

CORRECT_VARIANCE = 17 / 16  # of a correct logit over random phases, per neuron
PAIR_CORRELATION = 1 / 16  # of the logits of offsets d and -d
NUM_HALVINGS = 60  # of the bracket in which a time is sought: down to rounding
NUM_NODES = 80  # of Gauss-Hermite: 40 agree with 80 to 1e-9 up to modulus 97 and width 1000


class Network(NamedTuple):
    """Weights of N neurons: logit_c(a, b) = Σ_n readout_nc σ(first_na + second_nb)."""

    first: Array  # (N, M)
    second: Array  # (N, M)
    readout: Array  # (N, M)


class Ascent(NamedTuple):
    """Ascent of E on the unit sphere at T times, frequencies k = 0, ..., M // 2."""

    energy: Array  # (..., T)
    first: Array  # (..., T, M // 2 + 1) |u^_k|²
    second: Array  # (..., T, M // 2 + 1) |v^_k|²


def energy(first: Array, second: Array) -> Array:
    """Return E (...) of neurons with weights u, v (..., M), in the Fourier form.

    Reference: Tian 2025, "Provable Scaling Laws of Feature Emergence from Learning Dynamics of
    Grokking", for the energy; its Fourier form is derived here.

    Example:
        >>> print(f"{energy(jnp.array([1.0, 0.0, 0.0]), jnp.array([1.0, 0.0, 0.0])):.4f}")
        1.3333
    """
    modulus = _modulus(first, second)
    power = jnp.abs(jnp.fft.fft(first)) ** 2 * jnp.abs(jnp.fft.fft(second)) ** 2
    return 2 / modulus * power[..., 1:].sum(axis=-1)


def energy_gradient(first: Array, second: Array) -> tuple[Array, Array]:
    """Return dE/du and dE/dv, each (..., M), through the Fourier transform."""
    _modulus(first, second)
    u, v = jnp.fft.fft(first), jnp.fft.fft(second)
    product = (u * v).at[..., 0].set(0)
    back = lambda spectrum: 4 * jnp.fft.ifft(product * spectrum.conj()).real
    return back(v), back(u)


def largest_energy(modulus: int) -> float:
    """Return the maximum of E on |u|² + |v|² = 1: M/4, or M/2 for even M.

    E is convex in the shares of the frequencies, so at a maximum u and v have one frequency and
    the same length; the one of period two, if there is one, is its own conjugate.
    """
    arguments.integers(2, modulus=modulus)
    return modulus / (4 if modulus % 2 else 2)


def ascent_rates(first: Array, second: Array) -> Array:
    """Return L_k (..., M // 2) for k >= 1, the logarithmic mean of |u^_k|² and |v^_k|².

    Ascent of E from (u, v) ends at the frequency of the largest. L is (x - y) / log(x / y), the
    common value where x = y, and 0 where one of them is 0.
    """
    modulus = _modulus(first, second)
    x, y = (jnp.abs(jnp.fft.rfft(w)[..., 1 : modulus // 2 + 1]) ** 2 for w in (first, second))
    both = (x > 0) & (y > 0)
    x, y = jnp.where(both, x, 1), jnp.where(both, y, 1)
    log_ratio = jnp.log(x / y)
    near = jnp.abs(log_ratio) < 1e-4  # there sqrt(x y) (1 + log² / 24) is right to 1e-18
    mean = jnp.where(near, jnp.sqrt(x * y) * (1 + log_ratio**2 / 24),
                     (x - y) / jnp.where(near, 1, log_ratio))  # fmt: skip
    return jnp.where(both, mean, 0)


def ascent(first: Array, second: Array, times: Array) -> Ascent:
    """Return gradient ascent of E on |u|² + |v|² = 1 from the direction of (u, v), solved exactly.

    In the time t of the flow in all space, with T_k = 1 / (8 L_k) - t left to frequency k,

        |u^_k|² = φ(z) / (8 T_k),  |v^_k|² = φ(-z) / (8 T_k),  φ(z) = z / (1 - exp(-z)),

    z = 8 (|u^_k|² - |v^_k|²) T_k. The sphere has its own time s, ds/dt = |w|², of which the
    integral is closed too:

        s = Σ_(k≠0) log(growth of |u^_k|² |v^_k|²) / (8 M) + (|u^_0|² + |v^_0|²) t / M.

    Args:
        first: u (..., M), of any length.
        second: v (..., M).
        times: s (T,), not negative.

    Reference: derived here.
    """
    modulus = _modulus(first, second)
    arguments.shapes("T", times=times)
    arguments.not_negative(times=times)
    length = jnp.sqrt(jnp.sum(first**2 + second**2, axis=-1, keepdims=True))
    first, second = first / length, second / length
    start = [jnp.abs(jnp.fft.rfft(w)[..., None, :]) ** 2 for w in (first, second)]  # (..., 1, K)
    bins = jnp.arange(modulus // 2 + 1)
    pairs = jnp.where((bins > 0) & (2 * bins < modulus), 2, 1)  # k and M - k
    rates = ascent_rates(first, second)[..., None, :]
    rates = jnp.concatenate([jnp.zeros_like(rates[..., :1]), rates], axis=-1)
    moves = rates > 0
    ends = 1 / (8 * jnp.where(moves, rates, 1))
    end = 1 / (8 * rates.max(axis=-1, keepdims=True))  # (..., 1, 1)

    def powers(folds: Array) -> list[Array]:
        """At the times end (1 - exp(-folds)), (..., T, 1)."""
        left = jnp.where(moves, ends - end + end * jnp.exp(-folds), 1)
        z = 8 * (start[0] - start[1]) * left
        return [jnp.where(moves, _bernoulli(sign * z) / (8 * left), power)
                for sign, power in zip((1, -1), start, strict=True)]  # fmt: skip

    def sphere_time(folds: Array) -> Array:
        x, y = powers(folds)
        still = pairs * (start[0] + start[1]) * -end * jnp.expm1(-folds)
        safe = jnp.where(moves, start[0] * start[1], 1)
        growth = pairs / 8 * jnp.log(jnp.where(moves, x * y, 1) / safe)
        return jnp.where(moves, growth, still).sum(axis=-1, keepdims=True) / modulus

    target = jnp.asarray(times)[:, None]

    def halve(bracket: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        middle = (bracket[0] + bracket[1]) / 2
        early = sphere_time(middle) < target
        return (jnp.where(early, middle, bracket[0]), jnp.where(early, bracket[1], middle)), None

    upper = 4 * modulus * target + jnp.zeros_like(end)  # the winner's own growth takes this long
    bracket, _ = jax.lax.scan(halve, (jnp.zeros_like(upper), upper), length=NUM_HALVINGS)
    x, y = powers((bracket[0] + bracket[1]) / 2)
    squared = (pairs * (x + y)).sum(axis=-1, keepdims=True) / modulus
    x, y = x / squared, y / squared
    found = 2 / modulus * (pairs * x * y)[..., 1:].sum(axis=-1)
    return Ascent(found, x, y)


def analytic_network(frequencies: Array, phases: Array, modulus: int) -> Network:
    """Return Gromov's network: cosines whose readout has the sum of the phases.

    Args:
        frequencies: k (N,), integers that are not 0 modulo `modulus`.
        phases: φ (N, 2) of the two inputs.
        modulus: M, odd and at least 3, since the closed forms below need 2 k ≠ 0.

    Raises:
        ValueError: `modulus` is even or below 3, or the shapes do not fit.

    Reference: Gromov 2023, arXiv:2301.02679, section 3.
    """
    _check_odd(modulus)
    arguments.shapes("N, N 2", frequencies=frequencies, phases=phases)
    frequencies, phases = jnp.asarray(frequencies), jnp.asarray(phases)
    angles = 2 * jnp.pi / modulus * (frequencies[:, None] * jnp.arange(modulus) % modulus)
    wave = lambda phase: jnp.cos(angles + phase[:, None])
    return Network(wave(phases[:, 0]), wave(phases[:, 1]), wave(phases.sum(axis=1)))


def mean_logits(frequencies: Array, modulus: int) -> Array:
    """Return the mean over the table of the logit at offset d = c - a - b: (M,) for d = 0, 1, ...

    Σ_n cos(2π k_n d / M) / 2 for the analytic network with squared activation: exact, whatever the
    phases. That is N/2 at the right answer; where all frequencies are equally many, it is
    -N / (2 (M - 1)) at each wrong one.

    Reference: derived here.
    """
    arguments.integers(3, modulus=modulus)
    arguments.shapes("N", frequencies=frequencies)
    angles = 2 * jnp.pi / modulus * (jnp.outer(frequencies, jnp.arange(modulus)) % modulus)
    return jnp.cos(angles).sum(axis=0) / 2


def logit_covariance(frequencies: Array, modulus: int) -> Array:
    """Return the covariance over random phases of the logits at offsets d, d': (M, M).

    Σ_n cos(θ_n (d - d')) + cos(θ_n (d + d')) / 16, θ = 2π k / M; the same for every pair (a, b).

    Reference: derived here, by the harmonics of the two phases.
    """
    arguments.integers(3, modulus=modulus)
    arguments.shapes("N", frequencies=frequencies)
    offsets = jnp.arange(modulus)
    of = 2 * mean_logits(frequencies, modulus)  # Σ_n cos(θ_n d)
    difference = of[(offsets[:, None] - offsets) % modulus]
    return difference + PAIR_CORRELATION * of[(offsets[:, None] + offsets) % modulus]


def analytic_accuracy(width: float | Array, modulus: int) -> Array:
    """Return the accuracy expected of N neurons that have every frequency equally often: (...).

    With logits that are Gaussian with `mean_logits` and `logit_covariance`. Up to a number common
    to all classes they are sqrt(N M / (M - 1)) times ones of unit variance (17/16 at the right
    answer), correlated by 1/16 in the pairs (d, -d) alone; the right one is sqrt(N M / (M - 1)) / 2
    above the others. Gauss-Hermite quadrature over the right one and what a pair has in common.

    Args:
        width: N (...), positive.
        modulus: M, odd.

    Reference: derived here.
    """
    arguments.integers(3, modulus=modulus)
    arguments.positive(width=width)
    nodes, weights = np.polynomial.hermite_e.hermegauss(NUM_NODES)
    weights = weights / weights.sum()
    ahead = jnp.sqrt(jnp.asarray(width) * modulus / (modulus - 1)) / 2
    right = ahead[..., None] + CORRECT_VARIANCE**0.5 * nodes  # (..., Q)
    own = (right[..., None] - PAIR_CORRELATION**0.5 * nodes) / (1 - PAIR_CORRELATION) ** 0.5
    pair = jnp.sum(weights * jax.scipy.stats.norm.cdf(own) ** 2, axis=-1)  # (..., Q)
    return jnp.sum(weights * pair ** ((modulus - 1) // 2), axis=-1)


def _bernoulli(z: Array) -> Array:
    """Z / (1 - exp(-z)), one at zero."""
    near = jnp.abs(z) < 1e-5
    return jnp.where(near, 1 + z / 2 + z**2 / 12, z / -jnp.expm1(-jnp.where(near, 1, z)))


def _modulus(first: Array, second: Array) -> int:
    arguments.shapes("... M, ... M", first=first, second=second)
    return first.shape[-1]


def _check_odd(modulus: int) -> None:
    arguments.integers(3, modulus=modulus)
    if modulus % 2 == 0:
        message = f"modulus={modulus}: give an odd number"
        raise ValueError(message)
