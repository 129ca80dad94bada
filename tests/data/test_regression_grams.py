"""Tasks as Gram matrices against their statistics and against attention over drawn queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.data import regression_grams


def test_labels_are_the_weights_times_the_inputs(key, x64):
    tasks = regression_grams.uniform_tasks(key, 5, 4, 3)
    gram, w = np.asarray(tasks.gram), np.asarray(tasks.weights)
    second = gram[:, :-1, :-1]
    np.testing.assert_allclose(gram[:, :-1, -1], np.einsum("bij,bj->bi", second, w), atol=1e-12)
    np.testing.assert_allclose(gram[:, -1, -1], np.einsum("bi,bij,bj->b", w, second, w), atol=1e-12)
    assert (np.linalg.matrix_rank(gram) == 3).all()


def test_moments_are_those_of_uniform_entries(key):
    """E tr S = d N / 12 and E tr S² = d N² c / 144 with c = 1 + (9/5 + d - 2) / N."""
    second = regression_grams.uniform_tasks(key, 20_000, 6, 4).gram[:, :-1, :-1]
    traces = np.trace(second, axis1=1, axis2=2), np.sum(np.asarray(second) ** 2, axis=(1, 2))
    expected = 4 * 6 / 12, 4 * 36 / 144 * (1 + 3.8 / 6)
    for values, target in zip(traces, expected, strict=True):
        assert abs(values.mean() - target) < 5 * values.std() / len(values) ** 0.5
        assert values.std() / len(values) ** 0.5 < 0.01 * target


def test_turned_labels_keep_their_size_and_lose_their_meaning(key):
    right, turned = (
        regression_grams.uniform_tasks(key, 5000, 6, 4, shift=shift) for shift in (0, 1)
    )
    np.testing.assert_allclose(right.gram[:, -1, -1], turned.gram[:, -1, -1], rtol=1e-5)
    says = [np.mean(np.sum(t.gram[:, :-1, -1] * t.weights, axis=1)) for t in (right, turned)]
    assert abs(says[0] - 4 * 6 / 12) < 0.1
    assert abs(says[1]) < 0.1


def test_the_loss_is_the_mean_over_queries(key, x64):
    row, weights = jax.random.normal(key, (2, 4))
    x = np.random.default_rng(0).uniform(-0.5, 0.5, (200_000, 4))
    losses = (x @ np.asarray(weights - row)) ** 2 / 2
    found = float(regression_grams.query_loss(row, weights))
    assert abs(losses.mean() - found) < 5 * losses.std() / len(losses) ** 0.5


def test_wrong_arguments_are_named(key):
    with pytest.raises(ValueError, match="num_context=0"):
        regression_grams.uniform_tasks(key, 2, 0, 3)
    with pytest.raises(ValueError, match=r"weights has shape .* as in row"):
        regression_grams.query_loss(jnp.zeros(3), jnp.zeros(2))
