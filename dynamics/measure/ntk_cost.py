"""What an empirical NTK will cost, read from its trace before anything runs."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend.core as jax_core
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import ApplyFn, Array, Params
from dynamics.measure import gram, inner_products, jacobian_rows, ntk_products

LAYERWISE, JACOBIAN, PRODUCTS = "layerwise", "jacobian", "products"
# Products run one direction at a time, below the speed of large matrix products: they are taken
# where they save at least half of the operations.
PRODUCTS_SHARE = 0.5


class PathCost(NamedTuple):
    """The cost of one way to a kernel."""

    flops: float  # of matrix products and convolutions, 2 a multiply-add; entry-wise work is not in
    bytes: float  # held at once beside parameters and samples: rows, their derivatives, the kernel


class NTKCost(NamedTuple):
    """The cost of the three ways to a kernel, and which one is taken."""

    layerwise: PathCost  # layer by layer, each in its cheapest form
    jacobian: PathCost  # all Jacobian rows, contracted
    products: PathCost  # one NTK-vector product a column
    chosen: str  # a name of the three; "jacobian" where no layer was recognised


def ntk_cost(
    apply_fn: ApplyFn,
    params: Params,
    x1: Array,
    x2: Array | None = None,
    *,
    outputs: str = "mean",
    batch_size: int | None = None,
) -> NTKCost:
    """Return what `empirical_ntk` of the same arguments costs by each of its three paths.

    Nothing is computed: only the shapes of `params`, `x1` and `x2` are read, which may be
    `jax.ShapeDtypeStruct`. Operations are counted in the program that would run, loops as often as
    they run; bytes are an estimate of the largest live memory, right to a few times.

    Args:
        apply_fn: As in `empirical_ntk`, and so are the others.
        params: A pytree of arrays or their shapes.
        x1: (N1, ...).
        x2: (N2, ...) or None.
        outputs: "mean" or "full".
        batch_size: Samples in a block.

    Raises:
        ValueError, TypeError: as `empirical_ntk`.

    Example:
        >>> linear = lambda params, x: x @ params
        >>> cost = ntk_cost(linear, jnp.ones((30, 1)), jnp.ones((4, 30)))
        >>> cost.chosen, cost.layerwise.flops  # 4 x 4 products of 30, of 1, and of 1 x 30 forward
        ('layerwise', 1232.0)
    """
    abstract = lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
    arguments.functions(apply_fn=apply_fn)
    gram.check_params(params)
    arguments.numbers(x1=x1)
    arguments.numbers(x2=x1 if x2 is None else x2)
    shapes = jax.tree.map(abstract, (params, x1, x2))
    found: list[NTKCost] = []

    def measure(params: Params, x1: Array, x2: Array | None) -> Array:
        params, x1, x2 = gram.checked(params, x1, x2, outputs)
        found.append(_cost(apply_fn, params, x1, x2, outputs, batch_size))
        return jnp.zeros(())

    jax.eval_shape(measure, *shapes)
    return found[0]


def chosen(plan: jacobian_rows.Plan, n1: int, n2: int, symmetric: bool, outputs: str) -> str:
    """Return which path a kernel of `n1` by `n2` samples takes."""
    k, forward = plan.num_outputs, flops_of_program(plan)
    pairs = n1 * n2 / (2 if symmetric else 1)
    num_samples = n1 if symmetric else n1 + n2
    layerwise = num_samples * (1 + 2 * k) * forward
    for leaf in plan.leaves:
        if leaf.layer is None:
            layerwise += 2 * pairs * (k if outputs == "mean" else k * k) * leaf.size
        elif leaf.form != jacobian_rows.BIAS:
            by_pairs = leaf.form in (jacobian_rows.VECTOR, jacobian_rows.PAIRS)
            count = jacobian_rows.pairs_cost if by_pairs else jacobian_rows.gradients_cost
            layerwise += count(leaf.layer, k, num_samples, pairs, outputs)
    products = n2 * k * 3 * forward + 2.0 * n1 * n2 * k * forward
    if forward and products < PRODUCTS_SHARE * layerwise:
        return PRODUCTS
    return JACOBIAN if all(leaf.layer is None for leaf in plan.leaves) else LAYERWISE


def flops_of_program(plan: jacobian_rows.Plan) -> float:
    """Return the operations of the network for one sample."""
    return sum(_equation_flops(equation.source, 1.0) for equation in plan.program.equations)


def flops(jaxpr: Any, num_turns: float = 1.0) -> float:
    """Return the operations of the products in a jaxpr, 2 a multiply-add, at any depth.

    Args:
        jaxpr: Open, as in `jax.make_jaxpr(fn)(*arguments).jaxpr`.
        num_turns: How often a loop turns whose number of turns is not in the trace.

    Example:
        >>> many = lambda x: jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ x), x)
        >>> flops(jax.make_jaxpr(many)(jnp.ones((4, 4))).jaxpr)
        384.0
    """
    return sum(_equation_flops(equation, num_turns) for equation in jaxpr.eqns)


def _equation_flops(equation: Any, num_turns: float) -> float:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        outputs = float(math.prod(equation.outvars[0].aval.shape))
        left, right = (variable.aval.shape for variable in equation.invars[:2])
        if name == "dot_general":
            return 2 * outputs * math.prod(left[a] for a in params["dimension_numbers"][0][0])
        features = right[params["dimension_numbers"].rhs_spec[0]]
        return 2 * outputs * math.prod(right) / max(features, 1)
    if name == "custom_jvp_call":
        return flops(params["call_jaxpr"].jaxpr, num_turns)
    inner = [flops(part, num_turns) for part in jax_core.jaxprs_in_params(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "while":
        return num_turns * sum(inner)
    return max(inner, default=0.0) if name == "cond" else sum(inner)


def _cost(
    apply_fn: ApplyFn,
    params: Params,
    x1: Array,
    x2: Array | None,
    outputs: str,
    batch_size: int | None,
) -> NTKCost:
    paths = {}
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    for path, form in ((LAYERWISE, None), (JACOBIAN, jacobian_rows.ROWS)):
        plan = jacobian_rows.plan(apply_fn, params, x1, x2, outputs, form)
        size = gram.checked_batch_size(batch_size, plan.entries)
        make = lambda x1, x2, plan=plan, size=size: gram.kernels(
            plan, x1, x2, outputs=outputs, batch_size=size, total=True
        )
        # The inner loop over blocks turns as often as there are blocks before: half on average.
        turns = (-(-n1 // min(size, n1)) - 1) / 2
        paths[path] = PathCost(
            _traced_flops(make, x1, x2, turns), _bytes(plan, x1, x2, outputs, size)
        )
        if path == LAYERWISE:
            taken = chosen(plan, n1, n2, x2 is None, outputs)
    by_columns = lambda x1, x2: ntk_products.kernel(
        plan, x1, x2, outputs=outputs, batch_size=products_batch_size(batch_size, plan)
    )
    size = min(n1, products_batch_size(batch_size, plan))
    entries = 2 * size * plan.activations + n1 * n2 * _outputs(plan, outputs) * 2
    entries += sum(leaf.size for leaf in plan.leaves)
    paths[PRODUCTS] = PathCost(_traced_flops(by_columns, x1, x2, 1.0), entries * _itemsize(plan))
    return NTKCost(**paths, chosen=taken)


def products_batch_size(batch_size: int | None, plan: jacobian_rows.Plan) -> int:
    """Return how many samples go through the network at a time where columns are products."""
    return batch_size or max(1, ntk_products.ACTIVATIONS // plan.activations)


def _traced_flops(make: Callable[..., Any], x1: Array, x2: Array | None, turns: float) -> float:
    return flops(jax.make_jaxpr(make)(x1, x2).jaxpr, turns)


def _bytes(
    plan: jacobian_rows.Plan, x1: Array, x2: Array | None, outputs: str, batch_size: int
) -> float:
    """Rows of one or two blocks, the derivatives in flight, and the kernel."""
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    size = min(batch_size, max(n1, n2))
    blocks = 1 if x2 is None and size >= n1 else 2
    flight = min(size, gram.in_flight(plan)) * 2 * plan.num_outputs * plan.widest
    kernel = n1 * n2 * _outputs(plan, outputs)
    formed = [leaf.size for leaf in plan.leaves if leaf.form == jacobian_rows.GRADIENTS]
    chunk = min(inner_products.CHUNK, size * plan.num_outputs * max(formed, default=0)) * blocks
    return float((blocks * size * plan.entries + flight + chunk + kernel) * _itemsize(plan))


def _outputs(plan: jacobian_rows.Plan, outputs: str) -> int:
    return 1 if outputs == "mean" else plan.num_outputs**2


def _itemsize(plan: jacobian_rows.Plan) -> int:
    return max(4, int(jnp.result_type(*plan.values).itemsize))
