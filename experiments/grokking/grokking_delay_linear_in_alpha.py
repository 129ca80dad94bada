"""The delay of generalisation grows about linearly in the output scale, then without bound.

Claim      A network of units h + ε h²/2 learns a quadratic form from few samples by full-batch
           descent. In the clock of its initial kernel (steps times learning rate times α²) the
           time from fitting to generalising (loss at a fifth of its start, in both) grows as the
           output scale α to a power near one for α from 1/8 to 2. Beyond that, and sooner where
           more is asked (a twentieth), it grows faster; a linearised network never generalises.
Control    Where the learning rates differ and the scale does not, nothing grows. With many samples
           the delay is a small part of that at every α; what is left grows just as linearly, so
           that linear growth is no sign of grokking, and the size of the delay is.
Reference  Kumar et al. 2024, arXiv:2310.06110. Measurement differs: linear is the middle of a
           curve, not a law, and the time to fit grows with α as well, as α to the power 0.8.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.measure import grokking, statistics
from dynamics.theory import lazy_rich
from dynamics.training import trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P28",)
PILOT_SEEDS = (101, 102, 103)


@dataclasses.dataclass(frozen=True)
class Config:
    scales: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0)
    lazy_scales: tuple[float, ...] = (4.0, 8.0)
    scale_exponent: float = 1.0  # output scale α = scale ** scale_exponent; the control takes 0
    linearised_scale: float = 10_000.0  # the weights move by a ten-thousandth
    step_size: float = 10.0  # learning rate times α²; times α where α < 1: curvature is ∝ 1/α
    curvature: float = 0.1  # ε: the initial kernel is 1 + ε² x·x' times x·x'
    width: int = 60
    input_dim: int = 24
    few: int = 120  # samples; a quadratic form has 300 coefficients
    many: int = 500
    threshold: float = 0.2  # of the loss at the start, for training and test alike
    strict_threshold: float = 0.05
    num_steps: int = 4000
    num_times: int = 200
    num_seeds: int = 16
    seed: int = 1

    def __post_init__(self):
        if not 0 < self.few <= self.many:
            message = f"few={self.few}, many={self.many}: few is at most many"
            raise ValueError(message)
        if len(self.scales) < 2 or list(self.all_scales()) != sorted(set(self.all_scales())):
            message = f"scales={self.scales}, lazy_scales={self.lazy_scales}: give two or more "
            raise ValueError(message + "scales, and lazy ones, all from small to large")

    def all_scales(self) -> tuple[float, ...]:
        """Return the output scales without the linearised one."""
        return (*self.scales, *self.lazy_scales)

    def settings(self) -> tuple[np.ndarray, np.ndarray]:
        """Return output scale and learning rate of each condition (C,), the linearised last."""
        labels = np.array([*self.all_scales(), 1.0])
        scales = labels**self.scale_exponent
        scales[-1] = self.linearised_scale
        return scales, self.step_size * np.minimum(labels, 1) / scales**2


class Result(NamedTuple):
    """S seeds, 2 sample sizes (few, many), C conditions (as in settings), T times."""

    step: Array  # (T,)
    train_loss: Array  # (S, 2, C, T) mean squared error / its start
    test_loss: Array  # (S, 2, C, T) the same over the whole input distribution


def run(config: Config) -> Result:
    """Train networks by the recursion of their two moments, which is exact at every width:
    theory_checks/grokking/grokking_sufficient_statistics.
    """
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    sizes = jnp.tile(jnp.array([config.few, config.many]), config.num_seeds)
    times = np.unique(np.geomspace(1, config.num_steps, config.num_times).astype(int))
    times = np.concatenate([[0], times])
    losses = parallel.ensemble(
        lambda member: train(*member, config, times),
        (jnp.repeat(keys, 2), sizes),
        batching="map",
    )
    shape = (config.num_seeds, 2, len(times), -1)
    return Result(times, *(loss.reshape(shape).swapaxes(2, 3) for loss in losses))


def train(key: Key, num_samples: Array, config: Config, times: np.ndarray):
    """Return training and test loss (T, C), relative to the start, on y = (b·x)²/2."""
    teacher_key, input_key, weight_key = jax.random.split(key, 3)
    dim, scales_and_rates = config.input_dim, jnp.array(config.settings()).T
    teacher = jax.random.normal(teacher_key, (dim,))
    teacher *= dim**0.5 / jnp.linalg.norm(teacher)
    inputs = jax.random.normal(input_key, (config.many, dim)) / dim**0.5
    start = lazy_rich.weight_moments(jax.random.normal(weight_key, (config.width, dim)))
    sample = lazy_rich.summarise(teacher, inputs, num_samples)

    def function(moments, scale):
        return lazy_rich.predictor(moments, start, output_scale=scale, curvature=config.curvature)

    def advance(moments):
        def descend(moments, setting):
            scale, rate = setting
            return lazy_rich.descend(
                moments, lazy_rich.residual(function(moments, scale), sample),
                learning_rate=rate, output_scale=scale, curvature=config.curvature,
            )  # fmt: skip

        return jax.vmap(descend)(moments, scales_and_rates)

    def measure(moments):
        functions = jax.vmap(function)(moments, scales_and_rates[:, 0])
        train = jax.vmap(lambda f: lazy_rich.training_loss(f, sample))(functions)
        test = jax.vmap(lambda f: lazy_rich.population_loss(f, teacher))(functions)
        return train / sample.power, test / 0.75  # E y² = 3/4

    at_start = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(scales_and_rates)), start)
    return trajectory.record(advance, at_start, measure, times=times)


def waiting_times(config: Config, result: Result, threshold: float) -> np.ndarray:
    """Return when the training and the test loss get there, (2, S, 2, C), in the kernel's clock.

    A seed that was never seen to generalise counts with the end of its run: the least it can be.
    """
    scale, rate = config.settings()
    cross = lambda loss: grokking.first_crossing(result.step, loss, threshold, direction="below")
    steps = np.stack([cross(result.train_loss), cross(result.test_loss)])
    return np.minimum(steps, result.step[-1]) * rate * scale**2


def check(config: Config, result: Result) -> list[checks.Check]:
    linear = slice(0, len(config.scales))
    fit, general = waiting_times(config, result, config.threshold)  # (S, 2, C)
    gap = general - fit
    slope = lambda times, size: statistics.log_log_slope(config.scales, times[:, size, linear])
    exponent, fit_exponent = slope(gap, 0), slope(fit, 0)
    interval = statistics.mean_interval(exponent)
    early, late = waiting_times(config, result, config.strict_threshold)
    stricter = slope(late - early, 0) - exponent
    top = [config.scales[-1], config.lazy_scales[-1]]
    ends = gap[:, 0][:, [len(config.scales) - 1, len(config.all_scales()) - 1]]
    bend = statistics.log_log_slope(top, ends) - exponent
    clock = config.step_size * np.minimum(config.all_scales(), 1) * result.step[-1]  # (C - 1,)
    seen = general[:, 0, :-1] < clock
    trained, tested = result.train_loss[:, 0, -1, -1], result.test_loss[:, 0, -1].min(axis=-1)
    remaining = np.median(gap[:, 1, linear] / gap[:, 0, linear], axis=0)
    ratio = np.median(general[:, 1, :-1] / fit[:, 1, :-1], axis=0)
    return [
        checks.stays_finite("steps with finite losses", result.step,
                            result.train_loss + result.test_loss, mend="lower step_size"),
        checks.above("share of runs that generalise in time, α in the linear range",
                     np.mean(seen[:, linear]), 0.9, role="precondition",
                     why="else the delays are cut short: raise num_steps; pilots from 0.97"),
        checks.every_seed("training loss / start of the linearised network", trained, upper=0.2,
                          why="it fits, or it shows nothing: raise num_steps; pilots up to 0.03",
                          role="precondition"),
        checks.between("exponent of the delay against α, mean", interval.estimate, 0.8, 1.3,
                       interval=interval[1:],
                       why="about linear; pilots 1.00 to 1.06, 0 where the scale is fixed"),
        checks.between("exponent of the time to fit against α, median", np.median(fit_exponent),
                       0.6, 0.95, why="it grows too; pilots 0.78, 0 where the scale is fixed"),
        checks.above("exponent beyond the linear range less that within, median", np.median(bend),
                     0.05, why="no law: the curve bends upwards; pilots 0.24 to 0.39"),
        checks.above("exponent at the strict threshold less that at the other, median",
                     np.median(stricter), 0.03,
                     why="the more is asked, the sooner it bends; pilots 0.16 to 0.23"),
        checks.every_seed("least test loss / start of the linearised network", tested,
                          lower=config.threshold,
                          why="it never generalises; pilots of its kernel regression from 0.42"),
        checks.below("largest delay with many samples over that with few, median",
                     remaining.max(), 0.2, role="control", why="pilots up to 0.09"),
        checks.below("largest time to generalise over time to fit, many samples, median",
                     ratio.max(), 1.7, role="control", why="no grokking; pilots up to 1.37"),
        checks.between("exponent of the delay against α, many samples, median",
                       np.median(slope(gap, 1)), 0.7, 1.4, role="control",
                       why="linear growth without grokking; pilots 1.0 to 1.06"),
    ]  # fmt: skip


def plot(config: Config, result: Result, figure) -> None:
    figure.set_size_inches(7.2, 3.2)
    curves, delays, exponents = panels = figure.subplots(1, 3)
    scales, (output_scale, rate) = np.array(config.all_scales()), config.settings()
    last = len(scales)
    for c in (0, 3, len(config.scales) - 1, last - 1, last):
        name = "linearised" if c == last else f"α = {scales[c]:g}"
        colour = "black" if c == last else plotting.COLOURS[c]
        clock = (result.step * rate[c] * output_scale[c] ** 2)[1:]
        plotting.band(curves, clock, result.test_loss[:, 0, c, 1:], label=name, color=colour)
        trained = result.train_loss[:, 0, c, 1:].mean(axis=0)
        curves.plot(clock, trained, ":", color=colour)
    plotting.threshold(curves, config.threshold)
    curves.set(xscale="log", xlim=(1, None), ylim=(0, 1.9), xlabel="kernel time τ = steps · η α²")
    curves.set_ylabel("loss / start (dotted: training)")
    curves.legend(ncols=2, fontsize=6, loc="upper left")
    middle = np.sqrt(scales[1:] * scales[:-1])
    settings = (("few", 0, config.threshold), ("few", 0, config.strict_threshold),
                ("many", 1, config.threshold))  # fmt: skip
    for i, (name, size, threshold) in enumerate(settings):
        fit, general = waiting_times(config, result, threshold)[:, :, size, :-1]
        delay = general - fit  # (S, C - 1)
        cut = result.step[-1] * (rate * output_scale**2)[:-1]
        whole = np.median(general, axis=0) < 0.999 * cut  # half of the seeds or more were seen
        style = {"color": plotting.COLOURS[i], "marker": plotting.MARKERS[i]}
        label = f"{getattr(config, name)} samples, to {threshold:g}"
        middling = np.exp(np.log(delay).mean(axis=0))
        delays.plot(scales[whole], middling[whole], "-", label=label, **style)
        delays.plot(scales[whole], delay.T[whole], ".", color=style["color"], alpha=0.15)
        local = np.median(np.diff(np.log(delay)) / np.diff(np.log(scales)), axis=0)
        exponents.plot(middle[whole[1:]], local[whole[1:]], "-", label=label, **style)
        if i == 0:
            line = middling[0] * scales / scales[0]
            plotting.theory(delays, scales, line, label="∝ α")
            slow = np.median(np.diff(np.log(fit)) / np.diff(np.log(scales)), axis=0)
            exponents.plot(middle, slow, "--", color="#777777", label="time to fit, few")
    plotting.threshold(exponents, 1, label="∝ α")
    delays.set(xscale="log", yscale="log", ylim=(1, 6e4), ylabel="delay in kernel time")
    exponents.set(xscale="log", ylim=(0.5, 2.2), ylabel="exponent between neighbours, median")
    for axes in (delays, exponents):
        axes.axvspan(config.scales[0], config.scales[-1], color="#777777", alpha=0.12, linewidth=0)
        axes.set_xlabel("output scale α")
        axes.set_xticks([0.125, 0.5, 2, 8], ["1/8", "1/2", "2", "8"])
        axes.minorticks_off()
    delays.legend(
        fontsize=6, loc="lower right", title="geometric mean; a dot a seed", title_fontsize=6
    )
    exponents.legend(fontsize=6, loc="upper left")
    plotting.label_panels(panels)


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    smoke=dict(
        scales=(0.125, 0.5, 2.0), lazy_scales=(8.0,), num_steps=2500, num_times=80, num_seeds=12
    ),
    paper=dict(input_dim=100, few=450, many=10_000, width=500, num_steps=100_000),
    precision="float64",
    controls={
        "output scale fixed": contract.Control(
            dict(scale_exponent=0.0, num_steps=2000),
            breaks={
                "exponent of the delay against α, mean": "below",
                "exponent of the time to fit against α, median": "below",
                "exponent beyond the linear range less that within, median": "below",
            },
            why="the learning rates differ eightfold as before, the output scales do not",
        )
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
