"""Near collapse, noise within classes is damped by factors that the two weight decays set.

Claim      Free features, pulled with weight β to a collapsed configuration plus small noise within
           classes, end with that noise times β/(β + sqrt(λ_H/λ_W)) in the span of the class means
           and times β/(β + λ_H) out of it, at every β; so λ_H damps noise and λ_W keeps it. Every
           singular value of the response is known: rotations of the class means pass whole, their
           stretches times β/(β + 4 λ_H (1 - c)), c = sqrt(λ_H λ_W).
Control    Moved class means are damped less, for the classifier follows them; at another length of
           the class means the noise is damped by another factor.
Reference  Tirer, Huang, Niles-Weed 2023, arXiv:2210.16658, theorems 2.1 and 4.2, which holds to
           first order in 1/β; the factors for every β are derived here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array, Key
from dynamics.theory import unconstrained_features
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P74",)
PILOT_SEEDS = (101, 102, 103)
SMALL = (3, 2, 5)  # classes, samples of each and dimensions where the whole Jacobian is taken


@dataclasses.dataclass(frozen=True)
class Config:
    num_classes: int = 4
    per_class: int = 20
    dim: int = 10  # above num_classes, so that there is an outside of the span
    classifier_decay: float = 0.3
    feature_decay: float = 0.05
    pulls: tuple[float, ...] = (0.2, 0.5, 1.0, 3.0, 10.0, 100.0)
    factors: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)  # rising; on either decay, and on both
    factor_pull: float = 1.0
    noise_std: float = 1e-4  # the classifier moves with its square
    jacobian_pulls: tuple[float, ...] = (0.5, 5.0, 200.0)
    num_sweeps: int = 80  # of exact minimisation over classifier and features in turn
    move_means: bool = False  # for the controls, as mean_scale; predict knows neither
    mean_scale: float = 1.0
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        if not (1 < self.num_classes < self.dim and self.per_class > 1):
            sizes = f"num_classes={self.num_classes}, dim={self.dim}, per_class={self.per_class}"
            message = f"{sizes}: give 1 < num_classes < dim and at least 2 samples a class"
            raise ValueError(message)


class Prediction(NamedTuple):
    """M settings: one for each pull, then λ_H, λ_W and both times each factor; J Jacobians."""

    gram: Array  # (M, K, K) inner products of the class means at the anchor
    in_span: Array  # (M,) share of the noise that is left
    off_span: Array  # (M,)
    variability: Array  # (M,) tr Σ_W / tr Σ_B after over before, for isotropic noise
    same: Array  # (J, D n) singular values of dH/dH_0 from a class to itself, largest first
    other: Array  # (J, D n) from a class to another
    theorem: Array  # (J, 3) largest and smallest of same, largest of other: to first order in 1/β


class Result(NamedTuple):
    """S seeds: random orientation of the anchor and random noise."""

    gram: Array  # (S, M, K, K)
    in_span: Array  # (S, M) regression of what is left on the noise put in
    off_span: Array  # (S, M)
    rest: Array  # (S, M) what the two factors do not explain, over the noise
    variability: Array  # (S, M)
    same: Array  # (S, J, D n) of the first class
    other: Array  # (S, J, D n) of the first class to the last


def settings(config: Config) -> np.ndarray:
    """Return λ_W, λ_H, β of each setting, (M, 3)."""
    base = np.array([config.classifier_decay, config.feature_decay])
    rows = [(*base, pull) for pull in config.pulls]
    for scaled in ((0, 1), (1, 0), (1, 1)):  # the order that Prediction names
        rows += [(*base * f ** np.array(scaled), config.factor_pull) for f in config.factors]
    return np.array(rows)


def predict(config: Config) -> Prediction:
    frame = unconstrained_features.directions(config.num_classes, centred=False)

    def one(row):
        decays, pull = (row[0], row[1]), row[2]
        gram = unconstrained_features.squared_loss_scales(*decays).features ** 2 * frame
        inside, outside, *_ = unconstrained_features.attenuation(*decays, pull)
        share = config.num_classes / config.dim
        return gram, inside, outside, share * inside**2 + (1 - share) * outside**2

    sizes = dict(zip(("num_classes", "per_class", "dim"), SMALL, strict=True))
    decays, pulls = (config.classifier_decay, config.feature_decay), np.array(config.jacobian_pulls)
    spectrum = lambda pull: unconstrained_features.block_singular_values(*decays, pull, **sizes)
    theorem = unconstrained_features.block_singular_values_large_pull(*decays, pulls)
    theorem = jnp.stack(jnp.broadcast_arrays(*theorem), axis=-1)
    numbers = jax.vmap(one)(jnp.asarray(settings(config)))
    return Prediction(*numbers, *jax.vmap(spectrum)(pulls), theorem)


def minimise(targets: Array, anchor: Array, decays, pull, num_sweeps: int, start: Array) -> Array:
    """Return the features (N, D) at the minimum, by exact minimisation over W and H in turn."""
    per_class, eye = len(targets) / targets.shape[1], jnp.eye(anchor.shape[1])

    def sweep(h, _):
        w = jnp.linalg.solve(h.T @ h + per_class * decays[0] * eye, h.T @ targets).T
        right = targets @ w + pull * anchor
        return jnp.linalg.solve(w.T @ w + (decays[1] + pull) * eye, right.T).T, None

    return jax.lax.scan(sweep, start, length=num_sweeps)[0]


def find_anchor(key: Key, targets: Array, dim: int, decays, config: Config) -> Array:
    """Return a minimum without an anchor, from a random start: the collapsed configuration."""
    start = jax.random.normal(key, (len(targets), dim))
    return minimise(targets, jnp.zeros_like(start), decays, 0.0, 2 * config.num_sweeps, start)


def one_hot(num_classes: int, per_class: int) -> Array:
    return jnp.repeat(jnp.eye(num_classes), per_class, axis=0)


def means(features: Array, num_classes: int) -> Array:
    return features.reshape(num_classes, -1, features.shape[-1]).mean(axis=1)


def nc1(features: Array, num_classes: int) -> Array:
    """Tr Σ_W / tr Σ_B."""
    centres = means(features, num_classes)
    within = features.reshape(num_classes, -1, features.shape[-1]) - centres[:, None]
    between = centres - centres.mean(axis=0)
    return jnp.mean(jnp.sum(within**2, axis=-1)) / jnp.mean(jnp.sum(between**2, axis=-1))


def respond(key: Key, row: Array, moved, scale, config: Config) -> tuple[Array, ...]:
    """Solve one setting (λ_W, λ_H, β) with the noise and without."""
    anchor_key, noise_key = jax.random.split(key)
    num_classes, targets = config.num_classes, one_hot(config.num_classes, config.per_class)
    decays, pull = (row[0], row[1]), row[2]
    anchor = scale * find_anchor(anchor_key, targets, config.dim, decays, config)
    drawn = config.noise_std * jax.random.normal(noise_key, anchor.shape)
    of_means = jnp.repeat(means(drawn, num_classes), config.per_class, axis=0)
    noise = jnp.where(moved, of_means, drawn - of_means)
    solve = lambda h: minimise(targets, h, decays, pull, config.num_sweeps, h)
    after, without = jax.vmap(solve)(anchor + jnp.stack([noise, jnp.zeros_like(noise)]))
    change = after - without
    frame = jnp.linalg.qr(means(anchor, num_classes).T)[0]  # (D, K)
    factors, rest = [], change
    for part in (noise @ frame @ frame.T, noise - noise @ frame @ frame.T):
        factors.append(jnp.sum(change * part) / jnp.sum(part**2))
        rest = rest - factors[-1] * part
    gram = means(anchor, num_classes) @ means(anchor, num_classes).T / scale**2
    ratio = nc1(after, num_classes) / nc1(anchor + noise, num_classes)
    return gram, *factors, jnp.linalg.norm(rest) / jnp.linalg.norm(noise), ratio


def jacobian(key: Key, pull: Array, config: Config) -> tuple[Array, Array]:
    """Return the singular values (D n,) of two blocks of dH/dH_0, by forward differentiation."""
    num_classes, per_class, dim = SMALL
    decays, targets = (config.classifier_decay, config.feature_decay), one_hot(*SMALL[:2])
    anchor = find_anchor(key, targets, dim, decays, config)
    respond_to = lambda h: minimise(targets, h, decays, pull, config.num_sweeps, anchor)[:per_class]
    blocks = jax.jacfwd(respond_to)(anchor).reshape(per_class * dim, num_classes, per_class * dim)
    return tuple(jnp.linalg.svd(blocks[:, k], compute_uv=False) for k in (0, -1))


def run(config: Config) -> Result:
    def one(member) -> Result:
        key, moved, scale = member
        setting_key, jacobian_key = jax.random.split(key)
        rows, pulls = jnp.asarray(settings(config)), jnp.asarray(config.jacobian_pulls)
        keys = jax.random.split(setting_key, len(rows))
        numbers = jax.vmap(lambda key, row: respond(key, row, moved, scale, config))(keys, rows)
        spectra = jax.vmap(lambda pull: jacobian(jacobian_key, pull, config))(pulls)
        return Result(*numbers, *spectra)

    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    moved = jnp.full(config.num_seeds, config.move_means)  # numbers, not branches: the
    scale = jnp.full(config.num_seeds, config.mean_scale)  # controls are the same program
    return parallel.ensemble(one, (keys, moved, scale))


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    error = lambda name: np.abs(getattr(result, name) / getattr(prediction, name) - 1).max(axis=1)
    rounding = "solved to convergence in double precision: pilots below 1e-14"
    square = "the classifier moves with the square of the noise: pilots below 2e-8"
    wrong = [np.abs(getattr(result, n) - getattr(prediction, n)).max() for n in ("same", "other")]
    ends = np.stack([result.same[..., 0], result.same[..., -1], result.other[..., 0]], axis=-1)
    off = np.abs(ends - prediction.theorem).max(axis=(0, 2)) * np.square(config.jacobian_pulls)
    scaled = np.log(result.in_span[:, len(config.pulls) :]).reshape(-1, 3, len(config.factors))
    falls, rises, still = np.moveaxis(np.diff(scaled), 1, 0)  # each (S, steps between factors)
    return [
        checks.below("largest error of an inner product of class means at the anchor",
                     np.abs(result.gram - prediction.gram).max(), 1e-11, why=rounding),
        checks.every_seed("largest relative error of the in-span factor", error("in_span"),
                          upper=1e-7, why=square),
        checks.every_seed("largest relative error of the off-span factor", error("off_span"),
                          upper=1e-7, why=square),
        checks.every_seed("share of the answer that the two factors leave unexplained",
                          result.rest.max(axis=1), upper=2e-4,
                          why="the means answer to the square of the noise: pilots 2e-5"),
        checks.below("largest error of a singular value of dH/dH0", max(wrong), 1e-11,
                     why=rounding),
        checks.below("largest error of theorem 4.2 over (sqrt(λ_H/λ_W) / β)²",
                     off.max() * config.classifier_decay / config.feature_decay, 1,
                     why="its second order stays below that at every β"),
        checks.every_seed("largest error of the fall of tr Σ_W / tr Σ_B in standard errors",
                          np.abs(deviation(config, prediction, result)).max(axis=1), upper=5,
                          why="noise is isotropic only on average: one in 20,000 runs is above"),
        checks.above("smallest fall of log in-span factor where λ_H grows", -falls.max(), 0.05,
                     why="theory's smallest step is 0.089, the same in each seed"),
        checks.above("smallest rise of log in-span factor where λ_W grows", rises.min(), 0.03,
                     why="theory's smallest step is 0.068, the same in each seed"),
        checks.below("largest change of log in-span factor where both grow alike",
                     np.abs(still).max(), 1e-7, why=f"it depends on λ_H/λ_W alone; {square}"),
    ]  # fmt: skip


def deviation(config: Config, prediction: Prediction, result: Result) -> np.ndarray:
    """Return the error of variability in standard errors, (S, M), of a Beta distribution:
    that of the share of the noise that lies in the span, K of D directions.
    """
    samples = config.num_classes * (config.per_class - 1) / 2
    inside, outside = samples * config.num_classes, samples * (config.dim - config.num_classes)
    total = inside + outside
    spread = np.sqrt(inside * outside / (total + 1)) / total
    standard_error = spread * (prediction.off_span**2 - prediction.in_span**2)
    return (result.variability - prediction.variability) / standard_error


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    style = lambda i: {"color": plotting.COLOURS[i], "marker": plotting.MARKERS[i]}
    once = lambda i: None if i else "theory"
    pulls, count = np.array(config.pulls), len(config.factors)
    fine = np.geomspace(pulls.min(), pulls.max(), 100)
    every = predict(dataclasses.replace(config, pulls=tuple(fine.tolist())))
    for i, (name, label) in enumerate(
        (("off_span", "out of the span"), ("in_span", "in the span"))
    ):
        plotting.theory(left, fine, getattr(every, name)[: len(fine)], label=once(i))
        values = getattr(result, name)[:, : len(pulls)]
        plotting.points(left, pulls, values, label=label, **style(i))
    left.set(xscale="log", ylim=(0, 1.05), xlabel="pull β to the anchor")
    left.set_ylabel("share of the noise that is left")
    left.legend(loc="lower right", title="noise within classes")
    for i, label in enumerate(("λ$_H$", "λ$_W$", "both")):
        part = slice(len(pulls) + i * count, len(pulls) + (i + 1) * count)
        plotting.theory(middle, config.factors, prediction.variability[part], label=once(i))
        values = result.variability[:, part]
        plotting.points(middle, config.factors, values, label=label, **style(i + 2))
    middle.set_xscale("log", base=2)
    middle.set(xlabel="weight decay / its base value", ylim=(0.25, 0.9))
    middle.set_ylabel("tr Σ$_W$ / tr Σ$_B$, after / before")
    middle.set_xticks(config.factors, [f"{factor:g}" for factor in config.factors])
    middle.legend(loc="lower left", ncol=2, title="what is scaled")
    index = np.arange(1, result.same.shape[-1] + 1)
    for i, pull in enumerate(config.jacobian_pulls):
        right.step(index, prediction.same[i], "--", where="mid", color="black", label=once(i))
        plotting.points(right, index, result.same[:, i], label=f"β = {pull:g}", **style(i))
    right.set(
        xlabel="index, largest first", ylabel="singular value of dH$_k$/dH$_{0k}$", ylim=(0, 1.05)
    )
    right.set_xticks(index[::3])
    right.legend(loc="lower left")
    plotting.label_panels(panels)


EXPERIMENT = contract.TheoryCheck(
    Config,
    run,
    check,
    plot,
    predict=predict,
    resolution=1e-6,
    precision="float64",
    smoke=dict(num_seeds=2),
    controls={
        "class means moved": contract.Control(
            dict(move_means=True),
            breaks={"largest relative error of the in-span factor": "above"},
            why="the classifier follows the means, so that turning them costs nothing",
        ),
        "class means of another length": contract.Control(
            dict(mean_scale=1.5),
            breaks={"largest relative error of the in-span factor": "above"},
            why="the classifier fits another length, and its own sets the factor",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
