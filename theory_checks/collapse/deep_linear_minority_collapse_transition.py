"""The rarest class vanishes continuously with one linear layer, and by a jump with more.

Claim      Two classes of 12 samples and one of m, squared loss, decay on free features and M linear
           layers. As m falls, the squared length of the rare class's row at the global minimum goes
           to zero continuously at β = 1 for M = 1, but drops from N λ_H (M - 1) to zero at
           β = (M-1)^((M-1)/M) / M for M >= 2, where β = M N λ_W (N λ_H)^(1/M) / m. Up to
           a spinodal zero and the other minimum are both stable, and the start decides.
Control    At M = 1 the start does not matter; with decays a thousand times smaller no class is
           lost; small starts alone miss the global minimum.
Reference  Dang et al. 2023, arXiv:2301.00437; threshold, jump and spinodal derived here. Between
           threshold and spinodal the largest root of the stationarity equation, which their code
           takes, is not the global minimum.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.models import free_features
from dynamics.theory import deep_linear_collapse as theory
from dynamics.training import step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P91",)
PILOT_SEEDS = (101, 102, 103)
LARGE, SMALL, RANDOM = range(3)  # starts of the rare class


@dataclasses.dataclass(frozen=True)
class Config:
    rare_sizes: tuple[int, ...] = (2, 3, 4, 5, 6)
    common_size: int = 12
    # One set of decays an entry; two a depth, so that β takes twice as many values.
    depths: tuple[int, ...] = (1, 1, 2, 2, 3, 3)
    weight_decays: tuple[float, ...] = (0.091, 0.114, 0.05, 0.0575, 0.0245, 0.0285)
    feature_decays: tuple[float, ...] = (0.04, 0.04, 0.02, 0.02, 0.02, 0.02)
    decay_scale: float = 1.0  # of both decays in training; predict does not know it
    large_start: float = 1.0  # singular value with which the rare class starts in the large start
    noise_std: float = 0.05  # added to every planted start
    random_std: float = 0.4  # of the start that is nothing but noise
    width: int = 5
    learning_rate: float = 0.1  # 0.2 throws some large starts over the barrier at M = 3
    momentum: float = 0.9
    num_steps: int = 3600  # slow next to β = 1, as exp(-λ_H (1 - √β) t)
    num_seeds: int = 5
    seed: int = 1


class Prediction(NamedTuple):
    """C sets of decays, R sizes of the rare class, X prices on a fine grid."""

    price: Array  # (C, R) β of the rare class
    unit: Array  # (C, R) N λ_H, in which lengths are measured
    length: Array  # (C, R) squared length of the rare class's row at the global minimum
    outer: Array  # (C, R) at the minimum of non-zero length, where there is one
    loss: Array  # (C, R) of the global minimum
    threshold: Array  # (C,)
    spinodal: Array  # (C,)
    grid: Array  # (X,) β
    length_curve: Array  # (C, X) by N λ_H
    outer_curve: Array  # (C, X) by N λ_H


class Result(NamedTuple):
    """S seeds, C sets of decays, R sizes of the rare class, 3 starts: large, small, random."""

    length: Array  # (S, C, R, 3) squared length of the rare class's row at the end
    loss: Array  # (S, C, R, 3) with decay, at the end


def conditions(config: Config) -> tuple[Array, Array, Array]:
    """Return depths and decays, each (C,)."""
    each = (config.depths, config.weight_decays, config.feature_decays)
    return tuple(jnp.array(values) for values in each)


def predict(config: Config) -> Prediction:
    """Minimise g(u) = 1 / (1 + u) + β u^(1/M) for each class, with zero and without."""
    grid = jnp.linspace(0.3, 1.3, 500)

    def at(depth: Array, weight_decay: Array, feature_decay: Array) -> tuple[Array, ...]:
        def one(rare: Array) -> tuple[Array, ...]:
            sizes = jnp.append(jnp.full(2, float(config.common_size)), rare)
            given = dict(weight_decay=weight_decay, feature_decay=feature_decay, depth=depth)
            found = theory.minimiser(sizes, **given)
            outer = theory.minimiser(sizes, **given, branch="outer")
            price, unit = theory.price(sizes, **given)[-1], jnp.sum(sizes) * feature_decay
            return price, unit, found.classifier[-1], outer.classifier[-1], found.loss

        curves = [theory.scaled_length(grid, depth, branch=name) for name in theory.BRANCHES]
        cells = jax.vmap(one)(jnp.array(config.rare_sizes))
        return *cells, theory.threshold(depth), theory.spinodal(depth), *curves

    *found, length_curve, outer_curve = jax.jit(jax.vmap(at))(*conditions(config))
    return Prediction(*found, grid, length_curve, outer_curve)


def run(config: Config) -> Result:
    """Train every cell of (set of decays, size of the rare class, start), all independent."""
    shape = (len(config.depths), len(config.rare_sizes), 3)
    which, rare, start = (index.ravel() for index in jnp.indices(shape))
    depth, weight_decay, feature_decay = (leaf[which] for leaf in conditions(config))
    decays = (config.decay_scale * weight_decay, config.decay_scale * feature_decay)
    amplitude = jnp.array([config.large_start, 0.0, 0.0])[start]
    cells = (depth, *decays, jnp.array(config.rare_sizes)[rare], start == RANDOM, amplitude)

    def seed(member) -> Result:
        keys = jax.random.split(member[0], len(which))
        return jax.vmap(lambda *args: train(*args, config))(keys, *member[1])

    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    repeat = lambda leaf: jnp.broadcast_to(leaf, (config.num_seeds, *leaf.shape))
    found = parallel.ensemble(seed, (keys, jax.tree.map(repeat, cells)))
    return jax.tree.map(lambda leaf: leaf.reshape(config.num_seeds, *shape), found)


def train(key: Key, depth, weight_decay, feature_decay, rare, random, amplitude, config) -> Result:
    """Train one network from one start; samples that the rare class lacks are rows of zeros."""
    labels = np.repeat(np.arange(3), [config.common_size] * 2 + [max(config.rare_sizes)])
    present = (np.arange(len(labels)) < 2 * config.common_size + rare)[:, None]
    targets = jnp.where(present, jnp.eye(3)[labels], 0.0)
    std = jnp.where(random, config.random_std, config.noise_std)
    params = free_features.init(
        key, num_samples=len(labels), width=config.width, num_classes=3,
        num_hidden=max(config.depths) - 1, std=std,
    )  # fmt: skip
    # Planted: the common classes start at length one along two axes, the rare one along a third.
    plant = jnp.where(random, 0.0, jnp.append(jnp.ones(2), amplitude))
    axes = jnp.zeros(config.width).at[:3].set(plant)
    params = params._replace(
        features=jnp.where(present, params.features + jnp.diag(axes)[labels], 0.0),
        hidden=params.hidden + jnp.diag(axes),
        last=params.last + jnp.diag(axes)[:, :3],
    )

    def loss(params):
        return free_features.regularised_loss(
            params, targets, depth=depth, num_samples=2 * config.common_size + rare,
            weight_decay=weight_decay, feature_decay=feature_decay,
        )  # fmt: skip

    def measure(state):
        kernel = free_features.kernel(state.params, depth)
        return Result(jnp.sum(kernel[:, -1] ** 2), loss(state.params))

    optimiser = optax.sgd(config.learning_rate, momentum=config.momentum)
    found = trajectory.record(
        step.optax_step(loss, optimiser), step.initial_state(params, optimiser), measure,
        times=[config.num_steps],
    )  # fmt: skip
    return jax.tree.map(lambda leaf: leaf[0], found)


def best_of(result: Result) -> np.ndarray:
    """Length at the start that ended lowest in loss: (S, C, R)."""
    lowest = result.loss.argmin(axis=-1)[..., None]
    return np.take_along_axis(result.length, lowest, axis=-1)[..., 0]


def gain_of(config: Config, result: Result) -> np.ndarray:
    """Return g(u) - 1, what the class adds to the loss by being there: (S, C, R)."""
    rare = np.array(config.rare_sizes)
    change = result.loss[..., LARGE] - result.loss[..., SMALL]
    return change * 2 * (2 * config.common_size + rare) / rare


def crossings(config: Config, prediction: Prediction, result: Result) -> np.ndarray:
    """Where the gain changes sign by interpolation, by the threshold: (S, depths above one)."""
    gain, depths, found = gain_of(config, result), np.array(config.depths), []
    for depth in sorted(set(config.depths) - {1}):
        chosen = (depths == depth)[:, None] & (prediction.price < prediction.spinodal[:, None])
        order = np.argsort(prediction.price[chosen])
        price, threshold = prediction.price[chosen][order], prediction.threshold[depths == depth]
        found.append([np.interp(0, g[chosen][order], price) / threshold[0] for g in gain])
    return np.transpose(found)


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    deep = np.array(config.depths) > 1
    best, by_unit = best_of(result), best_of(result) / prediction.unit
    metastable = (prediction.price > prediction.threshold[:, None]) & (prediction.outer > 0)
    alive = prediction.length > 0
    worst = lambda array: np.abs(array).reshape(len(array), -1).max(axis=1, initial=0)
    smallest = lambda array, cells: array[:, cells].min(axis=1, initial=np.inf)  # (S,)
    stays = (result.length[..., LARGE] - prediction.outer)[:, metastable]
    apart = (result.length[..., LARGE] - result.length[..., SMALL])[:, ~deep]
    jump = np.maximum(np.array(config.depths) - 1, 1)[:, None]
    slow = "training is slow near β = 1: 1e-10 in pilots; a jump, or none, is off by 0.3"
    return [
        checks.below("runs that diverge", np.sum(~np.isfinite(result.loss)), 0,
                     role="precondition",
                     why="minima are compared: lower learning_rate or random_std"),
        checks.above("cells between threshold and spinodal", metastable.sum(), 1,
                     role="precondition", why="the largest root errs there: change rare_sizes"),
        checks.every_seed("largest error of the length, best start",
                          worst(best - prediction.length), upper=1e-6, why=slow),
        checks.every_seed("largest relative excess of the loss, best start",
                          worst(result.loss.min(axis=-1) / prediction.loss - 1), upper=1e-9,
                          why="the deepest point found is the predicted one: 1e-14 in pilots"),
        checks.every_seed("largest error of the metastable length, large start", worst(stays),
                          upper=1e-6, why="it stays up to the spinodal: 1e-14 in pilots"),
        checks.every_seed("largest length for M >= 2, small start",
                          worst(result.length[:, deep, :, SMALL]), upper=1e-9,
                          why="zero is a local minimum at every β: rounding alone in pilots"),
        checks.every_seed("β where the minima are equally deep, by theory",
                          crossings(config, prediction, result), lower=0.98, upper=1.02,
                          why="linear interpolation between cells errs by 0.1 %, all of theory"),
        checks.every_seed("smallest length above zero for M >= 2, by the jump N λ_H (M - 1)",
                          smallest(by_unit / jump, alive & deep[:, None]), lower=1 - 1e-6,
                          upper=1.2, why="nothing below the jump; whole m come near: theory 1.11"),
        checks.every_seed("smallest length above zero for M = 1, by N λ_H",
                          smallest(by_unit, alive & ~deep[:, None]), upper=0.1,
                          why="no jump: theory 0.058 at the nearest cell, against 1 at M = 2"),
        checks.every_seed("largest difference between starts for M = 1", worst(apart), upper=1e-6,
                          why="one minimum: " + slow, role="control"),
        checks.every_seed("smallest error of the largest root between threshold and spinodal",
                          smallest(np.abs(prediction.outer - best), metastable), lower=0.3,
                          why="zero is the deeper minimum there: theory 0.34 and more",
                          role="control"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    figure.set_size_inches(7.2, 5.0)
    panels = figure.subplots(2, 2).ravel()
    depths, grid = np.array(config.depths), prediction.grid
    shown = ((LARGE, "large start", plotting.COLOURS[0], "o", 5.5, "none"),
             (SMALL, "small start", plotting.COLOURS[1], "s", 3, plotting.COLOURS[1]))  # fmt: skip
    for axes, depth in zip(panels, sorted(set(config.depths)), strict=False):
        first = list(config.depths).index(depth)
        end, last = prediction.threshold[first], prediction.spinodal[first]
        alive = np.where(grid <= end, prediction.length_curve[first], np.nan)
        plotting.theory(axes, grid, alive, linestyle="-", label="global minimum")
        plotting.theory(axes, [end, grid[-1]], [0, 0], linestyle="-", label=None)
        if depth > 1:
            away = np.where((grid > end) & (grid <= last), prediction.outer_curve[first], np.nan)
            plotting.theory(axes, grid, away, label="local minimum")
            plotting.theory(axes, [grid[0], end], [0, 0], label=None)
            axes.axvline(last, color="black", linestyle="-.", linewidth=0.8, label="spinodal")
        axes.axvline(end, color="black", linestyle=":", linewidth=1, label="threshold")
        cells = (depths == depth)[:, None] & (prediction.price > grid[0])
        cells &= prediction.price < grid[-1]
        for start, label, colour, marker, size, face in shown:
            lengths = (result.length[..., start] / prediction.unit)[:, cells]
            style = dict(color=colour, marker=marker, markersize=size, markerfacecolor=face)
            plotting.points(axes, prediction.price[cells], lengths, label=label, zorder=4, **style)
        axes.set(xlabel="price β of the rare class", ylabel="squared length, $p$ / N λ$_H$",
                 title=f"M = {depth} layer{'s' * (depth > 1)}")  # fmt: skip
        axes.legend()
    axes, gain = panels[-1], gain_of(config, result)
    for depth in sorted(set(config.depths) - {1}):
        first, colour = list(config.depths).index(depth), plotting.COLOURS[depth]
        lives = grid < prediction.spinodal[first]
        u, beta = prediction.outer_curve[first][lives], grid[lives]
        plotting.theory(axes, beta, 1 / (1 + u) + beta * u ** (1 / depth) - 1, color=colour,
                        label=f"theory, M = {depth}")  # fmt: skip
        cells = (depths == depth)[:, None] & (prediction.price > grid[0]) & (prediction.outer > 0)
        style = dict(color=colour, marker=plotting.MARKERS[depth], label=f"runs, M = {depth}")
        plotting.points(axes, prediction.price[cells], gain[:, cells], **style)
        axes.axvline(prediction.threshold[first], color=colour, linestyle=":", linewidth=1)
    plotting.threshold(axes, 0.0, label="equally deep")
    axes.set(xlabel="price β of the rare class", ylabel="loss of being there, $g(u) - 1$",
             title="which minimum is deeper")  # fmt: skip
    axes.legend()
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-5,
    precision="float64",
    smoke=dict(num_seeds=2, rare_sizes=(2, 3, 4, 6)),
    controls={
        "decays a thousand times smaller": contract.Control(
            dict(decay_scale=1e-3),
            breaks={"largest error of the length, best start": "above"},
            why="length costs next to nothing, and no class is too rare for it",
            needs=("runs that diverge",),
        ),
        "small starts alone": contract.Control(
            dict(large_start=0.0),
            breaks={"largest error of the length, best start": "above"},
            why="zero is a local minimum, and small starts end in it where it is not the deepest",
            needs=("runs that diverge",),
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
