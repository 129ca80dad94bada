"""On imbalanced digits a trained network's class means have the lengths of a closed form.

Claim      A network trained on real images of ten classes of unequal size, with squared loss and
           decay of the classifier and of the last features, ends on an orthogonal frame whose
           lengths are those of the unconstrained-features minimiser, class by class: the larger
           the class, the longer its classifier row and the shorter its features (as long as the
           squared row is above N λ_H). One and two linear layers on top follow their own laws.
Control    With weight decay on the hidden layers in place of that on the features, the usual
           practice, lengths follow neither law; the formula for equal classes misses by far.
Reference  Dang et al. 2023, arXiv:2301.00437 (theory; features free there, made by a network from
           images here).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from dynamics import parallel
from dynamics.aliases import Array, Params
from dynamics.data import real
from dynamics.measure import class_statistics, collapse
from dynamics.models import mlp
from dynamics.theory import deep_linear_collapse
from dynamics.training import step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P91",)
PILOT_SEEDS = (101, 102, 103)


@dataclasses.dataclass(frozen=True)
class Config:
    class_sizes: tuple[int, ...] = (100, 80, 64, 52, 42, 34, 28, 23, 19, 16)
    depths: tuple[int, ...] = (1, 2)  # linear layers of the classifier
    weight_decays: tuple[float, ...] = (0.01, 0.004)  # so low that no class dies out
    total_feature_decay: float = 0.3  # N λ_H
    decayed: str = "features"  # or "hidden weights", for the control
    widths: tuple[int, ...] = (128, 128)
    learning_rate: float = 3e-3  # of Adam, falling to 0 along a cosine
    num_steps: int = 4000
    num_times: int = 16
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        if (
            len(self.class_sizes) != 10
            or not 1 <= min(self.class_sizes) <= max(self.class_sizes) < 170
        ):
            message = f"class_sizes={self.class_sizes}: give ten, each from 1 to 169"
            raise ValueError(message)
        if len(self.depths) != len(self.weight_decays):
            message = f"weight_decays={self.weight_decays}: give one for each of {self.depths}"
            raise ValueError(message)
        if self.decayed not in ("features", "hidden weights"):
            message = f"decayed={self.decayed!r}: give 'features' or 'hidden weights'"
            raise ValueError(message)


class Prediction(NamedTuple):
    """S seeds, M depths, C classes."""

    classifier: Array  # (S, M, C) squared length of a class's row of the classifier
    features: Array  # (S, M, C) squared length of a class's mean
    alignment: Array  # (S, M, C) product of the two


class Result(NamedTuple):
    """The same, measured, and what else the end of training looks like; T times."""

    step: Array  # (T,)
    classifier: Array  # (S, M, T, C)
    features: Array  # (S, M, T, C)
    alignment: Array  # (S, M, T, C)
    gram: Array  # (S, M, C, C) of class means at the end, the largest class first
    within: Array  # (S, M, T) trace of the covariance within classes over that between them
    train_error: Array  # (S, M) share of images
    sizes: Array  # (S, C)


def ranks_of(config: Config) -> np.ndarray:
    """Return for each seed which of the class sizes each digit has (S, C): drawn."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), config.num_seeds)
    draw = lambda key: jax.random.permutation(key, len(config.class_sizes))
    return np.asarray(jax.vmap(draw)(keys))


def predict(config: Config) -> Prediction:
    """The minimiser with free features, from sizes and decays alone."""
    found = [minimiser(config, config.class_sizes, m) for m in range(len(config.depths))]
    ranks = ranks_of(config)
    of_seeds = lambda name: [getattr(one, name)[ranks] for one in found]  # M arrays (S, C)
    return Prediction(*(jnp.stack(of_seeds(name), axis=1) for name in Prediction._fields))


def minimiser(config: Config, class_sizes: Any, m: int) -> deep_linear_collapse.Minimiser:
    """Return the minimiser for classes of these sizes under the m-th classifier."""
    return jax.jit(deep_linear_collapse.minimiser)(
        jnp.asarray(class_sizes, float), depth=config.depths[m],
        weight_decay=config.weight_decays[m],
        feature_decay=config.total_feature_decay / sum(config.class_sizes),
    )  # fmt: skip


def run(config: Config) -> Result:
    sizes = np.array(config.class_sizes)[ranks_of(config)]
    data = real.digits(1796)
    rows = np.stack([
        np.concatenate([np.flatnonzero(data.train_labels == c)[:n] for c, n in enumerate(of_seed)])
        for of_seed in sizes
    ])  # fmt: skip
    images = data.train_images.reshape(len(data.train_images), -1)
    images = jnp.asarray(images - images.mean(axis=0), float)  # as precise as the run
    labels = jnp.asarray(data.train_labels)
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    times = np.unique(np.geomspace(10, config.num_steps, config.num_times).round().astype(int))
    num = len(config.depths)  # classifiers of each seed: all are members of one program
    settings = np.tile(config.depths, len(keys)), np.tile(config.weight_decays, len(keys))
    members = (jnp.repeat(keys, num), np.repeat(rows, num, axis=0), *map(jnp.asarray, settings))
    one = lambda member: train(config, images, labels, times, member)
    batching = "map" if jax.default_backend() == "cpu" else "auto"  # a fifth faster here
    parts = parallel.ensemble(one, members, batching=batching)
    parts = [leaf.reshape(len(keys), num, *leaf.shape[1:]) for leaf in parts]
    classifier, features, alignment, gram, within, error = parts
    order = np.argsort(-sizes, axis=1)
    ends = np.asarray(gram)[:, :, -1]
    ends = np.stack([g[:, o][:, :, o] for g, o in zip(ends, order, strict=True)])
    return Result(times, classifier, features, alignment, ends, within, error[..., -1], sizes)


def train(config: Config, images, all_labels, times, member) -> tuple[Array, ...]:
    """Train one network on the loss of the theory, its features made from a seed's images."""
    key, rows, depth, decay = member
    x, labels = images[rows], all_labels[rows]  # (N, D)
    network_key, *head_keys = jax.random.split(key, max(config.depths) + 1)
    head_keys = jnp.stack(head_keys)
    num, classes, width = len(rows), len(config.class_sizes), config.widths[-1]
    model = mlp.MLP((*config.widths, classes), activation=nn.leaky_relu, weight_std=2**0.5)
    hidden = model.init(network_key, x)["params"]
    hidden = {name: hidden[name] for name in hidden if name != f"layer_{len(config.widths)}"}
    outs = (classes, *[width] * (max(config.depths) - 1))
    draw = lambda j, out: jax.random.normal(head_keys[depth - 1 - j], (width, out)) / width**0.5
    head = [jnp.where(depth > j, draw(j, out), 0) for j, out in enumerate(outs)]  # 0: has it not
    targets = jax.nn.one_hot(labels, classes)

    def features_of(params: Params) -> Array:
        return activations(params["hidden"], x)

    def product(params: Params) -> Array:
        total, *others = params["head"]  # from the last layer back
        for j, matrix in enumerate(others, start=1):
            total = jnp.where(depth > j, matrix @ total, total)
        return total

    def loss(params: Params) -> Array:
        features = features_of(params)
        fit = jnp.sum((features @ product(params) - targets) ** 2) / num
        squares = lambda tree: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))
        if config.decayed == "features":
            rest = config.total_feature_decay / num * squares(features)
        else:
            rest = decay * squares(params["hidden"])
        return (fit + decay * squares(params["head"]) + rest) / 2

    def measure(state: step.TrainState) -> tuple[Array, ...]:
        features, classifier = features_of(state.params), product(state.params)  # (N, D), (D, C)
        _, means = class_statistics.class_means(features, labels, classes)
        ratio = collapse.within_between_ratio(features, labels, num_classes=classes)
        error = jnp.mean(jnp.argmax(features @ classifier, axis=1) != labels)
        alignment = jnp.sum(classifier.T * means, axis=1)
        squared = jnp.sum(classifier**2, axis=0), jnp.sum(means**2, axis=1)
        return *squared, alignment, means @ means.T, ratio, error

    def activations(layers: Any, h: Array) -> Array:
        for layer in layers.values():
            h = nn.leaky_relu(h @ layer["kernel"] + layer["bias"])
        return h

    optimiser = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.num_steps))
    start = step.initial_state({"hidden": hidden, "head": head}, optimiser)
    return trajectory.record(step.optax_step(loss, optimiser), start, measure, times=times)


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    last = {name: getattr(result, name)[:, :, -1] for name in Prediction._fields}
    worst = {name: np.abs(last[name] / getattr(prediction, name) - 1).max(axis=-1)
             for name in Prediction._fields}  # fmt: skip
    # Lengths from the largest class to the smallest, and each over the next.
    order = np.broadcast_to(np.argsort(-result.sizes, axis=1)[:, None], last["features"].shape)
    sort = lambda values: np.take_along_axis(values, order, axis=-1)
    steps = lambda values: sort(values)[..., :-1] / sort(values)[..., 1:]
    lengths = np.sqrt(np.einsum("smcc->smc", result.gram))
    cosines = result.gram / (lengths[..., :, None] * lengths[..., None, :])
    off = np.abs(cosines * (1 - np.eye(lengths.shape[-1]))).max(axis=(-1, -2))
    every = checks.every_seed
    return [
        checks.stays_finite("steps with finite lengths", result.step, mend="lower the rate",
                            values=(result.classifier + result.features).sum(axis=-1)),
        every("training error at the end", result.train_error, upper=0, role="precondition",
              why="else a class has died out or training was too short: lower weight_decays"),
        every("classifier rows, largest relative error of a squared length", worst["classifier"],
              upper=0.02, why="exact at the minimum; pilots come to 0.005 of it in 4000 steps"),
        every("class means, largest relative error of a squared length", worst["features"],
              upper=0.02, why="exact at the minimum; pilots come to 0.005 of it in 4000 steps"),
        every("outputs of a class, largest relative error", worst["alignment"], upper=0.01,
              why="exact at the minimum; pilots come to 0.0005 of it"),
        every("classifier row / that of the next smaller class", steps(last["classifier"]),
              lower=1.05, why="the order: 1.12 and more by theory"),
        every("class mean / that of the next smaller class", steps(last["features"]), upper=0.99,
              why="the opposite order: 0.95 and less by theory"),
        every("largest cosine between class means", off, upper=0.05,
              why="orthogonal by theory; pilots to 0.01"),
        every("variability within classes / between them", result.within[:, :, -1], upper=0.02,
              why="none by theory; pilots to 0.005"),
        every("the same error of the formula for equal classes", equal_classes(config, last),
              lower=0.2, role="control", why="it is the imbalance that sets the lengths"),
    ]  # fmt: skip


def equal_classes(config: Config, last: dict[str, np.ndarray]) -> np.ndarray:
    """Return the largest error (S, M) of classifier lengths against those of equal classes."""
    mean = np.full(len(config.class_sizes), np.mean(config.class_sizes))
    equal = [minimiser(config, mean, m).classifier for m in range(len(config.depths))]
    return np.abs(last["classifier"] / np.stack(equal) - 1).max(axis=-1)


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    figure.set_size_inches(7.4, 3.2)
    rows, means, errors, gram = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.1])
    order = np.argsort(-result.sizes, axis=1)
    sizes = np.sort(config.class_sizes)[::-1]
    for m, depth in enumerate(config.depths):
        style = {"color": plotting.COLOURS[m]}
        name = f"{depth} linear layer{'s' * (depth > 1)}"
        for axes, field in ((rows, "classifier"), (means, "features")):
            sort = lambda values, m=m: np.take_along_axis(values[:, m], order, axis=-1)
            theory, found = getattr(prediction, field), getattr(result, field)[:, :, -1]
            plotting.theory(axes, sizes, sort(theory)[0], label=None if m else "theory")
            marker = plotting.MARKERS[m]
            plotting.points(axes, sizes, sort(found), label=name, marker=marker, **style)
            error = np.abs(getattr(result, field)[:, m] / theory[:, m, None] - 1).max(axis=-1)
            label, line = (name, "-") if field == "classifier" else (None, ":")
            plotting.band(errors, result.step, error, label=label, linestyle=line, spread="log",
                          **style)  # fmt: skip
    ticks = [16, 32, 64, 100]
    for axes, name in ((rows, "squared classifier row"), (means, "squared class mean")):
        axes.set(xscale="log", yscale="log", xlabel="images in the class", ylabel=name)
        axes.set_xticks(ticks, ticks)
        axes.set_xticks([], minor=True)
    errors.set(xscale="log", yscale="log", xlabel="step")
    errors.set_ylabel("largest relative error (dotted: means)")
    plotting.threshold(errors, 0.02)
    image = gram.imshow(result.gram[0, 0], cmap="Blues", vmin=0)
    gram.set(xticks=[], yticks=[], xlabel="class, largest first")
    figure.colorbar(image, ax=gram, shrink=0.6, label="product of class means")
    figure.legend(*rows.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    plotting.label_panels([rows, means, errors, gram])


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=0.04,
    smoke=dict(depths=(1,), weight_decays=(0.01,), num_seeds=2),
    paper=dict(widths=(512, 512), num_steps=20_000, num_seeds=10),
    controls={
        "decay on the hidden weights": contract.Control(
            # Shorter: the errors it ends with are within 1 % of those after 4000 steps (pilot 101).
            dict(decayed="hidden weights", num_seeds=2, num_steps=2000),
            breaks={
                "classifier rows, largest relative error of a squared length": "above",
                "class means, largest relative error of a squared length": "above",
                "largest cosine between class means": "above",
            },
            why="weights are shared by all images, so a feature costs a large class no more",
            needs=("steps with finite lengths",),
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
