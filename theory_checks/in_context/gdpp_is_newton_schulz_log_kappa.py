"""GD++ in linear attention is Newton-Schulz: layers grow as log κ, by 1.21 a decade at best.

Claim      A layer that takes inputs to (I - γ S) x, the plus-plus of GD++, is a step of the
           Newton-Schulz iteration for the polar factor of the context X: with γ = 1/(3 λmax) it is
           that very step up to scale. The condition number κ of S falls by 9/4 a layer, with the
           best γ by 27/4, as much as in log2(27/4) = 2.75 iterations of Newton's inverse. So the
           layers to a fixed error, the last being one step of descent, grow by 2.84 and 1.21 for
           each decade of κ.
Control    With γ = 0, plain gradient descent, κ stays and layers grow in proportion to it.
Reference  von Oswald et al. 2023, arXiv:2212.07677 (GD++); Fu et al. 2023, arXiv:2310.17086
           (trained layers worth about three Newton iterations; not tested here); the best γ is
           the scale of Chen and Chow 2014. The counts are derived here.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array
from dynamics.measure import weight_constructions
from dynamics.models import linear_attention
from dynamics.theory import in_context_descent
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P47", "P36")
PILOT_SEEDS = (101, 102, 103)
SCHEMES = ("schulz", "best")
FALLS = (9 / 4, 27 / 4)  # of κ a layer, where κ is large


@dataclasses.dataclass(frozen=True)
class Config:
    dim: int = 10
    num_context: int = 20
    conditions: tuple[float, ...] = (10.0, 1e2, 1e3, 1e4, 1e5, 1e6)
    tolerance: float = 0.1  # of the error along every eigenvector
    evening: float = 1.0  # factor on γ; predict does not know it
    num_layers: int = 22  # enough for the largest κ
    descent_up_to: float = 1e3  # κ for which plain descent is run as well
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        least = in_context_descent.gradient_descent_plus_plus_layers(
            max(self.conditions), self.tolerance, "schulz"
        )
        if self.num_layers < least:
            message = f"num_layers={self.num_layers}: give at least {least} for such κ"
            raise ValueError(message)


class Prediction(NamedTuple):
    """C condition numbers, 2 schemes, L layers."""

    condition: Array  # (C, 2, L) κ of S before layer 1, 2, ...
    bound: Array  # (C, 2, L) κ of the whole interval of eigenvalues
    count: Array  # (C, 2) layers to the tolerance
    descent_count: Array  # (C,) steps of gradient descent to the tolerance
    polar: Array  # (S, C, L, N, d) Newton-Schulz iterates of X / |X|


class Result(NamedTuple):
    """From the tokens of attention."""

    inputs: Array  # (S, C, 2, L, N, d) before layer 1, 2, ...
    left: Array  # (S, C, 2, L, d) error along each eigenvector if layer 1, 2, ... is a descent step
    descent_count: Array  # (S, C) steps of gradient descent; zero for κ left out


def contexts(config: Config) -> tuple[Array, Array]:
    """Return X (S, C, N, d) with S = X^T X / N of each spectrum, and eigenvectors (S, C, d, d)."""
    left_key, right_key = jax.random.split(jax.random.key(config.seed))
    batch = (config.num_seeds, len(config.conditions))
    left = jax.random.orthogonal(left_key, config.num_context, batch)[..., : config.dim]
    right = jax.random.orthogonal(right_key, config.dim, batch)  # rows are eigenvectors
    roots = np.sqrt(spectra(config)[:, 0, 0])  # (C, d)
    return math.sqrt(config.num_context) * left * roots[:, None] @ right, right


def rates(config: Config) -> np.ndarray:
    """Return γ (C, 2, L) of every layer."""
    return np.array([
        [in_context_descent.input_rates(kappa, config.num_layers, scheme=scheme)
         for scheme in SCHEMES] for kappa in config.conditions
    ])  # fmt: skip


def spectra(config: Config) -> np.ndarray:
    """Return the eigenvalues (C, 2, L, d) of S before each layer."""
    current = np.geomspace(1 / np.array(config.conditions), 1, config.dim, axis=-1)[:, None]
    found = []
    for gamma in np.moveaxis(rates(config), 2, 0):  # (C, 2)
        found.append(np.broadcast_to(current, (*gamma.shape, config.dim)))
        current = current * (1 - gamma[..., None] * current) ** 2
    return np.stack(found, axis=2)


def predict(config: Config) -> Prediction:
    lam = spectra(config)
    condition = lam.max(axis=-1) / lam.min(axis=-1)
    bound = np.array([
        [in_context_descent.whitened_condition(kappa, config.num_layers - 1, scheme=scheme)
         for scheme in SCHEMES] for kappa in config.conditions
    ])  # fmt: skip
    reached = (condition - 1) / (condition + 1) <= config.tolerance
    steps = in_context_descent.gradient_descent_steps
    descent = [steps(kappa, config.tolerance) for kappa in config.conditions]
    x = np.asarray(contexts(config)[0])
    x, polar = x / np.linalg.norm(x, 2, axis=(2, 3), keepdims=True), []
    for _ in range(config.num_layers):
        polar.append(x)
        x = x @ (3 * np.eye(config.dim) - np.swapaxes(x, 2, 3) @ x) / 2
    count = 1.0 + np.argmax(reached, axis=-1)
    return Prediction(condition, bound, count, np.array(descent, float), np.stack(polar, axis=2))


def run(config: Config) -> Result:
    x, basis = contexts(config)
    lam = spectra(config)
    eta = 2 / (lam.max(axis=-1) + lam.min(axis=-1))  # (C, 2, L) of a step that is the last
    batch = (config.num_seeds, len(config.conditions), 2)
    flat = lambda leaf, axes: jnp.reshape(
        jnp.broadcast_to(leaf, (*batch, *leaf.shape[axes:])), (-1, *leaf.shape[axes:])
    )
    gamma = config.evening * rates(config)
    members = (flat(x[:, :, None], 3), flat(basis[:, :, None], 3), flat(gamma, 2), flat(eta, 2))
    inputs, left = parallel.ensemble(
        lambda member: even_out(*member, config), members, batching="vmap"
    )
    return Result(
        inputs.reshape(*batch, *inputs.shape[1:]), left.reshape(*batch, *left.shape[1:]),
        descend(x, basis, config),
    )  # fmt: skip


def tokens_of(x: Array, basis: Array) -> Array:
    """Return context tokens (x, y) of the sum of all eigenvectors, then each one as a query."""
    context = jnp.concatenate([x, x @ basis.sum(axis=0)[:, None]], axis=1)
    return jnp.concatenate([context, jnp.pad(basis, ((0, 0), (0, 1)))])


def even_out(x: Array, basis: Array, gamma: Array, eta: Array, config: Config):
    """Return the inputs (L, N, d) before each layer, and the error left (L, d) if it is the last.

    The answer to the eigenvector v_i is the part of w·v_i = 1 that was learned.
    """
    dim, num_context = config.dim, config.num_context
    make = weight_constructions.gradient_descent_plus_plus_construction
    tokens = tokens_of(x, basis)
    stack = make(dim, 0 * gamma, gamma, num_context)
    after = linear_attention.attention_stack(stack, tokens, num_context=num_context)
    before = jnp.concatenate([tokens[None], after[:-1]])
    step = make(dim, eta, 0 * eta, num_context)
    answered = jax.vmap(
        lambda one, e: linear_attention.linear_self_attention(one, e, num_context=num_context)
    )(step, before)
    return before[:, :num_context, :-1], 1 + answered[:, num_context:, -1]


def descend(x: Array, basis: Array, config: Config) -> Array:
    """Return the steps (S, C) of descent with η = 1/λmax to the tolerance, along all vectors."""
    few = [i for i, kappa in enumerate(config.conditions) if kappa <= config.descent_up_to]
    largest = max(config.conditions[i] for i in few)
    most = in_context_descent.gradient_descent_steps(largest, config.tolerance) + 2
    step = weight_constructions.gradient_descent_construction(config.dim, 1.0, config.num_context)

    def one(member) -> Array:
        context, vectors = member
        tokens = tokens_of(context, vectors)
        gram = linear_attention.context_gram(tokens, num_context=config.num_context)
        # γ = 0 leaves queries alone but for their label slots, so that one matrix serves all.
        queries = tokens[config.num_context :]

        def layer(state, _):
            gram, queries = state
            matrix = linear_attention.layer_matrix(step, gram)
            state = matrix @ gram @ matrix.T, queries @ matrix.T
            return state, jnp.max(jnp.abs(1 + state[1][:, -1]))

        _, left = jax.lax.scan(layer, (gram, queries), length=most)
        return 1.0 + jnp.argmax(left <= config.tolerance * (1 + 1e-9))

    pairs = (x[:, few].reshape(-1, *x.shape[2:]), basis[:, few].reshape(-1, *basis.shape[2:]))
    counts = parallel.ensemble(one, pairs, batching="vmap").reshape(config.num_seeds, -1)
    return jnp.zeros((config.num_seeds, len(config.conditions))).at[:, jnp.array(few)].set(counts)


def measured_condition(result: Result) -> np.ndarray:
    """Return κ (S, C, 2, L) of S from the singular values of the inputs."""
    singular = np.linalg.svd(result.inputs, compute_uv=False)
    return (singular[..., 0] / singular[..., -1]) ** 2


def counts(config: Config, result: Result) -> np.ndarray:
    """Return the layers (S, C, 2) to the tolerance, one more than there are if not reached."""
    reached = np.abs(result.left).max(axis=-1) <= config.tolerance  # (S, C, 2, L)
    return np.where(reached.any(axis=-1), 1 + np.argmax(reached, axis=-1), config.num_layers + 1)


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    condition, count = measured_condition(result), counts(config, result)
    worst = lambda error: np.abs(error).reshape(config.num_seeds, -1).max(axis=1)
    size = np.linalg.norm(result.inputs[:, :, 0], 2, axis=(3, 4), keepdims=True)
    polar = result.inputs[:, :, 0] / size - prediction.polar
    hard = int(np.argmax(config.conditions))
    fallen = lambda i: np.cbrt(condition[:, hard, i, 0] / condition[:, hard, i, 3])  # a layer, of 3
    decades = np.log10(config.conditions)
    slack = 1 / (decades.max() - decades.min())
    per_decade = np.polyfit(decades, count.mean(axis=0), 1)[0]  # (2,)
    whole = "layers are whole: one more or less over the range of κ; late layers do more"
    few = np.array(config.conditions) <= config.descent_up_to
    slope = np.polyfit(decades[few], np.log10(result.descent_count[:, few].T), 1)[0]  # (S,)
    return [
        checks.every_seed("largest relative error of κ after a layer",
                          worst(condition / prediction.condition - 1), upper=1e-8,
                          why="rounding of 1e-16 times κ = 1e6; a wrong γ shows at 1e-2"),
        checks.every_seed("largest error of X / |X| against Newton-Schulz", worst(polar),
                          upper=1e-10, why="rounding gives 1e-14"),
        checks.every_seed("κ over that of its whole interval, largest",
                          (condition / prediction.bound).reshape(config.num_seeds, -1).max(axis=1),
                          upper=1 + 1e-8, why="eigenvalues inside the interval spread no wider"),
        checks.below("numbers of layers unlike those predicted", np.sum(count != prediction.count),
                     0, why="a recursion on spectra that are no draw"),
        checks.every_seed("fall of κ in an early layer over 9/4, Schulz", fallen(0) / FALLS[0],
                          lower=0.99, upper=1.01, why="(1 - 1/(3 κ))² below it, while κ is large"),
        checks.every_seed("log2 of the fall of κ in an early layer, best γ",
                          np.log2(fallen(1)), lower=2.65, upper=2.85,
                          why="log2(27/4) = 2.75, less (λmin/λmax)^1/2; spectra miss the peak"),
        checks.between("layers for each decade of κ, Schulz", per_decade[0],
                       math.log(10, FALLS[0]) - slack, math.log(10, FALLS[0]) + slack, why=whole),
        checks.between("layers for each decade of κ, best γ", per_decade[1],
                       math.log(10, FALLS[1]) - slack, math.log(10, FALLS[1]) + slack, why=whole),
        checks.below("steps of plain descent unlike those predicted",
                     np.sum((result.descent_count - prediction.descent_count)[:, few] != 0), 0,
                     role="control", why="ln(tolerance) / ln(1 - 1/κ), rounded up"),
        checks.every_seed("exponent of the steps of plain descent in κ", slope, lower=0.95,
                          upper=1.05, role="control", why="κ ln(1/tolerance), less 1/2"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, right = panels = figure.subplots(1, 2)
    condition, count = measured_condition(result), counts(config, result)
    hard, layers = int(np.argmax(config.conditions)), np.arange(config.num_layers)
    few = np.array(config.conditions) <= config.descent_up_to
    for i, name in enumerate(("γ = 1/(3 λmax), Newton-Schulz", "best γ")):
        style = {"color": plotting.COLOURS[i], "marker": plotting.MARKERS[i], "linestyle": "none"}
        plotting.theory(left, layers, prediction.condition[hard, i], label=None)
        left.plot(layers, condition[:, hard, i].mean(axis=0), label=name, **style)
        early = np.maximum(config.conditions[hard] / FALLS[i] ** layers, 1)
        left.plot(layers, early, color=plotting.COLOURS[i], linewidth=0.8, linestyle=":",
                  label=("9/4 a layer", "27/4 a layer")[i])  # fmt: skip
        plotting.theory(right, config.conditions, prediction.count[:, i], label=None)
        right.plot(config.conditions, count.mean(axis=0)[:, i], label=f"GD++, {name}", **style)
    left.set(yscale="log", xlabel="layers", ylabel="condition number κ of S", ylim=(0.7, None))
    left.legend(loc="upper right")
    newton = in_context_descent.newton_iterations
    iterations = [newton(kappa, config.tolerance) for kappa in config.conditions]
    right.plot(config.conditions, iterations, color=plotting.COLOURS[3], linewidth=0.8,
               label="Newton's inverse, iterations")  # fmt: skip
    plotting.theory(right, config.conditions, prediction.descent_count, label="closed forms")
    right.plot(np.array(config.conditions)[few], result.descent_count[0, few], "^",
               color=plotting.COLOURS[2], label="gradient descent, γ = 0")  # fmt: skip
    right.set(xscale="log", yscale="log", xlabel="condition number κ of S", ylim=(2, 3e4),
              ylabel=f"layers until the error is {config.tolerance:g}")  # fmt: skip
    right.legend(loc="center right", bbox_to_anchor=(1.0, 0.48), fontsize=6)
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-6,
    precision="float64",
    smoke=dict(conditions=(10.0, 1e3, 1e5), num_layers=18),
    paper=dict(dim=20, num_context=40),
    controls={
        "inputs left alone": contract.Control(
            dict(evening=0.0),
            breaks={
                "fall of κ in an early layer over 9/4, Schulz": "below",
                "log2 of the fall of κ in an early layer, best γ": "below",
                "numbers of layers unlike those predicted": "above",
                "largest relative error of κ after a layer": "above",
            },
            why="plain gradient descent does not change κ",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
