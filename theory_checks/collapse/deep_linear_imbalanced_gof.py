"""Imbalanced classes end as orthogonal frames whose lengths follow from class size and depth.

Claim      Bias-free squared loss with weight decay on free features and M linear layers: momentum
           gradient descent from random starts that are not too small ends at the global minimum.
           There classes are orthogonal, and the squared lengths of classifier rows and class means
           are the closed-form functions of n_k, M and the decays. Larger classes have longer rows
           and, as long as p_k > N λ_H (always so from M = 2 on), shorter means.
Control    Without decay neither collapse nor these lengths; with a free bias the classes are not
           orthogonal; the balanced formula errs by a fifth and more at the largest and smallest.
Reference  Dang et al. 2023, arXiv:2301.00437. Their code compares after division by the Frobenius
           norm, which hides errors of scale, and takes the largest root without asking whether zero
           is lower; lengths here are absolute and the minimum is the global one.
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
    class_sizes: tuple[int, ...] = (20, 10, 6, 4)  # from large to small
    depths: tuple[int, ...] = (1, 2, 3)
    weight_decays: tuple[float, ...] = (0.02, 0.01, 0.01)  # one a depth; of every matrix
    feature_decays: tuple[float, ...] = (0.01, 0.005, 0.003)  # one a depth
    decay_scale: float = 1.0  # of both decays in training; predict does not know it
    bias_scale: float = 0.0  # 1 trains a last bias too; predict does not know it
    width: int = 12
    init_std: float = 0.4  # zero is a minimum too, and far starts diverge: none of 4000 at depth 3
    learning_rate: float = 0.05
    momentum: float = 0.9
    num_steps: int = 16_000  # the slowest direction decays as exp(-λ_H η t / (1 - momentum))
    num_times: int = 33
    num_seeds: int = 10
    seed: int = 1

    def __post_init__(self):
        lengths = {len(self.depths), len(self.weight_decays), len(self.feature_decays)}
        if len(lengths) != 1:
            message = f"depths={self.depths}: give as many weight_decays and feature_decays"
            raise ValueError(message)
        if list(self.class_sizes) != sorted(self.class_sizes, reverse=True):
            message = f"class_sizes={self.class_sizes}: order them from large to small"
            raise ValueError(message)


class Prediction(NamedTuple):
    """M depths, K classes, X sizes of a class among N samples."""

    classifier: Array  # (M, K) squared lengths of the classifier's rows
    features: Array  # (M, K) squared lengths of the class means
    alignment: Array  # (M, K) products of the two
    loss: Array  # (M,) at the global minimum
    balanced: Array  # (M,) squared length of a row if all classes had N / K samples
    sizes: Array  # (X,)
    classifier_curve: Array  # (M, X)
    features_curve: Array  # (M, X)


class Result(NamedTuple):
    """S seeds, M depths, T times, K classes."""

    step: Array  # (S, M, T)
    loss: Array  # (S, M, T) with decay
    within: Array  # (S, M, T) tr Σ_W / tr Σ_B
    classifier: Array  # (S, M, K, K) Gram matrix of the classifier's rows at the end
    features: Array  # (S, M, K, K) Gram matrix of the class means at the end, not centred
    nc2: Array  # (S, M) distance from the predicted frame, each divided by its norm
    nc3: Array  # (S, M)


class Setting(NamedTuple):
    """What differs from network to network; arrays, so that controls share the compiled program."""

    depth: Array
    weight_decay: Array
    feature_decay: Array
    bias_scale: Array


def settings(config: Config) -> Setting:
    """Return the settings of all depths (M,)."""
    decays = (jnp.array(config.weight_decays), jnp.array(config.feature_decays))
    return Setting(jnp.array(config.depths), *decays, jnp.full(len(decays[0]), config.bias_scale))


def predict(config: Config) -> Prediction:
    """Minimise 1 / (1 + u) + β u^(1/M) for each class, zero included."""
    sizes, samples = np.array(config.class_sizes), sum(config.class_sizes)
    curve_sizes = jnp.linspace(0.05 * samples, 0.6 * samples, 100)

    def at(setting: Setting) -> tuple[Array, ...]:
        minimise = lambda sizes: theory.minimiser(
            sizes, weight_decay=setting.weight_decay, feature_decay=setting.feature_decay,
            depth=setting.depth,
        )  # fmt: skip
        equal = minimise(jnp.full(len(sizes), samples / len(sizes))).classifier[0]
        curve = jax.vmap(minimise)(jnp.stack([curve_sizes, samples - curve_sizes], axis=1))
        return *minimise(jnp.array(sizes)), equal, curve.classifier[:, 0], curve.features[:, 0]

    *found, classifier_curve, features_curve = jax.jit(jax.vmap(at))(settings(config))
    return Prediction(*found, curve_sizes, classifier_curve, features_curve)


def run(config: Config) -> Result:
    prediction = predict(config)
    frames = collapse.OrthogonalFrame(prediction.features, prediction.alignment)
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    used = settings(config)
    used = used._replace(
        weight_decay=config.decay_scale * used.weight_decay,
        feature_decay=config.decay_scale * used.feature_decay,
    )
    for_every_seed = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (config.num_seeds, *leaf.shape)), (used, frames)
    )
    depths = lambda key, *args: jax.vmap(lambda *one: train(key, *one, config))(*args)
    return parallel.ensemble(lambda member: depths(*member), (keys, *for_every_seed))


def train(key: Key, setting: Setting, frame: collapse.OrthogonalFrame, config: Config) -> Result:
    """Train one network; `frame` is the target from which its collapse is measured."""
    num_classes, samples = len(config.class_sizes), sum(config.class_sizes)
    labels = np.repeat(np.arange(num_classes), config.class_sizes)
    params = free_features.init(
        key, num_samples=samples, width=config.width, num_classes=num_classes,
        num_hidden=max(config.depths) - 1, std=config.init_std,
    )  # fmt: skip
    loss = lambda params: free_features.regularised_loss(
        params, jnp.eye(num_classes)[labels], num_samples=samples, **setting._asdict()
    )

    def measure(state):
        features = state.params.features
        within = collapse.within_between_ratio(features, labels, num_classes=num_classes)
        return loss(state.params), within

    optimiser = optax.sgd(config.learning_rate, momentum=config.momentum)
    times = np.linspace(0, config.num_steps, config.num_times).astype(int)
    (losses, within), state = trajectory.record_with_state(
        step.optax_step(loss, optimiser), step.initial_state(params, optimiser), measure,
        times=times,
    )  # fmt: skip
    features, kernel = state.params.features, free_features.kernel(state.params, setting.depth)
    means = (
        jax.ops.segment_sum(features, labels, num_classes) / np.array(config.class_sizes)[:, None]
    )
    found = collapse.neural_collapse(features, labels, kernel, num_classes=num_classes, frame=frame)
    grams = (kernel.T @ kernel, means @ means.T)
    return Result(jnp.array(times), losses, within, *grams, found.nc2, found.nc3)


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    rows, means = (np.diagonal(g, axis1=2, axis2=3) for g in (result.classifier, result.features))
    worst = lambda array: np.abs(array).reshape(len(array), -1).max(axis=1)  # (S,)
    off = result.classifier - rows[..., None] * np.eye(rows.shape[-1])
    off = np.abs(off).max(axis=(2, 3)) / rows.max(axis=2)  # (S, M)
    balanced = np.abs(prediction.balanced[:, None] / rows[:, :, [0, -1]] - 1)
    normalise = lambda gram: gram / np.linalg.norm(gram, axis=(-2, -1), keepdims=True)
    equal = normalise(result.features) - normalise(np.eye(rows.shape[-1]))
    equal = np.linalg.norm(equal, axis=(2, 3))  # (S, M)
    exact = "training converges to rounding, 1e-14 in pilots; a wrong formula is off by 0.1"
    gone = "falls as exp(-2 λ_H η t / (1 - momentum)), to 1e-20; without decay it stays above 0.1"
    error = lambda name, values: checks.every_seed(name, worst(values), upper=1e-9, why=exact)
    return [
        checks.stays_finite("steps on which the loss is finite", result.step[0, 0], result.loss,
                            mend="lower learning_rate or init_std"),
        error("relative error of the squared lengths of the rows",
              rows / prediction.classifier - 1),
        error("relative error of the squared lengths of the class means",
              means / prediction.features - 1),
        error("relative excess of the loss over the global minimum",
              result.loss[:, :, -1] / prediction.loss - 1),
        error("largest product of two rows by the largest squared length", off),
        error("NC2 from the predicted frame", result.nc2),
        error("NC3 from the predicted frame", result.nc3),
        checks.every_seed("tr Σ_W / tr Σ_B", worst(result.within[:, :, -1]), upper=1e-12, why=gone),
        checks.above("smallest rise in row length from a class to the next larger",
                     -np.diff(rows).max(), 0.1, why="rows grow with the class: theory 0.3"),
        checks.above("smallest fall in mean length from a class to the next larger",
                     np.diff(means).min(), 0.03, why="means shrink with the class: theory 0.06"),
        checks.above("relative error of the balanced formula at largest and smallest class",
                     balanced.min(), 0.2, role="control",
                     why="class size matters: theory 0.34 and more, whatever the seed"),
        checks.above("NC2 from a frame of equal lengths", equal.min(), 0.1,
                     role="control", why="the frame is not that of balanced classes: pilots 0.2"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    figure.set_size_inches(7.2, 5.0)
    top, bottom = figure.add_gridspec(2, 1, height_ratios=(1.2, 1))
    upper = [figure.add_subplot(cell) for cell in top.subgridspec(1, 2)]
    lower = [figure.add_subplot(c) for c in bottom.subgridspec(1, 3, width_ratios=(1, 1, 1.7))]
    sizes = np.array(config.class_sizes)
    drawn = (("classifier", "squared length of row, $p_k$"),
             ("features", "squared length of mean, $|h_k|^2$"))  # fmt: skip
    for axes, (name, label) in zip(upper, drawn, strict=True):
        for i, depth in enumerate(config.depths):
            colour, marker = plotting.COLOURS[i], plotting.MARKERS[i]
            measured = np.diagonal(getattr(result, name)[:, i], axis1=1, axis2=2)
            plotting.theory(axes, prediction.sizes, getattr(prediction, name + "_curve")[i],
                            color=colour, label=None)  # fmt: skip
            plotting.points(
                axes, sizes, measured, color=colour, marker=marker, label=f"M = {depth}"
            )
        plotting.theory(axes, [], [], label="theory")
        axes.set(ylabel=label, ylim=(0, None))
        axes.set_xlabel(f"samples in the class, $n_k$ (of {sizes.sum()})")
    upper[0].legend(title="layers", title_fontsize=7)
    titles = ("rows · rows", "means · means")
    for axes, name, title in zip(lower, ("classifier", "features"), titles, strict=False):
        gram = getattr(result, name)[:, -1].mean(axis=0)
        image = axes.imshow(gram / gram.max(), cmap="Blues", vmin=0, vmax=1)
        ticks = range(len(sizes))
        axes.set(xticks=ticks, yticks=ticks, xticklabels=sizes, yticklabels=sizes,
                 xlabel="class of $n_k$ samples", title=title)  # fmt: skip
        axes.grid(False)
    figure.colorbar(image, ax=lower[:2], shrink=0.75, location="left",
                    label=f"M = {config.depths[-1]}, by the largest")  # fmt: skip
    for i, depth in enumerate(config.depths):
        plotting.band(lower[2], result.step[0, i], np.maximum(result.within[:, i], 1e-32),
                      color=plotting.COLOURS[i], label=f"M = {depth}", spread="log")  # fmt: skip
    lower[2].set(xlabel="step", ylabel="tr Σ$_W$ / tr Σ$_B$", yscale="log")
    plotting.threshold(lower[2], 1e-12, label="bound of the check")
    lower[2].legend()
    plotting.label_panels([*upper, *lower])


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-7,
    precision="float64",
    smoke=dict(num_steps=12_000, num_seeds=5),
    controls={
        "no decay": contract.Control(
            dict(decay_scale=0.0),
            breaks={
                "relative error of the squared lengths of the rows": "above",
                "tr Σ_W / tr Σ_B": "above",
            },
            why="nothing pays for length, and the spread within classes has no reason to go",
            needs=("steps on which the loss is finite",),
        ),
        "free last bias": contract.Control(
            dict(bias_scale=1.0),
            breaks={"largest product of two rows by the largest squared length": "above"},
            why="the bias takes the mean of the targets, and what is left is not orthogonal",
            needs=("steps on which the loss is finite",),
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
