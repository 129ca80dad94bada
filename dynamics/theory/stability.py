"""The curvature at which an optimiser's fixed step turns unstable on a quadratic."""

from dynamics import arguments
from dynamics.aliases import Array

OPTIMISERS = ("gradient descent", "momentum", "nesterov", "adam", "rmsprop")


def stability_threshold(
    optimiser: str, learning_rate: Array | float, momentum: Array | float = 0.0
) -> Array | float:
    """Return the largest eigenvalue on which a full-batch optimiser does not diverge.

    On λ x²/2 the step is a linear recursion; it turns unstable at -1, where steps alternate:
    gradient descent at 2/η, heavy-ball momentum at (2 + 2β)/η, Nesterov's at
    (2 + 2β)/((1 + 2β) η). Adam and RMSProp with slowly moving second moments are preconditioned
    descents, and λ is the preconditioned curvature: with Adam's running mean of gradients the
    threshold is (2 + 2β)/((1 - β) η), 38/η at β = 0.9, and RMSProp's is 2/η.

    Args:
        optimiser: one of "gradient descent", "momentum" (heavy ball, as `optax.sgd`), "nesterov",
            "adam" and "rmsprop".
        learning_rate: η, positive; any shape.
        momentum: β in [0, 1), Adam's b1; none for "gradient descent" and "rmsprop".

    Raises:
        ValueError: unknown `optimiser`, or momentum given to one that has none.

    References: Cohen et al. 2021, arXiv:2103.00065, appendix B; Cohen et al. 2022,
        arXiv:2207.14484, section 2.

    Example:
        >>> print(round(stability_threshold("adam", 1.0, 0.9), 6))
        38.0
    """
    arguments.choices(OPTIMISERS, optimiser=optimiser)
    arguments.positive(learning_rate=learning_rate)
    arguments.numbers(momentum=momentum)
    has_none = optimiser in ("gradient descent", "rmsprop")
    if (has_none and not isinstance(momentum, (int, float))) or (has_none and momentum != 0):
        message = f"momentum={momentum}: {optimiser} has none; leave it out"
        raise ValueError(message)
    top = 2 + 2 * momentum
    slowed = {"nesterov": 1 + 2 * momentum, "adam": 1 - momentum}.get(optimiser, 1.0)
    return top / (slowed * learning_rate)
