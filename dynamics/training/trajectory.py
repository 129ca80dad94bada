"""The only training loop: steps between chosen times, a measurement at each of them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array

Step = Callable[[Any], Any]  # state -> state


def record(
    step: Step, state: Any, measure: Callable[..., Any], *, times: Any, memory: Any = None
) -> Any:
    """Return the measurements of a training run, each leaf stacked on a leading axis (T,).

    The given state is time 0 and `step` moves it by one, so with `times=[0, 10]` the first
    measurement is made before any training and the second after ten steps. The loop is a scan
    over the times around a loop over the steps between them: one compilation whatever the gaps,
    and nothing but the measurements is stored. Called outside a transformation it compiles itself
    and remembers the program for the same `step` and `measure`; under `jax.vmap` over states the
    number of steps stays common to all members, as long as `times` is not mapped over.

    Forward-mode derivatives pass through the loop; reverse mode does not (the number of steps is
    a traced value).

    Args:
        step: `step(state) -> state`, same structure, shapes and types.
        state: Any pytree of arrays, keys included.
        measure: `measure(state) -> measurement`, or with `memory` given
            `measure(state, memory) -> (measurement, memory)`, which lets one measurement start
            from the last (eigenvectors, for example).
        times: (T,) strictly increasing non-negative integers; they need not start at 0.
        memory: What the first measurement is given; None for a measurement without memory.

    Raises:
        ValueError: `times` is empty, not one-dimensional, negative, not increasing or too large.
        TypeError: `times` is not made of integers, or `step` or `measure` cannot be called.

    Example:
        >>> print(record(lambda state: 2 * state, 1, lambda state: state, times=[0, 1, 4]))
        [ 1  2 16]
    """
    return record_with_state(step, state, measure, times=times, memory=memory)[0]


def record_with_state(
    step: Step, state: Any, measure: Callable[..., Any], *, times: Any, memory: Any = None
) -> tuple[Any, ...]:
    """Return `(measurements, state)` of a run, or with `memory` `(measurements, state, memory)`.

    The state is the one at the last of the `times`; everything else is as in `record`.
    """
    arguments.functions(step=step, measure=measure)
    arguments.pytrees(state=state, memory=memory)
    gaps = jnp.diff(checked_times(times), prepend=0)  # (T,)
    run = _program(step, measure, memory is not None)
    measurements, state, memory_after = run(state, memory, gaps)
    if memory is None:
        return measurements, state
    return measurements, state, memory_after


def _program(step: Step, measure: Callable[..., Any], remembers: bool) -> Callable[..., Any]:
    """The loop as a function; outside a trace it is compiled, and kept for the next call."""
    if isinstance(jnp.add(0, 0), jax.core.Tracer):  # inside jit: the caller compiles
        return _loop(step, measure, remembers)
    try:
        return _compiled_loop(step, measure, remembers)
    except TypeError:  # a callable without a hash
        return jax.jit(_loop(step, measure, remembers))


# Few are kept: each holds what its functions close over, data sets included.
@functools.lru_cache(maxsize=16)
def _compiled_loop(step: Step, measure: Callable[..., Any], remembers: bool) -> Callable[..., Any]:
    return jax.jit(_loop(step, measure, remembers))


def _loop(step: Step, measure: Callable[..., Any], remembers: bool) -> Callable[..., Any]:
    def at_next_time(carry: Any, gap: Array) -> tuple[Any, Any]:
        state, memory = carry
        state = jax.lax.fori_loop(0, gap, lambda _, state: step(state), state)
        if remembers:
            measurement, memory = measure(state, memory)
        else:
            measurement = measure(state)
        return (state, memory), measurement

    def run(state: Any, memory: Any, gaps: Array) -> tuple[Any, Any, Any]:
        (state, memory), measurements = jax.lax.scan(at_next_time, (state, memory), gaps)
        return measurements, state, memory

    return run


def checked_times(times: Any) -> Array:
    """Return `times` as int32 (T,), refused where it is wrong; a traced one is taken on trust."""
    if isinstance(times, jax.core.Tracer):
        if times.ndim != 1 or not jnp.issubdtype(times.dtype, jnp.integer):
            message = f"times: {times.dtype}{times.shape}; give integers of shape (T,)"
            raise ValueError(message)
        return times.astype(jnp.int32)
    arguments.numbers(times=times)
    concrete = np.asarray(times)
    if concrete.ndim != 1 or concrete.size == 0:
        message = f"times: shape {concrete.shape}; give at least one time, in one dimension"
        raise ValueError(message)
    if not np.issubdtype(concrete.dtype, np.integer):
        message = f"times: type {concrete.dtype}; give integers"
        raise TypeError(message)
    if concrete[0] < 0 or np.any(concrete[1:] <= concrete[:-1]):
        message = f"times={concrete}: give strictly increasing integers from 0 on"
        raise ValueError(message)
    if concrete[-1] > np.iinfo(np.int32).max:
        message = f"times: ends at {concrete[-1]}; the largest time is {np.iinfo(np.int32).max}"
        raise ValueError(message)
    return jnp.asarray(concrete, jnp.int32)
