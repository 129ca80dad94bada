"""On part of the table memorising spikes have more energy than Fourier features, up to two thirds.

Claim      On a random share p of the table of addition modulo M the Li_2 energy of a neuron on the
           sphere is in expectation p² M/4 for a Fourier feature, p (1 - p) M/4 for a spike on one
           pair (u and v one-hot) and p (1 - p) M/2 for a spike on one row (u one-hot, v = 0), to
           leading order; so rows lead up to p = 2/3 and pairs up to p = 1/2. The exact expectation
           at every M is known, and so are its crossings.
Control    With results at random places of the table no Fourier feature rises; with targets that
           are not centred over the sample all energies are others.
Reference  Tian 2025, "Provable Scaling Laws of Feature Emergence from Learning Dynamics of
           Grokking", for energy and question; expectations and crossings are derived here. The
           spike on a row, twice as high as the one on a pair, is what ascent ends at on a table
           with shuffled results (li2_energy_fourier_maxima).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.data import algorithmic
from dynamics.measure import statistics
from dynamics.theory import sampled_energy
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P261",)
PILOT_SEEDS = (101, 102, 103)
KINDS = ("Fourier feature", "spike on a pair", "spike on a row")


@dataclasses.dataclass(frozen=True)
class Config:
    moduli: tuple[int, ...] = (11, 17, 31, 59)  # odd, rising; the last is drawn
    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the table
    shuffled: bool = False  # results at random places; predict knows neither this nor centred
    centred: bool = True
    num_features: int = 48  # of each kind, drawn anew for each sample
    num_samples: int = 40
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        rising = all(a < b for a, b in zip(self.shares, self.shares[1:], strict=False))
        if not (rising and self.shares[0] > 0 and self.shares[-1] == 1 and len(self.shares) > 2):
            message = f"shares={self.shares}: give rising numbers above 0, 1 the last"
            raise ValueError(message)


class Prediction(NamedTuple):
    """P moduli, 3 kinds, X shares; the two crossings are those of pair and row."""

    energy: Array  # (P, 3, X)
    crossing: Array  # (P, 2) share of the table


class Result(NamedTuple):
    """S seeds, B samples."""

    energy: Array  # (S, P, B, 3, X) mean over features


def num_drawn(config: Config, modulus: int) -> np.ndarray:
    return np.round(np.array(config.shares) * modulus**2)


def activations(u: Array, v: Array) -> Array:
    """(u_a + v_b)² of the pairs (..., M²)."""
    return ((u[..., :, None] + v[..., None, :]) ** 2).reshape(*u.shape[:-1], -1)


def predict(config: Config) -> Prediction:
    """One feature of each kind: expectations are the same for all."""

    def one(modulus: int):
        wave = jnp.cos(2 * jnp.pi * jnp.arange(modulus) / modulus) / modulus**0.5
        spike = jnp.eye(modulus)[0]
        u = jnp.stack([wave, spike / 2**0.5, spike])
        v = jnp.stack([wave, spike / 2**0.5, 0 * spike])
        a, b = jnp.divmod(jnp.arange(modulus**2), modulus)
        h, labels = activations(u, v), (a + b) % modulus
        energy = lambda n: sampled_energy.expected_sampled_energy(h, labels, modulus, n)

        def halve(bracket, _):
            """Of both crossings; below them spikes lead."""
            middle = bracket.mean(axis=0)  # (2,)
            found = jax.vmap(energy)(middle * modulus**2)  # (2, 3)
            spikes = found[jnp.arange(2), jnp.arange(1, 3)] > found[:, 0]
            return jnp.where(spikes, jnp.stack([middle, bracket[1]]),
                             jnp.stack([bracket[0], middle])), None  # fmt: skip

        ends = jnp.array([[0.1, 0.1], [0.9, 0.9]])
        bracket, _ = jax.lax.scan(halve, ends, length=50)
        return jax.vmap(energy)(jnp.asarray(num_drawn(config, modulus))).T, bracket.mean(axis=0)

    found = [jax.jit(one, static_argnums=0)(modulus) for modulus in config.moduli]
    return Prediction(*map(jnp.stack, zip(*found, strict=True)))


def run(config: Config) -> Result:
    found = []
    for i, modulus in enumerate(config.moduli):
        keys = jax.random.split(
            jax.random.fold_in(jax.random.key(config.seed), i), config.num_seeds
        )
        shuffled = jnp.full(config.num_seeds, config.shuffled)  # numbers, not branches: the
        centred = jnp.full(config.num_seeds, config.centred)  # controls are the same program
        fn = lambda member, m=modulus: sample(*member, m, config)
        found.append(parallel.ensemble(fn, (keys, shuffled, centred)))
    return Result(jnp.stack(found, axis=1))


def sample(key: Key, shuffled, centred, modulus: int, config: Config) -> Array:
    """Return the mean energies (B, 3, X) of features on random parts of the table."""
    table_key, sample_key = jax.random.split(key)
    results = jnp.asarray(algorithmic.cyclic_group(modulus).reshape(-1))
    results = jnp.where(shuffled, jax.random.permutation(table_key, results), results)
    by_result = jnp.argsort(results).reshape(modulus, modulus)  # pairs of each result c

    def one(key: Key) -> Array:
        order_key, feature_key = jax.random.split(key)
        rank = jax.random.permutation(order_key, modulus**2)
        drawn = (rank < num_drawn(config, modulus)[:, None])[:, by_result].astype(float)
        counts = drawn.sum(axis=-1)  # (X, C)
        u, v = features(feature_key, modulus, config.num_features)  # (3, F, M)
        h = activations(u, v)[..., by_result]  # (3, F, C, M)
        sums = jnp.einsum("xca,kfca->kfxc", drawn, h)
        mean = sums.sum(axis=-1, keepdims=True) / counts.sum(axis=-1, keepdims=True)
        energy = jnp.sum((sums - centred * counts * mean) ** 2, axis=-1) / 2
        return energy.mean(axis=1)

    return jax.lax.map(one, jax.random.split(sample_key, config.num_samples))


def features(key: Key, modulus: int, count: int) -> tuple[Array, Array]:
    """Return u and v (3, F, M) of random unit vectors of each kind."""
    frequency_key, phase_key, place_key = jax.random.split(key, 3)
    k = jax.random.randint(frequency_key, (count,), 1, (modulus + 1) // 2)
    phases = jax.random.uniform(phase_key, (2, count, 1), maxval=2 * jnp.pi)
    waves = jnp.cos(2 * jnp.pi / modulus * k[:, None] * jnp.arange(modulus) + phases)
    spikes = jnp.eye(modulus)[jax.random.randint(place_key, (2, count), 0, modulus)]
    rows = spikes.at[1].set(0)
    by_kind = jnp.stack([waves / modulus**0.5, spikes / 2**0.5, rows])  # (3, 2, F, M)
    return by_kind[:, 0], by_kind[:, 1]


def crossings(config: Config, energy: np.ndarray) -> np.ndarray:
    """Return where Fourier overtakes pair and row (..., 2), from energies (..., 3, X).

    By interpolation of the log ratio over log p / (1 - p), in which it is a line to leading order.
    """
    p = np.array(config.shares[:-1])
    logit, energy = np.log(p / (1 - p)), energy[..., :-1]
    ratio = np.log(energy[..., :1, :] / energy[..., 1:, :])  # (..., 2, X - 1)
    rises = (ratio[..., :-1] < 0) & (ratio[..., 1:] >= 0)
    at = rises.argmax(axis=-1)[..., None]
    take = lambda array, index: np.take_along_axis(array, index, axis=-1)[..., 0]
    low, high = take(ratio, at), take(ratio, at + 1)
    left, right = logit[at[..., 0]], logit[at[..., 0] + 1]
    found = left - low * (right - left) / (high - low)
    return 1 / (1 + np.exp(-found))


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    by_cell = np.moveaxis(result.energy, 2, 1).reshape(-1, *prediction.energy.shape)  # (S B, ...)
    part = by_cell[..., :-1] - prediction.energy[..., :-1]
    error = part.mean(axis=0) / statistics.standard_error(part)
    whole = by_cell[..., -1] - prediction.energy[..., -1]
    moved = np.abs(crossings(config, by_cell.mean(axis=0)) - prediction.crossing)  # (P, 2)
    spikes = by_cell[:, :, 1:, -1].max(axis=2) / by_cell[:, :, 0, -1]
    return [
        checks.below("largest error of a mean energy in standard errors", np.abs(error).max(), 6,
                     why="Student's t of 80 samples or more, about 100 cells: one run in 5000"),
        checks.below("largest error of an energy on the whole table, by M/4",
                     np.abs(whole * 4 / np.array(config.moduli)[:, None]).max(), 1e-10,
                     why="nothing is random there but the features, which are all alike"),
        checks.below("largest error of a crossing, any modulus", moved.max(), 0.025,
                     why="pilots 0.006, of which 0.003 is interpolation; the leading order is "
                     "0.07 off at M = 11"),
        checks.below("largest error of a crossing, last modulus", moved[-1].max(), 0.006,
                     why="pilots 0.0023, with half the samples of a smoke run"),
        checks.below("spike over Fourier feature on the whole table", spikes.max(), 0.2,
                     role="control", why="a pair keeps 2 (M - 1) / M², a row nothing at all"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, right = panels = figure.subplots(1, 2)
    modulus, p = config.moduli[-1], np.array(config.shares)
    fine = np.linspace(0.02, 1, 50)
    every = predict(dataclasses.replace(config, moduli=(modulus,), shares=tuple(fine.tolist())))
    leading = (fine**2, fine * (1 - fine), 2 * fine * (1 - fine))
    for i, kind in enumerate(KINDS):
        style = {"color": plotting.COLOURS[i], "marker": plotting.MARKERS[i]}
        once = lambda text, i=i: None if i else text
        left.plot(fine, leading[i], color="#999999", linewidth=0.8, label=once("leading order"))
        plotting.theory(left, fine, 4 / modulus * every.energy[0, i], label=once("exact"))
        means = result.energy[:, -1].mean(axis=1)[:, i]  # (S, X)
        plotting.points(left, p, 4 / modulus * means, label=kind, **style)
    left.set(xlabel="share p of the table", ylabel="mean E / (M/4)", ylim=(-0.03, 1.05))
    left.legend(title=f"M = {modulus}")
    inverse = 1 / np.array(config.moduli)
    found = crossings(config, result.energy.mean(axis=2))  # (S, P, 2)
    for i, (limit, text) in enumerate(((1 / 2, "1/2"), (2 / 3, "2/3"))):
        style = {"color": plotting.COLOURS[i + 1], "marker": plotting.MARKERS[i + 1]}
        order = np.argsort(inverse)
        line = np.append(limit, prediction.crossing[order, i])
        plotting.theory(right, np.append(0, inverse[order]), line, label=None if i else "exact")
        plotting.points(right, inverse, found[:, :, i], label=KINDS[i + 1], **style)
        right.annotate(text, (0, limit), (-2, 0), textcoords="offset points", ha="right",
                       va="center", fontsize=7)  # fmt: skip
    right.set(xlabel="1 / M", xlim=(-0.008, None), ylim=(0.44, 0.7))
    right.set_ylabel("share where a Fourier feature overtakes")
    right.legend(loc="lower right")
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=0.02,
    precision="float64",
    smoke=dict(num_samples=16),
    controls={
        "results at random places": contract.Control(
            dict(shuffled=True),
            breaks={
                "largest error of a mean energy in standard errors": "above",
                "largest error of an energy on the whole table, by M/4": "above",
            },
            why="no frequency of a and b tells the result",
        ),
        "targets not centred": contract.Control(
            dict(centred=False),
            breaks={
                "largest error of a mean energy in standard errors": "above",
                "largest error of an energy on the whole table, by M/4": "above",
            },
            why="the number of pairs of each result then counts as signal",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
