"""Weight decay decides whether wrong labels are memorised, kept beside the rule, or unlearnt.

Claim      A two-layer network on the addition table of Z_p, a fifth of its training labels drawn
           anew, memorises all labels without weight decay; with some decay it memorises the wrong
           ones and generalises; with more it first fits them, then unlearns them, and its training
           accuracy falls to the plateau 1 - ξ (1 - 1/p) of the rule; with more still it forgets.
Control    Clean labels are never unlearnt, random ones never generalise. Decay coefficients of
           that size in Adam's loss, rather than decoupled, learn nothing at all.
Reference  Doshi et al. 2023, arXiv:2310.13061. Two points are added. Unlearning needs no decoupled
           decay: a penalty of 1e-4 in the loss does it as well. And the decay that unlearns depends
           on the width N: AdamW keeps entries below about 1/λ and outputs below 4N/λ³, so that the
           paper's λ = 15 at N = 500 is λ = 11 at N = 200 (in pilots 15 unlearns at N = 500; at
           N = 200 it forgets in the end).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import parallel
from dynamics.aliases import Array
from dynamics.data import algorithmic
from dynamics.measure import grokking
from dynamics.models import pair_networks
from dynamics.training import step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P90",)
PILOT_SEEDS = (101, 102, 103)
PHASES = ("memorise", "coexist", "unlearn", "forget")
CONDITIONS = (*PHASES, "clean labels", "random labels", "penalty")


@dataclasses.dataclass(frozen=True)
class Config:
    order: int = 31  # p, a prime
    width: int = 200  # N
    decays: tuple[float, ...] = (0.0, 5.0, 10.0, 20.0)  # λ of the four phases
    decoupled: bool = True  # decay as in AdamW; else the same numbers as L2 in the loss
    penalty: float = 1e-4  # L2 in the loss of the arm that has it
    corruption: float = 0.2  # ξ
    train_fraction: float = 0.7
    learning_rate: float = 0.01
    momentum_decay: float = 0.9
    variance_decay: float = 0.98
    num_steps: int = 600
    measure_every: int = 10
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        if len(self.decays) != len(PHASES):
            message = f"decays={self.decays}: give {len(PHASES)}, one for each of {PHASES}"
            raise ValueError(message)
        if not 0 < self.corruption < 1:
            message = f"corruption={self.corruption}: give a share between 0 and 1"
            raise ValueError(message)

    def settings(self) -> np.ndarray:
        """Return ξ, decoupled decay and L2 in the loss (C, 3) of each of CONDITIONS."""
        some, strong = self.decays[1:3]
        arms = [(self.corruption, decay) for decay in self.decays]
        arms += [(0.0, strong), (1.0, some)]
        place = (lambda d: (d, 0.0)) if self.decoupled else (lambda d: (0.0, d))
        rows = [(fraction, *place(decay)) for fraction, decay in arms]
        return np.array([*rows, (self.corruption, 0.0, self.penalty)])


class Result(NamedTuple):
    """S seeds, C conditions, T times, N hidden units."""

    step: Array  # (T,)
    loss: Array  # (S, C, T) mean squared error of the training labels
    train: Array  # (S, C, T) agreement with the training labels
    test: Array  # (S, C, T) accuracy on clean test pairs
    wrong: Array  # (S, C, T) agreement with the wrong training labels; 0 where there are none
    corrected: Array  # (S, C, T) share of the wrongly labelled pairs that are answered right
    participation: Array  # (S, C, N) inverse participation ratio at the end


def run(config: Config) -> Result:
    """Train every seed in every condition; the table is split alike in all conditions."""
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    settings = jnp.asarray(config.settings(), float)
    each = jnp.repeat(settings, len(keys), axis=0)  # condition by seed
    size = config.order, config.width, config.train_fraction
    adam = config.learning_rate, config.momentum_decay, config.variance_decay
    times = np.arange(0, config.num_steps + 1, config.measure_every)
    members = (jnp.tile(keys, len(settings)), each)
    found = parallel.ensemble(make_training(*size, *adam), members, shared=jnp.asarray(times))
    shape = (len(CONDITIONS), len(keys))
    found = (np.asarray(a).reshape(*shape, *a.shape[1:]).swapaxes(0, 1) for a in found)
    return Result(times, *found)


@functools.lru_cache(maxsize=2)  # the controls call what the claim compiled
def make_training(order: int, width: int, train_fraction: float, *adam: float):
    """Return `train((key, setting), times)`, one member's curves and the ratios of its units."""
    std = 0.5 / (2 * width) ** (1 / 3)
    model = pair_networks.PairMLP(order, width, first_std=std, readout_std=std)

    def train(member, times: Array) -> tuple[Array, ...]:
        key, (fraction, decoupled, in_loss) = member
        split_key, corruption_key, init_key = jax.random.split(key, 3)
        table = algorithmic.split_table(split_key, algorithmic.cyclic_group(order), train_fraction)
        labels, _ = algorithmic.corrupt_labels(
            corruption_key, table.train_products, order, fraction
        )
        optimiser = optax.chain(
            optax.add_decayed_weights(in_loss), optax.adamw(*adam, weight_decay=decoupled)
        )
        start = step.initial_state(model.init(init_key, table.train_pairs), optimiser)
        return follow(model, start, optimiser, table, labels, times)

    return train


def follow(model, start: step.TrainState, optimiser, table: algorithmic.Table, labels, times):
    """Train on the labels, some of them wrong; return the fields of Result from `loss` on."""
    targets = jax.nn.one_hot(labels, model.order)
    is_wrong = labels != table.train_products

    def loss(params):
        return jnp.mean((model.apply(params, table.train_pairs) - targets) ** 2)

    def measure(state: step.TrainState):
        logits = model.apply(state.params, table.train_pairs)
        answers = jnp.argmax(logits, axis=1)
        found = jnp.argmax(model.apply(state.params, table.test_pairs), axis=1)
        on_wrong = lambda hit: jnp.sum(hit & is_wrong) / jnp.maximum(is_wrong.sum(), 1)
        return (
            jnp.mean((logits - targets) ** 2),
            jnp.mean(answers == labels),
            jnp.mean(found == table.test_products),
            on_wrong(answers == labels),
            on_wrong(answers == table.train_products),
        )

    update = step.optax_step(loss, optimiser)
    curves, end = trajectory.record_with_state(update, start, measure, times=times)
    weights = end.params["params"]
    return *curves, grokking.neuron_participation(
        weights["left"], weights["right"], weights["readout"]
    )


def plateau(config: Config) -> float:
    """Return the training accuracy of the rule alone: a label drawn anew is right in 1 of p."""
    return 1 - config.corruption * (1 - 1 / config.order)


def delay(result: Result, condition: str) -> float:
    """Return the median steps from 90 % of training to 90 % of test accuracy (Kaplan-Meier)."""
    c = CONDITIONS.index(condition)
    curves = result.train[:, c], result.test[:, c]
    return float(grokking.grokking_delay_median(result.step, *curves, 0.9).estimate)


def check(config: Config, result: Result) -> list[checks.Check]:
    curve = lambda measure, name: getattr(result, measure)[:, CONDITIONS.index(name)]  # (S, T)
    end = lambda measure, name: curve(measure, name)[:, -1]
    most = lambda measure, name: curve(measure, name).max(axis=-1)
    every, control = checks.every_seed, functools.partial(checks.every_seed, role="control")
    left = end("train", "unlearn") - plateau(config)
    steadily = np.where(np.arange(len(result.step)) >= len(result.step) // 4,
                        curve("train", "clean labels"), 1).min(axis=-1)  # fmt: skip
    return [
        checks.stays_finite("steps with finite losses", result.step, result.loss,
                            mend="lower learning_rate"),
        every("no decay: agreement with wrong labels, end", end("wrong", "memorise"), lower=0.99,
              why="all memorised; pilots 1"),
        every("no decay: test accuracy, end", end("test", "memorise"), upper=0.4,
              why="far from solved; pilots 0.09 to 0.26"),
        every("some decay: agreement with wrong labels, end", end("wrong", "coexist"), lower=0.98,
              why="memorised all the same; pilots 1"),
        every("some decay: test accuracy, end", end("test", "coexist"), lower=0.9,
              why="generalises; pilots 0.965 to 0.997"),
        every("strong decay: most agreement with wrong labels", most("wrong", "unlearn"),
              lower=0.95, why="first it fits them; pilots from 0.992"),
        every("strong decay: agreement with wrong labels, end", end("wrong", "unlearn"),
              upper=0.25, why="three in four are given up; pilots 0 to 0.125"),
        every("strong decay: wrongly labelled pairs answered right, end", lower=0.75,
              values=end("corrected", "unlearn"), why="and put right; pilots from 0.875"),
        every("strong decay: training accuracy less plateau, end", left, lower=-0.015, upper=0.05,
              why="above: a quarter of the wrong labels; below: five standard errors of how many "
              "of the labels drawn anew are right; pilots -0.004 to 0.027"),
        every("strong decay: test accuracy, end", end("test", "unlearn"), lower=0.98,
              why="the rule is solved; pilots from 0.9965"),
        every("too strong: most training accuracy", most("train", "forget"), lower=0.9,
              why="it fits as well; pilots from 0.96"),
        every("too strong: training accuracy, end", end("train", "forget"), upper=0.7,
              why="falls through the plateau of 0.81; pilots 0.17 to 0.44"),
        checks.above("delay to generalise, wrong labels / clean ones", lower=1.5,
                     measured=delay(result, "unlearn") / delay(result, "clean labels"),
                     why="half as long again; pilots 2.5 to 2.7"),
        control("clean labels: least training accuracy from a quarter of the run on", steadily,
                lower=0.99, why="nothing to unlearn at the same decay; pilots 1"),
        control("clean labels: test accuracy, end", end("test", "clean labels"), lower=0.99,
                why="the task is within reach; pilots 1"),
        control("random labels: training accuracy, end", end("train", "random labels"),
                lower=0.99, why="memorised; pilots 1"),
        control("random labels: most test accuracy", most("test", "random labels"),
                upper=3 / config.order, why="thrice chance; pilots up to 0.076 over all times"),
        control("penalty in the loss: agreement with wrong labels, end", end("wrong", "penalty"),
                upper=0.6, why="unlearning needs no decoupled decay; pilots 0.03 to 0.36"),
        control("penalty in the loss: test accuracy, end", end("test", "penalty"), lower=0.9,
                why="nor does generalising; pilots from 0.986"),
    ]  # fmt: skip


def plot(config: Config, result: Result, figure) -> None:
    figure.set_size_inches(7.4, 4.6)
    panels = figure.subplots(2, len(PHASES), sharey="row", height_ratios=[1.5, 1])
    names = {
        "train": "training labels",
        "test": "test, clean",
        "wrong": "wrong labels, as given",
        "corrected": "wrong labels, put right",
    }
    bins = np.linspace(0, 1, 26)
    for c, (phase, decay) in enumerate(zip(PHASES, config.decays, strict=True)):
        above, below = panels[:, c]
        for colour, (measure, label) in zip(plotting.COLOURS, names.items(), strict=False):
            style = dict(label=label, color=colour, linewidth=3 if measure == "train" else 1.2)
            values = getattr(result, measure)[:, c]
            plotting.band(above, result.step, values, spread="range", **style)
        plotting.threshold(above, plateau(config), label="plateau 1 − ξ (1 − 1/p)")
        above.set(xlabel="step", title=f"λ = {decay:g}: {phase}", ylim=(-0.03, 1.03))
        for other, colour in (("random labels", "#999999"), (phase, plotting.COLOURS[0])):
            units = result.participation[:, CONDITIONS.index(other)].ravel()
            weights = np.full(units.size, 1 / units.size)
            below.hist(units, bins, weights=weights, color=colour, alpha=0.6, label=other)
        below.set(xlabel="inverse participation ratio", ylim=(0, 0.5))
        below.legend(fontsize=6)
    panels[0, 0].set_ylabel("accuracy")
    panels[1, 0].set_ylabel("share of hidden units")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    plotting.label_panels(panels)


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    smoke=dict(num_seeds=1),
    paper=dict(order=97, width=500, decays=(0.0, 5.0, 15.0, 20.0), num_steps=2000),
    controls={
        "decay in the loss": contract.Control(
            # By then the claim breaks none; measured as often, so that the program is the same.
            dict(decoupled=False, num_seeds=1, num_steps=300, measure_every=5),
            breaks={
                "some decay: agreement with wrong labels, end": "below",
                "some decay: test accuracy, end": "below",
                "strong decay: most agreement with wrong labels": "below",
                "strong decay: wrongly labelled pairs answered right, end": "below",
                "strong decay: training accuracy less plateau, end": "below",
                "strong decay: test accuracy, end": "below",
                "too strong: most training accuracy": "below",
            },
            why="Adam divides the decay by its own size, so that the weights shrink at full speed",
        ),
        "no decay": contract.Control(
            dict(decays=(0.0, 0.0, 0.0, 0.0), num_seeds=1),  # as many steps as the claim needs
            breaks={
                "some decay: test accuracy, end": "below",
                "strong decay: agreement with wrong labels, end": "above",
                "strong decay: wrongly labelled pairs answered right, end": "below",
                "strong decay: training accuracy less plateau, end": "above",
                "strong decay: test accuracy, end": "below",
                "too strong: training accuracy, end": "above",
            },
            why="nothing stands against memorising",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
