"""The types that every module of the library shares."""

from collections.abc import Callable
from typing import Any

import jax

Array = jax.Array
Key = jax.Array  # a typed key from jax.random.key
Params = Any  # a pytree of floating-point arrays
ApplyFn = Callable[[Params, Array], Array]  # (params, x (N, ...)) -> outputs (N, K)
LossFn = Callable[..., Array]  # loss_fn(params) or loss_fn(params, data) -> scalar
