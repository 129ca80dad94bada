"""In a diagonal linear network SGD ends at minima with η Tr H < 2, gradient descent far above.

Claim      A diagonal linear network on inputs of signs, trained at one rate η by both methods from
           one start: SGD on single samples ends only at minima with η Tr H <= 2. Gradient descent
           ends at minima with η Tr H > 2, its own bound η λ_max <= 2 kept easily, and with a
           larger |β|_1. From the minima of gradient descent SGD goes away; gradient descent stays
           at those of SGD.
Control    At a rate so small that neither bound is near, both end at the same Tr H.
Reference  Wu and Su 2023, arXiv:2305.17490 (larger networks there); on signs all gradients of
           outputs have one length, so that 2 is the exact threshold of every path.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.measure import curvature, statistics
from dynamics.models import diagonal_linear
from dynamics.theory import diagonal_linear as closed_form
from dynamics.training import step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P188",)
PILOT_SEEDS = (101, 102, 103)
METHODS = ("SGD", "gradient descent")
CONVERGED = 1e-6  # largest loss at the end
BOUND = "SGD: largest η Tr H of a minimum"
ABOVE = "gradient descent: smallest η Tr H of a minimum, large rates"
SHORTER = "largest rate: |β|_1 of gradient descent less that of SGD"
NUDGE = 1e-3  # relative, away from a minimum that the other method found


@dataclasses.dataclass(frozen=True)
class Config:
    # Of products a b, as in the paper: half of it is the rate of w+ and w-.
    learning_rates: tuple[float, ...] = (0.02, 0.05, 0.11, 0.13)
    num_large: int = 2  # rates, the last ones, at which both methods are compared
    num_samples: int = 10
    dim: int = 20
    first_factor: float = 1.0  # a at the start; b is 0.01 of a standard normal one
    num_steps: int = 4000
    num_probes: int = 200  # of Hutchinson's estimate of the trace
    num_seeds: int = 24
    seed: int = 1

    def __post_init__(self):
        if not 0 < self.num_large < len(self.learning_rates) or min(self.learning_rates) <= 0:
            message = f"num_large={self.num_large}: some, not all, of the positive learning_rates"
            raise ValueError(message)


class Result(NamedTuple):
    """S seeds, L learning rates, two methods: SGD and gradient descent."""

    loss: Array  # (S, L, 2) at the end
    trace: Array  # (S, L, 2) of the Hessian there
    estimate: Array  # (S, L, 2) the same by Hutchinson's method
    standard_error: Array  # (S, L, 2)
    sharpness: Array  # (S, L, 2) largest eigenvalue
    norm: Array  # (S, L, 2) |β|_1
    moved_loss: Array  # (S, L, 2) at the end of a method that starts near the other's minimum
    moved_trace: Array  # (S, L, 2)


def run(config: Config) -> Result:
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    rates = jnp.array(config.learning_rates)
    shape = len(keys), len(rates)
    members = jnp.repeat(keys, shape[1]), jnp.tile(rates, shape[0])
    found = parallel.ensemble(lambda member: run_one(*member, config), members)
    return Result(*(leaf.reshape(*shape, *leaf.shape[1:]) for leaf in found))


def run_one(key: Key, rate: Array, config: Config):
    input_key, weight_key, sample_key, probe_key = jax.random.split(key, 4)
    inputs = jax.random.rademacher(input_key, (config.num_samples, config.dim), float)
    data = inputs, inputs[:, 0] - inputs[:, 1]  # a sparse teacher
    first = jnp.full(config.dim, config.first_factor)
    second = 0.01 * jax.random.normal(weight_key, (config.dim,))
    start = diagonal_linear.from_factors(first, second)
    loss = diagonal_linear.squared_loss
    whole = lambda weights: loss(weights, data)
    optimiser = optax.sgd(rate / 2)
    single = step.minibatch_step(loss, optimiser, data, 1, with_replacement=True)
    both = step.optax_step(whole, optimiser)

    def advance(states):
        return single(states[0]), both(states[1])

    def states(sgd_start, descent_start, key):
        return (step.initial_minibatch_state(sgd_start, optimiser, key),
                step.initial_state(descent_start, optimiser))  # fmt: skip

    def train(starts, key):
        """Return the starts of the next round, each near the other method's end, and the ends."""
        ends = trajectory.record_with_state(
            advance, states(*starts, key), lambda _: 0, times=[config.num_steps]
        )[1]
        ends = tuple(end.params for end in ends)
        return jax.tree.map(lambda leaf: leaf * (1 + NUDGE), ends[::-1]), ends

    _, rounds = jax.lax.scan(train, (start, start), jax.random.split(sample_key))
    ends = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *rounds)  # (round, method, D)
    first, moved = (diagonal_linear.DiagonalWeights(*pair) for pair in zip(*ends, strict=True))
    # In the scale of products a b, where a rate is twice and a curvature half of that here.
    half_trace = lambda weights: closed_form.hessian_trace(*weights, inputs) / 2

    def describe(weights):
        gradients = jnp.concatenate([weights.positive * inputs, -weights.negative * inputs], axis=1)
        gram = 4 * gradients @ gradients.T / config.num_samples
        estimate = curvature.hessian_trace(whole, weights, key=probe_key,
                                           num_probes=config.num_probes)  # fmt: skip
        norm = jnp.abs(diagonal_linear.coefficients(weights)).sum()
        return (half_trace(weights), estimate.mean / 2, estimate.standard_error / 2,
                jnp.linalg.norm(gram, 2) / 2, norm)  # fmt: skip

    losses, moved_losses = jax.vmap(whole)(first), jax.vmap(whole)(moved)
    moved_traces = jax.vmap(half_trace)(moved)
    return losses, *jax.vmap(describe)(first), moved_losses, moved_traces


def check(config: Config, result: Result) -> list[checks.Check]:
    rates, large = np.array(config.learning_rates), slice(-config.num_large, None)
    done, moved_done = result.loss < CONVERGED, result.moved_loss < CONVERGED
    trace, sharpness, moved = (
        array * rates[:, None] for array in (result.trace, result.sharpness, result.moved_trace)
    )
    largest = lambda array, kept: np.max(array, where=kept, initial=-np.inf)
    stays = np.where(moved_done[..., 1], result.moved_trace[..., 1] / result.trace[..., 0], 1)
    agree = np.abs(result.estimate - result.trace) / result.standard_error
    both = done[:, -1].all(axis=1)
    shorter = (result.norm[:, -1, 1] - result.norm[:, -1, 0])[both] if both.any() else [np.nan]
    shorter = statistics.mean_interval(shorter)
    calm = (result.trace[..., 0] / result.trace[..., 1])[:, 0]
    return [
        checks.above("least share of runs that converge", done.mean(axis=0).min(), 0.8,
                     role="precondition", why="a few diverge at large rates; else lower the rates"),
        checks.above("least share that converges from the other method's minimum",
                     moved_done.mean(axis=0).min(), 0.8, role="precondition", why="the same"),
        checks.below("trace against Hutchinson's, largest gap in standard errors",
                     largest(agree, done), 6, role="precondition",
                     why="of 200 estimates the worst is 3 off, rarely 4"),
        checks.below(BOUND, largest(trace[..., 0], done[..., 0]), 2,
                     why="on inputs of signs no path stays at a minimum above; pilots 1.5"),
        checks.above(ABOVE, -largest(-trace[:, large, 1], done[:, large, 1]), 2,
                     why="|a|² - |b|² hardly moves, and η times it is 2 or more at the start"),
        checks.below("gradient descent: largest η λ_max",
                     largest(sharpness[..., 1], done[..., 1]), 2,
                     why="its own bound, which it obeys: else it would not have converged"),
        checks.above(SHORTER, shorter.estimate, 0.05, interval=(shorter.lower, shorter.upper),
                     why="Tr H <= 2/η bounds |β|_1 by 1/η; pilots from 0.27"),
        checks.below("SGD from minima of gradient descent: largest η Tr H, large rates",
                     largest(moved[:, large, 0], moved_done[:, large, 0]), 2,
                     why="it finds those minima unstable"),
        checks.between("gradient descent from minima of SGD: Tr H over what it was",
                       stays.flat[np.argmax(np.abs(stays - 1))], 0.99, 1.01,
                       why="it starts a thousandth off, which is two in the trace"),
        checks.every_seed("smallest rate: Tr H of SGD over that of gradient descent", calm,
                          lower=0.95, upper=1.05, role="control",
                          why="neither bound is near; pilots 0.987 to 0.996"),
    ]  # fmt: skip


def plot(config: Config, result: Result, figure) -> None:
    left, right = panels = figure.subplots(1, 2)
    rates = np.array(config.learning_rates)
    for method, name in enumerate(METHODS):
        style = dict(color=plotting.COLOURS[method], marker=plotting.MARKERS[method])
        done = (result.loss[..., method] < CONVERGED).all(axis=1)
        at = rates * (1 + 0.03 * (2 * method - 1))
        for axes, values in ((left, rates * result.trace[..., method]),
                             (right, result.norm[..., method])):  # fmt: skip
            plotting.points(axes, at, values[done], spread="range", label=name, **style)
    moved = (result.moved_loss[..., 0] < CONVERGED).all(axis=1)
    large = slice(-config.num_large, None)
    plotting.points(left, rates[large] * 1.12, (rates * result.moved_trace[..., 0])[moved, large],
                    spread="range", label="SGD from the minima of gradient descent",
                    color=plotting.COLOURS[2], marker="^")  # fmt: skip
    plotting.threshold(left, 2, label="2: no SGD path stays above")
    left.set(xlabel="learning rate η (of products a b)", ylabel="η Tr H at the end (mean, range)",
             ylim=(0, 4.2))  # fmt: skip
    right.set(xlabel="learning rate η (of products a b)", ylabel="|β|$_1$ (mean, range)")
    left.legend(loc="upper left")
    plotting.label_panels(panels)


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    smoke=dict(num_seeds=8, num_steps=3000, num_probes=50),
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
