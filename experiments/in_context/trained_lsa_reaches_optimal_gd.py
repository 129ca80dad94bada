"""A trained layer of linear attention is the one best step of gradient descent.

Claim      One layer of linear self-attention, trained from a small random start by Adam on linear
           regression in context, ends as a step of gradient descent from zero: the learning rate is
           the closed-form best one, η* = 1/(s² c) with c = 1 + (kurtosis + d - 2)/N, and the loss
           is that of η*, (d s²/2)(1 - 1/c), up to a percent. It is that step on inputs stretched by
           r too, where the loss is (d s² r²/2)(1 - 2r²/c + r⁴/c): soon worse than no answer.
Control    With labels turned against their inputs in every context nothing is learned.
Reference  von Oswald et al. 2023, arXiv:2212.07677, section 3; the optimum for Gaussian inputs is
           that of Ahn et al. 2023 and Zhang et al. 2023, for other kurtoses derived here. Losses
           are averaged over queries exactly, here; the paper draws them.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.data import in_context, regression_grams
from dynamics.measure import induced_weights
from dynamics.models import linear_attention
from dynamics.theory import in_context_descent
from dynamics.training import clipped_adam, step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P36",)
PILOT_SEEDS = (101, 102, 103)
VARIANCE, KURTOSIS = 1 / 12, 9 / 5  # of a uniform entry


@dataclasses.dataclass(frozen=True)
class Config:
    dim: int = 10
    num_context: int = 10
    label_shift: int = 0  # places by which labels are turned, for the control
    input_scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    init_std: float = 0.04  # of all matrices: 3 (0.002 / 11)^1/2, as in the authors' code
    learning_rate: float = 3e-3  # falls to zero over the second half
    clip: float = 0.1  # of the gradient's norm
    num_steps: int = 1500
    num_times: int = 31
    batch_size: int = 256
    num_train: int = 20_000  # tasks that batches are drawn from: 100 for each free number
    num_test: int = 20_000
    num_prompts: int = 100  # from which an effective learning rate is read
    num_seeds: int = 5
    seed: int = 1


class Result(NamedTuple):
    """S seeds, T times, R input scales, D = dim + 1."""

    step: Array  # (T,)
    loss: Array  # (S, T) half mean squared error of a query on test tasks
    descent_loss: Array  # (S,) of the best step of descent on the same tasks
    zero_loss: Array  # (S,) of the answer zero
    difference: Array  # (S,) RMS of answers less those of the best step, over the RMS of those
    scaled_loss: Array  # (S, R) on inputs stretched by r
    learning_rate: Array  # (S,) of the step of descent nearest to the layer's answers
    explained: Array  # (S,) share of the induced weights that this step is
    cosine: Array  # (S,) mean over prompts, induced weights and minus the gradient
    written: Array  # (S, D) last row of P V: what goes into the label slot
    looked_at: Array  # (S, D, D) K^T Q


def best(config: Config) -> in_context_descent.OneStep:
    return in_context_descent.optimal_one_step(
        config.dim, config.num_context, variance=VARIANCE, kurtosis=KURTOSIS
    )


def run(config: Config) -> Result:
    times = np.unique(np.linspace(0, config.num_steps, config.num_times).astype(int))
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    return Result(times, *parallel.ensemble(lambda key: train(key, times, config), keys))


def answers(weights: linear_attention.LinearAttentionWeights, gram: Array) -> Array:
    """Return the weights (B, d) with which the layer answers queries, minus its label slot."""
    return -linear_attention.read_out_row(linear_attention.tie(weights, 1), gram)[..., :-1]


def loss(weights, tasks: regression_grams.RegressionGrams) -> Array:
    return jnp.mean(regression_grams.query_loss(answers(weights, tasks.gram), tasks.weights))


def train(key: Key, times: np.ndarray, config: Config) -> tuple[Array, ...]:
    """Return what Result holds of one layer."""
    train_key, test_key, init_key, batch_key, prompt_key, query_key = jax.random.split(key, 6)
    draw = lambda key, num, shift: regression_grams.uniform_tasks(
        key, num, config.num_context, config.dim, shift=shift
    )
    data = draw(train_key, config.num_train, config.label_shift)
    test = draw(test_key, config.num_test, config.label_shift)
    right = draw(test_key, config.num_test, 0)  # the same tasks, as descent should see them
    start = linear_attention.random_weights(init_key, config.dim + 1, config.init_std)
    optimiser = clipped_adam.clipped_adam(config.learning_rate, config.num_steps, clip=config.clip)
    update = step.minibatch_step(loss, optimiser, data, config.batch_size, with_replacement=True)
    losses, state = trajectory.record_with_state(
        update, step.initial_minibatch_state(start, optimiser, batch_key),
        lambda state: loss(state.params, test), times=times,
    )  # fmt: skip
    weights = state.params
    rate = best(config).learning_rate / config.num_context
    descent = rate * right.gram[:, :-1, -1]
    mean_loss = lambda rows: jnp.mean(regression_grams.query_loss(rows, test.weights))
    off = answers(weights, test.gram) - descent
    scales = jnp.array(config.input_scales)
    # All entries of G and the variance of a query grow as r².
    stretched = jax.vmap(lambda r: r**2 * mean_loss(answers(weights, r**2 * test.gram)))(scales)
    prompts = in_context.linear_regression(
        prompt_key, config.num_prompts, config.num_context, config.dim, inputs="uniform"
    )
    read = induced_weights.effective_learning_rate(attend, weights, prompts.tokens(), key=query_key)
    return (
        losses, mean_loss(descent), mean_loss(jnp.zeros_like(descent)),
        jnp.sqrt(jnp.mean(off**2) / jnp.mean(descent**2)), stretched,
        read.learning_rate, read.explained, jnp.mean(read.cosine),
        (weights.projection @ weights.value)[-1], weights.key.T @ weights.query,
    )  # fmt: skip


def attend(weights, tokens: Array) -> Array:
    """Return the answers (B,) of the layer to prompts (B, N + 1, D), token by token."""
    after = linear_attention.linear_self_attention(weights, tokens, num_context=tokens.shape[1] - 1)
    return -after[:, -1, -1]


def product(config: Config, result: Result) -> np.ndarray:
    """Return -N (P V)_yy K^T Q (S, D, D): η on the diagonal of inputs for a step of descent."""
    return -config.num_context * result.written[:, -1, None, None] * result.looked_at


def check(config: Config, result: Result) -> list[checks.Check]:
    theory, scales = best(config), np.array(config.input_scales)
    closed = in_context_descent.one_step_loss(
        theory.learning_rate, config.dim, config.num_context,
        variance=VARIANCE, kurtosis=KURTOSIS, input_scale=scales,
    )  # fmt: skip
    matrix = product(config, result)[:, :-1, :-1] / theory.learning_rate  # (S, d, d), goal I
    eye = np.eye(config.dim)
    return [
        checks.stays_finite("last step with a finite loss", result.step, result.loss,
                            mend="lower learning_rate"),
        checks.every_seed("effective learning rate / η*", result.learning_rate
                          / theory.learning_rate, lower=0.97, upper=1.03,
                          why="pilots 0.994 to 1.004: the noise of Adam's last steps"),
        checks.every_seed("loss / that of the best step on the same tasks",
                          result.loss[:, -1] / result.descent_loss, lower=0.98, upper=1.01,
                          why="within a percent, and hardly below: pilots 1.001 to 1.002"),
        checks.every_seed("loss of the best step on the test tasks / closed form",
                          result.descent_loss / theory.loss, lower=1 - 5 * 0.6 / np.sqrt(
                              config.num_test), upper=1 + 5 * 0.6 / np.sqrt(config.num_test),
                          why="5 standard errors: a task's loss spreads by 0.6 of its mean"),
        checks.every_seed("RMS distance from the answers of the best step, relative",
                          result.difference, upper=0.08, why="pilots 0.029 to 0.036"),
        checks.every_seed("share of the induced weights that a step of descent is",
                          result.explained, lower=0.99, why="pilots 0.999"),
        checks.every_seed("mean cosine of induced weights and gradient", result.cosine,
                          lower=0.99, why="pilots 0.9994 to 0.9996"),
        checks.every_seed("largest error of -N (P V)_yy (K^T Q)_xx / η* against I",
                          np.abs(matrix - eye).max(axis=(1, 2)), upper=0.1,
                          why="pilots 0.021 to 0.030"),
        checks.every_seed("largest relative error of the loss on stretched inputs",
                          np.abs(result.scaled_loss / closed - 1).max(axis=1), upper=0.08,
                          why="pilots 0.004 to 0.016, most of it the sample of test tasks"),
    ]  # fmt: skip


def plot(config: Config, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    theory = best(config)
    plotting.band(left, result.step, result.loss, label="trained layer", spread="range")
    plotting.threshold(left, theory.loss, label="best step, closed form")
    plotting.threshold(left, config.dim * VARIANCE / 2, label="answer zero", linestyle="-.")
    left.set(xlabel="training step", ylabel="test loss", ylim=(0.9 * theory.loss, None))
    left.legend(loc="upper right", bbox_to_anchor=(1.0, 0.9))
    image = middle.imshow(product(config, result)[0], cmap="RdBu_r", vmin=-theory.learning_rate,
                          vmax=theory.learning_rate)  # fmt: skip
    middle.set(xlabel="entry of the query token", ylabel="entry of a context token",
               xticks=range(0, config.dim + 1, 2), yticks=range(0, config.dim + 1, 2))  # fmt: skip
    middle.grid(visible=False)
    middle.set_title("-N (P V)ᵧᵧ KᵀQ, first seed", fontsize=7.5, loc="right")
    figure.colorbar(image, ax=middle, label=f"η (best: {theory.learning_rate:.2f})", shrink=0.8)
    scales = np.linspace(min(config.input_scales), max(config.input_scales), 100)
    closed = in_context_descent.one_step_loss(
        theory.learning_rate, config.dim, config.num_context,
        variance=VARIANCE, kurtosis=KURTOSIS, input_scale=scales,
    )  # fmt: skip
    plotting.theory(right, scales, closed, label="step η*, closed form")
    right.plot(scales, config.dim * VARIANCE * scales**2 / 2, color="black", linestyle="-.",
               linewidth=1, label="answer zero")  # fmt: skip
    plotting.points(right, config.input_scales, result.scaled_loss, label="trained layer")
    right.set(yscale="log", xlabel="inputs stretched by r", ylabel="test loss")
    right.legend(loc="upper left")
    plotting.label_panels(panels)


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    smoke=dict(num_steps=1000, num_train=10_000, num_test=5000),
    paper=dict(num_steps=5000, batch_size=2048, num_train=500_000),
    controls={
        "labels turned against inputs": contract.Control(
            dict(label_shift=1),
            breaks={
                "effective learning rate / η*": "below",
                "loss / that of the best step on the same tasks": "above",
                "share of the induced weights that a step of descent is": "below",
            },
            why="the context then says nothing of the task",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
