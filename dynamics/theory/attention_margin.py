"""Where the weights of softmax attention go as they grow: margins between tokens.

Training that selects one token o_i of each sequence ends, in direction, at the smallest weights W
whose scores x·W z part it from every other token t by a margin of one,

    minimise |W|  subject to  <(x_{i,o_i} - x_{i,t}) z_i^T, W> >= 1  for all i and t ≠ o_i,

in the Frobenius norm where W itself is trained and in the nuclear norm where factors K Q^T are
(Ataee Tarzanagh et al. 2023, arXiv:2308.16898, theorems 1 to 3).
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

from dynamics import arguments

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


class MarginSolution(NamedTuple):
    """The smallest weights with margin one, and how certain it is that none are smaller."""

    weights: FloatArray  # (D, E); the smallest margin is exactly one
    norm: float  # of the weights, in the norm that was minimised
    lower_bound: float  # on the norm of any weights with margin one, from a feasible dual point


def token_constraints(tokens: Any, queries: Any, selected: Any) -> FloatArray:
    """Return the matrices (N (T - 1), D, E) whose products with W are the margins of the tokens.

    Args:
        tokens: (N, T, D) the x_{i,t}.
        queries: (N, E) the z_i.
        selected: (N,) integers, the token o_i that sequence i selects.

    Raises:
        ValueError: shapes that do not fit, or a selected token that is not there.

    Example:
        >>> print(token_constraints([[[2.0], [1.0], [5.0]]], [[1.0, -1.0]], [2]).tolist())
        [[[3.0, -3.0]], [[4.0, -4.0]]]
    """
    arguments.shapes("N T D, N E, N", tokens=tokens, queries=queries, selected=selected)
    arguments.labels(np.shape(tokens)[1], **{"selected, of tokens": selected})
    tokens, queries = np.asarray(tokens, dtype=float), np.asarray(queries, dtype=float)
    selected = np.asarray(selected)
    rows = np.arange(len(tokens))
    gaps = tokens[rows, selected][:, None] - tokens  # (N, T, D)
    others = np.arange(tokens.shape[1]) != selected[:, None]
    return np.einsum("ntd,ne->ntde", gaps, queries)[others]


def frobenius_solution(constraints: Any) -> MarginSolution:
    """Return argmin |W|_F with <G_c, W> >= 1 for all constraints G (C, D, E).

    A least-distance problem, solved to rounding as non-negative least squares (Lawson and Hanson
    1974, chapter 23).

    Raises:
        ValueError: no weights meet all constraints, or `constraints` is not (C, D, E).

    Example:
        >>> solution = frobenius_solution([[[2.0, 0.0]], [[0.0, 0.5]]])
        >>> print(solution.weights.round(6).tolist())
        [[0.5, 2.0]]
    """
    constraints = _checked(constraints)
    weights, multipliers = _least_distance(constraints)
    dual = np.linalg.norm(np.tensordot(multipliers, constraints, axes=1))
    return MarginSolution(weights, float(np.linalg.norm(weights)), multipliers.sum() / dual)


def nuclear_solution(constraints: Any, *, tolerance: float = 1e-6) -> MarginSolution:
    """Return argmin |W|_* (the sum of singular values) with <G_c, W> >= 1 for all c.

    The dual is: maximise Σ λ_c with S = Σ λ_c G_c of spectral norm at most one and λ >= 0. Newton's
    method follows its central path, the maxima of τ Σ λ + log det(I - S S^T) + Σ log λ, where
    W = 2 (I - S S^T)^{-1} S / τ meets all constraints and is off the optimum by less than
    (C + D + E) / τ (Boyd and Vandenberghe 2004, chapter 11).

    Args:
        constraints: (C, D, E), up to a few hundred of them.
        tolerance: Relative gap between norm and lower bound at which to stop. Below 1e-7
            Newton's equations may be too ill-conditioned to reach it.

    Raises:
        ValueError: as `frobenius_solution`, or the gap stays wider than `tolerance`.

    Example:
        >>> solution = nuclear_solution([[[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]]])
        >>> print(round(solution.norm, 6), round(solution.lower_bound, 6))
        1.0 1.0
    """
    arguments.positive(tolerance=tolerance)
    constraints = _checked(constraints)
    _least_distance(constraints)  # refuses constraints that nothing meets
    scale = np.linalg.norm(constraints, axis=(1, 2)).max()
    matrices = constraints / scale
    multipliers = np.full(len(matrices), 0.5 / len(matrices))  # inside: the norms are at most 1
    sharpness = float(len(matrices))  # τ
    for _ in range(20):
        multipliers, resolvent = _central_point(matrices, multipliers, sharpness)
        total = np.tensordot(multipliers, matrices, axes=1)  # S
        weights = resolvent @ total
        margin = np.tensordot(matrices, weights, axes=2).min()
        norm = np.linalg.norm(weights, ord="nuc") / margin
        bound = multipliers.sum() / np.linalg.norm(total, ord=2)
        if margin > 0 and norm - bound <= tolerance * bound:
            solution = weights / (margin * scale)
            return MarginSolution(solution, float(norm / scale), float(bound / scale))
        sharpness *= 5
    message = f"tolerance={tolerance}: norm {norm} and bound {bound} came no nearer; raise it"
    raise ValueError(message)


def _central_point(
    matrices: FloatArray, multipliers: FloatArray, sharpness: float
) -> tuple[FloatArray, FloatArray]:
    """Return the maximum λ of τ Σ λ + log det(I - S S^T) + Σ log λ, and (I - S S^T)^{-1}."""

    def barrier(multipliers: FloatArray) -> float:
        total = np.tensordot(multipliers, matrices, axes=1)
        slack = 1 - np.linalg.svd(total, compute_uv=False) ** 2
        if multipliers.min() <= 0 or slack.min() <= 0:
            return -np.inf
        return float(
            sharpness * multipliers.sum() + np.log(slack).sum() + np.log(multipliers).sum()
        )

    identity = np.eye(matrices.shape[1])
    for _ in range(100):  # ten are usual
        total = np.tensordot(multipliers, matrices, axes=1)  # S
        resolvent = np.asarray(np.linalg.inv(identity - total @ total.T), np.float64)
        pulled = resolvent @ total
        gradient = sharpness - 2 * np.tensordot(matrices, pulled, axes=2) + 1 / multipliers
        right = np.eye(total.shape[1]) + total.T @ pulled  # (I - S^T S)^{-1}
        curved = resolvent @ matrices @ right + pulled @ matrices.swapaxes(1, 2) @ pulled
        hessian = 2 * np.tensordot(matrices, curved, axes=((1, 2), (1, 2)))
        step = np.linalg.solve(hessian + np.diag(multipliers**-2.0), gradient)
        decrement, here, length = gradient @ step, barrier(multipliers), 1.0
        if decrement < 1e-22:
            break
        while barrier(multipliers + length * step) < here + 0.1 * length * decrement:
            length /= 2
            if length < 1e-6:  # rounding: as near as it gets
                return multipliers, resolvent
        multipliers = multipliers + length * step
    return multipliers, resolvent


def _least_distance(constraints: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the weights of least Frobenius norm and the multipliers λ (C,), W ∝ Σ λ_c G_c."""
    num, *shape = constraints.shape
    scale = np.abs(constraints).max()
    matrix = np.vstack([constraints.reshape(num, -1).T / scale, np.ones(num)])
    target = np.append(np.zeros(len(matrix) - 1), 1.0)
    multipliers, _ = optimize.nnls(matrix, target, maxiter=30 * num)
    residual = target - matrix @ multipliers
    if residual[-1] < 1e-10:
        message = f"constraints: no weights meet all {num}; the selected tokens cannot be parted"
        raise ValueError(message)
    weights = -residual[:-1].reshape(shape)
    return weights / np.tensordot(constraints, weights, axes=2).min(), multipliers


def _checked(constraints: Any) -> FloatArray:
    arguments.shapes("C D E", constraints=constraints)
    arguments.finite(constraints=constraints)
    return np.asarray(constraints, dtype=float)
