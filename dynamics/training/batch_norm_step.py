"""One update of a flax network with batch norm, whose statistics are part of the state."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dynamics import arguments
from dynamics.aliases import Array, Params


class BatchNormState(NamedTuple):
    """All that training carries from one step to the next."""

    params: Params
    batch_stats: Any  # running means and variances, {} without batch norm
    optimiser_state: Any  # the state of the optax transformation
    step: Array  # () int32, updates made so far


def initial_state(variables: Any, optimiser: optax.GradientTransformation) -> BatchNormState:
    """Return the state before the first update.

    Args:
        variables: What `model.init` returned: "params" and, with batch norm, "batch_stats".
        optimiser: Any optax transformation.

    Raises:
        ValueError: `variables` has no "params".
    """
    arguments.records(Mapping, variables=variables)
    arguments.optimisers(optimiser=optimiser)
    if "params" not in variables:
        message = f"variables: {sorted(variables)}; give what model.init returned, with 'params'"
        raise ValueError(message)
    params = variables["params"]
    arguments.params(variables=params)
    start = optimiser.init(params)
    # Flax makes them float32; in a double precision run the first update would widen them.
    wide = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
    stats = variables.get("batch_stats", {})
    stats = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, wide)), stats)
    return BatchNormState(params, stats, start, jnp.zeros((), jnp.int32))


def batch_norm_step(
    model: Any,
    loss_fn: Callable[[Array, Array], Array],
    optimiser: optax.GradientTransformation,
    draw: Callable[[Array], tuple[Array, Array]],
) -> Callable[[BatchNormState], BatchNormState]:
    """Return `update(state) -> state`: normalise by the batch, descend, keep running statistics.

    Args:
        model: A flax module called as `model.apply(variables, inputs, train=True)`.
        loss_fn: `loss_fn(outputs, targets) -> scalar`.
        optimiser: Any optax transformation.
        draw: `draw(step) -> (inputs, targets)`, the batch of a step; a pure function of the step's
            number (fold it into a key), so that a resumed run draws what an unbroken one draws.

    Example:
        >>> import flax.linen as nn
        >>> from dynamics.models.mlp import MLP
        >>> model, x = MLP((4, 1), batch_norm=True), jnp.arange(8.0).reshape(4, 2)
        >>> state = initial_state(model.init(jax.random.key(0), x), optax.sgd(0.1))
        >>> mean_square = lambda outputs, targets: jnp.mean((outputs - targets) ** 2)
        >>> update = batch_norm_step(model, mean_square, optax.sgd(0.1), lambda step: (x, x[:, :1]))
        >>> print(update(state).step)
        1
    """
    arguments.modules(model=model)
    arguments.functions(loss_fn=loss_fn, draw=draw)
    arguments.optimisers(optimiser=optimiser)

    def loss(params: Params, state: BatchNormState, inputs: Array, targets: Array) -> Any:
        outputs, kept = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            inputs,
            train=True,
            mutable=["batch_stats"],
        )
        return loss_fn(outputs, targets), kept.get("batch_stats", {})

    def update(state: BatchNormState) -> BatchNormState:
        inputs, targets = draw(state.step)
        gradient, kept = jax.grad(loss, has_aux=True)(state.params, state, inputs, targets)
        updates, optimiser_state = optimiser.update(gradient, state.optimiser_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return BatchNormState(params, kept, optimiser_state, state.step + 1)

    return update
