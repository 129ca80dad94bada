"""Layers that find no form, or fewer of its parts, turn the claim on hierarchical targets red."""

import dataclasses

import numpy as np
import pytest

from dynamics.theory import hierarchical_polynomials

NAME = "experiments/kernels/hierarchical_feature_recovery"
OVERLAPS = {f"C = {c}: missing overlap / prediction" for c in (2, 4, 8)}
ERRORS = {f"C = {c}: error / best of degree two" for c in (4, 8)}
KERNEL = "kernel at its best C: error / best of degree two"
LOST = "C = 0.5: overlap with the form"
FEW = "C = 0.5: error / best of degree two"
pytestmark = [pytest.mark.claims, pytest.mark.smoke_run_of(NAME), pytest.mark.timeout(900)]


def test_left_alone_it_holds(claim):
    assert claim.judge() == ("holds", set())


def test_a_law_with_noise_of_constant_variance(claim, monkeypatch):
    """As in the textbook: the number of coefficients times the mean square of the residual."""
    exact = hierarchical_polynomials.degree_two

    def constant(link, *, dim):
        parts = exact(link, dim=dim)
        coefficients = dim + dim * (dim + 1) / 2 - 1
        return parts._replace(noise=coefficients * parts.floor * parts.variance)

    monkeypatch.setattr(hierarchical_polynomials, "degree_two", constant)
    assert claim.judge() == ("fails", OVERLAPS)


def test_one_gradient_step_in_place_of_least_squares(claim):
    """A matched filter: the labels' whole second moment is noise, not the residual's."""
    config = claim.main.config
    parts = hierarchical_polynomials.degree_two(lambda p: np.sin(1.5 * p), dim=config.input_dim)
    noise = parts.noise / parts.floor
    filtered = 1 / (1 + noise / (parts.signal * np.array(config.ratios) * config.input_dim**2))
    overlap = np.broadcast_to(filtered, claim.main.result.overlap.shape)
    assert claim.judge(overlap=overlap) == ("fails", OVERLAPS)


@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_half_of_the_samples(claim, ratio):
    """The overlap of the next smaller number."""
    overlap = claim.main.result.overlap.copy()
    place = claim.main.config.ratios.index(ratio)
    overlap[:, place] = overlap[:, place - 1]
    red = {f"C = {ratio}: missing overlap / prediction"}
    assert claim.judge(overlap=overlap) == ("fails", red)


def test_a_form_known_beforehand(claim):
    overlap = np.ones_like(claim.main.result.overlap)
    assert claim.judge(overlap=overlap) == ("fails", OVERLAPS | {LOST})


def test_without_a_last_layer(claim):
    """The best predictor of degree two in place of the network."""
    config = claim.main.config
    parts = hierarchical_polynomials.degree_two(lambda p: np.sin(1.5 * p), dim=config.input_dim)
    error = np.full_like(claim.main.result.error, parts.floor)
    assert claim.judge(error=error) == ("fails", ERRORS | {FEW})


def test_a_kernel_that_does_as_the_network(claim):
    result = claim.main.result
    rows = result.kernel_error.shape
    error = result.error[: rows[0], [claim.main.config.ratios.index(4)]]
    assert claim.judge(kernel_error=np.broadcast_to(error, rows)) == ("fails", {KERNEL})


def test_a_kernel_that_gains_a_little_on_degree_two(claim):
    """Five per cent: the claim says not below."""
    config = claim.main.config
    parts = hierarchical_polynomials.degree_two(lambda p: np.sin(1.5 * p), dim=config.input_dim)
    error = np.full_like(claim.main.result.kernel_error, 0.95 * parts.floor)
    assert claim.judge(kernel_error=error) == ("fails", {KERNEL})


def test_twice_as_many_of_the_fewest_samples(claim):
    overlap = claim.main.result.overlap.copy()
    overlap[:, 0] = overlap[:, 1]
    assert claim.judge(overlap=overlap) == ("fails", {LOST})


def test_errors_that_do_not_fall_with_samples(claim):
    error = np.repeat(claim.main.result.error[:, :1], 5, axis=1)
    assert claim.judge(error=error) == ("fails", ERRORS)


def test_settings_that_say_nothing_are_refused(claim):
    config = claim.main.config
    with pytest.raises(ValueError, match="link='tan': choose one of sin, cos"):
        dataclasses.replace(config, link="tan")
    with pytest.raises(ValueError, match=r"hold 0\.5, 2, 4, 8"):
        dataclasses.replace(config, ratios=(1.0, 2.0))
