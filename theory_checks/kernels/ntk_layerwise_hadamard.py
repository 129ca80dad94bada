"""The NTK is a sum of products of two Gram matrices a layer, and costs about N/2 times less.

Claim      The empirical NTK of a fully connected network, J J^T, is the sum over layers of the Gram
           matrix of the layer's inputs times, entry by entry, that of the derivatives by its
           pre-activations, plus the latter for the bias. That saves all of N² P operations for N
           samples and P parameters: by the compiler's count, a factor that grows with the width
           and, as the way through the network is needed in any case, ends at (2 N + 5) / 4.
Control    Without the biases' part, or with the factors one layer apart, the sum is wrong; so it
           is for a network with connections that skip a layer, which the formula does not know.
Reference  Engel et al. 2022, arXiv:2205.12372. N² Σ width operations against N² P are those of
           the last product alone: the ratio of the whole stops growing with the width, as derived
           in dynamics/theory/layerwise_ntk.
"""

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.measure import kernels
from dynamics.models import mlp
from dynamics.theory import layerwise_ntk
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P249",)
PILOT_SEEDS = (101, 102, 103)
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}
HIDDEN = 3  # layers, all of one width


@dataclasses.dataclass(frozen=True)
class Config:
    input_dim: int = 10
    num_samples: int = 64
    widths: tuple[int, ...] = (16, 256)  # of the networks whose kernels are compared
    counted_widths: tuple[int, ...] = (32, 128, 512, 2048)  # of those only compiled
    counted_samples: tuple[int, ...] = (16, 64, 256)
    weight_std: float = 1.4
    bias_std: float = 0.5
    skip: float = 0.0  # of h_1 added to h_2; predict does not know it
    num_seeds: int = 5
    seed: int = 1


class Prediction(NamedTuple):
    """S seeds, A activations, W widths, L layers, N samples; C counted sizes of N and of width."""

    weights: Array  # (S, A, W, L, N, N) part of each layer's matrix
    biases: Array  # (S, A, W, L, N, N)
    shifted: Array  # (S, A, W, L, N, N) parts of the matrices with the next layer's derivatives
    flops: Array  # (2, C, C) of the two ways


class Result(NamedTuple):
    """As in Prediction; `single` in single precision."""

    weights: Array  # (S, A, W, L, N, N) from the Jacobian by each leaf
    biases: Array  # (S, A, W, L, N, N)
    whole: Array  # (S, A, W, N, N) J J^T
    single: Array  # (S, A, W, N, N) dynamics.measure.kernels in single precision
    flops: Array  # (2, C, C) counted by the compiler


class Skipping(mlp.MLP):
    """The network, with `skip` times the first hidden layer added to the second."""

    skip: float = 0.0

    @mlp.nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Return the output (N, 1)."""
        h = self.activation(self._layer(0, x))
        for index in range(1, len(self.widths) - 1):
            h = self.activation(self._layer(index, h)) + (self.skip * h if index == 1 else 0)
        return self._layer(len(self.widths) - 1, h)


def network(width: int, activation, config: Config) -> mlp.MLP:
    scales = config.weight_std, config.bias_std
    return Skipping((width,) * HIDDEN + (1,), activation, "ntk", *scales, skip=config.skip)


def shapes(width: int, config: Config) -> list[tuple[int, ...]]:
    """Return those of the matrices, the biases, and the samples."""
    pairs = list(itertools.pairwise((config.input_dim, *(width,) * HIDDEN, 1)))
    return [*pairs, *(pair[1:] for pair in pairs), (config.num_samples, config.input_dim)]


@functools.partial(jax.jit, static_argnums=(1, 2))  # compiled once for all who draw
def draw(keys: Key, width: int, size: int) -> Array:
    """Return (S, size) numbers from N(0, 1)."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, width), (size,)))(keys)


def over_settings(one, config: Config) -> list[np.ndarray]:
    """Apply one(matrices, biases, x, width, activation) to all, and stack: (S, A, W, ...)."""
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    shape = config.num_seeds, len(ACTIVATIONS)
    seeds, activations = (indices.ravel() for indices in np.indices(shape))

    def of_width(width: int) -> list[np.ndarray]:  # one program: the activation is a number
        of_each = shapes(width, config)
        *cuts, size = np.cumsum([math.prod(shape) for shape in of_each])

        def of_member(member: tuple[Array, Array], drawn: Array):
            choose = lambda z: jax.lax.select_n(member[1], *(f(z) for f in ACTIVATIONS.values()))
            parts = jnp.split(drawn[member[0]], cuts)
            *of_layers, x = map(jnp.reshape, parts, of_each)
            return one(of_layers[: HIDDEN + 1], of_layers[HIDDEN + 1 :], x, width, choose)

        drawn = draw(keys, width, int(size))
        found = parallel.ensemble(of_member, (seeds, activations), shared=drawn, batching="map")
        return [np.asarray(leaf).reshape(*shape, *leaf.shape[1:]) for leaf in found]

    rows = [of_width(width) for width in config.widths]
    return [np.stack(leaves, axis=2) for leaves in zip(*rows, strict=True)]


def over_sizes(count, config: Config) -> np.ndarray:
    """Return what count(width, N, config) gives of all sizes: (2, C, C)."""
    pairs = itertools.product(config.counted_samples, config.counted_widths)
    found = np.array([count(width, n, config) for n, width in pairs])
    return found.T.reshape(2, len(config.counted_samples), -1)


def predict(config: Config) -> Prediction:
    """Multiply Gram matrices from a way forward and one back, both written out."""

    def one(matrices, biases, x: Array, width: int, activation) -> tuple[Array, ...]:
        grams = layerwise_ntk.grams(
            matrices, biases, x, activation=activation, bias_std=config.bias_std,
            multipliers=[config.weight_std / len(m) ** 0.5 for m in matrices],
        )  # fmt: skip
        backward = grams.backward
        shifted = grams.inputs * jnp.roll(backward, -1, axis=0)
        return grams.inputs * backward, config.bias_std**2 * backward, shifted

    count = lambda width, n, _: layerwise_ntk.flops((config.input_dim, *(width,) * HIDDEN, 1), n)
    return Prediction(*over_settings(one, config), over_sizes(count, config))


def run(config: Config) -> Result:
    def one(matrices, biases, x: Array, width: int, activation) -> tuple[Array, ...]:
        model = network(width, activation, config)
        params = named(matrices, biases)
        output = lambda params, sample: model.apply(params, sample[None])[0, 0]
        row = lambda sample: jax.grad(output)(params, sample)["params"]
        jacobian = jax.lax.map(row, x)  # under vmap the rows would be made anew in every product
        rows = lambda leaf: jacobian[leaf[0]][leaf[1]].reshape(len(x), -1)
        gram = lambda kind: jnp.stack(
            [rows((f"layer_{i}", kind)) @ rows((f"layer_{i}", kind)).T for i in range(HIDDEN + 1)]
        )
        flat = jnp.concatenate([leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(jacobian)], 1)
        low = jax.tree.map(lambda a: a.astype(jnp.float32), (params, x))
        single = kernels.empirical_ntk(model.apply, *low)
        return gram("kernel"), gram("bias"), flat @ flat.T, single

    return Result(*over_settings(one, config), over_sizes(counted, config))


def named(matrices: list, biases: list) -> dict:
    pairs = enumerate(zip(matrices, biases, strict=True))
    return {"params": {f"layer_{i}": {"kernel": m, "bias": b} for i, (m, b) in pairs}}


def counted(width: int, num_samples: int, config: Config) -> list[float]:
    """Return the compiler's count of operations for J J^T and for the library's kernel."""
    apply = network(width, jax.nn.relu, config).apply
    *of_layers, _ = (jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes(width, config))
    params = named(of_layers[: HIDDEN + 1], of_layers[HIDDEN + 1 :])
    x = jax.ShapeDtypeStruct((num_samples, config.input_dim), jnp.float32)

    def by_jacobian(params, x):
        output = lambda params, sample: apply(params, sample[None])[0, 0]
        rows = jax.vmap(jax.grad(output), in_axes=(None, 0))(params, x)
        flat = jnp.concatenate([leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(rows)], 1)
        return flat @ flat.T

    whole = lambda params, x: kernels.empirical_ntk(apply, params, x, batch_size=num_samples)
    return [jax.jit(f).lower(params, x).cost_analysis()["flops"] for f in (by_jacobian, whole)]


def relative_error(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return |found - expected| / |expected|, Frobenius norms of (N, N)."""
    norm = lambda a: np.linalg.norm(a, axis=(-2, -1))
    return norm(found - expected) / norm(expected)


def total(prediction: Prediction) -> np.ndarray:
    return (prediction.weights + prediction.biases).sum(axis=3)  # (S, A, W, N, N)


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    values = np.linalg.eigvalsh(np.stack([prediction.weights, prediction.biases], axis=1))
    lowest = (values[..., 0] / np.abs(values).max(axis=-1)).reshape(len(values), -1).min(axis=1)
    exact = {"upper": 1e-12, "why": "double precision: pilots 1e-15"}
    far = {"lower": 0.01, "role": "control", "why": "a wrong formula; pilots 0.07 and more"}
    largest = lambda errors: errors.reshape(len(errors), -1).max(axis=1)  # (S,)
    wrong = lambda kernel, true=result.whole: largest(relative_error(kernel, true))
    ratio = result.flops[0] / result.flops[1]
    at = config.counted_samples.index(64), config.counted_widths.index(512)
    every = checks.every_seed
    return [
        every("error of the sum over layers from J J^T", wrong(total(prediction)), **exact),
        every("error of the part of a layer's matrix, largest",
              wrong(prediction.weights, result.weights), **exact),
        every("error of the part of a layer's bias, largest",
              wrong(prediction.biases, result.biases), **exact),
        every("error of the library's kernel in single precision", wrong(result.single), upper=1e-5,
              why="single precision: pilots 2e-7, and a sum of 1e5 terms"),
        every("smallest eigenvalue of a part by its largest in size", lowest,
              lower=-1e-12, why="products of positive matrices are positive"),
        checks.below("relative error of the count of operations by the Jacobian, largest",
                     np.abs(result.flops[0] / prediction.flops[0] - 1).max(), 0.1,
                     why="terms of order N Σ width are left out: 0.03 at width 32"),
        checks.below("relative error of the count of operations by layers, largest",
                     np.abs(result.flops[1] / prediction.flops[1] - 1).max(), 0.1,
                     why="the same, with N²: 0.053 at 16 samples and width 32"),
        checks.above("operations saved at 64 samples and width 512, as a factor", ratio[at], 20,
                     why="by the formula 26; it holds for every draw"),
        checks.between("factor saved by (2 N + 5) / 4 at the largest width, fewest samples",
                       ratio[0, -1] * 4 / (2 * config.counted_samples[0] + 5), 0.95, 1.05,
                       why="the count has an end: P / Σ (n + n') would be 16 times as much"),
        every("error of the sum without the biases", wrong(prediction.weights.sum(3)), **far),
        every("error of the sum with factors one layer apart",
              wrong((prediction.shifted + prediction.biases).sum(axis=3)), **far),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    for i, n in enumerate(config.counted_samples):
        colour = plotting.COLOURS[i]
        left.plot(config.counted_widths, result.flops[0, i] / result.flops[1, i],
                  plotting.MARKERS[i], color=colour, label=f"N = {n}")  # fmt: skip
        predicted = prediction.flops[0, i] / prediction.flops[1, i]
        plotting.theory(left, config.counted_widths, predicted, color=colour, label=None)
        plotting.threshold(left, (2 * n + 5) / 4, color=colour)
    plotting.theory(left, [], [], label="theory")
    plotting.threshold(left, np.nan, label="(2 N + 5) / 4")
    left.set(xscale="log", yscale="log", xlabel="width", ylabel="operations saved, as a factor")
    left.set_ylim(1, None)
    left.legend(loc="lower right", ncol=2, columnspacing=0.8)
    trace = lambda parts: np.trace(parts, axis1=-2, axis2=-1)  # (S, A, W, L)
    for i, name in enumerate(ACTIVATIONS):
        shares = [trace(p)[:, i, -1] / trace(result.whole)[:, i, -1, None] for p in result[:2]]
        for j, (share, part) in enumerate(zip(shares, ("matrix", "bias"), strict=True)):
            at = np.arange(1, HIDDEN + 2) + 0.12 * (2 * i - 1)
            plotting.points(middle, at, share, color=plotting.COLOURS[i],
                            marker=plotting.MARKERS[j], label=f"{name}, {part}")  # fmt: skip
    middle.set(xlabel="layer", ylabel=f"share of the trace, width {config.widths[-1]}")
    middle.set(xticks=range(1, HIDDEN + 2), ylim=(0, 0.6))
    middle.legend(ncol=2, loc="upper center", columnspacing=0.8)
    sums = {
        "sum over layers": total(prediction),
        "in single precision": result.single,
        "one layer apart": (prediction.shifted + prediction.biases).sum(axis=3),
        "no biases": prediction.weights.sum(axis=3),
    }
    for i, (name, kernel) in enumerate(sums.items()):
        error = relative_error(kernel, result.whole).max(axis=1)  # (S, W)
        plotting.points(right, config.widths, error, color=plotting.COLOURS[i], spread="log",
                        marker=plotting.MARKERS[i], label=name)  # fmt: skip
    right.set(xticks=config.widths, yscale="log", xlabel="width")
    right.set_ylabel("relative error from J J$^T$")
    right.legend(loc="center right", bbox_to_anchor=(1, 0.4))
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-9,
    precision="float64",
    smoke=dict(widths=(16,), num_samples=24, counted_widths=(128, 512, 2048)),
    controls={
        "connections that skip a layer": contract.Control(
            dict(skip=0.3, widths=(16,), counted_samples=(64,), counted_widths=(512,)),
            breaks={
                "error of the sum over layers from J J^T": "above",
                "error of the part of a layer's matrix, largest": "above",
                "error of the part of a layer's bias, largest": "above",
            },
            why="inputs and derivatives are those of another network",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
