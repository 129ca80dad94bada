"""Expected energies against the mean over every sample there is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.theory import modular_addition, sampled_energy

pytestmark = pytest.mark.usefixtures("x64")


def written_out(activations, labels, chosen):
    """1/2 |Y_c^T h|² over the chosen pairs, with Y_c centred over them."""
    targets = np.eye(labels.max() + 1)[labels[chosen]]
    targets = targets - targets.mean(axis=0)
    return np.sum((targets.T @ activations[chosen]) ** 2) / 2


@pytest.mark.parametrize("num_drawn", [1, 2, 3, 5, 8, 9])
@pytest.mark.parametrize("labels", [[0, 1, 2, 1, 2, 0, 2, 0, 1], [0, 0, 0, 0, 0, 1, 1, 1, 2]])
def test_mean_over_every_sample(key, num_drawn, labels):
    labels = np.array(labels)
    h = np.asarray(jax.random.normal(key, (9,))) ** 2
    samples = [list(chosen) for chosen in itertools.combinations(range(9), num_drawn)]
    expected = np.mean([written_out(h, labels, chosen) for chosen in samples])
    found = sampled_energy.expected_sampled_energy(
        jnp.asarray(h), jnp.asarray(labels), 3, num_drawn
    )
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_one_sample(key):
    labels = np.array([0, 1, 2, 1, 2, 0, 2, 0, 1])
    h = np.asarray(jax.random.normal(key, (4, 9)))
    drawn = np.array([1, 0, 1, 1, 0, 0, 1, 1, 0])
    found = sampled_energy.sampled_energy(jnp.asarray(h), jnp.asarray(labels), 3, drawn)
    expected = [written_out(one, labels, drawn == 1) for one in h]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_whole_table_is_the_energy_of_modular_addition(key):
    modulus = 7
    u, v = jax.random.normal(key, (2, 3, modulus))
    a, b = np.indices((modulus, modulus)).reshape(2, -1)
    h = (u[:, a] + v[:, b]) ** 2
    found = sampled_energy.expected_sampled_energy(
        h, jnp.asarray((a + b) % modulus), modulus, modulus**2
    )
    np.testing.assert_allclose(found, modular_addition.energy(u, v), rtol=1e-11)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="N at least 4"):
        sampled_energy.expected_sampled_energy(jnp.ones(3), jnp.zeros(3, int), 1, 2)
    with pytest.raises(ValueError, match="activations"):
        sampled_energy.expected_sampled_energy(jnp.ones(5), jnp.zeros(6, int), 1, 2)
