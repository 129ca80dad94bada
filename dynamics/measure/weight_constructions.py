"""Weights of linear self-attention that run a known algorithm on the examples in their context.

Every construction is exact: the stack computes what the algorithm computes, to rounding. Run them
with `linear_attention.attention_stack` (tokens) or `gram_stack` (Gram matrices).
"""

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array, LinearAttentionWeights


def gradient_descent_construction(
    dim: int, learning_rate: Any, num_context: int, *, start: Array | None = None
) -> LinearAttentionWeights:
    """Return the layer that makes one step of gradient descent on (1/2N) sum (w·x_i - y_i)².

    Tokens (x_j, y_j), the query with -w0·x in the place of y. The step w0 + Δw takes y_j to
    y_j - Δw·x_j, and the prediction is minus the label slot of the query. The slots then hold
    residuals: further layers take `start=None` and are further steps.

    Args:
        dim: d of the inputs; tokens have d + 1 entries.
        learning_rate: η of the mean over the context.
        num_context: N.
        start: w0 (d,) before the step; zero when None.

    Returns:
        Matrices (d + 1, d + 1) of one head.

    Raises:
        ValueError: `dim` or `num_context` below 1, or `start` of another shape.

    References:
        von Oswald et al. 2023, arXiv:2212.07677, proposition 1.

    Example:
        >>> weights = gradient_descent_construction(1, learning_rate=0.5, num_context=2)
        >>> print(weights.projection @ weights.value)
        [[ 0.    0.  ]
         [ 0.   -0.25]]
    """
    arguments.counts(dim=dim, num_context=num_context)
    arguments.finite(learning_rate=learning_rate)
    arguments.numbers(learning_rate=learning_rate)
    arguments.numbers(start=0 if start is None else start)
    origin = jnp.zeros(dim) if start is None else jnp.asarray(start)
    if origin.shape != (dim,):
        message = f"start has shape {origin.shape}; give (dim,) = ({dim},)"
        raise ValueError(message)
    read = jnp.asarray(_reads_inputs(dim))  # keys and queries see x alone
    value = jnp.zeros_like(read).at[-1].set(jnp.append(origin, -1.0))  # w0·x - y
    return LinearAttentionWeights(
        read, read, value, jnp.asarray(learning_rate / num_context * np.eye(dim + 1))
    )


def gradient_descent_plus_plus_construction(
    dim: int, learning_rates: Any, input_rates: Any, num_context: int
) -> LinearAttentionWeights:
    """Return the stack of L steps of GD++: a descent on the labels, x ← (I - γ S) x on the inputs.

    With S = (1/N) sum x_i x_i^T of the inputs as they are in that layer; the query's input changes
    too. Zero input rates leave plain gradient descent.

    Args:
        dim: d of the inputs; tokens have d + 1 entries, the query 0 in the place of y.
        learning_rates: η (L,), one a layer.
        input_rates: γ (L,).
        num_context: N.

    Returns:
        Matrices (L, d + 1, d + 1).

    Raises:
        ValueError: `dim` or `num_context` below 1, or rates that are not of one shape (L,).

    References:
        von Oswald et al. 2023, arXiv:2212.07677, section 4 and appendix A.10.

    Example:
        >>> stack = gradient_descent_plus_plus_construction(1, [0.5], [0.1], num_context=1)
        >>> print((stack.projection @ stack.value)[0])
        [[-0.1  0. ]
         [ 0.  -0.5]]
    """
    arguments.counts(dim=dim, num_context=num_context)
    arguments.numbers(learning_rates=learning_rates, input_rates=input_rates)
    eta, gamma = jnp.asarray(learning_rates), jnp.asarray(input_rates)
    if eta.ndim != 1 or eta.shape != gamma.shape or eta.size == 0:
        message = (
            f"learning_rates has shape {eta.shape} and input_rates {gamma.shape}: give one number "
            "a layer in each, (L,)"
        )
        raise ValueError(message)
    rates = jnp.concatenate([jnp.repeat(gamma[:, None], dim, axis=1), eta[:, None]], axis=1)
    projection = -rates[:, :, None] / num_context * np.eye(dim + 1)
    layers = lambda matrix: jnp.asarray(np.broadcast_to(matrix, projection.shape))
    read = layers(_reads_inputs(dim))
    return LinearAttentionWeights(read, read, layers(np.eye(dim + 1)), projection)


def newton_construction(
    dim: int,
    num_iterations: int,
    start_scale: Any,
    *,
    start: Literal["identity", "gram"] = "identity",
) -> LinearAttentionWeights:
    """Return 2k + 3 layers that make k steps M ← 2M - M S M towards the inverse of S.

    S = sum x_i x_i^T is the sum over the context, and the prediction x·M_k X^T y goes to that of
    least squares. Blocks of a token: x, y, m, p, u, q, o (see `newton_tokens`). d memory tokens
    hold the columns of M in m. One layer writes M_0; in each iteration one layer makes u = S m and
    one m ← 2m - M u, u ← 0 with three heads; two layers read the answer out.

    Args:
        dim: d of the inputs; tokens have 5 d + 2 entries.
        num_iterations: k, 0 or more.
        start_scale: a. It converges for a < 2 / |S| from the identity, a < 2 / |S|² from S.
        start: M_0 = a I or a S. From S it takes twice as many iterations where they are many.

    Returns:
        Matrices (2k + 3, 3, d, 5 d + 2); projection (2k + 3, 3, 5 d + 2, d).

    Raises:
        ValueError: `dim` below 1, `num_iterations` below 0, or an unknown `start`.

    References:
        Fu et al. 2023, arXiv:2310.17086 (O(k) layers, with other parts than linear attention);
        Giannou et al. 2024, arXiv:2403.03183 (two layers of linear attention an iteration). This
        stack and `short_newton_construction`, of one layer an iteration, were derived here.

    Example:
        >>> newton_construction(2, num_iterations=4, start_scale=0.1).query.shape
        (11, 3, 2, 12)
    """
    arguments.counts(dim=dim)
    arguments.integers(0, num_iterations=num_iterations)
    arguments.finite(start_scale=start_scale)
    arguments.numbers(start_scale=start_scale)
    arguments.choices(("identity", "gram"), start=start)
    block = _newton_blocks(dim)
    x, y, m, p, u, q, o = (block[name] for name in "xympuqo")
    idle = (np.zeros_like(x),) * 3 + (np.zeros_like(x.T),)

    def head(query: Any, key: Any, value: Any, into: Any, scale: Any = 1.0) -> tuple[Any, ...]:
        return query, key, value, scale * into.T

    first = head(p, p, p, m, start_scale) if start == "identity" else head(p, x, x, m, start_scale)
    iteration = (
        (head(m, x, x, u),),
        (head(p, p, m, m), head(u, p, m, m, -1.0), head(p, p, u, u, -1.0)),
    )
    read_out = (head(q, p, m, u),), (head(u, x, y, o),)
    layers = [
        (*heads, *[idle] * (3 - len(heads)))
        for heads in ((first,), *iteration * num_iterations, *read_out)
    ]
    query, key, value = (
        jnp.asarray(np.array([[one[i] for one in heads] for heads in layers])) for i in range(3)
    )
    into = jnp.asarray([[one[3] for one in heads] for heads in layers])
    return LinearAttentionWeights(query, key, value, into)


def newton_tokens(inputs: Array, targets: Array, query: Array) -> Array:
    """Return the tokens (..., N + d + 1, 5 d + 2) that `newton_construction` works on.

    Context tokens hold (x, y), the d memory tokens unit vectors in p, the query, last, its input
    in q. Keys and values are all but the last: `num_context` is N + d. The answer of the stack is
    `tokens[..., -1, -1]`, and M is `tokens[..., N:-1, d + 1 : 2 * d + 1]`, a row a memory token.

    Args:
        inputs: (..., N, d).
        targets: (..., N).
        query: (..., d).

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check_prompt(inputs, targets, query)
    *batch, _, dim = inputs.shape
    block = _newton_blocks(dim)
    context = inputs @ block["x"] + targets[..., None] @ block["y"][:1]
    memory = jnp.broadcast_to(jnp.asarray(block["p"]), (*batch, *block["p"].shape))
    return jnp.concatenate([context, memory, (query @ block["q"])[..., None, :]], axis=-2)


def short_newton_construction(
    dim: int, num_iterations: int, start_scale: Any
) -> LinearAttentionWeights:
    """Return k + 1 layers that make k steps M ← 2M - M S M, without any memory token.

    Each token carries z = M x / (a 2^k) beside its input, from z = x on; one layer is one
    iteration, z_j ← z_j - a 2^(k-1) sum_i z_i (x_i·z_j), since sum_i M x_i x_i^T M = M S M. The
    scale takes the place of the doubling, which attention by itself cannot do. One layer more
    reads the answer a 2^k sum_i y_i (x_i·z) out.

    Args:
        dim: d of the inputs; tokens have 2 d + 2 entries (see `short_newton_tokens`).
        num_iterations: k, 0 or more.
        start_scale: a of M_0 = a I; converges for a < 2 / |S|.

    Returns:
        Matrices (k + 1, d, 2 d + 2); projection (k + 1, 2 d + 2, d).

    Raises:
        ValueError: `dim` below 1 or `num_iterations` below 0.

    Example:
        >>> short_newton_construction(2, num_iterations=4, start_scale=0.1).query.shape
        (5, 2, 6)
    """
    arguments.counts(dim=dim)
    arguments.integers(0, num_iterations=num_iterations)
    arguments.finite(start_scale=start_scale)
    arguments.numbers(start_scale=start_scale)
    x, y, z, o = _blocks(dim, (dim, 1, dim, 1))
    scales = start_scale * 2.0 ** jnp.arange(num_iterations + 1)  # powers of two do not round
    into = jnp.asarray([*[-z.T / 2] * num_iterations, o.T])
    layers = lambda *matrices: jnp.asarray(np.array(matrices))
    return LinearAttentionWeights(
        layers(*[z] * (num_iterations + 1)),
        layers(*[x] * (num_iterations + 1)),
        layers(*[z] * num_iterations, y),
        scales[:, None, None] * into,
    )


def short_newton_tokens(inputs: Array, targets: Array, query: Array) -> Array:
    """Return the tokens (..., N + 1, 2 d + 2) of `short_newton_construction`: x, y, z, o.

    The answer of the stack is `tokens[..., -1, -1]`. Arguments and errors as `newton_tokens`.
    """
    _check_prompt(inputs, targets, query)
    x, y, z, _ = _blocks(inputs.shape[-1], (inputs.shape[-1], 1, inputs.shape[-1], 1))
    context = inputs @ (x + z) + targets[..., None] @ y[:1]
    return jnp.concatenate([context, (query @ z)[..., None, :]], axis=-2)


def _reads_inputs(dim: int) -> Any:
    return np.diag([1.0] * dim + [0.0])


def _newton_blocks(dim: int) -> dict[str, Any]:
    sizes = (dim, 1, dim, dim, dim, dim, 1)
    return dict(zip("xympuqo", _blocks(dim, sizes), strict=True))


def _blocks(dim: int, sizes: tuple[int, ...]) -> list[Any]:
    """Return for each block of a token the matrix (dim, D) that reads it, rows of zeros below."""
    starts = np.cumsum([0, *sizes])
    return [
        np.eye(dim, starts[-1], start) * (np.arange(dim) < size)[:, None]
        for start, size in zip(starts[:-1], sizes, strict=True)
    ]


def _check_prompt(inputs: Array, targets: Array, query: Array) -> None:
    arguments.shapes("... N d, ... N, ... d", inputs=inputs, targets=targets, query=query)
    batch, dim = inputs.shape[:-2], inputs.shape[-1]
    if targets.shape != inputs.shape[:-1] or query.shape != (*batch, dim):
        message = (
            f"inputs {inputs.shape}, targets {targets.shape}, query {query.shape}: give "
            "(..., N, d), (..., N), (..., d)"
        )
        raise ValueError(message)
