"""Gradient descent on a kernel: what a linear-in-parameters model predicts at every time.

The loss is (1/2) Σ (f - y)^2, a SUM over samples and outputs, and the kernel is J J^T with no
1/N. For a loss that is a mean over N samples, divide the learning rate by N.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array

DYNAMICS = ("discrete", "flow")


def mean(
    kernel_train: Array,
    kernel_test_train: Array,
    targets: Array,
    *,
    learning_rate: float,
    times: Any,
    dynamics: str = "discrete",
    initial_train: Array | float = 0.0,
    initial_test: Array | float = 0.0,
) -> Array:
    """Return the outputs on the test samples at each time, (T, M) or (T, M, K).

    f_t = f_0 + Θ_test (I - (I - η Θ)^t) Θ^-1 (y - f_0), where Θ is the kernel on the training
    samples; for "flow" the power is exp(-η Θ t). Directions that the kernel does not see stay
    where they started. For the outputs on the training samples give `kernel_train` twice.

    Args:
        kernel_train: (N, N).
        kernel_test_train: (M, N).
        targets: (N,) or (N, K).
        learning_rate: η, positive. Discrete steps diverge where η exceeds 2 / largest eigenvalue.
        times: (T,) steps made; not negative, infinity allowed; real numbers for "flow", where
            the time of the differential equation is η times this.
        dynamics: "discrete" or "flow".
        initial_train: f_0 on the training samples, shaped like targets or a number.
        initial_test: f_0 on the test samples, (M,) or (M, K) or a number.

    Raises:
        ValueError: shapes do not fit, or a learning rate, time or `dynamics` is out of range.

    Reference: Lee et al. 2019, arXiv:1902.06720, eqs (8) and (9), there for the flow.

    Example:
        >>> two = jnp.full((1, 1), 2.0)
        >>> print(mean(two, two, jnp.ones(1), learning_rate=0.25, times=[0, 1, 2])[:, 0])
        [0.   0.5  0.75]
    """
    kernels = dict(kernel_train=kernel_train, kernel_test_train=kernel_test_train)
    arguments.shapes("N N, M N, N ...", **kernels, targets=targets)
    arguments.numbers(initial_train=initial_train, initial_test=initial_test)
    targets = jnp.asarray(targets)
    if targets.ndim > 2:
        message = f"targets has shape {targets.shape}; give (N,) or (N, K)"
        raise ValueError(message)
    smoothers = smoother(
        kernel_train, kernel_test_train, learning_rate=learning_rate, times=times, dynamics=dynamics
    )
    change = _product("tmn,n...->tm...", smoothers, targets - initial_train)
    return initial_test + change


def covariance(
    smoothers: Array, nngp_test: Array, nngp_test_train: Array, nngp_train: Array
) -> Array:
    """Return the covariance over initialisations of the outputs on test samples, (T, M, M).

    K_test + A K A^T - A K_test_train^T - K_test_train A^T, with A the smoother: f_t is
    f_0(test) + A (y - f_0(train)), and f_0 has the covariance K.

    Args:
        smoothers: (T, M, N) from `smoother`.
        nngp_test: (M, M).
        nngp_test_train: (M, N).
        nngp_train: (N, N).

    Reference: Lee et al. 2019, arXiv:1902.06720, eq. (16).
    """
    kernels = dict(nngp_test=nngp_test, nngp_test_train=nngp_test_train, nngp_train=nngp_train)
    arguments.shapes("T M N, M M, M N, N N", smoothers=smoothers, **kernels)
    spread = _product("tmn,nk,tlk->tml", smoothers, nngp_train, smoothers)
    cross = _product("tmn,ln->tml", smoothers, nngp_test_train)
    return nngp_test + spread - cross - cross.swapaxes(1, 2)


def smoother(
    kernel_train: Array,
    kernel_test_train: Array,
    *,
    learning_rate: float,
    times: Any,
    dynamics: str = "discrete",
) -> Array:
    """Return A_t = Θ_test (I - (I - η Θ)^t) Θ^-1, (T, M, N): f_t = f_0 + A_t (y - f_0).

    Arguments and errors are those of `mean`.
    """
    kernels = dict(kernel_train=kernel_train, kernel_test_train=kernel_test_train)
    arguments.shapes("N N, M N", **kernels)
    times = check(learning_rate, times, dynamics)
    values, vectors = jnp.linalg.eigh(kernel_train)
    noise = float(np.finfo(values.dtype).eps) * len(values) * jnp.max(jnp.abs(values))
    times = jnp.asarray(times, values.dtype)[:, None]
    gains = _gains(jnp.maximum(values, 0), times, learning_rate, dynamics)  # (T, N)
    gains = jnp.where(jnp.isinf(times) & (values <= noise), 0, gains)  # the pseudo-inverse
    projected = _product("mn,nk->mk", kernel_test_train, vectors)
    return _product("mk,tk,nk->tmn", projected, gains, vectors)


def _gains(values: Array, times: Array, learning_rate: float, dynamics: str) -> Array:
    """(1 - (1 - ηλ)^t) / λ for eigenvalues λ >= 0, without cancellation; η t where λ is 0."""
    seen = values > 0
    rates = learning_rate * jnp.where(seen, values, 1)
    if dynamics == "flow":
        learned = -jnp.expm1(-rates * times)
    else:
        below = rates < 1
        slow = -jnp.expm1(times * jnp.log1p(-jnp.where(below, rates, 0.5)))
        fast = 1 - jnp.where(below, 0.5, 1 - rates) ** times
        learned = jnp.where(below, slow, fast)
    return jnp.where(seen, learned / jnp.where(seen, values, 1), learning_rate * times)


def check(learning_rate: float, times: Any, dynamics: str) -> np.ndarray:
    """Return `times` as an array; raise where an argument of the descent is out of range."""
    arguments.choices(DYNAMICS, dynamics=dynamics)
    arguments.scalars(learning_rate=learning_rate)
    arguments.positive(learning_rate=learning_rate)
    arguments.numbers(times=times)
    times = np.array(times, dtype=np.float64)
    if times.ndim != 1 or times.size == 0 or not np.all(times >= 0):
        message = f"times={times}: give (T,) numbers, none of them negative"
        raise ValueError(message)
    if dynamics == "discrete" and np.any(times[np.isfinite(times)] % 1):
        message = f'times={times}: give whole numbers of steps, or dynamics="flow"'
        raise ValueError(message)
    return times


def _product(subscripts: str, *operands: Array) -> Array:
    return jnp.einsum(subscripts, *operands, precision="highest")
