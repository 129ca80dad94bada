"""At criticality the signal of a deep tanh network dies as 1/(2 depth), whatever its size was.

Claim      With weights of variance C_W = 1 over fan-in and no biases the variance of the
           pre-activations obeys 1/K_l = 2 l - (5/6) log l + const: K_l tends to 1/(2l), and what
           the input's norm was is forgotten. Random networks of finite width n have this variance
           less 1/(6n), and it varies from network to network by K_l sqrt(2l / 3n).
Control    Off criticality no power law: at C_W = 0.9 the variance falls as 0.9^l, at C_W = 1.2 it
           tends to a constant; networks of that size follow these laws too.
Reference  Roberts, Yaida, Hanin 2022, arXiv:2106.10165, chapter 5 (the rate 1/2l and the effect of
           finite width); the logarithm and the constants of finite width are derived in
           dynamics/theory/criticality.py and dynamics/theory/finite_width_signal.py.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.theory import criticality, finite_width_signal, signal_propagation
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P60",)
PILOT_SEEDS = (101, 102, 103)
WEIGHT_VARIANCES = (0.9, 1.0, 1.2)  # the critical one is in the middle


@dataclasses.dataclass(frozen=True)
class Config:
    input_variances: tuple[float, ...] = (0.25, 1.0, 4.0)  # K_0
    num_layers: int = 4000  # of infinite width: the law is reached as log l / l
    width: int = 64
    num_network_layers: int = 16  # l/n = 1/4: what is left out, of order (l/n)², is 1 %
    num_networks: int = 512  # a seed
    num_seeds: int = 5
    seed: int = 1


class Prediction(NamedTuple):
    """C weight variances, V input variances, D layers of the networks and 0."""

    rate: Array  # () of 1/K_l in l
    logarithm: Array  # () coefficient of log l in 1/K_l
    network_mean: Array  # (C, V, D + 1) of G over networks, to first order in 1/n
    network_variance: Array  # (C, V, D + 1) of G over networks, to first order in 1/n


class Result(NamedTuple):
    """S seeds, N networks, C weight variances, V input variances."""

    kernel: Array  # (C, V, L + 1) the recursion, infinite width
    network: Array  # (S, N, C, V, D + 1) G, variance of the pre-activations given a network


def predict(config: Config) -> Prediction:
    """Taylor coefficients of E[tanh²], and its derivatives along the recursion."""
    found = [
        finite_width_signal.finite_width_variance(
            jnp.tanh, jnp.array(config.input_variances), config.num_network_layers,
            width=config.width, weight_variance=weight_variance,
        )
        for weight_variance in WEIGHT_VARIANCES
    ]  # fmt: skip
    stack = lambda arrays: jnp.moveaxis(jnp.stack(arrays), 1, 2)
    return Prediction(
        *criticality.variance_decay(jnp.tanh),
        stack([f.mean for f in found]),
        stack([f.variance for f in found]),
    )


def run(config: Config) -> Result:
    starts = jnp.array(config.input_variances)
    iterate = jax.vmap(
        lambda weight_variance: signal_propagation.variances(
            jnp.tanh, starts, config.num_layers, weight_variance=weight_variance
        )
    )
    kernel = jax.jit(iterate)(jnp.array(WEIGHT_VARIANCES))  # (C, L + 1, V)
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    networks = parallel.ensemble(
        lambda key: jax.lax.map(
            lambda network_key: network(network_key, config),
            jax.random.split(key, config.num_networks),
        ),
        keys,
    )
    return Result(jnp.moveaxis(kernel, 1, 2), networks)


def network(key: Key, config: Config) -> Array:
    """Return G_0 to G_D of one draw of the weights, (C, V, D + 1).

    The inputs are parallel, so that they share the first pre-activations up to their norm.
    """
    width = config.width
    scale = jnp.sqrt(jnp.array(WEIGHT_VARIANCES, jnp.float32))[:, None]
    starts = jnp.array(config.input_variances, jnp.float32)
    input_key, layer_key = jax.random.split(key)
    first = jax.random.normal(input_key, (width, 1, 1), jnp.float32) * jnp.sqrt(starts)
    z = jnp.broadcast_to(first, (width, len(WEIGHT_VARIANCES), len(starts)))

    def layer(z: Array, key: Key) -> tuple[Array, Array]:
        weights = jax.random.normal(key, (width, width), jnp.float32) / width**0.5
        hidden = jnp.tanh(z)
        after = scale * jnp.einsum("ij,jcv->icv", weights, hidden)
        return after, scale**2 * jnp.mean(hidden**2, axis=0)

    keys = jax.random.split(layer_key, config.num_network_layers)
    _, variances = jax.lax.scan(layer, z, keys)  # (D, C, V)
    start = jnp.broadcast_to(starts, variances.shape[1:])
    return jnp.moveaxis(jnp.concatenate([start[None], variances]), 0, 2)


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    below, critical, above = result.kernel  # (V, L + 1)
    last = config.num_layers
    early = last // 4
    rest = 1 / critical[:, [early, last]] - prediction.rate * np.array([early, last])
    logarithm = (rest[:, 1] - rest[:, 0]) / np.log(4)
    layers = [config.num_network_layers // 4, config.num_network_layers]
    networks = result.network.reshape(-1, *result.network.shape[2:])[..., layers]
    mean, spread = prediction.network_mean[..., layers], prediction.network_variance[..., layers]
    deviation = (networks.mean(axis=0) - mean) / np.sqrt(spread / len(networks))  # (C, V, 2)
    infinite = result.kernel[:, :, layers]
    limit = (networks.mean(axis=0) - infinite)[1, :, 1] / np.sqrt(spread / len(networks))[1, :, 1]
    slope = np.log(below[:, 300] / below[:, 100]) / 200
    why = "standard errors by theory; of the five, one is for what is of order (l/n)²: 0.9 %"
    exact = "the recursion has no chance in it; "
    return [
        checks.every_seed("rate × l K_l in the last layer, every input",
                          prediction.rate * last * critical[:, last], lower=0.998, upper=1.002,
                          why=exact + "theory: 1 + (5/12) log l / l = 1.0009, less const / l"),
        checks.every_seed("coefficient of log l in 1/K_l / theory, every input",
                          logarithm / prediction.logarithm, lower=0.995, upper=1.005,
                          why=exact + "what comes next falls as log l / l, 0.1 %"),
        checks.below("largest K_l / smallest, over inputs, in the last layer",
                     critical[:, last].max() / critical[:, last].min(), 1.001,
                     why="differs by const / 2l; it was 16 at the input"),
        checks.every_seed("mean G of finite networks from theory at C_W = 1, standard errors",
                          deviation[1], lower=-5, upper=5, why=why),
        checks.every_seed("variance of G at C_W = 1 over networks / theory",
                          networks.var(axis=0)[1] / spread[1], lower=0.7, upper=1.25,
                          why="order (l/n)² lowers it by 7 %; the standard error is 4.4 %"),
        checks.every_seed("mean G from the limit of infinite width, last layer, standard errors",
                          limit, upper=-2.5, role="control",
                          why="theory: 6 % lower; 10 000 networks 5.3 %, here 6.5 standard errors"),
        checks.every_seed("mean G from theory at C_W = 0.9 and 1.2, standard errors",
                          deviation[[0, 2]], lower=-5, upper=5, role="control", why=why),
        checks.every_seed("slope of log K_l in l at C_W = 0.9 / log 0.9", slope / np.log(0.9),
                          lower=0.999, upper=1.001, role="control",
                          why="exponential: what tanh adds is gone after a hundred layers"),
        checks.below("change of K_l at C_W = 1.2 over the last three quarters of the layers",
                     np.ptp(above[:, [early, last]], axis=1).max(), 1e-9, role="control",
                     why="a fixed point, approached exponentially"),
        checks.every_seed("K_l at C_W = 1.2 in the last layer", above[:, last], lower=0.05,
                          role="control", why="not zero: to first order (1 - 1/1.2) / 2 = 0.08"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = figure.subplots(1, 3)
    layers = np.unique(np.geomspace(1, config.num_layers, 150).astype(int))
    l = np.geomspace(20, config.num_layers, 100)  # noqa: E741
    for v, start in enumerate(config.input_variances):
        colour = plotting.COLOURS[v]
        kernel = result.kernel[1, v]
        left.loglog(layers, kernel[layers], color=colour, label=f"$K_0$ = {start:g}")
        rest = 1 / kernel[layers] - float(prediction.rate) * layers
        middle.semilogx(layers, rest, color=colour)
        constant = rest[-1] - float(prediction.logarithm) * np.log(config.num_layers)
        plotting.theory(middle, l, float(prediction.logarithm) * np.log(l) + constant,
                        label="$-(5/6)$ log l + const" if v == 0 else None)  # fmt: skip
        shown = np.arange(2, config.num_network_layers + 1, 2)
        networks = 2 * shown * result.network[:, :, 1, v][..., shown].mean(axis=1)
        plotting.points(right, shown, networks, color=colour, marker=plotting.MARKERS[v])
        plotting.theory(right, shown, 2 * shown * prediction.network_mean[1, v, shown],
                        color=colour, label="to order 1/n" if v == 0 else None)  # fmt: skip
        right.plot(shown, 2 * shown * kernel[shown], color=colour, alpha=0.5, linewidth=0.9,
                   label="infinite width" if v == 0 else None)  # fmt: skip
    for c, colour in ((0, "#777777"), (2, "#CC79A7")):
        label = f"$C_W$ = {WEIGHT_VARIANCES[c]:g}"
        left.loglog(layers, result.kernel[c, 1, layers], color=colour, linestyle="-.", label=label)
    plotting.theory(left, l, 1 / (float(prediction.rate) * l), label="1 / 2l")
    left.set(xlabel="layer l", ylabel="variance of pre-activations, $K_l$", ylim=(5e-5, 5))
    left.legend(fontsize=6)
    middle.set(xlabel="layer l", ylabel="$1/K_l - 2l$")
    middle.legend()
    right.set(xlabel="layer l", ylabel=f"2l × mean of G, width {config.width}")
    right.legend()
    plotting.label_panels([left, middle, right])


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=0.01,
    precision="float64",
    smoke=dict(),  # the full run takes seconds
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
