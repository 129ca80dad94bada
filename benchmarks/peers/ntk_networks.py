"""The networks of benchmarks/ntk.py, in code that old and new JAX both run."""

import jax
import jax.numpy as jnp
import numpy as np

SHAPES = {
    "mlp": {"w0": (784, 512), "b0": (512,), "w1": (512, 512), "b1": (512,), "w2": (512, 10),
            "b2": (10,)},
    "cnn": {"w0": (3, 3, 1, 16), "b0": (16,), "w1": (3, 3, 16, 32), "b1": (32,),
            "w2": (1568, 10), "b2": (10,)},
    "transformer": {"embed": (16, 128), "positions": (16, 128)}
    | {f"{name}{layer}": shape for layer in (0, 1) for name, shape in {
        "query": (128, 128), "key": (128, 128), "value": (128, 128), "mix": (128, 128),
        "up": (128, 512), "up_bias": (512,), "down": (512, 128), "down_bias": (128,),
        "scale_a": (128,), "shift_a": (128,), "scale_b": (128,), "shift_b": (128,)}.items()}
    | {"scale": (128,), "shift": (128,), "out": (128, 10)},
}  # fmt: skip
SAMPLES = {"mlp": (784,), "cnn": (28, 28, 1), "transformer": (16, 16)}
HEADS = 4


def drawn(name, num_samples, seed=0):
    """Return parameters and inputs in double precision."""
    rng = np.random.default_rng(seed)
    params = {}
    for key, shape in SHAPES[name].items():
        fan_in = np.prod(shape[:-1]) if len(shape) > 1 else 100
        params[key] = rng.normal(size=shape) / np.sqrt(fan_in)
        if key.startswith("scale"):
            params[key] += 1
    return params, rng.normal(size=(num_samples, *SAMPLES[name]))


def mlp(params, x):
    h = jax.nn.relu(x @ params["w0"] + params["b0"])
    h = jax.nn.relu(h @ params["w1"] + params["b1"])
    return h @ params["w2"] + params["b2"]


def cnn(params, x):
    for layer in "01":
        x = jax.lax.conv_general_dilated(
            x, params["w" + layer], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + params["b" + layer])
        n, height, width, channels = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
    return x.reshape(len(x), -1) @ params["w2"] + params["b2"]


def transformer(params, x):
    h = x @ params["embed"] + params["positions"]
    for layer in "01":
        of = {name.removesuffix(layer): leaf for name, leaf in params.items()
              if name.endswith(layer)}  # fmt: skip
        h = h + _attention(of, _normalised(h, of["scale_a"], of["shift_a"]))
        normed = _normalised(h, of["scale_b"], of["shift_b"])
        hidden = jax.nn.gelu(normed @ of["up"] + of["up_bias"])
        h = h + hidden @ of["down"] + of["down_bias"]
    return _normalised(h, params["scale"], params["shift"]).mean(axis=1) @ params["out"]


def _attention(of, h):
    n, tokens, width = h.shape
    heads = lambda name: (h @ of[name]).reshape(n, tokens, HEADS, -1)
    scores = jnp.einsum("nthd,nshd->nhts", heads("query"), heads("key"))
    weights = jax.nn.softmax(scores / (width // HEADS) ** 0.5)
    mixed = jnp.einsum("nhts,nshd->nthd", weights, heads("value"))
    return mixed.reshape(n, tokens, width) @ of["mix"]


def _normalised(h, scale, shift):
    centred = h - h.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift


NETWORKS = {"mlp": mlp, "cnn": cnn, "transformer": transformer}


def of_case(name, outputs):
    """Return apply_fn and the word for its outputs; "scalar" is the first output alone."""
    if outputs == "scalar":
        return lambda params, x: NETWORKS[name](params, x)[:, :1], "mean"
    return NETWORKS[name], outputs
