"""Kernels that look at patches of an input on a product of circles, and their spectra.

An input is D angles. A local kernel of patch size s is the mean over the D cyclic patches of s
neighbouring angles (the one patch of all angles for s = D) of exp(-|x - x'|), with x the points of
the patch on their unit circles: the chordal distance, and a kernel of smoothness one, whose
s-dimensional Fourier coefficients fall as the frequency to the power -(s + 1). It depends on
differences of angles alone, so its eigenfunctions under uniform angles are the Fourier modes, and
a mode is in the kernel if the angles that it depends on lie in one patch.

A target is a Gaussian field whose covariance is such a kernel of patch size t. Regression of P
samples with a kernel of size s >= t resolves frequencies up to about P^(1/s); the field's power
beyond is P^(-1/s): the exponent is set by the patch of the student.
"""

import itertools
import math

import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.theory import eigenframework

# Of the grid on which the Fourier coefficients of modes of 1, 2, ... angles are taken. What lies
# beyond is folded back, so that no trace is lost; 512 samples resolve 64, 16, 6 and 4.
NUM_FREQUENCIES = (2048, 128, 32, 32)
NUM_AVERAGED = (
    32  # points of a circle over which angles that a mode does not depend on are averaged
)


def patches(num_circles: int, size: int) -> tuple[tuple[int, ...], ...]:
    """Return the angles of each patch.

    Args:
        num_circles: D.
        size: s, from 1 to D.

    Raises:
        ValueError: `size` is out of range.

    Example:
        >>> patches(3, 2)
        ((0, 1), (1, 2), (2, 0))
        >>> patches(3, 3)
        ((0, 1, 2),)
    """
    arguments.integers(num_circles=num_circles, size=size)
    if not 1 <= size <= num_circles:
        message = f"size={size}: give a number from 1 to num_circles={num_circles}"
        raise ValueError(message)
    starts = range(1 if size == num_circles else num_circles)
    return tuple(tuple((start + j) % num_circles for j in range(size)) for start in starts)


def kernel(angles1: Array, angles2: Array, *, size: int) -> Array:
    """Return the local kernel between inputs, (N1, N2); one at coinciding inputs.

    Args:
        angles1: (N1, D) in radians.
        angles2: (N2, D).
        size: s, of the patches.

    Raises:
        ValueError: the numbers of angles differ, or `size` is out of range.

    Reference: Favero, Cagnetta and Wyart 2021, arXiv:2106.08619 (local kernels, there on tori and
    hypercubes); Cagnetta, Favero and Wyart 2022, arXiv:2208.01003.

    Example:
        >>> print(kernel(jnp.zeros((1, 2)), jnp.full((1, 2), jnp.pi), size=1) == jnp.exp(-2.0))
        [[ True]]
    """
    arguments.shapes("N D, M D", angles1=angles1, angles2=angles2)
    arguments.counts(size=size)
    if size > angles1.shape[1]:
        message = f"size={size}: give at most the {angles1.shape[1]} of angles1 and angles2"
        raise ValueError(message)
    half = (angles1[:, None] - angles2[None]) / 2
    squared = 4 * jnp.sin(half) ** 2  # (N1, N2, D)
    chosen = patches(angles1.shape[1], size)
    distances = [jnp.sqrt(squared[..., list(patch)].sum(axis=-1)) for patch in chosen]
    return sum(jnp.exp(-distance) for distance in distances) / jnp.asarray(len(chosen))


def spectrum(num_circles: int, student_size: int, target_size: int) -> eigenframework.Spectrum:
    """Return what regression with one local kernel sees of a Gaussian field of another.

    Modes of equal eigenvalue and power are one row. Modes that the student lacks have eigenvalue
    zero, and their power acts as noise.

    Args:
        num_circles: D, at most 4.
        student_size: s, of the kernel.
        target_size: t, of the field's covariance: powers are expectations.

    Raises:
        ValueError: more than four circles, or a size out of range.

    Example:
        >>> found = spectrum(2, 2, 1)
        >>> print(round(float(found.traces.sum()), 2), round(float(found.powers.sum()), 2))
        1.0 1.0
    """
    arguments.counts(num_circles=num_circles, student_size=student_size, target_size=target_size)
    if max(student_size, target_size) > num_circles:
        message = (
            f"student_size={student_size}, target_size={target_size}: give at most "
            f"num_circles={num_circles}"
        )
        raise ValueError(message)
    if num_circles > len(NUM_FREQUENCIES):
        message = f"num_circles={num_circles}: give {len(NUM_FREQUENCIES)} at most"
        raise ValueError(message)
    sizes = (student_size, target_size)
    chosen = [patches(num_circles, size) for size in sizes]
    kinds: dict[tuple[int, ...], int] = {}  # (angles, patches of either that hold them): how many
    for order in range(num_circles + 1):
        for support in itertools.combinations(range(num_circles), order):
            holding = [sum(set(support) <= set(patch) for patch in part) for part in chosen]
            if any(holding):
                kind = (order, *holding)
                kinds[kind] = kinds.get(kind, 0) + 1
    rows = []
    for (order, *holding), number in kinds.items():
        values = np.stack([
            _coefficients(size, order) * held / len(part) if held
            else np.zeros(_num_modes(order))
            for size, part, held in zip(sizes, chosen, holding, strict=True)
        ])  # fmt: skip
        # Equal but for rounding; as complex numbers, whose sort is ten times that of columns.
        pairs, counts = np.unique(np.round(values[0] + 1j * values[1], 14), return_counts=True)
        weights = counts * number
        rows.append(np.stack([pairs.real, pairs.real * weights, pairs.imag * weights]))
    return eigenframework.Spectrum(*(jnp.asarray(row) for row in np.concatenate(rows, axis=1)))


def _num_modes(order: int) -> int:
    return (NUM_FREQUENCIES[order - 1] - 1) ** order if order else 1


def _coefficients(size: int, order: int) -> np.ndarray:
    """Return the Fourier coefficients of exp(-distance) in modes of `order` of its `size` angles.

    The other angles are averaged over; no frequency of those that count is zero.
    """
    fine = NUM_FREQUENCIES[max(order, 1) - 1]
    squared = lambda num: 4 * np.sin(np.pi * np.arange(num) / num) ** 2
    along = np.zeros(())
    for _ in range(order):
        along = np.add.outer(along, squared(fine))
    across, counts = np.zeros(1), np.ones(1)
    for _ in range(size - order):
        # With one angle left and none else the cusp at zero asks for the fine grid.
        circle = squared(NUM_AVERAGED if size > 1 else fine)
        sums = np.round(np.add.outer(across, circle).ravel(), 12)
        weights = np.repeat(counts, len(circle))
        across, places = np.unique(sums, return_inverse=True)
        counts = np.bincount(places, weights).astype(np.float64)
    averaged = np.zeros(along.shape)
    for value, count in zip(across, counts / counts.sum(), strict=True):
        averaged += count * np.exp(-np.sqrt(along + value))
    if not order:
        return averaged.reshape(1)
    found = np.fft.fftn(averaged).real / math.prod(averaged.shape)
    return np.maximum(found[(slice(1, None),) * order].ravel(), 0)
