"""Fourier content of weight vectors on Z_p: the power of each frequency, and how many there are."""

import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array


def fourier_power(weights: Array, modulus: int) -> Array:
    """Return the share of |w|² in each frequency of Z_p: shape (..., p // 2 + 1), sum one.

    Bin k of the real FFT holds the powers of k and p - k, which are equal for real weights; so by
    Parseval bin k is 2 |w^_k|² / (p |w|²), without the 2 at k = 0 and, for even p, at k = p / 2.
    Cyclic shifts and reflections of the weights change nothing; w_a -> w_(m a) with m prime to p
    permutes the bins. A vector of zeros has no power anywhere: all bins are 0.

    Args:
        weights: (..., p), along the last axis indexed by the elements of Z_p.
        modulus: p, at least 2.

    Raises:
        ValueError: the last axis of `weights` is not p long, or p < 2.

    Example:
        >>> print(fourier_power(jnp.array([1.0, 0.0, -1.0, 0.0]), 4).round(6))
        [0. 1. 0.]
    """
    return _share(_power(weights, modulus))


def inverse_participation_ratio(
    weights: Array, modulus: int, *, remove_constant: bool = True
) -> Array:
    """Return Σ_k P_k² / (Σ_k P_k)² over the powers P_k of `fourier_power`: shape (...).

    One for a single frequency whatever its phase, 1/F for F equal ones. White Gaussian noise with
    p odd and the constant removed has P uniform on the simplex of n = (p - 1) / 2 bins, hence the
    mean 2 / (n + 1). The conventions are those of powers, not amplitudes, and of conjugate
    pairs as one bin. Zero weights (constant ones, with the constant removed) give 0.

    Args:
        weights: (..., p).
        modulus: p, at least 2.
        remove_constant: leave out the bin k = 0, the mean of the weights.

    Raises:
        ValueError: as `fourier_power`.

    Reference: with r = 2 that of Doshi, Das, He, Gromov 2023, arXiv:2310.13061, section 3.

    Example:
        >>> print(inverse_participation_ratio(jnp.array([3.0, 2.0, 1.0, 2.0]), 4).round(6))
        1.0
    """
    power = _power(weights, modulus)
    if remove_constant:
        power = power[..., 1:]
    return jnp.sum(_share(power) ** 2, axis=-1)


def phase_alignment(left: Array, right: Array, readout: Array, modulus: int) -> Array:
    """Return Σ Re(u^_k v^_k w^_k*) / Σ |u^_k v^_k w^_k| over neurons and frequencies k > 0: ().

    One where at every frequency a neuron's readout has the sum of the phases of its two inputs,
    as a network that adds modulo p by squares needs (Gromov 2023, arXiv:2301.02679, equation 10);
    about zero for unrelated phases, with standard deviation near (2 N p)**-0.5 for N neurons of
    white noise. Neurons count by the product of their amplitudes. Zero weights give 0.

    Args:
        left: (N, p), what element a of the first place adds to a neuron.
        right: (N, p), what element b of the second place adds.
        readout: (N, p), what a neuron adds to the logit of c.
        modulus: p, at least 2.

    Raises:
        ValueError: as `fourier_power`.
    """
    arguments.shapes("N p, N p, N p", left=left, right=right, readout=readout)
    _check(left, modulus, "left")
    u, v, w = (jnp.fft.fft(weights)[..., 1:] for weights in (left, right, readout))
    product = u * v * w.conj()
    size = jnp.abs(product).sum()
    return jnp.where(size > 0, product.real.sum() / jnp.where(size > 0, size, 1), 0)


def _check(weights: Array, modulus: int, name: str = "weights") -> None:
    arguments.integers(2, modulus=modulus)
    arguments.shapes("... p", **{name: weights})
    if jnp.shape(weights)[-1] != modulus:
        message = f"{name} has shape {jnp.shape(weights)}; give (..., modulus), modulus={modulus}"
        raise ValueError(message)


def _power(weights: Array, modulus: int) -> Array:
    _check(weights, modulus)
    bins = jnp.arange(modulus // 2 + 1)
    pairs = jnp.where((bins > 0) & (2 * bins < modulus), 2, 1)
    return pairs * jnp.abs(jnp.fft.rfft(jnp.asarray(weights))) ** 2


def _share(power: Array) -> Array:
    total = power.sum(axis=-1, keepdims=True)
    return jnp.where(total > 0, power / jnp.where(total > 0, total, 1), 0)
