"""In critical ReLU networks forward and backward signals are equally well kept at depth L^(3/5).

Claim      On the edge of chaos the angle of two inputs of a deep ReLU network falls as
           3π / (l + 3/2 log l + const), so that 1 minus their correlation falls as 9π²/2l², and
           gradients that start alike in layer L keep (l/L)³ of their correlation. The layer at
           which the first is as small as the second is (9π²/2)^(1/5) L^(3/5), from above: the
           local exponent is still 0.66 at the depths of real networks, 2^8. Random networks of
           finite width follow both recursions.
Control    With a smooth activation, tanh on its own edge of chaos, the two fall as 1/l and (l/L)²
           and the exponent is 2/3; with biases in the ordered phase the decay is exponential.
Reference  Lou et al. 2022, arXiv:2110.11749 (the equilibrium of the two losses as an account of
           which layers learn; not tested here: no network that is trained is deep enough);
           Hayou et al. 2019, arXiv:1902.06853 (both decays). The logarithm is derived here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.theory import criticality, signal_propagation
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P290",)
PILOT_SEEDS = (101, 102, 103)


@dataclasses.dataclass(frozen=True)
class Config:
    correlations: tuple[float, ...] = (-0.5, 0.0, 0.3, 0.7)
    log2_depths: tuple[int, ...] = (8, 10, 12, 14, 16, 18, 20)
    log2_smooth_depths: tuple[int, ...] = (8, 10, 12, 13)  # of tanh, whose layers cost more
    smooth_variance: float = 0.5  # of the pre-activations of tanh
    ordered_gain: float = 0.75  # χ = C_W / 2 in the ordered phase
    weight_gain: float = 1.0  # χ of the claim; predict does not know it
    width: int = 128
    num_network_layers: int = 8  # below n / 10: what finite width adds is within a standard error
    num_networks: int = 64  # a seed
    num_seeds: int = 5
    seed: int = 1


class Prediction(NamedTuple):
    """P pairs of inputs, D layers of the networks and 0."""

    amplitude: Array  # () of the forward decay in l^-2
    logarithm: Array  # () a in θ_l = 3π / (l + a log l + const)
    backward: Array  # () exponent of the gradients' correlation in l/L
    crossing: Array  # () exponent of the layer where the two meet
    prefactor: Array  # () of that layer in L^crossing
    defect: Array  # (D + 1, P) 1 - correlation of random networks, infinite width
    kept: Array  # (D + 1, P) correlation of their gradients


class Result(NamedTuple):
    """S seeds, N networks of D layers, P pairs, X depths L, Y depths of tanh."""

    defect: Array  # (X, P) 1 - correlation at layer L, recursion
    angle: Array  # (X, P) at layer L
    kept: Array  # (X, P) correlation of gradients at layer L/2, in a network of depth L
    crossing: Array  # (X, P) layer where the defect meets the kept correlation
    curve_layers: Array  # (Z,) layers for the figure
    curve_defect: Array  # (Z, P)
    curve_kept: Array  # (3, Z, P) in networks of three depths; NaN above their last layer
    smooth_defect: Array  # (Y, P) tanh at its edge of chaos
    smooth_crossing: Array  # (Y, P)
    ordered_defect: Array  # (101, P) ReLU in the ordered phase
    network_defect: Array  # (S, N, D + 1, P) of random networks
    network_kept: Array  # (S, N, D + 1, P)


def predict(config: Config) -> Prediction:
    """θ' = θ - θ²/3π - θ³/18π², so 1/θ' = 1/θ + 1/3π + θ/6π²; gradients keep 1 - θ/π = 1 - 3/l."""
    amplitude = (3 * jnp.pi) ** 2 / 2  # 1 - cos θ = θ²/2
    found = signal_propagation.relu_correlations(
        jnp.array(config.correlations), config.num_network_layers
    )
    return Prediction(
        amplitude,
        jnp.array(3 * jnp.pi * 3 * jnp.pi / (6 * jnp.pi**2)),  # Σ θ/6π² = Σ 1/2πl, by 3π
        jnp.array(3.0),
        jnp.array(3 / (2 + 3)),  # A l^-2 = (l/L)³
        amplitude ** (1 / (2 + 3)),
        found.defect,
        jnp.exp(signal_propagation.backward_correlations(found.derivative)),
    )


def run(config: Config) -> Result:
    pairs, depths = jnp.array(config.correlations), 2 ** np.array(config.log2_depths)
    curve_layers = np.unique(np.geomspace(1, depths[-1], 120).astype(int))

    def recursion(pairs: Array) -> tuple[Array, ...]:
        found = signal_propagation.relu_correlations(
            pairs, int(depths[-1]), gain=config.weight_gain
        )
        normalised = found._replace(derivative=found.derivative / config.weight_gain)
        passed = signal_propagation.backward_correlations(
            normalised.derivative
        )  # log, from the end
        defect = found.defect[depths]
        ends = depths[np.linspace(0, len(depths) - 1, 3).astype(int)]
        below = lambda end: (curve_layers <= end)[:, None]
        kept = lambda end: jnp.exp(passed[curve_layers] - passed[end])
        curves = [jnp.where(below(end), kept(end), jnp.nan) for end in ends]
        return (
            defect,
            2 * jnp.arcsin(jnp.sqrt(defect / 2)),
            jnp.exp(passed[depths // 2] - passed[depths]),
            signal_propagation.crossing_layers(normalised, depths),
            jnp.array(curve_layers),
            found.defect[curve_layers],
            jnp.stack(curves),
        )

    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    networks = parallel.ensemble(
        lambda key: jax.lax.map(
            lambda network_key: network(network_key, config),
            jax.random.split(key, config.num_networks),
        ),
        keys,
    )
    ordered = signal_propagation.relu_correlations(pairs, 100, gain=config.ordered_gain).defect
    return Result(*jax.jit(recursion)(pairs), *smooth(config), ordered, *networks)


def smooth(config: Config) -> tuple[Array, Array]:
    """Defect and crossing of tanh on its edge of chaos."""
    num_nodes, depths = 32, 2 ** np.array(config.log2_smooth_depths)
    start = criticality.critical_initialisation(
        jnp.tanh, config.smooth_variance, num_nodes=num_nodes
    )
    found = signal_propagation.smooth_correlations(
        jnp.tanh, jnp.array(config.correlations), int(depths[-1]), num_nodes=num_nodes,
        variance=config.smooth_variance, weight_variance=start.weight_variance,
    )  # fmt: skip
    return found.defect[depths], signal_propagation.crossing_layers(found, depths)


def network(key: Key, config: Config) -> tuple[Array, Array]:
    """Return the defect and the gradients' correlation of one network at layers 0 to D, (D+1, P).

    Gradients are those of one direction of the last pre-activations, the same for both inputs.
    """
    width, gain = config.width, config.weight_gain
    pairs = jnp.array(config.correlations, jnp.float32)
    input_key, layer_key, end_key = jax.random.split(key, 3)
    # The first pre-activations of two inputs: Gaussian vectors with the inputs' correlation
    u, w = jax.random.normal(input_key, (2, width, len(pairs)), jnp.float32)
    z = jnp.stack([u, pairs * u + jnp.sqrt(1 - pairs**2) * w])  # (2, n, P)

    def weights_of(key: Key) -> Array:
        return jax.random.normal(key, (width, width), jnp.float32) * (2 * gain / width) ** 0.5

    def forward(z: Array, keys: tuple[Key, Key]) -> tuple[Array, Array]:
        bias_key, key = keys
        bias = jax.random.normal(bias_key, (width, 1), jnp.float32) * (1 - gain) ** 0.5
        return jnp.einsum("ij,ajp->aip", weights_of(key), jax.nn.relu(z)) + bias, z

    def backward(gradient: Array, layer: tuple[Array, Key]) -> tuple[Array, Array]:
        z, key = layer
        gradient = (z > 0) * jnp.einsum("ji,ajp->aip", weights_of(key), gradient)
        return gradient, gradient

    bias_keys, keys = jax.random.split(layer_key, (2, config.num_network_layers))
    last, path = jax.lax.scan(forward, z, (bias_keys, keys))
    end = jnp.broadcast_to(jax.random.normal(end_key, (width, 1), jnp.float32), last.shape)
    _, gradients = jax.lax.scan(backward, end, (path, keys), reverse=True)

    def cosine(a: Array) -> Array:
        return jnp.sum(a[:, 0] * a[:, 1], axis=1) / jnp.prod(jnp.linalg.norm(a, axis=2), axis=1)

    states, slopes = jnp.concatenate([path, last[None]]), jnp.concatenate([gradients, end[None]])
    return 1 - cosine(states), cosine(slopes)


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    depths = 2.0 ** np.array(config.log2_depths)
    last = depths[-1]
    shift = 3 * np.pi / result.angle - depths[:, None]  # a log l + const
    logarithm = (shift[-1] - shift[-3]) / np.log(last / depths[-3])
    local = np.diff(np.log(result.crossing), axis=0) / np.diff(np.log(depths))[:, None]
    gaps = np.diff(np.log(2.0) * np.array(config.log2_smooth_depths))
    tanh = np.diff(np.log(result.smooth_crossing), axis=0) / gaps[:, None]
    slope = np.log(result.smooth_defect[-1] / result.smooth_defect[-2]) / gaps[-1]
    rate = np.diff(np.log(result.ordered_defect[[60, 100]]), axis=0)[0] / 40
    exact = "the recursion has no chance in it; "
    error = lambda name: network_error(config, result, prediction, name)
    return [
        checks.every_seed("l² (1 - c) / 9π²/2 at the largest depth, every pair",
                          last**2 * result.defect[-1] / prediction.amplitude,
                          lower=0.9998, upper=1.0002, why=exact + "3 log l / l is 4e-5"),
        checks.every_seed("coefficient of log l in 3π/θ / theory, every pair",
                          logarithm / prediction.logarithm, lower=0.999, upper=1.001,
                          why=exact + "what comes next falls as log l / l"),
        checks.every_seed("exponent of kept gradients in l/L / theory, largest depth",
                          -np.log2(result.kept[-1]) / prediction.backward,
                          lower=0.9998, upper=1.0002, why=exact + "log l / l is 1e-5"),
        checks.every_seed("local exponent of the crossing in L / theory, deepest",
                          local[-1] / prediction.crossing, lower=1.0, upper=1.005,
                          why=exact + "from above, by log l / l at l = L^(3/5): 0.3 %"),
        checks.every_seed("crossing / (9π²/2)^(1/5) L^(3/5), largest depth",
                          result.crossing[-1] / (prediction.prefactor * last**prediction.crossing),
                          lower=0.985, upper=1.0, why=exact + "less const + 3/2 log l / l, 0.3 %"),
        checks.every_seed("local exponent of the crossing, shallowest", local[0], lower=0.63,
                          why=exact + "0.65 to 0.69: 3/5 is not to be seen at L = 2^9"),
        error("defect"),
        error("kept"),
        checks.every_seed("tanh: local exponent of the crossing in L, deepest", tanh[-1],
                          lower=0.64, upper=0.69, role="control", why=exact + "theory 2/3"),
        checks.every_seed("tanh: exponent of 1 - c in l, deepest", slope, lower=-1.02,
                          upper=-0.97, role="control", why=exact + "theory -1"),
        checks.every_seed("ordered phase: slope of log(1 - c) in l / log χ",
                          rate / np.log(config.ordered_gain), lower=0.999, upper=1.001,
                          role="control", why=exact + "exponential: no power law"),
    ]  # fmt: skip


def network_error(config: Config, result: Result, prediction: Prediction, name: str):
    """Check the mean over networks of one quantity against the recursion."""
    layers = slice(config.num_network_layers // 2, config.num_network_layers)
    found = getattr(result, "network_" + name)[..., layers, :]
    found = found.reshape(-1, *found.shape[2:])  # (S N, D', P)
    error = found.std(axis=0) / len(found) ** 0.5
    label = {"defect": "1 - c", "kept": "correlation of gradients"}[name]
    return checks.every_seed(
        f"{label} of random networks from the recursion, upper half, standard errors",
        (found.mean(axis=0) - getattr(prediction, name)[layers]) / error, lower=-6, upper=6,
        why="in 5000 networks the width adds a standard error; five beside it are for chance",
    )  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = figure.subplots(1, 3)
    layers = result.curve_layers
    left.loglog(
        layers, result.curve_defect[:, 1], color=plotting.COLOURS[0], label="1 - c, forward"
    )
    ends = np.array(config.log2_depths)[np.linspace(0, len(config.log2_depths) - 1, 3).astype(int)]
    for i, (end, curve) in enumerate(zip(ends, result.curve_kept, strict=True)):
        left.loglog(layers, curve[:, 1], color=plotting.COLOURS[1 + i],
                    label=f"gradients, L = $2^{{{end}}}$")  # fmt: skip
    shown = layers > 30
    plotting.theory(left, layers[shown], prediction.amplitude / layers[shown] ** 2.0,
                    label="$9π^2/2l^2$ and $(l/L)^3$")  # fmt: skip
    l = layers[(layers <= 2 ** ends[-1]) & (layers > 2**14)]  # noqa: E741
    plotting.theory(left, l, (l / 2.0 ** ends[-1]) ** 3, label=None)
    left.set(xlabel="layer l", ylabel="1 - c, or correlation kept", ylim=(1e-27, 3))
    left.legend(fontsize=5.5, loc="lower left")
    depths = 2.0 ** np.array(config.log2_depths)
    tanh_depths = 2.0 ** np.array(config.log2_smooth_depths)
    between = np.sqrt(depths[1:] * depths[:-1])
    local = np.diff(np.log(result.crossing), axis=0) / np.diff(np.log(depths))[:, None]
    tanh = np.diff(np.log(result.smooth_crossing), axis=0) / np.diff(np.log(tanh_depths))[:, None]
    for p, correlation in enumerate(config.correlations):
        middle.semilogx(between, local[:, p], plotting.MARKERS[p], color=plotting.COLOURS[p],
                        label=f"ReLU, $c_0$ = {correlation:g}")  # fmt: skip
    middle.semilogx(np.sqrt(tanh_depths[1:] * tanh_depths[:-1]), tanh[:, 1], "X",
                    color=plotting.COLOURS[4], label="tanh, $c_0$ = 0")  # fmt: skip
    plotting.theory(middle, between, np.full(len(between), 0.6), label="3/5 and 2/3")
    plotting.theory(middle, between, np.full(len(between), 2 / 3), label=None)
    middle.legend(fontsize=5.5)
    middle.set(xlabel="depth L", ylabel="local exponent of the crossing")
    steps = np.arange(config.num_network_layers + 1)
    for i, (name, label) in enumerate((("defect", "1 - c"), ("kept", "gradients"))):
        found = getattr(result, "network_" + name)[..., 1].mean(axis=1)
        style = dict(color=plotting.COLOURS[i], marker=plotting.MARKERS[i])
        plotting.points(right, steps, found, label=f"{label}, n = {config.width}", **style)
        plotting.theory(right, steps, getattr(prediction, name)[:, 1],
                        label="recursion" if i else None)  # fmt: skip
    right.set(xlabel="layer l", ylabel="1 - c, or correlation kept")
    right.legend(fontsize=6)
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
    controls={
        "ordered phase": contract.Control(
            dict(weight_gain=0.99, log2_depths=(8, 9, 10), log2_smooth_depths=(8, 9, 10)),
            breaks={"l² (1 - c) / 9π²/2 at the largest depth, every pair": "below"},
            why="the correlation converges exponentially",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
