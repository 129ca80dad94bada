"""Any framework's model as `apply_fn(params, x) -> outputs` with a pytree of float parameters."""

from collections.abc import Mapping
from typing import Any

import jax

from dynamics import arguments
from dynamics.aliases import ApplyFn, Array, Key, Params


def from_linen(module: Any, variables: Any, **call_arguments: Any) -> tuple[ApplyFn, Params]:
    """Return (apply_fn, params) of a flax linen module.

    Every collection but "params" (batch statistics, say) is frozen at its value in `variables`, so
    the function measured is that of evaluation mode. Where the module wants to be told, say so by
    `call_arguments`: from_linen(module, variables, train=False).

    Raises:
        ValueError: `variables` has no collection "params".
        TypeError: a parameter is not of floating-point type.
    """
    arguments.modules(module=module)
    arguments.records(Mapping, variables=variables)
    if "params" not in variables:
        message = f"variables has collections {sorted(variables)}; 'params' is not among them"
        raise ValueError(message)
    frozen = {name: value for name, value in variables.items() if name != "params"}

    def apply_fn(params: Params, x: Array) -> Array:
        return module.apply({"params": params, **frozen}, x, **call_arguments)

    return apply_fn, _floating(variables["params"], "variables")


def from_nnx(model: Any) -> tuple[ApplyFn, Params]:
    """Return (apply_fn, params) of a flax nnx model.

    Its nnx.Param variables are the parameters; all other state (batch statistics, random streams)
    is frozen, and the model is put in evaluation mode, on a copy. Shared parameters appear once.

    Raises:
        TypeError: a parameter is not of floating-point type.
    """
    from flax import nnx

    arguments.records(nnx.Module, model=model)
    evaluated = nnx.merge(*nnx.split(model))
    evaluated.eval()
    graph, params, rest = nnx.split(evaluated, nnx.Param, ...)  # type: ignore[misc]

    def apply_fn(params: Params, x: Array) -> Array:
        return nnx.merge(graph, params, rest)(x)

    return apply_fn, _floating(params)


def from_equinox(model: Any, *, batched: bool = False) -> tuple[ApplyFn, Params]:
    """Return (apply_fn, params) of an equinox module.

    Its inexact arrays are the parameters; the rest is frozen and inference mode is on. Equinox
    modules take one example, so the function is mapped over the leading axis of x unless
    `batched` says that the module takes a batch.

    Raises:
        TypeError: a parameter is not of floating-point type.
    """
    arguments.functions(model=model)
    import equinox as eqx

    evaluated = eqx.nn.inference_mode(model)
    params, static = eqx.partition(evaluated, eqx.is_inexact_array)

    def apply_fn(params: Params, x: Array) -> Array:
        combined = eqx.combine(params, static)
        return combined(x) if batched else jax.vmap(combined)(x)

    return apply_fn, _floating(params)


def from_haiku(
    transformed: Any,
    params: Params,
    state: Any = None,
    *,
    key: Key | None = None,
    **call_arguments: Any,
) -> tuple[ApplyFn, Params]:
    """Return (apply_fn, params) of a haiku function made by transform or transform_with_state.

    `state` is frozen; `key` is what the function draws from, the same at every call, and may stay
    None for one that draws nothing.

    Raises:
        TypeError: a parameter is not of floating-point type.
    """
    arguments.modules(transformed=transformed)
    if key is not None:
        arguments.keys(key=key)

    def apply_fn(params: Params, x: Array) -> Array:
        if state is None:
            return transformed.apply(params, key, x, **call_arguments)
        return transformed.apply(params, state, key, x, **call_arguments)[0]

    return apply_fn, _floating(params)


def _floating(params: Params, name: str = "params") -> Params:
    arguments.params(**{name: params})
    return params
