"""Hidden units that memorise and hidden units that generalise, told apart and pruned.

On the addition table of Z_p a unit that carries the rule has periodic weights, of one frequency; a
unit that stores single pairs has power in all of them. The inverse participation ratio of the
powers is near one for the first and near its value for noise for the second.
"""

import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.measure.fourier import inverse_participation_ratio


def neuron_participation(left: Array, right: Array, readout: Array) -> Array:
    """Return each hidden unit's inverse participation ratio (..., N), between 0 and 1.

    The mean of those of the unit's three weight vectors over Z_p: what the first element adds to
    it, what the second adds, and what it adds to the logits. The constant part of each is left
    out. One: all three are waves of a single frequency each; white noise has 4 / (p + 1) for odd p
    on average; a unit whose weights are all zero has 0.

    Args:
        left: (..., p, N) weights from the first element.
        right: (..., p, N) weights from the second element.
        readout: (..., N, p) weights to the logits.

    Raises:
        ValueError: the shapes do not fit, or p < 2.

    Reference: Doshi, Das, He, Gromov 2023, arXiv:2310.13061, section 3, with r = 2; conventions
    (powers, conjugate pairs as one bin, no constant) as in `inverse_participation_ratio`.
    """
    arguments.shapes("... p N, ... p N, ... N p", left=left, right=right, readout=readout)
    if jnp.shape(left)[-2] < 2:
        message = f"left has shape {jnp.shape(left)}; give (..., p, N), p at least 2"
        raise ValueError(message)
    left, right, readout = (jnp.asarray(weights) for weights in (left, right, readout))
    outputs = jnp.matrix_transpose(readout) if readout.ndim > 1 else readout
    if left.ndim < 2 or not left.shape == right.shape == outputs.shape:
        message = (
            f"left {left.shape}, right {right.shape}, readout {readout.shape}: "
            "give (..., p, N), (..., p, N) and (..., N, p)"
        )
        raise ValueError(message)
    modulus = left.shape[-2]
    ratios = [
        inverse_participation_ratio(jnp.matrix_transpose(weights), modulus)
        for weights in (left, right, outputs)
    ]
    return sum(ratios[1:], start=ratios[0]) / 3


def memorising_neurons(participation: Array, threshold: float = 0.5) -> Array:
    """Return which hidden units memorise (...), bool: those with participation below `threshold`.

    The others generalise.

    Args:
        participation: (...) of `neuron_participation`.
        threshold: between the two humps of the histogram; half-way by default, since units of one
            frequency have nearly one, and those of none (noise) have 4 / (p + 1), 0.125 at p = 31.

    Raises:
        ValueError: `threshold` is outside (0, 1].
    """
    arguments.numbers(participation=participation)
    arguments.scalars(threshold=threshold)
    if not 0 < threshold <= 1:
        message = f"threshold={threshold}: give a participation above 0, at most 1"
        raise ValueError(message)
    return jnp.asarray(participation) < threshold


def kept_neurons(order: Array, num_pruned: Array | int) -> Array:
    """Return which hidden units are left (..., N), bool, after the first ones of `order` are gone.

    The masks of growing numbers are nested. With jnp.argsort(participation) as the order, the
    units that memorise go first.

    Args:
        order: (N,) the indices 0 to N - 1, first to be pruned first.
        num_pruned: (...) integers; below 0 counts as 0, above N as N.

    Raises:
        ValueError: `order` is not one-dimensional.

    Example:
        >>> print(kept_neurons(jnp.array([2, 0, 1]), 1))
        [ True  True False]
    """
    arguments.shapes("N", order=order)
    arguments.labels(jnp.size(order), order=order)
    arguments.numbers(num_pruned=num_pruned)
    order = jnp.asarray(order)
    rank = jnp.argsort(order)  # of a permutation: its inverse
    return rank >= jnp.asarray(num_pruned)[..., None]


def prune_neurons(readout: Array, order: Array, num_pruned: Array | int) -> Array:
    """Return readouts (..., N, K) in which the first `num_pruned` units of `order` say nothing.

    Their rows are zero, which takes the units out of the network whatever their activation.

    Args:
        readout: (N, K) weights from hidden units to logits.
        order: (N,) as in `kept_neurons`.
        num_pruned: (...) integers.

    Raises:
        ValueError: the shapes do not fit.
    """
    arguments.shapes("N K, N", readout=readout, order=order)
    readout = jnp.asarray(readout)
    return jnp.where(kept_neurons(order, num_pruned)[..., None], readout, 0)
