"""Gradient descent drives the sharpness to 2/η and holds it there.

Claim      Full-batch gradient descent with step η on real images raises the sharpness, the largest
           eigenvalue of the Hessian of the training loss, until it reaches 2/η, and then holds it
           there while the loss goes on falling, though not at every step. With heavy-ball
           momentum β the edge is at (2 + 2β)/η.
Control    A tenth of the step stays far below its edge over as many steps and its loss falls at
           every one; gradient flow from the same starts passes 2/η without stopping.
Reference  Cohen et al. 2021, arXiv:2103.00065 (CIFAR-10 there, digits here); that the time average
           stays at the edge: Damian, Nichani, Lee 2023, arXiv:2209.15594.
"""

import dataclasses
import functools
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import parallel
from dynamics.aliases import Array, Key, LossFn, Params
from dynamics.data import digit_regression
from dynamics.measure import curvature
from dynamics.models import mlp
from dynamics.theory import stability
from dynamics.training import flow, step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P122", "P288")
PILOT_SEEDS = (101, 102, 103)
REACHED = 0.95  # of the edge


@dataclasses.dataclass(frozen=True)
class Config:
    learning_rates: tuple[float, ...] = (0.3, 0.35, 0.4)
    momentum_rate: float = 0.3
    momentum: float = 0.8
    control_factor: float = 0.1  # the control's step over the smallest of learning_rates
    width: int = 64
    weight_std: float = 0.7  # starts flat, so that there is room for sharpening
    num_images: int = 500  # enough that the loss still falls at the end
    num_steps: int = 2000
    measure_every: int = 50
    lanczos_iterations: int = 12  # from the last eigenvector
    flow_horizon: float = 300.0  # time, that is learning rate x steps; 0 for no flow
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        steps = (*self.learning_rates, self.momentum_rate, self.control_factor)
        if not self.learning_rates or min(steps) <= 0 or not 0 <= self.momentum < 1:
            message = "learning rates and factor are positive, momentum is from 0 to 1"
            raise ValueError(message)
        if self.flow_horizon < 0:
            message = f"flow_horizon={self.flow_horizon}: give a time, or 0 for no flow"
            raise ValueError(message)
        if self.num_steps < 2 * self.measure_every or self.measure_every < 1:
            message = f"measure_every={self.measure_every}: measure at least twice in num_steps"
            raise ValueError(message)

    def settings(self) -> np.ndarray:
        """Return step and momentum of each setting (C, 2): plain ones, heavy ball, control."""
        plain = [(rate, 0.0) for rate in self.learning_rates]
        control = (self.control_factor * min(self.learning_rates), 0.0)
        return np.array([*plain, (self.momentum_rate, self.momentum), control])

    def edges(self) -> np.ndarray:
        """Return the sharpness at which each setting becomes unstable on a quadratic (C,)."""
        rate, momentum = self.settings().T
        return stability.stability_threshold("momentum", rate, momentum)


class Result(NamedTuple):
    """S seeds, C settings, T measuring times."""

    step: Array  # (T,)
    train_loss: Array  # (S, C, T) half squared error summed over classes, mean over images
    sharpness: Array  # (S, C, T) largest eigenvalue of the Hessian of train_loss
    residual: Array  # (S, C, T) |Hv - sharpness v| of its eigenvector
    rises: Array  # (S, C, T) steps so far on which the loss rose
    flow_time: Array  # (T,) learning rate x steps
    flow_sharpness: Array  # (S, T)


class Descent(NamedTuple):
    """A training state that counts the steps on which the loss rose."""

    train: step.TrainState
    loss: Array  # () before the last step
    rises: Array  # () int32


def run(config: Config) -> Result:
    """Train every seed with every setting and along the gradient flow, then measure the paths."""
    size = config.width, config.weight_std, config.num_images
    initialise, train, flow_along, measure = make_programs(
        *size, config.lanczos_iterations, jnp.result_type(float)
    )
    init_key, probe_key = jax.random.split(jax.random.key(config.seed))
    starts = parallel.ensemble(initialise, jax.random.split(init_key, config.num_seeds))
    probes = jax.random.split(probe_key, config.num_seeds)
    times = jnp.arange(0, config.num_steps + 1, config.measure_every)
    flow_time = jnp.linspace(0, config.flow_horizon, len(times))
    settings = jnp.asarray(config.settings(), float)
    each = lambda leaf, number: jnp.repeat(leaf, number, axis=0)
    # One member after the other is faster here on CPU, by a third.
    batching = "map" if jax.default_backend() == "cpu" else "auto"
    ensemble = functools.partial(parallel.ensemble, batching=batching)
    members = jax.tree.map(lambda leaf: each(leaf, len(settings)), starts)
    member_settings = jnp.tile(settings, (len(probes), 1))
    losses, rises, paths = ensemble(train, (members, member_settings), shared=times)
    if config.flow_horizon:
        flows = ensemble(flow_along, (starts, each(flow_time[None], len(probes))))
    else:
        flows = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(times), axis=1), starts)
    paths = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), paths, flows)
    keys = jnp.concatenate([each(probes, len(settings)), probes])
    shape = (len(probes), len(settings), len(times))
    sharpness, residual = (
        (part[: -len(probes)].reshape(shape), part[-len(probes) :])
        for part in ensemble(measure, (paths, keys))
    )
    losses, rises = losses.reshape(shape), rises.reshape(shape)
    return Result(times, losses, sharpness[0], residual[0], rises, flow_time, sharpness[1])


@functools.lru_cache(maxsize=2)  # the control calls what the claim compiled
def make_programs(width: int, weight_std: float, num_images: int, iterations: int, dtype):
    """Return `initialise`, `train`, `flow_along` and `measure` of a member, in this precision."""
    model = mlp.MLP(widths=(width, width, 10), activation=jnp.tanh, weight_std=weight_std)
    loss, initialise = digit_regression.squared_error_on_digits(model, num_images)

    def flow_along(member) -> Params:
        # The sharpness bounds the steps, not the accuracy: a method of two stages is the cheapest.
        tolerances = dict(rtol=1e-3, atol=1e-6)
        return flow.gradient_flow(loss, *member, solver=diffrax.Heun(), **tolerances)

    train = lambda member, times: descend(loss, *member, times)
    return initialise, train, flow_along, lambda member: follow_sharpness(loss, *member, iterations)


def descend(loss: LossFn, params: Params, setting: Array, times: Array):
    """Train with one step size and momentum; return loss, rises (T,) and parameters (T, ...)."""
    optimiser = optax.sgd(setting[0], momentum=setting[1])
    update = step.optax_step(loss, optimiser)

    def advance(state: Descent) -> Descent:
        now = loss(state.train.params)
        return Descent(update(state.train), now, state.rises + (now > state.loss))

    def measure(state: Descent):
        return loss(state.train.params), state.rises, state.train.params

    start = Descent(step.initial_state(params, optimiser), jnp.inf, jnp.int32(0))
    return trajectory.record(advance, start, measure, times=times)


def follow_sharpness(loss: LossFn, path: Params, key: Key, iterations: int):
    """Return sharpness and residual (T,) along a path (T, ...), each from the last vector."""

    def measure(vector: Params, params: Params):
        top = curvature.top_eigenpairs(
            loss, params, key=key, num=1, start=vector, num_iterations=iterations
        )
        found = top.values[0], top.residuals[0]
        return jax.tree.map(lambda leaf: leaf[0], top.vectors), found

    no_vector = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), path)  # starts at random
    return jax.lax.scan(measure, no_vector, path)[1]


def settled(config: Config, result: Result) -> tuple[np.ndarray, np.ndarray]:
    """Return over the second half: the median of sharpness / edge, the share of rises (S, C)."""
    half = len(result.step) // 2
    ratio = np.median(result.sharpness[..., half:], axis=-1) / config.edges()
    rises = result.rises[..., -1] - result.rises[..., half]
    return ratio, rises / (result.step[-1] - result.step[half])


def check(config: Config, result: Result) -> list[checks.Check]:
    ratio = result.sharpness / config.edges()[:, None]  # (S, C, T), one is the edge
    level, rising = settled(config, result)
    plain, driven = slice(0, len(config.learning_rates)), slice(0, -1)  # driven: all but control
    arrival = np.argmax(ratio >= REACHED, axis=-1)  # (S, C) index of the time
    arrived = np.where(ratio.max(axis=-1) >= REACHED, result.step[arrival], np.inf)
    on_arrival = np.take_along_axis(result.train_loss, arrival[..., None], -1)[..., 0]
    half = len(result.step) // 2
    last = np.median(result.train_loss[..., -(half // 2) :], axis=-1)  # a burst must not decide
    resolved = np.median((result.residual / result.sharpness)[..., half:], axis=-1)
    passed = result.flow_sharpness[:, -1] * max(config.learning_rates) / 2
    return [
        checks.stays_finite("steps with finite loss and sharpness", result.step,
                            result.train_loss + result.sharpness, mend="lower the step size"),
        checks.every_seed("0.95 of the edge reached, share of the run",
                          arrived[:, driven] / config.num_steps, upper=0.6, role="precondition",
                          why="the second half is judged; else raise num_steps or the step size"),
        checks.every_seed("residual / sharpness, settled median", resolved[:, driven], upper=0.02,
                          why="an eigenvalue lies within the residual: 2 % is less than the band; "
                          "else raise lanczos_iterations", role="precondition"),
        checks.every_seed("loss over the last quarter", last[:, driven], lower=1e-6,
                          role="precondition", why="else round-off rules; raise num_images"),
        checks.every_seed("sharpness at the start / edge", ratio[:, driven, 0], upper=0.7,
                          why="else nothing has sharpened; pilots 0.18 to 0.49"),
        checks.every_seed("settled sharpness / (2/η)", level[:, plain], lower=0.95, upper=1.05,
                          why="theory says 1; oscillation lifts it: pilots 1.013 to 1.034"),
        checks.every_seed("settled sharpness / ((2+2β)/η)", level[:, -2], lower=0.9, upper=1.1,
                          why="theory says 1; bursts leave it below: pilots 0.985 to 1.002"),
        checks.every_seed("loss over the last quarter / on arrival", (last / on_arrival)[:, driven],
                          upper=0.8, why="it goes on falling at the edge: pilots 0.11 to 0.50"),
        checks.every_seed("share of settled steps on which the loss rises", rising[:, plain],
                          lower=0.2, why="pilots from 0.295; none on a descent"),
        checks.every_seed("highest sharpness / edge at a tenth of the step",
                          ratio[:, -1].max(axis=-1), upper=0.6, role="control",
                          why="it never comes near its edge: pilots 0.05"),
        checks.every_seed("share of rising steps at a tenth of the step", rising[:, -1], upper=0.01,
                          why="below the edge the loss falls at every step", role="control"),
        checks.every_seed("sharpness of the flow at its end / (2/η)", passed, lower=1.2,
                          why="the flow knows no edge; descent never settles above 1.05",
                          role="control"),
    ]  # fmt: skip


def plot(config: Config, result: Result, figure) -> None:
    figure.set_size_inches(7.2, 4.2)
    panels = figure.subplot_mosaic([["loss", "ratio"], ["sharpness", "ratio"]], width_ratios=[2, 1])
    loss, sharpness, ratio = panels["loss"], panels["sharpness"], panels["ratio"]
    level, _ = settled(config, result)
    for c, ((rate, beta), edge) in enumerate(zip(config.settings(), config.edges(), strict=True)):
        control = c == len(config.settings()) - 1
        colour = "#888888" if control else plotting.COLOURS[c]
        name = f"η={rate:g}" + (f", β={beta:g}" if beta else "") + " (control)" * control
        style = {"label": name, "color": colour}
        plotting.band(loss, result.step, result.train_loss[:, c], spread="log", **style)
        plotting.band(sharpness, result.step, result.sharpness[:, c], spread="log", **style)
        if control:
            continue
        plotting.theory(sharpness, result.step[[0, -1]], [edge, edge], color=colour, label=None)
        ratio.plot(np.full(len(level), c - 0.2), level[:, c], ".", color=colour, alpha=0.5)
        plotting.points(ratio, [c + 0.1], level[:, [c]], color=colour)
    # The flow is drawn at the step where descent with the largest plain rate has the same time.
    flow_step = result.flow_time / max(config.learning_rates)
    plotting.band(sharpness, flow_step, result.flow_sharpness, color="black", label="gradient flow")
    num_plain = len(config.learning_rates)
    edge = num_plain / (num_plain + 1)  # share of the axis that the plain ones take
    plotting.bounds(ratio, 0.95, 1.05, xmax=edge)
    plotting.bounds(ratio, 0.9, 1.1, xmin=edge)
    ratio.set_xlim(-0.5, num_plain + 0.5)
    plotting.threshold(ratio, 1, linestyle="--")
    loss.set(yscale="log", ylabel="training loss", xlabel="step")
    sharpness.set(ylabel="sharpness (dashed: edge)", xlabel="step", ylim=(0, None))
    ratio.set(ylabel="settled sharpness / edge (shaded: bounds)")
    names = [f"{rate:g}" + (f"\nβ={beta:g}" if beta else "") for rate, beta in config.settings()]
    ratio.set_xticks(range(len(names) - 1), names[:-1])
    ratio.set_xlabel("step size η")
    figure.legend(*sharpness.get_legend_handles_labels(), loc="outside upper left", ncols=6)
    plotting.label_panels([loss, sharpness, ratio])


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    smoke=dict(
        learning_rates=(0.35,),
        momentum_rate=0.35,
        num_images=250,
        num_steps=1600,
        flow_horizon=400.0,
        num_seeds=1,
    ),
    paper=dict(
        num_images=1790,
        width=200,
        num_steps=20_000,
        num_seeds=8,
        flow_horizon=1000.0,
        measure_every=100,
    ),
    controls={
        "a tenth of every step": contract.Control(
            dict(learning_rates=(0.03,), momentum_rate=0.03, num_seeds=1, flow_horizon=0.0),
            breaks={
                "settled sharpness / (2/η)": "below",
                "settled sharpness / ((2+2β)/η)": "below",
                "share of settled steps on which the loss rises": "below",
            },
            why="without an edge within reach nothing is held and the loss falls at every step",
            needs=("steps with finite loss and sharpness",),
        )
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
