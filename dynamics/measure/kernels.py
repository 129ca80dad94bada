"""Tangent kernels of a network as it is: the empirical NTK, its spectrum and how it moves.

Every kernel here is the Gram matrix of Jacobian rows, J J^T, one row per sample and output, with
no 1/N. A network is a function of one sample: rows are computed on batches of one, so a layer
that mixes the samples of a batch must be frozen first (`models.adapters` does so). How a kernel
moves along training comes out of `trajectory.record` by way of `kernel_summary`; the top of the
spectrum of a kernel too large to hold, by `top_ntk_eigenpairs`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import ApplyFn, Array, Params
from dynamics.measure import gram, jacobian_rows, kernel_statistics, ntk_products
from dynamics.measure import ntk_cost as ntk_costs

ntk_spectrum = kernel_statistics.ntk_spectrum
kernel_target_alignment = kernel_statistics.kernel_target_alignment
relative_change = kernel_statistics.relative_change
effective_rank = kernel_statistics.effective_rank
kernel_summary = kernel_statistics.kernel_summary
ntk_cost = ntk_costs.ntk_cost
ntk_vector_product = ntk_products.ntk_vector_product
top_ntk_eigenpairs = ntk_products.top_ntk_eigenpairs


def empirical_ntk(
    apply_fn: ApplyFn,
    params: Params,
    x1: Array,
    x2: Array | None = None,
    *,
    outputs: str = "mean",
    batch_size: int | None = None,
) -> Array:
    r"""Return the empirical neural tangent kernel Θ, (N1, N2) or (N1, N2, K, K).

    Θ_kl(x, x') = Σ_p ∂f_k(x)/∂θ_p ∂f_l(x')/∂θ_p over all parameters p. With `outputs="mean"` the
    result is (1/K) Σ_k Θ_kk, which for one output is J J^T itself.

    Each leaf is contracted in the way that costs least: the matrix of a dense layer on one vector
    through its factors, (h·h')(δ·δ'), so that a wide network costs no more than its activations; a
    matrix along a sequence and a convolution through all pairs of positions or through rows formed
    by matrix products; the rest by Jacobian rows. Where outputs are many and parameters few the
    kernel is made of NTK-vector products instead. `ntk_cost` tells beforehand what is taken and
    what it costs. The kernel is written tile by tile, and with `x2` left out only the tiles on
    and above the diagonal are computed: the result is exactly symmetric. It works under `jax.jit`
    and under `jax.vmap` over `params` (an ensemble's kernels at once); wrap it in `jax.jit` where
    it is called often. Over several devices: `parallel.kernel_blocks`.

    Args:
        apply_fn: `apply_fn(params, x (N, ...)) -> (N, K)`, or (N,) for one output.
        params: Any pytree of floating-point arrays; None leaves are passed on.
        x1: (N1, ...) samples.
        x2: (N2, ...) samples; the same as `x1` when None.
        outputs: "mean" or "full".
        batch_size: Samples in a block of Jacobian rows; it need not divide N1 or N2. Two blocks
            are held at once, and rows are computed again for each pair of blocks. The default
            keeps a block under 2**26 entries (256 MB in single precision), at least one sample.

    Raises:
        ValueError: an empty or mismatched batch, `batch_size` below 1, an unknown `outputs`, or
            an `apply_fn` whose output is not (N, K).
        TypeError: a leaf of `params` is not of floating-point type.

    Reference: Jacot et al. 2018, arXiv:1806.07572, eq. (4); Novak et al. 2022, arXiv:2206.08720,
    section 3, for the factors.

    Example:
        >>> linear = lambda params, x: x @ params
        >>> x = jnp.array([[1.0, 2.0], [0.0, 3.0]])
        >>> print(empirical_ntk(linear, jnp.ones((2, 1)), x))
        [[5. 6.]
         [6. 9.]]
    """
    return _kernels(apply_fn, params, x1, x2, outputs, batch_size, total=True)


def layerwise_ntk(
    apply_fn: ApplyFn,
    params: Params,
    x1: Array,
    x2: Array | None = None,
    *,
    outputs: str = "mean",
    batch_size: int | None = None,
) -> Params:
    """Return the part of the NTK that comes from each leaf: a pytree like `params`.

    Each leaf is (N1, N2), or (N1, N2, K, K) with `outputs="full"`; their sum is the
    `empirical_ntk`, whose arguments and errors these are.

    Example:
        >>> affine = lambda params, x: x * params["slope"] + params["offset"]
        >>> params = {"slope": jnp.ones(1), "offset": jnp.ones(1)}
        >>> kernels = layerwise_ntk(affine, params, jnp.array([[1.0], [2.0]]))
        >>> print(kernels["slope"][1], kernels["offset"][1])
        [2. 4.] [1. 1.]
    """
    return _kernels(apply_fn, params, x1, x2, outputs, batch_size, total=False)


def linearise(apply_fn: ApplyFn, params: Params) -> ApplyFn:
    """Return `f_lin(params, x)`, the network made linear in its parameters around `params`.

    f_lin(θ, x) = f(θ0, x) + J(x) (θ - θ0): its tangent kernel is that of the network at θ0 and
    never moves. One forward-mode pass a call; training it costs about as much as the network.

    Args:
        apply_fn: `apply_fn(params, x) -> outputs`.
        params: θ0, any pytree of floating-point arrays.

    Raises:
        TypeError: a leaf of `params` is not of floating-point type.

    Reference: Lee et al. 2019, arXiv:1902.06720, eq. (7).

    Example:
        >>> cubic = lambda params, x: x * params**3
        >>> print(linearise(cubic, 1.0)(2.0, jnp.array([1.0, 10.0])))
        [ 4. 40.]
    """
    arguments.functions(apply_fn=apply_fn)
    gram.check_params(params)
    origin = jax.tree.map(jnp.asarray, params)

    def linear_apply(params: Params, x: Array) -> Array:
        direction = jax.tree.map(lambda leaf, at: (leaf - at).astype(at.dtype), params, origin)
        value, change = jax.jvp(lambda at: apply_fn(at, x), (origin,), (direction,))
        return value + change

    return linear_apply


def _kernels(
    apply_fn: ApplyFn,
    params: Params,
    x1: Array,
    x2: Array | None,
    outputs: str,
    batch_size: int | None,
    total: bool,
) -> Any:
    """The kernel of each leaf, or their sum, by blocks of rows."""
    arguments.functions(apply_fn=apply_fn)
    params, x1, x2 = gram.checked(params, x1, x2, outputs)
    plan = jacobian_rows.plan(apply_fn, params, x1, x2, outputs)
    size = gram.checked_batch_size(batch_size, plan.entries)
    if total:
        num_others = len(x1 if x2 is None else x2)
        path = ntk_costs.chosen(plan, len(x1), num_others, x2 is None, outputs)
        if path == ntk_costs.PRODUCTS:
            size = ntk_costs.products_batch_size(batch_size, plan)
            return ntk_products.kernel(plan, x1, x2, outputs=outputs, batch_size=size)
    found = gram.kernels(plan, x1, x2, outputs=outputs, batch_size=size, total=total)
    return found[0] if total else jax.tree.unflatten(jax.tree.structure(params), found)
