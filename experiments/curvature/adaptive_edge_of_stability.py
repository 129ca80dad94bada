"""Adam and RMSProp train at the edge of stability of the preconditioned Hessian.

Claim      Full-batch Adam on real images raises the largest eigenvalue of P^-1 H, its
           preconditioner P and the Hessian H of the training loss, to (2 + 2β)/((1 - β) η), with β
           the decay of its running mean of gradients, and holds it there while the loss goes on
           falling. RMSProp, which has no such mean, does so at 2/η, a little above it.
Control    The sharpness of H itself stays far below 2/η throughout. A thirtieth of the step stays
           below its edge over as many steps.
Reference  Cohen et al. 2022, arXiv:2207.14484, section 3 (CIFAR-10 and others there, digits here).
"""

import dataclasses
from typing import NamedTuple

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
from dynamics.training import step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P122", "P288")
PILOT_SEEDS = (101, 102, 103)
REACHED = 0.9  # of the edge
EPSILON = 1e-7  # of Adam, as in the paper


@dataclasses.dataclass(frozen=True)
class Config:
    adam_rates: tuple[float, ...] = (3e-3, 1e-3, 3e-3)
    adam_decays: tuple[float, ...] = (0.9, 0.9, 0.5)  # β, of the running mean of gradients
    rmsprop_rates: tuple[float, ...] = (1e-3,)
    second_decay: float = 0.99  # of the second moment; slow beside the oscillation, not the run
    width: int = 64
    weight_std: float = 0.7  # starts flat, so that there is room for sharpening
    num_images: int = 500
    num_steps: int = 2000
    measure_every: int = 50
    lanczos_iterations: int = 12  # from the last eigenvector
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        if not self.adam_rates or min(*self.adam_rates, 1, *self.rmsprop_rates) <= 0:
            message = f"adam_rates={self.adam_rates}: positive steps, at least one"
            raise ValueError(message)
        if len(self.adam_rates) != len(self.adam_decays):
            message = f"adam_decays={self.adam_decays}: one for each of {self.adam_rates}"
            raise ValueError(message)
        if self.num_steps < 4 * self.measure_every or self.measure_every < 1:
            message = f"measure_every={self.measure_every}: measure at least 4 times in num_steps"
            raise ValueError(message)

    def edges(self) -> np.ndarray:
        """Return the preconditioned sharpness at which each setting turns unstable (C,)."""
        edge = stability.stability_threshold
        adam = [edge("adam", rate, decay) for rate, decay in self.adam()]
        return np.array([*adam, *(edge("rmsprop", rate) for rate in self.rmsprop_rates)])

    def adam(self) -> list[tuple[float, float]]:
        """Return step and β of Adam's settings."""
        return list(zip(self.adam_rates, self.adam_decays, strict=True))

    def names(self) -> list[str]:
        """Return what the figure calls each setting."""
        adam = [f"Adam η={rate:g}, β={decay:g}" for rate, decay in self.adam()]
        return [*adam, *(f"RMSProp η={rate:g}" for rate in self.rmsprop_rates)]


class Result(NamedTuple):
    """S seeds, C settings (Adam's, then RMSProp's), T measuring times."""

    step: Array  # (T,)
    train_loss: Array  # (S, C, T) half squared error summed over classes, mean over images
    sharpness: Array  # (S, C, T) largest eigenvalue of P^-1 H
    residual: Array  # (S, C, T) of its eigenvector
    plain: Array  # (S, C, T) largest eigenvalue of H


def run(config: Config) -> Result:
    """Train every seed with every setting, one after the other."""
    init_key, probe_key = jax.random.split(jax.random.key(config.seed))
    model = mlp.MLP(
        widths=(config.width, config.width, 10), activation=jnp.tanh, weight_std=config.weight_std
    )
    loss, initialise = digit_regression.squared_error_on_digits(model, config.num_images)
    starts = parallel.ensemble(initialise, jax.random.split(init_key, config.num_seeds))
    probes = jax.random.split(probe_key, config.num_seeds)
    times = np.arange(config.measure_every, config.num_steps + 1, config.measure_every)
    batching = "map" if jax.default_backend() == "cpu" else "auto"  # as its sibling, for speed

    def follow(descend, settings) -> list[Array]:
        settings = jnp.asarray(settings, jnp.float32)
        each = lambda leaf: jnp.repeat(leaf, len(settings), axis=0)
        tiled = jnp.tile(settings, (len(probes), *[1] * (settings.ndim - 1)))
        members = (jax.tree.map(each, starts), each(probes), tiled)
        found = parallel.ensemble(
            lambda member: descend(loss, *member, times, config), members, batching=batching
        )
        return [np.reshape(part, (len(probes), len(settings), -1)) for part in found]

    by_adam = follow(train_by_adam, config.adam())
    by_rmsprop = follow(train_by_rmsprop, config.rmsprop_rates) if config.rmsprop_rates else []
    parts = zip(by_adam, by_rmsprop, strict=True) if by_rmsprop else [(part,) for part in by_adam]
    return Result(times, *(np.concatenate(part, axis=1) for part in parts))


def train_by_adam(loss: LossFn, params: Params, key: Key, setting: Array, times, config: Config):
    """Return loss, preconditioned sharpness, residual and sharpness (T,)."""
    rate, decay = setting
    decays = dict(b1=decay, b2=config.second_decay, eps=EPSILON)
    preconditioner = lambda state: curvature.adam_preconditioner(state.nu, state.count, **decays)
    optimiser = optax.chain(optax.scale_by_adam(**decays), optax.scale_by_learning_rate(rate))
    return follow_optimiser(loss, params, key, optimiser, preconditioner, times, config)


def train_by_rmsprop(loss: LossFn, params: Params, key: Key, rate: Array, times, config: Config):
    """Return the same for RMSProp."""
    options = dict(eps=EPSILON**2)  # under the root
    preconditioner = lambda state: curvature.rmsprop_preconditioner(state.nu, **options)
    optimiser = optax.chain(
        optax.scale_by_rms(config.second_decay, **options), optax.scale_by_learning_rate(rate)
    )
    return follow_optimiser(loss, params, key, optimiser, preconditioner, times, config)


def follow_optimiser(
    loss: LossFn, params: Params, key: Key, optimiser, preconditioner, times, config: Config
):
    """Train, and measure from the last eigenvectors on."""
    options = dict(key=key, num=1, num_iterations=config.lanczos_iterations)

    def measure(state: step.TrainState, vectors: tuple[Params, Params]):
        felt = curvature.preconditioned_loss(
            loss, state.params, preconditioner(state.optimiser_state[0])
        )
        top = curvature.top_eigenpairs(*felt, start=vectors[0], **options)
        plain = curvature.top_eigenpairs(loss, state.params, start=vectors[1], **options)
        measured = loss(state.params), top.values[0], top.residuals[0], plain.values[0]
        return measured, (top.vectors, plain.vectors)

    nothing = jax.tree.map(lambda leaf: jnp.zeros_like(leaf)[None], params)
    begin = step.initial_state(params, optimiser)
    update = step.optax_step(loss, optimiser)
    return trajectory.record(update, begin, measure, times=times, memory=(nothing, nothing))


def check(config: Config, result: Result) -> list[checks.Check]:
    edges, half = config.edges(), len(result.step) // 2
    ratio = result.sharpness / edges[:, None]  # (S, C, T), one is the edge
    level = np.median(ratio[..., half:], axis=-1)
    rates = np.array([*config.adam_rates, *config.rmsprop_rates])
    plain = np.max(result.plain, axis=-1) * rates / 2  # (S, C)
    resolved = np.median((result.residual / result.sharpness)[..., half:], axis=-1)
    arrival = np.argmax(ratio >= REACHED, axis=-1)
    arrived = np.where(ratio.max(axis=-1) >= REACHED, result.step[arrival], np.inf)
    on_arrival = np.take_along_axis(result.train_loss, arrival[..., None], -1)[..., 0]
    last = np.median(result.train_loss[..., -(half // 2) :], axis=-1)
    adam, rmsprop = slice(0, len(config.adam_rates)), slice(len(config.adam_rates), None)
    found = [
        checks.stays_finite("steps with finite loss and sharpness", result.step,
                            result.train_loss + result.sharpness, mend="lower the step size"),
        checks.every_seed("residual / preconditioned sharpness, settled median", resolved,
                          upper=0.05, role="precondition",
                          why="an eigenvalue lies within the residual: less than the band"),
        checks.every_seed("settled preconditioned sharpness / ((2+2β)/((1-β)η)), Adam",
                          level[:, adam], lower=0.9, upper=1.1,
                          why="theory says 1; pilots 0.968 to 1.058"),
        checks.every_seed("0.9 of the edge reached, share of the run", arrived / config.num_steps,
                          upper=0.5, why="the second half is judged; pilots 0.025 to 0.225"),
        checks.every_seed("loss over the last quarter / on arrival", last / on_arrival, upper=0.8,
                          why="it goes on falling at the edge; pilots 0.004 to 0.075"),
        checks.every_seed("highest sharpness of H / (2/η)", plain, upper=0.2, role="control",
                          why="the edge is not that of plain descent; pilots 0.026"),
    ]  # fmt: skip
    if config.rmsprop_rates:
        found.insert(3, checks.every_seed(
            "settled preconditioned sharpness / (2/η), RMSProp", level[:, rmsprop], lower=0.95,
            upper=1.2, why="theory says 1; oscillation lifts it: pilots 1.08 to 1.10"))  # fmt: skip
    return found


def plot(config: Config, result: Result, figure) -> None:
    figure.set_size_inches(7.2, 4.2)
    panels = figure.subplot_mosaic([["loss", "ratio"], ["plain", "ratio"]])
    loss, ratio, plain = panels["loss"], panels["ratio"], panels["plain"]
    rates = [*config.adam_rates, *config.rmsprop_rates]
    for c, (name, edge) in enumerate(zip(config.names(), config.edges(), strict=True)):
        style = {"label": name, "color": plotting.COLOURS[c]}
        plotting.band(loss, result.step, result.train_loss[:, c], spread="log", **style)
        plotting.band(ratio, result.step, result.sharpness[:, c] / edge, **style)
        plotting.band(plain, result.step, result.plain[:, c] * rates[c] / 2, spread="log", **style)
    plotting.threshold(ratio, 1, linestyle="--")
    plotting.bounds(ratio, 0.9, 1.1)
    loss.set(yscale="log", ylabel="training loss", xlabel="step")
    ratio.set(ylabel="largest eigenvalue of P⁻¹H / edge", xlabel="step", ylim=(0, 1.5))
    plain.set(yscale="log", ylabel="that of H / (2/η)", xlabel="step")
    figure.legend(*loss.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    plotting.label_panels([loss, plain, ratio])


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    smoke=dict(adam_rates=(3e-3,), adam_decays=(0.9,), num_steps=1000, num_seeds=2),
    paper=dict(num_images=1790, width=200, num_steps=20_000, num_seeds=8),
    controls={
        "a thirtieth of every step": contract.Control(
            dict(adam_rates=(1e-4,), adam_decays=(0.9,), rmsprop_rates=(), num_seeds=2),
            breaks={
                "settled preconditioned sharpness / ((2+2β)/((1-β)η)), Adam": "below",
            },
            why="sharpening has not reached the edge yet, and nothing else holds it there",
            needs=("steps with finite loss and sharpness",),
        )
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
