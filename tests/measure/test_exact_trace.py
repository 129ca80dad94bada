"""Exact traces and diagonals against dense matrices, and what counts as piecewise linear."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dynamics.measure import curvature
from dynamics.models import convnet, mlp, transformer

NUM_OUTPUTS = 3


def cross_entropy(outputs, labels):
    return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(outputs), axis=1))


def bent_loss(outputs, labels):
    """A loss that is convex nowhere for long."""
    return jnp.mean(jnp.sum(jnp.sin(outputs) * labels + outputs[:, :1] * outputs**2, axis=1))


def problem(key, model, sample_shape, num_samples=5):
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (num_samples, *sample_shape))
    labels = jax.nn.one_hot(jnp.arange(num_samples) % NUM_OUTPUTS, NUM_OUTPUTS)
    start = jax.tree.map(lambda leaf: leaf.astype(x.dtype), model.init(keys[1], x))
    flat, unravel = ravel_pytree(start)
    params = unravel(flat + 0.1 * jax.random.normal(keys[2], flat.shape))
    return model.apply, params, x, labels


def dense(loss, params):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda flat: loss(unravel(flat))))(flat))


RELU_MLP = mlp.MLP(widths=(4, 5, NUM_OUTPUTS), activation=nn.relu, parameterisation="ntk")
CONVNET = convnet.ConvNet(channels=(2, 3), num_outputs=NUM_OUTPUTS)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("model", "sample_shape", "loss", "batch_size"),
    [
        (RELU_MLP, (6,), cross_entropy, None),
        (CONVNET, (4, 4, 1), bent_loss, 3),
    ],
    ids=["mlp", "convolutions, indefinite"],
)
def test_piecewise_linear_networks_have_the_dense_hessians_diagonal(
    key, model, sample_shape, loss, batch_size
):
    apply_fn, params, x, labels = problem(key, model, sample_shape)
    expected = np.diag(dense(lambda params: loss(apply_fn(params, x), labels), params))
    rest = (x, labels, loss)
    diagonal, trace = jax.jit(
        lambda params: (
            curvature.exact_hessian_diagonal(apply_fn, params, *rest, batch_size=batch_size),
            curvature.exact_hessian_trace(apply_fn, params, *rest, batch_size=batch_size),
        )
    )(params)
    assert jax.tree.structure(diagonal) == jax.tree.structure(params)
    np.testing.assert_allclose(ravel_pytree(diagonal)[0], expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(trace, expected.sum(), rtol=1e-12)


def shared(params, x):
    """One matrix in two layers, an embedding and a sequence: no layer of its own."""
    hidden = jnp.tanh(x @ params["square"]) @ params["square"]
    return (hidden.reshape(len(x), 2, 2) @ params["each"]).sum(axis=1) + params["shift"] * x[:, :3]


@pytest.mark.usefixtures("x64")
def test_other_networks_have_the_gauss_newton_diagonal(key):
    keys = jax.random.split(key, 4)
    params = {
        "square": jax.random.normal(keys[0], (4, 4)),
        "each": jax.random.normal(keys[1], (2, 3)),
        "shift": jax.random.normal(keys[2], (3,)),
    }
    x, labels = jax.random.normal(keys[3], (5, 4)), jnp.eye(5, 3)
    flat, unravel = ravel_pytree(params)
    matvec = curvature.gauss_newton_vector_product(shared, params, x, labels, cross_entropy)
    column = lambda unit: ravel_pytree(matvec(unravel(unit)))[0]
    expected = np.diag(jax.jit(jax.vmap(column))(jnp.eye(flat.size)))
    found, trace = jax.jit(
        lambda *given: (
            curvature.gauss_newton_diagonal(shared, *given, cross_entropy),
            curvature.gauss_newton_trace(shared, *given, cross_entropy),
        )
    )(params, x, labels)
    np.testing.assert_allclose(ravel_pytree(found)[0], expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(trace, expected.sum())
    with pytest.raises(ValueError, match=r"\['square'\]; estimate by hessian_trace"):
        curvature.exact_hessian_trace(shared, params, x, labels, cross_entropy)


@jax.custom_jvp
def spike(x):
    """A step with a surrogate slope, as networks of spiking neurons have it."""
    return (x > 0).astype(x.dtype)


spike.defjvp(lambda x, t: (spike(*x), t[0] * jax.nn.sigmoid(x[0])))


@jax.custom_jvp
def straight_through(x):
    """Rounding with the slope of a line."""
    return jnp.round(x)


straight_through.defjvp(lambda x, t: (straight_through(*x), t[0]))


@jax.custom_jvp
def growing_spike(x):
    """The same step, for a slope that grows."""
    return (x > 0).astype(x.dtype)


# Written with the function itself, as derivatives of their own often are.
growing_spike.defjvp(lambda x, t: (growing_spike(*x), t[0] * (growing_spike(*x) + x[0] ** 2)))

MATRIX = jnp.ones((4, 4))
WAVES = jnp.exp(1j * jnp.outer(jnp.arange(4), jnp.arange(4)))
CASES = {
    "rounded, with the slope of a line": (lambda w, x: straight_through(x @ w), True),
    "a spike with the slope of a sigmoid": (lambda w, x: spike(x @ w), False),
    "a slope that calls its function": (lambda w, x: growing_spike(x @ w), False),
    "a spike before": (lambda w, x: spike(x) @ w, True),
    "real part of waves": (lambda w, x: ((x @ w) @ WAVES).real, True),
    "size of waves": (lambda w, x: jnp.abs((x @ w) @ WAVES), False),
    "relu before": (lambda w, x: jax.nn.relu(x) @ w, True),
    "relu behind": (lambda w, x: jax.nn.relu(x @ w), True),
    "leaky relu": (lambda w, x: jax.nn.leaky_relu(x @ w), True),
    "clipped relu": (lambda w, x: jax.nn.relu6(x @ w), True),
    "largest": (lambda w, x: jnp.max(x @ w, axis=1, keepdims=True), True),
    "sorted": (lambda w, x: jnp.sort(x @ w, axis=1), True),
    "rows looked up": (lambda w, x: w[jnp.argmax(x, axis=1)], True),
    "pooled": (lambda w, x: nn.avg_pool((x @ w)[..., None], (2,), (2,))[..., 0], True),
    "checkpointed": (lambda w, x: jax.checkpoint(lambda w: jax.nn.relu(x @ w))(w), True),
    "gated by a sign": (lambda w, x: jnp.where(x @ w > 0, x @ w, 3.0), True),
    "gated by itself": (lambda w, x: (x @ w) * (x @ w), False),
    "twice": (lambda w, x: jax.nn.relu(x @ w) @ w, False),
    "smooth": (lambda w, x: jax.nn.gelu(x @ w), False),
    "softmax": (lambda w, x: jax.nn.softmax(x @ w), False),
    "normed": (lambda w, x: jax.nn.standardize(x @ w), False),
    "below a line": (lambda w, x: x / (1 + w.sum()), False),
    "in a loop": (lambda w, x: jax.lax.scan(lambda h, _: (h @ w, None), x, length=2)[0], False),
}


@pytest.mark.parametrize("case", CASES)
def test_piecewise_linearity_is_proven_or_denied(case):
    function, expected = CASES[case]
    assert curvature.piecewise_linear_leaves(function, MATRIX, jnp.ones((3, 4))) is expected


def test_a_proof_holds_where_second_derivatives_are_taken(key):
    """What is called linear has no second derivative in any direction within the leaf."""
    x, direction = jax.random.normal(key, (3, 4)), jax.random.normal(jax.random.key(1), (4, 4))
    start = jax.random.normal(jax.random.key(2), (4, 4))
    for function, linear in CASES.values():
        slope = lambda w, function=function: jax.jvp(lambda w: function(w, x), (w,), (direction,))
        bend = jax.jvp(lambda w, slope=slope: slope(w)[1], (start,), (direction,))[1]
        assert bool(jnp.all(jnp.abs(bend) < 1e-6)) == linear


def test_the_read_out_of_a_transformer_is_linear_and_its_norms_are_not(key):
    model = transformer.Transformer(
        num_outputs=3, vocabulary=5, width=8, num_heads=2, mlp_width=8, max_tokens=3
    )
    tokens = jnp.zeros((2, 3), int)
    params = jax.eval_shape(model.init, key, tokens)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
    found = curvature.piecewise_linear_leaves(model.apply, params, tokens)
    linear = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, fine in jax.tree_util.tree_leaves_with_path(found)
        if fine
    }
    assert linear
    assert not any("norm_0" in name or "embed" in name for name in linear)


def test_bad_arguments_are_named():
    x, labels = jnp.ones((4, 6)), jnp.ones((4, 3))
    line = lambda p, x: x @ p
    for batch_size, problem in ((0, "batch_size"), (5, "batch_size")):
        with pytest.raises(ValueError, match=problem):
            curvature.gauss_newton_trace(
                line, jnp.ones((6, 3)), x, labels, cross_entropy, batch_size=batch_size
            )
    with pytest.raises(ValueError, match="apply_fn"):
        curvature.gauss_newton_trace(
            lambda p, x: x[..., None], jnp.ones(()), x, labels, cross_entropy
        )
    with pytest.raises(TypeError, match="params"):
        curvature.gauss_newton_trace(line, jnp.ones((6, 3), int), x, labels, cross_entropy)
