"""Some keys no query can pick out; LayerNorm leaves none, and it is the scaling that does it.

Claim      Of N Gaussian keys in R^D dot-product attention can give the largest score to those on
           their convex hull alone. The share of the others is that of the Gaussian polytope, in
           every dimension; after centring alone it is that of D - 1 dimensions. LayerNorm and
           RMSNorm put the keys on a sphere, where each is selected by a query equal to itself; with
           a gain and a bias each is still on the hull, and so selected by some query.
Control    Centred keys, which are not scaled, keep their unselectable ones; with a norm whose
           epsilon is as large as the variance they come back; keys from a cube have other shares.
Reference  Brody, Alon, Yahav 2023, arXiv:2305.02582, who count in simulations; the formula for
           all dimensions is that of Affentranger and Schneider 1992 with the angles of Kabluchko
           and Zaporozhets. The paper credits LayerNorm; its projection does none of this.
"""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from dynamics.aliases import Array, Key
from dynamics.measure import selectability
from dynamics.theory import gaussian_polytope
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P271",)
PILOT_SEEDS = (101, 102, 103)
VARIANTS = ("raw", "centred", "RMSNorm", "LayerNorm", "LayerNorm with gain and bias")


@dataclasses.dataclass(frozen=True)
class Config:
    dims: tuple[int, ...] = (2, 3, 5)  # D; LayerNorm is left out in the plane, where it gives ±1
    num_keys: tuple[int, ...] = (12, 20, 35, 60)  # N; from 12 on the rarest share is seen
    keys: str = "normal"  # or "cube", for the control; predict does not know it
    epsilon: float = 0.0  # added to the mean square by both norms; keys have variance 1
    num_draws: int = 200  # for raw and centred keys, each seed
    num_norm_draws: int = 20  # for the norms, where there is nothing to average
    num_queries: int = 300
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        if self.keys not in ("normal", "cube"):
            message = f"keys={self.keys!r}: choose normal or cube"
            raise ValueError(message)
        if not 0 < self.num_norm_draws <= self.num_draws:
            message = f"num_norm_draws={self.num_norm_draws}: give 1 to num_draws"
            raise ValueError(message)


class Prediction(NamedTuple):
    """D dimensions, N numbers of keys."""

    raw: Array  # (D, N) mean share of keys that no query ranks first
    centred: Array  # (D, N) the same after the mean over coordinates is taken away


class Result(NamedTuple):
    """S seeds, V variants, D dimensions, N numbers of keys; NaN where a variant is left out."""

    share: Array  # (S, V, D, N) of keys that are inside the hull, mean over draws
    variance: Array  # (S, V, D, N) of the share over draws
    stolen: Array  # (S,) share of raw keys inside the hull that one of many queries ranks first
    own_query: Array  # (S, V, D, N) share of keys that a query equal to themselves ranks first


def predict(config: Config) -> Prediction:
    """Mean number of vertices of the projected simplex, in D and in D - 1 dimensions."""
    shares = lambda less: [
        [gaussian_polytope.unselectable_share(n, dim - less) for n in config.num_keys]
        for dim in config.dims
    ]
    return Prediction(np.array(shares(0)), np.array(shares(1)))


def run(config: Config) -> Result:
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    found = [run_one(key, config) for key in keys]
    return Result(*(np.stack(parts) for parts in zip(*found, strict=True)))


def run_one(key: Key, config: Config):
    """Count for one seed; the hulls are Qhull's, on the host."""
    drawn, queries, affine = (np.asarray(part) for part in draws(key, config))
    shape = (len(VARIANTS), len(config.dims), len(config.num_keys))
    share, variance, own = (np.full(shape, np.nan) for _ in range(3))
    inside, ranked = 0, 0
    for d, n, v in np.ndindex(len(config.dims), len(config.num_keys), len(VARIANTS)):
        dim, num, name = config.dims[d], config.num_keys[n], VARIANTS[v]
        if "LayerNorm" in name and dim < 3:
            continue
        keys = normalised(name, drawn[d, n, :, :num, :dim], affine[..., :dim], config)
        selectable = np.stack([selectability.selectable(draw) for draw in keys])  # (R, N)
        share[v, d, n] = 1 - selectable.mean()
        variance[v, d, n] = selectable.mean(axis=1).var(ddof=1)
        best = (keys @ keys.swapaxes(1, 2)).argmax(axis=2)  # (R, N) for the keys as queries
        own[v, d, n] = np.mean(best == np.arange(num))
        if name == "raw":
            best = (queries[:, :dim] @ keys.swapaxes(1, 2)).argmax(axis=2)  # (R, Q)
            inside += np.sum(~selectable)
            ranked += np.sum(~np.take_along_axis(selectable, best, axis=1))
    return share, variance, ranked / max(inside, 1), own


def draws(key: Key, config: Config) -> tuple[Array, Array, Array]:
    """Return keys (D, N, R, keys, dims) of variance 1, queries (Q, dims), gain and bias (2, dims).

    Every cell has the largest size, of which it takes a corner: one compilation.
    """
    key_key, query_key, affine_key = jax.random.split(key, 3)
    dim, num = max(config.dims), max(config.num_keys)
    shape = (len(config.dims), len(config.num_keys), config.num_draws, num, dim)
    if config.keys == "normal":
        keys = jax.random.normal(key_key, shape)
    else:
        keys = jax.random.uniform(key_key, shape, minval=-(3**0.5), maxval=3**0.5)
    queries = jax.random.normal(query_key, (config.num_queries, dim))
    return keys, queries, jax.random.normal(affine_key, (2, dim))


def normalised(name: str, x: np.ndarray, affine: np.ndarray, config: Config) -> np.ndarray:
    """Return the keys (R, N, D) of a variant; R is smaller for the norms."""
    if name not in ("raw", "RMSNorm"):
        x = x - x.mean(axis=-1, keepdims=True)
    if "Norm" in name:
        x = x[: config.num_norm_draws]
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.epsilon)
    if "gain" in name:
        x = x * np.exp(affine[0] / 2) + affine[1]
    return x


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    draws = config.num_draws * config.num_seeds
    errors = [
        (result.share[:, v].mean(axis=0) - predicted)
        / np.maximum(np.sqrt(result.variance[:, v].mean(axis=0) / draws), 1e-9)
        for v, predicted in enumerate(prediction)
    ]  # (2, D, N) in standard errors; two keys are left of a centred pair of coordinates, exactly
    worst = lambda values: float(np.abs(values).max())
    norms = result.share[:, 2:]  # (S, 3, D, N)
    lost = lambda v: np.nanmax(norms[:, v], axis=(1, 2))  # (S,)
    own = lambda v: np.nanmin(result.own_query[:, v], axis=(1, 2))  # (S,)
    gauss = "the largest of 12 cells; beyond 4.5 standard errors once in 10 000 runs"
    sphere = "on a sphere every key is a vertex: a theorem"
    first = "k·k = |k|² > k·k' on a sphere: a theorem"
    none = lambda name, v: checks.every_seed(
        f"largest share of unselectable keys, {name}", lost(v), upper=0, why=sphere
    )
    still = result.share[:, 1, -1].min(axis=0)  # (N,) in the highest dimension
    return [
        checks.below("share of unselectable keys from the formula, worst cell, standard errors",
                     worst(errors[0]), 4.5, why=gauss),
        checks.below("share after centring from the formula of D - 1, worst cell, standard errors",
                     worst(errors[1]), 4.5, why=gauss),
        none("RMSNorm", 0),
        none("LayerNorm", 1),
        none("LayerNorm with gain and bias", 2),
        checks.every_seed("share of keys first for a query equal to themselves, RMSNorm", own(2),
                          lower=1, why=first),
        checks.every_seed("share of keys first for a query equal to themselves, LayerNorm",
                          own(3), lower=1, why=first),
        checks.below("unselectable raw keys that some random query ranks first",
                     result.stolen.max(), 0, why="there is no such query: a theorem"),
        checks.above("share of unselectable keys after centring alone, most keys", still[-1], 0.25,
                     role="control", why="it is not the projection: theory 0.46 at D = 5"),
        checks.above("share of unselectable raw keys, most keys",
                     result.share[:, 0, :, -1].min(), 0.25, role="control",
                     why="there are such keys to begin with: theory 0.33 at D = 5"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    figure.set_size_inches(7.2, 3.2)
    lines, cells = figure.subplots(1, 2, width_ratios=[1.25, 1])
    curve = np.arange(max(config.dims) + 1, max(config.num_keys) + 1)
    for d, dim in enumerate(config.dims):
        style = {"color": plotting.COLOURS[d], "marker": plotting.MARKERS[d]}
        for less, (name, line) in enumerate((("raw", "--"), ("centred", ":"))):
            theory = [gaussian_polytope.unselectable_share(n, dim - less) for n in curve]
            plotting.theory(lines, curve, theory, color=style["color"], linestyle=line, label=None)
            plotting.points(lines, config.num_keys, result.share[:, less, d],
                            markerfacecolor="white" if less else None,
                            label=f"{name}, D = {dim}", **style)  # fmt: skip
    plotting.theory(lines, [], [], color="black", label="theory of D")
    plotting.theory(lines, [], [], color="black", linestyle=":", label="theory of D - 1")
    for v, marker in ((2, "x"), (3, "+")):
        largest = np.nanmax(result.share[:, v], axis=(0, 1))
        label = f"{VARIANTS[v]}, largest"
        lines.plot(config.num_keys, largest, marker, color="black", label=label, markersize=6)
    lines.set(xlabel="keys N", ylabel="share of keys no query selects", ylim=(-0.04, 1.42))
    lines.set_yticks(np.linspace(0, 1, 6))
    lines.legend(ncols=2, fontsize=6, loc="upper right")
    dims, numbers = np.arange(2, 11), np.arange(5, 61, 5)
    shares = [[gaussian_polytope.unselectable_share(n, d) for n in numbers] for d in dims]
    colours = {"cmap": "viridis", "vmin": 0, "vmax": 1}
    mesh = cells.pcolormesh(numbers, dims, shares, shading="nearest", **colours)
    for d, dim in enumerate(config.dims):
        cells.scatter(config.num_keys, [dim] * len(config.num_keys), s=45, edgecolors="white",
                      c=result.share[:, 0, d].mean(axis=0), linewidths=0.8, **colours)  # fmt: skip
    cells.grid(visible=False)
    cells.set(xlabel="keys N", ylabel="dimension D", xlim=(2.5, 62.5))
    figure.colorbar(mesh, ax=cells, label="unselectable share (circles: simulation)")
    plotting.label_panels([lines, cells])


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=0.03,
    precision="float64",
    smoke=dict(num_draws=40, num_norm_draws=5),
    paper=dict(dims=(3, 4, 5, 6, 7), num_keys=(15, 30, 45, 60), num_draws=100),
    controls={
        "epsilon as large as the variance": contract.Control(
            dict(epsilon=1.0),
            breaks={
                "largest share of unselectable keys, RMSNorm": "above",
                "largest share of unselectable keys, LayerNorm": "above",
                "largest share of unselectable keys, LayerNorm with gain and bias": "above",
                "share of keys first for a query equal to themselves, RMSNorm": "below",
                "share of keys first for a query equal to themselves, LayerNorm": "below",
            },
            why="short keys stay shorter than long ones: no sphere",
        ),
        "keys from a cube": contract.Control(
            dict(keys="cube"),
            breaks={
                "share of unselectable keys from the formula, worst cell, standard errors": "above"
            },
            why="the same variance, another distribution: hulls of a cube have more corners",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
