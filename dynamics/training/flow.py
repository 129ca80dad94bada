"""Gradient flow: training in the limit of vanishing learning rate, solved by diffrax."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array, LossFn, Params


def gradient_flow(
    loss_fn: LossFn,
    params: Params,
    times: Any,
    *,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    solver: diffrax.AbstractSolver[Any] | None = None,
    max_steps: int = 100_000,
    measure: Callable[[Params], Any] | None = None,
) -> Any:
    """Return the solution of dθ/dt = -∇L(θ) at `times`, each leaf on a leading axis (T,).

    Time is gradient-flow time: gradient descent with learning rate η is there after t/η steps.
    The given `params` are those of time 0. The size of the steps follows an estimate of the local
    error, so accuracy is asked for and not hoped for. Works under `jax.jit`, which keeps the
    compiled program, and `jax.vmap`.

    A flow that diverges or needs more than `max_steps` steps does not raise: every row that was
    not reached is NaN, inside jit and outside, so that one member of an ensemble does not end
    the others and every check on the result fails.

    Args:
        loss_fn: `loss_fn(params) -> scalar`, differentiable.
        params: A pytree of floating-point arrays.
        times: (T,) strictly increasing non-negative numbers; they need not start at 0.
        rtol: Local error allowed relative to each parameter. 1e-6 is ten times the rounding
            of float32; in float64 it can be as small as 1e-12.
        atol: Local error allowed for parameters near zero. 1e-9 keeps `rtol` in force
            for every parameter larger than 1e-3, while those that stay zero cost no steps.
        solver: Any diffrax solver; Tsit5 by default, explicit and of order 5. Its number of steps
            grows as the sharpness times the last time; `diffrax.Kvaerno5()` is implicit, its steps
            do not feel the sharpness, and it solves dense systems: for stiff losses of up to about
            a thousand parameters.
        max_steps: The most steps of the solver, accepted and rejected ones.
        measure: `measure(params) -> pytree` to return instead of the parameters, taken while
            solving: only measurements are stored. Floating-point leaves, or they become so.

    Raises:
        ValueError: `times` is empty, not one-dimensional, negative or not increasing; `rtol`,
            `atol` or `max_steps` is not positive.
        TypeError: `params` is not made of floating-point arrays.

    Example:
        >>> flow = gradient_flow(lambda params: params**2 / 2, jnp.array(1.0), [0.0, 1.0])
        >>> print(abs(flow[1] - jnp.exp(-1.0)) < 1e-5)
        True
    """
    arguments.functions(loss_fn=loss_fn, measure=measure or (lambda params: params))
    arguments.params(params=params)
    arguments.positive(rtol=rtol, atol=atol)
    arguments.counts(max_steps=max_steps)
    arguments.records((diffrax.AbstractSolver, type(None)), solver=solver)
    times = _checked(times, params)
    measure = measure or (lambda params: params)
    descent = lambda time, params, args: jax.tree.map(jnp.negative, jax.grad(loss_fn)(params))
    # Steps end at the times: interpolation inside a step is less accurate than its ends.
    controller = diffrax.ClipStepSizeController(
        diffrax.PIDController(rtol=rtol, atol=atol), step_ts=times
    )
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(descent),
        diffrax.Tsit5() if solver is None else solver,
        t0=0.0,
        t1=times[-1],
        dt0=None,
        y0=jax.tree.map(jnp.asarray, params),
        saveat=diffrax.SaveAt(ts=times, fn=lambda time, params, args: _floating(measure(params))),
        stepsize_controller=controller,
        max_steps=max_steps,
        throw=False,
    )
    reached = jnp.isfinite(solution.ts)  # (T,)

    def blank(leaf: Array) -> Array:
        rows = reached.reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.where(rows, leaf, jnp.nan)

    return jax.tree.map(blank, solution.ys)


def _floating(measurement: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) * jnp.ones((), float), measurement)


def _checked(times: Any, params: Params) -> Array:
    """Return `times` (T,) in the precision of `params`; a traced one is taken on trust."""
    dtype = jnp.result_type(*jax.tree.leaves(params), jnp.float32)
    if isinstance(times, jax.core.Tracer):
        return times.astype(dtype)
    arguments.numbers(times=times)
    concrete = np.asarray(times, np.float64)
    if concrete.ndim != 1 or concrete.size == 0:
        message = f"times: shape {concrete.shape}; give at least one time, in one dimension"
        raise ValueError(message)
    if not (np.isfinite(concrete).all() and concrete[0] >= 0 and np.all(np.diff(concrete) > 0)):
        message = f"times={concrete}: give strictly increasing finite numbers from 0 on"
        raise ValueError(message)
    return jnp.asarray(concrete, dtype)
