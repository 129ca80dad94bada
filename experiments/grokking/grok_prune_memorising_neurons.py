"""Pruning the units of many frequencies forgets the wrong labels and keeps the rule.

Claim      In a network that has memorised wrong labels and generalises, hidden units pruned in
           increasing order of their inverse participation ratio over Z_p take the wrong labels with
           them and leave clean test accuracy; most wrongly labelled pairs are then answered right.
           In decreasing order the rule goes and the wrong labels stay; random order lies between.
Control    Ratios of a renamed group (elements shuffled before the transform) tell nothing. With
           all labels random no unit is periodic and the order does not matter; with clean labels
           all are, and it hardly does; without weight decay there is no rule to keep.
Reference  Doshi et al. 2023, arXiv:2310.13061. Measured beside it: pruning the shortest units first
           does much of the same, and forgets fewer wrong labels for as many units.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.data import algorithmic
from dynamics.measure import grokking
from dynamics.models import pair_networks
from dynamics.training import step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P90",)
PILOT_SEEDS = (101, 102, 103)
CONDITIONS = ("wrong labels", "clean labels", "random labels", "no decay")
ORDERS = ("lowest ratio first", "highest ratio first", "random order", "shortest first")


@dataclasses.dataclass(frozen=True)
class Config:
    order: int = 31  # p, a prime
    width: int = 200
    decay: float = 5.0  # λ of AdamW: both the rule and the wrong labels are learnt
    corruption: float = 0.2  # ξ
    train_fraction: float = 0.7
    learning_rate: float = 0.01
    momentum_decay: float = 0.9
    variance_decay: float = 0.98
    num_steps: int = 300
    num_fractions: int = 21  # from nothing to all; odd, so that one half is among them
    renamed: bool = False  # for the control: shuffle the elements before the ratio is taken
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        if self.num_fractions < 3 or self.num_fractions % 2 == 0:
            message = f"num_fractions={self.num_fractions}: give an odd number from 3 on"
            raise ValueError(message)
        if not 0 < self.corruption < 1:
            message = f"corruption={self.corruption}: give a share between 0 and 1"
            raise ValueError(message)

    def settings(self) -> tuple[tuple[float, float], ...]:
        """Return ξ and λ of each of CONDITIONS."""
        decay = self.decay
        return (self.corruption, decay), (0.0, decay), (1.0, decay), (self.corruption, 0.0)


class Result(NamedTuple):
    """S seeds, C conditions, O orders, F fractions, N hidden units."""

    fraction: Array  # (F,) of the units that are pruned
    fitted: Array  # (S, C) agreement with all training labels, nothing pruned
    wrong: Array  # (S, C, O, F) agreement with the wrong training labels; 0 without any
    test: Array  # (S, C, O, F) accuracy on clean test pairs
    corrected: Array  # (S, C, O, F) share of the wrongly labelled pairs that are answered right
    participation: Array  # (S, C, N)


def run(config: Config) -> Result:
    """Train every seed in every condition, then prune it in every order."""
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    settings = jnp.asarray(config.settings(), float)
    each = jnp.repeat(settings, len(keys), axis=0)  # condition by seed
    size = config.order, config.width, config.train_fraction, config.num_fractions
    adam = config.learning_rate, config.momentum_decay, config.variance_decay
    shared = jnp.array([config.num_steps]), jnp.array(config.renamed)
    members = (jnp.tile(keys, len(settings)), each)
    found = parallel.ensemble(make_training(*size, *adam), members, shared=shared)
    shape = (len(CONDITIONS), len(keys))
    found = (np.asarray(a).reshape(*shape, *a.shape[1:]).swapaxes(0, 1) for a in found)
    return Result(np.linspace(0, 1, config.num_fractions), *found)


@functools.lru_cache(maxsize=2)  # the control calls what the claim compiled
def make_training(
    order: int, width: int, train_fraction: float, num_fractions: int, *adam: float
) -> Callable[..., tuple[Array, ...]]:
    """Return `train_and_prune((key, setting), (times, renamed))`, of one member."""
    std = 0.5 / (2 * width) ** (1 / 3)
    model = pair_networks.PairMLP(order, width, first_std=std, readout_std=std)
    num_pruned = (np.linspace(0, 1, num_fractions) * width).round().astype(int)

    def train_and_prune(member, shared) -> tuple[Array, ...]:
        (key, (fraction, decay)), (times, renamed) = member, shared
        split_key, corruption_key, init_key, order_key, name_key = jax.random.split(key, 5)
        table = algorithmic.split_table(split_key, algorithmic.cyclic_group(order), train_fraction)
        labels, _ = algorithmic.corrupt_labels(
            corruption_key, table.train_products, order, fraction
        )
        params = model.init(init_key, table.train_pairs)
        optimiser = optax.adamw(*adam, weight_decay=decay)
        fitted, weights = train(model, params, optimiser, table, labels, times)
        names = jnp.where(renamed, jax.random.permutation(name_key, order), jnp.arange(order))
        ratio, orders = pruning_orders(order_key, weights, names)
        return fitted, *prune(model, weights, orders, num_pruned, table, labels), ratio

    return train_and_prune


def train(model, params, optimiser, table: algorithmic.Table, labels: Array, times: Array):
    """Return the agreement with the training labels at the end, and the weights."""
    targets = jax.nn.one_hot(labels, model.order)

    def loss(params):
        return jnp.mean((model.apply(params, table.train_pairs) - targets) ** 2)

    def agreement(state: step.TrainState):
        answers = jnp.argmax(model.apply(state.params, table.train_pairs), axis=1)
        return jnp.mean(answers == labels)

    start, update = step.initial_state(params, optimiser), step.optax_step(loss, optimiser)
    fitted, end = trajectory.record_with_state(update, start, agreement, times=times)
    return fitted[0], end.params["params"]


def prune(model, weights, orders: Array, num_pruned, table: algorithmic.Table, labels: Array):
    """Return `wrong`, `test` and `corrected` (3, O, F) of the network pruned in these orders."""
    is_wrong = labels != table.train_products

    def accuracies(readout: Array) -> Array:
        params = {"params": {**weights, "readout": readout}}
        answer = lambda pairs: jnp.argmax(model.apply(params, pairs), axis=1)
        answers = answer(table.train_pairs)
        on_wrong = lambda hit: jnp.sum(hit & is_wrong) / jnp.maximum(is_wrong.sum(), 1)
        test = jnp.mean(answer(table.test_pairs) == table.test_products)
        right = on_wrong(answers == table.train_products)
        return jnp.stack([on_wrong(answers == labels), test, right])

    def along(order: Array) -> Array:
        return jax.lax.map(
            accuracies, grokking.prune_neurons(weights["readout"], order, num_pruned)
        )

    return jnp.moveaxis(jax.lax.map(along, orders), -1, 0)


def pruning_orders(key: Key, weights: dict[str, Array], names: Array) -> tuple[Array, Array]:
    """Return the participation of the units (N,) and ORDERS to prune them in (O, N)."""
    left, right, readout = (weights[name] for name in ("left", "right", "readout"))
    ratio = grokking.neuron_participation(left[names], right[names], readout[:, names])
    length = jnp.sum(left**2 + right**2, axis=0) + jnp.sum(readout**2, axis=1)
    shuffled = jax.random.permutation(key, len(length))
    orders = [jnp.argsort(ratio), jnp.argsort(-ratio), shuffled, jnp.argsort(length)]
    return ratio, jnp.stack(orders)


def check(config: Config, result: Result) -> list[checks.Check]:
    half = config.num_fractions // 2
    curve = lambda measure, order, condition="wrong labels": getattr(result, measure)[
        :, CONDITIONS.index(condition), ORDERS.index(order)
    ]  # (S, F)
    at_half = lambda *which: curve(*which)[:, half]
    lost = lambda *which: curve(*which)[:, 0] - at_half(*which)
    low, high, random, short = ORDERS
    # Area between the curves of test accuracy and wrong labels, over the fraction pruned.
    area = lambda order: (curve("test", order) - curve("wrong", order)).mean(axis=-1)  # (S,)
    memorise = np.asarray(grokking.memorising_neurons(result.participation)).mean(axis=-1)
    every, control = checks.every_seed, functools.partial(checks.every_seed, role="control")
    return [
        every("training labels fitted", result.fitted[:, [0, 2, 3]], lower=0.98,
              role="precondition", why="else nothing was memorised; raise num_steps"),
        every("test accuracy, nothing pruned", curve("test", low)[:, 0], lower=0.9,
              role="precondition", why="else there is no rule to keep; raise num_steps"),
        every("share of units that memorise", memorise[:, 0], lower=0.25, upper=0.75,
              why="there are both kinds; pilots 0.48 to 0.56"),
        every("lowest first: wrong labels lost, half pruned", lost("wrong", low), lower=0.4,
              why="four in ten; pilots 0.54 to 0.72, renamed 0.03 to 0.16"),
        checks.above("lowest first: test accuracy gained, half pruned, mean over seeds",
                     -lost("test", low).mean(), -0.05,
                     why="nothing lost but noise; pilots -0.01 to 0.003, renamed -0.39 to -0.26"),
        every("lowest first: wrongly labelled pairs answered right, half pruned", lower=0.3,
              values=at_half("corrected", low),
              why="the rule comes to light; pilots from 0.50, renamed up to 0.05"),
        checks.above("lowest first: wrongly labelled pairs answered right, half pruned, mean",
                     at_half("corrected", low).mean(), 0.5, why="most of them"),
        every("highest first: test accuracy lost, half pruned", lost("test", high), lower=0.6,
              why="the rule goes; pilots from 0.83, renamed 0.25 to 0.50"),
        every("highest first: wrong labels lost, half pruned", lost("wrong", high), upper=0.25,
              why="they stay; pilots up to 0.10"),
        every("area between test and wrong labels, lowest less random", area(low) - area(random),
              lower=0.2, why="random lies below; pilots from 0.42, renamed up to 0.10"),
        every("area between test and wrong labels, random less highest",
              area(random) - area(high), lower=0.2,
              why="and above; pilots from 0.32, renamed up to 0.09"),
        control("random labels: share of units that memorise", memorise[:, 2], lower=0.95,
                why="there is no rule; pilots 1"),
        control("clean labels: share of units that memorise", memorise[:, 1], upper=0.15,
                why="there is nothing else; pilots up to 0.04"),
        control("random labels: wrong labels lost, lowest less highest first", lower=-0.15,
                upper=0.15, values=lost("wrong", low, "random labels")
                - lost("wrong", high, "random labels"),
                why="one kind of units: order means nothing; pilots within 0.06"),
        control("clean labels: test accuracy lost, highest first, half pruned", upper=0.2,
                values=lost("test", high, "clean labels"),
                why="half of them carry the rule as well; pilots up to 0.05"),
        control("no decay: test accuracy, nothing pruned", curve("test", low, "no decay")[:, 0],
                upper=0.5, why="no rule before pruning; 40 networks of seed 3002 up to 0.21"),
        control("no decay: test accuracy, lowest first, half pruned", upper=0.5,
                values=at_half("test", low, "no decay"),
                why="there was no rule to keep; pilots 0.13 to 0.30"),
        checks.above("wrong labels lost, lowest ratio less shortest first, mean over seeds",
                     (lost("wrong", low) - lost("wrong", short)).mean(), 0.03, role="control",
                     why="the ratio tells more than the length; pilots 0.16 to 0.22"),
    ]  # fmt: skip


def plot(config: Config, result: Result, figure) -> None:
    figure.set_size_inches(7.4, 4.6)
    panels = figure.subplots(2, 3)
    histogram, *curves = panels.ravel()
    bins = np.linspace(0, 1, 41)
    for colour, condition in zip(("#000000", "#CC79A7", "#E69F00"), CONDITIONS, strict=False):
        units = result.participation[:, CONDITIONS.index(condition)].ravel()
        weights = np.full(units.size, 1 / units.size)
        style = dict(color=colour, histtype="stepfilled", alpha=0.5, label=condition)
        histogram.hist(units, bins, weights=weights, **style)
    histogram.axvline(0.5, ymax=0.55, color="black", linestyle=":", linewidth=1)
    histogram.text(0.5, 0.36, "memorise | generalise", ha="center", fontsize=7)
    histogram.set(xlabel="inverse participation ratio", ylabel="share of hidden units")
    histogram.set_ylim(0, 0.62)
    histogram.legend(loc="upper right")
    names = {"wrong": "wrong labels, as given", "test": "test, clean",
             "corrected": "wrong labels, put right"}  # fmt: skip
    for axes, order in zip(curves, ORDERS, strict=False):
        o = ORDERS.index(order)
        for colour, (measure, label) in zip(plotting.COLOURS[2::-1], names.items(), strict=True):
            values = getattr(result, measure)[:, 0, o]
            plotting.band(axes, result.fraction, values, color=colour, label=label, spread="range")
        axes.set_title(order)
    last = curves[-1]
    styles = (("#000000", "-"), ("#CC79A7", "--"), ("#56B4E9", ":"))
    for (colour, line), order in zip(styles, ORDERS, strict=False):
        values = result.wrong[:, CONDITIONS.index("random labels"), ORDERS.index(order)]
        style = dict(label=order, color=colour, linestyle=line, spread="range")
        plotting.band(last, result.fraction, values, **style)
    last.set_title("all labels random")
    last.legend(loc="lower left")
    for axes in curves:
        axes.set(xlabel="fraction of units pruned", ylim=(-0.03, 1.03))
        axes.set_ylabel("agreement" if axes is last else "accuracy")
    figure.legend(*curves[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    plotting.label_panels(panels)


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    smoke=dict(num_seeds=3, num_steps=200, num_fractions=11),
    paper=dict(order=97, width=500, num_steps=2000),
    controls={
        "renamed elements": contract.Control(
            dict(renamed=True),
            breaks={
                "share of units that memorise": "above",
                "lowest first: wrong labels lost, half pruned": "below",
                "lowest first: test accuracy gained, half pruned, mean over seeds": "below",
                "lowest first: wrongly labelled pairs answered right, half pruned": "below",
                "highest first: test accuracy lost, half pruned": "below",
                "area between test and wrong labels, lowest less random": "below",
                "area between test and wrong labels, random less highest": "below",
            },
            why="the same networks, but a frequency of shuffled elements is none of addition",
            needs=("training labels fitted", "test accuracy, nothing pruned"),
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
