"""Layers of a linear-attention optimiser hold S^-1 x the more readably the deeper, as predicted.

Claim      S is the second moment of the inputs in context, x the query. A linear probe for S^-1 x
           on K layers that take K steps of descent towards it scores an R² that spectra alone
           predict: 0.65 (what x itself gives), 0.75, 0.84, 0.93, 0.96 for K = 1, 2, 4, 8, 12; the
           weights that these layers answer with are descent's iterate. Linear attention trained on
           nothing but answers makes S^-1 x more readable too, in its first layer, within what one
           layer can (0.86); in the second R² does not go on rising at this size.
Control    With the S of another context a probe finds no more than x itself gives, at every layer,
           and so it does before training; steps twice as large, which the largest eigenvalues do
           not allow, lose S^-1 x again.
Reference  von Oswald et al. 2023, arXiv:2309.05858 (probes of the preconditioned input in trained
           networks); the curve, the best of one layer and the diverging step are derived here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.measure import linear_probe
from dynamics.models import inverse_covariance_attention as attention
from dynamics.theory import inverse_covariance_probe as theory
from dynamics.training import step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P262",)
PILOT_SEEDS = (101, 102, 103)


@dataclasses.dataclass(frozen=True)
class Config:
    dim: int = 4
    num_context: int = 16
    depths: tuple[int, ...] = (1, 2, 4, 8, 12)  # layers of the constructed optimiser, to be probed
    step_size: float = 0.4
    large_step_size: float = 0.8  # fits the average spectrum, not the largest eigenvalues
    num_probed: int = 4096  # contexts that probes are fitted to and scored on
    num_layers: int = 3  # of the trained network; the last one only answers
    init_std: float = 0.1
    num_steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 5e-3
    num_seeds: int = 5
    seed: int = 1


class Result(NamedTuple):
    """S seeds, K probed depths, L layers of the trained network, T times."""

    constructed: Array  # (S, K) R² of S^-1 x
    shuffled: Array  # (S, K) with the S of another context
    large: Array  # (S, K) with the large step
    weight_error: Array  # (S, K) relative RMS of the weights read from answers less descent's
    step: Array  # (T,)
    loss: Array  # (S, T) |w - weights of the trained network|² / D on tasks not trained on
    token_error: Array  # (S,) largest |label slot - weights·x|: training's shortcut is attention
    trained: Array  # (S, L, 3) R² of S^-1 x before each layer, and its interval
    trained_shuffled: Array  # (S, L) with the S of another context
    untrained: Array  # (S, L) before training
    cosine: Array  # (S,) of the trained network's weights with those of the task, mean


class Simulation(NamedTuple):
    """What one seed's networks hold; B contexts, F numbers in a token."""

    query: Array  # (B, D)
    moment: Array  # (B, D, D)
    constructed: Array  # (2, K, B, D)
    queries: Array  # (C, 2 D, D)
    answers: Array  # (K, C, 2 D)
    descended: Array  # (K, C, D)
    loss: Array  # (T,)
    trained: Array  # (L, B, F)
    untrained: Array  # (L, B, F)
    token_error: Array  # ()
    cosine: Array  # ()


def run(config: Config) -> Result:
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    found = parallel.ensemble(lambda key: simulate(key, config), keys)
    found = Simulation(*(np.asarray(leaf, np.float64) for leaf in found))
    rows = [probe_all(Simulation(*(leaf[s] for leaf in found)), s) for s in range(len(keys))]
    probed = [np.array(leaf) for leaf in zip(*rows, strict=True)]
    constructed, shuffled, large, error, trained, trained_shuffled, untrained = probed
    return Result(
        constructed, shuffled, large, error, times(config), found.loss, found.token_error, trained,
        trained_shuffled, untrained, found.cosine,
    )  # fmt: skip


def probe_all(found: Simulation, seed: int) -> tuple:
    """Return what Result has of one seed's probes, on the host."""
    other = linear_probe.other_contexts(len(found.query), seed=seed)
    of_moment = lambda moment: np.linalg.solve(moment, found.query[..., None])[..., 0]
    own, mixed = of_moment(found.moment), of_moment(found.moment[other])

    def probe(features, target, num_resamples=400):
        fit = linear_probe.linear_probe(
            features, target, seed=seed, intercept=False, num_resamples=num_resamples
        )
        return fit.r_squared, fit.lower, fit.upper

    score = lambda layers, target: [probe(h, target, 2)[0] for h in layers]
    weights = (np.linalg.pinv(found.queries) @ found.answers[..., None])[..., 0]  # (K, C, D)
    square = lambda a: np.mean(a**2, axis=(1, 2))
    return (
        score(found.constructed[0], own), score(found.constructed[0], mixed),
        score(found.constructed[1], own),
        np.sqrt(square(weights - found.descended) / square(found.descended)),
        [probe(h, own) for h in found.trained], score(found.trained, mixed),
        score(found.untrained, own),
    )  # fmt: skip


def simulate(key: Key, config: Config) -> Simulation:
    input_key, task_key, query_key, train_key = jax.random.split(key, 4)
    dim, num = config.dim, config.num_probed
    x = jax.random.normal(input_key, (num, config.num_context, dim))
    w = jax.random.normal(task_key, (num, dim))
    queries = jax.random.normal(query_key, (num, 2 * dim, dim))
    query, labels = queries[:, 0], jnp.einsum("bnd,bd->bn", x, w)
    moment = jnp.einsum("bnd,bne->bde", x, x) / config.num_context
    probed = np.array(config.depths) - 1
    hidden = jax.vmap(  # (2, K, B, 2 D, D)
        lambda a: attention.descent_layers(x, queries, a, config.depths[-1])[probed]
    )(jnp.array([config.step_size, config.large_step_size]))
    few = slice(0, 256)  # contexts whose weights are compared; one more head reads sum y x·h / N
    read = jnp.einsum("cn,cnd->cd", labels[few], x[few]) / config.num_context
    answers = jnp.einsum("cd,kcqd->kcq", read, hidden[0, :, few])
    descended = descend(moment[few], w[few], config)[probed]
    start, trained, losses = train(train_key, config)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), trained, start)
    tokens, before = jax.vmap(lambda p: attention.query_tokens(p, x, labels, query))(both)
    weights = attention.implicit_weights(trained, jnp.moveaxis(moment, 0, -1), w.T).T
    error = jnp.abs(tokens[-1, :, -1] - jnp.sum(weights * query, axis=1)).max()
    lengths = jnp.linalg.norm(weights, axis=1) * jnp.linalg.norm(w, axis=1) + 1e-12
    return Simulation(query, moment, hidden[:, :, :, 0], queries[few], answers, descended, losses,
                      tokens[:-1], before[:-1], error,
                      jnp.mean(jnp.sum(weights * w, axis=1) / lengths))  # fmt: skip


def descend(moment: Array, w: Array, config: Config) -> Array:
    """Return the weights (K, C, D) after every step of descent on the squared loss in context."""

    def update(found: Array, _):
        found = found + config.step_size * jnp.einsum("bde,be->bd", moment, w - found)
        return found, found

    _, iterates = jax.lax.scan(update, 0 * w, length=config.depths[-1])
    return iterates


def times(config: Config) -> np.ndarray:
    return np.linspace(0, config.num_steps, 31).astype(int)


def train(key: Key, config: Config):
    """Return parameters before and after training on answers, and the losses (T,)."""
    init_key, test_key, batch_key = jax.random.split(key, 3)
    size = 2 * config.dim + 1
    shape = (2, config.num_layers, size, size)
    matrices, readers = config.init_std * jax.random.normal(init_key, shape)
    kept = (jnp.arange(size) >= config.dim)[:, None]  # the first slot stays a copy of x
    masked = lambda p: attention.StackWeights(kept * p.writers, p.readers)
    params = masked(attention.StackWeights(matrices, readers))

    def loss(params, key: Key, num: int) -> Array:
        input_key, task_key = jax.random.split(key)
        x = jax.random.normal(input_key, (config.num_context, config.dim, num))
        w = jax.random.normal(task_key, (config.dim, num))
        moment = jnp.sum(x[:, :, None] * x[:, None], axis=0) / config.num_context
        found = attention.implicit_weights(masked(params), moment, w)
        return jnp.mean((found - w) ** 2)

    schedule = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.98))

    def update(state: step.TrainState) -> step.TrainState:
        batch = jax.random.fold_in(batch_key, state.step)
        gradient = jax.grad(loss)(state.params, batch, config.batch_size)
        updates, memory = optimiser.update(gradient, state.optimiser_state, state.params)
        return step.TrainState(optax.apply_updates(state.params, updates), memory, state.step + 1)

    losses, state = trajectory.record_with_state(
        update, step.initial_state(params, optimiser),
        lambda state: loss(state.params, test_key, 1024), times=times(config),
    )  # fmt: skip
    return params, masked(state.params), losses


def spectra_of(config: Config) -> np.ndarray:
    """Return 100,000 spectra, which know an R² to 0.002."""
    return theory.wishart_spectra(config.dim, config.num_context, 100_000, seed=0)


def predicted(config: Config, step_size: float) -> np.ndarray:
    """Return the R² (K,) of the constructed layers."""
    spectra, applied = spectra_of(config), theory.descent_polynomial
    return np.array([
        theory.probe_r_squared(spectra, applied(spectra, step_size, k)) for k in config.depths
    ])  # fmt: skip


def check(config: Config, result: Result) -> list[checks.Check]:
    raw = theory.raw_input_r_squared(config.dim, config.num_context)
    line = theory.polynomial_r_squared(spectra_of(config), 1)
    mean = result.constructed.mean(axis=0)
    trained = result.trained[..., 0]
    others = max(result.shuffled.mean(axis=0).max(), result.trained_shuffled.mean(axis=0).max())
    return [
        checks.every_seed("largest error of the label slot against the network's weights",
                          result.token_error, upper=1e-2, role="precondition",
                          why="training's shortcut is attention: single precision, pilots 1e-4"),
        checks.every_seed("loss of the trained network over that of answering zero",
                          result.loss[:, -1], upper=0.5, role="precondition",
                          why="else raise num_steps"),
        checks.below("largest error of R² on constructed layers, mean of seeds",
                     np.abs(mean - predicted(config, config.step_size)).max(), 0.03,
                     why="six standard errors of 0.005 (S^-1 x has heavy tails); pilots 0.001"),
        checks.above("least rise of R² from one depth to the next, mean of seeds",
                     np.diff(mean).min(), 0.02,
                     why="0.034 from eight layers to twelve, all on the same contexts"),
        checks.every_seed("relative error of the weights against descent's iterate",
                          result.weight_error.max(axis=1), upper=1e-4,
                          why="single precision, times the condition of 2 D queries: pilots 2e-7"),
        checks.above("trained: lower end of R² after one layer less R² of x, mean of seeds",
                     np.mean(result.trained[:, 1, 1] - trained[:, 0]), 0.05,
                     why="it rises, past the probe's interval; pilots 0.16"),
        checks.below("trained: R² after one layer, mean of seeds", trained[:, 1].mean(),
                     line + 0.03,
                     why="polynomials of degree one allow no more; pilots 0.03 below"),
        checks.below("trained: R² before the last layer less that after one, mean of seeds",
                     np.mean(trained[:, -1] - trained[:, 1]), 0.06, why="pilots -0.02"),
        checks.above("trained: R² before the last layer less that before training, mean of seeds",
                     np.mean(trained[:, -1] - result.untrained[:, -1]), 0.05,
                     why="it is training, not any layer, that does it; pilots 0.14"),
        checks.above("trained: cosine of its weights with the task's, mean of seeds",
                     result.cosine.mean(), 0.9, why="it solves the task; pilots 0.98"),
        checks.below("R² with the S of another context, any layer, mean of seeds", others,
                     raw + 0.03, role="control",
                     why="x itself gives 0.6545, and six standard errors; pilots 0.658"),
        checks.below("R² before training, any layer, mean of seeds", result.untrained.mean(0).max(),
                     raw + 0.03, role="control", why="small random layers leave x itself"),
        checks.every_seed("R² at the largest depth, large step less small",
                          result.large[:, -1] - result.constructed[:, -1], upper=-0.1,
                          role="control", why="it diverges where λ > 2 / a: pilots below -0.3"),
    ]  # fmt: skip


def plot(config: Config, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    depths = np.array(config.depths)
    spread, layers = {"spread": "range"}, np.arange(config.num_layers)
    plotting.points(left, depths, result.constructed, label=f"a = {config.step_size:g}",
                    color=plotting.COLOURS[0], **spread)  # fmt: skip
    large = np.maximum(np.median(result.large, axis=0), 0)
    left.plot(depths, large, plotting.MARKERS[1], color=plotting.COLOURS[1],
              label=f"a = {config.large_step_size:g}, median or 0")  # fmt: skip
    plotting.points(left, depths, result.shuffled, marker=plotting.MARKERS[2],
                    label="S of another context", color=plotting.COLOURS[2], **spread)  # fmt: skip
    for i, a in enumerate((config.step_size, config.large_step_size)):
        plotting.theory(left, depths, predicted(config, a), label=None if i else "from spectra")
    raw = theory.raw_input_r_squared(config.dim, config.num_context)
    left.set(xlabel="constructed layers K", ylabel="R² of a probe for S⁻¹x", ylim=(-0.03, 1.05),
             xticks=depths)  # fmt: skip
    left.legend(loc="lower left")
    for i, (name, values) in enumerate({
        "trained": result.trained[..., 0], "before training": result.untrained,
        "S of another context": result.trained_shuffled,
    }.items()):  # fmt: skip
        plotting.points(middle, layers, values, label=name, marker=plotting.MARKERS[i],
                        color=plotting.COLOURS[i], **spread)  # fmt: skip
    plotting.threshold(middle, raw, label="x alone")
    plotting.threshold(middle, theory.polynomial_r_squared(spectra_of(config), 1),
                       linestyle="--", label="best of degree one")  # fmt: skip
    middle.set(xlabel="layers passed", ylabel="R² of a probe for S⁻¹x", xticks=layers)
    middle.set_ylim(0.6, 1.1)
    middle.legend(loc="upper left")
    plotting.band(right, result.step, result.loss, spread="range", color=plotting.COLOURS[0])
    right.set(xlabel="training step", ylabel="|w - weights of the network|² / D", yscale="log")
    plotting.label_panels(panels)


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    smoke=dict(num_steps=500),
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
