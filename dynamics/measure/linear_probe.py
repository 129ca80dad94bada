"""Linear probes: how much of a target can be read off a network's features by a linear map.

The score is held out, its interval comes from resampling what is independent (contexts, not
tokens), and the control gives each context another one's targets. All of it runs on the host in
float64 and takes the features of any model as an array.
"""

from typing import Any, NamedTuple

import numpy as np

from dynamics import arguments
from dynamics.measure import statistics

FloatArray = Any  # a NumPy array of float64


class LinearProbe(NamedTuple):
    """A fitted probe and what it explains of targets that it was not fitted to."""

    r_squared: float  # held out, all targets together
    lower: float  # bootstrap interval of it
    upper: float
    r_squared_of_target: FloatArray  # (K,)
    weights: FloatArray  # (D, K) fitted to all samples
    intercept: FloatArray  # (K,), zeros without one

    def __call__(self, features: Any) -> FloatArray:
        """Return the targets (N, K) that the probe reads off features (N, D)."""
        return np.asarray(features, np.float64) @ self.weights + self.intercept


def linear_probe(
    features: Any,
    targets: Any,
    *,
    seed: int,
    ridge: float = 1e-6,
    num_folds: int = 5,
    intercept: bool = True,
    contexts: Any = None,
    confidence: float = 0.95,
    num_resamples: int = 1000,
) -> LinearProbe:
    """Return a ridge probe from features to targets with its held-out R² and an interval.

    R² = 1 - sum |y - ŷ|² / sum |y - m|² over all samples and targets, each predicted by the probe
    fitted to the folds that the sample is not in; m is the mean of those folds, or 0 without an
    intercept. It is negative where the probe is worse than m.

    The interval is the percentile bootstrap of that ratio over the contexts' sums, with the
    probes held fixed: it says how far another draw of test samples would move the score, and leaves
    out that of training samples, which is smaller by a factor of D / N where D << N.

    Args:
        features: (N, ...), flattened to (N, D); any model's activations.
        targets: (N, K) or (N,).
        seed: of the folds and of the bootstrap, an integer.
        ridge: penalty over the mean variance of a feature, so that it means the same for features
            of any scale. The default only guards against singular features; with D near N or
            above, choose a larger one.
        num_folds: 5 fit each probe to 80 % of the samples.
        intercept: whether the probe has one. Without it R² is against the second moment of the
            targets, as theory that knows their mean to be zero has it.
        contexts: (N,) labels of what is independent: samples of one context (tokens of a prompt)
            are never split over folds, and are resampled together. None: each is its own.
        confidence: of the interval.
        num_resamples: of the bootstrap.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, targets that do not vary, a
            negative ridge, more folds than contexts or fewer than two.

    References:
        Alain and Bengio 2016, arXiv:1610.01644 (probes); Hewitt and Liang 2019, arXiv:1909.03368
        (a probe means little without a control).

    Example:
        >>> x = np.random.default_rng(0).normal(size=(100, 3))
        >>> probe = linear_probe(x, 2 * x[:, 1] + 1, seed=0)
        >>> print(round(probe.r_squared, 6), probe.weights.ravel().round(3) + 0.0)
        1.0 [0. 2. 0.]
    """
    arguments.integers(0, seed=seed)
    arguments.integers(num_folds=num_folds)
    arguments.counts(num_resamples=num_resamples)
    arguments.finite(ridge=ridge)
    arguments.scalars(ridge=ridge, confidence=confidence)
    x, y = _table("features", features), _table("targets", targets)
    if len(x) != len(y):
        message = f"features has {len(x)} samples and targets {len(y)}: give one target for each"
        raise ValueError(message)
    if not ridge >= 0:
        message = f"ridge={ridge}: give 0 or a positive number"
        raise ValueError(message)
    context = np.arange(len(x)) if contexts is None else np.asarray(contexts)
    if context.shape != (len(x),):
        message = f"contexts has shape {context.shape}; give ({len(x)},), a label a sample"
        raise ValueError(message)
    context = np.unique(context, return_inverse=True)[1]
    num_contexts = int(context.max()) + 1
    if not 2 <= num_folds <= num_contexts:
        message = f"num_folds={num_folds}: give 2 to {num_contexts}, the number of contexts"
        raise ValueError(message)
    fold = np.random.default_rng(seed).permutation(num_contexts)[context] % num_folds
    errors, totals = np.empty_like(y), np.empty_like(y)
    for held_out in range(num_folds):
        test = fold == held_out
        weights, offset, mean = _fit(x[~test], y[~test], ridge, intercept)
        errors[test] = (y[test] - x[test] @ weights - offset) ** 2
        totals[test] = (y[test] - mean) ** 2
    if not (totals.sum(axis=0) > 0).all():
        message = "targets: one of them does not vary, so that there is nothing to explain"
        raise ValueError(message)
    sums = np.zeros((num_contexts, 2))  # of errors and of totals
    np.add.at(sums, context, np.stack([errors.sum(axis=1), totals.sum(axis=1)], axis=1))

    def score(rows: FloatArray, axis: int) -> FloatArray:
        error, total = (sums[rows.astype(int), i].sum(axis=axis) for i in (0, 1))
        return 1 - error / total

    interval = statistics.bootstrap_interval(
        np.arange(num_contexts),
        score,
        seed=seed,
        confidence=confidence,
        num_resamples=num_resamples,
    )
    weights, offset, _ = _fit(x, y, ridge, intercept)
    return LinearProbe(
        float(1 - errors.sum() / totals.sum()),
        float(interval.lower),
        float(interval.upper),
        1 - errors.sum(axis=0) / totals.sum(axis=0),
        weights,
        offset,
    )


def other_contexts(num_contexts: int, *, seed: int) -> FloatArray:
    """Return (B,) indices, a random permutation that leaves no context its own.

    For controls: pair the features of context b with what belongs to context other_contexts[b].

    Raises:
        ValueError: fewer than two contexts.

    Example:
        >>> print(other_contexts(2, seed=0))
        [1 0]
    """
    arguments.integers(num_contexts=num_contexts)
    arguments.integers(0, seed=seed)
    if num_contexts < 2:
        message = f"num_contexts={num_contexts}: give two or more, else there is no other"
        raise ValueError(message)
    order = np.random.default_rng(seed).permutation(num_contexts)
    other = np.empty(num_contexts, int)
    other[order] = np.roll(order, 1)  # one cycle through all
    return other


def shuffled_probe(features: Any, targets: Any, *, seed: int, **settings: Any) -> LinearProbe:
    """Return the probe of targets that belong to other contexts: what chance alone explains.

    With `contexts` the samples of a context get those of one other context, in their order, so all
    contexts must be of one size; without, each sample that of another.

    Args:
        features: as in `linear_probe`.
        targets: as in `linear_probe`.
        seed: of the shuffling, the folds and the bootstrap.
        **settings: of `linear_probe`.

    Raises:
        ValueError: as in `linear_probe`; contexts of different sizes.
    """
    y = _table("targets", targets)
    arguments.samples(**{"features and targets": (features, targets)})
    if len(y) < 2:
        message = f"targets: {len(y)} of them; give two or more, else there is no other"
        raise ValueError(message)
    context = settings.get("contexts")
    if context is None:
        rows = other_contexts(len(y), seed=seed)
    else:
        _, index, sizes = np.unique(context, return_inverse=True, return_counts=True)
        if len(set(sizes.tolist())) > 1:
            message = f"contexts: sizes from {sizes.min()} to {sizes.max()}; give equal ones"
            raise ValueError(message)
        members = np.argsort(index, kind="stable").reshape(len(sizes), -1)
        rows = np.empty(len(y), int)
        rows[members] = members[other_contexts(len(sizes), seed=seed)]
    return linear_probe(features, y[rows], seed=seed, **settings)


def _table(name: str, values: Any) -> FloatArray:
    arguments.numbers(**{name: values})
    values = np.asarray(values, np.float64)
    if values.ndim == 0 or values.size == 0:
        message = f"{name} has shape {values.shape}; give at least one number a sample"
        raise ValueError(message)
    if not np.isfinite(values).all():
        message = f"{name} is not finite everywhere: leave out such samples"
        raise ValueError(message)
    return values.reshape(len(values), -1)


def _fit(
    x: FloatArray, y: FloatArray, ridge: float, intercept: bool
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return weights (D, K), intercept (K,) and the mean (K,) that R² is against."""
    x_mean = x.mean(axis=0) if intercept else np.zeros(x.shape[1])
    y_mean = y.mean(axis=0) if intercept else np.zeros(y.shape[1])
    centred = x - x_mean
    penalty = np.sqrt(ridge * np.mean(centred**2) * len(x))  # rows of the ridge, so that the
    rows = np.concatenate([centred, penalty * np.eye(x.shape[1])])  # condition is not squared
    right = np.concatenate([y - y_mean, np.zeros((x.shape[1], y.shape[1]))])
    weights = np.linalg.lstsq(rows, right, rcond=None)[0]
    return weights, y_mean - x_mean @ weights, y_mean
