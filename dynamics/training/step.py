"""One update of training: loss and optimiser in, `state -> state` out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dynamics import arguments
from dynamics.aliases import Array, Key, LossFn, Params


class TrainState(NamedTuple):
    """All that full-batch training carries from one step to the next."""

    params: Params
    optimiser_state: Any  # the state of the optax transformation
    step: Array  # () int32, updates made so far


class MinibatchState(NamedTuple):
    """All that minibatch training carries; batch t is a function of `key` and `step` alone."""

    params: Params
    optimiser_state: Any  # the state of the optax transformation
    step: Array  # () int32, updates made so far
    key: Key  # (), never changes: step t draws with fold_in(key, t)


def initial_state(params: Params, optimiser: optax.GradientTransformation) -> TrainState:
    """Return the state before the first update, with `step` 0.

    Args:
        params: A pytree of floating-point arrays.
        optimiser: Any optax transformation.

    Raises:
        TypeError: a leaf of `params` is not of floating-point type.
    """
    arguments.params(params=params)
    arguments.optimisers(optimiser=optimiser)
    return TrainState(params, optimiser.init(params), jnp.zeros((), jnp.int32))


def initial_minibatch_state(
    params: Params, optimiser: optax.GradientTransformation, key: Key
) -> MinibatchState:
    """Return the state before the first minibatch update, with `step` 0.

    Args:
        params: A pytree of floating-point arrays.
        optimiser: Any optax transformation.
        key: The only source of randomness of the batches.

    Raises:
        TypeError: a leaf of `params` is not of floating-point type.
    """
    arguments.keys(key=key)
    return MinibatchState(*initial_state(params, optimiser), key)


def optax_step(
    loss_fn: LossFn, optimiser: optax.GradientTransformation
) -> Callable[[TrainState], TrainState]:
    """Return `update(state) -> state`: one step of `optimiser` on the gradient of `loss_fn`.

    Optimisers that ask for more than the gradient (L-BFGS with its line search, for example) are
    given `value`, `grad` and `value_fn`; the others never see them, and the compiler drops what
    nobody reads.

    Args:
        loss_fn: `loss_fn(params) -> scalar`.
        optimiser: Any optax transformation; its state is the one made by `initial_state`.

    Example:
        >>> update = optax_step(lambda params: params**2 / 2, optax.sgd(0.5))
        >>> state = update(initial_state(jnp.array(8.0), optax.sgd(0.5)))
        >>> print(state.params, state.step)
        4.0 1
    """
    arguments.functions(loss_fn=loss_fn)
    arguments.optimisers(optimiser=optimiser)
    optimiser = optax.with_extra_args_support(optimiser)

    def update(state: TrainState) -> TrainState:
        params, optimiser_state = _descend(loss_fn, optimiser, state.params, state.optimiser_state)
        return TrainState(params, optimiser_state, state.step + 1)

    return update


def minibatch_step(
    loss_fn: LossFn,
    optimiser: optax.GradientTransformation,
    data: Any,
    batch_size: int,
    *,
    with_replacement: bool = False,
) -> Callable[[MinibatchState], MinibatchState]:
    """Return `update(state) -> state`: one step on a fresh batch of `data`.

    The batch is drawn uniformly without replacement (so `batch_size` equal to the number of
    samples is full-batch training), independently at every step, with the key
    `fold_in(state.key, state.step)`: a resumed run draws the batches that an uninterrupted one
    draws.

    Args:
        loss_fn: `loss_fn(params, batch) -> scalar`, a mean over the samples of the batch.
        optimiser: Any optax transformation.
        data: A pytree of arrays with one common leading axis N.
        batch_size: Samples in a batch, between 1 and N.
        with_replacement: Draw each sample of the batch on its own instead. That spares the
            shuffling of N samples, which takes longer than the step of a small network.

    Raises:
        ValueError: `data` has no or unequal leading axes, or `batch_size` is outside [1, N].
    """
    arguments.functions(loss_fn=loss_fn)
    arguments.optimisers(optimiser=optimiser)
    arguments.integers(batch_size=batch_size)
    num_samples = arguments.samples(data=data)
    if not 1 <= batch_size <= num_samples:
        message = (
            f"batch_size={batch_size}: give a number from 1 to the {num_samples} samples of data"
        )
        raise ValueError(message)
    optimiser = optax.with_extra_args_support(optimiser)

    def update(state: MinibatchState) -> MinibatchState:
        batch_key = jax.random.fold_in(state.key, state.step)
        rows = jax.random.choice(
            batch_key, num_samples, (batch_size,), replace=with_replacement
        )  # (B,)
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], data)
        params, optimiser_state = _descend(
            lambda params: loss_fn(params, batch), optimiser, state.params, state.optimiser_state
        )
        return MinibatchState(params, optimiser_state, state.step + 1, state.key)

    return update


def _descend(
    loss_fn: LossFn, optimiser: Any, params: Params, optimiser_state: Any
) -> tuple[Params, Any]:
    value, gradient = jax.value_and_grad(loss_fn)(params)
    updates, optimiser_state = optimiser.update(
        gradient, optimiser_state, params, value=value, grad=gradient, value_fn=loss_fn
    )
    return optax.apply_updates(params, updates), optimiser_state
