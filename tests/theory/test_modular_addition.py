"""Energies and logits against the whole table in float64, autodiff, scipy and sampled phases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize

from dynamics.theory import modular_addition as theory

pytestmark = pytest.mark.usefixtures("x64")


def table_energy(weights, modulus):
    """1/2 |Y_c^T σ(X w)|² with X and Y_c written out."""
    eye = jnp.eye(modulus)
    a, b = (index.ravel() for index in np.indices((modulus, modulus)))
    inputs = jnp.concatenate([eye[a], eye[b]], axis=1)
    targets = eye[(a + b) % modulus]
    targets = targets - targets.mean(axis=0)
    return jnp.sum((targets.T @ (inputs @ weights) ** 2) ** 2) / 2


def table_logits(network, modulus):
    """Logits (M, M, M) at [a, b, d], d = c - a - b."""
    hidden = (network.first[:, :, None] + network.second[:, None, :]) ** 2  # (N, M, M)
    logits = jnp.einsum("nab,nc->abc", hidden, network.readout)
    a, b, d = np.indices(3 * (modulus,))
    return logits[a, b, (a + b + d) % modulus]


@pytest.mark.parametrize("modulus", [2, 3, 6, 11, 23])
class TestEnergy:
    def test_fourier_form_is_the_energy_of_the_table(self, key, modulus):
        weights = jax.random.normal(key, (4, 2 * modulus))
        expected = jnp.stack([table_energy(w, modulus) for w in weights])
        found = theory.energy(weights[:, :modulus], weights[:, modulus:])
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    def test_gradient_is_that_of_the_table(self, key, modulus):
        weights = jax.random.normal(key, (2 * modulus,))
        expected = jax.grad(table_energy)(weights, modulus)
        found = theory.energy_gradient(weights[:modulus], weights[modulus:])
        np.testing.assert_allclose(jnp.concatenate(found), expected, rtol=1e-10, atol=1e-10)

    def test_no_unit_vector_found_by_scipy_is_above_the_largest(self, key, modulus):
        def minus(w):
            w = w / jnp.linalg.norm(w)
            return -table_energy(w, modulus)

        value = jax.jit(jax.value_and_grad(minus))
        best = min(
            scipy.optimize.minimize(
                lambda w: tuple(np.asarray(part) for part in value(w)),
                np.asarray(start), jac=True, method="BFGS",
            ).fun
            for start in jax.random.normal(key, (12, 2 * modulus))
        )  # fmt: skip
        assert -best == pytest.approx(theory.largest_energy(modulus), rel=1e-6)


@pytest.mark.parametrize("modulus", [11, 23])
def test_every_frequency_and_phase_is_a_maximum(modulus):
    angles = 2 * np.pi * np.arange(modulus) / modulus
    for k in range(1, modulus // 2 + 1):
        u, v = np.cos(k * angles + 0.3), np.cos(k * angles + 2.1)
        found = theory.energy(jnp.asarray(u), jnp.asarray(v)) / (u @ u + v @ v) ** 2
        assert found == pytest.approx(modulus / 4, rel=1e-12)


class TestAscentRates:
    def test_it_is_the_logarithmic_mean(self, key):
        u, v = jax.random.normal(key, (2, 5, 9))
        x, y = (np.abs(np.fft.fft(w)[:, 1:5]) ** 2 for w in (u, v))
        mean = [scipy.integrate.quad(lambda s, x=x, y=y: x ** (1 - s) * y**s, 0, 1)[0]
                for x, y in zip(x.ravel(), y.ravel(), strict=True)]  # fmt: skip
        np.testing.assert_allclose(theory.ascent_rates(u, v).ravel(), mean, rtol=1e-9)

    def test_equal_and_missing_powers(self, key):
        u = jax.random.normal(key, (9,))
        power = jnp.abs(jnp.fft.fft(u)[1:5]) ** 2
        np.testing.assert_allclose(theory.ascent_rates(u, jnp.roll(u, 2)), power, rtol=1e-12)
        close = theory.ascent_rates(u, u * (1 + 3e-5))  # either side of the switch
        np.testing.assert_allclose(close, power * (1 + 3e-5), rtol=1e-8)
        assert not theory.ascent_rates(u, jnp.zeros(9)).any()

    def test_flow_on_the_table_diverges_when_and_where_it_says(self, key):
        """scipy on the gradient of the table; at 99.9 % of the time the winner is far ahead."""
        modulus = 7
        w = jax.random.normal(key, (2 * modulus,))
        rates = np.asarray(theory.ascent_rates(w[:modulus], w[modulus:]))
        gradient = jax.jit(lambda w: jax.grad(table_energy)(w, modulus))
        flow = lambda end: scipy.integrate.solve_ivp(
            lambda _, w: np.asarray(gradient(w)), (0, end), np.asarray(w), rtol=1e-9, atol=1e-9
        ).y[:, -1]
        end = 1 / (8 * rates.max())
        u = np.fft.fft(flow(0.999 * end)[:modulus])[1:4]
        assert np.abs(u).argmax() == rates.argmax()
        # Close to the end x = 1 / (8 (t_end - t)) for the power of the winner.
        assert np.abs(u).max() ** 2 * 8 * 0.001 * end == pytest.approx(1, rel=0.02)
        before = np.fft.fft(np.asarray(w[:modulus]))[1:4]
        np.testing.assert_allclose(np.angle(u), np.angle(before), atol=1e-5)


class TestAscent:
    @pytest.mark.parametrize("modulus", [2, 7, 12])
    def test_scipy_on_the_energy_of_the_table(self, key, modulus):
        w = jax.random.normal(key, (2 * modulus,))
        unit = w / jnp.linalg.norm(w)
        on_sphere = jax.jit(jax.value_and_grad(
            lambda w: table_energy(w / jnp.linalg.norm(w), modulus)))  # fmt: skip
        times = np.array([0.0, 0.05, 0.2, 0.5, 1.0])
        path = scipy.integrate.solve_ivp(
            lambda _, w: np.asarray(on_sphere(w)[1]), (0, 1), np.asarray(unit), "DOP853", times,
            rtol=1e-10, atol=1e-12,
        ).y.T  # fmt: skip
        found = theory.ascent(w[:modulus], w[modulus:], times)
        energies = [on_sphere(w)[0] for w in path]
        np.testing.assert_allclose(found.energy, energies, atol=1e-8)
        for powers, half in ((found.first, path[:, :modulus]), (found.second, path[:, modulus:])):
            np.testing.assert_allclose(powers, np.abs(np.fft.rfft(half)) ** 2, atol=1e-7)

    def test_a_frequency_that_one_input_lacks_fades(self, key):
        """It has no gradient, and on the sphere the others crowd it out."""
        u, v = jax.random.normal(key, (2, 7))
        spectrum = jnp.fft.rfft(v).at[2].set(0)
        found = theory.ascent(u, jnp.fft.irfft(spectrum, 7), jnp.array([0.0, 0.3, 3.0]))
        assert np.all(found.second[:, 2] < 1e-30)
        assert np.all(np.diff(found.first[:, 2]) < 0)
        assert found.energy[-1] == pytest.approx(7 / 4)

    def test_batches(self, key):
        u, v = jax.random.normal(key, (2, 3, 4, 7))
        times = jnp.linspace(0, 1, 5)
        found = theory.ascent(u, v, times)
        assert found.energy.shape == (3, 4, 5)
        assert found.first.shape == found.second.shape == (3, 4, 5, 4)
        one = theory.ascent(u[1, 2], v[1, 2], times)
        np.testing.assert_allclose(found.second[1, 2], one.second, rtol=1e-9)


class TestAnalyticNetwork:
    def test_mean_logits_are_exact_for_any_frequencies_and_phases(self, key):
        for modulus, frequencies in ((7, [1, 3, 3]), (11, [2, 4, 5, 1, 5])):
            k = jnp.array(frequencies)
            phases = jax.random.uniform(key, (len(k), 2), maxval=2 * jnp.pi)
            logits = table_logits(theory.analytic_network(k, phases, modulus), modulus)
            expected = theory.mean_logits(k, modulus)
            np.testing.assert_allclose(logits.mean(axis=(0, 1)), expected, atol=1e-13)
            assert expected[0] == pytest.approx(len(k) / 2)

    def test_covariance_by_integration_over_both_phases(self):
        """A grid of 8 x 8 phases is exact: no product has a harmonic above 6."""
        modulus, k = 7, 3
        grid = 2 * np.pi * np.indices((8, 8)).reshape(2, -1).T / 8
        one = lambda phases: table_logits(
            theory.analytic_network(jnp.array([k]), phases[None], modulus), modulus
        )
        logits = jax.vmap(one)(jnp.asarray(grid)).reshape(64, -1, modulus)
        off = logits - logits.mean(axis=0)
        covariance = jnp.einsum("spd,spe->pde", off, off) / 64
        expected = theory.logit_covariance(jnp.array([k]), modulus)
        np.testing.assert_allclose(
            covariance, np.broadcast_to(expected, covariance.shape), atol=1e-13
        )

    @pytest.mark.parametrize(("width", "modulus"), [(5, 11), (40, 11), (15, 31)])
    def test_accuracy_is_that_of_gaussian_logits(self, width, modulus):
        k = np.arange(1, (modulus + 1) // 2)
        share = width / len(k)
        mean = share * np.asarray(theory.mean_logits(k, modulus))
        covariance = share * np.asarray(theory.logit_covariance(k, modulus))
        drawn = np.random.default_rng(0).multivariate_normal(mean, covariance, 100_000)
        right = drawn.argmax(axis=1) == 0
        error = abs(right.mean() - theory.analytic_accuracy(width, modulus))
        assert error < 5 * max(right.std(), 1e-3) / np.sqrt(len(right))

    def test_many_neurons_are_always_right(self):
        found = theory.analytic_accuracy(jnp.array([50.0, 200.0, 2000.0]), 31)
        assert np.all(np.diff(found) > 0)
        assert found[-1] == pytest.approx(1, abs=1e-12)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="second has shape"):
        theory.energy(jnp.ones(3), jnp.ones(4))
    with pytest.raises(ValueError, match="modulus=1: give at least 2"):
        theory.largest_energy(1)
    with pytest.raises(ValueError, match="modulus=8"):
        theory.analytic_network(jnp.ones(2), jnp.ones((2, 2)), 8)
    with pytest.raises(ValueError, match="phases"):
        theory.analytic_network(jnp.ones(2), jnp.ones(2), 7)
    for function in (theory.mean_logits, theory.logit_covariance):
        with pytest.raises(ValueError, match="modulus=2"):
            function(jnp.ones(2), 2)
    with pytest.raises(ValueError, match="modulus=2"):
        theory.analytic_accuracy(5, 2)
