"""Linear stability of SGD against dense Kronecker products, every order of samples, and bounds."""

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from dynamics.theory import sgd_stability

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**16))


def draw(sizes):
    num_samples, dim, seed = sizes
    return np.random.default_rng(seed).normal(size=(num_samples, dim))


def dense(gradients, rate, batches):
    """E[A ⊗ A] on the span of the gradients, one Kronecker product a batch."""
    _, sizes, right = np.linalg.svd(gradients, full_matrices=False)
    rows = gradients @ right[sizes > 1e-10 * sizes[0]].T
    steps = [
        np.eye(rows.shape[1]) - rate * np.mean([np.outer(rows[i], rows[i]) for i in batch], axis=0)
        for batch in batches
    ]
    return np.mean([np.kron(step, step) for step in steps], axis=0)


@hypothesis.given(SIZES, st.integers(1, 3), st.booleans(), st.floats(0.01, 2))
def test_radius_of_the_mean_kronecker_product(sizes, batch, with_replacement, rate):
    gradients = draw(sizes)
    numbers = range(len(gradients))
    batch = batch if with_replacement else min(batch, len(gradients))
    weight = sgd_stability.batch_weight(len(gradients), batch, with_replacement=with_replacement)
    chosen = itertools.product(numbers, repeat=batch)
    batches = chosen if with_replacement else itertools.combinations(numbers, batch)
    expected = np.abs(np.linalg.eigvals(dense(gradients, rate, batches))).max()
    found = sgd_stability.radius(gradients, rate, weight=weight)
    assert found == pytest.approx(expected, rel=1e-9)


@hypothesis.given(SIZES, st.floats(0, 1))
def test_critical_point(sizes, weight):
    """Radius one there, below one before, above one after; and the covariance stays."""
    gradients = draw(sizes)
    point = sgd_stability.critical_point(gradients, weight=weight)
    at = lambda share: sgd_stability.radius(gradients, share * point.learning_rate, weight=weight)
    assert at(1) == pytest.approx(1, abs=1e-9)
    assert at(0.99) < 1 < at(1.01)
    moments = sgd_stability.second_moments(
        gradients, point.covariance, point.learning_rate, 3, weight=weight
    )
    np.testing.assert_allclose(moments[-1], point.covariance, atol=1e-9)
    assert np.linalg.eigvalsh(point.covariance)[0] > -1e-9


@hypothesis.given(SIZES, st.floats(0, 1), st.floats(0, 1))
def test_bounds(sizes, first, second):
    gradients = draw(sizes)
    squares = (gradients**2).sum(axis=1)
    hessian = gradients.T @ gradients / len(gradients)
    rate = lambda weight: sgd_stability.critical_point(gradients, weight=weight).learning_rate
    assert rate(0) == pytest.approx(2 / np.linalg.eigvalsh(hessian)[-1], rel=1e-9)
    assert 2 / squares.max() <= rate(1) * (1 + 1e-9)
    assert rate(1) <= 2 * squares.mean() / (squares**2).mean() * (1 + 1e-9)
    assert squares.mean() / (squares**2).mean() <= 1 / np.trace(hessian) * (1 + 1e-9)
    assert rate(max(first, second)) <= rate(min(first, second)) * (1 + 1e-9)
    same = gradients / np.sqrt(squares)[:, None]
    assert sgd_stability.critical_point(same).learning_rate == pytest.approx(2, rel=1e-9)


def test_second_moments_are_means_over_all_orders():
    gradients, rate = draw((3, 4, 0)), 0.3
    start = np.random.default_rng(1).normal(size=(4, 2))
    total = 0
    for order in itertools.product(range(3), repeat=4):
        ends = start
        for sample in order:
            ends = ends - rate * np.outer(gradients[sample], gradients[sample] @ ends)
        total = total + ends @ ends.T
    found = sgd_stability.second_moments(gradients, start @ start.T, rate, 4)
    np.testing.assert_allclose(found[-1], total / 3**4, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: sgd_stability.critical_point(np.zeros((2, 3))), "gradients"),
        (lambda: sgd_stability.critical_point(np.ones(3)), "gradients"),
        (lambda: sgd_stability.critical_point(np.eye(2), weight=1.5), "weight=1.5"),
        (lambda: sgd_stability.batch_weight(3, 0), "batch_size=0"),
        (lambda: sgd_stability.batch_weight(3, 4, with_replacement=False), "batch_size=4"),
        (lambda: sgd_stability.second_moments(np.eye(2), np.eye(3), 0.1, 1), "start"),
    ],
)
def test_refusals(call, word):
    with pytest.raises(ValueError, match=word):
        call()
