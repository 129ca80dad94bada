"""What a kernel says about learning: its spectrum, its alignment with the targets, its movement."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.measure import inner_products


class KernelSummary(NamedTuple):
    """A kernel in numbers; recorded along training each field has a leading axis of times."""

    spectrum: Array  # (N,) eigenvalues, the largest first
    effective_rank: Array  # ()
    alignment: Array  # () with the targets
    relative_change: Array  # () since the reference


def kernel_summary(kernel: Array, targets: Array, reference: Array) -> KernelSummary:
    """Return spectrum, effective rank, alignment with `targets` and change since `reference`.

    Along training it is what `trajectory.record` measures:

        ntk = lambda params: kernels.empirical_ntk(apply_fn, params, x)
        start = ntk(state.params)
        measure = lambda state: kernels.kernel_summary(ntk(state.params), y, start)
        summaries = trajectory.record(step, state, measure, times=range(0, 1001, 100))

    Args:
        kernel: (N, N).
        targets: (N,) or (N, K).
        reference: (N, N), the kernel to compare with.

    Raises:
        ValueError, TypeError: as the functions it gathers.

    Example:
        >>> y = jnp.array([1.0, -1.0])
        >>> summary = kernel_summary(2 * jnp.outer(y, y), y, jnp.outer(y, y))
        >>> print(summary.spectrum, summary.relative_change)
        [4. 0.] 1.0
    """
    arguments.shapes("N N, N ..., N N", kernel=kernel, targets=targets, reference=reference)
    values = ntk_spectrum(kernel)
    return KernelSummary(
        values,
        _rank(values),
        kernel_target_alignment(kernel, targets),
        relative_change(reference, kernel),
    )


def ntk_spectrum(kernel: Array) -> Array:
    """Return the eigenvalues of a symmetric kernel, (..., N), from the largest down.

    Args:
        kernel: (..., N, N); only its symmetric part is read. A full kernel (N, N, K, K) must first
            be laid out as (N K, N K).

    Raises:
        ValueError: `kernel` is not square or is empty.
        TypeError: `kernel` is not of floating-point type.

    Example:
        >>> print(ntk_spectrum(jnp.diag(jnp.array([1.0, 3.0, 2.0]))))
        [3. 2. 1.]
    """
    return jnp.linalg.eigvalsh(_square(kernel))[..., ::-1]


def kernel_target_alignment(kernel: Array, targets: Array) -> Array:
    """Return the alignment <K, Y Y^T> / (|K|_F |Y Y^T|_F) of a kernel with its targets, ().

    For one output that is y^T K y / (|K|_F |y|^2): 1 when K is a multiple of y y^T, near 0 when
    the targets lie in directions that the kernel hardly sees. Nothing is centred.

    Args:
        kernel: (N, N).
        targets: (N,) or (N, K), the same rows as the kernel.

    Raises:
        ValueError: `kernel` is not square, or `targets` has another number of rows or rank.
        TypeError: `kernel` is not of floating-point type.

    Reference: Cristianini et al. 2001, "On kernel-target alignment", definition 1.

    Example:
        >>> y = jnp.array([1.0, -1.0])
        >>> print(kernel_target_alignment(jnp.outer(y, y), y))
        1.0
    """
    arguments.numbers(targets=targets)
    kernel, targets = _square(kernel), jnp.asarray(targets)
    if kernel.ndim != 2:
        message = f"kernel: shape {kernel.shape}; give (N, N), or use jax.vmap over several"
        raise ValueError(message)
    if targets.ndim not in (1, 2) or not targets.size or targets.shape[0] != kernel.shape[0]:
        message = f"targets: shape {targets.shape}; give (N,) or (N, K), N={len(kernel)} of kernel"
        raise ValueError(message)
    targets = targets.astype(kernel.dtype).reshape(len(targets), -1)
    overlap = jnp.sum(targets * inner_products.matmul(kernel, targets))
    # |Y Y^T|_F = |Y^T Y|_F, and the second is the smaller matrix.
    targets_norm = jnp.linalg.norm(inner_products.matmul(targets.T, targets))
    return overlap / (jnp.linalg.norm(kernel) * targets_norm)


def relative_change(kernel_before: Array, kernel_after: Array) -> Array:
    """Return |K1 - K0|_F / |K0|_F, (): how far a kernel has moved from K0.

    Args:
        kernel_before: K0, any shape.
        kernel_after: K1, the same shape.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> print(relative_change(jnp.eye(2), 1.5 * jnp.eye(2)))
        0.5
    """
    arguments.shapes("_ ...", kernel_before=kernel_before)
    arguments.numbers(kernel_after=kernel_after)
    before, after = jnp.asarray(kernel_before), jnp.asarray(kernel_after)
    if before.shape != after.shape:
        message = (
            f"kernel_after: shape {after.shape}; give the shape of kernel_before {before.shape}"
        )
        raise ValueError(message)
    return jnp.linalg.norm((after - before).ravel()) / jnp.linalg.norm(before.ravel())


def effective_rank(kernel: Array) -> Array:
    """Return the effective rank of a positive semi-definite kernel, (...), from 1 to N.

    It is exp(-Σ p_i log p_i) with p_i the share of eigenvalue i in the trace; eigenvalues that
    rounding has pushed below zero count as zero.

    Args:
        kernel: (..., N, N).

    Raises:
        ValueError: `kernel` is not square or is empty.
        TypeError: `kernel` is not of floating-point type.

    Reference: Roy and Vetterli 2007, "The effective rank", definition 1 (there with singular
    values; for a kernel they are the eigenvalues).

    Example:
        >>> print(effective_rank(jnp.diag(jnp.array([1.0, 1.0, 0.0]))))
        2.0
    """
    return _rank(jnp.linalg.eigvalsh(_square(kernel)))


def _rank(values: Array) -> Array:
    values = jnp.maximum(values, 0.0)
    shares = values / jnp.sum(values, axis=-1, keepdims=True)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(shares), axis=-1))


def _square(kernel: Array) -> Array:
    arguments.shapes("... N N", kernel=kernel)
    arguments.floating(kernel=kernel)
    return jnp.asarray(kernel)
