"""Progress measures of grokking: how much of the logits is a function of a + b, and in what waves.

On the table of addition modulo p, logits (p, p, K) have a part in the span of cos(2π k (a + b) / p)
and sin(2π k (a + b) / p) for a few key frequencies k, by which a trained network computes the sum.
The restricted loss is that of this part (and the mean) alone: it falls before the test loss does.
The excluded loss is that of the rest: it rises on the training set while what was memorised is
taken over by the waves.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from dynamics import arguments
from dynamics.aliases import Array
from dynamics.measure.fourier import fourier_power


def key_frequencies(weights: Array, modulus: int, num: int) -> Array:
    """Return the `num` frequencies k >= 1 with the most power (num,), the strongest first.

    Powers are summed over all vectors as they are, so that long vectors count more. Equal powers:
    the lower frequency first.

    Args:
        weights: (..., p), vectors over the elements of Z_p along the last axis (the embedding
            transposed, for example).
        modulus: p.
        num: from 1 to p // 2.

    Raises:
        ValueError: the last axis of `weights` is not p long, or `num` is out of range.

    Example:
        >>> print(key_frequencies(jnp.cos(2 * jnp.pi * 3 * jnp.arange(11) / 11), 11, 1))
        [3]
    """
    arguments.integers(2, modulus=modulus)
    arguments.integers(num=num)
    arguments.shapes("... p", weights=weights)
    if not 1 <= num <= modulus // 2:
        message = f"num={num}: give 1 to {modulus // 2}, the frequencies of modulus={modulus}"
        raise ValueError(message)
    weights = jnp.asarray(weights)
    power = fourier_power(weights, modulus) * jnp.sum(weights**2, axis=-1, keepdims=True)
    total = power.reshape(-1, power.shape[-1]).sum(axis=0)[1:]
    return 1 + jnp.argsort(-total, stable=True)[:num]


def logits_on_sums(logits: Array, frequencies: Array) -> Array:
    """Return the part of `logits` (..., p, p, K) in the waves of a + b: the same shape.

    The orthogonal projection, for each of the K outputs, onto cos(2π k (a + b) / p) and
    sin(2π k (a + b) / p) of the given k: the bins (k, k) and (-k, -k) of the transform over (a, b).
    k = 0 gives the mean over the table. With all frequencies 0 to p // 2 it is the mean over the
    pairs of the same sum. Pairs that were trained on count in it: a network that knows nothing but
    most of the table by heart answers every sum right after this averaging, so that accuracy of
    the projected logits alone is no sign that the network generalises.

    Args:
        logits: (..., p, p, K) on the whole table, indexed by a, then b.
        frequencies: (F,) integers; the same one twice counts once.

    Raises:
        ValueError: `logits` has fewer than three axes or is no square table.
    """
    arguments.shapes("... p p K", logits=logits)
    arguments.shapes("F", frequencies=jnp.ravel(jnp.asarray(_whole(frequencies))))
    logits = jnp.asarray(logits)
    modulus = logits.shape[-2]
    k = jnp.ravel(jnp.asarray(frequencies)) % modulus
    kept = jnp.zeros((modulus, modulus), bool).at[k, k].set(True).at[-k, -k].set(True)
    spectrum = jnp.fft.fft2(logits, axes=(-3, -2))
    part = jnp.fft.ifft2(spectrum * kept[..., None], axes=(-3, -2)).real
    return part.astype(logits.dtype)


def restricted_logits(logits: Array, frequencies: Array) -> Array:
    """Return the mean over the table and the waves of the key frequencies, nothing else.

    Arguments and errors as in `logits_on_sums`.
    """
    frequencies = jnp.ravel(jnp.asarray(_whole(frequencies)))
    return logits_on_sums(logits, jnp.concatenate([frequencies, jnp.zeros_like(frequencies[:1])]))


def excluded_logits(logits: Array, frequencies: Array) -> Array:
    """Return the logits without the waves of the key frequencies.

    Arguments and errors as in `logits_on_sums`.
    """
    arguments.shapes("... p p K", logits=logits)
    return jnp.asarray(logits) - logits_on_sums(logits, frequencies)


LossOfLogits = Callable[[Array, Array], Array]  # logits (..., K), labels (...) -> losses (...)
cross_entropy: LossOfLogits = optax.softmax_cross_entropy_with_integer_labels


def restricted_loss(
    logits: Array,
    labels: Array,
    frequencies: Array,
    *,
    where: Array | None = None,
    loss: LossOfLogits = cross_entropy,
) -> Array:
    """Return the mean loss (...) of the `restricted_logits`.

    Args:
        logits: (..., p, p, K) on the whole table.
        labels: (p, p) integers.
        frequencies: (F,) the key frequencies.
        where: (p, p) bool, the pairs over which to average; all by default, as in the paper.
        loss: of each pair; cross-entropy in nats by default.

    Raises:
        ValueError: as `logits_on_sums`.

    Reference: Nanda, Chan, Lieberum, Smith, Steinhardt 2023, arXiv:2301.05217, section 5.1; two
    directions for each frequency, as in the paper's code.
    """
    _check_table(logits, labels, where, loss)
    return _mean_loss(restricted_logits(logits, frequencies), labels, where, loss)


def excluded_loss(
    logits: Array,
    labels: Array,
    frequencies: Array,
    *,
    where: Array | None = None,
    loss: LossOfLogits = cross_entropy,
) -> Array:
    """Return the mean loss (...) of the `excluded_logits`, all key frequencies taken out at once.

    In the paper it is averaged over the training pairs: give them as `where`. Everything else as
    in `restricted_loss`.

    Raises:
        ValueError: as `logits_on_sums`.
    """
    _check_table(logits, labels, where, loss)
    return _mean_loss(excluded_logits(logits, frequencies), labels, where, loss)


def _mean_loss(logits: Array, labels: Array, where: Array | None, loss: LossOfLogits) -> Array:
    labels = jnp.broadcast_to(labels, logits.shape[:-1])
    return jnp.mean(loss(logits, labels), axis=(-2, -1), where=where)


def _whole(frequencies: Array) -> Array:
    arguments.numbers(frequencies=frequencies)
    if not jnp.issubdtype(jnp.result_type(frequencies), jnp.integer):
        message = f"frequencies: type {jnp.result_type(frequencies)}; give integers"
        raise TypeError(message)
    return frequencies


def _check_table(logits: Array, labels: Array, where: Array | None, loss: LossOfLogits) -> None:
    arguments.shapes("... p p K, p p", logits=logits, labels=labels)
    arguments.labels(jnp.shape(logits)[-1], **{"labels, of the outputs of logits": labels})
    if where is not None:
        arguments.shapes("p p, p p", labels=labels, where=where)
    arguments.functions(loss=loss)
