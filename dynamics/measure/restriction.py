"""A function of all parameters as a function of some of them, the others held."""

from collections.abc import Callable
from typing import Any

import jax

from dynamics import arguments, leaf_names
from dynamics.aliases import Array, Params


def restrict(
    fn: Callable[..., Any], params: Params, block: str | Callable[[str], bool]
) -> tuple[Callable[..., Any], dict[str, Array]]:
    """Return `(fn_of_block, block_params)`: `fn` with only a block of its parameters free.

    Every measurement of a loss or a network is then one of the block: `hessian_trace(
    *restrict(loss_fn, params, "layer_0"), key=key, num_probes=10)` is the trace of the diagonal
    block of the Hessian that belongs to layer_0.

    Args:
        fn: `fn(params, *rest)`: a loss, or a network `apply_fn(params, x)`.
        params: Any pytree.
        block: Part of the path of a leaf, whole names joined by "/": "params/layer_0" is all of
            that layer and "kernel" every leaf with that name on its path; or a function of the path
            that says whether a leaf belongs.

    Returns:
        `fn_of_block(block_params, *rest)`, and the leaves of the block by path.

    Raises:
        ValueError: no leaf belongs to the block; the paths there are named.

    Example:
        >>> params = {"in": {"kernel": 2.0, "bias": 1.0}, "out": 3.0}
        >>> loss = lambda p: p["in"]["kernel"] * p["out"] + p["in"]["bias"]
        >>> fn, block = restrict(loss, params, "in/kernel")
        >>> print(block, fn({"in/kernel": 5.0}))
        {'in/kernel': 2.0} 16.0
    """
    arguments.functions(fn=fn)
    if not callable(block):
        arguments.records(str, block=block)
    named = list(zip(leaf_names.leaf_paths(params), jax.tree.leaves(params), strict=True))
    belongs = block if callable(block) else lambda path: f"/{block}/" in f"/{path}/"
    chosen = {name: leaf for name, leaf in named if belongs(name)}
    if not chosen:
        message = (
            f"block={block!r}: no leaf of params has it on its path; "
            f"choose from {[n for n, _ in named]}"
        )
        raise ValueError(message)
    tree = jax.tree.structure(params)

    def fn_of_block(block_params: dict[str, Array], *rest: Any) -> Any:
        leaves = [block_params.get(name, leaf) for name, leaf in named]
        return fn(jax.tree.unflatten(tree, leaves), *rest)

    return fn_of_block, chosen
