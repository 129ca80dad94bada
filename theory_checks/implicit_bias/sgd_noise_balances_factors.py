"""The noise of sampled tokens balances the factors of a softmax model and flattens its minimum.

Claim      SGD on sampled targets, from the minimum of the cross-entropy of logits A b: the loss
           stays, while the trace of the Hessian falls. For one logit u v the imbalance u² - v² is
           multiplied by 1 - η² ξ² at every step, ξ the noise, exactly, and in the mean decays as
           predicted, the fluctuation of the logit included. For eight tokens the imbalance
           A^T A - b b^T obeys its own identity, and its trace |A|² - |b|² follows the drift
           -∇ Tr H / 4 along the minima, in time η² x steps.
Control    Without noise nothing moves. Isotropic noise of the same size flattens nothing.
Reference  Liu et al. 2023, arXiv:2210.14199; the drift is Li, Wang and Arora 2022,
           arXiv:2110.06914; the laws in steps are derived in dynamics.theory.factor_balance.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.theory import factor_balance
from dynamics.training import trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P62",)
PILOT_SEEDS = (101, 102, 103, 104, 105)
NOISES = ("sampled", "none", "isotropic")
DECAY = "one logit: largest error of log E[u² - v²] against the predicted, over the fall"
DRIFT = "eight tokens: error of |A|² - |b|² over its fall and first η Tr H, mean of seeds"


@dataclasses.dataclass(frozen=True)
class Config:
    probability: float = 0.3  # of the one logit
    first: float = 3.0  # u at the start; v is what gives the probability
    rates: tuple[float, ...] = (0.05, 0.1)
    num_steps: int = 3000
    num_chains: int = 400
    vocabulary: int = 8
    hidden: int = 4
    stretch: float = 2.0  # A times it, b over it
    vector_rate: float = 0.02
    vector_steps: int = 20_000
    vector_chains: int = 16
    sampled: bool = True  # False for a control; predict does not know it
    num_times: int = 20
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        if not 0 < self.probability < 1 or min(self.rates) <= 0:
            message = f"probability={self.probability}, rates={self.rates}: inside (0, 1), positive"
            raise ValueError(message)
        if self.num_steps % self.num_times or self.vector_steps % self.num_times:
            message = f"num_times={self.num_times}: give a divisor of num_steps and vector_steps"
            raise ValueError(message)

    def start(self) -> tuple[float, float]:
        """Return u and v at the start."""
        logit = np.log(self.probability / (1 - self.probability))
        return self.first, logit / self.first

    def times(self, num_steps: int) -> np.ndarray:
        """Return the steps at which a run of so many is measured (T,)."""
        return num_steps // self.num_times * np.arange(self.num_times + 1)


class Prediction(NamedTuple):
    """L rates, T times, S seeds."""

    balance: Array  # (L, T) E[u² - v²] over its start
    imbalance: Array  # (S, T) |A|² - |b|² along the drift, over its start


class Result(NamedTuple):
    """Z noises: sampled targets, none, isotropic; means over chains."""

    balance: Array  # (S, Z, L, T) mean of u² - v² over its start
    balance_error: Array  # (S, L) largest relative error of the product law
    flatness: Array  # (S, Z, L, T) mean of u² + v² over its start
    excess: Array  # (S, Z, L, T) mean cross-entropy less the entropy
    imbalance: Array  # (S, T) |A|² - |b|² over its start, eight tokens, mean of chains
    trace: Array  # (S, T) of the Hessian there
    vector_excess: Array  # (S, T)
    imbalance_error: Array  # (S,) largest relative error of the identity
    still: Array  # (S,) largest relative change of the trace without noise


def predict(config: Config) -> Prediction:
    balance = [
        factor_balance.imbalance_course(
            config.probability, *config.start(), learning_rate=rate, num_steps=config.num_steps
        )[config.times(config.num_steps)]
        for rate in config.rates
    ]
    times = config.times(config.vector_steps) * config.vector_rate**2

    def follow(outer, inner, target):
        course = factor_balance.drift(outer, inner, factor_balance.covariance(target), times)
        imbalance = (course.outer**2).sum(axis=(1, 2)) - (course.inner**2).sum(axis=1)
        return imbalance / imbalance[0]

    drifts = [follow(*one) for one in zip(*map(np.asarray, draws(config)), strict=True)]
    return Prediction(jnp.array(balance), jnp.array(drifts))


def keys(config: Config) -> Array:
    return jax.random.split(jax.random.key(config.seed), config.num_seeds)


def draws(config: Config) -> tuple[Array, Array, Array]:
    """Return A (S, V, K), b (S, K) and the token's probabilities (S, V), which A b fits."""

    def one(key):
        normal = jax.random.normal(key, (config.vocabulary + 1, config.hidden + 1))
        outer, inner, target = normal[:-1, :-1], normal[-1, :-1], jax.nn.softmax(normal[:-1, -1])
        missing = jnp.log(target) - outer @ inner
        outer = outer + missing[:, None] * inner / (inner @ inner)
        return config.stretch * outer, inner / config.stretch, target

    return parallel.ensemble(one, keys(config))


def run(config: Config) -> Result:
    def one(member):
        key, drawn, sampled = member  # a number, so that the control is the same program
        key = jax.random.fold_in(key, 1)
        return (*train_scalar(key, sampled, config),
                *train_vector(key, *drawn, sampled, config))  # fmt: skip

    sampled = jnp.full(config.num_seeds, float(config.sampled))
    return Result(*parallel.ensemble(one, (keys(config), draws(config), sampled)))


def train_scalar(key: Key, sampled: Array, config: Config):
    """Train chains of one logit u v with every noise and rate, on the same targets."""
    p, (first, second) = config.probability, config.start()
    # Step by step of the variance of sampled targets at the start, in every direction alike.
    spread = np.sqrt(p * (1 - p) * (first**2 + second**2) / 2)
    rates, shape = jnp.array(config.rates)[:, None], (3, len(config.rates), config.num_chains)

    def advance(state):
        (u, v), log_factor, step = state
        uniform = jax.random.uniform(jax.random.fold_in(key, step), (3, *shape[1:]))
        drawn = (uniform[0] < p).astype(u.dtype)
        targets = jnp.stack([p + sampled * (drawn - p), *[jnp.full_like(drawn, p)] * 2])
        noise = jax.nn.sigmoid(u * v) - targets
        shake = spread * rates * jnp.sign(uniform[1:] - 0.5)
        only = jnp.array([0.0, 0.0, 1.0])[:, None, None]
        after = u - rates * noise * v + only * shake[0], v - rates * noise * u + only * shake[1]
        return after, log_factor + jnp.log1p(-((rates * noise[0]) ** 2)), step + 1

    def measure(state):
        (u, v), log_factor, _ = state
        balance = (u**2 - v**2) / (first**2 - second**2)
        error = jnp.abs(balance[0] / jnp.exp(log_factor) - 1).max(axis=-1)
        flatness = (u**2 + v**2) / (first**2 + second**2)
        loss = jax.nn.softplus(u * v) - p * u * v + p * np.log(p) + (1 - p) * np.log(1 - p)
        return tuple(leaf.mean(axis=-1) for leaf in (balance, flatness, loss)), error

    state = (jnp.full(shape, first), jnp.full(shape, second)), jnp.zeros(shape[1:]), 0
    times = config.times(config.num_steps)
    (balance, flatness, loss), error = trajectory.record(advance, state, measure, times=times)
    balance, flatness, loss = (jnp.moveaxis(leaf, 0, -1) for leaf in (balance, flatness, loss))
    return balance, error.max(axis=0), flatness, loss


def train_vector(key: Key, outer, inner, target, sampled: Array, config: Config):
    """Train chains of A b on sampled tokens; the last chain is given the probabilities."""
    rate, count = config.vector_rate, config.vector_chains + 1
    noisy = sampled * (jnp.arange(count) < config.vector_chains)[:, None]

    def trace(outer, inner):
        guess = jax.nn.softmax(outer @ inner)
        return factor_balance.hessian_trace(outer, inner, jnp.diag(guess) - guess[:, None] * guess)

    def loss(outer, inner):
        return target @ (jnp.log(target) - jax.nn.log_softmax(outer @ inner))

    def move(outer, inner, imbalance, token, noisy):
        aim = target + noisy * (jax.nn.one_hot(token, config.vocabulary) - target)
        noise = jax.nn.softmax(outer @ inner) - aim
        change = factor_balance.imbalance_change(outer, inner, noise)
        return (outer - rate * noise[:, None] * inner, inner - rate * outer.T @ noise,
                imbalance + rate**2 * change)  # fmt: skip

    def advance(state):
        factors, step = state
        uniform = jax.random.uniform(jax.random.fold_in(key, step), (count, 1))
        tokens = jnp.sum(uniform > jnp.cumsum(target)[:-1], axis=1)
        return jax.vmap(move)(*factors, tokens, noisy), step + 1

    def measure(state):
        (outer, inner, imbalance), _ = state
        direct = outer.swapaxes(1, 2) @ outer - inner[:, :, None] * inner[:, None]
        error = jnp.abs(direct - imbalance).max() / jnp.abs(direct).max()
        excess = jax.vmap(loss)(outer, inner)[:-1].mean()
        return jnp.trace(direct, axis1=1, axis2=2), jax.vmap(trace)(outer, inner), excess, error

    start = outer, inner, outer.T @ outer - inner[:, None] * inner
    start = tuple(jnp.broadcast_to(leaf, (count, *leaf.shape)) for leaf in start)
    times = config.times(config.vector_steps)
    imbalance, traces, excess, error = trajectory.record(advance, (start, 0), measure, times=times)
    still = jnp.abs(traces[:, -1] / traces[0, -1] - 1).max()
    means = (leaf[:, :-1].mean(axis=1) for leaf in (imbalance / imbalance[0, 0], traces))
    return *means, excess, error.max(), still


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    sampled, still, isotropic = range(len(NOISES))
    fall = np.log(prediction.balance)  # (L, T)
    error = np.abs(np.log(result.balance[:, sampled]) - fall) / np.abs(fall[:, -1:])
    drift = np.abs(result.imbalance - prediction.imbalance) / (1 - prediction.imbalance[:, -1:])
    half, size = slice(-(config.num_times // 2), None), np.sum(np.square(config.start()))
    curved = config.probability * (1 - config.probability) * size * result.flatness[:, sampled, 0]
    first_trace = config.vector_rate * result.trace[:, :1]
    floor = config.rates[0] * curved[:, half] / 4, config.vector_rate * result.trace[:, half] / 4
    return [
        checks.every_seed("one logit: largest relative error of u² - v² against the product",
                          result.balance_error.max(axis=1), upper=1e-10,
                          why="an identity; 3000 factors round to 1e-13"),
        checks.every_seed("eight tokens: largest relative error of A^T A - b b^T",
                          result.imbalance_error, upper=1e-10, why="an identity"),
        checks.every_seed(DECAY, error[:, 0].max(axis=-1), upper=0.01,
                          why="pilots 0.002; without the logit's fluctuation 0.025"),
        checks.every_seed("one logit: loss above the entropy over η Tr H / 4, last half",
                          result.excess[:, sampled, 0, half].mean(axis=1) / floor[0].mean(axis=1),
                          lower=0.8, upper=1.25, why="noise in a bowl: pilots 0.98 to 1.06"),
        checks.every_seed("eight tokens: loss above the entropy over η Tr H / 4, last half",
                          result.vector_excess[:, half].mean(axis=1) / floor[1].mean(axis=1),
                          lower=0.5, upper=2, why="the same; pilots 0.91 to 1.22"),
        checks.every_seed("one logit: u² + v² at the end over its start, smaller rate",
                          result.flatness[:, sampled, 0, -1], upper=0.35, why="0.27 predicted"),
        checks.below(DRIFT, (drift / first_trace).max(axis=1).mean(), 0.25,
                     why="the drift is of lowest order in η Tr H: pilots 0.06 to 0.1"),
        checks.below("eight tokens: trace at the end over its start, mean of seeds",
                     (result.trace[:, -1] / result.trace[:, 0]).mean(), 0.75, why="pilots 0.4"),
        checks.every_seed("no noise: largest change of u² - v², u² + v² and the trace",
                          np.maximum(np.abs(result.balance[:, still] - 1).max(axis=(1, 2)),
                                     result.still), upper=1e-10, role="control",
                          why="at the minimum the gradient is zero"),
        checks.above("isotropic noise: u² + v² at the end over its start, mean of seeds",
                     result.flatness[:, isotropic, 0, -1].mean(), 1, role="control",
                     why="noise of no direction only spreads the factors; pilots 1.3"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    times = config.times(config.num_steps)
    for i, rate in enumerate(config.rates):
        style = dict(color=plotting.COLOURS[i], marker=plotting.MARKERS[i], spread="range")
        plotting.points(left, times, result.balance[:, 0, i], label=f"η = {rate:g}", **style)
        plotting.theory(left, times, prediction.balance[i], label=None if i else "predicted")
    left.set(yscale="log", xlabel="step", ylabel="mean u² - v² over its start (range of seeds)")
    left.legend()
    for i, name in enumerate(NOISES):
        plotting.points(middle, times, result.flatness[:, i, 0], spread="range",
                        label="no noise" if name == "none" else f"{name} noise",
                        color=plotting.COLOURS[i], marker=plotting.MARKERS[i])  # fmt: skip
    middle.set(xlabel="step", ylabel=f"mean u² + v² over its start, η = {config.rates[0]:g}",
               ylim=(0, 2.1))  # fmt: skip
    middle.legend(loc="upper left")
    drift_times = config.times(config.vector_steps) * config.vector_rate**2
    right.plot(drift_times, result.imbalance.T, "o", markersize=3)
    for i, course in enumerate(prediction.imbalance):
        plotting.theory(right, drift_times, course, linewidth=0.8,
                        label=None if i else "drift along the minima")  # fmt: skip
    right.set(xlabel="η² x steps", ylabel="|A|² - |b|² over its start, each seed")
    right.legend()
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=0.1,
    precision="float64",
    smoke=dict(num_seeds=3, num_chains=200, vector_rate=0.04, vector_steps=5000),
    controls={
        "targets that are their mean": contract.Control(
            dict(sampled=False),
            breaks={
                DECAY: "above",
                DRIFT: "above",
                "one logit: u² + v² at the end over its start, smaller rate": "above",
                "eight tokens: trace at the end over its start, mean of seeds": "above",
            },
            why="at the minimum the full gradient is zero: what drifts is driven by noise",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
