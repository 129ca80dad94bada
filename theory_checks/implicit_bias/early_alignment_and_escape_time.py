"""From a small start neurons align in a time that knows no scale, and escape after ln(1/ε).

Claim      On separated classes, from weights of scale ε, every neuron of a two-layer ReLU network
           comes to respond to one class alone after the same number of steps for all small ε.
           Then each class has a linear network to itself, which leaves the saddle at zero
           ln(ε / ε') / ln(1 + η |x| / 2) steps later when ε' is the scale, x the sum of the inputs
           of the class. The weights end with rank two but for a third singular value that goes
           as ε, and the loss then falls at least as fast as 1/t.
Control    With shuffled labels neurons never align; from ε = 0.3 the loss falls before they do, and
           the weights keep their rank.
Reference  Min, Mallada and Vidal 2023, arXiv:2307.12851 (alignment, O(1/t), stable rank at most
           2); the delay, exact in the step size, and the third singular value are derived here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.measure import grokking
from dynamics.theory import early_alignment
from dynamics.training import trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P197",)
PILOT_SEEDS = (101, 102, 103, 104, 105, 106)
# The scale of the control within the run, after all others: a start of one is so steep that the
# first step may kill all neurons.
LARGE = 0.3


@dataclasses.dataclass(frozen=True)
class Config:
    num_samples: int = 20
    input_dim: int = 10
    width: int = 50
    separation: float = 0.3  # least y y' x·x' of two inputs
    scales: tuple[float, ...] = (1e-3, 1e-6, 1e-9)  # ε
    shuffled: bool = False  # labels; predict does not know it
    learning_rate: float = 0.01
    num_dense: int = 600  # steps that are all recorded; escape is before
    num_steps: int = 3000
    num_seeds: int = 5
    seed: int = 1


class Prediction(NamedTuple):
    delay: Array  # (S, E - 1, 2) steps from the escape of each class to that at the next scale


class Result(NamedTuple):
    """S seeds, E scales and the large one, T times, 2 classes: +1 and -1."""

    loss: Array  # (S, E + 1, T, 2) summed over the class
    aligned: (
        Array  # (S, E + 1, T) share of neurons that respond to their class alone, dead ones out
    )
    escape: Array  # (S, E + 1, 2) step at which the loss of the class is half of what it was
    singular: Array  # (S, E + 1, D) singular values of the first layer in the end, descending


def data(key: Key, config: Config) -> tuple[Array, Array]:
    """Return inputs (N, D) of length one and labels (N,), half of each sign."""
    drawn = jnp.abs(jax.random.normal(key, (config.num_samples, config.input_dim - 1)))
    drawn = drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)
    first = jnp.full((config.num_samples, 1), config.separation**0.5)
    labels = jnp.where(jnp.arange(config.num_samples) % 2 == 0, 1.0, -1.0)
    rest = (1 - config.separation) ** 0.5 * drawn
    return labels[:, None] * jnp.concatenate([first, rest], axis=1), labels


def keys(config: Config) -> Key:
    """Return, for each seed, keys (S, 3) of data, weights and shuffling."""
    return jax.random.split(jax.random.key(config.seed), (config.num_seeds, 3))


def times(config: Config) -> np.ndarray:
    late = np.linspace(config.num_dense, config.num_steps, 61).astype(int)
    return np.unique(np.concatenate([np.arange(config.num_dense), late]))


def predict(config: Config) -> Prediction:
    norms = parallel.ensemble(
        lambda key: early_alignment.class_sum_norms(*data(key, config)), keys(config)[:, 0]
    )
    shrinkage = np.array(config.scales[:-1]) / np.array(config.scales[1:])
    return Prediction(
        early_alignment.escape_delay(
            np.asarray(norms)[:, None], shrinkage[:, None], config.learning_rate
        )
    )


def run(config: Config) -> Result:
    def one(member) -> tuple[Array, ...]:
        scales = jnp.array([*config.scales, LARGE])
        return jax.vmap(lambda scale: train(*member, scale, config))(scales)

    shuffled = jnp.full(config.num_seeds, config.shuffled)  # a value: one program for all
    return Result(*parallel.ensemble(one, (keys(config), shuffled)))


def train(keys: Key, shuffled: Array, scale: Array, config: Config) -> tuple[Array, ...]:
    data_key, weight_key, shuffle_key = keys
    inputs, labels = data(data_key, config)
    labels = jnp.where(shuffled, jax.random.permutation(shuffle_key, labels), labels)
    signs = jnp.where(jnp.arange(config.width) % 2 == 0, 1.0, -1.0)
    weights = scale * jax.random.normal(weight_key, (config.width, config.input_dim))
    start = weights, signs * jnp.linalg.norm(weights, axis=1)  # balanced
    classes = jnp.stack([labels > 0, labels < 0])  # (2, N)

    def losses(params) -> Array:
        weights, outer = params
        return -jax.nn.log_sigmoid(labels * (jax.nn.relu(inputs @ weights.T) @ outer))  # (N,)

    def step(params):
        gradient = jax.grad(lambda params: losses(params).sum())(params)
        return jax.tree.map(lambda p, g: p - config.learning_rate * g, params, gradient)

    def measure(params):
        active = inputs @ params[0].T > 0  # (N, width)
        own = jnp.all(active == (labels[:, None] == signs), axis=0)
        living = active.any(axis=0)
        return classes @ losses(params), jnp.sum(own & living) / jnp.sum(living)

    (loss, aligned), (weights, _) = trajectory.record_with_state(
        step, start, measure, times=times(config)
    )
    share = (loss / loss[0]).T  # (2, T)
    escape = grokking.first_crossing(times(config), share, 0.5, direction="below")
    return loss, aligned, escape, jnp.linalg.svd(weights, compute_uv=False)


def alignment(config: Config, result: Result) -> np.ndarray:
    """Return the first step (S, E + 1) at which all living neurons are aligned, the last if never.

    Only where every step is recorded is it exact.
    """
    whole = result.aligned == 1
    return np.where(whole.any(axis=-1), times(config)[whole.argmax(axis=-1)], config.num_steps)


def late_exponent(config: Config, result: Result) -> np.ndarray:
    """Return the power (S, E) of the loss in the time since both classes escaped, late on."""
    steps, small = times(config), slice(0, len(config.scales))
    ends = np.searchsorted(steps, (0.6 * config.num_steps, config.num_steps))
    total = np.log(result.loss[:, small][:, :, ends].sum(axis=-1))  # (S, E, 2)
    since = np.log(steps[ends] - result.escape[:, small].max(axis=-1, keepdims=True))
    return (np.diff(total) / np.diff(since))[..., 0]


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    small = slice(0, len(config.scales))
    escape, aligned = result.escape[:, small], alignment(config, result)
    delay = np.diff(escape, axis=1) / prediction.delay - 1  # (S, E - 1, 2)
    singular = result.singular[:, small]
    third = np.log(singular[..., 2] / singular[..., 0]).T
    exponent = np.polyfit(np.log(config.scales), third, 1)[0]  # (S,)
    stable = np.sum((result.singular / result.singular[..., :1]) ** 2, axis=-1)  # (S, E + 1)
    late = late_exponent(config, result)
    return [
        checks.stays_finite("last finite step", times(config), result.loss.sum(axis=-1),
                            mend="lower the rate"),
        checks.every_seed("share of neurons aligned, at best, least over ε",
                          result.aligned[:, small].max(axis=-1).min(axis=1), lower=1,
                          why="all of them"),
        checks.every_seed("steps between the last and the first alignment over ε",
                          np.ptp(aligned[:, small], axis=1), upper=1,
                          why="directions see ε² only; one step where one is about to turn"),
        checks.every_seed("alignment over the first escape, largest over ε",
                          (aligned[:, small] / escape.min(axis=-1)).max(axis=1), upper=1,
                          why="0.45 at most in 1200 draws of numpy's"),
        checks.every_seed("relative error of the delay of escape, largest",
                          np.abs(delay).max(axis=(1, 2)), upper=2e-4,
                          why="pilots 1e-5, as a crossing is taken to be straight within a step"),
        checks.every_seed("exponent of the third singular value in ε", exponent, lower=0.97,
                          upper=1.03, why="one; the first grows by a tenth over the delay"),
        checks.every_seed("stable rank, largest over ε", stable[:, small].max(axis=1), upper=1.2,
                          why="one direction a class, and the two are nearly opposite"),
        checks.every_seed("late power of time in the loss, highest", late.max(axis=1), upper=-1,
                          why="1 / (t ln t) for a network of degree two"),
        checks.every_seed("late power of time in the loss, lowest", late.min(axis=1), lower=-1.5,
                          why="ln t adds 1 / ln t, where time counts from the escape"),
        checks.every_seed("ε = 0.3: first escape over alignment",
                          result.escape[:, -1].min(axis=1) / aligned[:, -1], upper=0.5,
                          role="control", why="no saddle to leave"),
        checks.every_seed("ε = 0.3: third singular value over the first",
                          result.singular[:, -1, 2] / result.singular[:, -1, 0], lower=0.1,
                          role="control",
                          why="the start is still there: 0.36 to 0.82 in 120 draws of numpy's"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    steps = times(config) * config.learning_rate
    for i, scale in enumerate([*config.scales, LARGE]):
        style = {"color": plotting.COLOURS[i], "label": f"ε = {scale:g}"}
        left.plot(steps, result.loss[0, i].sum(axis=-1), **style)
        early = steps <= 1
        middle.plot(steps[early], result.aligned[0, i, early], **style)
    left.set(xlabel="time η t", ylabel="loss", yscale="log", title="one seed",
             xlim=(0, 2.5 * config.num_dense * config.learning_rate))  # fmt: skip
    left.legend(loc="upper right")
    middle.set(xlabel="time η t", ylabel="share of neurons aligned", ylim=(0, 1.05),
               title="small ε: one curve")  # fmt: skip
    scales = np.array(config.scales)
    for s in range(config.num_seeds):
        escape = result.escape[s, : len(scales), 0] * config.learning_rate
        shifts = np.append(0, np.cumsum(prediction.delay[s, :, 0])) * config.learning_rate
        right.plot(scales, escape, "o", color=plotting.COLOURS[s % 8], markersize=3.5)
        plotting.theory(right, scales, escape[0] + shifts, linewidth=0.8,
                        label=None if s else "predicted delays")  # fmt: skip
    right.set(xscale="log", xlabel="scale ε of the start", ylabel="time η t of escape, class +1")
    right.legend()
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-3,
    precision="float64",
    smoke=dict(width=20, num_steps=1500),
    controls={
        "shuffled labels": contract.Control(
            dict(shuffled=True),
            breaks={"share of neurons aligned, at best, least over ε": "below"},
            why="no neuron can respond to all of one class and none of the other",
            needs=("last finite step",),
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
