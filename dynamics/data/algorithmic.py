"""Algorithmic tasks: group tables split into training and test pairs; sparse modular addition."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import arguments
from dynamics.aliases import Array, Key


class Table(NamedTuple):
    """Pairs of group elements and their products."""

    train_pairs: Array  # (N, 2) int32
    train_products: Array  # (N,) int32
    test_pairs: Array  # (M, 2) int32
    test_products: Array  # (M,) int32


def cyclic_group(order: int) -> np.ndarray:
    """Return the Cayley table of addition modulo `order`, (order, order) int32.

    Example:
        >>> cyclic_group(3).tolist()
        [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    """
    arguments.counts(order=order)
    elements = np.arange(order, dtype=np.int32)
    return (elements[:, None] + elements) % order


def dihedral_group(num_corners: int) -> np.ndarray:
    """Return the Cayley table of the symmetries of a polygon, (2n, 2n) int32.

    Element k < n is the rotation by k corners, n + k that rotation after a reflection.
    """
    arguments.counts(num_corners=num_corners)
    elements = np.arange(2 * num_corners)
    turn, flip = elements % num_corners, elements // num_corners
    sign = np.where(flip, -1, 1)
    product_turn = (turn[:, None] + sign[:, None] * turn) % num_corners
    return (product_turn + num_corners * (flip[:, None] ^ flip)).astype(np.int32)


def symmetric_group(degree: int) -> np.ndarray:
    """Return the Cayley table of all permutations of `degree` things, in lexicographic order.

    Element a times b is the permutation that does b first.
    """
    arguments.counts(degree=degree)
    permutations = list(itertools.permutations(range(degree)))
    place = {permutation: i for i, permutation in enumerate(permutations)}
    return np.array(
        [[place[tuple(a[i] for i in b)] for b in permutations] for a in permutations], np.int32
    )


def product_group(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the Cayley table of the direct product; element (a, b) is a * len(right) + b."""
    arguments.shapes("G G, H H", left=left, right=right)
    arguments.labels(len(left), left=left)
    arguments.labels(len(right), right=right)
    size = len(right)
    table = left[:, None, :, None] * size + right[None, :, None, :]
    return table.reshape(len(left) * size, -1).astype(np.int32)


def split_table(key: Key, cayley_table: np.ndarray, train_fraction: float) -> Table:
    """Return all pairs of a group, round(train_fraction G^2) of them at random for training.

    Args:
        key: of the split.
        cayley_table: (G, G) of integers from 0 to G - 1.
        train_fraction: share of the table that trains.

    Raises:
        ValueError: `cayley_table` is not square or the split leaves one side empty.
    """
    arguments.keys(key=key)
    arguments.shapes("G G", cayley_table=cayley_table)
    arguments.fractions(train_fraction=train_fraction)
    order = len(cayley_table)
    arguments.labels(order, cayley_table=cayley_table)
    num_train = round(train_fraction * order**2)
    if not 0 < num_train < order**2:
        message = f"train_fraction={train_fraction}: {num_train} of {order**2} pairs would train"
        raise ValueError(message)
    shuffled = jax.random.permutation(key, order**2)
    pairs = jnp.stack(jnp.divmod(shuffled, order), axis=1)
    products = jnp.asarray(cayley_table).reshape(-1)[shuffled]
    return Table(pairs[:num_train], products[:num_train], pairs[num_train:], products[num_train:])


class Sequences(NamedTuple):
    """Sequences of tokens and a label for each."""

    tokens: Array  # (N, T) int32
    labels: Array  # (N,) int32


def sparse_modular_addition(
    key: Key, modulus: int, positions: tuple[int, ...], num_samples: int, length: int
) -> Sequences:
    """Return uniform tokens below `modulus`, labelled by the sum of a few of them modulo it.

    Args:
        key: of the tokens.
        modulus: p, at least 2; with p = 2 this is sparse parity.
        positions: which tokens count, all different and below `length`.
        num_samples: N.
        length: T.

    Raises:
        ValueError: `modulus` is below 2, or `positions` are none, repeated or out of range.

    Reference: Odonnat, Bouaziz, Cabannes 2025, "Easing Optimization Paths: a Circuit
    Perspective"; their terms are the first five of twelve.
    """
    arguments.keys(key=key)
    arguments.integers(2, modulus=modulus)
    arguments.counts(num_samples=num_samples, length=length)
    arguments.shapes("K", positions=positions)
    distinct = set(positions)
    if not distinct or len(distinct) < len(positions) or not distinct <= set(range(length)):
        message = f"positions={positions}: give different ones from 0 to length - 1 = {length - 1}"
        raise ValueError(message)
    tokens = jax.random.randint(key, (num_samples, length), 0, modulus, jnp.int32)
    return Sequences(tokens, tokens[:, np.array(positions)].sum(axis=1) % modulus)


class CorruptedLabels(NamedTuple):
    """Labels of which some were replaced."""

    labels: Array  # (N,) int32
    corrupted: Array  # (N,) bool, the replaced ones, also those that were given their own again


def corrupt_labels(key: Key, labels: Array, num_classes: int, fraction: float) -> CorruptedLabels:
    """Return labels of which exactly round(fraction N), chosen at random, were drawn anew.

    The new label is uniform over all classes, the right one included, so that of the corrupted
    labels one in `num_classes` is still right: a network that has learnt the rule and nothing else
    agrees with a share 1 - fraction (1 - 1 / num_classes) of the labels, in expectation.

    Args:
        key: of the choice and of the new labels.
        labels: (N,) integers from 0 to num_classes - 1.
        num_classes: C, at least 1.
        fraction: share of the labels that is replaced, from 0 to 1.

    Raises:
        ValueError: `labels` is not one-dimensional and non-empty or one is out of range,
            `num_classes` is below 1, or `fraction` is outside [0, 1].

    Reference: Doshi, Das, He, Gromov 2023, arXiv:2310.13061, section 2.
    """
    arguments.keys(key=key)
    arguments.counts(num_classes=num_classes)
    arguments.shapes("N", labels=labels)
    arguments.labels(num_classes, labels=labels)
    arguments.fractions(fraction=fraction)
    labels = jnp.asarray(labels)
    choice_key, label_key = jax.random.split(key)
    rank = jax.random.permutation(choice_key, len(labels))
    corrupted = rank < round(fraction * len(labels))
    drawn = jax.random.randint(label_key, labels.shape, 0, num_classes, jnp.int32)
    return CorruptedLabels(jnp.where(corrupted, drawn, labels).astype(jnp.int32), corrupted)
