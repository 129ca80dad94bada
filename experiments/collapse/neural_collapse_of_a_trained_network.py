"""Trained past zero error with weight decay, a network's last layer collapses to a simplex.

Claim      On real images, long after the training error is zero, variability within classes goes
           on falling (NC1), class means approach a simplex equiangular tight frame (NC2), the
           classifier aligns with them (NC3) and decides by the nearest class mean (NC4): in a
           fully connected and a convolutional network, under cross-entropy and squared loss.
Control    Without weight decay little of this happens; mixup holds up the collapse within classes;
           with frozen random features nothing happens.
Reference  Papyan et al. 2020, doi:10.1073/pnas.2015509117; mixup: Fisher et al., arXiv:2402.06171.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from dynamics import long_runs
from dynamics.aliases import Array
from dynamics.data import mixup, real
from dynamics.measure import class_statistics, collapse, frames
from dynamics.models import convnet, mlp, resnet
from dynamics.training import batch_norm_step
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P74", "P91", "P92")
PILOT_SEEDS = (101, 102, 103)


class Setting(NamedTuple):
    """How a network is trained; numbers, so that settings share one program."""

    squared: float = 0.0  # 1: squared loss; 0: cross-entropy
    decay: float = 1.0  # in units of Config.weight_decay
    mixup: float = 0.0  # 1: images mixed in pairs by uniform weights; 0: not mixed
    features: float = 1.0  # 0: only the last layer is trained


SETTINGS = {
    "cross-entropy": Setting(),
    "squared": Setting(squared=1.0),
    "no decay": Setting(decay=0.0),
    "mixup": Setting(mixup=1.0),
    "frozen features": Setting(features=0.0),
}
COLLAPSING = ("cross-entropy", "squared")
METRICS = ("nc1", "nc2", "nc3", "nc4")


@dataclasses.dataclass(frozen=True)
class Config:
    conditions: tuple[str, ...] = (  # architecture: setting
        *(f"mlp: {setting}" for setting in SETTINGS),
        *(f"convnet: {setting}" for setting in COLLAPSING),
    )
    data_dir: str = ""  # of CIFAR-10; without it, scikit-learn's digits
    num_images: int = 300
    convnet_images: int = 200  # the first of them
    batch_size: int = 300  # of all images: full-batch descent
    mlp_widths: tuple[int, ...] = (128, 128)
    convnet_channels: tuple[int, ...] = (8, 32, 64)
    resnet_width: int = 64
    resnet_stages: tuple[int, ...] = (2, 2, 2, 2)  # ResNet-18
    mlp_steps: int = 700
    convnet_steps: int = 850
    learning_rate: float = 0.1
    momentum: float = 0.9
    clip: float = 0.3  # norm of a gradient; without, batch norm over shrinking weights bursts
    weight_decay: float = 5e-3  # of all parameters; ten times the papers', for a shorter run
    drops: tuple[float, ...] = (0.5, 0.65, 0.8)  # shares of the run at which the rate falls,
    drop_factor: float = 0.3  # each time by this
    num_times: int = 24
    chunk_size: int = 0  # times between two checkpoints; 0: a short run, without
    engine: str = "jit"
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        for condition in self.conditions:
            architecture, _, setting = condition.partition(": ")
            if architecture not in ("mlp", "convnet", "resnet") or setting not in SETTINGS:
                message = f"conditions: {condition!r}; mlp, convnet or resnet: one of {[*SETTINGS]}"
                raise ValueError(message)
        missing = set(SETTINGS) - {"squared"} - {name.split(": ")[1] for name in self.conditions}
        if missing:
            message = f"conditions: {self.conditions}; add {', '.join(missing)}, for the controls"
            raise ValueError(message)
        given = self.batch_size, self.convnet_images
        if min(given) < 1 or self.batch_size > self.num_images:
            message = f"batch_size, convnet_images={given}: give 1 to num_images={self.num_images}"
            raise ValueError(message)


class Result(NamedTuple):
    """S seeds, K conditions, T times, C classes, B images of the first three classes."""

    step: Array  # (K, T)
    train_error: Array  # (S, K, T) share of images
    nc1: Array  # (S, K, T)
    nc2: Array  # (S, K, T)
    nc3: Array  # (S, K, T)
    nc4: Array  # (S, K, T)
    cosines: Array  # (S, K, T, C, C) of centred class means
    plane: Array  # (S, K, B, 2) last features on the plane of three classifier rows
    plane_label: Array  # (B,)


def run(config: Config, checkpoints: long_runs.Checkpoints | None = None) -> Result:
    """Train every seed in every condition, one program an architecture."""
    data = real.cifar10(config.data_dir) if config.data_dir else real.digits(config.num_images)
    images = jnp.asarray(data.train_images[: config.num_images], float)  # as precise as the run
    labels = data.train_labels[: config.num_images]
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    batching = "map" if jax.default_backend() == "cpu" else "auto"  # map: few pay for mixup
    steps, parts = [], []
    for architecture, names in itertools.groupby(config.conditions, lambda c: c.split(": ")[0]):
        settings = [SETTINGS[name.split(": ")[1]] for name in names]
        num_steps = config.mlp_steps if architecture == "mlp" else config.convnet_steps
        n = config.convnet_images if architecture == "convnet" else config.num_images
        times = np.unique(np.geomspace(10, num_steps, config.num_times).round().astype(int))
        tiled = jax.tree.map(lambda *leaf: jnp.tile(jnp.array(leaf), len(keys)), *settings)
        one = functools.partial(training, config, architecture, images[:n], labels[:n], times[-1])
        members = (jnp.repeat(keys, len(settings)), tiled)
        (*part, plane), _ = long_runs.record_ensemble(
            one, members, times=times, checkpoints=checkpoints, name=architecture,
            chunk_size=config.chunk_size, engine=config.engine, batching=batching)  # fmt: skip
        part.append(plane[:, -1])
        parts.append([leaf.reshape(len(keys), -1, *leaf.shape[1:]) for leaf in part])
        steps += [times] * len(settings)
    joined = [jnp.concatenate(leaves, axis=1) for leaves in zip(*parts, strict=True)]
    return Result(np.stack(steps), *joined, labels[shown(labels[: config.convnet_images])])


def shown(labels: Array) -> np.ndarray:
    """Return which images are drawn: at most 30 of each of the first classes."""
    return np.concatenate([np.flatnonzero(np.asarray(labels) == c)[:30] for c in range(3)])


def make_model(config: Config, architecture: str) -> tuple[Any, str]:
    """Return the network and the name of its last layer."""
    if architecture == "resnet":
        return resnet.ResNet(10, config.resnet_width, config.resnet_stages), "read_out"
    if architecture == "convnet":
        model = convnet.ConvNet(config.convnet_channels, 10, batch_norm=True)
        return model, f"layer_{len(config.convnet_channels)}"
    model = mlp.MLP((*config.mlp_widths, 10), activation=nn.relu, batch_norm=True)
    return model, f"layer_{len(config.mlp_widths)}"


def training(config: Config, architecture: str, images, labels, num_steps: int, member):
    """Return the `Training` of one network with SGD and momentum, its last layer measured."""
    key, setting = member
    init_key, batch_key = jax.random.split(key)
    model, last = make_model(config, architecture)

    def loss(outputs: Array, y: Array) -> Array:
        squared = 0.5 * jnp.mean(jnp.sum((outputs - y) ** 2, axis=1))
        entropy = optax.softmax_cross_entropy(outputs, y).mean()
        return jnp.where(setting.squared > 0, squared, entropy)

    def draw(step: Array):
        rows_key, mixup_key = jax.random.split(jax.random.fold_in(batch_key, step))
        x, y = images, jax.nn.one_hot(labels, 10)
        if config.batch_size < len(x):
            rows = jax.random.choice(rows_key, len(x), (config.batch_size,), replace=False)
            x, y = x[rows], y[rows]
        return jax.lax.cond(setting.mixup > 0, lambda: mixup.mixup(mixup_key, x, y), lambda: (x, y))

    def measure(state: batch_norm_step.BatchNormState):
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        read = functools.partial(model.apply, variables, method="features")
        if config.batch_size >= len(images):  # the statistics of all images, as in training
            features, _ = read(images, train=True, mutable=["batch_stats"])
        else:  # the running ones
            features = jax.lax.map(lambda x: read(x[None])[0], images, batch_size=500)
        kernel, bias = state.params[last]["kernel"], state.params[last]["bias"]
        error = jnp.mean(jnp.argmax(features @ kernel + bias, axis=1) != labels)
        metrics = collapse.neural_collapse(features, labels, kernel, bias, num_classes=10)
        _, means = class_statistics.class_means(features, labels, 10)
        rows = kernel[:, :3].T - kernel[:, :3].mean(axis=1)
        axes = jnp.linalg.svd(rows, full_matrices=False)[2][:2]  # (2, D) the plane of three rows
        plane = (features - features.mean(axis=0))[shown(labels[: config.convnet_images])] @ axes.T
        return error, *metrics, frames.cosines(means - means.mean(axis=0)), plane

    optimiser = make_optimiser(config, num_steps, setting, last)
    start = batch_norm_step.initial_state(model.init(init_key, images[:1]), optimiser)
    update = batch_norm_step.batch_norm_step(model, loss, optimiser, draw)
    return long_runs.Training(update, start, measure)


def make_optimiser(config: Config, num_steps: int, setting: Setting, last: str):
    """Return SGD with momentum and weight decay, on the last layer alone if features are frozen."""
    drops = {int(share * num_steps): config.drop_factor for share in config.drops}
    schedule = optax.piecewise_constant_schedule(config.learning_rate, drops)
    others = lambda updates: {name: name != last for name in updates}
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.add_decayed_weights(config.weight_decay * setting.decay),
        optax.sgd(schedule, config.momentum),
        optax.masked(optax.scale(setting.features), others),
    )


def chosen(config: Config, *settings: str) -> list[int]:
    """Return the indices of the conditions with one of these settings."""
    return [k for k, name in enumerate(config.conditions) if name.split(": ")[1] in settings]


def check(config: Config, result: Result) -> list[checks.Check]:
    fit = np.argmax(result.train_error == 0, axis=-1)  # (S, K) index of the time, 0 if never
    at_fit = lambda values: np.take_along_axis(values, fit[..., None], -1)[..., 0]
    steps = at_fit(np.broadcast_to(result.step, result.nc1.shape))
    share = np.where(at_fit(result.train_error) == 0, steps / result.step[:, -1], np.inf)
    nc1, nc2, nc3 = (v[..., -1] / at_fit(v) for v in (result.nc1, result.nc2, result.nc3))
    main, plain = chosen(config, *COLLAPSING), chosen(config, "no decay")
    mixed, frozen = chosen(config, "mixup"), chosen(config, "frozen features")
    every, control = checks.every_seed, functools.partial(checks.every_seed, role="control")
    return [
        checks.stays_finite("steps with finite collapse", result.step[0], mend="lower the rate",
                            values=(result.nc1 + result.nc2 + result.nc3).sum(axis=1)),
        every("zero training error reached, share of the run", np.delete(share, frozen, axis=1),
              upper=1 / 6, role="precondition", why="five times as long is left; train longer"),
        every("NC1 at the end / at zero error", nc1[:, main], upper=0.1,
              why="an order of magnitude; pilots 0.003 to 0.036"),
        every("NC2 at the end / at zero error", nc2[:, main], upper=0.6,
              why="below what is left without decay; pilots 0.19 to 0.41"),
        every("NC3 at the end / at zero error", nc3[:, main], upper=0.6,
              why="below what is left without decay; pilots 0.01 to 0.30"),
        every("NC2 at the end", result.nc2[:, main, -1], upper=0.25,
              why="0.4 without decay; pilots 0.09 to 0.21"),
        every("NC3 at the end", result.nc3[:, main, -1], upper=0.2,
              why="0.35 without decay; pilots 0.002 to 0.15"),
        every("NC4 at the end", result.nc4[:, main, -1], upper=0.01,
              why="the protocol's one image in a hundred; pilots 0"),
        control("NC1 without decay, end / zero error", nc1[:, plain], lower=0.4,
                why="four times the bound on the claim; pilots 0.53 to 0.69"),
        control("NC2 without decay, end / zero error", nc2[:, plain], lower=0.7,
                why="the means hardly move; pilots 0.76 to 0.88"),
        control("NC1 with mixup, end / zero error", nc1[:, mixed], lower=0.1,
                why="the bound that the claim stays below; pilots 0.25 to 0.33"),
        control("NC1 with frozen features, end / start", lower=0.95, upper=1.05,
                values=(result.nc1[..., -1] / result.nc1[..., 0])[:, frozen],
                why="nothing can change but rounding"),
    ]  # fmt: skip


def plot(config: Config, result: Result, figure) -> None:
    figure.set_size_inches(7.4, 4.9)
    above, below = figure.subfigures(2, 1, height_ratios=[1.3, 1])
    curves, maps = above.subplots(1, 4), below.subplots(1, 5)
    fit = np.argmax(result.train_error == 0, axis=-1)  # (S, K) index of the time, 0 if never
    for k, name in enumerate(config.conditions):
        line = "-" if k in chosen(config, *COLLAPSING) else "--"
        style = {"color": plotting.COLOURS[k % len(plotting.COLOURS)], "label": name}
        for axes, metric in zip(curves, METRICS, strict=True):
            values = getattr(result, metric)[:, k]
            spread = "range" if metric == "nc4" else "log"
            plotting.band(axes, result.step[k], values, spread=spread, linestyle=line, **style)
            at = int(np.median(fit[:, k]))  # a dot where the training error reaches zero
            axes.plot(result.step[k, at], np.median(values[:, at]), "o", color=style["color"])
    for axes, metric in zip(curves, METRICS, strict=True):
        scale = "linear" if metric == "nc4" else "log"
        axes.set(xscale="log", yscale=scale, xlabel="step", title=metric.upper())
    above.legend(*curves[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    first = chosen(config, "cross-entropy")[0]
    times = {"start": 0, "zero error": fit[0, first], "end": result.step.shape[1] - 1}
    for axes, (name, time) in zip(maps[:3], times.items(), strict=True):
        image = axes.imshow(result.cosines[0, first, time], vmin=-1, vmax=1, cmap="RdBu_r")
        axes.set(xticks=[], yticks=[], xlabel="class")
        axes.set_title(f"{name}, step {result.step[first, time]}", fontsize=8)
    below.colorbar(image, ax=maps[:3], shrink=0.7, label="cosine of means")
    for axes, setting in zip(maps[3:], ("cross-entropy", "mixup"), strict=True):
        plane = result.plane[0, chosen(config, setting)[0]]
        for c in range(3):
            axes.plot(*plane[result.plane_label == c].T, ".", color=plotting.COLOURS[c], ms=4)
        axes.set(xticks=[], yticks=[], aspect="equal", xlabel="features, 3 classes")
        axes.set_title(setting, fontsize=8)
    plotting.label_panels([*curves, maps[0], maps[3]])


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    smoke=dict(conditions=tuple(f"mlp: {setting}" for setting in SETTINGS), num_seeds=2),
    paper=dict(
        conditions=tuple(f"resnet: {setting}" for setting in SETTINGS), chunk_size=1,
        num_images=50_000, batch_size=128, convnet_steps=350 * 391, learning_rate=0.05,
        clip=1e9, weight_decay=5e-4, drops=(1 / 3, 2 / 3), drop_factor=0.1, engine="pmap",
    ),
)  # fmt: skip

if __name__ == "__main__":
    runner.main(EXPERIMENT)
