"""Directions in which a layer does not move the network, and a basis of its hidden space.

On given samples a derivative by the matrix of a layer is a sum of outer products of what goes in,
a (I,), with the derivative by what comes out, g (O,). Where the a span only r_a dimensions and the
g only r_g, the layer can be moved in at least I O - r_a r_g directions without any output moving.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import arguments, leaf_names
from dynamics.aliases import ApplyFn, Array, Params
from dynamics.measure import gram, jacobian_rows

HIGHEST = jax.lax.Precision.HIGHEST


class LayerDegeneracy(NamedTuple):
    """Ranks of what meets in a layer of I inputs and O outputs."""

    activation_rank: Array  # () r_a, of the inputs over samples and positions
    gradient_rank: Array  # () r_g, of the derivatives over samples, positions and outputs
    flat_directions: Array  # () I O - r_a r_g, a lower bound; exact for generic networks
    activation_spectrum: Array  # singular values of the inputs, one a row, largest first
    gradient_spectrum: Array  # singular values of the derivatives, one a row


class InteractionBasis(NamedTuple):
    """Coordinates b = to_basis (h - mean) of a hidden layer h (D,).

    Over samples they are uncorrelated and of unit variance, and so are, up to their sizes, the
    derivatives of the outputs by them: E[Σ_k ∂f_k/∂b_i ∂f_k/∂b_j] is `values` on the diagonal and
    0 beside it. Coordinates of value 0 are any that span the rest of what the layer does.
    """

    values: Array  # (D,) largest first; eigenvalues of (covariance of h)(E[J^T J])
    to_basis: Array  # (D, D), of the rank of the covariance
    from_basis: Array  # (D, D), its pseudo-inverse
    mean: Array  # (D,), 0 where not centred


def layer_degeneracy(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    *,
    tolerance: float | None = None,
    batch_size: int | None = None,
) -> dict[str, LayerDegeneracy]:
    """Return the ranks of each layer's inputs and of the derivatives by its outputs on `x`.

    A layer is a leaf of `params` used once as the matrix of a linear map of P vectors a sample: a
    dense layer, one along a sequence, a convolution. Other leaves (biases, scales, embeddings
    that are looked up) are left out.

    Args:
        apply_fn: `apply_fn(params, x (N, ...)) -> (N, K)` or (N,).
        params: A pytree of floating-point arrays.
        x: (N, ...) samples.
        tolerance: A singular value counts above this times the largest. By default that of
            `numpy.linalg.matrix_rank`, ε times the longer side: rounding alone. Double precision
            gives it room.
        batch_size: Samples that go through the network at a time, by default as many as fit.

    Returns:
        By the leaf's path, names joined by "/": in the order of the leaves.

    Raises:
        ValueError: no samples, `batch_size` below 1, or outputs that are not (N, K) or (N,).
        TypeError: a leaf of `params` is not of floating-point type.

    References:
        Bushnaq et al. 2024, arXiv:2405.10927 (degeneracy by linear dependence of activations and
        of gradients).

    Example:
        Inputs along one line, one output: 2 x 3 weights, one of which matters.

        >>> params = dict(first=jnp.ones((2, 3)), last=jnp.ones((3, 1)))
        >>> network = lambda params, x: x @ params["first"] @ params["last"]
        >>> found = layer_degeneracy(network, params, jnp.array([[1.0, 2.0], [2.0, 4.0]]))
        >>> print({path: int(layer.flat_directions) for path, layer in found.items()})
        {'first': 5, 'last': 2}
    """
    arguments.functions(apply_fn=apply_fn)
    arguments.samples(x=x)
    arguments.integers(optional=True, batch_size=batch_size)
    arguments.not_negative(tolerance=0 if tolerance is None else tolerance)
    params, x, _ = gram.checked(params, x, None, "mean")
    paths = leaf_names.leaf_paths(params)
    plan = jacobian_rows.plan(apply_fn, params, x, None, "mean", jacobian_rows.PAIRS)
    size = min(len(x), gram.in_flight(plan)) if batch_size is None else batch_size
    if size < 1:
        message = f"batch_size={batch_size}: give at least 1"
        raise ValueError(message)
    factors = jax.lax.map(jacobian_rows.rows_of_one(plan), x, batch_size=size)
    return {
        paths[number]: _degeneracy(layer, tolerance)
        for number, layer in sorted(factors.items())
        if isinstance(layer, jacobian_rows.Factors)
    }


def _degeneracy(factors: jacobian_rows.Factors, tolerance: float | None) -> LayerDegeneracy:
    spectra, ranks, sizes = [], [], []
    for rows in factors:
        rows = rows.reshape(-1, rows.shape[-1])
        spectrum = jnp.linalg.svd(rows, compute_uv=False)
        default = max(rows.shape) * float(np.finfo(spectrum.dtype).eps)
        share = default if tolerance is None else tolerance
        spectra.append(spectrum)
        ranks.append(jnp.sum(spectrum > share * spectrum[0]))
        sizes.append(rows.shape[-1])
    flat = sizes[0] * sizes[1] - ranks[0] * ranks[1]
    return LayerDegeneracy(ranks[0], ranks[1], flat, spectra[0], spectra[1])


def output_jacobians(upper_fn: Callable[[Array], Array], activations: Array) -> Array:
    """Return J (N, K, D), the derivatives of the outputs by a hidden layer.

    Args:
        upper_fn: the network above the layer, `upper_fn(h (N, D)) -> (N, K)`, sample by sample.
        activations: (N, D) h.

    Raises:
        ValueError: `activations` is not (N, D).

    Example:
        >>> print(output_jacobians(lambda h: h**2, jnp.array([[1.0, 3.0]])))
        [[[2. 0.]
          [0. 6.]]]
    """
    arguments.functions(upper_fn=upper_fn)
    arguments.shapes("N D", activations=activations)
    activations = jnp.asarray(activations)
    return jax.vmap(jax.jacrev(lambda h: upper_fn(h[None])[0]))(activations)


def interaction_basis(
    activations: Array,
    jacobians: Array,
    *,
    centre: bool = True,
    tolerance: float | None = None,
) -> InteractionBasis:
    """Return the basis of a hidden layer in which both its activations and gradients decouple.

    Whiten the activations by their principal components, then turn to the eigenvectors of the
    mean of J^T J there. Where h -> R h + c and the network above undoes it, for any invertible R,
    the values stay and so do the coordinates, up to signs (and within equal values up to a
    rotation): the basis is one of the function, not of how it is written. Principal components
    are not.

    Neither the covariance nor the mean of J^T J is formed: the values are squares of the singular
    values of a product of two triangular factors, right to ε times the condition number of R.

    Args:
        activations: (N, D) h.
        jacobians: (N, K, D), as from `output_jacobians`.
        centre: whether the mean of h is taken off; without, "covariance" is E[h h^T].
        tolerance: Principal components of a standard deviation below this times the largest
            are dropped. By default ε times the longer side: rounding alone.

    Raises:
        ValueError: shapes that do not fit.

    References:
        Bushnaq et al. 2024, arXiv:2405.10927 (which scales the coordinates otherwise).

    Example:
        Variances 4 and 1, squared derivatives 1 and 9: values 4 and 9.

        >>> h = jnp.array([[2.0, 1.0], [2.0, -1.0], [-2.0, 1.0], [-2.0, -1.0]])
        >>> basis = interaction_basis(h, jnp.tile(jnp.diag(jnp.array([1.0, 3.0])), (4, 1, 1)))
        >>> print(basis.values.round(3))
        [9. 4.]
    """
    arguments.shapes("N D, N K D", activations=activations, jacobians=jacobians)
    arguments.not_negative(tolerance=0 if tolerance is None else tolerance)
    activations, jacobians = jnp.asarray(activations), jnp.asarray(jacobians)
    num_samples, dim = activations.shape
    mean = jnp.mean(activations, axis=0) if centre else jnp.zeros(dim, activations.dtype)
    root = 1 / num_samples**0.5
    _, spread, components = jnp.linalg.svd(_triangle(root * (activations - mean)))
    default = max(num_samples, dim) * float(np.finfo(spread.dtype).eps)
    kept = spread > (default if tolerance is None else tolerance) * spread[0]
    unwhiten = components.T * jnp.where(kept, spread, 0)  # (D, D)
    slopes = _triangle(root * jacobians.reshape(-1, dim))
    _, singular, turn = jnp.linalg.svd(jnp.matmul(slopes, unwhiten, precision=HIGHEST))
    whiten = components / jnp.where(kept, spread, jnp.inf)[:, None]
    return InteractionBasis(
        singular**2,
        jnp.matmul(turn, whiten, precision=HIGHEST),
        jnp.matmul(unwhiten, turn.T, precision=HIGHEST),
        mean,
    )


def _triangle(rows: Array) -> Array:
    """Return R (D, D) with R^T R = rows^T rows."""
    missing = max(0, rows.shape[1] - len(rows))
    return jnp.linalg.qr(jnp.pad(rows, ((0, missing), (0, 0))), mode="r")
