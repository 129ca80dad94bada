"""Closed forms of factorisation against descents written out in numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.theory import matrix_factorisation


@given(eta=st.floats(0.01, 0.5), y=st.floats(1e-4, 0.1))
def test_clock_runs_at_twice_the_rate_up_to_third_order(eta, y):
    later = y
    for _ in range(50):
        later = later * (1 - eta * later) ** 2
    clock = matrix_factorisation.excess_clock
    grown = (clock(later, eta) - clock(y, eta)) / (100 * eta)
    assert abs(grown - 1) < 4 * (eta * y) ** 3 + 1e-10


def descend(x, target, eta, num_steps):
    losses = []
    for _ in range(num_steps):
        error = x @ x.T - target
        losses.append(np.sum(error**2))
        x = x - eta * error @ x
    return np.array(losses)


def test_symmetric_loss_is_reached_from_below():
    start = 0.5 * np.random.default_rng(0).normal(size=(6, 3))
    losses = descend(start, np.diag([1.0, 0, 0, 0, 0, 0]), 0.25, 4001)
    for num_steps, slack in ((400, 0.15), (4000, 0.015)):
        ratio = losses[num_steps] / matrix_factorisation.symmetric_loss(2, num_steps, 0.25)
        assert 1 - slack < ratio < 1


@pytest.mark.parametrize(("eigenvalues", "eta"), [((1.0, 0.5), 0.3), ((1.0, 0.8), 0.9)])
def test_exact_rank_rate(eigenvalues, eta):
    """In the second case it is the largest eigenvalue that overshoots."""
    generator = np.random.default_rng(1)
    near = np.vstack([np.diag(np.sqrt(eigenvalues)), np.zeros((2, 2))])
    losses = descend(
        near + 1e-5 * generator.normal(size=near.shape), np.diag([*eigenvalues, 0, 0]), eta, 41
    )
    rate = (np.log(losses[20]) - np.log(losses[40])) / 20
    assert rate == pytest.approx(matrix_factorisation.exact_rank_rate(eigenvalues, eta), rel=1e-2)


def drawn(seed, dims=(9, 7), columns=4, rank=2):
    generator = np.random.default_rng(seed)
    first, second = (generator.normal(size=(dim, columns)) for dim in dims)
    left, right = (np.linalg.qr(generator.normal(size=(dim, rank)))[0] for dim in dims)
    return first, second / 3, left, right, generator


@given(seed=st.integers(0, 10_000))
def test_imbalance_knows_neither_bases_nor_signs_and_is_odd(seed):
    first, second, left, right, generator = drawn(seed)
    found = matrix_factorisation.excess_imbalance(first, second, left, right)
    turn, mix, basis = (np.linalg.qr(generator.normal(size=(n, n)))[0] for n in (9, 4, 2))
    turned = matrix_factorisation.excess_imbalance(
        turn @ first @ mix, second @ mix, turn @ left @ basis, right @ basis
    )
    np.testing.assert_allclose(turned, found, rtol=1e-8, atol=1e-8)
    swapped = matrix_factorisation.excess_imbalance(second, first, right, left)
    np.testing.assert_allclose(swapped, -found[::-1], rtol=1e-8, atol=1e-8)
    scaled = matrix_factorisation.excess_imbalance(0.1 * first, 0.1 * second, left, right)
    np.testing.assert_allclose(scaled, 0.01 * found, rtol=1e-8, atol=1e-8)


def test_a_balanced_start_has_none():
    first, _, left, _, _ = drawn(0)
    found = matrix_factorisation.excess_imbalance(first, first, left, left)
    np.testing.assert_allclose(found, 0, atol=1e-12)


@pytest.mark.parametrize("second_scale", [1.0, 3.0], ids=["second smaller", "of either sign"])
def test_what_descent_leaves_on_the_free_columns(second_scale):
    """Unequal singular values, and where signs differ both factors keep what is theirs."""
    first, second, left, right, _ = drawn(2)
    second = second_scale * second
    target, eta, alpha = left * [1.0, 0.7] @ right.T, 0.4, 0.02
    f, g = alpha * first, alpha * second
    for _ in range(8000):
        error = f @ g.T - target
        f, g = f - eta * error @ g, g - eta * error.T @ f
    expected = alpha**2 * matrix_factorisation.excess_imbalance(first, second, left, right)
    sizes = np.sort(np.concatenate([np.linalg.eigvalsh(a.T @ a) for a in (f, g)]))
    np.testing.assert_allclose(sizes[2:4], np.sort(np.abs(expected)), rtol=0.05)
    assert sizes[1] < 1e-3 * sizes[2]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="eigenvalues"):
        matrix_factorisation.exact_rank_rate([1.0, 0.0], 0.1)
    with pytest.raises(ValueError, match="learning_rate"):
        matrix_factorisation.exact_rank_rate([2.0, 1.0], 0.5)
    first, second, left, right, _ = drawn(0)
    with pytest.raises(ValueError, match="second has shape"):
        matrix_factorisation.excess_imbalance(first, second[:, :3], left, right)
    with pytest.raises(ValueError, match="columns"):
        matrix_factorisation.excess_imbalance(first[:, :2], second[:, :2], left, right)
