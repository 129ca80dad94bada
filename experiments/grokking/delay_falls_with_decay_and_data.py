"""The delay of grokking falls with weight decay, the more steeply the scarcer the data.

Claim      Over a grid of weight decays and shares of the table of addition modulo 31, the delay
           from fitting to generalising falls with either. On half of the table it goes about as
           1/decay, with more data more slowly, with less faster. Decay replaces data and data
           decay: without it 60 % of the table is enough and half is not; with enough of it 40 % is.
Control    On a table of random products no decay and no share brings generalisation.
Reference  Power et al. 2022, arXiv:2201.02177, figure 2 (data); Lyu et al. 2024, arXiv:2311.18817
           (a delay ∝ 1/decay, proven for homogeneous networks from large initialisation; here the
           exponent passes -1 on its way); Doshi et al. 2023, arXiv:2310.13061 (phase diagrams).
           `make sweep` draws a grid of 56 cells.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import ticker

from dynamics import parallel
from dynamics.aliases import Array, Params
from dynamics.data import algorithmic
from dynamics.measure import grokking, statistics
from dynamics.models import pair_networks
from dynamics.training import step, trajectory
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P90",)
PILOT_SEEDS = (101, 102, 103)
THRESHOLD = 0.95  # accuracy that counts as fitted, as generalised
TABLES = ("addition", "random")
LAW = 0.5, 4.0  # the decays over which an exponent is asked for; below, the curve is no power law


@dataclasses.dataclass(frozen=True)
class Config:
    train_fractions: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7)
    weight_decays: tuple[float, ...] = (0.0, 0.7, 2.0, 4.0)  # decoupled, of AdamW
    table: str = "addition"  # or "random" products, for the control
    modulus: int = 31
    width: int = 128
    first_std: float = 0.25
    learning_rate: float = 5e-3
    num_steps: int = 1500  # least data generalises after up to 1050 at the second strongest decay
    num_times: int = 60
    num_seeds: int = 8
    seed: int = 1

    def __post_init__(self):
        for name in ("train_fractions", "weight_decays"):
            values = getattr(self, name)
            if len(values) < 2 or list(values) != sorted(set(values)):
                message = f"{name}={values}: give two or more in rising order"
                raise ValueError(message)
        if self.in_law().sum() < 2:
            message = f"weight_decays={self.weight_decays}: give two or more within {LAW}"
            raise ValueError(message)
        if self.table not in TABLES:
            message = f"table={self.table!r}: choose one of {', '.join(TABLES)}"
            raise ValueError(message)

    def in_law(self) -> np.ndarray:
        """Return which weight decays (L,) an exponent is taken over."""
        decays = np.array(self.weight_decays)
        return (decays >= LAW[0]) & (decays <= LAW[1])

    def nearest(self, share: float) -> int:
        """Return which share of the table is nearest to this one."""
        return int(np.argmin(np.abs(np.array(self.train_fractions) - share)))


class Result(NamedTuple):
    """S seeds, F shares of the table, L weight decays, T times."""

    step: Array  # (T,)
    train_accuracy: Array  # (S, F, L, T)
    test_accuracy: Array  # (S, F, L, T)


def run(config: Config) -> Result:
    """Train one network in each cell for each seed: the same start in all cells."""
    times = np.unique([0, *np.geomspace(5, config.num_steps, config.num_times).astype(int)])
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    # Their draws take longer to compile than the training: once for all shares.
    tables, starts = parallel.ensemble(lambda key: draw(config, key), keys)
    decays = jnp.array(config.weight_decays)
    columns = []
    for table in tables:  # a share has its own number of pairs
        of_seed = lambda member: jax.vmap(lambda w: train(config, times, *member, w))(decays)
        # Side by side only the few networks of a seed: what more would compute leaves the cache.
        columns.append(parallel.ensemble(of_seed, (table, starts), batching="map"))
    return Result(times, *(jnp.stack(leaves, axis=1) for leaves in zip(*columns, strict=True)))


def network(config: Config) -> pair_networks.PairMLP:
    return pair_networks.PairMLP(
        config.modulus, config.width, first_std=config.first_std, padded_readout=True
    )


def draw(config: Config, key: Array) -> tuple[list[algorithmic.Table], Params]:
    """Return the table split at each of the shares, the smaller within the larger, and a start."""
    split_key, product_key, network_key = jax.random.split(key, 3)
    products = jnp.asarray(algorithmic.cyclic_group(config.modulus))
    if config.table == "random":
        products = jax.random.randint(product_key, products.shape, 0, config.modulus)
    split = lambda share: algorithmic.split_table(split_key, products, share)
    tables = [split(share) for share in config.train_fractions]
    return tables, network(config).init(network_key, tables[0].train_pairs)


def train(config: Config, times, table: algorithmic.Table, start: Params, weight_decay: Array):
    """Return training and test accuracy (T,) of one network, trained full batch."""
    model = network(config)
    targets = jax.nn.one_hot(table.train_products, config.modulus)

    def loss(params: Params) -> Array:
        return jnp.mean(jnp.sum((model.apply(params, table.train_pairs) - targets) ** 2, axis=1))

    def measure(state: step.TrainState) -> tuple[Array, Array]:
        accuracy = lambda pairs, answers: grokking.accuracy(
            model.apply(state.params, pairs), answers
        )
        return (accuracy(table.train_pairs, table.train_products),
                accuracy(table.test_pairs, table.test_products))  # fmt: skip

    optimiser = optax.adamw(config.learning_rate, b2=0.98, weight_decay=weight_decay)
    state = step.initial_state(start, optimiser)
    return trajectory.record(step.optax_step(loss, optimiser), state, measure, times=times)


def delays(result: Result) -> np.ndarray:
    """Return the delay (S, F, L) in steps, infinite where the budget ended first."""
    return np.asarray(
        grokking.grokking_delay(result.step, result.train_accuracy, result.test_accuracy, THRESHOLD)
    )


def check(config: Config, result: Result) -> list[checks.Check]:
    delay = delays(result)
    fitted = np.asarray(grokking.first_crossing(result.step, result.train_accuracy, THRESHOLD))
    by_decay, by_data = (least_fall(np.moveaxis(delay, axis, -1)) for axis in (2, 1))
    half, enough = config.nearest(0.5), config.nearest(0.6)
    decays, law = np.array(config.weight_decays), config.in_law()
    slopes = statistics.log_log_slope(decays[law], delay[:, half, law])
    slope = statistics.mean_interval(slopes)
    most = statistics.log_log_slope(decays[law], delay[:, -1, law])
    strongest = [statistics.log_log_slope(decays[-2:], delay[:, f, -2:]) for f in (0, half)]
    generalised = np.isfinite(delay).mean(axis=0)  # (F, L)
    return [
        checks.above("share of networks that fit", np.isfinite(fitted).mean(), 1,
                     role="precondition", why="else raise num_steps or lower the decays"),
        checks.above("delay / that at the next stronger decay, least of all cells",
                     by_decay.estimate, 1.02, interval=(by_decay.lower, by_decay.upper),
                     why="it falls; cells that are alike have 1, pilots from 1.29"),
        checks.above("delay / that with the next larger share, least of all cells",
                     by_data.estimate, 1.02, interval=(by_data.lower, by_data.upper),
                     why="it falls; pilots from 1.46"),
        checks.between("exponent of the delay in the decay, half of the table", slope.estimate,
                       -1.3, -0.8, interval=(slope.lower, slope.upper),
                       why="about -1; proven elsewhere; pilots -1.01 to -1.05"),
        checks.above("exponent with most data less that at half of the table, mean",
                     np.mean(most - slopes), 0.1, why="flatter; pilots 0.33 to 0.42"),
        checks.below("exponent with least data less that at half, two strongest decays, mean",
                     np.mean(strongest[0] - strongest[1]), -0.3,
                     why="steeper; pilots -0.8 to -1.0"),
        checks.above("share that generalises: most data, no decay", generalised[-1, 0], 1,
                     why="enough data need no decay"),
        checks.above("share that generalises: 60 % of the table, no decay", generalised[enough, 0],
                     1, why="nor does it take that much"),
        checks.above("share that generalises: least data, most decay", generalised[0, -1], 1,
                     why="enough decay needs less data"),
        checks.below("share that generalises: half of the table, no decay", generalised[half, 0],
                     0, role="control", why="at half of the table it is decay that does it"),
        checks.below("share that generalises: least data, no decay", generalised[0, 0], 0,
                     role="control", why="neither data nor decay"),
    ]  # fmt: skip


def least_fall(delay: np.ndarray) -> statistics.Interval:
    """Return the geometric mean over seeds of delay / next along the last axis, where least.

    A cell in which some seed did not generalise has a longer delay than is known, and is left out
    as the longer one of a pair only if the shorter one is not known either.
    """
    delay = delay.reshape(len(delay), -1, delay.shape[-1])
    known = np.isfinite(delay).all(axis=0)
    ratios = [
        np.log(delay[:, row, column] / delay[:, row, column + 1])
        for row, column in zip(*np.nonzero(known[:, :-1] & known[:, 1:]), strict=True)
    ]
    lost = known[:, :-1] & ~known[:, 1:]  # generalises, and with more of it does not
    if lost.any() or not ratios:
        return statistics.Interval(*[np.float64(0)] * 3)
    found = [statistics.mean_interval(ratio) for ratio in ratios]
    least = min(found, key=lambda interval: interval.lower)
    return statistics.Interval(*np.exp(least))


def plot(config: Config, result: Result, figure) -> None:
    figure.set_size_inches(7.2, 3.2)
    cells, lines = figure.subplots(1, 2, width_ratios=[1.15, 1])
    medians = np.array([[
        grokking.grokking_delay_median(
            result.step, result.train_accuracy[:, f, c], result.test_accuracy[:, f, c], THRESHOLD
        ).estimate
        for c in range(len(config.weight_decays))] for f in range(len(config.train_fractions))
    ])  # fmt: skip
    image = cells.imshow(np.log10(np.where(np.isfinite(medians), medians, np.nan)), origin="lower",
                         cmap="viridis_r", aspect="auto")  # fmt: skip
    for (row, column), value in np.ndenumerate(medians):
        text = f"{value:.0f}" if np.isfinite(value) else "–"
        middle = np.nanmedian(np.log10(np.where(np.isfinite(medians), medians, np.nan)))
        colour = "white" if np.isfinite(value) and np.log10(value) > middle else "black"
        cells.text(column, row, text, ha="center", va="center", color=colour, fontsize=6.5)
    cells.set_xticks(range(len(config.weight_decays)), [f"{w:g}" for w in config.weight_decays])
    cells.set_yticks(range(len(config.train_fractions)), [f"{f:g}" for f in config.train_fractions])
    cells.set(xlabel="weight decay", ylabel="share of the table that trains")
    cells.set_title("median delay in steps (–: over budget)", fontsize=7.5, loc="right")
    cells.grid(visible=False)
    figure.colorbar(image, ax=cells, label="log₁₀ delay")
    decays, delay = np.array(config.weight_decays), delays(result)
    shown = np.linspace(0, len(config.train_fractions) - 1, 4).round().astype(int)
    for colour, f in enumerate(dict.fromkeys(shown)):
        seen = (decays > 0) & np.isfinite(delay[:, f]).all(axis=0)
        if seen.any():
            style = {"marker": plotting.MARKERS[colour], "color": plotting.COLOURS[colour]}
            label = f"{config.train_fractions[f]:.0%}"
            plotting.points(lines, decays[seen], delay[:, f, seen], spread="log", label=label,
                            **style)  # fmt: skip
    half = medians[config.nearest(0.5)]
    law = config.in_law() & np.isfinite(half)
    if law.any():  # through the middle of what it is compared with
        guide, level = decays[config.in_law()], np.exp(np.mean(np.log(decays[law] * half[law])))
        plotting.theory(lines, guide, level / guide, label="∝ 1/decay")
    lines.set(xscale="log", yscale="log", xlabel="weight decay", ylabel="delay in steps")
    lines.set_xticks(decays[decays > 0], [f"{decay:g}" for decay in decays[decays > 0]])
    lines.minorticks_off()
    lines.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
    lines.yaxis.set_major_formatter("{x:g}")
    lines.legend(title="share that trains", fontsize=6, title_fontsize=6.5, loc="lower left")
    plotting.label_panels([cells, lines])


EXPERIMENT = contract.Experiment(
    Config,
    run,
    check,
    plot,
    smoke=dict(train_fractions=(0.4, 0.5, 0.6), num_steps=1300, num_seeds=5),
    paper=dict(modulus=97, width=500, num_steps=20_000, num_seeds=8),
    controls={
        "random products": contract.Control(
            # Twice the steps that addition takes to be learned in the cells that are broken.
            dict(table="random", train_fractions=(0.4, 0.7), weight_decays=(0.0, 0.7, 4.0),
                 num_steps=600, num_seeds=5),
            breaks={
                "share that generalises: most data, no decay": "below",
                "share that generalises: least data, most decay": "below",
            },
            why="a table without structure has nothing to generalise to",
        )
    },
)  # fmt: skip

if __name__ == "__main__":
    runner.main(EXPERIMENT)
