"""Gradient regularisation shrinks the scale of a diagonal linear network by a law it obeys exactly.

Claim      Of β = w+² - w-², trained with finite-difference gradient regularisation of strength γ,
           the products w+ w- end at α² exp(-8γ ∫ g g' dt), g and g' the gradients to β before and
           after the ascent ε, while log w+/w- stays in the row space of the inputs: the fit of
           least hyperbolic entropy at a smaller scale. It is smaller the larger ε. Steps of η are
           off by their order, and a product over the steps has no error.
Control    At γ = 0 the products stay; run without the penalty, nothing comes out as predicted.
Reference  Karakida et al. 2023, arXiv:2210.02720; the law in steps is derived in
           dynamics.theory.diagonal_linear. Their gain in test error is not seen here (panel c).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics.aliases import Array, Key
from dynamics.models import diagonal_linear
from dynamics.theory import diagonal_linear as closed_form
from dynamics.training import gradient_regularisation, step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P220",)
PILOT_SEEDS = (101, 102, 103)
STEPS = "largest error of log w+ w- against the product over steps"
PRODUCTS = "largest error of log w+ w- against the flow over its change, extrapolated to η = 0"
FITS = "largest error of β against the flow, extrapolated to η = 0"
ORDER = "mean change of log w+ w- from one ε to the next, largest"


@dataclasses.dataclass(frozen=True)
class Config:
    num_samples: int = 12
    dim: int = 30
    scales: tuple[float, ...] = (0.15, 0.4)  # α
    strengths: tuple[float, ...] = (0.05, 0.2)  # γ; none at all is run beside
    finite_steps: tuple[float, ...] = (-0.04, 0.001, 0.04, 0.08)  # ε, rising
    penalised: bool = True  # False for a control; predict does not know it
    learning_rate: float = 2e-3  # and half of it
    horizon: float = 8.0  # learning rate x steps
    num_seeds: int = 6
    seed: int = 1

    def __post_init__(self):
        if 0 in self.finite_steps or min(np.diff(self.finite_steps), default=1) <= 0:
            message = f"finite_steps={self.finite_steps}: give rising ones, none of them zero"
            raise ValueError(message)
        if min(self.scales) <= 0 or min(self.strengths) <= 0:
            message = "scales and strengths are positive"
            raise ValueError(message)

    def settings(self) -> np.ndarray:
        """Return α, γ and ε of each network (C, 3): of each α, first the one without penalty."""
        return np.array([
            (scale, *pair) for scale in self.scales for pair in
            [(0.0, 1.0), *((g, e) for g in self.strengths for e in self.finite_steps)]
        ])  # fmt: skip


class Prediction(NamedTuple):
    """S seeds, C settings; the flow, that is η = 0."""

    log_product: Array  # (S, C, D) log w+ w-
    coefficients: Array  # (S, C, D) β


class Result(NamedTuple):
    """H learning rates: the one of the configuration and half of it."""

    log_product: Array  # (S, C, H, D) log w+ w- of the trained weights
    log_ratio: Array  # (S, C, H, D) log w+/w-
    coefficients: Array  # (S, C, H, D)
    law: Array  # (S, C, H, D) 2 log α - 8 γ Σ η g g'
    stepwise: Array  # (S, C, H, D) 2 log α + the log of the product over steps
    outside: Array  # (S, C, H) share of log w+/w- outside the row space of the inputs
    distance: Array  # (S, C, H) |β - β*|


def draw(key: Key, config: Config) -> tuple[Array, Array, Array]:
    """Return inputs (N, D), targets (N,) and the sparse teacher (D,)."""
    inputs = jax.random.normal(key, (config.num_samples, config.dim))
    teacher = jnp.zeros(config.dim).at[:3].set(jnp.array([1.0, -1.0, 0.8]))
    return inputs, inputs @ teacher, teacher


def keys(config: Config) -> Array:
    return jax.random.split(jax.random.key(config.seed), config.num_seeds)


def predict(config: Config) -> Prediction:
    """Solve the flow in the dual of β and log w+ w-; no weight is trained."""
    settings = config.settings()
    inputs, targets, _ = jax.vmap(lambda key: draw(key, config))(keys(config))
    scale, strength, finite_step = np.tile(settings, (config.num_seeds, 1)).T
    end = closed_form.regularised_flow(
        np.repeat(inputs, len(settings), axis=0), np.repeat(targets, len(settings), axis=0),
        scale=scale, strength=strength, finite_step=finite_step, horizon=config.horizon,
    )  # fmt: skip
    shape = config.num_seeds, len(settings), config.dim
    return Prediction(jnp.array(end.log_scale.reshape(shape)),
                      jnp.array(end.coefficients.reshape(shape)))  # fmt: skip


def run(config: Config) -> Result:
    """Train every seed and setting at both rates: one program, the number of steps is given."""
    settings = jnp.array(config.settings()) * jnp.array([1.0, config.penalised, 1.0])
    over_settings = jax.vmap(lambda *args: train(*args, config), (None, 0, None, None))
    at_rate = jax.jit(jax.vmap(over_settings, (0, None, None, None)))
    rates = config.learning_rate / np.array([1.0, 2.0])
    found = [at_rate(keys(config), settings, rate, np.array([round(config.horizon / rate)]))
             for rate in rates]  # fmt: skip
    return Result(*(jnp.stack(pair, axis=2) for pair in zip(*found, strict=True)))


def train(key: Key, setting: Array, learning_rate: Array, times: Array, config: Config):
    """Train one network; return products and ratios of weights, and what its path says of them."""
    inputs, targets, teacher = draw(key, config)
    scale, strength, finite_step = setting
    loss = lambda weights: diagonal_linear.squared_loss(weights, (inputs, targets))
    optimiser = optax.sgd(learning_rate)
    update = gradient_regularisation.regularised_step(
        loss, optimiser, strength=strength, finite_step=finite_step
    )
    start = diagonal_linear.initial_weights(scale, config.dim)

    def to_coefficients(weights):
        return (inputs @ diagonal_linear.coefficients(weights) - targets) @ inputs / len(inputs)

    def advance(state):
        train_state, integral, log_factor = state
        weights = train_state.params
        climb = lambda leaf, slope: leaf + finite_step * slope
        moved = jax.tree.map(climb, weights, jax.grad(loss)(weights))
        here, ahead = to_coefficients(weights), to_coefficients(moved)
        factor = closed_form.product_factor(
            here, ahead, learning_rate=learning_rate, strength=strength, finite_step=finite_step
        )
        integral = integral + learning_rate * here * ahead
        return update(train_state), integral, log_factor + jnp.log(factor)

    zeros = jnp.zeros(config.dim)
    state = step.initial_state(start, optimiser), zeros, zeros
    record = trajectory.record(advance, state, lambda state: state, times=times)
    end, integral, log_factor = jax.tree.map(lambda leaf: leaf[0], record)
    logs = jnp.log(end.params.positive), jnp.log(end.params.negative)
    log_ratio, beta = logs[0] - logs[1], diagonal_linear.coefficients(end.params)
    combined = jnp.linalg.solve(inputs @ inputs.T, inputs @ log_ratio) @ inputs
    outside = jnp.linalg.norm(log_ratio - combined) / jnp.linalg.norm(log_ratio)
    first = 2 * jnp.log(scale)
    return (logs[0] + logs[1], log_ratio, beta, first - 8 * strength * integral,
            first + log_factor, outside, jnp.linalg.norm(beta - teacher))  # fmt: skip


def extrapolated(pair) -> np.ndarray:
    """Return the value at η = 0 of (S, C, H, ...) at η and η/2, the error of first order gone."""
    return 2 * pair[:, :, 1] - pair[:, :, 0]


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    settings = config.settings()
    worst = lambda array: np.abs(array).reshape(config.num_seeds, -1).max(axis=1)
    law = np.abs(result.log_product - result.law).max(axis=-1)  # (S, C, H)
    mean = extrapolated(result.log_product).mean(axis=-1)  # (S, C) over coordinates
    fall = mean - 2 * np.log(settings[:, 0])
    plain = settings[:, 1] == 0
    change = np.abs(prediction.log_product - 2 * np.log(settings[:, :1]))
    error = (extrapolated(result.log_product) - prediction.log_product) / (1 + change)
    by_step = mean[:, ~plain].reshape(config.num_seeds, -1, len(config.finite_steps))
    return [
        checks.every_seed(STEPS, worst(result.log_product - result.stepwise), upper=1e-10,
                          why="an identity; thousands of factors round to 1e-12"),
        checks.every_seed(PRODUCTS, worst(error), upper=2e-3,
                          why="η² is left: pilots 1.3e-4; of one plus the change"),
        checks.every_seed(FITS, worst(extrapolated(result.coefficients) - prediction.coefficients),
                          upper=2e-4, why="the same: pilots below 2e-5, without penalty 2e-2"),
        checks.every_seed("error of the law -8γ ∫ g g' dt at half of η over that at η, farthest",
                          (law[..., 1] / law[..., 0]).max(axis=1), lower=0.45, upper=0.55,
                          why="it is of first order: the product over steps has -η² s²"),
        checks.every_seed("share of log w+/w- outside the row space, extrapolated",
                          worst(extrapolated(result.outside)), upper=1e-3,
                          why="η² is left: pilots 1e-4"),
        checks.every_seed(ORDER, np.diff(by_step, axis=-1).reshape(len(mean), -1).max(axis=1),
                          upper=-1e-5, why="g g' grows with ε: pilots -9e-4, good to 1e-6"),
        checks.every_seed("γ = 0: largest change of log w+ w-",
                          worst((extrapolated(result.log_product)
                                 - 2 * np.log(settings[:, :1]))[:, plain]),
                          upper=1e-3, role="control", why="nothing shrinks the scale"),
        checks.every_seed("γ > 0: mean change of log w+ w-, smallest", fall[:, ~plain].max(axis=1),
                          upper=-1e-3, role="control", why="at the weakest; pilots -6e-3"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    settings = config.settings()
    predicted = prediction.log_product - 2 * np.log(settings[:, :1])
    measured = result.log_product[:, :, 1] - 2 * np.log(settings[:, :1])
    for i, scale in enumerate(config.scales):
        chosen = (settings[:, 0] == scale) & (settings[:, 1] > 0)
        style = dict(color=plotting.COLOURS[i], marker=plotting.MARKERS[i])
        left.plot(predicted[0, chosen].ravel(), measured[0, chosen].ravel(), linestyle="none",
                  markersize=2, label=f"α = {scale:g}", **style)  # fmt: skip
        strongest = chosen & (settings[:, 1] == max(config.strengths))
        plotting.points(middle, settings[strongest, 2], measured[:, strongest].mean(axis=2),
                        label=f"α = {scale:g}, γ = {max(config.strengths):g}", **style)  # fmt: skip
        plotting.theory(middle, settings[strongest, 2],
                        predicted[:, strongest].mean(axis=(0, 2)), label=None)  # fmt: skip
        near = settings[:, 2] == config.finite_steps[-1]
        near = (settings[:, 0] == scale) & (near | (settings[:, 1] == 0))
        plotting.points(right, settings[near, 1], result.distance[:, near, 1],
                        label=f"α = {scale:g}", **style)  # fmt: skip
    ends = np.array([predicted[0].min(), 0])
    plotting.theory(left, ends, ends, label="the same")
    left.set(xlabel="log w$_+$w$_-$/α², flow", ylabel="log w$_+$w$_-$/α², trained (one seed)")
    middle.set(xlabel="ascent ε", ylabel="mean of log w$_+$w$_-$/α²", ylim=(-0.65, 0.02))
    right.set(xlabel=f"γ, at ε = {config.finite_steps[-1]:g}", ylabel="|β - β*|", ylim=(0, None))
    for axes, place in zip(panels, ("upper left", "lower left", "lower left"), strict=True):
        axes.legend(loc=place)
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=0.01,
    precision="float64",
    smoke=dict(
        num_seeds=3, scales=(0.5,), strengths=(0.1,), finite_steps=(-0.04, 0.08), learning_rate=4e-3
    ),
    controls={
        "descent without the penalty": contract.Control(
            dict(penalised=False),
            breaks={PRODUCTS: "above", FITS: "above", ORDER: "above"},
            why="no second gradient, no loss of scale",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
