"""The mesa-layer is ridge regression at every token, and one such layer learns linear dynamics.

Claim      The layer's recursion, and its parallel form in chunks, put out at every token what ridge
           regression on all tokens so far says, and have its gradients. On the states of s' = W s
           with W a random rotation of D dimensions one layer leaves 1 - t / D of the next state
           unexplained after t pairs, and nothing from the D-th on; a linear-attention layer, which
           takes one gradient step, leaves above a third of it at every t.
Control    On tokens drawn anew there is nothing to learn: the layer does worse than zero.
Reference  von Oswald et al. 2023, arXiv:2309.05858, for layer and recursion; the chunked form, the
           straight line 1 - t / D and the floor in the figure are derived here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.data import in_context
from dynamics.measure import mesa_layer
from dynamics.theory import linear_dynamics
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P262",)
PILOT_SEEDS = (101, 102, 103)
FORMS = {"recursion": None, "chunks": 8}  # of 8 tokens, which do not divide 30
SMALL_RIDGE = 1e-6  # on the dynamics: theory takes the limit
SETTLED = 15  # pairs from which nothing may be left of ten dimensions


@dataclasses.dataclass(frozen=True)
class Config:
    key_dim: int = 6
    value_dim: int = 4
    num_tokens: int = 30
    ridge: float = 0.7  # of the identity; a small one hides an error in how it enters
    dim: int = 10  # of the dynamics
    dynamics: bool = True  # else states are drawn anew at every token
    noise_stds: tuple[float, ...] = (0.0, 0.05)  # of the dynamics, the first none
    num_pairs: int = 50
    many_pairs: int = 300  # for the floor in the figure, which one step nears as 1 / t
    num_systems: int = 800
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        if self.noise_stds[0] != 0 or len(self.noise_stds) < 2:
            message = f"noise_stds={self.noise_stds}: give 0 first, then at least one more"
            raise ValueError(message)
        if self.num_pairs <= SETTLED:
            message = f"num_pairs={self.num_pairs}: give more than {SETTLED}"
            raise ValueError(message)


class Prediction(NamedTuple):
    """S seeds, T tokens, P derivatives: keys, values, queries, ridge; from one solve a token."""

    outputs: Array  # (S, T, V)
    gradient: Array  # (S, P)
    unexplained: Array  # (N,) share of the next state after 1, ..., N = num_pairs pairs
    floor: Array  # () of one gradient step


class Result(NamedTuple):
    """F forms, C noises; the layer's, and errors per dimension of predictions of the next state."""

    outputs: Array  # (S, F, T, V)
    gradient: Array  # (S, F, P)
    mesa: Array  # (S, C, N) squared error of one mesa-layer
    one_step: Array  # (S, C, N) of one linear-attention layer, the same step for every t
    one_step_each: Array  # (S, C, N) of one with the best step of every t
    zero: Array  # (S, C, N) of predicting zero
    floor: Array  # (S,) share left by the best step after many pairs; drawn, not asserted: of
    # heavy tails, its standard error over all seeds is 0.015


def seeds(config: Config) -> Array:
    return jax.random.split(jax.random.key(config.seed), (config.num_seeds, 2))


def tokens(key: Key, config: Config) -> tuple[Array, Array, Array]:
    """Return keys (T, K), values (T, V), queries (T, K) that are anything."""
    sizes = config.key_dim, config.value_dim, config.key_dim
    keys = jax.random.split(key, 3)
    return tuple(
        jax.random.normal(k, (config.num_tokens, size)) for k, size in zip(keys, sizes, strict=True)
    )


def outputs_and_gradient(layer, key: Key, config: Config) -> tuple[Array, Array]:
    """Return the outputs of `layer` and the derivatives of sum sin(output) in all its arguments."""

    def scalar(arguments):
        outputs = layer(*arguments)
        return jnp.sum(jnp.sin(outputs)), outputs

    arguments = (*tokens(key, config), jnp.asarray(config.ridge))
    (_, outputs), gradient = jax.value_and_grad(scalar, has_aux=True)(arguments)
    return outputs, jnp.concatenate([leaf.ravel() for leaf in gradient])


def batch_ridge(keys: Array, values: Array, queries: Array, ridge: Array) -> Array:
    """Return (sum v k^T) (sum k k^T + ridge I)^-1 q at every token, each from its own solve."""
    grams = jnp.cumsum(keys[:, :, None] * keys[:, None, :], axis=0)
    moments = jnp.cumsum(values[:, :, None] * keys[:, None, :], axis=0)
    solved = jnp.linalg.solve(grams + ridge * jnp.eye(keys.shape[1]), queries[..., None])
    return (moments @ solved)[..., 0]


def predict(config: Config) -> Prediction:
    exact = parallel.ensemble(
        lambda keys: outputs_and_gradient(batch_ridge, keys[0], config), seeds(config)
    )
    pairs = range(1, config.num_pairs + 1)
    line = [linear_dynamics.unexplained_share(config.dim, t) for t in pairs]
    return Prediction(
        *exact, jnp.array(line), jnp.array(linear_dynamics.one_step_floor(config.dim))
    )


def run(config: Config) -> Result:
    # A number, not a branch: the control is the same program.
    dynamics = jnp.full(config.num_seeds, config.dynamics)

    def one(member) -> Result:
        keys, dynamics = member
        found = []
        for chunk_size in FORMS.values():
            layer = lambda *a, c=chunk_size: mesa_layer.mesa_layer(*a, chunk_size=c)
            found.append(outputs_and_gradient(layer, keys[0], config))
        exact = (jnp.stack(leaves) for leaves in zip(*found, strict=True))
        seen = jax.vmap(lambda noise: states(keys[1], noise, dynamics, config))(
            jnp.array(config.noise_stds)
        )
        shown = jax.vmap(errors)(seen[:, :, : config.num_pairs + 2])
        return Result(*exact, *shown, after_many_pairs(seen[0]))

    return parallel.ensemble(one, (seeds(config), dynamics))


def states(key: Key, noise_std: Array, dynamics: Array, config: Config) -> Array:
    """Return (B, T, D): many pairs, the state after them, and one to predict."""
    sizes = config.num_systems, config.many_pairs + 2, config.dim
    moved, _ = in_context.linear_dynamical_system(key, *sizes, noise_std=noise_std)
    return jnp.where(dynamics, moved, jax.random.normal(key, sizes))


def errors(seen: Array) -> tuple[Array, ...]:
    """Return squared errors (N,) of both layers; token t has key s_{t-1}, value and query s_t."""
    keys, values, targets = seen[:, :-2], seen[:, 1:-1], seen[:, 2:]
    mesa = mesa_layer.mesa_layer(keys, values, values, SMALL_RIDGE, chunk_size=None)
    step = jnp.tril(values @ keys.swapaxes(1, 2)) @ values  # sum v_s (k_s·q_t): linear attention
    over = lambda a, b: jnp.sum(a * b, axis=(0, 2))  # (N,)
    best_of_each = over(step, targets) / over(step, step)
    best = over(step, targets).sum() / over(step, step).sum()
    error = lambda guess: jnp.mean((guess - targets) ** 2, axis=(0, 2))
    one_step = error(best * step), error(best_of_each[:, None] * step)
    return error(mesa), *one_step, error(0 * step)


def after_many_pairs(seen: Array) -> Array:
    """Return the share that one step leaves of the state after many pairs, at its best size."""
    keys, values, target = seen[:, :-2], seen[:, 1:-1], seen[:, -1]
    scores = jnp.einsum("btd,bd->bt", keys, values[:, -1])
    step = jnp.einsum("bt,btd->bd", scores, values)
    return 1 - jnp.sum(step * target) ** 2 / (jnp.sum(step**2) * jnp.sum(target**2))


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    worst = lambda a: np.abs(a).reshape(len(a), -1).max(axis=1)  # (S,)
    found = []
    for form, name in enumerate(FORMS):
        found += [
            checks.every_seed(f"largest error of an output, {name}",
                              worst(result.outputs[:, form] - prediction.outputs), upper=1e-10,
                              why="rounding of systems of condition 100: 1e-14"),
            checks.every_seed(f"largest error of a derivative, {name}",
                              worst(result.gradient[:, form] - prediction.gradient), upper=1e-8,
                              why="rounding, once more through the systems: 1e-13"),
        ]  # fmt: skip
    share = result.mesa[:, 0] / result.zero[:, 0]  # (S, N)
    learning = slice(0, config.dim)
    one_step = (result.one_step / result.zero)[:, 0]
    noise = np.array(config.noise_stds[1:])[:, None] ** 2
    return [
        *found,
        checks.below("largest error of the share that mesa leaves, first D pairs",
                     np.abs(share.mean(axis=0) - prediction.unexplained)[learning].max(), 0.02,
                     why="mean over 2,000 systems and more, whose share has a deviation of 0.2 at "
                     "most: over 4 standard errors; pilots 0.002 to 0.004"),
        checks.every_seed("largest share that mesa leaves after 15 pairs and more",
                          share[:, SETTLED - 1 :].max(axis=1), upper=1e-3,
                          why="zero but for the ridge: pilots 1e-10"),
        checks.every_seed("least share that mesa leaves, any number of pairs", share.min(axis=1),
                          upper=1, why="zero leaves 1; with tokens drawn anew mesa leaves more at "
                          "every t, 1 + (D + 2)/(D (D - 2)) = 1.15 at the first"),
        checks.above("lowest share that one step of one size leaves, any number of pairs",
                     one_step.mean(axis=0).min(), 1 / 3,
                     why="above the floor of any dimension, at any t; pilots from 0.39"),
        checks.between("error of mesa over that of the noise, last pair, mean of seeds",
                       (result.mesa[:, 1:, -1].mean(axis=0) / noise[:, 0]).max(),
                       1.0, 1 + 2 * config.dim / config.num_pairs,
                       why="D weights learned from t pairs cost about D/t of it: pilots 1.25"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, right = figure.subplots(1, 2)
    pairs = np.arange(1, config.num_pairs + 1)
    for panel, noise in ((left, 0), (right, 1)):
        curves = {"mesa-layer": result.mesa, "one step, one size": result.one_step,
                  "one step, best size for each t": result.one_step_each}  # fmt: skip
        for i, (name, error) in enumerate(curves.items()):
            share = error[:, noise] / result.zero[:, noise]
            plotting.points(panel, pairs, np.maximum(share, 1e-8), label=name, spread="range",
                            color=plotting.COLOURS[i], marker=plotting.MARKERS[i],
                            markersize=2.5)  # fmt: skip
        panel.set(xlabel="number of pairs t", ylabel="unexplained share of the next state")
    plotting.theory(left, pairs, prediction.unexplained, label="1 - t/D")
    plotting.threshold(left, float(prediction.floor), label="floor of one step, t → ∞")
    plotting.points(
        left,
        [config.num_pairs + 5],
        result.floor[:, None],
        spread="range",
        marker="X",
        color=plotting.COLOURS[3],
        label=f"one step, t = {config.many_pairs}",
    )
    left.set(ylim=(-0.03, 1.05), title="without noise")
    left.legend()
    right.set(yscale="log", title=f"noise of {config.noise_stds[1]:g}")
    noise = config.noise_stds[1] ** 2 / result.zero[:, 1].mean(axis=0)
    plotting.theory(right, pairs, noise, label="the noise alone")
    right.legend()
    plotting.label_panels([left, right])


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-7,
    precision="float64",
    smoke=dict(num_systems=400, num_pairs=20),
    controls={
        "tokens drawn anew": contract.Control(
            dict(dynamics=False),
            breaks={
                "largest error of the share that mesa leaves, first D pairs": "above",
                "largest share that mesa leaves after 15 pairs and more": "above",
                "least share that mesa leaves, any number of pairs": "above",
            },
            why="the next state does not depend on the last",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
