"""Infinitely wide networks on the sphere as they get deep: kernels, their limits, classifiers.

Samples are unit vectors, every layer is scaled so that activations keep mean square one, and there
are no biases. A layer then maps the correlation c of two samples to ψ(c) = Σ w_k c^k, where
w_k = a_k² / Σ a_k² are the `weights` of an activation with the Hermite coefficients a_k. In terms
of the normalised activation φ they give all that decides the limit: w_0 = A² with A = E φ,
w_1 = A'² with A' = E φ', and ψ'(1) = Σ k w_k = B' = E φ'².

Correlations are handled by their logarithms. All terms are positive for 0 <= c <= 1, so nothing
cancels and nothing underflows at any depth, and samples are given by their defect 1 - c = r² / 2,
r the distance, because c itself does not tell a near neighbour from the sample.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array

# The logarithm that stands for a correlation of zero: it survives being multiplied by a degree.
LOG_ZERO = -1e300
LOG_ZERO_SINGLE = -1e30
# Where w_0 or w_1 counts as zero: coefficients from quadrature are exact to about 1e-15.
NEGLIGIBLE = 1e-20


class DeepKernels(NamedTuple):
    """Logarithms of the kernels at D depths, for defects of shape (...)."""

    log_nngp: Array  # (D, ...) of the correlation, at most 0
    log_ntk: Array  # (D, ...)
    log_ntk_diagonal: Array  # (D,) of a sample with itself


class SingularLimit(NamedTuple):
    """NNGP / A'^2L -> kernel and NTK / A'^2L -> kernel (L + offset), for A = 0 and A' ≠ 0."""

    kernel: Array  # (...) diverges like r^-α at small distance r
    offset: Array  # (...) diverges like r^-2


def kernels(weights: Array, defect: Array, *, depths: tuple[int, ...]) -> DeepKernels:
    """Return the kernels of networks with the given numbers of hidden layers.

    The NNGP is K_l = ψ(K_(l-1)) with K_0 = c, and the NTK Θ_l = K_l + ψ'(K_(l-1)) Θ_(l-1) with
    Θ_0 = c: all layers trained, in the NTK parameterisation.

    Args:
        weights: (K,) w_k, not negative and of sum one. Not checked: they may be traced.
        defect: 1 - c, any shape, entries from 0 to 1, of floating-point type. Use double precision.
        depths: Strictly increasing, not negative.

    Raises:
        ValueError: `weights` has not one axis, `depths` does not increase, or a defect that can be
            read lies outside 0 to 1.

    Reference: Daniely et al. 2016, arXiv:1602.05897, section 5; Jacot et al. 2018,
    arXiv:1806.07572, theorem 1.

    Example:
        >>> found = kernels(jnp.array([0, 0, 1.0]), jnp.array([0.5]), depths=(0, 1, 2))
        >>> print(jnp.exp(found.log_nngp)[:, 0].round(4), jnp.exp(found.log_ntk_diagonal).round(4))
        [0.5    0.25   0.0625] [1. 3. 7.]
    """
    arguments.shapes("K", weights=weights)
    arguments.numbers(defect=defect)
    arguments.shapes("D", depths=depths)
    arguments.labels(np.inf, depths=depths)
    weights, defect = jnp.asarray(weights), jnp.asarray(defect)
    gaps = np.diff(depths, prepend=0)
    if len(depths) == 0 or gaps[0] < 0 or np.any(gaps[1:] <= 0):
        message = f"depths={depths}: give increasing numbers of layers, none negative"
        raise ValueError(message)
    if not isinstance(defect, jax.core.Tracer) and not bool(jnp.all((defect >= 0) & (defect <= 1))):
        message = f"defect: from {defect.min()} to {defect.max()}; give 1 - c between 0 and 1"
        raise ValueError(message)
    zero = LOG_ZERO if defect.dtype == jnp.float64 else LOG_ZERO_SINGLE
    weights = weights.astype(defect.dtype)
    tails = jnp.cumsum(weights[:0:-1])  # 1 - ψ(c) = (1 - c) Σ_j c^j Σ_(k > j) w_k, from the last
    lowest, leading = _leading(weights)
    lowest_slope, leading_slope = _leading((jnp.arange(len(weights)) * weights)[1:])

    def layer(state: tuple[Array, Array]) -> tuple[Array, Array]:
        log_c, log_ntk = state
        c = jnp.exp(log_c)
        near = jnp.log1p(jnp.expm1(log_c) * jnp.polyval(tails, c))  # keeps small defects
        far = lowest * log_c + jnp.log(jnp.polyval(leading, c))  # keeps small c
        mapped = jnp.maximum(jnp.where(log_c > -0.5, near, far), zero)
        slope = lowest_slope * log_c + jnp.log(jnp.polyval(leading_slope, c))
        return mapped, jnp.logaddexp(mapped, log_ntk + slope)

    flat = jnp.append(jnp.ravel(defect), 0)  # the last is a sample with itself
    start = jnp.maximum(jnp.log1p(-flat), zero)

    def to_next_depth(state: tuple[Array, Array], gap: Array) -> tuple[Any, Any]:
        state = jax.lax.fori_loop(0, gap, lambda _, state: layer(state), state)
        return state, state

    _, (log_nngp, log_ntk) = jax.lax.scan(to_next_depth, (start, start), jnp.asarray(gaps))
    shape = (len(depths), *defect.shape)
    return DeepKernels(
        log_nngp[:, :-1].reshape(shape), log_ntk[:, :-1].reshape(shape), log_ntk[:, -1]
    )


def _leading(coefficients: Array) -> tuple[Array, Array]:
    """Return n and q, the highest power first, with Σ a_k c^k = c^n q(c) and q(0) ≠ 0."""
    lowest = jnp.argmax(coefficients != 0)
    return lowest, jnp.roll(coefficients, -lowest)[::-1]


def singular_limit(weights: Array, defect: Array, *, depth: int = 300) -> SingularLimit:
    """Return the limits of the kernels at infinite depth for an activation of mean zero.

    NNGP / A'^2L converges to a function h with h(ψ(c)) = A'² h(c); the NTK grows linearly on top,
    because each of its late layers adds h once and the early ones add a constant. That constant
    is of order r^-2, so that the NTK itself goes like r^-α only from depths above r^-2 on, and
    like r^-(α + 2) before.

    Args:
        weights: (K,) with w_0 = 0 and w_1 > 0.
        defect: As in `kernels`.
        depth: At which the limit is read off. A pair at defect δ needs log(1/δ) / log B' layers to
            be told apart and then 37 / log(1/w_1) until the next term is below rounding.

    Raises:
        ValueError: as `kernels`.

    Reference: Radhakrishnan, Belkin, Uhler 2023, PNAS 120(14), arXiv:2204.14126, for the limit;
    the offset is derived here.

    Example:
        >>> limit = singular_limit(jnp.array([0, 0.5, 0, 0.5]), jnp.array([1e-2, 0.25e-2]))
        >>> print((limit.kernel[1] / limit.kernel[0]).round(2))  # half the distance: 2^α, α = 2
        4.02
    """
    arguments.shapes("K", weights=weights)
    arguments.integers(0, depth=depth)
    if len(weights) < 2:
        message = f"weights has shape {jnp.shape(weights)}; give (K,), two or more"
        raise ValueError(message)
    found = kernels(weights, defect, depths=(depth,))
    kernel = jnp.exp(found.log_nngp[0] - depth * jnp.log(jnp.asarray(weights)[1]))
    return SingularLimit(kernel, jnp.exp(found.log_ntk[0] - found.log_nngp[0]) - depth)


def slope_at_one(weights: Array) -> Array:
    """Return B' = ψ'(1) = Σ k w_k, (): the factor by which small defects grow in a layer.

    Example:
        >>> print(slope_at_one(jnp.array([0, 0.5, 0, 0.5])))
        2.0
    """
    arguments.shapes("K", weights=weights)
    weights = jnp.asarray(weights)
    return jnp.sum(jnp.arange(len(weights)) * weights)


def singular_exponent(mean_slope: Array, mean_square_slope: Array) -> Array:
    """Return α = -4 log|A'| / log B', the exponent of the kernel of infinite depth.

    A pair at distance r leaves the neighbourhood of c = 1 after log(2/r²) / log B' layers, from
    which on c falls by A'² in each.

    Args:
        mean_slope: A' = E φ' of the activation scaled to E φ² = 1, between 0 and 1 in size.
        mean_square_slope: B' = E φ'², above 1.

    Reference: Radhakrishnan, Belkin, Uhler 2023, PNAS 120(14), arXiv:2204.14126.

    Example:
        >>> print(f"{singular_exponent(0.5**0.5, 2.0):.4f}")
        2.0000
    """
    arguments.numbers(mean_slope=mean_slope)
    arguments.positive(mean_square_slope=mean_square_slope)
    return -4 * jnp.log(jnp.abs(mean_slope)) / jnp.log(mean_square_slope)


def limit_classifier(weights: Array) -> str:
    """Return the rule that the ridgeless NTK classifier becomes at infinite depth.

    "nearest_neighbour" for A = A' = 0, "singular" (the sign of Σ y_i / r_i^α) for A = 0 and
    A' ≠ 0, "majority" (of all labels) for A ≠ 0 and B' > 1. None of the three, "ordered", where
    samples do not become orthogonal: A ≠ 0 with B' <= 1 (so ReLU, whose B' is 1), and φ linear.

    Args:
        weights: (K,), not negative, of sum one to 1e-6; w_0 or w_1 below 1e-20 counts as zero.

    Raises:
        ValueError: `weights` is not that.

    Example:
        >>> limit_classifier(jnp.array([0.2, 0, 0, 0.8]))
        'majority'
    """
    arguments.shapes("K", weights=weights)
    shares = np.asarray(weights)
    if shares.ndim != 1 or np.any(shares < 0) or not abs(shares.sum() - 1) < 1e-6:
        message = f"weights={weights}: give (K,) numbers, none negative, of sum one"
        raise ValueError(message)
    mean_square, slope_square = np.append(shares, 0)[:2]
    if not slope_at_one(weights) > 1:
        return "ordered"
    if mean_square > NEGLIGIBLE:
        return "majority"
    return "singular" if slope_square > NEGLIGIBLE else "nearest_neighbour"
