"""Projections on the waves of a + b against explicit bases, group averages and exact networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.measure import grokking, progress_measures
from dynamics.theory import modular_addition

MODULI = [7, 8]


def basis(modulus, frequencies):
    """Orthonormal cos and sin of 2π k (a + b) / p as vectors over the table."""
    sums = np.add.outer(np.arange(modulus), np.arange(modulus)).ravel()
    waves = [f(2 * np.pi * k * sums / modulus) for k in frequencies for f in (np.cos, np.sin)]
    left, singular, _ = np.linalg.svd(np.array(waves).T, full_matrices=False)
    return left[:, singular > 1e-9]


@pytest.fixture
def logits(key, x64):
    return lambda modulus: jax.random.normal(key, (2, modulus, modulus, 3), jnp.float64)


@pytest.mark.parametrize("modulus", MODULI)
@pytest.mark.parametrize("frequencies", [[1], [2, 3], [0, 1], [0, 1, 2, 3, 4]])
def test_the_projection_is_the_one_on_explicit_waves(logits, modulus, frequencies):
    table = logits(modulus)
    found = jax.jit(progress_measures.logits_on_sums)(table, jnp.array(frequencies))
    waves = basis(modulus, frequencies)
    flat = np.asarray(table).reshape(2, modulus**2, 3)
    np.testing.assert_allclose(found.reshape(flat.shape), waves @ (waves.T @ flat), atol=1e-12)


@pytest.mark.parametrize("modulus", MODULI)
def test_all_frequencies_average_over_the_pairs_of_a_sum(logits, modulus):
    table = np.asarray(logits(modulus))
    found = progress_measures.logits_on_sums(table, jnp.arange(modulus // 2 + 1))
    sums = np.add.outer(np.arange(modulus), np.arange(modulus)) % modulus
    for total in range(modulus):
        mean = table[:, sums == total].mean(axis=1, keepdims=True)
        np.testing.assert_allclose(found[:, sums == total], mean + np.zeros((2, modulus, 3)))


@pytest.mark.parametrize("modulus", MODULI)
def test_restricted_and_excluded_share_the_logits(logits, modulus):
    table, frequencies = logits(modulus), jnp.array([1, 3, 1])
    restricted = progress_measures.restricted_logits(table, frequencies)
    excluded = progress_measures.excluded_logits(table, frequencies)
    mean = table.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(restricted + excluded, table + mean, atol=1e-12)
    again = progress_measures.restricted_logits(restricted, frequencies)
    np.testing.assert_allclose(again, restricted, atol=1e-12)
    nothing = progress_measures.logits_on_sums(excluded, frequencies)
    np.testing.assert_allclose(nothing, 0, atol=1e-12)


def test_averaging_over_sums_makes_a_rule_of_what_was_learnt_by_heart(key):
    """A table known on 70 % of its pairs, random elsewhere: chance there, right once averaged."""
    modulus = 31
    sums = jnp.add.outer(jnp.arange(modulus), jnp.arange(modulus)) % modulus
    known = jax.random.uniform(key, sums.shape) < 0.7
    guesses = jax.random.randint(key, sums.shape, 0, modulus)
    table = jax.nn.one_hot(jnp.where(known, sums, guesses), modulus)
    right = lambda logits: jnp.mean(jnp.argmax(logits, axis=-1) == sums, where=~known)
    assert right(table) < 0.1
    projected = progress_measures.restricted_logits(table, jnp.arange(1, modulus // 2 + 1))
    assert right(projected) == 1


def test_key_frequencies_by_hand():
    elements = np.arange(11)
    wave = lambda k: np.cos(2 * np.pi * k * elements / 11 + k)
    weights = np.stack([3 * wave(4) + 20, 2 * wave(2), wave(5) + 0.1 * wave(1)])
    assert progress_measures.key_frequencies(weights, 11, 3).tolist() == [4, 2, 5]
    assert grokking.key_frequencies(wave(8), 11, 1).tolist() == [3]  # 8 and 3 are one frequency
    assert progress_measures.key_frequencies(np.zeros(11), 11, 2).tolist() == [1, 2]


def test_losses_of_the_exact_network(key):
    """Sums solved by waves of three frequencies, and one pair that was learnt by heart."""
    modulus, frequencies = 31, jnp.array([2, 7, 11])
    phases = jax.random.uniform(key, (600, 2), maxval=2 * jnp.pi)
    first, second, readout = modular_addition.analytic_network(
        jnp.tile(frequencies, 200), phases, modulus
    )
    table = (first.T[:, None] + second.T) ** 2 @ readout / 20
    table = table.at[3, 4, 20].add(120.0)
    labels = jnp.add.outer(jnp.arange(modulus), jnp.arange(modulus)) % modulus
    labels = labels.at[3, 4].set(20)
    assert progress_measures.key_frequencies(first, modulus, 3).sort().tolist() == [2, 7, 11]
    heart = jnp.zeros((modulus, modulus), bool).at[3, 4].set(True)
    restricted = lambda where: grokking.restricted_loss(table, labels, frequencies, where=where)
    excluded = lambda where: grokking.excluded_loss(table, labels, frequencies, where=where)
    assert restricted(~heart) < 0.5
    assert restricted(heart) > 5
    assert excluded(~heart) > np.log(modulus) - 0.5
    assert excluded(heart) < 1e-3
    everywhere = (960 * restricted(~heart) + restricted(heart)) / 961
    found = grokking.restricted_loss(table, labels, frequencies)
    np.testing.assert_allclose(found, everywhere, rtol=1e-4)


def test_another_loss_and_batches(key):
    table = jax.random.normal(key, (2, 4, 7, 7, 5))
    labels = jnp.zeros((7, 7), int)
    first_logit = lambda logits, labels: logits[..., 0]
    found = grokking.restricted_loss(table, labels, jnp.array([1]), loss=first_logit)
    np.testing.assert_allclose(found, table[..., 0].mean(axis=(-2, -1)), atol=1e-6)


def test_wrong_arguments_are_refused():
    for shape in ((7, 7), (7, 6, 3)):
        with pytest.raises(ValueError, match="logits has shape"):
            progress_measures.logits_on_sums(jnp.ones(shape), jnp.array([1]))
    for num in (0, 4):
        with pytest.raises(ValueError, match="give 1 to 3"):
            progress_measures.key_frequencies(jnp.ones(7), 7, num)
    with pytest.raises(ValueError, match="modulus=8"):
        progress_measures.key_frequencies(jnp.ones(7), 8, 1)
