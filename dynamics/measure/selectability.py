"""Which keys of dot-product attention some query can select: the vertices of their convex hull."""

from typing import Any

import numpy as np
from scipy import spatial

from dynamics import arguments


def selectable(keys: Any, *, tolerance: float = 1e-9) -> np.ndarray:
    """Return (N,) whether some query gives the key a larger score than every other key.

    The score of a key is its product with the query, so these are the vertices of the convex
    hull, which Qhull finds within the span of the keys (after LayerNorm they lie in a hyperplane).
    Of several keys at one point, one counts.

    Args:
        keys: (N, D), N and D at least 1.
        tolerance: Directions in which the keys extend less than this, relative to the largest
            extent, are left out as rounding.

    Raises:
        ValueError: `keys` is not a non-empty matrix of finite numbers.

    Example:
        >>> square = [[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]
        >>> print(selectable([*square, [0.2, 0.1]]))
        [ True  True  True  True False]
    """
    arguments.numbers(keys=keys)
    arguments.not_negative(tolerance=tolerance)
    keys = np.asarray(keys, dtype=float)
    if keys.ndim != 2 or keys.size == 0 or not np.all(np.isfinite(keys)):
        message = f"keys: shape {keys.shape}; give a matrix (N, D) of finite numbers"
        raise ValueError(message)
    found = np.zeros(len(keys), dtype=bool)
    centred = keys - keys.mean(axis=0)
    _, extents, directions = np.linalg.svd(centred, full_matrices=False)
    coordinates = centred @ directions[extents > tolerance * extents[0]].T
    if coordinates.shape[1] == 0:
        found[0] = True  # all keys at one point
    elif coordinates.shape[1] == 1:
        found[[coordinates.argmin(), coordinates.argmax()]] = True
    else:
        found[spatial.ConvexHull(coordinates).vertices] = True
    return found
