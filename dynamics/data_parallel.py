"""Means over samples with the samples spread over the devices."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dynamics import arguments, placement

ENGINES = ("jit", "pmap", "shard_map")
AXIS = "sample"
Mean = Callable[[Any, Any], Any]
_kept = contextvars.ContextVar("samples stay where the surrounding program is", default=False)


def data_parallel(
    fn: Mean, *, engine: str = "jit", devices: Sequence[jax.Device] | None = None
) -> Mean:
    """Return `fn(state, data)` with the samples of `data` spread over the devices.

    `fn` is a mean over samples: a loss, its gradient, a Hessian-vector product with the direction
    in `state`, an accuracy; a sum is the mean times the number of samples. Each device takes an
    equal share of the samples and the means of the shares are averaged; samples that the division
    leaves over are counted in with their weight. So every engine on any number of devices returns
    what `fn` itself does on one, up to rounding, gathered on the first device.

    Every measurement and the training loop become data-parallel by being given a spread loss, as
    `spread = data_parallel(loss)` and then `hessian_trace(lambda p: spread(p, data), params, ...)`
    or a step by `jax.grad(lambda p: spread(p, data))` in `trajectory.record`: the result may be
    differentiated, mapped, scanned and compiled by every engine. There its results lie on all the
    devices, and a state that one device holds for itself (from `jax.device_put`, `ensemble` or a
    direct call of this) is refused by JAX as of "incompatible devices": free it by
    `jax.device_get(state)`. Inside a member of `ensemble`, or a `shard_map` or `pmap` of one's
    own, the devices are taken and the samples stay where they are.

    In a program of several processes every process makes the same calls with the same arguments,
    all the data among them, and each gets the whole result.

    Args:
        fn: `fn(state, data) -> pytree of floating-point arrays`, a mean over the leading axis of
            every leaf of `data`; no collectives. A maximum or a median is not a mean.
        engine: "jit" (one program over arrays laid out by NamedSharding; the default), "pmap", or
            "shard_map".
        devices: Where to run; all devices of all processes by default.

    Raises:
        TypeError: `fn` cannot be called.
        ValueError: unknown `engine`; no `devices`, or none of this process; when called: `data`
            is empty or its leading axes differ; "pmap" over several processes inside a
            transformation, or with unequal numbers of their devices.

    Example:
        >>> mean_square = lambda offset, x: jnp.mean((x - offset) ** 2)
        >>> spread = data_parallel(mean_square)
        >>> print(spread(1.0, jnp.array([1.0, 2.0, 4.0, 6.0])))
        8.75
        >>> print(jax.grad(lambda offset: spread(offset, jnp.array([1.0, 3.0])))(1.0))
        -2.0
    """
    if not callable(fn):
        message = f"fn={fn!r}: give a function of (state, data)"
        raise TypeError(message)
    if engine not in ENGINES:
        message = f"engine={engine!r}: choose one of {', '.join(ENGINES)}"
        raise ValueError(message)
    chosen = placement.chosen(devices)
    shared, inside, alone = *_programs(fn, engine, chosen), jax.jit(fn)

    def mean(state: Any, data: Any) -> Any:
        num_samples = arguments.samples(data=data)
        even = num_samples - num_samples % len(chosen)
        if _traced((state, data)):
            if not even or len(chosen) == 1 or _devices_are_taken():
                return fn(state, data)
            state, data = placement.unbound((state, data))
            program, whole = inside, fn
        else:
            here = lambda tree: jax.device_put(tree, placement.first(chosen))
            if not even or len(chosen) == 1:
                return alone(here(state), here(data))
            program = lambda state, data: placement.gathered(shared(state, data), chosen)
            whole = lambda state, data: alone(here(state), here(data))
        total = program(state, jax.tree.map(lambda leaf: jnp.asarray(leaf)[:even], data))
        if even == num_samples:
            return total
        rest = whole(state, jax.tree.map(lambda leaf: leaf[even:], data))
        share = even / num_samples
        return jax.tree.map(lambda many, few: share * many + (1 - share) * few, total, rest)

    return mean


@contextlib.contextmanager
def samples_kept() -> Iterator[None]:
    """Leave samples where they are in what is traced now: the devices have other work."""
    token = _kept.set(True)
    try:
        yield
    finally:
        _kept.reset(token)


def _programs(fn: Mean, engine: str, devices: tuple[jax.Device, ...]) -> tuple[Mean, Mean]:
    """Return `fn` of samples whose number the devices divide: of arrays, and inside a trace."""
    mesh = Mesh(np.array(devices), (AXIS,))
    by_sample = NamedSharding(mesh, PartitionSpec(AXIS))
    whole = NamedSharding(mesh, PartitionSpec())
    if engine == "pmap":
        return _pmapped(fn, devices)
    placed = lambda state, data: (placement.place(state, whole), placement.place(data, by_sample))
    if engine == "jit":
        laid_out = jax.jit(fn, out_shardings=whole)

        def spread(state: Any, data: Any) -> Any:
            return fn(state, jax.lax.with_sharding_constraint(data, by_sample))

        inside = jax.jit(spread, out_shardings=whole)
    else:

        def share_of_shard_map(state: Any, data: Any) -> Any:
            # A derivative by what all devices hold alike is summed over them (N times too large
            # for a mean); by what each holds for itself it is its own.
            own = jax.tree.map(_varying, state)
            return jax.lax.pmean(fn(own, data), AXIS)

        laid_out = inside = jax.jit(
            jax.shard_map(share_of_shard_map, mesh=mesh, in_specs=(whole.spec, by_sample.spec),
                          out_specs=whole.spec)
        )  # fmt: skip
    return lambda state, data: laid_out(*placed(state, data)), inside


def _pmapped(fn: Mean, devices: tuple[jax.Device, ...]) -> tuple[Mean, Mean]:
    def share_of_pmap(state: Any, data: Any) -> Any:
        return jax.lax.pmean(fn(state, data), AXIS)

    program = jax.pmap(share_of_pmap, axis_name=AXIS, in_axes=(None, 0), out_axes=None,
                       devices=devices)  # fmt: skip
    mine = placement.rows_of_this_process(devices, "pmap")
    split = lambda leaf: leaf.reshape(len(devices), -1, *leaf.shape[1:])[mine]

    def inside(state: Any, data: Any) -> Any:
        if placement.spans_processes(devices):
            message = (
                "engine='pmap': cannot be differentiated or compiled over several processes; "
                "choose 'jit' or 'shard_map'"
            )
            raise ValueError(message)
        return program(state, jax.tree.map(split, data))

    return lambda state, data: program(state, jax.tree.map(split, data)), inside


def _varying(leaf: Any) -> Any:
    return jax.lax.pcast(leaf, (AXIS,), to="varying")


def _devices_are_taken() -> bool:
    """Whether an ensemble, or a shard_map or pmap of the caller's, surrounds."""
    return _kept.get() or AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types


def _traced(tree: Any) -> bool:
    leaves = [*jax.tree.leaves(tree), jnp.add(0, 0)]  # the last one tells whether a jit surrounds
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
