"""Unconstrained features: a linear classifier and its inputs trained together, in closed form.

The last features of a network that can fit anything are free variables. With K classes of n
samples, features H (K n, D) and a classifier W (K, D), one row a sample or a class, the loss is

    L(W, H) = (1 / K n) Σ_s loss(W h_s, e_s) + (λ_W / 2K) |W|² + (λ_H / 2Kn) |H|²,

with half the squared error |W h - e|²/2 or the cross-entropy, and e_s the one-hot target. All
samples of a class share one feature at the minimum. In P = W M^T, with M (K, D) the class means,
what remains is convex: Σ_k loss(P e_k, e_k) + c |P|_*, where c = sqrt(λ_W λ_H) and |P|_* is the
sum of the singular values, for that is the least cost of P as a product. The minimum has all
the symmetry of the classes: P is s times I or s times the centring I - 11^T/K, and both factors
share its directions. From c = 1 on everything collapses to zero.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array


class Scales(NamedTuple):
    """The equal non-zero singular values at the minimum; all are zero from λ_W λ_H = 1 on.

    With Π = `directions(...)`: W M^T = logits Π, W W^T = classifier² Π, M M^T = features² Π.
    """

    logits: Array  # () of W M^T
    classifier: Array  # () of W
    features: Array  # () of the class means M


class Attenuation(NamedTuple):
    """What is left at the minimum of a small change of the anchor, by the kind of change."""

    within_in_span: Array  # () within classes (zero class sums), in the span of the class means
    within_off_span: Array  # () within classes, orthogonal to all class means
    stretch: Array  # () of the class means among themselves, symmetric: M^T dM + dM^T M
    turn: Array  # () of the class means otherwise: antisymmetric, or out of their span


class BlockSingularValues(NamedTuple):
    """Singular values, largest first, of what one class's anchors do to a class's features."""

    same: Array  # (D n,) to the features of the same class
    other: Array  # (D n,) to those of another class: of rank one


def directions(num_classes: int, *, centred: bool) -> Array:
    """Return Π (K, K): I for an orthogonal frame, I - 11^T/K for a simplex.

    The squared loss without a bias ends in the frame; with a bias that does not decay (1/K for
    every class at the minimum), or with cross-entropy, in the simplex.

    Raises:
        ValueError: fewer than two classes.

    Example:
        >>> print(directions(2, centred=True))
        [[ 0.5 -0.5]
         [-0.5  0.5]]
    """
    arguments.integers(2, num_classes=num_classes)
    identity = jnp.eye(num_classes)
    return identity - 1 / num_classes if centred else identity


def squared_loss_scales(classifier_decay: float, feature_decay: float) -> Scales:
    """Return the scales at the minimum of half the squared error, with a bias or without.

    The target has singular values 1 in the directions Π, and c |P|_* takes c off each:
    s = max(0, 1 - c). Needs D >= K without a bias, D >= K - 1 with one.

    Args:
        classifier_decay: λ_W, positive.
        feature_decay: λ_H, positive.

    Raises:
        ValueError: a decay is not positive.

    Reference: Tirer, Huang, Niles-Weed 2023, arXiv:2210.16658, theorem 2.1 (no bias); the case
        with a bias derived here.

    Example:
        >>> print(squared_loss_scales(0.25, 0.25).logits)
        0.75
    """
    arguments.positive(classifier_decay=classifier_decay, feature_decay=feature_decay)
    threshold = jnp.sqrt(jnp.asarray(classifier_decay * feature_decay))
    return _scales(jnp.maximum(0, 1 - threshold), classifier_decay, feature_decay)


def cross_entropy_scales(
    classifier_decay: float, feature_decay: float, *, num_classes: int
) -> Scales:
    """Return the scales at the minimum of the cross-entropy; the directions are a simplex.

    P = s Π leaves a margin s between the right logit and each other, and
    K log(1 + (K-1) e^-s) + c (K-1) s is least at s = log(K/c - K + 1), zero from c = 1 on. A
    bias stays zero. Needs D >= K - 1.

    Args:
        classifier_decay: λ_W, positive.
        feature_decay: λ_H, positive.
        num_classes: K.

    Raises:
        ValueError: a decay is not positive, or there are fewer than two classes.

    Reference: Zhu et al. 2021, arXiv:2105.02375, theorem 3.1 (there λ_W is our λ_W / K and λ_H
        our λ_H / Kn); the scale derived here.

    Example:
        >>> print(cross_entropy_scales(1.0, 1.0, num_classes=3).logits)
        0.0
    """
    arguments.positive(classifier_decay=classifier_decay, feature_decay=feature_decay)
    arguments.integers(2, num_classes=num_classes)
    threshold = jnp.sqrt(jnp.asarray(classifier_decay * feature_decay))
    ratio = jnp.maximum(1, num_classes / threshold - num_classes + 1)
    return _scales(jnp.log(ratio), classifier_decay, feature_decay)


def attenuation(classifier_decay: float, feature_decay: float, pull: float) -> Attenuation:
    """Return how much of a small change of H_0 reaches the minimum of L + (β / 2Kn) |H - H_0|².

    Squared loss without a bias, H_0 near the minimum of L. Within classes W does not move at
    first order, so H answers by β / (β + λ_H + ω²), ω² = sqrt(λ_H/λ_W) - λ_H in the span of the
    class means and zero out of it. If the means change, W follows: rotations of the whole
    configuration cost nothing, and a stretch comes back by β / (β + 4 λ_H (1 - c)).

    Args:
        classifier_decay: λ_W, positive.
        feature_decay: λ_H, positive, with λ_W λ_H < 1.
        pull: β, positive.

    Raises:
        ValueError: an argument is not positive, or λ_W λ_H >= 1: the configuration is zero.

    Reference: derived here for every β; Tirer, Huang, Niles-Weed 2023, arXiv:2210.16658,
        theorem 4.2, to first order in 1/β.

    Example:
        >>> factors = attenuation(0.25, 0.25, 3.0)
        >>> print(factors.within_in_span, factors.stretch)
        0.75 0.8
    """
    arguments.positive(classifier_decay=classifier_decay, feature_decay=feature_decay, pull=pull)
    _not_collapsed(classifier_decay, feature_decay)
    threshold = jnp.sqrt(jnp.asarray(classifier_decay * feature_decay))
    ratio = jnp.sqrt(jnp.asarray(feature_decay / classifier_decay))
    return Attenuation(
        within_in_span=pull / (pull + ratio),
        within_off_span=pull / (pull + jnp.asarray(feature_decay)),
        stretch=pull / (pull + 4 * feature_decay * (1 - threshold)),
        turn=jnp.ones_like(ratio),
    )


def block_singular_values(
    classifier_decay: float,
    feature_decay: float,
    pull: float,
    *,
    num_classes: int,
    per_class: int,
    dim: int,
) -> BlockSingularValues:
    """Return the exact spectrum of the blocks of dH/dH_0 at the minimum, for every β.

    With a = within_in_span, o = within_off_span, φ = stretch, a block of one class with itself
    has (n-1) K times a, (n-1)(D-K) times o, and of the class mean D - K times 1, K - 1 times
    (1 + φ)/2 and once φ. Between classes only (1 - φ)/2 is not zero.

    Args:
        classifier_decay: λ_W, positive.
        feature_decay: λ_H, positive, with λ_W λ_H < 1.
        pull: β, positive.
        num_classes: K.
        per_class: n, samples of a class.
        dim: D, at least K.

    Raises:
        ValueError: as `attenuation`; or D < K, n < 1, K < 2.

    Reference: derived here from `attenuation`.
    """
    arguments.integers(2, num_classes=num_classes)
    arguments.integers(1, per_class=per_class)
    arguments.integers(num_classes, dim=dim)
    inside, outside, stretch, turn = attenuation(classifier_decay, feature_decay, pull)
    counts = {
        "inside": (inside, (per_class - 1) * num_classes),
        "outside": (outside, (per_class - 1) * (dim - num_classes)),
        "turn": (turn, dim - num_classes),
        "half": ((turn + stretch) / 2, num_classes - 1),
        "stretch": (stretch, 1),
    }
    same = jnp.concatenate([jnp.full(count, value) for value, count in counts.values()])
    other = jnp.zeros_like(same).at[0].set((turn - stretch) / 2)
    return BlockSingularValues(jnp.sort(same, descending=True), other)


def block_singular_values_large_pull(
    classifier_decay: float, feature_decay: float, pull: float
) -> tuple[Array, Array, Array]:
    """Return to first order in 1/β the largest and smallest of `same`, and the one of `other`.

    (1, 1 - sqrt(λ_H/λ_W) / β, 2 λ_H (1 - c) / β). The smallest is that of changes within classes
    in the span, so it needs n >= 2; that of a stretch is never smaller, for 4 c (1 - c) <= 1.

    Raises:
        ValueError: an argument is not positive, or λ_W λ_H >= 1.

    Reference: Tirer, Huang, Niles-Weed 2023, arXiv:2210.16658, theorem 4.2.
    """
    arguments.positive(classifier_decay=classifier_decay, feature_decay=feature_decay, pull=pull)
    _not_collapsed(classifier_decay, feature_decay)
    threshold = jnp.sqrt(jnp.asarray(classifier_decay * feature_decay))
    ratio = jnp.sqrt(jnp.asarray(feature_decay / classifier_decay))
    return jnp.ones_like(ratio), 1 - ratio / pull, 2 * feature_decay * (1 - threshold) / pull


def optimal_classifier(features: Array, targets: Array, classifier_decay: float) -> Array:
    """Return W*(H) (K, D), the minimiser of L over W under the squared loss without a bias.

    W* = Y^T H (H^T H + n λ_W I)^-1 with n = N / K: ridge regression.

    Args:
        features: H (N, D).
        targets: Y (N, K).
        classifier_decay: λ_W, positive.

    Raises:
        ValueError: the decay is not positive, or the shapes do not fit.

    Reference: Tirer, Huang, Niles-Weed 2023, arXiv:2210.16658, section 3.
    """
    arguments.positive(classifier_decay=classifier_decay)
    arguments.shapes("N D, N K", features=features, targets=targets)
    per_class = len(targets) / targets.shape[1]
    penalty = per_class * classifier_decay * jnp.eye(features.shape[1], dtype=features.dtype)
    gram = _product("nd,ne->de", features, features) + penalty
    return jnp.linalg.solve(gram, _product("nd,nk->dk", features, targets)).T


def central_path_velocity(
    features: Array, targets: Array, classifier_decay: float, feature_decay: float
) -> Array:
    """Return dH/dt (N, D) on the central path: the flow of H with W kept at `optimal_classifier`.

    dH/dt = -K n dL/dH = (Y - H W*^T) W* - λ_H H. Since W* minimises L, this is also the gradient
    of L(W*(H), H) as a function of H alone.

    Args:
        features: H (N, D).
        targets: Y (N, K).
        classifier_decay: λ_W, positive.
        feature_decay: λ_H, positive.

    Raises:
        ValueError: a decay is not positive, or the shapes do not fit.

    Reference: Tirer, Huang, Niles-Weed 2023, arXiv:2210.16658, section 3.
    """
    arguments.positive(feature_decay=feature_decay)
    classifier = optimal_classifier(features, targets, classifier_decay)
    error = targets - _product("nd,kd->nk", features, classifier)
    return _product("nk,kd->nd", error, classifier) - feature_decay * features


def _scales(logits: Array, classifier_decay: float, feature_decay: float) -> Scales:
    """Split a singular value of P so that λ_W σ_W² = λ_H σ_H²: the least cost of the product."""
    balance = jnp.sqrt(jnp.asarray(feature_decay / classifier_decay))
    return Scales(logits, jnp.sqrt(logits * balance), jnp.sqrt(logits / balance))


def _not_collapsed(classifier_decay: float, feature_decay: float) -> None:
    product = classifier_decay * feature_decay
    if not isinstance(product, jax.core.Tracer) and not np.all(np.asarray(product) < 1):
        message = f"classifier_decay * feature_decay = {product}: give a product below 1"
        raise ValueError(message)


def _product(subscripts: str, *operands: Array) -> Array:
    return jnp.einsum(subscripts, *operands, precision="highest")
