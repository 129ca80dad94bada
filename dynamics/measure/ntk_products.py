"""Products with the empirical NTK, and what they give without the kernel: columns, eigenpairs.

Θ v = J (J^T v) is one reverse and one forward derivative of the network, over batches of samples;
neither the kernel nor a Jacobian is formed.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import ApplyFn, Array, Key, Params
from dynamics.measure import batching, gram, jacobian_rows, lanczos

# Entries of all values of a network that one batch may hold: 256 MB in single precision.
ACTIVATIONS = 2**26


class NTKEigenpairs(NamedTuple):
    """The largest eigenpairs of an NTK, the largest first."""

    values: Array  # (num,)
    vectors: Array  # (num, N), or (num, N, K) for all outputs; orthonormal
    residuals: Array  # (num,) |Θ v - value v|; some eigenvalue lies within it of the value


def ntk_vector_product(
    apply_fn: ApplyFn,
    params: Params,
    x1: Array,
    vector: Array,
    x2: Array | None = None,
    *,
    outputs: str = "mean",
    batch_size: int | None = None,
) -> Array:
    """Return Θ(x1, x2) v without forming Θ: (N1,) for `outputs="mean"`, (N1, K) for "full".

    Costs about as much as two gradients over `x2` and one over `x1`, times K for the mean. Memory
    is one batch of activations and one pytree like `params`, K of them for the mean.

    Args:
        apply_fn: `apply_fn(params, x (N, ...)) -> (N, K)`, or (N,) for one output.
        params: Any pytree of floating-point arrays.
        x1: (N1, ...) samples.
        vector: v, (N2,) for the mean over outputs, (N2, K) for all of them.
        x2: (N2, ...) samples; the same as `x1` when None.
        outputs: "mean" or "full", as in `empirical_ntk`.
        batch_size: Samples at a time; it need not divide N1 or N2. The default keeps the values
            of the network for one batch under 2**26 entries.

    Raises:
        ValueError: as `empirical_ntk`, or `vector` has another shape.
        TypeError: a leaf of `params` is not of floating-point type.

    Reference: Novak et al. 2022, arXiv:2206.08720, section 3.2.

    Example:
        >>> linear = lambda params, x: x @ params
        >>> x = jnp.array([[1.0, 2.0], [0.0, 3.0]])
        >>> print(ntk_vector_product(linear, jnp.ones((2, 1)), x, jnp.array([1.0, 1.0])))
        [11. 15.]
    """
    arguments.numbers(vector=vector)
    product = _product(apply_fn, params, x1, x2, outputs, batch_size)
    vector = jnp.asarray(vector)
    if vector.shape != product.shape:
        message = (
            f'vector: shape {vector.shape}; give {product.shape} for x1, x2, outputs="{outputs}"'
        )
        raise ValueError(message)
    return product.of(vector)


def top_ntk_eigenpairs(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    *,
    key: Key,
    num: int = 1,
    num_iterations: int | None = None,
    outputs: str = "mean",
    batch_size: int | None = None,
) -> NTKEigenpairs:
    """Return the `num` largest eigenpairs of Θ(x, x) by Lanczos, without forming it.

    Memory is the Lanczos basis, `num_iterations` times N (times K for all outputs), beside that of
    `ntk_vector_product`. Ask the residuals whether `num_iterations` was enough.

    Args:
        apply_fn: `apply_fn(params, x (N, ...)) -> (N, K)`, or (N,) for one output.
        params: Any pytree of floating-point arrays.
        x: (N, ...) samples.
        key: For the first vector.
        num: How many, at least 1.
        num_iterations: Products with Θ, from `num` to the order of Θ; by default 2 num + 20. An
            NTK's first eigenvalues lie far apart, so that few are needed.
        outputs: "mean" or "full"; a product with the mean costs K times one with all outputs.
        batch_size: As in `ntk_vector_product`.

    Raises:
        ValueError: `num` or `num_iterations` out of range, or as `ntk_vector_product`.
        TypeError: a leaf of `params` is not of floating-point type.

    Reference: Golub and Van Loan, Matrix Computations, 4th edition, section 10.1.

    Example:
        >>> linear = lambda params, x: x @ params
        >>> x = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
        >>> top = top_ntk_eigenpairs(linear, jnp.ones((3, 1)), x, key=jax.random.key(0), num=2)
        >>> print(top.values.round(4))
        [9. 4.]
    """
    arguments.shapes("N ...", x=x)
    arguments.keys(key=key)
    arguments.integers(num=num)
    arguments.integers(optional=True, num_iterations=num_iterations)
    product = _product(apply_fn, params, x, None, outputs, batch_size)
    order = math.prod(product.shape)
    if not 1 <= num <= order:
        message = f"num={num}: give a number from 1 to {order}, the order of the kernel of x"
        raise ValueError(message)
    iterations = min(2 * num + 20, order) if num_iterations is None else num_iterations
    if not num <= iterations <= order:
        message = (
            f"num_iterations={iterations}: give a number from num={num} to {order}, the order for x"
        )
        raise ValueError(message)
    start_key, restart_key = jax.random.split(key)
    start = jax.random.normal(start_key, (order,), product.dtype)
    tridiagonal = lanczos.tridiagonalise(
        lambda vector: product.of(vector.reshape(product.shape)).ravel(),
        start / jnp.linalg.norm(start),
        key=restart_key,
        num_iterations=iterations,
    )
    values, vectors, residuals = lanczos.ritz_pairs(tridiagonal, num=num, which="largest")
    return NTKEigenpairs(values, vectors.reshape(num, *product.shape), residuals)


def kernel(
    plan: jacobian_rows.Plan, x1: Array, x2: Array | None, *, outputs: str, batch_size: int
) -> Array:
    """Return the NTK column by column, one product of J(x1) with a row of J(x2) each.

    No row but one is held at a time. It pays where outputs are many and parameters few; see
    `ntk_cost`. Arguments are those of `gram.kernels`; `batch_size` counts samples of `x1`.
    """
    k, n1 = plan.num_outputs, len(x1)
    samples = x1 if x2 is None else x2
    network = jax.vmap(plan.one_sample, in_axes=(None, 0))  # (b, K)

    def block(x: Array) -> Array:  # (b, ...) -> (N2 K, b, K) or (N2 K, b)
        _, forward = jax.linearize(lambda values: network(values, x), plan.values)

        def column(index: Array) -> Array:
            output = lambda values: plan.one_sample(values, samples[index // k])[index % k]
            found = jacobian_rows.widened(forward(jax.grad(output)(plan.values)))  # (b, K)
            return found[:, index % k] if outputs == "mean" else found

        return jax.lax.map(column, jnp.arange(len(samples) * k))

    size = -(-n1 // -(-n1 // min(batch_size, n1)))
    rows = jnp.minimum(jnp.arange(-(-n1 // size) * size), n1 - 1).reshape(-1, size)
    if len(rows) == 1:
        found = block(x1)[None]
    else:
        found = jax.lax.map(lambda chosen: block(x1[chosen]), rows)
    found = found.reshape(len(rows), len(samples), k, size, *found.shape[3:])
    if outputs == "mean":  # (B, N2, K, b) -> (N1, N2)
        total = found.mean(axis=2).transpose(0, 2, 1).reshape(-1, len(samples))[:n1]
        return total if x2 is not None else _mirrored(total)
    # (B, N2, K', b, K) -> (N1, N2, K, K')
    total = found.transpose(0, 3, 1, 4, 2).reshape(-1, len(samples), k, k)[:n1]
    if x2 is not None:
        return total
    flat = _mirrored(total.swapaxes(1, 2).reshape(n1 * k, n1 * k))
    return flat.reshape(n1, k, n1, k).swapaxes(1, 2)


class _Product(NamedTuple):
    of: Callable[[Array], Array]
    shape: tuple[int, ...]  # of the vectors it takes
    dtype: Any


def _product(
    apply_fn: ApplyFn,
    params: Params,
    x1: Array,
    x2: Array | None,
    outputs: str,
    batch_size: int | None,
) -> _Product:
    """Θ(x1, x2) as a function."""
    arguments.functions(apply_fn=apply_fn)
    params, x1, x2 = gram.checked(params, x1, x2, outputs)
    arguments.integers(1, optional=True, batch_size=batch_size)
    plan = jacobian_rows.plan(apply_fn, params, x1, x2, outputs, jacobian_rows.ROWS)
    size = batch_size or max(1, ACTIVATIONS // plan.activations)
    samples, k = x1 if x2 is None else x2, plan.num_outputs
    network = jax.vmap(plan.one_sample, in_axes=(None, 0))
    one_hots = jnp.eye(k)

    def backward(x: Array, vector: Array) -> Any:
        """J^T v, a list like the leaves; for the mean one for each output, on a leading axis."""
        out, pull = jax.vjp(lambda values: network(values, x), plan.values)
        if outputs == "full":
            return pull(vector.astype(out.dtype))[0]
        one = lambda hot: pull((vector[:, None] * hot).astype(out.dtype))[0]
        return jax.lax.map(one, one_hots)

    def forward(x: Array, directions: Any) -> Array:
        """J of the directions, (b, K), or of each output's own direction, their mean (b,)."""
        _, push = jax.linearize(lambda values: network(values, x), plan.values)
        if outputs == "full":
            return jacobian_rows.widened(push(directions))
        one = lambda part: jnp.sum(jacobian_rows.widened(push(part[0])) * part[1], axis=1)
        return jax.lax.map(one, (directions, one_hots)).mean(axis=0)

    def of(vector: Array) -> Array:
        cut = batching.batches((samples, vector), min(size, len(samples)))
        # A batch's share of the mean is its length over all: what is summed is divided by it first.
        part = lambda data: jax.tree.map(lambda leaf: leaf / len(data[0]), backward(*data))
        pulled = jax.tree.map(lambda leaf: leaf * len(samples), cut.mean(part))
        return jax.tree.map(
            lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)),
            _concatenated(lambda x: forward(x, pulled), x1, min(size, len(x1))),
        )

    dtype = jnp.promote_types(jnp.result_type(*plan.values), jnp.float32)
    shape = (len(samples),) if outputs == "mean" else (len(samples), k)
    return _Product(of, shape, dtype)


def _concatenated(fn: Callable[[Array], Array], x: Array, size: int) -> Array:
    cut = batching.batches(x, size)
    (full,), rest = cut.full, cut.rest
    found = [fn(full[0])] if len(full) == 1 else [jnp.concatenate(jax.lax.map(fn, full))]
    return jnp.concatenate([*found, *(fn(last) for last in rest)])


def _mirrored(kernel: Array) -> Array:
    return jnp.where(jnp.tri(len(kernel), k=-1, dtype=bool), kernel.T, kernel)
