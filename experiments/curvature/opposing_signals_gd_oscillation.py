"""Above the edge of stability the losses of opposing groups swing against each other.

Claim      A linear network of two or three layers learns a signal beside two groups of outliers
           that share a large feature and ask for opposite signs of its weight. Where learning the
           signal has raised η times the curvature along the feature above 2, the network's slope u
           along it changes sign at every step, so that the loss of one group rises as that of the
           other falls; u grows until the loss spikes, and that brings the sharpness down: the run
           ends below the threshold with the signal fitted. The two losses move in antiphase
           exactly while |u + u'| < 2κ, κ their label over the feature.
Control    With a step that keeps below the threshold nothing rises. Groups that agree move
           together.
Reference  Rosenfeld and Risteski 2024, arXiv:2311.04163. The condition is derived here.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.data import opposing_signals as data
from dynamics.measure import curvature
from dynamics.models import deep_linear
from dynamics.theory import opposing_signals as theory
from dynamics.training import step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P122",)
PILOT_SEEDS = (101, 102, 103)
SMALLEST = 1e-10  # change of a group's loss over a², below which its sign is rounding
VISIBLE = 0.01  # |u| / κ; below it u also moves as the signal turns the other layers


@dataclasses.dataclass(frozen=True)
class Config:
    num_layers: tuple[int, ...] = (2, 3)
    rates: tuple[float, ...] = (1.25, 1.4)  # step over 2 / sharpness of a balanced end
    control_rate: float = 0.8  # the same, stays below the threshold
    width: int = 16
    weight_std: float = 0.4
    signal_norm: float = 4.0
    outlier_variance: float = 10.0
    label: float = 1.0
    agreement: float = 0.0  # 1 for groups that agree, for the control
    dim: int = 10
    num_steps: int = 300
    lanczos_iterations: int = 12  # from the last eigenvector
    num_seeds: int = 10
    seed: int = 1

    def learning_rates(self) -> np.ndarray:
        """Return the steps (N, C), the control's last.

        In balanced weights of a product |β| each of the L layers has the norm |β|^(1/L), and the
        sharpness along the outliers' feature is α times the square of all the others.
        """
        layers = np.array(self.num_layers)[:, None]
        sharpness = self.outlier_variance * self.signal_norm ** (2 - 2 / layers)
        return np.array([*self.rates, self.control_rate]) * 2 / sharpness


class Result(NamedTuple):
    """S seeds, N networks, C steps η with the control's last, T times."""

    sharpness: Array  # (S, N, C, T) times η
    feature_edge: Array  # (S, N, C, T) η times the curvature along the feature, first layer
    slope: Array  # (S, N, C, T) u along the outliers' feature
    group_losses: Array  # (S, N, C, T, 2) half squared errors over a², +a and -a
    loss: Array  # (S, N, C, T) of all samples, less that no u can mend
    misfit: Array  # (S, N, C) |slopes along the signal - β| / |β| in the end


def run(config: Config) -> Result:
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    found = []
    for layers, rates in zip(config.num_layers, config.learning_rates(), strict=True):
        members = (jnp.repeat(keys, len(rates)), jnp.tile(jnp.asarray(rates), len(keys)),
                   jnp.full(len(keys) * len(rates), config.agreement))  # fmt: skip
        # What the control changes is an argument: it is the same program, compiled once.
        fixed = dataclasses.replace(config, agreement=0.0)
        every = parallel.ensemble(descent(layers, fixed), members)
        found.append([a.reshape(len(keys), len(rates), *a.shape[1:]) for a in every])
    return Result(*(jnp.stack(leaves, axis=1) for leaves in zip(*found, strict=True)))


@functools.cache
def descent(num_layers: int, config: Config):
    """Return the function of one network, which gives what Result holds of it."""

    def descend(member: tuple[Key, Array, Array]):
        key, rate, agreement = member
        signal_key, init_key, probe_key = jax.random.split(key, 3)
        direction = jax.random.normal(signal_key, (config.dim,))
        signal = config.signal_norm * direction / jnp.linalg.norm(direction)
        samples = data.opposing_groups(
            signal, config.outlier_variance, config.label, agreement=agreement
        )
        model = deep_linear.DeepLinear(
            widths=(config.width,) * (num_layers - 1) + (1,), weight_std=config.weight_std
        )
        params = model.init(init_key, samples.inputs)
        errors = lambda params: model.apply(params, samples.inputs)[:, 0] - samples.targets
        loss = lambda params: 0.5 * jnp.mean(errors(params) ** 2)
        optimiser = optax.sgd(rate)
        update = step.optax_step(loss, optimiser)
        size = samples.inputs[-2, -1]  # a
        least = (1 - agreement) * config.outlier_variance * config.label**2 / 2  # at u = 0

        def slope_along_feature(params):
            """Return u and its gradient in the feature's row of the first layer, c."""
            slope = lambda params: model.apply(params, jnp.eye(config.dim + 1)[-1:])[0, 0]
            value, gradient = jax.value_and_grad(slope)(params)
            return value, gradient["params"]["layer_0"]["kernel"][-1]

        def measure(state: step.TrainState, vector):
            top = curvature.top_eigenpairs(
                loss, state.params, key=probe_key, num=1, start=vector,
                num_iterations=config.lanczos_iterations,
            )  # fmt: skip
            slope, towards = slope_along_feature(state.params)
            along = config.outlier_variance * jnp.sum(towards**2)
            groups = 0.5 * (errors(state.params)[-2:] / size) ** 2
            measured = rate * top.values[0], rate * along, slope, groups, loss(state.params) - least
            return measured, jax.tree.map(lambda leaf: leaf[0], top.vectors)

        measured, last, _ = trajectory.record_with_state(
            update, step.initial_state(params, optimiser), measure,
            times=np.arange(config.num_steps + 1), memory=jax.tree.map(jnp.zeros_like, params),
        )  # fmt: skip
        slopes = model.apply(last.params, jnp.eye(config.dim, config.dim + 1))[:, 0]
        return *measured, jnp.linalg.norm(slopes - signal) / config.signal_norm

    return descend


def check(config: Config, result: Result) -> list[checks.Check]:
    driven = slice(0, -1)  # all but the control
    highest = result.sharpness.max(axis=-1)
    above = result.sharpness[:, :, driven, :-1] > 2
    before, after = result.slope[..., :-1], result.slope[..., 1:]
    swinging = (result.feature_edge[..., :-1] > 2) & (np.abs(before) > VISIBLE * config.label)
    swinging = swinging[:, :, driven]
    share = lambda flags: np.sum(flags & swinging, axis=-1) / np.sum(swinging, axis=-1)
    flipped = np.sign(after) != np.sign(before)
    change = np.diff(result.group_losses, axis=-2)  # (..., T - 1, 2)
    opposed = change[..., 0] * change[..., 1] < 0
    expected = np.abs(before + after) < theory.antiphase_bound(config.label)
    seen = np.abs(change).min(axis=-1) > SMALLEST
    exceptions = np.sum((opposed != expected) & seen, axis=(1, 2, 3))
    crossing = np.argmax(above, axis=-1)[..., None]
    at_crossing = np.take_along_axis(result.loss[:, :, driven], crossing, -1)[..., 0]
    spike = result.loss[:, :, driven].max(axis=-1, where=np.arange(config.num_steps + 1)
                                           >= crossing, initial=0) / at_crossing  # fmt: skip
    rises = np.diff(result.loss[:, :, -1], axis=-1).max(axis=-1)
    return [
        checks.stays_finite("steps with finite loss and sharpness", np.arange(config.num_steps + 1),
                            result.loss + result.sharpness, mend="lower rates"),
        checks.every_seed("highest η × sharpness", highest[:, :, driven], lower=2.2,
                          role="precondition", why="the threshold is crossed; else raise rates"),
        checks.every_seed("η × sharpness in the end", result.sharpness[:, :, driven, -1],
                          lower=1, upper=2, why="above 2 u grows; far below it nothing lowers it"),
        checks.every_seed("share of steps with η × curvature along the feature above 2 that turn u",
                          share(flipped[:, :, driven]), lower=0.99,
                          why="its own row's step makes it (1 - η α |c|²) u, c all later layers"),
        checks.every_seed("share of these steps in antiphase",
                          share(opposed[:, :, driven]), lower=0.99, why="pilots 1"),
        checks.every_seed("steps in antiphase other than |u + u'| < 2κ says", exceptions, upper=0,
                          why="an identity of the two losses"),
        checks.every_seed("peak of the loss / at the crossing", spike, lower=2,
                          why="what spikes at least doubles; pilots from 4.9"),
        checks.every_seed("misfit of the signal in the end", result.misfit[:, :, driven],
                          upper=1e-4,
                          why="half of the run comes after the spike; pilots to 1e-9"),
        checks.every_seed("highest η × sharpness, small step", highest[:, :, -1], upper=2,
                          role="control", why="it stays below the threshold"),
        checks.every_seed("largest rise of the loss, small step", rises, upper=1e-9,
                          role="control", why="nothing grows below the threshold; rounding"),
    ]  # fmt: skip


def plot(config: Config, result: Result, figure) -> None:
    figure.set_size_inches(7.2, 4.2)
    top, bottom = figure.subplots(2, 2, sharex="col")
    time = np.arange(config.num_steps + 1)
    c = len(config.rates) - 1
    for n, layers in enumerate(config.num_layers):
        above = np.flatnonzero(result.sharpness[0, n, c] > 2)
        shown = slice(max(above[0] - 10, 0), above[-1] + 15)
        for g, name in enumerate(("x_o = +a", "x_o = -a")):
            top[n].plot(time[shown], result.group_losses[0, n, c, shown, g], ".-",
                        label=name, color=plotting.COLOURS[g])  # fmt: skip
        for i, rate in enumerate((*config.rates, config.control_rate)):
            control = i == len(config.rates)
            colour = "#888888" if control else plotting.COLOURS[i + 2]
            bottom[n].plot(time[shown], result.sharpness[0, n, i, shown], color=colour,
                           label=f"{rate:g} of the edge" + " (control)" * control)  # fmt: skip
        plotting.threshold(bottom[n], 2)
        top[n].set(title=f"{layers} layers", ylabel="loss of a group / a²")
        bottom[n].set(xlabel="step", ylabel="η × sharpness", ylim=(0, 5.5))
    top[0].legend(loc="upper left")
    bottom[0].legend(loc="upper left")
    plotting.label_panels([*top, *bottom])


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    precision="float64",
    smoke=dict(rates=(1.4,), num_seeds=3, width=8),
    paper=dict(width=100, num_steps=2000),
    controls={
        "groups that agree": contract.Control(
            dict(agreement=1.0),
            breaks={"share of these steps in antiphase": "below"},
            why="both groups ask for u = κ",
            needs=("highest η × sharpness",),
        )
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
