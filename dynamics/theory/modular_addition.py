"""Two-layer networks with squared activation on the table of addition modulo M.

A hidden neuron with weights w = (u, v) sees the pair (a, b) as (u_a + v_b)². Its Li_2 energy is

    E(w) = 1/2 |Y_c^T σ(X w)|²,

X (M², 2M) with rows (e_a, e_b), Y_c (M², M) the one-hot a + b less 1/M. The sums of u_a² and v_b²
are the same in every class, which leaves E = 2 |u * v - mean|² (a cyclic convolution), and in the
Fourier transforms u^_k = Σ_a u_a exp(-2πi k a / M)

    E = (2/M) Σ_(k≠0) |u^_k|² |v^_k|².

Gradient ascent moves each frequency by itself: du^_k/dt = 4 u^_k |v^_k|² and
dv^_k/dt = 4 v^_k |u^_k|². Phases stand still, |u^_k|² - |v^_k|² is conserved, and frequency k alone
would diverge at the time 1 / (8 L_k), L_k the logarithmic mean of the two powers. E is homogeneous,
so ascent on the unit sphere is this flow seen from the origin: it ends at the frequency that
diverges first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.aliases import Array

CORRECT_VARIANCE = 17 / 16  # of a correct logit over random phases, per neuron
PAIR_CORRELATION = 1 / 16  # of the logits of offsets d and -d
NUM_NODES = 80  # of Gauss-Hermite: 40 agree with 80 to 1e-9 up to modulus 97 and width 1000


class Network(NamedTuple):
    """Weights of N neurons: logit_c(a, b) = Σ_n readout_nc σ(first_na + second_nb)."""

    first: Array  # (N, M)
    second: Array  # (N, M)
    readout: Array  # (N, M)


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
    _at_least("modulus", modulus, 2)
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
    _at_least("modulus", modulus, 3)
    frequencies, phases = jnp.asarray(frequencies), jnp.asarray(phases)
    if modulus % 2 == 0 or phases.shape != (*frequencies.shape, 2):
        message = (
            f"modulus={modulus}, frequencies {frequencies.shape}, phases {phases.shape}: "
            "give an odd modulus, frequencies (N,) and phases (N, 2)"
        )
        raise ValueError(message)
    angles = 2 * jnp.pi / modulus * (frequencies[:, None] * jnp.arange(modulus) % modulus)
    wave = lambda phase: jnp.cos(angles + phase[:, None])
    return Network(wave(phases[:, 0]), wave(phases[:, 1]), wave(phases.sum(axis=1)))


def mean_logits(frequencies: Array, modulus: int) -> Array:
    """Return the mean over the table of the logit at offset d = c - a - b: (M,) for d = 0, 1, ...

    Σ_n cos(2π k_n d / M) / 2 for the analytic network with squared activation: exact, whatever the
    phases. That is N/2 at the right answer; where all frequencies are equally many, each wrong one
    has -N / (2 (M - 1)).

    Reference: derived here.
    """
    _at_least("modulus", modulus, 3)
    angles = 2 * jnp.pi / modulus * (jnp.outer(frequencies, jnp.arange(modulus)) % modulus)
    return jnp.cos(angles).sum(axis=0) / 2


def logit_covariance(frequencies: Array, modulus: int) -> Array:
    """Return the covariance over random phases of the logits at offsets d, d': (M, M).

    Σ_n cos(θ_n (d - d')) + cos(θ_n (d + d')) / 16, θ = 2π k / M; the same for every pair (a, b).

    Reference: derived here, by the harmonics of the two phases.
    """
    _at_least("modulus", modulus, 3)
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
    _at_least("modulus", modulus, 3)
    nodes, weights = np.polynomial.hermite_e.hermegauss(NUM_NODES)
    weights = weights / weights.sum()
    ahead = jnp.sqrt(jnp.asarray(width) * modulus / (modulus - 1)) / 2
    right = ahead[..., None] + CORRECT_VARIANCE**0.5 * nodes  # (..., Q)
    own = (right[..., None] - PAIR_CORRELATION**0.5 * nodes) / (1 - PAIR_CORRELATION) ** 0.5
    pair = jnp.sum(weights * jax.scipy.stats.norm.cdf(own) ** 2, axis=-1)  # (..., Q)
    return jnp.sum(weights * pair ** ((modulus - 1) // 2), axis=-1)


def _modulus(first: Array, second: Array) -> int:
    if first.ndim == 0 or first.shape[-1:] != second.shape[-1:]:
        message = f"first {first.shape}, second {second.shape}: give two arrays (..., M)"
        raise ValueError(message)
    return first.shape[-1]


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        message = f"{name}={value}: give at least {least}"
        raise ValueError(message)
