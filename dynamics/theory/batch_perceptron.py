"""Logistic regression by gradient descent with a large step size is the batch perceptron.

Rows z_i = y_i x_i, loss (1/N) sum log(1 + exp(-z_i·θ)), start θ_0 = 0. With u_t = θ_t / γ gradient
descent reads u ← u + (1/N) sum σ(-γ z_i·u) z_i, and as γ grows σ becomes the step function: each
row adds itself while it is on the wrong side (Tyurin 2024, arXiv:2412.08424, theorem 3.2).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array


class Expansion(NamedTuple):
    """What gradient descent over its step size is: path + leading, to within `remainder`."""

    leading: Array  # (T, D) difference from the path to first order in exp(-γ |z·u|)
    remainder: Array  # (T,) bound on |u_t - path_t - leading_t|, for every γ
    distance: Array  # (T,) bound on |u_t - path_t|, for every γ


def path(rows: Array, num_steps: int) -> Array:
    """Return the iterates (num_steps + 1, D) of the batch perceptron, from zero.

    A row on the boundary adds half of itself, the limit of σ: so the first step is half of the mean
    row, and from then on ties are of no weight. Once all rows are on the right side the path stays.

    Args:
        rows: (N, D) the z_i.
        num_steps: T, at least 1.

    Raises:
        ValueError: `rows` is not a matrix, or no step.

    References:
        Tyurin 2024, arXiv:2412.08424, algorithm 1.

    Example:
        >>> print(path(jnp.array([[2.0, 0.0], [-1.0, 0.5]]), 2)[1:])
        [[ 0.25   0.125]
         [-0.25   0.375]]
    """
    _check_rows(rows)
    arguments.counts(num_steps=num_steps)

    def step(weight: Array, _: None) -> tuple[Array, Array]:
        after = weight + jnp.heaviside(-(rows @ weight), 0.5) @ rows / len(rows)
        return after, after

    start = jnp.zeros(rows.shape[1], rows.dtype)
    return jnp.concatenate([start[None], jax.lax.scan(step, start, length=num_steps)[1]])


def expansion(rows: Array, path: Array, step_size: Any) -> Expansion:
    """Return how gradient descent with this step size differs from the batch perceptron.

    With a = z·path_t the two add z times σ(-γ z·u) and 1[a < 0], which differ by sign(a) σ(-γ |a|)
    at u = path_t. Where u is off by at most e, each term is at most |z| σ(-γ (|a| - |z| e)), and
    off its leading value by at most |z| σ(-γ |a|) (exp(γ |z| e) - 1). Both sum up along the path,
    whatever happens to signs on the way. The first step is common to both.

    Args:
        rows: (N, D) the z_i.
        path: (T, D) from `path`, time 0 included.
        step_size: γ > 0.

    Raises:
        ValueError: `rows` is not a matrix, or `path` does not fit.

    References:
        Derived here. The theorem states the limit γ → ∞ only.

    Example:
        >>> rows = jnp.array([[2.0, 0.0], [-1.0, 0.5]])
        >>> found = expansion(rows, path(rows, 3), 200.0)
        >>> print(bool(found.distance[1] == 0), bool(found.distance[2] < 1e-8))
        True True
    """
    _check_rows(rows)
    arguments.shapes("N D, T D", rows=rows, path=path)
    arguments.positive(step_size=step_size)
    lengths = jnp.linalg.norm(rows, axis=1)

    def step(carry: Expansion, inputs: tuple[Array, Array]) -> tuple[Expansion, Expansion]:
        weight, is_first = inputs
        projection = rows @ weight
        leak = jax.nn.sigmoid(-step_size * jnp.abs(projection))  # (N,)
        near = jnp.abs(projection) - lengths * carry.distance
        growth = step_size * lengths * carry.distance
        small = leak * jnp.expm1(jnp.minimum(growth, 50.0))
        excess = jnp.where(growth < 50, jnp.minimum(small, 1.0), 1.0)  # two σ: never above one
        added = Expansion(
            jnp.mean((jnp.sign(projection) * leak)[:, None] * rows, axis=0),
            jnp.mean(lengths * excess),
            jnp.mean(lengths * jax.nn.sigmoid(-step_size * near)),
        )
        after = jax.tree.map(lambda now, more: jnp.where(is_first, now, now + more), carry, added)
        return after, after

    zero = jnp.zeros((), path.dtype)
    start = Expansion(jnp.zeros_like(path[0]), zero, zero)
    is_first = jnp.arange(len(path) - 1) == 0
    _, rest = jax.lax.scan(step, start, (path[:-1], is_first))
    return jax.tree.map(lambda first, later: jnp.concatenate([first[None], later]), start, rest)


def separation_step(rows: Array, iterates: Array) -> Array:
    """Return the first t () at which all z_i·u_t > 0, or the number of iterates if none.

    Args:
        rows: (N, D) the z_i.
        iterates: (T, D), time 0 included.

    Example:
        >>> rows = jnp.array([[2.0, 0.0], [-1.0, 0.5]])
        >>> print(separation_step(rows, path(rows, 9)))
        4
    """
    arguments.shapes("N D, T D", rows=rows, iterates=iterates)
    right = jnp.all(iterates @ rows.T > 0, axis=1)
    return jnp.where(right.any(), jnp.argmax(right), len(iterates))


def two_clusters(num_samples: int) -> np.ndarray:
    """Return the rows (N, 2) on which the perceptron is slow: one (1/2, -1), all others (1/2, 1).

    The inputs are (1/2, -1) with label +1 and N - 1 times (-1/2, -1) with label -1.

    Raises:
        ValueError: fewer than 2 samples.

    References:
        Tyurin 2024, arXiv:2412.08424, theorem 5.1.

    Example:
        >>> print(two_clusters(3).tolist())
        [[0.5, -1.0], [0.5, 1.0], [0.5, 1.0]]
    """
    arguments.integers(2, num_samples=num_samples)
    return np.array([[0.5, -1.0]] + [[0.5, 1.0]] * (num_samples - 1))


class StepBounds(NamedTuple):
    """The first and last step at which the lone row may come to its right side."""

    least: Any  # () of gradient descent with any step size; the perceptron's own
    most: Any  # () of gradient descent with this step size


def lone_row_steps(rows: Any, step_size: Any) -> StepBounds:
    """Return when the first of `rows` gets right, while all others are right from step 1 on.

    With s = z·θ of the lone row, s_1 = γ z·mean / 2 < 0, and each later step adds h σ(-s) with
    h = γ |z|² / N: at most h, so the perceptron, which adds h, is never behind. And s + exp(s) is
    convex with derivative 1/σ(-s), so it grows by h or more a step, up to 1 where s = 0. For large
    γ both give the same number, on `two_clusters` floor(0.3 N + 0.2) + 1.

    What the other rows still add, exp(-γ times their margin), is left out: see that it is small.

    Args:
        rows: (N, D), the lone row first.
        step_size: γ > 0; infinite for the perceptron.

    Raises:
        ValueError: `rows` is not a matrix, or its first row is right after one step.

    References:
        Derived here; Tyurin 2024, arXiv:2412.08424, theorem 5.1, states Ω(N).

    Example:
        >>> lone_row_steps(two_clusters(1000), 1e4)
        StepBounds(least=301, most=301)
        >>> lone_row_steps(two_clusters(1000), 100.0)
        StepBounds(least=301, most=309)
    """
    _check_rows(rows)
    arguments.finite(rows=rows)
    arguments.scalars(step_size=step_size)
    arguments.positive(step_size=step_size)
    rows = np.asarray(rows, np.float64)
    behind = -(rows[0] @ rows.mean(axis=0)) / 2  # -s_1 / γ
    if not behind > 0:
        message = f"rows: the first is right after one step (-s_1 / γ = {behind}); give a lone row"
        raise ValueError(message)
    each = rows[0] @ rows[0] / len(rows)  # h / γ
    # Strictly above zero, so the perceptron needs one more where it would land on the boundary.
    missing = behind / each + 1e-9  # rounding must not take it off the boundary
    least = 2 + int(np.floor(missing))
    late = (1 - np.exp(-step_size * behind)) / (step_size * each) if np.isfinite(step_size) else 0.0
    return StepBounds(least, max(least, 2 + int(np.floor(missing + late))))


def normalised_steps(num_samples: Any, step_size: Any) -> tuple[Any, Any]:
    """Return bounds on the step at which normalised descent parts `two_clusters`, small γ, large N.

    Normalised descent adds γ times the mean of the rows weighted by σ(-z·θ). In the flow time
    s = γ t the lone row falls behind to -0.6 ln N while the others' v = z·θ grows to
    ln N + ln(5/3), where the lone row has 5/8 of all weight; there v rests while the lone row
    comes back at speed 1/2. As z·θ of the two add up to s/2, the lone row is right when s = 2 v.
    Near the end its weight is halved and v follows from below to at most ln N + ln(10/3), so

        2 ln(5 N / 3) <= γ t <= 2 ln(10 N / 3),

    up to O(1/N) and a few steps. For γ > ln(6 N) / (5/4 - 2/N) the answer is two steps: after the
    first the lone row has all weight.

    Args:
        num_samples: N.
        step_size: γ.

    References:
        Derived here; Tyurin 2024, arXiv:2412.08424, theorem 6.1, bounds it by 5 + 8 ln(2 N - 1)/γ.

    Example:
        >>> low, high = normalised_steps(1000, 0.1)
        >>> print(round(low, 1), round(high, 1))
        148.4 162.2
    """
    arguments.positive(num_samples=num_samples, step_size=step_size)
    return 2 * np.log(5 * num_samples / 3) / step_size, 2 * np.log(10 * num_samples / 3) / step_size


def _check_rows(rows: Any) -> None:
    arguments.shapes("N D", rows=rows)
