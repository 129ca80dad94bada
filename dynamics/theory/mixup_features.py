"""What mixup does to free last-layer features under a simplex classifier.

A mixed sample has the target y = λ e_i + (1 - λ) e_j. Its feature h minimises
loss(W h, y) + (λ_h / 2) |h|², where the K rows of W (K, D) form a simplex: length ω, cosines
-1/(K-1), sum zero, so that W W^T = ω² K/(K-1) (I - 11^T/K). With the strength

    κ = ω² K / ((K - 1) λ_h)

the gradient condition h = W^T (y - p) / λ_h becomes one for the logits z = W h alone,

    z + κ softmax(z) = κ y   (cross-entropy),       z = κ/(1+κ) (y - 1/K)   (squared error).

The second is affine in λ: features mix as the targets do. The first is not.
"""

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array

NUM_NEWTON_STEPS = 30  # 20 reach rounding up to κ = 1e6, 8 do at κ = 1000
NUM_BISECTIONS = 60  # of log κ between -23 and 23: to 2^-54 of it


def strength(classifier_length: float, feature_decay: float, *, num_classes: int) -> Array:
    """Return κ = ω² K / ((K - 1) λ_h), the one number on which the logits depend.

    Args:
        classifier_length: ω, the length of each row of W.
        feature_decay: λ_h, positive.
        num_classes: K, at least 2.

    Raises:
        ValueError: λ_h is not positive or K < 2.

    Reference: derived here; the setting is that of Fisher, Meng, Papyan 2024, arXiv:2402.06171.

    Example:
        >>> print(strength(1.0, 0.5, num_classes=5))
        2.5
    """
    arguments.positive(feature_decay=feature_decay)
    arguments.numbers(classifier_length=classifier_length, feature_decay=feature_decay)
    arguments.integers(2, num_classes=num_classes)
    square = jnp.asarray(classifier_length) ** 2
    return square * num_classes / ((num_classes - 1) * jnp.asarray(feature_decay))


def cross_entropy_logits(targets: Array, strength: float | Array) -> Array:
    """Return z (..., K) with z + κ softmax(z) = κ y, by Newton's method.

    z minimises |z - κ y|²/2 + κ logsumexp(z), strictly convex: there is one solution. Each step
    is cut to the power of 1/2 that leaves the smallest gradient. Works under jit and vmap.

    Args:
        targets: y (..., K), rows of probabilities.
        strength: κ, not negative; broadcasts against the leading axes of `targets`.

    Raises:
        ValueError: κ is negative, or `targets` has no axis of classes.

    Reference: derived here from the setting of Fisher, Meng, Papyan 2024, arXiv:2402.06171.

    Example:
        >>> print(cross_entropy_logits(jnp.array([0.5, 0.5]), 3.0))
        [0. 0.]
    """
    arguments.shapes("... K", targets=targets)
    arguments.not_negative(strength=strength)
    targets = jnp.asarray(targets)
    if targets.ndim == 0 or targets.shape[-1] < 2:
        message = f"targets: shape {targets.shape}; give (..., K) with K at least 2"
        raise ValueError(message)
    kappas = jnp.broadcast_to(jnp.asarray(strength, targets.dtype), targets.shape[:-1])
    rows = targets.reshape(-1, targets.shape[-1])
    return _solve_rows(rows, kappas.ravel()).reshape(targets.shape)


def squared_loss_logits(targets: Array, strength: float | Array) -> Array:
    """Return z = κ/(1+κ) (y - 1/K), the logits under half the squared error: affine in y.

    Args:
        targets: y (..., K), rows of probabilities.
        strength: κ, broadcasts against the leading axes of `targets`.

    Reference: derived here.

    Example:
        >>> print(squared_loss_logits(jnp.array([1.0, 0.0]), 1.0))
        [ 0.25 -0.25]
    """
    arguments.shapes("... K", targets=targets)
    arguments.not_negative(strength=strength)
    kappa = jnp.asarray(strength)[..., None]
    return kappa / (1 + kappa) * (targets - 1 / targets.shape[-1])


def features(classifier: Array, logits: Array) -> Array:
    """Return the h (..., D) in the span of a simplex W (K, D) that has these logits.

    h = W^T z (K - 1) / (K ω²), for logits that sum to zero.

    Raises:
        ValueError: the last axis of `logits` is not K.

    Example:
        >>> print(features(jnp.array([[1.0], [-1.0]]), jnp.array([3.0, -3.0])))
        [3.]
    """
    arguments.shapes("K D, ... K", classifier=classifier, logits=logits)
    num_classes = len(classifier)
    square = jnp.sum(classifier**2) / num_classes
    factor = (num_classes - 1) / (num_classes * square)
    return factor * jnp.einsum("...k,kd->...d", logits, classifier, precision="highest")


def joint_strength(targets: Array, classifier_decay: float, feature_decay: float) -> Array:
    """Return κ at the minimum of the cross-entropy over the classifier as well.

    The loss is the mean over samples of CE(W h_s, y_s) + (λ_h / 2) |h_s|², plus (λ_W / 2) |W|².
    If the targets treat all classes alike (with every sample there are all its permutations),
    the second moment of y - p is a multiple of I - 11^T/K, W is a simplex, and its gradient
    vanishes where mean |y - p|² = (K - 1) λ_W λ_h. The left side falls with κ, from
    mean |y - 1/K|² at zero; κ = 0, everything collapsed, if it starts below.

    Args:
        targets: y (N, K), rows of probabilities, invariant as a set under permutations of classes.
        classifier_decay: λ_W, positive.
        feature_decay: λ_h, positive.

    Raises:
        ValueError: a decay is not positive, or `targets` is not a matrix.

    Reference: derived here.
    """
    arguments.positive(classifier_decay=classifier_decay, feature_decay=feature_decay)
    arguments.numbers(classifier_decay=classifier_decay, feature_decay=feature_decay)
    arguments.shapes("N K", targets=targets)
    arguments.floating(targets=targets)
    if targets.shape[1] < 2:
        message = f"targets has shape {targets.shape}; give (N, K), K at least 2"
        raise ValueError(message)
    num_classes = targets.shape[1]
    wanted = (num_classes - 1) * classifier_decay * feature_decay

    def excess(kappa: Array) -> Array:
        logits = cross_entropy_logits(targets, kappa)
        return jnp.mean(jnp.sum((targets - jax.nn.softmax(logits)) ** 2, axis=1)) - wanted

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        short = excess(jnp.exp(middle)) > 0
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    ends = (jnp.asarray(-23.0, targets.dtype), jnp.asarray(23.0, targets.dtype))
    low, high = jax.lax.fori_loop(0, NUM_BISECTIONS, halve, ends)
    start = jnp.mean(jnp.sum((targets - 1 / num_classes) ** 2, axis=1))
    return jnp.where(start > wanted, jnp.exp((low + high) / 2), 0.0)


def _solve(target: Array, kappa: Array) -> Array:
    """Newton's method for one sample."""
    cuts = 0.5 ** jnp.arange(12, dtype=target.dtype)

    def gradient(logits: Array) -> Array:
        return logits + kappa * (jax.nn.softmax(logits) - target)

    def goes_on(state: tuple[Array, Array]) -> Array:
        count, logits = state
        rounding = 4 * jnp.finfo(target.dtype).eps * (1 + kappa)
        return (count < NUM_NEWTON_STEPS) & (jnp.abs(gradient(logits)).max() > rounding)

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        count, logits = state
        p = jax.nn.softmax(logits)
        hessian = jnp.eye(len(p), dtype=p.dtype) + kappa * (jnp.diag(p) - jnp.outer(p, p))
        move = jnp.linalg.solve(hessian, gradient(logits))
        tried = logits - cuts[:, None] * move
        sizes = jnp.sum(jax.vmap(gradient)(tried) ** 2, axis=1)
        return count + 1, tried[jnp.argmin(sizes)]

    return jax.lax.while_loop(goes_on, step, (jnp.asarray(0), jnp.zeros_like(target)))[1]


_solve_rows = jax.jit(jax.vmap(_solve))  # outside of jit a loop would be compiled at every call
