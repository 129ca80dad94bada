"""Powers and participation against the definition in numpy, closed forms and symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dynamics.measure import fourier, grokking
from dynamics.theory import modular_addition

MODULI = [2, 3, 8, 23, 31]
VECTORS = arrays.arrays(np.float64, 11, elements=st.integers(-9, 9).map(float))


def by_hand(weights):
    """Sum over explicit cosines and sines, frequency by frequency."""
    modulus = len(weights)
    angles = 2 * np.pi * np.arange(modulus) / modulus
    power = np.zeros(modulus // 2 + 1)
    for k in range(modulus):
        part = np.sum(weights * np.cos(k * angles)) ** 2 + np.sum(weights * np.sin(k * angles)) ** 2
        power[min(k, modulus - k)] += part / (modulus * np.sum(weights**2))
    return power


@pytest.mark.parametrize("modulus", MODULI)
def test_power_is_its_definition(key, modulus):
    with jax.enable_x64(True):
        weights = jax.random.normal(key, (2, 3, modulus))
        found = np.asarray(fourier.fourier_power(weights, modulus))
    expected = np.apply_along_axis(by_hand, -1, np.asarray(weights))
    np.testing.assert_allclose(found, expected, atol=1e-13)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-13)


@pytest.mark.parametrize("modulus", MODULI)
@pytest.mark.parametrize("remove_constant", [True, False])
def test_participation_is_its_definition(key, modulus, remove_constant):
    with jax.enable_x64(True):
        weights = np.asarray(jax.random.normal(key, (5, modulus)))
        found = fourier.inverse_participation_ratio(
            weights, modulus, remove_constant=remove_constant
        )
    power = np.apply_along_axis(by_hand, -1, weights)[:, int(remove_constant) :]
    np.testing.assert_allclose(found, np.sum(power**2, -1) / np.sum(power, -1) ** 2, rtol=1e-12)


@pytest.mark.parametrize("modulus", [23, 24])
def test_one_frequency_of_any_phase_has_participation_one(modulus):
    elements = np.arange(modulus)
    for k in range(1, modulus // 2 + 1):
        wave = 4 + np.cos(2 * np.pi * k * elements / modulus + 0.7)
        assert fourier.inverse_participation_ratio(wave, modulus) == pytest.approx(1, abs=1e-5)
        power = fourier.fourier_power(wave - 4, modulus)
        np.testing.assert_allclose(power, np.eye(modulus // 2 + 1)[k], atol=1e-5)


def test_equal_frequencies_share_the_participation():
    angles = 2 * np.pi * np.arange(31) / 31
    for count in (2, 3, 7):
        wave = sum(np.cos(k * angles + k**2) for k in range(1, count + 1))
        found = fourier.inverse_participation_ratio(wave, 31)
        assert found == pytest.approx(1 / count, rel=1e-5)


def test_a_spike_is_spread_evenly():
    spike = np.eye(23)[5]
    assert fourier.inverse_participation_ratio(spike, 23) == pytest.approx(1 / 11, rel=1e-5)


def test_white_noise_is_uniform_on_the_simplex(key):
    """Mean 2 / (n + 1), about two over the number of bins; variance of the mean by sampling."""
    noise = jax.random.normal(key, (20_000, 23))
    found = np.asarray(fourier.inverse_participation_ratio(noise, 23))
    assert abs(found.mean() - 2 / 12) < 5 * found.std() / np.sqrt(len(found))


@given(weights=VECTORS, shift=st.integers(0, 10), turn=st.booleans(), scale=st.floats(0.1, 10))
def test_shifts_reflections_and_scale_change_nothing(weights, shift, turn, scale):
    moved = scale * np.roll(weights[::-1] if turn else weights, shift)
    with jax.enable_x64(True):
        plain, other = (fourier.fourier_power(w, 11) for w in (weights, moved))
    np.testing.assert_allclose(other, plain, atol=1e-12)


@given(weights=VECTORS, factor=st.integers(1, 10), constant=st.floats(-5, 5))
def test_multiplying_the_elements_permutes_the_frequencies(weights, factor, constant):
    """w_a -> w_(m a): the power at k moves to m k; a constant moves k = 0 alone."""
    with jax.enable_x64(True):
        plain = np.asarray(fourier.fourier_power(weights, 11))
        moved = np.asarray(fourier.fourier_power(weights[factor * np.arange(11) % 11], 11))
        both = np.stack([weights, weights + constant])
        ratios = np.asarray(fourier.inverse_participation_ratio(both, 11))
    new = factor * np.arange(6) % 11
    np.testing.assert_allclose(moved[np.minimum(new, 11 - new)], plain, atol=1e-12)
    if np.ptp(weights):
        assert ratios[0] == pytest.approx(ratios[1], rel=1e-9)


class TestPhaseAlignment:
    def test_the_analytic_network_has_it(self, key):
        frequencies = 1 + jnp.arange(60) % 15
        phases = jax.random.uniform(key, (60, 2), maxval=2 * jnp.pi)
        network = modular_addition.analytic_network(frequencies, phases, 31)
        assert fourier.phase_alignment(*network, 31) == pytest.approx(1, abs=1e-5)
        assert fourier.phase_alignment(*network[:2], -network[2], 31) == pytest.approx(-1, abs=1e-5)

    def test_unrelated_phases_do_not(self, key):
        """White noise: 300 neurons of 30 frequencies, each with its conjugate."""
        network = jax.random.normal(key, (3, 300, 31))
        assert abs(fourier.phase_alignment(*network, 31)) < 5 / (2 * 300 * 31) ** 0.5 * 2**0.5

    def test_it_is_blind_to_what_addition_is_blind_to(self, key):
        """a -> a + 3, b -> b + 5, c -> c + 8 maps addition to itself; c -> c + 7 does not."""
        frequencies = 1 + jnp.arange(60) % 15
        phases = jax.random.uniform(key, (60, 2), maxval=2 * jnp.pi)
        left, right, readout = modular_addition.analytic_network(frequencies, phases, 31)
        left, right = jnp.roll(left, 3, axis=1), jnp.roll(right, 5, axis=1)
        moved = lambda shift: fourier.phase_alignment(left, right, jnp.roll(readout, shift, 1), 31)
        assert moved(8) == pytest.approx(1, abs=1e-5)
        assert moved(7) < 0.2

    def test_zeros_and_wrong_shapes(self):
        zeros = jnp.zeros((2, 5))
        assert fourier.phase_alignment(zeros, zeros, zeros, 5) == 0
        with pytest.raises(ValueError, match="readout has shape"):
            fourier.phase_alignment(zeros, zeros, jnp.zeros((2, 4)), 5)


def test_zeros_have_no_power_and_finite_gradients():
    assert not fourier.fourier_power(jnp.zeros((2, 5)), 5).any()
    assert fourier.inverse_participation_ratio(jnp.zeros(5), 5) == 0
    gradient = jax.grad(lambda w: fourier.inverse_participation_ratio(w, 5))(jnp.zeros(5))
    assert np.isfinite(gradient).all()


def test_grokking_has_both_by_their_fixed_names():
    assert grokking.fourier_power is fourier.fourier_power
    assert grokking.inverse_participation_ratio is fourier.inverse_participation_ratio


def test_wrong_arguments_are_refused():
    for weights, modulus in ((np.ones(5), 4), (np.ones((5, 3)), 5), (1.0, 1), (np.ones(1), 1)):
        for measure in (fourier.fourier_power, fourier.inverse_participation_ratio):
            with pytest.raises(ValueError, match=r"weights has shape|modulus="):
                measure(weights, modulus)
