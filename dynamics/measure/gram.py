"""Inner products of Jacobian rows, tile by tile, written once into the kernel.

Samples come in blocks, whose rows are held together, and a pair of blocks is filled in tiles small
enough for the cache: fresh memory is slow to touch, so nothing of the size of the kernel is
made but the kernel. Where lengths do not divide, the last block or tile overlaps the one before.
A symmetric kernel is computed on and above the diagonal and written on both sides of it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array, Params
from dynamics.measure import inner_products, jacobian_rows
from dynamics.measure.inner_products import Group, Terms
from dynamics.measure.jacobian_rows import Plan

# Entries of a tile of the kernel: 4 MB in single precision, about a core's share of a cache.
TILE = 2**20
# Entries of the rows held of a block when nobody says: 256 MB in single precision.
ROWS_HELD = 2**26
# Samples from which a symmetric mean kernel is cut up at all: below, one product is faster.
SPLIT = 500
# Entries of derivatives that are in flight while rows are computed: 512 MB.
FLIGHT = 2**27


def kernels(
    plan: Plan, x1: Array, x2: Array | None, *, outputs: str, batch_size: int, total: bool
) -> list[Array]:
    """Return the kernel (N1, N2) or (N1, N2, K, K) of each leaf, or in a list their sum.

    Args:
        plan: From `jacobian_rows.plan`.
        x1: (N1, ...).
        x2: (N2, ...), or None for `x1` again and a symmetric kernel.
        outputs: "mean" or "full".
        batch_size: Samples in a block.
        total: Whether to sum over leaves.
    """
    groups = inner_products.grouped(plan, total)
    one = jacobian_rows.rows_of_one(plan)
    at_once = in_flight(plan)

    def terms(x: Array) -> list[Terms]:
        many = jax.vmap(one)(x) if len(x) <= at_once else jax.lax.map(one, x, batch_size=at_once)
        return [inner_products.terms_of(group, many) for group in groups]

    n1, n2, k = len(x1), len(x1 if x2 is None else x2), plan.num_outputs
    size1, starts1 = _pieces(n1, batch_size)
    size2, starts2 = _pieces(n2, batch_size)
    dtype = jnp.result_type(*(jacobian_rows.widened(value) for value in plan.values))
    shape = (n1, n2) if outputs == "mean" else (n1, n2, k, k)
    empty = [jnp.zeros(shape, dtype) for _ in groups]
    fill = lambda *blocks: _filled(groups, outputs, k, *blocks)
    if len(starts1) == len(starts2) == 1:
        return fill(empty, terms(x1), None if x2 is None else terms(x2), 0, 0)
    cut = jax.lax.dynamic_slice_in_dim
    firsts1, firsts2 = jnp.asarray(starts1), jnp.asarray(starts2)

    def row_of_blocks(index: Array, out: list[Array]) -> list[Array]:
        first = firsts1[index]
        mine = terms(cut(x1, first, size1))

        def block(other: Array, out: list[Array]) -> list[Array]:
            second = firsts2[other]
            return fill(out, mine, terms(cut(x1 if x2 is None else x2, second, size2)), first,
                        second, x2 is None)  # fmt: skip

        if x2 is not None:
            return jax.lax.fori_loop(0, len(starts2), block, out)
        # The diagonal last: where blocks overlap it is written twice, symmetric the second time.
        out = jax.lax.fori_loop(0, index, block, out)
        return fill(out, mine, None, first, first)

    return jax.lax.fori_loop(0, len(starts1), row_of_blocks, empty)


def in_flight(plan: Plan) -> int:
    """Return of how many samples the rows are computed at once."""
    return max(1, FLIGHT // max(plan.entries, 4 * plan.num_outputs * plan.widest))


def checked(
    params: Params, x1: Array, x2: Array | None, outputs: str
) -> tuple[Params, Array, Array | None]:
    """Return the arguments of a kernel as arrays, or raise for what is wrong with them."""
    arguments.choices(("mean", "full"), outputs=outputs)
    check_params(params)
    params, x1 = jax.tree.map(jnp.asarray, params), _samples("x1", x1)
    if x2 is None:
        return params, x1, None
    x2 = _samples("x2", x2)
    if x1.shape[1:] != x2.shape[1:]:
        message = f"x2: samples of shape {x2.shape[1:]}; give the shape of x1, {x1.shape[1:]}"
        raise ValueError(message)
    return params, x1, x2


def checked_batch_size(batch_size: int | None, entries: int) -> int:
    """Return `batch_size`, or where it is None the samples whose rows fit a block."""
    arguments.integers(0, entries=entries)
    if batch_size is None:
        return max(1, ROWS_HELD // max(entries, 1))
    arguments.counts(batch_size=batch_size)
    return int(batch_size)


def _samples(name: str, x: Array) -> Array:
    arguments.shapes("N ...", **{name: x})
    return jnp.asarray(x)


def check_params(params: Params) -> None:
    """Raise where `params` has no leaf, or one that is not a floating-point array."""
    arguments.params(params=params)


def _filled(
    groups: list[Group],
    outputs: str,
    k: int,
    out: list[Array],
    terms1: list[Terms],
    terms2: list[Terms] | None,
    first1: Any,
    first2: Any,
    mirrored: bool = False,
) -> list[Array]:
    """Write the kernels of a pair of blocks, or with None of a block and itself, into `out`.

    The blocks begin at rows `first1` and columns `first2`; `mirrored` writes them on the other
    side of the diagonal too.
    """
    found = []
    for group, whole, mine, others in zip(
        groups, out, terms1, terms1 if terms2 is None else terms2, strict=True
    ):
        symmetric = terms2 is None
        tile, starts1, starts2 = _tiles(group, mine, others, symmetric, outputs, k)
        write = _writer(outputs, first1, first2)
        off = [(i, j) for j in range(len(starts2)) for i in range(j if symmetric else len(starts1))]
        table = [(starts1[i], starts2[j]) for i, j in off]

        def step(
            out: Array, at: Any, tile: Any = tile, write: Any = write, both: bool = symmetric
        ) -> Array:
            return write(out, tile(*at), at, both or mirrored)

        def diagonal(out: Array, at: Any, tile: Any = tile, write: Any = write) -> Array:
            kernel = tile(*at)
            order = math.prod(kernel.shape[: kernel.ndim // 2])
            flat = kernel.reshape(order, order)
            flat = jnp.where(jnp.tri(order, k=-1, dtype=bool), flat.T, flat)
            return write(out, flat.reshape(kernel.shape), at, False)

        whole = _looped(step, table, whole)
        if symmetric:  # last, since tiles may overlap the diagonal ones
            whole = _looped(diagonal, [(start, start) for start in starts1], whole)
        found.append(whole)
    return found


def _tiles(
    group: Group, mine: Terms, others: Terms, symmetric: bool, outputs: str, k: int
) -> tuple[Callable[..., Array], list[int], list[int]]:
    """Return the function of the tile at a row and a column, and where tiles begin."""
    n1, n2 = (len(jax.tree.leaves(terms)[0]) for terms in (mine, others))
    bases = [
        inner_products.by_gradients(a, None if symmetric else b, outputs)
        for a, b in zip(mine.gradients, others.gradients, strict=True)
    ]
    mine, others = mine._replace(gradients=[]), others._replace(gradients=[])
    side = max(1, math.isqrt(TILE) // (k if outputs == "full" else 1))
    for factors in mine.pairs:
        side = max(1, side // factors.inputs.shape[1])
    if symmetric and outputs == "mean" and n1 >= SPLIT:
        side = min(side, -(-n1 // 4))
    (size1, starts1), (size2, starts2) = _pieces(n1, side), _pieces(n2, side)
    cut = jax.lax.dynamic_slice_in_dim

    def tile(start1: Any, start2: Any) -> Array:  # (t1, t2), or (t1, K, t2, K)
        part1 = jax.tree.map(lambda array: cut(array, start1, size1), mine)
        part2 = jax.tree.map(lambda array: cut(array, start2, size2), others)
        parts = inner_products.products(group, part1, part2, outputs)
        axis2 = 1 if outputs == "mean" else 2
        parts += [cut(cut(base, start1, size1), start2, size2, axis2) for base in bases]
        kernel = sum(parts[1:], start=parts[0])
        return kernel / k if outputs == "mean" else kernel

    return tile, starts1, starts2


def _writer(outputs: str, first1: Any, first2: Any) -> Callable[..., Array]:
    """Return what writes a tile into a kernel, and on demand across the diagonal."""

    def write(out: Array, kernel: Array, at: Any, both: bool) -> Array:
        rows, columns = (
            jnp.asarray(first + start, jnp.int32)
            for first, start in zip((first1, first2), at, strict=True)
        )
        rest = (jnp.int32(0),) * (out.ndim - 2)
        laid = (kernel if outputs == "mean" else kernel.swapaxes(1, 2)).astype(out.dtype)
        out = jax.lax.dynamic_update_slice(out, laid, (rows, columns, *rest))
        if not both:
            return out
        turned = laid.T if outputs == "mean" else laid.transpose(1, 0, 3, 2)
        return jax.lax.dynamic_update_slice(out, turned, (columns, rows, *rest))

    return write


def _looped(step: Callable[[Array, Any], Array], places: list[Any], out: Array) -> Array:
    """Apply `step` at one place after the other."""
    if len(places) <= 1:
        return step(out, places[0]) if places else out
    table = jnp.asarray(np.array(places, np.int32))
    return jax.lax.fori_loop(0, len(places), lambda i, out: step(out, tuple(table[i])), out)


def _pieces(n: int, size: int) -> tuple[int, list[int]]:
    """Return the length of pieces of at most `size` that cover `n`, and where each begins."""
    count = -(-n // min(size, n))
    length = -(-n // count)
    return length, [min(index * length, n - length) for index in range(count)]
