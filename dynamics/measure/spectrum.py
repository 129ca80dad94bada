"""The density of a Hessian's eigenvalues, by stochastic Lanczos quadrature."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from dynamics import arguments
from dynamics.aliases import Array, Key, LossFn, Params
from dynamics.measure import batching, hessian_products, lanczos
from dynamics.measure.hessian_trace import TraceEstimate


class DensityEstimate(NamedTuple):
    """A smoothed density on a grid."""

    mean: Array  # (G,)
    standard_error: Array  # (G,) of the mean, from the spread of the probes


class SpectralDensity(NamedTuple):
    """A quadrature of the eigenvalue density for each of V random vectors.

    Each row stands for the density as point masses; its mean over rows has the first 2m - 1
    moments of the true density right, up to the noise of the probes.
    """

    nodes: Array  # (V, m) eigenvalues of the small matrices, ascending
    weights: Array  # (V, m) positive, each row sums to 1
    dimension: int  # P, of the Hessian

    def smooth(self, grid: Array, width: float) -> DensityEstimate:
        """Return the density (G,) convolved with a Gaussian of standard deviation `width`.

        It integrates to one. Peaks nearer than `width` merge; below the spacing of the nodes it
        shows the nodes and not the density.

        Args:
            grid: (G,) eigenvalues at which it is wanted.
            width: positive, in units of eigenvalues.

        Raises:
            ValueError: `width` is not positive.

        Example:
            >>> point = SpectralDensity(jnp.zeros((2, 1)), jnp.ones((2, 1)), 1)
            >>> print(point.smooth(jnp.array([0.0]), 1.0).mean.round(4))
            [0.3989]
        """
        arguments.shapes("G", grid=grid)
        arguments.scalars(width=width)
        if not isinstance(width, jax.core.Tracer) and not width > 0:
            message = f"width={width}: give a positive number, in units of eigenvalues"
            raise ValueError(message)
        height = lambda nodes: jax.scipy.stats.norm.pdf(grid[:, None], nodes, width)  # (G, m)
        each = jax.vmap(lambda nodes, weights: height(nodes) @ weights)(self.nodes, self.weights)
        return DensityEstimate(*_mean_and_error(each))

    def trace_of(self, function: Callable[[Array], Array]) -> TraceEstimate:
        """Return tr f(H) for a function of eigenvalues, for example `jnp.square`.

        The standard error is that of the probes; the quadrature adds none for polynomials of
        degree below 2m, and little where `function` is smooth.
        """
        arguments.functions(function=function)
        each = self.dimension * jnp.sum(self.weights * function(self.nodes), axis=1)
        return TraceEstimate(*_mean_and_error(each))


def spectral_density(
    loss_fn: LossFn,
    params: Params,
    *,
    key: Key,
    num_probes: int,
    num_iterations: int,
    data: Any = None,
    batch_size: int | None = None,
    reorthogonalise: bool = True,
) -> SpectralDensity:
    """Return the eigenvalue density of the Hessian of the loss at `params`.

    For each of V random vectors of norm 1, m Lanczos iterations give a quadrature of the
    density: its nodes are Ritz values, its weights squared first components.

    Args:
        loss_fn: `loss_fn(params)`, or `loss_fn(params, data)` if `data` is given.
        params: Any pytree of floating-point arrays, P entries in all.
        key: For the random vectors.
        num_probes: V, at least 2: the spread between them is the error.
        num_iterations: m, 1 to P, each a Hessian-vector product. The bulk is resolved to about
            its width over m.
        data: A pytree of arrays with one common leading axis N.
        batch_size: Samples at a time, by default all; it need not divide N.
        reorthogonalise: Whether each new vector is made orthogonal to all before it, which holds
            m vectors in memory. Without, three are held and outliers come back as copies of
            themselves: their weights still add up, so the density holds, and the number of
            outliers does not.

    Raises:
        ValueError: `num_probes` or `num_iterations` out of range, or as in
            `hessian_vector_product`.
        TypeError: a leaf of `params` is not of floating-point type.

    References: Lin, Saad and Yang 2016, arXiv:1308.5467; Ghorbani, Krishnan and Xiao 2019,
        arXiv:1901.10159.

    Example:
        >>> bowl = lambda p: p[0] ** 2 + 3 * p[1] ** 2
        >>> options = dict(key=jax.random.key(0), num_probes=2, num_iterations=2)
        >>> spectral_density(bowl, jnp.ones(2), **options).trace_of(lambda eigenvalue: eigenvalue)
        ... # doctest: +ELLIPSIS
        TraceEstimate(mean=Array(...
    """
    arguments.functions(loss_fn=loss_fn)
    params = batching.checked_params(params)
    arguments.keys(key=key)
    arguments.integers(num_probes=num_probes, num_iterations=num_iterations)
    flat, unravel = ravel_pytree(params)
    if num_probes < 2:
        message = f"num_probes={num_probes}: give at least 2, or there is no spread to judge by"
        raise ValueError(message)
    if not 1 <= num_iterations <= flat.size:
        message = f"num_iterations={num_iterations}: give 1 to the {flat.size} parameters"
        raise ValueError(message)
    product = hessian_products.hessian_vector_product(loss_fn, params, data, batch_size)
    matvec = lambda vector: ravel_pytree(product(unravel(vector)))[0]

    def quadrature(probe_key: Key) -> tuple[Array, Array]:
        start_key, restart_key = jax.random.split(probe_key)
        start = jax.random.normal(start_key, flat.shape, flat.dtype)
        start = start / jnp.linalg.norm(start)
        if reorthogonalise:
            options = dict(key=restart_key, num_iterations=num_iterations)
            diagonal, off = lanczos.tridiagonalise(matvec, start, **options)[1:]
        else:
            diagonal, off = lanczos.three_term(matvec, start, num_iterations=num_iterations)
        nodes, vectors = jnp.linalg.eigh(lanczos.as_matrix(diagonal, off))
        return nodes, vectors[0] ** 2

    nodes, weights = jax.lax.map(quadrature, jax.random.split(key, num_probes))
    hessian_products.checked_finite(nodes, loss_fn, params, data, batch_size)
    return SpectralDensity(nodes, weights, flat.size)


def _mean_and_error(each: Array) -> tuple[Array, Array]:
    """Return mean and standard error over the leading axis."""
    return jnp.mean(each, axis=0), jnp.std(each, axis=0, ddof=1) / len(each) ** 0.5
