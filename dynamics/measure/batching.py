"""Exact means over batches of any length, and the checks that every curvature product shares."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Params
from dynamics.measure import gram

Matvec = Callable[[Params], Params]


class Batches(NamedTuple):
    """Data cut into equal batches and a shorter rest; without data, one empty batch."""

    full: tuple[Any, ...]  # () or (data,) with leaves (B, b, ...)
    rest: tuple[Any, ...]  # () or (data,) with leaves (r, ...)
    weight: float  # of one full batch, b / N
    rest_weight: float  # r / N

    @property
    def first(self) -> tuple[Any, ...]:
        """The arguments of one batch: () or (data,)."""
        return tuple(jax.tree.map(lambda leaf: leaf[0], data) for data in self.full)

    @property
    def is_whole(self) -> bool:
        """Whether the first batch is everything there is."""
        return self.weight == 1.0

    def mean(self, part: Callable[..., Any]) -> Any:
        """Return the mean of `part(batch)`, a pytree, over samples, one batch after the other."""
        if self.is_whole:
            return part(*self.first)
        zeros = jax.tree.map(
            lambda out: jnp.zeros(out.shape, out.dtype), jax.eval_shape(part, *self.first)
        )
        add = lambda total, batch: (jax.tree.map(jnp.add, total, part(*batch)), None)
        total = jax.lax.scan(add, zeros, self.full)[0]
        total = jax.tree.map(lambda leaf: leaf * self.weight, total)
        if not self.rest:
            return total
        return jax.tree.map(
            lambda leaf, last: leaf + self.rest_weight * last, total, part(*self.rest)
        )


def batches(data: Any, batch_size: int | None, name: str = "data") -> Batches:
    """Return `data`, a pytree with one leading axis N or None, cut into batches.

    In messages the data is called by `name`.

    Raises:
        ValueError: `batch_size` is outside [1, N] or given without `data`, or the leading axes
            of `data` are empty or differ.
    """
    arguments.integers(optional=True, batch_size=batch_size)
    arguments.records(str, name=name)
    if data is None:
        if batch_size is not None:
            message = f"batch_size={batch_size}: give data too, or leave it out"
            raise ValueError(message)
        return Batches((), (), 1.0, 0.0)
    length = arguments.samples(**{name: data})
    data = jax.tree.map(jnp.asarray, data)
    size = length if batch_size is None else batch_size
    if not 1 <= size <= length:
        message = f"batch_size={batch_size}: give a number from 1 to the {length} samples of {name}"
        raise ValueError(message)
    count, last = divmod(length, size)
    full = jax.tree.map(
        lambda leaf: leaf[: count * size].reshape(count, size, *leaf.shape[1:]), data
    )
    rest = jax.tree.map(lambda leaf: leaf[count * size :], data)
    return Batches((full,), (rest,) if last else (), size / length, last / length)


def of_samples(
    loss_fn: Callable[..., Any], params: Params, data: Any, batch_size: int | None
) -> tuple[Params, Batches]:
    """Return parameters and batches for gradients on each sample alone, both checked.

    Raises:
        ValueError: `data` is None, or as `batches` and `check_scalar`.
        TypeError: a leaf of `params` is not of floating-point type.
    """
    arguments.functions(loss_fn=loss_fn)
    params = checked_params(params)
    if data is None:
        message = "data=None: give the samples whose gradients are wanted"
        raise ValueError(message)
    cut = batches(data, batch_size)
    check_scalar(loss_fn, params, cut.first)
    return params, cut


def checked_params(params: Params) -> Params:
    """Return `params` as arrays; raise where a leaf is not of floating-point type."""
    gram.check_params(params)
    return jax.tree.map(jnp.asarray, params)


def check_scalar(loss_fn: Callable[..., Any], params: Params, batch: tuple[Any, ...]) -> None:
    """Raise where a loss of `params` and the arguments of one batch is not one number."""
    arguments.functions(loss_fn=loss_fn)
    arguments.params(params=params)
    arguments.records(tuple, batch=batch)
    value = jax.eval_shape(loss_fn, params, *batch)
    if getattr(value, "shape", None) != ():
        message = f"loss_fn: returns {value}; return a scalar"
        raise ValueError(message)


def checked_matvec(product: Callable[[Params], Params], params: Params) -> Matvec:
    """Return `product` behind a check that its argument is shaped and typed like `params`."""
    arguments.functions(product=product)
    arguments.params(params=params)

    def matvec(vector: Params) -> Params:
        if jax.tree.structure(vector) != jax.tree.structure(params):  # type: ignore[operator]
            message = f"v: {jax.tree.structure(vector)}; give {jax.tree.structure(params)}"
            raise ValueError(message)
        vector = jax.tree.map(lambda leaf, at: jnp.asarray(leaf, at.dtype), vector, params)
        shapes, wanted = jax.tree.map(jnp.shape, vector), jax.tree.map(jnp.shape, params)
        if shapes != wanted:
            message = f"v: shapes {shapes}; give those of params, {wanted}"
            raise ValueError(message)
        return product(vector)

    return matvec
