"""Two moments of the weights say all of a grokking network: its course and its test loss.

Claim      A network of units h + ε h²/2, of any width, trained by full-batch gradient descent: the
           mean and the second moment of its weights follow a recursion of their own, to rounding
           and what it grows to, and the test loss on Gaussian inputs is a closed form of the two,
           while the weights turn from random to the direction of the teacher.
Control    With a cubic term in the activation the recursion no longer holds; on inputs that are
           not Gaussian the closed form of the test loss does not; without its matrix part neither.
Reference  Kumar et al. 2024, arXiv:2310.06110, polynomial regression; the recursion for steps of
           any size is derived in dynamics.theory.lazy_rich.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.theory import lazy_rich
from dynamics.training import step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P28",)
PILOT_SEEDS = (101, 102, 103)
TEST_INPUTS = ("gaussian", "signs")  # of mean 0, variance 1; the closed form needs a kurtosis of 3
EXACT = {
    "mean": "largest error of the mean weight over amplified rounding",
    "second": "largest error of the second moment over amplified rounding",
    "train_loss": "largest error of the training loss over amplified rounding",
}
NUDGE = 1e-12  # moves a start, to see how much of it is left or made of it later
SAMPLED = "largest error of the test loss, mean over seeds, in standard errors"


@dataclasses.dataclass(frozen=True)
class Config:
    widths: tuple[int, ...] = (4, 40)
    input_dim: int = 16
    num_samples: int = 110  # fewer than the 136 coefficients of a quadratic form
    output_scale: float = 1.0
    curvature: float = 0.1
    step_size: float = 6.0  # learning rate of one unit = step_size / output_scale²
    cubic: float = 0.0  # for a control, as test_inputs; predict knows neither
    test_inputs: str = "gaussian"
    num_test: int = 50_000  # squared errors have heavy tails: a standard error of 1.6 %
    num_steps: int = 2000
    num_times: int = 40
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        if self.test_inputs not in TEST_INPUTS:
            message = f"test_inputs={self.test_inputs!r}: choose from {', '.join(TEST_INPUTS)}"
            raise ValueError(message)
        if not self.widths or min(self.widths) < 1:
            message = f"widths={self.widths}: give one or more positive numbers"
            raise ValueError(message)

    def times(self) -> np.ndarray:
        """Return 0, every step of the first few, then ever more apart (T,)."""
        return np.unique([*range(10), *np.geomspace(1, self.num_steps, self.num_times).astype(int)])


class Prediction(NamedTuple):
    """S seeds, C widths, T times; from the recursion alone."""

    mean: Array  # (S, C, T, D) of the weights over the units
    second: Array  # (S, C, T, D, D)
    train_loss: Array  # (S, C, T) mean squared error
    test_loss: Array  # (S, C, T) the closed form
    linear_part: Array  # (S, C, T) of test_loss; the rest is its matrix part
    amplification: Array  # (S, C) largest change of the second moment over that of its start


class Result(NamedTuple):
    """Networks that were trained weight by weight."""

    step: Array  # (T,)
    mean: Array  # (S, C, T, D)
    second: Array  # (S, C, T, D, D)
    train_loss: Array  # (S, C, T) mean squared error
    test_loss: Array  # (S, C, T) over fresh inputs
    standard_error: Array  # (S, C, T) of test_loss
    alignment: Array  # (S, C, T) b·M b / (|b|² |M|) with the teacher b


def draw(key: Key, config: Config) -> tuple[Array, Array, Array, Key]:
    """Return teacher (D,), inputs (P, D), weights (N, D) of the widest, a key for the test."""
    teacher_key, input_key, weight_key, test_key = jax.random.split(key, 4)
    root = config.input_dim**0.5
    teacher = jax.random.normal(teacher_key, (config.input_dim,))
    teacher *= root / jnp.linalg.norm(teacher)
    inputs = jax.random.normal(input_key, (config.num_samples, config.input_dim)) / root
    weights = jax.random.normal(weight_key, (max(config.widths), config.input_dim))
    return teacher, inputs, weights, test_key


def target(inputs: Array, teacher: Array) -> Array:
    return (inputs @ teacher) ** 2 / 2


def every_seed_and_width(function, config: Config):
    """Return `function(key, width, output scale, cubic, signs)` of all, leaves (S, C, ...)."""
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    shape = config.num_seeds, len(config.widths)
    # Numbers, so that the claim and its controls are one program.
    settings = (config.output_scale, config.cubic, config.test_inputs == "signs")
    settings = [jnp.full(shape[0] * shape[1], setting) for setting in settings]
    members = jnp.repeat(keys, shape[1]), jnp.tile(jnp.array(config.widths), shape[0]), *settings
    found = parallel.ensemble(lambda member: function(*member), members)
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), found)


def predict(config: Config) -> Prediction:
    """Advance the two moments; no weight is trained and no test input drawn."""

    def one(key, width, scale, *_) -> Prediction:
        teacher, inputs, weights, _ = draw(key, config)
        weights *= (jnp.arange(len(weights)) < width)[:, None]
        start = lazy_rich.WeightMoments(weights.sum(axis=0) / width, weights.T @ weights / width)
        network = {"output_scale": scale, "curvature": config.curvature}
        function = lambda moments: lazy_rich.predictor(moments, start, **network)

        def residuals(moments):
            return lazy_rich.evaluate(function(moments), inputs) - target(inputs, teacher)

        def advance(moments):
            weighted = residuals(moments)[:, None] * inputs / len(inputs)
            return lazy_rich.descend(
                moments, lazy_rich.Quadratic(weighted.sum(axis=0), weighted.T @ inputs),
                learning_rate=config.step_size / scale**2, **network,
            )  # fmt: skip

        def measure(moments):
            test = lazy_rich.population_loss(function(moments), teacher)
            linear = jnp.sum(function(moments).linear ** 2) / config.input_dim
            return *moments, jnp.mean(residuals(moments) ** 2), test, linear

        # Few units have a second moment of low rank. Rounding leaves those moments, and what has
        # left may grow by a factor of 1e7 (one network in a thousand) before the teacher is found.
        noise = jax.random.normal(jax.random.fold_in(key, 1), start.second.shape)
        moved = start._replace(second=start.second + NUDGE * (noise + noise.T) / 2**0.5)
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), start, moved)
        follow = lambda state: trajectory.record(advance, state, measure, times=config.times())
        courses = jax.vmap(follow)(both)
        return Prediction(*(c[0] for c in courses), jnp.ptp(courses[1], axis=0).max() / NUDGE)

    return every_seed_and_width(one, config)


def run(config: Config) -> Result:
    trained = every_seed_and_width(lambda *member: train(config, *member), config)
    return Result(config.times(), *trained)


def train(config: Config, key: Key, width, scale, cubic, signs) -> tuple[Array, ...]:
    """Train a network of `width` units; the units beyond it have no part in the output."""
    teacher, inputs, start, test_key = draw(key, config)
    present = jnp.arange(len(start)) < width

    def network(weights, inputs):
        h = inputs @ weights.T  # (inputs, N)
        units = h + config.curvature * h**2 / 2 + cubic * h**3 / 6
        return scale * jnp.sum(units * present, axis=1) / width

    def loss(weights):
        return jnp.mean((network(weights, inputs) - aim) ** 2) / 2

    shape = (config.num_test, config.input_dim)
    drawn = jax.random.rademacher(test_key, shape, float), jax.random.normal(test_key, shape)
    test_inputs = jnp.where(signs, *drawn) / config.input_dim**0.5
    # The function learnt is the output minus the one at the start.
    aim, test_aim = (network(start, x) + target(x, teacher) for x in (inputs, test_inputs))

    def measure(state):
        weights = state.params * present[:, None]
        mean, second = weights.sum(axis=0) / width, weights.T @ weights / width
        square = (network(state.params, test_inputs) - test_aim) ** 2
        seen = second @ teacher @ teacher / jnp.sum(teacher**2)
        standard_error = jnp.std(square) / config.num_test**0.5
        train_loss, alignment = 2 * loss(state.params), seen / jnp.linalg.norm(second)
        return mean, second, train_loss, jnp.mean(square), standard_error, alignment

    # The recursion's learning rate is that of one unit: N times that of their mean.
    descent = optax.sgd(config.step_size / scale**2 * width)
    state, update = step.initial_state(start, descent), step.optax_step(loss, descent)
    return trajectory.record(update, state, measure, times=config.times())


def without_matrix(prediction: Prediction) -> np.ndarray:
    """Return the closed form as if the second moment had stayed where it was, (S, C, T)."""
    return prediction.linear_part + prediction.test_loss[..., :1]


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    def largest(name):
        error = np.abs(getattr(result, name) - getattr(prediction, name))
        error = error.reshape(*prediction.amplification.shape, -1).max(axis=-1)  # (S, C)
        amplified = np.finfo(float).eps * (1 + prediction.amplification)
        return (error / amplified).max(axis=1)  # (S,)

    rounding = "an identity but for rounding and its growth: pilots up to 113, a cubic term 1e9"
    bare = without_matrix(prediction) / result.test_loss
    relative = result.standard_error / prediction.test_loss
    error = np.sum(result.test_loss / prediction.test_loss - 1, axis=0)  # (C, T)
    return [
        checks.stays_finite("steps with finite losses", result.step,
                            result.train_loss + result.test_loss, mend="lower step_size"),
        checks.below("largest standard error of a test loss, relative", relative.max(), 0.04,
                     role="precondition", why="else Monte Carlo sees nothing: raise num_test"),
        *(checks.every_seed(name, largest(field), upper=1e3, why=rounding)
          for field, name in EXACT.items()),
        checks.below(SAMPLED, np.abs(error / np.sqrt(np.sum(relative**2, axis=0))).max(), 5,
                     why="the closed form is exact; one run in ten thousand is above"),
        checks.every_seed("closed form without its matrix part / test loss at the end",
                          bare[..., -1].min(axis=1), lower=5, role="control",
                          why="what is learnt is in the matrix; pilots from 200"),
        checks.every_seed("largest alignment with the teacher at the start",
                          result.alignment[..., 0].max(axis=1), upper=0.6,
                          why="1/√D at infinite width, less in narrow ones; pilots up to 0.27"),
        checks.every_seed("least alignment with the teacher at the end",
                          result.alignment[..., -1].min(axis=1), lower=0.9,
                          why="the weights turn to it; pilots from 0.99, lazy ones below 0.6"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    figure.set_size_inches(7.2, 5.0)
    panels = figure.subplots(2, 2)
    (losses, parts), (alignment, errors) = panels
    step, widest = result.step, len(config.widths) - 1
    mean = lambda values: values[:, widest].mean(axis=0)
    for i, (name, label) in enumerate((("train_loss", "training"), ("test_loss", "test, sampled"))):
        theory = mean(getattr(prediction, name))
        plotting.theory(losses, step, theory, label=None if i else "two moments")
        values, style = getattr(result, name)[:, widest], {"color": plotting.COLOURS[i]}
        plotting.points(losses, step, values, label=label, markersize=3, **style)
    losses.set(ylim=(0, None), ylabel="mean squared error")
    losses.legend(title=f"network of {config.widths[widest]} units", loc="lower left")
    matrix = mean(prediction.test_loss - prediction.linear_part)
    linear = mean(prediction.linear_part)
    names, colours = ("second moment", "mean"), plotting.COLOURS[2:4]
    parts.stackplot(step, matrix, linear, labels=names, colors=colours, alpha=0.6)
    bare, label = mean(without_matrix(prediction)), "had the second moment\nnot moved"
    plotting.theory(parts, step, bare, linestyle=":", label=label)
    parts.set(ylim=(0, 1.15), ylabel="closed form of the test loss")
    parts.legend(loc="lower left")
    for i, width in enumerate(config.widths):
        style = {"label": f"{width} units", "color": plotting.COLOURS[4 + i]}
        plotting.band(alignment, step, result.alignment[:, i], spread="range", **style)
        error = np.abs(result.second - prediction.second)[:, i].max(axis=(0, 2, 3))  # (T,)
        errors.plot(step, np.maximum(error, np.finfo(float).eps / 2), **style)
    plotting.threshold(alignment, config.input_dim**-0.5, label="1/√D: random weights")
    alignment.set(ylim=(0, 1.05), ylabel="alignment with the teacher")
    alignment.legend(loc="upper left")
    size = np.abs(prediction.second).max(axis=(0, 1, 3, 4))
    plotting.theory(errors, step, size, linestyle=":", label="largest entry")
    errors.set(yscale="log", ylabel="error of the second moment")
    errors.legend(loc="center left")
    for axes in panels.flat:
        axes.set(xscale="symlog", xlim=(-0.15, config.num_steps), xlabel="step")
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-7,  # of the moments; Monte Carlo sees an error of the closed form of 6 %
    precision="float64",
    smoke=dict(num_steps=1000, num_times=20, num_seeds=2),
    paper=dict(widths=(500,), input_dim=100, num_samples=550, curvature=0.02, step_size=1.0,
               num_steps=10**5),
    controls={
        "cubic activation": contract.Control(
            dict(cubic=0.02, num_steps=300),
            breaks=dict.fromkeys(EXACT.values(), "above"),
            why="a unit's gradient is no longer affine in its weights: the moments do not close",
        ),
        "inputs of another kurtosis": contract.Control(
            dict(test_inputs="signs", num_steps=300),
            breaks={SAMPLED: "above"},
            why="same mean and variance, another fourth moment; the closed form is Gaussian",
        ),
        "lazy training": contract.Control(
            dict(output_scale=30.0),
            breaks={"least alignment with the teacher at the end": "below"},
            why="the weights stand nearly still, though the moments obey their recursion",
        ),
    },
)  # fmt: skip

if __name__ == "__main__":
    runner.main(EXPERIMENT)
