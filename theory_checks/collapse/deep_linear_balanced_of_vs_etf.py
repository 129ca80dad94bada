"""Balanced classes end as an orthogonal frame, and as a simplex once the last bias is free.

Claim      Squared loss with weight decay on free features and M linear layers, K classes of equal
           size: without a bias the rows' Gram matrix ends as p I; with a last bias on which no
           decay acts it ends as p (I - 1 1^T / K), an equiangular tight frame with the same p, and
           the bias is 1/K. Starts are random and not too small: zero is a minimum too for M >= 2.
Control    Each run lies far from the other's frame; weight decay on the bias shifts both bias and
           angles; without decay on weights and features there is no such p.
Reference  Dang et al. 2023, arXiv:2301.00437, balanced case; that p is the same is derived here.
           The frames differ in Gram matrices that are not centred: a centred orthogonal frame is
           itself a simplex, so centred NC2 is zero for both and tells nothing of the bias.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.measure import collapse
from dynamics.models import free_features
from dynamics.theory import deep_linear_collapse as theory
from dynamics.training import step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P91",)
PILOT_SEEDS = (101, 102, 103)


@dataclasses.dataclass(frozen=True)
class Config:
    num_classes: int = 4
    class_size: int = 10
    depths: tuple[int, ...] = (1, 3)
    weight_decay: float = 0.01
    feature_decay: float = 0.003
    decay_scale: float = 1.0  # of both decays in training; predict does not know it
    bias_decay: float = 0.0  # of the last bias; predict does not know it
    width: int = 12  # at 8 and init_std 0.35 a start in 80 loses a class: zero is a minimum too
    init_std: float = 0.4  # no start in 4000 loses a class or diverges, at depth 3
    learning_rate: float = 0.05
    momentum: float = 0.9
    num_steps: int = 20_000  # the slowest direction decays as exp(-λ_H η t / (1 - momentum))
    num_seeds: int = 10
    seed: int = 1


class Prediction(NamedTuple):
    """2 without and with a bias, M depths, K classes."""

    rows: Array  # (2, M, K, K) Gram matrix of the classifier's rows
    means: Array  # (2, M, K, K) of the class means, not centred
    bias: Array  # (2, M, K)
    length: Array  # (M,) p


class Result(NamedTuple):
    """S seeds, the rest as in Prediction; at the end of training."""

    rows: Array  # (S, 2, M, K, K)
    means: Array  # (S, 2, M, K, K)
    bias: Array  # (S, 2, M, K)
    loss: Array  # (S, 2, M)
    centred_nc2: Array  # (S, 2, M) distance of the centred means from a simplex
    nc1: Array  # (S, 2, M)


def predict(config: Config) -> Prediction:
    def at(depth: int, free_bias: bool) -> theory.BalancedMinimiser:
        return theory.balanced_minimiser(
            config.num_classes, config.class_size, weight_decay=config.weight_decay,
            feature_decay=config.feature_decay, depth=depth, free_bias=free_bias,
        )  # fmt: skip

    found = [[at(depth, free_bias) for depth in config.depths] for free_bias in (False, True)]
    stack = lambda name: jnp.array([[getattr(one, name) for one in row] for row in found])
    rows = stack("classifier")
    return Prediction(rows, stack("features"), stack("bias"), rows[0, :, 0, 0])


def run(config: Config) -> Result:
    bias, depth = (a.ravel() for a in jnp.meshgrid(jnp.arange(2), jnp.array(config.depths),
                                                   indexing="ij"))  # fmt: skip
    decays = [config.decay_scale * config.weight_decay, config.decay_scale * config.feature_decay,
              config.bias_decay]  # fmt: skip
    cells = (depth, bias.astype(float), *(jnp.full(len(depth), decay) for decay in decays))
    cells = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (config.num_seeds, *leaf.shape)), cells
    )
    each = lambda key, *cells: jax.vmap(lambda *cell: train(key, *cell, config))(*cells)
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    found = parallel.ensemble(lambda member: each(member[0], *member[1]), (keys, cells))
    shape = (config.num_seeds, 2, len(config.depths))
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[2:]), found)


def train(
    key: Key, depth, bias_scale, weight_decay, feature_decay, bias_decay, config: Config
) -> Result:
    num_classes, samples = config.num_classes, config.num_classes * config.class_size
    labels = np.repeat(np.arange(num_classes), config.class_size)
    params = free_features.init(
        key, num_samples=samples, width=config.width, num_classes=num_classes,
        num_hidden=max(config.depths) - 1, std=config.init_std,
    )  # fmt: skip

    def loss(params):
        fit = free_features.regularised_loss(
            params, jnp.eye(num_classes)[labels], depth=depth, num_samples=samples,
            weight_decay=weight_decay, feature_decay=feature_decay, bias_scale=bias_scale,
        )  # fmt: skip
        return fit + bias_decay / 2 * jnp.sum(params.bias**2)

    optimiser = optax.sgd(config.learning_rate, momentum=config.momentum)
    losses, state = trajectory.record_with_state(
        step.optax_step(loss, optimiser), step.initial_state(params, optimiser),
        lambda state: loss(state.params), times=[config.num_steps],
    )  # fmt: skip
    features, kernel = state.params.features, free_features.kernel(state.params, depth)
    means = features.reshape(num_classes, config.class_size, -1).mean(axis=1)
    found = collapse.neural_collapse(features, labels, kernel, num_classes=num_classes)
    return Result(
        kernel.T @ kernel, means @ means.T, state.params.bias, losses[0], found.nc2, found.nc1
    )


def nc2(grams: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances of Gram matrices from an orthogonal frame and from a simplex."""
    normalise = lambda gram: gram / np.linalg.norm(gram, axis=(-2, -1), keepdims=True)
    frames = (np.eye(num_classes), np.eye(num_classes) - 1 / num_classes)
    found = [np.linalg.norm(normalise(grams) - normalise(f), axis=(-2, -1)) for f in frames]
    return found[0], found[1]


def off_diagonal(grams: np.ndarray) -> np.ndarray:
    """Return off-diagonal entries by the mean of the diagonal: (..., K (K - 1))."""
    num_classes = grams.shape[-1]
    diagonal = np.einsum("...kk->...", grams) / num_classes
    return grams[..., ~np.eye(num_classes, dtype=bool)] / diagonal[..., None]


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    worst = lambda array: np.abs(array).reshape(len(array), -1).max(axis=1)  # (S,)
    exact = "training converges to rounding, 1e-13 in pilots; another frame is off by a third"
    error = lambda name, values: checks.every_seed(name, worst(values), upper=1e-9, why=exact)
    scale = prediction.length[:, None]
    values = np.linalg.eigvalsh(result.rows)  # ascending
    expected = np.linalg.eigvalsh(prediction.rows)
    angle = off_diagonal(result.rows)[:, 1] + 1 / (config.num_classes - 1)
    orthogonal, simplex = nc2(result.means, config.num_classes)
    other = np.stack([simplex[:, 0], orthogonal[:, 1]], axis=1)
    own = np.stack([orthogonal[:, 0], simplex[:, 1]], axis=1)
    return [
        checks.below("runs that diverge", np.sum(~np.isfinite(result.loss)), 0, role="precondition",
                     why="lower learning_rate or init_std"),
        error("error of the rows' Gram matrix, by p",
              (result.rows - prediction.rows) / scale[..., None]),
        error("error of the rows' squared singular values, by p", (values - expected) / scale),
        error("relative error of the means' Gram matrix",
              (result.means - prediction.means) / prediction.means[0, 0, 0, 0]),
        error("products of rows by their length, less -1 / (K - 1), free bias", angle),
        error("error of the bias", result.bias - prediction.bias),
        error("NC2 of the means from the frame of each run", own),
        checks.every_seed("NC1", worst(result.nc1), upper=1e-9,
                          why="falls as exp(-2 λ_H η t / (1 - momentum)), to 1e-29"),
        checks.every_seed("NC2 of the means from the other run's frame", other.min(axis=(1, 2)),
                          lower=0.3, role="control",
                          why="√(2 - 2 √(1 - 1/K)) = 0.52 between the frames at K = 4"),
        checks.every_seed("centred NC2 from the simplex", worst(result.centred_nc2), upper=1e-9,
                          role="control", why="centring hides the difference: both are zero"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    figure.set_size_inches(7.2, 3.9)
    left, right = figure.subfigures(1, 2, width_ratios=(1.25, 1))
    panels = left.subplots(2, len(config.depths), squeeze=False)
    names = ("no bias", "free bias")
    for i, row in enumerate(panels):
        for j, axes in enumerate(row):
            gram = result.rows[:, i, j].mean(axis=0) / prediction.length[j]
            image = axes.imshow(gram, cmap="RdBu_r", vmin=-1, vmax=1)
            for (a, b), value in np.ndenumerate(gram):
                colour = "white" if abs(value) > 0.6 else "black"
                axes.text(b, a, f"{value:.2f}".replace("-0.00", "0.00"), ha="center", va="center",
                          fontsize=5.5, color=colour)  # fmt: skip
            ticks = np.arange(config.num_classes)
            axes.set(xticks=ticks, yticks=ticks, xticklabels=ticks + 1, yticklabels=ticks + 1)
            axes.set_title(f"{names[i]}, M = {config.depths[j]}", loc="right")
            axes.grid(False)
            axes.set_xlabel("class") if i else None
            axes.set_ylabel("class") if not j else None
    left.colorbar(image, ax=panels, shrink=0.5, aspect=15, ticks=(-1, 0, 1),
                  label="product of two rows / p")  # fmt: skip
    top, bottom = right.subplots(2, 1)
    index = np.arange(1, config.num_classes + 1)
    for i, name in enumerate(names):
        for j, depth in enumerate(config.depths):
            colour, marker = plotting.COLOURS[i], plotting.MARKERS[j]
            place = index + 0.09 * (2 * i + j - 1.5)
            values = np.linalg.eigvalsh(result.rows[:, i, j])[:, ::-1] / prediction.length[j]
            plotting.points(
                top, place, values, color=colour, marker=marker, label=f"{name}, M = {depth}"
            )
            plotting.points(bottom, place, result.bias[:, i, j], color=colour, marker=marker)
        expected = np.linalg.eigvalsh(prediction.rows[i, 0])[::-1] / prediction.length[0]
        top.hlines(expected, index - 0.3, index + 0.3, color="black", linewidth=0.8, zorder=0,
                   label=None if i else "theory")  # fmt: skip
        bottom.hlines(prediction.bias[i, 0], index - 0.3, index + 0.3, color="black", linewidth=0.8,
                      zorder=0)  # fmt: skip
    top.set(
        xlabel="eigenvector of the rows' Gram matrix",
        ylabel="eigenvalue / p",
        xticks=index,
        ylim=(-0.08, 1.15),
    )
    top.legend(loc="lower left", bbox_to_anchor=(0, 0.1))
    bottom.set(xlabel="class", ylabel="last bias", xticks=index, ylim=(-0.03, 0.32))
    plotting.label_panels([*panels.ravel(), top, bottom])


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-7,
    precision="float64",
    smoke=dict(num_seeds=5),
    controls={
        "no decay": contract.Control(
            dict(decay_scale=0.0),
            breaks={"error of the rows' squared singular values, by p": "above", "NC1": "above"},
            why="nothing pays for length, and the spread within classes has no reason to go",
            needs=("runs that diverge",),
        ),
        "decay on the bias": contract.Control(
            dict(bias_decay=0.1),
            breaks={
                "error of the bias": "above",
                "products of rows by their length, less -1 / (K - 1), free bias": "above",
            },
            why="a bias that pays stays below 1/K, and the rows carry what it leaves",
            needs=("runs that diverge",),
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
