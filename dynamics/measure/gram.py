"""Jacobian rows, leaf by leaf, in the cheapest form that is still exact, and their inner products.

A row of leaf W is ∂f_k(x)/∂W. Where W is the matrix of a dense layer used once on one vector h,
that row is the outer product of h with the derivative δ_k of f_k by the layer's output, and the
inner product of two rows is (h·h')(δ_k·δ'_l): the rows themselves are never formed. The layers
are found in the trace of the network, so it does not matter which framework wrote it; everything
that is not recognised (shared matrices, convolutions, recurrences) keeps its rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.aliases import ApplyFn, Array, Params

ByLeaf = dict[int, Array]  # number of a leaf -> something of it
Tags = dict[Any, int]  # variable of a trace -> number of the leaf that it is
CALLS = ("jit", "pjit", "closed_call")  # primitives whose inside is read as if written out


class Rows(NamedTuple):
    """Jacobian rows of a leaf of size P, as they are."""

    jacobian: Array  # (b, K, P)


class FactoredRows(NamedTuple):
    """Jacobian rows of a dense layer's matrix of I by O, as outer products."""

    inputs: Array  # (b, I) what the matrix is applied to
    cotangents: Array  # (b, K, O) derivatives of the outputs by the layer's output


def jacobian_rows(
    apply_fn: ApplyFn, params: Params, x: Array
) -> tuple[Callable[[Array], list[Rows | FactoredRows]], int]:
    """Return `rows(x_block)`, one entry a leaf, and the number of array entries it holds a sample.

    Args:
        apply_fn: `apply_fn(params, x (N, ...)) -> (N, K)` or (N,).
        params: A pytree of floating-point arrays.
        x: (N, ...), of which only shape and type are read.

    Raises:
        ValueError: the output of `apply_fn` is not (N, K) or (N,).
    """
    leaves, tree = jax.tree.flatten(params)
    shape = jax.eval_shape(apply_fn, params, x).shape
    if len(shape) not in (1, 2) or shape[0] != len(x) or 0 in shape:
        message = f"apply_fn: output of shape {shape} for {len(x)} samples; return (N, K)"
        raise ValueError(message)

    def one_sample(leaves: list[Array], sample: Array) -> Array:  # -> (K,)
        return apply_fn(jax.tree.unflatten(tree, leaves), sample[None]).reshape(-1)

    sample = jax.eval_shape(lambda: x[0])
    trace = jax.make_jaxpr(one_sample)(leaves, sample)
    num_outputs = 1 if len(shape) == 1 else shape[1]
    layers = _dense_layers(trace.jaxpr, len(leaves))  # leaf -> shape of the layer's output
    shifts = {leaf: jnp.zeros(out.shape, out.dtype) for leaf, out in layers.items()}
    kept = {leaf: value for leaf, value in enumerate(leaves) if leaf not in layers}

    def shifted(kept: ByLeaf, shifts: ByLeaf, sample: Array) -> tuple[Array, ByLeaf]:
        values = [kept.get(leaf, value) for leaf, value in enumerate(leaves)]
        if not shifts:
            return one_sample(values, sample), {}
        inputs: ByLeaf = {}
        tags = dict(zip(trace.jaxpr.invars, range(len(leaves)), strict=False))
        (out,) = _evaluate(trace, [*values, sample], tags, shifts, inputs)
        return out, inputs

    def rows_of_one(sample: Array) -> list[Rows | FactoredRows]:
        derivatives, inputs = jax.jacrev(shifted, argnums=(0, 1), has_aux=True)(
            kept, shifts, sample
        )
        by_kept, by_shift = derivatives
        return [
            FactoredRows(inputs[leaf].ravel(), by_shift[leaf].reshape(num_outputs, -1))
            if leaf in layers
            else Rows(by_kept[leaf].reshape(num_outputs, -1))
            for leaf in range(len(leaves))
        ]

    shapes = jax.eval_shape(rows_of_one, sample)
    entries = sum(int(np.prod(part.shape)) for part in jax.tree.leaves(shapes))
    return jax.vmap(rows_of_one), entries


def contract(rows1: list[Any], rows2: list[Any], outputs: str) -> list[Array]:
    """Return the kernel of each leaf, (b1, b2) for the mean over outputs or (b1, b2, K, K)."""
    inner = _inner_mean if outputs == "mean" else _inner_full
    kernels = []
    for part1, part2 in zip(rows1, rows2, strict=True):
        if isinstance(part1, Rows):
            kernels.append(inner(part1.jacobian, part2.jacobian))
            continue
        by_outputs = inner(part1.cotangents, part2.cotangents)
        by_inputs = matmul(part1.inputs, part2.inputs.T)
        kernels.append(
            by_outputs * by_inputs.reshape(by_inputs.shape + (1,) * (by_outputs.ndim - 2))
        )
    return kernels


def by_blocks(
    rows: Callable[[Array], Any],
    block: Callable[[Any, Any], Any],
    x1: Array,
    x2: Array,
    batch_size: int,
    symmetric: bool,
) -> Any:
    """Fill a kernel (N1, N2, ...) from blocks; memory is two blocks of rows and the result."""
    (n1, n2), (x1, x2) = (
        (len(x1), len(x2)),
        (_in_blocks(x1, batch_size), _in_blocks(x2, batch_size)),
    )
    if len(x1) == len(x2) == 1:
        rows1 = rows(x1[0])
        kernels = block(rows1, rows1 if symmetric else rows(x2[0]))
        return jax.tree.map(lambda k: _symmetrised(k) if symmetric else k, kernels)

    def row_of_blocks(index: Array) -> Any:
        rows1 = rows(x1[index])

        def put(column: Array, kernels: Any) -> Any:
            new = block(rows1, rows(x2[column]))
            return jax.tree.map(lambda k, part: k.at[column].set(part), kernels, new)

        shapes = jax.eval_shape(lambda: block(rows1, rows(x2[0])))
        zeros = jax.tree.map(lambda s: jnp.zeros((len(x2), *s.shape), s.dtype), shapes)
        return jax.lax.fori_loop(index if symmetric else 0, len(x2), put, zeros)

    def assemble(k: Array) -> Array:  # (B1, B2, b1, b2, ...) -> (N1, N2, ...)
        k = jnp.moveaxis(k, 1, 2)
        k = k.reshape(k.shape[0] * k.shape[1], k.shape[2] * k.shape[3], *k.shape[4:])[:n1, :n2]
        return _symmetrised(k) if symmetric else k

    return jax.tree.map(assemble, jax.lax.map(row_of_blocks, jnp.arange(len(x1))))


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


def matmul(a: Array, b: Array) -> Array:
    """Return a @ b in at least single precision, with no fast reduced-precision products."""
    dtype = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    return jnp.matmul(a.astype(dtype), b.astype(dtype), precision=jax.lax.Precision.HIGHEST)


def _inner_mean(a: Array, b: Array) -> Array:  # (b1, K, P), (b2, K, P) -> (b1, b2)
    return matmul(a.reshape(len(a), -1), b.reshape(len(b), -1).T) / a.shape[1]


def _inner_full(a: Array, b: Array) -> Array:  # (b1, K, P), (b2, K, P) -> (b1, b2, K, K)
    (rows1, k, size), rows2 = a.shape, len(b)
    product = matmul(a.reshape(-1, size), b.reshape(-1, size).T)
    return product.reshape(rows1, k, rows2, k).swapaxes(1, 2)


def _symmetrised(kernel: Array) -> Array:
    """Copy the upper triangle to the lower; (N, N, K, K) is laid out as (N K, N K) for that."""
    n, k = kernel.shape[0], 1 if kernel.ndim == 2 else kernel.shape[2]
    flat = kernel.reshape(n, n, k, k).swapaxes(1, 2).reshape(n * k, n * k)
    flat = jnp.where(jnp.tri(n * k, k=-1, dtype=bool), flat.T, flat)
    return flat.reshape(n, k, n, k).swapaxes(1, 2).reshape(kernel.shape)


def _in_blocks(x: Array, batch_size: int) -> Array:
    """Lay (N, ...) out as (blocks, b, ...); the last block is filled up with the last sample."""
    num_blocks = -(-len(x) // batch_size)
    size = -(-len(x) // num_blocks)  # blocks as even as can be
    rows = jnp.minimum(jnp.arange(num_blocks * size), len(x) - 1)
    return x[rows].reshape(num_blocks, size, *x.shape[1:])


def _dense_layers(jaxpr: Any, num_leaves: int) -> dict[int, Any]:
    """Find the leaves used once, as the matrix of a vector: leaf -> output of the layer."""
    uses = dict.fromkeys(range(num_leaves), 0)
    layers: dict[int, Any] = {}

    def walk(jaxpr: Any, tags: Tags) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name in CALLS:
                inner = _inner_jaxpr(equation).jaxpr
                walk(inner, _inner_tags(equation, inner, tags))
                continue
            for position, variable in enumerate(equation.invars):
                leaf = _tag(tags, variable)
                if leaf is not None:
                    uses[leaf] += 1
                    if _is_dense(equation, position):
                        layers[leaf] = equation.outvars[0].aval
        for variable in jaxpr.outvars:  # handed on whole: out of our sight
            leaf = _tag(tags, variable)
            if leaf is not None:
                uses[leaf] += 2

    walk(jaxpr, dict(zip(jaxpr.invars, range(num_leaves), strict=False)))
    return {leaf: out for leaf, out in layers.items() if uses[leaf] == 1}


def _is_dense(equation: Any, position: int) -> bool:
    """Whether operand `position` is a matrix contracted once with what is a single vector."""
    if equation.primitive.name != "dot_general":
        return False
    contracted, batched = equation.params["dimension_numbers"]
    matrix, other = equation.invars[position].aval, equation.invars[1 - position].aval
    is_vector = len(contracted[0]) == 1 and other.size == other.shape[contracted[1 - position][0]]
    return matrix.ndim == 2 and is_vector and not batched[0]


def _evaluate(
    closed: Any, values: list[Any], tags: Tags, shifts: ByLeaf, inputs: ByLeaf
) -> list[Any]:
    """Run a trace, adding `shifts` to the outputs of dense layers and noting their `inputs`."""
    jaxpr = closed.jaxpr
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *values), strict=True))

    def read(variable: Any) -> Any:
        return variable.val if hasattr(variable, "val") else known[variable]

    for equation in jaxpr.eqns:
        operands = [read(variable) for variable in equation.invars]
        if equation.primitive.name in CALLS:
            inner = _inner_jaxpr(equation)
            inner_tags = _inner_tags(equation, inner.jaxpr, tags)
            results = _evaluate(inner, operands, inner_tags, shifts, inputs)
        else:
            bound = equation.primitive.get_bind_params(equation.params)
            functions, options = bound if isinstance(bound, tuple) else ((), bound)  # JAX < 0.10
            results = equation.primitive.bind(*functions, *operands, **options)
            results = results if equation.primitive.multiple_results else [results]
        for position, variable in enumerate(equation.invars):
            leaf = _tag(tags, variable)
            if leaf in shifts and equation.primitive.name == "dot_general":
                results = [results[0] + shifts[leaf]]
                inputs[leaf] = operands[1 - position]
        known.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _inner_jaxpr(equation: Any) -> Any:
    return equation.params.get("jaxpr") or equation.params["call_jaxpr"]


def _inner_tags(equation: Any, inner: Any, tags: Tags) -> Tags:
    pairs = zip(inner.invars, equation.invars, strict=True)
    found = [(inside, _tag(tags, outside)) for inside, outside in pairs]
    return {inside: leaf for inside, leaf in found if leaf is not None}


def _tag(tags: Tags, variable: Any) -> int | None:
    """The leaf that a variable is, if it is one (a literal never is, and has no hash)."""
    return None if hasattr(variable, "val") else tags.get(variable)
