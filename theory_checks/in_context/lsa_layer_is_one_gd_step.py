"""One linear self-attention layer is one step of gradient descent.

Claim      With explicit weights a linear self-attention layer changes the label slot of every
           token exactly as one gradient-descent step on the in-context squared loss changes the
           residual, and L tied copies do what L steps do.
Control    Softmax over the keys is no such step, of any length; with the sign of the value matrix
           flipped the loss rises; a query that is also a key errs by exactly 2 (η/N) (w0·x) |x|².
Reference  von Oswald et al. 2023, arXiv:2212.07677, proposition 1; the mismatch is derived here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.data import in_context
from dynamics.measure import weight_constructions
from dynamics.models import linear_attention
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P36",)
PILOT_SEEDS = (101, 102)


@dataclasses.dataclass(frozen=True)
class Config:
    dim: int = 10
    num_context: int = 10
    learning_rate: float = 1.3  # below 2 / largest eigenvalue in almost every task
    num_layers: int = 5
    start_std: float = 0.3  # of the weights before the first step
    value_sign: float = 1.0  # -1 ascends
    num_tasks: int = 256
    num_seeds: int = 5
    seed: int = 1


class Prediction(NamedTuple):
    """S seeds, L layers, B tasks, N context tokens; gradient descent written out."""

    answer: Array  # (S, L, B) prediction for the query after each step
    residual: Array  # (S, L, B, N) y - w·x of the context after each step
    mismatch: Array  # (S, B) what a query among the keys adds to the answer of one layer
    start_answer: Array  # (S, B) w0·x before the first step


class Result(NamedTuple):
    """The same from the label slots of attention."""

    answer: Array  # (S, L, B)
    residual: Array  # (S, L, B, N)
    mismatch: Array  # (S, B)
    softmax_answer: Array  # (S, B) one layer with softmax over the keys
    start_loss: Array  # (S, B) in-context half mean squared error before the first layer


def tasks(key: Key, config: Config):
    """Return regression prompts (B, ...) and the weights w0 (B, D) before the first step."""
    prompt_key, start_key = jax.random.split(key)
    prompts = in_context.linear_regression(
        prompt_key, config.num_tasks, config.num_context, config.dim, inputs="uniform"
    )
    start = config.start_std * jax.random.normal(start_key, (config.num_tasks, config.dim))
    return prompts, start


def seeds(config: Config) -> Array:
    return jax.random.split(jax.random.key(config.seed), config.num_seeds)


def predict(config: Config) -> Prediction:
    """W ← w + (η/N) Σ (y - w·x) x, L times, for each task."""
    eta = config.learning_rate / config.num_context

    def descend(key: Key) -> Prediction:
        prompts, start = tasks(key, config)
        x, y, query = prompts.inputs, prompts.targets, prompts.query

        def step(w, _):
            w = w + eta * jnp.einsum("bn,bnd->bd", y - jnp.einsum("bnd,bd->bn", x, w), x)
            return w, (jnp.sum(w * query, axis=1), y - jnp.einsum("bnd,bd->bn", x, w))

        _, (answers, residuals) = jax.lax.scan(step, start, length=config.num_layers)
        before = jnp.sum(start * query, axis=1)
        extra = -2 * eta * before * jnp.sum(query**2, axis=1)
        return Prediction(answers, residuals, extra, before)

    return parallel.ensemble(descend, seeds(config))


def construct(start: Array, config: Config) -> linear_attention.LinearAttentionWeights:
    """Return the weights of proposition 1 for one task that starts at w0 (D,)."""
    weights = weight_constructions.gradient_descent_construction(
        config.dim, config.learning_rate, config.num_context, start=start
    )
    return weights._replace(value=config.value_sign * weights.value)


def softmax_layer(weights, tokens: Array, num_context: int) -> Array:
    """The same layer with softmax over the keys."""
    context = tokens[:num_context]
    scores = (tokens @ weights.query.T) @ (context @ weights.key.T).T
    return tokens + jax.nn.softmax(scores) @ (context @ weights.value.T) @ weights.projection.T


def run(config: Config) -> Result:
    def attend(key: Key) -> Result:
        prompts, starts = tasks(key, config)
        num_context = config.num_context

        def one(tokens: Array, start: Array, x: Array):
            weights = construct(start, config)
            tokens = tokens.at[-1, -1].set(-tokens[-1, :-1] @ start)  # the query holds -w0·x

            def layer(e, _):
                e = linear_attention.linear_self_attention(weights, e, num_context=num_context)
                return e, (-e[-1, -1], e[:-1, -1] - x @ start)

            _, (answers, residuals) = jax.lax.scan(layer, tokens, length=config.num_layers)
            among = linear_attention.linear_self_attention(
                weights, tokens, num_context=num_context + 1
            )
            softmax = softmax_layer(weights, tokens, num_context)
            loss = jnp.mean((tokens[:-1, -1] - x @ start) ** 2) / 2
            return answers, residuals, -among[-1, -1] - answers[0], -softmax[-1, -1], loss

        outputs = jax.vmap(one)(prompts.tokens(), starts, prompts.inputs)
        answers, residuals, *rest = outputs
        return Result(answers.swapaxes(0, 1), residuals.swapaxes(0, 1), *rest)

    return parallel.ensemble(attend, seeds(config))


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    rounding = "sums of 11 terms over 5 layers round to 1e-15; a wrong term shows at 1e-2"
    worst = lambda a, b: float(np.abs(a - b).max())
    loss = np.mean(result.residual[:, 0] ** 2, axis=-1) / 2  # (S, B) after one layer
    moved = result.softmax_answer - prediction.start_answer  # (S, B)
    step = prediction.answer[:, 0] - prediction.start_answer
    cosine = np.sum(moved * step, axis=1) / np.sqrt(
        np.sum(moved**2, axis=1) * np.sum(step**2, axis=1)
    )
    return [
        checks.below("largest error of the answers", worst(result.answer, prediction.answer),
                     1e-12, why=rounding),
        checks.below("largest error of the context's residuals",
                     worst(result.residual, prediction.residual), 1e-12, why=rounding),
        checks.below("largest error of the mismatch of a query among the keys",
                     worst(result.mismatch, prediction.mismatch), 1e-12, why=rounding),
        checks.above("share of tasks whose loss falls in the first layer",
                     np.mean(loss < result.start_loss), 0.99,
                     why="descent with η below 2 / largest eigenvalue, in all but rare tasks"),
        checks.above("relative RMS of the mismatch of a query among the keys",
                     np.sqrt(np.mean(result.mismatch**2) / np.mean(prediction.answer[:, 0] ** 2)),
                     0.02, why="it is a real effect, not rounding: pilots 0.2", role="control"),
        checks.every_seed("share of what softmax over the keys does that no step of descent does",
                          1 - cosine**2, lower=0.2, role="control",
                          why="zero for a step of any length: pilot from 0.73"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, right = figure.subplots(1, 2)
    for i, layer in enumerate(sorted({1, (config.num_layers + 1) // 2, config.num_layers})):
        style = {"color": plotting.COLOURS[i], "marker": plotting.MARKERS[i], "linestyle": "none"}
        left.plot(prediction.answer[0, layer - 1], result.answer[0, layer - 1], markersize=3,
                  alpha=0.5, label=f"{layer} layer{'s' * (layer > 1)}", **style)  # fmt: skip
    ends = np.array([prediction.answer[0].min(), prediction.answer[0].max()])
    plotting.theory(left, ends, ends, label="equal")
    left.set(xlabel="answer of gradient descent", ylabel="answer of attention")
    left.legend()
    layers = np.arange(1, config.num_layers + 1)
    for name, c in (("answer", 0), ("residual", 1)):
        error = np.abs(getattr(result, name) - getattr(prediction, name))
        error = error.max(axis=tuple(range(2, error.ndim)))  # (S, L)
        right.semilogy(layers, error.max(axis=0), plotting.MARKERS[c], color=plotting.COLOURS[c],
                       label=f"largest error, {name}")  # fmt: skip
    off = np.abs(result.softmax_answer - prediction.answer[:, 0]).max()
    right.semilogy([1], [off], "X", color=plotting.COLOURS[3], label="softmax over the keys")
    right.axhline(1e-12, color="black", linestyle=":", label="bound of the check")
    right.set(xlabel="layer", ylabel="absolute error", xticks=layers, ylim=(1e-17, 10))
    right.legend()
    plotting.label_panels([left, right])


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-9,
    precision="float64",
    smoke=dict(num_tasks=64),
    paper=dict(num_tasks=10_000),
    controls={
        "value matrix with the other sign": contract.Control(
            dict(value_sign=-1.0),
            breaks={
                "largest error of the answers": "above",
                "share of tasks whose loss falls in the first layer": "below",
            },
            why="the layer ascends",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
