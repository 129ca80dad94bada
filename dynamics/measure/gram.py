"""Inner products of Jacobian rows, tile by tile, written once into the kernel.

Samples come in blocks, whose rows are held together, and a pair of blocks is filled in tiles small
enough for the cache: fresh memory is slow to touch, so nothing of the size of the kernel is
made but the kernel. Where lengths do not divide, the last block or tile overlaps the one before.
A symmetric kernel is computed on and above the diagonal and written on both sides of it.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.aliases import Array, Params
from dynamics.measure import jacobian_rows
from dynamics.measure.jacobian_rows import Factors, Plan

# Entries of a tile of the kernel: 4 MB in single precision, about a core's share of a cache.
TILE = 2**20
# Entries of the rows held of a block when nobody says: 256 MB in single precision.
ROWS_HELD = 2**26
# Entries of the rows that are formed at a time while they are multiplied: 16 MB.
CHUNK = 2**22
# Entries of derivatives that are in flight while rows are computed: 512 MB.
FLIGHT = 2**27


class Group(NamedTuple):
    """Leaves whose kernels are summed."""

    rows: list[int]
    vectors: list[tuple[int, bool, float]]  # leaf of the matrix, whether it counts, scale of a bias
    pairs: list[int]
    gradients: list[int]


class Terms(NamedTuple):
    """What a block of b samples brings to the kernel of a group."""

    rows: list[Array]  # none, or one of (b, K, D)
    vectors: list[Factors]  # (b, I), (b, K, O)
    pairs: list[Factors]  # (b, P, I), (b, P, K, O)
    gradients: list[Factors]


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
    groups = grouped(plan, total)
    one = jacobian_rows.rows_of_one(plan)
    at_once = in_flight(plan)

    def terms(x: Array) -> list[Terms]:
        many = jax.vmap(one)(x) if len(x) <= at_once else jax.lax.map(one, x, batch_size=at_once)
        return [_terms(group, many) for group in groups]

    n1, n2, k = len(x1), len(x1 if x2 is None else x2), plan.num_outputs
    size1, starts1 = _pieces(n1, batch_size)
    size2, starts2 = _pieces(n2, batch_size)
    dtype = jnp.result_type(*(jacobian_rows.widened(value) for value in plan.values))
    shape = (n1, n2) if outputs == "mean" else (n1, n2, k, k)
    empty = [jnp.zeros(shape, dtype) for _ in groups]
    fill = lambda *arguments: _filled(groups, outputs, k, *arguments)
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


def grouped(plan: Plan, total: bool) -> list[Group]:
    """Return the groups of leaves whose kernels are summed: one of all, or one a leaf."""
    groups = []
    for number, leaf in enumerate(plan.leaves):
        group = Group([], [], [], [])
        if leaf.form in (jacobian_rows.VECTOR, jacobian_rows.BIAS):
            is_bias = leaf.form == jacobian_rows.BIAS
            layer = leaf.layer
            assert layer is not None
            group.vectors.append((leaf.matrix, not is_bias, layer.bias_scale if is_bias else 0.0))
        elif leaf.form == jacobian_rows.PAIRS:
            group.pairs.append(number)
        elif leaf.form == jacobian_rows.GRADIENTS:
            group.gradients.append(number)
        else:
            group.rows.append(number)
        groups.append(group)
    if not total:
        return groups
    joined: dict[int, tuple[int, bool, float]] = {}
    for matrix, counts, scale in itertools.chain.from_iterable(g.vectors for g in groups):
        _, counted, bias = joined.get(matrix, (matrix, False, 0.0))
        joined[matrix] = (matrix, counted or counts, bias or scale)
    add = lambda parts: list(itertools.chain.from_iterable(parts))
    return [
        Group(
            add(g.rows for g in groups),
            list(joined.values()),
            add(g.pairs for g in groups),
            add(g.gradients for g in groups),
        )
    ]


def matmul(a: Array, b: Array) -> Array:
    """Return a @ b in at least single precision, with no fast reduced-precision products."""
    dtype = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    return jnp.matmul(a.astype(dtype), b.astype(dtype), precision=jax.lax.Precision.HIGHEST)


def checked(
    params: Params, x1: Array, x2: Array | None, outputs: str
) -> tuple[Params, Array, Array | None]:
    """Return the arguments of a kernel as arrays, or raise for what is wrong with them."""
    if outputs not in ("mean", "full"):
        message = f'outputs={outputs!r}: give "mean" or "full"'
        raise ValueError(message)
    check_params(params)
    params, x1 = jax.tree.map(jnp.asarray, params), _samples("x1", x1)
    if x2 is None:
        return params, x1, None
    x2 = _samples("x2", x2)
    if x1.shape[1:] != x2.shape[1:]:
        message = f"x2: samples of shape {x2.shape[1:]}; give the shape of x1's, {x1.shape[1:]}"
        raise ValueError(message)
    return params, x1, x2


def checked_batch_size(batch_size: int | None, entries: int) -> int:
    """Return `batch_size`, or where it is None the samples whose rows fit a block."""
    if batch_size is None:
        return max(1, ROWS_HELD // max(entries, 1))
    if batch_size < 1:
        message = f"batch_size={batch_size}: give at least 1"
        raise ValueError(message)
    return int(batch_size)


def _samples(name: str, x: Array) -> Array:
    x = jnp.asarray(x)
    if x.ndim == 0 or x.shape[0] == 0:
        message = f"{name}: shape {x.shape}; give at least one sample, on axis 0"
        raise ValueError(message)
    return x


def check_params(params: Params) -> None:
    """Raise where `params` has no leaf, or one that is not a floating-point array."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        message = "params: no arrays in it; give a pytree of floating-point arrays"
        raise ValueError(message)
    for path, leaf in leaves:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            name = jax.tree_util.keystr(path) or "the only leaf"
            message = f"params: {name} is of type {dtype}; make every leaf a floating-point array"
            raise TypeError(message)


def _terms(group: Group, rows: dict[int, Any]) -> Terms:
    together = [jnp.concatenate([rows[leaf] for leaf in group.rows], axis=-1)] if group.rows else []
    vectors = [
        Factors(rows[leaf].inputs[:, 0], rows[leaf].cotangents[:, 0])
        for leaf, _, _ in group.vectors
    ]
    pick = lambda leaves: [rows[leaf] for leaf in leaves]
    return Terms(together, vectors, pick(group.pairs), pick(group.gradients))


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
    """Write the kernels of a pair of blocks, or with None of a block and itself, into `out`."""
    return [
        _filled_one(group, outputs, k, whole, mine, others, first1, first2, mirrored)
        for group, whole, mine, others in zip(
            groups, out, terms1, [None] * len(out) if terms2 is None else terms2, strict=True
        )
    ]


def _filled_one(
    group: Group,
    outputs: str,
    k: int,
    out: Array,
    mine: Terms,
    others: Terms | None,
    first1: Any,
    first2: Any,
    mirrored: bool,
) -> Array:
    """The same for one group."""
    symmetric = others is None
    others = mine if others is None else others
    n1, n2 = (len(jax.tree.leaves(terms)[0]) for terms in (mine, others))
    bases = [
        _by_gradients(a, None if symmetric else b, outputs)
        for a, b in zip(mine.gradients, others.gradients, strict=True)
    ]
    mine, others = mine._replace(gradients=[]), others._replace(gradients=[])
    side = max(1, math.isqrt(TILE) // (k if outputs == "full" else 1))
    for factors in mine.pairs:
        side = max(1, side // factors.inputs.shape[1])
    if symmetric and outputs == "mean" and n1 >= 500:
        side = min(side, -(-n1 // 4))
    size1, starts1 = _pieces(n1, side)
    size2, starts2 = _pieces(n2, side)
    cut = jax.lax.dynamic_slice_in_dim

    def tile(start1: Any, start2: Any) -> Array:
        """(t1, t2), or (t1, K, t2, K) for all outputs."""
        part1 = jax.tree.map(lambda array: cut(array, start1, size1), mine)
        part2 = jax.tree.map(lambda array: cut(array, start2, size2), others)
        axis2 = 1 if outputs == "mean" else 2
        parts = _products(group, part1, part2, outputs)
        parts += [cut(cut(base, start1, size1), start2, size2, axis2) for base in bases]
        kernel = sum(parts[1:], start=parts[0])
        return kernel / k if outputs == "mean" else kernel

    def written(out: Array, kernel: Array, start1: Any, start2: Any, both: bool) -> Array:
        at1, at2 = (jnp.asarray(at, jnp.int32) for at in (first1 + start1, first2 + start2))
        rest = (jnp.int32(0),) * (out.ndim - 2)
        laid = kernel if outputs == "mean" else kernel.swapaxes(1, 2)
        out = jax.lax.dynamic_update_slice(out, laid.astype(out.dtype), (at1, at2, *rest))
        if both:
            turned = laid.T if outputs == "mean" else laid.transpose(1, 0, 3, 2)
            out = jax.lax.dynamic_update_slice(out, turned.astype(out.dtype), (at2, at1, *rest))
        return out

    def diagonal(start: Any, out: Array) -> Array:
        kernel = tile(start, start)
        flat = kernel.reshape(math.prod(kernel.shape[: kernel.ndim // 2]), -1)
        flat = jnp.where(jnp.tri(len(flat), k=-1, dtype=bool), flat.T, flat)
        return written(out, flat.reshape(kernel.shape), start, start, both=False)

    if symmetric:
        pairs = [(a, b) for number, b in enumerate(starts2) for a in starts2[:number]]
    else:
        pairs = list(itertools.product(starts1, starts2))
    off = lambda out, starts: written(out, tile(*starts), *starts, both=symmetric or mirrored)
    out = _looped(off, pairs, out)
    return _looped(lambda out, start: diagonal(start[0], out), [(a,) for a in starts1], out) if (
        symmetric
    ) else out  # fmt: skip


def _looped(
    step: Callable[[Array, Any], Array], settings: list[tuple[int, ...]], out: Array
) -> Array:
    """Apply `step` for one setting after the other."""
    if len(settings) <= 1:
        return step(out, settings[0]) if settings else out
    table = jnp.asarray(np.array(settings, np.int32))
    return jax.lax.fori_loop(
        0, len(settings), lambda index, out: step(out, tuple(table[index])), out
    )


def _products(group: Group, mine: Terms, others: Terms, outputs: str) -> list[Array]:
    """The inner products of a tile, each (t1, t2) or (t1, K, t2, K), but for the gradients."""
    found = [_inner(a, b, outputs) for a, b in zip(mine.rows, others.rows, strict=True)]
    for (_, counts, bias), a, b in zip(group.vectors, mine.vectors, others.vectors, strict=True):
        by_outputs = _inner(a.cotangents, b.cotangents, outputs)
        by_inputs = matmul(a.inputs, b.inputs.T) if counts else 0.0
        weight = by_inputs + bias**2
        if outputs == "full" and counts:
            weight = weight[:, None, :, None]
        found.append(by_outputs * weight)
    found += [_by_pairs(a, b, outputs) for a, b in zip(mine.pairs, others.pairs, strict=True)]
    return found


def _inner(a: Array, b: Array, outputs: str) -> Array:
    """(t1, K, D), (t2, K, D) -> sum over K of the inner products (t1, t2), or (t1, K, t2, K)."""
    if outputs == "mean":
        return matmul(a.reshape(len(a), -1), b.reshape(len(b), -1).T)
    (t1, k, size), t2 = a.shape, len(b)
    return matmul(a.reshape(-1, size), b.reshape(-1, size).T).reshape(t1, k, t2, k)


def _by_pairs(a: Factors, b: Factors, outputs: str) -> Array:
    """Σ_pq (x_p·x'_q)(δ_kp·δ'_lq), of (t1, t2) or (t1, K, t2, K)."""
    (t1, p, k, size), t2 = a.cotangents.shape, len(b.inputs)
    flat = lambda array, columns: array.reshape(-1, columns)
    by_inputs = matmul(flat(a.inputs, a.inputs.shape[2]), flat(b.inputs, b.inputs.shape[2]).T)
    if outputs == "mean":
        by_outputs = matmul(flat(a.cotangents, k * size), flat(b.cotangents, k * size).T)
        return jnp.sum((by_inputs * by_outputs).reshape(t1, p, t2, p), axis=(1, 3))
    by_outputs = matmul(flat(a.cotangents, size), flat(b.cotangents, size).T)
    by_outputs = by_outputs.reshape(t1, p, k, t2, p, k)
    return jnp.sum(by_outputs * by_inputs.reshape(t1, p, 1, t2, p, 1), axis=(1, 4))


def _by_gradients(a: Factors, b: Factors | None, outputs: str) -> Array:
    """The kernel of a layer whose rows are formed some columns at a time, summed over the K."""
    n, positions, k, num_outputs = a.cotangents.shape
    num_inputs = a.inputs.shape[2]
    width = max(1, min(num_inputs, CHUNK // (n * k * num_outputs)))
    chunks = -(-num_inputs // width)
    width = -(-num_inputs // chunks)

    def columns(inputs: Array) -> Array:  # (b, P, I) -> (chunks, b, P, width)
        room = chunks * width - num_inputs
        padded = jnp.pad(inputs, ((0, 0), (0, 0), (0, room)))  # zeros add nothing
        return padded.reshape(len(inputs), positions, chunks, width).transpose(2, 0, 1, 3)

    def rows(factors: Factors, part: Array) -> Array:
        made = jnp.einsum(
            "bpko,bpi->bkoi", factors.cotangents, part, precision=jax.lax.Precision.HIGHEST
        )
        if outputs == "mean":
            return made.reshape(len(made), -1)
        return made.reshape(len(made) * k, -1)

    def add(kernel: Array, parts: tuple[Array, ...]) -> tuple[Array, None]:
        mine = rows(a, parts[0])
        others = mine if b is None else rows(b, parts[1])
        return kernel + matmul(mine, others.T), None

    parts = (columns(a.inputs),) if b is None else (columns(a.inputs), columns(b.inputs))
    each = 1 if outputs == "mean" else k
    shape = (n * each, (n if b is None else len(b.inputs)) * each)
    kernel = jax.lax.scan(add, jnp.zeros(shape, a.inputs.dtype), parts)[0]
    return kernel if outputs == "mean" else kernel.reshape(n, k, shape[1] // k, k)


def _pieces(n: int, size: int) -> tuple[int, list[int]]:
    """Return the length of pieces of at most `size` that cover `n`, and where each begins."""
    count = -(-n // min(size, n))
    length = -(-n // count)
    return length, [min(index * length, n - length) for index in range(count)]
