"""A trained decoder's blocks gain Newton iterations, the last fewest; descent's steps follow a law.

Claim      A decoder, trained on prompts of noiseless linear regression, is read out after each
           block. In the median network the Newton iterate whose errors are most alike moves on from
           2 to between 7 and 9 over four blocks. The steps of gradient descent that err most alike
           follow by a law of the spectra alone: k iterations learn the directions of eigenvalues
           over 2^(-k/2) of the largest, t steps those over 1/t, so that t is about 2^(k/2). At
           their best the two are alike to a hundredth, so that the counts alone tell them apart.
           Linear in Newton and exponential in descent, as the paper has it, is not seen with so
           few blocks: the second gains about 4 iterations, the last at most one.
Control    An untrained decoder answers nothing at any depth, with the best read-out there is.
Reference  Fu et al. 2023, arXiv:2310.17086, figures 1 and 3: 12 layers, D = 20, 40 examples, about
           3 iterations a layer in the middle. Inputs and targets are joined in a token here (apart,
           the first block only joins them). The exponent 1/2 is derived here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import parallel
from dynamics.aliases import Array, Key, Params
from dynamics.measure import similarity_of_errors
from dynamics.models import transformer
from dynamics.theory import in_context_regression
from dynamics.training import step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P47",)
PILOT_SEEDS = (101, 102, 103)
ITERATIONS = np.arange(31)  # of Newton; 2^30 is where float32 ends, and least squares
STEPS = np.append(0, np.unique(np.geomspace(1, 20_000, 80).round().astype(int)))  # of descent


@dataclasses.dataclass(frozen=True)
class Config:
    dim: int = 3
    num_examples: int = 8
    num_layers: int = 4
    width: int = 32
    num_heads: int = 4
    learning_rate: float = 6e-3
    num_steps: int = 1500
    warmup_steps: int = 100
    batch_size: int = 32
    num_prompts: int = 1000  # to compare on; as many others to fit the read-outs
    engine: str = "jit"  # or "pmap": how seeds are spread over devices
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        if self.num_steps <= self.warmup_steps:
            message = f"num_steps={self.num_steps}: more than warmup_steps={self.warmup_steps}"
            raise ValueError(message)
        if self.num_layers < 3:
            message = f"num_layers={self.num_layers}: give at least 3, to compare what they gain"
            raise ValueError(message)
        if self.num_examples <= self.dim:
            message = f"num_examples={self.num_examples}: give more than dim={self.dim}"
            raise ValueError(message)


class Result(NamedTuple):
    """S seeds, T times, L blocks, N positions; K Newton iterations, G numbers of descent steps."""

    times: Array  # (S, T) steps of training: none, and all
    error: Array  # (S, T, L, N) after each block: mean square over the targets' variance
    newton: Array  # (S, T, L, K) similarity of errors
    descent: Array  # (S, T, L, G)
    least_squares: Array  # (S, N) error of Newton's last iterate
    equivalent: Array  # (S, K) steps of descent that err most like each Newton iterate


def run(config: Config) -> Result:
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    return parallel.ensemble(
        lambda key: run_one(key, config), keys, engine=config.engine, batching="vmap"
    )


def run_one(key: Key, config: Config) -> Result:
    """Train one decoder on prompts that never come back; compare its blocks before and after."""
    init_key, train_key, test_key = jax.random.split(key, 3)
    model, optimiser = decoder(config), make_optimiser(config)
    both = prompts(test_key, 2 * config.num_prompts, config)
    compared = both[: config.num_prompts]
    newton, descent = known_answers(compared)

    def update(state: step.MinibatchState) -> step.MinibatchState:
        batch = prompts(jax.random.fold_in(state.key, state.step), config.batch_size, config)
        answers = lambda params: model.apply(params, joined(batch))[..., 0]
        loss = lambda params: jnp.mean((answers(params) - batch[..., -1]) ** 2)
        moved = step.optax_step(loss, optimiser)(step.TrainState(*state[:3]))
        return step.MinibatchState(*moved, state.key)

    def likeness(errors: Array, answers: Array) -> similarity_of_errors.Match:
        reference = answers[:, :, 1:] - compared[:, 1:, -1]  # nothing is known at the first
        return similarity_of_errors.match_iterates(errors[:, :, 1:], reference)

    def examine(state: step.MinibatchState) -> tuple[Array, ...]:
        errors = read_out_errors(model, state.params, both)
        alike = (likeness(errors, answers).similarity for answers in (newton, descent))
        return jnp.mean(errors**2, axis=1), *alike

    times = np.array([0, config.num_steps])
    params = initial_params(init_key, model, joined(both[:1]))
    start = step.initial_minibatch_state(params, optimiser, train_key)
    return Result(
        jnp.asarray(times),
        *trajectory.record(update, start, examine, times=times),
        jnp.mean((newton[-1] - compared[..., -1]) ** 2, axis=0),
        jnp.asarray(STEPS)[likeness(newton - compared[..., -1], descent).iterate],
    )


def decoder(config: Config) -> transformer.Transformer:
    return transformer.Transformer(
        num_outputs=1, width=config.width, num_layers=config.num_layers,
        num_heads=config.num_heads, max_tokens=config.num_examples, read_out="all",
    )  # fmt: skip


def initial_params(key: Key, model: transformer.Transformer, tokens: Array) -> Params:
    """Return parameters of the distribution of `model.init`, drawn at once.

    A draw for each of its matrices takes longer to compile than the rest of the network.
    """
    shapes = jax.eval_shape(model.init, key, tokens)
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    sizes = [leaf.size if leaf.ndim == 2 else 0 for _, leaf in leaves]
    drawn = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])

    def scaled(name: str, leaf: jax.ShapeDtypeStruct, values: Array) -> Array:
        if leaf.ndim < 2:
            return jnp.full(leaf.shape, float(name == "scale"))  # of layer norm; biases are 0
        return values.reshape(leaf.shape) / (1 if name == "positions" else leaf.shape[0] ** 0.5)

    filled = (scaled(path[-1].key, leaf, v) for (path, leaf), v in zip(leaves, drawn, strict=True))
    return tree.unflatten(filled)


def joined(examples: Array) -> Array:
    """Return tokens (B, N, 2 D + 1) that hold x_t, x_(t-1) and y_(t-1) each."""
    before = jnp.pad(examples, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    return jnp.concatenate([examples[..., :-1], before], axis=-1)


def make_optimiser(config: Config) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, config.num_steps
    )
    return optax.adam(schedule, b2=0.99)


def prompts(key: Key, count: int, config: Config) -> Array:
    """Return tokens (B, N, D + 1): Gaussian inputs, targets of variance one.

    In one draw: `in_context.linear_regression` makes four, each of which takes time to compile.
    """
    drawn = jax.random.normal(key, (count, config.num_examples + 1, config.dim))
    weights, inputs = drawn[:, :1], drawn[:, 1:]
    targets = jnp.sum(weights * inputs, axis=-1, keepdims=True) / config.dim**0.5
    return jnp.concatenate([inputs, targets], axis=-1)


def read_out_errors(model: transformer.Transformer, params: Params, tokens: Array) -> Array:
    """Return the errors (L, B/2, N) of each block's best linear read-out.

    It is fitted on the second half of the prompts and errs on the first.
    """
    _, found = model.apply(params, joined(tokens), mutable=["intermediates"])
    stream = jnp.stack(found["intermediates"]["residual_stream"])  # (L, B, N, width)
    features = jnp.concatenate([stream, jnp.ones_like(stream[..., :1])], axis=-1)
    targets, half = tokens[..., -1], len(tokens) // 2

    def errors(features: Array) -> Array:
        rows = features[half:].reshape(-1, features.shape[-1])
        gram = rows.T @ rows / len(rows)
        ridge = 1e-5 * jnp.trace(gram) / len(gram) * jnp.eye(len(gram))  # float32 needs it
        moments = rows.T @ targets[half:].reshape(-1) / len(rows)
        weights = jax.scipy.linalg.solve(gram + ridge, moments, assume_a="pos")
        return features[:half] @ weights - targets[:half]

    return jax.vmap(errors)(features)


def known_answers(tokens: Array) -> tuple[Array, Array]:
    """Return the answers of Newton's iteration (K, B, N) and of descent (G, B, N)."""
    x, y = tokens[..., :-1], tokens[..., -1]
    each = lambda answer, counts: jax.vmap(lambda x, y: answer(x, y, counts), out_axes=-2)(x, y)
    return (
        each(in_context_regression.newton_predictions, ITERATIONS),
        each(in_context_regression.gradient_descent_predictions, STEPS),
    )


def matched(similarity: np.ndarray, iterates: np.ndarray) -> np.ndarray:
    """Return the iterate (S, ..., L) whose errors are most alike."""
    return iterates[np.argmax(similarity, axis=-1)]


def check(config: Config, result: Result) -> list[checks.Check]:
    newton = matched(result.newton[:, -1], ITERATIONS)  # (S, L)
    descent = matched(result.descent[:, -1], STEPS)
    expected = np.take_along_axis(result.equivalent, newton, axis=1)  # (S, L)
    share = np.maximum(descent, 0.5) / np.maximum(expected, 0.5)  # 0.5 for none
    best = lambda similarity: similarity[:, -1, -1].max(axis=-1)  # (S,) of the last block
    gain = np.diff(newton, axis=1)  # (S, L - 1)

    def median(name: str, values: np.ndarray, low=-np.inf, high=np.inf, **more) -> checks.Check:
        return checks.between(f"{name}, median", np.median(values), low, high, **more)

    return [
        checks.stays_finite("last step with a finite error", result.times[0],
                            result.error[:, :, -1, -1], mend="lower learning_rate"),
        median("error after the last block at the last example / variance",
               result.error[:, -1, -1, -1], high=0.12,
               why="pilots 0.060 to 0.066, single networks to 0.141"),
        median("Newton iterations that each block after the first gains", gain.mean(axis=1),
               1.0, 2.75, why="from one, pilots 1.33 and 1.67, to log2(27/4), which is what a "
               "layer of linear attention gains at most"),
        median("Newton iterations that the last block gains, less those of the second",
               gain[:, -1] - gain[:, 0], high=-1, why="0 on a line, pilots -4"),
        median("descent steps of the last block / those most like its Newton iterate",
               share[:, -1], 0.6, 1.6, why="1 by the spectra; pilots 0.89 to 1, single networks "
               "0.77 to 1.17; as many steps as iterations were 0.58 at seven, 0.44 at eight"),
        median("descent steps of a block / those most like its Newton iterate",
               np.exp(np.mean(np.log(share), axis=1)), 0.6, 1.6,
               why="as above; pilots 0.98"),
        checks.every_seed("doublings of the descent steps most like an iterate, per iteration",
                          np.log2(result.equivalent[:, 12] / result.equivalent[:, 4]) / 8,
                          lower=0.4, upper=0.65, why="1/2 by the spectra, over iterations 4 to "
                          "12; pilots 0.54; 0.2 if one were worth as many of the other, 1 if t "
                          "were 2^k"),
        median("likeness of the last block to its Newton iterate, less that to no answer",
               best(result.newton) - result.descent[:, -1, -1, 0], low=0.25,
               why="pilots 0.40 to 0.42, single networks from 0.32"),
        median("likeness to Newton less likeness to descent, last block",
               best(result.newton) - best(result.descent), -0.03, 0.03,
               why="pilots -0.009 to -0.007"),
        checks.every_seed("control: descent steps of any block before training",
                          matched(result.descent[:, 0], STEPS).max(axis=1), upper=0,
                          role="control", why="nothing has been learned"),
    ]  # fmt: skip


def plot(config: Config, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    blocks = np.arange(1, config.num_layers + 1)
    newton, descent = matched(result.newton, ITERATIONS), matched(result.descent, STEPS)
    for index, (counts, name) in enumerate(
        ((newton, "Newton iterations"), (descent, "descent steps"))
    ):
        plotting.band(left, blocks, counts[:, -1], marker="o", spread="quartiles",
                      label=name, color=plotting.COLOURS[index])  # fmt: skip
    plotting.band(left, blocks, descent[:, 0], marker="x", spread="quartiles",
                  label="descent steps, untrained", color="grey")  # fmt: skip
    left.set(xlabel="block", ylabel="iterate that errs most alike", xticks=blocks)
    left.set_yscale("symlog", linthresh=1)
    left.set_ylim(-0.3, 150)
    shown = np.arange(min(31, max(13, newton[:, -1].max() + 2)))
    plotting.theory(middle, shown, np.median(result.equivalent, axis=0)[shown],
                    label="both algorithms, most alike")  # fmt: skip
    plotting.theory(middle, shown, 2 ** (shown / 2), label="$2^{k/2}$", linestyle=":")
    plotting.theory(middle, shown[1:], shown[1:], label="$t = k$", color="grey", linestyle="-.")
    positions = np.arange(1, config.num_examples + 1)
    for index, block in enumerate(blocks):
        label = f"block {block}" if index % -(-len(blocks) // 4) == 0 else None
        style = dict(color=plotting.COLOURS[(index + 2) % 8], label=label)
        middle.plot(newton[:, -1, index], descent[:, -1, index], "o", alpha=0.7, **style)
        plotting.band(right, positions, result.error[:, -1, index], **style)
    middle.set(xlabel="Newton iterations k", ylabel="descent steps t", yscale="log")
    plotting.theory(right, positions, result.least_squares.mean(axis=0), label="least squares")
    right.set(xlabel="example", ylabel="error / variance", ylim=(-0.05, 1.5),
              xticks=positions[:: -(-len(positions) // 8)])  # fmt: skip
    plotting.label_panels(panels)
    for axes in panels:
        axes.legend(fontsize=6, loc="upper right" if axes is right else "upper left")


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    smoke=dict(num_seeds=3, dim=2, num_steps=800, num_prompts=500),
    paper=dict(
        dim=20, num_examples=41, num_layers=12, width=256, num_heads=8, batch_size=64,
        learning_rate=1e-4, num_steps=500_000, warmup_steps=5000, num_prompts=2000, engine="pmap",
    ),
)  # fmt: skip

if __name__ == "__main__":
    runner.main(EXPERIMENT)
