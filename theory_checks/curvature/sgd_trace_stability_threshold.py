"""SGD on single samples is stable exactly while η Tr H < 2, where gradients have one length.

Claim      At a minimum that fits every sample, where all gradients of outputs have one length,
           linearised SGD in batches of one keeps its mean square bounded up to η Tr H = 2 and not
           beyond, and so does every single path: it never grows below, keeps its length at 2 and
           never shrinks above. At unequal lengths the mean square is lost earlier, at a rate in
           closed form that rises with the batch.
Control    Gradient descent at a rate between both thresholds converges where SGD grows. At
           unequal lengths η Tr H = 2 is out of reach.
Reference  Wu and Su 2023, arXiv:2305.17490, for η Tr H <= 2; the exact rate is Mulayoff and
           Michaeli 2024, arXiv:2306.07850; that paths and mean square agree is derived here.
"""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.theory import sgd_stability
from dynamics.training import trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P188",)
PILOT_SEEDS = (101, 102, 103)
BATCHES = (1, 2, 3)  # with replacement; their sizes divide the six samples of an order
SAMPLES_OF_AN_ORDER = 6
MULTIPLES = (0.5, 1.0, 1.5)  # of 2 / Tr H, for the mean squares over all orders
KINDS = ("one length", "unequal lengths")
THRESHOLD = "largest relative error of the critical learning rate"
SQUARES = "largest relative error of the mean square over all orders"
FALLS = "one length, η Tr H < 2: growth of log |d| a step, largest path"
GROWS = "one length, η Tr H > 2: growth of log |d| a step, smallest path"
KEEPS = "one length, η Tr H = 2: largest change of log |d|"


@dataclasses.dataclass(frozen=True)
class Config:
    num_samples: int = 4
    dim: int = 6
    lengths: tuple[float, ...] = (1.0, 2.0, 0.5, 1.5)  # of the gradients where unequal
    common: bool = True  # whether equal lengths are equal: False is for a control
    path_multiples: tuple[float, ...] = (0.9, 0.95, 0.99, 1.0, 1.01, 1.05, 1.1)  # of 2 / Tr H
    num_paths: int = 64
    num_steps: int = 2000
    num_seeds: int = 10
    seed: int = 1

    def __post_init__(self):
        if len(self.lengths) != self.num_samples or min(self.lengths) <= 0:
            message = f"lengths={self.lengths}: give num_samples={self.num_samples} positive ones"
            raise ValueError(message)
        if not (
            min(self.path_multiples) < 1 < max(self.path_multiples) and 1 in self.path_multiples
        ):
            message = f"path_multiples={self.path_multiples}: give one, some below and some above"
            raise ValueError(message)


class Prediction(NamedTuple):
    """S seeds, K kinds of lengths, M multiples, B batch sizes."""

    critical: Array  # (S, K, B) learning rate times Tr H / 2
    mean_square: Array  # (S, K, M, B) of d after the steps of an order
    upper: Array  # (S, K) bound on critical for batches of one; one where lengths are equal


class Result(NamedTuple):
    """As in Prediction; C multiples along paths, R paths."""

    critical: Array  # (S, K, B) where the average of all A ⊗ A has the radius one
    mean_square: Array  # (S, K, M, B) over every order of samples, as likely as any other
    slope: Array  # (S, K, C, R) of log |d| a step
    between: Array  # (S, 2) the same of gradient descent, and of SGD, between their thresholds


def draw(key: Key, config: Config) -> Array:
    """Return gradients (K, N, P), of length two and of the unequal lengths given."""
    gradients = jax.random.normal(key, (config.num_samples, config.dim))
    gradients /= jnp.linalg.norm(gradients, axis=1, keepdims=True)
    lengths = jnp.array([[2.0] * config.num_samples, config.lengths])
    return lengths[:, :, None] * gradients


def all_gradients(config: Config) -> np.ndarray:
    keys = jax.random.split(jax.random.key(config.seed), (2, config.num_seeds))[0]
    return np.array(jax.jit(jax.vmap(lambda key: draw(key, config)))(keys))  # (S, K, N, P)


def trace(gradients):
    """Return Tr H, the mean of |g|²."""
    return (gradients**2).sum(axis=-1).mean(axis=-1)


def predict(config: Config) -> Prediction:
    """From the second moment alone: no step is made."""
    found = []
    for gradients in all_gradients(config).reshape(-1, config.num_samples, config.dim):
        rate, start = 2 / trace(gradients), np.linalg.pinv(gradients) @ gradients  # a projector
        squares = (gradients**2).sum(axis=1)
        critical, squared = [], []
        for batch in BATCHES:
            weight = sgd_stability.batch_weight(config.num_samples, batch)
            point = sgd_stability.critical_point(gradients, weight=weight)
            critical.append(point.learning_rate / rate)
            squared.append([
                np.trace(sgd_stability.second_moments(
                    gradients, start, multiple * rate, SAMPLES_OF_AN_ORDER // batch, weight=weight
                )[-1]) for multiple in MULTIPLES
            ])  # fmt: skip
        found.append((critical, np.transpose(squared), squares.mean() ** 2 / (squares**2).mean()))
    shape = config.num_seeds, len(KINDS)
    columns = (jnp.asarray(np.array(column)) for column in zip(*found, strict=True))
    return Prediction(*(column.reshape(*shape, *column.shape[1:]) for column in columns))


def run(config: Config) -> Result:
    gradients = all_gradients(config)
    if not config.common:
        gradients[:, 0] = gradients[:, 1]
    keys = jax.random.split(jax.random.key(config.seed), (2, config.num_seeds))[1]
    fn = lambda member: simulate(*member, config)
    hessians, *measured = parallel.ensemble(fn, (keys, jnp.asarray(gradients)), batching="map")
    flat = np.asarray(hessians).reshape(-1, *hessians.shape[2:])
    critical = [[find_critical(rows, batch) for batch in BATCHES] for rows in flat]
    critical = jnp.array(critical).reshape(config.num_seeds, len(KINDS), len(BATCHES))
    return Result(critical * trace(gradients)[..., None] / 2, *measured)


def sample_loss(distance: Array, gradient: Array) -> Array:
    return (gradient @ distance) ** 2 / 2


def descend(distance: Array, batch: Array, rate: Array) -> Array:
    """Return the distance after a step of SGD on the gradients (B, P) of a batch."""
    loss = lambda distance: jnp.mean(jax.vmap(sample_loss, (None, 0))(distance, batch))
    return distance - rate * jax.grad(loss)(distance)


def simulate(key: Key, gradients: Array, config: Config):
    """Return per-sample Hessians, mean squares, slopes of paths and of both methods in between."""
    rates = 2 / trace(gradients)  # (K,)
    at_minimum = lambda gradient: jax.hessian(sample_loss)(jnp.zeros(config.dim), gradient)
    hessians = jax.vmap(jax.vmap(at_minimum))(gradients)
    starts = jnp.linalg.qr(gradients.swapaxes(1, 2))[0].swapaxes(1, 2)  # (K, N, P) orthonormal
    squares = jnp.stack(
        [jnp.stack([jax.vmap(mean_square, (0, 0, 0, None))(gradients, starts, m * rates, batch)
                    for m in MULTIPLES], axis=1) for batch in BATCHES], axis=-1
    )  # fmt: skip
    # The same samples for every rate and kind.
    samples = jax.random.randint(key, (config.num_steps, config.num_paths), 0, config.num_samples)

    def grow(step, start, num_steps):
        """Return the mean growth of log |d| a step; |d| is one again after each of them."""

        def advance(state):
            direction, growth, count = state
            after = step(direction, count)
            length = jnp.linalg.norm(after)
            return after / length, growth + jnp.log(length), count + 1

        state = start / jnp.linalg.norm(start), 0.0, 0
        return trajectory.record(advance, state, lambda s: s[1], times=[num_steps])[0] / num_steps

    def follow(gradients, rate, start):
        def path(samples):  # (steps,)
            step = lambda d, count: descend(d, gradients[samples[count]][None], rate)
            return grow(step, start, config.num_steps)

        return jax.vmap(path, 1)(samples)

    multiples = jnp.array(config.path_multiples)
    sharpness = jnp.linalg.eigvalsh(gradients[0] @ gradients[0].T)[-1] / config.num_samples
    middle = jnp.sqrt(rates[0] * 2 / sharpness)  # between the thresholds 2/Tr H and 2/λ_max
    inside = starts.sum(axis=1)  # (K, P)
    all_rates = jnp.concatenate([multiples[:, None] * rates, jnp.full((1, 2), middle)]).T
    slopes = jax.vmap(jax.vmap(follow, (None, 0, None)))(gradients, all_rates, inside)
    descent = grow(lambda d, _: descend(d, gradients[0], middle), inside[0], 200)
    between = jnp.stack([descent, slopes[0, -1].min()])
    return hessians, squares, slopes[:, :-1], between


def mean_square(gradients: Array, starts: Array, rate: Array, batch: int) -> Array:
    """Return the mean over all orders of the samples of |d|², summed over the starts."""
    orders = np.array([*itertools.product(range(len(gradients)), repeat=SAMPLES_OF_AN_ORDER)])
    batches = gradients[orders.reshape(len(orders), -1, batch)]  # (orders, steps, B, P)
    step = jax.vmap(descend, (0, None, None))  # over the starts

    def follow(batches):
        ends = jax.lax.scan(lambda d, batch: (step(d, batch, rate), None), starts, batches)[0]
        return jnp.sum(ends**2)

    return jnp.mean(jax.vmap(follow)(batches))


def find_critical(hessians: np.ndarray, batch: int) -> float:
    """Return the rate at which the average of A ⊗ A over all batches has the radius one."""
    values, vectors = np.linalg.eigh(hessians.mean(axis=0))
    basis = vectors[:, values > 1e-10 * values[-1]]
    inside = basis.T @ hessians @ basis
    members = itertools.product(range(len(hessians)), repeat=batch)
    means = np.array([inside[list(chosen)].mean(axis=0) for chosen in members])

    def excess(rate):
        steps = np.eye(inside.shape[-1]) - rate * means
        both = np.einsum("nab,ncd->acbd", steps, steps) / len(steps)
        return np.abs(np.linalg.eigvalsh(both.reshape(len(both) ** 2, -1))).max() - 1

    sharpest = 2 / values[-1]  # beyond it gradient descent diverges too
    return scipy.optimize.brentq(excess, 1e-3 * sharpest, 1.1 * sharpest, xtol=1e-14, rtol=1e-13)


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    worst = lambda array: np.abs(array).reshape(config.num_seeds, -1).max(axis=1)
    multiples = np.array(config.path_multiples)
    below, at, above = (result.slope[:, 0][:, chosen] for chosen in
                        (multiples < 1, multiples == 1, multiples > 1))  # fmt: skip
    single = result.critical[..., 0]
    rising = result.critical[..., 1:] / result.critical[..., :-1]
    return [
        checks.every_seed(THRESHOLD, worst(result.critical / prediction.critical - 1), upper=1e-9,
                          why="a root of a simple eigenvalue: pilots below 1e-12"),
        checks.every_seed("one length: critical η Tr H", 2 * single[:, 0], lower=2 - 1e-9,
                          upper=2 + 1e-9, why="the identity is the second moment that stays"),
        checks.every_seed(SQUARES, worst(result.mean_square / prediction.mean_square - 1),
                          upper=1e-10, why="an identity"),
        checks.every_seed(FALLS, below.max(axis=(1, 2)), upper=-1e-9,
                          why="|d|² loses η (2 - η Tr H) (g·d)² at every step"),
        checks.every_seed(GROWS, above.min(axis=(1, 2)), lower=1e-7,
                          why="and gains it above: the same number, with the other sign"),
        checks.every_seed(KEEPS, worst(config.num_steps * at), upper=1e-10,
                          why="every step is a reflection; 2000 of them round to 1e-13"),
        checks.every_seed("critical rate of a batch over that of the next smaller, least",
                          rising.min(axis=(1, 2)), lower=1 + 1e-6,
                          why="larger batches average a positive variance away"),
        checks.every_seed("unequal lengths: critical η Tr H over its upper bound",
                          (single / prediction.upper)[:, 1], upper=1 + 1e-9, role="control",
                          why="(mean |g|²)² / mean |g|⁴, below one: 2 is out of reach"),
        checks.every_seed("between the thresholds: growth of log |d| a step, gradient descent",
                          result.between[:, 0], upper=-1e-6, role="control",
                          why="η λ_max < 2, and the smallest eigenvalue is above zero: in one "
                          "draw of ten a hundredth of the mean, ever more rarely less"),
        checks.every_seed("between the thresholds: growth of log |d| a step, SGD",
                          result.between[:, 1], lower=1e-3, role="control", why="η Tr H > 2"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, right = panels = figure.subplots(1, 2)
    for kind, name in enumerate(KINDS):
        plotting.points(left, np.array(BATCHES) + 0.06 * (2 * kind - 1),
                        2 * result.critical[:, kind], color=plotting.COLOURS[kind],
                        marker=plotting.MARKERS[kind], spread="range", label=name)  # fmt: skip
        plotting.theory(left, BATCHES, 2 * prediction.critical[:, kind].mean(axis=0),
                        label=None if kind else "closed form, mean of draws")  # fmt: skip
        plotting.points(right, np.array(config.path_multiples) * 2 + 0.002 * kind,
                        result.slope[:, kind].mean(axis=2), color=plotting.COLOURS[kind],
                        marker=plotting.MARKERS[kind], spread="range", label=name)  # fmt: skip
    plotting.threshold(left, 2, label="2, at one length and batches of one")
    left.set(xlabel="batch size", ylabel="critical η Tr H (mean, range of draws)", ylim=(0, 5))
    left.set_xticks(BATCHES)
    left.legend(loc="upper left")
    rate = np.linspace(1.75, 2.25, 100)
    plotting.theory(right, rate, np.log(np.abs(1 - rate)) / config.num_samples,
                    label="mean exponent, log |1 - η Tr H| / rank, one length")  # fmt: skip
    plotting.threshold(right, 0)
    right.set(xlabel="η Tr H", ylabel="growth of log |d| a step, mean of paths", ylim=(-0.1, 0.48))
    right.legend(loc="upper left")
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-8,
    precision="float64",
    smoke=dict(num_seeds=3, num_paths=8, num_steps=400),
    controls={
        "lengths that are not equal": contract.Control(
            dict(common=False),
            breaks={
                THRESHOLD: "above",
                "one length: critical η Tr H": "below",
                KEEPS: "above",
            },
            why="steps on long gradients overshoot, and those on short ones cannot make up for it",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
