"""Means over samples with the samples spread over the devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

ENGINES = ("jit", "pmap", "shard_map")
AXIS = "sample"
Mean = Callable[[Any, Any], Any]


def data_parallel(
    fn: Mean, *, engine: str = "jit", devices: Sequence[jax.Device] | None = None
) -> Mean:
    """Return `fn(state, data)` with the samples of `data` spread over the devices.

    `fn` is a mean over samples: a loss, its gradient, a Hessian-vector product with the direction
    in `state`, an accuracy. Each device takes an equal share of the samples and the means of the
    shares are averaged; samples that the division leaves over are counted in with their weight.
    So every engine on any number of devices returns what `fn` itself does on one, up to rounding,
    gathered on the first device. Inside `jax.jit` and other transformations the samples stay where
    the surrounding program has them.

    Args:
        fn: `fn(state, data) -> pytree of floating-point arrays`, a mean over the leading axis of
            every leaf of `data`; no collectives. A sum, a maximum or a median is not a mean.
        engine: "jit" (one program over arrays laid out by NamedSharding; the default), "pmap", or
            "shard_map".
        devices: Where to run; all devices of this process by default.

    Raises:
        TypeError: `fn` cannot be called.
        ValueError: unknown `engine` or no `devices`; when called: `data` is empty or its leading
            axes differ.

    Example:
        >>> mean_square = lambda offset, x: jnp.mean((x - offset) ** 2)
        >>> print(data_parallel(mean_square)(1.0, jnp.array([1.0, 2.0, 4.0, 6.0])))
        8.75
    """
    if not callable(fn):
        message = f"fn={fn!r}: give a function of (state, data)"
        raise TypeError(message)
    if engine not in ENGINES:
        message = f"engine={engine!r}: choose one of {', '.join(ENGINES)}"
        raise ValueError(message)
    chosen = tuple(jax.local_devices() if devices is None else devices)
    if not chosen:
        message = "devices is empty: give at least one device, or None for all"
        raise ValueError(message)
    shared, alone = _programs(fn, engine, chosen), jax.jit(fn)

    def mean(state: Any, data: Any) -> Any:
        num_samples = _num_samples(data)
        if _traced((state, data)):
            return fn(state, data)
        here = lambda tree: jax.device_put(tree, chosen[0])
        even = num_samples - num_samples % len(chosen)
        if not even or len(chosen) == 1:
            return alone(here(state), here(data))
        total = here(shared(state, jax.tree.map(lambda leaf: jnp.asarray(leaf)[:even], data)))
        if even == num_samples:
            return total
        rest = alone(here(state), here(jax.tree.map(lambda leaf: leaf[even:], data)))
        share = even / num_samples
        return jax.tree.map(lambda many, few: share * many + (1 - share) * few, total, rest)

    return mean


def _programs(fn: Mean, engine: str, devices: tuple[jax.Device, ...]) -> Mean:
    """Return `fn` of samples whose number the devices divide."""
    mesh = Mesh(np.array(devices), (AXIS,))
    by_sample, whole = PartitionSpec(AXIS), PartitionSpec()
    if engine == "pmap":

        def share_of_pmap(state: Any, data: Any) -> Any:
            return jax.lax.pmean(fn(state, data), AXIS)

        program = jax.pmap(share_of_pmap, axis_name=AXIS, in_axes=(None, 0), out_axes=None,
                           devices=devices)  # fmt: skip
        split = lambda leaf: leaf.reshape(len(devices), -1, *leaf.shape[1:])
        return lambda state, data: program(state, jax.tree.map(split, data))
    place = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
    if engine == "jit":
        compiled = jax.jit(fn, out_shardings=NamedSharding(mesh, whole))
    else:

        def share_of_shard_map(state: Any, data: Any) -> Any:
            # A derivative by what all devices hold alike is summed over them (N times too large
            # for a mean); by what each holds for itself it is its own.
            own = jax.tree.map(_varying, state)
            return jax.lax.pmean(fn(own, data), AXIS)

        compiled = jax.jit(
            jax.shard_map(share_of_shard_map, mesh=mesh, in_specs=(whole, by_sample),
                          out_specs=whole)
        )  # fmt: skip
    return lambda state, data: compiled(place(state, whole), place(data, by_sample))


def _varying(leaf: Any) -> Any:
    return jax.lax.pcast(leaf, (AXIS,), to="varying")


def _num_samples(data: Any) -> int:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(data)]
    lengths = {shape[0] if shape else 0 for shape in shapes}
    if len(lengths) != 1 or 0 in lengths:
        message = f"data: leaves of shapes {shapes}; give every leaf the same samples, on axis 0"
        raise ValueError(message)
    (length,) = lengths
    return int(length)


def _traced(tree: Any) -> bool:
    leaves = [*jax.tree.leaves(tree), jnp.add(0, 0)]  # the last one tells whether a jit surrounds
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
