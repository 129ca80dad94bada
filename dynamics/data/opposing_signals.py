"""A signal, and two groups of outliers that share a large feature and pull on it either way."""

import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.data import teachers


def opposing_groups(
    signal: Array, outlier_variance: float, label: float = 1.0, agreement: float | Array = 0.0
) -> teachers.Regression:
    """Return 2d samples of a signal y = β·x and two outliers x_o = ±a of one label κa.

    The last input is x_o, 0 but in the outliers. The second moments over all samples are exact:
    E x x^T = I, E x_o² = α, E y x = β, and E y x_o = α κ `agreement`: 0 while both outliers have
    the label κa, which asks for a weight κ of the one and for -κ of the other.

    Args:
        signal: β (d,).
        outlier_variance: α, positive; the outliers have the size a = sqrt(α (d + 1)).
        label: κ.
        agreement: 0 for opposing groups, 1 for labels κ x_o, on which both groups agree.

    Returns:
        Inputs (2d + 2, d + 1), of which the last two are the outliers +a and -a; targets
        (2d + 2,); and as teacher the weights (d + 1,) of least squares, β and κ agreement.

    Raises:
        ValueError: `signal` is not (d,), or `outlier_variance` is not positive.

    References:
        Rosenfeld and Risteski 2024, arXiv:2311.04163, whose linear model has such a feature.

    Example:
        >>> data = opposing_groups(jnp.array([2.0]), outlier_variance=8.0)
        >>> print(data.inputs[-2:, -1], data.targets[-2:])
        [ 4. -4.] [4. 4.]
    """
    arguments.shapes("d", signal=signal)
    arguments.positive(outlier_variance=outlier_variance)
    arguments.finite(outlier_variance=outlier_variance)
    arguments.numbers(outlier_variance=outlier_variance, label=label, agreement=agreement)
    dim = len(signal)
    rows = np.eye(dim + 1) * (dim + 1) ** 0.5
    rows[-1] *= outlier_variance**0.5
    everything = np.stack([rows, -rows], axis=1).reshape(-1, dim + 1)  # pairs, outliers last
    inputs = jnp.asarray(everything, signal.dtype)
    feature = inputs[:, -1]
    pull = (1 - agreement) * jnp.abs(feature) + agreement * feature
    targets = inputs[:, :-1] @ signal + label * pull
    return teachers.Regression(inputs, targets, jnp.append(signal, label * agreement))
