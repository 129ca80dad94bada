"""The types that every module of the library shares."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
Key = jax.Array  # a typed key from jax.random.key
Params = Any  # a pytree of floating-point arrays
ApplyFn = Callable[[Params, Array], Array]  # (params, x (N, ...)) -> outputs (N, K)
LossFn = Callable[..., Array]  # loss_fn(params) or loss_fn(params, data) -> scalar


class LinearAttentionWeights(NamedTuple):
    """The matrices of linear self-attention, acting on column vectors e (D,).

    A leading axis holds heads, whose results are added, and one before it layers of a stack.
    """

    query: Array  # (D_key, D)
    key: Array  # (D_key, D)
    value: Array  # (D_value, D)
    projection: Array  # (D, D_value)
