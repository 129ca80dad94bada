"""The kernel of infinite depth is singular with exponent -4 log A' / log B'.

Claim      For activations φ of Gaussian mean zero and mean square one, with A' = E φ' ≠ 0 and
           B' = E φ'², the NNGP kernel of depth L on the sphere, divided by A'^2L, converges to a
           function that grows by B'^(α/2) when the distance r shrinks by B'^(1/2):
           α = -4 log|A'| / log B', for random polynomials as for tanh, erf and sine. The NTK
           divided by A'^2L goes to that function times (L + C), C of order r^-2: its exponent is
           α + 2 as long as L is far below r^-2 and α only far above.
Control    An activation with a mean gives no singularity (exponent zero); one without A' a kernel
           that falls faster than any power.
Reference  Radhakrishnan, Belkin, Uhler 2023, arXiv:2204.14126. The discrete scale invariance and
           the offset C, so the α + 2 at all depths in use, are derived here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.theory import hermite_expansion, infinite_depth
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P154",)
PILOT_SEEDS = (101, 102, 103)
FUNCTIONS = {"tanh": jnp.tanh, "erf": jax.scipy.special.erf, "sine": jnp.sin}
NUMBER = 80  # of Hermite coefficients
ROUNDING = 1e-12  # a mean of 1e-17 would be all that is left of the kernel at depth 300


@dataclasses.dataclass(frozen=True)
class Config:
    num_polynomials: int = 6  # random activations a seed
    degree: int = 7  # the largest of their Hermite polynomials
    lowest_slope: float = 0.2  # A'² of the polynomials is drawn between these two
    highest_slope: float = 0.7
    variances: tuple[float, ...] = (2.0,)  # of the pre-activations of tanh, erf and sine
    mean: float = 0.0  # added to φ before it is scaled; predict does not know it
    keep_slope: float = 1.0  # 0 takes the linear part out of φ; predict does not know it
    depths: tuple[int, ...] = (20, 80, 320)  # at B' = 1.3 it takes 110 layers to leave r = 1e-6
    smallest_distance: float = 1e-6
    largest_distance: float = 0.5
    small: float = 1e-3  # distances up to here are asked for their exponent: an error of order r²
    large: float = 0.05  # distances from here on are asked for the NTK's growth by a layer
    num_distances: int = 20
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        if not 0 < self.lowest_slope <= self.highest_slope < 1:
            message = f"lowest_slope={self.lowest_slope}: give 0 < lowest <= highest_slope < 1"
            raise ValueError(message)


class Prediction(NamedTuple):
    """S seeds, P activations of a seed."""

    exponent: Array  # (S, P) of the NNGP, and of the NTK at depths above r^-2
    tangent_exponent: Array  # (S, P) of the NTK at depths below r^-2


class Result(NamedTuple):
    """S seeds, P activations, D depths, R distances."""

    growth: Array  # (S, P) B', whose root is the ratio of distances that belong together
    log_nngp: Array  # (S, P, D, R, 2) at r and at sqrt(B') r, of the kernel by A'^2L
    log_ntk: Array  # (S, P, D, R, 2)
    layer: Array  # (S, P, R) what a layer more adds to NTK / A'^2L, by NNGP / A'^2L


def distances(config: Config) -> np.ndarray:
    ends = config.smallest_distance, config.largest_distance
    return np.geomspace(*ends, config.num_distances)


def keys(config: Config) -> Array:
    return jax.random.split(jax.random.key(config.seed), config.num_seeds)


def smooth(config: Config) -> list:
    """Return tanh, erf and sine, of pre-activations of each variance."""
    return [
        lambda z, function=function, scale=variance**0.5: function(scale * z)
        for function in FUNCTIONS.values()
        for variance in config.variances
    ]


def polynomials(key: Key, config: Config) -> Array:
    """Draw the Hermite coefficients (P', degree + 1) of polynomials without mean."""
    slope_key, rest_key = jax.random.split(key)
    shape, ends = (config.num_polynomials, 1), (config.lowest_slope, config.highest_slope)
    slope = jax.random.uniform(slope_key, shape, minval=ends[0], maxval=ends[1])
    rest = jax.random.dirichlet(rest_key, jnp.ones(config.degree - 1), shape[:1])
    return jnp.sqrt(jnp.concatenate([0 * slope, slope, (1 - slope) * rest], axis=1))


def predict(config: Config) -> Prediction:
    """Take E φ, E φ', E φ² and E φ'² of every activation itself: no series of the smooth ones."""

    def of_function(activation) -> Array:
        slope = jax.vmap(jax.grad(activation))
        mean = lambda f: hermite_expansion.coefficients(f, number=1)[0]
        square = mean(lambda z: activation(z) ** 2)
        mean_square_slope = mean(lambda z: slope(z) ** 2) / square
        return infinite_depth.singular_exponent(mean(slope) / jnp.sqrt(square), mean_square_slope)

    def of_polynomial(coefficients: Array) -> Array:
        slopes = jnp.sqrt(jnp.arange(1, config.degree + 1)) * coefficients[1:]  # h_k' ∝ h_(k-1)
        return infinite_depth.singular_exponent(slopes[0], jnp.sum(slopes**2))

    drawn = jax.vmap(lambda key: polynomials(key, config))(keys(config))
    fixed = jnp.stack([of_function(activation) for activation in smooth(config)])
    fixed = jnp.broadcast_to(fixed, (config.num_seeds, len(fixed)))
    exponent = jnp.concatenate([jax.vmap(jax.vmap(of_polynomial))(drawn), fixed], axis=1)
    return Prediction(exponent, exponent + 2)


def run(config: Config) -> Result:
    series = [hermite_expansion.coefficients(f, number=NUMBER) for f in smooth(config)]
    series = jnp.where(jnp.abs(jnp.stack(series)) > ROUNDING, jnp.stack(series), 0)
    padding = ((0, 0), (0, NUMBER - config.degree - 1))

    def run_one(key: Key) -> Result:
        drawn = jnp.pad(polynomials(key, config), padding)
        return jax.lax.map(lambda a: deepen(a, config), jnp.concatenate([drawn, series]))

    return parallel.ensemble(run_one, keys(config))


def deepen(coefficients: Array, config: Config) -> Result:
    """Follow the kernels of one activation through the layers."""
    coefficients = coefficients.at[0].add(config.mean).at[1].multiply(config.keep_slope)
    weights = coefficients**2 / jnp.sum(coefficients**2)
    growth = infinite_depth.slope_at_one(weights)
    distance = distances(config)[:, None] * jnp.stack([jnp.ones(()), jnp.sqrt(growth)])
    depths = (*config.depths, config.depths[-1] + 1)
    found = infinite_depth.kernels(weights, distance**2 / 2, depths=depths)
    by_layer = jnp.log(jnp.maximum(weights[1], 1e-6))  # not zero in the control without A'
    fallen = jnp.array(depths)[:, None, None] * by_layer
    nngp, ntk = found.log_nngp - fallen, found.log_ntk - fallen
    layer = jnp.exp(ntk[-1] - nngp[-1]) - jnp.exp(ntk[-2] - nngp[-1])
    return Result(growth, nngp[:-1], ntk[:-1], layer[:, 0])


def exponents(log_kernel: np.ndarray, growth: np.ndarray) -> np.ndarray:
    """Return -d log kernel / d log r over a factor sqrt(B') in r: (S, P, D, R)."""
    fall = log_kernel[..., 0] - log_kernel[..., 1]
    return fall / (np.log(growth)[..., None, None] / 2)


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    def worst(errors: np.ndarray) -> np.ndarray:  # (S,) with their signs
        errors = errors.reshape(len(errors), -1)
        return np.take_along_axis(errors, np.abs(errors).argmax(axis=1)[:, None], axis=1)[:, 0]

    r = distances(config)
    small, large = r <= config.small, r >= config.large
    deepest = lambda log: exponents(log, result.growth)[:, :, -1]
    nngp = deepest(result.log_nngp) / prediction.exponent[..., None] - 1
    tangent = deepest(result.log_ntk) / prediction.tangent_exponent[..., None] - 1
    settled = result.log_nngp[:, :, -1, large, 0] - result.log_nngp[:, :, -2, large, 0]
    apart = deepest(result.log_ntk) - deepest(result.log_nngp)
    return [
        checks.every_seed("relative error of the exponent of the NNGP, worst",
                          worst(nngp[..., small]), lower=-1e-4, upper=1e-4,
                          why="of order r² = 1e-6, and what is cut off of tanh and erf; "
                          "a missing factor of two is off by one half"),
        checks.every_seed("relative error of the exponent + 2 of the NTK, worst",
                          worst(tangent[..., small]), lower=-3e-3, upper=3e-3,
                          why="of order L r² = 3e-4; without the two it is off by one third"),
        checks.every_seed("what a layer adds to the scaled NTK by the scaled NNGP, from 1",
                          worst(result.layer[..., large] - 1), lower=-1e-9, upper=1e-9,
                          why="exact once samples are nearly orthogonal; C of 1e3 times rounding"),
        checks.every_seed("change of log NNGP / A'^2L between the last two depths, worst",
                          worst(settled), lower=-1e-5, upper=1e-5,
                          why="it converges as correlations die out: pilots 1.6e-7; the slope "
                          "alone would not tell; A'² a layer too many would be 100"),
        checks.every_seed("exponent of the NTK less that of the NNGP at the largest r, worst",
                          worst(apart[..., -1:]), lower=-0.2, upper=0.2,
                          why="C / (L + C) of the two is left, and L r² is 80: pilots 0.07, 0.08"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    r, ten = distances(config), np.log(10)
    for i, depth in enumerate(config.depths):
        left.plot(r, result.log_nngp[0, 0, i, :, 0] / ten, plotting.MARKERS[i], markersize=3,
                  color=plotting.COLOURS[i], label=f"L = {depth}")  # fmt: skip
    near = result.log_nngp[0, 0, -1, 0, 0] - prediction.exponent[0, 0] * np.log(r / r[0])
    plotting.theory(left, r, near / ten, label="slope -α")
    left.set(xscale="log", xlabel="distance r", ylabel="log$_{10}$ NNGP / A'$^{2L}$")
    at = np.searchsorted(r, config.small) - 1
    measured = [exponents(log, result.growth)[:, :, -1, at] for log in result[1:3]]
    ends = np.array([prediction.exponent.min(), prediction.exponent.max()])
    for i, (values, name) in enumerate(zip(measured, ("NNGP", "NTK"), strict=True)):
        middle.plot(prediction.exponent.ravel(), values.ravel(), plotting.MARKERS[i],
                    color=plotting.COLOURS[i], label=name)  # fmt: skip
        plotting.theory(middle, ends, ends + 2 * i, label=None if i else "α and α + 2")
    middle.set(xlabel="α = -4 log|A'| / log B'", ylabel=f"exponent at L = {config.depths[-1]}")
    gap = [exponents(log, result.growth)[0, 0] for log in result[1:3]]
    for i, depth in enumerate(config.depths):
        right.plot(depth * r**2, (gap[1] - gap[0])[i], plotting.MARKERS[i], markersize=3,
                   color=plotting.COLOURS[i], label=f"L = {depth}")  # fmt: skip
    plotting.threshold(right, 2)
    plotting.threshold(right, 0)
    right.set(xscale="log", xlabel="L r²", ylabel="exponent of NTK less that of NNGP")
    for axes in panels:
        axes.legend()
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-2,
    precision="float64",
    smoke=dict(num_polynomials=2, num_distances=11),
    controls={
        "activation with a mean": contract.Control(
            dict(mean=0.3),
            breaks={
                "relative error of the exponent of the NNGP, worst": "below",
                "relative error of the exponent + 2 of the NTK, worst": "below",
                "what a layer adds to the scaled NTK by the scaled NNGP, from 1": "above",
            },
            why="all pairs end at one correlation above zero",
        ),
        "activation without a slope": contract.Control(
            dict(keep_slope=0.0),
            breaks={
                "relative error of the exponent of the NNGP, worst": "above",
                "relative error of the exponent + 2 of the NTK, worst": "above",
            },
            why="correlations are squared in each layer and soon fall faster than any power",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
