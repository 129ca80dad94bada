"""The curvature that an adaptive optimiser feels: that of P^(-1/2) H P^(-1/2).

Where `theory.stability` says at which value of it a step size turns unstable. Public under
`measure.curvature`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dynamics import arguments, leaf_names
from dynamics.aliases import Array, LossFn, Params
from dynamics.measure import batching


def preconditioned_loss(
    loss_fn: LossFn, params: Params, preconditioner: Params
) -> tuple[LossFn, Params]:
    """Return `(loss, origin)`: the loss in coordinates in which a preconditioner is the identity.

    `loss(u)` is `loss_fn(params + P^(-1/2) u)` with P the diagonal preconditioner, and `origin`,
    all zeros, is where `params` is. Every measurement at the origin is one of P^(-1/2) H P^(-1/2),
    whose eigenvalues are those of P^-1 H: `top_eigenpairs(*preconditioned_loss(...), key=key,
    num=1)` is the preconditioned sharpness.

    Args:
        loss_fn: `loss_fn(params)`, or `loss_fn(params, data)`; data is passed on.
        params: Any pytree of floating-point arrays.
        preconditioner: A pytree like `params` of positive numbers, from `adam_preconditioner`
            for example.

    Raises:
        ValueError: `preconditioner` is not shaped like `params`, or not positive everywhere
            (outside `jax.jit`).
        TypeError: a leaf of `params` is not of floating-point type.

    Reference: Cohen et al. 2022, arXiv:2207.14484, section 2.

    Example:
        >>> loss, origin = preconditioned_loss(lambda p: 3 * p**2, jnp.array(1.0), jnp.array(2.0))
        >>> print(jax.grad(jax.grad(loss))(origin).round(4))
        3.0
    """
    arguments.functions(loss_fn=loss_fn)
    arguments.params(preconditioner=preconditioner)
    params = batching.checked_params(params)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    if shapes(preconditioner) != shapes(params):
        message = f"preconditioner: shapes {shapes(preconditioner)}; give {shapes(params)}"
        raise ValueError(message)
    for name, leaf in leaf_names.named_leaves(preconditioner):
        if not isinstance(leaf, jax.core.Tracer) and not bool(jnp.all(jnp.asarray(leaf) > 0)):
            message = f"preconditioner: {name} is not positive everywhere; add an epsilon"
            raise ValueError(message)
    scale = jax.tree.map(lambda leaf: jax.lax.rsqrt(jnp.asarray(leaf)), preconditioner)

    def loss(offset: Params, *data: Any) -> Array:
        moved = jax.tree.map(lambda at, s, u: at + s.astype(at.dtype) * u, params, scale, offset)
        return loss_fn(moved, *data)

    return loss, jax.tree.map(jnp.zeros_like, params)


def adam_preconditioner(
    second_moment: Params, count: Any, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> Params:
    """Return Adam's preconditioner (1 - β1^t) (sqrt(ν / (1 - β2^t)) + ε), like `second_moment`.

    With it Adam is θ ← θ - η P^-1 m, m the plain running mean of gradients.

    Args:
        second_moment: ν, `state.nu` of `optax.scale_by_adam`, after the step.
        count: t, steps taken, `state.count`; at least 1.
        b1: decay of the mean; the defaults are those of optax.
        b2: decay of the second moment.
        eps: ε.

    Raises:
        ValueError: `count` below 1 (outside `jax.jit`).

    Reference: Cohen et al. 2022, arXiv:2207.14484, equation 2.

    Example:
        >>> print(adam_preconditioner(jnp.array(0.004), 1, eps=0.0).round(3))
        0.2
    """
    arguments.integers(1, count=count)
    arguments.params(second_moment=second_moment)
    _check_moment(second_moment)
    arguments.fractions(b1=b1, b2=b2)
    arguments.not_negative(eps=eps)
    for name, decay in (("b1", b1), ("b2", b2)):
        if not isinstance(decay, jax.core.Tracer) and decay == 1:
            message = f"{name}={decay}: give a decay below 1"
            raise ValueError(message)
    first, second = 1 - b1 ** jnp.asarray(count, float), 1 - b2 ** jnp.asarray(count, float)
    return jax.tree.map(lambda nu: first * (jnp.sqrt(nu / second) + eps), second_moment)


def rmsprop_preconditioner(second_moment: Params, *, eps: float = 1e-8) -> Params:
    """Return RMSProp's preconditioner sqrt(ν + ε), as `optax.scale_by_rms` has it.

    Args:
        second_moment: ν, `state.nu` of `optax.scale_by_rms`, after the step.
        eps: ε, under the root.

    Example:
        >>> print(rmsprop_preconditioner(jnp.array(4.0), eps=0.0))
        2.0
    """
    arguments.params(second_moment=second_moment)
    _check_moment(second_moment)
    arguments.not_negative(eps=eps)
    return jax.tree.map(lambda nu: jnp.sqrt(nu + eps), second_moment)


def _check_moment(second_moment: Params) -> None:
    for leaf in jax.tree.leaves(second_moment):
        arguments.not_negative(second_moment=leaf)
