"""Descent on |x|^p ends in an orbit of period two with a sharpness of p - 1 times 2/η.

Claim      Gradient descent of any constant step η on |x|^p, 1 < p < 2, ends in the orbit x* → -x*,
           x* = (η p / 2)^(1/(2-p)). The sharpness there is (p - 1) 2/η, below the 2/η of the edge
           of stability; what is 2/η is the mean curvature over the step from x* to -x*, as for
           every orbit of period two. A step multiplies deviations of |x| by 2p - 3, so it is
           stable. Where the cusp is rounded, (x² + δ²)^(p/2), the sharpness of the orbit rises to
           (p - 1 + (2 - p) δ²/x*²) 2/η.
Control    From δ = x* on the minimum is stable, and descent ends in it with a sharpness of
           (δ/x*)^(p-2) 2/η: it is the infinite curvature at 0 that no step is small enough for.
Reference  Kumar 2024, arXiv:2401.08426, for differentiable functions that are not smooth; orbit,
           sharpness and rounding are derived here.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array
from dynamics.measure import curvature
from dynamics.theory import nonsmooth_descent
from dynamics.training import trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P267",)
PILOT_SEEDS = (101, 102, 103)
WINDOW = (1e-9, 1e-3)  # of the deviation over x* in which its rate is measured


@dataclasses.dataclass(frozen=True)
class Config:
    exponents: tuple[float, ...] = (1.1, 1.25, 1.5, 1.75, 1.9)
    learning_rates: tuple[float, ...] = (0.01, 0.1, 1.0)
    rounding: float = 0.0  # δ/x* everywhere; for the control, predict does not know it
    ladder: tuple[float, ...] = (0.25, 0.5, 0.75, 1.5, 2.0, 4.0)  # δ/x*, beside
    ladder_exponent: float = 1.5
    num_starts: int = 4  # a seed
    num_steps: int = 1000  # x^0.1 falls by 0.19 η a step for p = 1.9: 530 until it is there
    num_seeds: int = 5
    seed: int = 1


class Prediction(NamedTuple):
    """P exponents, E steps η, D roundings."""

    radius: Array  # (P, E) |x| in the end
    sharpness: Array  # (P, E) η f'' there
    factor: Array  # (P,) of a deviation of |x| in one step
    ladder_radius: Array  # (D,) over x*
    ladder_sharpness: Array  # (D,) η f''


class Result(NamedTuple):
    """S seeds, P exponents, E steps η, K starts, T times, D roundings."""

    iterate: Array  # (S, P, E, K, T)
    sharpness: Array  # (S, P, E, K, 2) η f'' at the last two iterates
    mean_curvature: Array  # (S, P, E, K) η times that over the last step
    ladder_radius: Array  # (S, D, K) |x| in the end over x*
    ladder_sharpness: Array  # (S, D, K) η f'' there


def predict(config: Config) -> Prediction:
    p, eta = np.array(config.exponents), np.array(config.learning_rates)
    at, share = config.ladder_exponent, np.array(config.ladder)
    whole = nonsmooth_descent.orbit_radius(at, 1.0)
    return Prediction(
        nonsmooth_descent.orbit_radius(p[:, None], eta),
        eta * nonsmooth_descent.orbit_sharpness(p[:, None], eta),
        2 * p - 3,
        nonsmooth_descent.orbit_radius(at, 1.0, share * whole) / whole,
        nonsmooth_descent.orbit_sharpness(at, 1.0, share * whole),
    )


def run(config: Config) -> Result:
    num_exponents, num_rates = len(config.exponents), len(config.learning_rates)
    grid = np.array([(p, eta, config.rounding)
                     for p in config.exponents for eta in config.learning_rates])  # fmt: skip
    beside = np.array([(config.ladder_exponent, 1.0, share) for share in config.ladder])
    settings = np.concatenate([grid, beside])  # (C, 3)
    starts = jax.random.normal(
        jax.random.key(config.seed), (config.num_seeds, len(settings), config.num_starts)
    )
    members = jnp.broadcast_to(jnp.asarray(settings)[:, None], (*starts.shape, 3)).reshape(-1, 3)
    found = parallel.ensemble(descent(config.num_steps), (starts.ravel(), members))
    iterate, sharpness, mean = (a.reshape(*starts.shape, *a.shape[1:]) for a in found)
    inner = lambda a: a[:, : len(grid)].reshape(
        config.num_seeds, num_exponents, num_rates, *a.shape[2:]
    )
    scale = nonsmooth_descent.orbit_radius(config.ladder_exponent, 1.0)
    outer = slice(len(grid), None)
    ladder = jnp.abs(iterate[:, outer, :, -1]) / scale, sharpness[:, outer, :, -1]
    return Result(inner(iterate), inner(sharpness), inner(mean), *ladder)


@functools.cache
def descent(num_steps: int):
    """Return the function of one start and its (p, η, δ/x*), the same for the control: one program.

    It gives the path, η f'' at its last two points, η times the mean curvature between them.
    """

    def follow(member: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        start, (p, eta, share) = member
        delta = share * (eta * p / 2) ** (1 / (2 - p))
        # With δ = 0 the power of x² would have a derivative of 0/0 at 0; |x| needs x ≠ 0 only.
        size = lambda x: jnp.where(delta > 0, jnp.sqrt(x**2 + delta**2), jnp.abs(x))
        loss = lambda x: size(x) ** p
        step = lambda x: x - eta * jax.grad(loss)(x)
        path = trajectory.record(step, start, lambda x: x, times=np.arange(num_steps + 1))
        last = path[-2:]
        key = jax.random.key(0)  # of a start that one iteration in one dimension does not feel
        top = jax.vmap(lambda x: curvature.top_eigenpairs(loss, x, key=key, num=1).values[0])
        slopes = jax.vmap(jax.grad(loss))(last)
        return path, eta * top(last), eta * (slopes[1] - slopes[0]) / (last[1] - last[0])

    return follow


def factors(iterate: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return the mean of what a step multiplies a small deviation of |x| with (S, P)."""
    deviation = np.abs(iterate) / radius[:, :, None, None] - 1
    before, after = deviation[..., :-1], deviation[..., 1:]
    inside = (WINDOW[0] < np.abs(before)) & (np.abs(before) < WINDOW[1])
    ratio = np.where(inside, after / np.where(inside, before, 1), 0)
    return ratio.sum(axis=(2, 3, 4)) / inside.sum(axis=(2, 3, 4))


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    worst = lambda error: np.abs(error).reshape(config.num_seeds, -1).max(axis=1)
    end = np.abs(result.iterate[..., -1]) / prediction.radius[..., None]
    turned = result.iterate[..., -1] / result.iterate[..., -2] + 1
    sharpness = result.sharpness - prediction.sharpness[..., None, None]
    rounding = "rounding, over a distance from x* of 0.8^1000: 1e-13"
    orbits = prediction.ladder_radius > 0
    ladder = result.ladder_sharpness - prediction.ladder_sharpness[:, None]
    why = "the same closed form with a rounded kink; rounding of numbers"
    return [
        checks.every_seed("largest |x| / x* in the end", end.max(axis=(1, 2, 3)),
                          lower=1 - 1e-9, upper=1 + 1e-9, why=rounding),
        checks.every_seed("smallest |x| / x* in the end", end.min(axis=(1, 2, 3)),
                          lower=1 - 1e-9, upper=1 + 1e-9, why=rounding),
        checks.every_seed("largest |x' / x + 1| of the last step", worst(turned), upper=1e-9,
                          why="an orbit of period two about 0; " + rounding),
        checks.every_seed("largest error of η f'' against 2(p - 1)", worst(sharpness), upper=1e-9,
                          why=rounding),
        checks.every_seed("largest error of η times the mean curvature of a step against 2",
                          worst(result.mean_curvature - 2), upper=1e-9,
                          why="(f'(x) - f'(-x)) / 2x with η f'(x) = 2x"),
        checks.every_seed("largest error of the factor of a deviation against 2p - 3",
                          worst(factors(result.iterate, prediction.radius) - prediction.factor),
                          upper=3e-4, why="the next order is (p - 1)(2 - p) of the deviation, "
                          "at most 2.5e-4; rounding adds 1e-7"),
        checks.every_seed("largest error of |x| / x* with a rounded kink",
                          worst(result.ladder_radius - prediction.ladder_radius[:, None]),
                          upper=1e-9, why=why),
        checks.every_seed("largest error of η f'' on orbits with a rounded kink",
                          worst(ladder[:, orbits]), upper=1e-9, why=why),
        checks.every_seed("largest |x| / x* with a stable minimum",
                          worst(result.ladder_radius[:, ~orbits]), upper=1e-9, role="control",
                          why="the step is within 2 / f''(0)"),
        checks.every_seed("largest error of η f'' at a stable minimum",
                          worst(ladder[:, ~orbits]), upper=1e-9, role="control", why=why),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    rate = len(config.learning_rates) // 2
    time = np.arange(20)
    for i, p in enumerate(config.exponents):
        if p in (config.exponents[0], 1.5, config.exponents[-2]):
            path = np.abs(result.iterate[0, i, rate, 0]) / prediction.radius[i, rate]
            begin = max(np.argmax(path < 30) - 2, 0)
            left.plot(time, path[begin : begin + 20], ".-", label=f"p = {p:g}")
    plotting.threshold(left, 1)
    left.set(yscale="log", xlabel="step, from about 30 x* on", ylabel="|x| / x*")
    left.legend()
    at = np.linspace(1.02, 1.98, 50)
    plotting.theory(middle, at, 2 * (at - 1), label="2(p - 1)")
    for e, eta in enumerate(config.learning_rates):
        plotting.points(middle, np.array(config.exponents), result.sharpness[:, :, e, 0, -1],
                        label=f"η = {eta:g}", marker=plotting.MARKERS[e],
                        fillstyle="none", markersize=5 + 2 * e)  # fmt: skip
    plotting.threshold(middle, 2, label="edge of stability")
    middle.set(xlabel="exponent p", ylabel="η × sharpness in the end", ylim=(0, 2.3))
    middle.legend(loc="lower right")
    p, share = config.ladder_exponent, np.append(0, np.geomspace(0.05, 5, 200))
    scale = nonsmooth_descent.orbit_radius(p, 1.0)
    for i, (name, law, values) in enumerate((
        ("|x| / x*", nonsmooth_descent.orbit_radius(p, 1.0, share * scale) / scale,
         result.ladder_radius),
        ("η × sharpness", nonsmooth_descent.orbit_sharpness(p, 1.0, share * scale),
         result.ladder_sharpness),
    )):  # fmt: skip
        plotting.theory(right, share, law, label=None)
        plotting.points(right, np.array(config.ladder), values[..., 0], label=name,
                        marker=plotting.MARKERS[i], color=plotting.COLOURS[i])  # fmt: skip
    right.axvline(1, color="#888888", linewidth=0.8)
    right.set(xlabel="rounding δ / x*", ylabel=f"in the end, p = {p:g}", ylim=(-0.1, 2.3))
    right.legend(loc=(0.35, 0.22))
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-6,
    precision="float64",
    smoke=dict(num_starts=2),
    paper=dict(num_starts=20, num_steps=10_000),
    controls={
        "a kink rounded beyond the orbit": contract.Control(
            dict(rounding=2.0),
            breaks={
                "largest |x| / x* in the end": "below",
                "smallest |x| / x* in the end": "below",
                "largest error of η f'' against 2(p - 1)": "above",
            },
            why="the curvature at 0 is finite, and the step within 2 / f''(0)",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
