"""Sparse addition modulo 2 first makes a small attention model learn modulo 3 sooner.

Claim      A model with one softmax attention, trained on the sum modulo 2 of three tokens out of
           eight, then learns their sum modulo 3 in less than half the steps that it takes from
           scratch, because its attention has found the three tokens.
Control    After as much training on permuted labels it is no sooner and its attention is uniform;
           after the sum modulo 2 of three other tokens it is later, so that what is carried over
           is where to look.
Reference  Odonnat, Bouaziz, Cabannes 2025, "Easing Optimization Paths: a Circuit Perspective",
           arXiv:2501.02362. The task is smaller here and the model wider: with their sizes (five
           of twelve tokens, width 2) no run of these lengths solves either task. The steps modulo
           2 are not counted; with them the curriculum is no shorter.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.data import algorithmic
from dynamics.measure import grokking, statistics, survival
from dynamics.models import softmax_pooling
from dynamics.training import step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P247",)
PILOT_SEEDS = (101, 102, 103)
ARMS = ("from scratch", "modulo 2 first", "permuted labels first", "other tokens first")


@dataclasses.dataclass(frozen=True)
class Config:
    length: int = 8
    num_terms: int = 3  # the first tokens are added; "other tokens" are the last
    width: int = 16
    mlp_width: int = 32
    num_samples: int = 2048
    num_test: int = 512
    batch_size: int = 64
    learning_rate: float = 0.01
    num_pretraining_steps: int = 2000
    num_steps: int = 1200
    measure_every: int = 10
    solved: float = 0.95  # test accuracy
    num_seeds: int = 16
    seed: int = 1

    def __post_init__(self):
        if not 1 <= self.num_terms <= self.length / 2:
            message = f"num_terms={self.num_terms}: give 1 to half of length={self.length}"
            raise ValueError(message)


class Result(NamedTuple):
    """S seeds, A arms (as in ARMS), T times since the training modulo 3 began."""

    step: Array  # (T,)
    test_accuracy: Array  # (S, A, T) modulo 3
    attention: Array  # (S, A, T) on the tokens that are added modulo 3, together
    pretrained_accuracy: Array  # (S, A) modulo 2, on what the arm was trained on; 0 from scratch


def run(config: Config) -> Result:
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    measured = parallel.ensemble(lambda key: run_one(key, config), keys, batching="vmap")
    accuracy, attention, pretrained = measured
    return Result(times(config), accuracy, attention, pretrained)


def times(config: Config) -> np.ndarray:
    return np.arange(0, config.num_steps + 1, config.measure_every)


def run_one(key: Key, config: Config) -> tuple[Array, Array, Array]:
    """Train all arms from one start, modulo 3 with the same samples and batches."""
    init_key, easy_key, hard_key, label_key, first_key, then_key = jax.random.split(key, 6)
    model = softmax_pooling.SoftmaxPooling(3, config.length, config.width, config.mlp_width)
    optimiser = optax.adam(config.learning_rate)
    relevant = tuple(range(config.num_terms))
    others = tuple(range(config.length - config.num_terms, config.length))

    def draw(key, modulus, positions):
        sizes = config.num_samples, config.num_test
        return [
            algorithmic.sparse_modular_addition(part, modulus, positions, size, config.length)
            for part, size in zip(jax.random.split(key), sizes, strict=True)
        ]

    def loss(params, batch):
        logits = model.apply(params, batch.tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    def accuracy(params, test):
        return jnp.mean(model.apply(params, test.tokens).argmax(axis=-1) == test.labels)

    def train(key, params, data, measure, times):
        update = step.minibatch_step(
            loss, optimiser, data, config.batch_size, with_replacement=True
        )
        state = step.initial_minibatch_state(params, optimiser, key)
        return trajectory.record_with_state(update, state, measure, times=times)

    hard, test = draw(hard_key, 3, relevant)
    start = model.init(init_key, hard.tokens[:1])

    # The three ways of training modulo 2 first, on the same tokens.
    easy, easy_test = draw(easy_key, 2, relevant)
    other, other_test = draw(easy_key, 2, others)
    permuted = easy._replace(labels=jax.random.permutation(label_key, easy.labels))
    stack = lambda *trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    def pretrain(data, test):
        end = [config.num_pretraining_steps]
        measure = lambda state: accuracy(state.params, test)
        measured, state = train(first_key, start, data, measure, end)
        return measured[0], state.params

    solved, pretrained = jax.vmap(pretrain)(
        stack(easy, permuted, other), stack(easy_test, easy_test, other_test)
    )

    def measure(state):
        seen = model.apply(state.params, test.tokens, method=model.attention)
        return accuracy(state.params, test), seen[:, : config.num_terms].sum(axis=1).mean()

    starts = jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), start, pretrained)
    measured = jax.vmap(lambda params: train(then_key, params, hard, measure, times(config))[0])
    return *measured(starts), jnp.concatenate([jnp.zeros(1), solved])


def steps_to_solve(config: Config, result: Result) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps until it is solved, cut at the end of the run, and if it was (S, A)."""
    crossing = np.asarray(grokking.first_crossing(result.step, result.test_accuracy, config.solved))
    return np.minimum(crossing, result.step[-1]), np.isfinite(crossing)


def check(config: Config, result: Result) -> list[checks.Check]:
    waited, seen = steps_to_solve(config, result)
    scratch, first, permuted, other = range(len(ARMS))

    def sooner(arm, than=scratch):  # standard normal if one takes as long as the other
        compared = waited[:, arm], seen[:, arm], waited[:, than], seen[:, than]
        return survival.log_rank_test(*compared).statistic

    median = [survival.kaplan_meier_median(waited[:, a], seen[:, a]).estimate for a in (0, 1)]
    speed = np.minimum(median, config.num_steps)  # where half the seeds were cut off: at least
    at_start = result.attention[:, :, 0]  # (S, A)
    attention = statistics.mean_interval(at_start)
    uniform = config.num_terms / config.length
    learnt = np.mean(result.pretrained_accuracy >= config.solved, axis=0)
    return [
        checks.stays_finite("steps with finite attention", result.step, result.attention,
                            mend="lower learning_rate"),
        checks.above("share of seeds that solve modulo 2 first", learnt[first], 0.6,
                     role="precondition", why="else nothing is carried over: raise "
                     "num_pretraining_steps; pilots from 0.88"),
        checks.above("share of seeds that solve modulo 2 of other tokens", learnt[other], 0.6,
                     role="precondition", why="as above, for the control"),
        checks.above("log-rank statistic, modulo 2 first against from scratch", sooner(first),
                     1.64, why="one-sided at the 5 % level; pilots from 3.6"),
        checks.above("log-rank statistic, modulo 2 first against permuted labels first",
                     sooner(first, permuted), 1.64, why="the same, after as much training"),
        checks.above("median steps from scratch over those after modulo 2", speed[0] / speed[1],
                     2, why="less than half the steps; pilots 3.1 to 6.2"),
        checks.above("share of seeds that are sooner after modulo 2",
                     np.mean(waited[:, first] < waited[:, scratch]), 0.75,
                     why="sign test: one in a hundred by chance; pilots from 0.88"),
        checks.above("attention on the right tokens after modulo 2, mean",
                     attention.estimate[first], 0.45,
                     interval=(attention.lower[first], attention.upper[first]),
                     why=f"found, above the uniform {uniform:g}; pilots from 0.63"),
        checks.below("log-rank statistic, permuted labels first against from scratch",
                     sooner(permuted), 3, role="control",
                     why="nothing to carry over: one in a thousand; pilots -1.9 to 1.2"),
        checks.close("attention on the right tokens after permuted labels, mean",
                     attention.estimate[permuted], uniform, atol=0.075, role="control",
                     why="nothing to look for: uniform; pilots within 0.01"),
        checks.below("log-rank statistic, other tokens first against from scratch",
                     sooner(other), 0, role="control",
                     why="it looks elsewhere: later, if anything; pilots -5"),
        checks.below("attention on the right tokens after other tokens, mean",
                     attention.estimate[other], 0.3, role="control",
                     why=f"elsewhere, below the uniform {uniform:g}; pilots 0.18"),
    ]  # fmt: skip


def plot(config: Config, result: Result, figure) -> None:
    accuracy, attention, unsolved = panels = figure.subplots(1, 3)
    waited, seen = steps_to_solve(config, result)
    for a, name in enumerate(ARMS):
        style = {"color": plotting.COLOURS[a], "label": name}
        plotting.band(accuracy, result.step, result.test_accuracy[:, a], **style)
        plotting.band(attention, result.step, result.attention[:, a], **style)
        curve = survival.kaplan_meier(waited[:, a], seen[:, a]) if seen[:, a].any() else None
        steps = [] if curve is None else curve.time
        left = [] if curve is None else curve.survival
        steps, left = np.array([0, *steps, config.num_steps]), np.array([1, *left])
        unsolved.step(steps, np.append(left, left[-1]), where="post", **style)
    uniform = config.num_terms / config.length
    for axes, level, name in ((accuracy, 1 / 3, "guessing"), (attention, uniform, "uniform")):
        plotting.threshold(axes, level)
        place = {"xy": (config.num_steps, level), "xytext": (-2, 2), "ha": "right", "va": "bottom"}
        axes.annotate(name, textcoords="offset points", fontsize=6.5, **place)
    accuracy.set(ylim=(0.25, 1.02), ylabel="test accuracy modulo 3")
    attention.set(ylim=(0, 1.02), ylabel="attention on the added tokens")
    unsolved.set(ylim=(0, 1.02), ylabel="share of seeds not yet solved")
    for axes in panels:
        axes.set(xlim=(0, config.num_steps), xlabel="step since modulo 3 began")
    handles, labels = accuracy.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(ARMS))
    plotting.label_panels(panels)


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    smoke=dict(
        num_pretraining_steps=1500, num_steps=700, num_test=256, measure_every=20, num_seeds=12
    ),
    paper=dict(
        length=12, num_terms=5, width=2, batch_size=32, learning_rate=0.003,
        num_pretraining_steps=64_000, num_steps=64_000, measure_every=64, num_seeds=100,
        num_test=2048,
    ),
)  # fmt: skip

if __name__ == "__main__":
    runner.main(EXPERIMENT)
