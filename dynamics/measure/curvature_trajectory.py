"""Curvature along a training run: what `training.trajectory` is to measure at its times."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dynamics import arguments
from dynamics.aliases import Array, Key, LossFn, Params
from dynamics.measure import batching, curvature, lanczos, spectrum


class CurvatureMeasurement(NamedTuple):
    """One time of a run; what was not asked for is None."""

    loss: Array  # ()
    gradient_norm: Array  # ()
    sharpness: Array  # (num,) most extreme eigenvalues of the Hessian
    residuals: Array  # (num,) see `Eigenpairs`
    overlap: Array  # (num,) |cosine| of each eigenvector with the last time's; 0 at first
    trace: curvature.TraceEstimate | None
    density: spectrum.SpectralDensity | None
    vectors: Params | None  # like params, with a leading axis num


def follow_curvature(
    loss_fn: LossFn,
    params: Params,
    *,
    key: Key,
    num: int = 1,
    which: str = "largest",
    num_iterations: int | None = None,
    num_trace_probes: int = 0,
    num_density_probes: int = 0,
    num_density_iterations: int = 50,
    keep_vectors: bool = False,
    data: Any = None,
    batch_size: int | None = None,
    params_of: Callable[[Any], Params] = lambda state: state.params,
) -> tuple[Callable[[Any, Params], tuple[CurvatureMeasurement, Params]], Params]:
    """Return `(measure, memory)` for `trajectory.record` or `checkpoint.record_in_chunks`.

    Each measurement starts Lanczos from the last one's eigenvectors. The random vectors of trace
    and density are the same at all times, so that their noise does not pass for a change.

    Args:
        loss_fn: `loss_fn(params)`, or `loss_fn(params, data)` if `data` is given.
        params: Of which only structure, shapes and types are read.
        key: For all random vectors.
        num: Eigenpairs.
        which: As in `top_eigenpairs`.
        num_iterations: Of Lanczos, by default that of `top_eigenpairs`.
        num_trace_probes: For the trace; 0 for none.
        num_density_probes: For the density; 0 for none.
        num_density_iterations: Of Lanczos, for the density.
        keep_vectors: Whether the eigenvectors are measurements: `num` times the parameters at
            every time.
        data: A pytree of arrays with one common leading axis N.
        batch_size: Samples at a time.
        params_of: Finds the parameters in the state of the run.

    Raises:
        ValueError: as `top_eigenpairs`, `hessian_trace` and `spectral_density`, at the first call.

    Example:
        >>> from dynamics.training import trajectory
        >>> loss = lambda p: jnp.sum(p**4) / 12
        >>> start = jnp.array([1.0, 2.0])
        >>> options = dict(key=jax.random.key(0), params_of=lambda p: p)
        >>> measure, memory = follow_curvature(loss, start, **options)
        >>> descend = lambda p: p - 0.1 * jax.grad(loss)(p)
        >>> run = trajectory.record(descend, start, measure, times=[0, 1], memory=memory)
        >>> print([round(float(value), 3) for value in run.sharpness[:, 0]])
        [4.0, 3.004]
    """
    arguments.functions(loss_fn=loss_fn, params_of=params_of)
    arguments.params(params=params)
    arguments.keys(key=key)
    arguments.counts(num=num, num_density_iterations=num_density_iterations)
    arguments.choices(lanczos.WHICH, which=which)
    arguments.integers(1, optional=True, num_iterations=num_iterations)
    arguments.integers(0, num_trace_probes=num_trace_probes, num_density_probes=num_density_probes)
    top_key, trace_key, density_key = jax.random.split(key, 3)
    batched = dict(data=data, batch_size=batch_size)
    batches = batching.batches(data, batch_size)

    def measure(state: Any, vectors: Params) -> tuple[CurvatureMeasurement, Params]:
        at = params_of(state)
        loss, gradient = batches.mean(lambda *batch: jax.value_and_grad(loss_fn)(at, *batch))
        top = curvature.top_eigenpairs(
            loss_fn, at, key=top_key, num=num, which=which, num_iterations=num_iterations,
            start=vectors, **batched,
        )  # fmt: skip
        trace = density = None
        if num_trace_probes:
            trace = curvature.hessian_trace(
                loss_fn, at, key=trace_key, num_probes=num_trace_probes, **batched
            )
        if num_density_probes:
            density = spectrum.spectral_density(
                loss_fn, at, key=density_key, num_probes=num_density_probes,
                num_iterations=num_density_iterations, **batched,
            )  # fmt: skip
        overlap = jnp.abs(jax.vmap(optax.tree.vdot)(top.vectors, vectors))  # of unit vectors
        found = CurvatureMeasurement(
            loss, optax.tree.norm(gradient), top.values, top.residuals, overlap,
            trace, density, top.vectors if keep_vectors else None,
        )  # fmt: skip
        return found, top.vectors

    nothing = lambda leaf: jnp.zeros((num, *jnp.shape(leaf)), jnp.result_type(leaf))
    return measure, jax.tree.map(nothing, params)
