"""Removing a weight costs w²/(2 [F^-1]) exactly, and pruning by that beats pruning by size.

Claim      At the minimum of a ridge regression, whose loss has the curvature F = λ I + X^T X / N,
           removing weight i with the matrix-free compensation raises the loss by exactly
           w_i² / (2 [F^-1]_ii). Weights removed one by one in that order leave a loss several times
           below that of the smallest weights removed, even where the rest is refitted optimally.
           The Fisher matrix of the labels, r² x x^T, ranks removals alike where noise is even.
Control    On inputs whitened in the sample, F ~ I, all orders are one. Where half of the samples
           are quieter and drive their own half of the weights, the Fisher matrix of the labels
           ranks worse, though the loss and its curvature are the same.
Reference  Frantar, Kurtic and Alistarh 2021, arXiv:2107.03356; Hassibi and Stork 1992. Noise that
           grows with one input, as one might think of, is no control: for Gaussian inputs it moves
           one entry of the diagonal of F^-1 (Isserlis).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.measure import inverse_fisher, optimal_brain_surgeon, statistics
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P40",)
PILOT_SEEDS = (101, 102, 103)
DATA = ("uneven", "whitened", "two halves, even noise", "two halves, uneven noise")
METHODS = ("size", "size, refitted", "w² F", "surgeon", "surgeon, labels' Fisher")
WEAK = 0.03  # inputs of the half of the weights that a sample does not drive


@dataclasses.dataclass(frozen=True)
class Config:
    num_inputs: int = 60  # d
    num_samples: int = 300  # N
    spread: float = 1e3  # largest over least eigenvalue of the covariance of the inputs
    damping: float = 1e-4  # λ, with eigenvalues of the covariance from 1 downwards
    noise_std: float = 0.1
    noise_ratio: float = 30.0  # by which half of the samples are quieter, in the last kind of data
    removed_share: float = 0.8
    num_seeds: int = 30
    seed: int = 1

    @property
    def num_removed(self) -> int:
        """Weights removed in all."""
        return round(self.removed_share * self.num_inputs)


class Prediction(NamedTuple):
    """S seeds, C kinds of data, d weights."""

    increase: Array  # (S, C, d) of the loss, by removing each weight alone


class Result(NamedTuple):
    """As in Prediction; M methods, R removals."""

    increase: Array  # (S, C, d) of the loss on the data
    by_labels: Array  # (S, C, d) as the Fisher matrix of the labels has it
    loss: Array  # (S, C, M, R) above the minimum, after each removal
    half_optimal: Array  # (S, C) relative rise of the least loss on the surgeon's half


def draw(key: Key, kind: Array, config: Config) -> tuple[Array, Array]:
    """Return inputs (N, d) and labels (N,) of one of DATA; all kinds share what is random."""
    dim, count = config.num_inputs, config.num_samples
    block = jax.random.normal(key, (dim + 1 + count, dim + 1))  # one draw compiles faster
    turn, weights = jnp.linalg.qr(block[:dim, :dim])[0], block[dim, :dim] / dim**0.5
    plain, noise = block[dim + 1 :, :dim], config.noise_std * block[dim + 1 :, dim]
    spectrum = config.spread ** -jnp.linspace(0, 1, dim)
    uneven = (plain * jnp.sqrt(spectrum)) @ turn.T
    factor = jnp.linalg.cholesky(plain.T @ plain / count)
    white = jax.scipy.linalg.solve_triangular(factor, plain.T, lower=True).T
    first_sample, first_weight = jnp.arange(count) < count // 2, jnp.arange(dim) < dim // 2
    halves = uneven * jnp.where(first_sample[:, None] == first_weight, 1, WEAK)
    inputs = jnp.stack([uneven, white, halves, halves])[kind]
    quieter = jnp.where(first_sample & (kind == 3), config.noise_ratio, 1)
    return inputs, inputs @ weights + noise / quieter


@functools.cache
def drawing(config: Config):
    """Return key -> inputs and labels of every kind: one function for prediction and run."""
    return lambda key: jax.lax.map(lambda c: draw(key, c, config), jnp.arange(len(DATA)))


def drawn(config: Config) -> tuple[Array, Array]:
    """Return inputs (S, C, N, d) and labels (S, C, N)."""
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    return parallel.ensemble(drawing(config), keys, batching="map")


def ridge(inputs, labels, damping: float, library=np):
    """Return the minimum w (d,) of mean (x·w - y)² / 2 + λ |w|² / 2 and its curvature (d, d)."""
    curvature = inputs.T @ inputs / len(inputs) + damping * library.eye(inputs.shape[1])
    return library.linalg.solve(curvature, inputs.T @ labels / len(inputs)), curvature


def predict(config: Config) -> Prediction:
    """Invert the curvature and apply the formula."""
    inputs, labels = map(np.asarray, drawn(config))
    increase = np.zeros((*inputs.shape[:2], config.num_inputs))
    for at in np.ndindex(*inputs.shape[:2]):
        weights, curvature = ridge(inputs[at], labels[at], config.damping)
        increase[at] = weights**2 / (2 * np.diag(np.linalg.inv(curvature)))
    return Prediction(increase)


def run(config: Config) -> Result:
    count = config.num_removed

    def one(data: tuple[Array, Array]) -> tuple[Array, ...]:
        inputs, labels = data
        weights, curvature = ridge(inputs, labels, config.damping, jnp)
        residuals = inputs @ weights - labels
        rise = lambda others: above_minimum(others, weights, inputs, residuals, config.damping)
        inverse = inverse_fisher.invert(inputs, config.damping)
        scale = jnp.mean(residuals**2)
        by_labels = inverse_fisher.invert(residuals[:, None] * inputs, config.damping * scale)
        moved = lambda index: optimal_brain_surgeon.compensated(weights, inverse, index)
        alone = jax.lax.map(lambda index: rise(moved(index)), jnp.arange(len(weights)))
        surgeon = lambda inverse: optimal_brain_surgeon.prune(weights, inverse, count).weights
        by_size = jnp.argsort(jnp.abs(weights))[:count]
        by_diagonal = jnp.argsort(weights**2 * jnp.diagonal(curvature))[:count]
        paths = [
            cut(weights, by_size),
            optimal_brain_surgeon.prune(weights, inverse, count, order=by_size).weights,
            cut(weights, by_diagonal),
            *jax.lax.map(surgeon, jax.tree.map(lambda *a: jnp.stack(a), inverse, by_labels)),
        ]
        losses = jnp.stack([jax.lax.map(rise, path) for path in paths])
        half = paths[3][len(weights) // 2 - 1]
        least = rise(refit(half != 0, weights, curvature))
        return (
            alone,
            optimal_brain_surgeon.saliencies(weights, by_labels) / scale,
            losses,
            rise(half) / least - 1,
        )

    of_seed = lambda member: jax.lax.map(one, member)
    return Result(*parallel.ensemble(of_seed, drawn(config), batching="map"))


def above_minimum(
    others: Array, weights: Array, inputs: Array, residuals: Array, damping: float
) -> Array:
    """Return the loss at `others` less that at `weights`, on the data; a² - b² = (a - b)(a + b)."""
    change = inputs @ (others - weights)
    fit = jnp.mean(change * (change + 2 * residuals))
    return (fit + damping * jnp.sum((others - weights) * (others + weights))) / 2


def cut(weights: Array, order: Array) -> Array:
    """Return the weights (R, d) with those of `order` put to zero one after the other."""
    remove = lambda weights, index: 2 * (weights.at[index].set(0),)
    return jax.lax.scan(remove, weights, order)[1]


def refit(kept: Array, weights: Array, curvature: Array) -> Array:
    """Return the best weights on a support, by one dense solve."""
    both = kept[:, None] & kept
    restricted = jnp.where(both, curvature, 0) + jnp.diag(jnp.where(kept, 0.0, 1.0))
    return jnp.linalg.solve(restricted, jnp.where(kept, curvature @ weights, 0))


def rank_correlations(prediction: Prediction, result: Result) -> np.ndarray:
    """Return Spearman's coefficient (S, C) of the two rankings of single removals."""
    ranks = [scipy.stats.rankdata(a, axis=-1) for a in (prediction.increase, result.by_labels)]
    exact, other = (a - a.mean(axis=-1, keepdims=True) for a in ranks)
    norms = np.linalg.norm(exact, axis=-1) * np.linalg.norm(other, axis=-1)
    return np.sum(exact * other, axis=-1) / norms


def at_half(result: Result, config: Config) -> np.ndarray:
    """Return the losses (S, C, M) with half of the weights removed."""
    return result.loss[..., config.num_inputs // 2 - 1]


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    worst = lambda array: np.abs(array).reshape(len(array), -1).max(axis=1)
    half, rank = at_half(result, config), rank_correlations(prediction, result)
    ratio = half / half[:, :, 3:4]  # to the surgeon's
    gain = statistics.mean_interval(np.log10(ratio[:, 0]))
    return [
        checks.every_seed("rise of the loss by one removal over w²/(2 [F^-1]), distance from one",
                          worst(result.increase / prediction.increase - 1), upper=1e-7,
                          why="ε κ is 1e-12; the least of 1e4 weights hardly moves the residuals"),
        checks.every_seed("surgeon's half over the least loss on it, distance from one",
                          worst(result.half_optimal), upper=1e-9, why="the same, thirty removals"),
        *(checks.above(f"half removed {how}: log10 of the loss over the surgeon's, mean",
                       gain.estimate[i], lower, interval=(gain.lower[i], gain.upper[i]),
                       why="pilots 1.10 and 0.36")
          for i, how, lower in ((0, "by size", 0.5), (1, "by size and refitted", 0.1))),
        checks.every_seed("rank correlation of removals by the labels' Fisher, even noise",
                          rank[:, 0], lower=0.95, why="pilots 0.987 and more"),
        checks.every_seed("whitened: log10 of the loss by any order over the surgeon's, largest",
                          worst(np.log10(ratio[:, 1, :4])), upper=1e-9, role="control",
                          why="one curvature for all weights: one order and no compensation"),
        checks.every_seed("two halves: rank correlation lost to uneven noise",
                          rank[:, 2] - rank[:, 3], lower=0.05, role="control",
                          why="pilots 0.13 and more"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    for c in (0, 1):
        left.loglog(prediction.increase[0, c], result.increase[0, c], plotting.MARKERS[c],
                    color=plotting.COLOURS[c], markersize=3, label=DATA[c])  # fmt: skip
    ends = [prediction.increase[0, :2].min(), prediction.increase[0, :2].max()]
    plotting.theory(left, ends, ends, label="w$^2$ / 2 [F$^{-1}$]")
    left.set(xlabel="predicted rise of the loss", ylabel="rise of the loss, one weight removed")
    left.legend()
    share = np.arange(1, config.num_removed + 1) / config.num_inputs
    for i, method in enumerate(METHODS):
        plotting.band(middle, share, result.loss[:, 0, i], color=plotting.COLOURS[i], spread="log",
                      label=method)  # fmt: skip
    middle.set(yscale="log", xlabel="share of weights removed", ylabel="loss above its minimum")
    middle.legend(loc="lower right")
    rank = rank_correlations(prediction, result)
    for i, c in enumerate((0, 2, 3)):
        at = i + np.linspace(-0.2, 0.2, len(rank))
        right.plot(at, rank[:, c], plotting.MARKERS[i], color=plotting.COLOURS[i])
    right.set_xticks(range(3), ["even", "even\n(halves)", "uneven\n(halves)"])
    right.set(
        xlabel="noise of the labels",
        ylabel="rank correlation with the labels' Fisher",
        xlim=(-0.5, 2.5),
    )
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-5,
    precision="float64",
    smoke=dict(num_inputs=40, num_samples=200, num_seeds=12),
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
