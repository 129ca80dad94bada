"""Jacobian rows, leaf by leaf, each held in the form in which its inner products cost least.

A row of leaf W is ∂f_k(x)/∂W. Where W is the matrix of a layer (`linear_layers`) the row is a sum
over positions p of outer products x_p ⊗ δ_kp, and the inner product of two rows can be had in
three ways: from the rows themselves; from rows formed only while they are multiplied; or, without
any row, as Σ_pq (x_p·x'_q)(δ_kp·δ'_lq). `plan` counts operations and takes the cheapest for each
leaf; for a dense layer on one vector it is always the last.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics.aliases import ApplyFn, Array, Params
from dynamics.measure import linear_layers
from dynamics.measure.linear_layers import Layer, Program

# How the rows of a leaf are held.
ROWS = "rows"  # as they are, from reverse mode
WINDOWS = "windows"  # as they are, formed from the windows of a convolution
VECTOR = "vector"  # factors of a layer on one vector
BIAS = "bias"  # the derivatives by what a layer on one vector puts out, held with its matrix
GRADIENTS = "gradients"  # factors; rows are formed while they are multiplied
PAIRS = "pairs"  # factors; all pairs of positions
FORMS = (ROWS, WINDOWS, VECTOR, BIAS, GRADIENTS, PAIRS)
# Operations that one entry of a product of pairs costs when it is read, multiplied and summed.
PAIR_OVERHEAD = 16


class Factors(NamedTuple):
    """Rows of a layer as sums of P outer products; a leading axis b for a block of samples."""

    inputs: Array  # (P, I) times the layer's scale
    cotangents: Array  # (P, K, O) derivatives of the outputs by what the layer puts out


class Leaf(NamedTuple):
    """How one leaf is dealt with."""

    form: str  # one of FORMS
    size: int
    layer: Layer | None  # but for ROWS
    matrix: int  # for BIAS the leaf that holds the factors, else the leaf itself


class Plan(NamedTuple):
    """A network for one sample and how each of its leaves is dealt with."""

    values: list[Array]  # the leaves
    program: Program  # (*leaves, sample) -> outputs (K,)
    one_sample: Callable[[list[Array], Array], Array]
    sample: jax.ShapeDtypeStruct
    num_outputs: int
    leaves: list[Leaf]
    widest: int  # entries of the largest value in the program
    activations: int  # entries of all its values
    entries: int  # entries of the rows of one sample


def plan(
    apply_fn: ApplyFn,
    params: Params,
    x1: Array,
    x2: Array | None,
    outputs: str,
    form: str | None = None,
    own_pairs: bool = False,
) -> Plan:
    """Return how to get the rows of every leaf for a kernel of `x1` and `x2`.

    Args:
        apply_fn: `apply_fn(params, x (N, ...)) -> (N, K)` or (N,).
        params: A pytree of floating-point arrays.
        x1: (N1, ...), of which only shape and type are read.
        x2: (N2, ...) likewise, None for `x1` again.
        outputs: "mean" or "full".
        form: ROWS, GRADIENTS or PAIRS for all layers that can take it, in place of the cheapest.
        own_pairs: Whether only products of a sample with itself are wanted.

    Raises:
        ValueError: the output of `apply_fn` is not (N, K) or (N,).
    """
    values, tree = jax.tree.flatten(params)
    shape = jax.eval_shape(apply_fn, params, x1).shape
    if len(shape) not in (1, 2) or shape[0] != len(x1) or 0 in shape:
        message = f"apply_fn: output of shape {shape} for {len(x1)} samples; return (N, K)"
        raise ValueError(message)
    num_outputs = 1 if len(shape) == 1 else shape[1]

    def one_sample(values: list[Array], sample: Array) -> Array:  # -> (K,)
        return apply_fn(jax.tree.unflatten(tree, values), sample[None]).reshape(-1)

    sample = jax.ShapeDtypeStruct(x1.shape[1:], x1.dtype)
    program = linear_layers.written_out(jax.make_jaxpr(one_sample)(values, sample))
    num_samples = len(x1) + (0 if x2 is None else len(x2))
    num_pairs = len(x1) * (len(x1) / 2 if x2 is None else len(x2))
    num_pairs = len(x1) if own_pairs else num_pairs
    leaves = [Leaf(ROWS, int(value.size), None, leaf) for leaf, value in enumerate(values)]
    layers = {} if form == ROWS else linear_layers.find(program, len(values))
    for leaf, layer in layers.items():
        chosen = cheapest(layer, num_outputs, num_samples, num_pairs, outputs)
        if form is not None and chosen != VECTOR:
            chosen = form
        if chosen != ROWS:
            leaves[leaf] = Leaf(chosen, leaves[leaf].size, layer, leaf)
        if chosen == VECTOR and layer.bias is not None:
            leaves[layer.bias] = Leaf(BIAS, leaves[layer.bias].size, layer, leaf)
    sizes = [
        int(math.prod(variable.aval.shape))
        for equation in program.equations
        for variable in equation.source.outvars
    ]
    widest, activations = max(sizes, default=1), sum(sizes) + 1
    made = Plan(values, program, one_sample, sample, num_outputs, leaves, widest, activations, 0)
    held = jax.eval_shape(rows_of_one(made), sample)
    return made._replace(entries=sum(math.prod(part.shape) for part in jax.tree.leaves(held)))


def cheapest(
    layer: Layer, num_outputs: int, num_samples: float, num_pairs: float, outputs: str
) -> str:
    """Return the form of a layer's rows whose inner products take the fewest operations."""
    if layer.positions == 1:
        return VECTOR
    positions, k = layer.positions, num_outputs
    rows = k * layer.num_inputs * layer.num_outputs
    factors = positions * (layer.num_inputs + k * layer.num_outputs)
    by_pairs, by_gradients = (
        count(layer, k, num_samples, num_pairs, outputs) for count in (pairs_cost, gradients_cost)
    )
    if by_pairs < by_gradients:
        return PAIRS
    if rows > factors:
        return GRADIENTS
    return WINDOWS if layer.is_convolution else ROWS


def gradients_cost(
    layer: Layer, num_outputs: int, num_samples: float, num_pairs: float, outputs: str
) -> float:
    """Return the operations of forming a layer's rows and multiplying them."""
    size, products = layer.num_inputs * layer.num_outputs, _products(num_outputs, outputs)
    forming = 2.0 * num_samples * num_outputs * layer.positions * size
    return forming + 2.0 * num_pairs * products * size


def pairs_cost(
    layer: Layer, num_outputs: int, num_samples: float, num_pairs: float, outputs: str
) -> float:
    """Return the operations of a layer's inner products by all pairs of positions."""
    products = _products(num_outputs, outputs)
    inner = 2.0 * (layer.num_inputs + products * layer.num_outputs)
    overhead = 0 if layer.positions == 1 else PAIR_OVERHEAD
    overhead *= 1 if outputs == "mean" else products
    return num_pairs * layer.positions**2 * (inner + overhead)


def rows_of_one(plan: Plan) -> Callable[[Array], dict[int, Array | Factors]]:
    """Return `rows(sample)`: for each leaf but BIAS its rows, (K, size), or their factors."""
    layers = {
        number: leaf for number, leaf in enumerate(plan.leaves) if leaf.form not in (ROWS, BIAS)
    }
    kept = {
        number: plan.values[number] for number, leaf in enumerate(plan.leaves) if leaf.form == ROWS
    }
    shifts = {}
    for leaf in layers.values():
        out = plan.program.equations[leaf.layer.equation].source.outvars[0].aval  # type: ignore[union-attr]
        shifts[leaf.layer.equation] = jnp.zeros(out.shape, out.dtype)  # type: ignore[union-attr]

    def shifted(kept: Any, shifts: Any, sample: Array) -> tuple[Array, Any]:
        values = [kept.get(number, value) for number, value in enumerate(plan.values)]
        if not shifts:
            return plan.one_sample(values, sample), {}
        (out,), operands = linear_layers.evaluate(plan.program, [*values, sample], shifts)
        return out, operands

    def rows(sample: Array) -> dict[int, Array | Factors]:
        # As jax.jacrev, which does not know jax.shard_map: all must vary as the sample does.
        own_kept, own_shifts = jax.tree.map(
            lambda leaf: linear_layers.varying_alike([leaf, sample])[0], (kept, shifts)
        )
        of_sample = lambda kept, shifts: shifted(kept, shifts, sample)
        outputs, pull_back, operands = jax.vjp(of_sample, own_kept, own_shifts, has_aux=True)
        units = jnp.eye(plan.num_outputs, dtype=outputs.dtype)
        by_kept, by_shift = jax.vmap(pull_back)(linear_layers.varying_alike([units, outputs])[0])
        found: dict[int, Array | Factors] = {
            number: widened(part).reshape(plan.num_outputs, -1) for number, part in by_kept.items()
        }
        for number, leaf in layers.items():
            layer = leaf.layer
            assert layer is not None
            at = layer.equation
            inputs = widened(linear_layers.layer_inputs(layer, plan.program, operands[at]))
            cotangents = widened(linear_layers.layer_cotangents(layer, plan.program, by_shift[at]))
            if layer.scale != 1:
                inputs = layer.scale * inputs
            factors = Factors(inputs, cotangents)
            found[number] = formed(factors) if leaf.form == WINDOWS else factors
        return found

    return rows


def formed(factors: Factors) -> Array:
    """Return the rows (K, O I) of a layer from its factors."""
    rows = jnp.einsum(
        "pko,pi->koi", factors.cotangents, factors.inputs, precision=jax.lax.Precision.HIGHEST
    )
    return rows.reshape(len(rows), -1)


def widened(array: Array) -> Array:
    """Return an array in at least single precision."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _products(num_outputs: int, outputs: str) -> int:
    return num_outputs if outputs == "mean" else num_outputs**2
