"""The Li_2 energy on a random part of a table: its exact expectation for any neuron.

Of N pairs with C labels n are drawn without replacement. A neuron with activations h_i has on them

    E = 1/2 Σ_c (S_c - n_c S / n)²,

S_c the sum of h over the drawn pairs of label c, n_c their number, S = Σ_c S_c. The second term
comes from targets that are centred over the sample. Squared out, each product of sums holds one or
two activations, and given that their pairs are drawn, n_c is hypergeometric.
"""

import jax.numpy as jnp

from dynamics import arguments
from dynamics.aliases import Array


def sampled_energy(activations: Array, labels: Array, num_labels: int, drawn: Array) -> Array:
    """Return E (...) of neurons with activations (..., N) on the pairs where drawn (N,) is 1."""
    arguments.shapes("... N, N, N", activations=activations, labels=labels, drawn=drawn)
    arguments.counts(num_labels=num_labels)
    arguments.labels(num_labels, labels=labels)
    in_class = (labels[:, None] == jnp.arange(num_labels)) * drawn[:, None]  # (N, C)
    counts = in_class.sum(axis=0)
    sums = activations @ in_class
    return jnp.sum((sums - counts / counts.sum() * sums.sum(-1, keepdims=True)) ** 2, -1) / 2


def expected_sampled_energy(
    activations: Array, labels: Array, num_labels: int, num_drawn: float | Array
) -> Array:
    """Return the expectation of `sampled_energy` over all samples of n pairs: (...).

    Args:
        activations: h (..., N), N at least 4.
        labels: (N,) from 0 to num_labels - 1.
        num_labels: C.
        num_drawn: n, from 1 to N; between the integers the same formula interpolates.

    Raises:
        ValueError: the shapes do not fit, or N < 4.

    Reference: derived here.
    """
    arguments.shapes("... N, N", activations=activations, labels=labels)
    arguments.counts(num_labels=num_labels)
    arguments.labels(num_labels, labels=labels)
    arguments.positive(num_drawn=num_drawn)
    total = labels.shape[0]
    if total < 4:
        message = f"labels {labels.shape}, activations {activations.shape}: give N at least 4"
        raise ValueError(message)
    in_class = (labels[:, None] == jnp.arange(num_labels)).astype(activations.dtype)
    size = in_class.sum(axis=0)  # (C,)
    own, square = activations @ in_class, activations**2 @ in_class  # (..., C)
    other = own.sum(axis=-1, keepdims=True) - own
    other_square = square.sum(axis=-1, keepdims=True) - square
    one = num_drawn / total  # probability that a pair is drawn
    two = one * (num_drawn - 1) / (total - 1)  # that two are

    def moments(given: int, inside: int) -> tuple[Array, Array]:
        """E[n_c] and E[n_c²], where `given` pairs are drawn and `inside` of them have label c."""
        left, draws, share = total - given, num_drawn - given, (size - inside) / (total - given)
        mean = inside + draws * share
        return mean, mean**2 + draws * share * (1 - share) * (left - draws) / (left - 1)

    same, different = own**2 - square, other**2 - other_square  # Σ_(i≠j) h_i h_j
    linear = one * square * moments(1, 1)[0] + two * (
        same * moments(2, 2)[0] + own * other * moments(2, 1)[0]
    )  # E[n_c S_c S]
    quadratic = one * (square * moments(1, 1)[1] + other_square * moments(1, 0)[1]) + two * (
        same * moments(2, 2)[1] + 2 * own * other * moments(2, 1)[1] + different * moments(2, 0)[1]
    )  # E[n_c² S²]
    by_label = one * square + two * same - 2 * linear / num_drawn + quadratic / num_drawn**2
    return by_label.sum(axis=-1) / 2
