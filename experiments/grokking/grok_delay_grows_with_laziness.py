"""The lazier the training, the longer the network takes from fitting to generalising.

Claim      A wide network with a weak quadratic kernel at its start learns a quadratic form from few
           samples by full-batch descent with learning rate ∝ α^-2. The ratio of the steps to
           generalise to the steps to fit (loss at a fifth of its start, in both) grows with the
           output scale α; the gap between them grows faster than α and slower than α².
Control    Learning rates that differ as before on a fixed output scale leave the ratio where it
           was. With more samples than coefficients the delay disappears; frozen features never
           generalise from few samples and do from many.
Reference  Kumar et al. 2024, arXiv:2310.06110. Measurement differs in three points. The gap in
           steps is no sign of laziness alone: it grows as much where nothing is delayed, because
           fitting slows down too; the ratio tells them apart. For the same reason the time to fit
           is not independent of α here. And a strong kernel (ε = 1) lengthens the delay: the
           weights move by about 1/(α ε), so that ε makes training lazier as α does.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array
from dynamics.measure import grokking
from dynamics.theory import lazy_rich
from dynamics.training import trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P28",)
PILOT_SEEDS = (101, 102, 103, 104, 105)


@dataclasses.dataclass(frozen=True)
class Config:
    scales: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    scale_exponent: float = 1.0  # output scale α = scale ** scale_exponent; the control takes 0
    rate_exponent: float = 2.0  # learning rate = step_size * scale ** -rate_exponent
    step_size: float = 10.0  # half the largest stable one
    curvature: float = 0.1  # ε: the initial kernel is 1 + ε² x·x' times x·x'
    strong_curvature: float = 1.0
    frozen_scale: float = 1000.0  # features stand still: regression with the initial kernel
    input_dim: int = 24
    few: int = 120  # samples; a quadratic form has 300 coefficients
    many: int = 500
    threshold: float = 0.2  # of the loss at the start, for training and test alike
    num_steps: int = 12_000
    num_times: int = 150
    num_seeds: int = 16
    seed: int = 1

    def __post_init__(self):
        if not 0 < self.few <= self.many:
            message = f"few={self.few}, many={self.many}: few is at most many"
            raise ValueError(message)
        if len(self.scales) < 2 or not 0 < self.scales[0] < self.scales[-1]:
            message = f"scales={self.scales}: give two or more, from small to large"
            raise ValueError(message)

    def settings(self) -> np.ndarray:
        """Return α, learning rate, ε of each condition (C, 3): scales, strong kernel, frozen."""
        rate = lambda scale, exponent: self.step_size * scale**-exponent
        lazier = [
            (scale**self.scale_exponent, rate(scale, self.rate_exponent), self.curvature)
            for scale in self.scales
        ]
        largest, frozen = self.scales[-1], self.frozen_scale
        strong = (largest, rate(largest, 2), self.strong_curvature)
        return np.array([*lazier, strong, (frozen, rate(frozen, 2), self.curvature)])


class Result(NamedTuple):
    """S seeds, 2 sample sizes (few, many), C conditions (as in settings), T times."""

    step: Array  # (T,)
    train_loss: Array  # (S, 2, C, T) mean squared error / its start
    test_loss: Array  # (S, 2, C, T) the same over the whole input distribution


def run(config: Config) -> Result:
    """Train infinitely wide networks, all conditions on the same samples."""
    teacher_key, input_key = jax.random.split(jax.random.key(config.seed))
    teachers = jax.random.normal(teacher_key, (config.num_seeds, config.input_dim))
    teachers *= jnp.sqrt(config.input_dim) / jnp.linalg.norm(teachers, axis=1, keepdims=True)
    inputs = jax.random.normal(input_key, (config.num_seeds, config.many, config.input_dim))
    sizes = jnp.tile(jnp.array([config.few, config.many]), config.num_seeds)
    members = jnp.repeat(teachers, 2, axis=0), jnp.repeat(inputs, 2, axis=0), sizes
    times = np.unique(np.geomspace(1, config.num_steps, config.num_times).astype(int))
    times = np.concatenate([[0], times])
    losses = parallel.ensemble(
        lambda member: train(*member, config, times), members, batching="map"
    )
    shape = (config.num_seeds, 2, len(times), -1)
    return Result(times, *(loss.reshape(shape).swapaxes(2, 3) for loss in losses))


def train(teacher: Array, inputs: Array, num_samples: Array, config: Config, times: np.ndarray):
    """Return training and test loss (T, C), relative to the start, for x ~ N(0, I/D)."""
    sample = lazy_rich.summarise(teacher, inputs / jnp.sqrt(config.input_dim), num_samples)
    scales, rates, curvatures = jnp.asarray(config.settings()).T
    start = lazy_rich.infinite_width_start(config.input_dim)

    def function(moments, scale, curvature):
        return lazy_rich.predictor(moments, start, output_scale=scale, curvature=curvature)

    def advance(moments):
        def descend(moments, scale, rate, curvature):
            return lazy_rich.descend(
                moments, lazy_rich.residual(function(moments, scale, curvature), sample),
                learning_rate=rate, output_scale=scale, curvature=curvature,
            )  # fmt: skip

        return jax.vmap(descend)(moments, scales, rates, curvatures)

    def measure(moments):
        functions = jax.vmap(function)(moments, scales, curvatures)
        train = jax.vmap(lambda f: lazy_rich.training_loss(f, sample))(functions)
        test = jax.vmap(lambda f: lazy_rich.population_loss(f, teacher))(functions)
        return train / sample.power, test / 0.75  # E y² = 3/4

    at_start = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(scales)), start)
    return trajectory.record(advance, at_start, measure, times=times)


def waiting_times(config: Config, result: Result) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps to fit and to generalise (S, 2, C), the latter cut at the end of the run.

    So a seed that was never seen to generalise counts with the least that its delay can be.
    """
    fit, general = (
        np.asarray(grokking.first_crossing(result.step, loss, config.threshold, direction="below"))
        for loss in (result.train_loss, result.test_loss)
    )
    return fit, np.minimum(general, result.step[-1])


def check(config: Config, result: Result) -> list[checks.Check]:
    num_scales, scales = len(config.scales), np.array(config.scales)
    fit, general = (a[..., :num_scales] for a in waiting_times(config, result))  # (S, 2, scales)
    ratio = general / fit
    growth = ratio[..., -1] / ratio[..., 0]  # (S, 2)
    least_rise = (ratio[:, 0, 1:] / ratio[:, 0, :-1]).min(axis=-1)  # (S,)
    # Steps times η α²: the clock of the initial kernel, the same for all scales.
    output_scale, rate, _ = config.settings()[:num_scales].T
    # A run that ended before it generalised has a gap longer than is known: it counts as endless.
    known = np.where(general < result.step[-1], general, np.inf)
    gap = ((known - fit) * rate * output_scale**2)[:, 0]
    slope = np.log(gap[:, -1] / gap[:, 0]) / np.log(scales[-1] / scales[0])
    before = result.step <= fit[:, 0, :, None]  # (S, scales, T)
    unlearnt = np.where(before, result.test_loss[:, 0, :num_scales], np.inf).min(axis=-1)
    lazier = np.log((general - fit) * rate * output_scale**2)[:, 1]  # as gap, many samples
    many_slope = (lazier[:, -1] - lazier[:, 0]) / np.log(scales[-1] / scales[0])
    strong, frozen = result.test_loss[..., -1][..., num_scales:].T  # (2, S) each
    weak = result.test_loss[:, 0, num_scales - 1, -1]  # at the output scale of the strong one
    return [
        checks.stays_finite("steps with finite losses", result.step,
                            result.train_loss + result.test_loss, mend="lower step_size"),
        checks.every_seed("training fitted, share of the run", fit / result.step[-1], upper=0.5,
                          why="else there is no time left for a delay; raise num_steps",
                          role="precondition"),
        checks.above("growth of the ratio from smallest to largest α, median",
                     np.median(growth[:, 0]), 2,
                     why="it grows by a clear factor; pilots 4.0, 1.00 on a fixed scale"),
        checks.above("least growth of the ratio between neighbours in α, median",
                     np.median(least_rise), 1.05,
                     why="it grows throughout; pilots 1.17, 1.00 on a fixed scale"),
        checks.above("share of seeds whose ratio grows by half or more",
                     np.mean(growth[:, 0] > 1.5), 0.75, why="sign test; pilots 79 of 80 seeds"),
        checks.between("exponent of the gap in kernel time against α, median", np.median(slope),
                       1, 1.7,
                       why="between α (rich) and α² (lazy); pilots 1.30, 0.00 on a fixed scale"),
        checks.every_seed("least test loss / start before the training is fitted", unlearnt,
                          lower=0.35, why="fitted, not learnt: well above 0.2; pilots from 0.56"),
        checks.below("test loss / start at the end, smallest α, median",
                     np.median(result.test_loss[:, 0, 0, -1]), config.threshold / 2,
                     why="generalisation does come; pilots 0.003"),
        checks.below("largest ratio with many samples, median",
                     np.median(ratio[:, 1], axis=0).max(), 1.7, role="control",
                     why="fit and generalise together; pilots 1.38, 14 with few"),
        checks.below("growth of the ratio with many samples, median", np.median(growth[:, 1]), 1.5,
                     role="control", why="hardly any growth; pilots 1.20"),
        checks.between("exponent of the gap in kernel time against α, many samples, median",
                       np.median(many_slope), 0.9, 1.4, role="control",
                       why="grows as much without a delay; base seeds 1 and 3006 1.13"),
        checks.above("test loss of frozen features, few samples, median", np.median(frozen[0]),
                     0.35, role="control", why="features must move; pilots 0.54"),
        checks.below("test loss of frozen features, many over few samples, median",
                     np.median(frozen[1] / frozen[0]), 0.6, role="control",
                     why="with enough samples they need not; pilots 0.11, 0.3 in a short run"),
        checks.above("test loss with a strong kernel, few samples, median", np.median(strong[0]),
                     0.25, role="control", why="lazier still: no end in sight; pilots 0.41"),
        checks.above("test loss with a strong kernel over that with a weak one, median",
                     np.median(strong[0] / weak), 1.2, role="control",
                     why="same α, same samples; 60 networks of base seed 3006 1.3 to 4.1"),
    ]  # fmt: skip


def plot(config: Config, result: Result, figure) -> None:
    figure.set_size_inches(7.2, 5.0)
    panels = figure.subplots(2, 2)
    for size, (axes, name) in enumerate(zip(panels[0], ("few", "many"), strict=True)):
        for c, scale in enumerate([*config.scales, None, np.inf]):
            if scale is None:  # the strong kernel is in the checks
                continue
            style = {"color": "black" if scale == np.inf else plotting.COLOURS[c]}
            label = "α → ∞ (features frozen)" if scale == np.inf else f"α = {scale:g}"
            curves = result.test_loss[:, size, c], result.train_loss[:, size, c]
            plotting.band(axes, result.step, curves[0], label=label, **style)
            axes.plot(result.step, curves[1].mean(axis=0), linestyle=":", **style)
        axes.axhline(config.threshold, color="#777777", linestyle="--", linewidth=0.8)
        axes.set(xscale="log", xlim=(1, config.num_steps), ylim=(0, 1.6), xlabel="step")
        axes.set(ylabel="loss / start (dotted: training)")
        axes.set_title(f"{getattr(config, name)} samples")
    panels[0, 0].legend(loc="upper right", fontsize=6, ncols=2)
    fit, general = (a[..., : len(config.scales)] for a in waiting_times(config, result))
    fit = np.where(np.isfinite(fit), fit, np.nan)  # not drawn where training diverged
    for axes, values in zip(panels[1], (general / fit, general - fit), strict=True):
        for size, name in enumerate(("few", "many")):
            colour, seeds = plotting.COLOURS[size], values[:, size]
            censored = general[:, size] >= result.step[-1]
            x = np.broadcast_to(config.scales, seeds.shape)
            axes.plot(x[~censored], seeds[~censored], ".", color=colour, alpha=0.3)
            axes.plot(x[censored], seeds[censored], "^", color=colour, alpha=0.3)
            label = f"{getattr(config, name)} samples, median"
            axes.plot(config.scales, np.median(seeds, axis=0), "o-", color=colour, label=label)
        axes.set(xscale="log", yscale="log", ylim=(0.9, None), xlabel="output scale α")
        axes.set_xticks(config.scales, [f"{scale:g}" for scale in config.scales])
        axes.minorticks_off()
    ratio, gap = panels[1]
    ratio.axhline(1, color="black", linestyle="--", linewidth=1)
    ratio.set(ylabel="steps to generalise / to fit")
    relative = np.array(config.scales) / config.scales[0]
    for power, label, line in ((1, "α", "--"), (2, "α²", ":")):
        guide = np.median((general - fit)[:, 0, 0]) * relative**power
        plotting.theory(gap, config.scales, guide, label=f"∝ {label}", linestyle=line)
    gap.set(ylabel="steps from fit to generalisation")
    ratio.legend(title="a dot a seed; ▲: at least", title_fontsize=6.5)
    gap.legend()
    plotting.label_panels(panels)


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    smoke=dict(scales=(0.5, 2.0, 5.0), num_steps=4000, num_times=60, num_seeds=5),
    paper=dict(input_dim=100, few=450, many=10_000, num_steps=100_000),
    precision="float64",
    controls={
        "output scale fixed": contract.Control(
            dict(scale_exponent=0.0, rate_exponent=0.5, num_steps=3000),
            breaks={
                "growth of the ratio from smallest to largest α, median": "below",
                "least growth of the ratio between neighbours in α, median": "below",
                "share of seeds whose ratio grows by half or more": "below",
                "exponent of the gap in kernel time against α, median": "below",
            },
            why="the learning rates still differ fourfold, the laziness does not",
            needs=("training fitted, share of the run",),
        )
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
