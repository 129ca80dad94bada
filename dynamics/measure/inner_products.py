"""Inner products of the Jacobian rows of two blocks of samples, in whichever form they are held."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics.aliases import Array
from dynamics.measure import jacobian_rows
from dynamics.measure.jacobian_rows import Factors, Plan

# Entries of the rows that are formed at a time while they are multiplied: 16 MB.
CHUNK = 2**22


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


def terms_of(group: Group, rows: dict[int, Any]) -> Terms:
    """Return what the rows of a block bring to the kernel of a group."""
    together = [jnp.concatenate([rows[leaf] for leaf in group.rows], axis=-1)] if group.rows else []
    vectors = [
        Factors(rows[leaf].inputs[:, 0], rows[leaf].cotangents[:, 0])
        for leaf, _, _ in group.vectors
    ]
    pick = lambda leaves: [rows[leaf] for leaf in leaves]
    return Terms(together, vectors, pick(group.pairs), pick(group.gradients))


def products(group: Group, mine: Terms, others: Terms, outputs: str) -> list[Array]:
    """Return the inner products of a tile, each (t1, t2) or (t1, K, t2, K), but for gradients."""
    found = [_inner(a, b, outputs) for a, b in zip(mine.rows, others.rows, strict=True)]
    for (_, counts, bias), a, b in zip(group.vectors, mine.vectors, others.vectors, strict=True):
        by_outputs = _inner(a.cotangents, b.cotangents, outputs)
        if not counts:
            found.append(by_outputs * bias**2)
            continue
        weight = matmul(a.inputs, b.inputs.T) + bias**2
        found.append(by_outputs * (weight if outputs == "mean" else weight[:, None, :, None]))
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


def by_gradients(a: Factors, b: Factors | None, outputs: str) -> Array:
    """Return the kernel of a layer whose rows are formed some columns at a time.

    It is (b1, b2), summed over the K, or (b1, K, b2, K); with `b` None of `a` and itself.
    """
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
