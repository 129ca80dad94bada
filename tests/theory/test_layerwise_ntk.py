"""Kernels layer by layer against Jacobians by finite differences, and counted operations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.theory import layerwise_ntk

WIDTHS = (3, 5, 4, 1)
MULTIPLIERS, BIAS_STD = (0.9, 1.3, 0.7), 0.4


def network(parameters, x):
    """The same network in NumPy, sample by sample; parameters are one vector."""
    start, h = 0, x
    for index, (n_in, n_out) in enumerate(itertools.pairwise(WIDTHS)):
        matrix = parameters[start : start + n_in * n_out].reshape(n_in, n_out)
        start += n_in * n_out
        bias = parameters[start : start + n_out]
        start += n_out
        h = MULTIPLIERS[index] * h @ matrix + BIAS_STD * bias
        h = np.sin(h) if index < 2 else h
    return h[0]


@pytest.mark.usefixtures("x64")
def test_layers_are_those_of_finite_differences():
    rng = np.random.default_rng(3)
    shapes = [(a, b) for a, b in itertools.pairwise(WIDTHS)]
    matrices, biases = [rng.normal(size=s) for s in shapes], [rng.normal(size=s[1]) for s in shapes]
    x = rng.normal(size=(4, 3))
    flat = np.concatenate(
        [part.ravel() for pair in zip(matrices, biases, strict=True) for part in pair]
    )
    step = 1e-5 * np.eye(flat.size)
    jacobian = np.array(
        [[(network(flat + d, row) - network(flat - d, row)) / 2e-5 for d in step] for row in x]
    )
    found = layerwise_ntk.grams(
        matrices, biases, jnp.asarray(x), activation=jnp.sin, multipliers=MULTIPLIERS,
        bias_std=BIAS_STD,
    )  # fmt: skip
    start = 0
    for index, (n_in, n_out) in enumerate(shapes):
        for size, kernel in (
            (n_in * n_out, found.inputs[index] * found.backward[index]),
            (n_out, BIAS_STD**2 * found.backward[index]),
        ):
            rows = jacobian[:, start : start + size]
            np.testing.assert_allclose(kernel, rows @ rows.T, atol=1e-8)
            start += size


@pytest.mark.parametrize("num_samples", [32, 256])
def test_flops_of_the_jacobian_are_those_of_the_compiler(num_samples):
    widths = (20, 300, 200, 1)
    shapes = [(a, b) for a, b in itertools.pairwise(widths)]
    params = [(jnp.ones(s), jnp.ones(s[1])) for s in shapes]

    def apply(params, sample):
        for matrix, bias in params:
            sample = jax.nn.relu(sample @ matrix + bias)
        return sample[0]

    def kernel(params, x):
        rows = jax.vmap(jax.grad(apply), in_axes=(None, 0))(params, x)
        flat = jnp.concatenate([leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(rows)], axis=1)
        return flat @ flat.T

    counted = jax.jit(kernel).lower(params, jnp.ones((num_samples, 20))).cost_analysis()["flops"]
    expected = layerwise_ntk.flops(widths, num_samples)
    assert abs(counted / expected.jacobian - 1) < 0.02


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="widths"):
        layerwise_ntk.flops((3, 2), 4)
    with pytest.raises(ValueError, match="matrices"):
        layerwise_ntk.grams(
            [jnp.ones((2, 2))], [jnp.ones(2)], jnp.ones((1, 2)), activation=jnp.tanh,
            multipliers=[1.0], bias_std=0.0,
        )  # fmt: skip
