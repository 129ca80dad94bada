"""2k + 3 layers of linear attention make k Newton iterations, and so 2^k steps of descent.

Claim      With explicit weights and d memory tokens, 2k + 3 layers of linear self-attention make k
           steps M ← 2M - M S M towards the inverse of S, and answer with x·M_k X^T y. From
           M_0 = a I that is the answer of 2^k steps of gradient descent, which take 2^k layers.
           Layers to a fixed error thus grow by two for each doubling of the condition number κ,
           by four from M_0 = a S, in proportion to κ for descent. Neither memory nor a second
           layer an iteration is needed: k + 1 layers do where tokens carry their product with M.
Control    Where the second layer of an iteration does not clear its scratch space no inverse
           comes; beyond a = 2/|S| the iteration leads away from least squares.
Reference  Fu et al. 2023, arXiv:2310.17086 (O(k) layers); Giannou et al. 2024, arXiv:2403.03183
           (two layers an iteration). Closed form, 2k + 3 and k + 1 layers are derived here.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.data import in_context
from dynamics.measure import weight_constructions
from dynamics.models import linear_attention
from dynamics.theory import in_context_descent
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P47",)
PILOT_SEEDS = (101, 102, 103)
METHODS = ("Newton from a I", "Newton from a S", "gradient descent")


@dataclasses.dataclass(frozen=True)
class Config:
    dim: int = 8
    num_context: int = 40
    noise_std: float = 0.5  # the answer sought is that of least squares
    largest_scale: float = 5.0  # of the variances of the inputs, from 1 on
    relative_start: float = 1.0  # a |S|, converges below 2
    refresh: bool = True  # clear the scratch space; predict does not know it
    num_iterations: int = 12
    conditions: tuple[float, ...] = (10.0, 100.0, 1000.0, 10_000.0)
    tolerance: float = 1e-3
    num_tasks: int = 16
    num_seeds: int = 5
    seed: int = 1


class Prediction(NamedTuple):
    """S seeds, B tasks, K = num_iterations + 1, C condition numbers."""

    answer: Array  # (S, B, K) after 0, 1, ... iterations
    memory: Array  # (S, B, K, d, d) M S
    least_squares: Array  # (S, B)
    count: Array  # (C, 3) iterations or steps to the tolerance, by method


class Result(NamedTuple):
    """The same from the tokens of attention."""

    answer: Array  # (S, B, K) of 2k + 3 layers
    memory: Array  # (S, B, K, d, d) M S with M from the memory tokens
    short_answer: Array  # (S, B, K) of k + 1 layers
    descent_answer: Array  # (S, B, K) of 2^k layers of gradient descent
    count: Array  # (S, C, 3) iterations or steps, by method


def tasks(config: Config) -> tuple[in_context.RegressionPrompts, np.ndarray]:
    """Return the prompts of all seeds, (S B, ...), and the start a (S B,) of each."""
    scales = jnp.linspace(1, config.largest_scale, config.dim)
    prompts = in_context.linear_regression(
        jax.random.key(config.seed), config.num_seeds * config.num_tasks, config.num_context,
        config.dim, eigenvalues=scales, noise_std=config.noise_std,
    )  # fmt: skip
    return prompts, config.relative_start / np.linalg.norm(prompts.inputs, 2, axis=(1, 2)) ** 2


def by_seed(config: Config, leaf: Array) -> Array:
    return leaf.reshape(config.num_seeds, -1, *leaf.shape[1:])


def predict(config: Config) -> Prediction:
    """M_k has the eigenvalues (1 - (1 - a λ)^(2^k)) / λ of the eigenvectors of S."""
    prompts, scale = tasks(config)
    x, y, query = (np.asarray(a) for a in prompts[:3])
    lam, basis = np.linalg.eigh(np.swapaxes(x, 1, 2) @ x)
    seen = np.einsum("bde,bnd,bn->be", basis, x, y)
    asked = np.einsum("bde,bd->be", basis, query)
    k = np.arange(config.num_iterations + 1)[:, None]
    inverse = in_context_descent.newton_inverse(lam[:, None], k, scale[:, None, None])  # (SB, K, d)
    answer = np.einsum("be,bke,be->bk", asked, inverse, seen)
    memory = np.einsum("bde,bke,bfe->bkdf", basis, inverse * lam[:, None], basis)
    found = answer, memory, np.sum(asked * seen / lam, axis=-1)
    newton, goal = in_context_descent.newton_iterations, config.tolerance
    counts = [
        [newton(kappa, goal), newton(kappa, goal, "gram"),
         in_context_descent.gradient_descent_steps(kappa, goal)] for kappa in config.conditions
    ]  # fmt: skip
    return Prediction(*(by_seed(config, leaf) for leaf in found), np.array(counts, float))


def run(config: Config) -> Result:
    # Whatever the controls change is an argument: they are the same program, compiled once.
    prompts, scale = tasks(config)
    cleared = jnp.full(len(scale), float(config.refresh))
    members = (prompts.inputs, prompts.targets, prompts.query, jnp.asarray(scale), cleared)
    found = parallel.ensemble(
        lambda member: answers_of_stacks(*member, config), members, batching="vmap"
    )
    conditions = jnp.tile(jnp.array(config.conditions), config.num_seeds)
    keys = jax.random.split(jax.random.key(config.seed + 2**16), len(conditions))
    counts = parallel.ensemble(
        lambda member: layers_needed(*member, config), (keys, conditions), batching="vmap"
    )
    return Result(*(by_seed(config, leaf) for leaf in (*found, counts)))


def answers_of_stacks(x, y, query, scale, cleared, config: Config) -> tuple[Array, ...]:
    """Return the answers (K,) of the stacks for one prompt, and M S of the memory tokens."""
    dim, num_context = config.dim, config.num_context
    k = jnp.arange(config.num_iterations + 1)
    stack = weight_constructions.newton_construction(dim, config.num_iterations, scale)
    clearing = stack.projection.at[:, 2].multiply(cleared)  # the third head, u ← 0
    layers, read_out = parts(stack._replace(projection=clearing), 2)
    tokens = weight_constructions.newton_tokens(x, y, query)
    attend = functools.partial(linear_attention.attention_stack, num_context=num_context + dim)
    inner = attend(layers, tokens)[::2]  # (K, N + d + 1, D) after M_0, M_1, ...
    answer = jax.vmap(lambda e: attend(read_out, e)[-1, -1, -1])(inner)
    memory = inner[:, num_context:-1, dim + 1 : 2 * dim + 1] @ (x.T @ x)

    stack = weight_constructions.short_newton_construction(dim, config.num_iterations, scale)
    layers, read_out = parts(stack, 1)
    tokens = weight_constructions.short_newton_tokens(x, y, query)
    ask = functools.partial(linear_attention.attention_stack, num_context=num_context)
    inner = jnp.concatenate([tokens[None], ask(layers, tokens)])
    # The read-out of k iterations has the factor a 2^k.
    short = jax.vmap(lambda e: ask(read_out, e)[-1, -1, -1])(inner) * 2.0 ** (k - k[-1])

    layer = weight_constructions.gradient_descent_construction(
        dim, scale * num_context, num_context
    )

    def descend(state, _):
        state = linear_attention.gram_self_attention(layer, *state)
        return state, -state[1][-1]

    _, every = jax.lax.scan(descend, gram_and_query(x, y, query), length=2**config.num_iterations)
    return answer, memory, short, every[2**k - 1]


def parts(stack, num_read_out: int) -> tuple:
    """Return the layers and those of the read-out, which can be put after any iteration."""
    cut = len(stack.query) - num_read_out
    return jax.tree.map(lambda m: m[:cut], stack), jax.tree.map(lambda m: m[cut:], stack)


def gram_and_query(x: Array, y: Array, query: Array) -> tuple[Array, Array]:
    """Return G and the query of tokens (x, y)."""
    tokens = jnp.concatenate([x, y[:, None]], axis=1)
    return linear_attention.context_gram(tokens, num_context=len(x)), jnp.append(query, 0.0)


def layers_needed(key: Key, condition: Array, config: Config) -> Array:
    """Return the iterations or steps (3,) to the tolerance in the worst task of a spectrum.

    Inputs of random directions and log-spaced eigenvalues of S from 1/κ to 1; weights and query
    are the eigenvector of the smallest.
    """
    dim, goal, hardest = config.dim, config.tolerance, max(config.conditions)
    basis = jax.random.orthogonal(key, dim)
    x = condition ** (-jnp.linspace(1, 0, dim) / 2)[:, None] * basis
    y, query = x @ basis[0], basis[0]
    found = []
    for start in ("identity", "gram"):
        most = in_context_descent.newton_iterations(hardest, goal, start) + 2
        layers, read_out = parts(
            weight_constructions.newton_construction(dim, most, 1.0, start=start), 2
        )
        tokens = weight_constructions.newton_tokens(x, y, query)
        gram = linear_attention.context_gram(tokens, num_context=2 * dim)
        grams, queries = linear_attention.gram_stack(layers, gram, tokens[-1])
        answer = jax.vmap(linear_attention.gram_stack, (None, 0, 0))(
            read_out, grams[::2], queries[::2]
        )[1][:, -1, -1]
        found.append(jnp.argmax(1 - answer <= goal))
    layer = weight_constructions.gradient_descent_construction(dim, 1.0 * dim, dim)

    unsolved = lambda state: 1 + state[-1][-1] > goal
    descend = lambda state: (state[0] + 1, *linear_attention.gram_self_attention(layer, *state[1:]))
    start = (jnp.array(0), *gram_and_query(x, y, query))
    return jnp.array([*found, jax.lax.while_loop(unsolved, descend, start)[0]], float)


def slopes(config: Config, count: np.ndarray) -> np.ndarray:
    """Return the slopes (S, 3): iterations of Newton, log2 of steps, for each doubling of κ."""
    doublings = np.log2(config.conditions)
    height = np.concatenate([count[..., :2], np.log2(count[..., 2:])], axis=-1)  # (S, C, 3)
    weights = doublings - doublings.mean()
    return np.einsum("c,scm->sm", weights, height) / np.sum(weights**2)


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    size = np.sqrt(np.mean(prediction.answer**2, axis=(1, 2)))  # (S,)
    worst = lambda found: np.abs(found - prediction.answer).max(axis=(1, 2)) / size
    rounding = "rounding gives 1e-14; a wrong term shows at 1e-2"
    off = result.answer[..., -1] - prediction.least_squares
    slope = slopes(config, result.count)
    slack = 1 / np.log2(max(config.conditions) / min(config.conditions))
    whole = "iterations are rounded up to whole ones, over the range of log2 κ"
    return [
        checks.every_seed("largest relative error of the answers of 2k + 3 layers",
                          worst(result.answer), upper=1e-10, why=rounding),
        checks.every_seed("largest error of M S in the memory tokens",
                          np.abs(result.memory - prediction.memory).max(axis=(1, 2, 3, 4)),
                          upper=1e-10, why=rounding),
        checks.every_seed("largest relative error of the answers of k + 1 layers",
                          worst(result.short_answer), upper=1e-10, why=rounding),
        checks.every_seed("largest relative error of the answers of 2^k layers of descent",
                          worst(result.descent_answer), upper=1e-10,
                          why="2^k steps of descent are k iterations of Newton from a I"),
        checks.every_seed("distance from least squares in the end, relative",
                          np.abs(off).max(axis=1) / size, upper=1e-6,
                          why="(1 - 1/κ)^(2^k), and κ is below 60"),
        checks.below("counts of iterations and steps unlike those predicted",
                     np.sum(result.count != np.round(prediction.count)), 0,
                     why="closed forms of spectra that are no draw"),
        checks.every_seed("iterations for each doubling of κ, from a I", slope[:, 0],
                          lower=1 - slack, upper=1 + slack, why=whole),
        checks.every_seed("iterations for each doubling of κ, from a S", slope[:, 1],
                          lower=2 - slack, upper=2 + slack, why=whole),
        checks.every_seed("exponent of the steps of descent in κ", slope[:, 2],
                          lower=0.97, upper=1.03, why="κ ln(1/tolerance), less 1/2 at small κ"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, right = panels = figure.subplots(1, 2)
    k = np.arange(config.num_iterations + 1)
    size = np.sqrt(np.mean(prediction.least_squares**2))
    off = lambda a: a - prediction.least_squares[..., None]  # (S, B, K)
    missing = lambda a: np.sqrt(np.mean(off(a) ** 2, axis=(0, 1))) / size
    for label, layers in (("closed forms", 2 * k + 3), (None, k + 1), (None, 2.0**k)):
        plotting.theory(left, layers, missing(prediction.answer), label=label)
    for i, (name, layers, found) in enumerate((
        ("Newton, memory tokens: 2k + 3", 2 * k + 3, result.answer),
        ("Newton, without: k + 1", k + 1, result.short_answer),
        ("gradient descent: 2ᵏ", 2.0**k, result.descent_answer),
    )):  # fmt: skip
        left.plot(layers, missing(found), plotting.MARKERS[i], label=name,
                  color=plotting.COLOURS[i])  # fmt: skip
    left.set(xscale="log", yscale="log", xlabel="layers of linear attention", ylim=(1e-11, 1e6),
             ylabel="distance from least squares / its RMS")  # fmt: skip
    left.legend(loc="upper right")
    layers = lambda count: count * np.array([2, 2, 1]) + np.array([3, 3, 0])  # (..., 3)
    for i, name in enumerate(METHODS):
        plotting.theory(right, config.conditions, layers(prediction.count)[:, i], label=None)
        right.plot(config.conditions, layers(result.count)[0, :, i], plotting.MARKERS[i],
                   label=name, color=plotting.COLOURS[(0, 4, 2)[i]])  # fmt: skip
    right.set(xscale="log", yscale="log", xlabel="condition number κ of S",
              ylabel=f"layers until the error is {config.tolerance:g}")  # fmt: skip
    right.legend(loc="upper left")
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-8,
    precision="float64",
    smoke=dict(conditions=(10.0, 100.0, 1000.0), num_tasks=4),
    paper=dict(dim=20, num_tasks=64),
    controls={
        "scratch space not cleared": contract.Control(
            dict(refresh=False),
            breaks={
                "largest relative error of the answers of 2k + 3 layers": "above",
                "largest error of M S in the memory tokens": "above",
                "distance from least squares in the end, relative": "above",
            },
            why="u then adds up over iterations and is no longer S M",
        ),
        "start too far from zero": contract.Control(
            dict(relative_start=2.02),
            breaks={"distance from least squares in the end, relative": "above"},
            why="|1 - a λ| is above 1 along the largest eigenvector, and squared each time",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
