"""Exact traces and diagonals of Gauss-Newton matrices, and of Hessians where the two agree.

With J_n the Jacobian (K, P) of the outputs f_n of sample n and L_n the Hessian (K, K) of the loss
by them, the Gauss-Newton matrix is G = Σ_n J_n^T L_n J_n. Its diagonal needs no probe: the rows of
J_n come layer by layer as products of what goes into a layer with what comes back to it, for K
backward passes in all.

The Hessian is G + Σ_nk (∂loss/∂f_nk) ∇²f_nk. Where the network is piecewise linear in a leaf, the
others held, the second derivatives of f by any two entries of that leaf vanish on every piece. The
second term then has a block of zeros there, its diagonal included, and G has the diagonal of the
Hessian, whatever the loss. (Between leaves the term is not zero.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dynamics import arguments, leaf_names
from dynamics.aliases import ApplyFn, Array, Params
from dynamics.measure import (
    batching,
    convolutions,
    gram,
    jacobian_rows,
    linear_layers,
    piecewise_linear,
)
from dynamics.measure.jacobian_rows import BIAS, GRADIENTS, PAIRS, VECTOR, Factors, Leaf, Plan

OutputLoss = Callable[[Array, Any], Array]
HIGHEST = jax.lax.Precision.HIGHEST


def gauss_newton_trace(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    targets: Any,
    output_loss: OutputLoss,
    *,
    batch_size: int | None = None,
) -> Array:
    """Return the trace (): of the generalised Gauss-Newton matrix, exactly.

    Costs K backward passes through the activations and no product with a vector: with ten outputs
    about as much as two to four Hessian-vector products.

    Args:
        apply_fn: `apply_fn(params, x (N, ...)) -> (N, K)`, sample by sample (batch statistics
            frozen).
        params: Any pytree of floating-point arrays.
        x: (N, ...) samples.
        targets: A pytree of arrays with leading axis N, handed to `output_loss`.
        output_loss: `output_loss(outputs (N, K), targets) -> ()`, a mean over the N samples.
        batch_size: Samples at a time, by default as many as half a gigabyte of derivatives
            allows; it need not divide N.

    Raises:
        ValueError: the outputs are not (N, K), or as `curvature.gauss_newton_vector_product`.
        TypeError: a leaf of `params` is not of floating-point type.

    Reference: Dangel, Kunstner and Hennig 2020, arXiv:1912.10985, section 2.3.

    Example:
        >>> loss = lambda outputs, targets: jnp.mean((outputs - targets) ** 2) / 2
        >>> line = lambda p, x: x * p["slope"]
        >>> x, y = jnp.full((4, 1), 3.0), jnp.zeros((4, 1))
        >>> print(gauss_newton_trace(line, dict(slope=2.0), x, y, loss))
        9.0
    """
    leaves = _each_leaf(_trace_of, None, apply_fn, params, x, targets, output_loss, batch_size)
    return jnp.sum(jnp.stack(leaves))


def gauss_newton_diagonal(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    targets: Any,
    output_loss: OutputLoss,
    *,
    batch_size: int | None = None,
) -> Params:
    """Return the diagonal of the generalised Gauss-Newton matrix, exactly, a pytree like `params`.

    Arguments and errors are those of `gauss_newton_trace`.

    Example:
        >>> loss = lambda outputs, targets: jnp.mean((outputs - targets) ** 2) / 2
        >>> line = lambda p, x: x @ p
        >>> x, y = jnp.array([[3.0, 1.0]]), jnp.zeros((1, 1))
        >>> print(gauss_newton_diagonal(line, jnp.zeros((2, 1)), x, y, loss))
        [[9.]
         [1.]]
    """
    options = (apply_fn, params, x, targets, output_loss, batch_size)
    leaves = _each_leaf(_diagonal_of, GRADIENTS, *options)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def exact_hessian_trace(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    targets: Any,
    output_loss: OutputLoss,
    *,
    batch_size: int | None = None,
) -> Array:
    """Return the trace () of the Hessian of a piecewise linear network's loss, exactly.

    That of the Gauss-Newton matrix, after a look at the network's trace: see the head of this file
    for why they are equal, and `piecewise_linear_leaves` for what counts. ReLU networks, dense or
    convolutional, with mean or max pooling and frozen batch norm, qualify; where a norm over
    features, a smooth activation or attention sits behind a weight, and where a weight is used in
    two layers, they do not. Arguments are those of `gauss_newton_trace`.

    Raises:
        ValueError: the network is not piecewise linear in a leaf, which is named; or as
            `gauss_newton_trace`.
        TypeError: a leaf of `params` is not of floating-point type.

    Example:
        >>> loss = lambda outputs, targets: jnp.mean((outputs - targets) ** 2) / 2
        >>> relu = lambda p, x: jax.nn.relu(x * p["in"]) * p["out"]
        >>> x, y = jnp.ones((1, 1)), jnp.zeros((1, 1))
        >>> print(exact_hessian_trace(relu, {"in": 2.0, "out": 3.0}, x, y, loss))
        13.0
    """
    _check_piecewise_linear(apply_fn, params, x)
    return gauss_newton_trace(apply_fn, params, x, targets, output_loss, batch_size=batch_size)


def exact_hessian_diagonal(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    targets: Any,
    output_loss: OutputLoss,
    *,
    batch_size: int | None = None,
) -> Params:
    """Return the diagonal of the Hessian of a piecewise linear network's loss, exactly.

    A pytree like `params`; arguments and errors are those of `exact_hessian_trace`.
    """
    _check_piecewise_linear(apply_fn, params, x)
    return gauss_newton_diagonal(apply_fn, params, x, targets, output_loss, batch_size=batch_size)


def _check_piecewise_linear(apply_fn: ApplyFn, params: Params, x: Array) -> None:
    arguments.functions(apply_fn=apply_fn)
    arguments.samples(x=x)
    fine = piecewise_linear.piecewise_linear_leaves(apply_fn, params, x)
    bent = [name for name, linear in leaf_names.named_leaves(fine) if not linear]
    if bent:
        message = (
            f"apply_fn: not seen to be piecewise linear in {', '.join(bent)}; estimate by "
            "hessian_trace or hessian_diagonal, or take gauss_newton_trace for that matrix' trace"
        )
        raise ValueError(message)


def _each_leaf(
    contract: Callable[..., Array],
    form: str | None,
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    targets: Any,
    output_loss: OutputLoss,
    batch_size: int | None,
) -> list[Array]:
    """Return, leaf by leaf, the sum over samples of `contract(plan, number, rows, curvatures)`."""
    arguments.functions(apply_fn=apply_fn, output_loss=output_loss)
    arguments.samples(x=x)
    batching.batches((x, targets), batch_size, "x and targets")
    params, x, _ = gram.checked(params, x, None, "full")
    apply_fn = convolutions.suited_to_device(apply_fn)  # a quarter of the time on a CPU
    planned = lambda x: jacobian_rows.plan(apply_fn, params, x, None, "full", form, own_pairs=True)
    if batch_size is None:
        batch_size = min(len(x), gram.in_flight(planned(x)))
    batches = batching.batches((x, targets), batch_size)
    whole_loss = lambda at, batch: output_loss(apply_fn(at, batch[0]), batch[1])
    batching.check_scalar(whole_loss, params, batches.first)

    def part(batch: Any) -> list[Array]:
        plan = planned(batch[0])
        outputs = apply_fn(params, batch[0]).reshape(-1, plan.num_outputs)
        shape = jax.eval_shape(apply_fn, params, batch[0]).shape  # (b, K) or (b,)
        gradient = jax.grad(lambda at: output_loss(at.reshape(shape), batch[1]))
        units = jnp.eye(plan.num_outputs, dtype=outputs.dtype)
        (units, _) = linear_layers.varying_alike([units, outputs])
        along = lambda unit: jnp.broadcast_to(unit, outputs.shape)  # of every sample at once
        column = lambda unit: jax.jvp(gradient, (outputs,), (along(unit),))[1]
        curvatures = jax.vmap(column, out_axes=-1)(units)  # (b, K, K)
        rows = jax.vmap(jacobian_rows.rows_of_one(plan))(batch[0])
        return [contract(plan, number, rows, curvatures) for number in range(len(plan.leaves))]

    return batches.mean(part)


def _bent(rows: Array, curvatures: Array) -> Array:
    """Return Σ_kl L_kl r_k r_l entry by entry, (b, ...), of rows (b, K, ...)."""
    flat = rows.reshape(*rows.shape[:2], -1)
    other = jnp.matmul(curvatures.astype(flat.dtype), flat, precision=HIGHEST)
    return jnp.sum(flat * other, axis=1).reshape(len(rows), *rows.shape[2:])


def _trace_of(plan: Plan, number: int, rows: dict[int, Any], curvatures: Array) -> Array:
    leaf = plan.leaves[number]
    if leaf.form == BIAS:
        return leaf.layer.bias_scale**2 * jnp.sum(_bent(_only(rows[leaf.matrix]), curvatures))  # type: ignore[union-attr]
    held = rows[number]
    if leaf.form == VECTOR:
        by_output = jnp.sum(_bent(_only(held), curvatures), axis=1)  # (b,)
        return jnp.dot(jnp.sum(held.inputs[:, 0] ** 2, axis=1), by_output, precision=HIGHEST)
    if leaf.form == PAIRS:
        other = jnp.einsum("bkl,bplo->bpko", curvatures, held.cotangents, precision=HIGHEST)
        flat = lambda array: array.reshape(*array.shape[:2], -1)
        across = lambda a, b: jnp.einsum("bpi,bqi->bpq", flat(a), flat(b), precision=HIGHEST)
        return jnp.sum(across(held.inputs, held.inputs) * across(held.cotangents, other))
    return jnp.sum(_bent(_formed(held), curvatures))


def _diagonal_of(plan: Plan, number: int, rows: dict[int, Any], curvatures: Array) -> Array:
    leaf, shape = plan.leaves[number], plan.values[number].shape
    if leaf.form == BIAS:
        found = jnp.sum(_bent(_only(rows[leaf.matrix]), curvatures), axis=0)
        return leaf.layer.bias_scale**2 * found.reshape(shape)  # type: ignore[union-attr]
    held = rows[number]
    if leaf.form == VECTOR:
        squares, bent = held.inputs[:, 0] ** 2, _bent(_only(held), curvatures)
        return _as_leaf(plan, leaf, number, jnp.matmul(squares.T, bent, precision=HIGHEST))
    found = jnp.sum(_bent(_formed(held), curvatures), axis=0)
    if leaf.layer is None:
        return found.reshape(shape)
    return _as_leaf(plan, leaf, number, found.reshape(leaf.layer.num_outputs, -1).T)


def _only(factors: Factors) -> Array:
    """Return the cotangents (b, K, O) of a layer on one vector."""
    return factors.cotangents[:, 0]


def _formed(held: Any) -> Array:
    """Return the rows (b, K, D) of a leaf, however they are held."""
    return jax.vmap(jacobian_rows.formed)(held) if isinstance(held, Factors) else held


def _as_leaf(plan: Plan, leaf: Leaf, number: int, matrix: Array) -> Array:
    """Lay what belongs to the entries (I, O) of a layer's matrix out as its leaf."""
    layer = leaf.layer
    assert layer is not None
    source = plan.program.equations[layer.equation].source
    shape = source.invars[layer.operand].aval.shape
    if layer.is_convolution:
        out, into, *spatial = source.params["dimension_numbers"].rhs_spec
        order = (*spatial, into, out)  # as `linear_layers` lays out windows
    else:
        contracted = source.params["dimension_numbers"][0][layer.operand]
        order = (*contracted, *(axis for axis in range(len(shape)) if axis not in contracted))
    operand = matrix.reshape([shape[axis] for axis in order])
    operand = operand.transpose([order.index(axis) for axis in range(len(shape))])
    shift = source.outvars[0].aval

    def operand_of(value: Array) -> Array:
        values = [value if at == number else other for at, other in enumerate(plan.values)]
        sample = jnp.zeros(plan.sample.shape, plan.sample.dtype)
        shifts = {layer.equation: jnp.zeros(shift.shape, shift.dtype)}
        operands = linear_layers.evaluate(plan.program, [*values, sample], shifts)[1]
        return operands[layer.equation][layer.operand]

    # Entries are only moved and multiplied by the layer's scale, which the inputs carry already.
    value = plan.values[number]
    before, move_back = jax.vjp(operand_of, value)
    return move_back(operand.astype(before.dtype))[0] / layer.scale
