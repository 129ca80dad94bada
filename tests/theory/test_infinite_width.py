"""Kernels of stacks: known special cases, and finite networks near them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.theory import dual_activations, infinite_width

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.usefixtures("x64")
def test_convolution_over_one_pixel_is_fully_connected(key):
    x = jax.random.normal(key, (5, 1, 1, 4))
    activation, options = "relu", dict(weight_std=1.3, bias_std=0.2)
    found = infinite_width.kernels(
        infinite_width.convolutional(2, activation, filter_size=1, **options), x
    )
    expected = dual_activations.fully_connected_kernels(
        x.reshape(5, 4), activation=activation, depth=2, **options
    )
    np.testing.assert_allclose(found.nngp, expected.nngp, atol=1e-7)
    np.testing.assert_allclose(found.ntk, expected.ntk, atol=1e-7)


@pytest.mark.usefixtures("x64")
def test_one_convolution_by_hand(key):
    """Filters of 3 by 3 without activation: patches are summed with weight 1/9 each."""
    x = np.array(jax.random.normal(key, (2, 4, 4, 3)))
    kernel_fn = infinite_width.convolutional(1, "erf", weight_std=1.0, readout="flatten")
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    moments = lambda a, b: np.array(
        [
            [np.mean(a[i : i + 3, j : j + 3] * b[i : i + 3, j : j + 3]) for j in range(4)]
            for i in range(4)
        ]
    )  # (4, 4) covariance of the convolution's output at each position
    a, b = padded
    dual = dual_activations.erf_dual(moments(a, b), moments(a, a), moments(b, b))
    nngp = dual.value.mean()
    ntk = nngp + np.mean(dual.derivative * moments(a, b))
    found = infinite_width.kernels(kernel_fn, x[:1], x[1:])
    np.testing.assert_allclose((found.nngp, found.ntk), (nngp.reshape(1, 1), ntk.reshape(1, 1)))


@pytest.mark.usefixtures("x64")
def test_pooled_kernels_forget_the_place(key):
    """A circular shift of the positions changes nothing in pooled attention."""
    x = jax.random.normal(key, (3, 4, 2))
    for readout, invariant in (("pool", True), ("flatten", False)):
        kernel_fn = infinite_width.attention(1, "erf", readout=readout)
        shifted = infinite_width.kernels(kernel_fn, x, jnp.roll(x, 1, axis=1))
        whole = infinite_width.kernels(kernel_fn, x, x)
        assert bool(jnp.allclose(shifted.ntk, whole.ntk, atol=1e-10)) == invariant


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: infinite_width.fully_connected(3, "relu", bias_std=0.1), (6, 5)),
        (lambda: infinite_width.convolutional(2, "relu", stride=2), (6, 3, 3, 2)),
        (lambda: infinite_width.attention(1, "relu", bias_std=0.1, readout="pool"), (6, 4, 3)),
    ],
)
def test_kernels_are_symmetric_and_positive(key, build, shape):
    x = jax.random.normal(key, shape)
    for kernel in infinite_width.kernels(build(), x):
        assert kernel.shape == (6, 6)
        np.testing.assert_allclose(kernel, kernel.T, atol=1e-12)
        assert jnp.linalg.eigvalsh(kernel)[0] > 0
    both = infinite_width.kernels(build(), x, x[:2])
    np.testing.assert_allclose(both.ntk, kernel[:, :2], atol=1e-7)


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_a_wide_network_has_nearly_this_kernel(activation):
    """Width 4096, 4 seeds: the mean of each entry within four standard errors plus O(1/width)."""
    width, seeds, dim = 4096, 4, 5
    x = jax.random.normal(jax.random.key(3), (4, dim))
    weight_std, bias_std = 1.4, 0.3
    function = {"relu": jax.nn.relu, "erf": jax.scipy.special.erf}[activation]

    def network(params, sample):
        hidden, out = params
        first = weight_std * hidden["w"] @ sample / dim**0.5 + bias_std * hidden["b"]
        last = weight_std * out["w"] @ function(first) / width**0.5 + bias_std * out["b"]
        return last[0]

    def kernel(key):
        keys = jax.random.split(key, 4)
        normal = jax.random.normal
        hidden = {"w": normal(keys[0], (width, dim)), "b": normal(keys[1], (width,))}
        out = {"w": normal(keys[2], (1, width)), "b": normal(keys[3], (1,))}
        rows = jax.vmap(jax.grad(network), in_axes=(None, 0))((hidden, out), x)
        return sum(
            leaf.reshape(len(x), -1) @ leaf.reshape(len(x), -1).T for leaf in jax.tree.leaves(rows)
        )

    found = jax.lax.map(kernel, jax.random.split(jax.random.key(5), seeds))  # (S, 4, 4)
    kernel_fn = infinite_width.fully_connected(
        1, activation, weight_std=weight_std, bias_std=bias_std
    )
    expected = infinite_width.kernels(kernel_fn, x).ntk
    error = jnp.std(found, axis=0, ddof=1) / seeds**0.5
    assert jnp.all(jnp.abs(jnp.mean(found, axis=0) - expected) < 4 * error + 2e-3 * expected.max())
    assert jnp.max(error) < 0.02 * expected.max()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: infinite_width.fully_connected(-1), "depth"),
        (lambda: infinite_width.fully_connected(1, "gelu"), "activation"),
        (lambda: infinite_width.convolutional(1, filter_size=0), "filter_size"),
        (lambda: infinite_width.convolutional(1, stride=0), "stride"),
        (lambda: infinite_width.convolutional(1, readout="max"), "readout"),
        (lambda: infinite_width.attention(1, weight_std=-1.0), "weight_std"),
        (lambda: infinite_width.kernels(None, jnp.ones((0, 2))), "x1"),
        (lambda: infinite_width.kernels(None, jnp.ones((1, 2)), jnp.ones((1, 3))), "x2"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
