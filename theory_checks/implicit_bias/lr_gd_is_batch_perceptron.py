"""With a large step, gradient descent on logistic regression is the batch perceptron.

Claim      On separable data, from zero, the iterates over the step size γ are those of the batch
           perceptron up to exp(-γ m), with m the smallest |z·u| on the perceptron's path: what is
           left is the sum of sign(z·u) σ(-γ |z·u|) z / N along that path, to second order. So both
           separate the data at the same step, and before N R² / μ² steps.
Control    From a start off zero they stay apart; a step size below 2 / L never comes near, and
           there alone the loss falls monotonically.
Reference  Tyurin 2024, arXiv:2412.08424: theorem 3.2 is the limit γ → ∞, theorem 3.3 the count.
           The rate of the limit and the leading difference are derived here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.theory import attention_margin, batch_perceptron
from dynamics.training import trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P82",)
PILOT_SEEDS = (101, 102, 103)
ROUNDING = 2e-15  # of iterates below one after tens of steps; z·u is off by |z| times that
RESOLVED = 12  # γ m from which the bound on the distance is far below m: same signs, same step


@dataclasses.dataclass(frozen=True)
class Config:
    num_samples: int = 200
    input_dim: int = 40
    push: float = 0.02  # added along the separating direction: small, for a path of several steps
    scales: tuple[float, ...] = (4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 30.0, 60.0)  # γ m
    start: float = 0.0  # |θ_0| / γ; predict does not know it
    num_steps: int = 120
    num_seeds: int = 10
    seed: int = 1

    def __post_init__(self):
        if max(self.scales) < 40:
            message = (
                f"scales={self.scales}: give at least one above 40, where only rounding is left"
            )
            raise ValueError(message)


class Prediction(NamedTuple):
    """S seeds, C scales and the small step, T = num_steps + 1 times, D dimensions."""

    path: Array  # (S, T, D) of the batch perceptron
    leading: Array  # (S, C + 1, T, D) of the difference
    remainder: Array  # (S, C + 1, T) bound on what is beyond it
    distance: Array  # (S, C + 1, T) bound on the whole difference
    rounding: Array  # (S, C + 1, T) on top of either: σ(-γ z·u) magnifies that of z·u by γ
    separated: Array  # (S,) the perceptron's step
    most_steps: Array  # (S,) N R² / μ²


class Result(NamedTuple):
    iterates: Array  # (S, C + 1, T, D) θ_t / γ
    loss: Array  # (S, C + 1, T)
    separated: Array  # (S, C + 1) first step at which all rows are right


def problem(key: Key, config: Config) -> tuple[Array, Array, Array]:
    """Return rows z (N, D), the perceptron's path (T, D) and step sizes γ (C + 1,)."""
    input_key, direction_key = jax.random.split(key)
    x = jax.random.normal(input_key, (config.num_samples, config.input_dim))
    direction = jax.random.normal(direction_key, (config.input_dim,))
    direction = direction / jnp.linalg.norm(direction)
    rows = jnp.sign(x @ direction)[:, None] * x + config.push * direction
    path = batch_perceptron.path(rows, config.num_steps)
    passed = jnp.arange(1, len(path)) <= batch_perceptron.separation_step(rows, path)
    margin = jnp.where(passed, jnp.abs(path[1:] @ rows.T).min(axis=1), jnp.inf).min()
    smoothness = jnp.linalg.norm(rows, 2) ** 2 / (4 * config.num_samples)
    gammas = jnp.append(jnp.array(config.scales) / margin, 1 / smoothness)
    return rows, path, gammas


def problems(config: Config) -> tuple[Array, Array, Array]:
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    return parallel.ensemble(lambda key: problem(key, config), keys)


def predict(config: Config) -> Prediction:
    def one(member):
        rows, path, gammas = member
        expansion = jax.vmap(lambda gamma: batch_perceptron.expansion(rows, path, gamma))(gammas)
        return expansion, batch_perceptron.separation_step(rows, path) + 0.0

    rows, path, gammas = problems(config)
    expansion, separated = parallel.ensemble(one, (rows, path, gammas))
    rows = np.asarray(rows)
    margin = [1 / attention_margin.frobenius_solution(z[:, :, None]).norm for z in rows]
    longest = np.linalg.norm(rows, axis=2).max(axis=1)
    most = config.num_samples * longest**2 / np.array(margin) ** 2
    magnified = np.asarray(gammas) * longest[:, None]  # (S, C + 1)
    rounding = ROUNDING * (1 + magnified[..., None] * expansion.distance)
    return Prediction(path, *expansion, rounding, separated, most)


def run(config: Config) -> Result:
    rows, _, gammas = problems(config)
    start = jnp.full(config.num_seeds, config.start)  # a number: the control is the same program

    def one(member) -> tuple[Array, Array, Array]:
        rows, gammas, start = member
        return jax.vmap(lambda gamma: descend(rows, gamma, gamma * start, config))(gammas)

    return Result(*parallel.ensemble(one, (rows, gammas, start)))


def descend(rows: Array, gamma: Array, start: Array, config: Config) -> tuple[Array, Array, Array]:
    """Return θ_t / γ (T, D), the loss (T,) and when the data are separated, for one γ."""
    loss = lambda theta: -jnp.mean(jax.nn.log_sigmoid(rows @ theta))
    iterates, losses = trajectory.record(
        lambda theta: theta - gamma * jax.grad(loss)(theta),
        jnp.zeros(config.input_dim).at[0].set(start),
        lambda theta: (theta / gamma, loss(theta)), times=jnp.arange(config.num_steps + 1),
    )  # fmt: skip
    return iterates, losses, batch_perceptron.separation_step(rows, iterates)


def before_separation(config: Config, prediction: Prediction) -> np.ndarray:
    """Return which times (S, 1, T) are up to the perceptron's separation."""
    times = np.arange(config.num_steps + 1)
    return (times <= prediction.separated[:, None] + 0.5)[:, None]


def distances(prediction: Prediction, result: Result) -> tuple[np.ndarray, np.ndarray]:
    """Return |u - path| and |u - path - leading| (S, C + 1, T)."""
    difference = result.iterates - prediction.path[:, None]
    return tuple(np.linalg.norm(d, axis=-1) for d in (difference, difference - prediction.leading))


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    shown = before_separation(config, prediction)
    distance, left = (np.where(shown, d, 0) for d in distances(prediction, result))
    over = lambda d, bound: (d / (bound + prediction.rounding))[:, :-1].max(axis=(1, 2))  # (S,)
    scales = np.array(config.scales)
    unlike = (result.separated != prediction.separated[:, None])[:, :-1][:, scales >= RESOLVED]
    hard = int(scales.argmax())
    length = np.linalg.norm(prediction.path, axis=2).max(axis=1)  # (S,)
    rises = (np.diff(result.loss, axis=2) > 0) & shown[:, :, 1:]  # (S, C + 1, T - 1)
    why = "a theorem for every γ, proved in the library; rounding is on top"
    return [
        checks.every_seed("step at which the perceptron is done", prediction.separated,
                          upper=config.num_steps, role="precondition",
                          why="raise num_steps; 9000 draws of numpy's need 93 at most"),
        checks.every_seed("distance from the perceptron over its bound",
                          over(distance, prediction.distance), upper=1, why=why),
        checks.every_seed("distance from path and leading difference over its bound",
                          over(left, prediction.remainder), upper=1, why=why),
        checks.every_seed("distance from the perceptron at the largest step size",
                          distance[:, hard].max(axis=1), upper=ROUNDING,
                          why="exp(-40) and less is below rounding"),
        checks.every_seed("step sizes γ >= 12 / m that separate at another step",
                          unlike.sum(axis=1), upper=0,
                          why="the distance is so far below m that all signs agree"),
        checks.every_seed("steps of the perceptron over N R² / μ²",
                          prediction.separated / prediction.most_steps, upper=1,
                          why="theorem 3.3, with the largest margin μ from least squares"),
        checks.every_seed("small step: distance over the length of the path",
                          distance[:, -1].max(axis=1) / length, lower=0.1, role="control",
                          why="γ = 1/L is nowhere near the limit: σ never saturates"),
        checks.every_seed("small step: rises of the loss", rises[:, -1].sum(axis=1), upper=0,
                          role="control", why="γ < 2/L: descent descends"),
        checks.above("runs with γ >= 12 / m whose loss rises on the way",
                     rises[:, :-1][:, scales >= RESOLVED].any(axis=2).mean(), 0.5,
                     role="control", why="the perceptron is no descent on any loss"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    shown = before_separation(config, prediction)
    distance = distances(prediction, result)[0]
    leading = np.linalg.norm(prediction.leading, axis=-1)
    longest = int(np.argmax(prediction.separated))
    times = np.arange(config.num_steps + 1)
    passed = shown[longest, 0]
    drawn = [i for i, scale in enumerate(config.scales) if 8 <= scale <= 30][::2]
    for colour, i in enumerate(drawn):
        plotting.theory(left, times[passed][2:], leading[longest, i, passed][2:],
                        label=None if colour else "leading difference")  # fmt: skip
        left.semilogy(times[passed][2:], distance[longest, i, passed][2:],
                      plotting.MARKERS[colour], color=plotting.COLOURS[colour], markersize=3.5,
                      label=f"γ m = {config.scales[i]:g}")  # fmt: skip
    left.set(xlabel="step t", ylabel="|θ$_t$/γ - perceptron|", ylim=(1e-18, 1e4), title="one seed")
    left.legend(ncol=2, loc="upper center", fontsize=6.5, columnspacing=0.8, handlelength=1.5)
    largest = np.where(shown, distance, 0).max(axis=2)[:, :-1]  # (S, C)
    few = np.array(config.scales) <= 30
    middle.semilogy(np.array(config.scales)[few], largest[:, few].T, "o", markersize=3,
                    color=plotting.COLOURS[0], alpha=0.6)  # fmt: skip
    fine = np.linspace(4, 30, 50)
    plotting.theory(middle, fine, 0.1 * np.exp(-fine), label="slope exp(-γ m)")
    middle.set(xlabel="γ m", ylabel="largest distance up to separation", title="every seed")
    middle.legend()
    for i, label in ((-1, "γ = 1/L"), (config.scales.index(max(config.scales)), "largest γ")):
        loss = np.maximum(result.loss[longest, i] / result.loss[longest, i, 0], 1e-9)
        right.semilogy(times, loss, color=plotting.COLOURS[i % 3], label=label)
    right.axvline(prediction.separated[longest], color="black", linestyle=":", label="separated")
    right.set(xlabel="step t", ylabel="logistic loss over ln 2", title="the same seed",
              ylim=(1e-2, 3e4))  # fmt: skip
    right.legend(loc="center right")
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-12,
    precision="float64",
    smoke=dict(num_samples=60, input_dim=12, num_seeds=5),
    controls={
        "start off zero": contract.Control(
            dict(start=1e-3),
            breaks={
                "distance from the perceptron over its bound": "above",
                "distance from path and leading difference over its bound": "above",
                "distance from the perceptron at the largest step size": "above",
            },
            why="a start of length 1e-3 γ stays in the iterates, whatever γ",
            needs=("step at which the perceptron is done",),
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
