"""Arrays onto the devices of one process or several, and results back to each process."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def chosen(devices: Sequence[jax.Device] | None) -> tuple[jax.Device, ...]:
    """Return `devices`, by default all of all processes.

    Raises:
        ValueError: there are none, or none of this process among them.
    """
    found = tuple(jax.devices() if devices is None else devices)
    if not found:
        message = "devices is empty: give at least one device, or None for all"
        raise ValueError(message)
    if all(device.process_index != jax.process_index() for device in found):
        message = f"devices={found}: none is of this process; give some, or None for all"
        raise ValueError(message)
    return found


def spans_processes(devices: Sequence[jax.Device]) -> bool:
    """Say whether other processes hold some of the devices."""
    return any(device.process_index != jax.process_index() for device in devices)


def first(devices: Sequence[jax.Device]) -> jax.Device:
    """Return the first of the devices that is of this process."""
    return next(d for d in devices if d.process_index == jax.process_index())


def rows_of_this_process(devices: Sequence[jax.Device], engine: str) -> Any:
    """Return which of the devices are of this process, as an index; "pmap" wants these rows only.

    Raises:
        ValueError: the processes hold unequal numbers of the devices.
    """
    owners = [device.process_index for device in devices]
    if len(counts := set(map(owners.count, owners))) > 1:
        message = (
            f"engine={engine!r}: the processes hold unequal numbers of the devices, "
            f"{sorted(counts)}; choose 'jit', or as many of each"
        )
        raise ValueError(message)
    if not spans_processes(devices):
        return slice(None)
    return np.flatnonzero(np.array(owners) == jax.process_index())


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Return arrays that every process holds whole, keys among them, laid out by `sharding`."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def lay_out(leaf: Any) -> jax.Array:
        leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(lay_out, tree)


def gathered(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Return arrays that all the devices hold alike as ordinary ones, on this process' first."""
    if spans_processes(devices):
        own = lambda leaf: leaf if leaf.is_fully_addressable else leaf.addressable_data(0)
        tree = jax.tree.map(own, tree)
    return jax.device_put(tree, first(devices))


def whole(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Return arrays whose rows each process holds its own of as whole ones of this process."""
    rows = multihost_utils.host_local_array_to_global_array(tree, mesh, spec)
    everywhere = NamedSharding(mesh, PartitionSpec())
    found = jax.jit(lambda rows: rows, out_shardings=everywhere)(rows)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), found)


def unbound(tree: Any) -> Any:
    """Return arrays that one device holds for itself as numpy; a program of many refuses them."""

    def free(leaf: Any) -> Any:
        if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
            return leaf
        bound = leaf.committed and len(leaf.devices()) == 1
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.device_get(leaf) if bound and not is_key else leaf

    return jax.tree.map(free, tree)
