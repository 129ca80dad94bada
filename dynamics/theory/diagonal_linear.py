"""Diagonal linear networks β = w+² - w-² in closed form: curvature, and what regularisation keeps.

With g the gradient of half the mean squared error to β and g' the same gradient at
θ + ε ∇L, gradient regularisation of strength γ moves log w+ and log w- at the rates -(4γ g g' + s)
and -(4γ g g' - s), s = 2 g + (2γ/ε)(g' - g), coordinate by coordinate. So at small learning rates

    log w+ w- falls by 8γ ∫ g g' dt,   log w+/w- = -2 ∫ s dt stays in the row space of the inputs,

and the fit that is reached is the one of least hyperbolic entropy whose scale, α² = w+ w- at each
coordinate, is what the regularisation has left of the first. In steps of η, exactly,

    w+ w- is multiplied by (1 - 4 η γ g g')² - η² s².

The flow runs on the host in float64.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.integrate

from dynamics import arguments

FloatArray = Any  # a NumPy array of float64


class RegularisedFlow(NamedTuple):
    """Where gradient flow with gradient regularisation is at its end; M networks."""

    log_scale: FloatArray  # (M, D) log w+ w-
    coefficients: FloatArray  # (M, D) β
    dual: FloatArray  # (M, N) ν, with log w+/w- = X^T ν


def hessian_trace(positive: Any, negative: Any, inputs: Any) -> Any:
    """Return the trace of the Hessian of half the mean squared error, 4 Σ (w+² + w-²) mean x².

    Everywhere, not only where the loss is zero: the terms with residuals are opposite for w+ and
    w-. It is 4 Σ |β| mean x² or more.

    Args:
        positive: w+, (..., D).
        negative: w-, (..., D).
        inputs: (N, D).

    Reference: Wu and Su 2023, arXiv:2305.17490, for products a b.

    Example:
        >>> print(hessian_trace(np.ones(2), np.zeros(2), np.array([[1.0, 2.0]])))
        20.0
    """
    arguments.shapes("... D, ... D, N D", positive=positive, negative=negative, inputs=inputs)
    return 4 * ((positive**2 + negative**2) * (inputs**2).mean(axis=0)).sum(axis=-1)


def output_gradients(positive: Any, negative: Any, inputs: Any) -> FloatArray:
    """Return the gradients of the outputs to (w+, w-), (..., N, 2 D), on the host.

    Where the loss is zero its Hessian is the mean of their squares g g^T.

    Args:
        positive: w+, (..., D).
        negative: w-, (..., D).
        inputs: (N, D).

    Example:
        >>> print(output_gradients(np.ones(1), 3 * np.ones(1), np.array([[1.0], [2.0]])))
        [[  2.  -6.]
         [  4. -12.]]
    """
    arguments.shapes("... D, ... D, N D", positive=positive, negative=negative, inputs=inputs)
    if np.shape(positive) != np.shape(negative):
        message = f"positive {np.shape(positive)}, negative {np.shape(negative)}: give one shape"
        raise ValueError(message)
    positive, negative, inputs = (np.asarray(a, np.float64) for a in (positive, negative, inputs))
    halves = positive[..., None, :] * inputs, -negative[..., None, :] * inputs
    return 2 * np.concatenate(halves, axis=-1)


def product_factor(
    gradient: Any, ahead: Any, *, learning_rate: Any, strength: Any, finite_step: Any
) -> Any:
    """Return what one step multiplies w+ w- with: (1 - 4 η γ g g')² - η² s², exactly.

    Args:
        gradient: g to β before the step, (..., D).
        ahead: g' at θ + ε ∇L.
        learning_rate: η.
        strength: γ.
        finite_step: ε, not zero.

    Reference: derived here from Karakida et al. 2023, arXiv:2210.02720; without
    regularisation, Even et al. 2023, arXiv:2302.08982.

    Example:
        >>> product_factor(1.0, 1.0, learning_rate=0.5, strength=0.25, finite_step=1.0)
        -0.75
    """
    arguments.numbers(gradient=gradient, ahead=ahead, learning_rate=learning_rate)
    arguments.numbers(strength=strength, finite_step=finite_step)
    if not isinstance(finite_step, jax.core.Tracer) and not np.all(np.asarray(finite_step) != 0):
        message = f"finite_step={finite_step}: give a number that is not zero"
        raise ValueError(message)
    slope = 2 * gradient + 2 * strength / finite_step * (ahead - gradient)  # s
    shrink = 1 - 4 * learning_rate * strength * gradient * ahead
    return shrink**2 - (learning_rate * slope) ** 2


def regularised_flow(
    inputs: Any,
    targets: Any,
    *,
    scale: Any,
    strength: Any,
    finite_step: Any,
    horizon: float,
    tolerance: float = 1e-10,
) -> RegularisedFlow:
    """Return the end of gradient flow with gradient regularisation from w+ = w- = α.

    Solved in N + D numbers, the dual ν and log w+ w-, not in the weights, of which there are 2 D.

    Args:
        inputs: (M, N, D).
        targets: (M, N).
        scale: α, (M,) or scalar.
        strength: γ, likewise.
        finite_step: ε, likewise; zero is the penalty (γ/2)|∇L|² itself.
        horizon: Time, that is learning rate x steps.
        tolerance: Error of a step of the solver, absolute and relative.

    Raises:
        ValueError: shapes that do not fit, or the solver gave up.

    Reference: derived in this module's docstring; γ = 0 is Woodworth et al. 2020, arXiv:2002.09277.

    Example:
        >>> found = regularised_flow(np.ones((1, 1, 1)), np.ones((1, 1)), scale=0.5, strength=0.0,
        ...                          finite_step=0.0, horizon=20.0)
        >>> print(found.coefficients.round(6), found.log_scale.round(6))
        [[1.]] [[-1.386294]]
    """
    arguments.shapes("M N D, M N", inputs=inputs, targets=targets)
    arguments.finite(inputs=inputs, targets=targets, strength=strength, finite_step=finite_step)
    arguments.not_negative(strength=strength)
    arguments.positive(scale=scale, horizon=horizon, tolerance=tolerance)
    arguments.finite(scale=scale, horizon=horizon, tolerance=tolerance)
    inputs, targets = np.asarray(inputs, np.float64), np.asarray(targets, np.float64)
    count, num_samples, dim = inputs.shape
    column = lambda value: np.broadcast_to(np.asarray(value, np.float64), (count,))[:, None]
    strength, finite_step = column(strength), column(finite_step)
    turned = np.ascontiguousarray(inputs.swapaxes(1, 2))
    forward = lambda vectors: (inputs @ vectors[:, :, None])[:, :, 0] / num_samples
    backward = lambda vectors: (turned @ vectors[:, :, None])[:, :, 0]

    def coefficients(state: FloatArray) -> tuple[FloatArray, ...]:
        dual, log_scale = state[:, :num_samples], state[:, num_samples:]
        ratio = backward(dual)  # log w+/w-
        product = np.exp(log_scale)
        return 2 * product * np.sinh(ratio), 2 * product * np.cosh(ratio)  # w+² ∓ w-²

    def rates(time: float, flat: FloatArray) -> FloatArray:
        difference, total = coefficients(flat.reshape(count, -1))
        residual = forward(difference) - targets / num_samples
        gradient = backward(residual)
        # (β' - β) / ε, β' the coefficients at θ + ε ∇L
        moved = 4 * gradient * total + 4 * finite_step * gradient**2 * difference
        further = forward(moved)
        ahead = gradient + finite_step * backward(further)
        dual_rate = -4 * (residual + strength * further)
        return np.concatenate([dual_rate, -8 * strength * gradient * ahead], axis=1).ravel()

    start = np.concatenate(
        [np.zeros((count, num_samples)), np.repeat(2 * np.log(column(scale)), dim, axis=1)], axis=1
    )
    solution = scipy.integrate.solve_ivp(
        rates, (0.0, horizon), start.ravel(), method="DOP853", t_eval=[horizon], rtol=tolerance,
        atol=tolerance,
    )  # fmt: skip
    if not solution.success:
        message = f"horizon={horizon}: {solution.message} Lower strength or finite_step."
        raise ValueError(message)
    state = solution.y[:, -1].reshape(count, -1)
    return RegularisedFlow(state[:, num_samples:], coefficients(state)[0], state[:, :num_samples])


def outside_row_space(log_ratio: Any, inputs: Any) -> FloatArray:
    """Return the share of log w+/w- that no combination of the inputs makes, |rest| / |all|.

    Zero for fits of least hyperbolic entropy: the condition of Karush, Kuhn and Tucker.

    Args:
        log_ratio: (D,) log w+/w-, that is arcsinh(β / 2α²) with α² = w+ w-.
        inputs: (N, D).

    Example:
        >>> print(outside_row_space(np.array([3.0, 4.0]), np.array([[1.0, 0.0]])))
        0.8
    """
    arguments.shapes("D, N D", log_ratio=log_ratio, inputs=inputs)
    arguments.finite(log_ratio=log_ratio, inputs=inputs)
    log_ratio, inputs = np.asarray(log_ratio, np.float64), np.asarray(inputs, np.float64)
    combined = np.linalg.lstsq(inputs.T, log_ratio, rcond=None)[0]
    return np.linalg.norm(log_ratio - combined @ inputs) / np.linalg.norm(log_ratio)
