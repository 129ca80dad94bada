"""The linear layers of a network, found in its trace whatever framework wrote them.

A layer applies a leaf of the parameters, a matrix of I by O, to P vectors: P is 1 for a dense
layer on one vector, the number of positions for one along a sequence, the number of windows for a
convolution. A derivative by the matrix is then the product of what went in, (P, I), with the
derivatives by what came out, (P, O), and need not be formed. To have both, the trace is run again
with a shift, zero, added to what each layer puts out.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.aliases import Array

CALLS = ("jit", "pjit", "closed_call")  # primitives whose inside is read as if written out
SAME_ENTRIES = ("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim")


class Known(NamedTuple):
    """A value that stands in the program itself."""

    value: Any


class Equation(NamedTuple):
    """One operation on numbered values."""

    source: Any  # what JAX traced
    inputs: list[Any]  # numbers of values, or Known
    outputs: list[int]


class Program(NamedTuple):
    """A trace with its calls written out; values are numbered, arguments first."""

    equations: list[Equation]
    num_arguments: int
    outputs: list[Any]


class Layer(NamedTuple):
    """One leaf as the matrix of a linear map of P vectors."""

    equation: int  # where in the program
    operand: int  # which of the two operands the matrix is
    is_convolution: bool
    positions: int  # P
    num_inputs: int  # I
    num_outputs: int  # O
    scale: float  # the matrix is this times the leaf
    bias: int | None  # leaf added to what comes out, where P is 1
    bias_scale: float  # a shift of the layer moves the network as much as this much bias undoes


def written_out(closed: Any) -> Program:
    """Return the program of a closed jaxpr."""
    counter = itertools.count()
    equations: list[Equation] = []

    def walk(jaxpr: Any, consts: Any, arguments: list[Any]) -> list[Any]:
        names: dict[Any, Any] = dict(zip(jaxpr.invars, arguments, strict=True))
        names.update(zip(jaxpr.constvars, map(Known, consts), strict=True))
        # A literal carries its value and has no hash.
        read = lambda variable: Known(variable.val) if hasattr(variable, "val") else names[variable]
        for equation in jaxpr.eqns:
            inputs = [read(variable) for variable in equation.invars]
            if equation.primitive.name in CALLS:
                inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
                outputs = walk(inner.jaxpr, inner.consts, inputs)
            else:
                outputs = [next(counter) for _ in equation.outvars]
                equations.append(Equation(equation, inputs, outputs))
            names.update(zip(equation.outvars, outputs, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    arguments = [next(counter) for _ in closed.jaxpr.invars]
    outputs = walk(closed.jaxpr, closed.consts, list(arguments))
    return Program(equations, len(arguments), outputs)


def find(program: Program, num_leaves: int) -> dict[int, Layer]:
    """Return the layer of each leaf that is used once, as such a matrix; arguments are leaves."""
    uses: Counter[int] = Counter()
    users: dict[int, Equation] = {}
    for equation in program.equations:
        for name in equation.inputs:
            if isinstance(name, int):
                uses[name] += 1
                users[name] = equation
    uses.update(name for name in program.outputs if isinstance(name, int))
    views = {leaf: (leaf, 1.0) for leaf in range(num_leaves)}  # value -> leaf, its scale
    layers: dict[int, Layer] = {}
    for index, equation in enumerate(program.equations):
        for operand, name in enumerate(equation.inputs):
            if not isinstance(name, int) or name not in views or uses[name] != 1:
                continue
            leaf, scale = views[name]
            factor = _rescaling(equation, operand)
            if factor is not None:
                views[equation.outputs[0]] = leaf, scale * factor
            elif (sizes := _layer_sizes(equation, operand)) is not None:
                is_convolution = equation.source.primitive.name != "dot_general"
                layers[leaf] = Layer(index, operand, is_convolution, *sizes, scale, None, 1.0)
    return {leaf: _with_bias(layer, program, uses, users, views) for leaf, layer in layers.items()}


def evaluate(
    program: Program, arguments: list[Any], shifts: dict[int, Array]
) -> tuple[list[Any], dict[int, Array]]:
    """Run a program with `shifts` (number of an equation -> what is added to its output).

    Returns the outputs and, for the same equations, their operands, of which one is the matrix.
    """
    operands_of: dict[int, Any] = {}

    def shift(index: int, operands: list[Any]) -> Any:
        if index not in shifts:
            return None
        operands_of[index] = operands
        return bound(program.equations[index].source, operands)[0] + shifts[index]

    return run(program, arguments, shift), operands_of


def run(
    program: Program, arguments: list[Any], replace: Callable[[int, list[Any]], Any]
) -> list[Any]:
    """Return the outputs of a program; `replace(index, operands)` may stand in for an equation.

    It returns the one output of that equation, or None to leave it as it is.
    """
    known: dict[int, Any] = dict(enumerate(arguments))
    read = lambda name: name.value if isinstance(name, Known) else known[name]
    for index, equation in enumerate(program.equations):
        operands = [read(name) for name in equation.inputs]
        replaced = replace(index, operands)
        results = bound(equation.source, operands) if replaced is None else [replaced]
        known.update(zip(equation.outputs, results, strict=True))
    return [read(name) for name in program.outputs]


def bound(source: Any, operands: list[Any]) -> list[Any]:
    """Return the outputs of one operation."""
    primitive = source.primitive
    if primitive.name == "pvary":  # as the trace had it; here `varying_alike` sees to it
        return list(operands)
    bound = primitive.get_bind_params(source.params)
    functions, options = bound if isinstance(bound, tuple) else ((), bound)  # JAX < 0.10
    results = primitive.bind(*functions, *varying_alike(operands), **options)
    return list(results) if primitive.multiple_results else [results]


def varying_alike(operands: list[Any]) -> list[Any]:
    """Return arrays that vary over the same devices, as `jax.shard_map` wants of operands.

    A derivative by what does not vary would be summed over the devices.
    """

    def over(operand: Any) -> frozenset[str]:
        kind = jax.typeof(operand)  # names of this moved between versions of JAX
        return getattr(getattr(kind, "mat", kind), "varying", getattr(kind, "vma", frozenset()))

    axes = frozenset[str]().union(*(over(operand) for operand in operands))
    missing = [tuple(axes - over(operand)) for operand in operands]
    return [
        jax.lax.pcast(operand, names, to="varying") if names else operand
        for operand, names in zip(operands, missing, strict=True)
    ]


def layer_inputs(layer: Layer, program: Program, operands: list[Array]) -> Array:
    """Return what the matrix is applied to, (P, I), from the operands of its equation."""
    source = program.equations[layer.equation].source
    if layer.is_convolution:
        return windows(operands[0], source)
    other = 1 - layer.operand
    contracted = list(source.params["dimension_numbers"][0][other])
    free = [axis for axis in range(operands[other].ndim) if axis not in contracted]
    return operands[other].transpose(*free, *contracted).reshape(layer.positions, layer.num_inputs)


def layer_cotangents(layer: Layer, program: Program, cotangents: Array) -> Array:
    """Lay (K, *shape of the layer's output) out as (P, K, O)."""
    num_rows, source = len(cotangents), program.equations[layer.equation].source
    if layer.is_convolution:
        batch, features, *spatial = source.params["dimension_numbers"].out_spec
        order = (batch, *spatial, features)
        cotangents = cotangents.transpose(0, *(axis + 1 for axis in order))
    elif layer.operand == 0:  # the matrix' own axes come first
        cotangents = cotangents.reshape(num_rows, layer.num_outputs, -1).swapaxes(1, 2)
    return cotangents.reshape(num_rows, layer.positions, layer.num_outputs).swapaxes(0, 1)


def _layer_sizes(equation: Equation, operand: int) -> tuple[int, int, int] | None:
    """P, I, O where this operand is such a matrix."""
    source = equation.source
    shapes = [variable.aval.shape for variable in source.invars]
    size = lambda shape: int(math.prod(shape))
    if source.primitive.name == "dot_general":
        (contracted, batched) = source.params["dimension_numbers"]
        if batched[0]:
            return None
        num_inputs = size(shapes[operand][axis] for axis in contracted[operand])
        matrix, other = size(shapes[operand]), size(shapes[1 - operand])
        return other // num_inputs, num_inputs, matrix // num_inputs
    if source.primitive.name == "conv_general_dilated" and operand == 1:
        grouped = source.params["feature_group_count"], source.params["batch_group_count"]
        if grouped != (1, 1):
            return None
        features = shapes[1][source.params["dimension_numbers"].rhs_spec[0]]
        outputs = size(source.outvars[0].aval.shape)
        return outputs // features, size(shapes[1]) // features, features
    return None


def _rescaling(equation: Equation, operand: int) -> float | None:
    """The factor where an operation only moves the entries of its operand and multiplies them."""
    source = equation.source
    if source.primitive.name in ("mul", "div"):
        other = equation.inputs[1 - operand]
        if not isinstance(other, Known) or isinstance(other.value, jax.core.Tracer):
            return None
        is_divisor = source.primitive.name == "div"
        if np.size(other.value) != 1 or (is_divisor and operand == 1):
            return None
        factor = float(np.asarray(other.value).reshape(()))
        factor = 1 / factor if is_divisor and factor else factor
        return factor if factor and np.isfinite(factor) else None
    before, after = source.invars[operand].aval, source.outvars[0].aval
    is_widening = source.primitive.name == "convert_element_type" and (
        jnp.issubdtype(after.dtype, jnp.floating)
        and jnp.promote_types(before.dtype, after.dtype) == after.dtype
    )
    moves = source.primitive.name in SAME_ENTRIES and before.size == after.size
    return 1.0 if operand == 0 and (moves or is_widening) else None


def _with_bias(
    layer: Layer, program: Program, uses: Any, users: dict[int, Equation], views: Any
) -> Layer:
    """Look for a leaf that is added, entry by entry, to what a layer on one vector puts out."""
    name, scale = program.equations[layer.equation].outputs[0], 1.0
    while layer.positions == 1 and uses[name] == 1 and name in users:
        equation = users[name]
        operand = equation.inputs.index(name)
        factor = _rescaling(equation, operand)
        if factor is not None:
            name, scale = equation.outputs[0], scale * factor
            continue
        if equation.source.primitive.name in ("add", "add_any"):
            other = equation.inputs[1 - operand]
            is_view = isinstance(other, int) and other in views and uses[other] == 1
            size = equation.source.invars[1 - operand].aval.size
            if is_view and size == layer.num_outputs:
                leaf, leaf_scale = views[other]
                return layer._replace(bias=leaf, bias_scale=leaf_scale / scale)
        break
    return layer


def windows(x: Array, source: Any) -> Array:
    """Return the windows (P, I) of a convolution: of each, position by position, all channels."""
    params = source.params
    numbers = params["dimension_numbers"]
    spatial = [source.invars[1].aval.shape[axis] for axis in numbers.rhs_spec[2:]]
    x = x.transpose(numbers.lhs_spec)  # (B, C, *spatial)
    padding = [
        (low, high, dilation - 1)
        for (low, high), dilation in zip(params["padding"], params["lhs_dilation"], strict=True)
    ]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *padding])
    out_shape = [source.outvars[0].aval.shape[axis] for axis in numbers.out_spec[2:]]
    parts = []
    for offset in itertools.product(*map(range, spatial)):
        start = [at * step for at, step in zip(offset, params["rhs_dilation"], strict=True)]
        stop = [
            at + (count - 1) * stride + 1
            for at, count, stride in zip(start, out_shape, params["window_strides"], strict=True)
        ]
        part = jax.lax.slice(
            x, (0, 0, *start), (*x.shape[:2], *stop), (1, 1, *params["window_strides"])
        )
        parts.append(jnp.moveaxis(part, 1, -1))  # (B, *out_shape, C)
    return jnp.stack(parts, axis=-2).reshape(-1, len(parts) * x.shape[1])
