import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics.models import mlp
from dynamics.training import batch_norm_step, step


def mean_square(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


def test_without_batch_norm_it_is_the_plain_step(key):
    model = mlp.MLP((4, 2), batch_norm=False)
    x, y = jax.random.normal(key, (6, 3)), jnp.ones((6, 2))
    variables, optimiser = model.init(key, x), optax.sgd(0.1, momentum=0.9)
    ours = batch_norm_step.initial_state(variables, optimiser)
    update = batch_norm_step.batch_norm_step(model, mean_square, optimiser, lambda _: (x, y))
    plain = step.initial_state(variables["params"], optimiser)
    plainly = step.optax_step(
        lambda params: mean_square(model.apply({"params": params}, x), y), optimiser
    )
    for _ in range(3):
        ours, plain = update(ours), plainly(plain)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours.params, plain.params
    )
    assert int(ours.step) == 3


def test_running_statistics_approach_those_of_the_batches(key):
    """With the weights at rest they are an exponential mean, known in closed form."""
    model = mlp.MLP((3, 1), batch_norm=True)
    x = 2 + jax.random.normal(key, (200, 3))
    variables, optimiser = model.init(key, x), optax.sgd(0.0)
    state = batch_norm_step.initial_state(variables, optimiser)
    draw = lambda step: (jnp.where(step % 2 == 0, x, x + 1), jnp.zeros((200, 1)))
    update = batch_norm_step.batch_norm_step(model, mean_square, optimiser, draw)
    for _ in range(3):
        state = update(state)
    layer = variables["params"]["layer_0"]
    first, second = (np.mean(a @ layer["kernel"] + layer["bias"], axis=0) for a in (x, x + 1))
    keep = nn.BatchNorm().momentum
    expected = (1 - keep) * (keep**2 * first + keep * second + first)
    np.testing.assert_allclose(state.batch_stats["norm_0"]["mean"], expected, rtol=1e-4)


def test_variables_without_parameters_are_refused():
    with pytest.raises(ValueError, match="variables: \\['weights'\\]"):
        batch_norm_step.initial_state({"weights": 1}, optax.sgd(0.1))
