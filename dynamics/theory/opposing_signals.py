"""Gradient flow of a two-layer linear network on a signal and an opposing outlier feature.

f = c (b·x + b_o x_o) with E x x^T = I, E y x = β, E x_o² = α and E y x_o = 0, so the loss is

    L = |c b - β|²/2 + α (c b_o)²/2 + const.

The flow conserves Q = c² - |b|² - b_o², and c² - b_o² never falls. The curvature along b_o is α c².
"""

from typing import Any, NamedTuple

import numpy as np

from dynamics import arguments


class State(NamedTuple):
    """The weights of the network, at any number of times."""

    read_out: np.ndarray  # c (...)
    signal: np.ndarray  # b (..., d)
    outlier: np.ndarray  # b_o (...)


def conserved(state: State) -> np.ndarray:
    """Return Q = c² - |b|² - b_o² (...)."""
    arguments.records(State, state=state)
    return state.read_out**2 - np.sum(state.signal**2, axis=-1) - state.outlier**2


def flow(start: State, teacher: Any, outlier_variance: float, times: Any) -> State:
    """Return the weights at `times`, to first order in b_o.

    Without b_o, q = (b, c) obeys dq/dt = G q - |q|² q / 2 with G = [[-Q/2, β], [β^T, Q/2]]:

        q(t) = exp(G t) q(0) / sqrt(1 + ∫_0^t |exp(G s) q(0)|² ds),

    a Bernoulli equation, whatever the direction and size of b. Then b_o decays as
    exp(-α ∫ c²), and acts back in second order. For Q = 0 and b along β, c² follows the logistic
    |β| / (1 + (|β|/c_0² - 1) exp(-2 |β| t)).

    Args:
        start: The weights at time 0; c (), b (d,), b_o (), the last small.
        teacher: β (d,).
        outlier_variance: α.
        times: (T,) from 0 on.

    Raises:
        ValueError: `teacher` and the signal's weights differ in shape, or a time is negative.

    References:
        Derived here; Fukumizu 1998 and Dominé et al. 2024, arXiv:2409.14623, for its matrix form.

    Example:
        >>> end = flow(State(0.1, np.array([0.1, 0.0]), 0.0), [4.0, 0.0], 10.0, [20.0])
        >>> print(end.read_out**2)
        [4.]
    """
    arguments.records(State, start=start)
    arguments.shapes("d, d, T", start=start.signal, teacher=teacher, times=times)
    arguments.scalars(outlier_variance=outlier_variance)
    arguments.finite(teacher=teacher, outlier_variance=outlier_variance)
    beta, times = np.asarray(teacher, np.float64), np.asarray(times, np.float64)
    signal = np.asarray(start.signal, np.float64)
    if beta.shape != signal.shape or beta.ndim != 1:
        message = f"teacher: shape {beta.shape}; give that of the signal's weights, {signal.shape}"
        raise ValueError(message)
    if np.any(times < 0):
        message = f"times={times}: give times from 0 on"
        raise ValueError(message)
    c, outlier = float(start.read_out), float(start.outlier)
    half = (c**2 - signal @ signal) / 2
    generator = np.diag(np.append(np.full(len(beta), -half), half))
    generator[-1, :-1] = generator[:-1, -1] = beta
    rates, basis = np.linalg.eigh(generator)
    share = basis.T @ np.append(signal, c)
    # Everything is divided by exp(2 μ t), μ the largest rate, so that nothing overflows.
    top, t = rates[-1], times[:, None]
    square = np.where(rates == 0, 1, 2 * rates)
    grown = np.where(
        rates == 0,
        t * np.exp(-2 * top * t),
        (np.exp(2 * (rates - top) * t) - np.exp(-2 * top * t)) / square,
    )
    norm = np.exp(-2 * top * times) + grown @ share**2  # (T,)
    q = (np.exp((rates - top) * t) * share) @ basis.T / np.sqrt(norm)[:, None]
    # d log(1 + ∫)/dt = |q|², and |q|² = 2 c² - Q: so ∫ c² = (log(1 + ∫) + Q t)/2.
    travelled = (np.log(norm) + 2 * top * times) / 2 + half * times
    return State(q[:, -1], q[:, :-1], outlier * np.exp(-outlier_variance * travelled))


def hessian(state: State, teacher: Any, outlier_variance: float) -> np.ndarray:
    """Return the Hessian of the loss (..., d + 2, d + 2), in the order b, b_o, c.

    Raises:
        ValueError: `teacher` and the signal's weights differ in their last axis.

    Example:
        >>> at = State(np.array(2.0), np.array([1.0]), np.array(0.0))
        >>> print(np.diag(hessian(at, [2.0], 10.0)))
        [ 4. 40.  1.]
    """
    arguments.records(State, state=state)
    arguments.shapes("... d, ... d", state=state.signal, teacher=teacher)
    arguments.scalars(outlier_variance=outlier_variance)
    c, b, outlier = (np.asarray(a, np.float64) for a in state)
    beta = np.asarray(teacher, np.float64)
    dim = beta.shape[-1]
    if beta.shape not in ((b.shape[-1],), b.shape):  # one teacher, or one for each state
        message = f"teacher: shape {beta.shape}; the signal's weights are {b.shape}"
        raise ValueError(message)
    found = np.zeros((*c.shape, dim + 2, dim + 2))
    weights = np.append(np.ones(dim), outlier_variance)
    across = np.concatenate(
        [2 * c[..., None] * b - beta, 2 * outlier_variance * (c * outlier)[..., None]], -1
    )
    found[..., np.arange(dim + 1), np.arange(dim + 1)] = c[..., None] ** 2 * weights
    found[..., :-1, -1] = found[..., -1, :-1] = across
    found[..., -1, -1] = np.sum(b**2, axis=-1) + outlier_variance * outlier**2
    return found


def final_sharpness(conserved: Any, signal_norm: Any, outlier_variance: float) -> Any:
    """Return α c² = α (Q + sqrt(Q² + 4 |β|²))/2, the curvature along b_o where the flow ends.

    α |β| for balanced weights, Q = 0. It is the sharpness while it exceeds the largest eigenvalue
    of the signal's block, c² + |b|² = sqrt(Q² + 4 |β|²): for α above 2 where Q >= 0.

    Args:
        conserved: Q.
        signal_norm: |β|.
        outlier_variance: α.

    Raises:
        ValueError: `signal_norm` or `outlier_variance` is not positive.

    Example:
        >>> print(final_sharpness(0.0, 4.0, 10.0))
        40.0
    """
    arguments.numbers(conserved=conserved, signal_norm=signal_norm)
    arguments.scalars(outlier_variance=outlier_variance)
    if not (np.all(np.asarray(signal_norm) > 0) and outlier_variance > 0):
        message = f"signal_norm={signal_norm}, outlier_variance={outlier_variance}: give both > 0"
        raise ValueError(message)
    return outlier_variance * (conserved + np.sqrt(conserved**2 + 4 * signal_norm**2)) / 2


def antiphase_bound(label: float) -> float:
    """Return 2κ: group losses move in opposite directions while |u + u'| stays below it.

    u = c b_o is the network's slope along x_o, u' that of the next step, and the losses of the
    groups x_o = ±a of one label κa are a² (u ∓ κ)²/2. Their changes are
    a² (u' - u)(u' + u ∓ 2κ)/2: of opposite sign if and only if |u + u'| < 2κ.

    Raises:
        ValueError: `label` is not positive.
    """
    arguments.scalars(label=label)
    if not label > 0:
        message = f"label={label}: give a positive number"
        raise ValueError(message)
    return 2 * label
