"""Spectral answers against the algorithms written out on each prefix, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.theory import in_context_regression as regression

SIZES = st.sampled_from([(7, 3), (3, 4)])  # one shape is one compilation


def prompt(seed, num_examples, dim):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_examples, dim)), rng.normal(size=num_examples)


def prefixes(inputs, targets):
    for i in range(len(inputs)):
        yield inputs[:i], targets[:i], inputs[i]


@given(st.integers(0, 2**31), SIZES)
def test_gradient_descent_is_the_loop(seed, size):
    x, y = prompt(seed, *size)
    expected = []
    for past, labels, query in prefixes(x, y):
        rate = 1 / max(np.linalg.eigvalsh(past.T @ past)[-1], 1e-300) if len(past) else 1
        weights, answers = np.zeros(size[1]), []
        for _ in range(6):
            answers.append(weights @ query)
            weights = weights + rate * past.T @ (labels - past @ weights)
        expected.append(answers)
    with jax.enable_x64(True):
        found = regression.gradient_descent_predictions(x, y, np.arange(6))
    np.testing.assert_allclose(found, np.transpose(expected), rtol=1e-9, atol=1e-10)


@given(st.integers(0, 2**31), SIZES)
def test_newton_is_the_matrix_iteration(seed, size):
    x, y = prompt(seed, *size)
    expected = []
    for past, labels, query in prefixes(x, y):
        gram = past.T @ past
        inverse = gram / max(np.linalg.eigvalsh(gram)[-1], 1e-300) ** 2 if len(past) else gram
        answers = []
        for _ in range(6):
            answers.append(query @ inverse @ past.T @ labels)
            inverse = 2 * inverse - inverse @ gram @ inverse
        expected.append(answers)
    with jax.enable_x64(True):
        found = regression.newton_predictions(x, y, np.arange(6))
    np.testing.assert_allclose(found, np.transpose(expected), rtol=1e-8, atol=1e-9)


@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.1, 3.0]))
def test_ridge_is_the_solve_and_its_zero_is_the_pseudo_inverse(seed, ridge):
    x, y = prompt(seed, 7, 3)
    solve = lambda a, b: np.linalg.pinv(a.T @ a + ridge * np.eye(3), rcond=1e-12) @ a.T @ b
    expected = [solve(past, labels) @ query for past, labels, query in prefixes(x, y)]
    with jax.enable_x64(True):
        found = regression.ridge_predictions(x, y, ridge)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x, y: regression.ridge_predictions(x, y[:-1]), "targets has shape .* as in inputs"),
        (lambda x, y: regression.ridge_predictions(x, y, -1.0), "ridge=-1.0"),
        (lambda x, y: regression.newton_predictions(x, y, jnp.array([31])), "num_iterations"),
        (lambda x, y: regression.gradient_descent_predictions(x, y, -1), "num_steps"),
    ],
)
def test_refusals(call, match):
    with pytest.raises(ValueError, match=match):
        call(jnp.ones((4, 2)), jnp.ones(4))
