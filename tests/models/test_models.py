"""The models against numpy in float64, and how they behave as they get wider."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import signal, special

from dynamics.models import (
    convnet,
    deep_linear,
    layers,
    linear_attention,
    mlp,
    parameterisations,
    resnet,
    transformer,
)

NAMES = parameterisations.NAMES


def scale(name, role, fan_in, std=1.0):
    """The forward multiplier, written down again from the papers."""
    if name in ("standard", "mup"):
        return 1.0
    return std / fan_in if (name, role) == ("mean_field", "output") else std / fan_in**0.5


def numpy_params(params):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), params)["params"]


@pytest.mark.parametrize("name", NAMES)
def test_mlp_is_the_formula(name, key, x64):
    x = np.random.default_rng(0).normal(size=(5, 3, 4))
    model = mlp.MLP((6, 7, 2), jnp.tanh, name, weight_std=1.3, bias_std=0.4)
    params = model.init(key, jnp.asarray(x))
    h, weights = x.reshape(5, 12), numpy_params(params)
    bias = 1.0 if name in ("standard", "mup") else 0.4
    for i, role in enumerate(("input", "hidden", "output")):
        layer = weights[f"layer_{i}"]
        h = np.tanh(h) if i else h
        h = scale(name, role, h.shape[1], 1.3) * h @ layer["kernel"] + bias * layer["bias"]
    np.testing.assert_allclose(model.apply(params, x), h, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_deep_linear_is_a_product_of_matrices(name, key, x64):
    x = np.random.default_rng(0).normal(size=(5, 4))
    model = deep_linear.DeepLinear((6, 6, 2), name)
    params = model.init(key, jnp.asarray(x))
    weights = numpy_params(params)
    product = np.linalg.multi_dot([weights[f"layer_{i}"]["kernel"] for i in range(3)])
    factor = scale(name, "input", 4) * scale(name, "hidden", 6) * scale(name, "output", 6)
    np.testing.assert_allclose(model.apply(params, x), factor * x @ product, rtol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_convnet_is_scipys_correlation(name, key, x64):
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3))
    model = convnet.ConvNet((4, 5), 2, parameterisation=name, weight_std=1.4)
    params = model.init(key, jnp.asarray(x))
    weights, h = numpy_params(params), x
    for i, role in enumerate(("input", "hidden")):
        layer = weights[f"layer_{i}"]
        kernel = layer["kernel"]
        out = np.zeros((*h.shape[:3], kernel.shape[3]))
        for n, c, f in np.ndindex(len(h), kernel.shape[2], kernel.shape[3]):
            out[n, ..., f] += signal.correlate2d(h[n, ..., c], kernel[..., c, f], "same")
        h = np.maximum(scale(name, role, 9 * kernel.shape[2], 1.4) * out + 0 * layer["bias"], 0)
        if i == 0:
            h = h.reshape(2, 3, 2, 3, 2, -1).mean(axis=(2, 4))
    h = h.mean(axis=(1, 2))
    expected = scale(name, "output", 5, 1.4) * h @ weights["layer_2"]["kernel"]
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-11)


def layer_norm(h):
    centred = h - h.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("read_out", ["last", "mean", "all"])
def test_transformer_is_the_formula(causal, read_out, key, x64):
    x = np.array([[0, 3, 1, 2], [4, 4, 0, 1]])
    model = transformer.Transformer(
        num_outputs=3, width=8, num_heads=2, vocabulary=5, max_tokens=6, causal=causal,
        read_out=read_out, activation=jnp.tanh,
    )  # fmt: skip
    params = jax.tree.map(lambda a: a.astype(jnp.float64), model.init(key, jnp.asarray(x)))
    w = numpy_params(params)
    h = w["embed"]["embedding"][x] + w["positions"][:4]
    n = layer_norm(h)
    q, k, v = (
        (n @ w["attention_0"][name]["kernel"]).reshape(2, 4, 2, 4)
        for name in ("query", "key", "value")
    )
    logits = np.einsum("nthd,nshd->nhts", q, k) / 2
    if causal:
        logits = np.where(np.tril(np.ones((4, 4), bool)), logits, -np.inf)
    mixed = np.einsum("nhts,nshd->nthd", special.softmax(logits, axis=-1), v).reshape(2, 4, 8)
    h = h + mixed @ w["attention_0"]["mix"]["kernel"]
    hidden = np.tanh(layer_norm(h) @ w["mlp_in_0"]["kernel"])
    h = layer_norm(h + hidden @ w["mlp_out_0"]["kernel"])
    h = {"last": h[:, -1], "mean": h.mean(axis=1), "all": h}[read_out]
    np.testing.assert_allclose(model.apply(params, x), h @ w["read_out"]["kernel"], rtol=1e-6)


def test_a_causal_transformer_does_not_look_ahead(key):
    model = transformer.Transformer(num_outputs=2, width=8, num_heads=2, read_out="all")
    x = jax.random.normal(key, (1, 5, 3))
    params = model.init(key, x)
    changed = model.apply(params, x.at[0, 3].add(1.0)) - model.apply(params, x)
    assert abs(changed[0, :3]).max() == 0
    assert abs(changed[0, 3:]).min(axis=-1).max() > 0


@pytest.mark.parametrize("tied", [True, False])
def test_linear_attention_is_a_double_loop(tied, key, x64):
    tokens = np.random.default_rng(0).normal(size=(5, 3))
    model = linear_attention.LinearAttention(num_layers=2, tied=tied, init_std=0.5)
    params = model.init(key, jnp.asarray(tokens[None]))
    w, expected = numpy_params(params), tokens.copy()
    for layer in range(2):
        q, k, v, p = (w[n][0 if tied else layer] for n in ("query", "key", "value", "projection"))
        before = expected.copy()
        for j in range(5):
            for i in range(4):
                expected[j] += p @ (v @ before[i]) * ((k @ before[i]) @ (q @ before[j]))
    np.testing.assert_allclose(model.apply(params, tokens[None])[0], expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["standard", "ntk", "mup"])
def test_pre_activations_keep_their_size_as_the_width_grows(name):
    """Each hidden layer maps inputs of mean square one to outputs of mean square one."""
    for width in (32, 1024):
        layer = layers.Dense(width, "hidden", name, use_bias=False)
        x = jax.random.normal(jax.random.key(0), (200, width))
        out = layer.apply(layer.init(jax.random.key(1), x), x)
        assert abs(jnp.mean(out**2) - 1) < 5 * (2 / width) ** 0.5


def movement(name, width, optimiser):
    """RMS change of the second layer's pre-activations over five steps at one learning rate."""
    x = jax.random.normal(jax.random.key(0), (32, 16))
    y = jnp.sin(x[:, :1])
    model = mlp.MLP((width, width, 1), parameterisation=name, use_bias=False)
    params = model.init(jax.random.key(1), x)
    base = {"sgd": optax.sgd(0.05), "adam": optax.adam(0.005)}[optimiser]
    scaled = optax.chain(
        base, parameterisations.scale_by_layer(layers.scalings(params, name), optimiser)
    )
    grad = jax.grad(lambda p: jnp.mean((model.apply(p, x) - y) ** 2))

    def step(carry, _):
        params, state = carry
        updates, state = scaled.update(grad(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (moved, _), _ = jax.lax.scan(step, (params, scaled.init(params)), length=5)
    first = params["params"]["layer_1"]["kernel"], moved["params"]["layer_1"]["kernel"]
    h = jnp.tanh(x @ params["params"]["layer_0"]["kernel"] / 4)
    feature = jnp.sqrt(jnp.mean((h @ (first[1] - first[0])) ** 2))
    if name in ("ntk", "mean_field"):
        feature = feature / width**0.5
    return float(feature)


@pytest.mark.parametrize(
    ("name", "optimiser", "exponent"),
    [("ntk", "sgd", -0.5), ("mean_field", "sgd", 0.0), ("mup", "sgd", 0.0), ("mup", "adam", 0.0),
     ("standard", "adam", 1.0)],
)  # fmt: skip
def test_features_move_with_the_width_as_theory_says(name, optimiser, exponent):
    """Pre-activations move as n^-1/2 (NTK), n^0 (mean-field, muP), n (standard, Adam)."""
    widths = np.array([128, 512, 2048])
    moved = [movement(name, int(width), optimiser) for width in widths]
    slope = np.polyfit(np.log(widths), np.log(moved), 1)[0]
    assert abs(slope - exponent) < 0.2, moved


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("silly", "input", 2, 2), "name='silly'"),
        (("ntk", "middle", 2, 2), "role='middle'"),
        (("ntk", "input", 0, 2), "fan_in=0"),
    ],
)
def test_wrong_scalings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        parameterisations.layer_scaling(*arguments)


def test_other_wrong_arguments_are_named(key):
    with pytest.raises(ValueError, match="optimiser"):
        parameterisations.scale_by_layer({}, "lion")
    with pytest.raises(ValueError, match="num_heads=3"):
        transformer.Transformer(2, width=8, num_heads=3).init(key, jnp.ones((1, 2, 3)))
    with pytest.raises(ValueError, match="read_out"):
        transformer.Transformer(2, width=8, read_out="first").init(key, jnp.ones((1, 2, 3)))
    with pytest.raises(ValueError, match="max_tokens"):
        transformer.Transformer(2, max_tokens=2).init(key, jnp.ones((1, 3, 3)))
    weights = linear_attention.LinearAttentionWeights(*[jnp.eye(3)] * 4)
    with pytest.raises(ValueError, match="num_context=0"):
        linear_attention.linear_self_attention(weights, jnp.ones((4, 3)), num_context=0)
    with pytest.raises(ValueError, match=r"weights\.query"):
        linear_attention.linear_self_attention(weights, jnp.ones((4, 2)), num_context=2)


def test_batch_norm_of_an_mlp_normalises_what_the_activation_sees(key):
    model = mlp.MLP((6, 5, 3), activation=lambda x: x, batch_norm=True)
    x = 3 + jax.random.normal(key, (50, 4))
    variables = model.init(key, x)
    features, updates = model.apply(
        variables, x, train=True, mutable=["batch_stats"], method="features"
    )
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(features.std(axis=0), 1, atol=1e-3)
    assert set(updates["batch_stats"]) == {"norm_0", "norm_1"}
    # The last layer reads the features, with the statistics of before.
    still = model.apply(variables, x, method="features")
    layer = variables["params"]["layer_2"]
    np.testing.assert_allclose(
        model.apply(variables, x), still @ layer["kernel"] + layer["bias"], atol=1e-5
    )


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1)])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("window", [(3, 3), (1, 2), (4, 3)])
def test_convolution_by_patches_is_the_convolution(x64, key, window, strides, padding):
    x_key, kernel_key = jax.random.split(key)
    x = jax.random.normal(x_key, (2, 7, 6, 3))
    kernel = jax.random.normal(kernel_key, (*window, 3, 4))

    def value(kernel, by_patches):
        out = layers.convolve(x, kernel, strides, padding, by_patches=by_patches)
        return jnp.sum(jnp.sin(out)), out

    for part in (jax.grad(value, has_aux=True), value):
        one, two = part(kernel, True), part(kernel, False)
        np.testing.assert_allclose(one[0], two[0], atol=1e-12)
        np.testing.assert_allclose(one[1], two[1], atol=1e-12)


def test_resnet_18_has_its_parameters_and_halves_its_images(key):
    model = resnet.ResNet(num_outputs=10)
    shapes = jax.eval_shape(lambda: model.init(key, jnp.zeros((1, 32, 32, 3))))
    # 11,173,962 is what torchvision-style ResNet-18 for CIFAR-10 counts.
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 11_173_962
    features = jax.eval_shape(
        lambda variables: model.apply(variables, jnp.zeros((2, 32, 32, 3)), method="features"),
        shapes,
    )
    assert features.shape == (2, 512)


def test_a_residual_block_passes_its_input_on_where_its_branch_is_silent(key):
    block = resnet.ResidualBlock(channels=3)
    x = jax.random.normal(key, (2, 5, 5, 3))
    variables = block.init(key, x)
    silent = jax.tree.map(jnp.zeros_like, variables["params"])
    out = block.apply({**variables, "params": silent}, x)
    np.testing.assert_allclose(out, jnp.maximum(x, 0), atol=1e-6)
