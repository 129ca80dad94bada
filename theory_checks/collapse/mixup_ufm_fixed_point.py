"""Under mixup a mixed sample's feature is no mixture of class features, but a fixed point.

Claim      With a simplex classifier of length ω and feature decay λ_h, cross-entropy leaves a
           sample with target y at logits z + κ softmax(z) = κ y, κ = ω² K / ((K-1) λ_h): on an arc
           in the plane of its two class vectors, far from the chord between the class features.
           Training the classifier too ends there as well: where every pair of classes is mixed
           alike it is exactly a simplex, with mean |y - softmax(z)|² = (K-1) λ_W λ_h.
Control    Under squared error features mix as the labels do, and nearly so at strong decay. Random
           class vectors are no simplex, and neither is what random pairs train.
Reference  Fisher, Meng, Papyan 2024, arXiv:2402.06171, for a fixed simplex; the equation and the
           case of a trained classifier are derived here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import parallel
from dynamics.aliases import Array
from dynamics.theory import mixup_features
from experiments import checks, contract, plotting, runner

PAPER_IDS = ("P92",)
PILOT_SEEDS = (101, 102, 103)
LOSSES = ("cross-entropy", "squared error")


@dataclasses.dataclass(frozen=True)
class Config:
    num_classes: int = 5
    dim: int = 8
    classifier_length: float = 1.0  # of a row of the fixed classifier
    feature_decays: tuple[float, ...] = (0.05, 0.01, 0.5, 5.0)  # the first is judged, the last weak
    num_shares: int = 21  # λ of a mixed sample from 0 to 1, odd so that 1/2 is among them
    num_steps: int = 4000  # at the least decay a step leaves 1 - 0.008 of the error
    num_draws: int = 8  # λ uniform in (0, 1), each given to all pairs of classes
    classifier_decay: float = 0.01  # where the classifier is trained, with the first feature decay
    joint_rate: float = 0.6
    joint_steps: int = 4000
    simplex: bool = True  # these three for the controls; predict does not know them
    balanced_pairs: bool = True
    only_squared_error: bool = False
    num_seeds: int = 5
    seed: int = 1

    def __post_init__(self):
        if not (3 <= self.num_classes <= self.dim and self.num_shares >= 3 and self.num_shares % 2):
            given = f"num_classes={self.num_classes}, dim={self.dim}, num_shares={self.num_shares}"
            message = f"{given}: give 3 <= num_classes <= dim and an odd num_shares from 3"
            raise ValueError(message)


class Prediction(NamedTuple):
    """S seeds, F feature decays, T shares, K classes, N = K² num_draws jointly trained samples."""

    logits: Array  # (2, F, T, K) of a fixed simplex, for each of LOSSES
    gram: Array  # (S, K, K) of the trained classifier
    joint_logits: Array  # (S, N, K)


class Result(NamedTuple):
    """The same by gradient descent on features; S seeds draw starts, rotations and shares."""

    logits: Array  # (S, 2, F, T, K)
    plane: Array  # (S, 2, F, T, 2) the features along w_i - w_j and w_i + w_j
    outside: Array  # (S, 2, F, T) share of the feature that is out of that plane
    shares: Array  # (S, num_draws) λ of the joint training
    gram: Array  # (S, K, K)
    joint_logits: Array  # (S, N, K)
    mixing_error: Array  # (S,) RMS distance to the mixture of class features, over their length
    alignment: Array  # (S,) least cosine of a feature mixed within a class to its class vector
    gradient: Array  # (S,) largest entry at the end of joint training


def mix(shares: Array, first: Array, second: Array, num_classes: int) -> Array:
    """Return the targets λ e_i + (1 - λ) e_j."""
    eye = jnp.eye(num_classes)
    return shares[..., None] * eye[first] + (1 - shares[..., None]) * eye[second]


def pairs(config: Config) -> tuple[np.ndarray, ...]:
    """Return the draw and the two classes of each jointly trained sample, (N,)."""
    counts = (config.num_draws, config.num_classes, config.num_classes)
    return tuple(index.ravel() for index in np.indices(counts))


def seeds(config: Config) -> Array:
    """Return seven keys a seed; the fourth is that of the shares, which predict needs as well."""
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    return jax.vmap(lambda key: jax.random.split(key, 7))(keys)


def predict(config: Config) -> Prediction:
    num_classes = config.num_classes
    targets = mix(jnp.linspace(0, 1, config.num_shares), 0, 1, num_classes)
    length, decays = config.classifier_length, jnp.asarray(config.feature_decays)
    kappas = mixup_features.strength(length, decays, num_classes=num_classes)[:, None]
    batch = jnp.broadcast_to(targets, (len(kappas), *targets.shape))
    solvers = (mixup_features.cross_entropy_logits, mixup_features.squared_loss_logits)
    logits = jnp.stack([solve(batch, kappas) for solve in solvers])
    draw, first, second = pairs(config)

    def joint(keys):
        y = mix(jax.random.uniform(keys[3], (config.num_draws,))[draw], first, second, num_classes)
        kappa = mixup_features.joint_strength(y, config.classifier_decay, decays[0])
        gram = decays[0] * kappa * (jnp.eye(num_classes) - 1 / num_classes)  # W W^T = λ_h κ Π
        return gram, mixup_features.cross_entropy_logits(y, kappa)

    return Prediction(logits, *parallel.ensemble(joint, seeds(config)))


def slope(logits: Array, targets: Array, squared) -> Array:
    """Return the derivative of the loss with respect to the logits."""
    return jnp.where(squared, logits, jax.nn.softmax(logits)) - targets


def fit_features(keys: Array, simplex, only_squared, config: Config) -> tuple[Array, ...]:
    """Return logits, plane coordinates and share outside the plane, the classifier fixed."""
    turn_key, row_key, start_key = keys
    turned = jax.random.orthogonal(turn_key, config.dim)[: config.num_classes]
    rows = jax.random.normal(row_key, turned.shape)  # rows that are no simplex
    rows = jnp.where(simplex, turned - turned.mean(axis=0), rows)
    w = config.classifier_length * rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    squared = jnp.array([False, True]).reshape(2, 1, 1, 1) | only_squared
    decays = jnp.asarray(config.feature_decays)[:, None, None]
    rates = 1 / (jnp.linalg.norm(w, 2) ** 2 + decays)  # over the largest curvature of either loss
    targets = mix(jnp.linspace(0, 1, config.num_shares), 0, 1, config.num_classes)

    def step(h, _):
        return h - rates * (slope(h @ w.T, targets, squared) @ w + decays * h), None

    shape = (2, len(decays), config.num_shares, config.dim)
    h, _ = jax.lax.scan(step, jax.random.normal(start_key, shape), length=config.num_steps)
    axes = jnp.stack([w[0] - w[1], w[0] + w[1]], axis=1)  # (D, 2) orthogonal: w are equally long
    axes = axes / jnp.linalg.norm(axes, axis=0)
    outside = jnp.linalg.norm(h - h @ axes @ axes.T, axis=-1) / jnp.linalg.norm(h, axis=-1)
    return h @ w.T, h @ axes, outside


def train_jointly(keys: Array, balanced, only_squared, config: Config) -> tuple[Array, ...]:
    """Train classifier and features, and compare the features of mixtures with those of classes."""
    share_key, w_key, h_key, pair_key = keys
    num_classes, (draw, first, second) = config.num_classes, pairs(config)
    shares = jax.random.uniform(share_key, (config.num_draws,))
    drawn = jax.random.randint(pair_key, (2, len(draw)), 0, num_classes)
    first, second = jnp.where(balanced, jnp.array([first, second]), drawn)
    targets = mix(shares[draw], first, second, num_classes)
    decay, rate = config.feature_decays[0], config.joint_rate

    def gradients(w, h):  # that of the features is N times the gradient of the mean loss
        error = slope(h @ w.T, targets, only_squared)
        return error.T @ h / len(h) + config.classifier_decay * w, error @ w + decay * h

    def step(params, _):
        return jax.tree.map(lambda p, g: p - rate * g, params, gradients(*params)), None

    normal = lambda key, rows: jax.random.normal(key, (rows, config.dim)) / 2
    start = normal(w_key, num_classes), normal(h_key, len(draw))
    (w, h), _ = jax.lax.scan(step, start, length=config.joint_steps)
    pure = first == second
    member = pure[:, None] * jnp.eye(num_classes)[first]  # (N, K)
    of_classes = (member.T @ h) / member.sum(axis=0)[:, None]
    off = jnp.sum((h - targets @ of_classes) ** 2, axis=1) * ~pure
    mixing = jnp.sqrt(off.sum() / jnp.sum(~pure) / jnp.mean(jnp.sum(of_classes**2, axis=1)))
    unit = lambda rows: rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    alignment = jnp.where(pure, jnp.sum(unit(h) * unit(w)[first], axis=1), 1).min()
    largest = jnp.maximum(*[jnp.abs(g).max() for g in gradients(w, h)])
    return shares, w @ w.T, h @ w.T, mixing, alignment, largest


def run(config: Config) -> Result:
    def one(member) -> Result:
        keys, simplex, balanced, only_squared = member
        return Result(*fit_features(keys[:3], simplex, only_squared, config),
                      *train_jointly(keys[3:], balanced, only_squared, config))  # fmt: skip

    switches = (config.simplex, config.balanced_pairs, config.only_squared_error)
    switches = [jnp.full(config.num_seeds, switch) for switch in switches]  # one program for all
    return parallel.ensemble(one, (seeds(config), *switches))


def chord_distance(points, shares) -> np.ndarray:
    """Return the largest distance of h(λ) (..., T, D) from λ h(1) + (1 - λ) h(0), over |h(1)|."""
    points, shares = np.asarray(points), np.asarray(shares)[:, None]
    off = points - shares * points[..., -1:, :] - (1 - shares) * points[..., :1, :]
    return np.linalg.norm(off, axis=-1).max(axis=-1) / np.linalg.norm(points[..., -1, :], axis=-1)


def check(config: Config, prediction: Prediction, result: Result) -> list[checks.Check]:
    rounding = "gradient descent to convergence in double precision: pilots below 1e-13"
    slow = "converged to below 1e-10 in the pilots; random pairs are off by 0.06"
    gap = lambda name: np.abs(getattr(result, name) - getattr(prediction, name))
    wrong = gap("logits").max(axis=(2, 3, 4)).T  # (2, S)
    chord = chord_distance(result.plane, np.linspace(0, 1, config.num_shares))  # (S, 2, F)
    sizes = np.linalg.norm(result.plane[:, 0, 0], axis=-1)  # (S, T)
    return [
        *(checks.every_seed(f"largest error of the logits under {name}", error, upper=1e-10,
                            why=rounding) for name, error in zip(LOSSES, wrong, strict=True)),
        checks.every_seed("largest share of a feature out of the plane of its class vectors",
                          result.outside.max(axis=(1, 2, 3)), upper=1e-10, why=rounding),
        checks.every_seed("largest distance from the mixture of class features", chord[:, 0, 0],
                          lower=0.15, why="theory has 0.2523; without a bend it is zero"),
        checks.every_seed("length of a feature mixed half and half over a class feature's",
                          sizes[:, config.num_shares // 2] / sizes[:, -1], lower=0.8,
                          why="theory has 0.858, a mixture of class features sqrt(3/8) = 0.61"),
        checks.every_seed("the same distance at the last and strong decay", chord[:, 0, -1],
                          upper=0.02, why="softmax is linear near zero: theory has 0.0018",
                          role="control"),
        checks.every_seed("largest gradient at the end of joint training", result.gradient,
                          upper=5e-12, why="raise joint_steps", role="precondition"),
        checks.every_seed("relative error of W W^T after joint training",
                          gap("gram").max(axis=(1, 2)) / prediction.gram.max(axis=(1, 2)),
                          upper=1e-9, why=slow),
        checks.every_seed("largest error of the logits after joint training",
                          gap("joint_logits").max(axis=(1, 2)), upper=1e-9, why=slow),
        checks.every_seed("smallest cosine of a feature mixed within a class to its class vector",
                          result.alignment, lower=1 - 1e-10, why=rounding),
        checks.every_seed("RMS distance from the mixture of class features after joint training",
                          result.mixing_error, lower=0.1,
                          why="theory has 0.23 to 0.34 over 1500 draws of λ"),
    ]  # fmt: skip


def plot(config: Config, prediction: Prediction, result: Result, figure) -> None:
    left, middle, right = panels = figure.subplots(1, 3)
    classes, decays = config.num_classes, config.feature_decays
    style = lambda i: {"color": plotting.COLOURS[i], "marker": plotting.MARKERS[i]}
    once = lambda i: None if i else "theory"
    turned = prediction.logits[..., :2] @ np.array([[1, 1], [-1, 1]])  # z_i - z_j, z_i + z_j
    lengths = np.sqrt([2 * classes / (classes - 1), 2 * (classes - 2) / (classes - 1)])
    theory = turned / lengths / config.classifier_length  # (2, F, T, 2)
    shown = [(0, f, f"λ$_h$ = {decays[f]:g}") for f in np.argsort(decays)[:-1]]
    for i, (loss, decay, label) in enumerate([*shown, (1, 0, "squared error")]):
        size = np.linalg.norm(theory[loss, decay, -1])
        plotting.theory(left, *theory[loss, decay].T / size, label=once(i))
        x, y = np.moveaxis(result.plane[:, loss, decay], -1, 0) / size  # each (S, T)
        plotting.points(left, x.mean(axis=0), y, label=label, **style(i), markersize=3)
    labels = [f"h(λ) along w$_i$ {sign} w$_j$, over |h(1)|" for sign in "-+"]
    left.set(xlabel=labels[0], ylabel=labels[1], ylim=(0.5, 1.3))
    left.legend(loc="upper left", ncol=2, columnspacing=1)
    logits = result.joint_logits[:, 1 :: classes**2]  # (S, num_draws, K) of classes 0 and 1
    shares = jnp.linspace(0, 1, 101)
    curve = lambda k: mixup_features.cross_entropy_logits(mix(shares, 0, 1, classes), k)
    smooth = curve(prediction.gram[:, 0, 0].mean() * classes / (classes - 1) / decays[0])
    for i, label in enumerate(("class i", "class j", "another class")):
        plotting.theory(middle, shares, smooth[:, i], label=once(i))
        middle.plot(result.shares.ravel(), logits[..., i].ravel(), linestyle="none", markersize=3,
                    label=label, **style(i))  # fmt: skip
    middle.set(xlabel="share λ of class i", ylabel="logit, with the classifier trained too")
    middle.legend(loc="center", bbox_to_anchor=(0.5, 0.35))
    fine = jnp.geomspace(0.1, 1000, 60)
    plotting.theory(right, fine, chord_distance(jax.vmap(curve)(fine), shares))
    strengths = config.classifier_length**2 * classes / (classes - 1) / np.array(decays)
    chord = chord_distance(result.plane, np.linspace(0, 1, config.num_shares))
    for loss, label in enumerate(LOSSES):
        plotting.points(right, strengths, chord[:, loss], label=label, **style(3 * loss))
    right.set(xscale="log", xlabel="strength κ = ω² K / ((K-1) λ$_h$)")
    right.set_ylabel("distance from the chord, over |h(1)|")
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
    smoke=dict(num_seeds=2),
    controls={
        "squared error": contract.Control(
            dict(only_squared_error=True),
            breaks={
                "largest error of the logits under cross-entropy": "above",
                "largest distance from the mixture of class features": "below",
                "length of a feature mixed half and half over a class feature's": "below",
            },
            why="without the softmax the logits are affine in the target",
        ),
        "random class vectors": contract.Control(
            dict(simplex=False),
            breaks={"largest share of a feature out of the plane of its class vectors": "above"},
            why="the vectors of the other classes push unequally",
        ),
        "random pairs": contract.Control(
            dict(balanced_pairs=False),
            breaks={"relative error of W W^T after joint training": "above"},
            needs=("largest gradient at the end of joint training",),
            why="classes that are mixed unequally train no simplex",
        ),
    },
)

if __name__ == "__main__":
    runner.main(EXPERIMENT)
