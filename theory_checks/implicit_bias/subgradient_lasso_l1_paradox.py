"""Subgradient descent on the LASSO ends with a norm that grows with the penalty, by d η/2 a unit.

Claim      With a constant step η, once the penalty λ is above |X^T y|_∞, where the solution of the
           LASSO is zero, subgradient descent chatters about it with a time-averaged norm of
           |w|_1 = η λ tr (2 - η X^T X)^-1 + η |X^T y|²/(2λ): a slope of d η/2 and a few per cent,
           never above d η/2 over 1 - η h/2, h the largest eigenvalue of X^T X. So it passes the
           norm of the nearly unpenalised fit. Under the largest penalty every weight changes sign
           at every step, and the norm is exactly η λ σ·(2 - η X^T X)^-1 σ with σ the signs. No
           weight is ever zero.
Control    Proximal descent, on the same data with the same step, gives a norm that falls with λ and
           weights of exactly zero. With a decaying step the chatter dies out.
Reference  Kumar 2024, arXiv:2401.08426 (that the norm grows). The laws are derived here.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array
from dynamics.theory import nonsmooth_descent
from dynamics.training import trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P267",)
PILOT_SEEDS = (101, 102, 103)
METHODS = ("subgradient", "proximal")
TRUE_WEIGHTS = (3.0, -2.0, 2.0, 1.5, -1.0)  # the others are zero
START = 1e-3  # standard deviation: at exactly 0 the subgradient taken is 0, and a weight may stay


@dataclasses.dataclass(frozen=True)
class Config:
    num_samples: int = 40
    dim: int = 100
    noise_std: float = 0.05
    learning_rates: tuple[float, ...] = (0.0125, 0.05)
    penalties: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 4.0, 8.0, 16.0, 32.0)
    cycle_penalty: float = 128.0  # over |X^T y|_∞, as the others; every sign then changes
    decay: float = 0.0  # η / (1 + decay t); for the control, predict does not know it
    num_steps: int = 5000
    window: int = 1000  # last steps, averaged over
    num_seeds: int = 5
    seed: int = 1

    def judged(self) -> np.ndarray:
        """Return under which penalties weights wander freely and the law holds (L,).

        The next order is (b/λ)^4. From η λ of about 1 on some stay in two-cycles, whose signs are
        no longer at random: the norm is then up to 1 / (1 - η h / 2) times d η λ / 2.
        """
        penalties = np.array(self.penalties)
        return (penalties >= 2) & (penalties <= 4)


class Prediction(NamedTuple):
    """S seeds, E steps η, L penalties."""

    norm: Array  # (S, E, L) time average of |w|_1 far above |X^T y|_∞
    slope: Array  # (S, E) of it
    gram: Array  # (S, d, d) X^T X


class Result(NamedTuple):
    """S seeds, M methods, E steps η, L + 1 penalties, that of the cycle last."""

    threshold: Array  # (S,) |X^T y|_∞
    norm: Array  # (S, M, E, L + 1) time average of |w|_1
    zeros: Array  # (S, M, E, L + 1) share of weights that are zero in the end
    cycle_norm: Array  # (S, E) mean |w|_1 of the last two steps, penalty of the cycle
    cycle_signs: Array  # (S, E, d) in the end
    cycle_flips: Array  # (S, E) share of signs that the last step changed


def problems(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return X^T X (S, d, d) and X^T y (S, d) of every seed."""
    design_key, noise_key = jax.random.split(jax.random.key(config.seed))
    shape = config.num_seeds, config.num_samples, config.dim
    x = np.asarray(jax.random.normal(design_key, shape), np.float64) / config.num_samples**0.5
    noise = np.asarray(jax.random.normal(noise_key, shape[:2]), np.float64)
    weights = np.zeros(config.dim)
    weights[: len(TRUE_WEIGHTS)] = TRUE_WEIGHTS
    y = x @ weights + config.noise_std * noise
    transposed = np.swapaxes(x, 1, 2)
    return transposed @ x, (transposed @ y[..., None])[..., 0]


def predict(config: Config) -> Prediction:
    gram, pull = problems(config)
    penalties = np.abs(pull).max(axis=1)[:, None] * np.array(config.penalties)
    norm = [
        [nonsmooth_descent.mean_chatter_norm(g, b, eta, penalty) for eta in config.learning_rates]
        for g, b, penalty in zip(gram, pull, penalties, strict=True)
    ]
    used = config.judged()
    slope = [[fitted_slope(p[used], n[used]) for n in rows]
             for p, rows in zip(penalties, norm, strict=True)]  # fmt: skip
    return Prediction(np.array(norm), np.array(slope), gram)


def fitted_slope(x: np.ndarray, y: np.ndarray) -> float:
    centred = x - x.mean()
    return float(centred @ y / (centred @ centred))


def run(config: Config) -> Result:
    gram, pull = problems(config)
    threshold = np.abs(pull).max(axis=1)
    multiples = np.append(config.penalties, config.cycle_penalty)
    shape = len(METHODS), len(config.learning_rates), len(multiples)
    proximal, eta, multiple = (a.reshape(-1, 1) for a in np.broadcast_arrays(
        np.arange(2)[:, None, None] > 0, np.array(config.learning_rates)[:, None], multiples
    ))  # fmt: skip
    penalty = threshold[:, None, None] * multiple  # (S, C, 1)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    starts = START * jax.random.normal(key, (config.num_seeds, config.dim))
    decay = jnp.full(config.num_seeds, config.decay)
    each = lambda a: np.broadcast_to(a, penalty.shape)
    members = (gram, pull, starts, decay, penalty, each(proximal), each(eta))
    found = parallel.ensemble(
        descent(config.num_steps, config.window), tuple(map(jnp.asarray, members))
    )
    norm, last = found[0], np.asarray(found[1])  # (S, C), (S, 2, C, d)
    last = last.reshape(config.num_seeds, 2, *shape, config.dim)
    cycle = last[:, :, 0, :, -1]  # (S, 2, E, d)
    return Result(
        threshold,
        norm.reshape(config.num_seeds, *shape),
        np.mean(last[:, 1] == 0, axis=-1),
        np.abs(cycle).sum(axis=-1).mean(axis=1),
        np.sign(cycle[:, 1]),
        np.mean(np.sign(cycle[:, 0]) != np.sign(cycle[:, 1]), axis=-1),
    )


@functools.cache
def descent(num_steps: int, window: int):
    """Return the function of one seed, the same for the control: one program.

    It gives the time average of |w|_1 (C,) and the last two weights (2, C, d) of all settings.
    """

    def descend(member: tuple[Array, ...]) -> tuple[Array, Array]:
        gram, pull, start, decay, penalty, proximal, eta = member

        def step(state):
            weight, total, count = state
            rate = eta / (1 + decay * count)
            descended = weight - rate * (weight @ gram - pull)
            chattering = descended - rate * penalty * jnp.sign(weight)
            shrunk = jnp.sign(descended) * jnp.maximum(jnp.abs(descended) - rate * penalty, 0)
            weight = jnp.where(proximal, shrunk, chattering)
            late = count >= num_steps - window
            return weight, total + late * jnp.sum(jnp.abs(weight), axis=1), count + 1

        settings = penalty.shape[0]
        state = jnp.tile(start, (settings, 1)), jnp.zeros(settings), jnp.array(0)
        times = np.array([num_steps - 1, num_steps])
        last, total = trajectory.record(step, state, lambda state: state[:2], times=times)
        return total[-1] / window, last

    return descend


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    used = config.judged()
    norm, proximal = result.norm[:, 0, :, :-1], result.norm[:, 1]
    zero = np.append(np.array(config.penalties) >= 1, True)  # where the LASSO's solution is zero
    penalties = result.threshold[:, None] * np.array(config.penalties)  # (S, L)
    slope = [[fitted_slope(p[used], n[used]) for n in rows]
             for p, rows in zip(penalties, norm, strict=True)]  # fmt: skip
    cycle = np.array([
        [nonsmooth_descent.chatter_norm(gram, signs, eta, config.cycle_penalty * threshold)
         for eta, signs in zip(config.learning_rates, rows, strict=True)]
        for gram, rows, threshold in zip(prediction.gram, result.cycle_signs, result.threshold,
                                         strict=True)
    ])  # fmt: skip
    largest = np.linalg.eigvalsh(prediction.gram)[:, -1:]  # (S, 1)
    eta = np.array(config.learning_rates)
    size = norm / (config.dim / 2 * eta[:, None] * penalties[:, None])  # (S, E, L)
    most = 1 / (1 - eta * largest / 2)
    beyond = np.array(config.penalties) >= 4
    chance = "the chance of the signs is half a per cent"
    return [
        checks.every_seed("time average of |w|_1 / its law", (norm / prediction.norm)[..., used],
                          lower=0.97, upper=1.03, why=chance + "; pilots 0.989 to 1.005"),
        checks.every_seed("slope of |w|_1 over λ / its law", slope / prediction.slope,
                          lower=0.96, upper=1.04, why=chance + " at each; pilots 0.999 to 1.014"),
        checks.every_seed("smallest |w|_1 / (d η λ / 2) from 4 |X^T y|_∞ on",
                          size[..., beyond].min(axis=(1, 2)), lower=0.98,
                          why="at least 1 in two-cycles; " + chance),
        checks.every_seed("largest |w|_1 / (d η λ / 2) / its bound, from 4 |X^T y|_∞ on",
                          (size / most[..., None])[..., beyond].max(axis=(1, 2)), upper=1,
                          why="that of two-cycles, 1 / (1 - η h / 2)"),
        checks.every_seed("share of signs that a step changes, largest penalty",
                          result.cycle_flips, lower=1, why="η λ / 2 exceeds every weight's mean"),
        checks.every_seed("largest relative error of |w|_1 against that of its signs",
                          np.abs(result.cycle_norm / cycle - 1).max(axis=1), upper=1e-4,
                          why="exact in the two-cycle; it is reached as exp(-0.004 t) once signs "
                          "settle. Other signs of the same chance: 5e-3"),
        checks.every_seed("|w|_1 under a penalty of 32 / under the smallest",
                          norm[..., -1] / norm[..., 0], lower=2,
                          why="the paradox: d η λ / 2 passes the norm of the fit"),
        checks.every_seed("share of weights that are zero, subgradient",
                          result.zeros[:, 0].max(axis=(1, 2)), upper=0,
                          why="each step is ±η λ and a real number"),
        checks.every_seed("|w|_1 of proximal descent where the solution is zero",
                          proximal[..., zero].max(axis=(1, 2)), upper=1e-12, role="control",
                          why="η λ is at least every entry of the gradient step; rounding where "
                          "it is equal"),
        checks.every_seed("largest rise of |w|_1 with the penalty, proximal descent",
                          np.diff(proximal, axis=-1).max(axis=(1, 2)), upper=1e-6,
                          role="control", why="the norm of the solution never grows with λ"),
        checks.every_seed("|w|_1 of proximal descent under the smallest penalty",
                          proximal[..., 0], lower=2, role="control",
                          why="it does fit: the true weights have a norm of 9.5"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    at = np.append(config.penalties, config.cycle_penalty)
    from_one = np.array(config.penalties) >= 1
    used = config.judged()
    scale = config.dim / 2 * result.threshold[:, None] * config.penalties  # (S, L) over η
    for e, eta in enumerate(config.learning_rates):
        for m, method in enumerate(METHODS):
            norm = result.norm[:, m, e]
            kept = norm.min(axis=0) > 1e-6  # the others have no place on the axis
            plotting.points(left, at[kept], norm[:, kept], spread="log",
                            marker=plotting.MARKERS[m], color=plotting.COLOURS[e],
                            fillstyle="none" if m else "full",
                            label=f"{method}, η = {eta:g}")  # fmt: skip
        law = config.dim * eta / 2 * at[at >= 1] * result.threshold.mean()
        plotting.theory(left, at[at >= 1], law, label=None if e else "d η λ / 2")
        size = result.norm[:, 0, e, :-1] / (eta * scale)
        plotting.points(middle, at[:-1][from_one], size[:, from_one], color=plotting.COLOURS[e],
                        label=f"η = {eta:g}")  # fmt: skip
        law = (prediction.norm[:, e] / (eta * scale)).mean(axis=0)
        plotting.theory(middle, at[:-1][used], law[used], label=None if e else "law", linewidth=2)
        largest = np.linalg.eigvalsh(prediction.gram)[:, -1].mean()
        plotting.threshold(middle, 1 / (1 - eta * largest / 2), color=plotting.COLOURS[e],
                           label=None if e else "bound of two-cycles")  # fmt: skip
    left.set(xscale="log", yscale="log", xlabel="penalty λ / |Xᵀy|∞", ylabel="|w|₁, time average")
    left.legend(loc="upper left")
    middle.set(xscale="log", xlabel="penalty λ / |Xᵀy|∞", ylabel="|w|₁ / (d η λ / 2)")
    middle.legend(loc=(0.02, 0.55))
    for m, method in enumerate(METHODS):
        plotting.points(right, at, 100 * result.zeros[:, m, -1], color=plotting.COLOURS[m + 2],
                        marker=plotting.MARKERS[m], label=method)  # fmt: skip
    right.axvline(1, color="#888888", linewidth=0.8)
    right.set(xscale="log", xlabel="penalty λ / |Xᵀy|∞", ylabel="weights that are zero (%)")
    right.legend(loc="center right")
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=0.1,
    precision="float64",
    smoke=dict(learning_rates=(0.05,), num_steps=2000, window=500),
    paper=dict(num_steps=10_000),
    controls={
        "a step that decays": contract.Control(
            dict(decay=0.1),
            breaks={
                "time average of |w|_1 / its law": "below",
                "slope of |w|_1 over λ / its law": "below",
                "|w|_1 under a penalty of 32 / under the smallest": "below",
            },
            why="the chatter is as wide as the last step",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
