"""A hidden layer's interaction basis does not depend on how the layer is written; PCA's does.

Claim      With J the derivatives of the outputs by a hidden layer, the eigenvalues of (covariance
           of the layer)(mean of J^T J), and the coordinates that belong to them, stay what they are
           when the layer is multiplied by any invertible matrix that the next one undoes. Where two
           independent modules are hidden in this way, each coordinate belongs to one of them and
           the spectrum is theirs. Principal components mix them as soon as the matrix stretches.
Control    Where the matrix only turns, principal components are as good. In a network that has no
           modules the interaction basis finds none.
Reference  Bushnaq et al. 2024, arXiv:2405.10927; block-diagonal toy of ApolloResearch/rib, there
           linear. Exact separation asks for modules that are independent in the sample itself:
           every input of one meets every input of the other here; drawn at random, 1e4 of them
           are correlated by 1e-2.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.measure import degeneracy
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P35",)
PILOT_SEEDS = (101, 102, 103)
NETWORKS = ("two modules", "no modules")
BASES = ("neurons", "principal components", "interaction basis")
INPUTS, HALF = 2, 4  # inputs and hidden units of a module; one output each
WIDTH = 2 * HALF


@dataclasses.dataclass(frozen=True)
class Config:
    conditions: tuple[float, ...] = (1.0, 10.0, 100.0)  # of the hiding matrices; 1 turns only
    num_inputs: int = 20  # of each module; samples are all pairs
    gain: float = 1.5
    num_seeds: int = 20
    seed: int = 1

    def __post_init__(self):
        if self.conditions[0] != 1 or sorted(self.conditions) != list(self.conditions):
            message = f"conditions={self.conditions}: give 1, then larger ones in order"
            raise ValueError(message)


class Network(NamedTuple):
    """Three hidden layers of WIDTH units; what hides the first two is not in here."""

    first: Array  # (2 INPUTS, WIDTH)
    second: Array  # (WIDTH, WIDTH)
    third: Array  # (WIDTH, WIDTH)
    last: Array  # (WIDTH, 2)
    biases: Array  # (3, WIDTH)


class Prediction(NamedTuple):
    """S seeds, F networks, L = 2 hidden layers, D units."""

    values: Array  # (S, F, L, D) largest first, as the network is written


class Result(NamedTuple):
    """C conditions, B bases."""

    values: Array  # (S, F, C, L, D) as the network is rewritten
    agreement: Array  # (S, F, C, L, D) |correlation| of coordinates as written and rewritten
    leakage: Array  # (S, F, C, L, B, D) variance of a coordinate that its module does not explain
    edges: Array  # (S, F, C, B, D, D) mean squared derivative of coordinates by those before
    module: Array  # (S, F, C, L, B, D) which module explains more of a coordinate


def draw(key: Key, config: Config) -> tuple[Network, Array, Array]:
    """Return both networks (F, ...), samples (N, 2 INPUTS) and hiding matrices (C, L, D, D)."""
    dim, num = WIDTH, config.num_inputs
    rows = np.cumsum([4 * dim, 2 * INPUTS, dim, dim, 2, 3])  # drawn at once: it compiles faster
    block = jax.random.normal(key, (int(rows[-1]) + num, dim))
    turns, first, second, third, last, biases, inputs = jnp.split(block, rows)
    of_unit, of_input = jnp.arange(dim) // HALF, jnp.arange(2 * INPUTS) // INPUTS
    same = lambda a, b: (a[:, None] == b) * jnp.sqrt(2.0)  # half of the weights, as much input
    masks = (same(of_input, of_unit), same(of_unit, of_unit), same(of_unit, of_unit),
             same(of_unit, jnp.arange(2)), 1.0)  # fmt: skip
    scales = *config.gain / np.sqrt([2 * INPUTS, dim, dim]), dim**-0.5, 0.5
    drawn = first, second, third, last.T, biases
    whole = Network(*(s * w for s, w in zip(scales, drawn, strict=True)))
    parts = Network(*(m * w for m, w in zip(masks, whole, strict=True)))
    networks = jax.tree.map(lambda *w: jnp.stack(w), parts, whole)
    grid = jnp.stack(jnp.meshgrid(jnp.arange(num), jnp.arange(num), indexing="ij"), axis=-1)
    one, other = grid.reshape(-1, 2).T
    x = jnp.concatenate([inputs[one, :INPUTS], inputs[other, INPUTS : 2 * INPUTS]], axis=1)
    turns = jnp.linalg.qr(turns.reshape(2, 2, dim, dim))[0]
    stretches = jnp.array(config.conditions)[:, None] ** jnp.linspace(-0.5, 0.5, dim)
    hiding = jnp.einsum("lij,cj,ljk->clik", turns[0], stretches, turns[1])
    return networks, x, hiding


@functools.cache
def drawing(config: Config):
    """Return key -> draw(key): one function, compiled once for prediction and run."""
    return lambda key: draw(key, config)


def drawn(config: Config) -> tuple[Network, Array, Array]:
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    return parallel.ensemble(drawing(config), keys, batching="map")


def predict(config: Config) -> Prediction:
    """Multiply the two moments, written out: of each module by itself where there are two."""
    networks, x, _ = jax.tree.map(np.asarray, drawn(config))
    values = np.zeros((config.num_seeds, len(NETWORKS), 2, WIDTH))
    for seed, kind in np.ndindex(values.shape[:2]):
        net = Network(*(leaf[seed, kind] for leaf in networks))
        one = np.tanh(x[seed] @ net.first + net.biases[0])
        two = np.tanh(one @ net.second + net.biases[1])
        three = np.tanh(two @ net.third + net.biases[2])
        by_two = ((1 - three**2)[:, None] * net.last.T) @ net.third.T  # (N, 2, D)
        above = ((1 - two**2)[:, None] * by_two) @ net.second.T, by_two
        modules = [slice(0, HALF), slice(HALF, None)] if kind == 0 else [slice(None)]
        for layer, (hidden, jacobian) in enumerate(zip((one, two), above, strict=True)):
            apart = [spectrum(hidden[:, units], jacobian[..., units]) for units in modules]
            values[seed, kind, layer] = np.sort(np.concatenate(apart))[::-1]
    return Prediction(values)


def spectrum(hidden: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
    """Return the eigenvalues of L^T M L, with the covariance of `hidden` L L^T and M = E[J^T J]."""
    lower = np.linalg.cholesky(np.cov(hidden.T, bias=True))
    flat = jacobian.reshape(-1, hidden.shape[1])
    return np.linalg.eigvalsh(lower.T @ (flat.T @ flat / len(hidden)) @ lower)


def run(config: Config) -> Result:
    def one(network: Network, x: Array, hiding: Array):
        """Rewrite the network with the hiding matrices (L, D, D) and look at its layers."""
        back = jnp.linalg.inv(hiding)
        first = jnp.tanh(x @ network.first + network.biases[0]) @ hiding[0].T
        to_second = lambda h: (
            jnp.tanh(h @ back[0].T @ network.second + network.biases[1]) @ hiding[1].T
        )
        to_outputs = lambda h: (
            jnp.tanh(h @ back[1].T @ network.third + network.biases[2]) @ network.last
        )
        second = to_second(first)
        above = lambda h: to_outputs(to_second(h))
        jacobians = [degeneracy.output_jacobians(f, h)
                     for f, h in ((above, first), (to_outputs, second))]  # fmt: skip
        between = degeneracy.output_jacobians(to_second, first)  # (N, D, D)
        activations = jnp.stack([first, second])
        basis = jax.lax.map(
            lambda layer: degeneracy.interaction_basis(*layer), (activations, jnp.stack(jacobians))
        )
        bases = jax.lax.map(standard_bases, activations)  # (L, 2, D, D)
        to_basis = jnp.concatenate([bases, basis.to_basis[:, None]], axis=1)  # (L, B, D, D)
        centred = activations - activations.mean(axis=1, keepdims=True)
        coordinates = jnp.einsum("lbij,lnj->lbin", to_basis, centred)
        from_basis = jnp.linalg.inv(to_basis[0])
        edges = jnp.mean(
            jnp.einsum("bij,njk,bkl->nbil", to_basis[1], between, from_basis, optimize=True) ** 2, 0
        )
        grid = (*coordinates.shape[:-1], config.num_inputs, config.num_inputs)
        leakage, module = mixing(coordinates.reshape(grid))
        return basis.values, coordinates[:, -1], leakage, edges, module

    def of_seed(member: tuple[Network, Array, Array]):
        networks, x, hiding = member
        plain = jnp.tile(jnp.eye(WIDTH), (1, 2, 1, 1))
        every = jnp.concatenate([plain, hiding])
        of_network = lambda net: jax.lax.map(lambda h: one(net, x, h), every)
        values, coordinates, leakage, edges, module = jax.lax.map(of_network, networks)
        overlap = jnp.mean(coordinates[:, :1] * coordinates[:, 1:], axis=-1)
        return values[:, 1:], jnp.abs(overlap), leakage[:, 1:], edges[:, 1:], module[:, 1:]

    return Result(*parallel.ensemble(of_seed, drawn(config), batching="map"))


def standard_bases(activations: Array) -> Array:
    """Return what takes neurons and principal components to unit variance (2, D, D)."""
    centred = activations - activations.mean(axis=0)
    spread = jnp.diag(1 / centred.std(axis=0))
    variances, components = jnp.linalg.eigh(centred.T @ centred / len(centred))
    return jnp.stack([spread, components.T / jnp.sqrt(variances)[:, None]])


def mixing(coordinates: Array) -> tuple[Array, Array]:
    """Return the share of variance that the better of the modules leaves, and which one it is.

    `coordinates` (..., n, n) are at all pairs of inputs; a module explains the variance of the
    mean over the inputs of the other.
    """
    total = jnp.var(coordinates, axis=(-2, -1))
    explained = jnp.stack([jnp.var(coordinates.mean(axis=a), axis=-1) for a in (-1, -2)]) / total
    return 1 - explained.max(axis=0), explained.argmax(axis=0)


def off_module(result: Result) -> np.ndarray:
    """Return the share of `edges` (S, F, C, B) between coordinates of different modules."""
    before, after = result.module[:, :, :, 0], result.module[:, :, :, 1]  # (S, F, C, B, D)
    crossing = after[..., :, None] != before[..., None, :]
    total = lambda edges: edges.sum(axis=(-2, -1))
    return total(crossing * result.edges) / total(result.edges)


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    worst = lambda array: np.abs(array).reshape(len(array), -1).max(axis=1)
    error = (result.values - prediction.values[:, :, None]) / prediction.values[:, :, None, :, :1]
    modules = result.leakage[:, 0]  # (S, C, L, B, D)
    mean = result.leakage.mean(axis=(3, 5))  # (S, F, C, B)
    return [
        checks.every_seed("error of the spectrum by its largest value, largest", worst(error),
                          upper=1e-10, why="ε times a condition number of 100, and room"),
        checks.every_seed("1 - correlation of a coordinate with itself rewritten, largest",
                          worst(1 - result.agreement), upper=1e-6,
                          why="a turn of 1e-3 would take values within 1e-10 of each other"),
        checks.every_seed("interaction basis: variance left by a coordinate's module, largest",
                          worst(modules[..., 2, :]), upper=1e-6, why="the same turns"),
        checks.every_seed("interaction basis: share of edges between modules",
                          worst(off_module(result)[:, 0, :, 2]), upper=1e-6, why="the same"),
        checks.every_seed("interaction basis: coordinates of a module, distance from its units",
                          worst(result.module[:, 0, :, :, 2].sum(axis=-1) - HALF), upper=0,
                          why="a count: with all in one module no edge would be between modules"),
        checks.every_seed("principal components, stretched: variance left by the module, mean",
                          mean[:, 0, 1:, 1].min(axis=1), lower=0.05, why="pilots 0.084 and more"),
        checks.every_seed("principal components, only turned: variance left, largest",
                          worst(modules[:, 0, :, 1]), upper=1e-6, role="control",
                          why="the covariance of independent modules has blocks"),
        checks.every_seed("no modules: variance left by the better half, mean",
                          mean[:, 1, :, 2].min(axis=1), lower=0.2, role="control",
                          why="pilots 0.39 and more"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    number = np.arange(1, WIDTH + 1)
    for i, name in enumerate(NETWORKS):
        plotting.theory(left, number, prediction.values[0, i, 0],
                        label=None if i else "as written")  # fmt: skip
        left.plot(number, result.values[0, i, -1, 0], plotting.MARKERS[i],
                  color=plotting.COLOURS[i], label=f"{name}, rewritten")  # fmt: skip
    left.set(yscale="log", xlabel="number of the eigenvalue", title="first layer, one seed")
    left.set(ylabel="eigenvalue of (covariance) (E[J$^T$J])", ylim=(1e-12, None))
    left.legend(loc="lower left")
    leakage = np.maximum(result.leakage.mean(axis=(3, 5)), 1e-17)  # (S, F, C, B)
    for b, name in enumerate(BASES):
        plotting.points(middle, config.conditions, leakage[:, 0, :, b], spread="log", label=name,
                        color=plotting.COLOURS[b], marker=plotting.MARKERS[b])  # fmt: skip
    plotting.points(middle, config.conditions, leakage[:, 1, :, 2], spread="log", marker="D",
                    color=plotting.COLOURS[3], label="the last, no modules")  # fmt: skip
    middle.set(xscale="log", yscale="log", xlabel="condition of the hiding matrix")
    middle.set(ylabel="variance left by the module, mean")
    middle.legend(loc="center")
    pictures = []
    for b in range(len(BASES)):
        before, after = (np.argsort(result.module[0, 0, -1, layer, b]) for layer in (0, 1))
        edges = result.edges[0, 0, -1, b][np.ix_(after, before)]
        pictures += [edges / edges.max(), np.full((WIDTH, 1), np.nan)]
    picture = np.log10(np.maximum(np.hstack(pictures[:-1]), 1e-6))
    image = right.imshow(picture, vmin=-6, vmax=0, cmap="Greys", aspect="auto")
    figure.colorbar(image, ax=right, label="log$_{10}$ of squared edge by the largest")
    right.set_xticks([HALF + b * (WIDTH + 1) - 0.5 for b in range(3)],
                     ["neurons", "principal\ncomp.", "interaction\nbasis"])  # fmt: skip
    right.set(ylabel="coordinate of the second layer", yticks=[])
    right.grid(visible=False)
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-8,
    precision="float64",
    smoke=dict(num_seeds=5),
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
