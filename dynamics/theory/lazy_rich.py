"""Quadratic-plus-linear networks from lazy to rich: two moments of the weights say everything.

The network is f(x) = (α/N) Σ_i φ(w_i·x) with φ(h) = h + ε h²/2, readout fixed, minus its value at
the start. With m = mean of w_i and M = mean of w_i w_i^T over the N units,

    f(x) = α (m - m_0)·x + (α ε / 2) x^T (M - M_0) x,

and since the gradient of a unit is affine in its own weights, gradient descent maps (m, M) to
(m, M) exactly, at every width and step size. The loss is half the mean squared error, and the
learning rate is that of one unit: N times the one of the mean over units. The larger α at a
learning rate ∝ α^-2, the less the weights move for the same function: the lazier the training.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array


class WeightMoments(NamedTuple):
    """Mean and second moment of the units' weight vectors."""

    mean: Array  # (D,)
    second: Array  # (D, D) symmetric, not centred


class Quadratic(NamedTuple):
    """The function linear·x + x^T matrix x."""

    linear: Array  # (D,)
    matrix: Array  # (D, D) symmetric


class Sample(NamedTuple):
    """All that training by squared loss sees of samples (x, y): means over them."""

    gram: Array  # (F, F) of φ φ^T, with φ = pack(x, x x^T) and F = D + D (D + 1) / 2
    correlation: Array  # (F,) of y φ
    power: Array  # () of y²


def infinite_width_start(input_dim: int) -> WeightMoments:
    """Return the moments (0, I) of infinitely many units with standard normal weights.

    Args:
        input_dim: D, positive.

    Raises:
        ValueError: `input_dim` is not positive.

    Example:
        >>> print(infinite_width_start(2).second)
        [[1. 0.]
         [0. 1.]]
    """
    arguments.counts(input_dim=input_dim)
    return WeightMoments(jnp.zeros(input_dim), jnp.eye(input_dim))


def weight_moments(weights: Array) -> WeightMoments:
    """Return the moments of a finite network.

    Args:
        weights: (N, D), one unit a row.

    Raises:
        ValueError: `weights` is not a matrix.
    """
    arguments.shapes("N D", weights=weights)
    second = jnp.einsum("ni,nj->ij", weights, weights, precision="highest") / len(weights)
    return WeightMoments(weights.mean(axis=0), second)


def predictor(
    moments: WeightMoments, start: WeightMoments, *, output_scale: float, curvature: float
) -> Quadratic:
    """Return the function f of a network with these moments, zero at its start.

    Args:
        moments: Moments now.
        start: Moments before training.
        output_scale: α.
        curvature: ε, of the activation h + ε h²/2.

    Reference: Kumar et al. 2024, arXiv:2310.06110, the polynomial regression setting.

    Example:
        >>> start = infinite_width_start(1)
        >>> moved = WeightMoments(start.mean + 1, start.second + 2)
        >>> f = predictor(moved, start, output_scale=3.0, curvature=0.5)
        >>> print(f.linear, f.matrix)
        [3.] [[1.5]]
    """
    arguments.records(WeightMoments, moments=moments, start=start)
    arguments.numbers(output_scale=output_scale, curvature=curvature)
    change = output_scale * curvature / 2 * (moments.second - start.second)
    return Quadratic(output_scale * (moments.mean - start.mean), change)


def evaluate(function: Quadratic, inputs: Array) -> Array:
    """Return the function at inputs (P, D): (P,).

    Example:
        >>> print(evaluate(Quadratic(jnp.ones(2), jnp.eye(2)), jnp.array([[1.0, 2.0]])))
        [8.]
    """
    arguments.records(Quadratic, function=function)
    arguments.shapes("D, P D", function=function.linear, inputs=inputs)
    linear = jnp.einsum("pi,i->p", inputs, function.linear, precision="highest")
    form = jnp.einsum("pi,ij,pj->p", inputs, function.matrix, inputs, precision="highest")
    return linear + form


def descend(
    moments: WeightMoments,
    residual: Quadratic,
    *,
    learning_rate: float,
    output_scale: float,
    curvature: float,
) -> WeightMoments:
    """Return the moments after one step of gradient descent on half the mean squared error.

    With r the residuals f - y, v = mean of r x, S = mean of r x x^T, c = η α and
    A = I - c ε S, every unit moves as w ← A w - c v, hence exactly

        m ← A m - c v,
        M ← A M A - c (A m v^T + v m^T A) + c² v v^T.

    Args:
        moments: Moments before the step.
        residual: (v, S), the residuals' correlation with x and with x x^T.
        learning_rate: η of one unit: w_i ← w_i - η N dL/dw_i.
        output_scale: α.
        curvature: ε.

    Reference: derived here; the gradient is that of Kumar et al. 2024, arXiv:2310.06110.

    Example:
        >>> start = infinite_width_start(1)
        >>> residual = Quadratic(jnp.array([1.0]), jnp.array([[0.0]]))
        >>> after = descend(start, residual, learning_rate=1.0, output_scale=0.5, curvature=1.0)
        >>> print(after.mean, after.second)
        [-0.5] [[1.25]]
    """
    arguments.records(WeightMoments, moments=moments)
    arguments.records(Quadratic, residual=residual)
    arguments.numbers(learning_rate=learning_rate, output_scale=output_scale, curvature=curvature)
    shift = learning_rate * output_scale * residual.linear  # c v
    slope = learning_rate * output_scale * curvature * residual.matrix  # I - A
    mean = moments.mean - _product("ij,j->i", slope, moments.mean)  # A m
    half = moments.second - _product("ij,jk->ik", slope, moments.second)  # A M
    second = half - _product("ij,jk->ik", half, slope)  # A M A
    cross = jnp.outer(mean, shift)
    return WeightMoments(mean - shift, second - cross - cross.T + jnp.outer(shift, shift))


def population_loss(function: Quadratic, teacher: Array) -> Array:
    """Return the mean squared error on y = (b·x)²/2 over all inputs x ~ N(0, I/D).

    |a|²/D + (2 tr A² + (tr A)²)/D², with a the linear part and A the matrix less b b^T/2. For
    f = 0 and |b|² = D it is E y² = 3/4.

    Args:
        function: f.
        teacher: b, (D,).

    Reference: Gaussian moments up to the fourth (Isserlis).

    Example:
        >>> print(population_loss(Quadratic(jnp.zeros(4), jnp.zeros((4, 4))), jnp.ones(4)))
        0.75
    """
    arguments.records(Quadratic, function=function)
    arguments.shapes("D, D", function=function.linear, teacher=teacher)
    input_dim = len(teacher)
    error = function.matrix - jnp.outer(teacher, teacher) / 2
    quartic = 2 * jnp.sum(error**2) + jnp.trace(error) ** 2
    return jnp.sum(function.linear**2) / input_dim + quartic / input_dim**2


def pack(function: Quadratic) -> Array:
    """Return (linear, matrix) as one vector (..., D + D (D + 1) / 2) with the same inner product.

    Off-diagonal entries of the symmetric matrix stand once, times √2. So with
    φ(x) = pack(x, x x^T), f(x) = pack(f)·φ(x), and the mean of r φ is pack(v, S): training sees
    the samples through a `Sample` alone, whatever their number.

    Example:
        >>> print(pack(Quadratic(jnp.array([1.0, 2.0]), jnp.array([[3.0, 0.0], [0.0, 4.0]]))))
        [1. 2. 3. 0. 4.]
    """
    arguments.records(Quadratic, function=function)
    rows, columns = np.triu_indices(function.linear.shape[-1])
    weight = np.where(rows == columns, 1.0, np.sqrt(2.0))
    entries = function.matrix[..., rows, columns]
    return jnp.concatenate([function.linear, entries * jnp.asarray(weight, entries.dtype)], axis=-1)


def unpack(packed: Array, input_dim: int) -> Quadratic:
    """Return the (linear, matrix) whose `pack` is given.

    Raises:
        ValueError: the length is not D + D (D + 1) / 2.
    """
    arguments.counts(input_dim=input_dim)
    arguments.shapes("... F", packed=packed)
    rows, columns = np.triu_indices(input_dim)
    if packed.shape[-1] != input_dim + len(rows):
        message = f"packed: length {packed.shape[-1]} for input_dim={input_dim}; " + (
            f"give {input_dim + len(rows)}"
        )
        raise ValueError(message)
    place = np.zeros((input_dim, input_dim), int)
    place[rows, columns] = place[columns, rows] = input_dim + np.arange(len(rows))
    weight = np.where(np.eye(input_dim, dtype=bool), 1.0, np.sqrt(0.5))
    matrix = packed[..., place] * jnp.asarray(weight, packed.dtype)
    return Quadratic(packed[..., :input_dim], matrix)


def summarise(teacher: Array, inputs: Array, num_samples: int | Array) -> Sample:
    """Return what training sees of the first inputs with the targets y = (b·x)²/2.

    Args:
        teacher: b, (D,).
        inputs: (P, D).
        num_samples: How many of the inputs count, from 1 to P; it may be traced.

    Example:
        >>> inputs = jnp.array([[2.0], [7.0]])
        >>> print(summarise(jnp.ones(1), inputs, 1).correlation)
        [4. 8.]
    """
    arguments.shapes("D, P D", teacher=teacher, inputs=inputs)
    arguments.numbers(num_samples=num_samples)
    arguments.positive(num_samples=num_samples)
    features = pack(Quadratic(inputs, inputs[:, :, None] * inputs[:, None, :]))
    weighted = features.T * (jnp.arange(len(inputs)) < num_samples) / num_samples
    targets = _product("pi,i->p", inputs, teacher) ** 2 / 2
    power = jnp.mean(targets**2, where=jnp.arange(len(inputs)) < num_samples)
    gram = _product("fp,pg->fg", weighted, features)
    return Sample(gram, _product("fp,p->f", weighted, targets), power)


def residual(function: Quadratic, sample: Sample) -> Quadratic:
    """Return the means of (f - y) x and of (f - y) x x^T, which `descend` takes.

    Example:
        >>> sample = summarise(jnp.ones(1), jnp.array([[2.0]]), 1)
        >>> print(residual(Quadratic(jnp.zeros(1), jnp.ones((1, 1))), sample).linear)
        [4.]
    """
    arguments.records(Quadratic, function=function)
    arguments.records(Sample, sample=sample)
    packed = _product("f,fg->g", pack(function), sample.gram) - sample.correlation
    return unpack(packed, function.linear.shape[-1])


def training_loss(function: Quadratic, sample: Sample) -> Array:
    """Return the mean of (f - y)² over the samples, ().

    Example:
        >>> sample = summarise(jnp.ones(1), jnp.array([[2.0]]), 1)
        >>> print(training_loss(Quadratic(jnp.zeros(1), jnp.ones((1, 1))), sample))
        4.0
    """
    arguments.records(Quadratic, function=function)
    arguments.records(Sample, sample=sample)
    packed = pack(function)
    fit = _product("f,fg->g", packed, sample.gram) - 2 * sample.correlation
    return sample.power + jnp.sum(packed * fit)


def _product(subscripts: str, *operands: Array) -> Array:
    return jnp.einsum(subscripts, *operands, precision="highest")
