"""Each framework's model as apply_fn(params, x): its own evaluation, and derivatives through it."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynamics.models import adapters, convnet

X = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))


def linen():
    model = convnet.ConvNet((4, 4), 3, batch_norm=True)
    variables = model.init(jax.random.key(1), X)
    _, updated = model.apply(variables, 3 * X, train=True, mutable=["batch_stats"])
    variables = {**variables, **updated}
    return adapters.from_linen(model, variables, train=False), lambda x: model.apply(variables, x)


def nnx_model():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(64, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.out = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            h = jnp.tanh(self.norm(self.dense(x.reshape(len(x), -1))))
            return self.out(self.drop(h))

    model = Net(nnx.Rngs(0))
    model(3 * X)  # moves the statistics
    adapted = adapters.from_nnx(model)
    model.eval()
    return adapted, model


def equinox_model():
    keys = jax.random.split(jax.random.key(1))
    model = eqx.nn.Sequential(
        [eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(64, 8, key=keys[0]), eqx.nn.Dropout(0.5),
         eqx.nn.Linear(8, 3, key=keys[1])]
    )  # fmt: skip
    return adapters.from_equinox(model), jax.vmap(eqx.nn.inference_mode(model))


def haiku_model():
    def forward(x, train=False):
        h = hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(hk.Flatten()(x)), is_training=train)
        return hk.Linear(3)(jnp.tanh(h))

    transformed = hk.transform_with_state(forward)
    params, state = transformed.init(jax.random.key(1), X, train=True)
    _, state = transformed.apply(params, state, None, 3 * X, train=True)
    adapted = adapters.from_haiku(transformed, params, state)
    return adapted, lambda x: transformed.apply(params, state, None, x)[0]


MODELS = [linen, nnx_model, equinox_model, haiku_model]


@pytest.mark.parametrize("make", MODELS)
def test_outputs_are_those_of_the_framework_in_evaluation(make):
    (apply_fn, params), reference = make()
    np.testing.assert_allclose(apply_fn(params, X), reference(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(apply_fn)(params, X), reference(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", MODELS)
def test_examples_do_not_see_each_other(make):
    """Statistics are frozen: an example alone gives what it gives in a batch."""
    (apply_fn, params), _ = make()
    np.testing.assert_allclose(
        apply_fn(params, X)[2:3], apply_fn(params, X[2:3]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("make", MODELS)
def test_derivatives_agree_with_differences(make):
    (apply_fn, params), _ = make()
    loss = lambda p: jnp.sum(apply_fn(p, X) ** 2)
    directions = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size)).reshape(a.shape), params)
    value, slope = jax.jvp(loss, (params,), (directions,))
    gradient = jax.grad(loss)(params)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(directions), strict=True)
    inner = sum(jnp.vdot(g, d) for g, d in pairs)
    move = lambda t: loss(jax.tree.map(lambda a, d: a + t * d, params, directions))
    np.testing.assert_allclose(inner, slope, rtol=1e-4)
    np.testing.assert_allclose((move(1e-2) - move(-1e-2)) / 2e-2, slope, rtol=2e-2)
    assert jnp.isfinite(value)


def test_an_equinox_model_that_takes_batches():
    class Whole(eqx.Module):
        weight: jax.Array

        def __call__(self, x):
            return x.reshape(len(x), -1) @ self.weight

    apply_fn, params = adapters.from_equinox(Whole(jnp.ones((64, 2))), batched=True)
    np.testing.assert_allclose(apply_fn(params, X)[:, 0], X.sum(axis=(1, 2, 3)), rtol=1e-4)


def test_haiku_without_state():
    transformed = hk.transform(lambda x: hk.Linear(2)(hk.Flatten()(x)))
    params = transformed.init(jax.random.key(0), X)
    apply_fn, params = adapters.from_haiku(transformed, params)
    np.testing.assert_allclose(apply_fn(params, X), transformed.apply(params, None, X))


def test_wrong_variables_are_named():
    dense = nn.Dense(2)
    with pytest.raises(ValueError, match="batch_stats"):
        adapters.from_linen(dense, {"batch_stats": {}})
    with pytest.raises(TypeError, match=r"variables: \['kernel'\].*int32"):
        adapters.from_linen(dense, {"params": {"kernel": jnp.ones((2, 2), jnp.int32)}})
