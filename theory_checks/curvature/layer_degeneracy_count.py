"""A layer has I O - r_a r_g flat directions, r_a and r_g the ranks of what goes in and comes back.

Claim      For a layer of I inputs and O outputs, whose inputs span r_a dimensions on the data and
           whose back-propagated gradients span r_g, exactly I O - r_a r_g directions leave all
           outputs as they are. At zero residual these are flat directions of the whole loss, which
           has more: what two linear layers in a row can undo for each other is counted once more.
           Of ReLUs that fire together, s of them, s² combinations are flat and not s.
Control    With full ranks nothing is flat. Noise ε on the inputs closes the gap in the spectrum as
           1/ε. ReLUs that do not fire together keep one direction each.
Reference  Bushnaq et al. 2024, arXiv:2405.10927. No direction is shared between layers, so the sum
           over layers needs no correction; a bottleneck behind a nonlinearity leaves r_g full.
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.measure import degeneracy
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P35",)
PILOT_SEEDS = (101, 102, 103)
# Small on purpose: LAPACK's threads wait for each other on larger matrices where a machine is busy.
INPUTS, MIDDLE, HIDDEN, OUTPUTS = 6, 6, 6, 2
LAYERS = ("first", "second", "third")
SIZES = (INPUTS * MIDDLE, MIDDLE * HIDDEN, HIDDEN * OUTPUTS)
RELU_INPUTS, RELU_HIDDEN, RELU_OUTPUTS = 6, 6, 3  # as many hidden as inputs
ZERO = 1e-12  # of the largest singular value; rounding is at 3e-16


@dataclasses.dataclass(frozen=True)
class Config:
    activation_ranks: tuple[int, ...] = (2, 4, 6)
    gradient_ranks: tuple[int, ...] = (2, 3, 6)
    example: tuple[int, ...] = (4, 3)  # ranks where the noise is added and the Hessian is taken
    noises: tuple[float, ...] = (1e-7, 1e-6, 1e-5, 1e-1)  # on the inputs; the last is the control
    groups: tuple[int, ...] = (1, 2, 3)  # ReLUs that fire together; at most as many as outputs
    gain: float = 2.0  # of the pre-activations, so that tanh bends
    num_samples: int = 50
    num_seeds: int = 20
    seed: int = 1


class Prediction(NamedTuple):
    """A activation ranks, G gradient ranks, L layers, Q groups of ReLUs."""

    flat: Array  # (A, G, O, L) directions in each layer, by one output and by all
    whole: Array  # () flat directions of the whole loss in the example
    relu: Array  # (Q,) flat directions of the network of ReLUs


class Result(NamedTuple):
    """S seeds, O numbers of outputs (one, all), E noises; singular values with 0 to fill up."""

    spectrum: Array  # (S, A, G, O, L, I O) of each layer's Jacobian
    flat: Array  # (S, A, G, O, L) from the ranks that the library measures
    noisy: Array  # (S, E, I O) of the first layer, one output, with noise on the inputs
    hessian: Array  # (S, P) eigenvalues at zero residual in the example, increasing
    relu: Array  # (S, Q, P') of the Jacobian of the network of ReLUs


def network(params: dict, x: Array) -> Array:
    """Return the outputs (N, K): two linear maps in a row, tanh, and one more."""
    return jnp.tanh(x @ params["first"] @ params["second"] + params["bias"]) @ params["third"]


def normals(key: Key, *shapes: tuple[int, ...]) -> list[Array]:
    """Return independent Gaussian arrays, drawn at once: each draw costs a compilation."""
    sizes = [math.prod(shape) for shape in shapes]
    parts = jnp.split(jax.random.normal(key, (sum(sizes),)), list(itertools.accumulate(sizes))[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def draw(key: Key, r_a: Array, r_g: Array, noise: Array, config: Config) -> tuple[dict, Array]:
    """Return weights, of which the second matrix has rank r_g, and inputs (N, I) of rank r_a."""
    samples, square = (config.num_samples, INPUTS), (INPUTS, INPUTS)
    first, left, right, third, bias, hidden, mixing, extra = normals(
        key, (INPUTS, MIDDLE), (MIDDLE, MIDDLE), (MIDDLE, HIDDEN), (HIDDEN, OUTPUTS), (HIDDEN,),
        samples, square, samples,
    )  # fmt: skip
    kept = lambda rank, size: (jnp.arange(size) < rank) / jnp.sqrt(rank)
    second = config.gain * (left * kept(r_g, MIDDLE)) @ right / MIDDLE**0.5
    x = (hidden * kept(r_a, INPUTS)) @ mixing + noise * extra
    matrices = dict(first=first / INPUTS**0.5, second=second, third=third / HIDDEN**0.5)
    return {**matrices, "bias": bias}, x


def predict(config: Config) -> Prediction:
    """Count: what goes into the second layer is that of the first, up to its width."""
    first = lambda r_a, r_g: SIZES[0] - r_a * r_g
    second = lambda r_a: SIZES[1] - min(r_a, MIDDLE) * HIDDEN
    third = lambda outputs: SIZES[2] - HIDDEN * outputs
    counts = [
        [[(first(r_a, r_g), second(r_a), third(outputs)) for outputs in (1, OUTPUTS)]
         for r_g in config.gradient_ranks]
        for r_a in config.activation_ranks
    ]  # fmt: skip
    # Any change of the first layer is also one of the second: its r_a r_g moves count once. The
    # bias adds as many directions as moves.
    moves = min(config.example[0], MIDDLE) * HIDDEN + SIZES[2]
    relu = [RELU_HIDDEN - group + group**2 for group in config.groups]
    return Prediction(*(jnp.array(n, float) for n in (counts, sum(SIZES) - moves, relu)))


def run(config: Config) -> Result:
    ranks = [(a, g) for a in config.activation_ranks for g in config.gradient_ranks]
    settings = [(*pair, 0.0) for pair in ranks]
    settings += [(*config.example, noise) for noise in config.noises]
    shape = len(config.activation_ranks), len(config.gradient_ranks), 2, len(LAYERS)

    def one(key: Key) -> Result:
        relu_key, key = jax.random.split(key)
        at = lambda setting: measured(*draw(key, *setting, config))
        spectrum, flat = jax.lax.map(at, tuple(jnp.array(settings).T))
        return Result(
            spectrum[: len(ranks)].reshape(*shape, -1),
            flat[: len(ranks)].reshape(shape),
            spectrum[len(ranks) :, 0, 0],
            hessian_spectrum(*draw(key, *config.example, 0.0, config)),
            jax.lax.map(
                lambda group: relu_spectrum(relu_key, group, config), jnp.array(config.groups)
            ),
        )

    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    return parallel.ensemble(one, keys, batching="map")


def measured(params: dict, x: Array) -> tuple[Array, Array]:
    """Return spectra (O, L, I O) and the library's counts (O, L), of one output and of all."""

    def by(shown: Array) -> tuple[Array, Array]:
        some = lambda params, x: network(params, x) * shown
        found = degeneracy.layer_degeneracy(some, params, x, tolerance=ZERO)
        rows = jax.vmap(jax.jacrev(lambda params, sample: some(params, sample[None])[0]),
                        in_axes=(None, 0))(params, x)  # fmt: skip
        rows = [rows[name].reshape(-1, size) for name, size in zip(LAYERS, SIZES, strict=True)]
        rows = jnp.stack([jnp.pad(r, ((0, 0), (0, SIZES[0] - r.shape[1]))) for r in rows])
        spectra = jax.lax.map(lambda r: jnp.linalg.svd(r, compute_uv=False), rows)
        return spectra, jnp.stack([found[name].flat_directions for name in LAYERS])

    return jax.lax.map(by, jnp.stack([jnp.arange(OUTPUTS) < 1, jnp.arange(OUTPUTS) >= 0]))


def hessian_spectrum(params: dict, x: Array) -> Array:
    """Return the eigenvalues (P,) of the Hessian of the squared error where it is zero."""
    flat, unravel = ravel_pytree(params)
    labels = network(params, x)
    loss = lambda flat: jnp.mean((network(unravel(flat), x) - labels) ** 2) / 2
    return jnp.linalg.eigvalsh(jax.hessian(loss)(flat))


def relu_spectrum(key: Key, group: Array, config: Config) -> Array:
    """Return the singular values of the Jacobian of a network of ReLUs, `group` of them alike.

    Samples are ± (u + b/2) and the weights of those ReLUs are u + c, with b and c of length one and
    at right angles to u: whatever they are, these fire on + and not on -. The others have weights
    near c, all but one at right angles to each other, so that no two fire alike by chance.
    """
    count = config.num_samples
    frame, of_samples, signs, readout = normals(
        key, (RELU_INPUTS, RELU_INPUTS), (count, RELU_INPUTS - 1), (count, 1),
        (RELU_HIDDEN, RELU_OUTPUTS),
    )  # fmt: skip
    u, *others = jnp.linalg.qr(frame)[0]
    across = jnp.stack(others)
    b = of_samples / jnp.linalg.norm(of_samples, axis=1, keepdims=True) @ across
    x = jnp.sign(signs) * (u + b / 2)
    together = (jnp.arange(RELU_HIDDEN) < group)[:, None]
    c = jnp.vstack([across.sum(axis=0) / len(across) ** 0.5, across])
    weights = c + jnp.where(together, 1, 0.05) * u
    outputs = lambda params, sample: jax.nn.relu(params[0] @ sample) @ params[1]
    rows = jax.vmap(jax.jacrev(outputs), in_axes=(None, 0))((weights, readout), x)
    rows = [leaf.reshape(len(x) * RELU_OUTPUTS, -1) for leaf in rows]
    return jnp.linalg.svd(jnp.concatenate(rows, axis=1), compute_uv=False)


def num_flat(spectrum: np.ndarray, sizes=None) -> np.ndarray:
    """Return how many of `sizes` directions have a singular value of zero, by rounding."""
    moving = np.sum(spectrum > ZERO * spectrum.max(axis=-1, keepdims=True), axis=-1)
    return (spectrum.shape[-1] if sizes is None else np.array(sizes)) - moving


def gap(spectrum: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Return the last singular value within the rank over the first beyond it."""
    rank = np.broadcast_to(rank, spectrum.shape[:-1])[..., None]
    within = np.take_along_axis(spectrum, rank - 1, axis=-1)
    beyond = np.take_along_axis(spectrum, np.minimum(rank, spectrum.shape[-1] - 1), axis=-1)
    return (within / np.maximum(beyond, 1e-300))[..., 0]


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    worst = lambda array: np.abs(array).reshape(len(array), -1).max(axis=1)
    least = lambda array: array.reshape(len(array), -1).min(axis=1)
    found = num_flat(result.spectrum, SIZES)  # (S, A, G, O, L)
    products = np.outer(config.activation_ranks, config.gradient_ranks)
    partial = products < SIZES[0]
    first = gap(result.spectrum[..., 0, :], products[..., None])[:, partial]  # (S, settings, O)
    values = result.hessian[:, ::-1] / result.hessian[:, -1:]
    at = [config.activation_ranks.index(config.example[0]),
          config.gradient_ranks.index(config.example[1])]  # fmt: skip
    whole = np.sum(np.abs(values) < 1e-14, axis=1)
    by_layers = found[:, at[0], at[1], 1].sum(axis=1)
    closing = gap(result.noisy, np.prod(config.example))  # (S, E)
    slope = np.log(closing[:, 0] / closing[:, 2]) / np.log(config.noises[2] / config.noises[0])
    relu = num_flat(result.relu)
    exact = "a count"
    return [
        checks.every_seed("flat directions of a layer, distance from I O - r_a r_g",
                          worst(found - prediction.flat), upper=0.01, why=exact),
        checks.every_seed("the same by the ranks that the library finds",
                          worst(result.flat - prediction.flat), upper=0.01, why=exact),
        checks.every_seed("singular value within the rank over that beyond, first layer, least",
                          least(first), lower=1e6, why="rounding; pilots 8e8 in 400 seeds"),
        checks.every_seed("flat directions of the loss, distance from the count",
                          np.abs(whole - prediction.whole), upper=0.01, why=exact),
        checks.every_seed("flat directions of the loss less those of its layers", whole - by_layers,
                          lower=0, why="what moves in one layer only stays flat in the whole"),
        checks.every_seed("flat directions of the ReLUs, distance from the count",
                          worst(relu - prediction.relu), upper=0.01, why=exact),
        checks.every_seed("exponent of the gap in the noise on the inputs", -slope, lower=-1.01,
                          upper=-0.99, why="first order in ε"),
        checks.every_seed("gap with noise of a tenth", closing[:, -1], upper=10, role="control",
                          why="no gap is left; pilots 3.4 in 400 seeds"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    g = config.gradient_ranks.index(config.example[1])
    for a, r_a in enumerate(config.activation_ranks):
        spectrum = result.spectrum[:, a, g, 1, 0]
        spectrum = spectrum / spectrum[:, :1]
        at = np.arange(1, spectrum.shape[1] + 1)
        plotting.band(left, at, np.maximum(spectrum, 1e-18), color=plotting.COLOURS[a],
                      spread="range", label=f"r$_a$ = {r_a}")  # fmt: skip
        left.axvline(r_a * config.example[1] + 0.5, color="black", linestyle="--", linewidth=0.8)
    left.set(yscale="log", xlabel="number of the singular value, first layer")
    left.set(ylabel="singular value by the largest", title=f"r$_g$ = {config.example[1]}")
    left.legend()
    for e, noise in enumerate(config.noises):
        spectrum = result.noisy[:, e] / result.noisy[:, e, :1]
        plotting.band(middle, np.arange(1, spectrum.shape[1] + 1), spectrum, spread="range",
                      color=plotting.COLOURS[e], label=f"ε = {noise:g}")  # fmt: skip
    middle.set(yscale="log", xlabel="number of the singular value")
    middle.set(ylabel="singular value by the largest")
    middle.legend()
    found = num_flat(result.relu)
    plotting.theory(right, config.groups, prediction.relu, label="h - s + s$^2$")
    plotting.points(right, config.groups, found, label="network of ReLUs")
    right.set(xlabel="ReLUs that fire together s", ylabel="flat directions", ylim=(0, None))
    right.set_xticks(config.groups)
    right.legend()
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-3,
    precision="float64",
    smoke=dict(num_seeds=5),
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
