"""What several processes of one run must agree on; with one process each of these does nothing."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils


def any_process(flag: bool) -> bool:
    """Return whether `flag` is set in any process; all must call."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.int32(flag))))


def of_first_process(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Return the arrays of process 0, to the bit; the others give arrays of the same shapes."""
    if jax.process_count() == 1:
        return arrays
    # As bytes: a sum over processes of the numbers themselves would lose the sign of zero.
    as_bytes = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
    found = multihost_utils.broadcast_one_to_all(as_bytes)
    return [
        np.asarray(data, np.uint8).view(array.dtype).reshape(array.shape)
        for data, array in zip(found, arrays, strict=True)
    ]


@contextlib.contextmanager
def first_process_succeeds() -> Iterator[bool]:
    """Yield whether this is process 0, which alone does what the context holds.

    Raises:
        RuntimeError: in the other processes, where it raised in process 0.
    """
    alone, first = jax.process_count() == 1, jax.process_index() == 0
    try:
        yield first
    except BaseException:
        if first and not alone:
            any_process(True)
        raise
    if not alone and any_process(False):
        message = "process 0 could not go on; it says why"
        raise RuntimeError(message)
