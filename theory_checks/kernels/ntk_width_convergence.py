"""The tangent kernels of finite networks approach the arc-cosine limit as width^-1/2.

Claim      For ReLU networks of three hidden layers at initialisation the relative distance of the
           empirical NTK from its arc-cosine limit falls as width^-1/2, all of it fluctuation from
           draw to draw: the diagonal is right on average at every width, and the mean over draws
           is nearer by the root of their number. Training moves the kernel less the wider the
           network, by about width^-3/4 over these widths.
Control    With the output divided by a further sqrt(width), as in mean-field scaling, training
           moves the kernel as much at every width.
Reference  Engel et al. 2022, arXiv:2205.12372, for the use; Jacot et al. 2018, arXiv:1806.07572,
           for the limit. Dyer and Gur-Ari 2020, arXiv:1909.11304, have 1/width for smooth
           activations. Here a share width^-1/2 of the ReLUs change sides, each moving the kernel by
           1/width with either sign, which sums to width^-3/4: an estimate, and so a wide bound.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key, Params
from dynamics.measure import kernels, statistics
from dynamics.models import mlp
from dynamics.theory import dual_activations
from dynamics.training import trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P249",)
PILOT_SEEDS = (101, 102, 103)
HIDDEN = 3
WEIGHT_STD = 2**0.5  # keeps the variance from layer to layer


@dataclasses.dataclass(frozen=True)
class Config:
    input_dim: int = 10
    num_samples: int = 16
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    trained_widths: tuple[int, ...] = (64, 128, 256, 512)
    num_trained: int = 16  # of the networks of a width
    num_steps: int = 20
    rate: float = 0.5  # learning rate by 1 / largest eigenvalue; 2 is the limit of stability
    shrink: float = 0.0  # output is divided by width^shrink; predict does not know it
    num_seeds: int = 48  # networks of a width
    seed: int = 1

    def __post_init__(self):
        if not 1 < self.num_trained <= self.num_seeds:
            message = f"num_trained={self.num_trained}: give 2 to num_seeds={self.num_seeds}"
            raise ValueError(message)


class Prediction(NamedTuple):
    limit: Array  # (N, N) the kernel of infinite width
    distance_slope: Array  # () exponent of the width
    movement_slope: Array  # ()


class Result(NamedTuple):
    """S networks of each of W widths, S' of W' widths trained, N samples."""

    kernel: Array  # (S, W, N, N) at initialisation, of the network before it is shrunk
    movement: Array  # (S', W') |Θ_t - Θ_0| / |Θ_0|
    loss: Array  # (S', W', 2) mean squared error before and after training


def samples(config: Config) -> tuple[Array, Array]:
    """Return points of the sphere of radius sqrt(input_dim), and targets of mean square one."""
    return draw_samples(jax.random.key(config.seed), config.num_samples, config.input_dim)


@functools.partial(jax.jit, static_argnums=(1, 2))  # one program, not one an operation
def draw_samples(key: Key, num_samples: int, input_dim: int) -> tuple[Array, Array]:
    point_key, target_key = jax.random.split(jax.random.fold_in(key, 1))
    x = jax.random.normal(point_key, (num_samples, input_dim))
    x *= input_dim**0.5 / jnp.linalg.norm(x, axis=1, keepdims=True)
    return x, jax.random.rademacher(target_key, (num_samples,), x.dtype)


@jax.jit
def limit(x: Array) -> Array:
    return dual_activations.fully_connected_kernels(
        x, activation="relu", depth=HIDDEN, weight_std=WEIGHT_STD
    ).ntk


def predict(config: Config) -> Prediction:
    return Prediction(limit(samples(config)[0]), jnp.array(-0.5), jnp.array(-0.75))


def run(config: Config) -> Result:
    root = jax.random.fold_in(jax.random.key(config.seed), 2)
    given = samples(config), config.rate, config.shrink
    at_start, trained = [], []
    for width in config.widths:
        keys = jax.random.split(jax.random.fold_in(root, width), config.num_seeds)
        steps = np.where(np.arange(len(keys)) < config.num_trained, config.num_steps, 0)
        steps = steps * (width in config.trained_widths)
        found = parallel.ensemble(program(width), (keys, steps), shared=given, batching="map")
        kernel, *rest = map(np.asarray, found)
        at_start.append(kernel * float(width) ** (2 * config.shrink))
        if width in config.trained_widths:
            trained.append([leaf[: config.num_trained] for leaf in rest])
    movement, loss = (np.stack(leaf, axis=1) for leaf in zip(*trained, strict=True))
    return Result(np.stack(at_start, axis=1), movement, loss)


@functools.cache  # shapes differ: one program a width, of which the control's is the same
def program(width: int):
    """Return what draws a network of this width and trains it for a number of steps."""
    model = mlp.MLP(
        (width,) * HIDDEN + (1,), jax.nn.relu, "ntk", weight_std=WEIGHT_STD, use_bias=False
    )

    def train(member: tuple[Key, Array], given) -> tuple[Array, ...]:
        (key, num_steps), ((x, y), rate, shrink) = member, given
        apply = lambda params, x: model.apply(params, x) / float(width) ** shrink
        params = start(key, width, x.shape[1])
        loss = lambda params: jnp.sum((apply(params, x)[:, 0] - y) ** 2) / 2
        before = kernels.empirical_ntk(apply, params, x)
        learning_rate = rate / kernels.ntk_spectrum(before)[0]

        def step(params):
            return jax.tree.map(lambda p, g: p - learning_rate * g, params, jax.grad(loss)(params))

        measure = lambda params: 2 * loss(params) / len(x)
        times = jnp.stack([0 * num_steps, num_steps])
        losses, end = trajectory.record_with_state(step, params, measure, times=times)
        after = kernels.empirical_ntk(apply, end, x)
        return before, kernels.relative_change(before, after), losses

    return train


def start(key: Key, width: int, input_dim: int) -> Params:
    """Return matrices from N(0, 1), all cut from one draw: each draw takes long to compile."""
    shapes = list(itertools.pairwise((input_dim, *(width,) * HIDDEN, 1)))
    ends = np.cumsum([rows * columns for rows, columns in shapes])
    parts = jnp.split(jax.random.normal(key, (int(ends[-1]),)), ends[:-1])
    matrices = enumerate(map(jnp.reshape, parts, shapes))
    return {"params": {f"layer_{index}": {"kernel": matrix} for index, matrix in matrices}}


def distances(kernel: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Return |Θ_n - Θ| / |Θ|, Frobenius norms, (S, W) of (S, W, N, N)."""
    return np.linalg.norm(kernel - limit, axis=(-2, -1)) / np.linalg.norm(limit)


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    found = distances(result.kernel, prediction.limit)  # (S, W)
    typical = np.sqrt((found**2).mean(axis=0))  # (W,)
    mean = distances(result.kernel.mean(axis=0), prediction.limit)  # (W,)
    trace = np.trace(result.kernel, axis1=2, axis2=3) / np.trace(prediction.limit)  # (S, W)
    off = (trace.mean(axis=0) - 1) / statistics.standard_error(trace)
    slope = statistics.log_log_slope(config.widths, typical)
    moved = statistics.log_log_slope(config.trained_widths, result.movement.mean(axis=0))
    return [
        checks.above("loss before by loss after, smallest",
                     (result.loss[..., 0] / result.loss[..., 1]).min(), 1.5, role="precondition",
                     why="training must have learnt something: raise num_steps"),
        checks.close("exponent of the distance", slope / -prediction.distance_slope, -1, atol=0.3,
                     why="four standard errors of 0.07; pilots -0.98 to -1.07, of higher orders"),
        checks.below("mean trace by the limit's, from 1, in standard errors, largest",
                     np.abs(off).max(), 5, why="exact at every width: five standard errors"),
        checks.below("distance of the mean by that of one draw, at the largest width",
                     mean[-1] / typical[-1], 0.5,
                     why="one over the root of 48 is 0.14; pilots 0.10 to 0.19, a far tail 0.5"),
        checks.between("exponent of the movement by that predicted", moved
                       / -prediction.movement_slope, -1.5, -0.5,
                       why="an estimate without its higher orders: -0.9 at 2, 20 and 100 steps, "
                       "standard error 0.1"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, right = panels = figure.subplots(1, 2)
    found = distances(result.kernel, prediction.limit)
    widths, trained = np.array(config.widths), np.array(config.trained_widths)
    plotting.points(left, widths, found, spread="log", label="one draw")
    mean = distances(result.kernel.mean(axis=0), prediction.limit)
    left.plot(widths, mean, "s", color=plotting.COLOURS[1],
              label=f"mean over {config.num_seeds} draws")  # fmt: skip
    law = widths ** float(prediction.distance_slope)
    plotting.theory(left, widths, found[:, -1].mean() * law / law[-1], label="width$^{-1/2}$")
    left.set(ylabel="relative distance from the limit")
    plotting.points(right, trained, result.movement, spread="log", color=plotting.COLOURS[2],
                    marker="^", label=f"after {config.num_steps} steps")  # fmt: skip
    law = trained ** float(prediction.movement_slope)
    moved = result.movement[:, -1].mean()
    plotting.theory(right, trained, moved * law / law[-1], label="width$^{-3/4}$")
    right.set(ylabel="relative movement of the kernel")
    for axes, ticks in ((left, widths), (right, trained)):
        axes.set(xscale="log", yscale="log", xlabel="width")
        axes.set_xticks(ticks, labels=map(str, ticks), minor=False)
        axes.minorticks_off()
        axes.legend()
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=0.15,
    smoke=dict(widths=(64, 256, 1024), trained_widths=(64, 256), num_trained=32),
    controls={
        "output divided by a further root of the width": contract.Control(
            dict(shrink=0.5, widths=(64, 256), trained_widths=(64, 256)),
            breaks={"exponent of the movement by that predicted": "above"},
            why="the weights must move by as much as they are large, whatever the width",
            needs=("loss before by loss after, smallest",),
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
