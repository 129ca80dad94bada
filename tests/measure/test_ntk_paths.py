"""All ways to a tangent kernel against explicit Jacobians: forms, products, devices, cost."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import parallel
from dynamics.measure import gram, inner_products, jacobian_rows, kernels, ntk_cost, ntk_products
from dynamics.training import trajectory

OUTPUTS = 2


def convolutions(params, x):
    """Strides, dilations, pooling, uneven padding, frozen batch norm, a grouped convolution."""
    numbers = ("NHWC", "HWIO", "NHWC")
    convolve = lambda x, w, **options: jax.lax.conv_general_dilated(
        x, w, dimension_numbers=numbers, **options
    )
    h = convolve(x, params["strided"], window_strides=(2, 1), padding=((1, 0), (0, 1)))
    mean, std = jnp.array([0.1, -0.2, 0.3]), jnp.array([1.0, 0.5, 2.0])
    h = jnp.tanh((h - mean) / std * params["scale"] + params["shift"])
    h = h + convolve(h, params["grouped"], window_strides=(1, 1), padding="SAME",
                     feature_group_count=3)  # fmt: skip
    h = convolve(h, params["dilated"], window_strides=(1, 1), padding="SAME", rhs_dilation=(1, 2))
    h = jax.lax.reduce_window(h, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 1, 2, 1), "VALID")
    h = convolve(jnp.sin(h), params["up"], window_strides=(1, 1), padding=((1, 1), (1, 1)),
                 lhs_dilation=(2, 1))  # fmt: skip
    return h.mean(axis=(1, 2)) @ params["out"] + params["bias"]


def sequence(params, x):
    """Layers along positions, on either side of the matrix, with a matrix of three axes."""
    h = jnp.tanh(x @ params["embed"] + params["positions"])
    heads = jnp.einsum("ntd,dhe->nthe", h, 2.0 * params["heads"])
    h = h + jnp.einsum("oe,nthe->nto", params["left"], jnp.sin(heads)) / 3.0
    return (jnp.sin(h) @ params["read"]).mean(axis=1)


def channels_first(params, x):
    """NCHW, as PyTorch lays images out; the matrix of the last layer transposed."""
    h = jax.lax.conv_general_dilated(x, params["conv"], (1, 1), "VALID")
    h = jnp.tanh(h + params["bias"][:, None, None])
    return h.reshape(len(x), -1) @ params["out"].T


NETWORKS = {
    "convolutions": (
        convolutions,
        dict(strided=(3, 2, 2, 3), scale=(3,), shift=(3,), grouped=(2, 2, 1, 3),
             dilated=(2, 2, 3, 4), up=(3, 3, 4, 3), out=(3, OUTPUTS), bias=(OUTPUTS,)),
        (5, 4, 2),
    ),
    "sequence": (
        sequence,
        dict(embed=(2, 4), positions=(3, 4), heads=(4, 2, 3), left=(4, 3), read=(4, OUTPUTS)),
        (3, 2),
    ),
    "channels first": (
        channels_first, dict(conv=(3, 2, 2, 2), bias=(3,), out=(OUTPUTS, 18)), (2, 4, 3)
    ),
    "many outputs": (lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], dict(a=(3, 3), b=(3, 40)), (3,)),
}  # fmt: skip


def build(name, n1, n2, seed=0):
    """Return apply_fn, params, x1, x2 in double precision."""
    apply_fn, shapes, sample = NETWORKS[name]
    rng = np.random.default_rng(seed)
    params = {key: jnp.asarray(rng.normal(size=shape)) for key, shape in shapes.items()}
    x = jnp.asarray(rng.normal(size=(n1 + n2, *sample)))
    return apply_fn, params, x[:n1], x[n1:]


def brute_force(apply_fn, params, x1, x2):
    """(N1, N2, K, K) by explicit Jacobians."""
    rows = []
    for x in (x1, x2):
        jacobian = jax.jit(jax.jacrev(lambda params, x=x: apply_fn(params, x)))(params)
        flat = [np.asarray(leaf).reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(jacobian)]
        rows.append(np.concatenate(flat, axis=-1))
    return np.einsum("akp,blp->abkl", *rows)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("outputs", ["mean", "full"])
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("convolutions", None),
        ("convolutions", "gradients"),
        ("sequence", "rows"),
        ("sequence", "gradients"),
        ("sequence", "pairs"),
        ("sequence", "products"),
        ("channels first", None),
        ("channels first", "pairs"),
    ],
)
def test_every_form_of_rows_gives_the_brute_force_kernel(name, form, outputs, monkeypatch):
    """Whole and in blocks and tiles that do not divide, one-sided and two-sided."""
    apply_fn, params, x1, x2 = build(name, 7, 4)
    expected = brute_force(apply_fn, params, x1, jnp.concatenate([x1, x2]))
    if outputs == "mean":
        expected = np.trace(expected, axis1=2, axis2=3) / OUTPUTS

    @jax.jit
    def run(params):
        found = []
        for other, size in ((None, 7), (x2, 3), (None, 3)):
            plan = jacobian_rows.plan(
                apply_fn, params, x1, other, outputs, None if form == "products" else form
            )
            if form == "products":
                made = ntk_products.kernel(plan, x1, other, outputs=outputs, batch_size=size)
            else:
                (made,) = gram.kernels(
                    plan, x1, other, outputs=outputs, batch_size=size, total=True
                )
            found.append(made)
        return found

    monkeypatch.setattr(gram, "TILE", 9 if outputs == "mean" else 64)
    monkeypatch.setattr(inner_products, "CHUNK", 50)
    monkeypatch.setattr(gram, "FLIGHT", 5000)
    for index, found in enumerate(run(params)):
        close(found, expected[:, 7:] if index == 1 else expected[:, :7])
        if index != 1:
            turned = found.T if outputs == "mean" else found.transpose(1, 0, 3, 2)
            np.testing.assert_array_equal(found, turned)


def test_forms_at_size():
    """The cheapest form for networks of real width, by what each costs."""

    def forms(apply_fn, shapes, sample, num_samples=100, outputs="mean"):
        params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
        x = jax.ShapeDtypeStruct((num_samples, *sample), jnp.float32)
        found = []

        def note(params, x):
            plan = jacobian_rows.plan(apply_fn, params, x, None, outputs)
            found.append({name: leaf.form for name, leaf in zip(params, plan.leaves, strict=True)})
            return x

        jax.eval_shape(note, dict(sorted(params.items())), x)
        return found[0]

    wide = lambda p, x: jnp.sin(jnp.tanh(x @ p["a"] + p["b"]) @ p["c"]).mean(axis=1)
    shapes = dict(a=(128, 128), b=(128,), c=(128, 10))
    assert forms(wide, shapes, (16, 128))["a"] == "gradients"
    assert forms(wide, shapes, (16, 128))["b"] == "rows"
    assert forms(wide, shapes, (2, 128))["a"] == "pairs"
    assert forms(wide, shapes, (300, 128))["a"] == "rows"
    image = lambda p, x: jnp.tanh(
        jax.lax.conv_general_dilated(
            x, p["a"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    ).reshape(len(x), -1) @ p["c"]  # fmt: skip
    found = forms(image, dict(a=(3, 3, 3, 16), c=(4096, 10)), (16, 16, 3))
    assert found == dict(a="windows", c="vector")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("outputs", ["mean", "full"])
def test_products_are_the_kernel_times_a_vector(outputs):
    apply_fn, params, x1, x2 = build("sequence", 7, 4)
    kernel = brute_force(apply_fn, params, x1, x2)
    if outputs == "mean":
        kernel = np.trace(kernel, axis1=2, axis2=3) / OUTPUTS
    rng = np.random.default_rng(1)
    vector = rng.normal(size=(4,) if outputs == "mean" else (4, OUTPUTS))
    expected = kernel @ vector if outputs == "mean" else np.einsum("abkl,bl->ak", kernel, vector)
    for batch_size in (None, 3):
        product = lambda params, size=batch_size: kernels.ntk_vector_product(
            apply_fn, params, x1, vector, x2, outputs=outputs, batch_size=size
        )
        close(jax.jit(product)(params), expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("outputs", ["mean", "full"])
def test_top_eigenpairs_are_those_of_the_kernel(key, outputs):
    apply_fn, params, x, _ = build("sequence", 9, 1)
    kernel = brute_force(apply_fn, params, x, x)
    if outputs == "mean":
        kernel = np.trace(kernel, axis1=2, axis2=3) / OUTPUTS
    order = len(x) * (1 if outputs == "mean" else OUTPUTS)
    matrix = kernel if outputs == "mean" else kernel.swapaxes(1, 2).reshape(order, order)
    top = jax.jit(
        lambda params: kernels.top_ntk_eigenpairs(
            apply_fn, params, x, key=key, num=3, outputs=outputs, batch_size=4
        )
    )(params)
    values = np.linalg.eigvalsh(matrix)[::-1]
    close(top.values, values[:3])
    flat = top.vectors.reshape(3, order)
    np.testing.assert_allclose(flat @ flat.T, np.eye(3), atol=1e-10)
    residuals = np.linalg.norm(flat @ matrix - top.values[:, None] * flat, axis=1)
    assert (residuals <= top.residuals + 1e-12 * values[0]).all()
    few = jax.jit(
        lambda params: kernels.top_ntk_eigenpairs(
            apply_fn, params, x, key=key, num=1, num_iterations=2, outputs=outputs
        )
    )(params)
    gap = np.abs(values - few.values[0]).min()
    assert 1e-6 * values[0] < few.residuals[0]
    assert gap <= few.residuals[0]


@pytest.mark.usefixtures("x64")
def test_many_outputs_of_a_small_network_go_by_products():
    """And the kernel is the same."""
    apply_fn, params, x, _ = build("many outputs", 5, 1)
    cost = kernels.ntk_cost(apply_fn, params, x, outputs="full")
    assert cost.chosen == "products"
    assert cost.products.flops < 0.5 * cost.layerwise.flops
    found, layers = jax.jit(
        lambda params: (
            kernels.empirical_ntk(apply_fn, params, x, outputs="full"),
            kernels.layerwise_ntk(apply_fn, params, x, outputs="full"),
        )
    )(params)
    expected = brute_force(apply_fn, params, x, x)
    close(found, expected)
    close(sum(jax.tree.leaves(layers)), expected)


PERCEPTRON = lambda p, x: jnp.tanh(x @ p["a"] + p["b"]) @ p["c"] + p["d"]
SIZES = dict(a=(60, 80), b=(80,), c=(80, 5), d=(5,))


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def perceptron_shapes():
    return {name: shaped(*size) for name, size in SIZES.items()}


@pytest.mark.parametrize("outputs", ["mean", "full"])
def test_cost_of_a_perceptron_is_the_hand_count(outputs):
    n1, n2, k = 30, 20, 5
    cost = kernels.ntk_cost(
        PERCEPTRON, perceptron_shapes(), shaped(n1, 60), shaped(n2, 60), outputs=outputs
    )
    products = k if outputs == "mean" else k**2
    forward = 2 * (60 * 80 + 80 * 5)
    # Back to the hidden layer and no further; through the read-out it is the same for all samples
    # of a block, of which there are two.
    rows = (n1 + n2) * forward + 2 * k * 2 * 80 * 5
    inner = 2 * n1 * n2 * (60 + 80 * products + 80 + 5 * products)
    assert cost.layerwise.flops == rows + inner
    # As well the two outer products of every row.
    rows += (n1 + n2) * k * 2 * (60 * 80 + 80 * 5)
    inner = 2 * n1 * n2 * products * (60 * 80 + 80 + 80 * 5 + 5)
    assert cost.jacobian.flops == pytest.approx(rows + inner, rel=1e-6)
    assert cost.chosen == "layerwise"


def test_cost_of_layers_along_positions_is_the_hand_count():
    """The wide layer forms its rows while they are multiplied, the narrow one keeps its own."""
    n1, n2, k, positions, inputs, hidden = 30, 20, 3, 8, 32, 64
    network = lambda p, x: jnp.sin(jnp.tanh(x @ p["a"]) @ p["c"]).mean(axis=1)
    params = dict(a=shaped(inputs, hidden), c=shaped(hidden, k))
    samples = (shaped(n, positions, inputs) for n in (n1, n2))
    wide, narrow = inputs * hidden, hidden * k
    rows = (n1 + n2) * 2 * positions * (wide + narrow + 2 * k * narrow + k * wide)
    inner = 2 * n1 * n2 * k * (wide + narrow)
    cost = kernels.ntk_cost(network, params, *samples)
    assert cost.layerwise.flops == rows + inner


@pytest.mark.parametrize("outputs", ["mean", "full"])
def test_cost_is_what_the_compiler_counts(outputs):
    """Of a program without loops, in which the compiler adds entry-wise work."""
    arguments = perceptron_shapes(), shaped(40, 60), shaped(30, 60)
    cost = kernels.ntk_cost(PERCEPTRON, *arguments, outputs=outputs).layerwise
    ntk = jax.jit(lambda *given: kernels.empirical_ntk(PERCEPTRON, *given, outputs=outputs))
    compiled = ntk.lower(*arguments).compile()
    counted = compiled.cost_analysis()["flops"]
    assert counted / 1.6 < cost.flops < 1.6 * counted
    memory = compiled.memory_analysis()
    held = memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert held / 4 < cost.bytes < 4 * held


def test_symmetry_and_blocks_are_in_the_cost():
    apply_fn, params, x = PERCEPTRON, perceptron_shapes(), shaped(4000, 60)
    one = kernels.ntk_cost(apply_fn, params, x, outputs="full").layerwise
    two = kernels.ntk_cost(apply_fn, params, x, x, outputs="full").layerwise
    assert 0.5 < one.flops / two.flops < 0.56
    many = kernels.ntk_cost(apply_fn, params, shaped(10**6, 60), outputs="full")
    assert many.layerwise.bytes > 25 * 4 * 10**12


def by_samples(a, b):
    """A cheap kernel with the symmetry of an NTK, (b, c, 2, 2)."""
    rows = lambda x: jnp.stack([jnp.sin(x), x**2], axis=1)
    return jnp.einsum("akp,blp->abkl", rows(a), rows(b))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("engine", ["jit", "pmap"])
def test_blocks_on_any_number_of_devices_are_the_kernel(engine):
    x = np.random.default_rng(0).normal(size=(19, 3))
    for num_samples in (1, 7, 19):
        mine, first = x[:num_samples], None
        whole = by_samples(mine, mine)
        for num_devices in (1, 2, 4):
            options = dict(engine=engine, devices=jax.local_devices()[:num_devices])
            found = parallel.kernel_blocks(by_samples, mine, **options)
            close(found, whole)
            np.testing.assert_array_equal(found, found.transpose(1, 0, 3, 2))
            first = found if first is None else first
            np.testing.assert_array_equal(found, first)
        close(parallel.kernel_blocks(by_samples, mine, num_blocks=5, **options), whole)
        mean = lambda a, b: jnp.trace(by_samples(a, b), axis1=2, axis2=3)
        close(parallel.kernel_blocks(mean, mine, **options), mean(mine, mine))
        two_sided = parallel.kernel_blocks(by_samples, mine, x, **options)
        close(two_sided, by_samples(mine, x))


@pytest.mark.usefixtures("x64")
def test_ntk_by_blocks_on_four_devices():
    apply_fn, params, x, _ = build("sequence", 9, 1)
    ntk = lambda *x: kernels.empirical_ntk(apply_fn, params, *x)
    close(parallel.kernel_blocks(ntk, x), jax.jit(ntk)(x))


EIGHT = """
import jax, jax.numpy as jnp, numpy as np
from dynamics import parallel
x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 3)), jnp.float32)
kernel = lambda a, b: jnp.tanh(a @ b.T)
assert len(jax.devices()) == 8
by = [parallel.kernel_blocks(kernel, x, devices=jax.devices()[:n]) for n in (1, 8)]
np.testing.assert_array_equal(*by)
np.testing.assert_allclose(by[0], kernel(x, x), atol=1e-5)
"""


def test_eight_devices():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, "-c", EIGHT], check=True, env={**os.environ, **flags})


@pytest.mark.usefixtures("x64")
def test_along_training():
    """Kernel, spectrum, alignment, change and rank at chosen times, from the one training loop."""
    apply_fn, params, x, _ = build("sequence", 6, 1)
    y = jnp.sign(x[:, 0, 0])
    network = lambda params: apply_fn(params, x)[:, 0]
    descend = lambda params: jax.tree.map(
        lambda leaf, slope: leaf - 0.05 * slope,
        params,
        jax.grad(lambda params: jnp.mean((network(params) - y) ** 2))(params),
    )
    ntk = lambda params: kernels.empirical_ntk(lambda p, x: apply_fn(p, x)[:, :1], params, x)
    start = ntk(params)
    measure = lambda params: kernels.kernel_summary(ntk(params), y, start)
    found = trajectory.record(descend, params, measure, times=[0, 1, 5])
    for time, steps in enumerate((0, 1, 5)):
        at = params
        for _ in range(steps):
            at = descend(at)
        jacobian = jax.tree.leaves(jax.jacrev(network)(at))
        rows = np.concatenate([np.asarray(leaf).reshape(6, -1) for leaf in jacobian], axis=1)
        kernel = rows @ rows.T
        if not steps:
            before = kernel
        norm = np.linalg.norm
        values = np.linalg.eigvalsh(kernel)
        np.testing.assert_allclose(found.spectrum[time], values[::-1], rtol=1e-7)
        np.testing.assert_allclose(
            found.alignment[time], y @ kernel @ y / norm(kernel) / 6, rtol=1e-10
        )
        change = norm(kernel - before) / norm(before)
        np.testing.assert_allclose(found.relative_change[time], change, rtol=1e-7, atol=1e-12)
        shares = values / np.trace(kernel)
        np.testing.assert_allclose(
            found.effective_rank[time], np.exp(-np.sum(shares * np.log(shares))), rtol=1e-8
        )
    assert found.relative_change[0] < 1e-12 < found.relative_change[1] < found.relative_change[2]


X, PARAMS = jnp.ones((3, 2)), jnp.ones((2, 1))
LINEAR = lambda params, x: x @ params


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: kernels.ntk_vector_product(LINEAR, PARAMS, X, jnp.ones(2)), ValueError, "vector"),
        (
            lambda: kernels.ntk_vector_product(LINEAR, PARAMS, X, jnp.ones(3), outputs="full"),
            ValueError,
            "vector",
        ),
        (
            lambda: kernels.ntk_vector_product(LINEAR, PARAMS, X, jnp.ones(3), batch_size=0),
            ValueError,
            "batch_size=0",
        ),
        (
            lambda: kernels.ntk_vector_product(LINEAR, PARAMS, X, jnp.ones(3), jnp.ones((3, 4))),
            ValueError,
            "x2",
        ),
        (
            lambda: kernels.top_ntk_eigenpairs(LINEAR, PARAMS, X, key=jax.random.key(0), num=4),
            ValueError,
            "num=4",
        ),
        (
            lambda: kernels.top_ntk_eigenpairs(
                LINEAR, PARAMS, X, key=jax.random.key(0), num=2, num_iterations=1
            ),
            ValueError,
            "num_iterations=1",
        ),
        (lambda: kernels.ntk_cost(LINEAR, PARAMS, X, outputs="sum"), ValueError, "outputs"),
        (lambda: kernels.ntk_cost(LINEAR, PARAMS, X, batch_size=0), ValueError, "batch_size=0"),
        (lambda: kernels.ntk_cost(LINEAR, jnp.ones(2, int), X), TypeError, "params"),
        (lambda: parallel.kernel_blocks(LINEAR, X, num_blocks=0), ValueError, "num_blocks=0"),
        (lambda: parallel.kernel_blocks(LINEAR, X[:0]), ValueError, "x1"),
        (lambda: parallel.kernel_blocks(LINEAR, X, X[:0]), ValueError, "x2"),
    ],
)
def test_bad_arguments_are_named(call, error, named):
    with pytest.raises(error, match=named):
        call()


def test_operations_are_counted_at_any_depth():
    """A product in a scan in a branch, and one behind a custom derivative."""
    square = jnp.ones((4, 4))

    @jax.custom_jvp
    def power(x):
        return x @ x

    power.defjvp(lambda primals, tangents: (power(*primals), tangents[0] @ primals[0]))

    def network(x):
        turned = lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=3)[0]
        return power(jax.lax.cond(x[0, 0] > 0, turned, lambda x: x, x))

    assert ntk_cost.flops(jax.make_jaxpr(network)(square).jaxpr) == 4 * 128
