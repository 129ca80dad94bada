"""Self-distillation that keeps a weight α on the labels ends as one ridge fit of penalty λ/α.

Claim      Kernel ridge regression of penalty λ, fitted again and again to α times the labels plus
           1 - α times its last fit, follows a closed form in every eigendirection of the kernel.
           For α > 0 it tends to the one fit of penalty λ/α, geometrically, at the predicted rate.
           The weight α nearest to the truth is a ratio of two inner products, and may be negative.
Control    Without labels, α = 0, everything is forgotten, ever smoother first. Penalty λ/α² is not
           the limit. With labels drawn anew at every step there is no limit.
Reference  Borup and Andersen 2021, arXiv:2102.13088, and the table of losses in their repository
           (Kennethborup/self_distillation), all fourteen of which come out to every digit printed.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array
from dynamics.theory import self_distillation
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P159",)
PILOT_SEEDS = (101, 102, 103)
# The authors' example: eleven noisy values of a sine, RBF kernel of γ = 80, λ = 0.2.
EXAMPLE = (0.38476636465198066, 1.2333967683416893, 1.33232242218057, 0.6920159488889518,
           -0.29756145531871736, -0.24189291901377769, -0.7964485769175675, -0.9616480167034174,
           -0.49672509509916934, -0.3469066003991437, 0.5589512650600734)  # fmt: skip
EXAMPLE_WEIGHTS, EXAMPLE_RIDGE, EXAMPLE_GAMMA = (0.0, 0.35), 0.2, 80.0
# As printed: mean squared distance from the sine at 101 points after steps 1 to 6 and in the end.
PRINTED = ((0.16477, 0.15076, 0.14915, 0.15561, 0.16735, 0.18251, 0.49505),
           (0.16477, 0.15424, 0.15089, 0.14983, 0.14954, 0.14948, 0.14959))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    num_samples: int = 40
    noise_std: float = 0.5
    gamma: float = 20.0  # of the kernel exp(-γ (x - x')²)
    ridges: tuple[float, ...] = (0.02, 0.2, 1.0)
    label_weights: tuple[float, ...] = (0.0, 0.1, 0.35, 0.7)  # the first is the control
    fresh_noise: float = 0.0  # of the labels, at every step; predict does not know it
    num_steps: int = 60
    num_seeds: int = 10
    seed: int = 1

    def __post_init__(self):
        if self.label_weights[0] != 0 or min(self.label_weights[1:]) <= 0:
            message = f"label_weights={self.label_weights}: give 0, then positive ones"
            raise ValueError(message)


class Prediction(NamedTuple):
    """S seeds, L ridges, A label weights, T steps, N samples."""

    fits: Array  # (S, L, A, T, N) at the training inputs
    limit: Array  # (S, L, A, N)
    rate: Array  # (S, L, A) by which the distance to the limit falls in the end
    best_weight: Array  # (S, L) of the labels at step two, against the noiseless sine
    example: Array  # (2, 7) losses of the authors' example, the last in the limit
    example_weight: Array  # () best weight of the labels at its step two


class Result(NamedTuple):
    """As in Prediction."""

    fits: Array  # (S, L, A, T, N)
    single: Array  # (S, L, A - 1, N) one fit of penalty λ/α
    wrong: Array  # (S, L, A - 1, N) one fit of penalty λ/α²
    weight_losses: Array  # (S, L, W) at step two on a grid of label weights
    example: Array  # (2, 7)


def draw(key, config: Config) -> tuple[Array, Array, Array]:
    """Return inputs, truth and labels, (N,) each."""
    input_key, noise_key = jax.random.split(key)
    inputs = jax.random.uniform(input_key, (config.num_samples,))
    truth = jnp.sin(2 * jnp.pi * inputs)
    return inputs, truth, truth + config.noise_std * jax.random.normal(noise_key, truth.shape)


def rbf(x1: Array, x2: Array, gamma: float) -> Array:
    return jnp.exp(-gamma * (x1[:, None] - x2) ** 2)


def keys(config: Config) -> Array:
    return jax.random.split(jax.random.key(config.seed), config.num_seeds)


def weight_grid() -> Array:
    return jnp.linspace(-4, 4, 801)


def example() -> tuple[Array, Array, Array]:
    """Return kernel at the eleven inputs, kernel of the grid with them, and sine on the grid."""
    inputs, grid = jnp.arange(11) / 10, jnp.arange(101) / 100
    return (rbf(inputs, inputs, EXAMPLE_GAMMA), rbf(grid, inputs, EXAMPLE_GAMMA),
            jnp.sin(2 * jnp.pi * grid))  # fmt: skip


def predict(config: Config) -> Prediction:
    steps = np.arange(1, config.num_steps + 1)
    weights, ridges = jnp.array(config.label_weights), jnp.array(config.ridges)

    def one(key):
        inputs, truth, labels = draw(key, config)
        kernel = rbf(inputs, inputs, config.gamma)
        at = lambda ridge, weight: self_distillation.distill(
            kernel, kernel, labels, ridge=ridge, label_weight=weight, steps=steps
        )
        found = over_both(at, ridges, weights)
        first, second = found.fits[:, 0, 0], found.fits[:, 0, 1]  # of α = 0, (L, N)
        best = jax.vmap(self_distillation.best_label_weight, (0, 0, None))(first, second, truth)
        return *found, best

    kernel, grid_kernel, truth = example()
    found = [self_distillation.distill(kernel, grid_kernel, jnp.array(EXAMPLE), label_weight=weight,
                                       ridge=EXAMPLE_RIDGE, steps=range(1, 7))
             for weight in EXAMPLE_WEIGHTS]  # fmt: skip
    losses = [jnp.mean((jnp.vstack([f.fits, f.limit]) - truth) ** 2, axis=1) for f in found]
    weight = self_distillation.best_label_weight(*found[0].fits[:2], truth)
    return Prediction(
        *parallel.ensemble(one, keys(config), batching="map"), jnp.stack(losses), weight
    )


def run(config: Config) -> Result:
    weights, ridges = jnp.array(config.label_weights), jnp.array(config.ridges)

    def one(key):
        inputs, truth, labels = draw(key, config)
        kernel, fresh_key = rbf(inputs, inputs, config.gamma), jax.random.fold_in(key, 1)
        fresh = config.fresh_noise * jax.random.normal(fresh_key, (config.num_steps, len(labels)))
        fit = lambda ridge, weight: distill(kernel, labels + fresh, ridge, weight)
        once = lambda penalty: kernel @ ridge_weights(kernel, labels, penalty)
        single = lambda power: over_both(
            lambda ridge, weight: once(ridge / weight**power), ridges, weights[1:]
        )
        fits = over_both(fit, ridges, weights)

        def losses(ridge, first):
            targets = weight_grid()[:, None] * (labels - first) + first  # (W, N)
            second = (kernel @ ridge_weights(kernel, targets.T, ridge)).T
            return jnp.mean((second - truth) ** 2, axis=1)

        least = jax.lax.map(lambda row: losses(*row), (ridges, fits[:, 0, 0]))
        return fits, single(1), single(2), least

    return Result(*parallel.ensemble(one, keys(config), batching="map"), run_example())


def over_both(fn, ridges: Array, weights: Array):
    """Return fn(ridge, weight) of every pair, (L, A, ...), one after the other.

    Batched factorisations side by side have waited for each other for ever on two cores.
    """
    return jax.lax.map(lambda r: jax.lax.map(lambda w: fn(r, w), weights), ridges)


def ridge_weights(kernel: Array, targets: Array, penalty) -> Array:
    return jnp.linalg.solve(kernel + penalty * jnp.eye(len(kernel)), targets)


def distill(kernel: Array, labels: Array, ridge, weight) -> Array:
    """Return the fits (T, N) to labels (T, N) and to the fit before, one regression a step."""

    def step(before, labels):
        fit = kernel @ ridge_weights(kernel, weight * labels + (1 - weight) * before, ridge)
        return fit, fit

    return jax.lax.scan(step, labels[0], labels)[1]


def run_example() -> Array:
    kernel, grid_kernel, truth = example()
    labels, rows = jnp.array(EXAMPLE), []
    for weight in EXAMPLE_WEIGHTS:
        before = distill(kernel, jnp.tile(labels, (6, 1)), EXAMPLE_RIDGE, weight)[:-1]
        targets = weight * labels + (1 - weight) * jnp.vstack([labels, before])
        fits = (grid_kernel @ ridge_weights(kernel, targets.T, EXAMPLE_RIDGE)).T
        limit = grid_kernel @ (weight * ridge_weights(weight * kernel, labels, EXAMPLE_RIDGE))
        rows.append(jnp.mean((jnp.vstack([fits, limit]) - truth) ** 2, axis=1))
    return jnp.stack(rows)


def distances(prediction: Prediction, result: Result) -> np.ndarray:
    """Return |f_t - f_∞| (S, L, A, T), the limit for α > 0 being the single fit of λ/α."""
    limit = np.concatenate([0 * result.single[:, :, :1], result.single], axis=2)
    return np.linalg.norm(result.fits - limit[..., None, :], axis=-1)


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    worst = lambda array: np.abs(array).reshape(len(array), -1).max(axis=1)  # (S,)
    gap = distances(prediction, result)
    steps = np.arange(config.num_steps)
    ceiling = prediction.rate[..., None] ** steps * gap[..., :1] + 1e-12
    misses = np.linalg.norm(result.wrong - result.single, axis=-1)
    misses = misses / np.linalg.norm(result.single, axis=-1)
    grid = weight_grid()
    nearest = np.asarray(grid)[result.weight_losses.argmin(axis=-1)]
    best = np.clip(prediction.best_weight, grid[0], grid[-1])  # of a parabola, as the grid's is
    rounding = "sixty solves of 40 equations round to 1e-14"
    return [
        checks.below("largest distance from a printed loss", np.abs(result.example - PRINTED).max(),
                     0.501e-5, why="half of the last digit that the authors print"),
        checks.below("largest distance of a printed loss from the closed form",
                     np.abs(prediction.example - PRINTED).max(), 0.501e-5, why="the same"),
        checks.every_seed("largest distance of a fit from the closed form",
                          worst(result.fits - prediction.fits), upper=1e-10, why=rounding),
        checks.every_seed("largest distance of the limit from one fit of penalty λ/α",
                          worst(result.single - prediction.limit[:, :, 1:]), upper=1e-10,
                          why=rounding),
        checks.every_seed("largest distance from that fit over rate^(t - 1) times the first",
                          worst(gap[:, :, 1:] / ceiling[:, :, 1:]), upper=1 + 1e-9,
                          why="no eigendirection falls more slowly than the rate"),
        checks.every_seed("least α > 0: last fall of the distance over the rate",
                          (gap[..., -1] / gap[..., -2] / prediction.rate)[:, :, 1].min(axis=1),
                          lower=0.95, upper=1 + 1e-6,
                          why="after sixty steps the slowest few directions are left"),
        checks.below("best weight of the labels less the best of a grid",
                     np.abs(best - nearest).max(), 0.0051,
                     why="half of the grid's spacing of 0.01"),
        checks.close("best weight of the labels in the authors' example, step two",
                     prediction.example_weight, -0.62, atol=0.005,
                     why="against the noiseless sine; negative: more smoothing than α = 0 has"),
        checks.every_seed("α = 0: |f_t| in the end over the rate's power times |f_1|",
                          (gap / ceiling)[:, :, 0, -1].max(axis=1), upper=1 + 1e-9, role="control",
                          why="all is forgotten: there is no other limit than zero"),
        checks.every_seed("least α > 0: relative distance of penalty λ/α² from penalty λ/α",
                          misses[:, :, 0].min(axis=1), lower=0.05, role="control",
                          why="another penalty is another limit"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    steps = np.arange(1, 8)
    for i, weight in enumerate(EXAMPLE_WEIGHTS):
        plotting.theory(left, steps, prediction.example[i], label=None if i else "closed form")
        left.plot(steps, PRINTED[i], plotting.MARKERS[i], color=plotting.COLOURS[i],
                  label=f"as printed, α = {weight:g}")  # fmt: skip
    left.set(xlabel="step t", ylabel="mean squared distance from the sine", ylim=(0.13, 0.56))
    left.set_xticks(steps, [*map(str, steps[:-1]), "∞"])
    left.legend(loc="upper left", title="authors' example")
    gap, steps = distances(prediction, result), np.arange(1, config.num_steps + 1)
    row = len(config.ridges) // 2
    for i, weight in enumerate(config.label_weights):
        curve = np.where(gap[0, row, i] > 1e-13, gap[0, row, i], np.nan)
        middle.plot(steps[::3], curve[::3], plotting.MARKERS[i], color=plotting.COLOURS[i],
                    markersize=3, label=f"α = {weight:g}")  # fmt: skip
        limit = prediction.limit[0, row, i]
        line = np.linalg.norm(prediction.fits[0, row, i] - limit, axis=-1)
        plotting.theory(middle, steps, np.where(line > 1e-13, line, np.nan), label=None)
    middle.set(xlabel="step t", ylabel="distance of f$_t$ from the fit of λ/α", yscale="log",
               ylim=(1e-18, 30), title=f"λ = {config.ridges[row]:g}, one seed")  # fmt: skip
    middle.legend(loc="lower left", ncol=2, columnspacing=1)
    truth = result.weight_losses[:, row]
    right.plot(weight_grid(), truth.T, color=plotting.COLOURS[0], linewidth=0.6)
    best = prediction.best_weight[:, row]
    at = [np.interp(b, weight_grid(), losses) for b, losses in zip(best, truth, strict=True)]
    right.plot(best, at, "o", color="black", markersize=3, label="best α, closed form")
    right.set(xlabel="weight α at step two", ylabel="mean squared error to the sine",
              ylim=(0, 0.2), title=f"λ = {config.ridges[row]:g}, all seeds")  # fmt: skip
    right.legend(loc="upper center")
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-8,
    precision="float64",
    smoke=dict(num_seeds=5),
    controls={
        "labels drawn anew at every step": contract.Control(
            dict(fresh_noise=0.5),
            breaks={
                "largest distance of a fit from the closed form": "above",
                "largest distance from that fit over rate^(t - 1) times the first": "above",
            },
            why="the labels of one step are not those of the next",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
