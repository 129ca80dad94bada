"""One valid call of every public function of `dynamics.training`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dynamics.training import (
    batch_norm_step,
    clipped_adam,
    flow,
    gradient_regularisation,
    step,
    trajectory,
)

KEY = jax.random.key(0)
PARAMS = {"w": jnp.ones(2)}
DATA = jnp.ones((3, 2))
SGD = optax.sgd(0.1)


def loss(params, *data):
    return jnp.sum(params["w"] ** 2)


def halve(state):
    return jax.tree.map(lambda leaf: leaf / 2, state)


def itself(state):
    return state


CALLS = {
    batch_norm_step.initial_state: lambda: dict(variables={"params": PARAMS}, optimiser=SGD),
    batch_norm_step.batch_norm_step: lambda: dict(
        model=nn.Dense(1), loss_fn=loss, optimiser=SGD, draw=itself
    ),
    clipped_adam.clipped_adam: lambda: dict(learning_rate=0.1, num_steps=4, clip=1.0, b2=0.98),
    flow.gradient_flow: lambda: dict(
        loss_fn=loss,
        params=PARAMS,
        times=jnp.array([0.0, 0.1]),
        rtol=1e-3,
        atol=1e-3,
        solver=None,
        max_steps=10,
        measure=loss,
    ),
    gradient_regularisation.penalty_direction: lambda: dict(
        loss_fn=loss, params=PARAMS, finite_step=0.1
    ),
    gradient_regularisation.regularised_step: lambda: dict(
        loss_fn=loss, optimiser=SGD, strength=0.1, finite_step=0.1
    ),
    gradient_regularisation.flooded: lambda: dict(loss_fn=loss, level=0.1),
    step.initial_state: lambda: dict(params=PARAMS, optimiser=SGD),
    step.initial_minibatch_state: lambda: dict(params=PARAMS, optimiser=SGD, key=KEY),
    step.optax_step: lambda: dict(loss_fn=loss, optimiser=SGD),
    step.minibatch_step: lambda: dict(
        loss_fn=loss, optimiser=SGD, data=DATA, batch_size=2, with_replacement=False
    ),
    trajectory.record: lambda: dict(
        step=halve, state=1.0, measure=itself, times=[0, 1], memory=None
    ),
    trajectory.record_with_state: lambda: dict(
        step=halve, state=1.0, measure=itself, times=[0, 1], memory=None
    ),
    trajectory.checked_times: lambda: dict(times=[0, 1]),
}
