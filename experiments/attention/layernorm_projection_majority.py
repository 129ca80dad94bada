"""LayerNorm's projection hands a query even attention, and that does not teach the majority faster.

Claim      After LayerNorm every key is orthogonal to (1, ..., 1), so a query along it attends
           evenly, and queries end nearer to it where a block learns which class is most frequent
           than where even attention is wrong. Yet with keys of the same length the block learns as
           fast without the projection, to two fifths; with keys of length 1/√D, as in the paper's
           comparison, it takes a quarter more steps at least (twice on pilots), with and without.
Control    Where only half of the classes count, and even attention is wrong, queries do not turn
           that way, and the projection makes no difference either; nor do they after RMSNorm.
Reference  Brody, Alon, Yahav 2023, arXiv:2305.02582, section 3, who find the majority learned
           faster with the projection; their norm without it (majority_exp.py) divides by D too.
           50 tokens of 20 classes there, 20 of 8 here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.data import attention_tokens
from dynamics.measure import grokking
from dynamics.models import token_counts
from dynamics.training import trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P271",)
PILOT_SEEDS = (101, 102, 103, 104, 105)


@dataclasses.dataclass(frozen=True)
class Config:
    num_tokens: int = 20
    num_classes: int = 8
    margin: int = 4
    width: int = 8
    learning_rate: float = 3e-3
    batch_size: int = 128
    num_train: int = 8192
    num_test: int = 256
    num_steps: int = 900
    measure_every: int = 10
    threshold: float = 0.9
    num_seeds: int = 8
    seed: int = 1

    def __post_init__(self):
        for name in ("num_tokens", "num_classes"):
            if getattr(self, name) % 2:
                message = f"{name}={getattr(self, name)}: give an even number, one task halves it"
                raise ValueError(message)


def norms(config: Config) -> dict[str, token_counts.Norm]:
    return {
        "LayerNorm": token_counts.Norm(),
        "RMSNorm": token_counts.Norm(project=0.0),
        "RMSNorm, length 1/√D": token_counts.Norm(project=0.0, scale=1 / config.width),
        "LayerNorm, length 1/√D": token_counts.Norm(scale=1 / config.width),
    }


TASKS = ("majority", "majority of the marked half")


class Result(NamedTuple):
    """S seeds, K tasks, C norms, T times."""

    step: Array  # (S, K, C, T)
    accuracy: Array  # (S, K, C, T) share of the test tokens answered
    tilt: Array  # (S, K, C, T) |cosine| of what queries look for with (1, ..., 1), mean over them
    along_one: Array  # (S, K, C) largest attention of a query (1, ..., 1) less the even one, start


def run(config: Config) -> Result:
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    grid = token_counts.Norm(
        *(jnp.array(column, float) for column in zip(*norms(config).values(), strict=True))
    )
    times = np.arange(0, config.num_steps + 1, config.measure_every)
    data = jax.jit(jax.vmap(lambda key: draw(key, config)))(keys)  # leaves (S, K, N, ...)

    def train_all(member):
        key, sequences = member
        by_norm = lambda task: jax.vmap(lambda norm: train(key, task, norm, times, config))(grid)
        return jax.vmap(by_norm)(sequences)

    measured = parallel.ensemble(train_all, (keys, data))
    return Result(jnp.broadcast_to(times, measured[0].shape), *measured)


def draw(key: Key, config: Config):
    """Return counts (K, N, C) and answers (K, N) of both tasks, training sequences first."""
    half, tokens = config.num_classes // 2, config.num_tokens // 2
    base_key, half_key = jax.random.split(key)
    majority = lambda key, *sizes: attention_tokens.majority_counts(
        key, config.num_train + config.num_test, *sizes, margin=config.margin
    )
    counts, answer = majority(base_key, config.num_tokens, config.num_classes)
    halves, leading = jax.vmap(lambda key: majority(key, tokens, half))(jax.random.split(half_key))
    both, marked = jnp.concatenate([*halves], axis=1), leading[0]
    return jnp.stack([counts, both]), jnp.stack([answer, marked])


def train(key: Key, data, norm: token_counts.Norm, times, config: Config):
    params = token_counts.init(
        key, num_classes=config.num_classes, width=config.width, hidden=config.width
    )
    counts, answers = (part[: config.num_train] for part in data)
    test_counts, test_answers = (part[config.num_train :] for part in data)
    optimiser = optax.flatten(optax.adam(config.learning_rate))  # quicker to compile

    def loss(params, counts, answers):
        log = jax.nn.log_softmax(token_counts.apply(params, counts, norm))  # (N, C, C)
        right = jnp.sum(log * jax.nn.one_hot(answers, config.num_classes)[:, None], axis=2)
        return -jnp.mean(jnp.sum(counts * right, axis=1)) / config.num_tokens

    def update(state):
        params, memory, count = state
        start = count * config.batch_size % config.num_train
        take = lambda part: jax.lax.dynamic_slice_in_dim(part, start, config.batch_size)
        gradient = jax.grad(loss)(params, take(counts), take(answers))
        updates, memory = optimiser.update(gradient, memory)
        return optax.apply_updates(params, updates), memory, count + 1

    def measure(state):
        params = state[0]
        chosen = token_counts.apply(params, test_counts, norm).argmax(axis=2)  # (N, C)
        right = jnp.sum(test_counts * (chosen == test_answers[:, None]), axis=1)
        pull = norm(params.embedding) @ params.query @ params.key.T  # (C, D) on keys
        tilt = jnp.abs(pull.mean(axis=1)) * config.width**0.5 / jnp.linalg.norm(pull, axis=1)
        return jnp.mean(right) / config.num_tokens, tilt.mean()

    along_one = jax.nn.softmax(norm(params.embedding).sum(axis=1)).max() - 1 / config.num_classes
    start = (params, optimiser.init(params), jnp.zeros((), jnp.int32))
    accuracy, tilt = trajectory.record(update, start, measure, times=times)
    return accuracy, tilt, along_one


def steps_to_learn(config: Config, result: Result) -> np.ndarray:
    """Return the steps to the threshold (S, K, C); the whole run where it is not reached."""
    reached = grokking.first_crossing(result.step[0, 0, 0], result.accuracy, config.threshold)
    return np.minimum(np.asarray(reached), config.num_steps)


def check(config: Config, result: Result) -> list[checks.Check]:
    steps = steps_to_learn(config, result)
    ratio = lambda task, first, second: np.median(steps[:, task, first] / steps[:, task, second])
    turn = (result.tilt[..., -1] - result.tilt[..., 0]).mean(axis=0)  # (K, C)
    same = "no difference: pilots 0.96 to 1.13, standard error 0.03 to 0.07"
    twice = "the scale, not the projection: pilots 1.75 to 2.38, standard error 0.04 to 0.08"
    return [
        checks.below("majority: most steps to learn with keys of length √D / the steps of the run",
                     steps[:, 0, :2].max() / config.num_steps, 0.99, role="precondition",
                     why="else raise num_steps"),
        checks.below("marked half: median steps with keys of length √D / the steps of the run",
                     np.median(steps[:, 1, :2]) / config.num_steps, 0.99, role="precondition",
                     why="else raise num_steps"),
        checks.below("LayerNorm: a query along (1, ..., 1), largest attention less the even one",
                     result.along_one[:, :, 0].max(), 1e-5, why="its logits are zero: exact"),
        checks.between("majority: steps with LayerNorm / RMSNorm", ratio(0, 0, 1), 0.7, 1.4,
                       why=same),
        checks.above("majority: steps with keys of length 1/√D / √D, RMSNorm", ratio(0, 2, 1), 1.25,
                     why=twice),
        checks.above("majority: steps with keys of length 1/√D / √D, LayerNorm", ratio(0, 3, 0),
                     1.25, why=twice),
        checks.above("LayerNorm: gain of |cosine| of queries with (1, ..., 1), majority less half",
                     turn[0, 0] - turn[1, 0], 0.05,
                     why="from the same start: pilots 0.20 to 0.40, standard error 0.06"),
        checks.below("majority, RMSNorm: gain of |cosine| of queries with (1, ..., 1)",
                     turn[0, 1], 0.15, role="control",
                     why="it is no way out there: pilots -0.07 to 0.03, standard error 0.04"),
        checks.below("marked half, LayerNorm: gain of |cosine| of queries with (1, ..., 1)",
                     turn[1, 0], 0.15, role="control",
                     why="even attention is wrong: pilots -0.13 to -0.06, standard error 0.05"),
        checks.above("RMSNorm: a query along (1, ..., 1), largest attention less the even one",
                     result.along_one[:, :, 1].min(), 0.05, role="control",
                     why="without the projection it is a query like any other"),
        checks.between("marked half: steps with LayerNorm / RMSNorm", ratio(1, 0, 1), 0.7, 1.4,
                       role="control", why=same),
    ]  # fmt: skip


def plot(config: Config, result: Result, figure) -> None:
    figure.set_size_inches(7.2, 3.3)
    axes = figure.subplots(1, 3)
    step = result.step[0, 0, 0]
    for c, name in enumerate(norms(config)):
        style = {"color": plotting.COLOURS[c], "linestyle": "--" if c > 1 else "-", "label": name}
        for panel, task in zip(axes, (0, 1), strict=False):
            plotting.band(panel, step, result.accuracy[:, task, c], **style)
        if c < 2:
            plotting.band(axes[2], step, result.tilt[:, 0, c], **style)
    style = {"color": plotting.COLOURS[0], "linestyle": ":", "label": "LayerNorm, marked half"}
    plotting.band(axes[2], step, result.tilt[:, 1, 0], **style)
    axes[2].legend([axes[2].lines[-1]], ["LayerNorm, marked half"], loc="upper left")
    for panel, task in zip(axes, TASKS, strict=False):
        plotting.threshold(panel, config.threshold, label="learned")
        panel.set(xlabel="step", ylabel=f"accuracy, {task}", ylim=(0, 1.03))
    axes[2].set(xlabel="step", ylabel="|cosine| of queries with (1, …, 1)", ylim=(0, 1))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    plotting.label_panels(axes)


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    smoke=dict(num_seeds=4, num_steps=700, measure_every=20),
    paper=dict(num_tokens=50, num_classes=20, margin=6, learning_rate=1e-3, num_steps=20_000),
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
