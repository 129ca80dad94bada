"""Depth over width makes the outputs of random networks heavy-tailed by (1 + 5/n)^depth.

Claim      An output z of a critically initialised bias-free ReLU network with k hidden layers of
           width n has E[z⁴] / 3 E[z²]² = (1 + 5/n)^k over initialisations; deep linear networks
           have (1 + 2/n)^k. That holds at any width, where exp(5k/n) is only the limit of wide
           networks. While E[z²] is kept, a typical network shrinks: the mean of
           the log variance is k times E log g of one layer's gain g, about -5k/2n.
Control    Layers that normalise their activations have Gaussian outputs (ratio 1), whatever the
           depth; with weights of nine tenths of the critical variance E[z²] dies out.
Reference  Roberts, Yaida, Hanin 2022, arXiv:2106.10165, section 3.3 (linear) and chapter 4 (leading
           order, 5k/n); Hanin 2018, arXiv:1801.03744 (exponential in Σ 1/n). Exact form derived in
           dynamics/theory/finite_width_signal.py.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.theory import finite_width_signal as theory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P60",)
PILOT_SEEDS = (101, 102, 103)
ACTIVATIONS = ("relu", "linear")


@dataclasses.dataclass(frozen=True)
class Config:
    widths: tuple[int, ...] = (8, 16, 32)
    moment_aspect: int = 8  # fourth moments at k = n / 8: their error grows as exp(10 k/n)
    deep_aspect: int = 4  # means of z² and of log G at k = n / 4
    weight_scale: float = 1.0  # of the critical variance of the weights; predict does not know it
    normalise: bool = False  # activations, in every layer; predict does not know it
    num_networks: int = 8000  # a seed; 1 % for the ratio over five seeds
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        if any(width % self.moment_aspect or width % self.deep_aspect for width in self.widths):
            message = f"widths={self.widths}: give multiples of moment_aspect and deep_aspect"
            raise ValueError(message)


class Prediction(NamedTuple):
    """A activations, W widths."""

    ratio: Array  # (A, W) E[z⁴] / 3 E[z²]² at k = n / moment_aspect
    second: Array  # (A, W) E[z²] at k = n / deep_aspect
    log_variance: Array  # (A, W) E log G at k = n / deep_aspect, given that G is not zero


class Result(NamedTuple):
    """S seeds, A activations, W widths, K hidden layers 1 to K (NaN beyond n / deep_aspect)."""

    second: Array  # (S, A, W, K) mean over networks of z²
    fourth: Array  # (S, A, W, K) of z⁴
    log_variance: Array  # (S, A, W, K) of log G, over networks that are not dead
    alive: Array  # (S, A, W, K) share of networks with a unit that is on, in every layer so far


def predict(config: Config) -> Prediction:
    """Products over layers of the moments of one gain."""
    table = lambda f: np.array([[f(n, name) for n in config.widths] for name in ACTIVATIONS])
    return Prediction(
        table(lambda n, name: theory.output_moment_ratio(n, n // config.moment_aspect, name)),
        table(lambda n, name: theory.gain_moment(n, 1, name) ** (n // config.deep_aspect)),
        table(lambda n, name: theory.log_gain(n, name).mean * (n // config.deep_aspect)),
    )


def standard_errors(config: Config) -> Prediction:
    """The standard errors of the measurements over all seeds, relative ones for the moments."""
    networks = config.num_networks * config.num_seeds
    table = lambda f: np.array([[f(n, name) for n in config.widths] for name in ACTIVATIONS])

    def of_second(n: int, name: str) -> float:
        squared = theory.gain_moment(n, 2, name) ** (n // config.deep_aspect) * (1 + 2 / n)
        return np.sqrt((squared - 1) / networks)

    moments = lambda n, name: theory.moment_ratio_error(
        n, n // config.moment_aspect, networks, name
    )
    spread = lambda n, name: theory.log_gain(n, name).variance * (n // config.deep_aspect)
    logs = lambda n, name: np.sqrt(spread(n, name) / networks)
    return Prediction(table(moments), table(of_second), table(logs))


def run(config: Config) -> Result:
    """Draw the networks; ReLU and linear ones have the same weights."""
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    repeat = lambda value: jnp.full(config.num_seeds, value)
    # settings as arrays, so that the controls share the compiled programs
    members = (keys, repeat(config.weight_scale), repeat(config.normalise))
    columns = []
    for width in config.widths:
        member = lambda member, width=width: ensemble_of(*member, width, config)
        columns.append(parallel.ensemble(member, members, batching="map"))
    longest = max(config.widths) // config.deep_aspect
    pad = lambda a: jnp.pad(a, ((0, 0), (0, 0), (0, longest - a.shape[2])), constant_values=jnp.nan)
    return Result(
        *(jnp.stack([pad(a) for a in arrays], 2) for arrays in zip(*columns, strict=True))
    )


def ensemble_of(key: Key, scale: Array, normalise: Array, width: int, config: Config) -> Result:
    """Average over the networks of one width, (A, K) each, 500 of them at a time."""
    chunk = min(500, config.num_networks)
    key = jax.random.fold_in(key, width)
    keys = jax.random.split(key, (config.num_networks // chunk, chunk))
    sample = lambda key: network(key, scale, normalise, width, width // config.deep_aspect)

    def of_chunk(chunk_keys: Array) -> tuple[Array, ...]:
        second, fourth, log_variance = jax.vmap(sample)(chunk_keys)  # (N, K, A)
        alive = jnp.isfinite(log_variance)
        logs = jnp.where(alive, log_variance, 0).sum(axis=0)
        return second.mean(axis=0), fourth.mean(axis=0), logs, alive.sum(axis=0)

    second, fourth, logs, alive = jax.lax.map(of_chunk, keys)
    logs, alive = logs.sum(axis=0), alive.sum(axis=0)
    found = Result(second.mean(axis=0), fourth.mean(axis=0), logs / alive, alive / keys.size)
    return jax.tree.map(jnp.transpose, found)


def network(
    key: Key, scale: Array, normalise: Array, width: int, num_hidden: int
) -> tuple[Array, Array, Array]:
    """Return mean z² and z⁴ of the n outputs, and log G, after 1 to K hidden layers, (K, A)."""
    gains = scale * jnp.array([2.0, 1.0])
    keys = jax.random.split(key, 1 + num_hidden)
    x = jnp.ones(width)  # any input will do: only its norm matters
    start = jax.random.normal(keys[0], (width, width)) @ x / width**0.5

    def layer(z: Array, layer_key: Key) -> tuple[Array, tuple[Array, Array, Array]]:
        hidden = jnp.stack([jax.nn.relu(z[0]), z[1]])  # (A, n)
        size = gains * jnp.mean(hidden**2, axis=1)
        kept = jnp.where(normalise, 1 / jnp.maximum(size, 1e-30), 1.0)  # a dead layer stays dead
        weights = jax.random.normal(layer_key, (width, width))
        after = jnp.sqrt(kept * gains / width)[:, None] * (hidden @ weights.T)
        moments = jnp.mean(after**2, axis=1), jnp.mean(after**4, axis=1)
        return after, (*moments, jnp.log(kept * size))

    return jax.lax.scan(layer, jnp.stack([start, start]), keys[1:])[1]


def measured(config: Config, result: Result) -> Prediction:
    """The same quantities as predicted, over the networks of all seeds."""
    second, fourth = (a.mean(axis=0) for a in (result.second, result.fourth))  # (A, W, K)
    logs = (result.log_variance * result.alive).sum(axis=0) / result.alive.sum(axis=0)
    at = lambda array, aspect: np.stack(
        [array[:, i, n // aspect - 1] for i, n in enumerate(config.widths)], axis=1
    )
    ratio = at(fourth / (3 * second**2), config.moment_aspect)
    return Prediction(ratio, at(second, config.deep_aspect), at(logs, config.deep_aspect))


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    found, errors = measured(config, result), standard_errors(config)
    relative = lambda a, b: (a / b - 1) / errors.ratio
    depths = np.array(config.widths) // config.moment_aspect
    exponential = np.exp(np.array([[5.0], [2.0]]) * depths / np.array(config.widths))
    why = "standard errors by theory; 1800 ensembles drawn from the law alone stay below 3.5"
    return [
        checks.every_seed("E[z⁴] / 3 E[z²]² from theory, worst network, standard errors",
                          relative(found.ratio, prediction.ratio), lower=-5, upper=5, why=why),
        checks.every_seed("E[z²] from its value at the input, worst network, standard errors",
                          (found.second / prediction.second - 1) / errors.second,
                          lower=-5, upper=5, why=why),
        checks.every_seed("mean log G from theory, worst network, standard errors",
                          (found.log_variance - prediction.log_variance) / errors.log_variance,
                          lower=-5, upper=5, why="nearly Gaussian, exact standard errors"),
        checks.every_seed("E[z⁴] / 3 E[z²]² above that of infinite width, standard errors",
                          relative(found.ratio, 1.0), lower=8, role="control",
                          why="theory: 20 and more standard errors in the smoke run"),
        checks.below("E[z⁴] / 3 E[z²]² at the least width from exp(5k/n), ReLU, standard errors",
                     relative(found.ratio, exponential)[0, 0], -5, role="control",
                     why="theory 13 % below, 11 standard errors in the smoke run"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, right = figure.subplots(1, 2)
    for a, name in enumerate(ACTIVATIONS):
        for w, width in enumerate(config.widths):
            style = dict(color=plotting.COLOURS[w], marker=plotting.MARKERS[a])
            layers = np.arange(1, width // config.deep_aspect + 1)
            second, fourth = (x[:, a, w, : len(layers)] for x in (result.second, result.fourth))
            label = f"{('ReLU', 'linear')[a]}, n = {width}"
            plotting.points(left, layers / width, fourth / (3 * second**2), label=label, **style)
            logs = result.log_variance[:, a, w, : len(layers)]
            plotting.points(right, layers / width, logs, **style)
            exact = [theory.output_moment_ratio(width, k, name) for k in (0, *layers)]
            colour = plotting.COLOURS[w]
            plotting.theory(left, np.array([0, *layers]) / width, exact, color=colour, label=None)
            ends = np.array([0, layers[-1]])
            mean = theory.log_gain(width, name).mean
            plotting.theory(right, ends / width, mean * ends, color=colour, label=None)
    plotting.theory(left, [], [], color="grey", label="exact")
    plotting.threshold(left, 1, label="infinite width")
    left.set(xlabel="hidden layers / width, k / n", ylabel="E[z⁴] / 3 E[z²]²", yscale="log")
    left.set_yticks([1, 1.5, 2, 3], ["1", "1.5", "2", "3"])
    left.minorticks_off()
    left.legend(fontsize=6)
    right.set(xlabel="hidden layers / width, k / n", ylabel="mean of log G over networks")
    plotting.threshold(right, 0, label="log of the mean of G")
    right.legend()
    plotting.label_panels([left, right])


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=0.15,
    smoke=dict(num_networks=4000),
    controls={
        "normalised layers": contract.Control(
            dict(normalise=True),
            breaks={"E[z⁴] / 3 E[z²]² from theory, worst network, standard errors": "below"},
            why="the variance of a layer no longer carries what earlier layers made of it",
        ),
        "below criticality": contract.Control(
            dict(weight_scale=0.9),
            breaks={"E[z²] from its value at the input, worst network, standard errors": "below"},
            why="the mean gain of a layer is 0.9",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
