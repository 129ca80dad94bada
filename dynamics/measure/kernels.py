"""Tangent kernels of a network as it is: the empirical NTK, its spectrum and how it moves.

Every kernel here is the Gram matrix of Jacobian rows, J J^T, one row per sample and output, with
no 1/N. A network is a function of one sample: rows are computed on batches of one, so a layer
that mixes the samples of a batch must be frozen first (`models.adapters` does so).
"""

from typing import Any

import jax
import jax.numpy as jnp

from dynamics.aliases import ApplyFn, Array, Params
from dynamics.measure import gram, jacobian_rows

# Jacobian entries held at once when nobody says: 256 MB in single precision.
JACOBIAN_BUDGET = 2**26


def empirical_ntk(
    apply_fn: ApplyFn,
    params: Params,
    x1: Array,
    x2: Array | None = None,
    *,
    outputs: str = "mean",
    batch_size: int | None = None,
) -> Array:
    r"""Return the empirical neural tangent kernel Θ, (N1, N2) or (N1, N2, K, K).

    Θ_kl(x, x') = Σ_p ∂f_k(x)/∂θ_p ∂f_l(x')/∂θ_p over all parameters p. With `outputs="mean"` the
    result is (1/K) Σ_k Θ_kk, which for one output is J J^T itself.

    Leaves that act as the matrix of a dense layer on one vector per sample are contracted through
    their factors, (h·h')(δ·δ'), so a wide network costs no more than its activations; every other
    leaf is contracted through its Jacobian rows, block by block. With `x2` left out only the blocks
    on and above the diagonal are computed and the result is exactly symmetric. It works under
    `jax.jit` and under `jax.vmap` over `params`; wrap it in `jax.jit` where it is called often.

    Args:
        apply_fn: `apply_fn(params, x (N, ...)) -> (N, K)`, or (N,) for one output.
        params: Any pytree of floating-point arrays; None leaves are passed on.
        x1: (N1, ...) samples.
        x2: (N2, ...) samples; the same as `x1` when None.
        outputs: "mean" or "full".
        batch_size: Samples in a block of Jacobian rows; it need not divide N1 or N2. The default
            keeps a block under 2**26 entries (256 MB in single precision), at least one sample.

    Raises:
        ValueError: an empty or mismatched batch, `batch_size` below 1, an unknown `outputs`, or
            an `apply_fn` whose output is not (N, K).
        TypeError: a leaf of `params` is not of floating-point type.

    Reference: Jacot et al. 2018, arXiv:1806.07572, eq. (4); Novak et al. 2022, arXiv:2206.08720,
    section 3, for the factors.

    Example:
        >>> linear = lambda params, x: x @ params
        >>> x = jnp.array([[1.0, 2.0], [0.0, 3.0]])
        >>> print(empirical_ntk(linear, jnp.ones((2, 1)), x))
        [[5. 6.]
         [6. 9.]]
    """
    return _kernels(apply_fn, params, x1, x2, outputs, batch_size, total=True)


def layerwise_ntk(
    apply_fn: ApplyFn,
    params: Params,
    x1: Array,
    x2: Array | None = None,
    *,
    outputs: str = "mean",
    batch_size: int | None = None,
) -> Params:
    """Return the part of the NTK that comes from each leaf: a pytree like `params`.

    Each leaf is (N1, N2), or (N1, N2, K, K) with `outputs="full"`; their sum is the
    `empirical_ntk`, whose arguments and errors these are.

    Example:
        >>> affine = lambda params, x: x * params["slope"] + params["offset"]
        >>> params = {"slope": jnp.ones(1), "offset": jnp.ones(1)}
        >>> kernels = layerwise_ntk(affine, params, jnp.array([[1.0], [2.0]]))
        >>> print(kernels["slope"][1], kernels["offset"][1])
        [2. 4.] [1. 1.]
    """
    return _kernels(apply_fn, params, x1, x2, outputs, batch_size, total=False)


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
    kernel, targets = _square(kernel), jnp.asarray(targets)
    if kernel.ndim != 2:
        message = f"kernel: shape {kernel.shape}; give (N, N), or use jax.vmap over several"
        raise ValueError(message)
    if targets.ndim not in (1, 2) or targets.shape[0] != kernel.shape[0]:
        message = f"targets: shape {targets.shape}; give (N,) or (N, K), N={kernel.shape[0]}"
        raise ValueError(message)
    targets = targets.astype(kernel.dtype).reshape(len(targets), -1)
    overlap = jnp.sum(targets * gram.matmul(kernel, targets))
    # |Y Y^T|_F = |Y^T Y|_F, and the second is the smaller matrix.
    targets_norm = jnp.linalg.norm(gram.matmul(targets.T, targets))
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
    values = jnp.maximum(jnp.linalg.eigvalsh(_square(kernel)), 0.0)
    shares = values / jnp.sum(values, axis=-1, keepdims=True)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(shares), axis=-1))


def linearise(apply_fn: ApplyFn, params: Params) -> ApplyFn:
    """Return `f_lin(params, x)`, the network made linear in its parameters around `params`.

    f_lin(θ, x) = f(θ0, x) + J(x) (θ - θ0): its tangent kernel is that of the network at θ0 and
    never moves. One forward-mode pass a call; training it costs about as much as the network.

    Args:
        apply_fn: `apply_fn(params, x) -> outputs`.
        params: θ0, any pytree of floating-point arrays.

    Raises:
        TypeError: a leaf of `params` is not of floating-point type.

    Reference: Lee et al. 2019, arXiv:1902.06720, eq. (7).

    Example:
        >>> cubic = lambda params, x: x * params**3
        >>> print(linearise(cubic, 1.0)(2.0, jnp.array([1.0, 10.0])))
        [ 4. 40.]
    """
    gram.check_params(params)
    origin = jax.tree.map(jnp.asarray, params)

    def linear_apply(params: Params, x: Array) -> Array:
        direction = jax.tree.map(lambda leaf, at: (leaf - at).astype(at.dtype), params, origin)
        value, change = jax.jvp(lambda at: apply_fn(at, x), (origin,), (direction,))
        return value + change

    return linear_apply


def _kernels(
    apply_fn: ApplyFn,
    params: Params,
    x1: Array,
    x2: Array | None,
    outputs: str,
    batch_size: int | None,
    total: bool,
) -> Any:
    """The kernel of each leaf, or their sum, by blocks of rows."""
    if outputs not in ("mean", "full"):
        message = f'outputs={outputs!r}: give "mean" or "full"'
        raise ValueError(message)
    gram.check_params(params)
    params = jax.tree.map(jnp.asarray, params)
    x1 = _samples("x1", x1)
    x2_given, x2 = x2 is not None, x1 if x2 is None else _samples("x2", x2)
    if x1.shape[1:] != x2.shape[1:]:
        message = f"x2: samples of shape {x2.shape[1:]}; give the shape of x1's, {x1.shape[1:]}"
        raise ValueError(message)
    plan = jacobian_rows.plan(apply_fn, params, x1, x2 if x2_given else None, outputs)
    batch_size = _checked_batch_size(batch_size, plan.entries)
    found = gram.kernels(
        plan, x1, x2 if x2_given else None, outputs=outputs, batch_size=batch_size, total=total
    )
    return found[0] if total else jax.tree.unflatten(jax.tree.structure(params), found)


def _samples(name: str, x: Array) -> Array:
    x = jnp.asarray(x)
    if x.ndim == 0 or x.shape[0] == 0:
        message = f"{name}: shape {x.shape}; give at least one sample, on axis 0"
        raise ValueError(message)
    return x


def _checked_batch_size(batch_size: int | None, entries: int) -> int:
    if batch_size is None:
        return max(1, JACOBIAN_BUDGET // max(entries, 1))
    if batch_size < 1:
        message = f"batch_size={batch_size}: give at least 1"
        raise ValueError(message)
    return int(batch_size)


def _square(kernel: Array) -> Array:
    kernel = jnp.asarray(kernel)
    if kernel.ndim < 2 or kernel.shape[-1] != kernel.shape[-2] or kernel.shape[-1] == 0:
        message = f"kernel: shape {kernel.shape}; give a square, non-empty matrix"
        raise ValueError(message)
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        message = f"kernel: type {kernel.dtype}; give a floating-point array"
        raise TypeError(message)
    return kernel
