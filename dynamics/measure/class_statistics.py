"""Class means and within-class scatter, all at once or accumulated over batches.

Nothing loops over classes: sums are segment sums, so time and memory hardly know how many classes
there are. Accumulated scatter is kept about the running means (Chan, Golub, LeVeque 1983), which
does not cancel where a raw second moment would.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array

# Numbers that a block of samples may fill, 4 MiB in float32. Smaller blocks are half as fast with a
# thousand classes, larger ones no faster (benchmarks/collapse.py, 2 cores).
BLOCK_ENTRIES = 2**20


class ClassStatistics(NamedTuple):
    """What a set of labelled features leaves behind; sets add by `merge`."""

    counts: Array  # (C,) samples of each class
    means: Array  # (C, D); zero for a class without samples
    scatter: Array  # (D, D) sum over samples of (h - mean)(h - mean)^T, the mean of its class


def empty(num_classes: int, num_features: int, dtype: Any = jnp.float32) -> ClassStatistics:
    """Return the statistics of no samples, where accumulation starts.

    Raises:
        ValueError: fewer than two classes or less than one feature.
    """
    arguments.integers(2, num_classes=num_classes)
    arguments.counts(num_features=num_features)
    arguments.types(dtype=dtype)
    return ClassStatistics(
        jnp.zeros(num_classes, dtype),
        jnp.zeros((num_classes, num_features), dtype),
        jnp.zeros((num_features, num_features), dtype),
    )


def class_statistics(features: Array, labels: Array, *, num_classes: int) -> ClassStatistics:
    """Return the statistics of one batch; a class may have no samples in it.

    Args:
        features: (N, D).
        labels: (N,) integers from 0 to num_classes - 1.
        num_classes: C, at least 2.

    Raises:
        ValueError: the shapes do not fit, or a label is out of range (seen outside `jit` only;
            under `jit` such a sample is left out).
        TypeError: features are not floating-point, or labels not integers.
    """
    features, labels = checked(features, labels, num_classes)
    counts, means = class_means(features, labels, num_classes)
    deviations = features - means[labels]
    deviations = jnp.where(_in_range(labels, num_classes)[:, None], deviations, 0)
    return ClassStatistics(counts, means, matmul(deviations.T, deviations))


def merge(first: ClassStatistics, second: ClassStatistics) -> ClassStatistics:
    """Return the statistics of two sets of samples together.

    Raises:
        ValueError: the two have different numbers of classes or features.
    """
    arguments.records(ClassStatistics, first=first, second=second)
    if first.means.shape != second.means.shape:
        message = (
            f"second: class means of shape {second.means.shape} beside {first.means.shape}; "
            "merge statistics of the same classes and features"
        )
        raise ValueError(message)
    counts = first.counts + second.counts
    share = second.counts / jnp.maximum(counts, 1)  # (C,) of the second set
    gap = second.means - first.means  # (C, D)
    between = matmul(gap.T * (first.counts * share), gap)
    means = first.means + share[:, None] * gap
    return ClassStatistics(counts, means, first.scatter + second.scatter + between)


def merge_all(parts: ClassStatistics) -> ClassStatistics:
    """Return the statistics of all of several sets, stacked on a leading axis.

    So statistics are taken on several devices: `parallel.ensemble` of `class_statistics` over
    shares of the samples gives `parts`. To fill the last share give labels of num_classes: inside
    the ensemble such samples are left out.
    """
    arguments.records(ClassStatistics, parts=parts)
    one = lambda index: jax.tree.map(lambda leaf: leaf[index], parts)
    rest = jax.tree.map(lambda leaf: leaf[1:], parts)
    return jax.lax.scan(lambda total, part: (merge(total, part), None), one(0), rest)[0]


def update(statistics: ClassStatistics, features: Array, labels: Array) -> ClassStatistics:
    """Return `statistics` with one more batch of features (N, D) and labels (N,)."""
    arguments.records(ClassStatistics, statistics=statistics)
    arguments.shapes("C D, N D", statistics=statistics.means, features=features)
    batch = class_statistics(features, labels, num_classes=len(statistics.counts))
    return merge(statistics, batch)


def class_means(features: Array, labels: Array, num_classes: int) -> tuple[Array, Array]:
    """Return the number of samples (C,) and the mean (C, D) of each class."""
    features, labels = checked(features, labels, num_classes)
    counts = jax.ops.segment_sum(jnp.ones(len(labels), features.dtype), labels, num_classes)
    # Sums about a common point: far from the origin, float32 sums lose what tells classes apart.
    centre = features.mean(axis=0)
    part = lambda block: jax.ops.segment_sum(block[0] - centre, block[1], num_classes)
    sums = over_blocks(part, (features, labels), num_classes)
    means = centre + sums / jnp.maximum(counts, 1)[:, None]
    return counts, jnp.where(counts[:, None] > 0, means, 0)


def over_blocks(part: Callable[[Any], Any], samples: Any, num_classes: int) -> Any:
    """Return the sum of `part(block)`, a pytree of arrays, over blocks of samples.

    Blocks are cut out of the arrays one at a time and only ever fill `BLOCK_ENTRIES` numbers, so
    that memory beside the samples is flat in their number and in that of the classes.

    Args:
        part: `part(block) -> sums`, for a pytree like `samples` of fewer rows.
        samples: A pytree of arrays with one leading axis N; one of them is (N, D).
        num_classes: C; a block has at most BLOCK_ENTRIES / max(C, D) rows.
    """
    arguments.functions(part=part)
    arguments.samples(samples=samples)
    arguments.counts(num_classes=num_classes)
    leaves = jax.tree.leaves(samples)
    if not any(leaf.ndim > 1 for leaf in leaves):
        message = (
            f"samples: shapes {[leaf.shape for leaf in leaves]}; give one array (N, D) at least"
        )
        raise ValueError(message)
    length, widest = len(leaves[0]), max(leaf.shape[-1] for leaf in leaves if leaf.ndim > 1)
    size = min(length, max(1, BLOCK_ENTRIES // max(num_classes, widest)))
    count = length // size

    def add(index: Array, total: Any) -> Any:
        cut = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index * size, size)
        return jax.tree.map(jnp.add, total, part(jax.tree.map(cut, samples)))

    rest = jax.tree.map(lambda leaf: leaf[count * size :], samples)
    if count == 1:
        total = part(jax.tree.map(lambda leaf: leaf[:size], samples))
    else:
        shapes = jax.eval_shape(part, jax.tree.map(lambda leaf: leaf[:size], samples))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total = jax.lax.fori_loop(0, count, add, zeros)
    return jax.tree.map(jnp.add, total, part(rest)) if count * size < length else total


def matmul(a: Array, b: Array) -> Array:
    """A product in full precision on every device."""
    return jnp.matmul(a, b, precision="highest")


def checked(features: Any, labels: Any, num_classes: int) -> tuple[Array, Array]:
    """Return features and labels as arrays; raise where they cannot be what they should."""
    arguments.integers(2, num_classes=num_classes)
    arguments.shapes("N D, N", features=features, labels=labels)
    arguments.floating(features=features)
    arguments.labels(num_classes, labels=labels)
    features, labels = jnp.asarray(features), jnp.asarray(labels)
    return features, labels


def check_every_class(counts: Array) -> None:
    """Raise where a class is empty; under `jit` nothing is known and nothing is raised."""
    arguments.shapes("C", counts=counts)
    if isinstance(counts, jax.core.Tracer):
        return
    missing = np.flatnonzero(np.asarray(counts) == 0)
    if len(missing):
        message = (
            f"labels: no sample of class {', '.join(map(str, missing[:10]))}"
            f"{' ...' * (len(missing) > 10)}; leave empty classes out and number the rest anew"
        )
        raise ValueError(message)


def _in_range(labels: Array, num_classes: int) -> Array:
    return (labels >= 0) & (labels < num_classes)
