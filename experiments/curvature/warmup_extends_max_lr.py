"""Warm-up reaches learning rates far above the largest constant one, by lowering the curvature.

Claim      A two-layer linear network on one sample trains at every constant rate η below 4/λ_0,
           λ_0 the curvature at the start, and at none above. With a linear warm-up it trains at
           all rates below 1/|y|: the ramp pushes the curvature down along 2/η, where it ends. A
           tanh network on images, which diverges at a constant rate of four times 4/λ_0, trains
           at that rate behind a warm-up, and η times its sharpness stays near 2 on the way.
Control    A warm-up of a few steps saves nothing; above 1/|y| no solution is stable, and with the
           longest warm-up none is reached.
Reference  Gilmer et al. 2022, arXiv:2110.04369 (networks on ImageNet and translation there); both
           limits: Lewkowycz et al. 2020, arXiv:2003.02218, and dynamics/theory/catapult.py.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.data import digit_regression
from dynamics.measure import curvature
from dynamics.models import mlp
from dynamics.theory import catapult
from dynamics.training import trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P288",)
PILOT_SEEDS = (101, 102, 103)
TRAINED = 1e-3  # |f - y| of the linear network, for y = 0.1
LAST = 6  # measuring times over which it must stay so: chaos comes near y now and then
FITTED = 0.1  # loss of the network over that at its start
REACHED = 1.8  # η × sharpness from which the ramp is at its edge


@dataclasses.dataclass(frozen=True)
class Config:
    # Linear network. Rates are in units of 4 / λ_0; 1 / |y| is 5 of them, give or take 0.35.
    rates: tuple[float, ...] = (0.45, 0.75, 1.15, 1.5, 2.5, 3.5, 7.0)
    width: int = 200
    target: float = 0.1
    noise_std: float = 1e-3  # of the label; without it the error is 0 before η λ reaches 2
    quiet_steps: int = 300  # the last ones, without noise
    num_steps: int = 1500
    warmup_steps: int = 1000
    short_steps: int = 5  # warm-up of the control, in both networks
    # Network on digits, at a constant rate, a short and a long warm-up.
    low_rate: float = 0.5
    high_rate: float = 4.0
    network_width: int = 32
    weight_std: float = 1.7  # a sharp start
    num_images: int = 100
    network_steps: int = 500
    network_warmup: int = 300
    measure_every: int = 10
    lanczos_iterations: int = 10  # from the last eigenvector
    num_seeds: int = 5
    seed: int = 1


class Result(NamedTuple):
    """S seeds, W kinds of warm-up (none, short, long), R rates, T times, C settings of networks.

    Settings of networks: low rate; high rate without, with a short and with a long warm-up.
    """

    error: Array  # (S, W, R) largest |f - y| of the last times; not finite where it diverged
    edge: Array  # (S, W, R, T) η λ of the linear network, of the present η
    stable_rate: Array  # (S, R) η |y|: 1 is the largest that any solution survives
    loss: Array  # (S, C, T') of the networks
    network_edge: Array  # (S, C, T') η × sharpness, of the present η
    sharpness: Array  # (S, C, T')


def linear_times(config: Config) -> np.ndarray:
    return np.linspace(0, config.num_steps, 76).astype(int)


def network_times(config: Config) -> np.ndarray:
    return np.arange(0, config.network_steps + 1, config.measure_every)


def run(config: Config) -> Result:
    linear_key, network_key = jax.random.split(jax.random.key(config.seed))
    linear_keys = jax.random.split(linear_key, config.num_seeds)
    kinds = np.array([1, config.short_steps, config.warmup_steps])
    ramps, rates = np.meshgrid(kinds, config.rates, indexing="ij")
    linear = parallel.ensemble(
        functools.partial(train_linear, config=config),
        members(linear_keys, ramps.ravel(), rates.ravel()),
    )
    error, edge, stable = (a.reshape(config.num_seeds, *ramps.shape, *a.shape[1:]) for a in linear)
    network_ramps = np.array([1, 1, config.short_steps, config.network_warmup])
    network_rates = np.array([config.low_rate, *[config.high_rate] * 3])
    network_keys = jax.random.split(network_key, config.num_seeds)
    found = parallel.ensemble(
        train_network(config), members(network_keys, network_ramps, network_rates)
    )
    found = [a.reshape(config.num_seeds, len(network_rates), -1) for a in found]
    return Result(error, edge, stable[:, 0], *found)


def members(keys: Array, ramps: np.ndarray, rates: np.ndarray) -> tuple[Array, Array, Array]:
    """Return every key with every setting, seeds first."""
    each = lambda a: jnp.tile(jnp.asarray(a, jnp.float32), len(keys))
    return jnp.repeat(keys, len(rates)), each(ramps), each(rates)


def train_linear(member: tuple[Key, Array, Array], config: Config):
    """Train f = u·v / m on one sample; return |f - y| in the end, η λ (T,) and η |y|."""
    key, ramp, relative = member
    start_key, noise_key = jax.random.split(key)
    weights = jax.random.normal(start_key, (2, config.width))
    curvature_of = lambda w: jnp.sum(w**2) / config.width
    output = lambda w: w[0] @ w[1] / config.width
    rate = relative * catapult.largest_constant_rate(curvature_of(weights))
    scheduled = lambda count: rate * jnp.minimum(1, (count + 1) / ramp)

    def step(state):
        w, count = state
        noisy = count < config.num_steps - config.quiet_steps
        noise = noisy * config.noise_std * jax.random.normal(jax.random.fold_in(noise_key, count))
        loss = lambda w: 0.5 * (output(w) - config.target - noise) ** 2
        # A rate of each unit: m times that of the mean over units.
        return w - scheduled(count) * config.width * jax.grad(loss)(w), count + 1

    measure = lambda state: (output(state[0]), scheduled(state[1]) * curvature_of(state[0]))
    outputs, edge = trajectory.record(step, (weights, jnp.array(0)), measure,
                                      times=linear_times(config))  # fmt: skip
    return (
        jnp.max(jnp.abs(outputs[-LAST:] - config.target)),
        edge,
        rate / catapult.largest_stable_rate(config.target),
    )


def train_network(config: Config):
    """Return the function that trains one network on digits: loss, η × sharpness and sharpness."""
    model = mlp.MLP(
        widths=(config.network_width, config.network_width, 10), weight_std=config.weight_std
    )
    loss, initialise = digit_regression.squared_error_on_digits(
        model, config.num_images, unit_variance=True
    )

    def train(member: tuple[Key, Array, Array]):
        key, ramp, relative = member
        init_key, probe_key = jax.random.split(key)
        params = initialise(init_key)
        sharpest = functools.partial(curvature.top_eigenpairs, loss, key=probe_key, num=1)
        rate = relative * catapult.largest_constant_rate(sharpest(params).values[0])
        scheduled = lambda count: rate * jnp.minimum(1, (count + 1) / ramp)

        def step(state):
            params, count = state
            descend = lambda leaf, slope: leaf - scheduled(count) * slope
            return jax.tree.map(descend, params, jax.grad(loss)(params)), count + 1

        def measure(state, vector):
            top = sharpest(state[0], start=vector, num_iterations=config.lanczos_iterations)
            value = top.values[0]
            measured = loss(state[0]), scheduled(state[1]) * value, value
            return measured, jax.tree.map(lambda leaf: leaf[0], top.vectors)

        return trajectory.record(
            step, (params, jnp.array(0)), measure, times=network_times(config),
            memory=jax.tree.map(jnp.zeros_like, params),
        )  # fmt: skip

    return train


def ramp_edge(config: Config, result: Result) -> np.ndarray:
    """Return the median of η × sharpness of the long ramp from its arrival at the edge on (S,)."""
    ramp = network_times(config) <= config.network_warmup
    edge = result.network_edge[:, -1, ramp]
    arrived = np.cumsum(edge >= REACHED, axis=1) > 0
    return np.array([np.median(e[a]) if a.any() else np.nan
                     for e, a in zip(edge, arrived, strict=True)])  # fmt: skip


def check(config: Config, result: Result) -> list[checks.Check]:
    rates = np.array(config.rates)
    below, above = rates <= 0.75, rates >= 1.15
    reachable = np.all(result.stable_rate <= 0.9, axis=0)  # (R,)
    hopeless = np.all(result.stable_rate >= 1.05, axis=0)
    trained = np.isfinite(result.error) & (result.error < TRAINED)  # (S, W, R)
    share = lambda flags: flags.reshape(len(flags), -1).mean(axis=1)
    driven = result.edge[:, -1][:, reachable & above]  # (S, R', T)
    end = np.isfinite(result.loss[..., -1]) & (
        result.loss[..., -1] < FITTED * result.loss[..., 0]
    )  # (S, C)
    times = network_times(config)
    flatter = result.sharpness[:, -1, times == config.network_warmup] / result.sharpness[:, -1, :1]
    return [
        checks.every_seed("share that trains at constant rates to 0.75 of 4/λ_0",
                          share(trained[:, 0][:, below]), lower=1, why="theory, wide networks"),
        checks.every_seed("share that trains at constant rates from 1.15 of 4/λ_0",
                          share(trained[:, 0][:, above]), upper=0, why="theory, wide networks"),
        checks.every_seed("share that trains with warm-up at rates to 0.9/|y|",
                          share(trained[:, 2][:, reachable]), lower=1,
                          why="the ramp is slow: 1000 steps"),
        checks.every_seed("η λ in the end, warm-up beyond 4/λ_0", driven[..., -1], lower=1.6,
                          upper=2, why="above 2 no end is stable; pilots from 1.76"),
        checks.every_seed("highest η λ after the first steps, warm-up", driven[..., 1:].max(axis=2),
                          upper=4, why="else it would diverge"),
        checks.every_seed("networks that train at the low constant rate", end[:, 0], lower=1,
                          role="precondition", why="else lower low_rate"),
        checks.below("share of networks that train at the high constant rate", end[:, 1].mean(),
                     0.4, why="none of 15 in the pilots; a third does at half the rate"),
        checks.above("share of networks that train at the high rate with warm-up",
                     end[:, 3].mean(), 0.8, why="all of 15 in the pilots, and of 32 beside"),
        checks.every_seed("median of η × sharpness at the edge of the ramp",
                          ramp_edge(config, result), lower=1.8, upper=2.6,
                          why="2, and what the ramp outruns: pilots 2.26 to 2.41"),
        checks.every_seed("sharpness after the ramp / at the start", flatter, upper=0.5,
                          why="2/η is 1/8 of λ_0; pilots to 0.17"),
        checks.every_seed("share that trains with warm-up above 1.05/|y|",
                          share(trained[:, 2][:, hopeless]), upper=0, role="control",
                          why="every solution has λ >= 2|y|"),
        checks.every_seed("share that trains with a short warm-up beyond 4/λ_0",
                          share(trained[:, 1][:, above]), upper=0, role="control",
                          why="the curvature has no time to fall"),
        checks.below("share of networks that train at the high rate with a short warm-up",
                     end[:, 2].mean(), 0.4, role="control",
                     why="the sharpness has no time to fall; none of 15 in the pilots"),
    ]  # fmt: skip


def plot(config: Config, result: Result, figure) -> None:
    figure.set_size_inches(7.2, 4.2)
    (left, right), (below, last) = panels = figure.subplots(2, 2)
    trained = np.isfinite(result.error) & (result.error < TRAINED)
    for w, name in enumerate(("constant", "short warm-up", "warm-up")):
        left.plot(config.rates, 100 * trained[:, w].mean(axis=0), plotting.MARKERS[w] + "-",
                  color=plotting.COLOURS[w], label=name, markersize=7 - 2 * w)  # fmt: skip
    scale = np.mean(result.stable_rate / np.array(config.rates))  # 4 |y| / λ_0
    for at, name in ((1.0, "4/λ₀"), (1 / scale, "1/|y|")):
        left.axvline(at, color="#888888", linewidth=0.8)
        left.text(at, 50, " " + name, fontsize=7)
    left.set(xscale="log", xlabel="η / (4/λ₀)", ylabel="linear networks trained (%)")
    left.set_xticks(config.rates, [f"{rate:g}" for rate in config.rates])
    left.minorticks_off()
    left.legend(loc=(0.45, 0.3))
    time = linear_times(config)
    driven = [r for r, rate in enumerate(config.rates) if rate > 1]
    for i, r in enumerate(driven):
        right.plot(time, result.edge[0, 2, r], color=plotting.COLOURS[i],
                   label=f"{config.rates[r]:g}")  # fmt: skip
    right.axvline(config.warmup_steps, color="#888888", linewidth=0.8)
    right.set(xlabel="step", ylabel="η(t) λ(t), linear", ylim=(0, 8))
    right.legend(title="η / (4/λ₀)", loc="upper left", ncols=5, columnspacing=1.0)
    time = network_times(config)
    names = (f"{config.low_rate:g}, constant", None, None, f"{config.high_rate:g}, warm-up")
    for c, name in enumerate(names):
        for s in range(config.num_seeds if name else 0):
            style = dict(color=plotting.COLOURS[c], linewidth=0.8)
            below.plot(time, result.loss[s, c], label=None if s else name, **style)
            last.plot(time, result.network_edge[s, c], **style)
    lost = np.mean(~(result.loss[:, 1:3, -1] < FITTED * result.loss[:, 1:3, 0]))
    below.plot([], [], " ", label=f"{config.high_rate:g}, constant or short\n"
               f"warm-up: {100 * lost:.0f} % diverge")  # fmt: skip
    below.set(yscale="log", xlabel="step", ylabel="loss on digits")
    below.legend(title="η / (4/λ₀)", loc="upper right")
    last.axvline(config.network_warmup, color="#888888", linewidth=0.8)
    last.set(xlabel="step", ylabel="η(t) × sharpness, digits", ylim=(0, 4.2))
    for panel in (right, last):
        plotting.threshold(panel, 2)
    plotting.label_panels(panels)


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    smoke=dict(rates=(0.45, 1.5, 3.5, 7.0), num_seeds=2, network_steps=400),
    paper=dict(num_images=1000, network_width=200, network_steps=2000, network_warmup=1000),
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
