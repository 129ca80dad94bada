"""Flooding is gradient regularisation: it walks along its level set to where the gradient is small.

Claim      An ascent of flooding and the descent after it move the weights by one step along the
           finite-difference quotient of gradient regularisation, ε the learning rate η, and so to
           -η² H ∇L up to a term of the predicted size ∝ η³. Over many steps flooding follows the
           flow -H ∇L / 2 projected on the level set of the loss, at time η² x steps, and |∇L|²
           falls as there, while the loss stays where it is.
Control    Two descents are no such step. Plain descent from the same weights leaves the level.
Reference  Karakida et al. 2023, arXiv:2210.02720; flooding is Ishida et al. 2020,
           arXiv:2002.08709; the projected flow is derived in predict.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import parallel
from dynamics.aliases import Array, LossFn
from dynamics.measure import statistics
from dynamics.training import gradient_regularisation, step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P220",)
PILOT_SEEDS = (101, 102, 103)
IDENTITY = "ascent and descent: largest relative error against η² of the quotient"
COURSE = "largest relative error of |∇L|² along flooding at the smallest rate"
LEVEL = "largest distance of the loss from its level over η |∇L|²"


UNREACHED = 1e9  # below the level: a flood that no loss comes near is none


@dataclasses.dataclass(frozen=True)
class Config:
    learning_rates: tuple[float, ...] = (0.1, 0.05, 0.025, 0.0125)  # falling
    floods: bool = True  # False for a control; predict does not know it
    width: int = 16
    weight_std: float = 2.0  # of a unit's input and of the output: |∇L| is not small yet
    num_samples: int = 64
    train_rate: float = 0.05
    train_steps: int = 5  # then flooding begins, at the loss that they reach
    horizon: float = 4.0  # learning rate² x steps
    num_times: int = 16
    flow_steps: int = 800  # of the flow's Runge-Kutta method
    num_seeds: int = 8
    seed: int = 1

    def __post_init__(self):
        if len(self.learning_rates) < 2 or max(np.diff(self.learning_rates)) >= 0:
            message = f"learning_rates={self.learning_rates}: give at least two, falling"
            raise ValueError(message)
        if self.flow_steps % self.num_times:
            message = f"flow_steps={self.flow_steps}: give a multiple of num_times"
            raise ValueError(message)

    def times(self) -> np.ndarray:
        """Return the times at which |∇L|² is taken, learning rate² x steps (T,)."""
        return self.horizon / self.num_times * np.arange(self.num_times + 1)


class Prediction(NamedTuple):
    """S seeds, L learning rates, T times."""

    square: Array  # (S, T) |∇L|² along the projected flow
    relative: Array  # (S, L) distance of a pair of steps from -η² H ∇L over its size, first order


class Result(NamedTuple):
    identity: Array  # (S, L) relative distance of a pair of steps from -η² times the quotient
    relative: Array  # (S, L) the same from -η² H ∇L
    descents: Array  # (S, L) relative distance of two descents from -η² times the quotient
    square: Array  # (S, L, T) |∇L|² along flooding, brought to the level
    loss: Array  # (S, L, T)
    level: Array  # (S,)


def keys(config: Config) -> Array:
    return jax.random.split(jax.random.key(config.seed), config.num_seeds)


def half_error(weights: Array, data: tuple[Array, Array]) -> Array:
    """Return half the mean squared error of the units a tanh(w·x + c), weights flat (4 H,)."""
    inputs, targets = data
    units = weights.reshape(-1, 4)
    outputs = jnp.tanh(inputs @ units[:, :2].T + units[:, 2]) @ units[:, 3]
    return jnp.mean((outputs - targets) ** 2) / 2


def problems(config: Config) -> tuple[tuple[Array, Array], Array]:
    """Return inputs and targets of an exclusive or in the plane, and the weights to flood from."""

    def one(key):
        input_key, weight_key = jax.random.split(key)
        inputs = jax.random.uniform(input_key, (config.num_samples, 2), minval=-1.0)
        data = inputs, jnp.sign(inputs[:, 0] * inputs[:, 1])
        std = config.weight_std * jnp.array([1.0, 1.0, 1.0, config.width**-0.5])
        start = (std * jax.random.normal(weight_key, (config.width, 4))).ravel()
        loss = lambda weights: half_error(weights, data)
        times, same = [config.train_steps], lambda weights: weights
        return data, descend(loss, start, config.train_rate, times, same)[0]

    return parallel.ensemble(one, keys(config))


def descend(loss: LossFn, start: Array, rate, times, measure):
    """Return the measurements of weights (T, ...) after steps of plain descent."""
    optimiser = optax.sgd(rate)
    state, update = step.initial_state(start, optimiser), step.optax_step(loss, optimiser)
    return trajectory.record(update, state, lambda state: measure(state.params), times=times)


def curved(loss: LossFn, weights: Array) -> tuple[Array, Array]:
    """Return ∇L and H ∇L."""
    slope = jax.grad(loss)(weights)
    return slope, gradient_regularisation.penalty_direction(loss, weights, finite_step=0.0)


def predict(config: Config) -> Prediction:
    """The flow of modified equations: what the sum of ± η ∇L leaves at second order.

    With signs s of the steps, and x the place along ∇L, x grows by η s a step and stays bounded,
    so the mean of s x is -η/2: the weights drift by -η² H ∇L / 2 a step, whatever the order of
    ascents and descents; that their numbers differ keeps the loss on its level.
    """

    def one(member):
        data, start = member
        loss = lambda weights: half_error(weights, data)

        def velocity(weights):
            slope, product = curved(loss, weights)
            return -(product - slope * (slope @ product) / (slope @ slope)) / 2

        def advance(weights):  # the classical method of Runge and Kutta
            size = config.horizon / config.flow_steps

            def stage(carry, step):
                total, slope = carry
                slope = velocity(weights + size * step[0] * slope)
                return (total + size * step[1] * slope, slope), None

            steps = jnp.array([(0, 1 / 6), (1 / 2, 1 / 3), (1 / 2, 1 / 3), (1, 1 / 6)])
            return jax.lax.scan(stage, (weights, jnp.zeros_like(weights)), steps)[0][0]

        every = config.flow_steps // config.num_times
        times = every * np.arange(config.num_times + 1)
        square = lambda weights: jnp.sum(jax.grad(loss)(weights) ** 2)
        squares = trajectory.record(advance, start, square, times=times)
        slope, product = curved(loss, start)
        along = lambda weights: jax.jvp(jax.grad(loss), (weights,), (slope,))[1]
        third = jax.jvp(along, (start,), (slope,))[1]  # third derivative along ∇L, twice
        relative = jnp.linalg.norm(third) / jnp.linalg.norm(product) / 2
        return squares, relative * jnp.array(config.learning_rates)

    return Prediction(*parallel.ensemble(one, problems(config)))


def run(config: Config) -> Result:
    """Flood every seed at every rate: one program, the number of steps is an argument."""
    one = lambda data, *args: flood(lambda weights: half_error(weights, data), *args)
    at_rate = jax.jit(jax.vmap(one, (0, 0, None, None, None)))
    problem = problems(config)
    depth = 0.0 if config.floods else UNREACHED
    found = [
        at_rate(*problem, rate, np.round(config.times() / rate**2).astype(np.int32), depth)
        for rate in config.learning_rates
    ]
    *columns, levels = (jnp.stack(column, axis=1) for column in zip(*found, strict=True))
    return Result(*columns, levels[:, 0])


def flood(loss: LossFn, start: Array, rate: Array, times: Array, depth: Array):
    level = loss(start)
    slope, product = curved(loss, start)
    quotient = gradient_regularisation.penalty_direction(loss, start, finite_step=rate)
    size, norm = rate**2, jnp.linalg.norm
    # A level a little above the start: the first step climbs, and the second comes down.
    above = level + 1e-6 * rate * slope @ slope

    def two_steps(level):
        flooded = gradient_regularisation.flooded(loss, level)
        return descend(flooded, start, rate, [2], lambda weights: weights)[0] - start

    pair, descents = jax.vmap(two_steps)(jnp.stack([above - depth, level - UNREACHED]))
    identity = norm(pair + size * quotient) / norm(size * quotient)
    relative = norm(pair + size * product) / norm(size * product)
    apart = norm(descents + size * quotient) / norm(size * quotient)

    def measure(weights):
        slope, product = curved(loss, weights)
        excess = loss(weights) - level
        # |∇L|² at the level: it changes by 2 ∇L·H ∇L / |∇L|² for each unit of loss.
        square = slope @ slope - 2 * excess * (slope @ product) / (slope @ slope)
        return square, loss(weights)

    chosen = gradient_regularisation.flooded(loss, level - depth)
    squares, losses = descend(chosen, start, rate, times, measure)
    return identity, relative, apart, squares, losses, level


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    rates = np.array(config.learning_rates)
    error = np.abs(result.square / prediction.square[:, None] - 1).max(axis=2)  # (S, L)
    strayed = np.abs(result.loss - result.level[:, None, None])
    strayed = strayed / (rates[:, None] * prediction.square[:, None])
    order = statistics.log_log_slope(rates, error.mean(axis=0))
    return [
        checks.every_seed(IDENTITY, result.identity.max(axis=1), upper=1e-8,
                          why="an identity; rounding over η² |H ∇L|: pilots 2e-11"),
        checks.every_seed("distance from -η² H ∇L over the predicted, smallest rate",
                          (result.relative / prediction.relative)[:, -1], lower=0.98, upper=1.02,
                          why="the next order in η: pilots off by 1e-3"),
        checks.every_seed("exponent of that distance in η",
                          statistics.log_log_slope(rates, result.relative),
                          lower=0.95, upper=1.05, why="first order; pilots 0.997 to 1.002"),
        checks.every_seed(COURSE, error[:, -1], upper=0.02,
                          why="an error of second order: pilots up to 0.002, four times that at "
                          "twice the rate"),
        checks.above("exponent in η of the mean error of |∇L|²", order, 0.8,
                     why="the flow is the limit, to first order at least; pilots 1.7 to 2.1"),
        checks.every_seed(LEVEL, strayed.reshape(len(strayed), -1).max(axis=1), upper=1.5,
                          why="one step of ascent or descent moves the loss by η |∇L|²"),
        checks.below("|∇L|² at the end of flooding over that at the start, mean of seeds",
                     (result.square[:, -1, -1] / result.square[:, -1, 0]).mean(), 0.85,
                     why="pilots 0.29 to 0.35, and 0.43 to 0.50 over half the time"),
        checks.every_seed("two descents: smallest relative distance from η² of the quotient",
                          result.descents.min(axis=1), lower=0.5, role="control",
                          why="they move by -2η ∇L"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, right = panels = figure.subplots(1, 2)
    rates = np.array(config.learning_rates)
    plotting.points(left, rates, result.relative, spread="log", label="from -η² H ∇L")
    plotting.theory(left, rates, np.exp(np.log(prediction.relative).mean(axis=0)),
                    label="η |∇³L[∇L, ∇L]| / 2 |H ∇L|")  # fmt: skip
    plotting.points(left, rates, result.identity, spread="log", marker="s",
                    color=plotting.COLOURS[1], label="from η² of the quotient")  # fmt: skip
    left.set(xscale="log", yscale="log", xlabel="learning rate η",
             ylabel="relative distance of a pair of steps")  # fmt: skip
    left.minorticks_off()
    left.set_xticks(rates, [f"{rate:g}" for rate in rates])
    left.legend()
    start = prediction.square[:, :1]
    times = config.times()
    for i in (0, len(rates) - 1):
        plotting.points(right, times + 0.03 * (i > 0), result.square[:, i] / start, spread="range",
                        label=f"flooding, η = {rates[i]:g}", color=plotting.COLOURS[i],
                        marker=plotting.MARKERS[i])  # fmt: skip
    for i, row in enumerate(prediction.square / start):
        plotting.theory(right, times, row, linewidth=0.8,
                        label=None if i else "projected flow, each seed")  # fmt: skip
    right.set(xlabel="η² x steps", ylabel="|∇L|² over that at the start (mean, range)",
              ylim=(0, None))  # fmt: skip
    right.legend()
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=0.1,
    precision="float64",
    smoke=dict(
        num_seeds=4, learning_rates=(0.1, 0.05, 0.025), num_times=8, flow_steps=160, horizon=2.0
    ),
    controls={
        "descent that does not climb": contract.Control(
            dict(floods=False),
            breaks={IDENTITY: "above", COURSE: "above", LEVEL: "above"},
            why="without ascents the first order does not cancel, and the loss falls",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
