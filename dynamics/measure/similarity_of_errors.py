"""Which iterate of a known algorithm errs as a layer of a network does, prompt by prompt."""

from typing import NamedTuple

import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array


class Match(NamedTuple):
    """L layers against the R iterates of a reference."""

    similarity: Array  # (L, R) mean cosine of the errors
    iterate: Array  # (L,) the one that errs most alike, the first where several do
    best: Array  # (L,) its similarity


def similarity_of_errors(first: Array, second: Array) -> Array:
    """Return the cosine between two predictors' errors of a prompt, averaged over prompts.

    Args:
        first: (..., B, N) prediction minus target, for B prompts of N positions each.
        second: (..., B, N), broadcast against `first`.

    Returns:
        (...,): 1 where the two err alike up to a positive factor. A prompt on which one of them
        makes no error at all counts 0.

    Raises:
        ValueError: the last two axes differ.

    Source:
        Fu et al. 2023, arXiv:2310.17086, definition 1.

    Example:
        >>> print(similarity_of_errors(jnp.array([[3.0, 4.0]]), jnp.array([[6.0, 8.0]])))
        1.0
    """
    arguments.shapes("... B N, ... B N", first=first, second=second)
    if first.ndim < 2 or first.shape[-2:] != second.shape[-2:]:
        message = f"first {first.shape} and second {second.shape}: give (..., B, N) twice"
        raise ValueError(message)
    return jnp.mean(jnp.sum(_unit(first) * _unit(second), axis=-1), axis=-1)


def match_iterates(layers: Array, reference: Array) -> Match:
    """Return, for each layer, the iterate of a reference whose errors are most alike.

    Args:
        layers: (L, B, N) errors read out after each layer.
        reference: (R, B, N) errors of the iterates, in order.

    Raises:
        ValueError: the arrays have other ranks, or the last two axes differ.
    """
    arguments.shapes("L B N, R B N", layers=layers, reference=reference)
    cosines = jnp.einsum("lbn,rbn->lr", _unit(layers), _unit(reference)) / layers.shape[1]
    return Match(cosines, jnp.argmax(cosines, axis=1), jnp.max(cosines, axis=1))


def _unit(errors: Array) -> Array:
    length = jnp.linalg.norm(errors, axis=-1, keepdims=True)
    return jnp.where(length > 0, errors / jnp.where(length > 0, length, 1), 0)
