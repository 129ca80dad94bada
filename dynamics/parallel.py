"""The one owner of devices: members of an ensemble, blocks of a kernel, spread over all of them."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jax_core
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dynamics import arguments, placement
from dynamics.data_parallel import data_parallel, samples_kept

__all__ = ["choose_batching", "data_parallel", "ensemble", "largest_product"]
ENGINES = ("jit", "pmap")
BATCHINGS = ("auto", "vmap", "map")
AXIS = "member"
# Floating-point operations of the largest product of one member from which, on CPU, members run
# one after the other. Measured on 2 cores (benchmarks/results/ensemble.json): below 1.6e7 vmap is
# 1.3 to 1.7 times as fast; from 1.6e7 to 4e7 each wins somewhere, by a quarter at most; from 6e7 on
# map is 1.2 to 2.5 times as fast.
LARGE_PRODUCT = 3e7


def ensemble(
    fn: Callable[..., Any],
    keys: Any,
    *,
    shared: Any = None,
    engine: str = "jit",
    batching: str = "auto",
    devices: Sequence[jax.Device] | None = None,
) -> Any:
    """Return `fn` of every member, each output leaf stacked on a leading axis (S,).

    The members are spread over the devices (where their number does not divide, the last member
    fills the gap and its copies are cut off again), and the members of one device run side by
    side (`vmap`) or one after the other (`map`). There is one compilation, remembered for the
    same `fn`, and the results are gathered on the first device, so that they mix with other arrays.
    Inside `jax.jit` the members stay on the device of the surrounding program.

    In a program of several processes (`jax.distributed`) every process makes the same calls with
    the same arguments, all the members among them, and each gets all results as arrays of its own.

    Args:
        fn: `fn(member) -> pytree of arrays`, for one member; no collectives.
        keys: A pytree whose leaves share the leading member axis (S,): keys, or (keys, settings).
        shared: A pytree that every member is given whole: `fn(member, shared)`. Unlike what `fn`
            closes over it may change from call to call without a new compilation, and unlike
            what stands in `keys` it may say how often a loop common to all members turns.
        engine: "jit" (jit over shard_map, the default) or "pmap".
        batching: "vmap", "map", or "auto": what is faster for this `fn` on these devices, see
            `choose_batching`.
        devices: Where to run; all devices of all processes by default.

    Raises:
        TypeError: `fn` cannot be called.
        ValueError: `keys` is empty or its leading axes differ; unknown `engine` or `batching`;
            no `devices`, or none of this process; "pmap" where processes hold unequal numbers of
            them.

    Example:
        >>> print(ensemble(lambda member: member**2, jnp.arange(3)))
        [0 1 4]
    """
    arguments.functions(fn=fn)
    arguments.choices(ENGINES, engine=engine)
    arguments.choices(BATCHINGS, batching=batching)
    arguments.pytrees(keys=keys, shared=shared)
    num_members = _num_members(keys)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(keys))
    remainder = () if shared is None else (shared,)
    if traced or isinstance(jnp.add(0, 0), jax.core.Tracer):
        return _batched(fn, batching, jax.default_backend())(keys, *remainder)
    chosen = placement.chosen(devices)
    if not placement.spans_processes(chosen):  # else each process must hold a part
        chosen = chosen[: min(len(chosen), num_members)]
    try:
        program = _program(fn, engine, batching, chosen, num_members, len(remainder))
    except TypeError:  # a callable without a hash
        program = _program.__wrapped__(fn, engine, batching, chosen, num_members, len(remainder))
    return placement.gathered(program(keys, *remainder), chosen)


def kernel_blocks(
    kernel: Callable[[Any, Any], Any],
    x1: Any,
    x2: Any = None,
    *,
    num_blocks: int = 8,
    engine: str = "jit",
    devices: Sequence[jax.Device] | None = None,
) -> Any:
    """Return a kernel (N1, N2) or (N1, N2, K, K), its blocks of rows spread over devices.

    Without `x2` the kernel is symmetric: each block of rows meets itself and, going round, the half
    of the others that follows, so that all blocks do the same work and half of the kernel is
    never computed. The numbers do not depend on the devices, as `num_blocks` does not.

    Args:
        kernel: `kernel(a (b, ...), b (c, ...)) -> (b, c)`, each entry from its two samples;
            or (b, c, K, K), as `lambda a, b: kernels.empirical_ntk(apply_fn, params, a, b)` can.
        x1: (N1, ...) samples.
        x2: (N2, ...) samples; the same as `x1` when None.
        num_blocks: Blocks of rows, at most N1 of them; a multiple of the number of devices keeps
            all of them busy.
        engine: "jit" or "pmap", as in `ensemble`.
        devices: Where to run; all devices of all processes by default, as in `ensemble`.

    Raises:
        ValueError: `num_blocks` below 1, an empty batch, or as `ensemble`.

    Example:
        >>> x = jnp.array([[1.0, 2.0], [0.0, 3.0]])
        >>> print(kernel_blocks(lambda a, b: a @ b.T, x))
        [[5. 6.]
         [6. 9.]]
    """
    arguments.functions(kernel=kernel)
    arguments.counts(num_blocks=num_blocks)
    arguments.numbers(x1=x1, **({} if x2 is None else {"x2": x2}))
    x1 = jnp.asarray(x1)
    for name, x in (("x1", x1), ("x2", x2)):
        if x is not None and (jnp.ndim(x) == 0 or len(x) == 0):
            message = f"{name}: shape {jnp.shape(x)}; give at least one sample, on axis 0"
            raise ValueError(message)
    if x2 is not None and jnp.shape(x2)[1:] != x1.shape[1:]:
        message = f"x1, x2: samples of shapes {x1.shape[1:]}, {jnp.shape(x2)[1:]}; give one shape"
        raise ValueError(message)
    num_samples, num_blocks = len(x1), min(num_blocks, len(x1))
    size = -(-num_samples // num_blocks)
    rows = np.minimum(np.arange(num_blocks * size), num_samples - 1).reshape(num_blocks, size)
    spread = functools.partial(ensemble, engine=engine, batching="map", devices=devices)
    if x2 is not None:
        x2 = jnp.asarray(x2)
        found = spread(lambda mine: kernel(mine, x2), x1[rows])
        return found.reshape(-1, *found.shape[2:])[:num_samples]
    width = num_blocks // 2 + 1  # blocks that a block meets
    following = (np.arange(num_blocks)[:, None] + np.arange(width)) % num_blocks
    windows = rows[following].reshape(num_blocks, -1)
    found = spread(lambda both: kernel(*both), (x1[rows], x1[windows]))
    return _round_to_square(found.reshape(num_blocks, size, width, size, *found.shape[3:]))[
        :num_samples, :num_samples
    ]


def _round_to_square(found: jax.Array) -> jax.Array:
    """Lay (block, rows, how many blocks on, columns, ...) out as a symmetric (N, N, ...)."""
    num_blocks, size, width = found.shape[:3]
    first, second = np.indices((num_blocks, num_blocks))
    ahead = (second - first) % num_blocks
    turned = ahead >= width  # computed as the block on the other side of the diagonal
    by_block = found.swapaxes(1, 2)  # (block, ahead, rows, columns, ...)
    blocks = by_block[np.where(turned, second, first), np.where(turned, -ahead % num_blocks, ahead)]
    transposed = blocks.swapaxes(2, 3)
    if found.ndim == 6:  # (K, K) for every pair of samples
        transposed = transposed.swapaxes(4, 5)
    flags = turned.reshape(turned.shape + (1,) * (blocks.ndim - 2))
    square = jnp.where(flags, transposed, blocks).swapaxes(1, 2)
    num_rows, outputs = num_blocks * size, found.shape[4:] or (1, 1)
    flat = square.reshape(num_rows, num_rows, *outputs).swapaxes(1, 2)
    flat = flat.reshape(num_rows * outputs[0], -1)
    flat = jnp.where(np.tri(len(flat), k=-1, dtype=bool), flat.T, flat)
    square = flat.reshape(num_rows, outputs[0], num_rows, outputs[1]).swapaxes(1, 2)
    return square.reshape(num_rows, num_rows, *found.shape[4:])


def choose_batching(fn: Callable[[Any], Any], member: Any, platform: str) -> str:
    """Return "map" where running members one after the other is faster, else "vmap".

    An accelerator wins by `vmap`. A CPU does too for small networks, where the fixed cost of
    each operation is what counts; but products that fill the cores alone only lose by becoming
    batched ones. The border is set by the largest matrix product or convolution of one
    member, wherever in its program it stands, and was measured by benchmarks/ensemble.py.

    Args:
        fn: The function of one member.
        member: Its argument, arrays or shapes and types.
        platform: "cpu", "gpu" or "tpu".
    """
    arguments.functions(fn=fn)
    arguments.records(str, platform=platform)
    arguments.pytrees(member=member)
    if platform != "cpu":
        return "vmap"
    jaxpr = jax.make_jaxpr(fn)(member)
    return "map" if largest_product(jaxpr.jaxpr) >= LARGE_PRODUCT else "vmap"


def largest_product(jaxpr: Any) -> float:
    """Return the operations (2 per multiply-add) of the largest product in a jaxpr, at any depth.

    Example:
        >>> square = jnp.ones((4, 4))
        >>> largest_product(jax.make_jaxpr(lambda x: jnp.tanh(x @ x))(square).jaxpr)
        128.0
    """
    arguments.records(jax_core.Jaxpr, jaxpr=jaxpr)
    largest = 0.0
    for equation in jaxpr.eqns:
        largest = max(largest, _operations(equation))
        for inner in jax_core.jaxprs_in_params(equation.params):
            largest = max(largest, largest_product(inner))
    return largest


def _operations(equation: Any) -> float:
    name = equation.primitive.name
    if name not in ("dot_general", "conv_general_dilated"):
        return 0.0
    outputs = float(math.prod(equation.outvars[0].aval.shape))
    left, right = (variable.aval.shape for variable in equation.invars[:2])
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2.0 * outputs * float(math.prod(left[axis] for axis in contracted))
    output_features = right[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * outputs * float(math.prod(right) / max(output_features, 1))


def _num_members(keys: Any) -> int:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(keys)]
    if not shapes:
        message = "keys has no leaves: give a pytree of arrays with a leading member axis"
        raise ValueError(message)
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or None in lengths:
        message = f"keys: leaves of shapes {shapes}; give every leaf the same leading member axis"
        raise ValueError(message)
    (length,) = lengths
    if not length:
        message = f"keys: leaves of shapes {shapes} hold no member; give at least one"
        raise ValueError(message)
    return int(length)


def _batched(fn: Callable[[Any], Any], batching: str, platform: str) -> Callable[[Any], Any]:
    """Return the function of several members of one device."""

    def run(members: Any, *shared: Any) -> Any:
        of_member = lambda member: fn(member, *shared)
        with samples_kept():
            how = batching
            if how == "auto":
                member = jax.eval_shape(lambda m: jax.tree.map(lambda leaf: leaf[0], m), members)
                how = choose_batching(of_member, member, platform)
            if how == "vmap":
                return jax.vmap(of_member)(members)
            return jax.lax.map(of_member, members)

    return run


# Few are kept: each holds what its function closes over, data sets included.
@functools.lru_cache(maxsize=16)
def _program(
    fn: Callable[[Any], Any],
    engine: str,
    batching: str,
    devices: tuple[jax.Device, ...],
    num_members: int,
    num_shared: int,
) -> Callable[..., Any]:
    """Return the compiled function of all members, laid out over the devices."""
    batched = _batched(fn, batching, devices[0].platform)
    per_device = math.ceil(num_members / len(devices))
    rows = np.minimum(np.arange(per_device * len(devices)), num_members - 1)
    mesh = Mesh(np.array(devices), (AXIS,))
    by_member, whole = PartitionSpec(AXIS), (PartitionSpec(),) * num_shared
    sharding = NamedSharding(mesh, by_member)

    def fill(keys: Any) -> Any:
        padded = keys if len(rows) == num_members else jax.tree.map(lambda leaf: leaf[rows], keys)
        return placement.place(padded, sharding)

    if engine == "pmap":
        in_axes = (0, *(None for _ in whole))
        pmapped = jax.pmap(batched, axis_name=AXIS, in_axes=in_axes, devices=devices)
        split = lambda leaf: leaf.reshape(len(devices), per_device, *leaf.shape[1:])
        join = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:num_members]
        if placement.spans_processes(devices):
            mine = placement.rows_of_this_process(devices, engine)
            of_mine = lambda leaf: split(leaf[rows])[mine]
            joined = lambda found: placement.whole(found, mesh, by_member)
            return lambda keys, *shared: jax.tree.map(
                join, joined(pmapped(jax.tree.map(of_mine, keys), *shared))
            )
        return lambda keys, *shared: jax.tree.map(
            join, pmapped(jax.tree.map(split, fill(keys)), *shared)
        )
    # check_vma: a scan inside fn may start from a constant and go on with what differs by member.
    sharded = jax.shard_map(
        batched, mesh=mesh, in_specs=(by_member, *whole), out_specs=by_member, check_vma=False
    )
    cut = lambda *given: jax.tree.map(lambda leaf: leaf[:num_members], sharded(*given))
    if placement.spans_processes(devices):
        everywhere = NamedSharding(mesh, PartitionSpec())
        compiled = jax.jit(cut, out_shardings=everywhere)
        place = lambda shared: placement.place(shared, everywhere)
        return lambda keys, *shared: compiled(fill(keys), *map(place, shared))
    compiled = jax.jit(batched if len(devices) == 1 else cut)
    return lambda keys, *shared: compiled(fill(keys), *shared)
