"""The empirical NTK against explicit Jacobians, and the laws that it obeys."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.measure import jacobian_rows, kernels

N1, N2, OUTPUTS = 5, 3, 2


def perceptron(params, x):
    """Two wide layers in a list, the second without a bias; one call compiled apart."""
    first, second = params
    hidden = jax.jit(lambda w, h: jnp.tanh(h @ w + first["bias"]))(first["weight"], x)
    return hidden @ second["weight"] / 3.0 + 0.1 * jnp.sum(hidden**2, axis=1, keepdims=True)


def convolution(params, x):
    """A strided convolution, pooling and a dense layer."""
    h = jax.lax.conv_general_dilated(
        x, params["filters"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    h = jax.lax.reduce_window(
        jax.nn.relu(h), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "SAME"
    )
    return h.reshape(len(x), -1) @ params["dense"]


def tied(params, x):
    """One matrix used three times, once transposed; one handed to the output."""
    h = jnp.tanh(x @ params["shared"]) @ params["shared"].T
    return jnp.sin(h @ params["shared"])[:, :OUTPUTS] + params["shared"][0, :OUTPUTS]


def attention(params, x):
    """Softmax self-attention over positions, layer normalisation, mean over positions."""
    queries, keys, values = (x @ params[name] for name in ("query", "key", "value"))
    scores = jax.nn.softmax(queries @ keys.swapaxes(1, 2) / 2.0)
    h = x + scores @ values
    h = (h - h.mean(-1, keepdims=True)) / (h.std(-1, keepdims=True) + 0.1) * params["scale"]
    return h.mean(axis=1) @ params["out"]


def recurrence(params, x):
    """A scan over positions with one recurrent matrix."""

    def cell(h, token):
        h = jnp.tanh(h @ params["recurrent"] + token @ params["input"])
        return h, None

    start = jnp.zeros((len(x), 4), x.dtype)
    return jax.lax.scan(cell, start, x.swapaxes(0, 1))[0] @ params["out"]


def many_layers(params, x):
    """The same compiled layer called with different matrices, then a custom derivative."""
    layer = jax.jit(lambda w, h: jax.nn.relu(h @ w))
    return jax.nn.silu(layer(params[1], layer(params[0], x))) @ params[2]


def row_vectors(params, x):
    """The matrix on the left of its vector, and a matrix of two vectors a sample."""
    left = jnp.einsum("oi,ni->no", params["left"], x)
    return left + (x.reshape(-1, 2, 2) @ params["pair"]).prod(axis=1)


def scaled(params, x):
    """Matrices transposed and multiplied by numbers, a scaled bias behind a scaled layer."""
    hidden = jnp.tanh((x @ (params["first"] * 0.5).T) / 3.0 + 0.7 * params["bias"][None])
    return (params["second"] / 2.0).reshape(2, 5) @ hidden[0] if len(x) == 1 else jax.vmap(
        lambda h: (params["second"] / 2.0).reshape(2, 5) @ h
    )(hidden)  # fmt: skip


NETWORKS = {
    "scaled": (scaled, dict(first=(5, 4), bias=(5,), second=(10,)), (4,)),
    "perceptron": (
        perceptron,
        [dict(weight=(4, 7), bias=(7,)), dict(weight=(7, 2), bias=None)],
        (4,),
    ),
    "convolution": (convolution, dict(filters=(3, 3, 2, 3), dense=(12, 2)), (4, 4, 2)),
    "tied": (tied, dict(shared=(4, 6)), (4,)),
    "attention": (
        attention,
        dict(query=(4, 3), key=(4, 3), value=(4, 4), scale=(4,), out=(4, 2)),
        (3, 4),
    ),
    "recurrence": (recurrence, dict(recurrent=(4, 4), input=(2, 4), out=(4, 2)), (3, 2)),
    "many layers": (many_layers, [(4, 4), (4, 4), (4, 2)], (4,)),
    "row vectors": (row_vectors, dict(left=(2, 4), pair=(2, 2)), (4,)),
}


def build(name, key, dtype=jnp.float64):
    """Return apply_fn, params, x1 (N1, ...) and x2 (N2, ...) of one network."""
    apply_fn, shapes, sample = NETWORKS[name]
    params_key, x_key = jax.random.split(key)
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    keys = jax.random.split(params_key, len(leaves))
    params = tree.unflatten(
        [jax.random.normal(k, shape, dtype) for k, shape in zip(keys, leaves, strict=True)]
    )
    x = jax.random.normal(x_key, (N1 + N2, *sample), dtype)
    return apply_fn, params, x[:N1], x[N1:]


def brute_force(apply_fn, params, x1, x2):
    """One pytree leaf at a time: (N1, N2, K, K) by explicit Jacobians and loops over samples."""
    jacobians = [jax.tree.leaves(jax.jit(jax.jacfwd(apply_fn))(params, x)) for x in (x1, x2)]
    flat = lambda jacobian: np.asarray(jacobian).reshape(OUTPUTS, -1)
    return [
        np.array([[flat(a) @ flat(b).T for b in of_x2] for a in of_x1])
        for of_x1, of_x2 in zip(*jacobians, strict=True)
    ]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NETWORKS)
def test_is_the_product_of_explicit_jacobians(key, name):
    apply_fn, params, x1, x2 = build(name, key)
    by_leaf = brute_force(apply_fn, params, x1, x2)
    total = sum(by_leaf)
    mean = np.trace(total, axis1=2, axis2=3) / OUTPUTS
    ntk = lambda *x, **options: jax.jit(
        lambda params: kernels.empirical_ntk(apply_fn, params, *x, **options)
    )(params)
    scale = np.abs(total).max()
    np.testing.assert_allclose(ntk(x1, x2), mean, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(ntk(x1, x2, outputs="full"), total, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(ntk(x1, x2, batch_size=2), mean, rtol=0, atol=1e-10 * scale)
    layers = jax.jit(
        lambda params: kernels.layerwise_ntk(apply_fn, params, x1, x2, outputs="full")
    )(params)
    assert jax.tree.structure(layers) == jax.tree.structure(params)
    for found, expected in zip(jax.tree.leaves(layers), by_leaf, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * scale)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("perceptron", "bias vector vector"),
        ("many layers", "vector vector vector"),
        ("row vectors", "vector rows"),
        ("tied", "rows"),
        ("recurrence", "rows vector rows"),
        ("convolution", "vector gradients"),
        ("scaled", "bias vector vector"),
    ],
)
def test_layers_are_recognised(key, name, forms):
    """Else the tests above would pass on slow paths alone."""
    apply_fn, params, x1, x2 = build(name, key)
    plan = jacobian_rows.plan(apply_fn, params, x1, x2, "mean")
    assert [leaf.form for leaf in plan.leaves] == forms.split()


@functools.cache
def three_kernels(name, outputs):
    """One compiled function of (params, x): in blocks of 2, two-sided, and by layers."""
    apply_fn = NETWORKS[name][0]
    return jax.jit(
        lambda params, x: (
            kernels.empirical_ntk(apply_fn, params, x, outputs=outputs, batch_size=2),
            kernels.empirical_ntk(apply_fn, params, x, x, outputs=outputs),
            kernels.layerwise_ntk(apply_fn, params, x, outputs=outputs),
        )
    )


@hypothesis.given(
    seed=st.integers(0, 2**31),
    name=st.sampled_from(["perceptron", "tied"]),
    outputs=st.sampled_from(["mean", "full"]),
)
def test_symmetric_positive_and_the_sum_of_its_layers(seed, name, outputs):
    with jax.enable_x64(True):
        _, params, x, _ = build(name, jax.random.key(seed))
        kernel, two_sided, layers = three_kernels(name, outputs)(params, x)
        matrix = kernel if outputs == "mean" else kernel.swapaxes(1, 2).reshape(2 * N1, 2 * N1)
        tolerance = dict(rtol=0, atol=1e-10 * float(jnp.abs(kernel).max()))
        np.testing.assert_array_equal(matrix, matrix.T)
        assert jnp.linalg.eigvalsh(matrix)[0] > -1e-10 * jnp.trace(matrix)
        np.testing.assert_allclose(kernel, two_sided, **tolerance)
        np.testing.assert_allclose(sum(jax.tree.leaves(layers)), kernel, **tolerance)


@hypothesis.given(seed=st.integers(0, 2**31))
def test_permuted_hidden_units_have_the_same_kernel(seed):
    with jax.enable_x64(True):
        key, order_key = jax.random.split(jax.random.key(seed))
        _, (first, second), x, _ = build("perceptron", key)
        order = jax.random.permutation(order_key, 7)
        permuted = [
            dict(weight=first["weight"][:, order], bias=first["bias"][order]),
            dict(weight=second["weight"][order], bias=None),
        ]
        ntk = three_kernels("perceptron", "mean")
        before, after = (ntk(params, x)[0] for params in ([first, second], permuted))
        np.testing.assert_allclose(after, before, atol=1e-10)


@functools.cache
def kernel_of_a_sum():
    """Compiled function of (params of both, factor, x): perceptron + factor * tied."""
    one, two = NETWORKS["perceptron"][0], NETWORKS["tied"][0]
    both = lambda params, x: one(params[0], x) + params[2] * two(params[1], x)
    frozen = lambda factor: lambda params, x: both((*params, factor), x)
    return jax.jit(lambda params, factor, x: kernels.empirical_ntk(frozen(factor), params, x))


@hypothesis.given(seed=st.integers(0, 2**31), factor=st.floats(-3, 3))
def test_kernels_of_independent_networks_add(seed, factor):
    """The sum of two networks with parameters of their own has the sum of their kernels."""
    with jax.enable_x64(True):
        _, params1, x, _ = build("perceptron", jax.random.key(seed))
        _, params2, _, _ = build("tied", jax.random.key(seed + 1))
        expected = three_kernels("perceptron", "mean")(params1, x)[0]
        expected += factor**2 * three_kernels("tied", "mean")(params2, x)[0]
        found = kernel_of_a_sum()((params1, params2), factor, x)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * float(expected.max()))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("batch_size", [None, 2])
def test_vmap_over_params_is_a_loop(key, batch_size):
    apply_fn, _, x, _ = build("perceptron", key)
    members = [build("perceptron", jax.random.fold_in(key, i))[1] for i in range(3)]
    ntk = lambda params: kernels.empirical_ntk(apply_fn, params, x, batch_size=batch_size)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    together = jax.jit(jax.vmap(ntk))(stacked)
    np.testing.assert_allclose(together, [jax.jit(ntk)(p) for p in members], rtol=1e-12)


def test_single_precision_and_one_output(key):
    apply_fn, params, x, _ = build("perceptron", key, jnp.float32)
    scalar = lambda params, x: apply_fn(params, x)[:, 0]
    ntk = lambda apply_fn: jax.jit(lambda params, x: kernels.empirical_ntk(apply_fn, params, x))
    found = ntk(scalar)(params, x)
    column = ntk(lambda params, x: scalar(params, x)[:, None])(params, x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, column, rtol=1e-6)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert ntk(scalar)(half, x.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.usefixtures("x64")
def test_integer_inputs(key):
    """Tokens into an embedding: two samples share rows exactly where they share tokens."""
    table = jax.random.normal(key, (6, 3))
    bag = lambda table, tokens: table[tokens].sum(axis=1)
    tokens = jnp.array([[0, 1, 2], [2, 3, 4], [5, 5, 3]])
    expected = [[3.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 5.0]]
    np.testing.assert_array_equal(kernels.empirical_ntk(bag, table, tokens), expected)


@pytest.mark.usefixtures("x64")
def test_linearised_network(key):
    """It touches the network to second order, is linear, and has the same kernel everywhere."""
    apply_fn, params, x, _ = build("perceptron", key)
    moved = jax.tree.map(lambda leaf: leaf + 1.0, params)
    linear = kernels.linearise(apply_fn, params)
    away = lambda step: jax.tree.map(lambda leaf: leaf + step, params)
    np.testing.assert_allclose(linear(params, x), apply_fn(params, x), rtol=1e-13)
    errors = [jnp.abs(linear(away(h), x) - apply_fn(away(h), x)).max() for h in (1e-3, 1e-4)]
    np.testing.assert_allclose(errors[0] / errors[1], 100, rtol=0.05)
    change = linear(away(2.0), x) - linear(params, x)
    np.testing.assert_allclose(change, 2 * (linear(away(1.0), x) - linear(params, x)), atol=1e-11)
    before = jax.jit(lambda at: kernels.empirical_ntk(apply_fn, at, x))(params)
    after = jax.jit(lambda at: kernels.empirical_ntk(linear, at, x))(moved)
    np.testing.assert_allclose(after, before, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_spectrum_rank_and_change(key):
    rows = jax.random.normal(key, (6, 4))
    values = kernels.ntk_spectrum(rows @ rows.T)
    expected = np.append(np.linalg.svd(rows, compute_uv=False) ** 2, [0, 0])
    np.testing.assert_allclose(values, expected, atol=1e-12)
    orthogonal = jnp.linalg.qr(jax.random.normal(key, (6, 6)))[0]
    shares = jnp.array([0.5, 0.25, 0.25, 0.0, 0.0, 0.0])
    kernel = orthogonal @ jnp.diag(7 * shares) @ orthogonal.T
    np.testing.assert_allclose(kernels.effective_rank(kernel), 2**1.5, rtol=1e-12)
    np.testing.assert_allclose(kernels.effective_rank(jnp.eye(6)), 6, rtol=1e-12)
    np.testing.assert_allclose(kernels.relative_change(kernel, -kernel), 2, rtol=1e-12)


@hypothesis.given(seed=st.integers(0, 2**31), columns=st.integers(1, 4))
def test_alignment_is_the_cosine_with_the_target_kernel(seed, columns):
    with jax.enable_x64(True):
        row_key, target_key = jax.random.split(jax.random.key(seed))
        rows = jax.random.normal(row_key, (5, 3))
        targets = jax.random.normal(target_key, (5, columns))
        kernel, ideal = np.asarray(rows @ rows.T), np.asarray(targets @ targets.T)
        cosine = np.sum(kernel * ideal) / np.linalg.norm(kernel) / np.linalg.norm(ideal)
        found = kernels.kernel_target_alignment(kernel, targets)
        np.testing.assert_allclose(found, cosine, rtol=1e-10)
        np.testing.assert_allclose(kernels.kernel_target_alignment(ideal, targets), 1, rtol=1e-10)
        turned = kernels.kernel_target_alignment(kernel, -3 * targets)
        np.testing.assert_allclose(turned, cosine, rtol=1e-10)


X = jnp.ones((2, 3))
LINEAR = lambda params, x: x @ params
PARAMS = jnp.ones((3, 1))


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (dict(x1=jnp.ones((0, 3))), ValueError, "x1"),
        (dict(x2=jnp.ones((0, 3))), ValueError, "x2"),
        (dict(x2=jnp.ones((2, 4))), ValueError, "x2"),
        (dict(outputs="sum"), ValueError, "outputs"),
        (dict(batch_size=0), ValueError, "batch_size"),
        (dict(params=jnp.ones((3, 1), jnp.int32)), TypeError, "params"),
        (dict(params=jnp.ones((3, 1), jnp.complex64)), TypeError, "params"),
        (dict(params=[None]), ValueError, "params"),
        (dict(apply_fn=lambda params, x: (x @ params).sum()), ValueError, "apply_fn"),
        (dict(apply_fn=lambda params, x: x.T @ x @ params), ValueError, "apply_fn"),
    ],
)
def test_bad_arguments_are_named(change, error, named):
    with pytest.raises(error, match=named):
        kernels.empirical_ntk(**dict(apply_fn=LINEAR, params=PARAMS, x1=X) | change)


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: kernels.ntk_spectrum(jnp.ones((2, 3))), ValueError, "kernel"),
        (lambda: kernels.ntk_spectrum(jnp.ones((0, 0))), ValueError, "kernel"),
        (lambda: kernels.effective_rank(jnp.eye(2, dtype=jnp.int32)), TypeError, "kernel"),
        (lambda: kernels.kernel_target_alignment(jnp.eye(2), jnp.ones(3)), ValueError, "targets"),
        (
            lambda: kernels.kernel_target_alignment(jnp.ones((1, 2, 2)), jnp.ones(2)),
            ValueError,
            "k",
        ),
        (lambda: kernels.relative_change(jnp.eye(2), jnp.eye(3)), ValueError, "kernel_after"),
        (lambda: kernels.linearise(LINEAR, jnp.ones(3, jnp.int32)), TypeError, "params"),
    ],
)
def test_bad_kernels_are_named(call, error, named):
    with pytest.raises(error, match=named):
        call()
