"""Products with the matrices built from first derivatives: Gauss-Newton, Fisher, empirical Fisher.

Public under `measure.curvature`. They are positive semi-definite for convex output losses, and
agree with the Hessian where the residuals or the curvature of the network vanish.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import ApplyFn, Array, LossFn, Params
from dynamics.measure import batching

Matvec = batching.Matvec


def gauss_newton_vector_product(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    targets: Any,
    output_loss: Callable[[Array, Any], Array],
    *,
    batch_size: int | None = None,
) -> Matvec:
    """Return `matvec(v)`, the product J^T L J v with the generalised Gauss-Newton matrix.

    J is the Jacobian of the outputs by the parameters and L the Hessian of `output_loss` by the
    outputs: the Hessian of the loss of the linearised network.

    Args:
        apply_fn: `apply_fn(params, x (N, ...)) -> (N, K)`.
        params: Any pytree of floating-point arrays.
        x: (N, ...) samples.
        targets: A pytree of arrays with leading axis N, handed to `output_loss`.
        output_loss: `output_loss(outputs (N, K), targets) -> ()`, a mean over the N samples.
        batch_size: Samples at a time, by default all; it need not divide N.

    Raises:
        ValueError: as `curvature.hessian_vector_product`.
        TypeError: a leaf of `params` is not of floating-point type.

    Reference: Schraudolph 2002, "Fast curvature matrix-vector products".

    Example:
        >>> loss = lambda outputs, targets: jnp.mean((outputs - targets) ** 2) / 2
        >>> matvec = gauss_newton_vector_product(
        ...     lambda p, x: x * p**2, 1.0, jnp.ones((4, 1)), jnp.zeros((4, 1)), loss
        ... )
        >>> print(matvec(1.0))
        4.0
    """
    arguments.functions(apply_fn=apply_fn, output_loss=output_loss)
    params = batching.checked_params(params)
    arguments.samples(x=x)
    batches = batching.batches((x, targets), batch_size, "x and targets")
    whole_loss = lambda at, batch: output_loss(apply_fn(at, batch[0]), batch[1])
    batching.check_scalar(whole_loss, params, batches.first)

    def product(vector: Params) -> Params:
        def part(batch: Any) -> Params:
            outputs, push = jax.linearize(lambda at: apply_fn(at, batch[0]), params)
            gradient = jax.grad(lambda outputs: output_loss(outputs, batch[1]))
            curved = jax.jvp(gradient, (outputs,), (push(vector),))[1]
            return jax.linear_transpose(push, params)(curved)[0]

        return batches.mean(part)

    return batching.checked_matvec(product, params)


def fisher_vector_product(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    *,
    likelihood: str,
    batch_size: int | None = None,
) -> Matvec:
    """Return `matvec(v)`, the product F v with the Fisher information of the network's own labels.

    F = (1/N) Σ_n E_y[∇ log p(y|x_n) ∇ log p(y|x_n)^T] with y drawn from the network. For the two
    likelihoods here it equals the Gauss-Newton matrix of the mean negative log-likelihood.

    Args:
        apply_fn: `apply_fn(params, x (N, ...)) -> (N, K)`.
        params: Any pytree of floating-point arrays.
        x: (N, ...) samples.
        likelihood: "categorical" (outputs are logits) or "gaussian" (outputs are means, variance
            1 each).
        batch_size: Samples at a time, by default all; it need not divide N.

    Raises:
        ValueError: `likelihood` is unknown; otherwise as `curvature.hessian_vector_product`.
        TypeError: a leaf of `params` is not of floating-point type.

    Reference: Martens 2020, arXiv:1412.1193, sections 5 and 9.2.

    Example:
        >>> line = lambda slope, x: slope * x
        >>> x = jnp.array([[1.0], [3.0]])
        >>> print(fisher_vector_product(line, 0.0, x, likelihood="gaussian")(1.0))
        5.0
    """
    potentials = {
        "categorical": lambda outputs: jax.scipy.special.logsumexp(outputs, axis=-1),
        "gaussian": lambda outputs: jnp.sum(outputs**2, axis=-1) / 2,
    }
    arguments.choices(tuple(potentials), likelihood=likelihood)
    # The log-likelihood is linear in y, so its Hessian by the outputs is that of the potential.
    output_loss = lambda outputs, _: jnp.mean(potentials[likelihood](outputs))
    return gauss_newton_vector_product(
        apply_fn, params, x, None, output_loss, batch_size=batch_size
    )


def empirical_fisher_vector_product(
    loss_fn: LossFn, params: Params, data: Any, *, batch_size: int | None = None
) -> Matvec:
    """Return `matvec(v)`, the product (1/N) Σ_n g_n (g_n·v) with g_n the gradient on sample n.

    The gradients are uncentred second moments on the given labels: not the Fisher information.

    Args:
        loss_fn: `loss_fn(params, data)`, a mean over samples; g_n is its gradient on the batch
            that holds sample n alone.
        params: Any pytree of floating-point arrays.
        data: A pytree of arrays with one common leading axis N.
        batch_size: Samples at a time, by default all; it need not divide N.

    Raises:
        ValueError: `data` is None; otherwise as `curvature.hessian_vector_product`.
        TypeError: a leaf of `params` is not of floating-point type.

    Reference: Kunstner et al. 2019, arXiv:1905.12558, eq. (3).

    Example:
        >>> loss = lambda slope, data: jnp.mean(slope * data)
        >>> print(empirical_fisher_vector_product(loss, 0.0, jnp.array([1.0, 3.0]))(1.0))
        5.0
    """
    params, batches = batching.of_samples(loss_fn, params, data, batch_size)

    def product(vector: Params) -> Params:
        def part(batch: Any) -> Params:
            single = lambda at, sample: loss_fn(at, jax.tree.map(lambda leaf: leaf[None], sample))
            losses = lambda at: jax.vmap(single, in_axes=(None, 0))(at, batch)  # (b,)
            _, push = jax.linearize(losses, params)
            slopes = push(vector)
            return jax.linear_transpose(push, params)(slopes / slopes.size)[0]

        return batches.mean(part)

    return batching.checked_matvec(product, params)
