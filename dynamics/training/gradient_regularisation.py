"""Penalising the gradient's norm, by a second gradient a little way off; and flooding.

The gradient of L + (γ/2)|∇L|² is ∇L + γ H ∇L, and the product is the limit ε → 0 of the quotient
(∇L(θ + ε ∇L) - ∇L(θ)) / ε. At a finite ε that is an algorithm of its own, of two gradients a step:
one after an ascent (ε > 0) or a descent (ε < 0). Flooding, descent on |L - b| + b, climbs wherever
the loss is below its level b; an ascent and the descent after it are together one step along this
quotient alone, with ε the learning rate η and γ times the rate of the step equal to η².
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dynamics import arguments
from dynamics.aliases import Array, LossFn, Params
from dynamics.training import step


def penalty_direction(loss_fn: LossFn, params: Params, *, finite_step: Array | float) -> Params:
    """Return (∇L(θ + ε ∇L) - ∇L(θ)) / ε, or H ∇L, its limit, where ε is the number zero.

    Args:
        loss_fn: `loss_fn(params) -> scalar`.
        params: θ.
        finite_step: ε; a traced one must not be zero.

    Reference: Karakida et al. 2023, arXiv:2210.02720 (forward and backward).

    Example:
        >>> print(penalty_direction(lambda w: w**2, jnp.array(3.0), finite_step=0.0))  # H = 2
        12.0
    """
    arguments.functions(loss_fn=loss_fn)
    arguments.params(params=params)
    arguments.scalars(finite_step=finite_step)
    gradient = jax.grad(loss_fn)
    here = gradient(params)
    if not isinstance(finite_step, jax.core.Tracer) and finite_step == 0:
        return jax.jvp(gradient, (params,), (here,))[1]
    moved = jax.tree.map(lambda leaf, slope: leaf + finite_step * slope, params, here)
    return jax.tree.map(lambda there, at: (there - at) / finite_step, gradient(moved), here)


def regularised_step(
    loss_fn: LossFn,
    optimiser: optax.GradientTransformation,
    *,
    strength: Array | float,
    finite_step: Array | float,
) -> Callable[[step.TrainState], step.TrainState]:
    """Return `update(state) -> state`: one step on ∇L plus γ times `penalty_direction`.

    Args:
        loss_fn: `loss_fn(params) -> scalar`.
        optimiser: Any optax transformation that asks for no more than the gradient.
        strength: γ.
        finite_step: ε, as in `penalty_direction`.

    Reference: Karakida et al. 2023, arXiv:2210.02720.

    Example:
        >>> descent = optax.sgd(0.25)
        >>> update = regularised_step(lambda w: w**2, descent, strength=0.5, finite_step=0.5)
        >>> print(update(step.initial_state(jnp.array(2.0), descent)).params)
        0.0
    """
    arguments.functions(loss_fn=loss_fn)
    arguments.optimisers(optimiser=optimiser)
    arguments.scalars(strength=strength, finite_step=finite_step)

    def update(state: step.TrainState) -> step.TrainState:
        gradient = jax.tree.map(
            lambda slope, penalty: slope + strength * penalty,
            jax.grad(loss_fn)(state.params),
            penalty_direction(loss_fn, state.params, finite_step=finite_step),
        )
        updates, optimiser_state = optimiser.update(gradient, state.optimiser_state, state.params)
        return step.TrainState(
            optax.apply_updates(state.params, updates), optimiser_state, state.step + 1
        )

    return update


def flooded(loss_fn: LossFn, level: Array | float) -> LossFn:
    """Return the loss |L - b| + b, with the gradient of L above the level b and minus it below.

    Args:
        loss_fn: `loss_fn(params, ...) -> scalar`.
        level: b; at the level itself the loss counts as above.

    Reference: Ishida et al. 2020, arXiv:2002.08709.

    Example:
        >>> bowl = flooded(lambda w: w**2, 1.0)
        >>> print(bowl(0.5), jax.grad(bowl)(0.5), jax.grad(bowl)(1.0))
        1.75 -1.0 2.0
    """
    arguments.functions(loss_fn=loss_fn)
    arguments.scalars(level=level)

    def flooded_loss(*args: Params) -> Array:
        excess = loss_fn(*args) - level
        return jnp.where(excess >= 0, excess, -excess) + level

    return flooded_loss
