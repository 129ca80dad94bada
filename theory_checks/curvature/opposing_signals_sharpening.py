"""With opposing outliers the sharpness first falls, then rises to their variance times the signal.

Claim      A two-layer linear network f = c (b·x + b_o x_o) learns a signal β beside two groups of
           outliers x_o that ask for opposite signs of b_o. Where their variance α rules, the
           sharpness is α c². It falls while b_o is unlearned, never below α (c_0² - b_o0²), then
           rises as the signal is learned, by the solution of a Bernoulli equation (logistic for
           balanced weights), up to α (Q + sqrt(Q² + 4|β|²))/2 with Q = c² - |b|² - b_o² conserved:
           α |β| for small starts, whatever the labels of the outliers.
Control    Groups that agree on a sign teach b_o instead of unlearning it: no fall, another curve.
           With an α below 2 the signal's own block is the sharpest and ends at 2|β|.
Reference  Rosenfeld and Risteski 2024, arXiv:2311.04163 (a theorem of the same shape). The exact
           curve, the floor and the end are derived here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array
from dynamics.data import opposing_signals as data
from dynamics.measure import curvature
from dynamics.theory import opposing_signals as theory
from dynamics.training import flow
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P122",)
PILOT_SEEDS = (101, 102, 103)
START = (0.1, 0.05, 1e-6)  # c, |b|, b_o: the outlier's weight acts back by its square only
DIP_START = (1.0, 0.05)  # c, |b|


@dataclasses.dataclass(frozen=True)
class Config:
    signal_norms: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)  # |β|
    dip_norm: float = 4.0
    dip_starts: tuple[float, ...] = (0.5, 0.7, 0.9)  # b_o
    outlier_variance: float = 10.0  # α
    agreement: float = 0.0  # 1 for groups that agree; for the control, predict does not know it
    dim: int = 10
    horizon: float = 12.0  # time times |β|: the last distance is 800 exp(-24)
    num_times: int = 61
    num_seeds: int = 5
    seed: int = 1


class Prediction(NamedTuple):
    """S seeds, N norms, T times, D starts of b_o."""

    curvature: Array  # (S, N, T) along b_o
    sharpness: Array  # (S, N, T)
    end: Array  # (S, N)
    dip_start: Array  # (S, D) sharpness at time 0
    dip_floor: Array  # (D,) of the curvature along b_o
    dip_end: Array  # (S, D)


class Result(NamedTuple):
    """The same from the loss of the samples; C = N + D."""

    curvature: Array  # (S, C, T) along b_o
    sharpness: Array  # (S, C, T) top eigenvalue of the Hessian
    fitted: Array  # (S, C, T) share of the signal learned, c b·β / |β|²
    drift: Array  # (S, C) largest change of Q


def members(config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return starts (S, C, d + 2) in the order b, b_o, c, signals (S, C, d), times (C, T)."""
    draw = jax.random.normal(jax.random.key(config.seed), (2, config.num_seeds, config.dim))
    directions = np.asarray(draw, np.float64)
    weights, signals = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    c, size, outlier = START
    num_norms, num_dips = len(config.signal_norms), len(config.dip_starts)
    norms = np.append(config.signal_norms, np.full(num_dips, config.dip_norm))
    starts = np.zeros((config.num_seeds, num_norms + num_dips, config.dim + 2))
    starts[:, :num_norms, :-2] = size * weights[:, None]
    starts[:, num_norms:, :-2] = DIP_START[1] * weights[:, None]
    starts[..., -2] = np.append(np.full(num_norms, outlier), config.dip_starts)
    starts[..., -1] = np.append(np.full(num_norms, c), np.full(num_dips, DIP_START[0]))
    times = np.linspace(0, config.horizon, config.num_times) / norms[:, None]
    return starts, norms[:, None] * signals[:, None], times


def state_of(weights: np.ndarray) -> theory.State:
    return theory.State(weights[..., -1], weights[..., :-2], weights[..., -2])


def predict(config: Config) -> Prediction:
    starts, signals, times = members(config)
    num, alpha = len(config.signal_norms), config.outlier_variance
    along = np.zeros((config.num_seeds, num, config.num_times))
    sharpness = np.zeros_like(along)
    for s, n in np.ndindex(config.num_seeds, num):
        state = theory.flow(state_of(starts[s, n]), signals[s, n], alpha, times[n])
        along[s, n] = alpha * state.read_out**2
        sharpness[s, n] = np.linalg.eigvalsh(theory.hessian(state, signals[s, n], alpha))[:, -1]
    whole = state_of(starts)
    end = theory.final_sharpness(theory.conserved(whole), np.linalg.norm(signals, axis=-1), alpha)
    dips = state_of(starts[:, num:])
    first = np.linalg.eigvalsh(theory.hessian(dips, signals[:, num:], alpha))[..., -1]
    floor = alpha * (DIP_START[0] ** 2 - np.array(config.dip_starts) ** 2)
    return Prediction(along, sharpness, end[:, :num], first, floor, end[:, num:])


def run(config: Config) -> Result:
    starts, signals, times = members(config)
    shape = starts.shape[:2]
    flat = [np.broadcast_to(a, (*shape, a.shape[-1])).reshape(-1, a.shape[-1])
            for a in (starts, signals, times)]  # fmt: skip
    alpha, agreement = (np.full(len(flat[0]), a) for a in
                        (config.outlier_variance, config.agreement))  # fmt: skip
    found = parallel.ensemble(follow, tuple(map(jnp.asarray, (*flat, alpha, agreement))))
    return Result(*(a.reshape(*shape, *a.shape[1:]) for a in found))


def follow(member: tuple[Array, ...]):
    """Return curvature along b_o, sharpness and share of the signal (T,), and the drift of Q."""
    start, signal, times, alpha, agreement = member  # all of it: compiled once for the controls
    # Inputs of a unit variance of x_o, and a weight of sqrt(α) b_o on them, so that α may vary.
    samples = data.opposing_groups(signal, 1.0, agreement=agreement)
    scale = jnp.ones_like(start[:-1]).at[-1].set(jnp.sqrt(alpha))
    inputs = samples.inputs * scale
    targets = samples.targets.at[-2:].multiply(jnp.sqrt(alpha))

    def loss(weights: Array) -> Array:
        return 0.5 * jnp.mean((weights[-1] * (inputs @ weights[:-1]) - targets) ** 2)

    def measure(weights: Array) -> tuple[Array, Array]:
        top = curvature.top_eigenpairs(loss, weights, key=jax.random.key(0), num=1)
        along = jnp.zeros_like(weights).at[-2].set(1.0)
        product = curvature.hessian_vector_product(loss, weights)(along)
        return product[-2], top.values[0]

    path = flow.gradient_flow(loss, start, times, rtol=1e-10, atol=1e-13)  # (T, d + 2)
    along, sharpness = jax.vmap(measure)(path)
    fitted = path[:, -1] * (path[:, :-2] @ signal) / jnp.sum(signal**2)
    conserved = path[:, -1] ** 2 - jnp.sum(path[:, :-1] ** 2, axis=1)
    return along, sharpness, fitted, jnp.max(jnp.abs(conserved - conserved[0]))


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    num = len(config.signal_norms)
    worst = lambda found, law: np.abs(found / law - 1).reshape(config.num_seeds, -1).max(axis=1)
    ends, dips = result.sharpness[:, :num, -1], result.sharpness[:, num:]
    norms = np.array(config.signal_norms) - np.mean(config.signal_norms)
    slope = ends @ norms / np.sum(norms**2) / config.outlier_variance
    solver = "the solver is asked for 1e-10 a step"
    lowest = np.argmin(dips, axis=-1)[..., None]  # (S, D, 1)
    learned = np.take_along_axis(result.fitted[:, num:], lowest, -1)
    fall = (np.take_along_axis(dips, lowest, -1) / dips[..., :1])[..., 0]
    along = result.curvature[:, num:]
    floor = along.min(axis=-1) / prediction.dip_floor
    return [
        checks.every_seed("largest relative error of the curvature along b_o",
                          worst(result.curvature[:, :num], prediction.curvature), upper=1e-6,
                          why=solver),
        checks.every_seed("largest relative error of the sharpness",
                          worst(result.sharpness[:, :num], prediction.sharpness), upper=1e-6,
                          why=solver),
        checks.every_seed("largest sharpness in the end over its closed form",
                          (ends / prediction.end).max(axis=1), lower=1 - 1e-6, upper=1 + 1e-6,
                          why="what is left of the transient is 800 exp(-24) = 3e-8"),
        checks.every_seed("slope of the end over |β| / α", slope, lower=0.999, upper=1.001,
                          why="1 - Q²/(8|β|²) and Q = 0.0075: 1e-5 off"),
        checks.every_seed("largest change of Q", result.drift.max(axis=1), upper=1e-7, why=solver),
        checks.every_seed("largest relative error of the sharpness at a start with b_o",
                          worst(dips[..., 0], prediction.dip_start), upper=1e-9, why="rounding"),
        checks.every_seed("lowest sharpness / that at the start", fall.max(axis=1), upper=0.85,
                          why="the larger b_o the deeper; pilots to 0.73"),
        checks.every_seed("lowest curvature along b_o / that at the start",
                          (along.min(axis=-1) / along[..., 0]).max(axis=1), upper=0.97,
                          why="c falls as b_o does; pilots to 0.94, none of a growing c"),
        checks.every_seed("lowest curvature along b_o / (α (c_0² - b_o0²))", floor,
                          lower=1 - 1e-9, why="c² - b_o² never falls while c b·β < |β|²"),
        checks.every_seed("share of the signal learned at the lowest sharpness", learned,
                          upper=0.5, why="first the fall, then the signal; pilots to 0.13"),
        checks.every_seed("largest relative error of the end after a fall",
                          worst(dips[..., -1], prediction.dip_end), upper=1e-6, why=solver),
        checks.every_seed("sharpness at the end / at the start, after a fall",
                          dips[..., -1] / dips[..., 0], lower=1.2,
                          why="the signal lifts it above the start; pilots from 1.49"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    num = len(config.signal_norms)
    time = np.linspace(0, config.horizon, config.num_times)
    for n, norm in enumerate(config.signal_norms):
        left.plot(time, result.sharpness[0, n], plotting.MARKERS[n], markersize=3,
                  color=plotting.COLOURS[n], label=f"|β| = {norm:g}")  # fmt: skip
        plotting.theory(left, time, prediction.sharpness[0, n], label=None, linewidth=0.9)
    left.set(xlabel="time × |β|", ylabel="sharpness (dashed: closed form)", yscale="log")
    left.legend(loc="lower right")
    norms = np.array(config.signal_norms)
    plotting.theory(middle, norms, config.outlier_variance * norms, label="α |β|")
    plotting.points(middle, norms, result.sharpness[:, :num, -1], label="gradient flow")
    plotting.theory(middle, norms, 2 * norms, label="signal's block, 2 |β|", linestyle=":",
                    color="#888888")  # fmt: skip
    middle.set(xlabel="norm of the signal |β|", ylabel="sharpness in the end")
    middle.legend(loc="upper left")
    shown = time < 0.6 * config.horizon
    for i, outlier in enumerate(config.dip_starts):
        colour = plotting.COLOURS[i]
        plotting.band(right, time[shown], result.sharpness[:, num + i, shown], color=colour,
                      spread="range", label=f"b_o(0) = {outlier:g}")  # fmt: skip
        right.plot(time[shown][[0, -1]], [prediction.dip_start[0, i], prediction.dip_end[0, i]],
                   plotting.MARKERS[i], color=colour, fillstyle="none")  # fmt: skip
        plotting.threshold(right, prediction.dip_floor[i], color=colour)
    right.set(xlabel=f"time × |β|, |β| = {config.dip_norm:g}", ylim=(0, None),
              ylabel="sharpness (dotted: floor, marks: ends)")  # fmt: skip
    right.legend(loc=(0.42, 0.4))
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-4,
    precision="float64",
    smoke=dict(signal_norms=(1.0, 4.0), num_times=31),
    paper=dict(dim=100),
    controls={
        "groups that agree": contract.Control(
            dict(agreement=1.0),
            breaks={
                "largest relative error of the curvature along b_o": "above",
                "largest sharpness in the end over its closed form": "above",
                "lowest sharpness / that at the start": "above",
                "lowest curvature along b_o / that at the start": "above",
            },
            why="E y x_o is then α: b_o is learned, and c grows with it",
        ),
        "outliers of a small variance": contract.Control(
            dict(outlier_variance=0.1),
            breaks={
                "largest sharpness in the end over its closed form": "above",
                "lowest curvature along b_o / that at the start": "above",
            },
            why="c grows with the signal at once, whose block is the sharpest and ends at 2|β|",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
