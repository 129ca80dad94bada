"""With a ridge readout each hidden neuron climbs its own energy, if ridge or width is large.

Claim      A squared-activation network on the table of addition modulo M, weights Gaussian and the
           readout at its optimum under ridge η: minus the loss gradient of each neuron turns to the
           gradient of its Li_2 energy as η grows at any width, the angle being first order in 1/η
           with the coefficient predicted; and as the width N grows at any ridge, as N^(-1/2), with
           length η / (κ + η)² of it, κ = 4 N std⁴.
Control    A random readout gives no such direction; with results at random places of the table the
           limit of large ridge stays, and that of large width is gone.
Reference  Tian 2025, "Provable Scaling Laws of Feature Emergence from Learning Dynamics of
           Grokking", for the limit; the first order, the limit of width and κ are derived here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.data import algorithmic
from dynamics.theory import modular_addition
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P261",)
PILOT_SEEDS = (101, 102, 103)


@dataclasses.dataclass(frozen=True)
class Config:
    modulus: int = 11
    widths: tuple[int, ...] = (256, 1024, 4096)  # rising
    ridges: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)  # η / κ, rising
    init_std: float = 0.1
    random_readout: bool = False  # predict does not know it
    shuffled: bool = False  # results at random places, also in the energy; known to first order
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        if len(self.widths) < 2 or list(self.widths) != sorted(set(self.widths)):
            message = f"widths={self.widths}: give two or more in rising order"
            raise ValueError(message)
        if 1.0 not in self.ridges or list(self.ridges) != sorted(set(self.ridges)):
            message = f"ridges={self.ridges}: give them in rising order, 1 among them"
            raise ValueError(message)


class Prediction(NamedTuple):
    """S seeds, P widths, R ridges."""

    turn: Array  # (S, P) root mean square angle times η, to first order in 1/η
    length: Array  # (P, R) of the gradient over that of the energy, at infinite width


class Result(NamedTuple):
    """As in Prediction; angles to the gradient of the energy of the table."""

    angle: Array  # (S, P, R) root mean square over neurons of its sine
    cosine: Array  # (S, P, R) mean over neurons
    length: Array  # (S, P, R) projection on the gradient of the energy, over its length
    fourier: Array  # (S, P) largest relative error of the energy's gradient in Fourier form


class Task(NamedTuple):
    """One network at its start: D = M² pairs, N neurons."""

    inputs: Array  # (D, 2 M)
    targets: Array  # (D, M) centred
    weights: Array  # (2 M, N)
    readout: Array  # (N, M) a random one


def kappa(config: Config) -> np.ndarray:
    """Return the eigenvalue of the features' Gram matrix on the targets, (P,), for large width."""
    return 4 * np.array(config.widths) * config.init_std**4


def draw(key: Key, width: int, shuffled, config: Config) -> Task:
    table_key, weight_key, readout_key = jax.random.split(key, 3)
    modulus = config.modulus
    results = jnp.asarray(algorithmic.cyclic_group(modulus).reshape(-1))
    results = jnp.where(shuffled, jax.random.permutation(table_key, results), results)
    a, b = jnp.divmod(jnp.arange(modulus**2), modulus)
    eye = jnp.eye(modulus)
    weights = config.init_std * jax.random.normal(weight_key, (2 * modulus, width))
    readout = jax.random.normal(readout_key, (width, modulus))
    inputs = jnp.concatenate([eye[a], eye[b]], axis=1)
    return Task(inputs, eye[results] - 1 / modulus, weights, readout)


def centred(task: Task, weights: Array) -> Array:
    hidden = (task.inputs @ weights) ** 2
    return hidden - hidden.mean(axis=0)


def over_widths(one, config: Config) -> list:
    """Return one(key, width, shuffled, random readout) of every seed, for each width."""
    found = []
    for i, width in enumerate(config.widths):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), i),
                                config.num_seeds)  # fmt: skip
        shuffled = jnp.full(config.num_seeds, config.shuffled)  # numbers, not branches: the
        random = jnp.full(config.num_seeds, config.random_readout)  # controls are one program
        fn = lambda member, width=width: one(member[0], width, *member[1:])
        found.append(parallel.ensemble(fn, (keys, shuffled, random)))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *found)


def predict(config: Config) -> Prediction:
    """With C = Y Y^T and features F: (F F^T + η)^(-1) C F (F^T F + η)^(-1) to first order is

    C F / η² - (F F^T C F + C F F^T F) / η³, of which the part across the first term turns.
    """

    def first_order(key: Key, width: int, shuffled, _):
        task = draw(key, width, shuffled, config)
        features = centred(task, task.weights)
        signal = task.targets @ (task.targets.T @ features)  # (D, N)
        gram = features @ features.T
        correction = gram @ signal + task.targets @ (task.targets.T @ (gram @ features))
        slope = 2 * task.inputs @ task.weights
        energy, across = (task.inputs.T @ (slope * part) for part in (signal, correction))
        return jnp.sqrt(jnp.mean(sine(energy, across) ** 2 * norm(across) ** 2 / norm(energy) ** 2))

    eta = kappa(config)[:, None] * np.array(config.ridges)
    length = eta / (kappa(config)[:, None] + eta) ** 2
    return Prediction(over_widths(first_order, config), jnp.asarray(length))


def norm(vectors: Array) -> Array:
    return jnp.linalg.norm(vectors, axis=0)


def sine(left: Array, right: Array) -> Array:
    """Return the sine of the angle of columns (2 M, N): (N,), exact for small ones too."""
    left, right = left / norm(left), right / norm(right)
    return norm(right - left * jnp.sum(left * right, axis=0))


def run(config: Config) -> Result:
    def measure(key: Key, width: int, shuffled, random) -> Result:
        task = draw(key, width, shuffled, config)
        features = centred(task, task.weights)
        gram = features @ features.T

        def energies(weights: Array) -> Array:
            return jnp.sum((task.targets.T @ (task.inputs @ weights) ** 2) ** 2) / 2

        energy = jax.grad(energies)(task.weights)

        def at(eta: Array):
            solved = jnp.linalg.solve(gram + eta * jnp.eye(len(gram)), task.targets)
            readout = jnp.where(random, task.readout, features.T @ solved)  # (N, M)
            loss = lambda w: jnp.sum((task.targets - centred(task, w) @ readout) ** 2) / 2
            uphill = -jax.grad(loss)(task.weights)
            along = jnp.sum(uphill * energy, axis=0)
            cosine = jnp.mean(along / norm(uphill) / norm(energy))
            angle = jnp.sqrt(jnp.mean(sine(energy, uphill) ** 2))
            return angle, cosine, along.sum() / jnp.sum(energy**2)

        ridges = 4 * width * config.init_std**4 * jnp.array(config.ridges)
        u, v = task.weights[: config.modulus].T, task.weights[config.modulus :].T
        fourier = jnp.concatenate(modular_addition.energy_gradient(u, v), axis=1).T
        error = jnp.max(norm(fourier - energy) / norm(energy))
        return Result(*jax.lax.map(at, ridges), error)

    return over_widths(measure, config)


def exponent(config: Config, angle: np.ndarray) -> np.ndarray:
    """Return the exponent of the angle in the width, between the two largest: (S, R)."""
    return np.diff(np.log(angle[:, -2:]), axis=1)[:, 0] / np.log(
        config.widths[-1] / config.widths[-2]
    )


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    eta = kappa(config) * config.ridges[-1]  # (P,)
    turned = result.angle[:, :, -1] * eta / prediction.turn - 1  # (S, P)
    length = result.length[:, -1] / prediction.length[-1] - 1  # (S, R)
    middle = exponent(config, result.angle)[:, config.ridges.index(1.0)]
    second = (
        "second order, -0.006 to -0.010 in pilots: the largest eigenvalue of F F^T is κ (M+2)/2"
    )
    return [
        checks.every_seed("largest ridge: angle over first order, less one, lowest",
                          turned.min(axis=1), lower=-0.02, why=second),
        checks.every_seed("largest ridge: angle over first order, less one, highest",
                          turned.max(axis=1), upper=0.005, why=second),
        checks.every_seed("largest width: lowest mean cosine over ridges",
                          result.cosine[:, -1].min(axis=1), lower=0.94,
                          why="rises to one as 1/N: pilots 0.97"),
        checks.every_seed("largest width: largest relative error of the length",
                          np.abs(length).max(axis=1), upper=0.2,
                          why="falls with N, largest at the smallest ridge: pilots below 0.08"),
        checks.between("exponent of the angle in the width at η = κ", middle.mean(), -0.54, -0.38,
                       why="-1/2 in the limit, for N independent neurons; pilots -0.46, where a "
                       "seed has deviation 0.03"),
        checks.every_seed("relative error of the energy's gradient in Fourier form",
                          result.fourier.max(axis=1), upper=1e-10, why="rounding: pilots 2e-15"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    ridges, widths = np.array(config.ridges), np.array(config.widths)
    for i, width in enumerate(widths):
        style = {"color": plotting.COLOURS[i], "marker": plotting.MARKERS[i]}
        first = prediction.turn[:, i].mean() / (kappa(config)[i] * ridges)
        plotting.theory(left, ridges[2:], first[2:], label=None if i else "first order in 1/η")
        plotting.points(left, ridges, result.angle[:, i], spread="log", label=f"N = {width}",
                        **style)  # fmt: skip
        plotting.points(
            right, ridges, kappa(config)[i] * result.length[:, i], spread="log", **style
        )
    left.set(xscale="log", yscale="log", xlabel="ridge η / κ", ylim=(2e-4, 3))
    left.set_ylabel("rms angle to ∇E (its sine)")
    left.legend(loc="lower left")
    for i, j in enumerate((0, ridges.tolist().index(1.0), len(ridges) - 2)):
        style = {"color": plotting.COLOURS[i + 4], "marker": plotting.MARKERS[i + 4]}
        guide = result.angle[:, -1, j].mean() * np.sqrt(widths[-1] / widths)
        plotting.theory(middle, widths, guide, linestyle=":", label=None if i else "$N^{-1/2}$")
        plotting.points(middle, widths, result.angle[:, :, j], spread="log",
                        label=f"η / κ = {ridges[j]:g}", **style)  # fmt: skip
    middle.set(xscale="log", yscale="log", xlabel="width N", ylabel="rms angle to ∇E (its sine)")
    middle.set_xticks(widths, widths)
    middle.set_xticks([], minor=True)
    middle.set_ylim(2e-4, 3)
    middle.legend(loc="lower left")
    fine = np.geomspace(ridges[0], ridges[-1], 100)
    plotting.theory(right, fine, fine / (1 + fine) ** 2, label="infinite width")
    right.set(xscale="log", yscale="log", xlabel="ridge η / κ", ylabel="κ times gradient / ∇E")
    right.legend(loc="lower center")
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=0.03,
    precision="float64",
    smoke=dict(num_seeds=3),
    controls={
        "random readout": contract.Control(
            dict(random_readout=True),
            breaks={
                "largest ridge: angle over first order, less one, highest": "above",
                "largest width: lowest mean cosine over ridges": "below",
                "largest width: largest relative error of the length": "above",
            },
            why="the readout has not seen the targets",
        ),
        "results at random places": contract.Control(
            dict(shuffled=True),
            breaks={
                "largest width: lowest mean cosine over ridges": "below",
                "largest width: largest relative error of the length": "above",
                "exponent of the angle in the width at η = κ": "above",
                "relative error of the energy's gradient in Fourier form": "above",
            },
            why="the targets are no eigenvectors of the features' kernel; first order still holds",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
