"""Gradient descent on a two-layer linear network and one sample: two numbers say everything.

f = u·v / m, loss (f - y)²/2, and a learning rate η that is that of a unit: m times the one of the
mean over units. With e = f - y and λ = (|u|² + |v|²)/m, the curvature of the loss at e = 0 in
these units, one step is

    e' = (1 - η λ) e + η² e² f,        λ' = (1 + η² e²) λ - 4 η e f,

exactly, at every width and step size.
"""

from typing import Any, NamedTuple

import numpy as np

from dynamics import arguments


class Pair(NamedTuple):
    """All that descent sees of the weights."""

    output: Any  # f (...)
    curvature: Any  # λ (...), at least 2 |f|


def advance(state: Pair, learning_rate: Any, target: Any) -> Pair:
    """Return output and curvature after one step of gradient descent.

    Args:
        state: f and λ, any shape.
        learning_rate: η of a unit.
        target: y.

    References:
        Lewkowycz et al. 2020, arXiv:2003.02218, equations 3 and 4 (there for y = 0).

    Example:
        >>> advance(Pair(1.0, 2.0), 0.5, 0.0)
        Pair(output=0.25, curvature=0.5)
    """
    arguments.records(tuple, state=state)
    arguments.numbers(learning_rate=learning_rate, target=target)
    output, curvature = state
    step = learning_rate * (output - target)
    return Pair(
        output - step * curvature + step**2 * output,
        (1 + step**2) * curvature - 4 * step * output,
    )


def largest_constant_rate(curvature: Any) -> Any:
    """Return 4 / λ_0, the largest constant rate that trains a wide network.

    Above 2 / λ_0 the error grows until η² e² is of order one, when λ' - λ is
    η² e² (λ - 4 / η) for an output that dwarfs the target: the curvature falls below 2 / η and the
    run is caught if and only if η λ_0 < 4, up to terms of 1 / m.

    Raises:
        ValueError: `curvature` is not positive (a traced one is taken on trust).

    References:
        Lewkowycz et al. 2020, arXiv:2003.02218, section 2.

    Example:
        >>> print(largest_constant_rate(2.0))
        2.0
    """
    arguments.positive(curvature=curvature)
    return 4 / curvature


def largest_stable_rate(target: Any) -> Any:
    """Return 1 / |y|, the rate above which no solution f = y is stable, however it is reached.

    λ >= 2 |u·v| / m = 2 |y| at a solution, and stability asks for η λ < 2.

    Raises:
        ValueError: `target` is zero.

    Example:
        >>> print(largest_stable_rate(-0.1))
        10.0
    """
    arguments.numbers(target=target)
    if np.any(np.asarray(target) == 0):
        message = "target=0: there a solution of no curvature is stable at every rate"
        raise ValueError(message)
    return 1 / abs(target)
