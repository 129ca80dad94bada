"""Which weights a network is piecewise linear in, read off its trace.

A ReLU network is piecewise linear in every one of its weight matrices, the others held: on each
piece the second derivatives by two entries of the same matrix vanish. A smooth activation after
the weight, a norm over what it puts out, a product of the weight with itself or a weight used in
two layers end that.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from dynamics import arguments
from dynamics.aliases import ApplyFn, Array, Params
from dynamics.measure import gram, linear_layers
from dynamics.measure.linear_layers import Known, Program

# Every operand counts: a sum of functions linear in a leaf, or one of them, entry by entry.
LINEAR = (
    *("add", "add_any", "concatenate", "convert_element_type", "copy", "copy_p", "cumsum"),
    *("clamp", "max", "min", "neg", "pad", "real", "reduce_max", "reduce_min", "reduce_sum"),
    *("reduce_window_max", "reduce_window_sum", "rev", "slice", "split", "stack", "sub", "abs"),
    *("transpose", "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "reduce_precision"),
)
BILINEAR = ("mul", "dot_general", "conv_general_dilated")
# Linear in the first operand; the others say where, and a piece has them fixed.
SELECTING = ("dynamic_slice", "gather", "sort", "div")
UPDATING = ("dynamic_update_slice", "scatter", "scatter-add")
CONSTANT = (
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "xor", "floor", "ceil", "round"),
    *("sign", "is_finite", "argmax", "argmin", "stop_gradient"),
)
WRAPPERS = ("custom_jvp_call", "remat", "remat2", "checkpoint")


class Dependence(NamedTuple):
    """What one value depends on: numbers of leaves."""

    linear: frozenset[int]  # piecewise linearly
    other: frozenset[int]  # in another way, or in one that could not be read

    @property
    def every(self) -> frozenset[int]:
        """All leaves that it depends on."""
        return self.linear | self.other


NOTHING = Dependence(frozenset(), frozenset())


def piecewise_linear_leaves(apply_fn: ApplyFn, params: Params, x: Array) -> Params:
    """Return for each leaf of `params` whether the outputs are piecewise linear in it.

    True is a proof: the outputs are made from the leaf by sums, products with what does not
    depend on it, selections, maxima and the like alone. False is none: loops, branches and
    functions with a reverse-mode derivative of their own are not looked into. One with a
    forward-mode derivative of its own (`jax.custom_jvp`) must be piecewise linear, and that
    derivative piecewise constant: a spike with the slope of a sigmoid is not.

    Args:
        apply_fn: `apply_fn(params, x (N, ...)) -> (N, K)`.
        params: Any pytree of floating-point arrays.
        x: (N, ...), of which only shape and type are read.

    Raises:
        ValueError: `params` has no leaf.
        TypeError: a leaf of `params` is not of floating-point type.

    Example:
        >>> relu = lambda p, x: jax.nn.relu(x @ p["first"]) @ p["second"]
        >>> params = dict(first=jnp.ones((3, 4)), second=jnp.ones((4, 2)))
        >>> piecewise_linear_leaves(relu, params, jnp.ones((5, 3)))
        {'first': True, 'second': True}
        >>> tanh = lambda p, x: jnp.tanh(x @ p["first"]) @ p["second"]
        >>> piecewise_linear_leaves(tanh, params, jnp.ones((5, 3)))
        {'first': False, 'second': True}
    """
    arguments.functions(apply_fn=apply_fn)
    arguments.shapes("N ...", x=x)
    gram.check_params(params)
    leaves, tree = jax.tree.flatten(jax.tree.map(jnp.asarray, params))
    outputs_of = lambda leaves, x: apply_fn(jax.tree.unflatten(tree, leaves), x)
    program = linear_layers.written_out(jax.make_jaxpr(outputs_of)(leaves, x))
    given = [Dependence(frozenset([n]), frozenset()) for n in range(len(leaves))]
    given += [NOTHING] * (program.num_arguments - len(leaves))
    other = frozenset[int]().union(*(output.other for output in _through(program, given)))
    return jax.tree.unflatten(tree, [n not in other for n in range(len(leaves))])


def _through(
    program: Program, arguments: list[Dependence], slopes: bool = True
) -> list[Dependence]:
    """Return what the outputs of a program depend on.

    Without `slopes` the derivatives that functions give themselves are not looked at: enough for
    whether there is a dependence at all, and an end where such a derivative calls its function.
    """
    known = dict(enumerate(arguments))
    read = lambda name: NOTHING if isinstance(name, Known) else known[name]
    for equation in program.equations:
        found = _one(equation.source, [read(name) for name in equation.inputs], slopes)
        known.update(zip(equation.outputs, found, strict=True))
    return [read(name) for name in program.outputs]


def _one(source: Any, inputs: list[Dependence], slopes: bool) -> list[Dependence]:
    """Return what the outputs of one operation depend on."""
    name, count = source.primitive.name, len(source.outvars)
    if name in WRAPPERS:
        inner = source.params.get("call_jaxpr", source.params.get("jaxpr"))
        closed = inner if hasattr(inner, "jaxpr") else core.ClosedJaxpr(inner, ())
        found = _through(linear_layers.written_out(closed), inputs, slopes)
        if name == "custom_jvp_call" and slopes:
            bent = _slope_depends_on(source, inputs)
            found = [_joined([each], bent=bent) for each in found]
        return found
    if name == "abs" and jnp.issubdtype(source.invars[0].aval.dtype, jnp.complexfloating):
        return [_joined(inputs, bent=_joined(inputs).every)] * count  # a root of a sum of squares
    if name in CONSTANT:
        return [NOTHING] * count
    if name in LINEAR:
        return [_joined(inputs)] * count
    if name == "select_n":
        return [_joined(inputs[1:])] * count
    if name in BILINEAR:
        first, second = inputs
        return [_joined(inputs, bent=first.every & second.every)] * count
    if name in SELECTING:
        bent = inputs[1].every if name == "div" else frozenset[int]()
        if name == "sort":  # what is sorted along with the keys is only moved
            return inputs
        return [_joined(inputs[:1], bent=bent)] * count
    if name in UPDATING:  # the indices are whole numbers
        return [_joined(inputs)] * count
    if name == "integer_pow" and source.params["y"] == 1:
        return inputs
    return [_joined(inputs, bent=_joined(inputs).every)] * count


def _slope_depends_on(source: Any, inputs: list[Dependence]) -> frozenset[int]:
    """Return what the derivative that a function gives itself depends on, by what moves in it."""
    moving = [n for n, each in enumerate(inputs) if each.every]
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in source.invars]
    floats = [n for n in moving if jnp.issubdtype(shapes[n].dtype, jnp.inexact)]
    if not floats:
        return frozenset()

    def slopes(operands: list[Any], directions: list[Any]) -> Any:
        def output(*at: Any) -> Any:
            given = dict(zip(floats, at, strict=True))
            operands_at = [given.get(n, operand) for n, operand in enumerate(operands)]
            return linear_layers.bound(source, operands_at)

        return jax.jvp(output, [operands[n] for n in floats], directions)[1]

    program = linear_layers.written_out(jax.make_jaxpr(slopes)(shapes, [shapes[n] for n in floats]))
    found = _through(program, [*inputs, *[NOTHING] * len(floats)], slopes=False)
    return frozenset[int]().union(*(each.every for each in found))


def _joined(inputs: list[Dependence], bent: frozenset[int] = frozenset()) -> Dependence:
    other = bent.union(*(each.other for each in inputs))
    return Dependence(frozenset[int]().union(*(each.linear for each in inputs)) - other, other)
