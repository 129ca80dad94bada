"""The split of hidden units and their pruning, against definitions and exact networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.measure import fourier, grokking, memorising_neurons
from dynamics.models import pair_networks
from dynamics.theory import modular_addition

MODULUS = 31


@pytest.fixture
def half_and_half(key):
    """Sixty units that solve addition exactly, then sixty of noise of the same size."""
    phase_key, *noise_keys = jax.random.split(key, 4)
    frequencies = 1 + jnp.arange(60) % (MODULUS // 2)
    phases = jax.random.uniform(phase_key, (60, 2), maxval=2 * jnp.pi)
    exact = modular_addition.analytic_network(frequencies, phases, MODULUS)
    noise = [0.7 * jax.random.normal(k, (60, MODULUS)) for k in noise_keys]
    left, right, readout = (jnp.concatenate(both) for both in zip(exact, noise, strict=True))
    return left.T, right.T, readout


def test_waves_and_noise_are_told_apart(half_and_half):
    found = memorising_neurons.neuron_participation(*half_and_half)
    np.testing.assert_allclose(found[:60], 1, rtol=1e-5)
    assert memorising_neurons.memorising_neurons(found).tolist() == [False] * 60 + [True] * 60
    # The mean over noise in closed form, with the standard error of 60 x 3 vectors.
    assert found[60:].mean() == pytest.approx(4 / (MODULUS + 1), abs=0.02)


def test_participation_is_the_mean_of_the_three_vectors(half_and_half):
    left, right, readout = (np.asarray(w) for w in half_and_half)
    found = memorising_neurons.neuron_participation(*half_and_half)
    for n in (3, 70, 119):
        vectors = (left[:, n], right[:, n], readout[n])
        each = [fourier.inverse_participation_ratio(vector, MODULUS) for vector in vectors]
        assert found[n] == pytest.approx(np.mean(each), rel=1e-5)


def test_units_in_another_order_and_batches(half_and_half, key):
    left, right, readout = half_and_half
    order = jax.random.permutation(key, 120)
    plain = memorising_neurons.neuron_participation(left, right, readout)
    moved = memorising_neurons.neuron_participation(left[:, order], right[:, order], readout[order])
    np.testing.assert_allclose(moved, plain[order], rtol=1e-5)
    stacked = [jnp.stack([w, 3 * w]) for w in half_and_half]
    both = jax.jit(memorising_neurons.neuron_participation)(*stacked)
    np.testing.assert_allclose(both, jnp.stack([plain, plain]), rtol=1e-5)


def test_units_that_are_gone_have_none():
    zeros = jnp.zeros((MODULUS, 2))
    found = memorising_neurons.neuron_participation(zeros, zeros, zeros.T)
    assert found.tolist() == [0, 0]


def test_masks_are_nested_and_exact(key):
    order = jax.random.permutation(key, 9)
    masks = np.asarray(jax.jit(grokking.kept_neurons)(order, jnp.arange(-1, 12)))
    assert masks.sum(axis=1).tolist() == [9, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0]
    for num in range(10):
        expected = np.ones(9, bool)
        expected[np.asarray(order)[:num]] = False
        assert (masks[num + 1] == expected).all()


def test_pruning_is_removing_the_units(half_and_half, key):
    """The network with zeroed rows is the narrower network without those units."""
    left, right, readout = half_and_half
    order = jax.random.permutation(key, 120)
    pairs = jax.random.randint(key, (50, 2), 0, MODULUS)
    pruned = grokking.prune_neurons(readout, order, jnp.array([0, 40, 120]))
    model = pair_networks.PairMLP(MODULUS, 120)
    narrow = pair_networks.PairMLP(MODULUS, 80)
    logits = [
        model.apply({"params": {"left": left, "right": right, "readout": r}}, pairs) for r in pruned
    ]
    rest = order[40:]
    params = {"left": left[:, rest], "right": right[:, rest], "readout": readout[rest]}
    np.testing.assert_allclose(logits[1], narrow.apply({"params": params}, pairs), atol=1e-3)
    np.testing.assert_array_equal(pruned[0], readout)
    assert (logits[2] == 0).all()


def test_pruning_the_noise_leaves_the_rule(half_and_half):
    left, right, readout = half_and_half
    pairs = jnp.stack(jnp.divmod(jnp.arange(MODULUS**2), MODULUS), axis=1)
    order = jnp.argsort(memorising_neurons.neuron_participation(left, right, readout))
    hidden = (left[pairs[:, 0]] + right[pairs[:, 1]]) ** 2
    right_answer = pairs.sum(axis=1) % MODULUS

    def accuracy(order):
        logits = hidden @ grokking.prune_neurons(readout, order, 60)
        return float(jnp.mean(jnp.argmax(logits, axis=1) == right_answer))

    expected = float(modular_addition.analytic_accuracy(60, MODULUS))
    assert accuracy(order) == pytest.approx(expected, abs=0.05)
    assert accuracy(order[::-1]) < 0.15


def test_wrong_arguments_are_refused():
    weights = jnp.ones((5, 3))
    with pytest.raises(ValueError, match="readout"):
        memorising_neurons.neuron_participation(weights, weights, weights)
    for threshold in (0, 1.5):
        with pytest.raises(ValueError, match="threshold="):
            memorising_neurons.memorising_neurons(jnp.ones(3), threshold)
    with pytest.raises(ValueError, match="order has shape"):
        memorising_neurons.kept_neurons(weights, 1)
    with pytest.raises(ValueError, match="readout"):
        memorising_neurons.prune_neurons(weights, jnp.arange(3), 1)
