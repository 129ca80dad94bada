"""Scores of probes for S^-1 x against moments in closed form and against probes of samples."""

import numpy as np
import pytest

from dynamics.theory import inverse_covariance_probe as theory

DIM, NUM_CONTEXT = 3, 14


@pytest.fixture(scope="module")
def samples():
    """Eigenvalues by Bartlett's decomposition, and S itself from Gaussian inputs."""
    x = np.random.default_rng(1).normal(size=(20_000, NUM_CONTEXT, DIM))
    moment = x.swapaxes(1, 2) @ x / NUM_CONTEXT
    return theory.wishart_spectra(DIM, NUM_CONTEXT, 20_000, seed=0), moment


def test_spectra_are_those_of_gaussian_inputs(samples):
    """Means of both ends, within five standard errors; trace of S^-1 in closed form."""
    found, moment = samples
    expected = np.linalg.eigvalsh(moment)
    for column in range(DIM):
        error = np.hypot(found[:, column].std(), expected[:, column].std()) / len(found) ** 0.5
        assert abs(found[:, column].mean() - expected[:, column].mean()) < 5 * error
    inverse = np.sum(1 / found, axis=1)
    exact = DIM * NUM_CONTEXT / (NUM_CONTEXT - DIM - 1)
    assert abs(inverse.mean() - exact) < 5 * inverse.std() / len(found) ** 0.5


def test_the_raw_input_has_the_closed_form(samples):
    spectra, _ = samples
    found = theory.probe_r_squared(spectra, np.ones_like(spectra))
    assert abs(found - theory.raw_input_r_squared(DIM, NUM_CONTEXT)) < 0.02


@pytest.mark.parametrize("num_steps", [1, 3, 8])
def test_descent_and_its_probe_written_out(samples, num_steps):
    """Iterates by matrices, and least squares over one matrix for all contexts."""
    spectra, moment = samples
    x = np.random.default_rng(2).normal(size=(len(moment), DIM, 1))
    h = np.zeros_like(x)
    for _ in range(num_steps):
        h = 0.4 * x + h - 0.4 * moment @ h
    features, targets = h[..., 0], np.linalg.solve(moment, x)[..., 0]
    left = targets - features @ np.linalg.lstsq(features, targets, rcond=None)[0]
    score = 1 - np.sum(left**2) / np.sum(targets**2)
    applied = theory.descent_polynomial(spectra, 0.4, num_steps)
    assert abs(theory.probe_r_squared(spectra, applied) - score) < 0.02


def test_the_best_polynomial_is_the_best(samples):
    """By a search over the other coefficient, and no less than descent with any step."""
    spectra, _ = samples
    best = theory.polynomial_r_squared(spectra, 1)
    grid = np.linspace(-1, 1, 401)
    found = max(theory.probe_r_squared(spectra, 1 + b * spectra) for b in grid)
    np.testing.assert_allclose(best, found, atol=1e-4)
    assert theory.polynomial_r_squared(spectra, 3) > best
    raw = theory.probe_r_squared(spectra, np.ones_like(spectra))
    np.testing.assert_allclose(theory.polynomial_r_squared(spectra, 0), raw, rtol=1e-9)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="num_context=2"):
        theory.wishart_spectra(3, 2, 10, seed=0)
    with pytest.raises(ValueError, match="num_context=6, dim=3"):
        theory.raw_input_r_squared(3, 6)
