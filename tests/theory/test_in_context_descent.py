"""Closed forms of in-context descent against Monte Carlo, iteration and grids."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.theory import in_context_descent as theory

KINDS = {"gaussian": (1.0, 3.0), "uniform": (1 / 12, 1.8)}


def contexts(kind, num_tasks, num_context, dim):
    rng = np.random.default_rng(0)
    shape = (num_tasks, num_context, dim)
    return rng.normal(size=shape) if kind == "gaussian" else rng.uniform(-0.5, 0.5, shape)


def spectra(kind, num_tasks, num_context, dim):
    x = contexts(kind, num_tasks, num_context, dim)
    return np.linalg.eigvalsh(np.swapaxes(x, 1, 2) @ x / num_context)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_the_loss_of_one_step_is_its_monte_carlo_mean(kind, scale):
    """The tasks' queries and weights are drawn, not only the spectra."""
    variance, kurtosis = KINDS[kind]
    dim, num_context, num_tasks = 4, 6, 20_000
    best = theory.optimal_one_step(dim, num_context, variance=variance, kurtosis=kurtosis)
    rng = np.random.default_rng(1)
    x = scale * contexts(kind, num_tasks, num_context + 1, dim)
    w = rng.normal(size=(num_tasks, dim))
    y = np.einsum("bnd,bd->bn", x, w)
    step = best.learning_rate / num_context * np.einsum("bn,bnd->bd", y[:, :-1], x[:, :-1])
    losses = (y[:, -1] - np.sum(step * x[:, -1], axis=1)) ** 2 / 2
    expected = theory.one_step_loss(
        best.learning_rate, dim, num_context,
        variance=variance, kurtosis=kurtosis, input_scale=scale,
    )  # fmt: skip
    assert abs(losses.mean() - expected) < 5 * losses.std() / num_tasks**0.5
    assert losses.std() / num_tasks**0.5 < 0.03 * expected


@given(
    st.integers(1, 20), st.integers(1, 50), st.floats(0.1, 3), st.floats(1, 5), st.floats(0.5, 1.5)
)
def test_no_other_rate_is_better(dim, num_context, variance, kurtosis, factor):
    best = theory.optimal_one_step(dim, num_context, variance=variance, kurtosis=kurtosis)
    at = lambda rate: theory.one_step_loss(
        rate, dim, num_context, variance=variance, kurtosis=kurtosis
    )
    np.testing.assert_allclose(at(best.learning_rate), best.loss, rtol=1e-10, atol=1e-12)
    assert at(factor * best.learning_rate) >= best.loss - 1e-12


def test_one_best_step_is_the_closed_form():
    found = theory.best_rates(
        spectra("uniform", 20_000, 10, 10), 1, variance=1 / 12, tied=True, plus_plus=False
    )
    best = theory.optimal_one_step(10, 10, variance=1 / 12, kurtosis=1.8)
    np.testing.assert_allclose(found.learning_rates, best.learning_rate, rtol=0.01)
    np.testing.assert_allclose(found.loss, best.loss, rtol=0.01)


def test_more_freedom_is_better_and_a_grid_finds_nothing_better():
    few = spectra("uniform", 300, 10, 10)
    kinds = [(True, False), (False, False), (True, True), (False, True)]
    found = {k: theory.best_rates(few, 2, tied=k[0], plus_plus=k[1]) for k in kinds}
    losses = [found[kind].loss for kind in kinds]
    assert losses == sorted(losses, reverse=True)
    best = found[True, True]
    for eta in best.learning_rates[0] * np.linspace(0.7, 1.3, 7):
        for gamma in best.input_rates[0] * np.linspace(0.4, 1.6, 7):
            left = theory.residual_factors(few, [eta, eta], [gamma, 0])
            assert np.mean(np.sum(left**2, axis=1)) / 2 >= best.loss - 1e-9


@given(st.integers(0, 1000), st.integers(0, 8), st.sampled_from(["identity", "gram"]))
def test_newton_is_its_iteration(seed, num_iterations, start):
    rng = np.random.default_rng(seed)
    eigenvalues = rng.uniform(0.1, 1, 3)
    basis = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    gram = basis * eigenvalues @ basis.T
    inverse = 0.9 * (np.eye(3) if start == "identity" else gram)
    for _ in range(num_iterations):
        inverse = 2 * inverse - inverse @ gram @ inverse
    closed = theory.newton_inverse(eigenvalues, num_iterations, 0.9, start)
    np.testing.assert_allclose(inverse, basis * closed @ basis.T, atol=1e-10)


@given(st.floats(1.5, 1e4), st.sampled_from([0.1, 1e-3, 1e-8]))
def test_counts_of_steps_are_the_first_that_reach_the_tolerance(condition, tolerance):
    left = 1 - 1 / condition
    steps = theory.gradient_descent_steps(condition, tolerance)
    assert left**steps <= tolerance * (1 + 1e-9)
    assert left ** (steps - 1) > tolerance * (1 - 1e-9)
    for start, factor in (("identity", 1 - 1 / condition), ("gram", 1 - 1 / condition**2)):
        k = theory.newton_iterations(condition, tolerance, start)
        assert factor ** (2**k) <= tolerance * (1 + 1e-6)
        assert k == 0 or factor ** (2 ** (k - 1)) > tolerance * (1 - 1e-6)


@given(st.floats(1.01, 1e6), st.sampled_from(["schulz", "best"]))
def test_whitening_is_the_recursion_on_a_grid(condition, scheme):
    grid = np.append(np.geomspace(1 / condition, 1, 4000), 1.0)
    rates = theory.input_rates(condition, 3, scheme=scheme)
    expected = theory.whitened_condition(condition, 3, scheme=scheme)
    for layer, rate in enumerate(rates):
        grid = grid * (1 - rate * grid) ** 2
        np.testing.assert_allclose(grid.max() / grid.min(), expected[layer + 1], rtol=1e-4)


@given(st.floats(1.01, 1e5), st.floats(0.2, 0.99))
def test_no_other_rate_evens_out_more(condition, share):
    """Of all γ λmax below 1: at 1 some eigenvalue is lost for good."""
    grid = np.append(np.geomspace(1 / condition, 1, 2000), 1.0)
    other = grid * (1 - share * grid) ** 2
    assert other.max() / other.min() >= theory.whitened_condition(condition, 1, scheme="best")[
        1
    ] * (1 - 1e-3)


@given(st.floats(0.5, 20))
def test_schulz_rates_are_newton_schulz(largest):
    """x ← (I - γ S) x with those rates is X (3 I - X^T X) / 2 of X / |X|, up to its scale."""
    rates = theory.input_rates(30.0, 4, scheme="schulz", largest=largest)
    s = np.sqrt(largest) * np.array([1.0, 0.6, 30**-0.5])
    polar = s / s.max()
    for rate in rates:
        s = s * (1 - rate * s**2)
        polar = polar * (3 - polar**2) / 2
    np.testing.assert_allclose(s / s[0], polar / polar[0], rtol=1e-10)
    np.testing.assert_allclose(polar[0], 1, rtol=1e-12)


def test_layers_count_the_last_step():
    for condition in (3.0, 100.0):
        for scheme in ("schulz", "best"):
            layers = theory.gradient_descent_plus_plus_layers(condition, 0.05, scheme)
            left = [
                theory.residual_factors(grid_of(condition), *rates_of(condition, n, scheme))
                for n in (layers - 1, layers)
            ]
            assert abs(left[1]).max() <= 0.05 + 1e-9
            assert abs(left[0]).max() > 0.05


def grid_of(condition):
    return np.append(np.geomspace(1 / condition, 1, 3000), 1.0)


def rates_of(condition, num_layers, scheme):
    grid, gamma = grid_of(condition), np.zeros(num_layers)
    if num_layers > 1:
        gamma[:-1] = theory.input_rates(condition, num_layers - 1, scheme=scheme)
    for rate in gamma:
        grid = grid * (1 - rate * grid) ** 2
    eta = np.zeros(num_layers)
    eta[-1] = 2 / (grid.max() + grid.min())
    return eta, gamma


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.excess_moment(0, 3), "dim=0"),
        (lambda: theory.excess_moment(2, 3, 0.5), "kurtosis=0.5"),
        (lambda: theory.residual_factors([1.0], [0.1], [0.1, 0.2]), "learning_rates"),
        (lambda: theory.best_rates([1.0], 1, tied=True, plus_plus=True), "eigenvalues has shape"),
        (lambda: theory.best_rates([[1.0]], 0, tied=True, plus_plus=True), "num_layers=0"),
        (lambda: theory.newton_inverse(1.0, 1, 1.0, "zero"), "start='zero'"),
        (lambda: theory.newton_iterations(2.0, 0.1, "zero"), "start='zero'"),
        (lambda: theory.gradient_descent_steps(1.0, 0.1), "condition=1.0"),
        (lambda: theory.newton_iterations(2.0, 1.0), "tolerance=1.0"),
        (lambda: theory.input_rates(10.0, 2, scheme="good"), "scheme='good'"),
        (lambda: theory.whitened_condition(0.5, 2, scheme="best"), "condition=0.5"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
