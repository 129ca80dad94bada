"""Adam and RMSProp train at the edge of stability of the preconditioned Hessian.

Claim      Full-batch Adam on real images raises the largest eigenvalue of P^-1 H, its
           preconditioner P and the Hessian H of the training loss, to (2 + 2β)/((1 - β) η), with β
           the decay of its running mean of gradients, and holds it there while the loss goes on
           falling. RMSProp, which has no such mean (Adam with β = 0), does so at 2/η, a
           little above it.
Control    The sharpness of H itself stays far below 2/η throughout. A thirtieth of the step stays
           below its edge over as many steps.
Reference  Cohen et al. 2022, arXiv:2207.14484, section 3 (CIFAR-10 and others there, digits here).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import parallel
from dynamics.aliases import Array, LossFn, Params
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
    num_steps: int = 1600
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
    """Train every seed with every setting."""
    init_key, probe_key = jax.random.split(jax.random.key(config.seed))
    size = config.width, config.weight_std, config.num_images
    iterations, dtype = config.lanczos_iterations, jnp.result_type(float)
    initialise, train = make_programs(*size, config.second_decay, iterations, dtype)
    starts = parallel.ensemble(initialise, jax.random.split(init_key, config.num_seeds))
    probes = jax.random.split(probe_key, config.num_seeds)
    times = jnp.arange(config.measure_every, config.num_steps + 1, config.measure_every)
    rmsprop = [(rate, 0.0) for rate in config.rmsprop_rates]
    settings = jnp.asarray([*config.adam(), *rmsprop], float)
    each = lambda leaf: jnp.repeat(leaf, len(settings), axis=0)
    members = (jax.tree.map(each, starts), each(probes), jnp.tile(settings, (len(probes), 1)))
    batching = "map" if jax.default_backend() == "cpu" else "auto"  # as its sibling, for speed
    found = parallel.ensemble(train, members, shared=times, batching=batching)
    shape = (len(probes), len(settings), len(times))
    return Result(times, *(part.reshape(shape) for part in found))


@functools.lru_cache(maxsize=2)  # the control calls what the claim compiled
def make_programs(
    width: int, weight_std: float, num_images: int, second_decay: float, iterations: int, dtype
):
    """Return `initialise(key)` and `train((start, key, setting), times)`, in this precision."""
    model = mlp.MLP(widths=(width, width, 10), activation=jnp.tanh, weight_std=weight_std)
    loss, initialise = digit_regression.squared_error_on_digits(model, num_images)

    def train(member, times: Array):
        params, key, (rate, decay) = member
        decays = dict(b1=decay, b2=second_decay, eps=EPSILON)
        optimiser = optax.chain(optax.scale_by_adam(**decays), optax.scale_by_learning_rate(rate))

        def measure(state: step.TrainState, vectors: Params):
            adam = state.optimiser_state[0]
            preconditioner = curvature.adam_preconditioner(adam.nu, adam.count, **decays)
            options = dict(key=key, num_iterations=iterations)
            found, vectors = two_sharpnesses(loss, state.params, preconditioner, vectors, **options)
            return (loss(state.params), *found), vectors

        begin, update = step.initial_state(params, optimiser), step.optax_step(loss, optimiser)
        no_vectors = jax.tree.map(lambda leaf: jnp.zeros((2, *leaf.shape)), params)  # at random
        return trajectory.record(update, begin, measure, times=times, memory=no_vectors)

    return initialise, train


def two_sharpnesses(loss: LossFn, params: Params, preconditioner: Params, vectors, **options):
    """Return the largest eigenvalue of P^-1 H, its residual and that of H; and the eigenvectors."""

    def top(given):
        felt = curvature.preconditioned_loss(loss, params, given[0])
        pairs = curvature.top_eigenpairs(*felt, num=1, start=given[1], **options)
        vector = jax.tree.map(lambda leaf: leaf[0], pairs.vectors)
        return pairs.values[0], pairs.residuals[0], vector

    both = jax.tree.map(lambda p: jnp.stack([p, jnp.ones_like(p)]), preconditioner)
    values, residuals, vectors = jax.lax.map(top, (both, vectors))  # one after the other
    return (values[0], residuals[0], values[1]), vectors


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
                          why="theory says 1; pilots 0.968 to 1.055"),
        checks.every_seed("0.9 of the edge reached, share of the run", arrived / config.num_steps,
                          upper=0.5, why="the second half is judged; pilots 0.031 to 0.281"),
        checks.every_seed("loss over the last quarter / on arrival", last / on_arrival, upper=0.8,
                          why="it goes on falling at the edge; pilots 0.006 to 0.106"),
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
    smoke=dict(adam_rates=(3e-3,), adam_decays=(0.9,), num_steps=1000, num_seeds=1),
    paper=dict(num_images=1790, width=200, num_steps=20_000, num_seeds=8),
    controls={
        "a thirtieth of every step": contract.Control(
            dict(adam_rates=(1e-4,), adam_decays=(0.9,), rmsprop_rates=(3e-5,), num_seeds=1),
            breaks={
                "settled preconditioned sharpness / ((2+2β)/((1-β)η)), Adam": "below",
                "settled preconditioned sharpness / (2/η), RMSProp": "below",
            },
            why="sharpening has not reached the edge yet, and nothing else holds it there",
            needs=("steps with finite loss and sharpness",),
        )
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
