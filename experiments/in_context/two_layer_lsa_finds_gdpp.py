"""Two trained layers of linear attention do what GD++ does, and no two steps of descent can.

Claim      Two tied layers of linear self-attention, trained from a random start on linear
           regression in context, end well below the loss of the best two steps of gradient descent
           and at that of the best GD++, which also takes the inputs to (I - γ S) x between its
           steps. Their matrices are those of GD++: its γ and its η are read from them. One start in
           eighty stays in another valley, so the claim is about most networks.
Control    Where layers can write nothing into the inputs they end far above, near the best two
           different steps of descent: below equal ones, as tied layers need not do equal steps.
Reference  von Oswald et al. 2023, arXiv:2212.07677, section 4 and figure 3. The losses of both
           methods as functions of the spectrum of S, and so the best rates, are derived here.
           Tied layers: two that differ have lower optima, drawn in the figure.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.data import regression_grams
from dynamics.measure import weight_constructions
from dynamics.models import linear_attention
from dynamics.theory import in_context_descent
from dynamics.training import clipped_adam, step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P36",)
PILOT_SEEDS = (101, 102, 103, 104, 105)  # with 64 networks each in the last two
VARIANCE = 1 / 12  # of a uniform entry
METHODS = ("gradient descent", "GD++")


@dataclasses.dataclass(frozen=True)
class Config:
    dim: int = 10
    num_context: int = 10
    writes_inputs: bool = True  # whether layers may change inputs
    init_std: float = 0.04  # of all matrices
    learning_rate: float = 3e-3  # falls to zero over the second half
    clip: float = 0.1  # of the gradient's norm
    num_steps: int = 3000
    num_times: int = 31
    batch_size: int = 256
    num_train: int = 20_000  # tasks that batches are drawn from
    num_test: int = 10_000
    num_spectra: int = 4000  # tasks on which the rates of the references are the best
    num_seeds: int = 5
    seed: int = 1


class Result(NamedTuple):
    """S seeds, T times."""

    step: Array  # (T,)
    loss: Array  # (S, T) half mean squared error of a query on test tasks
    tied_loss: Array  # (S, 2) of the best two steps of each method, equal ones, on the same tasks
    untied_loss: Array  # (S, 2) of the best two different steps
    difference: Array  # (S, 2) RMS of answers less those of each method, over the RMS of those
    rates: Array  # (S, 2) η and γ read from the matrices
    best_rates: Array  # (2,) η and γ of the best GD++
    off_diagonal: Array  # (S,) RMS of what GD++ has as zero, over the RMS of its diagonal


def references(config: Config) -> dict[tuple[bool, bool], in_context_descent.BestRates]:
    """Return the best rates by (tied, plus plus), on tasks of their own."""
    key = jax.random.fold_in(jax.random.key(config.seed), config.num_seeds)
    tasks = regression_grams.uniform_tasks(key, config.num_spectra, config.num_context, config.dim)
    spectra = np.linalg.eigvalsh(tasks.gram[:, :-1, :-1]) / config.num_context
    return {
        (tied, plus): in_context_descent.best_rates(
            spectra, 2, variance=VARIANCE, tied=tied, plus_plus=plus
        )
        for tied in (True, False) for plus in (False, True)
    }  # fmt: skip


def run(config: Config) -> Result:
    found = references(config)
    rates = jnp.array([[*one.learning_rates, *one.input_rates] for one in found.values()])
    times = np.unique(np.linspace(0, config.num_steps, config.num_times).astype(int))
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    # Numbers, not branches: the control is the same program.
    writes = jnp.full(config.num_seeds, float(config.writes_inputs))
    losses, references_loss, *rest = parallel.ensemble(
        lambda member: train(*member, rates, times, config), (keys, writes)
    )
    best = found[True, True]
    return Result(times, losses, references_loss[:, :2], references_loss[:, 2:], rest[0], rest[1],
                  np.array([best.learning_rates[0], best.input_rates[0]]), rest[2])  # fmt: skip


def answers(stack: linear_attention.LinearAttentionWeights, gram: Array) -> Array:
    """Return the weights (B, d) with which a stack answers queries, minus its label slot."""
    return -linear_attention.read_out_row(stack, gram)[..., :-1]


def train(key: Key, writes: Array, rates: Array, times: np.ndarray, config: Config):
    """Return losses and rates of one network next to the references."""
    train_key, test_key, init_key, batch_key = jax.random.split(key, 4)
    draw = lambda key, num: regression_grams.uniform_tasks(key, num, config.num_context, config.dim)
    data, test = draw(train_key, config.num_train), draw(test_key, config.num_test)
    dim = config.dim + 1
    start = linear_attention.random_weights(init_key, dim, config.init_std)
    allowed = jnp.where(jnp.arange(dim) < config.dim, writes, 1.0)[:, None]

    def stack(weights):
        free = weights._replace(projection=allowed * weights.projection)
        return linear_attention.tie(free, 2)

    def loss(weights, tasks):
        rows = answers(stack(weights), tasks.gram)
        return jnp.mean(regression_grams.query_loss(rows, tasks.weights))

    optimiser = clipped_adam.clipped_adam(config.learning_rate, config.num_steps, clip=config.clip)
    update = step.minibatch_step(loss, optimiser, data, config.batch_size, with_replacement=True)
    losses, state = trajectory.record_with_state(
        update, step.initial_minibatch_state(start, optimiser, batch_key),
        lambda state: loss(state.params, test), times=times,
    )  # fmt: skip
    method = lambda rate: answers(
        weight_constructions.gradient_descent_plus_plus_construction(
            config.dim, rate[:2], rate[2:], config.num_context
        ), test.gram,
    )  # fmt: skip
    theirs = jax.vmap(method)(rates)  # (4, B, d)
    their_loss = jnp.mean(regression_grams.query_loss(theirs, jnp.broadcast_to(
        test.weights, theirs.shape)), axis=1)  # fmt: skip
    off = answers(stack(state.params), test.gram) - theirs[:2]
    difference = jnp.sqrt(jnp.mean(off**2, axis=(1, 2)) / jnp.mean(theirs[:2] ** 2, axis=(1, 2)))
    return losses, their_loss, difference, *read(stack(state.params), config)


def read(stack, config: Config) -> tuple[Array, Array]:
    """Return η and γ of the first layer, and how far P V and K^T Q are from diagonal ones.

    Only products count: P V may be k times as large and K^T Q 1/k times.
    """
    written = (stack.projection @ stack.value)[0]
    looked_at = (jnp.swapaxes(stack.key, 1, 2) @ stack.query)[0]
    inputs = jnp.mean(jnp.diag(looked_at)[:-1])
    gamma = -config.num_context * jnp.mean(jnp.diag(written)[:-1]) * inputs
    eta = -config.num_context * written[-1, -1] * inputs
    outside = 1 - jnp.eye(config.dim + 1)
    ratio = lambda m: jnp.sum((outside * m) ** 2) / jnp.sum(m**2)
    return jnp.array([eta, gamma]), jnp.sqrt(ratio(written) + ratio(looked_at))


def check(config: Config, result: Result) -> list[checks.Check]:
    end, ratio = result.loss[:, -1], result.rates / result.best_rates  # (S, 2)
    found = end / result.tied_loss[:, 1]

    def most(name: str, values: np.ndarray, lower=None, upper=None, **more) -> checks.Check:
        low = -np.inf if lower is None else lower
        high = np.inf if upper is None else upper
        return checks.between(f"{name}, median", np.median(values), low, high, **more)

    return [
        checks.stays_finite("last step with a finite loss", result.step, result.loss,
                            mend="lower learning_rate"),
        checks.above("share of networks within 2 % of the loss of the best GD++",
                     np.mean(np.abs(found - 1) <= 0.02), 0.6,
                     why="2 of 168 networks end elsewhere; three of five do once in 60 000 runs"),
        most("loss / that of the best two steps of gradient descent",
             end / result.tied_loss[:, 0], upper=0.75,
             why="best GD++ has 0.706: pilots 0.706 to 0.710"),
        most("loss / that of the best GD++", found, 0.97, 1.02, why="pilots 1.002 to 1.004"),
        most("loss / that of the best two different steps of gradient descent",
             end / result.untied_loss[:, 0], upper=0.85,
             why="best GD++ has 0.782: pilots 0.783 to 0.786"),
        most("RMS distance from the answers of the best GD++, relative",
             result.difference[:, 1], upper=0.08, why="pilots 0.033 to 0.043"),
        most("RMS distance from the answers of the best descent, relative",
             result.difference[:, 0], lower=0.2, role="control", why="pilots 0.46 to 0.47"),
        most("η read from the matrices / that of the best GD++", ratio[:, 0], 0.95, 1.05,
             why="pilots 0.999 to 1.012"),
        most("γ read from the matrices / that of the best GD++", ratio[:, 1], 0.95, 1.05,
             why="pilots 0.999 to 1.012"),
        most("RMS of what GD++ has as zero in the matrices, relative",
             result.off_diagonal, upper=0.1, why="pilots 0.027 to 0.035"),
    ]  # fmt: skip


def plot(config: Config, result: Result, figure) -> None:
    left, right = panels = figure.subplots(1, 2, width_ratios=[1.5, 1])
    plotting.band(
        left, result.step, result.loss, label="two tied layers, median", spread="quartiles"
    )
    levels = {
        "best descent, equal steps": (result.tied_loss[:, 0], "-."),
        "best descent, two rates": (result.untied_loss[:, 0], ":"),
        "best GD++, equal steps": (result.tied_loss[:, 1], "--"),
        "best GD++, two pairs of rates": (result.untied_loss[:, 1], (0, (1, 3))),
    }
    for i, (name, (loss, style)) in enumerate(levels.items()):
        plotting.threshold(left, loss.mean(), label=name, linestyle=style,
                           color=plotting.COLOURS[(3, 3, 2, 2)[i]])  # fmt: skip
    left.set(xlabel="training step", ylabel="test loss", ylim=(0.09, 0.25))
    left.legend(loc="upper right")
    right.plot(*result.rates.T, "o", label="read from trained matrices")
    right.plot(*result.best_rates, "+", color="black", markersize=9, label="best GD++, computed")
    eta, gamma = result.best_rates
    right.set(xlabel="η of the labels", ylabel="γ of the inputs", xlim=(0.9 * eta, 1.1 * eta),
              ylim=(0.9 * gamma, 1.1 * gamma))  # fmt: skip
    right.legend(loc="upper left")
    plotting.label_panels(panels)


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    smoke=dict(num_steps=1200, num_train=10_000, num_test=3000),
    paper=dict(num_steps=20_000, batch_size=2048, num_train=500_000),
    controls={
        "inputs that stay": contract.Control(
            dict(writes_inputs=False),
            breaks={
                "loss / that of the best two steps of gradient descent, median": "above",
                "loss / that of the best GD++, median": "above",
                "loss / that of the best two different steps of gradient descent, median": "above",
                "γ read from the matrices / that of the best GD++, median": "below",
            },
            why="GD++ needs to change inputs",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
