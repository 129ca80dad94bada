"""Products with the inverse Fisher are exact without a matrix, down to what rounding allows.

Claim      For F = λ I + (1/m) Σ_i g_i g_i^T the static recursion, built in 4 d m² operations, and a
           window that takes a new gradient in 2 d m, return F^-1 x and the diagonal of F^-1 to
           within a few ε κ, with ε of the precision and κ the condition number of F: what rounding
           x alone costs. The window does not drift.
Control    A window whose small factor is one gradient old is wrong on that gradient, a recursion
           without m in its denominators on every one, and single precision at a small λ too.
Reference  Frantar, Kurtic and Alistarh 2021, arXiv:2107.03356. Accuracy in units of ε κ is ours:
           at λ = 1e-5 single precision has nothing left on an x in the span.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.measure import inverse_fisher, ntk_cost
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P40",)
PILOT_SEEDS = (101, 102, 103)
KINDS = ("Gaussian", "tanh network")  # where the gradients are from
SIDES = ("random x", "x in the span")
SIZES = ((16, 280), (32, 280), (64, 280), (32, 560))  # (m, d) whose operations are counted


@dataclasses.dataclass(frozen=True)
class Config:
    input_dim: int = 6
    width: int = 16  # of the network: d = 16 (6 + 1); LAPACK's threads stall on larger systems
    num_gradients: int = 16  # m
    dampings: tuple[float, ...] = (1e-5, 1e-3, 1e-1)
    slides: tuple[int, ...] = (0, 1, 20, 48)  # gradients the window has taken at each look
    num_seeds: int = 10
    seed: int = 1

    def __post_init__(self):
        if self.slides[:2] != (0, 1) or sorted(self.slides) != list(self.slides):
            message = f"slides={self.slides}: give 0, 1, then larger ones in order"
            raise ValueError(message)


class Prediction(NamedTuple):
    """S seeds, K kinds, L dampings, T looks, R right-hand sides, d entries."""

    solution: Array  # (S, K, L, T, R, d) by dense algebra
    diagonal: Array  # (S, K, L, T, d)
    condition: Array  # (S, K, L, T) κ
    flops: Array  # (4, 3) of build, product, slide at each of SIZES


class Result(NamedTuple):
    """As in Prediction."""

    static: Array  # (S, K, L, T, R, d)
    window: Array  # (S, K, L, T, R, d)
    diagonal: Array  # (S, K, L, T, d) from the window
    stale: Array  # (S, K, L, R, d) after one slide, with the factor of before
    unscaled: Array  # (S, K, L, R, d) with 1 for m in the denominators
    single: Array  # (S, K, L, R, d) static, in single precision
    flops: Array  # (4, 3)


def draw(key: Key, config: Config) -> tuple[Array, Array]:
    """Return gradients (K, m + last slide, d) and the random x (d,)."""
    inputs, width = config.input_dim, config.width
    count, dim = config.num_gradients + config.slides[-1], (inputs + 1) * width
    sizes = [count * dim, dim, dim, count * inputs, count]
    gaussian, vector, params, x, labels = jnp.split(
        jax.random.normal(key, (sum(sizes),)), list(itertools.accumulate(sizes))[:-1]
    )
    data = x.reshape(count, inputs), labels

    def loss(params: Array, data: tuple[Array, Array]) -> Array:
        first = params[width:].reshape(inputs, width) / inputs**0.5
        outputs = jnp.tanh(data[0] @ first) @ params[:width] / width**0.5
        return jnp.mean((outputs - data[1]) ** 2) / 2

    of_network = inverse_fisher.per_example_gradients(loss, params, data)
    return jnp.stack([gaussian.reshape(count, dim), of_network]), vector


@functools.cache
def drawing(config: Config):
    """Return key -> draw(key): one function, compiled once for prediction and run."""
    return lambda key: draw(key, config)


def drawn(config: Config) -> tuple[Array, Array]:
    """Return gradients (S, K, m + last slide, d) and x (S, d)."""
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    return parallel.ensemble(drawing(config), keys, batching="map")


def looks(gradients: Array, config: Config) -> Array:
    """Return the gradients (T, m, d) that the window should hold at each look."""
    return jnp.stack([gradients[t : t + config.num_gradients] for t in config.slides])


def sides(held: Array, vector: Array) -> Array:
    """Return the right-hand sides (R, d): random, and the newest gradient."""
    return jnp.stack([vector, held[-1]])


def relative(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    return np.linalg.norm(found - exact, axis=-1) / np.linalg.norm(exact, axis=-1)


def predict(config: Config) -> Prediction:
    """Form F and solve; count what the two algorithms must do."""
    gradients, vectors = map(np.asarray, drawn(config))  # (S, K, .., d), (S, d)
    held = np.stack([gradients[:, :, t : t + config.num_gradients] for t in config.slides], axis=2)
    count, dim = held.shape[-2:]
    vectors = np.broadcast_to(vectors[:, None, None], held[..., -1, :].shape)
    right = np.stack([vectors, held[..., -1, :]], axis=-1)[:, :, None]  # (S, K, 1, T, d, R)
    dampings = np.array(config.dampings)[:, None]
    mean = (held.swapaxes(-1, -2) @ held / count)[:, :, None]
    fisher = mean + dampings[..., None, None] * np.eye(dim)  # (S, K, L, T, d, d)
    right = np.broadcast_to(right, (*fisher.shape[:-1], len(SIDES)))
    largest = np.linalg.eigvalsh(held @ held.swapaxes(-1, -2))[..., -1] / count
    counts = [(4 * d * m**2 + 2 * d * m, 4 * d * m, 2 * d * m) for m, d in SIZES]
    return Prediction(
        np.linalg.solve(fisher, right).swapaxes(-1, -2),
        np.diagonal(np.linalg.inv(fisher), axis1=-2, axis2=-1),
        largest[:, :, None] / dampings + 1,
        np.array(counts, float),
    )


def run(config: Config) -> Result:
    def one(gradients: Array, vector: Array, damping: Array) -> tuple[Array, ...]:
        held = looks(gradients, config)

        def static(held: Array) -> Array:
            return inverse_fisher.product(inverse_fisher.invert(held, damping), sides(held, vector))

        def read(window: inverse_fisher.Window, held: Array) -> Array:
            product = lambda x: inverse_fisher.window_product(window, x)
            return jax.vmap(product)(sides(held, vector))

        def take(window: inverse_fisher.Window, gradient: Array):
            return inverse_fisher.slide(window, gradient), window

        def look(seen: tuple[inverse_fisher.Window, Array]) -> tuple[Array, Array]:
            inverse = inverse_fisher.window_inverse(seen[0])
            return read(*seen), inverse_fisher.diagonal(inverse)

        start = inverse_fisher.open_window(held[0], damping)
        last, before = jax.lax.scan(take, start, gradients[config.num_gradients :])
        windows = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), before, last)
        # At each look, and once more after one gradient with the factor of before.
        windows = jax.tree.map(lambda leaf: leaf[jnp.array([*config.slides, 1])], windows)
        windows = windows._replace(factor=windows.factor.at[-1].set(start.factor))
        window, diagonal = jax.lax.map(look, (windows, jnp.concatenate([held, held[1:2]])))
        # A recursion with q_i = 1 + g_i·v_i, that is without the mean, is one of longer gradients.
        longer = held[:1] * config.num_gradients**0.5
        found = jax.lax.map(static, jnp.concatenate([held, longer]))
        unscaled = found[-1] / jnp.array([1.0, config.num_gradients**0.5])[:, None]
        exact = found[:-1], window[:-1], diagonal[:-1]
        return *exact, window[-1], unscaled, single(held[0], vector, damping)

    def of_seed(member: tuple[Array, Array]):
        gradients, vector = member
        at = lambda kind, damping: one(kind, vector, damping)
        over_dampings = lambda kind: jax.lax.map(lambda d: at(kind, d), jnp.array(config.dampings))
        return jax.lax.map(over_dampings, gradients)

    found = parallel.ensemble(of_seed, drawn(config), batching="map")
    return Result(*found, jnp.array([counted(m, d) for m, d in SIZES]))


def single(gradients: Array, vector: Array, damping: Array) -> Array:
    low = lambda array: array.astype(jnp.float32)
    inverse = inverse_fisher.invert(low(gradients), low(damping))
    return inverse_fisher.product(inverse, low(sides(gradients, vector)))


def counted(count: int, dim: int) -> tuple[float, ...]:
    """Return the operations traced in one build, product and slide, those of the factor apart."""
    gradients = jnp.zeros((count, dim))
    flops = lambda fn, *arguments: ntk_cost.flops(jax.make_jaxpr(fn)(*arguments).jaxpr)
    inverse = inverse_fisher.InverseFisher(gradients, jnp.ones(count), jnp.ones(()))
    window = inverse_fisher.Window(
        gradients, jnp.zeros((count, count)), jnp.eye(count), jnp.array(0), jnp.ones(())
    )
    build = lambda gradients: inverse_fisher.invert(gradients, 1.0)
    return (flops(build, gradients), flops(inverse_fisher.product, inverse, gradients[0]),
            flops(inverse_fisher.slide, window, gradients[0]))  # fmt: skip


def errors(prediction: Prediction, result: Result) -> dict[str, np.ndarray]:
    """Return relative errors (S, K, L, T, R), or without T at the first look."""
    first, second = prediction.solution[:, :, :, 0], prediction.solution[:, :, :, 1]
    return {
        "static": relative(result.static, prediction.solution),
        "window": relative(result.window, prediction.solution),
        "stale": relative(result.stale, second),
        "unscaled": relative(result.unscaled, first),
        "single": relative(result.single, first),
    }


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    found = errors(prediction, result)
    epsilon, low = float(np.finfo(np.float64).eps), float(np.finfo(np.float32).eps)
    kappa = prediction.condition
    worst = lambda array: array.reshape(len(array), -1).max(axis=1)
    unit = epsilon * kappa[..., None]
    least = lambda array: array.reshape(len(array), -1).min(axis=1)
    diagonal = relative(result.diagonal, prediction.diagonal)
    most, why = config.num_gradients, "m terms, each rounded to ε κ of the sum; pilots 5.1"
    shows = "the control must be seen; pilots 0.03, and 20"
    return [
        checks.every_seed("error of the static recursion over ε κ, largest",
                          worst(found["static"] / unit), upper=most, why=why),
        checks.every_seed("error of the window over ε κ, largest",
                          worst(found["window"] / unit), upper=most, why=why),
        checks.every_seed("error of the diagonal over ε κ, largest",
                          worst(diagonal / (epsilon * kappa)), upper=most, why=why),
        checks.every_seed("relative error of either, largest",
                          np.maximum(worst(found["static"]), worst(found["window"])), upper=1e-8,
                          why="κ is 2e6 at λ = 1e-5; pilots 1.3e-9"),
        checks.every_seed("error in single precision over its ε κ, largest",
                          worst(found["single"] / (low * kappa[:, :, :, 0, None])), upper=most,
                          why=why),
        checks.below("counts of operations unlike those predicted, largest share",
                     np.abs(result.flops / prediction.flops - 1).max(), 1e-12,
                     why="4 d m² + 2 d m, 4 d m and 2 d m are exact"),
        checks.every_seed("Gaussian, least λ, x in the span: relative error in single precision",
                          found["single"][:, 0, 0, 1], lower=1e-3, why=shows, role="control"),
        checks.every_seed("Gaussian, newest gradient: relative error with the factor before it",
                          least(found["stale"][:, 0, :, 1]), lower=0.1, role="control", why=shows),
        checks.every_seed("Gaussian, x in the span: relative error with no m in the denominators",
                          least(found["unscaled"][:, 0, :, 1]), lower=0.5, role="control",
                          why="F of the sum in place of the mean"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    found, kinds = errors(prediction, result), len(KINDS)
    for i, (name, epsilon) in enumerate((("static", np.finfo(np.float64).eps),
                                         ("single", np.finfo(np.float32).eps))):  # fmt: skip
        error = found[name][:, :, :, 0] if name == "static" else found[name]  # (S, K, L, R)
        for r, side in enumerate(SIDES):
            label = f"{'double' if i == 0 else 'single'}, {side}"
            plotting.points(left, config.dampings, error[:, 0, :, r], color=plotting.COLOURS[i],
                            marker=plotting.MARKERS[r], spread="log", label=label)  # fmt: skip
        line = epsilon * prediction.condition[:, 0, :, 0].mean(axis=0)
        plotting.theory(left, config.dampings, line, label=None if i else "ε κ")
    left.set(xscale="log", yscale="log", xlabel="damping λ", title="Gaussian gradients")
    left.set(ylabel="relative error of F$^{-1}$x", ylim=(1e-17, 1e10))
    left.legend(loc="upper right")
    unit = np.finfo(np.float64).eps * prediction.condition[..., None]
    for k in range(kinds):
        for j, name in enumerate(("static", "window")):
            error = (found[name] / unit)[:, k, :, :, 1].max(axis=1)  # (S, T), worst λ
            at = np.arange(len(config.slides)) + 0.1 * (2 * j - 1)
            plotting.points(middle, at, error, color=plotting.COLOURS[k], spread="log",
                            marker=plotting.MARKERS[j], label=f"{name}, {KINDS[k]}")  # fmt: skip
        error = (found["stale"] / unit[:, :, :, 1])[:, k, :, 1].max(axis=1)
        plotting.points(middle, [1], error[:, None], color=plotting.COLOURS[k], marker="X",
                        spread="log", label=f"old factor, {KINDS[k]}")  # fmt: skip
    plotting.threshold(middle, config.num_gradients, label="bound")
    middle.set(yscale="log", xlabel="gradients that the window has taken")
    middle.set(ylabel="error over ε κ, x in the span, worst λ")
    middle.set_xticks(range(len(config.slides)), config.slides)
    middle.legend()
    for i, (name, power) in enumerate((("build", 2), ("product", 1), ("new gradient", 1))):
        size = [d * m**power for m, d in SIZES]
        order = np.argsort(size)
        right.plot(np.array(size)[order], result.flops[order, i], plotting.MARKERS[i],
                   color=plotting.COLOURS[i], label=name)  # fmt: skip
        plotting.theory(right, np.array(size)[order], prediction.flops[order, i], label=None)
    right.set(xscale="log", yscale="log", ylabel="operations")
    right.set(xlabel="d m² (build), d m (others)")
    right.legend()
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-9,
    precision="float64",
    smoke=dict(num_seeds=5, slides=(0, 1, 20)),
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
