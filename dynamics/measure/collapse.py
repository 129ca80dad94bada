"""Neural collapse: how close features and classifier are to their limiting geometry.

For features h of N samples in C classes, with class means m_c, their mean m (each class counts
once) and M = [m_1 - m ... m_C - m]:

    NC1  tr(Σ_W Σ_B^+) / C, with Σ_W = mean over samples of (h - m_c)(h - m_c)^T, Σ_B = M M^T / C
    NC2  ‖G/‖G‖ - T/‖T‖‖ for the Gram matrix G = M^T M and its target T = I - 1 1^T / C
    NC3  the same for G = W M, W the classifier's rows
    NC4  share of samples on which the classifier and the nearest class mean disagree

with Frobenius norms (Papyan, Han, Donoho 2020, doi:10.1073/pnas.2015509117; normalised as in Zhu
et al. 2021, arXiv:2105.02375). Without a bias the limit is an orthogonal frame instead, T = I and
G from the means as they are; with imbalanced classes its lengths differ from class to class.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.measure import class_statistics as statistics
from dynamics.measure.class_statistics import ClassStatistics, matmul


class OrthogonalFrame(NamedTuple):
    """A target whose class means are orthogonal and of given lengths (imbalanced classes)."""

    features: Array  # (C,) squared lengths of the class means
    alignment: Array  # (C,) products of each class mean with its classifier row


Frame = Literal["simplex", "orthogonal"] | OrthogonalFrame


class NeuralCollapse(NamedTuple):
    """Four distances from collapse, zero where it is complete."""

    nc1: Array  # () variability within classes by that between them
    nc2: Array  # () class means from their frame
    nc3: Array  # () classifier from the class means
    nc4: Array  # () share of samples whose nearest class mean is not the classifier's choice


class FeatureCollapse(NamedTuple):
    """What can be said of a layer that no classifier reads; a leading axis (L,) for L layers."""

    nc1: Array
    nc2: Array
    nearest_mean_error: Array  # share of samples nearest to the mean of another class


class _Linear(NamedTuple):
    """A linear classifier."""

    kernel: Array  # (D, C)
    bias: Array  # (C,)


class _Spread(NamedTuple):
    """Sums or means over samples."""

    whitened: Array  # () squared deviations in units of the between-class spread
    disagreement: Array  # () samples


def neural_collapse(
    features: Array,
    labels: Array,
    kernel: Array,
    bias: Array | None = None,
    *,
    num_classes: int,
    frame: Frame = "simplex",
) -> NeuralCollapse:
    """Return NC1 to NC4 of the last layer's features and the classifier that reads them.

    Two passes over the features in blocks: class means, then deviations whitened by the C - 1
    directions between classes, so that no D x D covariance is formed and memory does not grow with
    the number of classes. Works under `jit` and, for ensembles, under `vmap`.

    Args:
        features: (N, D), after the last nonlinearity: what the classifier sees.
        labels: (N,) integers from 0 to num_classes - 1; each class must occur.
        kernel: (D, C), logits are features @ kernel + bias.
        bias: (C,) or None.
        num_classes: C, at least 2.
        frame: The target of NC2 and NC3: "simplex" (equiangular tight frame, centred means),
            "orthogonal" (means as they are, equal lengths) or an `OrthogonalFrame`.

    Returns:
        Scalars. NC1, NC2 are NaN where all class means coincide, NC3 where the classifier is zero;
        under `jit`, where nothing can be raised, all but NC4 are NaN with an empty class.

    Raises:
        ValueError: shapes do not fit, a class is empty, a label is out of range, unknown `frame`.
        TypeError: features or kernel are not floating-point, or labels not integers.

    Example:
        >>> means = jnp.eye(3)
        >>> found = neural_collapse(means, jnp.arange(3), means, num_classes=3, frame="orthogonal")
        >>> bool(jnp.allclose(jnp.stack(found), 0, atol=1e-6))
        True
    """
    features, labels = statistics.checked(features, labels, num_classes)
    kernel, bias = _checked_classifier(kernel, bias, features.shape[1], num_classes)
    counts, means = statistics.class_means(features, labels, num_classes)
    means = _without_empty_classes(counts, means)
    spread = _spread(features, labels, means, _Linear(kernel, bias))
    nc2, nc3 = _geometry(means, kernel, frame)
    return NeuralCollapse(spread.whitened, nc2, nc3, spread.disagreement)


def from_statistics(
    found: ClassStatistics, kernel: Array, *, frame: Frame = "simplex"
) -> tuple[Array, Array, Array]:
    """Return NC1, NC2, NC3 from accumulated statistics (see `class_statistics.update`).

    NC4 needs the means before it sees a sample: count `nearest_mean_disagreement` in a second
    pass.

    Args:
        found: Statistics of all the samples, scatter (D, D) included.
        kernel: (D, C).
        frame: As in `neural_collapse`.

    Raises:
        ValueError: a class is empty, shapes do not fit, unknown `frame`.
    """
    arguments.records(ClassStatistics, found=found)
    num_classes, num_features = found.means.shape
    kernel, _ = _checked_classifier(kernel, None, num_features, num_classes)
    means = _without_empty_classes(found.counts, found.means)
    whitening = _whitening(means)  # (D, R)
    nc1 = jnp.sum(whitening * matmul(found.scatter, whitening)) / jnp.sum(found.counts)
    return nc1, *_geometry(means, kernel, frame)


def nearest_mean_disagreement(
    features: Array, means: Array, kernel: Array, bias: Array | None = None
) -> Array:
    """Return NC4, the share of samples whose nearest of `means` is not the largest logit: ().

    Args:
        features: (N, D); of one batch, or of all.
        means: (C, D) class means, of the training set if not of the same samples.
        kernel: (D, C).
        bias: (C,) or None.

    Raises:
        ValueError: shapes do not fit.
        TypeError: an array is not floating-point.
    """
    arguments.shapes("N D, C D, D C", features=features, means=means, kernel=kernel)
    arguments.floating(features=features, means=means)
    features, means = jnp.asarray(features), jnp.asarray(means)
    kernel, bias = _checked_classifier(kernel, bias, features.shape[1], len(means))

    centre = means.mean(axis=0)
    classifier, nearest = _Linear(kernel, bias), _nearest_mean(means - centre)

    def part(block: Array) -> Array:
        disagree = _choice(block, classifier) != _choice(block - centre, nearest)
        return jnp.sum(disagree.astype(features.dtype))

    return statistics.over_blocks(part, features, len(means)) / len(features)


def feature_collapse(
    features: Array, labels: Array, *, num_classes: int, frame: Frame = "simplex"
) -> FeatureCollapse:
    """Return the collapse of any layer's features (N, D): NC1, NC2 and the nearest-mean error.

    The error of the nearest class mean takes the place of NC4 where there is no classifier.
    Arguments and errors are those of `neural_collapse`.
    """
    features, labels = statistics.checked(features, labels, num_classes)
    counts, means = statistics.class_means(features, labels, num_classes)
    means = _without_empty_classes(counts, means)
    spread = _spread(features, labels, means)
    nc2, _ = _geometry(means, means.T, frame)
    return FeatureCollapse(spread.whitened, nc2, spread.disagreement)


def collapse_along_depth(
    features_of_layers: Any, labels: Array, *, num_classes: int, frame: Frame = "simplex"
) -> FeatureCollapse:
    """Return the collapse of each layer, stacked (L,), from first to last.

    Args:
        features_of_layers: A sequence of L arrays (N, ...), flattened to (N, D_l).
        labels: (N,).
        num_classes: C.
        frame: As in `neural_collapse`.

    Raises:
        ValueError: there is no layer, or as in `neural_collapse`.
    """
    if not isinstance(features_of_layers, Sequence) or not len(features_of_layers):
        message = (
            f"features_of_layers: {features_of_layers!r}; give at least one layer, in a sequence"
        )
        raise ValueError(message)
    for features in features_of_layers:
        arguments.shapes("N ...", features_of_layers=features)
    layers = [
        feature_collapse(
            jnp.reshape(features, (len(features), -1)), labels, num_classes=num_classes, frame=frame
        )
        for features in features_of_layers
    ]
    return FeatureCollapse(*(jnp.stack(parts) for parts in zip(*layers, strict=True)))


def within_between_ratio(features: Array, labels: Array, *, num_classes: int) -> Array:
    """Return tr Σ_W / tr Σ_B, the variability that theorems speak of (Tirer et al. 2023): ().

    Arguments and errors are those of `neural_collapse`; NaN where all class means coincide.
    """
    features, labels = statistics.checked(features, labels, num_classes)
    counts, means = statistics.class_means(features, labels, num_classes)
    means = _without_empty_classes(counts, means)
    within = jnp.mean(jnp.sum((features - means[labels]) ** 2, axis=1))
    between = jnp.mean(jnp.sum((means - means.mean(axis=0)) ** 2, axis=1))
    return within / between


def _spread(
    features: Array, labels: Array, means: Array, classifier: _Linear | None = None
) -> _Spread:
    """One pass over blocks; against the labels where there is no classifier."""
    whitening = _whitening(means)  # (D, R)
    centre = means.mean(axis=0)
    offset = -matmul(means - centre, whitening)  # (C, R)
    maps = [_nearest_mean(means - centre)]
    if classifier is not None:
        maps.append(_Linear(classifier.kernel, classifier.bias + matmul(centre, classifier.kernel)))
    joint = jnp.concatenate([whitening, *(part.kernel for part in maps)], axis=1)
    ends = [whitening.shape[1], whitening.shape[1] + len(means)]

    def part(block: tuple[Array, Array]) -> _Spread:
        samples, label = block
        # One product reads the samples once: whitened, distances to means, logits.
        whitened, *scores = jnp.split(matmul(samples - centre, joint), ends[: len(maps)], axis=1)
        choices = [
            jnp.argmax(score + one.bias, axis=1) for score, one in zip(scores, maps, strict=True)
        ]
        disagree = choices[0] != (label if classifier is None else choices[1])
        return _Spread(
            jnp.sum((whitened + offset[label]) ** 2), jnp.sum(disagree.astype(features.dtype))
        )

    total = statistics.over_blocks(part, (features, labels), len(means))
    return _Spread(*(part / len(features) for part in total))


def _whitening(means: Array) -> Array:
    """Return A (D, R) with A A^T = Σ_B^+ / C, R = min(C, D); NaN where all means coincide."""
    centred = means - means.mean(axis=0)  # (C, D)
    _, values, directions = jnp.linalg.svd(centred, full_matrices=False)
    # Centred means sum to zero: one direction is null, and rounding of the means must not fill it.
    eps, shape = jnp.finfo(values.dtype).eps, centred.shape
    rounding = eps * jnp.sqrt(means.size) * jnp.max(jnp.abs(means))
    cut = jnp.maximum(10 * max(shape) * eps * values[0], rounding)  # the first is that of pinv
    inverse = jnp.where(values > cut, 1 / jnp.where(values > cut, values, 1), 0)
    return directions.T * jnp.where(values[0] > rounding, inverse, jnp.nan)


def _geometry(means: Array, kernel: Array, frame: Frame) -> tuple[Array, Array]:
    """Return NC2 and NC3."""
    num_classes = len(means)
    identity = jnp.eye(num_classes, dtype=means.dtype)
    if isinstance(frame, OrthogonalFrame):
        lengths = [jnp.asarray(part, means.dtype) for part in frame]
        if any(part.shape != (num_classes,) for part in lengths):
            message = (
                f"frame: lengths of shapes {[p.shape for p in lengths]}; give ({num_classes},)"
            )
            raise ValueError(message)
        feature_target, alignment_target = (jnp.diag(part) for part in lengths)
    elif frame == "orthogonal":
        feature_target = alignment_target = identity
    elif frame == "simplex":
        feature_target = alignment_target = identity - 1 / num_classes
        means = means - means.mean(axis=0)
    else:
        message = f"frame={frame!r}: choose 'simplex', 'orthogonal' or an OrthogonalFrame"
        raise ValueError(message)
    return (
        _normalised_distance(matmul(means, means.T), feature_target),
        _normalised_distance(matmul(kernel.T, means.T), alignment_target),
    )


def _normalised_distance(matrix: Array, target: Array) -> Array:
    norm = jnp.linalg.norm
    return norm(matrix / norm(matrix) - target / norm(target))


def _nearest_mean(means: Array) -> _Linear:
    """Return the linear classifier that chooses the nearest of the means (C, D)."""
    return _Linear(means.T, -jnp.sum(means**2, axis=1) / 2)


def _choice(samples: Array, classifier: _Linear) -> Array:
    return jnp.argmax(matmul(samples, classifier.kernel) + classifier.bias, axis=1)


def _without_empty_classes(counts: Array, means: Array) -> Array:
    statistics.check_every_class(counts)
    return jnp.where(counts[:, None] > 0, means, jnp.nan)


def _checked_classifier(
    kernel: Any, bias: Any, num_features: int, num_classes: int
) -> tuple[Array, Array]:
    arguments.numbers(kernel=kernel)
    if jnp.shape(kernel) != (num_features, num_classes):
        message = (
            f"kernel: shape {jnp.shape(kernel)}; give (D, C) = ({num_features}, {num_classes}), as "
            "in features and num_classes"
        )
        raise ValueError(message)
    arguments.floating(kernel=kernel)
    arguments.shapes("D C, ?C", kernel=kernel, bias=bias)
    kernel = jnp.asarray(kernel)
    bias = jnp.zeros(num_classes, kernel.dtype) if bias is None else jnp.asarray(bias)
    return kernel, bias
