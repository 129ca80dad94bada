"""Two unequal factors fit with a column too many exponentially, at a rate set by their start.

Claim      Gradient descent on 1/2 |F G^T - M|² with K > r columns conserves F^T F - G^T G. On the
           columns that M leaves free it has eigenvalues α² c, known from the start alone, and
           the loss falls by (1 - η α² min c)² a step in the end: linear convergence with a rate
           that goes as the square of the scale α of the start, to a relative O(α² ln(1/α)).
Control    From F = G, with nothing conserved but zero, convergence is as slow as with X X^T.
Reference  Xiong, Ding and Du 2023, arXiv:2310.01769 (exp(-Ω(α² T)), starts of scales α and α / 3);
           the rate itself is derived here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.theory import matrix_factorisation
from dynamics.training import trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P184",)
PILOT_SEEDS = (101, 102, 103)
SMALL = 0.05  # the largest scale that checks look at
ORDER = 25  # of the relative error in units of α² ln(1/α)
WINDOW = 12.0  # e-folds at which the window of the rate ends, half as many at its beginning


@dataclasses.dataclass(frozen=True)
class Config:
    dim: int = 24  # N, of both factors
    rank: int = 2  # r; the singular values of M are one
    num_columns: int = 4  # K
    scales: tuple[float, ...] = (0.025, 0.05, 0.1, 0.2)  # α
    second_scale: float = 1 / 3  # of G over α
    balanced: bool = False  # start from F = G; predict does not know it
    learning_rate: float = 0.4  # stable below 1
    num_steps: int = 14_000  # ten e-folds of the smallest scale in nearly every draw
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        if self.num_columns <= self.rank:
            message = f"num_columns={self.num_columns}: give more than the rank {self.rank}"
            raise ValueError(message)


class Prediction(NamedTuple):
    """S seeds, A scales."""

    rates: Array  # (S, A, K - r) α² c in ascending order


class Result(NamedTuple):
    """S seeds, A scales, T times."""

    loss: Array  # (S, A, T) |F G^T - M|²
    free: Array  # (S, A, K - r) smallest eigenvalues of F^T F in the end, ascending
    slowest: Array  # (S, A, T) |u^T E| of the error E, for u of the smallest


def start(key: Key, config: Config) -> tuple[Array, ...]:
    """Return singular vectors (N, r) of M, left and right, and F and G (N, K) of scale one."""
    left_key, right_key, first_key, second_key = jax.random.split(key, 4)
    left, right = (
        jax.random.orthogonal(k, config.dim)[:, : config.rank] for k in (left_key, right_key)
    )
    shape = (config.dim, config.num_columns)
    first = jax.random.normal(first_key, shape)
    return left, right, first, config.second_scale * jax.random.normal(second_key, shape)


def starts(config: Config) -> tuple[Array, ...]:
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    return parallel.ensemble(lambda key: start(key, config), keys)


def times(config: Config) -> np.ndarray:
    return np.unique(np.append(0, np.geomspace(1, config.num_steps, 80).astype(int)))


def predict(config: Config) -> Prediction:
    found = [
        matrix_factorisation.excess_imbalance(first, second, left, right)
        for left, right, first, second in zip(*starts(config), strict=True)
    ]
    free = np.array(found)[:, None]  # (S, 1, K - r); positive, as G starts smaller
    return Prediction(np.array(config.scales)[:, None] ** 2 * free)


def run(config: Config) -> Result:
    left, right, first, second = starts(config)
    if config.balanced:  # M = U U^T as well, or F and G would part
        right, second = left, first
    fn = lambda member: descend(*member, config)
    return Result(*parallel.ensemble(fn, (left, right, first, second)))


def descend(left: Array, right: Array, first: Array, second: Array, config: Config):
    """Train from every scale of the same draw."""
    target = left @ right.T
    scales = jnp.array(config.scales)[:, None, None]
    error = lambda first, second: first @ second.swapaxes(-1, -2) - target

    def step(factors):
        first, second = factors
        wrong = error(first, second)
        return (
            first - config.learning_rate * wrong @ second,
            second - config.learning_rate * wrong.swapaxes(1, 2) @ first,
        )

    factors = (scales * first, scales * second)
    first, second = trajectory.record(step, factors, lambda f: f, times=times(config))
    num = config.num_columns - config.rank
    values, vectors = jnp.linalg.eigh(first[-1].swapaxes(1, 2) @ first[-1])
    u = (first[-1] @ vectors[..., :1])[..., 0] / jnp.sqrt(values[:, :1])  # (A, N)
    errors = error(first, second)  # (T, A, N, N)
    slowest = jnp.linalg.norm(jnp.einsum("an,tanm->tam", u, errors), axis=-1)
    return jnp.sum(errors**2, axis=(2, 3)).T, values[:, :num], slowest.T


def window(config: Config, prediction: Prediction) -> np.ndarray:
    """Return the indices (S, A, 2) of the times between which rates are read off."""
    folds = config.learning_rate * prediction.rates[..., :1] * times(config)  # (S, A, T)
    end = np.minimum(WINDOW, folds[..., -1:])
    return np.stack([(folds < half * end).sum(axis=-1) for half in (0.5, 1 - 1e-9)], axis=-1)


def rate(config: Config, prediction: Prediction, values: np.ndarray) -> np.ndarray:
    """Return c (S, A) from values (S, A, T) that fall by 1 - η c a step in the window."""
    ends = window(config, prediction)
    fallen = np.diff(np.log(np.take_along_axis(values, ends, axis=-1)))[..., 0]
    steps = np.diff(times(config)[ends])[..., 0]
    return -np.expm1(fallen / steps) / config.learning_rate


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    scales = np.array(config.scales)
    small = scales <= SMALL
    predicted = prediction.rates[:, small, 0]
    found = rate(config, prediction, result.slowest)[:, small]
    by_loss = rate(config, prediction, np.sqrt(result.loss))[:, small]
    values = result.free[:, small]
    order = scales[small] ** 2 * np.log(1 / scales[small])
    exponent = np.polyfit(np.log(scales[small]), np.log(found).T, 1)[0]  # (S,)
    folds = config.learning_rate * prediction.rates[:, :, 0] * config.num_steps
    error = lambda a, b: np.abs(a / b - 1)
    why = "O(α² ln(1/α)): the factor is 15 at most in 700 draws of numpy's"
    return [
        checks.stays_finite("last finite step", times(config), result.loss, mend="lower the rate"),
        checks.every_seed("e-folds in the run, least", folds.min(axis=1), lower=5,
                          role="precondition", why="raise num_steps"),
        checks.every_seed("relative error of the rate over α² ln(1/α), largest",
                          (error(found, predicted) / order).max(axis=1), upper=ORDER, why=why),
        checks.every_seed("relative error of all free eigenvalues over α² ln(1/α), largest",
                          (error(values, prediction.rates[:, small]) / order[:, None])
                          .max(axis=(1, 2)), upper=ORDER, why=why),
        checks.every_seed("rate over the smallest eigenvalue of F^T F in the end, - 1",
                          error(found, values[..., 0]).max(axis=1), upper=0.01,
                          why="2 |G s|² / |F s|², at most exp(-5) / 9 after 2.5 e-folds"),
        checks.every_seed("rate of the loss over that of its slowest part, least",
                          (by_loss / found).min(axis=1), lower=0.98, why="it is the slowest"),
        checks.every_seed("rate of the loss over that of its slowest part, largest",
                          (by_loss / found).max(axis=1), upper=1.25,
                          why="where two rates are near, both are left for a while"),
        checks.every_seed("exponent of the rate in α", exponent, lower=1.8, upper=2.2,
                          why="the same errors over ln 2: 0.17 at most"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, right = panels = figure.subplots(1, 2)
    eta, steps = config.learning_rate, times(config)
    shown = np.geomspace(config.scales[0] * 0.8, config.scales[-1] * 1.25, 20)
    found = rate(config, prediction, result.slowest)
    for i, alpha in enumerate(config.scales):
        color = plotting.COLOURS[i]
        left.plot(eta * alpha**2 * steps, result.loss[0, i], plotting.MARKERS[i], color=color,
                  markersize=3, label=f"α = {alpha:g}")  # fmt: skip
        at = window(config, prediction)[0, i, 0]
        line = result.loss[0, i, at] * np.exp(
            2 * (steps - steps[at]) * np.log1p(-eta * prediction.rates[0, i, 0])
        )
        later = steps >= steps[at]
        plotting.theory(left, eta * alpha**2 * steps[later], line[later],
                        label=None if i else "predicted slope")  # fmt: skip
    left.set(yscale="log", xlabel="η α² t", ylabel="|F G$^T$ - M|²", ylim=(1e-29, 10),
             xlim=(0, 20 / (prediction.rates[0, 0, 0] / config.scales[0] ** 2)),
             title="one seed")  # fmt: skip
    left.legend()
    for s in range(config.num_seeds):
        color = plotting.COLOURS[s % len(plotting.COLOURS)]
        right.plot(config.scales, found[s], "o", color=color, markersize=4,
                   label="descent" if s == 0 else None)  # fmt: skip
        per_scale = prediction.rates[s, 0, 0] / config.scales[0] ** 2
        plotting.theory(right, shown, per_scale * shown**2, linewidth=0.8,
                        label=None if s else "α² min c, a seed each")  # fmt: skip
    right.set(xscale="log", yscale="log", xlabel="scale α of the start", ylabel="rate over η")
    right.set_xticks(config.scales, [f"{alpha:g}" for alpha in config.scales])
    right.minorticks_off()
    right.legend()
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=0.12,
    precision="float64",
    smoke=dict(scales=(0.025, 0.05)),
    controls={
        "balanced start": contract.Control(
            dict(balanced=True),
            breaks={
                "relative error of the rate over α² ln(1/α), largest": "above",
                "relative error of all free eigenvalues over α² ln(1/α), largest": "above",
                "rate over the smallest eigenvalue of F^T F in the end, - 1": "above",
            },
            why="F = G from the start to the end, and the excess falls as 1/t",
            needs=("last finite step",),
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
