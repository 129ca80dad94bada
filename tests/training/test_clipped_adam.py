"""The schedule and the clip of the optimiser, seen from its updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.training import clipped_adam


def updates(gradients, num_steps, clip):
    optimiser = clipped_adam.clipped_adam(0.1, num_steps, clip=clip)

    def step(state, gradient):
        update, state = optimiser.update(gradient, state)
        return state, update

    return jax.lax.scan(step, optimiser.init(jnp.zeros(2)), gradients)[1]


def test_it_is_constant_then_falls_to_zero():
    """With equal gradients Adam's update is minus its learning rate, after correction of bias."""
    found = updates(jnp.ones((9, 2)), 8, clip=10.0)[:, 0]
    expected = -0.1 * np.array([1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_steep_batch_counts_as_one_of_the_clip():
    gradients = jnp.array([[0.3, 0.4], [300.0, 400.0], [0.3, 0.4]])
    np.testing.assert_allclose(
        updates(gradients, 20, clip=0.5), updates(jnp.tile(gradients[:1], (3, 1)), 20, clip=0.5),
        rtol=1e-4,
    )  # fmt: skip


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="num_steps=1"):
        clipped_adam.clipped_adam(0.1, 1, clip=1.0)
    with pytest.raises(ValueError, match="clip=0"):
        clipped_adam.clipped_adam(0.1, 10, clip=0)
